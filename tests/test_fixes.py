"""What a diagnosis says to run next: run, it does away with the warning; and `fit` without a method runs it itself."""

import logging

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.reparam import LocScaleReparam

import pushforward as pf
from pushforward.infer.posterior.fixes import Fix, centred_sites, expression
from pushforward.models import classics

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@pytest.fixture(scope="module")
def schools():
    return pf.Target.from_numpyro(classics.eight_schools_centered, SIGMA, Y)


def normal(x):
    return -0.5 * jnp.sum((x - 1.0) ** 2 * jnp.array([1.0, 0.01, 0.25]))


def banana(x):
    return -0.5 * (x[0] ** 2 + ((x[1] - x[0] ** 2) / 0.3) ** 2)


def two_modes(y):
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(jnp.abs(x), 0.3), obs=y)


def run_code(posterior):
    """The fix of the first warning, as a user would run what is printed."""
    names = {"pf": pf, "target": posterior.target, "posterior": posterior}
    exec(str(posterior.diagnose().fix), names)
    return names["posterior"]


def check_fixed(posterior, words, *, gone):
    """The fix is there, is shown, runs, and the warnings ``gone`` are no longer there."""
    diagnosis = posterior.diagnose()
    assert set(gone) <= {f.name for f in diagnosis.warnings}
    assert words in diagnosis.fix.words
    assert f">>> {str(diagnosis.fix).splitlines()[-1]}" in str(diagnosis)
    fixed = run_code(posterior)
    left = {f.name for f in fixed.diagnose().warnings}
    assert not left & set(gone), left
    return fixed


# -- fixes that are run -----------------------------------------------------------------------------------------------


def test_a_step_far_too_large():
    target = pf.Target.from_log_density(normal, np.zeros(3))
    stuck = pf.fit(target, pf.NUTS(step_size=1e4), num_warmup=0, progress=False)
    fixed = check_fixed(stuck, "warm up", gone=["stuck chain"])
    assert fixed.diagnose().ok
    x = fixed.draws()["x"].reshape(-1, 3)
    assert np.all(np.abs(x.mean(0) - 1.0) < 5 * np.array([1, 10, 2]) / 20)  # ESS above 400


def test_few_draws():
    target = pf.Target.from_log_density(normal, np.zeros(3))
    few = pf.fit(target, pf.NUTS(), num_samples=30, progress=False)
    assert few.diagnose()["ESS"].fix == Fix("draw more", options={"num_samples": 970})
    assert str(few.diagnose()["ESS"].fix) == "posterior = posterior.extend(970)"
    longer = few.diagnose()["ESS"].fix.apply(few, progress=False)
    assert longer.draws()["x"].shape[:2] == (4, 1000)
    assert longer.diagnose().ok


@pytest.mark.slow
def test_few_draws_and_a_short_warm_up():
    """What was asked for stays, and where there are too few draws, more are asked for."""
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(2))
    few = pf.fit(target, pf.NUTS(), num_samples=30, num_warmup=30, thin=2, sites=["x"], progress=False)
    fix = few.diagnose()["ESS"].fix
    assert fix.options == {"num_samples": 1000, "num_warmup": 1000, "thin": 2, "sites": ["x"]}
    assert str(fix).endswith("pf.NUTS(), num_samples=1000, num_warmup=1000, thin=2, sites=['x'])")


def test_centred_eight_schools(schools):
    centred = pf.fit(schools, pf.NUTS(), progress=False)
    fixed = check_fixed(centred, "non-centre theta", gone=["ESS"])
    assert fixed.diagnose().ok
    assert fixed.draws()["theta"].shape == (4, 1000, 8)  # still there, under its name
    same = centred.diagnose().fix.apply(centred, progress=False)
    np.testing.assert_array_equal(same.draws()["theta"], fixed.draws()["theta"])  # the code is what `apply` does


@pytest.mark.slow
def test_a_normal_in_place_of_a_banana():
    target = pf.Target.from_log_density(banana, np.zeros(2))
    laplace = pf.fit(target, pf.Laplace(), progress=False)
    fixed = check_fixed(laplace, "NUTS from here", gone=["k-hat"])
    assert fixed.kind == "chains"
    assert 0.5 < fixed.draws()["x"][..., 1].mean() < 1.6  # E x₀² = 1, which is 0 at the mode; Monte-Carlo error 0.2


@pytest.mark.slow
def test_two_modes():
    target = pf.Target.from_numpyro(two_modes, 5.0)
    start = {"x": np.array([5.0, 5.0, -5.0, 5.0])}
    apart = pf.fit(target, pf.NUTS(), start=start, progress=False)
    fixed = check_fixed(apart, "temper", gone=["chain apart"])
    assert (fixed.sample(4000)["x"] > 0).mean() == pytest.approx(0.5, abs=0.08)


# -- fixes that are named ---------------------------------------------------------------------------------------------


def test_what_is_centred(schools):
    points = [{"mu": 0.0, "tau": tau, "theta": np.zeros(8)} for tau in (1.0, 2.0)]
    assert centred_sites(schools, points) == ("theta",)  # mu's and tau's priors are fixed
    assert centred_sites(schools, [points[0], points[0]]) == ()
    assert centred_sites(schools, [{"mu": 0.0}, {"mu": 1.0}]) == ()  # draws that lack a site
    moved = schools.replace(reparam={"theta": LocScaleReparam(0)})
    points = [{"mu": 0.0, "tau": tau, "theta_decentered": np.zeros(8)} for tau in (1.0, 2.0)]
    assert centred_sites(moved, points) == ()
    assert centred_sites(pf.Target.from_log_density(normal, np.zeros(3)), [{"x": np.zeros(3)}] * 2) == ()


@pytest.mark.parametrize(
    ("method", "code"),
    [
        (pf.NUTS(), "pf.NUTS()"),
        (pf.NUTS(target_acceptance=0.95, metric="dense"), "pf.NUTS(target_acceptance=0.95, metric='dense')"),
        (pf.HMC(inverse_mass_matrix=np.eye(2)), "pf.HMC(inverse_mass_matrix=...)"),
    ],
)
def test_methods_as_code(method, code):
    assert expression(method) == code


def test_draws_without_a_target_have_words_only():
    bad = pf.Posterior.from_draws({"x": np.random.default_rng(0).normal(size=(4, 200)) + 5 * np.arange(4)[:, None]})
    assert bad.diagnose().flagged
    assert bad.diagnose().fix is None
    assert ">>>" not in str(bad.diagnose())
    assert bad.diagnose().to_dict()["findings"][0]["fix"] is None


def test_draws_from_elsewhere_with_a_target(schools):
    """Divergences of another program, in the neck: the hierarchy is seen by the model."""
    rng = np.random.default_rng(0)
    tau = np.exp(rng.normal(size=(4, 500)))
    theta = tau[..., None] * rng.normal(size=(4, 500, 8))
    draws = {"mu": rng.normal(size=(4, 500)), "tau": tau, "theta": theta + 5 * np.arange(4)[:, None, None]}
    diagnosis = pf.Posterior.from_draws(draws, target=schools).diagnose()
    assert diagnosis["R-hat"].fix.non_centre == ("theta",)
    assert str(diagnosis.fix).splitlines() == [
        "from numpyro.infer.reparam import LocScaleReparam",
        "target = target.replace(reparam={'theta': LocScaleReparam(0)})",
        "posterior = pf.fit(target, pf.NUTS())",
    ]


# -- fit without a method ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fit_falls_back_by_itself(schools, caplog):
    with caplog.at_level(logging.WARNING, logger="pushforward"):
        posterior = pf.fit(schools, progress=False)
    assert posterior.diagnose().ok
    chosen = posterior.record["chosen"]
    assert chosen.startswith("NUTS: exact for a density with a gradient")
    assert chosen.endswith(": non-centre theta")
    assert "Trying again: non-centre theta" in caplog.messages[0]
    assert posterior.target is not schools


def test_fit_only_advises_where_the_user_has_said_how_long(caplog):
    target = pf.Target.from_log_density(normal, np.zeros(3))
    with caplog.at_level(logging.WARNING, logger="pushforward"):
        posterior = pf.fit(target, num_samples=30, progress=False)
    assert posterior.draws()["x"].shape[:2] == (4, 30)
    assert len(caplog.messages) == 1
    assert "Next: posterior = " in caplog.messages[0]
