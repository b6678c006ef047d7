"""`DiffusionApproximation`: the density of a probability-flow ODE's end, in unconstrained coordinates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.approximation import Approximation
from .density import DiscreteFlow, inverse_and_log_det
from .scores import AbstractScore
from .stochastic import ancestral_path

BATCH = 2048
"""Draws at a time; each takes d tangents of the score."""
POINTS = 2**16
"""Points at a time, of a score whose calls need many."""
RESIDUAL = 10.0
"""Of an inverse, in units of the square root of the rounding error, above which it counts as not found."""


class Learned(eqx.Module):
    """How a score was found.

    Parameters
    ----------
    held_out
        Denoising loss of each restart at the draws held out, at the parameters kept, shape (r,).
    seen
        The same at draws learned from, of the restart kept.
    steps
        Step at which the parameters kept were seen, by restart, shape (r,).
    skipped
        Steps of each restart that were not finite, shape (r,).
    chosen
        The restart that was kept.
    tuning
        Largest change of log q when the solver's steps are doubled, over some draws; NaN where it was not looked at.
    """

    held_out: Float[Array, " r"]
    seen: Float[Array, ""]
    steps: Int[Array, " r"]
    skipped: Int[Array, " r"]
    chosen: Int[Array, ""]
    tuning: Float[Array, ""]


class DiffusionApproximation(Approximation):
    """What a solver makes of N(0, I): u = m + L y, y the end of the probability-flow ODE's steps.

    Parameters
    ----------
    flow
        Score, levels, solver and base in whitened coordinates.
    loc, scale
        m and L, shapes (d,) and (d, d), L lower triangular.
    noise
        Key of a Monte Carlo score's draws, the same for all points so that the map has a density; or None.
    learned
        What is known of the training, a `Learned`, or None.
    """

    flow: DiscreteFlow
    loc: Float[Array, " d"]
    scale: Float[Array, "d d"]
    noise: Any = None
    learned: Any = None

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws and their log densities, exact for these steps."""
        z = jax.random.normal(key, (n, self.loc.shape[0]), self.loc.dtype)
        return jax.lax.map(self._draw, z, batch_size=at_a_time(self.flow.score, n))

    def sample_points(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """The same draws, of a forward pass each: without the d tangents that a log density takes."""
        z = jax.random.normal(key, (n, self.loc.shape[0]), self.loc.dtype)
        push = lambda z: self.loc + self.scale @ self.flow.push(z, self.noise)  # noqa: E731
        return jax.lax.map(push, z, batch_size=at_a_time(self.flow.score, n))

    def trial(self, z: Float[Array, " d"]) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Log density of the draw that a standard normal point becomes, and the folded steps on its way."""
        _, log_q, folds = self.flow.transform(z, self.noise)
        return log_q, folds

    def _draw(self, z: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        y, log_q, _ = self.flow.transform(z, self.noise)
        return self.loc + self.scale @ y, log_q - self.log_det

    def transport(self, z: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The draw u = T(z), and log|det ∂T/∂z|."""
        u, log_q = self._draw(z)
        return u, -0.5 * jnp.sum(z**2) - 0.5 * z.shape[0] * jnp.log(2 * jnp.pi) - log_q

    def pull(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """The z = T⁻¹(u), by Newton's method through the steps; NaN where that fails."""
        y = jax.scipy.linalg.solve_triangular(self.scale, u - self.loc, lower=True)
        pulled = inverse_and_log_det(self.flow.score, self.flow.solver, self.flow.grid, y, self.noise)
        return jnp.where(self._found(pulled.residual), pulled.y / self.flow.base_scale.astype(u.dtype), jnp.nan)

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at any ``u``, NaN where the inverse of the steps is not found."""
        y = jax.scipy.linalg.solve_triangular(self.scale, u - self.loc, lower=True)
        log_q, pulled = self.flow.log_prob(y, self.noise)
        return jnp.where(self._found(pulled.residual), log_q - self.log_det, jnp.nan)

    @property
    def log_det(self) -> Float[Array, ""]:
        """log|det L|."""
        return jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.scale))))

    def _found(self, residual: Array) -> Array:
        return residual < RESIDUAL * jnp.finfo(residual.dtype).eps ** 0.5


class PathApproximation(Approximation):
    """Draws of the reverse SDE's ancestral chain, with the densities of their paths.

    `sample_and_log_prob` returns log q of the path against the noise added to the draw, see `stochastic`: weights are
    unbiased for any score, and there are no densities at given points.

    Parameters
    ----------
    score
        In whitened coordinates.
    grid
        Falling noise levels, the last above 0.
    loc, scale
        Whitening, shapes (d,) and (d, d).
    local
        ℓ of the last kernel: the smallest local standard deviation, in whitened units.
    learned
        What is known of the training, a `Learned`, or None.
    """

    score: AbstractScore
    grid: Float[Array, " levels"]
    loc: Float[Array, " d"]
    scale: Float[Array, "d d"]
    local: Float[Array, ""]
    learned: Any = None

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws and log q of their paths."""
        base = jnp.sqrt(1 + self.grid[0] ** 2)

        def one(key: PRNGKeyArray) -> tuple[Array, Array]:
            first, rest = jax.random.split(key)
            z = jax.random.normal(first, self.loc.shape, self.loc.dtype)
            path = ancestral_path(rest, self.score, self.grid, base, z, self.local)
            return self.loc + self.scale @ path.x0, path.log_q

        u, log_q = jax.lax.map(one, jax.random.split(key, n), batch_size=at_a_time(self.score, n))
        return u, log_q - jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.scale))))


def at_a_time(score: AbstractScore, n: int) -> int:
    """How many of ``n`` draws are made together, so that memory does not grow with what a call of the score needs."""
    return max(1, min(n, BATCH, POINTS // score.points_per_call))


@eqx.filter_jit
def probe(approximation: Any, z: Float[Array, "n d"]) -> tuple[Float[Array, " n"], Int[Array, ""]]:
    """Log densities of the draws that ``z`` become, and the number of folded steps among them."""
    log_q, folds = jax.vmap(approximation.trial)(z)
    return log_q, jnp.sum(folds)
