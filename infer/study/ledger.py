"""`Ledger`: an append-only record of finished jobs, one line of JSON each, that a kill cannot spoil.

A folder with ``header.json``, which says what the jobs are of, and ``jobs.jsonl``. A line counts once it is whole and
on disk; what a kill left of another is cut off when the ledger is opened. Whoever opens it holds its lock.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument, StoreError
from ..store.lock import Lock

FORMAT = 1
HEADER, JOBS = "header.json", "jobs.jsonl"


class Ledger:
    """Records of finished jobs by name, in a folder.

    Parameters
    ----------
    path
        The folder; made where it does not exist.
    what
        ``"calibration"`` or ``"study"``.
    identity
        What the jobs are of, as JSON: the ledger of other ones is refused, with the entry that differs.
    overwrite
        Begin anew.

    Raises
    ------
    StoreError
        The folder holds something else, a ledger of another version or of other jobs, or another process writes it.
    """

    def __init__(
        self, path: str | os.PathLike, what: str, identity: dict[str, Any], *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InvalidArgument(f"store is the file {str(self.path)!r}; give the name of a folder.")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / HEADER).exists():
            raise StoreError(f"{self.path} is a folder with other things in it; choose another path.")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path)
        header = {"format": FORMAT, "what": what, "identity": _plain(identity)}
        if overwrite or not (self.path / HEADER).exists():
            (self.path / JOBS).unlink(missing_ok=True)
            _write(self.path / HEADER, json.dumps(header, indent=1))
        else:
            _check(read_header(self.path), header, self.path)
        self.records = {record["name"]: record for record in _whole_lines(self.path / JOBS)}
        self._file = open(self.path / JOBS, "a", encoding="utf-8")  # noqa: SIM115  - closed by `close`

    def append(self, record: dict[str, Any]) -> None:
        """Add the record of a job, a dict with its ``"name"``; on disk when this returns."""
        record = _plain(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records[record["name"]] = record

    def close(self) -> None:
        """Let others write."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_header(path: Path) -> dict[str, Any]:
    """The header of a ledger.

    Raises
    ------
    StoreError
        There is none, or it was written by another version.
    """
    try:
        header = json.loads((path / HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} has no readable {HEADER} ({error}); give the folder of a study.") from None
    if header.get("format") != FORMAT:
        raise StoreError(
            f"{path} has the format {header.get('format')!r}, and this version of pushforward writes {FORMAT}; use the "
            f"version that wrote it, or begin anew with overwrite=True."
        )
    return header


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a ledger without taking its lock: those that are whole now."""
    return list(_lines(path / JOBS))


def _check(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    if found["what"] != wanted["what"]:
        raise StoreError(f"{path} holds a {found['what']}, not a {wanted['what']}; choose another path.")
    for name in {**wanted["identity"], **found["identity"]}:
        there, here = found["identity"].get(name), wanted["identity"].get(name)
        if there != here:
            raise StoreError(
                f"{path} was begun with {name} = {_short(there)}, and now it is {_short(here)}; choose another path, "
                f"or begin anew with overwrite=True."
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a ledger that is about to be written; what comes after them is cut off."""
    if not path.exists():
        return
    records = list(_lines(path))
    size = sum(length for length, _ in _sized(path))
    if size < path.stat().st_size:
        os.truncate(path, size)
    yield from records


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    yield from (record for _, record in _sized(path))


def _sized(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Length in bytes and record of each line, up to the first that is not whole."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield len(line), json.loads(line)
            except ValueError:
                return


def _write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    with open(fresh, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _plain(value: Any) -> Any:
    """As JSON holds it: arrays as lists, numbers of NumPy as Python's."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
