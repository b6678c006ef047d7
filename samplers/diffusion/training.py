"""Learning a score from draws: the regression, its target, and what is held out to judge it.

Draws are whitened, y₀ = L⁻¹ (u − m). Of levels log ρ uniform on an interval and noise ε ~ N(0, I), a network's noise
prediction ε̂ at y = y₀ + ρ ε is regressed on a target whose mean given y is (minus ρ α times) the score ([1]_):

- DSM: ε. It needs draws alone, and its variance does not fall as ρ → 0.
- target score ([2]_): −ρ g, g = ∇ log π(y₀). Its variance falls with ρ, and is large where ρ is.
- blend: Λ ε − (I − Λ) ρ g. Any Λ(ρ) has the right mean. ε and g are uncorrelated, so that the total variance is least
  at Λ = ρ² F (I + ρ² F)⁻¹ with the Fisher matrix F = E[g gᵀ] (differentiate tr(Λ Λᵀ) + ρ² tr((I − Λ) F (I − Λ)ᵀ)),
  which is known from the draws. A number ℓ in place of it means F = I/ℓ², the isotropic blend λ = σ²/(σ² + α² ℓ²). For
  N(0, ℓ² I) the blended target has no variance at all. Heavy tails of g make F large, and the blend plain DSM.

The loss held out is DSM's for all targets, with noise that stays the same, so that it can be compared.

References
----------
.. [1] P. Vincent (2011). A connection between score matching and denoising autoencoders. Neural Computation 23(7).
.. [2] V. De Bortoli et al. (2024). Target score matching. arXiv:2402.08667.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.train import TrainState
from .network import NetScore

HELD_LEVELS = 8
"""Levels at which each draw held out is looked at."""
MOST_HELD = 1000


class Draws(eqx.Module):
    """Whitened draws, in 32 bits: those to learn from and those held out.

    Parameters
    ----------
    points, gradients
        To learn from, shapes (n, d); ∇ log π there, or None.
    fisher, axes
        Eigenvalues and eigenvectors of F, shapes (d,) and (d, d); None without gradients.
    held
        Held out, shape (m, d).
    """

    points: Float[Array, "n d"]
    gradients: Float[Array, "n d"] | None
    fisher: Float[Array, " d"] | None
    axes: Float[Array, "d d"] | None
    held: Float[Array, "m d"]


class Levels(eqx.Module):
    """The interval of noise levels that a score is learned on."""

    lowest: Float[Array, ""]
    highest: Float[Array, ""]

    def stratified(self, key: PRNGKeyArray, n: int) -> Float[Array, " n"]:
        """One log ρ in each of ``n`` equal parts of the interval, in 32 bits."""
        share = (jnp.arange(n) + jax.random.uniform(key, (n,), jnp.float32)) / n
        low, high = jnp.log(self.lowest), jnp.log(self.highest)
        return (low + (high - low) * share).astype(jnp.float32)


class ScoreState(eqx.Module):
    """State of the training of a score: a `TrainState`, and the averaged parameters best on what is held out.

    Parameters
    ----------
    train, rest
        Parameters, optimiser and average; what of the network is not trained.
    best, best_loss, best_at
        Parameters with the least loss held out, that loss, and the step at which they were seen.
    count
        Steps done.
    held_loss
        The loss held out when last looked at.
    """

    train: TrainState
    rest: Any
    best: Any
    best_loss: Float[Array, ""]
    best_at: Int[Array, ""]
    count: Int[Array, ""]
    held_loss: Float[Array, ""]


def fisher_spectrum(gradients: np.ndarray, blend: Any) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of F for a ``blend`` of "auto" (E[g gᵀ]) or a number ℓ (I/ℓ²)."""
    dim = gradients.shape[1]
    if blend != "auto":
        return np.full(dim, float(blend) ** -2), np.eye(dim)
    values, axes = np.linalg.eigh(gradients.T @ gradients / len(gradients))
    return np.maximum(values, 1e-6), axes


def noise_target(
    eps: Float[Array, " d"],
    gradient: Float[Array, " d"],
    rho: Any,
    fisher: Float[Array, " d"],
    axes: Float[Array, "d d"],
) -> Float[Array, " d"]:
    """What ε̂ is regressed on: Λ ε − (I − Λ) ρ g, with Λ = ρ² F (I + ρ² F)⁻¹."""
    scaled = rho**2 * fisher
    eps, gradient = eps @ axes, gradient @ axes
    return axes @ ((scaled * eps - rho * gradient) / (1 + scaled))


def noise_error(
    score: NetScore, point: Float[Array, " d"], log_rho: Any, eps: Float[Array, " d"], target: Float[Array, " d"]
) -> Float[Array, ""]:
    """Mean squared error of ε̂ = σ x − α N at x = α y₀ + σ ε."""
    rho = jnp.exp(log_rho)
    alpha = 1 / jnp.sqrt(1 + rho**2)
    sigma = rho * alpha
    x = alpha * point + sigma * eps
    return jnp.mean((sigma * x - alpha * score.outputs(x, log_rho) - target) ** 2)


def training_loss(score: NetScore, draws: Draws, levels: Levels, key: PRNGKeyArray, batch: int) -> Float[Array, ""]:
    """The loss of a random batch."""
    key_rows, key_noise, key_levels = jax.random.split(key, 3)
    rows = jax.random.randint(key_rows, (batch,), 0, len(draws.points))
    eps = jax.random.normal(key_noise, (batch, draws.points.shape[1]), jnp.float32)
    log_rho = levels.stratified(key_levels, batch)

    def one(row: Array, eps: Array, log_rho: Array) -> Array:
        target = eps
        if draws.gradients is not None:
            target = noise_target(eps, draws.gradients[row], jnp.exp(log_rho), draws.fisher, draws.axes)
        return noise_error(score, draws.points[row], log_rho, eps, target)

    return jnp.mean(jax.vmap(one)(rows, eps, log_rho))


def held_out_loss(score: NetScore, points: Float[Array, "m d"], levels: Levels) -> Float[Array, ""]:
    """DSM's loss at draws that were held out, with noise that is always the same."""
    key_noise, key_levels = jax.random.split(jax.random.key(0))
    eps = jax.random.normal(key_noise, (HELD_LEVELS, *points.shape), jnp.float32)
    log_rho = levels.stratified(key_levels, HELD_LEVELS * len(points)).reshape(len(points), HELD_LEVELS).T
    each = jax.vmap(lambda y, log_rho, eps: noise_error(score, y, log_rho, eps, eps))
    return jnp.mean(jax.vmap(each, in_axes=(None, 0, 0))(points, log_rho, eps))


def split_draws(points: np.ndarray, gradients: np.ndarray | None, blend: Any, share: float, seed: int) -> Draws:
    """Whitened draws (n, d) in an order of their own, a share of them held out."""
    if len(points) < 20:
        raise InvalidArgument(f"a score is learned from at least 20 draws, got {len(points)}.")
    order = np.random.default_rng(seed).permutation(len(points))
    held = min(max(1, round(share * len(points))), MOST_HELD)
    points = np.asarray(points, np.float32)[order]
    if gradients is None:
        return Draws(points[held:], None, None, None, points[:held])
    fisher, axes = fisher_spectrum(np.asarray(gradients, float), blend)
    gradients = np.asarray(gradients, np.float32)[order]
    return Draws(points[held:], gradients[held:], fisher.astype(np.float32), axes.astype(np.float32), points[:held])
