"""What the processes of one run tell each other after a round, so that all of them know all and decide alike.

Groups of chains are dealt out to processes, which run theirs as if they were alone: a group's draws depend on nothing
but its key. After a round each tells the others its states and its draws, how long it took, whether it was asked to
stop, and whether it failed. So every process ends with the whole posterior, and process 0 can write it. A method that
spreads has one group, which all run together; its states and draws are everywhere already.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..distributed.processes import check_same, exchange, num_processes
from ..errors import DistributedError
from ..target.static import content_digest
from .group import Group


class Told(NamedTuple):
    """What all have told.

    Parameters
    ----------
    signal
        Why to stop, if one was asked to.
    states
        Number of a group → iteration, whether it is finished, and the leaves of its states.
    blocks
        Draws and infos of chunks: number of the group, first iteration, arrays by stream and name.
    round, iterations
        Seconds of the slowest process in this round, and iterations of the furthest group in it.
    """

    signal: str | None
    states: dict[int, tuple[int, bool, list[np.ndarray]]]
    blocks: list[tuple[int, int, dict[str, Any]]]
    round: float
    iterations: int


class Together:
    """A process among those of a run.

    Attributes
    ----------
    index, count
        Number of this process, and of all.
    seconds
        Time of the run as process 0 has it, at the last meeting: what budgets are held against.
    """

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self.seconds = 0.0

    @classmethod
    def of_this_job(cls) -> "Together | None":
        """None where there is one process."""
        count = num_processes()
        return None if count == 1 else cls(jax.process_index(), count)

    def share_of(self, groups: list[Group]) -> list[Group]:
        """The groups that this process runs."""
        return groups[self.index :: self.count]

    def meet(
        self,
        groups: Sequence[Group],
        blocks: Sequence[tuple[Group, int, dict[str, Any]]],
        signal: str | None,
        error: Exception | None,
        clock: tuple[float, float, int],
    ) -> Told:
        """Tell the others of these groups and chunks, and hear of theirs.

        Parameters
        ----------
        signal, error
            Why this process wants to stop, or has to.
        clock
            Seconds of the run and of this round, and iterations done in it.

        Raises
        ------
        DistributedError
            Another process failed, or is gone; an ``error`` of this process is raised itself.
        """
        arrays: dict[str, np.ndarray] = {}
        about: dict[str, Any] = {"signal": signal, "clock": clock, "groups": [], "blocks": []}
        about["error"] = None if error is None else f"{type(error).__name__}: {error}"
        for group in groups:
            leaves = jax.tree.leaves(jax.device_get(group.states))
            about["groups"].append((group.index, int(group.t), bool(group.finished), len(leaves)))
            arrays |= {f"state/{group.index}/{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
        for k, (group, begin, block) in enumerate(blocks):
            about["blocks"].append((group.index, int(begin), {stream: list(part) for stream, part in block.items()}))
            arrays |= {f"block/{k}/{stream}/{name}": x for stream, part in block.items() for name, x in part.items()}
        everyone = exchange(about, arrays)
        if error is not None:
            raise error
        for rank, (other, _) in enumerate(everyone):
            if other["error"] is not None:
                raise DistributedError(f"Process {rank} of {self.count} stopped with {other['error']}")
        self.seconds = everyone[0][0]["clock"][0]
        return _told(everyone)

    def take_over(self, groups: list[Group], told: Told) -> None:
        """Bring the groups that others run to where they are now."""
        own = self.share_of(groups)
        for group in groups:
            if group not in own:
                t, finished, leaves = told.states[group.index]
                group.t, group.finished = t, finished
                group.states = jax.tree.unflatten(jax.tree.structure(group.states), leaves)
                group.snapshot = (t, group.states)

    def agree(self, decide: Callable[[], Any]) -> Any:
        """What process 0 decides, which alone is asked; JSON-able."""
        decided, error = None, None
        if self.index == 0:
            try:
                decided = decide()
            except Exception as raised:
                error = raised
        (decided, text), _ = exchange([decided, None if error is None else f"{type(error).__name__}: {error}"])[0]
        if error is not None:
            raise error
        if text is not None:
            raise DistributedError(f"Process 0 of {self.count} stopped with {text}")
        return decided

    def check_same(self, what: str, tree: Any) -> None:
        """Raise `DistributedError` unless all processes have the same arrays, bit for bit."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(tree):
            if isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
                digest.update(content_digest(leaf))
        check_same(what, {"its content": digest.hexdigest()[:16]})


def _told(everyone: list[tuple[Any, dict[str, np.ndarray]]]) -> Told:
    states, blocks, signals = {}, [], []
    for about, arrays in everyone:
        if about["signal"] is not None:
            signals.append(about["signal"])
        for index, t, finished, size in about["groups"]:
            states[index] = (t, finished, [arrays[f"state/{index}/{i}"] for i in range(size)])
        for k, (index, begin, streams) in enumerate(about["blocks"]):
            block = {
                stream: {name: arrays[f"block/{k}/{stream}/{name}"] for name in names}
                for stream, names in streams.items()
            }
            blocks.append((index, begin, block))
    clocks = [about["clock"] for about, _ in everyone]
    signal = "terminated" if "terminated" in signals else signals[0] if signals else None
    blocks.sort(key=lambda block: block[:2])
    return Told(signal, states, blocks, max(clock[1] for clock in clocks), max(clock[2] for clock in clocks))
