"""Guides: exact where the family holds the posterior, the law of their densities, order of u, refusals."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import pushforward as pf
from pushforward.infer.variational.autoguide import AutoGuide
from pushforward.infer.variational.guides import laplace

MEAN = np.array([1.0, -2.0, 0.5])
COVARIANCE = np.array([[1.0, 0.6, 0.0], [0.6, 1.0, 0.2], [0.0, 0.2, 0.25]])
LOG_Z = -0.7


def log_density(x, data):
    mean, precision = data
    _, log_det = jnp.linalg.slogdet(precision)
    return LOG_Z - 0.5 * (x - mean) @ precision @ (x - mean) + 0.5 * log_det - 1.5 * jnp.log(2 * jnp.pi)


@cache
def gaussian() -> pf.Target:
    return pf.Target.from_log_density(log_density, np.zeros(3), data=(MEAN, np.linalg.inv(COVARIANCE)))


def conjugate(y):
    # Names in another order than in the model's text, a constrained site, a plate: what could be confused.
    z = numpyro.sample("z", dist.Normal(3.0, 0.1))
    a = numpyro.sample("a", dist.LogNormal(-1.0, 0.5))
    with numpyro.plate("n", 2):
        m = numpyro.sample("m", dist.Normal(jnp.array([10.0, -10.0]), 1.0))
        numpyro.sample("y", dist.Normal(m, 1.0), obs=y)
    numpyro.deterministic("sum", z + a)


@pytest.mark.parametrize(
    "guide",
    [
        pytest.param("AutoMultivariateNormal", marks=pytest.mark.slow),
        "AutoLaplaceApproximation",
        pytest.param("AutoLowRankMultivariateNormal", marks=pytest.mark.slow),
    ],
)
def test_a_family_that_holds_the_posterior_finds_it(guide: str) -> None:
    options = {"rank": 2} if "LowRank" in guide else {}
    posterior = pf.fit(gaussian(), AutoGuide(guide, options=options), key=0, num_samples=2000, progress=False)
    with jax.enable_x64(True):
        np.testing.assert_allclose(posterior.approximation.mean(), MEAN, atol=0.03)
        np.testing.assert_allclose(posterior.approximation.covariance(), COVARIANCE, atol=0.05)
        u, log_q = posterior.approximation.sample_and_log_prob(jax.random.key(5), 4)
        np.testing.assert_allclose(log_q, [float(posterior.approximation.log_prob(x)) for x in u], rtol=1e-9)
    assert posterior.evidence().log_evidence == pytest.approx(LOG_Z, abs=0.01)
    assert posterior.elbo()[0] == pytest.approx(LOG_Z, abs=0.02)


@pytest.mark.parametrize("guide", ["AutoNormal", "AutoDiagonalNormal"])
def test_mean_field_has_the_known_optimum(guide: str) -> None:
    # The best factorised normal has the exact mean and variances 1 / Λ_ii.
    posterior = pf.fit(gaussian(), AutoGuide(guide), key=0, num_samples=2000, progress=False)
    precision = np.linalg.inv(COVARIANCE)
    with jax.enable_x64(True):
        np.testing.assert_allclose(posterior.approximation.mean(), MEAN, atol=0.05)
        np.testing.assert_allclose(
            posterior.approximation.covariance(), np.diag(1 / np.diag(precision)), atol=0.03, rtol=0.06
        )
    # Its ELBO falls short by the KL divergence ½ (Σ log Λ_ii − log |Λ|).
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    elbo, error = posterior.elbo()
    assert elbo == pytest.approx(LOG_Z - gap, abs=4 * error + 0.02)


@pytest.mark.parametrize("guide", ["AutoIAFNormal", pytest.param("AutoBNAFNormal", marks=pytest.mark.slow)])
def test_flows_keep_the_law_of_their_density(guide: str) -> None:
    method = AutoGuide(guide, num_steps=600, options={"num_flows": 1})
    posterior = pf.fit(gaussian(), method, key=0, num_samples=4000, progress=False)
    found = posterior.evidence()
    assert found.log_evidence == pytest.approx(LOG_Z, abs=4 * found.se + 0.01)
    assert found.se < 0.05
    with jax.enable_x64(True):
        u, log_q = posterior.approximation.sample_and_log_prob(jax.random.key(5), 2)
        if guide == "AutoIAFNormal":
            np.testing.assert_allclose(posterior.approximation.log_prob(u[0]), log_q[0], rtol=1e-6)
        else:
            with pytest.raises(pf.NotAvailable, match="cannot be inverted"):
                posterior.approximation.log_prob(u[0])
        with pytest.raises(pf.NotAvailable, match="closed-form"):
            posterior.approximation.mean()


def test_order_of_sites_is_the_targets() -> None:
    target = pf.Target.from_numpyro(conjugate, np.array([12.0, -12.0]))
    posterior = pf.fit(target, AutoGuide("AutoNormal"), key=0, num_samples=4000, progress=False)
    draws = posterior.draws()
    assert draws["z"].mean() == pytest.approx(3.0, abs=0.02)
    assert np.log(draws["a"]).mean() == pytest.approx(-1.0, abs=0.05)
    assert np.log(draws["a"]).std() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(draws["m"].mean((0, 1)), [11, -11], atol=0.08)
    np.testing.assert_allclose(draws["m"].std((0, 1)), np.sqrt(0.5), atol=0.06)
    np.testing.assert_allclose(draws["sum"], draws["z"] + draws["a"])
    exact = dist.Normal(jnp.array([10.0, -10.0]), np.sqrt(2.0)).log_prob(jnp.array([12.0, -12.0])).sum()
    assert posterior.evidence().log_evidence == pytest.approx(float(exact), abs=0.02)
    value = {"z": 3.0, "a": np.exp(-1.0), "m": np.array([11.0, -11.0])}
    with jax.enable_x64(True):
        u = target.unconstrain(value)
        assert posterior.log_prob(value) == pytest.approx(float(posterior.approximation.log_prob(u)))


def test_optimiser_factory_and_patience() -> None:
    from numpyro.infer.autoguide import AutoDiagonalNormal

    def make(model, **options):
        return AutoDiagonalNormal(model, init_scale=0.3, **options)

    method = AutoGuide(make, optimizer=optax.rmsprop(0.05), num_steps=5000, patience=200)
    posterior = pf.fit(gaussian(), method, key=0, num_chains=2, num_samples=500, progress=False)
    with jax.enable_x64(True):
        np.testing.assert_allclose(posterior.approximation.mean(), MEAN, atol=0.3)
    assert posterior.record["evaluations"] < 2 * 5000 * 10, "patience must have ended it"


def test_laplace_at_a_known_mode() -> None:
    with jax.enable_x64(True):
        found = laplace(gaussian(), jnp.asarray(MEAN))
        np.testing.assert_allclose(found.covariance(), COVARIANCE, rtol=1e-9, atol=1e-12)
        assert np.all(np.triu(found.factor.dense(), 1) == 0)
        saddle = pf.Target.from_log_density(lambda x: x[0] ** 2 - x[1] ** 2, np.zeros(2))
        with pytest.raises(pf.NonFinite, match="not negative definite"):
            laplace(saddle, jnp.zeros(2))


def test_a_loss_that_stays_not_finite_is_an_error() -> None:
    def brittle(x):
        return jnp.where(jnp.all(x == x[0]), 0.0, jnp.nan) + 0 * x.sum()

    target = pf.Target.from_log_density(brittle, np.zeros(2))
    with pytest.raises(pf.NonFinite, match="loss"):
        pf.fit(target, AutoGuide(num_steps=200), start=np.zeros(2), progress=False)


def test_refusals() -> None:
    with pytest.raises(pf.InvalidArgument, match=r"guide must be one of AutoNormal, .* got 'AutoNormall'"):
        AutoGuide("AutoNormall")
    from numpyro.infer import autoguide

    for guide, options, message in (
        (autoguide.AutoSemiDAIS, {}, "AutoSemiDAIS cannot be made .*init_loc_fn"),
        (autoguide.AutoBatchedMultivariateNormal, {}, "cannot be made .*Expected 1 batch dimensions"),
        ("AutoIAFNormal", {"num_flow": 2}, r"with options=\{'num_flow': 2\}: TypeError.*'num_flow'"),
        (lambda model, init_loc_fn: None, {}, "guide <lambda> cannot be made .*: AssertionError; give options="),
    ):
        with pytest.raises(pf.InvalidArgument, match=message):
            pf.fit(gaussian(), AutoGuide(guide, options=options), progress=False)
    with pytest.raises(pf.InvalidArgument, match="AutoDelta is a point and has no density"):
        AutoGuide("AutoDelta")
    with pytest.raises(pf.InvalidArgument, match="optimizer must be an optax"):
        AutoGuide(optimizer="adam")
    with pytest.raises(pf.InvalidArgument, match="num_steps must be a whole number >= 1, got 0"):
        AutoGuide(num_steps=0)
