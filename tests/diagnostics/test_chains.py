"""R-hat, ESS and MCSE against ArviZ and against chains whose answers are known."""

import math

import numpy as np
import pytest
from scipy import stats

from pushforward.infer.diagnostics import chains, summary


def autoregressive(rng, rho, shape):
    """AR(1) chains with standard normal marginals."""
    x = rng.normal(size=shape)
    for t in range(1, shape[-1]):
        x[..., t] = rho * x[..., t - 1] + math.sqrt(1 - rho**2) * x[..., t]
    return x


def zoo(rng, chain, draw):
    shape = (chain, draw)
    return np.stack([
        rng.normal(size=shape),
        np.cumsum(rng.normal(size=shape), axis=-1),
        rng.poisson(2, size=shape).astype(float),
        rng.standard_cauchy(shape),
        np.exp(rng.normal(size=shape)),
        autoregressive(rng, -0.6, shape),
        np.sin(np.arange(draw) * 2.9) + 0.3 * rng.normal(size=shape),
        (rng.random(shape) < 0.5).astype(float),
        np.round(autoregressive(rng, 0.9, shape), 1),
        np.full(shape, 3.0),
    ])  # fmt: skip


@pytest.mark.parametrize(("chain", "draw"), [(4, 1000), (4, 101), (2, 20), (4, 7), (1, 400), (3, 4), (2, 5), (8, 37)])
def test_equal_to_arviz(chain, draw):
    from arviz_stats.base import array_stats

    x = zoo(np.random.default_rng(draw), chain, draw)
    ours = chains.chain_statistics(x, (0.055, 0.945))
    with np.errstate(divide="ignore", invalid="ignore"):
        reference = {
            "mean": x.mean(axis=(1, 2)),
            "sd": x.std(axis=(1, 2), ddof=1),
            "ess_bulk": array_stats.ess(x, method="bulk"),
            "ess_tail": array_stats.ess(x, method="tail", prob=(0.05, 0.95)),
            "ess_mean": array_stats.ess(x, method="mean"),
            "ess_sd": array_stats.ess(x, method="sd"),
            "r_hat": array_stats.rhat(x),
            "mcse_mean": array_stats.mcse(x, method="mean"),
            "mcse_sd": array_stats.mcse(x, method="sd"),
            "quantiles": array_stats.quantile(x, [0.055, 0.945], axis=(1, 2)),
        }
    if chain == 1:  # ArviZ gives none; ours compares the halves
        assert np.isfinite(ours["r_hat"][:-1]).all()
        del reference["r_hat"]
    for name, value in reference.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-10, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_ess_and_mcse_of_autoregressive_chains(rho):
    """τ = (1 + ρ)/(1 − ρ), and the MCSE is the standard deviation of the mean over repetitions."""
    x = autoregressive(np.random.default_rng(1), rho, (400, 4, 1000))
    out = chains.chain_statistics(x)
    exact = 4000 * (1 - rho) / (1 + rho)
    assert np.median(out["ess_mean"]) == pytest.approx(exact, rel=0.07)
    assert np.median(out["ess_bulk"]) == pytest.approx(exact, rel=0.07)
    assert np.median(out["mcse_mean"]) == pytest.approx(out["mean"].std(), rel=0.15)
    # The square of a Gaussian AR(1) chain has autocorrelation ρ².
    assert np.median(out["ess_sd"]) == pytest.approx(4000 * (1 - rho**2) / (1 + rho**2), rel=0.07)
    assert np.median(out["mcse_sd"]) == pytest.approx(out["sd"].std(), rel=0.15)


def test_rhat_by_hand():
    x = np.array([[[0.0, 2.0, 1.0, 1.0], [3.0, 5.0, 4.0, 4.0]]])
    within, between, n = 2 / 3, 4 * np.var([1.0, 4.0], ddof=1), 4
    expected = math.sqrt(((n - 1) / n * within + between / n) / within)
    np.testing.assert_allclose(chains.split_rhat(x), [expected], rtol=1e-14)


def test_rhat_sees_location_and_scale():
    x = np.random.default_rng(2).normal(size=(3, 4, 500))
    x[1, 0] += 1.0
    x[2, 0] *= 3.0
    r_hat = chains.chain_statistics(x)["r_hat"]
    assert r_hat[0] < 1.01
    assert (r_hat[1:] > 1.05).all()


def test_chains_that_stand_still():
    """R-hat of a constant does not exist; of chains that stand still apart it is infinite, whatever the values."""
    rng = np.random.default_rng(5)
    steps = rng.integers(0, 2, (4, 101)).astype(float)
    steps[:, :50] = np.arange(50) % 2  # as many zeros as ones: the folded draws are constant, the draws are not
    steps[:, 51:] = np.arange(50) % 2
    apart = np.repeat([[0.1], [0.2], [0.3], [0.7]], 101, axis=1)
    x = np.stack([np.full((4, 101), 1 / 3), apart, steps])
    r_hat = chains.chain_statistics(x)["r_hat"]
    assert np.isnan(r_hat[0])
    assert r_hat[1] == np.inf
    assert r_hat[2] == pytest.approx(1.0, abs=0.02)
    shown = summary.format_table({"mean": x.mean((1, 2)), "sd": x.std((1, 2)), "r_hat": r_hat})["r_hat"]
    assert shown[:2] == ["–", "∞"]


def test_normal_scores():
    rng = np.random.default_rng(0)
    for n in (1, 2, 11, 12, 13):
        cases = [rng.permutation(n), np.zeros(n), rng.integers(0, 3, n), np.sort(rng.integers(0, 7, n))]
        for x in map(np.asarray, cases):
            z, ordered = chains.rank_normalize(x.astype(float).reshape(1, 1, n))
            expected = stats.norm.ppf((stats.rankdata(x) - 0.375) / (n + 0.25))  # average ranks
            np.testing.assert_allclose(z[0, 0], expected, rtol=1e-12, atol=1e-15)
            np.testing.assert_array_equal(ordered[0], np.sort(x))


def test_fft_length():
    for n in [*range(2, 200), 1999, 2001, 199_999]:
        length = chains._fft_length(n)
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        assert rest == 1
        assert n <= length < 2 * n
    assert chains._fft_length(1009) == 1024
    assert chains._fft_length(961) == 972
    assert chains._fft_length(4001) == 4050


def test_scalars_with_nonfinite_draws_do_not_touch_others():
    x = np.random.default_rng(3).normal(size=(3, 4, 100))
    clean = chains.chain_statistics(x, (0.5,))
    x[1, 2, 5], x[1, 0, 0] = np.nan, np.inf
    out = chains.chain_statistics(x, (0.5,))
    assert out["nonfinite"].tolist() == [0, 2, 0]
    for name, value in out.items():
        np.testing.assert_array_equal(value[[0, 2]], clean[name][[0, 2]])
        assert name == "nonfinite" or np.isnan(value[1]).all()


@pytest.mark.parametrize("draw", [1, 2, 3])
def test_too_short_to_judge(draw):
    out = chains.chain_statistics(np.random.default_rng(4).normal(size=(2, 4, draw)), (0.1, 0.9))
    assert np.isnan(out["r_hat"]).all()
    assert np.isfinite(out["mean"]).all()
    assert out["quantiles"].shape == (2, 2)


def test_rhat_limit_is_exceeded_by_chance_only_rarely():
    """Chains with few effective draws exceed 1.01 all the time, and the limit in about one of a hundred tables."""
    rng, exceeded, above = np.random.default_rng(5), 0, 0
    for _ in range(60):
        out = chains.chain_statistics(autoregressive(rng, 0.8, (40, 4, 1000)))
        above += (out["r_hat"] > 1.01).any()
        exceeded += (out["r_hat"] > chains.rhat_limit(out["ess_within"], 4, 40)).any()
    assert above >= 50
    assert exceeded <= 3


def test_rhat_limit_does_not_forgive_chains_that_disagree():
    x = np.random.default_rng(6).normal(size=(1, 4, 1000))
    x[0, 3] += 0.5
    out = chains.chain_statistics(x)
    assert out["r_hat"][0] > chains.rhat_limit(out["ess_within"], 4, 1000)[0]
