"""The store of a run in several processes: process 0 writes it, the others only read it when it is done.

All processes see the same file system at its path. What goes wrong with the store in process 0 ends all of them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed.processes import first, is_first
from ..errors import NotAvailable


class StoreElsewhere:
    """What a run writes to where another process writes the store.

    Parameters
    ----------
    path
        Of the store.
    attrs
        Of the store, for who resumes it.
    """

    def __init__(self, path: Path, attrs: dict[str, Any]) -> None:
        self.path, self.attrs = path, attrs

    def expect(self, num_draws: int) -> None:
        """Nothing: process 0 does it."""

    def append(self, group: str, arrays: Mapping[str, Any]) -> None:
        """Nothing: process 0 does it."""

    def flush(self) -> None:
        """Nothing: process 0 does it."""

    def truncate(self, group: str, count: int) -> None:
        """Nothing: process 0 does it."""

    def write_group(self, group: str, arrays: Mapping[str, Any], **options: Any) -> None:
        """Nothing: process 0 does it."""

    def update_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Nothing: process 0 does it."""

    def arrays(self, group: str) -> dict[str, np.ndarray]:
        """Process 0 alone looks at draws."""
        raise NotAvailable(f"The draws of {group!r} are in the store {self.path}, which process 0 writes; ask it.")

    def load_checkpoint(self) -> tuple[Any, dict[str, np.ndarray]]:
        """The last checkpoint."""
        from ..store import latest_checkpoint

        return latest_checkpoint(self.path)


@contextmanager
def create_store(path: str | os.PathLike, **options: Any) -> Iterator[Any]:
    """A new store: open in process 0, a `StoreElsewhere` in the others."""
    from ..store import RunStore

    made = first(lambda: RunStore.create(path, **options))
    if made is None:
        yield StoreElsewhere(Path(path), dict(options["attrs"]))
        return
    with made:
        yield made


@contextmanager
def open_store(path: str | os.PathLike) -> Iterator[Any]:
    """A store to go on with; process 0 holds its lock."""
    from ..store import RunStore, open_attrs

    made = first(lambda: RunStore.open(path))
    if is_first():
        with made:
            yield made
    else:
        yield StoreElsewhere(Path(path), open_attrs(path))
