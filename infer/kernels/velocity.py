"""The streamed velocity of all Stein samplers: sums over pairs of particles in tiles, as matrix products.

    φ(x_i) = (1/n) Σ_j [ k(x_j, x_i) b_j + P_j ∇₁k(x_j, x_i) ]
           = (1/n) [ K b + Σ_j W_ij P_j x_i − W (P x) ]_i,        ∇₁k(x_j, x_i) = W_ij (x_i − x_j)

(Shi, Liu & Mackey 2022, equation 11; with P = I that of Liu & Wang 2016.) P is taken at the *source* j. A tile of K
and W lives while its products are added to accumulators of shape (tile, d + columns of P): memory is O(n d), for any n.
An RBF, whose W is a multiple of K, takes one product: 4 n² d operations with P = I, and 8 n² d on the simplex; an IMQ
takes one more, 6 n² d and 10 n² d. What pads the last tile are sources whose every right-hand side is 0.

Under a mesh of devices (see `infer.distributed`) each takes some of the rows, with all sources.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..distributed.mesh import num_shards
from ..distributed.rows import map_rows
from ..validate import check_choice
from .metric import Identity, Metric, apply, slices
from .pallas import row_sums
from .radial import gradient_weight, kernel_value, squared_distances

TILE_CPU, TILE = 512, 2048
BACKENDS = ("auto", "xla", "pallas")


def tile_size(n: int, tile: int | None = None) -> int:
    """The size of a tile: the given one, or what stays in the cache of this kind of device; at most ``n``."""
    default = TILE_CPU if jax.default_backend() == "cpu" else TILE
    return min(n, default if tile is None else tile)


def in_tiles(x: Float[Array, "n *rest"], size: int, multiple: int = 1) -> Float[Array, "tiles size *rest"]:
    """Rows in tiles of ``size``, padded with zeros to whole tiles, and to a ``multiple`` of tiles."""
    padding = -x.shape[0] % (size * multiple)
    return jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)).reshape(-1, size, *x.shape[1:])


def velocity(
    kernel: str,
    x: Float[Array, "n d"],
    drift: Float[Array, "n d"],
    bandwidth: Float[Array, ""],
    metric: Metric | None = None,
    *,
    at: Float[Array, "r d"] | None = None,
    tile: int | None = None,
    backend: str = "auto",
) -> Float[Array, "r d"]:
    """φ at all particles, or at other points.

    Parameters
    ----------
    kernel
        ``"imq"`` or ``"rbf"``.
    x
        Particles, in the coordinates of the kernel.
    drift
        b_j: the score with P = I, the score of the dual density for a mirror.
    bandwidth
        h > 0, a squared length.
    metric
        The blocks of P_j; None for P = I.
    at
        Where the field is wanted; None for the particles.
    tile
        Particles per side of a tile.
    backend
        ``"xla"``, tiles; ``"pallas"``, a fused kernel for accelerators, where P has no rank-one part (on the CPU it is
        interpreted, slowly); ``"auto"``, XLA until the other is measured to be faster.

    Returns
    -------
    Float[Array, "r d"]
        In the dtype of ``x``.
    """
    n, d = x.shape
    metric = (Identity(d),) if metric is None else metric
    check_choice("backend", backend, BACKENDS)
    centre = jnp.mean(x, axis=0)
    sources, rows = x - centre, (x if at is None else at) - centre
    found = _sources(kernel, sources, drift, bandwidth, metric)
    shards, itself = num_shards(), at is None
    each = -(-rows.shape[0] // shards)
    if backend == "pallas" and not found.outer:
        # One call has all the rows of a device.
        rows_size, shared = each, found
        sums = lambda points, first, shared, h: row_sums(  # noqa: E731
            kernel, points, first if itself else None, shared.x, shared.value, shared.weight, h
        )
    else:
        size, rows_size = tile_size(n, tile), tile_size(each, tile)
        shared = jax.tree.map(lambda a: in_tiles(a, size), found)
        outer = [place for block, place in slices(metric) if block.outer() is not None]
        sums = lambda points, first, shared, h: _tiled_sums(  # noqa: E731
            kernel, points, first if itself else None, shared, h, outer
        )

    def block_of_rows(row: tuple[Array, Array], given: tuple[_Sources, Array]) -> Array:
        return _at_rows(metric, sums(*row, *given), row[0])

    tiles = in_tiles(rows, rows_size, shards)
    firsts = rows_size * jnp.arange(tiles.shape[0])
    phi = map_rows(block_of_rows, (tiles, firsts), (shared, jnp.asarray(bandwidth, x.dtype)))
    return phi.reshape(-1, d)[: rows.shape[0]] / n


class _Sources(NamedTuple):
    """What a tile of sources brings: points, their squared norms, right-hand sides of K and of W, rank-one parts."""

    x: Array
    norm: Array
    value: Array
    weight: Array | None
    outer: tuple[tuple[Array, Array], ...]


def _sources(kernel: str, x: Array, drift: Array, bandwidth: Array, metric: Metric) -> _Sources:
    """Right-hand sides by particle; all are of K where W is a multiple of it."""
    columns = [block.columns(x.shape[0], x.dtype) for block in metric]
    weight = jnp.concatenate([-apply(metric, x), *columns], axis=1)
    outers = tuple(outer for block in metric if (outer := block.outer()) is not None)
    norm = jnp.sum(x**2, axis=1)
    if kernel == "rbf":
        return _Sources(x, norm, (2 / bandwidth * weight).at[:, : x.shape[1]].add(drift), None, outers)
    return _Sources(x, norm, drift, weight, outers)


def _tiled_sums(
    kernel: str, points: Array, first: Array | None, tiles: _Sources, bandwidth: Array, outer: list[slice]
) -> Array:
    """K V + W U of a tile of rows, over tiles of sources; a particle has no distance from itself (see `first`)."""
    norms = jnp.sum(points**2, axis=1)
    size = tiles.x.shape[1]

    def add(total: Array, given: tuple[_Sources, Array]) -> tuple[Array, None]:
        source, start = given
        squared = squared_distances(points, source.x, norms, source.norm)
        if first is not None:  # whatever rounding leaves
            same = (first + jnp.arange(points.shape[0]))[:, None] == start + jnp.arange(size)
            squared = jnp.where(same, 0, squared)
        value = kernel_value(kernel, squared, bandwidth)
        weight = gradient_weight(kernel, value, bandwidth)
        total = total.at[:, : source.value.shape[1]].add(value @ source.value)
        if source.weight is not None:
            total = total + weight @ source.weight
        for place, (left, right) in zip(outer, source.outer, strict=True):
            total = total.at[:, place].add(-(weight * (points[:, place] @ right.T)) @ left)
        return total, None

    width = tiles.value.shape[2] if tiles.weight is None else tiles.weight.shape[2]
    total = jnp.zeros((points.shape[0], width), points.dtype)
    return jax.lax.scan(add, total, (tiles, size * jnp.arange(tiles.x.shape[0])))[0]


def _at_rows(metric: Metric, total: Array, x: Array) -> Array:
    """K b − W (P x) + Σ_j W_ij P_j x_i from the sums at a tile of rows."""
    d, parts = x.shape[1], []
    begin = d
    for block, place in slices(metric):
        parts.append(block.expand(total[:, begin : begin + block.width], x[:, place]))
        begin += block.width
    return total[:, :d] + jnp.concatenate(parts, axis=1)
