"""Observed values outside the support of their distribution: found when the target is made, one sentence each."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist

import pushforward as pf
from pushforward.infer.errors import InvalidArgument
from pushforward.infer.target import Target


def model_of(likelihood):
    def model(y):
        x = numpyro.sample("x", dist.Normal(0, 1))
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", likelihood(x), obs=y)

    return model


IMPOSSIBLE = {
    "negative count": (lambda x: dist.Poisson(jnp.exp(x)), [3, -1, 2], r"Poisson \(the first is -1 at index 1 "),
    "broken count": (lambda x: dist.NegativeBinomial2(jnp.exp(x), 2.0), [2.5, 1.0], r"first is 2\.5"),
    "category": (lambda x: dist.Categorical(logits=jnp.stack([x, 0.0, 1.0])), [0, 3, 4], r"first is 3 at index 1"),
    "binary": (lambda x: dist.Bernoulli(logits=x), [1, 2, 0], "must be boolean"),
    "trials": (lambda x: dist.Binomial(10, logits=x), [4, 11], r"first is 11 .*must be integer_interval"),
    "negative time": (lambda x: dist.Exponential(jnp.exp(x)), [1.0, -0.5], "must be positive"),
    "truncated": (lambda x: dist.TruncatedNormal(x, 1, low=1.0), [2.0, 0.5], "first is 0.5"),
    "infinite": (lambda x: dist.Normal(x, 1.0), [1.0, np.inf], "first is inf at index 1 and must be real"),
    "infinite time": (lambda x: dist.Exponential(jnp.exp(x)), [1.0, np.inf], "first is inf at index 1"),
    "event": (lambda x: dist.Gamma(jnp.exp(x), 1.0).expand([1]).to_event(0), [0.5, -3.0], "first is -3.0"),
}  # fmt: skip


@pytest.mark.parametrize("closed_over", [False, True], ids=["argument", "closed over"])
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_observations_are_refused(name, closed_over):
    likelihood, y, message = IMPOSSIBLE[name]
    y = np.asarray(y)
    model = model_of(likelihood)
    with pytest.raises(InvalidArgument, match=rf"the observed site 'y' has .*outside the support.*{message}"):
        Target.from_numpyro((lambda: model(y)) if closed_over else model, *(() if closed_over else (y,)))


POSSIBLE = {
    "edges": (lambda x: dist.Exponential(jnp.exp(x)), [0.0, 2.0]),  # rounded to 0, where the density is finite
    "closed edges": (lambda x: dist.TruncatedNormal(x, 1, low=0.0, high=1.0), [0.0, 1.0]),
    "whole floats": (lambda x: dist.Poisson(jnp.exp(x)), [3.0, 0.0]),
    "bools": (lambda x: dist.Bernoulli(logits=x), [True, False]),
    "latent bound": (lambda x: dist.Uniform(-10 - jnp.exp(x), 0), [-11.0, -0.5]),
    "angle": (lambda x: dist.VonMises(x, 2.0), [3.5, -7.0]),
    "masked": (lambda x: dist.Poisson(jnp.exp(x)).mask(jnp.array([True, False])), [3, -1]),
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_possible_observations_are_accepted(name):
    likelihood, y = POSSIBLE[name]
    target = Target.from_numpyro(model_of(likelihood), np.asarray(y))
    with jax.enable_x64(True):
        assert np.isfinite(target.log_density(jnp.ones(1)))


def test_events_are_looked_at_entry_by_entry():
    def model(y):
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("y", dist.Poisson(jnp.exp(x)).expand([2, 2]).to_event(1), obs=y)

    with pytest.raises(InvalidArgument, match=r"1 of 4 .*the first is -2 at index \(1, 0\) and must be "):
        Target.from_numpyro(model, np.array([[1, 0], [-2, 5]]))


def test_what_data_decide_is_left_to_the_start():
    """More successes than trials, both given as data: no start has a finite density, and the site is named."""

    def model(n, y):
        x = numpyro.sample("x", dist.Normal(0, 1))
        numpyro.sample("y", dist.Binomial(n, logits=x), obs=y)

    target = Target.from_numpyro(model, np.array([3, 4]), np.array([2, 6]))
    with pytest.raises(pf.NonFinite, match="failed at site 'y'"):
        pf.fit(target, num_samples=5, num_warmup=5, progress=False)
