"""Posteriors learned from simulations, against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats as st

import pushforward as pf
from pushforward.samplers.diffusion.composed import ComposedScore, precision_of
from pushforward.samplers.diffusion.conditional import ConditionalScore, NormalRegression
from pushforward.samplers.diffusion.network import level_features
from pushforward.samplers.diffusion.scores import GaussianScore

NOISE = 0.6


def prior():
    numpyro.sample("theta", dist.Normal(jnp.array([1.0, -2.0]), jnp.array([1.0, 3.0])).to_event(1))


def simulate(key, values):
    return values["theta"] * jnp.array([1.0, 0.5]) + NOISE * jax.random.normal(key, (2,))


def exact(data):
    """Mean and sd given independent observations (n, 2)."""
    slope, data = np.array([1.0, 0.5]), np.atleast_2d(data)
    precision = 1 / np.array([1.0, 9.0]) + len(data) * slope**2 / NOISE**2
    mean = (np.array([1.0, -2.0]) / np.array([1.0, 9.0]) + slope * data.sum(0) / NOISE**2) / precision
    return mean, precision**-0.5


@pytest.fixture(scope="module")
def learned():
    return pf.models.Simulator(prior, simulate).learn(4000, hidden=(48, 48), num_steps=1500)


@pytest.mark.parametrize("data", [[1.2, -0.7], [0.0, 0.5]])
def test_posteriors_of_other_data_without_refitting(learned, data):
    posterior = learned.posterior(np.array(data))
    mean, sd = exact(np.array(data))
    draws = posterior.draws()["theta"][0]
    assert np.all(np.abs(draws.mean(0) - mean) < 0.25 * sd)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.2)
    u = posterior.unconstrained()[0][:5]
    normal = np.sum(-0.5 * ((u - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi), 1)
    np.testing.assert_allclose(posterior.log_prob(u), normal, atol=0.4)
    np.testing.assert_allclose(posterior.log_prob(u), posterior.data["sample_stats"]["log_q"].values[0][:5], atol=1e-6)
    value, error = posterior.expect(lambda p: p["theta"])
    assert np.all(np.abs(value - draws.mean(0)) < 6 * error)


def test_several_observations_are_composed(learned):
    data = np.random.default_rng(0).normal(size=(5, 2)) * NOISE + np.array([1.5, -1.0])
    posterior = learned.posterior(data, several=True)
    mean, sd = exact(data)
    draws = posterior.draws()["theta"][0]
    assert np.all(np.abs(draws.mean(0) - mean) < 0.5 * sd)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.3)
    single = exact(data[0])[1]
    assert np.all(draws.std(0) < 0.75 * single)


def test_ranks_of_true_parameters_are_uniform(learned):
    found = learned.calibrate(100, num_draws=60)
    assert found.ranks.shape == (100, 2)
    assert np.all(found.p_values > 1e-3)
    assert np.all(np.abs(found.ranks.mean(0) - 0.5) < 0.12)


def test_without_a_likelihood_there_is_no_evidence(learned):
    posterior = learned.posterior(np.zeros(2), num_samples=50)
    for what in (posterior.evidence, posterior.elbo):
        with pytest.raises(pf.NotAvailable, match="needs the likelihood"):
            what()
    assert "without densities" in str(posterior.diagnose())


def test_data_are_checked(learned):
    with pytest.raises(pf.InvalidArgument, match="data have 3 numbers, and those simulated have 2"):
        learned.posterior(np.zeros(3))
    with pytest.raises(pf.NonFinite, match="data have 1 values that are not finite"):
        learned.posterior(np.array([np.nan, 1.0]))
    with pytest.raises(pf.InvalidArgument, match="one leading axis"):
        learned.posterior(1.0, several=True)
    assert "standard deviations from the simulated" in str(learned.posterior(np.full(2, 90.0)).diagnose())


class Exact(eqx.Module):
    """Conditional scores in closed form: of θ ~ N(0, I) given x = θ + noise of covariance S, and of the prior."""

    noise: jax.Array

    def condition(self, context):
        return context

    def under(self, context):
        inverse = jnp.linalg.inv(self.noise)
        precision = jnp.eye(2) + context[-1] * inverse
        covariance = jnp.linalg.inv(precision)
        values, axes = jnp.linalg.eigh(covariance)
        return GaussianScore(covariance @ (context[-1] * inverse @ context[:2]), values, axes)


@pytest.mark.parametrize("rho", [0.01, 0.8, 20.0])
def test_composition_is_exact_for_normals(rho):
    with jax.enable_x64(True):
        noise = np.array([[0.8, 0.3], [0.3, 0.4]])
        data = np.random.default_rng(1).normal(size=(4, 2))
        score = Exact(jnp.asarray(noise))
        contexts = jnp.concatenate([jnp.asarray(data), jnp.ones((4, 1))], 1)
        single = np.linalg.inv(np.eye(2) + np.linalg.inv(noise))
        precisions = jnp.asarray(np.stack([precision_of(single)] * 4))
        y = jnp.array([0.7, -0.4])
        covariance = np.linalg.inv(np.eye(2) + 4 * np.linalg.inv(noise))
        mean = covariance @ np.linalg.inv(noise) @ data.sum(0)
        exact = GaussianScore.from_moments(mean, covariance).denoise(y, rho)
        composed = ComposedScore(score, jnp.zeros(3), contexts, precisions)
        np.testing.assert_allclose(composed.denoise(y, rho), exact, rtol=1e-8)


def test_a_covariance_above_the_priors_is_noise():
    np.testing.assert_allclose(np.linalg.inv(precision_of(np.diag([2.0, 0.5]))), np.diag([0.999, 0.5]), rtol=1e-9)


def test_failed_simulations_are_counted_and_left_out():
    def failing(key, values):
        data = simulate(key, values)
        return jnp.where(values["theta"][0] > 2.0, jnp.nan, data)

    made = pf.models.Simulator(prior, failing).draw(2000)
    assert abs(made.failed / 2000 - 0.1587) < 0.03
    assert len(made.u) == len(made.x) == 2000 - made.failed
    assert made.u[:, 0].max() <= 2.0
    with (
        pytest.warns(RuntimeWarning, match="simulations failed and are left out"),
    ):
        pf.models.Simulator(prior, lambda key, p: jnp.where(p["theta"][0] > 0, jnp.nan, p["theta"])).draw(500)
    with pytest.raises(pf.NonFinite, match="no finite data in any of 50"):
        pf.models.Simulator(prior, lambda key, p: jnp.nan * p["theta"]).draw(50)


def test_a_program_on_the_host():
    def program(rng, values):
        if values["rate"] > 4:
            raise ValueError("too fast")
        return {"count": rng.poisson(values["rate"] * 10)}

    made = pf.models.Simulator({"rate": dist.Exponential(0.5)}, program, host=True).draw(300)
    assert abs(made.failed / 300 - np.exp(-2.0)) < 0.08
    assert np.corrcoef(np.exp(made.u[:, 0]), made.x[:, 0])[0, 1] > 0.9
    uneven = pf.models.Simulator({"rate": dist.Exponential(0.5)}, lambda rng, p: np.ones(rng.integers(1, 4)), host=True)
    with pytest.raises(pf.InvalidArgument, match="data of one shape, got"):
        uneven.draw(30)


def test_what_is_no_prior_or_simulator():
    with pytest.raises(pf.InvalidArgument, match="prior must be a NumPyro model"):
        pf.models.Simulator(3, simulate)
    with pytest.raises(pf.InvalidArgument, match="simulate must be a function"):
        pf.models.Simulator(prior, "simulate")
    with pytest.raises(pf.InvalidArgument, match="cannot"):
        pf.models.Simulator(pf.Target.from_log_density(lambda x: -(x**2), 0.0), simulate)
    with pytest.raises(pf.InvalidArgument, match="at least 100 simulations, got 50"):
        pf.models.Simulator(prior, simulate).learn(50)


@pytest.mark.parametrize("flag", [1.0, 0.0])
def test_conditional_denoiser_against_dense_algebra(flag):
    """D = m + S V⁻¹ (y − m) + ρ S^½ V^−½ N(V^−½ (y − m), log ρ/s, x); without x of m = 0 and S = I."""
    from scipy.linalg import sqrtm

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 6)
        rng = np.random.default_rng(0)
        regression = NormalRegression.make(keys[0], rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), (8,), jnp.float64)
        score = ConditionalScore.make(keys[1], regression, (8,), 3, jnp.float64)
        stir = lambda net, key: eqx.tree_at(  # noqa: E731
            lambda n: n.weights[-1], net, 0.5 * jax.random.normal(key, net.weights[-1].shape)
        )
        regression = eqx.tree_at(lambda r: r.net, regression, stir(regression.net, keys[2]))
        score = ConditionalScore(stir(score.net, keys[3]), regression)
        context, rho = jnp.append(jax.random.normal(keys[4], (2,)), flag), 0.7
        y = jax.random.normal(keys[5], (3,))
        found = score.given(context).denoise(y, rho)
        mean, a = regression(context)
        mean, s = (np.asarray(mean), np.linalg.inv(a @ a.T)) if flag else (np.zeros(3), np.eye(3))
        point = np.asarray(y) - mean
        expected = -st.multivariate_normal(np.asarray(regression(context)[0]), np.linalg.inv(a @ a.T)).logpdf(y)
        assert float(regression.loss(y, context)) == pytest.approx(expected - 1.5 * np.log(2 * np.pi), abs=1e-9)
        v = s + rho**2 * np.eye(3)
        level = np.log(rho) - np.linalg.slogdet(s)[1] / 6
        inner = score.net(jnp.concatenate([np.linalg.inv(sqrtm(v)) @ point, level_features(level), context]))
        expected = mean + s @ np.linalg.solve(v, point) + rho * sqrtm(s) @ np.linalg.inv(sqrtm(v)) @ np.asarray(inner)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_posteriors_much_narrower_than_the_prior():
    """A hundredth of it, and correlated: the regression's part of the work."""
    noise = np.array([[1.0, 0.0], [0.9, 0.4]]) * 0.01
    simulator = pf.models.Simulator(
        {"theta": dist.Normal(jnp.zeros(2), 1.0).to_event(1)},
        lambda key, values: values["theta"] + noise @ jax.random.normal(key, (2,)),
    )
    posterior = simulator.learn(4000, hidden=(48, 48), num_steps=3000).posterior(np.array([0.4, -0.8]))
    draws = posterior.draws()["theta"][0]
    sd = np.sqrt(np.diag(noise @ noise.T))
    assert np.all(np.abs(draws.mean(0) - np.array([0.4, -0.8])) < sd)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.5)
    assert np.corrcoef(draws.T)[0, 1] > 0.6
