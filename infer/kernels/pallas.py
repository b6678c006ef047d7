"""The sums over sources of `velocity` as one Pallas kernel: a tile of K lives in registers and never in memory.

A program holds a block of rows and goes over all blocks of sources. It does what the tiles of XLA do, in the same
precision, for P without rank-one parts; on the CPU it is interpreted, which is slow and serves to test it. Nothing
needs it: Pallas' backends change, and `velocity` takes XLA's tiles unless told otherwise.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .radial import gradient_weight, kernel_value

BLOCK = 64
LEAST = 16
"""Tensor cores take blocks of at least so many rows and columns, in powers of two."""


def row_sums(
    kernel: str,
    points: Float[Array, "r d"],
    first: Int[Array, ""] | None,
    sources: Float[Array, "n d"],
    value: Float[Array, "n c"],
    weight: Float[Array, "n e"] | None,
    bandwidth: Float[Array, ""],
) -> Float[Array, "r w"]:
    """Σ_j k(x_i, y_j) v_j + W(x_i, y_j) w_j, for all rows i; v and w are filled with zeros to the wider of them.

    Parameters
    ----------
    points, sources
        x_i and y_j, centred.
    first
        The source that is the first of the points, whose followers are the next ones: a point has no distance from
        itself. None if the points are others.
    value, weight
        v and w; None for w = 0.
    """
    r, n = points.shape[0], sources.shape[0]
    width = max(value.shape[1], 0 if weight is None else weight.shape[1])
    d, c = _power(points.shape[1]), _power(width)
    x, y, v = _pad(points, d), _pad(sources, d), _pad(value, c)
    w = None if weight is None else _pad(weight, c)
    start = jnp.asarray([n + r if first is None else first], jnp.int32)
    h = jnp.asarray(bandwidth, x.dtype)[None]
    arrays = (x, y, v) if w is None else (x, y, v, w)
    return _call(kernel, start, h, arrays)[:r, :width]


def _call(kernel: str, start: Array, h: Array, arrays: tuple[Array, ...]) -> Array:
    from jax.experimental import pallas as pl

    x, y, v = arrays[:3]
    whole = pl.BlockSpec(memory_space=pl.ANY)
    rows = pl.BlockSpec((BLOCK, x.shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        partial(_program, kernel, y.shape[0] // BLOCK),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], v.shape[1]), x.dtype),
        grid=(x.shape[0] // BLOCK,),
        in_specs=[whole, whole, rows, *(whole for _ in arrays[1:])],
        out_specs=pl.BlockSpec((BLOCK, v.shape[1]), lambda i: (i, 0)),
        interpret=jax.default_backend() == "cpu",
        name="stein_row_sums",
    )(start, h, *arrays)


def _program(kernel: str, blocks: int, start: Any, h: Any, x_ref: Any, y_ref: Any, v_ref: Any, *rest: Any) -> None:
    """One block of rows."""
    from jax.experimental import pallas as pl

    *weights, out_ref = rest
    x, bandwidth, within = x_ref[...], h[0], jnp.arange(BLOCK)
    norms = jnp.sum(x * x, axis=1)
    rows = start[0] + pl.program_id(0) * BLOCK + within

    def add(j: Array, total: Array) -> Array:
        place = pl.ds(j * BLOCK, BLOCK)
        y = y_ref[place, :]
        product = jnp.dot(x, y.T, precision=jax.lax.Precision.HIGHEST)
        squared = jnp.maximum(norms[:, None] + jnp.sum(y * y, axis=1)[None] - 2 * product, 0)
        squared = jnp.where(rows[:, None] == (j * BLOCK + within)[None], 0, squared)
        k = kernel_value(kernel, squared, bandwidth)
        total = total + jnp.dot(k, v_ref[place, :])
        for w_ref in weights:
            total = total + jnp.dot(gradient_weight(kernel, k, bandwidth), w_ref[place, :])
        return total

    out_ref[...] = jax.lax.fori_loop(0, blocks, add, jnp.zeros(out_ref.shape, out_ref.dtype))


def _power(size: int) -> int:
    """The power of two that holds ``size``."""
    return max(LEAST, 1 << (size - 1).bit_length())


def _pad(x: Array, width: int) -> Array:
    """Whole blocks of rows of this width; what fills them has no weight."""
    return jnp.pad(x, ((0, -x.shape[0] % BLOCK), (0, width - x.shape[1])))
