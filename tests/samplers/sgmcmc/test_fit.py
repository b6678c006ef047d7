"""SGLD and SGHMC through `fit`: defaults, what they say of their bias, models with unscaled columns, bad input."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf
from pushforward.infer.diagnostics.chains import effective_sample_size
from pushforward.infer.errors import InvalidArgument, UnsupportedTarget

RNG = np.random.default_rng(2)
UNITS = np.array([1.0, 1000.0, 0.01])
X = RNG.normal(size=(300, 3)) * UNITS
LABEL = (RNG.random(300) < 1 / (1 + np.exp(-X @ (np.array([1.0, -0.5, 0.7]) / UNITS)))).astype(int)


def logistic(x, y):
    b = numpyro.sample("b", dist.Normal(0, 2.0 / jnp.asarray(UNITS)).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


@pytest.fixture(scope="module")
def target():
    return pf.Target.from_numpyro(logistic, X, LABEL)


@pytest.fixture(scope="module")
def reference(target):
    posterior = pf.fit(target, num_samples=2000, num_warmup=500, num_chains=2, progress=False)
    b = posterior.draws()["b"].reshape(-1, 3)
    return b.mean(0), b.std(0)


@pytest.mark.parametrize("method", [pf.SGLD(batch_size=30), pf.SGHMC(batch_size=30)], ids=["SGLD", "SGHMC"])
def test_defaults_suit_columns_of_any_units(target, reference, method):
    posterior = pf.fit(
        target, method, num_samples=3000, num_warmup=400, num_chains=4, chains_per_program=4, progress=False
    )
    mean, sd = reference
    z = (posterior.draws()["b"] - mean) / sd
    error = 1 / np.sqrt(effective_sample_size(np.moveaxis(z, -1, 0)))
    assert np.all(np.abs(z.mean((0, 1))) < 4 * error + 0.08), z.mean((0, 1))
    np.testing.assert_allclose(z.std((0, 1)), 1.0, atol=0.12)
    said = str(posterior.diagnose())
    assert "Half the step size tells its bias" in said
    assert "make standard deviations at most" in said
    assert "approximate" in said
    assert not [f for f in posterior.diagnose().warnings if f.name in ("bias", "step size", "centre", "R-hat")]


def test_a_large_step_size_is_told():
    def log_likelihood(p, row):
        return -0.5 * (row - p) ** 2

    normal = pf.Target.from_factors(lambda p: 0.0 * p, log_likelihood, RNG.normal(size=200), np.zeros(()))
    posterior = pf.fit(
        normal, pf.SGLD(step_size=1.2, batch_size=20), num_samples=500, num_warmup=2000, num_chains=4, progress=False
    )
    findings = {f.name: f for f in posterior.diagnose().findings}
    # variance 1 / (1 − h/2) = 2.5: the sd is 58 % too large; two half steps say 1/(1 − h/4) and twice the difference.
    assert findings["step size"].level == "warning"
    np.testing.assert_allclose(findings["step size"].value, np.sqrt(2.5) - 1, rtol=0.01)
    assert findings["bias"].level == "warning"
    half = np.sqrt(1 / (1 - 0.3))
    expected = 2 * (2.5 - half**2) / (2 * half**2)  # to first order in the difference of variances
    np.testing.assert_allclose(findings["bias"].value, expected, rtol=0.2)
    with pytest.raises(
        InvalidArgument, match=r"step_size=2.1 is too large: .* the recursion explodes; .* automatically"
    ):
        pf.fit(normal, pf.SGLD(step_size=2.1), progress=False)


def test_decay_shrinks_the_step_while_sampling(target):
    posterior = pf.fit(
        target, pf.SGLD(step_size=0.1, decay=0.5, decay_from=10.0), num_samples=90, num_warmup=0, num_chains=1,
        progress=False,
    )  # fmt: skip
    steps = posterior.data["sample_stats"]["step_size"].values[0]
    np.testing.assert_allclose(steps, 0.1 * (1 + np.arange(90) / 10) ** -0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pf.SGLD(step_size=-1.0), "step_size must be a finite number > 0, got -1"),
        (lambda: pf.SGLD(batch_size=0), "batch_size must be a whole number >= 1, got 0"),
        (lambda: pf.SGLD(precondition="full"), "precondition must be one of 'auto', got 'full'"),
        (lambda: pf.SGLD(decay=1.0), "decay must be a number of at least 0 and below 1, got 1.0"),
        (lambda: pf.SGHMC(num_integration_steps=0), "num_integration_steps must be a whole number >= 1, got 0"),
        (lambda: pf.SGHMC(friction=-0.1), "friction must be a finite number >= 0, got -0.1"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_targets_without_rows_are_refused_with_the_reason():
    def local(y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.plate("rows", y.shape[0]):
            theta = numpyro.sample("theta", dist.Normal(m, 1))
            numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    with pytest.raises(UnsupportedTarget, match=r"SGLD needs a target with factors.* latent site 'theta' has a value"):
        pf.fit(pf.Target.from_numpyro(local, X[:, 0]), pf.SGLD())
    bare = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(3))
    with pytest.raises(UnsupportedTarget, match="SGHMC needs a target with factors"):
        pf.fit(bare, pf.SGHMC())
