"""Schedules of a Hamiltonian warm-up, as data: warm-ups of all lengths and sampling share one compiled program."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

MAX_WINDOWS = 64


class Schedule(NamedTuple):
    """When the metric is learned: arrays of fixed sizes, so that warm-ups of all lengths share a program.

    Parameters
    ----------
    start, stop
        The metric's estimators see the draws of iterations ``start <= t < stop``.
    ends
        Last iteration of each window, int array of shape (MAX_WINDOWS,), padded with -1; the metric is updated there.
    long_from
        The first iteration of the long windows.
    adapting
        False in the sampling stage: step size (its average) and metric are frozen.
    """

    start: Any
    stop: Any
    ends: Any
    long_from: Any
    adapting: Any

    def age(self, t: Any) -> Any:
        """Of the window that holds iteration ``t``: 0 the first one, 1 another short one, 2 a long one."""
        return jnp.where(t >= self.long_from, 2, jnp.where(t > self.ends[0], 1, 0))


def window_schedule(num_warmup: int, *, first: int = 75, window: int = 25, last: int = 50) -> Schedule:
    """Stan's warm-up: a fast interval, slow windows that double in size, a fast interval.

    Parameters
    ----------
    num_warmup
        Length of the warm-up in iterations.
    first, window, last
        Length of the first interval, of the first window, and of the last interval; shrunk in proportion
        (15 %, 75 %, 10 %) where the warm-up is shorter than their sum. Below 20 iterations only the step size adapts.
    """
    if num_warmup < 20:
        return step_size_schedule(num_warmup)
    if first + window + last > num_warmup:
        first, last = int(0.15 * num_warmup), int(0.1 * num_warmup)
        window = num_warmup - first - last
    stop, ends, begin = num_warmup - last, [], first
    while begin < stop:
        # A window whose successor, twice as long, would not fit takes all that is left.
        size = window if 3 * window <= stop - begin else stop - begin
        begin += size
        ends.append(begin - 1)
        window *= 2
    return _schedule(first, stop, ends)


def growing_schedule(num_warmup: int, *, early: float = 0.05, window: int = 30, last: float = 0.15) -> Schedule:
    """Windows of ten draws at once, then windows that grow by half, then the step size alone, as nutpie's.

    Seyboldt, Carlson & Carpenter (2026), section 3.2: gradients carry enough information for a diagonal metric after
    ten draws, so that little is spent in a bad one.

    Parameters
    ----------
    num_warmup
        Length of the warm-up in iterations.
    early, window, last
        Share of the windows of ten, length of the first longer window, share of the last interval.
    """
    if num_warmup < 20:
        return step_size_schedule(num_warmup)
    stop = num_warmup - max(round(last * num_warmup), 1)
    early_stop = min(round(early * num_warmup), stop)
    step = max(10, -(-early_stop // (MAX_WINDOWS - 20)))
    ends = list(range(step - 1, early_stop, step))
    begin, size = (ends[-1] + 1 if ends else 0), float(window)
    long_from = begin
    while begin < stop:
        width = int(size) if begin + 2.5 * size <= stop else stop - begin
        begin += width
        ends.append(begin - 1)
        size *= 1.5
    return _schedule(0, stop, ends)._replace(long_from=np.int32(long_from))


def step_size_schedule(num_warmup: int) -> Schedule:
    """A warm-up that leaves the metric as it is."""
    return _schedule(num_warmup, num_warmup, [])


def split_schedule(schedule: Schedule, at: int) -> tuple[Schedule, Schedule]:
    """The schedule up to iteration ``at`` and from there on, each counting from 0."""
    shift = np.int32(at)
    ends = np.asarray(schedule.ends)
    late = np.where(ends >= at, ends - at, -1).astype(np.int32)
    later = schedule._replace(
        start=np.maximum(schedule.start - shift, 0).astype(np.int32), stop=np.int32(schedule.stop - shift),
        ends=late, long_from=np.int32(schedule.long_from - shift),
    )  # fmt: skip
    return schedule, later


def frozen() -> Schedule:
    """No warm-up: step size and metric stay."""
    return _schedule(0, 0, [])._replace(adapting=np.bool_(False))


def _schedule(start: int, stop: int, ends: list[int]) -> Schedule:
    padded = np.full(MAX_WINDOWS, -1, np.int32)
    padded[: len(ends)] = ends
    return Schedule(np.int32(start), np.int32(stop), padded, np.int32(start), np.bool_(True))
