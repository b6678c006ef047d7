"""PSIS, ELBO and weighted moments against ArviZ, known tails and closed forms."""

import math

import numpy as np
import pytest

from pushforward.infer.diagnostics import psis as module
from pushforward.infer.diagnostics.psis import (
    elbo,
    importance_evidence,
    k_hat_threshold,
    psis,
    weighted_moments,
    weighted_quantiles,
    weights_ess,
)
from pushforward.infer.errors import InvalidArgument


def weight_sets():
    rng = np.random.default_rng(0)
    return {
        "normal": rng.normal(size=1000) + 300.0,
        "heavy": rng.standard_t(3, size=4000),
        "pareto": 0.9 * rng.exponential(size=4000),
        "light": -(rng.normal(size=1000) ** 2),
        "few": 3 * rng.normal(size=100),
        "very few": rng.normal(size=30),
        "zeros": np.where(rng.random(2000) < 0.7, -np.inf, rng.normal(size=2000)),
    }


@pytest.mark.parametrize("name", weight_sets())
def test_equal_to_arviz(name):
    from arviz_stats.base import array_stats

    log_weights = weight_sets()[name]
    smoothed, k_hat = array_stats.psislw(-log_weights)
    ours = psis(log_weights)
    assert ours.k_hat == pytest.approx(float(k_hat), abs=1e-10)
    np.testing.assert_allclose(ours.log_weights, smoothed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_k_hat_of_pareto_tails(k):
    """exp(k E) with E exponential is Pareto with shape k; its excesses are exactly generalised Pareto."""
    estimates = [psis(k * np.random.default_rng(i).exponential(size=20_000)).k_hat for i in range(20)]
    assert np.mean(estimates) == pytest.approx(k, abs=0.04)


def test_k_hat_of_a_normal_that_is_too_narrow():
    """q = N(0, s²) for N(0, 1): weights exp(x² (1/s² − 1)/2) have the tail index 1 − s²."""
    rng = np.random.default_rng(1)
    for s2 in (0.25, 0.5, 0.8):
        x = math.sqrt(s2) * rng.normal(size=200_000)
        log_weights = 0.5 * x**2 * (1 / s2 - 1)
        assert psis(log_weights).k_hat == pytest.approx(1 - s2, abs=0.12)
        assert psis(-log_weights).k_hat < 0, "of the inverse weights, which are bounded"
    x = 1.5 * rng.normal(size=10_000)
    assert psis(-0.5 * x**2 * (1 - 1 / 2.25)).k_hat < 0.2


def test_smoothed_weights_are_normalised_and_bounded():
    log_weights = weight_sets()["heavy"]
    out = psis(log_weights).log_weights
    assert np.exp(out).sum() == pytest.approx(1.0, rel=1e-12)
    raw = log_weights - log_weights.max()
    body = np.argsort(raw)[:-200]
    np.testing.assert_allclose(np.diff(out[body]), np.diff(raw[body]), atol=1e-10)  # the body is only shifted


def test_equal_weights_and_few_draws():
    same = psis(np.full(500, -3.0))
    assert same.k_hat == -math.inf
    np.testing.assert_allclose(same.log_weights, -math.log(500))
    assert math.isnan(psis(np.arange(20.0)).k_hat)
    assert np.exp(psis(np.arange(20.0)).log_weights).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_must_be_numbers(bad):
    with pytest.raises(InvalidArgument, match=r"log_weights has 1 values that are NaN or \+inf"):
        psis(np.array([0.0] * 50 + [bad]))
    with pytest.raises(InvalidArgument, match="no finite value among 30"):
        psis(np.full(30, -np.inf))


def test_thresholds_of_vehtari():
    assert k_hat_threshold(100) == pytest.approx(0.5)
    assert k_hat_threshold(1000) == pytest.approx(2 / 3)
    assert k_hat_threshold(10_000) == 0.7


def test_weighted_moments_and_their_errors():
    """q = N(0, 1.3²), π = N(0.5, 1): the moments are those of π, and the z-scores of 300 repetitions are standard."""
    z_mean, z_sd = [], []
    for i in range(300):
        x = 1.3 * np.random.default_rng(i).normal(size=(1, 2000))
        log_weights = (-0.5 * (x - 0.5) ** 2 + 0.5 * (x / 1.3) ** 2)[0]
        m = weighted_moments(x, log_weights)
        z_mean.append((m.mean[0] - 0.5) / m.mean_error[0])
        z_sd.append((m.sd[0] - 1.0) / m.sd_error[0])
    for z in (z_mean, z_sd):
        assert abs(np.mean(z)) < 0.25
        assert np.std(z) == pytest.approx(1.0, abs=0.12)


def test_equal_weights_give_plain_moments():
    x = np.random.default_rng(2).normal(size=(3, 400))
    m = weighted_moments(x, np.zeros(400))
    np.testing.assert_allclose(m.mean, x.mean(axis=1))
    np.testing.assert_allclose(m.sd, x.std(axis=1, ddof=1))
    np.testing.assert_allclose(m.mean_error, x.std(axis=1) / 20)
    assert weights_ess(np.full(400, -7.0)) == pytest.approx(400)


def test_weights_ess_and_quantiles_by_hand():
    log_weights = np.log([0.5, 0.25, 0.125, 0.125])
    assert weights_ess(log_weights + 5) == pytest.approx(1 / (0.25 + 0.0625 + 2 * 0.015625))
    x = np.array([[3.0, 1.0, 4.0, 2.0]])  # sorted 1, 2, 3, 4 with weights 0.25, 0.125, 0.5, 0.125
    out = weighted_quantiles(x, log_weights, (0.125, 0.3125, 0.625, 0.9375))
    np.testing.assert_allclose(out, [[1.0, 2.0, 3.0, 4.0]])


def test_elbo_is_minus_the_divergence_of_normals():
    """log p = log N(u; 0, 1) + 3, q = N(m, s²): ELBO = 3 − KL(q ‖ p), with an honest standard error."""
    m, s = 0.7, 0.6
    exact = 3.0 - (0.5 * (s**2 + m**2 - 1) - math.log(s))
    z = []
    for i in range(300):
        e = np.random.default_rng(i).normal(size=500)
        u = m + s * e
        norm = -0.5 * math.log(2 * math.pi)
        out = elbo(norm - 0.5 * u**2 + 3.0, norm - 0.5 * e**2 - math.log(s))
        z.append((out.value - exact) / out.error)
    assert abs(np.mean(z)) < 0.2
    assert np.std(z) == pytest.approx(1.0, abs=0.12)
    assert math.isnan(elbo(np.array([-np.inf, 0.0]), np.zeros(2)).error)


def test_importance_evidence():
    z = []
    for i in range(300):
        e = np.random.default_rng(i).normal(size=1000)
        log_weights = -0.5 * (1.4 * e) ** 2 + 5.0 + 0.5 * e**2 + math.log(1.4)  # Z = exp(5)
        out = importance_evidence(log_weights)
        z.append((out.value - 5.0) / out.error)
    assert abs(np.mean(z)) < 0.2
    assert np.std(z) == pytest.approx(1.0, abs=0.12)


def test_fit_of_a_degenerate_tail():
    assert math.isnan(module.fit_generalized_pareto(np.array([0.0] * 30 + [1.0, 2.0]))[0])


def test_k_hat_where_a_few_draws_have_all_the_weight():
    """The tail of exp(1000 E) cannot be fitted, as its smaller weights underflow; ties at the top are no such tail."""
    heavy = 1000.0 * np.random.default_rng(0).exponential(size=1000)
    assert psis(heavy).k_hat == math.inf
    assert math.isnan(psis(np.where(np.arange(1000) < 5, math.log(2.0), 0.0)).k_hat)


def test_moments_where_one_draw_has_all_the_weight():
    """The others' weights vanish against rounding: no overflow is warned of, and the errors are without bound."""
    log_weights = np.full(10, -40.0)
    log_weights[3] = 0.0
    moments = weighted_moments(np.arange(10.0)[None] * 1e3, log_weights)
    assert moments.mean[0] == pytest.approx(3e3)
    assert moments.sd[0] > 1e100
