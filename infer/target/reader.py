"""`Reader`: rows of data that do not fit in memory, block by block, shuffled, one block ahead on a thread.

Arrays on disk are cut into pieces of consecutive rows. The order of the pieces is drawn anew for each pass over the
data, and the rows within a block, which holds several pieces, are shuffled as well. Block k of a stage is a pure
function of (seed, stage, k), so that a run that is resumed reads what it would have read.

The blocks follow each other without a gap: where a pass ends in the middle of a block, the next one begins there.
"""

import mmap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from ..errors import InvalidArgument, NonFinite
from ..validate import check_count

BLOCK_BYTES = 32 * 2**20
PIECES = 64
"""Pieces per block, where the source has no chunks of its own."""


class Reader:
    """Rows of a source. All readers compare equal: no compiled program sees them.

    Parameters
    ----------
    source
        A pytree of arrays on disk with a common leading axis (NumPy memory maps, zarr arrays: anything with shape,
        dtype and slices), a zarr group of such arrays, or a function that returns an iterator over blocks of rows,
        pytrees of arrays, the same rows in the same order each time.
    num_rows
        Of a function: how many rows its iterator gives.
    block_rows
        Rows in memory at a time; by default 32 MB of them.
    seed
        Of the shuffling.

    Raises
    ------
    InvalidArgument
        The source is of no known kind, or its arrays differ in length.
    """

    def __init__(self, source: Any, num_rows: int | None, block_rows: int | None, seed: int) -> None:
        self.seed = seed
        self._lock = threading.Lock()
        self._ahead: dict[tuple[int, int], Future] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._arrays: Any = None
        self._sequence: _Sequence | None = None
        if callable(source) and not hasattr(source, "shape"):
            if num_rows is None:
                raise InvalidArgument(f"num_rows must be given for a source that is a function, got {num_rows}.")
            self.num_rows = check_count("num_rows", num_rows)
            self._sequence = _Sequence(source, self.num_rows)
            self.like = self._sequence.like
        else:
            self._arrays, self.num_rows = _arrays_of(source)
            if num_rows not in (None, self.num_rows):
                raise InvalidArgument(f"num_rows is {num_rows}, and the arrays of source have {self.num_rows} rows.")
            self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], np.dtype(x.dtype)), self._arrays)
        row = sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(self.like))
        wanted = max(1, BLOCK_BYTES // max(row, 1)) if block_rows is None else check_count("block_rows", block_rows)
        self.block_rows = min(wanted, self.num_rows)
        chunks = [getattr(x, "chunks", None) for x in jax.tree.leaves(self._arrays)]
        natural = chunks[0][0] if chunks and chunks[0] else -(-self.block_rows // PIECES)
        self.piece = max(1, min(natural, self.block_rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reader)

    def __hash__(self) -> int:
        return hash(Reader)

    def block(self, stage: int, k: int) -> Any:
        """Block k of a stage, arrays of ``block_rows`` rows; the next one is read meanwhile."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="pushforward-reader")
            ahead = self._ahead.pop((stage, k), None) or self._pool.submit(self._read, stage, k)
            following = (stage, k + 1)
            kept = self._ahead.get(following) or self._pool.submit(self._read, *following)
            self._ahead = {following: kept}
        return ahead.result()

    def passes(self) -> Iterator[tuple[Any, np.ndarray]]:
        """All rows once, in their order, in blocks of one shape; 1 for each row that counts, 0 for padding."""
        for begin in range(0, self.num_rows, self.block_rows):
            count = min(self.block_rows, self.num_rows - begin)
            rows = self._consecutive(begin, count)
            pad = self.block_rows - count
            if pad:
                rows = jax.tree.map(lambda x, pad=pad: np.concatenate([x, np.repeat(x[:1], pad, axis=0)]), rows)
            yield rows, (np.arange(self.block_rows) < count).astype(float)

    def identity(self) -> list[Any]:
        """What tells this source from others: shapes, the first and the last rows, and how it is cut."""
        ends = [self._consecutive(0, 1)] if self._arrays is None else self._ends()
        return [self.num_rows, self.block_rows, self.piece, self.seed, *ends]

    def _ends(self) -> list[Any]:
        return [self._consecutive(at, 1) for at in (0, self.num_rows // 2, self.num_rows - 1)]

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(self, stage: int, k: int) -> Any:
        position = k * self.block_rows
        parts, missing = [], self.block_rows
        while missing:
            epoch, offset = divmod(position, self.num_rows)
            taken = min(missing, self.num_rows - offset)
            parts += self._of_pass(stage, epoch, offset, taken)
            position, missing = position + taken, missing - taken
        order = np.random.default_rng([self.seed, stage, k, 1]).permutation(self.block_rows)
        return jax.tree.map(lambda *xs: np.concatenate(xs)[order], *parts)

    def _of_pass(self, stage: int, epoch: int, offset: int, count: int) -> list[Any]:
        """Rows ``offset`` to ``offset + count`` of a pass, in the order of its pieces."""
        if self._sequence is not None:
            return [self._consecutive(offset, count)]
        pieces = -(-self.num_rows // self.piece)
        order = np.random.default_rng([self.seed, stage, epoch, 0]).permutation(pieces)
        begins = order * self.piece
        ends = np.cumsum(np.minimum(begins + self.piece, self.num_rows) - begins)
        first = int(np.searchsorted(ends, offset, side="right"))
        found, at = [], offset
        while count:
            before = int(ends[first - 1]) if first else 0
            taken = min(count, int(ends[first]) - at)
            found.append(self._consecutive(int(begins[first]) + at - before, taken))
            at, count, first = at + taken, count - taken, first + 1
        return found

    def _consecutive(self, begin: int, count: int) -> Any:
        if self._sequence is not None:
            rows = self._sequence.rows(begin, count)
        else:
            rows = jax.tree.map(lambda x: _slice(x, begin, begin + count), self._arrays)
        _check_nan(rows, begin)
        return rows


class _Sequence:
    """Rows of an iterator by position; going back begins it anew."""

    def __init__(self, make: Callable[[], Iterator[Any]], num_rows: int) -> None:
        self._make, self._num_rows = make, num_rows
        self._lock = threading.Lock()
        self._begin()
        self._fill(1)
        self.like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self._held[0])

    def _begin(self) -> None:
        self._iterator, self._held, self._at = iter(self._make()), [], 0

    def rows(self, begin: int, count: int) -> Any:
        """Rows ``begin`` to ``begin + count``."""
        with self._lock:
            if begin < self._at:
                self._begin()
            while self._at + self._length() <= begin:
                self._at += self._length()
                self._held = []
                self._fill(1)
            self._fill(begin - self._at + count)
            all_rows = jax.tree.map(lambda *xs: np.concatenate(xs), *self._held)
            first = begin - self._at
            found = jax.tree.map(lambda x: x[first : first + count].copy(), all_rows)
            self._held = [jax.tree.map(lambda x: x[first:].copy(), all_rows)]
            self._at = begin
        return found

    def _length(self) -> int:
        return sum(len(jax.tree.leaves(part)[0]) for part in self._held)

    def _fill(self, count: int) -> None:
        while self._length() < count:
            try:
                part = jax.tree.map(np.asarray, next(self._iterator))
            except StopIteration:
                raise InvalidArgument(
                    f"the iterator of source ended after {self._at + self._length()} rows, and num_rows is "
                    f"{self._num_rows}; it must give as many each time that source() is called."
                ) from None
            lengths = sorted({np.shape(x)[0] if np.ndim(x) else 0 for x in jax.tree.leaves(part)})
            if len(lengths) != 1 or lengths[0] == 0:
                raise InvalidArgument(
                    f"the iterator of source gave arrays of lengths {lengths}; each block must be a pytree of arrays "
                    f"with one entry per row on axis 0."
                )
            if self._held:
                _check_like(self._held[0], part)
            self._held.append(part)


def _check_like(first: Any, other: Any) -> None:
    shapes = [[x.shape[1:] for x in jax.tree.leaves(part)] for part in (first, other)]
    if jax.tree.structure(first) != jax.tree.structure(other) or shapes[0] != shapes[1]:
        raise InvalidArgument(
            f"the iterator of source gave rows of shapes {shapes[1]} after rows of shapes {shapes[0]}; all rows must "
            f"be alike."
        )


def _arrays_of(source: Any) -> tuple[Any, int]:
    """The arrays of a source, and their common length."""
    if hasattr(source, "arrays") and callable(source.arrays):  # a zarr group
        source = dict(source.arrays())
    leaves, treedef = jax.tree_util.tree_flatten_with_path(source, is_leaf=lambda x: hasattr(x, "shape"))
    lengths = {}
    for path, leaf in leaves:
        name = f"source{jax.tree_util.keystr(path)}"
        if not all(hasattr(leaf, k) for k in ("shape", "dtype", "__getitem__")) or len(leaf.shape) == 0:
            raise InvalidArgument(
                f"{name} must be an array with one entry per row (a memory map, a zarr array), got "
                f"{type(leaf).__name__}; or give a function that returns an iterator over blocks of rows."
            )
        lengths[name] = leaf.shape[0]
    if not lengths or len(set(lengths.values())) > 1 or 0 in lengths.values():
        shown = ", ".join(f"{name}: {n}" for name, n in lengths.items()) or repr(source)
        raise InvalidArgument(f"all arrays of source must have one length above 0 along axis 0, got {shown}.")
    return jax.tree.unflatten(treedef, [leaf for _, leaf in leaves]), next(iter(lengths.values()))


def _slice(array: Any, begin: int, end: int) -> np.ndarray:
    found = np.array(array[begin:end])
    held = getattr(array, "_mmap", None)
    if isinstance(held, mmap.mmap) and getattr(array, "mode", "") in ("r", "r+"):
        held.madvise(mmap.MADV_DONTNEED)  # else what was read counts as memory of this process until others need it
    return found


def _check_nan(rows: Any, begin: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            bad = np.flatnonzero(~np.isfinite(leaf.reshape(len(leaf), -1)).all(1))
            raise NonFinite(
                f"source{jax.tree_util.keystr(path)} has {len(bad)} rows with NaN or infinity among rows {begin} to "
                f"{begin + len(leaf) - 1}, the first of them row {begin + int(bad[0])}; drop or impute them."
            )
