"""The proximal step of an agent, argmin_x f(x) + (κ/2)‖x − v‖²: by an inverse if f is quadratic, else Newton's.

A quadratic share costs one inversion (d³) before the run and 2d² per chain and step. Other shares keep the inverse of
their curvature at one point, with which a few gradients solve a step as long as curvature does not change much against
κ. Inverses are formed because a product for all chains and agents at once is a matrix product: many times as fast as
triangular solves, and as exact, since H + κI is well conditioned wherever κ matters. Newton's method, where curvature
does change, costs d Hessian–vector products and d³/3 per iteration; above `DENSE_DIM` dimensions its systems are solved
by conjugate gradients. Undamped it diverges on logistic shares at small κ (overshooting the flat tails), so that every
step is halved until the objective falls (Nocedal & Wright 2006, section 3.1).
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float, Int

DENSE_DIM = 64
MAX_NEWTON, MAX_CHORD = 50, 20
MAX_HALVINGS = 30
SUFFICIENT = 1e-4
CG_TOLERANCE = 1e-3


class Solved(NamedTuple):
    """A proximal point, ‖∇f(x) + κ(x − v)‖ there, evaluations spent, and whether a Hessian plus κI was indefinite."""

    x: Float[Array, " d"]
    residual: Float[Array, ""]
    num_evaluations: Int[Array, ""]
    indefinite: Bool[Array, ""]


class Quadratic(eqx.Module):
    """Shares ½xᵀH_i x − b_iᵀx, factorised: lower Cholesky factors and inverses of H_i + κ_i I, and b_i, by agent.

    Without b_i the shares are not quadratic, and H_i is their curvature at one point.
    """

    factor: Float[Array, "n d d"]
    inverse: Float[Array, "n d d"]
    linear: Float[Array, "n d"] | None


def factors_of(hessian: Float[Array, "d d"], kappa: Float[Array, ""]) -> tuple[Array, Array]:
    """Lower Cholesky factor and inverse of one agent's H + κI."""
    eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)
    factor = jnp.linalg.cholesky(hessian + kappa * eye)
    return factor, cho_solve((factor, True), eye)


def factors_of_convex_part(hessian: Float[Array, "d d"], kappa: Float[Array, ""]) -> tuple[Array, Array]:
    """The same, without what is concave in H."""
    values, vectors = jnp.linalg.eigh(hessian)
    return factors_of((vectors * jnp.maximum(values, 0.0)) @ vectors.T, kappa)


def prox_quadratic(
    inverse: Float[Array, "d d"], linear: Float[Array, " d"], v: Float[Array, " d"], kappa: Float[Array, ""]
) -> Solved:
    """The proximal point of one agent: (H + κI) x = b + κ v."""
    x = inverse @ (linear + kappa * v)
    return Solved(x, jnp.zeros((), x.dtype), jnp.ones((), int), ~jnp.isfinite(inverse[-1, -1]))


def prox_newton(
    f: Callable[[Float[Array, " d"]], Float[Array, ""]],
    start: Float[Array, " d"],
    v: Float[Array, " d"],
    kappa: Float[Array, ""],
    tolerance: Float[Array, ""],
) -> Solved:
    """The proximal point of one agent by damped Newton steps from ``start``, until the residual is within tolerance.

    Parameters
    ----------
    f
        The agent's potential.
    start
        A warm start: the agent's iterate.
    v, kappa
        Centre and strength of the quadratic term.
    tolerance
        Of the norm of the gradient of the objective.
    """

    def objective(x: Array) -> Array:
        return f(x) + 0.5 * kappa * jnp.sum((x - v) ** 2)

    gradient = jax.grad(objective)

    def direction(x: Array, g: Array) -> tuple[Array, Array]:
        if x.shape[0] <= DENSE_DIM:
            factor = jnp.linalg.cholesky(jax.hessian(objective)(x))
            return -cho_solve((factor, True), g), ~jnp.all(jnp.isfinite(factor))
        step, _ = cg(lambda s: jax.jvp(gradient, (x,), (s,))[1], -g, tol=CG_TOLERANCE, maxiter=x.shape[0])
        return step, jnp.vdot(step, g) >= 0

    def going(carry: tuple) -> Array:
        _, _, residual, i, _, indefinite, stuck = carry
        return (residual > tolerance) & (i < MAX_NEWTON) & ~indefinite & ~stuck

    def body(carry: tuple) -> tuple:
        x, g, _, i, spent, _, _ = carry
        step, indefinite = direction(x, g)
        size, tries = line_search(objective, x, step, jnp.vdot(g, step))
        new = jnp.where(indefinite | (size == 0), x, x + size * step)
        g = gradient(new)
        cost = x.shape[0] + tries + 2
        return new, g, jnp.linalg.norm(g), i + 1, spent + cost, indefinite, size == 0

    g = gradient(start)
    no = jnp.zeros((), bool)
    carry = (start, g, jnp.linalg.norm(g), jnp.zeros((), int), jnp.ones((), int), no, no)
    x, _, residual, _, spent, indefinite, _ = jax.lax.while_loop(going, body, carry)
    return Solved(x, residual, spent, indefinite)


def prox_chord(
    f: Callable[[Float[Array, " d"]], Float[Array, ""]],
    inverse: Float[Array, "d d"],
    start: Float[Array, " d"],
    v: Float[Array, " d"],
    kappa: Float[Array, ""],
    tolerance: Float[Array, ""],
) -> Solved:
    """As `prox_newton`, with the curvature of one point, ``inverse`` of its H + κI, for as long as it serves.

    An iteration costs one gradient, and the residual falls by a factor ‖H(x) − H‖/(H + κ); where it does not fall by
    half, Newton's method takes over.
    """

    def gradient(x: Array) -> Array:
        return jax.grad(f)(x) + kappa * (x - v)

    def going(carry: tuple) -> Array:
        _, _, residual, i, falling = carry
        return (residual > tolerance) & (i < MAX_CHORD) & falling

    def body(carry: tuple) -> tuple:
        x, g, residual, i, _ = carry
        new = x - inverse @ g
        slope = gradient(new)
        size = jnp.linalg.norm(slope)
        falling = size < 0.5 * residual
        kept = jax.tree.map(lambda a, b: jnp.where(falling, a, b), (new, slope, size), (x, g, residual))
        return *kept, i + 1, falling

    g = gradient(start)
    carry = (start, g, jnp.linalg.norm(g), jnp.zeros((), int), jnp.ones((), bool))
    x, _, _, spent, _ = jax.lax.while_loop(going, body, carry)
    solved = prox_newton(f, x, v, kappa, tolerance)
    return solved._replace(num_evaluations=solved.num_evaluations + spent + 1)


def line_search(objective: Callable[[Array], Array], x: Array, step: Array, slope: Array) -> tuple[Array, Array]:
    """The first of 1, ½, ¼, … with which the objective falls enough (0 if none), and how many were tried."""
    value = objective(x)
    # Close to the minimum the objective falls by less than its own rounding.
    slack = 10 * jnp.finfo(x.dtype).eps * (1 + jnp.abs(value))

    def falls(size: Array) -> Array:
        new = objective(x + size * step)
        return new <= value + SUFFICIENT * size * slope + slack

    def halve(carry: tuple) -> tuple:
        size, tries, _ = carry
        return size / 2, tries + 1, falls(size / 2)

    def going(carry: tuple) -> Array:
        _, tries, good = carry
        return ~good & (tries < MAX_HALVINGS)

    one = jnp.ones((), x.dtype)
    size, tries, good = jax.lax.while_loop(going, halve, (one, jnp.ones((), int), falls(one)))
    return jnp.where(good, size, 0.0), tries
