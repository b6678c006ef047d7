"""Ctrl-C and SIGTERM as flags while a run goes on."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Signals:
    """Whether the user or the system asked for the end.

    A flag instead of an exception, which could fall between a chunk and the taking over of its states.
    """

    def __init__(self) -> None:
        self.interrupted = self.terminated = False

    @property
    def reason(self) -> str | None:
        """Why the run must stop, as its record has it."""
        return "terminated" if self.terminated else "interrupted" if self.interrupted else None

    @contextmanager
    def caught(self, *, terminate: bool) -> Iterator[None]:
        """In this scope Ctrl-C sets a flag (pressed again, it ends the run at once), and so does SIGTERM if asked.

        Only the main thread may set handlers; on others nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(signum: int, frame: Any) -> None:
            if self.interrupted:
                signal.default_int_handler(signum, frame)
            self.interrupted = True

        def end(signum: int, frame: Any) -> None:
            del signum, frame
            self.terminated = True

        previous = {}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            previous[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
        if terminate:
            previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
