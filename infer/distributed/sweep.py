"""`sweep`: independent jobs, as of a study, in processes of this machine or as tasks of a Ray cluster.

Nothing is exchanged between jobs, so that one that fails is a line in the result, and not the end of the others.
"""

import contextlib
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from ..errors import NotAvailable
from ..validate import check_choice, check_count, check_positive
from .silos import told

ENGINES = ("processes", "ray")
DIED = "its process died"
LATE = "it did not end within {:g} seconds, and its process was ended"
PATIENCE = 0.5


class Outcome(NamedTuple):
    """What came of one job.

    Parameters
    ----------
    setting
        What the job was given.
    result
        What it returned, None if it failed.
    error
        In words; None if it did not fail.
    attempts
        Times that it was begun.
    seconds
        Wall time of the last attempt.
    """

    setting: Any
    result: Any
    error: str | None
    attempts: int
    seconds: float


def sweep(
    job: Callable[[Any], Any],
    settings: Iterable[Any],
    *,
    engine: str = "processes",
    num_workers: int | None = None,
    attempts: int = 2,
    timeout: float | None = None,
    done: Callable[[int, Outcome], None] | None = None,
    options: dict[str, Any] | None = None,
) -> list[Outcome]:
    """Call ``job(setting)`` for each setting, several at a time.

    Parameters
    ----------
    job
        A function that pickles (of a module). For the same result whenever and wherever it runs, all it depends on is
        in its setting, a key included.
    settings
        One per job.
    engine
        ``"processes"``: spawned once, never forked, each doing one job after the other; call it below
        ``if __name__ == "__main__":``. ``"ray"``: tasks of a Ray cluster (extra ``pushforward[ray]``).
    num_workers
        Processes, at most one per job; by default one per core. Of Ray, jobs at a time; by default as many as it has
        room for.
    attempts
        How often a job is begun whose process dies or is late. One that raises is not tried again.
    timeout
        Seconds for a job; None for any time.
    done
        Called in this process as jobs end, with the number of the job and its outcome, e.g. to store it.
    options
        Of each Ray task (``num_cpus``, ``num_gpus``, ``resources``, ``runtime_env``, …).

    Returns
    -------
    list of Outcome
        In the order of the settings.

    Raises
    ------
    InvalidArgument
        Another engine, or a number that is not positive.
    NotAvailable
        Ray is not installed.
    """
    check_choice("engine", engine, ENGINES)
    settings, attempts = list(settings), check_count("attempts", attempts)
    if timeout is not None:
        check_positive("timeout", timeout)
    if num_workers is not None:
        check_count("num_workers", num_workers)
    found: dict[int, Outcome] = {}
    run = _by_processes if engine == "processes" else _by_ray
    for number, outcome in run(job, settings, num_workers, attempts, timeout, options or {}):
        found[number] = outcome
        if done is not None:
            done(number, outcome)
    return [found[number] for number in range(len(settings))]


class _Busy(NamedTuple):
    """A job on its way."""

    number: int
    begun: float


def _by_processes(
    job: Callable, settings: list, num_workers: int | None, attempts: int, timeout: float | None, options: dict
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes as they come, from processes of this machine."""
    del options
    context = multiprocessing.get_context("spawn")
    waiting, tried = deque(range(len(settings))), [0] * len(settings)
    room = min(num_workers or os.cpu_count() or 1, max(len(settings), 1))
    idle: list[tuple[Any, Connection]] = []
    busy: dict[Connection, tuple[Any, _Busy]] = {}

    def outcome(task: _Busy, result: Any, error: str | None) -> tuple[int, Outcome]:
        seconds = time.monotonic() - task.begun
        return task.number, Outcome(settings[task.number], result, error, tried[task.number], seconds)

    def worker() -> tuple[Any, Connection]:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def lost(pipe: Connection, reason: str) -> tuple[int, Outcome] | None:
        """End a worker; its job waits again, or has failed."""
        process, task = busy.pop(pipe)
        pipe.close()
        process.kill()
        process.join()
        if tried[task.number] < attempts:
            waiting.append(task.number)
            return None
        return outcome(task, None, reason)

    try:
        while waiting or busy:
            while waiting and len(busy) < room:
                process, pipe = idle.pop() if idle else worker()
                number = waiting.popleft()
                tried[number] += 1
                busy[pipe] = process, _Busy(number, time.monotonic())
                with contextlib.suppress(BrokenPipeError, ConnectionError):  # it is dead, which its pipe tells below
                    pipe.send(settings[number])
            ended: list[tuple[int, Outcome] | None] = []
            for ready in wait(list(busy), PATIENCE):
                pipe: Any = ready
                try:
                    result, error = pipe.recv()
                except (EOFError, OSError):
                    ended.append(lost(pipe, DIED))
                    continue
                process, task = busy.pop(pipe)
                idle.append((process, pipe))
                ended.append(outcome(task, result, error))
            if timeout is not None:
                late = [p for p, (_, task) in busy.items() if time.monotonic() - task.begun > timeout]
                ended.extend(lost(pipe, LATE.format(timeout)) for pipe in late)
            yield from (one for one in ended if one is not None)
    finally:
        for process, pipe in [*idle, *((process, pipe) for pipe, (process, _) in busy.items())]:
            pipe.close()
            process.kill()
            process.join()


def _serve(pipe: Connection, job: Callable) -> None:
    """A worker: do what is asked until the pipe is closed."""
    while True:
        try:
            setting = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            answer = (job(setting), None)
        except Exception as error:
            answer = (None, told(error))
        try:
            pipe.send(answer)
        except Exception as error:  # a result that does not pickle
            pipe.send((None, f"its result cannot be sent: {told(error)}"))


def _by_ray(
    job: Callable, settings: list, num_workers: int | None, attempts: int, timeout: float | None, options: dict
) -> Iterator[tuple[int, Outcome]]:
    """Outcomes as they come, from a Ray cluster."""
    try:
        import ray
    except ImportError:
        raise NotAvailable(
            f"engine='ray' needs Ray, which is not installed, for {len(settings)} jobs: pip install 'pushforward[ray]'."
        ) from None
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False)
    task = ray.remote(job).options(**{"max_retries": 0} | options)
    waiting, tried = deque(range(len(settings))), [0] * len(settings)
    busy: dict[Any, _Busy] = {}
    try:
        while waiting or busy:
            while waiting and (num_workers is None or len(busy) < num_workers):
                number = waiting.popleft()
                tried[number] += 1
                busy[task.remote(settings[number])] = _Busy(number, time.monotonic())
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=PATIENCE)
            over = [] if timeout is None else [a for a, t in busy.items() if time.monotonic() - t.begun > timeout]
            for answer in [*ready, *(late for late in over if late not in ready)]:
                one = busy.pop(answer)
                result, error, again = None, None, False
                try:
                    if answer in ready:
                        result = ray.get(answer)
                    else:
                        ray.cancel(answer, force=True)
                        error, again = LATE.format(timeout), True
                except ray.exceptions.RayTaskError as raised:
                    error = told(raised.cause) if isinstance(raised.cause, Exception) else str(raised)
                except ray.exceptions.RayError as raised:
                    error, again = f"{DIED} ({type(raised).__name__})", True
                if again and tried[one.number] < attempts:
                    waiting.append(one.number)
                    continue
                seconds = time.monotonic() - one.begun
                yield one.number, Outcome(settings[one.number], result, error, tried[one.number], seconds)
    finally:
        for answer in busy:
            ray.cancel(answer, force=True)
        if ours:
            ray.shutdown()
