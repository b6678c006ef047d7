"""Where chains begin: values by site, arrays, approximations, and posteriors whose step size and metric are reused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.run.start import Warm, starting_points
from pushforward.samplers.metric import as_metric, variances
from tests.run.models import COVARIANCE, MEAN, SIGMA, Y, eight_schools, gaussian, gaussian_log_density, schools

WARM_WARMUP = 100


@pytest.fixture(scope="module", autouse=True)
def in_64_bits():
    with jax.enable_x64(True):
        yield


def run(target=None, method=None, **options):
    defaults = {"num_samples": 100, "num_warmup": 200, "progress": False}
    return pf.fit(gaussian() if target is None else target, method, **defaults | options)


def points(start, num_chains=3, target=None, key=0):
    return starting_points(schools() if target is None else target, jax.random.key(key), start, num_chains)


@pytest.fixture(scope="module")
def earlier():
    """A long run on the correlated normal."""
    return run(num_samples=400, num_warmup=600)


# -- points -----------------------------------------------------------------------------------------------------------


def test_values_by_site_shared_and_per_chain():
    target = schools()
    z = np.arange(24.0).reshape(3, 8) / 10
    chains = [target.constrain(u) for u in points({"mu": 1.5, "z": z})]
    for chain, values in enumerate(chains):
        np.testing.assert_allclose(values["mu"], 1.5)
        np.testing.assert_allclose(values["z"], z[chain])
    # The site that was not named stays random.
    assert len({float(values["tau"]) for values in chains}) == 3


def test_one_value_for_all_chains_where_both_shapes_fit():
    """Eight chains on a site of eight: a vector is one value of the site, not one number per chain."""
    target = schools()
    for u in points({"z": np.arange(8.0)}, num_chains=8):
        np.testing.assert_allclose(target.constrain(u)["z"], np.arange(8.0))


@pytest.mark.parametrize("shape", [(10,), (3, 10)])
def test_unconstrained_arrays(shape):
    given = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_array_equal(points(given), np.broadcast_to(given, (3, 10)))


def test_random_starts_differ_by_chain_and_key_but_not_by_number_of_chains():
    first = points(None)
    assert len({float(u[0]) for u in first}) == 3
    np.testing.assert_array_equal(points(None, num_chains=2), first[:2])
    assert not np.array_equal(points(None, key=1), first)


def test_without_warm_up_the_first_draw_follows_the_start():
    """A step so small that no chain leaves its start."""
    start = np.array([[1.0, -2.0, 0.5], [3.0, 0.0, -1.0]])
    posterior = run(method=pf.NUTS(step_size=1e-9), num_warmup=0, num_samples=1, num_chains=2, start=start)
    np.testing.assert_allclose(posterior.draws()["x"][:, 0], start, atol=1e-5)
    assert "warm-up" not in posterior.record["totals"]
    np.testing.assert_allclose(posterior.data["sample_stats"]["step_size"], 1e-9)


def test_a_given_step_size_is_kept_without_warm_up(earlier):
    for start in (None, earlier):
        posterior = run(method=pf.NUTS(step_size=0.25), num_warmup=0, start=start)
        np.testing.assert_allclose(posterior.data["sample_stats"]["step_size"], 0.25)


# -- approximations ---------------------------------------------------------------------------------------------------


def test_pathfinders_variances_are_the_first_metric():
    near = pf.fit(gaussian(), pf.Pathfinder(), num_samples=200, progress=False)
    for start in (near, near.approximation):
        found = points(start, num_chains=2, target=gaussian())
        assert all(isinstance(point, Warm) for point in found)
        assert not np.array_equal(found[0].u, found[1].u)
        metric = found[0].learned["inverse_mass_matrix"]
        np.testing.assert_allclose(metric, np.diag(COVARIANCE), rtol=0.25)
        # Draws of the approximation, not of a wide random start.
        assert all(np.abs(point.u - MEAN).max() < 5 * np.sqrt(COVARIANCE.max()) for point in found)
    # Without a warm-up it is the metric of the whole run.
    run_on_it = run(start=near, method=pf.NUTS(metric="diagonal_welford", step_size=0.5), num_warmup=0, key=3)
    np.testing.assert_allclose(run_on_it._learned()["inverse_mass_matrix"][0], np.diag(COVARIANCE), rtol=0.25)


def test_an_approximation_keeps_the_usual_warm_up():
    near = pf.fit(gaussian(), pf.Pathfinder(), num_samples=50, progress=False)
    posterior = pf.fit(gaussian(), start=near, num_samples=10, progress=False)
    assert posterior.record["plan"]["num_warmup"] == 1000


# -- posteriors -------------------------------------------------------------------------------------------------------


def warm_up_of(posterior):
    return sum(total["num_evaluations"] for name, total in posterior.record["totals"].items() if name != "sample")


def test_a_posterior_brings_step_size_and_metric(earlier):
    found = points(earlier, num_chains=4, target=gaussian())
    last = earlier.draws()["x"][:, -1]
    metrics = earlier._learned()
    for chain, point in enumerate(found):
        np.testing.assert_allclose(point.u, last[chain])
        np.testing.assert_array_equal(point.learned["step_size"], metrics["step_size"][chain])
        np.testing.assert_array_equal(point.learned["inverse_mass_matrix"], metrics["inverse_mass_matrix"][chain])


def test_its_warm_up_is_short_and_leaves_the_metric(earlier):
    cold = pf.fit(gaussian(), key=1, num_samples=100, progress=False)
    warm = pf.fit(gaussian(), key=1, num_samples=100, start=earlier, progress=False)
    assert cold.record["plan"]["num_warmup"] == 1000
    assert warm.record["plan"]["num_warmup"] == WARM_WARMUP
    assert warm_up_of(warm) < warm_up_of(cold) / 4
    before, after = (posterior._learned()["inverse_mass_matrix"] for posterior in (earlier, warm))
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)  # a factor of the same matrix


def test_its_warm_up_is_reused_on_new_data(earlier):
    data = (MEAN + 0.5, np.linalg.cholesky(COVARIANCE))
    moved = pf.Target.from_log_density(gaussian_log_density, np.zeros(3), data=data)
    posterior = pf.fit(moved, start=earlier, num_samples=1000, progress=False)
    assert posterior.record["plan"]["num_warmup"] == WARM_WARMUP
    draws = posterior.draws()["x"].reshape(-1, 3)
    error = (draws.mean(0) - MEAN - 0.5) / np.sqrt(np.diag(COVARIANCE))
    assert np.abs(error).max() < 0.12
    np.testing.assert_allclose(draws.std(0), np.sqrt(np.diag(COVARIANCE)), rtol=0.12)


def test_a_model_on_new_data():
    first = run(schools(), num_samples=50)
    again = pf.fit(pf.Target.from_numpyro(eight_schools, SIGMA, y=Y + 5), start=first, num_samples=50, progress=False)
    assert again.record["plan"]["num_warmup"] == WARM_WARMUP


def test_the_length_of_the_warm_up_is_the_users(earlier):
    assert run(start=earlier, num_warmup=7).record["plan"]["num_warmup"] == 7


def test_more_chains_than_there_were_begin_at_different_draws(earlier):
    found = [np.asarray(point.u) for point in points(earlier, num_chains=10, target=gaussian())]
    assert len({u.tobytes() for u in found}) == 10


def test_a_loaded_posterior_teaches_too(earlier, tmp_path):
    earlier.save(tmp_path / "saved")
    loaded = pf.load(tmp_path / "saved", gaussian())
    a, b = (run(start=start, num_samples=20, num_warmup=None, key=2) for start in (earlier, loaded))
    assert b.record["plan"]["num_warmup"] == WARM_WARMUP
    np.testing.assert_array_equal(a.draws()["x"], b.draws()["x"])


def test_draws_made_elsewhere_give_points_only(earlier):
    foreign = pf.Posterior.from_draws(earlier.draws(), target=gaussian())
    found = points(foreign, num_chains=4, target=gaussian())
    np.testing.assert_allclose(found, earlier.draws()["x"][:, -1])
    assert run(start=foreign, num_warmup=None).record["plan"]["num_warmup"] == 1000


@pytest.mark.parametrize(
    "make",
    [
        lambda: pf.NUTS(metric="dense"),
        lambda: pf.NUTS(metric="diagonal_welford"),
        lambda: pf.HMC(num_leapfrog=3),
        pf.MALA,
        pf.MCLMC,
        lambda: pf.Pathfinder(max_iterations=20),
        lambda: pf.AutoGuide("AutoNormal", num_steps=20),
    ],
)
def test_other_methods_take_it_as_a_start(make, earlier):
    posterior = run(gaussian(), make(), start=earlier, num_samples=20, num_warmup=20, num_chains=2)
    assert all(np.isfinite(draws).all() for draws in posterior.draws().values())


def test_a_sampler_that_begins_at_the_prior_takes_no_start(earlier):
    with pytest.raises(pf.InvalidArgument, match=r"start has no effect on SMC, .* got a Posterior; leave it out"):
        run(schools(), pf.SMC(num_particles=50), start=earlier)


def test_a_posterior_of_another_model_is_refused(earlier):
    with pytest.raises(pf.InvalidArgument, match="posterior of dimension 3, the target has dimension 10"):
        run(schools(), start=earlier)


# -- metrics of other forms -------------------------------------------------------------------------------------------


def test_forms_of_a_metric_agree():
    from blackjax.mcmc.metrics import LowRankInverseMassMatrix

    rng = np.random.default_rng(1)
    sigma, lam = rng.uniform(0.5, 2, 4), np.array([5.0, 0.2])
    directions = np.linalg.qr(rng.normal(size=(4, 2)))[0]
    low = LowRankInverseMassMatrix(jnp.asarray(sigma), jnp.asarray(directions), jnp.asarray(lam))
    root = np.diag(sigma) @ (np.eye(4) + directions @ np.diag(np.sqrt(lam) - 1) @ directions.T)
    matrix = root @ root.T  # L Lᵀ with L as `whiten` has it
    np.testing.assert_allclose(as_metric(low, jnp.eye(4)), matrix, atol=1e-12)
    np.testing.assert_allclose(variances(low), np.diag(matrix))
    np.testing.assert_allclose(as_metric(low, jnp.ones(4)), np.diag(matrix))
    np.testing.assert_allclose(as_metric(jnp.asarray(matrix), jnp.ones(4)), np.diag(matrix))
    np.testing.assert_allclose(as_metric(jnp.asarray(sigma), jnp.eye(4)), np.diag(sigma))
    np.testing.assert_allclose(as_metric(jnp.asarray(sigma), low).sigma, np.sqrt(sigma))
    assert as_metric(low, low) is low
    assert as_metric(None, low) is None
