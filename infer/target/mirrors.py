"""The mirror over a target's constrained coordinates x, put together from the mirrors of its sites."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..geometry import AbstractMirror, Product, default_mirror
from .primal import Block, PrimalCoordinates


def product_mirror(
    coordinates: PrimalCoordinates, own: Callable[[Block, slice], AbstractMirror | None] = lambda block, at: None
) -> AbstractMirror:
    """One mirror per site, and of a batch one per simplex, ball, …, side by side over x.

    Parameters
    ----------
    coordinates
        Of x.
    own
        ``own(block, at)``: the mirror of the part ``at`` of x in a site; None for that of the support, which is
        Euclidean at real sites.

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
        size = math.prod(block.free[event:])
        for begin in range(at.start, at.stop, size):
            mirror = own(block, slice(begin, begin + size))
            parts.append(default_mirror(support, math.prod(block.shape[event:])) if mirror is None else mirror)
            sizes.append(size)
    return parts[0] if len(parts) == 1 else Product(tuple(parts), tuple(sizes))


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
