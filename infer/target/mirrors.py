"""The mirror over a target's constrained coordinates x, put together from the mirrors of its sites."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..geometry import AbstractMirror, AbstractSimplex, Batch, Point, Product, default_mirror
from .primal import Block, PrimalCoordinates


def product_mirror(
    coordinates: PrimalCoordinates,
    own: Callable[[Block, slice], AbstractMirror | None] = lambda block, at: None,
    *,
    barrier: bool = False,
) -> AbstractMirror:
    """One mirror per site, of a batch of simplices, balls, … a `Batch` of one, side by side over x.

    Parameters
    ----------
    coordinates
        Of x.
    own
        ``own(block, at)``: the mirror of the part ``at`` of x in a site, of a batch of its first set, for all sets of
        it; None for that of the support, which is Euclidean at real sites.
    barrier
        See `default_mirror`.

    Raises
    ------
    InvalidArgument, UnsupportedTarget
        See `default_mirror`.
    """
    parts: list[AbstractMirror] = []
    sizes: list[int] = []
    for block, at in coordinates.slices:
        support = elementary(block.support.value, block.shape)
        event = len(block.shape) - support.event_dim if support.event_dim else 0
        count, size = math.prod(block.shape[:event]), math.prod(block.free[event:])
        mirror = own(block, slice(at.start, at.start + size))
        if mirror is None:
            mirror = default_mirror(support, math.prod(block.shape[event:]), barrier=barrier)
        parts.append(mirror if count == 1 else Batch(mirror, count))
        sizes.append(block.size)
    return parts[0] if len(parts) == 1 else Product(tuple(parts), tuple(sizes))


def log_probabilities(coordinates: PrimalCoordinates, mirror: AbstractMirror, point: Point) -> dict[str, Array]:
    """Logarithms of all probabilities of the simplex sites at a point whose mirror keeps them, by site, of its shape.

    Next to a corner they have all their digits, while 1 − Σ x has none.
    """
    found, begin = {}, 0
    leaves = {}
    for part, inner in _leaves(mirror, point):
        simplices = part.mirror if isinstance(part, Batch) else part
        if isinstance(simplices, AbstractSimplex):
            leaves[begin, begin + inner.x.size] = inner.extra.extra if isinstance(part, Batch) else inner.extra
        begin += inner.x.size
    for block, at in coordinates.slices:
        size = block.free[-1] if block.kind == "simplex" else 0
        mine = [leaves.get((at.start, at.stop))]
        if mine[0] is None and size:  # a user's product of one mirror per simplex
            mine = [leaves.get((start, start + size)) for start in range(at.start, at.stop, size)]
        if size and all(leaf is not None for leaf in mine):
            found[block.name] = jnp.concatenate([jnp.ravel(leaf) for leaf in mine]).reshape(block.shape)
    return found


def _leaves(mirror: AbstractMirror, point: Point) -> list[tuple[AbstractMirror, Point]]:
    """The parts of a product and their points, in order."""
    if not isinstance(mirror, Product):
        return [(mirror, point)]
    parts = zip(mirror.parts, point.extra, strict=True)
    return [leaf for part, inner in parts for leaf in _leaves(part, inner)]


def elementary(support: Any, shape: tuple[int, ...]) -> Any:
    """A constraint without `independent` around it, the bounds of one that acts on each value as flat arrays."""
    from numpyro.distributions import constraints

    while isinstance(support, constraints.independent):
        support = support.base_constraint
    names = [name for name in ("lower_bound", "upper_bound") if np.ndim(getattr(support, name, 0.0))]
    if support.event_dim or not names:
        return support
    flat = {
        name: np.broadcast_to(getattr(support, name), shape).reshape(-1)
        for name in ("lower_bound", "upper_bound")
        if hasattr(support, name)
    }
    return type(support)(**flat)
