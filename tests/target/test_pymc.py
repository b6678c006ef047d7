"""Targets made from PyMC models; runs where the extra is installed."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.errors import InvalidArgument, UnsupportedTarget
from pushforward.infer.target import Target

SIGMA = np.array([15.0, 10.0, 16.0])
needs_pymc = pytest.mark.skipif(importlib.util.find_spec("pymc") is None, reason="PyMC is not installed")


def schools(pm):
    with pm.Model(coords={"school": ["A", "B", "C"]}) as model:
        mu = pm.Normal("mu", 0, 5)
        tau = pm.HalfCauchy("tau", 5)
        low = pm.Uniform("low", mu, mu + 3)
        pm.Dirichlet("w", np.ones(3))
        z = pm.Normal("z", 0, 1, dims="school")
        theta = pm.Deterministic("theta", low + tau * z, dims="school")
        pm.Normal("y", theta, SIGMA, observed=np.array([28.0, 8.0, -3.0]), dims="school")
    return model


@needs_pymc
@pytest.mark.filterwarnings("ignore")
def test_a_pymc_model():
    import pymc as pm

    before = jax.config.jax_enable_x64
    model = schools(pm)
    target = Target.from_pymc(model)
    assert jax.config.jax_enable_x64 == before
    assert [(s.name, s.shape, s.kind, s.size) for s in target.sites] == [
        ("mu", (), "latent", 1),
        ("tau", (), "latent", 1),
        ("low", (), "latent", 1),
        ("w", (3,), "latent", 2),
        ("z", (3,), "latent", 3),
        ("theta", (3,), "deterministic", 0),
    ]
    assert target.dims == dict.fromkeys(("z", "theta", "y"), ("school",))
    assert list(target.coords["school"]) == ["A", "B", "C"]
    np.testing.assert_array_equal(target.observed["y"], [28.0, 8.0, -3.0])
    with jax.enable_x64(True):
        u = jnp.linspace(-1, 1, target.dim)
        point = dict(zip([v.name for v in model.value_vars], map(np.asarray, target._values(u)), strict=True))
        np.testing.assert_allclose(target.log_density(u), model.compile_logp()(point), rtol=1e-12)
        values = target.constrain(u)
        np.testing.assert_allclose(values["theta"], values["low"] + values["tau"] * values["z"], rtol=1e-12)
        np.testing.assert_allclose(target.unconstrain(values), u, atol=1e-12)
        total = target.log_prior(u) + target.log_likelihood(values)["y"].sum()
        np.testing.assert_allclose(total, target.log_density(u), rtol=1e-12)
        batch = jax.jit(lambda t, u: jax.vmap(jax.value_and_grad(t.log_density))(u))(target, jnp.stack([u, u]))
        np.testing.assert_allclose(batch[0], target.log_density(u), rtol=1e-12)
        assert np.all(np.isfinite(batch[1]))
        for name, support in target.supports().items():
            if support is not None:
                assert np.all(support.value(values[name])), name
        parts = target.log_densities(u)
        assert list(parts) == ["mu", "tau", "low", "w", "z", "y"]
        np.testing.assert_allclose(sum(parts.values()), target.log_density(u), rtol=1e-12)
        prior = target.prior_densities(values)
        assert {name: x.shape for name, x in prior.items()} == {"mu": (), "tau": (), "low": (), "w": (), "z": (3,)}
        np.testing.assert_allclose(prior["z"], -0.5 * values["z"] ** 2 - 0.5 * np.log(2 * np.pi), rtol=1e-12)
        at = sum(x.sum() for x in prior.values()) + target.log_likelihood(values)["y"].sum()
        np.testing.assert_allclose(at, target.log_density_at(values), rtol=1e-12)
    assert [s.support for s in target.sites][:5] == ["real", "positive", "interval", "simplex", "real"]
    assert {name: support is None for name, support in target.supports().items()} == {
        "mu": False, "tau": False, "low": True, "w": True, "z": False,
    }  # fmt: skip
    assert target.check().ok
    assert target.fingerprint() == Target.from_pymc(schools(pm)).fingerprint()


def line(pm, x, scale):
    with pm.Model() as model:
        slope = pm.Normal("slope", 0, scale)
        pm.Normal("y", slope * pm.Data("x", x), 1.0, observed=np.array([1.0, 2.0]))
    return model


@needs_pymc
@pytest.mark.filterwarnings("ignore")
def test_fingerprint_knows_data_and_constants():
    """Covariates and constants are in no text of the model, and decide whether a run may be resumed."""
    import pymc as pm

    first, *others = (
        Target.from_pymc(line(pm, np.array(x), scale)).fingerprint()
        for x, scale in [([1.0, 2.0], 1.0), ([1.0, 2.0], 1.0), ([1.0, 3.0], 1.0), ([1.0, 2.0], np.array(3.0))]
    )
    assert [other == first for other in others] == [True, False, False]


@needs_pymc
@pytest.mark.filterwarnings("ignore")
def test_constrained_coordinates_of_a_pymc_model():
    """Half-lines and intervals with constant ends: the density in x, and a sampler that uses their mirrors."""
    import pymc as pm

    import pushforward as pf
    from pushforward.infer.target.primal import primal

    with pm.Model() as model:
        pm.Gamma("g", 3.0, 2.0)
        pm.Beta("b", 3.0, 2.0, shape=2)
        pm.Uniform("u", np.array([-1.0, 0.0]), 2.0, shape=2)
        pm.TruncatedNormal("low", 0.0, 1.0, lower=0.5)
        pm.TruncatedNormal("high", 0.0, 1.0, upper=0.5)
    target = Target.from_pymc(model)
    found = primal(target)
    assert [s.support for s in target.sites] == [
        "positive", "unit_interval", "interval(…, …)", "greater_than(0.5)", "less_than(0.5)",
    ]  # fmt: skip
    with jax.enable_x64(True):
        u = jnp.linspace(-1, 1, target.dim)
        x = found.coordinates.to_x(u)
        values = target.constrain(u)
        np.testing.assert_allclose(x, np.concatenate([np.ravel(v) for v in values.values()]), rtol=1e-12)
        log_det = jnp.linalg.slogdet(jax.jacfwd(found.coordinates.to_x)(u))[1]
        np.testing.assert_allclose(found.log_density(x) + log_det, target.log_density(u), rtol=1e-7)  # PyMC's constants
    posterior = pf.fit(target, pf.MirrorLangevin(), num_samples=4000, num_warmup=500, progress=False)
    assert posterior.draws()["g"].mean() == pytest.approx(1.5, abs=0.15)
    assert posterior.draws()["b"].mean() == pytest.approx(0.6, abs=0.05)
    with pm.Model() as model:
        pm.Dirichlet("w", np.ones(3))
    with pytest.raises(UnsupportedTarget, match=r"'w' \(simplex\) is not known: .*NUTS\(\)"):
        pf.fit(Target.from_pymc(model), pf.MirrorLangevin(), num_samples=10, num_warmup=10, progress=False)


@needs_pymc
@pytest.mark.filterwarnings("ignore")
def test_bad_models_are_refused():
    import pymc as pm

    with pytest.raises(InvalidArgument, match=r"model must be a pymc\.Model, got 3"):
        Target.from_pymc(3)
    with pm.Model() as model:
        pm.Bernoulli("z", 0.5)
    with pytest.raises(UnsupportedTarget, match="free variable 'z' of the PyMC model is discrete"):
        Target.from_pymc(model)
    with pm.Model() as model:
        pm.Normal("y", 0, 1, observed=1.0)
    with pytest.raises(InvalidArgument, match="no free variable"):
        Target.from_pymc(model)


def test_without_pymc(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pymc" else find_spec(name))
    with pytest.raises(UnsupportedTarget, match=r'pip install "pushforward\[pymc\]"'):
        Target.from_pymc(object())
