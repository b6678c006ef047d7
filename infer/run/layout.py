"""`Layout`: on which devices the groups of chains of a run are, and how arrays get there.

Groups are dealt out to processes and to their devices. The only group of a method that spreads, or of a run whose rows
are spread, is on all devices of all processes, in a mesh.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from ..distributed.mesh import DATA, PARTICLES, data_mesh, everywhere, particle_mesh, place
from ..method import AbstractMethod
from ..target import Target
from ..target.spread import spread_rows
from .group import Group
from .plan import Plan
from .precision import precision
from .together import Together


class Layout:
    """Devices, mesh and threads of a run; gives each group its device.

    Attributes
    ----------
    mesh
        Of all devices, where what the run has is shared out over them; else None.
    together
        This process among those of the run; None where it is the only one.
    workers
        How many groups run side by side.
    """

    def __init__(self, plan: Plan, method: AbstractMethod, groups: list[Group], devices: Sequence[Any]) -> None:
        self.precision, self.mesh = plan.precision, None
        self.kind = plan.mesh
        self.together = Together.of_this_job()
        local = [device for device in devices if device.process_index == jax.process_index()]
        spreads = method.spreads if plan.mesh is None else plan.mesh in (PARTICLES, DATA)
        if spreads and len(devices) > 1 and len(groups) == 1:
            self.mesh = data_mesh(devices) if self.kind == DATA else particle_mesh(devices)
            groups[0].device = everywhere(self.mesh)
        else:
            for i, group in enumerate(self.own(groups)):
                group.device = local[i % len(local)]
        self.workers = len(local) if len(local) > 1 or local[0].platform != "cpu" else _num_cores()
        self._one_device = len(devices) == 1

    def own(self, groups: list[Group]) -> list[Group]:
        """The groups that this process runs."""
        if self.together is None or self.mesh is not None:
            return groups
        return self.together.share_of(groups)

    def arrange(self, target: Target) -> Target:
        """The target as this layout needs it: its rows shared out, or as it is."""
        if self.mesh is None or self.kind != DATA:
            return target
        with precision(self.precision):
            return spread_rows(target, self.mesh)

    def place(self, tree: Any, device: Any) -> Any:
        """The arrays of ``tree`` on a device, or laid out by a sharding; Python numbers stay what they are."""
        if self._one_device:  # nothing is committed to it
            put = jax.device_put
        elif isinstance(device, NamedSharding):
            put = lambda x: place(x, device)  # noqa: E731
        else:
            put = lambda x: jax.device_put(x, device)  # noqa: E731
        return jax.tree.map(lambda x: put(x) if isinstance(x, np.ndarray | np.generic | jax.Array) else x, tree)

    def data_in_force(self) -> Any:
        """The mesh over which the user wants rows or agents spread, as a scope; nothing where there is none."""
        return jax.set_mesh(self.mesh) if self.mesh is not None and self.kind else nullcontext()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Precision and mesh of everything that is compiled or called; a scope belongs to its thread."""
        with precision(self.precision), nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            yield

    @contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        """The threads on which groups run."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="pushforward")
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Placed:
    """Method and target of a stage on the devices where they are called, put there once.

    Parameters
    ----------
    layout
        Of the run.
    stage
        Number of the stage.
    method, target
        As prepared for the stage, and as arranged for the run.
    """

    def __init__(self, layout: Layout, stage: int, method: AbstractMethod, target: Target) -> None:
        self.layout, self.stage, self.method, self.target = layout, stage, method, target
        self._there: dict[Any, tuple[AbstractMethod, Target]] = {}

    def on(self, device: Any, t: int = 0) -> tuple[AbstractMethod, Target]:
        """Both on a device, the target with the block of rows that iteration ``t`` needs."""
        block = self.target.block_at(self.stage, t)
        found = self._there.get((device, block))
        if found is None:
            found = self.layout.place((self.method, self.target.with_block(block)), device)
            if block is not None:  # groups are at most in two blocks at a time
                self._there = dict(list(self._there.items())[-1:])
            self._there[device, block] = found
        return found


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
