"""Whether ranks are uniform: the simultaneous test of their empirical distribution function, computed exactly.

N ranks among L draws take one of K = L + 1 values, each as often as the others if the draws have the distribution of
the truth. At every z_i = i / K the count C_i of ranks below i is Binomial(N, z_i); its two-sided p-value there is
p_i = min(1, 2 P(C ≤ C_i), 2 P(C ≥ C_i)). The statistic is the least p_i, and its p-value that of the least of all p_i
under uniformity, which a recursion over i gives without simulation: given C_{i−1} = c the next count is
c + Binomial(N − c, 1 / (K − i + 1)).

That test sees any difference, and each of them late. Two by which posteriors mostly fail, ranks that lean to one side
and ranks that lean to both ends or to the middle, are seen earlier by the smooth test of order 2: the sum of squares of
two uncorrelated scores, of the mean and of the spread of the ranks, has two degrees of freedom, so that
p = exp(−T / 2). Of the two tests' p-values twice the smaller one counts.

Säilynoja, Bürkner and Vehtari (2022), "Graphical test for discrete uniformity and its applications in goodness-of-fit
evaluation and multiple sample comparison", Statistics and Computing 32:32 (their algorithm 1 and section 2.2). Neyman
(1937), "Smooth test for goodness of fit", Skandinavisk Aktuarietidskrift 20:149.

Cost: K products of a band of the (√N × √N)-ish matrices of transitions, O(K N) numbers.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SMALLEST = 1e-14
"""Below this a p-value is lost in rounding."""


class Uniformity(NamedTuple):
    """What the test says of some ranks.

    Parameters
    ----------
    p_value
        Of both tests together: twice the smaller one of the next two, at most 1.
    function, smooth
        p-values of the test of the distribution function (exact), and of the smooth test.
    location, spread
        z-scores of the mean of the ranks, and of their mean squared distance from the middle.
    """

    p_value: float
    function: float
    smooth: float
    location: float
    spread: float


def check_uniform(ranks: np.ndarray, num_draws: int) -> Uniformity:
    """Test ranks 0, …, L of N independent data sets for uniformity.

    Parameters
    ----------
    ranks
        Integer array of shape (N,).
    num_draws
        L, the number of draws among which each truth was ranked.
    """
    ranks, cells = np.asarray(ranks), num_draws + 1
    n = len(ranks)
    counts = np.cumsum(np.bincount(ranks, minlength=cells))[:-1]
    least = min(1.0, float(pointwise(n, cells)[np.arange(cells - 1), counts].min()))
    u = (ranks + 0.5) / cells - 0.5
    # Moments of the discrete uniform distribution on the middles of K cells.
    variance = (cells**2 - 1) / (12 * cells**2)
    fourth = (3 * cells**4 - 10 * cells**2 + 7) / (240 * cells**4)
    location = float(u.mean() / math.sqrt(variance / n))
    spread = float((np.square(u).mean() - variance) / math.sqrt((fourth - variance**2) / n))
    function, smooth = simultaneous_p(least, n, cells), math.exp(-0.5 * (location**2 + spread**2))
    return Uniformity(min(1.0, 2 * min(function, smooth)), function, smooth, location, spread)


@lru_cache(maxsize=8)
def pointwise(n: int, cells: int) -> np.ndarray:
    """Two-sided p-value of each count 0, …, n at each z_i, i = 1, …, K − 1: array of shape (K − 1, n + 1)."""
    from scipy.stats import binom

    z = np.arange(1, cells)[:, None] / cells
    counts = np.arange(n + 1)
    return np.minimum(1.0, 2 * np.minimum(binom.cdf(counts, n, z), binom.sf(counts - 1, n, z)))


@lru_cache(maxsize=4096)
def simultaneous_p(least: float, n: int, cells: int) -> float:
    """P(min_i p_i ≤ ``least``) for n uniform ranks in K cells."""
    if least >= 1.0:
        return 1.0
    inside = pointwise(n, cells) > least * (1 + 1e-12)  # equal p-values at other z, but for rounding
    if not inside.any(axis=1).all():
        return 1.0
    low, high = inside.argmax(axis=1), n - inside[:, ::-1].argmax(axis=1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))
    first, mass = 0, np.ones(1)  # of the counts first, first + 1, …
    for i in range(1, cells):
        q = 1.0 / (cells - i + 1)
        before = first + np.arange(len(mass))
        after = np.arange(low[i - 1], high[i - 1] + 1)
        step, left = after[None, :] - before[:, None], (n - before)[:, None]
        valid = (step >= 0) & (step <= left)
        step = np.where(valid, step, 0)
        log_p = log_factorial[left] - log_factorial[step] - log_factorial[left - step]
        log_p = log_p + step * math.log(q) + (left - step) * math.log1p(-q)
        mass = mass @ np.where(valid, np.exp(log_p), 0.0)
        first = int(low[i - 1])
    return float(np.clip(1.0 - mass.sum(), SMALLEST, 1.0))


@lru_cache(maxsize=64)
def band(n: int, num_draws: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Simultaneous band of the empirical distribution function: with probability ≥ 1 − level all of it is inside.

    Returns
    -------
    Lowest and highest counts of ranks below i, for i = 1, …, L, each of shape (L,).
    """
    cells = num_draws + 1
    table = pointwise(n, cells)
    # The largest pointwise level that is rejected with probability at most ``level``: bisection in its logarithm.
    low, high = math.log(SMALLEST), 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if simultaneous_p(math.exp(middle), n, cells) <= level else (low, middle)
    inside = table > math.exp(low)
    return inside.argmax(axis=1), n - inside[:, ::-1].argmax(axis=1)
