"""Draws and sample_stats on their way from chunks to where they are kept.

Groups of chains advance at their own pace; what is kept advances with the slowest, and the rest waits here.
"""

from typing import Any, Protocol

import numpy as np

Block = dict[str, np.ndarray]

ROOM_BYTES = 2**28  # of one array, made at once; a larger one doubles


class Sink(Protocol):
    """Keeps blocks of draws of all chains: arrays of shape (chain, n, …) by name."""

    def expect(self, num_draws: int) -> None:
        """Be told how many draws there will be in all."""

    def append(self, group: str, block: Block) -> None:
        """Keep ``block`` after what ``group`` has."""

    def flush(self) -> None:
        """Let others see what there is."""


class MemorySink:
    """Keeps blocks in memory, in one array per name with room for what is to come.

    Room is not touched before it is used, so that it costs no memory; a list of blocks joined at the end would need
    twice what it keeps.
    """

    def __init__(self) -> None:
        self._room: dict[str, Block] = {}
        self._used: dict[str, int] = {}
        self._expected = 0

    def expect(self, num_draws: int) -> None:
        """Say how many draws there will be in all, to make room for them at once; more or fewer may come."""
        self._expected = num_draws

    def append(self, group: str, block: Block) -> None:
        """Keep ``block`` after what is there."""
        used = self._used.get(group, 0)
        end = used + next(iter(block.values())).shape[1]
        room = self._room.setdefault(group, {})
        for name, new in block.items():
            if name not in room or room[name].shape[1] < end:
                room[name] = self._larger(room.get(name), new, used, end)
            room[name][:, used:end] = new
        self._used[group] = end

    def _larger(self, old: np.ndarray | None, new: np.ndarray, used: int, end: int) -> np.ndarray:
        """An array like ``new`` with room for ``end`` draws at least, that begins with those of ``old``."""
        size = max(new.nbytes // max(new.shape[1], 1), 1)
        room = max(end, min(self._expected, max(2 * used, ROOM_BYTES // size)))
        larger = np.empty((new.shape[0], room, *new.shape[2:]), new.dtype)
        if old is not None:
            larger[:, :used] = old[:, :used]
        return larger

    def flush(self) -> None:
        """Nothing to do: nobody else looks."""

    def arrays(self, group: str) -> Block:
        """All that is kept of a group, (chain, draw, …) by name; views, which later draws leave as they are."""
        return {name: x[:, : self._used[group]] for name, x in self._room.get(group, {}).items()}

    def copy(self) -> "MemorySink":
        """Another one that holds the same draws; what either appends is its own."""
        twin = MemorySink()
        # Views without room: the twin's next block moves it to arrays of its own.
        twin._room = {group: self.arrays(group) for group in self._room}
        twin._used, twin._expected = dict(self._used), self._expected
        return twin


class Columns:
    """Blocks of each group of chains that wait for the slower ones."""

    def __init__(self, num_groups: int) -> None:
        self.waiting: list[list[dict[str, Block]]] = [[] for _ in range(num_groups)]

    def add(self, group: int, blocks: dict[str, Block]) -> None:
        """Add what a chunk of ``group`` gave: arrays (chains, n, …) by name, for ``posterior`` and ``sample_stats``."""
        self.waiting[group].append(blocks)

    def copy(self) -> "Columns":
        """Another one that holds the same arrays."""
        twin = Columns(0)
        twin.waiting = [list(blocks) for blocks in self.waiting]
        return twin

    def ready(self, group: int) -> int:
        """Number of draws of ``group`` that wait."""
        return sum(_length(blocks) for blocks in self.waiting[group])

    def pop(self) -> dict[str, Block] | None:
        """Remove and return the draws that all groups have, joined along the chains; None where there are none."""
        n = min(self.ready(group) for group in range(len(self.waiting)))
        if n == 0:
            return None
        taken = [self._take(group, n) for group in range(len(self.waiting))]
        return _join(taken, axis=0)

    def arrays(self, group: int) -> dict[str, Block]:
        """All that waits for ``group``, joined, for a checkpoint."""
        return _join(self.waiting[group], axis=1) if self.waiting[group] else {}

    def _take(self, group: int, n: int) -> dict[str, Block]:
        taken = []
        while n:
            blocks = self.waiting[group][0]
            length = _length(blocks)
            if length > n:
                self.waiting[group][0] = _map(blocks, lambda x, n=n: x[:, n:])
                blocks, length = _map(blocks, lambda x, n=n: x[:, :n]), n
            else:
                self.waiting[group].pop(0)
            taken.append(blocks)
            n -= length
        return _join(taken, axis=1)


def _length(blocks: dict[str, Block]) -> int:
    return next(iter(blocks["sample_stats"].values())).shape[1]


def _map(blocks: dict[str, Block], f: Any) -> dict[str, Block]:
    return {group: {name: f(x) for name, x in block.items()} for group, block in blocks.items()}


def _join(parts: list[dict[str, Block]], axis: int) -> dict[str, Block]:
    if len(parts) == 1:
        return parts[0]
    return {
        group: {name: np.concatenate([part[group][name] for part in parts], axis=axis) for name in block}
        for group, block in parts[0].items()
    }
