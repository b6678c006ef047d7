"""Supports as NumPyro constraints: bijections, densities on them, and the mirror that suits each."""

import pickle
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints

import pushforward as pf
from pushforward.infer import geometry as geo
from pushforward.infer.errors import InvalidArgument, UnsupportedTarget

HALFSPACES = (np.array([[-1.0, 0.0], [0.0, -1.0], [1.0, 2.0]]), np.array([0.0, 0.5, 1.0]))
TILTED = np.array([[2.0, 0.6], [0.6, 1.0]])
SUPPORTS = {
    "polytope": lambda: geo.polytope(*HALFSPACES),
    "polytope from a corner": lambda: geo.polytope(*HALFSPACES, center=[0.2, -0.3]),
    "unbounded polytope": lambda: geo.polytope([[-1.0, 0.5], [0.0, -1.0]], [2.0, 1.0]),
    "ball": lambda: geo.ball(2.0),
    "ellipsoid": lambda: geo.ellipsoid(TILTED),
    "ellipsoid along axes": lambda: geo.ellipsoid([4.0, 0.25]),
}
AREAS = {
    "polytope": 1.0,  # legs 2 (x from 0 to 2 at y = −1/2) and 1 (y from −1/2 to 1/2 at x = 0)
    "polytope from a corner": 1.0,
    "ball": 4 * np.pi,
    "ellipsoid": np.pi / np.sqrt(2.0 - 0.36),
    "ellipsoid along axes": np.pi,
}
each = pytest.mark.parametrize("name", SUPPORTS)


@pytest.fixture(autouse=True)
def bits() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def draws(number: int = 200, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(3).normal(size=(number, 2)))


@each
def test_bijection(name):
    """Inside, back again, and the determinant by automatic differentiation; near the centre too."""
    support = SUPPORTS[name]()
    bijection = biject_to(support)

    @jax.jit
    @jax.vmap
    def look(v):
        x = bijection(v)
        log_det = lambda v: bijection.log_abs_det_jacobian(v, bijection(v))  # noqa: E731
        jacobian = jax.jacfwd(bijection)(v)
        return support(x), bijection._inverse(x), log_det(v), jnp.linalg.slogdet(jacobian)[1], jax.grad(log_det)(v)

    v = jnp.concatenate([draws(scale=0.5), draws(50, 1e-3), jnp.zeros((1, 2))])
    inside, back, log_det, expected, slope = (np.asarray(a) for a in look(v))
    assert inside.all()
    np.testing.assert_allclose(back, v, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(log_det, expected, rtol=1e-7, atol=1e-9)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("name", [name for name in SUPPORTS if name != "unbounded polytope"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_stays_inside(name, dtype):
    """Far out, where tanh is 1, the image is not on the boundary, and the determinant is right."""
    support = SUPPORTS[name]()
    bijection = biject_to(support)

    @jax.jit
    def look(v):
        x = bijection(v)
        return support(x), bijection.log_abs_det_jacobian(v, x), jnp.sqrt(support.gauge_squared(v))

    inside, log_det, gauge = look(draws(50, 1e4).astype(dtype))
    assert log_det.dtype == dtype
    assert bool(jnp.all(inside))
    np.testing.assert_allclose(log_det, 2 * np.log(2) - 2 * gauge - np.log(gauge), rtol=1e-5)


def test_on_the_line_it_is_the_logistic_map():
    """tanh v is NumPyro's map of the interval (−1, 1) at 2 v."""
    v = jnp.linspace(-4.0, 4.0, 41)[:, None]
    ours, theirs = biject_to(geo.ball(1.0)), biject_to(constraints.interval(-1.0, 1.0))
    np.testing.assert_allclose(ours(v), theirs(2 * v), rtol=1e-12, atol=1e-15)
    expected = theirs.log_abs_det_jacobian(2 * v, theirs(2 * v))[:, 0] + np.log(2)
    np.testing.assert_allclose(ours.log_abs_det_jacobian(v, ours(v)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AREAS)
def test_density_integrates(name):
    """The unconstrained density of the uniform law integrates to the area of the set."""
    support = SUPPORTS[name]()
    target = pf.Target.from_log_density(lambda x: 0.0 * x[0], np.zeros(2), support)
    grid = np.linspace(-22.0, 22.0, 701)
    u = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    spread = np.array([1.0, 1.0]) if "ellipsoid" not in name else np.array([0.5, 1.5])
    density = np.exp(np.asarray(jax.jit(jax.vmap(target.log_density))(jnp.asarray(u * spread))))
    total = density.sum() * (grid[1] - grid[0]) ** 2 * spread.prod()
    np.testing.assert_allclose(total, AREAS[name], rtol=2e-3)


@each
def test_as_support_of_a_target(name):
    """Round trip through `Target`, whose fingerprint knows the set."""
    target = pf.Target.from_log_density(lambda p: -jnp.sum(p["x"] ** 2), {"x": np.zeros(2)}, {"x": SUPPORTS[name]()})
    u = 0.3 * draws(1)[0]
    values = target.constrain(u)
    np.testing.assert_allclose(target.unconstrain(values), u, rtol=1e-8)
    assert target.sites[0].support in ("polytope", "ellipsoid")
    with pytest.raises(InvalidArgument, match="outside its support"):
        target.unconstrain({"x": np.array([-50.0, -50.0])})
    other = pf.Target.from_log_density(lambda p: -jnp.sum(p["x"] ** 2), {"x": np.zeros(2)}, {"x": geo.ball(3.0)})
    assert target.fingerprint() != other.fingerprint()


def test_in_a_numpyro_model():
    import numpyro

    def model(y):
        x = numpyro.sample("x", dist.ImproperUniform(geo.polytope(*HALFSPACES), (), (2,)))
        numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    target = pf.Target.from_numpyro(model, np.array([0.3, 0.2]))
    u = draws(1)[0]
    x = target.constrain(u)["x"]
    bijection = biject_to(geo.polytope(*HALFSPACES))
    expected = dist.Normal(x, 1.0).log_prob(jnp.array([0.3, 0.2])).sum() + bijection.log_abs_det_jacobian(u, x)
    np.testing.assert_allclose(target.log_density(u), expected, rtol=1e-12)


@each
def test_equality_and_pickling(name):
    support = SUPPORTS[name]()
    assert support == SUPPORTS[name]()
    assert support != geo.ball(7.0)
    copy = pickle.loads(pickle.dumps(support))
    assert copy == support
    bijection = pickle.loads(pickle.dumps(biject_to(support)))
    np.testing.assert_array_equal(bijection(draws(3)), biject_to(support)(draws(3)))
    leaves, structure = jax.tree.flatten(support)
    assert jax.tree.unflatten(structure, leaves) == support
    assert bool(support(support.feasible_like(np.zeros(2))))


HALF_LINES = (geo.BoltzmannShannon(), geo.HalfLineBarrier())


def test_center():
    """The Chebyshev centre of a right triangle is the centre of its incircle."""
    support = geo.polytope([[-1.0, 0.0], [0.0, -1.0], [3.0, 4.0]], [0.0, 0.0, 12.0])  # sides 3, 4, 5; radius 1
    np.testing.assert_allclose(support.center, [1.0, 1.0], atol=1e-9)


@pytest.mark.parametrize(
    ("support", "size", "expected", "barrier"),
    [
        (constraints.real, 3, geo.Euclidean(), geo.Euclidean()),
        (constraints.real_vector, 3, geo.Euclidean(), geo.Euclidean()),
        (constraints.independent(constraints.positive, 1), 3, geo.BoltzmannShannon(), geo.HalfLineBarrier()),
        (constraints.greater_than(2.0), 3, *(geo.Affine(m, 2.0) for m in HALF_LINES)),
        (constraints.less_than(2.0), 3, *(geo.Affine(m, 2.0, -1.0) for m in HALF_LINES)),
        (constraints.unit_interval, 3, geo.FermiDirac(), geo.Affine(geo.BoxBarrier(0.5), 0.5)),
        (
            constraints.interval(-1.0, np.array([1.0, 2.0, 3.0])),
            3,
            geo.Affine(geo.FermiDirac(), -1.0, np.array([2.0, 3.0, 4.0])),
            geo.Affine(geo.BoxBarrier(0.5), np.array([0.0, 0.5, 1.0]), np.array([2.0, 3.0, 4.0])),
        ),
        (constraints.simplex, 4, geo.SimplexEntropy(), geo.SimplexBarrier()),
    ],
)
def test_default_mirror(support, size, expected, barrier):
    for steep, wanted in ((False, expected), (True, barrier)):
        mirror = geo.default_mirror(support, size, barrier=steep)
        assert jax.tree.structure(mirror) == jax.tree.structure(wanted)
        for one, other in zip(jax.tree.leaves(mirror), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_array_equal(one, other)
        assert mirror.full_dual


@pytest.mark.parametrize("support", [constraints.greater_than(2.0), constraints.less_than(2.0), geo.ball(2.0)])
def test_default_mirror_has_the_domain_of_the_support(support):
    mirror = geo.default_mirror(support, 2)
    for x in (draws(20) + 2, draws(20)):
        inside = jnp.all(jnp.reshape(support(x), (20, -1)), axis=1)
        np.testing.assert_array_equal(jax.vmap(mirror.contains)(x), inside)


def test_default_mirrors_of_convex_sets():
    x = jnp.array([0.3, -0.2])
    assert isinstance(geo.default_mirror(geo.ball(2.0), 2), geo.EllipsoidBarrier)
    np.testing.assert_allclose(geo.default_mirror(geo.ball(2.0), 2).value(x), -np.log(1 - 0.13 / 4), rtol=1e-14)
    expected = -np.log(1 - x @ TILTED @ x)
    np.testing.assert_allclose(geo.default_mirror(geo.ellipsoid(TILTED), 2).value(x), expected, rtol=1e-14)
    expected = -np.log(HALFSPACES[1] - HALFSPACES[0] @ x).sum()
    np.testing.assert_allclose(geo.default_mirror(geo.polytope(*HALFSPACES), 2).value(x), expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: geo.polytope([[1.0], [-1.0]], [0.0, -1.0]), InvalidArgument, "2 inequalities A x < b is empty"),
        (lambda: geo.polytope([[1.0], [-1.0]], [0.0, 0.0]), InvalidArgument, "is flat"),
        (lambda: geo.polytope([1.0], [0.0]), InvalidArgument, r"A must have shape \(m, d\)"),
        (lambda: geo.polytope([[np.nan]], [0.0]), InvalidArgument, "A must be finite, got nan"),
        (lambda: geo.polytope(*HALFSPACES, center=[5.0, 5.0]), InvalidArgument, "center must be a point"),
        (lambda: geo.ball(0.0), InvalidArgument, "radius must be a finite number > 0, got 0"),
        (lambda: geo.ellipsoid([[1.0, 2.0], [2.0, 1.0]]), InvalidArgument, "positive definite"),
        (lambda: biject_to(geo.polytope(*HALFSPACES)).inverse_shape((3,)), InvalidArgument, "of 2 dimensions got .* 3"),
        (lambda: biject_to(geo.ellipsoid(TILTED)).inverse_shape((3,)), InvalidArgument, "of 2 dimensions got .* 3"),
        (
            lambda: geo.default_mirror(constraints.corr_cholesky, 4),
            UnsupportedTarget,
            "no mirror map .*CorrCholesky",
        ),
        (lambda: geo.default_mirror(geo.ellipsoid(TILTED), 3), InvalidArgument, "but there are 3 coordinates"),
        (lambda: geo.default_mirror(geo.polytope(*HALFSPACES), 3), InvalidArgument, "but there are 3 coordinates"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
