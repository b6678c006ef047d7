"""SMC: evidence, moments and mode masses against closed forms; refusals."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import pushforward as pf
from pushforward.samplers.smc import SMC, SMCState, cloud_metric, largest_correlation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3))
Y = X @ np.array([1.0, -2.0, 0.5]) + 0.5 * RNG.normal(size=20)
NOISE, PRIOR = 0.5, 3.0

CENTRES = np.array([[-4.0, 2.0], [3.0, -1.0]])
SHARES, WIDTH, BROAD = np.array([0.3, 0.7]), 0.3, 5.0


def regression(x, y=None):
    b = numpyro.sample("b", dist.Normal(0, PRIOR).expand([3]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, NOISE), obs=y)


def two_modes():
    x = numpyro.sample("x", dist.Normal(0, BROAD).expand([2]).to_event(1))
    parts = dist.Normal(jnp.asarray(CENTRES), WIDTH).to_event(1).log_prob(x)
    numpyro.factor("likelihood", jnp.logaddexp(*(parts + jnp.log(jnp.asarray(SHARES)))))


@cache
def conjugate() -> tuple[pf.Target, np.ndarray, np.ndarray, float]:
    """The target, and its exact mean, covariance and log evidence."""
    covariance = np.linalg.inv(X.T @ X / NOISE**2 + np.eye(3) / PRIOR**2)
    mean = covariance @ X.T @ Y / NOISE**2
    marginal = NOISE**2 * np.eye(20) + PRIOR**2 * X @ X.T
    return (
        pf.Target.from_numpyro(regression, X, y=Y),
        mean,
        covariance,
        stats.multivariate_normal(cov=marginal).logpdf(Y),
    )


@pytest.mark.parametrize(
    "method",
    [
        SMC(num_particles=1000),
        SMC(num_particles=1000, move="random_walk", max_moves=200, resampling="stratified"),
    ],
    ids=["hmc", "random walk"],
)
def test_evidence_and_moments_of_a_conjugate_regression(method: SMC) -> None:
    target, mean, covariance, log_evidence = conjugate()
    posterior = pf.fit(target, method, key=1, num_chains=4, progress=False)
    found = posterior.evidence()
    assert found.se < 0.15, "else the test could not see an error"
    assert abs(found.log_evidence - log_evidence) < 4 * found.se + 0.02
    draws, weights = posterior.draws()["b"], posterior._weights()
    sd = np.sqrt(np.diag(covariance))
    centre = np.average(draws, axis=0, weights=weights)
    # Four thousand particles, their ancestors shared: within a tenth of a standard deviation.
    assert np.all(np.abs(centre - mean) < 0.1 * sd)
    spread = np.cov(draws, rowvar=False, aweights=weights)
    np.testing.assert_allclose(spread, covariance, atol=0.1 * sd.max() ** 2)
    assert posterior.record["stopped"] is None


def test_both_modes_in_their_proportions() -> None:
    # Component k has mass ∝ share_k N(centre_k; 0, (BROAD² + WIDTH²) I): prior times likelihood in closed form.
    masses = SHARES * stats.multivariate_normal(cov=(BROAD**2 + WIDTH**2) * np.eye(2)).pdf(CENTRES)
    target = pf.Target.from_numpyro(two_modes)
    posterior = pf.fit(target, SMC(num_particles=2000), key=0, num_chains=4, progress=False)
    left = np.average(posterior.draws()["x"][:, 0] < 0, weights=posterior._weights())
    assert left == pytest.approx(masses[0] / masses.sum(), abs=0.06)
    found = posterior.evidence()
    assert abs(found.log_evidence - np.log(masses.sum())) < 4 * found.se + 0.02
    assert found.se < 0.15


def test_a_run_that_stops_early_weighs_its_particles() -> None:
    target, mean, covariance, log_evidence = conjugate()
    posterior = pf.fit(target, SMC(num_particles=4000, max_temperatures=6, target_ess=0.5), key=0, progress=False)
    log_weights = posterior.log_weights()
    assert np.logaddexp.reduce(log_weights) == pytest.approx(0, abs=1e-9)
    assert np.ptp(log_weights) > 0
    assert posterior.evidence().log_evidence == pytest.approx(log_evidence, abs=0.3)
    centre = np.average(posterior.draws()["b"], axis=0, weights=np.exp(log_weights))
    assert np.all(np.abs(centre - mean) < 0.25 * np.sqrt(np.diag(covariance)))


def test_one_run_that_ends_has_equal_weights_and_particle_dimension() -> None:
    posterior = pf.fit(conjugate()[0], SMC(num_particles=1000), key=0, progress=False)
    assert posterior.log_weights() is None
    assert posterior.draws()["b"].shape == (1000, 3)
    assert posterior.sample_dims == ("particle",)
    assert "b[0]" in posterior.summary().index


def test_pooling_weighs_clouds_by_their_evidence() -> None:
    target = conjugate()[0]
    u = RNG.normal(size=(2, 3, 3))
    state = SMCState(u, np.ones(2), np.array([0.0, np.log(3.0)]), np.zeros(2))
    result = SMC(num_particles=3).result(state, target)
    np.testing.assert_allclose(np.exp(result.log_weights), np.repeat([1 / 12, 3 / 12], 3))
    np.testing.assert_allclose(result.log_evidence, [0, np.log(3.0)], atol=1e-12)


def test_cloud_metric_is_the_covariance_of_the_cloud() -> None:
    u = RNG.normal(size=(50, 2)) @ np.array([[2.0, 0.5], [0.0, 1.0]])
    covariance = np.cov(u, rowvar=False)
    shrunk = np.where(np.eye(2), covariance, covariance * 50 / 52)
    np.testing.assert_allclose(cloud_metric(u, "dense"), shrunk, rtol=1e-4)
    np.testing.assert_allclose(cloud_metric(u, "diagonal"), np.diag(covariance), rtol=1e-4)


def test_largest_correlation() -> None:
    before = RNG.normal(size=(40, 3))
    after = np.stack([before[:, 0] + 0.3 * RNG.normal(size=40), RNG.normal(size=40), np.ones(40)], -1)
    a, b = before[:, 0], after[:, 0]
    expected = max(np.corrcoef(a, b)[0, 1], np.corrcoef((a - a.mean()) ** 2, (b - b.mean()) ** 2)[0, 1])
    assert float(largest_correlation(before, after)) == pytest.approx(expected, rel=1e-4)
    # Swinging to the other side is not forgetting.
    assert float(largest_correlation(before, -before)) == pytest.approx(1.0, rel=1e-4)


def test_evidence_does_not_suffer_from_a_correlated_posterior() -> None:
    # Nearly collinear covariates: moves that are too few leave the cloud behind, and the evidence far too low.
    x = RNG.normal(size=(40, 1)) + 0.03 * RNG.normal(size=(40, 3))
    y = x.sum(1) + NOISE * RNG.normal(size=40)
    marginal = NOISE**2 * np.eye(40) + PRIOR**2 * x @ x.T
    posterior = pf.fit(pf.Target.from_numpyro(regression, x, y=y), SMC(), key=0, num_chains=4, progress=False)
    found = posterior.evidence()
    assert found.log_evidence == pytest.approx(stats.multivariate_normal(cov=marginal).logpdf(y), abs=0.25)


def test_evidence_does_not_suffer_from_an_unknown_noise_scale() -> None:
    """On the way the noise goes from wide to narrow; one step size for both leaves the narrow part empty (seen: −2)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6))
    y = x @ rng.normal(size=6) * 0.5 + 0.1 * rng.normal(size=40)

    def noisy(x, y):
        scale = numpyro.sample("scale", dist.HalfCauchy(2.5))
        b = numpyro.sample("b", dist.Normal(0, 10).expand([6]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ b, scale), obs=y)

    # Given the noise scale s, y is normal; what is left is one integral, over log s.
    log_s = np.linspace(-4, 2, 600)
    values, vectors = np.linalg.eigh(100 * x @ x.T)
    variances = values + np.exp(2 * log_s)[:, None]
    joint = -0.5 * np.sum((vectors.T @ y) ** 2 / variances + np.log(2 * np.pi * variances), 1)
    joint += stats.halfcauchy(scale=2.5).logpdf(np.exp(log_s)) + log_s
    expected = joint.max() + np.log(np.trapezoid(np.exp(joint - joint.max()), log_s))
    posterior = pf.fit(pf.Target.from_numpyro(noisy, x, y), SMC(num_particles=500), key=1, progress=False)
    assert posterior.evidence().log_evidence == pytest.approx(expected, abs=0.35)


def test_refusals() -> None:
    def improper(y):
        m = numpyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(m, 1), obs=y)

    with pytest.raises(pf.UnsupportedTarget, match=r"SMC needs .* with proper_prior; .*ImproperUniform"):
        pf.fit(pf.Target.from_numpyro(improper, np.zeros(3)), SMC())
    with pytest.raises(pf.InvalidArgument, match="num_particles must be a whole number >= 2, got 1"):
        SMC(num_particles=1)
    with pytest.raises(pf.InvalidArgument, match="move must be one of 'hmc', 'random_walk', got 'nuts'"):
        SMC(move="nuts")
    with pytest.raises(pf.InvalidArgument, match="target_ess"):
        SMC(target_ess=1.5)


def test_no_likelihood_anywhere_is_one_sentence() -> None:
    def impossible():
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.factor("f", jnp.where(x > 1e3, 0.0, -jnp.inf))

    with pytest.raises(pf.NonFinite):
        pf.fit(pf.Target.from_numpyro(impossible), SMC(num_particles=50), progress=False)
