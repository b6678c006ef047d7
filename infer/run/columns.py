"""Draws and sample_stats on their way from chunks to where they are kept.

Groups of chains advance at their own pace; what is kept advances with the slowest, and the rest waits here.
"""

from typing import Any, Protocol

import numpy as np

Block = dict[str, np.ndarray]


class Sink(Protocol):
    """Keeps blocks of draws of all chains: arrays of shape (chain, n, …) by name."""

    def append(self, group: str, block: Block) -> None:
        """Keep ``block`` after what ``group`` has."""

    def flush(self) -> None:
        """Let others see what there is."""


class MemorySink:
    """Keeps blocks in memory."""

    def __init__(self) -> None:
        self._blocks: dict[str, list[Block]] = {}

    def append(self, group: str, block: Block) -> None:
        """Keep ``block`` after what is there."""
        self._blocks.setdefault(group, []).append(block)

    def flush(self) -> None:
        """Nothing to do: nobody else looks."""

    def arrays(self, group: str) -> Block:
        """All blocks of a group joined along the draws."""
        blocks = self._blocks.get(group, [])
        if len(blocks) > 1:
            joined = {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}
            self._blocks[group] = blocks = [joined]
        return blocks[0] if blocks else {}

    def copy(self) -> "MemorySink":
        """Another one that holds the same arrays."""
        twin = MemorySink()
        twin._blocks = {group: list(blocks) for group, blocks in self._blocks.items()}
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
