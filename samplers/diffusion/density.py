"""Exact densities of what a solver makes of N(0, s² I), for any number of steps, with an inverse.

The n steps of a solver are a normalising flow, whatever the score: log q(y_n) = log N(y_0; 0, s² I) −
log|det ∂y_n/∂y_0|. d tangents go through each step (d forward derivatives of the score for each of its calls) and are
reset to the identity after it, so that the log-determinant is a sum of well conditioned terms, each d³/3 more; a
multistep solver's memory is differentiated along, which a product of its steps' own Jacobians would leave out. Memory
d² a draw. Steps that are too long fold the map: a determinant changes sign, and ``folds`` counts these steps.

At given points, steps are inverted one by one, by Newton's method from the reversed step; those of a multistep solver,
which depend on points before them, all at once, from where RK4's reversed steps lead. ``residual`` says how well.

The density of the continuous ODE (`continuous`) differs by the error of the steps: the two must not meet in one ratio.

References
----------
.. [1] G. Papamakarios et al. (2021). Normalizing flows for probabilistic modeling and inference. arXiv:1912.02762,
   section 2.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.validate import check_choice
from .scores import AbstractScore
from .solvers import RK4, AbstractSolver, Point, solve, steps

NEWTON_STEPS = 40


class Pushed(NamedTuple):
    """Where a map leads.

    Parameters
    ----------
    y
        The point, shape (d,).
    log_det
        log|det| of the Jacobian from beginning to end.
    folds
        Steps whose determinant is not positive: with any, the map is not one to one, and the density is not valid.
    """

    y: Point
    log_det: Float[Array, ""]
    folds: Int[Array, ""]


class Pulled(NamedTuple):
    """Where a point came from.

    Parameters
    ----------
    y
        The point at the beginning of the grid, shape (d,).
    log_det
        log|det| of the forward map's Jacobian there.
    folds
        As in `Pushed`.
    residual
        The largest distance between a point and what the step makes of its inverse, in units of √(1 + ρ'²).
    """

    y: Point
    log_det: Float[Array, ""]
    folds: Int[Array, ""]
    residual: Float[Array, ""]


def transform_and_log_det(
    score: AbstractScore,
    solver: AbstractSolver,
    grid: Float[Array, " levels"],
    y: Point,
    key: PRNGKeyArray | None = None,
) -> Pushed:
    """The point at the end of the grid, with the log-determinant of the way there; the arguments are those of `solve`.

    With a Monte Carlo score the determinant is that of the map with this noise held fixed.
    """
    eye, carry = jnp.eye(y.shape[0], dtype=y.dtype), solver.init(y)
    tangents = jax.tree.map(lambda leaf: jnp.zeros((y.shape[0], *leaf.shape), leaf.dtype), carry)

    def one(state: tuple, at: tuple[Array, Array, Array]) -> tuple[tuple, None]:
        y, carry, tangents, total, folds = state
        k, rho, rho_next = at
        here = score if key is None else score.refresh(jax.random.fold_in(key, k))
        (y, carry), push = jax.linearize(lambda y, carry: solver.step(here, y, carry, rho, rho_next), y, carry)
        rows, moved = jax.vmap(push)(eye, tangents)
        sign, log_det = jnp.linalg.slogdet(rows)
        if solver.multistep:  # d carry/dy_k+1, where moved is d carry/dy_k
            moved = jax.tree.map(lambda t: jnp.tensordot(jnp.linalg.inv(rows), t, 1), moved)
        return (y, carry, moved, total + log_det, folds + ~(sign > 0)), None

    begin = (y, carry, tangents, jnp.zeros((), y.dtype), jnp.zeros((), jnp.int32))
    y, _, _, total, folds = jax.lax.scan(one, begin, steps(grid, y))[0]
    return Pushed(y, total, folds)


def inverse_and_log_det(
    score: AbstractScore,
    solver: AbstractSolver,
    grid: Float[Array, " levels"],
    y: Point,
    key: PRNGKeyArray | None = None,
) -> Pulled:
    """The point at the beginning of the grid that the solver takes to y; the arguments are those of `solve`."""
    if solver.multistep:
        start = jax.lax.scan(
            lambda y, at: (_reversed(score, RK4(), y, at, key), None), y, steps(grid, y), reverse=True
        )[0]
        scale = jnp.sqrt(1 + jnp.asarray(grid, y.dtype)[-1] ** 2)
        x, _, residual = _newton(lambda x: solve(score, solver, grid, x, key), y, start, scale)
        there = transform_and_log_det(score, solver, grid, x, key)
        return Pulled(x, there.log_det, there.folds, residual)

    def one(state: tuple, at: tuple[Array, Array, Array]) -> tuple[tuple, None]:
        y, total, folds, worst = state
        k, rho, rho_next = at
        here = score if key is None else score.refresh(jax.random.fold_in(key, k))
        step = lambda x: solver.step(here, x, None, rho, rho_next)[0]  # noqa: E731
        x, jacobian, residual = _newton(step, y, _reversed(score, solver, y, at, key), jnp.sqrt(1 + rho_next**2))
        sign, log_det = jnp.linalg.slogdet(jacobian)
        return (x, total + log_det, folds + ~(sign > 0), jnp.maximum(worst, residual)), None

    zero = jnp.zeros((), y.dtype)
    begin = (y, zero, jnp.zeros((), jnp.int32), zero)
    return Pulled(*jax.lax.scan(one, begin, steps(grid, y), reverse=True)[0])


def _reversed(score: AbstractScore, solver: AbstractSolver, y: Point, at: tuple, key: PRNGKeyArray | None) -> Point:
    """A single-step solver's step from the end of a step to its beginning; y itself where the end is level 0."""
    k, rho, rho_next = at
    here = score if key is None else score.refresh(jax.random.fold_in(key, k))
    back = solver.step(here, y, None, jnp.where(rho_next > 0, rho_next, 0.5 * rho), rho)[0]
    return jnp.where(rho_next > 0, back, y)


def _newton(
    f: Callable[[Point], Point], value: Point, start: Point, scale: Array
) -> tuple[Point, Float[Array, "d d"], Array]:
    """The root of f(x) = value with the Jacobian there and the residual; steps are halved until they help."""
    tolerance = 64 * jnp.finfo(value.dtype).eps

    def gap(x: Point) -> Array:
        return jnp.linalg.norm(f(x) - value) / scale

    def go_on(state: tuple) -> Array:
        _, residual, count, stuck = state
        return (residual > tolerance) & (count < NEWTON_STEPS) & ~stuck

    def improve(state: tuple) -> tuple:
        x, residual, count, _ = state
        move = jnp.linalg.solve(jax.jacfwd(f)(x), f(x) - value)

        def shorter(at: tuple) -> tuple:
            return 0.5 * at[0], gap(x - 0.5 * at[0] * move), at[2] + 1

        one = jnp.ones((), value.dtype)
        length, new, _ = jax.lax.while_loop(
            lambda at: ~(at[1] < residual) & (at[2] < 12), shorter, (one, gap(x - move), jnp.zeros((), jnp.int32))
        )
        better = new < residual
        return jnp.where(better, x - length * move, x), jnp.where(better, new, residual), count + 1, ~better

    begin = (start, gap(start), jnp.zeros((), jnp.int32), jnp.zeros((), bool))
    x, residual, _, _ = jax.lax.while_loop(go_on, improve, begin)
    return x, jax.jacfwd(f)(x), residual


class DiscreteFlow(eqx.Module):
    """The distribution of a solver's end from N(0, s² I).

    Parameters
    ----------
    score
        Of the target.
    grid
        Noise levels, shape (n + 1,).
    solver
        One of `solvers`.
    base_scale
        s: √(1 + ρ₀²), which is right for whitened targets (default), or ρ₀, as variance-exploding samplers have it.
    """

    score: AbstractScore
    grid: Float[Array, " levels"]
    solver: AbstractSolver
    base_scale: Float[Array, ""]

    @classmethod
    def make(
        cls, score: AbstractScore, grid: Any, solver: AbstractSolver, base: Literal["vp", "ve"] = "vp"
    ) -> "DiscreteFlow":
        """With one of the two bases; the levels are checked.

        Raises
        ------
        InvalidArgument
            The levels do not fall, or are negative or not finite.
        """
        check_choice("base", base, ("vp", "ve"))
        levels = check_grid(grid)
        return cls(score, jnp.asarray(levels), solver, jnp.asarray(np.sqrt(base_variance(levels[0], base))))

    def transform(self, z: Point, key: PRNGKeyArray | None = None) -> tuple[Point, Float[Array, ""], Int[Array, ""]]:
        """The draw that a standard normal z becomes, its log density, and the number of folded steps."""
        pushed = transform_and_log_det(self.score, self.solver, self.grid, self._scale(z) * z, key)
        return pushed.y, self._log_base(self._scale(z) * z) - pushed.log_det, pushed.folds

    def push(self, z: Point, key: PRNGKeyArray | None = None) -> Point:
        """The draw alone, without a determinant at each step."""
        return solve(self.score, self.solver, self.grid, self._scale(z) * z, key)

    def log_prob(self, y: Point, key: PRNGKeyArray | None = None) -> tuple[Float[Array, ""], Pulled]:
        """The log density at a point, and how it was found; ``Pulled.residual`` says whether it was."""
        pulled = inverse_and_log_det(self.score, self.solver, self.grid, y, key)
        return self._log_base(pulled.y) - pulled.log_det, pulled

    def _scale(self, z: Point) -> Array:
        return jnp.asarray(self.base_scale, z.dtype)

    def _log_base(self, y: Point) -> Float[Array, ""]:
        return log_normal(y, self._scale(y))


def base_variance(rho: Any, base: str) -> Any:
    """Variance of the base at the first level: 1 + ρ², or ρ²."""
    return rho**2 + (1 if base == "vp" else 0)


def log_normal(y: Point, scale: Any) -> Float[Array, ""]:
    """The log density of N(0, s² I)."""
    return -0.5 * jnp.sum((y / scale) ** 2) - y.shape[-1] * (0.5 * jnp.log(2 * jnp.pi) + jnp.log(scale))


def check_grid(grid: Any) -> np.ndarray:
    """The levels, as NumPy's array.

    Raises
    ------
    InvalidArgument
        Fewer than two, not finite, negative, not falling, or a zero that is not the last.
    """
    levels = np.asarray(grid, np.float64)
    good = levels.ndim == 1 and len(levels) > 1 and np.isfinite(levels).all()
    if not (good and np.all(np.diff(levels) < 0) and levels[-1] >= 0):
        raise InvalidArgument(
            f"grid must be two or more finite noise levels that fall, the last at least 0, got {levels.tolist()}; "
            f"edm_grid and log_grid make one."
        )
    return levels
