"""Scores by importance sampling, and samplers learned from the density."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.samplers.diffusion.approximation import DiffusionApproximation
from pushforward.samplers.diffusion.denoising import DenoisingSampler, Drift, cosine_steps
from pushforward.samplers.diffusion.density import DiscreteFlow
from pushforward.samplers.diffusion.scores import GaussianScore
from pushforward.samplers.diffusion.snis import SNISScore, ess_by_level
from pushforward.samplers.diffusion.solvers import DDIM

from .cases import two_modes


@pytest.fixture(autouse=True)
def in_64_bits():
    with jax.enable_x64(True):
        yield


def normal(mean, variances):
    mean, variances = np.asarray(mean), np.asarray(variances)

    def log_density(x):
        return -0.5 * jnp.sum((x - mean) ** 2 / variances + jnp.log(2 * jnp.pi * variances))

    return pf.Target.from_log_density(log_density, np.zeros(len(mean)))


def snis(target, **options):
    dim = target.dim
    return SNISScore(target, jnp.zeros(dim), jnp.eye(dim), jax.random.key(0), **options)


def test_where_the_reference_is_the_target_it_is_exact():
    score, y = snis(normal(np.zeros(3), np.full(3, 2.25))), jnp.array([0.3, -1.0, 2.0])
    for rho in (0.1, 1.0, 10.0):
        exact = 2.25 / (2.25 + rho**2) * y
        np.testing.assert_allclose(score.denoise(y, rho), exact, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(dataclasses.replace(score, gradient=True).denoise(y, rho), exact, rtol=1e-9)
        np.testing.assert_allclose(score.ess(y, rho), 256)


def test_memory_of_many_draws_does_not_grow_with_the_points_of_a_call():
    score = snis(normal(np.zeros(2), np.ones(2)), num_particles=4096)
    flow = DiscreteFlow.make(score, np.geomspace(10, 0.1, 5), DDIM())
    found = DiffusionApproximation(flow, jnp.zeros(2), jnp.eye(2), jax.random.key(0))
    memory = jax.jit(lambda key: found.sample_and_log_prob(key, 2000)).lower(jax.random.key(1)).compile()
    assert memory.memory_analysis().temp_size_in_bytes < 100e6  # all together: 2,000 × 4,096 × 2 × 8 = 131 MB an array


@pytest.mark.parametrize(
    ("dim", "error"),
    [pytest.param(2, 0.008, marks=pytest.mark.slow), (5, 0.011), pytest.param(10, 0.018, marks=pytest.mark.slow)],
)
def test_errors_are_those_of_the_sheet(dim, error):
    target = normal(np.full(dim, 0.3), np.full(dim, 0.5))
    rho = np.sqrt(np.exp(2.0) - 1)  # α = e⁻¹
    exact = GaussianScore.from_moments(np.full(dim, 0.3), np.full(dim, 0.5))
    ys = rho * jax.random.normal(jax.random.key(3), (64, dim))
    score = snis(target, spread=1.0, num_particles=1000)
    found = jax.vmap(lambda y, k: score.refresh(k).score(y, rho))(ys, jax.random.split(jax.random.key(4), 64))
    true = jax.vmap(lambda y: exact.score(y, rho))(ys)
    relative = np.linalg.norm(found - true, axis=1) / np.linalg.norm(true, axis=1)
    assert 0.3 * error < np.median(relative) < 3 * error


def test_both_forms_agree_with_a_mixture():
    mixture = two_modes()
    target = pf.Target.from_log_density(lambda x: mixture.log_density(x, 0.0), np.zeros(4))
    y = jnp.array([0.4, 0.1, -0.2, 0.5])
    for rho in (0.5, 2.0):
        exact = mixture.denoise(y, rho)
        for gradient in (False, True):
            score = snis(target, num_particles=2000, gradient=gradient)
            keys = jax.random.split(jax.random.key(1), 50)
            found = np.asarray(jax.vmap(lambda k, s=score, rho=rho: s.refresh(k).denoise(y, rho))(keys))
            error = found.std(0) / np.sqrt(50) + 2e-3
            assert np.all(np.abs(found.mean(0) - exact) < 5 * error), (rho, gradient)


def test_whitening_is_part_of_the_density():
    target = normal([1.0, -3.0], [4.0, 0.01])
    scale = jnp.diag(jnp.array([2.0, 0.1]))
    score = SNISScore(target, jnp.array([1.0, -3.0]), scale, jax.random.key(0), 1.0)
    np.testing.assert_allclose(score.denoise(jnp.array([0.5, 1.0]), 1.0), [0.25, 0.5], rtol=1e-9)


@pytest.mark.slow
def test_chains_find_what_weights_do_not():
    target = normal(np.full(4, 2.5), np.full(4, 0.05))
    y, rho = jnp.full(4, 2.0), 1.0
    exact = GaussianScore.from_moments(np.full(4, 2.5), np.full(4, 0.05)).denoise(y, rho)
    plain = snis(target, num_particles=64)
    assert plain.ess(y, rho) < 64 / 50 * 4
    error = lambda s: float(np.abs(s.denoise(y, rho) - exact).max())  # noqa: E731
    assert error(dataclasses.replace(plain, num_moves=60)) < 0.1 < error(plain)


def test_effective_draws_by_level():
    score = snis(normal(np.zeros(2), np.full(2, 2.25)))
    ess, y = ess_by_level(score, jax.random.key(0), jnp.array([20.0, 5.0, 1.0, 0.1]), 200)
    assert ess.shape == (4, 200)
    np.testing.assert_allclose(ess, 256)
    np.testing.assert_allclose(np.std(y[0]), np.sqrt(401), rtol=0.1)


def test_too_many_dimensions_and_too_few_effective_draws_are_refused():
    with pytest.raises(pf.InvalidArgument, match="up to 20 dimensions, and the target has 21"):
        pf.fit(normal(np.zeros(21), np.ones(21)), pf.ProbabilityFlow(score="snis"), progress=False)
    heavy = pf.Target.from_log_density(lambda x: -jnp.sum(jnp.abs(x) ** 0.5) * 6, np.zeros(15))
    with pytest.raises(pf.InvalidArgument, match=r"effective draws of 20 at the noise level rho="):
        pf.fit(heavy, pf.ProbabilityFlow(score="snis", num_particles=20), progress=False)


@pytest.mark.slow
def test_a_fit_without_training():
    target = normal([1.0, -3.0], [4.0, 0.01])
    posterior = pf.fit(target, pf.ProbabilityFlow(score="snis", num_particles=64), num_samples=400, progress=False)
    value, error = posterior.evidence().log_evidence, posterior.evidence().se
    assert abs(value) < 4 * error + 1e-3
    u, log_q = posterior.unconstrained()[0][:5], posterior.data["sample_stats"]["log_q"].values[0][:5]
    np.testing.assert_allclose(posterior.log_prob(u), log_q, atol=1e-6)
    assert "effective draws" in str(posterior.diagnose())


@pytest.mark.slow
def test_draws_of_the_sde_with_chains_where_weights_degenerate():
    target = normal(np.full(6, 1.0), np.full(6, 0.5))
    options = {"score": "snis", "num_particles": 64, "dynamics": "sde", "num_levels": 30, "num_moves": 6}
    posterior = pf.fit(target, pf.ProbabilityFlow(**options), num_samples=200, progress=False)
    assert posterior.approximation.score.num_moves == 6
    found = posterior.evidence()
    assert abs(found.log_evidence) < 4 * found.se + 0.05


# -- learned from the density -----------------------------------------------------------------------------------------


def sampler(target, sigma=1.0, loc=None, scale=None, random=False):
    drift = Drift.make(jax.random.key(0), target.dim, (8,))
    if random:
        leaves, tree = jax.tree.flatten(drift)
        keys = jax.random.split(jax.random.key(1), len(leaves))
        drift = jax.tree.unflatten(
            tree, [0.15 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
        )
    loc = jnp.zeros(target.dim) if loc is None else loc
    scale = jnp.eye(target.dim) if scale is None else scale
    return DenoisingSampler(drift, target, loc, scale, jnp.asarray(cosine_steps(32)), jnp.asarray(sigma))


def test_without_drift_the_stationary_normal_has_weight_one():
    for sigma in (1.0, 1.7):
        target = normal(np.zeros(3), np.full(3, sigma**2))
        u, log_q = sampler(target, sigma).sample_and_log_prob(jax.random.key(0), 100)
        np.testing.assert_allclose(jax.vmap(target.log_density)(u) - log_q, 0, atol=1e-10)
        grads = jax.grad(lambda s: s.bound(jax.random.key(0), 50))(sampler(target, sigma)).drift
        assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-10, "no noise where it is right"


def test_weights_are_unbiased_for_any_drift():
    mixture = two_modes()
    loc, scale = jnp.array([1.0, -2.0, 0.0, 3.0]), jnp.diag(jnp.array([10.0, 0.1, 2.0, 1.0]))

    def log_density(u):
        y = (u - loc) / jnp.diagonal(scale)
        return mixture.log_density(y, 0.0) - jnp.log(2.0)

    target = pf.Target.from_log_density(log_density, np.zeros(4))
    q = sampler(target, 1.2, loc, scale, random=True)
    u, log_q = jax.jit(lambda key: q.sample_and_log_prob(key, 20_000))(jax.random.key(0))
    weights = np.exp(np.asarray(jax.vmap(target.log_density)(u) - log_q))
    error = weights.std() / np.sqrt(len(weights))
    assert error < 0.05
    assert abs(weights.mean() - 1.0) < 4 * error


@pytest.mark.slow
def test_a_short_training_raises_the_bound():
    target = normal([0.5, -0.5], [0.3, 0.8])
    method = pf.ProbabilityFlow(score="dds", num_steps=150, hidden=(16,), num_levels=16, batch_size=64, sigma=1.5)
    posterior = pf.fit(target, method, progress=False)
    value, error = posterior.evidence().log_evidence, posterior.evidence().se
    assert abs(value) < 4 * error + 0.02
    losses = posterior.iterations["loss"][0]
    assert losses[-20:].mean() < losses[:5].mean() - 0.1
    with pytest.raises(pf.NotAvailable):
        posterior.log_prob(np.zeros(2))
