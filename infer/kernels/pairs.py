"""Sums of a function over all pairs of points, streamed in tiles: O(n) memory for O(n²) values.

    by_row_i = Σ_j v_j f(x_i, y_j),        by_column_j = Σ_i w_i f(x_i, y_j)

Both sums come from one pass, since what is a mean over pairs has a standard error that needs its row means. Of a
symmetric f over the pairs of one sample only the tiles on and above the diagonal are formed, and the pairs i = j are
left out: their value is known exactly where rounding would not give it. A tile is computed in the precision of the
points; its sums are added up in the widest one that the scope has.

Under a mesh of devices (see `infer.distributed`) each takes as many of the tiles, and their sums are added up at the
end: memory is O(n) on each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from ..distributed.mesh import PARTICLES, gathered, num_shards
from ..distributed.rows import gathered_rows

TILE_CPU, TILE = 512, 2048
DIRECT = 16
"""Up to this many coordinates differences are formed pair by pair, beyond it as matrix products."""


def pair_sums(
    function: Callable[..., Array],
    x: Any,
    x_weights: Float[Array, " n"],
    y: Any = None,
    y_weights: Float[Array, " m"] | None = None,
    *,
    args: Any = (),
    tile: int | None = None,
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Weighted sums over pairs, by row and by column.

    Parameters
    ----------
    function
        ``function(rows, columns, *args)`` gives the (r, c) values of a tile; ``rows`` is like ``x`` with r points. A
        module-level function: the compiled program is cached by its identity.
    x, y
        Pytrees of arrays with a leading axis of n and m points; without ``y`` the pairs i ≠ j of ``x``, for a
        symmetric function.
    x_weights, y_weights
        w and v; without ``y``, v = w.
    args
        Passed on to ``function``.
    tile
        Points per side of a tile; by default 512 on the CPU and 2,048 on accelerators.

    Returns
    -------
    by_row, by_column
        Arrays (n,) and (m,); without ``y`` twice the same.
    """
    if tile is None:
        tile = TILE_CPU if jax.default_backend() == "cpu" else TILE
    return _sums(function, tile, x, x_weights, y, y_weights, tuple(args))


class _Given(NamedTuple):
    """What all pairs of tiles need; of one sample the columns are the rows."""

    rows: Any
    row_weights: Array
    columns: Any
    column_weights: Array
    args: tuple


@partial(jax.jit, static_argnums=(0, 1))
def _sums(function: Callable, tile: int, x: Any, w: Array, y: Any, v: Array | None, args: tuple) -> tuple[Array, Array]:
    alone, v = y is None, w if v is None else v
    rows, columns = _tiles(x, w, tile), _tiles(x if alone else y, v, tile)
    t, s = rows[1].shape[0], columns[1].shape[0]
    pairs = np.triu_indices(t) if alone else tuple(a.ravel() for a in np.indices((t, s)))
    shards = num_shards()
    fill = -pairs[0].size % shards
    real = np.arange(pairs[0].size + fill) < pairs[0].size
    places = (*(jnp.asarray(np.pad(a, (0, fill))) for a in pairs), jnp.asarray(real))
    given = _Given(*rows, *columns, args)
    sums = partial(_sums_of_pairs, function, alone)
    if shards == 1:
        by_row, by_column = sums(places, given)
    else:
        cut, whole = PartitionSpec(PARTICLES), PartitionSpec()
        mapped = jax.shard_map(
            lambda places, given: jax.tree.map(lambda a: a[None], sums(places, given)),
            in_specs=(cut, whole), out_specs=cut, check_vma=False,
        )  # fmt: skip
        parts = gathered_rows(mapped(gathered(places), gathered(given)), shards)
        by_row, by_column = (jnp.sum(a, axis=0) for a in parts)
    if alone:
        total = (by_row + by_column).ravel()[: w.size]
        return total, total
    return by_row.ravel()[: w.size], by_column.ravel()[: v.size]


def _sums_of_pairs(
    function: Callable, alone: bool, places: tuple[Array, Array, Array], given: _Given
) -> tuple[Array, Array]:
    """Of some pairs of tiles (i, j), of which those count that are not filling."""
    wide = jnp.promote_types(given.row_weights.dtype, jax.dtypes.canonicalize_dtype(float))

    def add(totals: tuple[Array, Array], place: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        i, j, counts = place
        row, column = jax.tree.map(lambda a: a[i], given.rows), jax.tree.map(lambda a: a[j], given.columns)
        value = function(row, column, *given.args)
        if alone:
            value = jnp.where((i == j) & jnp.eye(value.shape[0], dtype=bool), 0, value)
        by_row = jnp.matmul(value, given.column_weights[j], precision="highest").astype(wide)
        by_column = jnp.matmul(given.row_weights[i], value, precision="highest").astype(wide)
        # A tile on the diagonal of one sample has given its sums by row.
        by_row = jnp.where(counts, by_row, 0)
        by_column = jnp.where(counts & (i != j) if alone else counts, by_column, 0)
        return (totals[0].at[i].add(by_row), totals[1].at[j].add(by_column)), None

    start = (jnp.zeros(given.row_weights.shape, wide), jnp.zeros(given.column_weights.shape, wide))
    return jax.lax.scan(add, start, places)[0]


def _tiles(points: Any, weights: Array, tile: int) -> tuple[Any, Array]:
    """Points and weights in tiles; the last is filled with copies of the last point, where f is finite, of weight 0."""
    size = min(tile, weights.size)
    fill = -weights.size % size

    def cut(a: Array) -> Array:
        return jnp.pad(a, [(0, fill)] + [(0, 0)] * (a.ndim - 1), mode="edge").reshape(-1, size, *a.shape[1:])

    return jax.tree.map(cut, points), jnp.pad(weights, (0, fill)).reshape(-1, size)


def difference_products(
    a: Float[Array, "r d"], c: Float[Array, "c d"], b: Float[Array, "r d"], e: Float[Array, "c d"]
) -> Float[Array, "r c"]:
    """(a_i − c_j)·(b_i − e_j) of all pairs.

    The points should be centred: beyond 16 coordinates rounding is relative to their norms, not to their differences.
    The products are taken in full precision on every device; tensor cores would keep three digits of them.
    """
    if a.shape[1] <= DIRECT:
        parts = ((a[:, k, None] - c[:, k]) * (b[:, k, None] - e[:, k]) for k in range(a.shape[1]))
        return sum(parts, jnp.zeros((a.shape[0], c.shape[0]), a.dtype))
    own = jnp.sum(a * b, axis=1)[:, None] + jnp.sum(c * e, axis=1)
    return own - inner_products(a, e) - inner_products(b, c)


def squared_distances(x: Float[Array, "r d"], y: Float[Array, "c d"]) -> Float[Array, "r c"]:
    """‖x_i − y_j‖², not below 0."""
    return jnp.maximum(difference_products(x, y, x, y), 0)


def inner_products(x: Float[Array, "r d"], y: Float[Array, "c d"]) -> Float[Array, "r c"]:
    """x_i·y_j in full precision."""
    return jnp.matmul(x, y.T, precision="highest")
