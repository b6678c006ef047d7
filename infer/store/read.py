"""What can be read of a store without the right to write to it."""

import os
from pathlib import Path
from typing import Any

from . import checkpoint as checkpoints
from .integrity import read_root
from .layout import MARKER, from_json


def open_attrs(path: str | os.PathLike) -> dict[str, Any]:
    """The record that a store was made with; raises `StoreError` if there is no store or it is damaged."""
    attributes, _ = read_root(Path(path))
    return {key: from_json(value) for key, value in attributes.items() if key != MARKER}


def has_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a store has a checkpoint, intact or not."""
    return bool(checkpoints.files(Path(path) / "checkpoint"))


def latest_checkpoint(path: str | os.PathLike) -> tuple[Any, dict[str, Any]] | None:
    """Meta and arrays of the last intact checkpoint of a store, or None; see `RunStore.load_checkpoint`."""
    for file in checkpoints.files(Path(path) / "checkpoint"):
        try:
            record, arrays = checkpoints.read(file)
        except ValueError:
            continue
        return record["meta"], arrays
    return None
