"""How a store lies on disk: zarr v3 metadata, chunks and JSON, and files that appear whole or not at all.

zarr-python takes 40 ms to write and consolidate a block of twenty variables (measured with 3.4; resizing and
consolidating cost as much as the data), these few functions take 5 ms. The layout is the part of the zarr v3
specification that needs no library: regular chunks, codecs ``bytes`` and ``crc32c``. Draws of floats hardly compress;
the checksum makes a damaged chunk an error instead of a wrong number. All reading for users goes through xarray.

Source: Zarr core specification, version 3, https://zarr-specs.readthedocs.io/en/latest/v3/core/
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument

FORMAT = 1
MARKER = "pushforward"  # attribute of the root group that tells a store of ours from any other zarr group
CHECKSUM_BYTES = 4
_TAG = "__float__"


# -- JSON -------------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """``value`` as JSON can hold it: NumPy values become plain ones, NaN and infinities ``{"__float__": "nan"}``.

    Raises
    ------
    InvalidArgument
        For a value that JSON has no form for, or a key that is not a string.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_TAG: str(float(value))}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidArgument(f"attrs has the key {key!r}; keys must be strings, as in JSON.")
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    raise InvalidArgument(
        f"attrs has a value of type {type(value).__name__}, {value!r}; use strings, numbers, lists, dicts or None."
    )


def from_json(value: Any) -> Any:
    """The inverse of `to_json` (tuples come back as lists)."""
    if isinstance(value, dict):
        return float(value[_TAG]) if value.keys() == {_TAG} else {k: from_json(v) for k, v in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value


def dump(value: Any) -> bytes:
    """JSON text of a value made of plain ones; NaN is refused rather than written as JSON that nobody can read."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


# -- arrays -----------------------------------------------------------------------------------------------------------


def storable(name: str, values: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """``values`` as an array of a data type that zarr has, and the attributes by which xarray decodes it.

    Dates become whole nanoseconds, strings fixed-length Unicode, small floats of machine learning float32.
    """
    array = np.asarray(values)
    if array.dtype.kind == "O" or array.dtype.kind == "T":
        if not all(isinstance(item, str) for item in array.flat):
            raise InvalidArgument(f"{name} holds Python objects; use numbers, strings or dates.")
        array = array.astype(np.str_)
    if array.dtype.kind == "M":
        units = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        return array.astype("datetime64[ns]").astype(np.int64), units
    if array.dtype.kind == "m":
        return array.astype("timedelta64[ns]").astype(np.int64), {"units": "nanoseconds", "dtype": "timedelta64[ns]"}
    if array.dtype.kind == "U":
        return array.astype(f"<U{max(1, array.dtype.itemsize // 4)}"), {}
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 and its like, exactly representable
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 8 * (1 + (array.dtype.kind == "c")):
        raise InvalidArgument(f"{name} has dtype {array.dtype}, which zarr cannot hold; convert it first.")
    return array.astype(array.dtype.newbyteorder("<"), copy=False), {}


def array_node(
    shape: tuple[int, ...],
    chunk_shape: tuple[int, ...],
    dtype: np.dtype,
    dims: Iterable[str],
    attributes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """zarr.json of an array."""
    dtype = np.dtype(dtype)
    missing = {"f": "NaN", "c": ["NaN", "NaN"], "b": False, "U": ""}.get(dtype.kind, 0)
    strings = {"name": "fixed_length_utf32", "configuration": {"length_bytes": dtype.itemsize}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": strings if dtype.kind == "U" else dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in chunk_shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": missing,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "attributes": attributes or {},
        "dimension_names": list(dims),
    }


def group_node(attributes: dict[str, Any], members: dict[str, Any] | None = None) -> dict[str, Any]:
    """zarr.json of a group; with ``members`` it carries their metadata, so that one file decides what is seen."""
    node: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    if members is not None:
        node["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": members}
    return node


def block_length(draw_bytes: int) -> int:
    """Number of draws in one chunk: about 1 MB, which reads fast and is not too much to rewrite while it fills."""
    return min(1_000, max(1, (1 << 20) // max(1, draw_bytes)))


def node_dtype(node: dict[str, Any]) -> np.dtype:
    """NumPy dtype of an array, from its zarr.json."""
    name = node["data_type"]
    return np.dtype(name if isinstance(name, str) else f"<U{name['configuration']['length_bytes'] // 4}")


def chunk_shape(node: dict[str, Any]) -> tuple[int, ...]:
    """Shape of one chunk of an array, from its zarr.json."""
    return tuple(node["chunk_grid"]["configuration"]["chunk_shape"])


def chunk_bytes(node: dict[str, Any]) -> int:
    """Size of one chunk's file; every chunk is full-sized, the last one padded."""
    return math.prod(chunk_shape(node)) * node_dtype(node).itemsize + CHECKSUM_BYTES


def chunk_name(index: Iterable[int]) -> str:
    """File name of the chunk at this place of the grid."""
    return ".".join(["c", *map(str, index)])


def encode_chunk(data: np.ndarray) -> bytes:
    """A chunk's file: the numbers in C order, little endian, then their CRC-32C."""
    raw = data.astype(data.dtype.newbyteorder("<"), order="C", copy=False).tobytes()
    return raw + _crc(raw)


def decode_chunk(raw: bytes, node: dict[str, Any]) -> np.ndarray:
    """The inverse of `encode_chunk`, a writable array; ``ValueError`` if the checksum or the size is wrong."""
    if len(raw) != chunk_bytes(node) or not intact(raw):
        raise ValueError("size or checksum")
    return np.frombuffer(raw[:-CHECKSUM_BYTES], node_dtype(node)).reshape(chunk_shape(node)).copy()


def intact(raw: bytes) -> bool:
    """Whether the checksum of a chunk's file is that of its numbers."""
    return _crc(np.frombuffer(raw, np.uint8)[:-CHECKSUM_BYTES]) == raw[-CHECKSUM_BYTES:]


def _crc(raw: Any) -> bytes:
    import google_crc32c  # what zarr itself checks with

    return struct.pack("<I", google_crc32c.value(raw))


# -- files ------------------------------------------------------------------------------------------------------------


class Disk:
    """The files of one store: each is replaced as a whole, and made durable in one go where that matters.

    Parameters
    ----------
    path
        Directory of the store. There is one writer (see `Lock`), so one name for the unfinished file is enough, and a
        killed writer leaves at most one behind.
    """

    def __init__(self, path: Path):
        self.path = path
        self._unsynced: set[str] = set()  # names since the last `sync`

    def write(self, name: str, data: bytes, durable: bool = False) -> None:
        """Replace the file ``name``: whoever opens it sees the old or the new content, never a part."""
        pending, file = self.path / ".pending", self.path / name
        try:
            with open(pending, "wb") as stream:
                stream.write(data)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            try:
                os.replace(pending, file)
            except FileNotFoundError:
                file.parent.mkdir(parents=True, exist_ok=True)
                os.replace(pending, file)
        except OSError:
            pending.unlink(missing_ok=True)  # give the space of the part back
            raise
        if not durable:
            self._unsynced.add(name)

    def sync(self) -> None:
        """Wait until everything written so far would survive a power failure."""
        for name in self._unsynced | {os.path.dirname(name) for name in self._unsynced} | {""}:
            sync_path(self.path / name)
        self._unsynced.clear()


def sync_path(path: Path) -> None:
    """`os.fsync` a file or a directory by name; a file since deleted needs none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):  # Windows cannot open directories, and needs no such call
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
