"""What `mesh=` takes, and rows that are spread, on the one device of this process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import pushforward as pf
from pushforward.infer.distributed.mesh import data_mesh, read_mesh
from pushforward.infer.target.spread import spread_rows
from tests.run.models import gaussian

RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((7, 2)), RNG.standard_normal(7))


def log_prior(b):
    return -0.5 * jnp.sum(b**2)


def log_likelihood(b, row):
    x, y = row
    return -0.5 * (y - x @ b) ** 2


def regression(rows=ROWS):
    return pf.Target.from_factors(log_prior, log_likelihood, rows, jnp.zeros(2))


@pytest.fixture(params=["spread", "local"])
def spread(request):
    if request.param == "spread":
        with jax.enable_x64(True):
            return spread_rows(regression(), data_mesh(jax.devices()[:1]))
    return pf.Target.from_local_rows(log_prior, log_likelihood, ROWS, jnp.zeros(2))


def test_densities_are_those_of_all_rows(spread):
    target = regression()
    with jax.enable_x64(True):
        u, batch = jnp.array([0.3, -1.2]), jnp.array([6, 0, 6])
        for name in ("log_density", "log_prior"):
            value, gradient = jax.value_and_grad(getattr(spread, name))(u)
            expected, slope = jax.value_and_grad(getattr(target, name))(u)
            np.testing.assert_allclose(value, expected, rtol=1e-12)
            np.testing.assert_allclose(gradient, slope, rtol=1e-12)
        np.testing.assert_allclose(jax.hessian(spread.log_density)(u), jax.hessian(target.log_density)(u), rtol=1e-10)
        np.testing.assert_allclose(spread.factor(u, batch), target.factor(u, batch), rtol=1e-12)
        np.testing.assert_allclose(
            spread.log_density_minibatch(u, batch), target.log_density_minibatch(u, batch), rtol=1e-12
        )
        key = jax.random.key(0)
        np.testing.assert_array_equal(spread.minibatch(key, 3, 5), target.minibatch(key, 3, 5))
    assert spread.num_factors == 7


def test_rows_decide_the_fingerprint():
    made = [
        pf.Target.from_local_rows(log_prior, log_likelihood, rows, jnp.zeros(2)).fingerprint()
        for rows in (ROWS, ROWS, (ROWS[0], ROWS[1] + 1))
    ]
    assert made[0] == made[1] != made[2]


def test_words_and_meshes():
    assert read_mesh(None)[0] is None
    assert read_mesh("data") == ("data", jax.devices())
    mesh = Mesh(np.array(jax.devices()[:1]), ("chains",), axis_types=(AxisType.Auto,))
    assert read_mesh(mesh) == ("chains", jax.devices()[:1])
    with pytest.raises(pf.InvalidArgument, match=r"mesh must be one of 'chains', 'particles', 'data', .* got 'rows'"):
        pf.fit(gaussian(), mesh="rows")
    with pytest.raises(pf.InvalidArgument, match=r"a mesh with axes \('model',\)"):
        pf.fit(gaussian(), mesh=Mesh(np.array(jax.devices()[:1]), ("model",)))


def test_a_mesh_that_does_not_suit_is_refused():
    with pytest.raises(pf.InvalidArgument, match="NUTS does not; use mesh='chains' or mesh='data'"):
        pf.fit(gaussian(), pf.NUTS(), mesh="particles")
    with pytest.raises(pf.UnsupportedTarget, match="mesh='data' needs a target with factors"):
        pf.fit(gaussian(), pf.NUTS(), mesh="data")
    local = pf.Target.from_local_rows(log_prior, log_likelihood, ROWS, jnp.zeros(2))
    with pytest.raises(pf.InvalidArgument, match="mesh='chains' does not go with a target whose rows are spread"):
        pf.fit(local, pf.NUTS(), mesh="chains")
    with pytest.raises(pf.UnsupportedTarget, match="one log likelihood per observation"):
        spread_rows(gaussian(), data_mesh(jax.devices()[:1]))


def test_agents_that_hold_their_rows():
    """The same densities and shares as from rows in one place, and the same draws."""
    held = pf.Target.from_local_rows(log_prior, log_likelihood, ROWS, jnp.zeros(2)).sharded(3)
    target = regression().sharded(3)
    assert held.sizes.tolist() == target.sizes.tolist() == [3, 2, 2]
    with jax.enable_x64(True):
        u = jnp.array([0.3, -1.2])
        for name in ("log_density", "log_likelihoods"):
            value, slope = getattr(held, name)(u), jax.jacobian(getattr(held, name))(u)
            np.testing.assert_allclose(value, getattr(target, name)(u), rtol=1e-12)
            np.testing.assert_allclose(slope, jax.jacobian(getattr(target, name))(u), rtol=1e-12)
        np.testing.assert_allclose(held.log_density_at({"x": u}), target.log_density_at({"x": u}), rtol=1e-12)
        mine, theirs = held.sub_posterior(1), target.sub_posterior(1)
        np.testing.assert_allclose(mine.log_density(u), theirs.log_density(u), rtol=1e-12)
    options = {"num_samples": 20, "num_warmup": 0, "num_chains": 1, "progress": False}
    draws = [pf.fit(t, pf.DistributedADMM("ring", rho=2.0), **options).draws()["x"] for t in (held, target)]
    np.testing.assert_allclose(*draws, rtol=1e-10)
    other = pf.Target.from_local_rows(log_prior, log_likelihood, (ROWS[0], ROWS[1] + 1), jnp.zeros(2)).sharded(3)
    assert held.fingerprint() != other.fingerprint()


def test_agents_of_rows_by_number():
    local = pf.Target.from_local_rows(log_prior, log_likelihood, ROWS, jnp.zeros(2))
    assert local.sharded([0, 1, 1, 1, 1, 0, 1]).sizes.tolist() == [2, 5]
    with pytest.raises(pf.InvalidArgument, match="by must number the agents 0, 1, … without gaps"):
        local.sharded([0, 2, 2, 2, 2, 0, 2])
    with pytest.raises(pf.InvalidArgument, match="mesh='data' does not go with a target whose agents are spread"):
        pf.fit(local.sharded(2), pf.DistributedADMM("complete"), mesh="data")
    with pytest.raises(pf.InvalidArgument, match="agent must be one whose data this process has, 0 to 1, got 2"):
        local.sharded(2).sub_posterior(2)
