"""Processes of one job on this machine: started, watched, ended together, and started again."""

import dataclasses
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS = 0.1
GRACE_SECONDS = 3.0
SAVE_SECONDS = 60.0
TAIL_LINES = 20
INTERRUPTED, TERMINATED = 130, 143


@dataclasses.dataclass(frozen=True)
class Job:
    """What to start.

    Parameters
    ----------
    command
        Program and arguments, the same for all.
    processes, devices_per_process
        How many, and CPU devices of each (None: as JAX finds them).
    restarts
        How often all are started again after one has failed.
    timeout, heartbeat
        See `pushforward.distributed.initialize`.
    port
        Where process 0 listens; None for a free one.
    logs
        Directory for the logs of processes 1, 2, …; None for one that is removed.
    """

    command: tuple[str, ...]
    processes: int
    devices_per_process: int | None = None
    restarts: int = 0
    timeout: float = 60.0
    heartbeat: float = 60.0
    port: int | None = None
    logs: Path | None = None

    def environment(self, rank: int, port: int) -> dict[str, str]:
        """Of one process."""
        own = {
            "PUSHFORWARD_COORDINATOR": f"127.0.0.1:{port}",
            "PUSHFORWARD_NUM_PROCESSES": str(self.processes),
            "PUSHFORWARD_PROCESS_ID": str(rank),
            "PUSHFORWARD_TIMEOUT": str(self.timeout),
            "PUSHFORWARD_HEARTBEAT": str(self.heartbeat),
            "PYTHONUNBUFFERED": "1",
        }
        if self.devices_per_process is not None:
            own["JAX_NUM_CPU_DEVICES"] = str(self.devices_per_process)
        # Through a proxy the processes would not find each other.
        for name in ("no_proxy", "NO_PROXY") if any(k.lower().endswith("_proxy") for k in os.environ) else ():
            own[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost"]))
        return {**os.environ, **own}


class _Ended(Exception):
    """Ctrl-C or SIGTERM came to the launcher."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def supervise(job: Job, tell: Callable[[str], None]) -> int:
    """Run a job to its end; the exit status: 0, that of the process that failed first, 130 or 143.

    A process that dies by signal s counts as 128 + s, as in shells.
    """
    previous = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            logs = Path(folder) if job.logs is None else job.logs
            logs.mkdir(parents=True, exist_ok=True)
            for attempt in range(job.restarts + 1):
                status = _once(job, logs, tell)
                if status in (0, INTERRUPTED, TERMINATED) or attempt == job.restarts:
                    return status
                tell(f"starting all {job.processes} processes again ({attempt + 1} of {job.restarts})")
            return status
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _once(job: Job, logs: Path, tell: Callable[[str], None]) -> int:
    port = free_port() if job.port is None else job.port
    started: list[subprocess.Popen] = []
    paths = [logs / f"process-{rank}.log" for rank in range(job.processes)]
    try:
        for rank, path in enumerate(paths):
            # The others are silent on the terminal; all of process 0 is seen, its errors kept for the end as well.
            with path.open("wb") as log:
                started.append(
                    subprocess.Popen(
                        job.command,
                        env=job.environment(rank, port),
                        stdin=subprocess.DEVNULL,
                        stdout=None if rank == 0 else log,
                        stderr=None if rank == 0 else subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C comes to them once, from here
                    )
                )
        return _watch(job, started, paths, tell)
    except _Ended as ended:
        tell(f"ending {job.processes} processes after {signal.Signals(ended.number).name}")
        try:
            _end_all(started, ended.number, SAVE_SECONDS)
        except _Ended:
            tell("ending them at once")
        return INTERRUPTED if ended.number == signal.SIGINT else TERMINATED
    finally:
        _end_all(started, signal.SIGKILL)


def _watch(job: Job, started: list[subprocess.Popen], paths: list[Path], tell: Callable[[str], None]) -> int:
    """Until all are done, or one has failed; a death is seen here within a second, whatever the heartbeat."""
    while True:
        codes = [process.poll() for process in started]
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            # One that was killed is the cause; those that lost it fail after it, in either order of our looking.
            rank = min(failed, key=lambda rank: (not _by_kill(codes[rank]), rank))
            code = codes[rank]
            assert code is not None
            what = f"was ended by {_name(-code)}" if code < 0 else f"ended with status {code}"
            tell(f"process {rank} of {job.processes} {what}; the others are ended")
            _end_all(started, signal.SIGTERM)
            for line in _tail(paths[rank]):
                tell(f"[{rank}] {line}")
            return 128 - code if code < 0 else code
        if all(code == 0 for code in codes):
            return 0
        time.sleep(LOOK_SECONDS)


def _by_kill(code: int | None) -> bool:
    return code is not None and code < 0 and -code != signal.SIGABRT


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end_all(started: list[subprocess.Popen], number: int, seconds: float = GRACE_SECONDS) -> None:
    """Ask all to end, and make them after a while."""
    running = [process for process in started if process.poll() is None]
    for process in running:
        process.send_signal(number)
    end = time.monotonic() + seconds
    for process in running:
        try:
            process.wait(max(end - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-TAIL_LINES:]


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


def _end(number: int, frame: object) -> None:
    raise _Ended(number)
