"""Maximin ordering and the sparsity patterns built on it; on the host, with NumPy and SciPy.

Points are taken one by one, each as far as possible from those already taken. Its distance to them, ℓ_i, is the length
scale at which it adds information, so that a column of the factor needs the earlier points within ρ ℓ_i only ([1]_):

* S_i = {j ≤ i : |z_i − z_j| ≤ ρ ℓ_i}, the rows of column i of both factors;
* A_i = {j ≤ i : |z_i − z_j| ≤ ρ ℓ_j} ∪ {0}, the reduced ancestors, on which a solve for variable i is done ([2]_).

Costs O(n log² n) for points that fill their space: a heap with lazy deletion, and one ball query per point; the balls
shrink as points are taken.

References
----------
.. [1] F. Schäfer, M. Katzfuss, H. Owhadi (2021). Sparse Cholesky factorization by Kullback-Leibler minimization. SIAM
   J. Sci. Comput. 43.
.. [2] J. Cao, M. Kang, F. Jimenez, H. Sang, F. Schäfer, M. Katzfuss (2023). Variational sparse inverse Cholesky
   approximation for latent Gaussian processes via double Kullback-Leibler minimization. ICML. arXiv:2301.13303.
"""

import heapq
from typing import NamedTuple

import numpy as np

from ...errors import InvalidArgument

ROUNDING = 1e-9
"""A neighbour exactly on the sphere of radius ρ ℓ_i, as the nearest one is for ρ = 1, must not fall out of it."""
FEW = 512
"""Balls are asked of the tree once they may hold fewer points than all: not for the first points."""


class Rows(NamedTuple):
    """Lists of indices of different lengths: those of i are ``index[start[i] : start[i + 1]]``, ascending."""

    start: np.ndarray
    index: np.ndarray

    def widths(self) -> np.ndarray:
        """Length of each list."""
        return np.diff(self.start)

    def of(self, i: int) -> np.ndarray:
        """The list of i."""
        return self.index[self.start[i] : self.start[i + 1]]

    def padded(self, width: int | None = None) -> np.ndarray:
        """As an array (n, width), each list at the right end of its row, −1 before it."""
        widths = self.widths()
        width = int(widths.max()) if width is None else width
        table = np.full((len(widths), width), -1, np.int32)
        row = np.repeat(np.arange(len(widths)), widths)
        within = np.arange(len(self.index)) - np.repeat(self.start[:-1], widths)
        table[row, width - np.repeat(widths, widths) + within] = self.index
        return table


def maximin(z: np.ndarray, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maximin order of points and their length scales.

    Parameters
    ----------
    z
        Points, shape (n, d), in units of the length scales of the kernel.
    first
        The point to begin with.

    Returns
    -------
    order, scales
        Row numbers in the order in which they are taken; ℓ in that order, non-increasing, ℓ_0 := ℓ_1.

    Raises
    ------
    InvalidArgument
        Two points coincide.
    """
    from scipy.spatial import KDTree

    z = np.asarray(z, float)
    n = len(z)
    tree = KDTree(z)
    distance = np.sqrt(((z - z[first]) ** 2).sum(1))
    distance[first] = -1.0  # taken
    order, scales = np.empty(n, np.int64), np.empty(n)
    order[0] = first
    heap = [(-d, i) for i, d in enumerate(distance.tolist()) if i != first]
    heapq.heapify(heap)
    for k in range(1, n):
        while True:
            negative, i = heapq.heappop(heap)
            if -negative == distance[i]:  # else the entry is older than its point's last update
                break
        reach = -negative
        if reach == 0.0:
            raise _coincide(z, i)
        order[k], scales[k] = i, reach
        distance[i] = -1.0
        # No point outside the ball can come nearer: all that are left are within the reach of what was taken.
        near = slice(None) if k < FEW // 16 else np.asarray(tree.query_ball_point(z[i], reach))
        new = np.sqrt(((z[near] - z[i]) ** 2).sum(1))
        better = np.flatnonzero(new < distance[near])
        index = better if isinstance(near, slice) else near[better]
        distance[index] = new[better]
        for d, j in zip(new[better].tolist(), index.tolist(), strict=True):
            heapq.heappush(heap, (-d, j))
    scales[0] = scales[1] if n > 1 else 1.0
    return order, scales


def radius_pattern(z: np.ndarray, scales: np.ndarray, rho: float) -> tuple[Rows, Rows]:
    """S and A of points that are already in maximin order; see the module.

    Parameters
    ----------
    z
        Ordered points, shape (n, d).
    scales
        Their ℓ.
    rho
        ρ ≥ 1.
    """
    from scipy.spatial import KDTree

    n = len(z)
    balls = KDTree(z).query_ball_point(z, rho * scales * (1 + ROUNDING))
    centre = np.repeat(np.arange(n), [len(ball) for ball in balls])
    other = np.fromiter((j for ball in balls for j in ball), np.int64, len(centre))
    before = other <= centre  # S: the ball of i, its earlier points
    after = other >= centre  # A: i is a reduced ancestor of the later points in its ball
    ones = np.arange(1, n)
    descendant = np.concatenate([other[after], ones])
    ancestor = np.concatenate([centre[after], np.zeros(n - 1, np.int64)])
    return _rows(n, centre[before], other[before]), _rows(n, descendant, ancestor)


def nearest_pattern(z: np.ndarray, count: int) -> tuple[Rows, Rows]:
    """S of the ``count`` nearest earlier points (all, where there are fewer), and A by the radii that these reach.

    A_i is here {j ≤ i : |z_i − z_j| ≤ r_j} ∪ S_i ∪ {0} with r_j the distance to the farthest point of S_j.
    """
    from scipy.spatial import KDTree

    n, (row, column, reach) = len(z), _nearest_before(z, count)
    balls = KDTree(z).query_ball_point(z, reach * (1 + ROUNDING))
    centre = np.repeat(np.arange(n), [len(ball) for ball in balls])
    other = np.fromiter((j for ball in balls for j in ball), np.int64, len(centre))
    after = other >= centre
    descendant = np.concatenate([other[after], row, np.arange(1, n)])
    ancestor = np.concatenate([centre[after], column, np.zeros(n - 1, np.int64)])
    return _rows(n, row, column), _rows(n, descendant, ancestor)


def nearest_columns(z: np.ndarray, count: int) -> Rows:
    """S of `nearest_pattern` alone."""
    row, column, _ = _nearest_before(z, count)
    return _rows(len(z), row, column)


def _nearest_before(z: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j) of each point and its ``count`` nearest earlier ones, itself included, and how far these reach."""
    from scipy.spatial import KDTree

    n = len(z)
    row, column, reach = [np.arange(n)], [np.arange(n)], np.zeros(n)
    for i in range(1, min(n, count + 1)):
        row.append(np.full(i, i))
        column.append(np.arange(i))
        reach[i] = np.sqrt(((z[:i] - z[i]) ** 2).sum(1)).max()
    reach[0] = reach[min(1, n - 1)]
    begin = count + 1
    while begin < n:  # blocks that double: at least half of the points asked are earlier ones
        end = min(n, 2 * begin)
        tree, left, width = KDTree(z[:end]), np.arange(begin, end), 2 * count + 4
        while left.size:
            found_at, found = tree.query(z[left], min(width, end))
            earlier = found < left[:, None]
            enough = earlier.sum(1) >= count
            rank = np.cumsum(earlier, 1)
            chosen = earlier & (rank <= count) & enough[:, None]
            row.append(np.repeat(left[enough], count))
            column.append(found[chosen])
            reach[left[enough]] = np.where(chosen, found_at, 0.0)[enough].max(1)
            left, width = left[~enough], 2 * width
        begin = end
    return np.concatenate(row), np.concatenate(column), reach


def levels(pattern: Rows) -> np.ndarray:
    """level(i) = 1 + the largest level in S_i ∖ i; columns of one level do not depend on each other."""
    level = [0] * (len(pattern.start) - 1)
    index, start = pattern.index.tolist(), pattern.start.tolist()
    for i in range(len(level)):
        parents = index[start[i] : start[i + 1] - 1]
        level[i] = 1 + max([level[j] for j in parents], default=-1)
    return np.asarray(level)


def _rows(n: int, row: np.ndarray, column: np.ndarray) -> Rows:
    """Lists from pairs, without repeats."""
    keys = np.unique(row * n + column)
    start = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(keys // n, minlength=n), out=start[1:])
    return Rows(start, (keys % n).astype(np.int32))


def _coincide(z: np.ndarray, i: int) -> InvalidArgument:
    same = np.flatnonzero((z == z[i]).all(1))
    shown = ", ".join(map(str, same[:5].tolist()))
    return InvalidArgument(
        f"X has rows that coincide: {shown}{', …' if same.size > 5 else ''}; merge their observations into one row, or "
        f"move them apart."
    )
