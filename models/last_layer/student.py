"""`StudentTSoftmaxHead`: classification with logits whose noise precision is inferred for each class.

z_k = w_kᵀφ + ε_k, ε_k ~ N(0, Σ_k), 1/Σ_k = τ_k ~ Gamma(a₀, b₀), w_k | τ_k ~ N(0, s I/τ_k); q(τ_k) = Gamma(a_k, b_k) and
q(w_k | τ_k) = N(w̄_k, S_k/τ_k), as in `StudentTHead` ([1]_). Given τ the logits have means m_k = w̄_kᵀφ and variances
Σ_k c_k, c_k = φᵀS_kφ + 1, with E v_k = c_k b_k/(a_k − 1) and E 1/v_k = a_k/(b_k c_k) in the bound of `classification`.
The released code has e b_k/a_k for E[Σ_k], with which it need not be a bound. a_k > 1 by its parameterisation.

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2025). Heteroscedastic variational Bayesian last layers. AABI.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from .classification import POINTS, mean_softmax, normal_points
from .classifier import AbstractSoftmax
from .head import check_scale, per_feature
from .posteriors import AbstractNormalGamma


class StudentTSoftmaxHead(AbstractNormalGamma, AbstractSoftmax):
    """Classification by Bayesian logits with noise of unknown precision.

    Parameters
    ----------
    covariance, rank, shared
        Form of S_k, as in `NormalHead`; default ``"diagonal"``.
    bound
        ``"knowles-minka"`` or ``"reduced"`` (looser, and cheaper).
    num_classes
        K; default the largest label plus one.
    prior_scale
        s; default 2/(D E₀[Σ]), E₀[Σ] = b₀/(a₀ − 1).
    shape, rate
        a₀ > 1 and b₀ of the prior of the precisions.

    Raises
    ------
    InvalidArgument
        A setting is out of range: with a₀ ≤ 1 the noise would have no mean variance.
    """

    covariance: str = eqx.field(static=True, default="diagonal")
    shape: float = eqx.field(static=True, default=2.0)
    rate: float = eqx.field(static=True, default=1.0)
    raw_shape: Any = None
    log_rate: Any = None

    trained: ClassVar[tuple[str, ...]] = ("weights", "raw_shape", "log_rate", "tilt")

    positive: ClassVar[tuple[str, ...]] = ("prior_scale", "shape", "rate")

    def __check_init__(self) -> None:
        check_scale("shape", self.shape)
        if not self.shape > 1:
            raise InvalidArgument(f"shape must be > 1, so that the noise has a mean variance, got {self.shape!r}.")

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "StudentTSoftmaxHead":
        """See `AbstractHead.build`; q(τ) begins as the prior."""
        del unit
        k = self.classes_of(y)
        weights = self.first_weights(key, k, num_features, log_scale=-float(np.log(num_features)))
        fields = {
            "raw_shape": jnp.full((k,), np.log(np.expm1(self.shape - 1)), float),
            "log_rate": jnp.full((k,), np.log(self.rate), float),
            "tilt": self.first_tilt(),
        }
        return dataclasses.replace(self, weights=weights, **fields)

    @property
    def gamma(self) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """a_k > 1 and b_k."""
        return 1 + jax.nn.softplus(self.raw_shape), jnp.exp(self.log_rate)

    @property
    def prior(self) -> Float[Array, " d"]:
        """S for each feature."""
        d = self.num_features
        return per_feature(self.prior_scale, d, 2 * (self.shape - 1) / (self.rate * d))

    def spread(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "n k"], Float[Array, "n k"]]:
        """M, 1/E[1/v] = c b/a and E v = c b/(a − 1)."""
        a, b = self.gamma
        c = self.weights.quadratic(phi) + 1
        return self.weights.means(phi), c * b / a, c * b / (a - 1)

    def probabilities(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
        """E softmax(z) and E H(softmax(z)) under q, by 256 points: quasi-random normals, fixed draws of τ."""
        a, b = self.gamma
        m, c = self.weights.means(phi), self.weights.quadratic(phi) + 1
        tau = jax.random.gamma(jax.random.key(0), a, (POINTS, len(a)), m.dtype) / b
        points = jnp.asarray(normal_points(POINTS, len(a)), m.dtype) / jnp.sqrt(tau)
        return mean_softmax(lambda row: row[0] + jnp.sqrt(row[1]) * points, (m, c), points.size)

    def noise_deviations(self, phi: Float[Array, "n d"], values: dict[str, Array]) -> Any:
        """1/√τ_k."""
        del phi
        return 1 / jnp.sqrt(values["tau"])
