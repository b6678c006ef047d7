"""Calibration against closed forms, and distribution functions against SciPy's."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st

from pushforward.models.last_layer.calibration import (
    Calibration,
    distribution_function,
    draw_calibration,
    draw_scores,
    of_classes,
    of_regression,
    separation,
)


def test_intervals_of_a_normal_that_is_too_narrow_hold_too_seldom() -> None:
    z = st.norm(0, 2).ppf((np.arange(20_000) + 0.5) / 20_000)
    right = of_regression(st.norm(0, 2).cdf(z))
    np.testing.assert_allclose(right.observed, right.expected, atol=2e-4)
    narrow = of_regression(st.norm(0, 1).cdf(z))
    expected = 2 * st.norm.cdf(st.norm.ppf(0.5 + right.expected / 2) / 2) - 1
    np.testing.assert_allclose(narrow.observed, expected, atol=2e-4)
    assert narrow.error == pytest.approx(np.mean(right.expected - expected), abs=2e-4)


def test_the_calibration_error_of_labels() -> None:
    """Four rows in two bins: 0.62 and 0.64, one right; 0.9 and 0.92, both right."""
    top = np.array([0.62, 0.64, 0.9, 0.92])
    found = of_classes(np.stack([top, 1 - top], 1), np.array([0, 1, 0, 0]))
    np.testing.assert_allclose(found.expected, [0.63, 0.91])
    np.testing.assert_allclose(found.observed, [0.5, 1.0])
    np.testing.assert_allclose(found.share, [0.5, 0.5])
    assert found.error == pytest.approx(0.5 * 0.13 + 0.5 * 0.09)


def test_distribution_functions_are_scipys() -> None:
    with jax.enable_x64(True):
        y, df, loc, scale = np.array([-1.0, 0.3, 4.0]), np.array([3.0, 2.5, 9.0]), np.array([0.1, 0.5, 1.0]), 1.7
        found = distribution_function(dist.StudentT(df, loc, scale), y)
        np.testing.assert_allclose(found, st.t(df, loc, scale).cdf(y), rtol=1e-8)
        shares, at = np.array([0.2, 0.8]), np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
        mixture = dist.MixtureSameFamily(dist.Categorical(probs=np.tile(shares, (3, 1))), dist.Normal(at, scale))
        found = distribution_function(mixture, y)
        np.testing.assert_allclose(found, st.norm(at, scale).cdf(y[:, None]) @ shares, rtol=1e-8)


def test_separation_counts_ties_by_half() -> None:
    assert separation([3.0, 2.0, 1.0], [2.0, 0.0]) == pytest.approx((2 + 1.5 + 1) / 6)
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 3000), rng.normal(0, 1, 3000)
    assert separation(inside, outside) == pytest.approx(st.norm.cdf(1 / np.sqrt(2)), abs=0.03)


def test_pictures_show_what_was_found() -> None:
    found = Calibration(np.array([0.2, 0.8]), np.array([0.1, 0.7]), np.array([0.5, 0.5]), 0.1)
    figure = draw_calibration(plt, found, "classification")
    line = figure.axes[0].lines[1]
    np.testing.assert_allclose(line.get_ydata(), found.observed)
    scores = draw_scores(plt, {"near": np.linspace(0, 1, 50), "far": np.linspace(-3, -2, 50)})
    assert [text.get_text() for text in scores.axes[0].get_legend().get_texts()] == ["near", "far"]
    plt.close("all")
