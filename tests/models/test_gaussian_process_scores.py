"""Scores of predictions against their integrals."""

import numpy as np
import pytest
import scipy.stats as st
from scipy.integrate import quad

import pushforward as pf
from pushforward.models.gaussian_process import scores


def test_crps_is_the_integral_of_the_squared_difference_of_distributions():
    for mean, sd, y in ((0.0, 1.0, 0.3), (1.0, 0.4, -0.5), (-2.0, 3.0, 4.0)):
        normal = st.norm(mean, sd)
        below = quad(lambda t: normal.cdf(t) ** 2, -40, y)[0]  # noqa: B023
        above = quad(lambda t: normal.sf(t) ** 2, y, 40)[0]  # noqa: B023
        assert float(scores.crps_normal(mean, sd, y)) == pytest.approx(below + above, abs=1e-7)
    draws = np.array([[1.0, 2.0], [4.0, 2.5], [-1.0, 7.0]])
    y = np.array([0.5, 3.0])
    pairs = np.abs(draws[:, None] - draws).sum((0, 1)) / 6
    np.testing.assert_allclose(scores.crps_draws(draws, y), np.abs(draws - y).mean(0) - 0.5 * pairs)
    many = np.random.default_rng(0).normal(1.0, 0.4, size=(20_000, 1))
    assert float(scores.crps_draws(many, [-0.5])[0]) == pytest.approx(
        float(scores.crps_normal(1.0, 0.4, -0.5)), abs=0.02
    )
    with pytest.raises(pf.InvalidArgument, match="draws has 1 rows"):
        scores.crps_draws([[1.0]], [1.0])


def test_interval_score_is_least_at_the_quantiles():
    """A factor other than 2 / alpha moves the optimum away from them."""
    normal = st.norm(0.3, 1.2)
    y = normal.ppf((np.arange(20_000) + 0.5) / 20_000)
    grid = np.linspace(0.80, 0.995, 40)
    means = [scores.interval_score(*normal.interval(p), y, 0.9).mean() for p in grid]
    assert abs(grid[int(np.argmin(means))] - 0.9) < 0.006
    np.testing.assert_allclose(scores.interval_score(-1.0, 1.0, [0.0, 2.0, -1.5], 0.95), [2.0, 42.0, 22.0])
    with pytest.raises(pf.InvalidArgument, match=r"level must be between 0 and 1, got 1\.5"):
        scores.interval_score(0.0, 1.0, 0.5, 1.5)
