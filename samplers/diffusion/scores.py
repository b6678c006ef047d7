"""Scores of a noised density, in the one coordinate pair of this package: a point y and a noise level ρ.

A diffusion x_t = α x₀ + σ ε is, with y = x_t/α and ρ = σ/α, always y = x₀ + ρ ε: whatever the schedule, its densities
are p̃_ρ = π * N(0, ρ² I). A score is told by its denoiser

    D(y, ρ) = E[x₀ | y] = y + ρ² ∇ log p̃_ρ(y)                                                        (Tweedie)

which is bounded where the score is not, and the probability-flow ODE is dy/dρ = (y − D(y, ρ))/ρ. In other words for
those who convert: ∇_x log p_t(α y) = ∇ log p̃_ρ(y)/α, the noise that a network predicts is ε̂ = (y − D)/ρ.

All act on one point, in the dtype of y; use `jax.vmap`. Gaussians and mixtures are in closed form, by the eigenvectors
of their covariances: a call costs 4 d² multiplications for each component, 3 d where covariances are diagonal.

References
----------
.. [1] Y. Song et al. (2021). Score-based generative modeling through stochastic differential equations.
   arXiv:2011.13456.
.. [2] T. Karras et al. (2022). Elucidating the design space of diffusion-based generative models. arXiv:2206.00364.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument

Level = Float[Array, ""] | float
"""A noise level ρ."""


class AbstractScore(eqx.Module):
    """The denoiser of a density at all noise levels; a pytree."""

    @abc.abstractmethod
    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """D(y, ρ) = E[x₀ | y], for ρ > 0."""

    def score(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """∇ log p̃_ρ(y) = (D − y)/ρ²."""
        return (self.denoise(y, rho) - y) / rho**2

    @property
    def points_per_call(self) -> int:
        """Points whose densities a call needs at once."""
        return 1

    def refresh(self, key: PRNGKeyArray) -> "AbstractScore":
        """The same with other randomness, for the next step of a solver; itself where it has none."""
        del key
        return self


class GaussianScore(AbstractScore):
    """Of N(m, Q diag(v) Qᵀ): D = m + Q v/(v + ρ²) Qᵀ (y − m).

    Parameters
    ----------
    mean
        m, shape (d,).
    variances
        v, shape (d,).
    axes
        Q, shape (d, d), its columns the axes; None: those of the coordinates.
    """

    mean: Float[Array, " d"]
    variances: Float[Array, " d"]
    axes: Float[Array, "d d"] | None = None

    @classmethod
    def from_moments(cls, mean: Any, covariance: Any) -> "GaussianScore":
        """From a mean (d,) and a covariance (d, d), or variances (d,)."""
        variances, axes = spectrum("covariance", np.asarray(covariance), np.shape(mean)[-1])
        return cls(jnp.asarray(mean), variances, axes)

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[x₀ | y]."""
        return self.mean + _turn(self.axes, self.variances / (self.variances + rho**2) * _unturn(self, y))

    def log_density(self, y: Float[Array, " d"], rho: Level) -> Float[Array, ""]:
        """The log density log p̃_ρ(y), of N(m, C + ρ² I)."""
        spread = self.variances + rho**2
        return -0.5 * jnp.sum(_unturn(self, y) ** 2 / spread + jnp.log(2 * jnp.pi * spread))


class MixtureScore(AbstractScore):
    """Of Σ w_k N(m_k, C_k): the mean of the components' denoisers under P(k | y).

    Parameters
    ----------
    log_weights
        The logarithms of w, shape (k,).
    components
        A `GaussianScore` with a leading axis (k,) on its leaves.
    """

    log_weights: Float[Array, " k"]
    components: GaussianScore

    @classmethod
    def from_moments(cls, weights: Any, means: Any, covariances: Any) -> "MixtureScore":
        """From weights (k,), means (k, d), and covariances (k, d, d) or variances (k, d).

        Raises
        ------
        InvalidArgument
            Weights are not positive, or the shapes do not fit, or a covariance is not positive definite.
        """
        weights, means, covariances = (np.asarray(x, float) for x in (weights, means, covariances))
        if weights.ndim != 1 or not np.all(weights > 0):
            raise InvalidArgument(f"weights must be positive, of shape (k,), got {weights.tolist()}.")
        if means.ndim != 2 or not len(weights) == len(means) == len(covariances):
            raise InvalidArgument(
                f"means must have shape (k, d) with one row, and covariances one entry, for each of the "
                f"{len(weights)} weights, got shapes {means.shape} and {covariances.shape}."
            )
        both = [spectrum(f"covariances[{k}]", c, means.shape[1]) for k, c in enumerate(covariances)]
        components = [GaussianScore(jnp.asarray(m), *two) for m, two in zip(means, both)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *components)
        return cls(jnp.log(jnp.asarray(weights / weights.sum())), stacked)

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[x₀ | y]."""
        parts = jax.vmap(lambda c: c.denoise(y, rho))(self.components)
        return jax.nn.softmax(self._joint(y, rho)) @ parts

    def log_density(self, y: Float[Array, " d"], rho: Level) -> Float[Array, ""]:
        """The log density log p̃_ρ(y), of Σ w_k N(m_k, C_k + ρ² I)."""
        return jax.nn.logsumexp(self._joint(y, rho))

    def _joint(self, y: Array, rho: Level) -> Float[Array, " k"]:
        return self.log_weights + jax.vmap(lambda c: c.log_density(y, rho))(self.components)


def spectrum(name: str, covariance: np.ndarray, dim: int) -> tuple[Float[Array, " d"], Float[Array, "d d"] | None]:
    """Eigenvalues and eigenvectors; None for the latter where variances (d,) are given.

    Raises
    ------
    InvalidArgument
        Of another shape, not symmetric, or not positive definite.
    """
    if covariance.shape not in ((dim,), (dim, dim)):
        raise InvalidArgument(f"{name} must have shape ({dim}, {dim}) or ({dim},), got {covariance.shape}.")
    if covariance.ndim == 1:
        variances, axes = covariance, None
    elif np.allclose(covariance, covariance.T, rtol=1e-6):
        variances, axes = np.linalg.eigh(covariance)
    else:
        raise InvalidArgument(f"{name} must be symmetric, got {covariance.tolist()}.")
    if not np.all(variances > 0):
        raise InvalidArgument(f"{name} must be positive definite, got an eigenvalue of {variances.min():.3g}.")
    return jnp.asarray(variances), None if axes is None else jnp.asarray(axes)


def _unturn(gaussian: GaussianScore, y: Array) -> Float[Array, " d"]:
    """Qᵀ (y − m)."""
    centred = y - gaussian.mean
    return centred if gaussian.axes is None else centred @ gaussian.axes


def _turn(axes: Array | None, v: Array) -> Float[Array, " d"]:
    """Q v."""
    return v if axes is None else axes @ v
