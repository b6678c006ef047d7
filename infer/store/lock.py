"""One writer at a time."""

import errno
import os
from pathlib import Path
from typing import IO

from ..errors import StoreError


class Lock:
    """The right to write to a store, held by one open file until `release` or the end of the process.

    The kernel keeps the lock (``flock``), so that it ends with its holder, SIGKILL included, and no stale file can lock
    anyone out; the process id in the file is for the message only. File systems without locks are used without.

    Raises
    ------
    StoreError
        If another process, or another `RunStore` of this one, holds it.
    """

    def __init__(self, path: Path):
        file = open(path / ".lock", "a+")  # noqa: SIM115  - held open on purpose
        try:
            if not _take(file):
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise StoreError(
                    f"{path} is being written by the process {holder}; wait for it, end it, or choose another path."
                )
        except BaseException:
            file.close()
            raise
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file: IO[str] | None = file

    def release(self) -> None:
        """Let others write; the file stays, since deleting it could take it away under a newcomer."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:  # a run that failed and was dropped must not lock its own session out
        if hasattr(self, "_file"):
            self.release()


def _take(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True
