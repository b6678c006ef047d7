"""The exact test of uniform ranks against enumeration of all of them."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from pushforward.infer.study.uniformity import band, check_uniform, pointwise, simultaneous_p


def statistic(ranks, cells):
    """The least two-sided p-value of the counts below each z, written out."""
    n, least = len(ranks), 1.0
    for i in range(1, cells):
        count = sum(rank < i for rank in ranks)
        below, above = binom.cdf(count, n, i / cells), binom.sf(count - 1, n, i / cells)
        least = min(least, 2 * below, 2 * above)
    return least


@pytest.mark.parametrize(("n", "cells"), [(3, 4), (5, 3), (2, 6)])
def test_p_value_is_that_of_enumeration(n, cells):
    everything = list(itertools.product(range(cells), repeat=n))
    found = np.array([statistic(ranks, cells) for ranks in everything])
    for ranks, least in zip(everything[:: max(1, len(everything) // 30)], found[:: max(1, len(everything) // 30)]):
        expected = np.mean(found <= least * (1 + 1e-12))
        assert check_uniform(np.array(ranks), cells - 1).function == pytest.approx(expected, abs=1e-12)


def test_scores_have_unit_variance():
    """Over all ranks of 2 data sets: mean 0, variance 1."""
    cells = 7
    z = np.array([check_uniform(np.array(r), cells - 1)[3:] for r in itertools.product(range(cells), repeat=2)])
    assert z.mean(axis=0) == pytest.approx([0, 0], abs=1e-12)
    assert np.cov(z.T, ddof=0) == pytest.approx(np.eye(2), abs=1e-12)


@pytest.mark.parametrize("n", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_both_tests_together_keep_their_level(n):
    rng = np.random.default_rng(2)
    tests = [check_uniform(rng.integers(0, 101, n), 100) for _ in range(1000)]
    for level, slack in ((0.05, 0.02), (0.01, 0.009)):
        assert np.mean([t.smooth <= level for t in tests]) == pytest.approx(level, abs=slack)
        assert np.mean([t.p_value <= level for t in tests]) <= level + slack / 2


def test_band_has_its_level():
    n, draws, level = 60, 19, 0.1
    low, high = band(n, draws, level)
    rng = np.random.default_rng(0)
    counts = np.cumsum(rng.multinomial(n, np.full(draws + 1, 1 / (draws + 1)), size=40_000), axis=1)[:, :-1]
    inside = ((counts >= low) & (counts <= high)).all(axis=1).mean()
    assert 1 - level <= inside + 0.004  # Monte-Carlo error 0.0015
    assert inside < 1 - level + 0.03  # and no wider than the steps of the statistic demand
    at, table = np.arange(draws), pointwise(n, draws + 1)
    outside = max(table[at, low - 1][low > 0].max(), table[at, np.minimum(high + 1, n)][high < n].max())
    assert simultaneous_p(float(outside), n, draws + 1) <= level
    assert simultaneous_p(float(min(table[at, low].min(), table[at, high].min())), n, draws + 1) > level


def test_what_is_far_from_uniform_is_seen():
    rng = np.random.default_rng(1)
    narrow = (rng.beta(0.6, 0.6, 300) * 100).astype(int)
    low = (rng.beta(1.4, 1.0, 300) * 100).astype(int)
    assert check_uniform(narrow, 100).p_value < 1e-6
    assert check_uniform(narrow, 100).spread > 4
    assert check_uniform(low, 100).p_value < 1e-4
    assert check_uniform(low, 100).location > 4
    assert check_uniform(np.arange(101), 100).p_value == 1.0
