"""Families of ours as guides of NumPyro models with mini-batched plates."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO

import pushforward as pf
from pushforward.infer.variational.flows.families import Shape, build
from pushforward.infer.variational.flows.flow import Flow
from pushforward.infer.variational.numpyro_guide import numpyro_guide

from .small_families import Normal

N, BATCH = 400, 40
Y = 1.5 + np.random.default_rng(0).normal(size=N)


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    sigma = numpyro.sample("sigma", dist.LogNormal(0, 1))
    with numpyro.plate("data", N, subsample_size=BATCH) as index:
        numpyro.sample("y", dist.Normal(mu, sigma), obs=jnp.asarray(y)[index])


def fit(family, steps=1500, rate=0.05):
    guide = numpyro_guide(model, family)
    rate = optax.cosine_decay_schedule(rate, steps)
    svi = SVI(model, guide, optax.adam(rate), Trace_ELBO(num_particles=4))
    result = svi.run(jax.random.key(0), steps, Y, progress_bar=False)
    return guide, result.params


def test_a_mini_batched_plate() -> None:
    guide, params = fit(lambda d: Normal(jnp.zeros(d), jnp.full(d, -1.0)))
    q = guide.family(params)
    # μ is unconstrained, σ is exp u; the posterior is nearly normal, as wide as 400 observations allow (not 40).
    np.testing.assert_allclose(q.loc[0], Y.mean(), atol=0.03)
    np.testing.assert_allclose(jnp.exp(q.log_scale[0]), 1 / np.sqrt(N), rtol=0.25)
    np.testing.assert_allclose(jnp.exp(q.log_scale[1]), 1 / np.sqrt(2 * N), rtol=0.25)
    draws = guide.sample_posterior(jax.random.key(1), params, sample_shape=(500,))
    np.testing.assert_allclose(draws["sigma"].mean(), Y.std(), atol=0.03)
    assert draws["mu"].shape == (500,)


@pytest.mark.slow
def test_a_flow_is_one() -> None:
    flow = lambda d: Flow(build(jax.random.key(0), "iaf", d, Shape(num_layers=1, hidden=(8,))))  # noqa: E731
    guide, params = fit(flow, steps=1500, rate=0.02)
    u, log_q = guide.family(params).sample_and_log_prob(jax.random.key(1), 1000)
    np.testing.assert_allclose(u[:, 0].mean(), Y.mean(), atol=0.06)
    assert np.all(np.isfinite(log_q))


def test_refusals() -> None:
    with pytest.raises(
        pf.InvalidArgument, match="family must be an Approximation or a function of the dimension, got 3"
    ):
        numpyro_guide(model, 3)
    guide = numpyro_guide(model, Normal(jnp.zeros(3), jnp.zeros(3)))
    with pytest.raises(pf.InvalidArgument, match=r"family draws points of shape \(3,\); the model has 2 unconstrained"):
        numpyro.handlers.seed(guide, jax.random.key(0))(Y)
