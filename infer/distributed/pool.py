"""Silos in processes of their own on this machine: spawned, never forked, and started anew after a death."""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from ..errors import DistributedError
from ..validate import check_count
from .silos import MakeStep, to_host, told

START_SECONDS = 120.0
READY = "ready"
DIED = "its process died"
LATE = "it did not answer within {:g} seconds, and its process was ended"


class ProcessPool:
    """Silos shared out over processes that are spawned; each loads the data of its own silos and keeps them.

    Use it as a context manager, below ``if __name__ == "__main__":`` as all spawned processes need it.

    Parameters
    ----------
    make_step
        ``make_step(silo)`` loads the silo's data and returns its step; a function that pickles (of a module).
    num_silos
        Silos 0, 1, …
    num_workers
        Processes; by default one per silo, at most one per core.
    """

    def __init__(self, make_step: MakeStep, num_silos: int, num_workers: int | None = None) -> None:
        self.num_silos = check_count("num_silos", num_silos)
        wanted = min(num_silos, os.cpu_count() or 1) if num_workers is None else check_count("num_workers", num_workers)
        self.num_workers = min(wanted, num_silos)
        self._make_step = make_step
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Connection] | None] = [None] * self.num_workers
        self._fresh: set[int] = set()  # started, not yet heard of
        self.restarts = -self.num_workers  # the first start is none

    def ask(
        self, sent: dict[int, Any], round: int, seed: int, timeout: float
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """See `SiloRunner.ask`; the time runs per silo, from when its process, once started, takes it up."""
        answers: dict[int, dict[str, Any]] = {}
        missing: dict[int, str] = {}
        todo = {w: [s for s in sent if s % self.num_workers == w] for w in range(self.num_workers)}
        todo = {worker: silos for worker, silos in todo.items() if silos}
        busy: dict[int, float] = {}

        def give(worker: int) -> None:
            """Let a worker begin with its next silo, or drop its silos where it cannot be reached."""
            busy.pop(worker, None)
            if not todo[worker]:
                return
            silo = todo[worker][0]
            try:
                self._reach(worker).send((sent[silo], round, silo, seed))
                busy[worker] = time.monotonic() + timeout
            except (OSError, EOFError):
                lose(worker, DIED)

        def lose(worker: int, reason: str) -> None:
            self._end(worker)
            busy.pop(worker, None)
            missing.update(dict.fromkeys(todo[worker], reason))
            todo[worker] = []

        for worker in todo:  # they start side by side
            self._start(worker)
        for worker in todo:
            give(worker)
        while busy:
            pipes = {self._reach(worker): worker for worker in busy}
            for pipe in wait(list(pipes), max(min(busy.values()) - time.monotonic(), 0)):
                worker = pipes[pipe]  # type: ignore[index]
                try:
                    message, error = pipe.recv()  # type: ignore[union-attr]
                except (EOFError, OSError):
                    lose(worker, DIED)
                    continue
                silo = todo[worker].pop(0)
                if error is not None:
                    self.close()  # what the others answer now is of no use
                    raise DistributedError(f"The step of silo {silo} failed in round {round}: {error}")
                answers[silo] = message
                give(worker)
            for worker in [worker for worker, end in busy.items() if end <= time.monotonic()]:
                lose(worker, LATE.format(timeout))
        return answers, missing

    def close(self) -> None:
        """End all processes."""
        for worker in range(self.num_workers):
            self._end(worker)

    @property
    def pids(self) -> list[int | None]:
        """Process numbers of the workers; None of one that does not run."""
        return [None if worker is None else worker[0].pid for worker in self._workers]

    def __enter__(self) -> "ProcessPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, worker: int) -> None:
        if self._workers[worker] is None:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs, self._make_step), daemon=True)
            process.start()
            theirs.close()
            self._workers[worker] = (process, ours)
            self._fresh.add(worker)
            self.restarts += 1

    def _reach(self, worker: int) -> Connection:
        """The pipe to a worker that has said it is there."""
        found = self._workers[worker]
        if found is None:
            raise EOFError(worker)
        if worker in self._fresh:
            self._fresh.remove(worker)
            if not found[1].poll(START_SECONDS) or found[1].recv() != READY:
                raise EOFError(worker)
        return found[1]

    def _end(self, worker: int) -> None:
        found = self._workers[worker]
        if found is not None:
            process, pipe = found
            self._fresh.discard(worker)
            pipe.close()
            process.kill()
            process.join()
            self._workers[worker] = None


def _serve(pipe: Connection, make_step: MakeStep) -> None:
    """A worker: answer until the pipe is closed."""
    pipe.send(READY)
    steps: dict[int, Any] = {}
    while True:
        try:
            state, round, silo, seed = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            if silo not in steps:
                steps[silo] = make_step(silo)
            answer = (to_host(steps[silo](state, round, silo, seed)), None)
        except Exception as error:
            answer = (None, told(error))
        pipe.send(answer)
