"""The inverse of a mirror map by Newton's method, for mirrors that have none in closed form: barriers of polytopes.

x = ∇φ*(y) is the minimum of φ(x) − y·x. For a self-concordant φ the damped Newton step

    x ← x + d / (1 + λ),    d = P (y − ∇φ(x)),    λ² = d·H d,

never leaves the domain, lowers the objective by at least λ − log(1 + λ), and is full once λ < 1/4, where it converges
quadratically (Nesterov & Nemirovskii 1994, chapter 2). A point costs as many factorisations of H as there are steps,
10 to 40.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..errors import InvalidArgument
from .mirror import AbstractMirror, Point, known
from .product import Product

STEPS = 200
QUADRATIC = 0.25


class NewtonInverse(AbstractMirror):
    """A mirror with ∇φ* by damped Newton steps from a point inside; otherwise the mirror that it is given.

    Parameters
    ----------
    mirror
        Of a self-concordant φ, such as `PolytopeBarrier`; over a bounded set, or the dual of a step may have no point.
    center
        A point inside, of shape (d,).

    Raises
    ------
    InvalidArgument
        ``center`` lies outside.
    """

    invertible: ClassVar[bool] = True

    mirror: AbstractMirror
    center: Any

    def __check_init__(self) -> None:
        center = known(self.center)
        if center is not None and not bool(self.mirror.contains(jnp.asarray(center))):
            raise InvalidArgument(
                f"center must lie inside of the domain of {type(self.mirror).__name__}, got {center}."
            )

    @property
    def full_dual(self) -> bool:
        """That of the mirror."""
        return self.mirror.full_dual

    @property
    def jointly_convex(self) -> bool:
        """That of the mirror."""
        return self.mirror.jointly_convex

    @property
    def structure(self) -> str:
        """That of the mirror."""
        return self.mirror.structure

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y, to rounding (see `residual`); its derivative is P."""
        inside = jax.lax.stop_gradient(self._minimum(jax.lax.stop_gradient(y)))
        near = self.mirror.at(inside)
        # The value of the last step is zero; its derivative is that of the inverse.
        step = self.mirror.inv_hess_mv(jax.lax.stop_gradient(near), y - jax.lax.stop_gradient(near.y))
        found = self.mirror.at(inside + step)
        return Point(found.x, y, found.extra)

    def residual(self, p: Point) -> Float[Array, ""]:
        """Newton decrement √(rᵀP r), r = y − ∇φ(x), of a point that `from_dual` gave: 0 for the inverse."""
        r = p.y - self.mirror.at(p.x).y
        return jnp.sqrt(self.mirror.inv_hess_quadratic(p, r))

    def _minimum(self, y: Array) -> Array:
        enough = 10 * jnp.finfo(y.dtype).eps ** 0.5  # then the step of `from_dual` takes the rest

        def going(carry: tuple) -> Array:
            i, _, decrement = carry
            return (i < STEPS) & ~(decrement < enough)

        def step(carry: tuple) -> tuple:
            i, x, _ = carry
            p = self.mirror.at(x)
            residual = y - p.y
            direction = self.mirror.inv_hess_mv(p, residual)
            decrement = jnp.sqrt(jnp.maximum(direction @ residual, 0))
            return i + 1, x + direction / jnp.where(decrement < QUADRATIC, 1, 1 + decrement), decrement

        start = (jnp.zeros((), jnp.int32), jnp.asarray(self.center, y.dtype), jnp.full((), jnp.inf, y.dtype))
        return jax.lax.while_loop(going, step, start)[1]

    # -- the mirror's own ---------------------------------------------------------------------------------------------

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """φ(x)."""
        return self.mirror.value(x)

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        return self.mirror.at(x)

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """H v."""
        return self.mirror.hess_mv(p, v)

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """P v."""
        return self.mirror.inv_hess_mv(p, v)

    def inv_hess_quadratic(self, p: Point, v: Float[Array, " d"]) -> Float[Array, ""]:
        """VᵀP v."""
        return self.mirror.inv_hess_quadratic(p, v)

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """Log det H."""
        return self.mirror.log_det_hess(p)

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """A draw of N(0, H)."""
        return self.mirror.noise(key, p)

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """A draw of N(0, P)."""
        return self.mirror.inv_noise(key, p)

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """∇·P."""
        return self.mirror.div_inv_hess(p)

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether x is in the domain."""
        return self.mirror.contains(x)

    def check(self, dim: int) -> None:
        """Raise unless the parameters fit dimension ``dim``."""
        self.mirror.check(dim)


def with_inverse(mirror: AbstractMirror, center: Array) -> AbstractMirror:
    """The same mirror over x, with inverses by Newton's method from ``center``, a point inside, where it has none."""
    if mirror.invertible:
        return mirror
    if not isinstance(mirror, Product):
        return NewtonInverse(mirror, center)
    parts, begin = [], 0
    for part, size in zip(mirror.parts, mirror.sizes, strict=True):
        parts.append(with_inverse(part, center[begin : begin + size]))
        begin += size
    return eqx.tree_at(lambda m: m.parts, mirror, tuple(parts))


def by_newton(mirror: AbstractMirror) -> bool:
    """Whether the mirror, or a part of it, has its inverse by Newton's method."""
    if isinstance(mirror, Product):
        return any(by_newton(part) for part in mirror.parts)
    return isinstance(mirror, NewtonInverse)


def largest_residual(mirror: AbstractMirror, points: Point) -> Array:
    """Of points with a leading axis: the largest Newton decrement of any part."""
    if isinstance(mirror, Product):
        parts = zip(mirror.parts, points.extra, strict=True)
        return jnp.max(jnp.stack([largest_residual(part, inner) for part, inner in parts]))
    zero = jnp.zeros((), points.x.dtype)
    return jnp.max(jax.vmap(mirror.residual)(points)) if isinstance(mirror, NewtonInverse) else zero
