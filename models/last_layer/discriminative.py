"""`SoftmaxHead`: classification with softmax of Bayesian logits z_k = w_kᵀφ + ε_k, ε_k ~ N(0, σ_k²) (D-VBLL).

Under q the logits are normal, m_k = w̄_kᵀφ and v_k = φᵀS_kφ + σ_k²; the bounds of E log softmax are in
`classification`. The bound is no predictive density: `predict` averages softmax over the logits.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from .classification import jensen, mean_probabilities, monte_carlo
from .classifier import AbstractSoftmax
from .head import check_scale, per_feature
from .posteriors import AbstractNormal

FIRST_LOG_NOISE = -1.0


class SoftmaxHead(AbstractNormal, AbstractSoftmax):
    """Classification by Bayesian logits.

    Parameters
    ----------
    covariance, rank, shared
        Form of S_k, as in `NormalHead`; default ``"diagonal"``.
    bound
        ``"knowles-minka"``, ``"reduced"`` or ``"jensen"`` (looser), or ``"monte-carlo"`` (unbiased, with noise).
    num_classes
        K; default the largest label plus one.
    prior_scale
        s, the prior *variance* of a weight; default 2/D.
    noise
        Standard deviation of the logits' noise; None: estimated for each class; 0: softmax regression.
    dof, scale
        ν and ψ of the prior W⁻¹(ν, ψ I) of its variances.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or a low rank without ``rank``.
    """

    covariance: str = eqx.field(static=True, default="diagonal")

    trained: ClassVar[tuple[str, ...]] = ("weights", "log_noise", "tilt")
    positive: ClassVar[tuple[str, ...]] = ("prior_scale", "dof", "scale")
    bounds: ClassVar[tuple[str, ...]] = ("knowles-minka", "reduced", "jensen", "monte-carlo")

    def __check_init__(self) -> None:
        if self.noise != 0:
            check_scale("noise", self.noise)

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "SoftmaxHead":
        """See `AbstractHead.build`; all classes begin with the same noise."""
        del unit
        k = self.classes_of(y)
        weights = self.first_weights(key, k, num_features, log_scale=-float(np.log(num_features)))
        noise = jnp.full((k,), FIRST_LOG_NOISE, float) if self.noise is None else None
        return dataclasses.replace(self, weights=weights, log_noise=noise, tilt=self.first_tilt())

    @property
    def noise_variance(self) -> Any:
        """σ_k² of each class, or one for all."""
        return jnp.exp(2 * self.log_noise) if self.noise is None else self.noise**2

    @property
    def prior(self) -> Float[Array, " d"]:
        """S for each feature."""
        return per_feature(self.prior_scale, self.num_features, 2 / self.num_features)

    def logits(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
        """Means m and variances v of the logits under q."""
        return self.weights.means(phi), self.weights.quadratic(phi) + self.noise_variance

    def spread(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "n k"], Float[Array, "n k"]]:
        """The variances are certain."""
        m, v = self.logits(phi)
        return m, v, v

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """The bound of each row; ``bound="monte-carlo"`` needs a key."""
        if self.bound == "jensen":
            return jax.vmap(jensen)(*self.logits(phi), y)
        if self.bound != "monte-carlo":
            return super().expected_log_likelihood(phi, y)
        if key is None:
            raise InvalidArgument(f"bound={self.bound!r} draws, got key={key}; give a key.")
        return jax.vmap(monte_carlo)(*self.logits(phi), y, jax.random.split(key, len(phi)))

    def probabilities(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
        """E softmax(z), and E H(softmax(z)), by 256 quasi-random points."""
        m, v = self.logits(phi)
        return mean_probabilities(m, v)

    def noise_deviations(self, phi: Float[Array, "n d"], values: dict[str, Array]) -> Any:
        """σ_k."""
        del phi, values
        return jnp.exp(self.log_noise) if self.noise is None else float(self.noise)
