"""Laws that hold for every target, whatever it was made from."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.target import Target
from pushforward.infer.target.composite import CompositeTarget
from pushforward.infer.target.factors import FactorTarget
from pushforward.infer.target.numpyro_model import NumPyroTarget

from .targets import TARGETS

each = pytest.mark.parametrize("name", TARGETS)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def _points(target: Target, n: int = 3) -> jax.Array:
    return jnp.stack([target.initial(key) for key in jax.random.split(jax.random.key(3), n)])


def test_every_constructor_has_an_entry():
    ways = {name for name, _ in inspect.getmembers(Target) if name.startswith("from_")} | {"composite"}
    covered = {"from_numpyro", "from_log_density", "from_factors", "composite"}
    # The first is an extra (tests/target/test_pymc.py); the others have not all their data at hand
    # (tests/target/test_stream.py, tests/distributed/test_mesh.py).
    assert ways - covered == {"from_pymc", "from_stream", "from_local_rows"}
    assert {name.split(":")[0] for name in TARGETS} == {"numpyro", "log density", "factors", "composite"}


@each
def test_unconstrain_inverts_constrain(name):
    target = TARGETS[name].build()
    for u in _points(target):
        np.testing.assert_allclose(target.unconstrain(target.constrain(u)), u, rtol=1e-10, atol=1e-10)


@each
def test_constrain_gives_the_sites_in_their_shapes(name):
    target = TARGETS[name].build()
    u = _points(target, 1)[0]
    drawn = target.draw(jax.random.key(0), u)
    assert list(drawn) == [site.name for site in target.sites]
    for site in target.sites:
        assert (drawn[site.name].shape, drawn[site.name].dtype.name) == (site.shape, site.dtype)
    assert sum(site.size for site in target.sites) == target.dim == u.shape[0]


@each
def test_log_density_is_one_finite_number_with_a_finite_gradient(name):
    target = TARGETS[name].build()
    for u in _points(target):
        value, gradient = jax.value_and_grad(target.log_density)(u)
        assert value.shape == ()
        assert value.dtype == jnp.float64
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def _free(support: str, value: jax.Array) -> jax.Array:
    """As many entries of a value as it has degrees of freedom: what the reference measure of its density is over."""
    if support == "simplex":
        return value[..., :-1].ravel()
    if support == "corr_cholesky":
        return value[jnp.tril_indices(value.shape[-1], -1)]
    return value.ravel()


def _in_given_coordinates(target, values):
    """The log density as the user wrote it, without any of our code."""
    if isinstance(target, CompositeTarget):
        term = 0.0 if target.included else target.nonsmooth.value(target.unconstrain(values))
        return _in_given_coordinates(target.target, values) - term
    if isinstance(target, NumPyroTarget):
        from numpyro.infer.util import log_density

        args, kwargs = target.model_args
        latent = {site.name: values[site.name] for site in target.sites if site.kind == "latent"}
        return log_density(target.model, args, kwargs, latent)[0]
    params = target.coordinates.assemble(values)
    if isinstance(target, FactorTarget):
        prior, likelihood = target.layout.join(target.functions)
        data = [jax.tree.map(lambda leaf, i=i: leaf[i], target.data) for i in range(target.num_factors)]
        return prior(params) + sum(likelihood(params, datum) for datum in data)
    fn, data = target.layout.join(target.data)
    return fn(params) if data is None else fn(params, data)


@each
def test_log_density_is_the_given_one_times_the_jacobian(name):
    target = TARGETS[name].build()
    if isinstance(target, NumPyroTarget) and target.plan.enumerated:
        pytest.skip("summed by hand in tests/target/test_numpyro.py")
    latent = [site for site in target.sites if site.kind == "latent"]

    def free(u):
        values = target.constrain(u)
        return jnp.concatenate([_free(site.support, values[site.name]) for site in latent])

    for u in _points(target, 2):
        log_det = jnp.linalg.slogdet(jax.jacfwd(free)(u))[1]
        expected = _in_given_coordinates(target, target.constrain(u)) + log_det
        np.testing.assert_allclose(target.log_density(u), expected, rtol=1e-10)


@each
def test_gradient_is_the_slope(name):
    target = TARGETS[name].build()
    u = _points(target, 1)[0] + 0.01234
    direction = jax.random.normal(jax.random.key(5), u.shape)
    h = 1e-5
    slope = (target.log_density(u + h * direction) - target.log_density(u - h * direction)) / (2 * h)
    np.testing.assert_allclose(jax.grad(target.log_density)(u) @ direction, slope, rtol=1e-5, atol=1e-6)


@each
def test_jit_and_vmap_agree_with_eager(name):
    target = TARGETS[name].build()
    points = _points(target)
    eager = np.array([target.log_density(u) for u in points])
    program = jax.jit(lambda target, u: jax.vmap(target.log_density)(u))
    np.testing.assert_allclose(program(target, points), eager, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(jax.jit(target.log_density))(points), eager, rtol=1e-12)


@each
def test_new_data_have_the_same_treedef_and_compile_nothing(name):
    entry = TARGETS[name]
    first, second = entry.build(0), entry.build(7)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(second))
    traces = []

    @jax.jit
    def program(target, u):
        traces.append(None)
        return target.log_density(u)

    u = _points(first, 1)[0]
    values = [float(program(target, u)) for target in (first, second)]
    assert len(traces) == 1
    assert (values[0] == values[1]) is not entry.has_data


@each
def test_fingerprint_knows_the_data(name):
    entry = TARGETS[name]
    assert entry.build(0).fingerprint() == entry.build(0).fingerprint()
    assert (entry.build(0).fingerprint() != entry.build(7).fingerprint()) is entry.has_data


@each
def test_prior_and_likelihood_sum_to_the_log_density(name):
    target = TARGETS[name].build()
    if not {"prior", "likelihood"} <= target.structure() or name == "numpyro: discrete":
        pytest.skip("no marginal pointwise likelihood")
    u = _points(target, 1)[0]
    pointwise = target.log_likelihood(target.constrain(u))
    total = target.log_prior(u) + sum(jnp.sum(part) for part in pointwise.values())
    np.testing.assert_allclose(total, target.log_density(u), rtol=1e-12)
    if target.log_densities(u):
        np.testing.assert_allclose(sum(target.log_densities(u).values()), target.log_density(u), rtol=1e-12)


@each
def test_labels_do_not_change_the_program(name):
    target = TARGETS[name].build()
    site = next(site for site in target.sites if site.shape)
    names = [f"axis_{i}" for i in range(len(site.shape))]
    coords = {"axis_0": [f"label {i}" for i in range(site.shape[0])]}
    named = target.replace(dims={site.name: names}, coords=coords)
    assert named.dims[site.name] == tuple(names)
    assert named.coords["axis_0"] == coords["axis_0"]
    assert jax.tree.structure(named) == jax.tree.structure(target)


@each
def test_check_shows_every_site(name):
    found = TARGETS[name].build().check(num_starts=2)
    assert found.ok
    for shown in (repr(found), found._repr_html_()):
        assert all(site.name in shown and site.support in shown for site in found.sites)
