"""What can be read of a store without the right to write to it."""

import os
import warnings
from pathlib import Path
from typing import Any

from ..errors import StoreError
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


def read_kept(path: str | os.PathLike, name: str) -> tuple[Any, dict[str, Any]]:
    """Meta and arrays that `RunStore.keep` wrote under a name.

    Raises
    ------
    StoreError
        There are none, or they are damaged.
    """
    try:
        return checkpoints.read(Path(path) / "checkpoint" / f"{name}.npz")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be resumed: what its checkpoints need under the name {name!r} is missing or damaged "
            f"({error}); its draws are readable, the run has to be fitted again."
        ) from error


def latest_checkpoint(path: str | os.PathLike) -> tuple[Any, dict[str, Any]] | None:
    """Meta and arrays of the last intact checkpoint of a store, or None if there is none.

    Raises
    ------
    ValueError
        There are checkpoints, and all are damaged.

    Warns
    -----
    UserWarning
        The last one is damaged, and the one before it is returned.
    """
    damaged: list[str] = []
    for file in checkpoints.files(Path(path) / "checkpoint"):
        try:
            record, arrays = checkpoints.read(file)
        except ValueError as error:
            damaged.append(str(error))
            continue
        if damaged:
            warnings.warn(f"{path}: {damaged[0]}; going on from {file.name}, the one before.", stacklevel=2)
        return record["meta"], arrays
    if damaged:
        raise ValueError("; ".join(damaged))
    return None
