"""The variables of one group that grow along ``draw``."""

import math
from typing import Any

import numpy as np

from ..errors import InvalidArgument, StoreError
from .layout import Disk, array_node, block_length, chunk_name, chunk_shape, decode_chunk, encode_chunk, node_dtype

SAMPLE_DIMS = ("chain", "draw")
_INDEX_DRAWS = 10_000


class Stream:
    """Draws of one group: full blocks go to the disk, of each variable the block that is not full stays in memory.

    A block is one zarr chunk: all chains, up to 1,000 draws or 1 MB. Nothing written here is seen by a reader before
    the lengths in the metadata say so (`nodes`), which the owner publishes in one file.

    Parameters
    ----------
    disk
        Where to write.
    group
        Name of the group.
    nodes
        zarr.json of each variable, dims (chain, draw, …).
    count
        Number of draws that are already on the disk.

    Attributes
    ----------
    count : int
        Number of draws appended per chain.
    """

    def __init__(self, disk: Disk, group: str, nodes: dict[str, dict[str, Any]], count: int = 0):
        self._disk, self._group, self._nodes = disk, group, nodes
        self._lengths = {name: chunk_shape(node)[1] for name, node in nodes.items()}
        self._indexed = 0  # draws for which the coordinate is on the disk
        self._clean = True
        self.seek(count)

    @staticmethod
    def node(array: np.ndarray, dims: tuple[str, ...]) -> dict[str, Any]:
        """Metadata of a variable of no draws yet whose appended arrays look like ``array`` (chain, n, …)."""
        chains, _, *shape = array.shape
        length = block_length(chains * math.prod(shape) * array.dtype.itemsize)
        return array_node((chains, 0, *shape), (chains, length, *shape), array.dtype, dims)

    @property
    def count(self) -> int:
        """Number of draws appended per chain."""
        return self._state[0]

    @property
    def chains(self) -> int:
        """Number of chains."""
        return next(iter(self._nodes.values()))["shape"][0]

    @property
    def names(self) -> list[str]:
        """Names of the variables."""
        return list(self._nodes)

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Append the same number of draws to every variable, or to none if this is interrupted."""
        n = self._check(arrays)
        count, blocks = self._state
        after = {name: self._advance(name, blocks[name], count, arrays[name]) for name in self._nodes}
        self._state, self._clean = (count + n, after), False  # one assignment: an interrupt cannot come in between

    def _advance(self, name: str, block: np.ndarray, count: int, data: np.ndarray) -> np.ndarray:
        """Copy ``data`` behind the ``count`` draws there are, writing every block that becomes full; the last block."""
        if 0 in data.shape[2:]:  # a variable without elements: its draws only have a number
            return block
        index, at = divmod(count, self._lengths[name])
        used = 0
        while True:
            take = min(block.shape[1] - at, data.shape[1] - used)
            block[:, at : at + take] = data[:, used : used + take]
            used, at = used + take, at + take
            if at < block.shape[1]:
                return block
            self._write(name, index, block)
            block, index, at = self._block(name, index + 1), index + 1, 0

    def flush(self) -> None:
        """Write the blocks that are not full, and the draw coordinate; not yet the lengths."""
        if self._clean:
            return
        count, blocks = self._state
        for name, block in blocks.items():
            index, at = divmod(count, self._lengths[name])
            if at:
                self._write(name, index, block)
        while self._indexed < count:  # whole chunks ahead of the draws, so that it is written once in 10,000
            block = np.arange(self._indexed, self._indexed + _INDEX_DRAWS, dtype=np.int64)
            self._disk.write(f"{self._group}/draw/{chunk_name([self._indexed // _INDEX_DRAWS])}", encode_chunk(block))
            self._indexed += _INDEX_DRAWS
        self._clean = True

    def seek(self, count: int) -> None:
        """Go back to the first ``count`` draws, all on the disk: the next ones follow them.

        Blocks on the disk are read whole, also behind ``count``: until they are replaced, a reader that opened the
        store before may still look at the old draws there, never at padding.
        """
        places = {name: divmod(count, length) for name, length in self._lengths.items()}
        self._state = (count, {name: self._block(name, index, needed=at > 0) for name, (index, at) in places.items()})

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Metadata of all variables and of the draw coordinate at the present length."""
        count = self.count
        nodes = {
            name: {**node, "shape": [node["shape"][0], count, *node["shape"][2:]]} for name, node in self._nodes.items()
        }
        nodes["draw"] = array_node((count,), (_INDEX_DRAWS,), np.dtype(np.int64), ("draw",))
        return nodes

    def _check(self, arrays: dict[str, np.ndarray]) -> int:
        if arrays.keys() != self._nodes.keys():
            raise InvalidArgument(
                f"append to {self._group!r} got the variables {sorted(arrays)}, but its first draws had "
                f"{sorted(self._nodes)}; append all of them each time."
            )
        n = next(iter(arrays.values())).shape[1]
        for name, array in arrays.items():
            chains, _, *shape = self._nodes[name]["shape"]
            if array.shape != (chains, n, *shape) or not np.can_cast(array.dtype, node_dtype(self._nodes[name])):
                raise InvalidArgument(
                    f"append to {self._group!r} got {name!r} of shape {array.shape} and dtype {array.dtype}, expected "
                    f"{(chains, n, *shape)} and {node_dtype(self._nodes[name])}, as in its first draws."
                )
        return n

    def _write(self, name: str, index: int, block: np.ndarray) -> None:
        self._disk.write(f"{self._group}/{name}/{self._chunk(name, index)}", encode_chunk(block))

    def _block(self, name: str, index: int, needed: bool = False) -> np.ndarray:
        """The block as it is on the disk, or a new one where there is none and none is needed."""
        node = self._nodes[name]
        file = self._disk.path / self._group / name / self._chunk(name, index)
        try:
            return decode_chunk(file.read_bytes(), node)
        except (FileNotFoundError, ValueError) as error:
            if needed and 0 not in node["shape"][2:]:
                raise StoreError(
                    f"{file} is missing or damaged ({error}); reopen the store to see the rest."
                ) from error
            return np.zeros(chunk_shape(node), node_dtype(node))

    def _chunk(self, name: str, index: int) -> str:
        return chunk_name([0, index, *[0] * (len(self._nodes[name]["shape"]) - 2)])
