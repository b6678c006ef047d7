"""`ComposedScore`: the score of a posterior given several observations, from scores of posteriors given one each.

The density of θ given independent x_1, …, x_n is proportional to p(θ)^(1 − n) Π p(θ | x_i), and at a noise level the
same holds of what is known of θ given the noised y too: p(θ | y, x_1, …) ∝ p(θ | y)^(1 − n) Π p(θ | y, x_i). Its mean,
the denoiser, needs these densities' shapes. With normal ones of means D_0 (prior), D_i, precisions C_0⁻¹, C_i⁻¹ it is

    D = P⁻¹ [(1 − n) C_0⁻¹ D_0 + Σ C_i⁻¹ D_i],   P = (1 − n) C_0⁻¹ + Σ C_i⁻¹,   C_i⁻¹ = Σ_i⁻¹ + I/ρ²

with Σ_i the covariance of p(θ | x_i) ([1]_, GAUSS): exact where prior and posteriors are normal, and at ρ → 0 always.
A plain sum of scores is the prior's noised product, which it is not at any ρ > 0.

References
----------
.. [1] J. Linhart et al. (2024). Diffusion posterior sampling for simulation-based inference in tall data settings.
   arXiv:2404.07593.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .scores import AbstractScore, Level

INFORMATIVE = 0.999
"""Largest variance of a posterior, in units of the prior's: more is the noise of its estimate."""


class ComposedScore(AbstractScore):
    """The denoiser given several observations, in coordinates in which the prior has unit covariance.

    Parameters
    ----------
    network
        A `ConditionalScore`.
    prior, conditions
        Its conditions: of the prior, and stacked, one per observation.
    precisions
        Σ_i⁻¹, shape (n, d, d).
    """

    network: Any
    prior: Any
    conditions: Any
    precisions: Float[Array, "n d d"]

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[x₀ | y], of normal shapes."""
        n, d = self.precisions.shape[:2]
        rho = jnp.asarray(rho, y.dtype)
        eye = jnp.eye(d, dtype=y.dtype)
        prior = self.network.under(self.prior).denoise(y, rho)
        each = jax.vmap(lambda condition: self.network.under(condition).denoise(y, rho))(self.conditions)
        # All times ρ², which is finite at both ends.
        own = eye + rho**2 * self.precisions
        total = jnp.sum(own, 0) + (1 - n) * (1 + rho**2) * eye
        right = (1 - n) * (1 + rho**2) * prior + jnp.einsum("nij,nj->i", own, each)
        return jnp.linalg.solve(total, right)


def precision_of(covariance: np.ndarray) -> np.ndarray:
    """The inverse of a posterior's covariance in units of the prior's, none of whose variances is above it."""
    values, axes = np.linalg.eigh(covariance)
    return axes / np.clip(values, 1e-8, INFORMATIVE) @ axes.T
