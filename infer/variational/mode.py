"""Modes of a density: L-BFGS from a start, then damped Newton steps, all inside one compiled program.

Nocedal & Wright (2006), algorithms 7.5 (optax's, with its zoom line search) and 3.3 (Hessian shifted to be positive
definite). A Newton step costs d Hessian–vector products and O(d³).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..target.base import Target
from ..target.on_batch import Anchor, anchor_at

ANCHOR_STEPS = 100
MAX_HALVINGS = 20
SMALLEST_CURVATURE = 1e-8


class Mode(NamedTuple):
    """A point and what is known of it: log density, gradient, Hessian of −log π, evaluations spent."""

    point: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]
    hessian: Float[Array, "d d"]
    num_evaluations: Int[Array, ""]


def find_mode(
    log_density: Callable, start: Float[Array, " d"], *, max_iterations: int = 200, num_newton: int = 10
) -> Mode:
    """Climb ``log_density`` from ``start``; the last steps are Newton's, so that the gradient vanishes to rounding."""
    point, spent = climb(log_density, start, max_iterations)

    def newton(_: int, carry: tuple) -> tuple:
        point, spent = carry
        value, gradient, hessian = expansion(log_density, point)
        step = jnp.linalg.solve(positive_definite(-hessian), gradient)
        sizes = 0.5 ** jnp.arange(MAX_HALVINGS)
        # Close to the mode log π moves by less than its own rounding; the full step is taken where it loses no more.
        slack = 10 * jnp.finfo(point.dtype).eps * (1 + jnp.abs(value))
        values = jax.lax.map(lambda size: log_density(point + size * step), sizes)
        ok = values >= value - slack
        moved = point + jnp.where(ok.any(), sizes[jnp.argmax(ok)], 0.0) * step
        moved = jnp.where(jnp.all(jnp.isfinite(moved)), moved, point)
        return moved, spent + MAX_HALVINGS + 1 + point.shape[0]

    point, spent = jax.lax.fori_loop(0, num_newton, newton, (point, spent))
    value, gradient, hessian = expansion(log_density, point)
    return Mode(point, value, gradient, -hessian, spent + 1 + point.shape[0])


def expansion(
    function: Callable, point: Float[Array, " d"]
) -> tuple[Float[Array, ""], Float[Array, " d"], Float[Array, "d d"]]:
    """Value, gradient and Hessian at a point, of one evaluation and d products with the Hessian."""

    def gradient_and_all(x: Array) -> tuple[Array, tuple[Array, Array]]:
        value, gradient = jax.value_and_grad(function)(x)
        return gradient, (value, gradient)

    hessian, (value, gradient) = jax.jacfwd(gradient_and_all, has_aux=True)(point)
    return value, gradient, hessian


def anchor_near(target: Target, start: Float[Array, " d"]) -> Anchor:
    """The mode near ``start``, as the anchor of mini-batches' control variates."""
    return anchor_at(target, climb(target.log_density, start, ANCHOR_STEPS)[0])


def climb(
    log_density: Callable, start: Float[Array, " d"], max_iterations: int
) -> tuple[Float[Array, " d"], Int[Array, ""]]:
    """The point that L-BFGS reaches, and the evaluations spent."""
    import optax

    loss = lambda x: -log_density(x)  # noqa: E731
    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(loss)
    tolerance = jnp.sqrt(jnp.finfo(start.dtype).eps)

    def going(carry: tuple) -> Array:
        _, _, norm, i, _ = carry
        return (i < max_iterations) & (norm > tolerance)

    def body(carry: tuple) -> tuple:
        x, state, _, i, spent = carry
        value, gradient = value_and_grad(x, state=state)
        updates, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=loss)
        line_search: Any = state[-1]
        new = x + updates
        ok = jnp.all(jnp.isfinite(new)) & jnp.isfinite(loss(new))
        norm = jnp.where(ok, jnp.linalg.norm(gradient), 0.0)
        return jnp.where(ok, new, x), state, norm, i + 1, spent + 2 + line_search.info.num_linesearch_steps

    carry = (start, solver.init(start), jnp.asarray(jnp.inf, start.dtype), 0, jnp.zeros((), int))
    x, _, _, _, spent = jax.lax.while_loop(going, body, carry)
    return x, spent


def positive_definite(hessian: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The matrix with the absolute values of its eigenvalues, none too small to be inverted."""
    values, vectors = jnp.linalg.eigh(0.5 * (hessian + hessian.T))
    floor = SMALLEST_CURVATURE * jnp.maximum(jnp.max(jnp.abs(values)), SMALLEST_CURVATURE)
    return (vectors * jnp.maximum(jnp.abs(values), floor)) @ vectors.T
