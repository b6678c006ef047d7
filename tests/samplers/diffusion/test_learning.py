"""Networks in skip form, and what they are regressed on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.errors import InvalidArgument
from pushforward.samplers.diffusion import training
from pushforward.samplers.diffusion.network import NetScore

from .cases import line


@pytest.fixture(autouse=True)
def in_64_bits():
    with jax.enable_x64(True):
        yield


def a_network():
    score = NetScore.make(jax.random.key(0), 3, (8,), jnp.float64)
    weights = tuple(jax.random.normal(jax.random.key(i), w.shape) for i, w in enumerate(score.net.weights))
    return NetScore(jax.tree.map(lambda x: x, type(score.net)(weights, score.net.biases, "silu")))


@pytest.mark.parametrize("rho", [0.01, 1.0, 30.0])
def test_before_training_it_is_the_standard_normal(rho):
    score, y = NetScore.make(jax.random.key(0), 3, (8, 8), dtype=jnp.float64), jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(score.denoise(y, rho), y / (1 + rho**2), rtol=1e-14)


@pytest.mark.parametrize("rho", [0.01, 1.0, 30.0])
def test_the_noise_it_predicts_is_that_of_the_skip_form(rho):
    score, y = a_network(), jnp.array([1.0, -2.0, 0.5])
    alpha = 1 / np.sqrt(1 + rho**2)
    sigma, x = rho * alpha, alpha * y
    predicted = sigma * x - alpha * score.outputs(x, np.log(rho))
    np.testing.assert_allclose((y - score.denoise(y, rho)) / rho, predicted, rtol=1e-9, atol=1e-12)
    # ∇_x log p_t = −x + αN/σ is −ε̂/σ, and the score in y is α times that in x.
    of_x = -x + alpha / sigma * score.outputs(x, np.log(rho))
    np.testing.assert_allclose(score.score(y, rho), alpha * of_x, rtol=1e-8)
    error = training.noise_error(score, y - rho * 0.3, np.log(rho), jnp.full(3, 0.3), jnp.zeros(3))
    np.testing.assert_allclose(error, np.mean(predicted**2), rtol=1e-9)


COVARIANCE = np.array([[1.0, 0.6, 0.0], [0.6, 0.5, 0.1], [0.0, 0.1, 0.2]])


@pytest.mark.parametrize("rho", [0.05, 1.0, 20.0])
def test_the_best_blend_has_no_variance_for_a_normal(rho):
    inverse = np.linalg.inv(COVARIANCE)
    fisher, axes = np.linalg.eigh(inverse)  # E[g gᵀ] of N(0, C)
    rng = np.random.default_rng(0)
    x0 = np.linalg.cholesky(COVARIANCE) @ rng.normal(size=3)
    eps = rng.normal(size=3)
    target = training.noise_target(jnp.asarray(eps), jnp.asarray(-inverse @ x0), rho, jnp.asarray(fisher), axes)
    exact = rho * np.linalg.solve(COVARIANCE + rho**2 * np.eye(3), x0 + rho * eps)  # (y − D)/ρ
    np.testing.assert_allclose(target, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rho", [0.05, 1.0, 20.0])
def test_a_number_is_the_isotropic_blend(rho):
    length, rng = 0.2, np.random.default_rng(1)
    eps, gradient = rng.normal(size=(2, 3))
    fisher, axes = training.fisher_spectrum(gradient[None], length)
    alpha2 = 1 / (1 + rho**2)
    sigma2 = 1 - alpha2
    share = sigma2 / (sigma2 + alpha2 * length**2)
    expected = share * eps - (1 - share) * np.sqrt(sigma2 / alpha2) * gradient
    np.testing.assert_allclose(training.noise_target(eps, gradient, rho, fisher, axes), expected, rtol=1e-9)


@pytest.mark.parametrize("blend", ["auto", 0.2, 1.0])
@pytest.mark.parametrize("rho", [0.1, 0.7, 4.0])
def test_every_blend_has_the_score_as_its_mean(blend, rho):
    score, rng, n = line(), np.random.default_rng(2), 200_000
    which = rng.random(n) < 0.3
    x0 = np.where(which, -2 + 0.5 * rng.normal(size=n), 1 + 0.8 * rng.normal(size=n))[:, None]
    gradient = np.asarray(jax.vmap(jax.grad(lambda x: score.log_density(x, 0.0)))(jnp.asarray(x0)))
    eps = rng.normal(size=(n, 1))
    fisher, axes = training.fisher_spectrum(gradient, blend)
    target = jax.vmap(lambda e, g: training.noise_target(e, g, rho, jnp.asarray(fisher), jnp.asarray(axes)))
    found = np.asarray(target(jnp.asarray(eps), jnp.asarray(gradient)))
    y = jnp.asarray(x0 + rho * eps)
    exact = np.asarray(jax.vmap(lambda y: (y - score.denoise(y, rho)) / rho)(y))
    for test in (np.ones_like, np.sin, lambda y: y > 0, lambda y: np.exp(-((y + 2) ** 2))):
        product = (found - exact) * test(np.asarray(y))
        assert abs(product.mean()) < 4.5 * product.std() / np.sqrt(n), test


def test_the_blend_of_least_variance_is_the_default():
    rng, n = np.random.default_rng(3), 4000
    z = rng.normal(size=(n, 2))
    x = np.stack([z[:, 0], 0.5 * (z[:, 0] ** 2 - 1) + 0.3 * z[:, 1]], 1)  # a banana
    slope = -z[:, 1] / 0.3
    gradient = np.stack([-x[:, 0] - slope * x[:, 0], slope], 1)
    eps = rng.normal(size=(n, 2))
    for rho in (0.1, 0.5, 2.0):
        size = {}
        for blend in ("auto", 1e-3, 0.1, 0.2, 0.5, 1.0):
            spectrum = training.fisher_spectrum(gradient, blend)
            each = jax.vmap(lambda e, g, s=spectrum, rho=rho: training.noise_target(e, g, rho, *s))(eps, gradient)
            size[blend] = float(jnp.mean(each**2))  # the mean given y is the same for all
        assert size["auto"] < 1.02 * min(size.values()), (rho, size)
    assert size["auto"] < 0.999 * size[1e-3]


def test_levels_are_stratified():
    levels = training.Levels(jnp.asarray(0.03), jnp.asarray(40.0))
    u = np.asarray(levels.stratified(jax.random.key(0), 100))
    edges = np.linspace(np.log(0.03), np.log(40), 101)
    assert np.all((u >= edges[:-1] - 1e-6) & (u <= edges[1:] + 1e-6))


def test_draws_are_split_and_few_are_refused():
    points = np.arange(200.0).reshape(100, 2)
    draws = training.split_draws(points, points, "auto", 0.1, 0)
    assert draws.points.shape == (90, 2)
    assert draws.held.shape == (10, 2)
    np.testing.assert_array_equal(draws.points, draws.gradients)
    assert {tuple(p) for p in np.concatenate([draws.points, draws.held])} == {tuple(p) for p in points}
    with pytest.raises(InvalidArgument, match="at least 20 draws, got 5"):
        training.split_draws(points[:5], None, None, 0.1, 0)
