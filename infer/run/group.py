"""`Group`: chains that share a program, and what decides the sizes of their chunks."""

from typing import Any

import jax
import numpy as np

from ..method import AbstractMethod
from ..target import Target
from .chunk import SLOT_BYTES, SLOTS

FIRST_CHUNK = 10
GROWTH = 100


class Group:
    """Chains that share a program: their states, iteration, keys and device.

    Parameters
    ----------
    index
        Number of the group.
    chains
        Its chains; one alone is not batched.
    device
        Where it runs.
    """

    def __init__(self, index: int, chains: range, device: Any) -> None:
        self.index, self.chains, self.device = index, chains, device
        self.states: Any = None
        self.snapshot: Any = None
        self.origin: Any = None
        self.t = 0
        self.length = 1
        self.finished = False

    @property
    def single(self) -> bool:
        """Whether the group is one unbatched chain."""
        return len(self.chains) == 1


def alone(group: Group, chain: int) -> Any:
    """The state of one chain of the group, counted from 0."""
    return group.states if group.single else jax.tree.map(lambda x: x[chain], group.states)


def num_slots(method: AbstractMethod, target: Target, group: Group) -> int:
    """Slots per chunk: as many as fit in a few megabytes, a function of shapes alone."""
    if method.kind != "chains":
        return SLOTS
    like = jax.eval_shape(_draw_once if group.single else _draw_each, method, target, group.states)
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
    return int(np.clip(SLOT_BYTES // max(size, 1), 1, SLOTS))


@jax.jit
def _draw_once(method: AbstractMethod, target: Target, state: Any) -> Any:
    """What is kept of a state, for its shapes; at module level, so that a second run finds them."""
    return target.draw(jax.random.key(0), method.draw(state))


@jax.jit
def _draw_each(method: AbstractMethod, target: Target, states: Any) -> Any:
    return jax.vmap(lambda state: target.draw(jax.random.key(0), method.draw(state)))(states)
