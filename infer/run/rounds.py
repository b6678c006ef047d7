"""A stage of a run in several processes: round by round, between which all of them know all and decide alike."""

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from ..errors import DistributedError
from ..method import Stage
from .calls import dispatch, take, unpack
from .group import FIRST_CHUNK, GROWTH, Group
from .observe import Progress

if TYPE_CHECKING:
    from .driver import Run

ROUND_SECONDS = 1.0


def run_rounds(run: "Run", stage: Stage, pool: ThreadPoolExecutor, progress: Progress) -> None:
    """All groups go up to a common iteration, wherever they are; then all processes tell all, and go on or stop."""
    together, look, error = run.together, run.next_look(stage), None
    assert together is not None
    length = run.chunk_length or FIRST_CHUNK
    while error is not None or (run.stopped is None and any(not group.finished for group in run.groups)):
        begun, blocks = time.monotonic(), []
        if error is None:
            try:
                blocks = _go_up_to(run, stage, pool, length, look)
            except Exception as raised:  # told to the others before it ends this process
                error = raised
        iterations = max((group.t - begin for group, begin, _ in blocks), default=0)
        clock = (run.seconds, time.monotonic() - begun, iterations)
        # What runs on all devices is known everywhere already.
        news = (run.own, blocks) if run.layout.mesh is None else ([], [])
        told = together.meet(*news, run.signals.reason, error, clock)
        run.stopped = told.signal
        if run.layout.mesh is None:
            together.take_over(run.groups, told)
            blocks = [(run.groups[i], begin, block) for i, begin, block in told.blocks]
        try:
            for group, begin, block in blocks:
                run.collect(stage, group, begin, block)
            run._after_chunk(stage, progress)
            goes_on = run.stopped is None and any(not group.finished for group in run.groups)
            if goes_on and look is not None and run.done(stage) >= look * run.plan.thin:
                run.stopped, run.looked = together.agree(run._goal_reached), look
                look = run.next_look(stage)
        except DistributedError:
            raise
        except Exception as raised:
            error = raised
        if run.chunk_length is None and told.iterations:
            length = int(min(max(told.iterations * ROUND_SECONDS / max(told.round, 1e-6), 1), GROWTH * length))


def _go_up_to(run: "Run", stage: Stage, pool: ThreadPoolExecutor, length: int, look: int | None) -> list[tuple]:
    """Run this process's groups for ``length`` more iterations, or to the next look; what came of it."""
    thin = run.plan.thin if stage.keep else 1
    last = run.done(stage) + max(length // thin, 1) * thin
    last = last if look is None else min(last, look * run.plan.thin)
    running: dict[Future, tuple[Group, float]] = {}
    blocks = []
    for group in run.own:
        group.length = length
    while True:
        dispatch(run, stage, pool, running, last)
        if not running:
            return sorted(blocks, key=lambda block: (block[0].index, block[1]))
        ready, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ready:
            group, begun = running.pop(future)
            chunk = future.result()
            take(run, stage, group, chunk, time.monotonic() - begun)
            group.length = length
            blocks.append((group, *unpack(run, stage, group, chunk)))
