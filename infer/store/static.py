"""Arrays that are written once."""

import math
from typing import Any

import numpy as np

from .layout import Disk, array_node, block_length, chunk_name, dump, encode_chunk

_CHUNK_BYTES = 4 << 20


def write_static(
    disk: Disk, name: str, array: Any, dims: tuple[str, ...], attributes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Write a whole array in chunks along ``draw``, or its first dimension; its metadata.

    Parameters
    ----------
    array
        Anything with shape, dtype and slicing, so that what is read from another store need not fit in memory.
    """
    shape = tuple(array.shape)
    axis = dims.index("draw") if "draw" in dims else 0
    chunk = list(shape)
    if shape:
        one = math.prod(shape) // max(1, shape[axis]) * array.dtype.itemsize
        # Along draw as a stream would: a run saved onto itself keeps its chunks, so that open readers survive.
        chunk[axis] = block_length(one) if "draw" in dims else min(shape[axis], max(1, _CHUNK_BYTES // max(1, one)))
    node = array_node(shape, tuple(chunk), array.dtype, dims, attributes)
    if 0 not in shape:
        for k in range(-(-shape[axis] // chunk[axis]) if shape else 1):
            index = [0] * len(shape)
            block = np.zeros(chunk, array.dtype)
            if shape:
                index[axis] = k
                part = [slice(None)] * len(shape)
                part[axis] = slice(k * chunk[axis], min(shape[axis], (k + 1) * chunk[axis]))
                values = np.asarray(array[tuple(part)])
                fill = [slice(n) for n in values.shape]
                block[tuple(fill)] = values
            else:
                block[...] = np.asarray(array)
            disk.write(f"{name}/{chunk_name(index)}", encode_chunk(block))
    disk.write(f"{name}/zarr.json", dump(node))
    return node
