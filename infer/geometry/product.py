"""Mirrors made of mirrors: affine images, and products over consecutive coordinates."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..errors import InvalidArgument
from ..validate import check_count
from .mirror import AbstractMirror, Point, check_entries, check_fits, known, parameter


class Affine(AbstractMirror):
    """The mirror φ(t) of t = (x − loc)/scale: boxes and half-lines from (0, 1) and x > 0, units, shifts.

    ``extra`` of its points is the point of t, in which nothing is lost next to a large ``loc``.

    Parameters
    ----------
    mirror
        The mirror of t.
    loc
        A number or an array of shape (d,).
    scale
        Not 0: a number or an array of shape (d,); negative where the image is reflected.
    """

    mirror: AbstractMirror
    loc: Any = eqx.field(converter=parameter, default=0.0)
    scale: Any = eqx.field(converter=parameter, default=1.0)

    def __check_init__(self) -> None:
        if not isinstance(self.mirror, AbstractMirror):
            raise InvalidArgument(f"mirror must be a mirror, got {self.mirror!r}; see pushforward.infer.geometry.")
        check_entries("loc", self.loc, above=-math.inf)
        check_entries("scale", self.scale, above=-math.inf)
        scale = known(self.scale)
        if scale is not None and not np.all(scale):
            raise InvalidArgument(f"scale must not be 0, got {self.scale!r}; an affine image needs all dimensions.")

    @property
    def full_dual(self) -> bool:
        """Of the inner mirror."""
        return self.mirror.full_dual

    @property
    def jointly_convex(self) -> bool:
        """Of the inner mirror."""
        return self.mirror.jointly_convex

    @property
    def structure(self) -> str:
        """Of the inner mirror; an identity becomes a diagonal."""
        return "diagonal" if self.mirror.structure == "identity" else self.mirror.structure

    @property
    def invertible(self) -> bool:
        """Of the inner mirror."""
        return self.mirror.invertible

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """φ(t)."""
        return self.mirror.value(self._inner(x))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        inner = self.mirror.at(self._inner(x))
        return Point(x, inner.y / self._scale(x), inner)

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y."""
        inner = self.mirror.from_dual(self._scale(y) * y)
        return Point(jnp.asarray(self.loc, y.dtype) + self._scale(y) * inner.x, y, inner)

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """S⁻¹ H(t) S⁻¹ v with S = diag(scale)."""
        return self.mirror.hess_mv(p.extra, v / self._scale(v)) / self._scale(v)

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """S P(t) S v."""
        return self._scale(v) * self.mirror.inv_hess_mv(p.extra, self._scale(v) * v)

    def inv_hess_quadratic(self, p: Point, v: Float[Array, " d"]) -> Float[Array, ""]:
        """That of the inner mirror at S v."""
        return self.mirror.inv_hess_quadratic(p.extra, self._scale(v) * v)

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """Log det H(t) − 2 Σ log |scale|."""
        logs = jnp.broadcast_to(jnp.log(jnp.abs(self._scale(p.x))), p.x.shape)
        return self.mirror.log_det_hess(p.extra) - 2 * jnp.sum(logs)

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """S⁻¹ times the noise at t."""
        return self.mirror.noise(key, p.extra) / self._scale(p.x)

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """S times the inverse noise at t."""
        return self._scale(p.x) * self.mirror.inv_noise(key, p.extra)

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """S ∇·P(t)."""
        return self._scale(p.x) * self.mirror.div_inv_hess(p.extra)

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether t is in the inner domain."""
        return self.mirror.contains(self._inner(x))

    def check(self, dim: int) -> None:
        """Raise unless ``loc``, ``scale`` and the inner mirror fit dimension ``dim``."""
        check_fits("loc", self.loc, dim)
        check_fits("scale", self.scale, dim)
        self.mirror.check(dim)

    def _scale(self, like: Array) -> Array:
        return jnp.asarray(self.scale, like.dtype)

    def _inner(self, x: Array) -> Array:
        return (x - jnp.asarray(self.loc, x.dtype)) / self._scale(x)


class Product(AbstractMirror):
    """φ(x) = Σₖ φₖ(xₖ) over consecutive slices xₖ of x: the mirror of a product of sets, block-diagonal.

    ``extra`` of its points are the points of the parts. Equal parts one after the other would be cheaper under
    ``jax.vmap``; this class loops over them when it is traced.

    Parameters
    ----------
    parts
        The mirrors φₖ.
    sizes
        Number of coordinates of each; 0 leaves a part out.
    """

    parts: tuple[AbstractMirror, ...]
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, parts: Any, sizes: Any):
        self.parts = tuple(parts)
        self.sizes = tuple(check_count("sizes", size, minimum=0) for size in sizes)

    def __check_init__(self) -> None:
        if len(self.parts) != len(self.sizes) or not self.parts:
            raise InvalidArgument(f"Product needs one size per part, got {len(self.parts)} parts and {self.sizes}.")
        for part in self.parts:
            if not isinstance(part, AbstractMirror):
                raise InvalidArgument(f"parts must be mirrors, got {part!r}; see pushforward.infer.geometry.")

    @property
    def full_dual(self) -> bool:
        """Whether all parts have a full dual."""
        return all(part.full_dual for part in self.parts)

    @property
    def jointly_convex(self) -> bool:
        """Whether the divergences of all parts are jointly convex."""
        return all(part.jointly_convex for part in self.parts)

    @property
    def structure(self) -> str:
        """The common structure of identities and diagonals, else ``"dense"``; of a single part, its own."""
        kinds = {part.structure for part in self.parts}
        if len(self.parts) == 1 or kinds == {"identity"}:
            return kinds.pop()
        return "diagonal" if kinds <= {"identity", "diagonal"} else "dense"

    @property
    def invertible(self) -> bool:
        """Whether all parts are."""
        return all(part.invertible for part in self.parts)

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Σₖ φₖ(xₖ)."""
        return sum(self._map(lambda part, piece: part.value(piece), self._split(x)), jnp.zeros((), x.dtype))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        return self._join(self._map(lambda part, piece: part.at(piece), self._split(x)))

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y."""
        return self._join(self._map(lambda part, piece: part.from_dual(piece), self._split(y)))

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """The products of the parts."""
        return self._concat(lambda part, q, piece: part.hess_mv(q, piece), p.extra, self._split(v))

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """The inverse products of the parts."""
        return self._concat(lambda part, q, piece: part.inv_hess_mv(q, piece), p.extra, self._split(v))

    def inv_hess_quadratic(self, p: Point, v: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum over the parts."""
        parts = self._map(lambda part, q, piece: part.inv_hess_quadratic(q, piece), p.extra, self._split(v))
        return sum(parts, jnp.zeros((), v.dtype))

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """The sum over the parts."""
        return sum(self._map(lambda part, q: part.log_det_hess(q), p.extra), jnp.zeros((), p.x.dtype))

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """Independent noise of the parts."""
        return self._concat(lambda part, q, k: part.noise(k, q), p.extra, jax.random.split(key, len(self.parts)))

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """Independent inverse noise of the parts."""
        return self._concat(lambda part, q, k: part.inv_noise(k, q), p.extra, jax.random.split(key, len(self.parts)))

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """The divergences of the parts."""
        return self._concat(lambda part, q: part.div_inv_hess(q), p.extra)

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether each part contains its slice."""
        return jnp.all(jnp.stack(self._map(lambda part, piece: part.contains(piece), self._split(x))))

    def check(self, dim: int) -> None:
        """Raise unless the sizes add up to ``dim`` and each part fits its own."""
        if sum(self.sizes) != dim:
            raise InvalidArgument(f"sizes {self.sizes} add up to {sum(self.sizes)}, but there are {dim} coordinates.")
        for part, size in zip(self.parts, self.sizes, strict=True):
            part.check(size)

    def _split(self, x: Array) -> list[Array]:
        return jnp.split(x, list(itertools.accumulate(self.sizes))[:-1])

    def _map(self, function: Callable, *pieces: Any) -> list[Any]:
        return [function(*each) for each in zip(self.parts, *pieces, strict=True)]

    def _concat(self, function: Callable, *pieces: Any) -> Array:
        return jnp.concatenate(self._map(function, *pieces))

    def _join(self, points: list[Point]) -> Point:
        x, y = (jnp.concatenate([getattr(point, name) for point in points]) for name in ("x", "y"))
        return Point(x, y, tuple(points))
