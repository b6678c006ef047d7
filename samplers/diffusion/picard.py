"""The steps of a solver in parallel: Picard sweeps over a sliding window.

The path y_k = y_0 + Σ_{i<k} (S_i(y_i) − y_i) is a fixed point; a sweep evaluates all increments of a window at once, at
the points of the sweep before, and sums them up. After j sweeps the first j points are those of the sequential solver
exactly; most are right much earlier. The window then slides to its first point that still moves. It pays only where a
batch of score calls costs as much as one: a sweep costs as many calls as the window is wide.

Points are summed in the scale x = y/√(1 + ρ²), in which a path of a whitened target neither shrinks nor grows: in y the
increments of the first steps are of the size of ρ_max, and amplify errors at low noise.

References
----------
.. [1] A. Shih et al. (2023). Parallel sampling of diffusion models. arXiv:2305.16317, algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...infer.errors import InvalidArgument
from ...infer.validate import check_count, check_positive
from .scores import AbstractScore
from .solvers import AbstractSolver, Point, steps


class Swept(NamedTuple):
    """A path found by Picard sweeps.

    Parameters
    ----------
    path
        Points at all levels, shape (n + 1, d).
    num_sweeps
        Rounds of score calls that must follow one another, where the sequential solver has n steps.
    """

    path: Float[Array, "levels d"]
    num_sweeps: Int[Array, ""]


def picard(
    score: AbstractScore,
    solver: AbstractSolver,
    grid: Float[Array, " levels"],
    y: Point,
    *,
    window: int | None = None,
    tolerance: float = 1e-3,
    max_sweeps: int | None = None,
) -> Swept:
    """The path of a single-step solver.

    Parameters
    ----------
    grid
        Noise levels ρ₀ > ρ₁ > … ≥ 0.
    y
        At ρ₀, shape (d,).
    window
        Steps evaluated at once; all by default.
    tolerance
        τ: the window slides over points of which a sweep moved x by less than τ √d (their variance is about 1).
    max_sweeps
        At most that many; n by default, after which the path is exact. With fewer it may be unfinished.

    Raises
    ------
    InvalidArgument
        The solver is a multistep one, whose steps are not functions of a point alone.
    """
    check_positive("tolerance", tolerance)
    if solver.multistep:
        raise InvalidArgument(f"solver must be a single-step one, as Heun() or DDIM(), got {type(solver).__name__}().")
    _, begins, ends = steps(grid, y)
    count = len(begins)
    width = count if window is None else min(check_count("window", window), count)
    most = count if max_sweeps is None else check_count("max_sweeps", max_sweeps)
    levels = jnp.concatenate([begins, ends[-1:]])
    alpha = 1 / jnp.sqrt(1 + levels**2)

    def moved(x: Array, k: Array) -> Array:
        """The increment of x by step k; none for steps that the window has beyond the last."""
        at = jnp.minimum(k, count - 1)
        there = solver.step(score, x / alpha[at], None, begins[at], ends[at])[0]
        return jnp.where(k < count, alpha[at + 1] * there - x, 0)

    def sweep(state: tuple) -> tuple:
        path, first, sweeps = state
        old = jax.lax.dynamic_slice_in_dim(path, first, width + 1)
        increments = jax.vmap(moved)(old[:-1], first + jnp.arange(width))
        new = old[0] + jnp.cumsum(increments, 0)
        still = jnp.linalg.norm(new - old[1:], axis=-1) > tolerance * jnp.sqrt(len(y))
        # The first new point is a step from one that is settled, so that the window moves on by one at least.
        slide = 1 + jnp.where(still[1:].any(), jnp.argmax(still[1:]), width - 1) if width > 1 else 1
        path = jax.lax.dynamic_update_slice_in_dim(path, jnp.concatenate([old[:1], new]), first, 0)
        # What lies beyond the window starts where the window ends.
        beyond = jnp.arange(len(path)) > first + width
        return jnp.where(beyond[:, None], new[-1], path), (first + slide).astype(first.dtype), sweeps + 1

    def go_on(state: tuple) -> Array:
        return (state[1] < count) & (state[2] < most)

    start = jnp.broadcast_to(alpha[0] * y, (count + width + 1, len(y)))  # padded so that a window never leaves it
    zero = jnp.zeros((), jnp.int32)
    path, _, sweeps = jax.lax.while_loop(go_on, sweep, (start, zero, zero))
    path = path[: count + 1] / alpha[:, None]
    return Swept(path.at[0].set(y), sweeps)
