"""Bregman proximal operators of one coordinate, g(u) = w|u − l| + (v/2)(u − l)², with κ = λw and ρ = λv.

The left operator thresholds the dual softly about ∇φ(l); with ρ a monotone equation is left to solve. The right one is
a root of

    h(u) = κ + ρ|u − l| − φ''(u)|x − u|   between l and x,   or l itself,

in closed form for the mirrors of `_ROOTS`. Where D_φ is not jointly convex there may be several such roots, even for a
convex g, and the best of them is taken: the minimiser is then not a continuous function of x.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .mirror import Point
from .separable import BoltzmannShannon, Burg, FermiDirac, HyperbolicEntropy
from .term import like

# Cells of the dual in which the right operator looks for its roots, and halvings of the one that is chosen.
NUM_CELLS = 64
NUM_HALVINGS = 56


class Kink(NamedTuple):
    """Where a term has its kink, as primal and dual (±∞ where it is not inside of the domain), with κ and ρ."""

    loc: Array
    dual: Array
    inside: Array
    kappa: Array
    rho: Array | None


def left(mirror: Any, p: Point, kink: Kink) -> Point:
    """argmin_u λ g(u) + D_φ(u, x); exactly l in the dead zone."""
    away = p.y - kink.dual
    y = p.y - jnp.clip(away, -kink.kappa, kink.kappa)
    if kink.rho is not None:
        y = _ridge(mirror, y, kink, kink.rho)
    dead = kink.inside & (jnp.abs(away) <= kink.kappa)
    return Point(jnp.where(dead, kink.loc, mirror.dphi_star(y)), jnp.where(dead, kink.dual, y))


def _ridge(mirror: Any, t: Array, kink: Kink, rho: Array) -> Array:
    """The root y of y + ρ (∇φ*(y) − l) = t, by Newton steps that are replaced by halving where they leave the bracket.

    The left side increases with slope ≥ 1, so the root lies between t and t − ρ (∇φ*(t) − l), and between t and ∇φ(l).
    """

    def excess(y: Array) -> Array:
        return y + rho * (mirror.dphi_star(y) - kink.loc) - t

    other = t - rho * (mirror.dphi_star(t) - kink.loc)
    other = jnp.clip(other, jnp.minimum(t, kink.dual), jnp.maximum(t, kink.dual))

    def shrink(_: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, y = state
        f = excess(y)
        low, high = jnp.where(f <= 0, y, low), jnp.where(f >= 0, y, high)
        newton = y - f / (1 + rho * jnp.exp(mirror.log_d2phi_star(y)))
        return low, high, jnp.where((newton > low) & (newton < high), newton, 0.5 * (low + high))

    return jax.lax.fori_loop(0, NUM_HALVINGS, shrink, (jnp.minimum(t, other), jnp.maximum(t, other), t))[2]


def right(mirror: Any, p: Point, kink: Kink) -> Point:
    """argmin_u λ g(u) + D_φ(x, u), the global one."""
    root = _ROOTS.get(type(mirror))
    return _right_closed(mirror, p, kink, root) if root and kink.rho is None else _right_searched(mirror, p, kink)


def _right_closed(mirror: Any, p: Point, kink: Kink, root: Callable) -> Point:
    """The root nearest to x, against the kink."""
    side = jnp.sign(p.x - kink.loc)
    u, y, exists = root(mirror, p, side * kink.kappa)
    beyond = ~(exists & (side * (u - kink.loc) > 0))
    loc, u = jnp.where(kink.inside, kink.loc, p.x), jnp.where(beyond, p.x, u)
    flat = mirror.d2phi(loc) * jnp.abs(p.x - loc) <= kink.kappa
    lower = kink.kappa * jnp.abs(u - loc) >= _divergence(mirror, p.x, loc) - _divergence(mirror, p.x, u)
    dead = kink.inside & (beyond | (flat & lower))
    return Point(jnp.where(dead, kink.loc, u), jnp.where(dead, kink.dual, y))


def _right_searched(mirror: Any, p: Point, kink: Kink) -> Point:
    """The best of all roots of h and the kink: cells of the dual are compared, the best one is halved.

    If the kink is outside of the domain, φ'' grows towards the boundary, and as κ + ρ|x − l| + |y| + 1 in the dual is
    beyond any root the search ends there.
    """
    rho = jnp.zeros_like(kink.kappa) if kink.rho is None else kink.rho
    far = jnp.abs(p.y) + kink.kappa + rho * jnp.abs(p.x - kink.loc) + 1
    end = jnp.where(kink.inside, kink.dual, jnp.sign(kink.loc - p.x) * far)

    def slope(y: Array) -> Array:
        u = mirror.dphi_star(y)
        pull = kink.kappa + rho * jnp.abs(u - kink.loc)
        return pull - jnp.exp(-mirror.log_d2phi_star(y)) * jnp.abs(p.x - u)

    shares = jnp.linspace(0, 1, NUM_CELLS + 1, dtype=p.y.dtype)[:, None]
    y = p.y + shares * (end - p.y)
    u = mirror.dphi_star(y).at[0].set(p.x)
    u = u.at[-1].set(jnp.where(kink.inside, kink.loc, u[-1]))
    away = jnp.abs(u - kink.loc)
    best = jnp.argmin(kink.kappa * away + 0.5 * rho * away**2 + _divergences(mirror, p, u, y), axis=0)

    def at(index: Array) -> Array:
        return jnp.take_along_axis(y, jnp.clip(index, 0, NUM_CELLS)[None], axis=0)[0]

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        near, deep = ends  # h > 0 at the one, towards x; h ≤ 0 at the other, or it is the end
        middle = 0.5 * (near + deep)
        back = slope(middle) > 0
        return jnp.where(back, middle, near), jnp.where(back, deep, middle)

    _, found = jax.lax.fori_loop(0, NUM_HALVINGS, halve, (at(best - 1), at(best + 1)))
    dead = kink.inside & (found == y[-1])
    return Point(jnp.where(dead, kink.loc, mirror.dphi_star(found)), jnp.where(dead, kink.dual, found))


def _divergence(mirror: Any, x: Array, u: Array) -> Array:
    """D_φ(x, u), entry by entry."""
    return jnp.maximum(mirror.phi(x) - mirror.phi(u) - mirror.dphi(u) * (x - u), 0)


def _divergences(mirror: Any, p: Point, u: Array, y: Array) -> Array:
    """D_φ(x, u) along cells of the dual from x on; where its definition cancels, ∫ |x − ∇φ*(t)| dt by trapezoids."""
    gaps = jnp.abs(p.x - u)
    areas = 0.5 * (gaps[1:] + gaps[:-1]) * jnp.abs(jnp.diff(y, axis=0))
    rough = jnp.concatenate([jnp.zeros_like(gaps[:1]), jnp.cumsum(areas, axis=0)])
    terms = mirror.phi(p.x), mirror.phi(u), y * (p.x - u)
    exact = terms[0] - terms[1] - terms[2]
    noise = jnp.finfo(p.x.dtype).eps * (jnp.abs(terms[0]) + jnp.abs(terms[1]) + jnp.abs(terms[2]))
    return jnp.where(exact > 1e3 * noise, exact, rough)


# -- roots of φ''(u)(x − u) = k, the one nearest to x: (u, ∇φ(u), whether there is one) --------------------------------


def _root_hyperbolic(mirror: HyperbolicEntropy, p: Point, k: Array) -> tuple[Array, Array, Array]:
    """Of x − u = k √(u² + β²), for k ≥ 0 after a reflection, in units in which nothing overflows."""
    beta, sign = like(mirror.beta, p.x), jnp.where(k < 0, -1, 1).astype(p.x.dtype)
    unit = jnp.maximum(jnp.abs(p.x), beta)
    x, b, k = sign * p.x / unit, beta / unit, jnp.abs(k)
    square = x**2 + (1 - k) * (1 + k) * b**2
    root = jnp.sqrt(jnp.maximum(square, 0))
    ahead, behind = x + k * root, (1 - k) * (1 + k)
    inward = (x - k * b) * (x + k * b) / jnp.where(ahead > 0, ahead, 1)
    outward = (x - k * root) / jnp.where(behind > 0, behind, 1)
    exists = (square >= 0) & jnp.where(x >= 0, ahead > 0, behind > 0)
    u = sign * unit * jnp.where(x >= 0, inward, outward)
    return u, mirror.dphi(u), exists


def _root_boltzmann(mirror: BoltzmannShannon, p: Point, k: Array) -> tuple[Array, Array, Array]:
    """Of x − u = k u."""
    exists = k > -1
    y = p.y - jnp.log1p(jnp.where(exists, k, 0))
    return mirror.dphi_star(y), y, exists


def _root_fermi(mirror: FermiDirac, p: Point, k: Array) -> tuple[Array, Array, Array]:
    """Of x − u = k u (1 − u); u and 1 − u each by the form of the quadratic's root that does not cancel."""
    x, rest = mirror.dphi_star(p.y), mirror.dphi_star(-p.y)
    root = jnp.sqrt(jnp.where(k > 0, (1 - k) ** 2 + 4 * k * rest, (1 + k) ** 2 - 4 * k * x))

    def share(x: Array, k: Array) -> Array:
        steep = 1 + k <= 0
        return jnp.where(steep, (root - 1 - k) / jnp.where(steep, -2 * k, 1), 2 * x / jnp.where(steep, 1, 1 + k + root))

    u, other = share(x, k), share(rest, -k)
    return u, jnp.log(u) - jnp.log(other), jnp.ones_like(u, dtype=bool)


def _root_burg(mirror: Burg, p: Point, k: Array) -> tuple[Array, Array, Array]:
    """Of x − u = k u²."""
    square = 1 + 4 * k * p.x
    u = 2 * p.x / (1 + jnp.sqrt(jnp.maximum(square, 0)))
    return u, mirror.dphi(u), square >= 0


_ROOTS: dict[type, Callable] = {
    HyperbolicEntropy: _root_hyperbolic,
    BoltzmannShannon: _root_boltzmann,
    FermiDirac: _root_fermi,
    Burg: _root_burg,
}
