"""`SNISScore`: a score without training, by self-normalised importance sampling from a Gaussian reference.

Given y, the point x₀ has density q(x₀ | y) ∝ π(x₀) N(y; x₀, ρ² I). With the reference N(0, s² I) in place of π it is
normal, N(k y, ρ² k I), k = s²/(s² + ρ²): draws of that, weighted by g₀ = π/N(0, s² I), give

    D(y, ρ) = Σ w x₀          (Tweedie: within the draws' hull, whatever the weights)
            = k y + ρ² k Σ w ∇ log g₀(x₀)          (gradient form: less noise where g₀ is near constant, unbounded).

Whitening makes the reference fit at all levels; without it (draws of N(y, ρ² I), weights π) the error at d = 10 is 30
times as large. Draws come in antithetic pairs, and belong to the score, so that the map of an ODE solver is the same
for all points and has a density; `refresh` gives other ones for the next step.

Where the weights degenerate (an ESS below a fiftieth of the draws), a Metropolis-adjusted Langevin chain on q(x₀ | y)
from the resampled draws does better ([1]_). Its accept steps have no useful derivative: such a score is for the SDE,
whose weights need none.

References
----------
.. [1] X. Huang et al. (2023). Reverse diffusion Monte Carlo. arXiv:2307.02037.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.target import Target
from .scores import AbstractScore, Level

LARGEST_DIM = 20
"""Above it a score by importance sampling is refused, unless forced."""
FEWEST = 5.0
"""Least median of the effective draws at any level."""
DEGENERATE = 1 / 50
"""Share of the draws below which their effective number calls for chains."""
NUM_CHAINS = 32


class SNISScore(AbstractScore):
    """A score by importance sampling in whitened coordinates.

    Parameters
    ----------
    target
        Whose log density is π.
    loc, scale
        u = loc + scale y, shapes (d,) and (d, d).
    key
        Of the draws.
    spread
        s.
    num_particles
        Draws, an even number.
    gradient
        Whether the gradient form is used.
    num_moves
        Steps of the Langevin chains; 0: none.
    """

    target: Target
    loc: Float[Array, " d"]
    scale: Float[Array, "d d"]
    key: PRNGKeyArray
    spread: Any = 1.5
    num_particles: int = eqx.field(static=True, default=256)
    gradient: bool = eqx.field(static=True, default=False)
    num_moves: int = eqx.field(static=True, default=0)

    def log_density(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """Log π at a whitened point, up to a constant; -inf where it is not a number."""
        value = self.target.log_density(self.loc + self.scale @ y)
        return jnp.where(jnp.isnan(value), -jnp.inf, value).astype(y.dtype)

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[x₀ | y], estimated."""
        rho = jnp.asarray(rho, y.dtype)
        points, log_weights = self._weighted(y, rho)
        weights = jax.nn.softmax(log_weights)
        if self.num_moves:
            return self._moved(y, rho, points, log_weights)
        if not self.gradient:
            return weights @ points
        k = self._shrink(rho)
        return k * y + rho**2 * k * (weights @ jax.vmap(jax.grad(self._log_ratio))(points))

    def ess(self, y: Float[Array, " d"], rho: Level) -> Float[Array, ""]:
        """Effective number of the draws, 1/Σ w²."""
        weights = jax.nn.softmax(self._weighted(y, jnp.asarray(rho, y.dtype))[1])
        return 1 / jnp.sum(weights**2)

    @property
    def points_per_call(self) -> int:
        """The draws."""
        return self.num_particles

    def refresh(self, key: PRNGKeyArray) -> "SNISScore":
        """The same with other draws."""
        return eqx.tree_at(lambda s: s.key, self, key)

    def _shrink(self, rho: Array) -> Array:
        """K = s²/(s² + ρ²)."""
        return self.spread**2 / (self.spread**2 + rho**2)

    def _log_ratio(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log g₀ = log π − log N(0, s² I), up to a constant."""
        return self.log_density(x) + 0.5 * jnp.sum(x**2) / self.spread**2

    def _weighted(self, y: Array, rho: Array) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
        """Draws of the reference given y, and their log weights."""
        k = self._shrink(rho)
        z = jax.random.normal(self.key, (self.num_particles // 2, y.shape[0]), y.dtype)
        points = k * y + rho * jnp.sqrt(k) * jnp.concatenate([z, -z])
        return points, jax.vmap(self._log_ratio)(points)

    def _moved(self, y: Array, rho: Array, points: Array, log_weights: Array) -> Float[Array, " d"]:
        """Mean of Langevin chains on q(x₀ | y), of their second halves; their step size steers to acceptance 0.6."""
        key_start, key_moves = jax.random.split(jax.random.fold_in(self.key, 1))
        x = points[jax.random.categorical(key_start, log_weights, shape=(NUM_CHAINS,))]
        log_q = lambda x: self.log_density(x) - 0.5 * jnp.sum((y - x) ** 2) / rho**2  # noqa: E731
        value_and_grad = jax.vmap(jax.value_and_grad(log_q))

        def move(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, Array]:
            x, value, grad, log_step = carry
            step, (key_z, key_u) = jnp.exp(log_step), jax.random.split(key)
            new = x + step * grad + jnp.sqrt(2 * step) * jax.random.normal(key_z, x.shape, x.dtype)
            new_value, new_grad = value_and_grad(new)
            there = jnp.sum((new - x - step * grad) ** 2, 1)
            back = jnp.sum((x - new - step * new_grad) ** 2, 1)
            log_ratio = new_value - value + (there - back) / (4 * step)
            accept = jnp.log(jax.random.uniform(key_u, (NUM_CHAINS,), x.dtype)) < log_ratio
            keep = lambda a, b: jnp.where(accept.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
            rate = jnp.mean(jnp.minimum(1.0, jnp.exp(jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio))))
            carry = keep(new, x), keep(new_value, value), keep(new_grad, grad), log_step + rate - 0.6
            return carry, jnp.mean(carry[0], 0)

        first = jnp.log(0.5 * rho**2 * self._shrink(rho))
        carry = (x, *value_and_grad(x), first)
        means = jax.lax.scan(move, carry, jax.random.split(key_moves, self.num_moves))[1]
        return jnp.mean(means[self.num_moves // 2 :], 0)


@eqx.filter_jit
def ess_by_level(
    score: SNISScore, key: PRNGKeyArray, grid: Float[Array, " n"], num_paths: int = 64
) -> tuple[Float[Array, "n paths"], Float[Array, "n paths d"]]:
    """Effective draws at each level of a grid along paths of Euler steps, and where the paths were."""
    shape = (num_paths, score.loc.shape[0])
    y = jnp.sqrt(1 + grid[0] ** 2) * jax.random.normal(key, shape, grid.dtype)

    def step(y: Array, now: tuple) -> tuple[Array, tuple]:
        rho, new, key = now
        fresh = score.refresh(key)
        found = jax.vmap(lambda y: (fresh.ess(y, rho), fresh.denoise(y, rho)))(y)
        return new / rho * y + (1 - new / rho) * found[1], (found[0], y)

    keys = jax.random.split(jax.random.fold_in(key, 1), len(grid))
    return jax.lax.scan(step, y, (grid, jnp.append(grid[1:], grid[-1]), keys))[1]
