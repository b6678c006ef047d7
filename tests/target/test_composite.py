"""Smooth plus nonsmooth parts: the ℓ₁ term, targets that carry it, and Laplace priors split off."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from scipy import optimize

from pushforward.infer.errors import InvalidArgument, UnsupportedTarget
from pushforward.infer.geometry import L1
from pushforward.infer.target import Target

SCALE = np.array([0.1, 1.0, 2.0])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def regression(x, y, scale):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    beta = numpyro.sample("beta", dist.Laplace(0.5, scale).to_event(1))
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def make():
    rng = np.random.default_rng(0)
    return Target.from_numpyro(regression, rng.normal(size=(6, 3)), rng.normal(size=6), SCALE)


@pytest.mark.parametrize("step", [0.1, 1.0])
def test_prox_minimises(step):
    term = L1(np.array([0.5, 2.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    x = jnp.array([0.3, -2.0, 4.0])
    found = term.prox(x, step)
    for i in range(3):
        best = optimize.minimize_scalar(
            lambda z, i=i: term.weights[i] * abs(z - term.loc[i]) + (z - x[i]) ** 2 / (2 * step),
            bounds=(-5, 5),
            method="bounded",
            options={"xatol": 1e-10},
        )
        np.testing.assert_allclose(found[i], best.x, atol=1e-6)
    np.testing.assert_allclose(term.value(x), 0.5 * 0.3 + 2 * 3.0)


def test_composite_subtracts_the_term():
    target = Target.composite(lambda x: -0.5 * jnp.sum(x**2), L1(2.0), example=np.zeros(3))
    u = jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(target.log_density(u), -0.5 * 5.25 - 2 * 3.5)
    np.testing.assert_allclose(target.smooth_log_density(u), -0.5 * 5.25)
    assert target.structure() == {"composite", "support"}
    assert target.replace(dims={"x": ["axis"]}).dims == {"x": ("axis",)}


def test_the_term_is_bound_to_its_site():
    target = Target.composite(make(), L1({"beta": np.array([1.0, 2.0, 3.0])}, {"beta": 1.0}))
    np.testing.assert_array_equal(target.nonsmooth.weights, [0.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(target.nonsmooth.loc, [0.0, 1.0, 1.0, 1.0])
    assert target.structure() == {"composite", "prior", "likelihood", "predictive", "support"}
    u = jnp.array([0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(target.log_prior(u), target.target.log_prior(u) - target.nonsmooth.value(u))


def test_split_takes_the_laplace_prior_off():
    whole = make()
    target = whole.split("beta")
    u = jnp.array([0.1, 0.2, -0.3, 0.9])
    assert target.log_density(u) == whole.log_density(u)
    np.testing.assert_allclose(target.nonsmooth.value(u), np.sum(np.abs(u[1:] - 0.5) / SCALE), rtol=1e-12)
    np.testing.assert_allclose(
        target.smooth_log_density(u) - target.nonsmooth.value(u), whole.log_density(u), rtol=1e-12
    )
    # what is left has no kink: its gradient is that of the likelihood, on both sides and on the kink itself
    likelihood = jax.grad(lambda u: whole.log_density(u) - whole.log_prior(u))
    for value in (0.5, 0.5 - 1e-9, 0.5 + 1e-9):
        at = u.at[1].set(value)
        np.testing.assert_allclose(jax.grad(target.smooth_log_density)(at)[1:], likelihood(at)[1:], atol=1e-12)
    assert target.structure() == (whole.structure() - {"factors"}) | {"composite"}
    assert target.sample_prior(jax.random.key(0))["beta"].shape == (3,)


def test_split_refuses_what_has_no_prox():
    def hierarchical():
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        numpyro.sample("beta", dist.Laplace(0, scale).expand([3]))

    target = Target.from_numpyro(hierarchical)
    with pytest.raises(UnsupportedTarget, match="those of 'beta' depend on other latent sites"):
        target.split("beta")
    with pytest.raises(UnsupportedTarget, match="'scale' has HalfNormal"):
        target.split("scale")
    with pytest.raises(InvalidArgument, match="split names the site 'gamma'; the latent sites are scale, beta"):
        target.split("gamma")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(-1.0), "weights must be >= 0, got -1"),
        (lambda: L1({"a": np.array([1.0, -2.0])}), "weights must be >= 0, got -2"),
        (lambda: Target.composite(make(), L1({"gamma": 1.0})), "weights names the site 'gamma'"),
        (lambda: Target.composite(make(), L1({"sigma": 1.0})), "'sigma' of support positive"),
        (lambda: Target.composite(make(), L1({"beta": np.ones(2)})), r"weights\['beta'\] has shape \(2,\), .* \(3,\)"),
        (lambda: Target.composite(make(), L1(np.ones(3))), r"weights has shape \(3,\); .* shape \(4,\)"),
        (lambda: Target.composite(make(), lambda x: x), "nonsmooth must have the methods value"),
        (lambda: Target.composite(jnp.sum, L1(1.0)), "example must be given too; got None"),
        (lambda: Target.composite(make(), L1(1.0)).replace(data=1), "unknown option 'data'; it takes coords, dims"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_random_starts_are_as_narrow_as_a_split_prior():
    def model():
        numpyro.sample("narrow", dist.Laplace(5.0, 1e-3).expand([3]).to_event(1))
        numpyro.sample("wide", dist.Laplace(-7.0, 100.0))
        numpyro.sample("other", dist.Normal(0.0, 1.0))

    target = Target.from_numpyro(model)
    starts = np.stack([target.split("narrow").initial(jax.random.key(i)) for i in range(20)])
    assert target.split("narrow").sites[0].name == "narrow"
    assert np.abs(starts[:, :3] - 5.0).max() <= 2e-3
    assert np.ptp(starts[:, :3]) > 1e-3
    assert 1.0 < np.abs(starts[:, 3:]).max() <= 2.0
    wide = np.stack([target.split("wide").initial(jax.random.key(i)) for i in range(20)])
    assert np.abs(wide[:, 3] + 7.0).max() <= 2.0
    assert np.abs(wide[:, :3]).max() <= 2.0
