"""Checkpoints: one file each, complete or absent, the last two kept.

A file is an ``.npz`` of plain arrays, with an index in JSON and a SHA-256 of all of it; loading runs no code.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument
from .layout import FORMAT, dump, from_json, sync_path, to_json

_KEPT = 2
_NATIVE = "biufcSU"  # kinds that .npy names itself; others (bfloat16, float8) are kept as their bytes


def write(directory: Path, meta: Any, arrays: dict[str, Any]) -> Path:
    """Write the next checkpoint of ``directory``, wait until it is on the disk, then drop all but the last two.

    Parameters
    ----------
    meta
        Anything that JSON can hold; NaN and infinities included.
    arrays
        Arrays by name, of any shape (0-d included) and any dtype but object.
    """
    directory.mkdir(parents=True, exist_ok=True)
    previous = files(directory)
    number = int(previous[0].stem) + 1 if previous else 0
    final = directory / f"{number:08d}.npz"
    save(final, meta, arrays)
    for old in previous[_KEPT - 1 :]:
        old.unlink(missing_ok=True)
    return final


def save(final: Path, meta: Any, arrays: dict[str, Any]) -> None:
    """Write one file, whole or not at all, and wait until it is on the disk."""
    values = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    for name, value in values.items():
        if value.dtype.hasobject:
            raise InvalidArgument(f"checkpoint array {name!r} has dtype {value.dtype}; objects cannot be stored.")
    index = dump(
        {
            "format": FORMAT,
            "meta": to_json(meta),
            "arrays": [[name, value.dtype.name, list(value.shape)] for name, value in values.items()],
        }
    )
    # Members are numbered because names are the caller's: "file" and "a/b" are fine as array names, not as members.
    members = {f"a{i}": v if v.dtype.kind in _NATIVE else _raw(v) for i, v in enumerate(values.values())}
    members["index"] = np.frombuffer(index, np.uint8)
    members["sha256"] = np.frombuffer(_digest(index, values.values()), np.uint8)

    pending = final.with_name("pending")
    try:
        with open(pending, "wb") as stream:
            np.savez(stream, **members)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(pending, final)
    except OSError:
        pending.unlink(missing_ok=True)
        raise
    sync_path(final.parent)


def read(file: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """Meta and arrays of a checkpoint; ``ValueError`` with the reason if the file is not as it was written."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
        index = members["index"].tobytes()
        listing = json.loads(index)
        arrays = {
            name: _typed(members[f"a{i}"], dtype, tuple(shape))
            for i, (name, dtype, shape) in enumerate(listing["arrays"])
        }
        if _digest(index, arrays.values()) != members["sha256"].tobytes():
            raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        raise
    except Exception as error:  # garbage makes zipfile, NumPy and json raise nearly anything
        raise ValueError(f"{file.name} is damaged ({error})") from error
    if listing["format"] != FORMAT:
        raise ValueError(f"{file.name} has format {listing['format']}, this version reads format {FORMAT}")
    return from_json(listing["meta"]), arrays


def files(directory: Path) -> list[Path]:
    """The checkpoints of ``directory``, newest first."""
    return sorted((f for f in directory.glob("*.npz") if f.stem.isdigit()), reverse=True)


def _raw(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _typed(array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if array.dtype.kind in _NATIVE and array.dtype.name == dtype and array.shape == shape:
        return array
    import ml_dtypes

    return array.view(np.dtype(getattr(ml_dtypes, dtype))).reshape(shape)


def _digest(index: bytes, arrays: Any) -> bytes:
    digest = hashlib.sha256(index)
    for array in arrays:
        digest.update(_raw(array).data)
    return digest.digest()
