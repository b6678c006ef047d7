"""Many fits of one shape, one after the other in this process: compiled once, a failed one named and not fatal.

The compiled programs are shared because what differs from fit to fit is in leaves of the target (see
`infer.target.altered`), never because anything here knows about it.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..distributed.pool import told
from ..errors import InvalidArgument, UnsupportedTarget
from ..run.observe import Progress, Seen
from .ledger import Ledger

if TYPE_CHECKING:
    from ..posterior import Posterior


class Done(NamedTuple):
    """What came of one job.

    Parameters
    ----------
    name
        Its name.
    value
        What it returned, None if it failed.
    error
        In words; None if it did not fail.
    seconds
        Wall time.
    """

    name: str
    value: Any
    error: str | None
    seconds: float


def run_jobs(
    jobs: Iterable[tuple[str, Callable[[], Any]]],
    *,
    total: int,
    what: str = "fits",
    ledger: Ledger | None = None,
    progress: bool | None = None,
    fatal: tuple[type[Exception], ...] = (InvalidArgument, UnsupportedTarget),
) -> list[Done]:
    """Do the jobs, in their order.

    Parameters
    ----------
    jobs
        Name and function of each. With a ledger its value must be what JSON holds, and arrays come back as lists.
    total
        Their number, for the bar.
    what
        Their name in the bar.
    ledger
        Where they are recorded; those it has are not done again.
    progress
        False silences the bar.
    fatal
        What is raised if the first job that is done ends with it: then what was asked for is wrong, and not this fit.

    Returns
    -------
    list of Done
        Of all jobs; after Ctrl-C, of those done until then.

    """
    bar, found, begun = Progress(progress), [], time.monotonic()
    first = True
    try:
        for name, job in jobs:
            if ledger is not None and name in ledger.records:
                record = ledger.records[name]
                found.append(Done(name, record["value"], record["error"], record["seconds"]))
                continue
            since = time.monotonic()
            try:
                value, error = job(), None
            except KeyboardInterrupt:
                break
            except Exception as raised:
                if first and isinstance(raised, fatal):
                    raise
                value, error = None, told(raised)
            first = False
            done = Done(name, value, error, time.monotonic() - since)
            if ledger is not None:
                ledger.append(done._asdict())
            found.append(done)
            rate = len(found) / max(time.monotonic() - begun, 1e-9)
            failed = sum(d.error is not None for d in found)
            bar.show(Seen(what, len(found), total, rate, {"failed": failed}))
    finally:
        bar.close()
    return found


def uninterrupted(posterior: "Posterior") -> "Posterior":
    """The posterior of a fit; `fit` returns a partial one after Ctrl-C, which ends all jobs here."""
    if posterior.record.get("stopped") == "interrupted":
        raise KeyboardInterrupt
    return posterior
