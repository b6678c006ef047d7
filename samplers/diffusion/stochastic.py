"""The SDE partner of the flow, with weights on the space of paths; and the predictor–corrector.

**Ancestral steps.** Noise added from level ρ' to ρ is N(y; y', (ρ² − ρ'²) I); its reverse, with x₀ replaced by the
denoiser, is

    y' ~ N(y + (ρ² − ρ'²) ∇ log p̃_ρ(y), v I),    v = ρ'² (ρ² − ρ'²)/ρ²

of which the limit of many steps is the reverse SDE of the diffusion (g² where the flow has g²/2).

**Weights without Jacobians**, for d above some 100. The reverse chain draws a path y_0, …, y_n, x₀ from q, the noising
chain has density π(x₀) Π N(y_{k−1}; y_k, …), and w = (noising chain)/q is unbiased for Z whatever the score. It needs
many steps (some 50 to 200), d numbers a step, and no derivative. The last kernel must not be degenerate: with ℓ a small
scale of the target, y_n ~ N(x₀, ρ_n² I) forward and x₀ ~ N(y_n + ρ_n² ∇ log p̃, ρ_n² ℓ²/(ρ_n² + ℓ²) I) backward.

**Predictor–corrector.** After each step of a solver, Langevin steps y + h s + √(2h) z at the new level with h = 2 (r
‖z‖/‖s‖)², norms averaged over the batch. They remove error, and the density.

References
----------
.. [1] J. Ho, A. Jain, P. Abbeel (2020). Denoising diffusion probabilistic models. arXiv:2006.11239.
.. [2] Y. Song et al. (2021). Score-based generative modeling through stochastic differential equations.
   arXiv:2011.13456, algorithms 2 and 4.
.. [3] A. Doucet et al. (2022). Score-based diffusion meets annealed importance sampling. arXiv:2208.07698.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.validate import check_count, check_positive
from .density import log_normal
from .scores import AbstractScore, Level
from .solvers import AbstractSolver, Point, steps

SIGNAL_TO_NOISE = 0.16
"""r of the corrector, the value of [2]_ for variance-exploding schedules."""


def ancestral_step(key: PRNGKeyArray, score: AbstractScore, y: Point, rho: Level, rho_next: Level) -> Point:
    """A draw of y' at ρ' < ρ; at ρ' = 0 the denoiser."""
    gap = (rho - rho_next) * (rho + rho_next)
    noise = jax.random.normal(key, y.shape, y.dtype)
    return y + gap * score.score(y, rho) + rho_next / rho * jnp.sqrt(gap) * noise


def ancestral(
    key: PRNGKeyArray, score: AbstractScore, grid: Float[Array, " levels"], y: Point
) -> Float[Array, "levels d"]:
    """A path of the reverse chain.

    Parameters
    ----------
    grid
        Noise levels ρ₀ > ρ₁ > … ≥ 0.
    y
        At ρ₀, shape (d,).
    """

    def one(y: Point, at: tuple[Array, Array, Array]) -> tuple[Point, Point]:
        k, rho, rho_next = at
        noise, fresh = jax.random.split(jax.random.fold_in(key, k))
        y = ancestral_step(noise, score.refresh(fresh), y, rho, rho_next)
        return y, y

    return jnp.concatenate([y[None], jax.lax.scan(one, y, steps(grid, y))[1]])


class WeightedPath(NamedTuple):
    """The end of a path of the reverse chain.

    Parameters
    ----------
    x0
        The draw, shape (d,).
    log_q
        log of (density of the path under the reverse chain)/(density of the noise added to x₀): log π(x₀) − this is a
        log weight.
    """

    x0: Point
    log_q: Float[Array, ""]


def ancestral_path(
    key: PRNGKeyArray,
    score: AbstractScore,
    grid: Float[Array, " levels"],
    base_scale: Any,
    z: Point,
    scale: float = 0.2,
) -> WeightedPath:
    """A draw of the reverse chain with what its path-space weight needs.

    Parameters
    ----------
    grid
        Noise levels ρ₀ > … > ρ_n > 0.
    base_scale
        s of the base N(0, s² I) at ρ₀.
    z
        The start, standard normal, shape (d,).
    scale
        ℓ, the smallest local standard deviation of the target.
    """
    check_positive("scale", scale)
    y = jnp.asarray(base_scale, z.dtype) * z

    def one(state: tuple[Point, Array], at: tuple[Array, Array, Array]) -> tuple[tuple[Point, Array], None]:
        y, log_q = state
        k, rho, rho_next = at
        first, fresh = jax.random.split(jax.random.fold_in(key, k))
        gap = (rho - rho_next) * (rho + rho_next)
        noise = jax.random.normal(first, y.shape, y.dtype)
        sd = rho_next / rho * jnp.sqrt(gap)
        new = y + gap * score.refresh(fresh).score(y, rho) + sd * noise
        return (new, log_q + log_normal(sd * noise, sd) - log_normal(y - new, jnp.sqrt(gap))), None

    levels = jnp.asarray(grid, z.dtype)
    (y, log_q), _ = jax.lax.scan(one, (y, log_normal(y, jnp.asarray(base_scale, z.dtype))), steps(levels, z))
    last, count = levels[-1], len(levels) - 1
    first, fresh = jax.random.split(jax.random.fold_in(key, count))
    sd = last * scale / jnp.sqrt(last**2 + scale**2)
    noise = sd * jax.random.normal(first, y.shape, y.dtype)
    x0 = score.refresh(fresh).denoise(y, last) + noise
    return WeightedPath(x0, log_q + log_normal(noise, sd) - log_normal(y - x0, last))


def corrector(
    key: PRNGKeyArray, score: AbstractScore, ys: Float[Array, "n d"], rho: Level, signal_to_noise: Any = SIGNAL_TO_NOISE
) -> Float[Array, "n d"]:
    """A Langevin step of a batch at level ρ, its size by the mean norms of score and noise."""
    scores = jax.vmap(lambda y: score.score(y, rho))(ys)
    noise = jax.random.normal(key, ys.shape, ys.dtype)
    norm = lambda v: jnp.mean(jnp.linalg.norm(v, axis=-1))  # noqa: E731
    size = 2 * (signal_to_noise * norm(noise) / norm(scores)) ** 2
    return ys + size * scores + jnp.sqrt(2 * size) * noise


def predictor_corrector(
    key: PRNGKeyArray,
    score: AbstractScore,
    solver: AbstractSolver,
    grid: Float[Array, " levels"],
    ys: Float[Array, "n d"],
    *,
    num_corrections: int = 1,
    signal_to_noise: float = SIGNAL_TO_NOISE,
) -> Float[Array, "n d"]:
    """A batch at the end of the grid, each step followed by Langevin steps (none at level 0).

    Parameters
    ----------
    ys
        At ρ₀, shape (n, d).
    num_corrections
        Langevin steps at each level.
    signal_to_noise
        r.
    """
    check_count("num_corrections", num_corrections)
    check_positive("signal_to_noise", signal_to_noise)

    def one(state: tuple, at: tuple[Array, Array, Array]) -> tuple[tuple, None]:
        ys, carries = state
        k, rho, rho_next = at
        fresh, noise = jax.random.split(jax.random.fold_in(key, k))
        here = score.refresh(fresh)
        ys, carries = jax.vmap(lambda y, carry: solver.step(here, y, carry, rho, rho_next))(ys, carries)
        level = jnp.where(rho_next > 0, rho_next, rho)

        def correct(j: Array, ys: Array) -> Array:
            return corrector(jax.random.fold_in(noise, j), here, ys, level, signal_to_noise)

        corrected = jax.lax.fori_loop(0, num_corrections, correct, ys)
        return (jnp.where(rho_next > 0, corrected, ys), carries), None

    begin = (ys, jax.vmap(solver.init)(ys))
    return jax.lax.scan(one, begin, steps(grid, ys))[0][0]
