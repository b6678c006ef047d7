"""Bandwidths h of radial kernels from the particles, without a matrix of all their distances.

The median of all n² squared distances, the zeros of the diagonal among them, is the convention of Shi, Liu & Mackey
(2022): the order statistic of 0-based index n² − ⌊n²/2⌋. There is no factor 1/log n, which in many dimensions makes the
cloud collapse. Order statistics are found by bisection on their rank, one count per pass.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .radial import squared_distances
from .velocity import in_tiles, tile_size

SUBSET = 1000
PASSES = {"float32": 30, "float64": 60}
RULES = ("median", "mean", "exact_median")


def choose_bandwidth(rule: str, key: PRNGKeyArray, x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The h of one of the rules: ``"median"``, ``"mean"``, ``"exact_median"``; 1 where all particles are equal."""
    if rule == "mean":
        h = mean_squared_distance(x)
    elif rule == "median" and x.shape[0] > SUBSET:
        h = median_squared_distance(jax.random.choice(key, x, (SUBSET,), replace=False))
    else:
        h = median_squared_distance(x)
    return jnp.where(h > 0, h, 1)


def mean_squared_distance(x: Float[Array, "n d"]) -> Float[Array, ""]:
    """The mean over pairs i ≠ j in O(n d): 2 Σ_a Var_a n/(n − 1)."""
    n = x.shape[0]
    variance = jnp.var(x, axis=0)
    rounding = 8 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0)  # of coordinates that are all equal
    return 2 * jnp.sum(jnp.where(variance > rounding**2, variance, 0)) * n / max(n - 1, 1)


def median_squared_distance(x: Float[Array, "n d"], tile: int | None = None) -> Float[Array, ""]:
    """The upper median of all n² squared distances, to rounding, in 60 passes over tiles (30 in 32 bits)."""
    n = x.shape[0]
    x = x - jnp.mean(x, axis=0)
    norm = jnp.sum(x**2, axis=1)
    size = tile_size(n, tile)
    points, norms, real = (in_tiles(a, size) for a in (x, norm, jnp.ones(n, bool)))
    # Distances below rounding are 0: those of equal particles.
    floor = 8 * jnp.finfo(x.dtype).eps * jnp.max(norm)

    def tiles(row: tuple[Array, Array, Array]) -> Array:
        squared = jax.vmap(lambda y, m: squared_distances(row[0], y, row[1], m))(points, norms)
        squared = jnp.where(squared > floor, squared, 0)
        return jnp.where(row[2][:, None] & real[:, None, :], squared, jnp.inf)

    kept = tiles((points[0], norms[0], real[0])) if points.shape[0] == 1 else None

    def count(level: Array) -> Array:
        if kept is not None:
            return jnp.sum(kept <= level)
        return jnp.sum(jax.lax.map(lambda row: jnp.sum(tiles(row) <= level), (points, norms, real)))

    rank = min(n * n - n * n // 2 + 1, n * n)  # so many distances are at most as large

    def bisect(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        enough = count(middle) >= rank
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    top = 4 * jnp.max(norm)
    _, high = jax.lax.fori_loop(0, PASSES[x.dtype.name], bisect, (jnp.zeros_like(top), top))
    return jnp.where(count(jnp.zeros_like(top)) >= rank, 0, high)
