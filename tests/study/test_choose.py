"""`fit` without a method: what is chosen, why, and what is said of the result."""

import logging

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf
from pushforward import choose
from pushforward.choose import Choice, choose_method, nuts_evaluations, settle
from pushforward.infer.geometry import L1
from pushforward.infer.run.fit import check_method
from tests.laws import methods as laws
from tests.study import test_calibrate as conjugate

ROWS = np.random.default_rng(0).normal(size=(40, 2))


def log_prior(b):
    return -0.5 * jnp.sum(b**2)


def log_likelihood(b, row):
    return -0.5 * jnp.sum((row - b) ** 2)


def factors():
    return pf.Target.from_factors(log_prior, log_likelihood, ROWS, np.zeros(2))


def stream():
    return pf.Target.from_stream(log_prior, log_likelihood, ROWS, np.zeros(2))


@pytest.mark.parametrize(
    ("make", "method", "why"),
    [
        (factors, pf.NUTS, "2 coordinates"),
        (lambda: factors().sharded(2), pf.DistributedADMM, "dealt out to agents"),
        (stream, pf.SGLD, "read in blocks"),
        (lambda: pf.Target.composite(factors(), L1(0.3)), pf.BregmanProximalLangevin, "nonsmooth part"),
        (laws.gaussian, pf.NUTS, "3 coordinates"),
        (lambda: laws.last_layer(), pf.VBLL, "last layer"),
        (lambda: laws.process(), pf.DoubleKL, "latent Gaussian process"),
    ],
    ids=["factors", "shards", "stream", "composite", "numpyro", "last layer", "latent process"],
)
def test_structure_decides(make, method, why):
    target = make()
    choice = choose_method(target)
    assert type(choice.method) is method
    assert choice.reason.startswith(method.__name__)
    assert why in choice.reason
    assert check_method(choice.method, target) is choice.method  # the target has all that it needs


def test_small_budgets_get_a_method_that_keeps_within_them():
    target = laws.gaussian()
    needed = nuts_evaluations(target.dim)
    assert needed == 4 * 500 * 8
    assert nuts_evaluations(10 * 2**4) == 2 * needed  # sixteen times the dimension, twice the steps
    for budget, method in ((needed - 1, pf.Pathfinder), (needed, pf.NUTS), (None, pf.NUTS)):
        assert type(choose_method(target, max_evaluations=budget).method) is method
    assert type(choose_method(target, max_evaluations=10, num_warmup=5).method) is pf.NUTS


def test_the_reason_stays_with_the_result(monkeypatch, tmp_path, caplog):
    target = pf.Target.from_numpyro(conjugate.regression, conjugate.X, np.zeros(5))
    choice = Choice(conjugate.Conjugate(), "Conjugate: for a test")
    monkeypatch.setattr(choose, "choose_method", lambda target, **budget: choice)
    with caplog.at_level(logging.INFO, logger="pushforward"):
        posterior = pf.fit(target, store=tmp_path / "run", progress=False)
    assert posterior.record["chosen"] == pf.load(tmp_path / "run").record["chosen"] == "Conjugate: for a test"
    assert caplog.messages == ["Conjugate: for a test"]
    assert "chosen" not in pf.fit(target, conjugate.Conjugate(), progress=False).record


def test_a_bad_result_comes_with_advice(caplog):
    apart = pf.Posterior.from_draws({"x": np.random.default_rng(0).normal(size=(4, 200)) + 5 * np.arange(4)[:, None]})
    with caplog.at_level(logging.WARNING, logger="pushforward"):
        settle(apart, Choice(pf.NUTS(), "NUTS: for a test"))
    assert caplog.messages == [f"{apart.diagnose().headline}. {apart.diagnose().warnings[0].message}"]
    assert apart.record["chosen"] == "NUTS: for a test"


@pytest.mark.slow
def test_the_result_says_why_and_what_is_wrong_with_it(caplog):
    def funnel(y):
        s = numpyro.sample("s", dist.Normal(0.0, 3.0))
        numpyro.sample("x", dist.Normal(0.0, jnp.exp(s)).expand([5]).to_event(1))
        numpyro.sample("y", dist.Normal(s, 3.0), obs=y)

    target = pf.Target.from_numpyro(funnel, 0.0)
    with caplog.at_level(logging.INFO, logger="pushforward"):
        posterior = pf.fit(target, max_evaluations=2000, progress=False)
    assert posterior.record["method"]["name"] == "Pathfinder"
    assert posterior.record["chosen"].startswith("Pathfinder: max_evaluations=2,000 is below the 16,000")
    assert posterior.diagnose().flagged
    first, second = caplog.messages
    assert first == posterior.record["chosen"]
    assert second.startswith(posterior.diagnose().headline)
    assert posterior.diagnose().warnings[0].message in second
    caplog.clear()
    pf.fit(target, pf.Pathfinder(), max_evaluations=2000, progress=False)
    assert not caplog.messages  # who chooses a method asks for its diagnosis
