"""Parts of the reference models that their densities do not exercise."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

from pushforward.models.posteriordb import dynamics, latent


def test_restricted_draws_follow_the_restricted_density():
    """Two independent normals given 0 < x1 < x2: the mean of x1 by quadrature."""
    base = dist.Normal(np.array([0.0, 3.0]), 1.0).to_event(1)
    ordered = latent.Restricted(base, constraints.positive_ordered_vector)
    draws = np.asarray(ordered.sample(jax.random.key(0), (20_000,)))
    assert draws.shape == (20_000, 2)
    assert (draws[:, 0] > 0).all()
    assert (draws[:, 1] > draws[:, 0]).all()
    x = np.linspace(0, 8, 4001)
    weight = stats.norm.pdf(x) * stats.norm.sf(x, 3, 1)
    mean = np.sum(x * weight) / np.sum(weight)
    assert draws[:, 0].mean() == pytest.approx(mean, abs=4 * draws[:, 0].std() / np.sqrt(20_000))
    value = np.array([0.5, 2.0])
    expected = stats.norm.logpdf(value, [0.0, 3.0], 1.0).sum()
    assert float(ordered.log_prob(value)) == pytest.approx(expected, rel=1e-6)


def test_restricted_is_a_pytree():
    ordered = latent.Restricted(dist.Normal(0.0, 2.0).expand([2]).to_event(1), constraints.ordered_vector)
    again = jax.jit(lambda d: d)(ordered)
    assert again.support is constraints.ordered_vector
    assert again.event_shape == (2,)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_kernel_has_a_root_where_it_is_nearly_singular(bits):
    x = np.arange(-10.0, 11.0, 2.0)
    with jax.enable_x64(bits == 64):
        alpha, rho = jax.numpy.asarray(7.0), jax.numpy.asarray(12.0)
        covariance = latent.squared_exponential(x, alpha, rho)
        assert covariance.dtype == f"float{bits}"
        noise = latent.jitter(covariance.dtype, alpha)
        root = np.asarray(jax.numpy.linalg.cholesky(covariance + noise * jax.numpy.eye(11)))
    assert np.isfinite(root).all()
    assert float(noise) == pytest.approx(1e-10 if bits == 64 else 100 * 2.0**-23 * 49.0)


def test_the_first_arma_error_starts_from_the_mean():
    errors = np.asarray(dynamics.arma_errors(np.array([2.0, 3.0, 1.0]), 0.5, 0.4, 0.3))
    first = 2.0 - 0.5 - 0.4 * 0.5
    second = 3.0 - 0.5 - 0.4 * 2.0 - 0.3 * first
    np.testing.assert_allclose(errors, [first, second, 1.0 - 0.5 - 0.4 * 3.0 - 0.3 * second], rtol=1e-6)


def test_the_forward_algorithm_sums_over_all_paths():
    rng = np.random.default_rng(0)
    transition = np.log(rng.dirichlet(np.ones(3), size=3))
    emission = rng.standard_normal((4, 3))
    paths = np.stack(np.meshgrid(*[range(3)] * 4, indexing="ij"), -1).reshape(-1, 4)
    terms = [
        sum(emission[t, k] for t, k in enumerate(path)) + sum(transition[path[t], path[t + 1]] for t in range(3))
        for path in paths
    ]
    found = float(dynamics.log_forward(jax.numpy.asarray(transition), jax.numpy.asarray(emission)))
    assert found == pytest.approx(np.log(np.sum(np.exp(terms))), rel=1e-5)
