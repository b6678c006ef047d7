"""Draws of a DataTree as blocks of scalars, so that no statistic ever needs all draws in memory.

Cost: a stored variable is read once per `READ_BYTES` of it, in slices of about `SLICE_BYTES`; statistics then work on
at most `BLOCK_BYTES` of draws, or on one scalar.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidArgument

READ_BYTES = 4 * 2**20
SLICE_BYTES = 2**20
BLOCK_BYTES = 2**20


class Block(NamedTuple):
    """Some scalars of a posterior.

    Parameters
    ----------
    labels
        Their names as ArviZ writes them, e.g. ``theta[Choate]`` or ``theta[0, 1]``.
    sites
        The variable that each belongs to.
    values
        float64 array of shape (scalar, chain, draw).
    resolution
        Array of shape (scalar,): machine epsilon of the type in which each was stored; 0 for whole numbers.
    """

    labels: list[str]
    sites: list[str]
    values: np.ndarray
    resolution: np.ndarray


def sample_dims(group: Any) -> tuple[str, ...]:
    """The dimensions over which draws run: ``("particle",)`` where there is one, else ``("chain", "draw")``."""
    dims = set(group.dims)
    if "particle" in dims:
        return ("particle",)
    if {"chain", "draw"} <= dims:
        return ("chain", "draw")
    raise InvalidArgument(
        f"tree['posterior'] has the dimensions {sorted(map(str, dims))}; it needs chain and draw, or particle."
    )


def select(group: Any, var_names: str | Sequence[str] | None) -> list[str]:
    """Names of the numeric variables of ``group``, all or those asked for, in their order."""
    names = [str(n) for n in group.data_vars]
    if var_names is not None:
        wanted = [var_names] if isinstance(var_names, str) else list(var_names)
        for name in wanted:
            if name not in names:
                raise InvalidArgument(f"var_names has {name!r}; the posterior has {', '.join(names)}.")
        names = wanted
    return [n for n in names if group[n].dtype.kind in "fiub"]


def blocks(group: Any, var_names: str | Sequence[str] | None = None) -> Iterator[Block]:
    """Yield all scalars of ``group`` (a DataTree node or a Dataset) in blocks of bounded size.

    Small variables share a block; a large or lazily opened one is read a slice at a time.
    """
    dims = sample_dims(group)
    draws = math.prod(group.sizes[d] for d in dims)
    most = max(1, BLOCK_BYTES // (8 * max(draws, 1)))
    waiting: list[Block] = []
    for name in select(group, var_names):
        for block in _read(group[name], name, dims, max(most, READ_BYTES // (8 * max(draws, 1)))):
            for start in range(0, len(block.labels), most):
                part = Block(*(field[start : start + most] for field in block))
                if sum(len(b.labels) for b in waiting) + len(part.labels) > most:
                    yield _join(waiting)
                    waiting = []
                waiting.append(part)
            if waiting and len(block.labels) > most:
                yield _join(waiting)
                waiting = []
            block = part = None  # what was read is let go before more is read
    if waiting:
        yield _join(waiting)


def scalar_labels(array: Any, name: str, dims: tuple[str, ...]) -> list[str]:
    """Names of the scalars of one variable in C order, as ArviZ's tables write them."""
    others = [d for d in array.dims if d not in dims]
    if not others:
        return [name]
    coords = [array.coords[d].values if d in array.coords else np.arange(array.sizes[d]) for d in others]
    return [f"{name}[{', '.join(map(str, index))}]" for index in itertools.product(*coords)]


def _read(array: Any, name: str, dims: tuple[str, ...], most: int) -> Iterator[Block]:
    """Blocks of at most about ``most`` scalars of one variable, read with as few slices as possible."""
    missing = [d for d in dims if d not in array.dims]
    if missing:
        raise InvalidArgument(f"{name} has the dimensions {array.dims}; it lacks {', '.join(missing)}.")
    labels = scalar_labels(array, name, dims)
    variable = array.variable.transpose(*dims, ...)
    shape = variable.shape[len(dims) :]
    if not labels:
        return
    # Axes before `axis` are indexed one by one, `axis` is sliced, those after it are taken whole.
    axis = 0
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) > most:
        axis += 1
    width = max(1, most // math.prod(shape[axis + 1 :]))
    first = len(dims)
    resolution = float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 0.0
    at = 0
    for index in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis] if shape else 1, width):
            values = _scalars(variable, first, index + ((slice(start, start + width),) if shape else ()))
            count = len(values)
            yield Block(labels[at : at + count], [name] * count, values, np.full(count, resolution))
            at += count
            del values  # before the next ones are read


def _scalars(variable: Any, first: int, index: tuple[Any, ...]) -> np.ndarray:
    """Some scalars of one variable as (scalar, chain, draw), read a slice of draws at a time.

    A store decodes whole chunks, all scalars of them: a slice is a few chunks, so that few are held at once.
    """
    chains, draws = math.prod(variable.shape[: first - 1]), variable.shape[first - 1]
    stored = getattr(variable, "encoding", {}).get("preferred_chunks", {})
    chunk = int(stored.get(variable.dims[first - 1], 1))
    step = max(1, SLICE_BYTES // (8 * chunk * chains * math.prod(variable.shape[first:]))) * chunk
    lead = (slice(None),) * (first - 1)
    count = math.prod(variable[(*lead, slice(0, 1), *index)].shape[first:])
    if draws <= step:
        raw = np.asarray(variable[(*lead, slice(None), *index)].values)
        return np.moveaxis(raw.reshape(chains, draws, count), -1, 0)
    out = np.empty((count, chains, draws), dtype=variable.dtype)
    for at in range(0, draws, step):
        raw = np.asarray(variable[(*lead, slice(at, at + step), *index)].values)
        out[..., at : at + step] = np.moveaxis(raw.reshape(chains, -1, count), -1, 0)
    return out


def _join(parts: list[Block]) -> Block:
    """One block of contiguous float64 draws; one part that is so already is taken as it is."""
    if len(parts) == 1 and parts[0].values.dtype == np.float64 and parts[0].values.flags.c_contiguous:
        return parts[0]
    values = np.empty((sum(len(p.labels) for p in parts), *parts[0].values.shape[1:]))
    at = 0
    for part in parts:
        values[at : at + len(part.labels)] = part.values
        at += len(part.labels)
    return Block(
        [label for p in parts for label in p.labels],
        [site for p in parts for site in p.sites],
        values,
        np.concatenate([p.resolution for p in parts]),
    )
