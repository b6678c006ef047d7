"""Results as rows of one JSON file, one row a line, written as they come: runs are long, and some are killed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Rows:
    """The rows of a file.

    Parameters
    ----------
    path
        The file; it need not exist.
    columns
        What tells rows apart, most important first: a row takes the place of one that is equal in these, and the file
        is in their order. A row without one of them has None there.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self.path, self.columns = path, columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else [])

    def known(self, key: dict[str, Any]) -> bool:
        """Whether there is a row with these entries."""
        return any(all(row.get(name) == value for name, value in key.items()) for row in self)

    def keep(self, row: dict[str, Any]) -> None:
        """Print a row, and write all of them at once or not at all."""
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
        place = lambda found: [found.get(name) for name in self.columns]  # noqa: E731
        rows = [*(other for other in self if place(other) != place(row)), row]
        rows.sort(key=lambda found: [(entry is not None, entry or 0) for entry in map(found.get, self.columns)])
        part = self.path.with_suffix(".part")
        part.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")
        part.replace(self.path)
