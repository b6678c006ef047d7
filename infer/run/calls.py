"""Calls of the compiled chunk: who is called next, on a thread, what goes in and what comes out."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ..method import AbstractMethod, Stage
from .chunk import Chunk, run_chunk
from .group import GROWTH, Group

if TYPE_CHECKING:
    from .driver import Run

CHUNK_SECONDS = 0.3


def dispatch(run: "Run", stage: Stage, pool: ThreadPoolExecutor, running: dict, horizon: int | None) -> None:
    """Give the free workers the groups that are furthest behind, up to iteration ``horizon``."""
    busy = {group.index for group, _ in running.values()}
    thin, last = run.plan.thin if stage.keep else 1, stage.num_steps
    if horizon is not None:
        last = min(last, horizon)
    for group in sorted(run.own, key=lambda g: g.t):
        if len(running) >= run.layout.workers:
            return
        if group.index in busy or group.finished or group.t >= last:
            continue
        # Whole slots only, so that the draws that share a slot never straddle two chunks.
        length = max(group.length // thin, 1) * thin
        length = min(length, run.slots * thin, last - group.t)
        ends = run.arranged.block_ends(group.t)
        if ends is not None:  # there other rows of the data come in
            length = min(length, -(-(ends - group.t) // thin) * thin)
        running[pool.submit(_call, run, stage, group, length)] = (group, time.monotonic())


def _call(run: "Run", stage: Stage, group: Group, length: int) -> Chunk:
    with run.layout.scope():  # which belongs to a thread
        return jax.block_until_ready(run_chunk(*arguments(run, stage, group, length), **static(run, group)))


def arguments(run: "Run", stage: Stage, group: Group, length: int) -> tuple:
    """The arguments of `run_chunk` for a group's next ``length`` iterations."""
    assert run.placed is not None
    method, target = run.placed.on(group.device, group.t)
    scalars = (np.int32(group.t), np.int32(length), np.int32(run.plan.thin if stage.keep else 1))
    return (method, target, group.states, group.origin, *scalars, np.bool_(stage.keep))


def static(run: "Run", group: Group) -> dict[str, Any]:
    """The static arguments of `run_chunk`."""
    return {"slots": run.slots, "sites": run.plan.sites, "single": group.single, "thinned": run.plan.thin > 1}


def take(run: "Run", stage: Stage, group: Group, chunk: Chunk, seconds: float) -> None:
    """Take over the states of a chunk, which took ``seconds``; the group can then go on."""
    iterations = int(chunk.iterations)
    group.states = chunk.states
    group.t += iterations
    group.finished = group.t >= stage.num_steps or iterations == 0 or _all_done(run.prepared, group)
    if run.chunk_length is None:
        ideal = iterations * CHUNK_SECONDS / max(seconds, 1e-6)
        group.length = int(min(max(ideal, 1), GROWTH * group.length))
    else:
        group.length = run.chunk_length
    run.snapshot(group)


def unpack(run: "Run", stage: Stage, group: Group, chunk: Chunk) -> tuple[int, dict[str, Any]]:
    """What was drawn and seen in the last chunk taken, and its first iteration."""
    iterations = int(chunk.iterations)
    slots = -(-iterations // (run.plan.thin if stage.keep else 1))
    block = {
        "posterior": chunk.draws.unpack(slots, single=group.single) if stage.keep else {},
        "sample_stats": chunk.infos.unpack(slots, single=group.single),
    }
    return group.t - iterations, block


def _all_done(method: AbstractMethod, group: Group) -> bool:
    if type(method).done is AbstractMethod.done:
        return False
    done = method.done if group.single else jax.vmap(method.done)
    return bool(np.all(np.asarray(done(group.states))))
