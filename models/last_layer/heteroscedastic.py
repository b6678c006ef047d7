"""`HeteroscedasticHead` and `HeteroscedasticSoftmaxHead`: noise of y, or of the logits, that varies with x.

log σ_k²(x) = m_kᵀφ, with a normal posterior N(μ_k, V_k) of m_k as of w_k. The posterior of [1]_ scales S by σ²(x),
which is no joint model of several rows; here it is not scaled. Logits w_kᵀφ + σ_k(x) ε then have the variances
v_k = φᵀS_kφ + Σ_k with E Σ_k = exp(μ_kᵀφ + ½ φᵀV_kφ) and E[1/Σ_k] = exp(−μ_kᵀφ + ½ φᵀV_kφ). As 1/(x + y) ≤
λ²/x + (1 − λ)²/y for any λ in [0, 1], the best λ gives E[1/v_k] ≤ 1/(φᵀS_kφ + 1/E[1/Σ_k]), which the bound of
`classification` needs.

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2025). Heteroscedastic variational Bayesian last layers. AABI.
"""

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from .classification import POINTS, mean_softmax, normal_points
from .classifier import AbstractSoftmax
from .head import per_feature
from .posteriors import AbstractTwoNormals
from .regression import LOG_2PI, AbstractRegression, num_outputs

NODES = 32


class HeteroscedasticHead(AbstractTwoNormals, AbstractRegression):
    """Regression whose noise varies with x: log σ_k²(x) = m_kᵀφ.

    Parameters
    ----------
    covariance, rank, shared, prior_scale
        As in `NormalHead`, of w and of m.
    noise_prior_scale
        Prior variance of the entries of m; default 1/D.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or a low rank without ``rank``.
    """

    trained: ClassVar[tuple[str, ...]] = ("weights", "noise_weights")

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "HeteroscedasticHead":
        """See `AbstractHead.build`; m begins at 0."""
        del unit
        weights, noise = self.first_of_both(key, num_outputs(y), num_features, log_scale=None)
        return dataclasses.replace(self, weights=weights, noise_weights=noise)

    @property
    def priors(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Prior variances of w and of m, for each feature."""
        d = self.num_features
        return per_feature(self.prior_scale, d, 1.0), per_feature(self.noise_prior_scale, d, 1 / d)

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """Σ_k −½ log 2π − ½ μᵀφ − ½ exp(−μᵀφ + ½ φᵀVφ) [(y − w̄ᵀφ)² + φᵀSφ], exact."""
        del key
        log_variance, spread = self.noise_weights.means(phi), self.noise_weights.quadratic(phi)
        square = (y - self.weights.means(phi)) ** 2 + self.weights.quadratic(phi)
        return -0.5 * jnp.sum(LOG_2PI + log_variance + jnp.exp(-log_variance + 0.5 * spread) * square, -1)

    def moments(self, phi: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """Mean, epistemic and aleatoric variance of y (E σ² = exp(μᵀφ + ½ φᵀVφ)), each of shape (n, K)."""
        log_variance, spread = self.noise_weights.means(phi), self.noise_weights.quadratic(phi)
        return self.weights.means(phi), self.weights.quadratic(phi), jnp.exp(log_variance + 0.5 * spread)

    def predict(
        self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False, single: bool = False
    ) -> Any:
        """A mixture of 32 normals, by Gauss–Hermite quadrature over mᵀφ ~ N(μᵀφ, φᵀVφ), of shape (n, K).

        Raises
        ------
        InvalidArgument
            ``joint``: the rows' noise variances depend on one another through m.
        """
        import numpyro.distributions as dist

        if joint:
            raise InvalidArgument(f"joint={joint} has no closed form with noise that varies; use posterior.predict(x).")
        nodes, shares = np.polynomial.hermite_e.hermegauss(NODES)
        mean, epistemic = self.weights.means(phi)[..., None], self.weights.quadratic(phi)[..., None]
        spread = jnp.sqrt(self.noise_weights.quadratic(phi))[..., None]
        log_variance = self.noise_weights.means(phi)[..., None] + spread * jnp.asarray(nodes, mean.dtype)
        wide = jnp.sqrt(epistemic + jnp.exp(log_variance))
        locs, scales = (jnp.asarray(x, float)[..., None] if np.ndim(x) else x for x in (loc, scale))
        probabilities = jnp.broadcast_to(jnp.asarray(shares / shares.sum(), mean.dtype), wide.shape)
        found = jnp.broadcast_to(locs + scales * mean, wide.shape), scales * wide, probabilities
        where, spreads, shares = (x[:, 0] if single else x for x in found)
        return dist.MixtureSameFamily(dist.Categorical(probs=shares), dist.Normal(where, spreads))

    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Σ_k log N(y_k; w_kᵀφ, exp(m_kᵀφ))."""
        log_variance = phi @ values["m"].T
        return -0.5 * jnp.sum(LOG_2PI + log_variance + jnp.exp(-log_variance) * (y - phi @ values["w"].T) ** 2, -1)

    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """w_kᵀφ + exp(½ m_kᵀφ) ε."""
        mean = phi @ values["w"].T
        return mean + jnp.exp(0.5 * phi @ values["m"].T) * jax.random.normal(key, mean.shape, mean.dtype)


class HeteroscedasticSoftmaxHead(AbstractTwoNormals, AbstractSoftmax):
    """Classification by Bayesian logits whose noise varies with x.

    Parameters
    ----------
    covariance, rank, shared
        Form of the covariances of w and of m, as in `NormalHead`; default ``"diagonal"``.
    bound
        ``"knowles-minka"`` or ``"reduced"`` (looser, and cheaper).
    num_classes
        K; default the largest label plus one.
    prior_scale, noise_prior_scale
        Prior variances of the entries of w, default 2/D, and of m, default 1/D.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or a low rank without ``rank``.
    """

    covariance: str = eqx.field(static=True, default="diagonal")

    trained: ClassVar[tuple[str, ...]] = ("weights", "noise_weights", "tilt")

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "HeteroscedasticSoftmaxHead":
        """See `AbstractHead.build`; m begins at 0: logits with noise of variance 1 in all classes."""
        del unit
        weights, noise = self.first_of_both(key, self.classes_of(y), num_features, log_scale=-math.log(num_features))
        return dataclasses.replace(self, weights=weights, noise_weights=noise, tilt=self.first_tilt())

    @property
    def priors(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Prior variances of w and of m, for each feature."""
        d = self.num_features
        return per_feature(self.prior_scale, d, 2 / d), per_feature(self.noise_prior_scale, d, 1 / d)

    def spread(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "n k"], Float[Array, "n k"]]:
        """M, φᵀSφ + 1/E[1/Σ] and φᵀSφ + E Σ."""
        epistemic, log_variance = self.weights.quadratic(phi), self.noise_weights.means(phi)
        half = 0.5 * self.noise_weights.quadratic(phi)
        return (
            self.weights.means(phi),
            epistemic + jnp.exp(log_variance - half),
            epistemic + jnp.exp(log_variance + half),
        )

    def probabilities(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
        """E softmax(z) and E H(softmax(z)) under q, by 256 quasi-random points of log variances and logits together."""
        k = self.num_outputs
        points = jnp.asarray(normal_points(POINTS, 2 * k), phi.dtype)
        of_m, of_z = points[:, :k], points[:, k:]

        def logits(row: tuple[Array, Array, Array, Array]) -> Array:
            m, epistemic, log_variance, spread = row
            return m + jnp.sqrt(epistemic + jnp.exp(log_variance + jnp.sqrt(spread) * of_m)) * of_z

        parts = (q(phi) for w in (self.weights, self.noise_weights) for q in (w.means, w.quadratic))
        return mean_softmax(logits, tuple(parts), points.size)

    def noise_deviations(self, phi: Float[Array, "n d"], values: dict[str, Array]) -> Float[Array, "n k"]:
        """exp(½ m_kᵀφ)."""
        return jnp.exp(0.5 * phi @ values["m"].T)
