"""What a fit of a latent process builds on the host: order, pattern, and the colours of its random probes."""

import os
from typing import Any, Literal, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...infer.errors import InvalidArgument
from ...infer.validate import check_count
from ...infer.variational.sparse_cholesky.factor import Structure, build_structure, columns_alone, prior_columns
from ...infer.variational.sparse_cholesky.ordering import (
    ROUNDING,
    maximin,
    nearest_columns,
    nearest_pattern,
    radius_pattern,
)
from .fixed_point import Problem, Rule
from .latent import LatentGP
from .likelihoods import AtMean, Gaussian

ROUND_TO = 4
PAIR_BYTES = 40
"""On the host, for each pair of points within a radius: its two numbers as Python and NumPy integers, and a key."""
PRODUCT_BYTES = 12
"""For each product that an incomplete factor takes: three 32-bit positions; a quarter more for padding."""
ENTRY_BYTES = 12 * 8
"""For each entry of a factor: itself, what comes of it in a step of learning, and its gradient."""
COLOUR_NEIGHBORS = 128
COLOUR_BLOCK = 10_000
SHARE = 0.9


RADII = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
"""Among which ``rho="auto"`` chooses."""
LITTLE = 0.01
SAMPLED = 200
COMPARED = 20_000
"""Columns of two orders that are compared."""
PLANE, SPACE = 2, 3
RHO, NEIGHBORS = 2.0, 20
WIDEST = 400


class Extent(NamedTuple):
    """How a pattern is chosen, see `DoubleKL`."""

    rho: float | Literal["auto"] | None = None
    neighbors: int | None = None

    def check(self) -> None:
        """Raise `InvalidArgument` unless it is one of the ways there are."""
        if self.rho is not None and self.neighbors is not None:
            raise InvalidArgument(f"rho={self.rho!r} and neighbors={self.neighbors!r} exclude each other; give one.")
        given = isinstance(self.rho, int | float) and np.isfinite(self.rho) and self.rho >= 1
        if self.rho is not None and self.rho != "auto" and not given:
            raise InvalidArgument(f'rho must be at least 1, or "auto", got {self.rho!r}.')
        if self.neighbors is not None:
            check_count("neighbors", self.neighbors)

    def given(self, num_inputs: int) -> "Extent":
        """Itself, or the default for so many inputs: in more than three, balls have few points or very many."""
        if self.rho is not None or self.neighbors is not None:
            return self
        return Extent(rho=RHO) if num_inputs <= SPACE else Extent(neighbors=NEIGHBORS)

    def radius(self, gp: LatentGP, z: np.ndarray, order: np.ndarray, reach: np.ndarray) -> float:
        """ρ, or what `choose_radius` says of points in maximin order."""
        return choose_radius(gp, z, order, reach) if self.rho == "auto" else float(cast("float", self.rho))

    def width(self, z: np.ndarray, reach: np.ndarray) -> int:
        """About how many entries a column has, of points in maximin order; 0 where that is not given.

        Within ρ these are half of the pairs, the others being their mirror images.
        """
        if self.neighbors is not None:
            return self.neighbors
        return round(pairs_within(z, self.rho * reach).mean() / 2) if isinstance(self.rho, int | float) else 0


def make_problem(gp: LatentGP, s: Structure, u: Float[Array, "n m"], rule: Rule = "kl") -> Problem:
    """The problem of a process whose prior has this factor."""
    mu = gp.mean.at(jnp.asarray(gp.X))
    likelihood = AtMean(gp.likelihood) if rule == "laplace" else gp.likelihood
    return Problem(s, u, mu[s.order], likelihood, jnp.asarray(gp.y, u.dtype)[s.order])


def build_pattern(gp: LatentGP, extent: Extent, scales: Any = None, nearer: bool = False) -> Structure:
    """Order and pattern of a process at its data, for these length scales or its own; on the host.

    Maximin order; or with ``nearer``, where columns have a number of neighbours, what `choose_order` says. That is for
    factors of the prior alone: in random order the posterior's, which drops more of its fill-in, is a poor one.

    Raises
    ------
    InvalidArgument
        Two rows coincide, or the pattern would not fit in memory.
    """
    x = np.asarray(gp.X)
    extent = extent.given(x.shape[1])
    z = x / np.asarray(gp.kernel.scales(x.shape[1]) if scales is None else scales)
    order, reach = maximin(z)
    if extent.neighbors is not None:
        count = min(extent.neighbors, len(x) - 1)
        check_memory(f"neighbors={extent.neighbors}", np.minimum(np.arange(len(x)), count) + 1, count * len(x))
        order = choose_order(gp, z, order, count) if nearer else order
        rows = nearest_pattern(z[order], count)
    else:
        z = z[order]
        rho = extent.radius(gp, z, order, reach)
        pairs = pairs_within(z, rho * reach)
        # About half of the pairs are in the pattern, the rest are their mirror images among the ancestors.
        check_memory(f"rho={rho:g}", np.zeros(0), int(pairs.sum()))
        rows = radius_pattern(z, reach, rho)
        check_memory(f"rho={rho:g}", rows[0].widths(), int(pairs.sum()))
    return build_structure(order, *rows, round_to=ROUND_TO)


def choose_radius(gp: LatentGP, z: np.ndarray, order: np.ndarray, reach: np.ndarray) -> float:
    """The least of `RADII` from which the next one brings the prior nearer by less than 0.01 nats per point.

    KL(p ‖ p̂) = −Σ log U_ii − ½ log det K, and columns are independent of each other, so that some of them tell how fast
    it falls. Columns of more than 400 entries are not looked at: the radius is at most what stays below.
    """
    from scipy.spatial import KDTree

    n = len(z)
    tree, some = KDTree(z), np.sort(np.random.default_rng(0).choice(n, min(n, SAMPLED), replace=False))
    radii = []
    for rho in RADII:
        balls = tree.query_ball_point(z[some], rho * reach[some] * (1 + ROUNDING), return_length=True)
        if radii and balls.max() > WIDEST and balls.max() > radii[-1][1]:
            break
        radii.append((rho, balls.max()))
    widest = radii[-1][0]
    balls = tree.query_ball_point(z[some], widest * reach[some] * (1 + ROUNDING))
    before = [np.sort([j for j in ball if j <= i]) for i, ball in zip(some, balls, strict=True)]
    width, x = max(map(len, before)), np.asarray(gp.X)[order]
    covariance = jax.jit(lambda gp, x: gp.covariance(x))
    logs = np.zeros((len(some), len(radii)))
    for row, (i, rows) in enumerate(zip(some, before, strict=True)):
        padded = np.concatenate([rows, np.full(width - len(rows), i)])  # one program for all columns
        k = np.asarray(covariance(gp, x[padded]))
        gap = np.sqrt(((z[rows] - z[i]) ** 2).sum(1))
        for column, (rho, _) in enumerate(radii):
            near = np.flatnonzero(gap <= rho * reach[i] * (1 + ROUNDING))
            logs[row, column] = -np.log(np.linalg.cholesky(k[np.ix_(near, near)])[-1, -1])
    gained = np.diff(logs.mean(0))
    enough = np.flatnonzero(gained < LITTLE)
    return radii[enough[0]][0] if enough.size else widest


def choose_order(gp: LatentGP, z: np.ndarray, order: np.ndarray, count: int, noise: float = 0.0) -> np.ndarray:
    """Maximin or random order, whichever brings the prior nearer that gives each point its nearest earlier ones.

    KL(p ‖ p̂) = −Σ log U_ii − ½ log det K tells. Maximin order is the better one in the plane and with few neighbours;
    with 20 in five dimensions, where most of the points that it takes first are at the boundary, it is not.

    Parameters
    ----------
    gp, z
        The process, and its inputs in units of its length scales.
    order
        Maximin order.
    count
        Number of nearest earlier points.
    noise
        Variance that observations add to the process, where these are ordered.
    """
    if z.shape[1] <= PLANE:
        return order
    n, rng = len(z), np.random.default_rng(0)
    orders = order, rng.permutation(n)
    some = np.sort(rng.choice(n, min(n, COMPARED), replace=False))
    found = []
    for one in orders:
        columns = columns_alone(one, nearest_columns(z[one], count)).columns[some]
        found.append(float(_sum_log_diagonal(gp, jnp.asarray(gp.X)[one], columns, jnp.asarray(noise))))
    return orders[int(np.nanargmax(found))] if np.isfinite(found).any() else order


@eqx.filter_jit
def _sum_log_diagonal(gp: LatentGP, x: Array, columns: Array, noise: Array) -> Array:
    """Σ log U_ii over some columns."""
    u = prior_columns(lambda at: gp.covariance(at) + noise * jnp.eye(len(at)), x, columns)
    return jnp.sum(jnp.log(u[:, -1]))


def pairs_within(z: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How many points are in each point's ball, itself included."""
    from scipy.spatial import KDTree

    return KDTree(z).query_ball_point(z, radius * (1 + ROUNDING), return_length=True)


def nearest_observations(gp: LatentGP, scales: np.ndarray, least: int, extent: Extent | None = None) -> Structure:
    """An order, and the nearest earlier points of each, what `evidence` takes; on the host.

    At least so many of them, and as many as columns of ``extent`` have on average.
    """
    z, count = np.asarray(gp.X) / scales, least
    order, reach = maximin(z)
    if extent is not None:
        count = max(least, extent.given(z.shape[1]).width(z[order], reach))
    count = min(count, len(z) - 1)
    order = choose_order(gp, z, order, count, float(np.asarray(cast("Gaussian", gp.likelihood).variance)))
    return columns_alone(order, nearest_columns(z[order], count))


def check_memory(setting: str, widths: np.ndarray, num_pairs: int, limit: int | None = None) -> None:
    """Refuse a pattern that does not fit in memory.

    Parameters
    ----------
    setting
        What it comes of, as the user may have written it.
    widths
        Entries of each column, as far as known.
    num_pairs
        Pairs of points that the host lists.
    limit
        Bytes; by default nine tenths of the machine's memory.

    Raises
    ------
    InvalidArgument
        It needs more.
    """
    if limit is None:
        limit = int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    widths = np.asarray(widths, float)
    products = float((0.5 * widths * (widths - 1)).sum())
    entries = float(len(widths) * widths.max(initial=0.0))
    need = PAIR_BYTES * num_pairs + 1.25 * PRODUCT_BYTES * products + ENTRY_BYTES * entries
    if need > limit:
        mean = f"columns of {widths.mean():.0f} entries (at most {widths.max():.0f})" if widths.size else "a pattern"
        raise InvalidArgument(
            f"{setting} leads to {mean} and {num_pairs:,} pairs of near points, about {need / 2**30:.1f} GiB, more "
            f"than the {limit / 2**30:.1f} GiB there are; lower rho, give neighbors, or begin with length scales that "
            f"fit the inputs."
        )


def colours(z: np.ndarray, count: int) -> Int[np.ndarray, " n"]:
    """A colour of ``count`` for each point, in maximin order, such that points of one colour are far apart.

    Each takes one that its nearest earlier points have not, or the one whose nearest point is farthest. A probe of one
    colour with random signs gives the trace of M up to M's entries between points of that colour, which are small where
    they decay with distance (Tang & Saad 2012): at the cost of ``count`` probes on all points, a sixteenth of the
    variance and less.
    """
    from scipy.spatial import KDTree

    n = len(z)
    tree, width = KDTree(z), min(n, 2 * count, COLOUR_NEIGHBORS)
    colour = np.full(n, -1, np.int32)
    for begin in range(0, n, COLOUR_BLOCK):
        near = tree.query(z[begin : begin + COLOUR_BLOCK], np.arange(1, width + 1))[1]
        for i, row in enumerate(near, begin):
            there = colour[row]
            there = there[there >= 0][::-1]
            rank = np.full(count, width)
            rank[there] = np.arange(len(there) - 1, -1, -1)  # the nearest of a colour is written last
            best = np.flatnonzero(rank == rank.max())
            colour[i] = best[i % len(best)]
    return colour
