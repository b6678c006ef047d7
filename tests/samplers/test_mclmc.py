"""MCLMC: its tuning against BlackJAX's parts and known answers, and that its bias is what the step size makes it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.samplers.mclmc import (
    BUFFER,
    MCLMC,
    _new_search,
    autocorrelation_time,
    search_step_size,
    tuning_schedule,
)

VARIANCES = np.array([0.04, 0.25, 1.0, 1.0, 4.0, 25.0])


@cache
def gaussian() -> pf.Target:
    return pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2 / VARIANCES), np.zeros(6))


@cache
def anharmonic() -> pf.Target:
    # exp(-x⁴/4) in each coordinate: E x² = 2 Γ(3/4) / Γ(1/4).
    return pf.Target.from_log_density(lambda x: -0.25 * jnp.sum(x**4), np.zeros(10))


def test_autocorrelation_time_of_an_autoregression() -> None:
    # τ of an AR(1) with coefficient a is (1 + a) / (1 - a); averaged over 40 independent coordinates of each.
    coefficients = np.repeat([0.0, 0.5, 0.9], 40)
    with jax.enable_x64(True):
        noise = jax.random.normal(jax.random.key(0), (5000, 120))
        _, draws = jax.lax.scan(lambda x, z: (coefficients * x + z,) * 2, noise[0], noise)
        tau = np.asarray(autocorrelation_time(draws, jnp.asarray(len(draws)))).reshape(3, 40).mean(1)
    np.testing.assert_allclose(tau, [1, 3, 19], rtol=0.08)


def test_autocorrelation_time_is_that_of_blackjax_and_ignores_what_is_not_written() -> None:
    from blackjax.diagnostics import effective_sample_size

    with jax.enable_x64(True):
        noise = jax.random.normal(jax.random.key(1), (BUFFER, 2))
        _, draws = jax.lax.scan(lambda x, z: (jnp.array([0.6, 0.8]) * x + z,) * 2, noise[0], noise)
        garbage = draws.at[300:].set(1e9)
        found = autocorrelation_time(garbage, jnp.asarray(300))
        expected = 300 / effective_sample_size(draws[None, :300])
    np.testing.assert_allclose(found, expected, rtol=0.08)


def test_search_finds_the_step_size_of_the_wanted_energy_variance() -> None:
    # ΔE = 0.3 ε³ z has Var/d = 0.09 ε⁶ / d, which is 5e-4 for d = 10 at ε = (5e-3 / 0.09)^(1/6).
    search, step_size, rng = _new_search(), jnp.asarray(2.0), np.random.default_rng(0)
    trace = []
    for z in rng.normal(size=2000):
        search, step_size = search_step_size(search, step_size, 0.3 * step_size**3 * z, jnp.asarray(True), 10, 5e-4)
        trace.append(float(step_size))
    # The weights trust ξ near 1 most, which shifts the answer by a known factor: E[w ξ] / E[w] with ξ = z².
    z2 = rng.normal(size=400_000) ** 2
    w = np.exp(-0.5 * (np.log(z2 + 1e-8) / 9) ** 2)
    expected = (5e-3 / 0.09 * w.sum() / (w * z2).sum()) ** (1 / 6)
    assert np.mean(trace[500:]) == pytest.approx(expected, rel=0.02)


def test_search_stays_below_a_step_size_that_failed() -> None:
    search, step_size = search_step_size(_new_search(), jnp.asarray(2.0), jnp.zeros(()), jnp.asarray(False), 10, 5e-4)
    assert float(step_size) == pytest.approx(1.6)
    _, later = search_step_size(search, step_size, jnp.asarray(1e-9), jnp.asarray(True), 10, 5e-4)
    assert float(later) <= 1.6 + 1e-6


def test_schedule() -> None:
    assert tuple(map(int, tuning_schedule(1000))) == (300, 600, 700, 1000)
    assert tuple(map(int, tuning_schedule(100, warm=True))) == (0, 0, 100, 100)


def test_warm_up_finds_scales_and_moments() -> None:
    posterior = pf.fit(gaussian(), MCLMC(), key=0, num_samples=6000, progress=False)
    learned = posterior._learned()
    ratio = np.asarray(learned["inverse_mass_matrix"]) / VARIANCES
    assert np.all((ratio > 0.2) & (ratio < 4))
    assert np.all(np.asarray(learned["step_size"]) != np.sqrt(6) / 4)
    draws = posterior.draws()["x"]
    # Documented tolerance: 5 % of a standard deviation for means, 10 % for standard deviations.
    assert np.all(np.abs(draws.mean((0, 1))) < 0.05 * np.sqrt(VARIANCES) + 1e-12)
    np.testing.assert_allclose(draws.std((0, 1)), np.sqrt(VARIANCES), rtol=0.1)


def second_moment(step_size: float, num_samples: int) -> tuple[float, float]:
    """Mean of x² of `anharmonic` at a step size, with its standard error, over chains at the same length of time."""
    posterior = pf.fit(
        anharmonic(), MCLMC(step_size=step_size, length=2.0), num_warmup=0, num_samples=num_samples, num_chains=8,
        chains_per_program=8, progress=False,
    )  # fmt: skip
    x2 = (posterior.draws()["x"][:, 200:] ** 2).mean((1, 2))
    return float(x2.mean()), float(x2.std(ddof=1) / np.sqrt(8))


def test_bias_falls_with_the_step_size() -> None:
    from math import gamma

    truth = 2 * gamma(0.75) / gamma(0.25)
    (coarse, e1), (fine, e2) = second_moment(2.4, 5000), second_moment(1.2, 10_000)
    assert abs(coarse - truth) > 6 * e1, "the coarse step size must show its bias"
    assert abs(fine - truth) < 0.4 * abs(coarse - truth) + 2 * e2
    assert 3 * e2 < 0.4 * abs(coarse - truth), "else the test could not see the difference"


def test_refusals() -> None:
    with pytest.raises(pf.InvalidArgument, match="step_size must be a finite number > 0, got -1"):
        MCLMC(step_size=-1)
    with pytest.raises(pf.InvalidArgument, match="desired_energy_variance"):
        MCLMC(desired_energy_variance=0)
    line = pf.Target.from_log_density(lambda x: -0.5 * x**2, np.zeros(()))
    with pytest.raises(pf.UnsupportedTarget, match="at least 2 dimensions, got 1"):
        pf.fit(line, MCLMC(), progress=False)
    with pytest.raises(pf.InvalidArgument, match="inverse_mass_matrix has shape"):
        pf.fit(gaussian(), MCLMC(inverse_mass_matrix=np.ones(3)), progress=False)
