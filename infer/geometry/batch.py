"""Many copies of one mirror side by side: φ(x) = Σₖ φ(xₖ) over equal slices of x, for a site that is a batch of sets.

The copies run under ``jax.vmap``, so that a thousand simplices compile in the time of one; `Product`, for parts that
differ, is traced part by part.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..errors import InvalidArgument
from ..validate import check_count
from .mirror import AbstractMirror, Point


class Batch(AbstractMirror):
    """The mirror of ``count`` sets of the same kind and size; ``extra`` of its points has theirs on a leading axis.

    Parameters
    ----------
    mirror
        That of one set; its parameters, if it has any, are the same in all.
    count
        Number of sets, whose coordinates follow each other in x.
    """

    mirror: AbstractMirror
    count: int = eqx.field(static=True)

    def __init__(self, mirror: AbstractMirror, count: int):
        self.mirror = mirror
        self.count = check_count("count", count)

    def __check_init__(self) -> None:
        if not isinstance(self.mirror, AbstractMirror):
            raise InvalidArgument(f"mirror must be a mirror, got {self.mirror!r}; see pushforward.infer.geometry.")

    @property
    def full_dual(self) -> bool:
        """Of the one mirror."""
        return self.mirror.full_dual

    @property
    def jointly_convex(self) -> bool:
        """Of the one mirror."""
        return self.mirror.jointly_convex

    @property
    def structure(self) -> str:
        """Of the one mirror where it acts by coordinate, or is alone; else ``"dense"``."""
        kind = self.mirror.structure
        return kind if self.count == 1 or kind in ("identity", "diagonal") else "dense"

    @property
    def invertible(self) -> bool:
        """Of the one mirror."""
        return self.mirror.invertible

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Σₖ φ(xₖ)."""
        return jnp.sum(jax.vmap(self.mirror.value)(self._split(x)))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        points = jax.vmap(self.mirror.at)(self._split(x))
        return Point(x, points.y.reshape(-1), points)

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y."""
        points = jax.vmap(self.mirror.from_dual)(self._split(y))
        return Point(points.x.reshape(-1), y, points)

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """The products of all."""
        return jax.vmap(self.mirror.hess_mv)(p.extra, self._split(v)).reshape(-1)

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """The inverse products of all."""
        return jax.vmap(self.mirror.inv_hess_mv)(p.extra, self._split(v)).reshape(-1)

    def inv_hess_quadratic(self, p: Point, v: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum over all."""
        return jnp.sum(jax.vmap(self.mirror.inv_hess_quadratic)(p.extra, self._split(v)))

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """The sum over all."""
        return jnp.sum(jax.vmap(self.mirror.log_det_hess)(p.extra))

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """Independent noise of all."""
        return jax.vmap(self.mirror.noise)(jax.random.split(key, self.count), p.extra).reshape(-1)

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """Independent inverse noise of all."""
        return jax.vmap(self.mirror.inv_noise)(jax.random.split(key, self.count), p.extra).reshape(-1)

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """The divergences of all."""
        return jax.vmap(self.mirror.div_inv_hess)(p.extra).reshape(-1)

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether each slice is in the one set."""
        return jnp.all(jax.vmap(self.mirror.contains)(self._split(x)))

    def check(self, dim: int) -> None:
        """Raise unless ``count`` equal slices fill dimension ``dim``, and the one mirror fits a slice."""
        if dim % self.count:
            raise InvalidArgument(f"count={self.count} does not divide the {dim} coordinates; give a divisor of them.")
        self.mirror.check(dim // self.count)

    def _split(self, x: Array) -> Any:
        return x.reshape(self.count, -1)
