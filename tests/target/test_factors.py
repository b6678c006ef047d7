"""Targets made from a prior and one likelihood per observation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from scipy import stats

from pushforward.infer.errors import InvalidArgument
from pushforward.infer.target import Target

X = np.arange(10.0)
Y = np.array([0.3, 0.8, 2.5, 2.6, 4.4, 4.9, 6.2, 7.3, 7.7, 9.1])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def log_prior(params):
    return -0.5 * params["b"] ** 2 - params["s"]


def log_likelihood(params, datum):
    x, y = datum
    return -0.5 * ((y - params["b"] * x) / params["s"]) ** 2 - jnp.log(params["s"]) - 0.5 * jnp.log(2 * jnp.pi)


def make(data=(X, Y)):
    return Target.from_factors(log_prior, log_likelihood, data, {"b": 0.0, "s": 1.0}, {"s": constraints.positive})


def test_log_density_by_hand():
    target = make()
    u = jnp.array([0.9, -0.4])
    s = np.exp(-0.4)
    prior = -0.5 * 0.81 - s - 0.4
    pointwise = stats.norm.logpdf(Y, 0.9 * X, s)
    np.testing.assert_allclose(target.log_prior(u), prior, rtol=1e-12)
    np.testing.assert_allclose(target.log_density(u), prior + pointwise.sum(), rtol=1e-12)
    np.testing.assert_allclose(target.log_likelihood(target.constrain(u))["factors"], pointwise, rtol=1e-12)
    np.testing.assert_allclose(target.factor(u, jnp.array([3, 3, 0])), pointwise[[3, 3, 0]], rtol=1e-12)
    assert target.structure() == {"prior", "likelihood", "factors", "support"}
    assert target.num_factors == 10


def test_minibatch_is_a_pure_function_of_key_and_iteration():
    target = make()
    key = jax.random.key(4)
    batches = np.stack([target.minibatch(key, t, 5) for t in range(4)])
    np.testing.assert_array_equal(batches[2], jax.jit(lambda t: target.minibatch(key, t, 5))(2))
    assert len(np.unique(batches, axis=0)) == 4
    with pytest.raises(InvalidArgument, match="size must be a whole number >= 1, got 0"):
        target.minibatch(key, 0, 0)


def test_minibatch_log_density_is_unbiased():
    target = make()
    u = jnp.array([0.9, -0.4])
    singles = jax.vmap(lambda i: target.log_density_minibatch(u, jnp.array([i])))(jnp.arange(10))
    np.testing.assert_allclose(singles.mean(), target.log_density(u), rtol=1e-12)
    np.testing.assert_allclose(target.log_density_minibatch(u, jnp.arange(10)), target.log_density(u), rtol=1e-12)
    counts = np.bincount(jax.vmap(lambda t: target.minibatch(jax.random.key(0), t, 8))(jnp.arange(2000)).ravel())
    np.testing.assert_allclose(counts / 16000, 0.1, atol=0.01)


def test_new_data():
    target = make()
    other = target.replace(data=(X, Y + 1))
    assert jax.tree.structure(other) == jax.tree.structure(target)
    assert other.log_density(jnp.zeros(2)) != target.log_density(jnp.zeros(2))
    assert target.replace(data=(X[:4], Y[:4])).num_factors == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((3, log_likelihood, (X, Y)), "log_prior must be a function, got 3"),
        ((log_prior, log_likelihood, (X, Y[:9])), r"one length above 0 along axis 0, got data\[0\]: 10, data\[1\]: 9"),
        ((log_prior, log_likelihood, (X, 1.0)), r"data\[1\] must be an array of numbers"),
        ((log_prior, log_likelihood, ()), "data must be a pytree of arrays"),
        ((log_prior, log_likelihood, (X[:0], Y[:0])), "one length above 0"),
        ((lambda p: jnp.ones(2), log_likelihood, (X, Y)), r"log_prior must return one real number, got float64\[2\]"),
        ((log_prior, lambda p, d: d[0] * jnp.ones(3), (X, Y)), r"log_likelihood must return one real number, got"),
        ((log_prior, lambda p, d: d["y"], (X, Y)), r"log_likelihood .* and one observation: TypeError"),
    ],
)
def test_bad_input_is_refused(args, message):
    with pytest.raises(InvalidArgument, match=message):
        Target.from_factors(*args, {"b": 0.0, "s": 1.0}, {"s": constraints.positive})
