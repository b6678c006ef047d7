"""`GaussianApproximation`: N(loc, C Cᵀ) of any covariance structure, with closed-form density and moments."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...approximation import Approximation
from ...linalg import AbstractFactor


class GaussianApproximation(Approximation):
    """N(loc, C Cᵀ).

    Parameters
    ----------
    loc
        Mean, shape (d,).
    factor
        C: full (`Spectral`, `Triangular`), `Blocks`, `Diagonal` or `LowRank`; see `pushforward.infer.linalg`.
    """

    loc: Float[Array, " d"]
    factor: AbstractFactor

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws and their log densities."""
        z = jax.random.normal(key, (n, self.loc.shape[0]), self.loc.dtype)
        return self.loc + jax.vmap(self.factor.apply)(z), -0.5 * jnp.sum(z**2, axis=1) - self._log_scale()

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``."""
        return -0.5 * jnp.sum(self.factor.solve(u - self.loc) ** 2) - self._log_scale()

    def transport(self, z: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The point u = loc + C z, and log det C."""
        return self.loc + self.factor.apply(z), self.factor.log_det()

    def pull(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """The draw z = C⁻¹ (u − loc) behind a point."""
        return self.factor.solve(u - self.loc)

    def mean(self) -> Float[Array, " d"]:
        """``loc``."""
        return self.loc

    def covariance(self) -> Float[Array, "d d"]:
        """C Cᵀ."""
        return self.factor.covariance()

    def entropy(self) -> Float[Array, ""]:
        """½ log det(2πe Σ)."""
        return self._log_scale() + 0.5 * self.loc.shape[0]

    def kl_to(self, other: "GaussianApproximation") -> Float[Array, ""]:
        """KL(self ‖ other): ½ [tr(Λ Σ) + |C⁻¹(m − m')|² − d] + log det C' − log det C."""
        inner = jax.vmap(other.factor.solve, in_axes=1, out_axes=1)(self.factor.dense())
        shift = other.factor.solve(self.loc - other.loc)
        quadratic = jnp.sum(inner**2) + jnp.sum(shift**2) - self.loc.shape[0]
        return 0.5 * quadratic + other.factor.log_det() - self.factor.log_det()

    def _log_scale(self) -> Float[Array, ""]:
        return self.factor.log_det() + 0.5 * self.loc.shape[0] * jnp.log(2 * jnp.pi)
