"""Posteriors as the end of a probability flow, by `fit`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.diagnostics.psis import psis, weights_ess
from pushforward.samplers.diffusion import findings, frame
from pushforward.samplers.diffusion.approximation import DiffusionApproximation, Learned
from pushforward.samplers.diffusion.density import DiscreteFlow
from pushforward.samplers.diffusion.schedules import edm_grid
from pushforward.samplers.diffusion.scores import GaussianScore, MixtureScore
from pushforward.samplers.diffusion.solvers import RK4

SMALL = {"hidden": (48, 48), "num_steps": 800, "batch_size": 128, "learning_rate": 4e-3}


def banana(scale=(1.0, 1.0)):
    scale = np.asarray(scale)

    def log_density(u):
        x, y = u / scale
        inner = -0.5 * x**2 - 0.5 * ((y - 0.5 * (x**2 - 1)) / 0.3) ** 2
        return inner - jnp.log(2 * jnp.pi * 0.3) - jnp.sum(jnp.log(scale))

    return pf.Target.from_log_density(log_density, np.zeros(2))


def banana_draws(n, scale=(1.0, 1.0), seed=0):
    z = np.random.default_rng(seed).normal(size=(n, 2))
    return np.stack([z[:, 0], 0.5 * (z[:, 0] ** 2 - 1) + 0.3 * z[:, 1]], 1) * scale


@pytest.fixture(scope="module")
def learned():
    return pf.fit(banana(), pf.ProbabilityFlow(from_draws=banana_draws(1500), **SMALL), progress=False)


def share(posterior):
    return weights_ess(posterior.log_weights()) / posterior.log_weights().size


def whitened_normal(scale):
    """The flow of N(loc, L Lᵀ (1 + ρ_n²)): whitened it is a line from N(0, 1 + ρ₀²) to N(0, 1 + ρ_n²)."""
    score = GaussianScore(jnp.zeros(2), jnp.ones(2))
    flow = DiscreteFlow.make(score, edm_grid(40.0, 0.05, 48), RK4())
    flow = jax.tree.map(jnp.asarray, flow)
    return DiffusionApproximation(flow, jnp.array([1.0, -2.0]), jnp.asarray(scale))


def test_the_whitening_is_part_of_the_density():
    with jax.enable_x64(True):
        scale = np.array([[10.0, 0.0], [0.4, 0.3]])
        q = whitened_normal(scale)
        u, log_q = q.sample_and_log_prob(jax.random.key(0), 20)
        covariance = scale @ scale.T * (1 + 0.05**2)
        exact = jax.scipy.stats.multivariate_normal.logpdf(u, q.loc, covariance)
        np.testing.assert_allclose(log_q, exact, atol=2e-4)
        np.testing.assert_allclose(q.log_prob(u[0]), log_q[0], atol=1e-9)
        np.testing.assert_allclose(q.transport(q.pull(u[0]))[0], u[0], rtol=1e-8)


def test_evidence_and_moments_of_a_banana(learned):
    value, error = learned.evidence().log_evidence, learned.evidence().se
    assert error < 0.03
    assert abs(value) < 4 * error
    assert share(learned) > 0.5
    assert psis(learned.log_weights()).k_hat < 0.85
    summary = learned.summary()
    np.testing.assert_allclose(summary["psis_sd"], [1.0, np.sqrt(0.5 + 0.09)], rtol=0.12)
    assert "training: The denoising loss" in str(learned.diagnose())


def test_a_learned_flow_begins_a_little_wider(learned):
    """By what leaves 0.3 % fewer effective draws in any dimension; densities know of it, known scores need it not."""

    def wider(posterior):
        flow = posterior.approximation.flow
        return float(np.asarray(flow.base_scale) / np.sqrt(1 + np.asarray(flow.grid)[0] ** 2))

    assert wider(learned) == pytest.approx(1 + 0.04 / np.sqrt(2), rel=1e-6)
    normal = pf.Target.from_log_density(lambda u: -0.5 * jnp.sum(u**2), np.zeros(2))
    for factor in (None, 1.2):
        method = pf.ProbabilityFlow(denoiser=GaussianScore(jnp.zeros(2), jnp.ones(2)), overdispersion=factor)
        known = pf.fit(normal, method, progress=False, num_samples=4000)
        s = 1.2 if factor else 1.0
        assert wider(known) == pytest.approx(s, rel=1e-6)
        # Draws of N(0, s²) for N(0, 1): an ESS share of (2 s² − 1) / s⁴.
        assert share(known) == pytest.approx((2 * s**2 - 1) / s**4, abs=0.01)
    for idle in ({"dynamics": "sde"}, {"score": "reflected"}):
        with pytest.raises(pf.InvalidArgument, match=r"overdispersion=1.2 has no effect with score=.*; leave it out"):
            pf.ProbabilityFlow(overdispersion=1.2, **idle)


def test_densities_of_draws_and_at_points_are_the_same(learned):
    u, log_q = learned.unconstrained()[0][:20], learned.data["sample_stats"]["log_q"].values[0][:20]
    np.testing.assert_allclose(learned.log_prob(u), log_q, atol=1e-6)
    with jax.enable_x64(True):
        z = jnp.array([0.3, -1.2])
        u, log_det = learned.approximation.transport(z)
        np.testing.assert_allclose(learned.approximation.pull(u), z, atol=1e-6)
        np.testing.assert_allclose(
            log_det, jnp.linalg.slogdet(jax.jacfwd(lambda z: learned.approximation.transport(z)[0])(z))[1], atol=1e-8
        )


@pytest.mark.slow
def test_densities_integrate_to_one(learned):
    x, y = np.meshgrid(np.linspace(-5, 5, 101), np.linspace(-3, 9, 121), indexing="ij")
    density = np.exp(learned.log_prob(np.stack([x.ravel(), y.ravel()], 1)))
    assert abs(np.nansum(density) * 0.1 * 0.1 - 1) < 0.02


@pytest.mark.slow
def test_evidence_does_not_depend_on_the_units(learned):
    scale = (10.0, 0.3)
    other = pf.fit(banana(scale), pf.ProbabilityFlow(from_draws=banana_draws(1500, scale), **SMALL), progress=False)
    assert abs(other.evidence().log_evidence - learned.evidence().log_evidence) < 0.05


@pytest.mark.slow
def test_wrong_mode_weights_in_the_draws_are_put_right():
    mean = np.array([1.5, 1.0])

    def log_density(u):
        one, other = (-0.5 * jnp.sum((u - s * mean) ** 2) / 0.25 for s in (1, -1))
        return jnp.logaddexp(jnp.log(0.7) + one, jnp.log(0.3) + other) - jnp.log(2 * jnp.pi * 0.25)

    rng = np.random.default_rng(0)
    sign = np.where(rng.random(1500) < 0.4, 1.0, -1.0)[:, None]
    method = pf.ProbabilityFlow(from_draws=sign * mean + 0.5 * rng.normal(size=(1500, 2)), **SMALL)
    posterior = pf.fit(pf.Target.from_log_density(log_density, np.zeros(2)), method, num_samples=2000, progress=False)
    positive = posterior.draws()["x"][0] @ mean > 0
    weights = np.exp(psis(posterior.log_weights()).log_weights)
    assert abs(positive.mean() - 0.4) < 0.08
    assert abs(weights @ positive - 0.7) < 0.06
    assert abs(posterior.evidence().log_evidence) < 4 * posterior.evidence().se + 0.01


def test_a_warm_up_by_nuts_and_a_constrained_support():
    target = pf.Target.from_log_density(
        lambda p: 2.0 * jnp.log(p["rate"]) - 4.0 * p["rate"], {"rate": 1.0}, {"rate": constraints.positive}
    )
    method = pf.ProbabilityFlow(num_draws=200, hidden=(16, 16), num_steps=300)
    posterior = pf.fit(target, method, num_samples=1000, progress=False)
    assert abs(posterior.evidence().log_evidence - np.log(2.0 / 4.0**3)) < 4 * posterior.evidence().se + 0.01
    assert np.all(posterior.draws()["rate"] > 0)
    assert abs(posterior.summary()["psis_mean"].iloc[0] - 0.75) < 0.05
    assert "R-hat" in str(posterior.diagnose())


def test_a_known_score_needs_no_training():
    score = MixtureScore.from_moments([0.3, 0.7], [[-2.0], [1.0]], [[0.25], [0.64]])
    target = pf.Target.from_log_density(lambda x: score.log_density(x, 0.0), np.zeros(1))
    with jax.enable_x64(True):
        score = MixtureScore.from_moments([0.3, 0.7], [[-2.0], [1.0]], [[0.25], [0.64]])
    posterior = pf.fit(target, pf.ProbabilityFlow(denoiser=score, rho_min=0.01), progress=False)
    assert share(posterior) > 0.99
    assert abs((posterior.draws()["x"] < -0.7).mean() - 0.3) < 0.07


def test_repeated_draws_are_said_to_be_memorised():
    def remark(held, seen):
        zero = jnp.zeros(2, int)
        return findings._training(
            Learned(jnp.array([9.0, held]), jnp.array(seen), zero, zero, jnp.array(1), jnp.array(jnp.nan))
        )

    assert remark(0.5, 0.49)["level"] == "ok"
    assert remark(0.5, 0.3)["level"] == "warning"
    assert "repeats its draws" in remark(0.5, 0.3)["message"]


@pytest.mark.slow
def test_eight_schools_by_the_gradient_and_without():
    """The blend has several times the efficiency of draws alone on the hierarchy's funnel."""
    example = pf.models.get("eight_schools")
    target = pf.Target.from_numpyro(example.model, **example.data)
    draws = pf.fit(target, pf.NUTS(), num_samples=1000, progress=False)
    found = {}
    for blend in ("auto", 0.2, None):
        method = pf.ProbabilityFlow(from_draws=draws, blend=blend)
        found[blend] = share(pf.fit(target, method, num_samples=4000, progress=False))
    assert found["auto"] > 0.7
    assert found[0.2] > 0.5
    assert found["auto"] > found[None]


BAD = [
    ({"score": "diffusion"}, "score must be one of 'amortised', 'snis', 'dds', 'reflected', got 'diffusion'"),
    ({"blend": -1.0}, "blend must be a finite number > 0"),
    ({"grid": (1.0, 2.0)}, "noise levels that fall"),
    ({"grid": "uniform"}, "grid must be one of 'edm', 'log'"),
    ({"solver": "euler"}, "solver must be one of"),
    ({"from_draws": np.zeros((5, 2))}, r"n >= 20, got shape \(5, 2\)"),
    ({"from_draws": np.full((50, 2), np.nan)}, "100 values that are not finite"),
    ({"warmup": "nuts"}, "warmup must be a method that draws"),
    ({"held_out": 1.5}, "held_out must be a finite number strictly between 0 and 1"),
    ({"denoiser": 3}, "denoiser must be an AbstractScore, got 3"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings(settings, message):
    with pytest.raises(pf.InvalidArgument, match=message):
        pf.ProbabilityFlow(**settings)


def test_draws_and_warm_up_exclude_each_other():
    with pytest.raises(pf.InvalidArgument, match="give one of the two"):
        pf.ProbabilityFlow(from_draws=banana_draws(50), warmup=pf.NUTS())
    with pytest.raises(pf.InvalidArgument, match="warmup must be a sampler, got Pathfinder"):
        pf.ProbabilityFlow(warmup=pf.Pathfinder())


def test_draws_of_another_dimension():
    target = pf.Target.from_log_density(lambda x: -jnp.sum(x**2), np.zeros(3))
    with pytest.raises(pf.InvalidArgument, match=r"shape \(50, 2\), and the target has dimension 3"):
        pf.fit(target, pf.ProbabilityFlow(from_draws=banana_draws(50)), progress=False)


def test_a_missing_support_is_named():
    target = pf.Target.from_log_density(lambda x: jnp.where(x[0] > 0, -x[0], -jnp.inf), np.ones(1))
    draws = np.random.default_rng(0).exponential(size=(200, 1))
    with pytest.raises(pf.NonFinite, match="give their support"):
        pf.fit(target, pf.ProbabilityFlow(from_draws=draws), start=np.ones(1), progress=False)


def test_scales_that_differ_are_warned_of():
    with pytest.warns(RuntimeWarning, match="standard deviations differ by a factor of"):
        loc, scale = frame.whitening(banana_draws(200, (1e4, 1.0)), False)
    assert not loc.any()
    np.testing.assert_array_equal(scale, np.eye(2))


def test_few_draws_have_a_covariance_all_the_same():
    _, scale = frame.whitening(np.random.default_rng(0).normal(size=(20, 40)), True)
    assert np.all(np.isfinite(scale))
    assert np.linalg.eigvalsh(scale @ scale.T).min() > 0.05
    with pytest.raises(pf.InvalidArgument, match="draws do not move"):
        frame.whitening(np.ones((30, 2)), True)


def test_too_few_steps_fold_the_map():
    score = MixtureScore.from_moments([0.5, 0.5], [[-5.0], [5.0]], [[0.01], [0.01]])
    target = pf.Target.from_log_density(lambda x: score.log_density(x, 0.0), np.zeros(1))
    with jax.enable_x64(True):
        score = MixtureScore.from_moments([0.5, 0.5], [[-5.0], [5.0]], [[0.01], [0.01]])
    with pytest.raises(pf.NonFinite, match="too few steps; raise solver_steps"):
        pf.fit(target, pf.ProbabilityFlow(denoiser=score, solver="heun", solver_steps=3), progress=False)


@pytest.mark.slow
def test_path_weights_of_a_learned_score():
    scale = (5.0, 0.3)
    method = pf.ProbabilityFlow(from_draws=banana_draws(1500, scale), dynamics="sde", num_levels=100, **SMALL)
    posterior = pf.fit(banana(scale), method, num_samples=2000, progress=False)
    assert abs(posterior.evidence().log_evidence) < 4 * posterior.evidence().se + 0.02
    with pytest.raises(pf.NotAvailable):
        posterior.log_prob(np.zeros(2))
    with pytest.raises(pf.InvalidArgument, match="have no derivative"):
        pf.ProbabilityFlow(score="snis", num_moves=10)
