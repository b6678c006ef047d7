"""The score ∇_u log q(u) of a flow, carried along with its draws: no inverse is ever evaluated.

A layer y = T(x) of a flow takes the score G = ∇ log q(x), a row vector, to (Vaitl, Winkler, Richter & Kessel 2024,
arXiv:2403.15881, eq. 12)

    G' = (G − ∂_x log|det J|) J⁻¹,    J = ∂T/∂x,

from G = ∇ log q₀(z) of the base. What J⁻¹ costs is the layer's business:

    elementwise          G' = (G − ∂ log τ') / τ'                                                        O(d)
    coupling             J is block triangular; one pullback through the conditioner
    autoregressive       J is triangular; Jacobi iteration, exact after d pullbacks since the strict triangle is
                         nilpotent, and at rounding error long before where the layer is near the identity
    linear               one triangular solve
    planar               rank one: Sherman–Morrison                                                      O(d)
    radial               rank one plus a multiple of the identity                                        O(d)
    inverted             y ↦ x is cheap: one pullback of the inverse at y, G' = G ∂x/∂y + ∂_y log|det ∂x/∂y|
    continuous           dG/dt = −G ∂_x v − ∂_x div v, beside x                                           (eq. 15)
    any other            J by d pullbacks and a dense solve                                              O(d³)

Where the paper pulls back twice per coupling layer, (0, 1) and ((0, G'), 0), we pull back once: the transformed half
needs no pass through the conditioner, and both cotangents enter it together.

flowjax's layers have theirs in `flowjax_rules`; a bijection of its interface may bring its own as ``push_score(x, g) ->
(y, log_det, g')``. In all rules y is differentiable in x and in the layer's parameters, log_det and g' are held fixed.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

Pushed = tuple[Float[Array, " d"], Float[Array, ""], Float[Array, " d"]]


def sample_and_score(
    q: Any, key: PRNGKeyArray, n: int
) -> tuple[Float[Array, "n d"], Float[Array, " n"], Float[Array, "n d"]]:
    """``n`` draws of a flow with log densities and scores; only the draws are differentiable in its parameters.

    Parameters
    ----------
    q
        An `Approximation` with ``base`` (a flowjax distribution without parameters) and ``bijection`` (of flowjax's
        interface, from the base to u), or with a method ``sample_and_score(key, n)`` of its own.
    """
    if hasattr(q, "sample_and_score"):
        return q.sample_and_score(key, n)
    return push_base(q, stop_gradient(q.base.sample(key, (n,))))


def push_base(q: Any, z: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, " n"], Float[Array, "n d"]]:
    """What draws ``z`` of the base become: u, log q(u), ∇_u log q(u)."""
    from paramax import unwrap

    bijection = unwrap(q.bijection)
    base = held(unwrap(q.base))

    def one(z: Array) -> tuple[Array, Array, Array]:
        log_base, g = jax.value_and_grad(base.log_prob)(z)
        u, log_det, g = push(bijection, z, g)
        return u, stop_gradient(log_base - log_det), stop_gradient(g)

    return jax.vmap(one)(z)


def push(bijection: Any, x: Float[Array, " d"], g: Float[Array, " d"]) -> Pushed:
    """The image y = T(x), log|det J| and the score G' at y, by the rule of the bijection's kind."""
    if hasattr(bijection, "push_score"):
        return bijection.push_score(x, g)
    from .flowjax_rules import rule_of

    return rule_of(bijection)(bijection, x, g)


def held(tree: Any) -> Any:
    """A pytree with its arrays held fixed."""
    return jax.tree.map(lambda x: stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


# -- rules ------------------------------------------------------------------------------------------------------------


def elementwise(transform: Callable[[Array], tuple[Array, Array]], x: Array, g: Array) -> tuple[Array, Array, Array]:
    """(log τ', τ', G') of an elementwise map given as x ↦ (y, Σ log τ'), at held arguments.

    τ' is read off as the tangent of ones, ∂ log τ' as a gradient.
    """
    (_, log_det), (slope, _) = jax.jvp(transform, (x,), (jnp.ones_like(x),))
    return log_det, slope, (g - jax.grad(lambda x: transform(x)[1])(x)) / slope


def coupling(
    conditioner: Callable[[Array], Any],
    transform: Callable[[Any, Array], tuple[Array, Array]],
    fixed: tuple[Callable[[Array], Any], Callable[[Any, Array], tuple[Array, Array]]],
    x: tuple[Array, Array],
    g: tuple[Array, Array],
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Transformed half, log_det and G' of a coupling layer (x_c, x_t) ↦ (x_c, τ(x_t; p(x_c))).

    Parameters
    ----------
    conditioner, transform
        p, from x_c to any pytree of parameters, and τ, elementwise: (p, x_t) ↦ (y_t, Σ log τ').
    fixed
        The two with the layer's own parameters held fixed.
    x, g
        (x_c, x_t) and the score in the same parts.
    """
    x_c, x_t = x
    g_c, g_t = stop_gradient(g)
    y_t = transform(conditioner(x_c), x_t)[0]
    p_of, tau = fixed
    x_c, x_t = stop_gradient(x)
    p, pull = jax.vjp(p_of, x_c)
    log_det, _, g_t = elementwise(lambda x: tau(p, x), x_t, g_t)

    def through(p: Any) -> Array:
        y, log_det = tau(p, x_t)
        return log_det + jnp.sum(g_t * y)

    return y_t, log_det, (g_c - pull(jax.grad(through)(p))[0], g_t)


def autoregressive(
    conditioner: Callable[[Array], Any],
    transform: Callable[[Any, Array], tuple[Array, Array]],
    fixed: tuple[Callable[[Array], Any], Callable[[Any, Array], tuple[Array, Array]]],
    x: Array,
    g: Array,
) -> Pushed:
    """A layer y_i = τ(x_i; p_i(x_<i)) whose forward direction is the parallel one.

    With D = diag τ' and N = ∂τ/∂p · ∂p/∂x strictly triangular, G' (D + N) = G − ∂_x log τ' − ∂_p log τ' · ∂p/∂x is
    iterated as G' ← (right side − G' N) / τ', one pullback of the conditioner each, until it changes no more: at most
    d iterations after the first, since (N D⁻¹)^d = 0. Arguments as in `coupling`.
    """
    y = transform(conditioner(x), x)[0]
    p_of, tau = fixed
    x, g = stop_gradient(x), stop_gradient(g)
    p, pull = jax.vjp(p_of, x)
    log_det, slope, first = elementwise(lambda x: tau(p, x), x, g)
    of_log_det = jax.grad(lambda p: tau(p, x)[1])(p)
    _, pull_tau = jax.vjp(lambda p: tau(p, x)[0], p)

    def update(g: Array) -> Array:
        cotangent = jax.tree.map(jnp.add, of_log_det, pull_tau(g)[0])
        return first - pull(cotangent)[0] / slope

    def going(carry: tuple[Array, Array, Array]) -> Array:
        i, g, before = carry
        moved = jnp.max(jnp.abs(g - before)) > 2 * jnp.finfo(g.dtype).eps * jnp.max(jnp.abs(g))
        return (i < x.size) & moved

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, g, _ = carry
        return i + 1, update(g), g

    _, pushed, _ = jax.lax.while_loop(going, body, (0, update(first), first))
    return y, log_det, pushed


def triangular(matrix: Float[Array, "d d"], g: Float[Array, " d"], *, lower: bool) -> Float[Array, " d"]:
    """G' with G' A = G, for a constant triangular A (whose log determinant has no gradient)."""
    return solve_triangular(stop_gradient(matrix), stop_gradient(g), trans=1, lower=lower)


def rank_one(r: Array, a: Array, b: Array, scale: Any = 1.0) -> Array:
    """G' with G' (scale I + a bᵀ) = R, by Sherman and Morrison."""
    return (r - b * (r @ a) / (scale + b @ a)) / scale


def planar(w: Array, u: Array, bias: Array, x: Array, g: Array) -> Pushed:
    """The layer y = x + û tanh(wᵀx + b) with û already constrained: J = I + û ψᵀ, ψ = (1 − tanh²) w."""
    y = x + u * jnp.tanh(w @ x + bias)
    w, u, bias, x, g = stop_gradient((w, u, bias, x, g))

    def log_det(x: Array) -> Array:
        return jnp.log1p((1 - jnp.tanh(w @ x + bias) ** 2) * (w @ u))

    value, gradient = jax.value_and_grad(log_det)(x)
    psi = (1 - jnp.tanh(w @ x + bias) ** 2) * w
    return y, value, rank_one(g - gradient, u, psi)


def dense(bijection: Any, x: Array, g: Array) -> Pushed:
    """Any differentiable bijection: J row by row, and a dense solve."""
    fixed = held(bijection)
    held_x, g = stop_gradient(x), stop_gradient(g)
    (_, log_det), pull = jax.vjp(fixed.transform_and_log_det, held_x)
    zero, one = jnp.zeros_like(log_det), jnp.ones_like(log_det)
    jacobian = jax.vmap(lambda e: pull((e, zero))[0])(jnp.eye(x.size, dtype=x.dtype))
    r = g - pull((jnp.zeros_like(held_x), one))[0]
    return bijection.transform(x), log_det, jnp.linalg.solve(jacobian.T, r)


# -- continuous flows -------------------------------------------------------------------------------------------------


def score_field(
    velocity: Callable[[Array, Array], Array], divergence: Callable[[Array, Array], Array]
) -> Callable[[Array, tuple[Array, Array, Array]], tuple[Array, Array, Array]]:
    """Right side of the differential equation of (x, log|det|, G) along dx/dt = v(t, x).

    Parameters
    ----------
    velocity, divergence
        v(t, x) of shape (d,), and its divergence in x (exact, or Hutchinson's with fixed probes: then G is the score
        of the density that these probes imply).
    """

    def field(t: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, g = state
        v, pull = jax.vjp(lambda x: velocity(t, x), x)
        div, gradient = jax.value_and_grad(lambda x: divergence(t, x))(x)
        return v, div, -pull(g)[0] - gradient

    return field
