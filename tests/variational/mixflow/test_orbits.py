"""Maps and orbits of MixFlows against closed forms, autodiff and quadrature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree

from pushforward.infer.linalg import Triangular
from pushforward.infer.variational.gaussian.approximation import GaussianApproximation
from pushforward.infer.variational.mixflow import families, orbit
from pushforward.infer.variational.mixflow.families import Flow
from pushforward.infer.variational.mixflow.hamiltonian import HamiltonianMap, HamiltonianState
from pushforward.infer.variational.mixflow.involutive import InvolutiveState
from pushforward.infer.variational.mixflow.maps import normal_quantile, phase

from .cases import NAMES, REFERENCE, cross, maps


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def flow_of(flow_map, reference=REFERENCE):
    return Flow(flow_map, reference, None)


def states(flow_map, n=20, density=cross, reference=REFERENCE):
    def one(key):
        first, second = jax.random.split(key)
        return flow_map.start(second, reference.sample(first), density)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n))


def coordinates(state):
    """What of a state is free: not the density and gradient that x determines."""
    return (state.at.x, state.rho) if isinstance(state, HamiltonianState) else (state.at.x, state.v, state.w, state.a)


@functools.cache
def there_and_back(name):
    """States, where they are moved to and from there back again, in one program."""
    flow_map = maps()[name]

    def one(key):
        first, second = jax.random.split(key)
        begin = flow_map.start(second, REFERENCE.sample(first), cross)
        there = flow_map.forward(begin, cross)
        return begin, there, flow_map.inverse(there.state, cross)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20))


@pytest.mark.parametrize("name", NAMES)
def test_inverse_undoes_forward(name):
    begin, (there, log_det, error), (back, same, same_error) = there_and_back(name)
    for x, y in zip(coordinates(begin), coordinates(back), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-10)
    np.testing.assert_allclose(log_det, same, atol=1e-10)
    np.testing.assert_allclose(error, same_error, atol=1e-10)
    if name in ("hmc", "mala", "rwmh"):  # some moves are rejected, some not
        moved = np.any(np.asarray(there.at.x != begin.at.x), axis=1)
        assert moved.any()
        assert name != "rwmh" or not moved.all()


@pytest.mark.parametrize(
    "name",
    ["hmc", "rwmh", "gaussian", "laplace", slow("mala"), slow("constant")],
)
def test_log_jacobian_is_autodiffs(name):
    flow_map = maps()[name]

    @jax.jit
    @jax.vmap
    def log_dets(state):
        flat, unravel = ravel_pytree(coordinates(state))

        def moved(flat):
            parts = unravel(flat)
            at = phase(parts[0], cross)
            if isinstance(state, HamiltonianState):
                new = HamiltonianState(at, parts[1], state.u0, state.count)
            else:
                new = InvolutiveState(at, *parts[1:])
            return ravel_pytree(coordinates(flow_map.forward(new, cross).state))[0]

        return flow_map.forward(state, cross).log_det, jnp.linalg.slogdet(jax.jacobian(moved)(flat))[1]

    found, expected = log_dets(states(flow_map))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", ["hmc", "mala", "rwmh"])
def test_involutive_maps_are_undone_to_rounding(name):
    """To a few units of the last place, where a momentum's place in (0, 1) is known so well: also after a rejection."""
    begin, (there, _, _), (back, _, _) = there_and_back(name)
    fine = np.all((np.asarray(begin.w) > 0.01) & (np.asarray(begin.w) < 0.99), axis=1)
    assert fine.sum() > 10
    for x, y in zip(coordinates(begin), coordinates(back), strict=True):
        assert np.max(np.abs(np.asarray(x - y))[fine]) < 3e-14
    stayed = np.all(np.asarray(there.at.x == begin.at.x), axis=1)
    assert name != "rwmh" or (stayed & fine).any()


@pytest.mark.parametrize("name", ["hmc", "laplace", slow("rwmh")])
def test_either_way_is_that_way(name):
    flow_map = maps()[name]
    begin, there, back = there_and_back(name)
    either = jax.jit(jax.vmap(lambda s, ahead: flow_map.either(s, ahead, cross)))
    odd = np.arange(20) % 2 == 1
    at = jax.tree.map(lambda x, y: jnp.where(odd.reshape(-1, *[1] * (x.ndim - 1)), x, y), begin, there.state)
    found = either(at, odd)
    for x, ahead, behind in zip(*map(jax.tree.leaves, (found, there, back)), strict=True):
        np.testing.assert_allclose(x, np.where(odd.reshape(-1, *[1] * (x.ndim - 1)), ahead, behind), atol=1e-10)


@pytest.mark.parametrize("momentum", ["laplace", "gaussian"])
def test_the_refreshment_is_a_sweep_over_coordinates(momentum):
    """Coordinate after coordinate with u moved on by π / 16 after each, as in the paper; parallel in the package."""
    flow_map, dim = HamiltonianMap(0.0, np.ones(5), 1, momentum), 5
    x, rho, u = np.linspace(-1.0, 1.3, dim), np.linspace(-2.0, 1.5, dim), 0.3
    state = HamiltonianState(phase(jnp.asarray(x), lambda x: -jnp.sum(x**2)), jnp.asarray(rho), jnp.asarray(u), 0)
    law = scipy.stats.norm if momentum == "gaussian" else scipy.stats.laplace
    forward = jax.jit(lambda s: flow_map.forward(s, lambda x: -jnp.sum(x**2)).state)
    for _ in range(3):
        for i in range(dim):
            rho[i] = law.ppf((law.cdf(rho[i]) + 0.5 * np.sin(2 * x[i] + u) + 0.5) % 1.0)
            u = (u + np.pi / 16) % 1.0
        state = forward(state)
        np.testing.assert_allclose(state.rho, rho, atol=1e-10)
        np.testing.assert_allclose(flow_map.auxiliary(state)["phase"], u, atol=1e-10)


@pytest.mark.parametrize("name", ["hmc", "mala", "rwmh"])
def test_involutive_maps_preserve_the_target(name):
    """log|det| = log π̄(s) − log π̄(T s), also where moves are rejected."""
    flow_map = maps()[name]
    begin, (there, log_det, _), _ = there_and_back(name)
    joint = jax.vmap(lambda s: s.at.log_density + flow_map.log_auxiliary(s))
    np.testing.assert_allclose(log_det, joint(begin) - joint(there), atol=1e-12)


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_a_step_of_zero_leaves_the_reference(name):
    """Then the map only refreshes the momentum, and log q_N = log q₀ for any N."""
    flow_map = maps(step=0.0)[name]
    at = states(flow_map, n=3)
    found = jax.jit(jax.vmap(lambda s: families.log_density_at(s, flow_of(flow_map), cross, jnp.asarray(17))))(at)
    np.testing.assert_allclose(found, jax.vmap(REFERENCE.log_prob)(at.at.x), atol=1e-12)


def grown(flow_map, length, batch=8, density=cross, reference=REFERENCE, key=1, room=0):
    return _grown(
        jax.random.key(key), flow_map, reference, length - 1, batch=batch, size=length + room, density=density
    )


@functools.partial(jax.jit, static_argnames=("batch", "size", "density"))
def _grown(key, flow_map, reference, steps, *, batch, size, density):
    orbits = orbit.begin(key, flow_map, reference, density, batch, size)
    return orbit.grow(orbits, flow_map, reference, density, jnp.asarray(steps))


@jax.jit
def densities_of(orbits):
    """log q at the points of an orbit."""
    return jax.vmap(lambda a, b: orbit.log_densities(a, orbit.sides(a, b), orbits.length))(orbits.ahead, orbits.behind)


bounds = jax.jit(orbit.bounds)


@pytest.mark.parametrize(("name", "step"), [("laplace", 0.0035), ("gaussian", 0.0035), ("hmc", 0.02)])
def test_densities_of_an_orbit_are_those_of_the_inverse_recursion(name, step):
    length = 15 if name == "hmc" else 40  # its orbits lose digits faster
    flow_map = maps(step=step, leapfrogs=20 if name == "hmc" else 60)[name]
    orbits = grown(flow_map, length, batch=3)
    found = densities_of(orbits)
    start = jax.jit(jax.vmap(lambda key: orbit.start(key, flow_map, REFERENCE, cross)))
    starts = start(jax.random.split(jax.random.key(1), 3))
    density = jax.jit(jax.vmap(lambda s: families.log_density_at(s, flow_of(flow_map), cross, jnp.asarray(length))))
    ahead = lambda s, i: jax.lax.fori_loop(0, i, lambda _, s: flow_map.forward(s, cross).state, s)  # noqa: E731
    ahead = jax.jit(jax.vmap(ahead, (0, None)))
    for i in (0, 1, length // 2, length - 1):
        at = ahead(starts, i)
        np.testing.assert_allclose(found[:, i], density(at), atol=1e-10 if name == "laplace" else 1e-8)


@pytest.mark.parametrize("name", ["laplace", "hmc"])
def test_the_curve_is_that_of_separate_flows(name):
    flow_map = maps(step=0.02)[name]
    whole = grown(flow_map, 30, room=7)
    lengths = jnp.array([1, 2, 11, 30])
    curve = bounds(whole, lengths)
    for column, length in enumerate(np.asarray(lengths)):
        alone = grown(flow_map, int(length), room=0 if length == 30 else 37 - int(length))
        np.testing.assert_allclose(bounds(alone, lengths)[:, column], curve[:, column], atol=1e-10)
    terms = np.asarray(whole.ahead.log_density - densities_of(whole))[:, :30]
    np.testing.assert_allclose(curve[:, -1], terms.mean(1), atol=1e-10)


@pytest.mark.parametrize("name", ["hmc", "laplace", slow("rwmh"), slow("gaussian")])
def test_a_flow_of_length_one_is_the_reference(name):
    flow_map = maps()[name]
    orbits = grown(flow_map, 1)
    start = orbits.front.at
    expected = start.log_density - jax.vmap(REFERENCE.log_prob)(start.x)
    np.testing.assert_allclose(bounds(orbits, jnp.array([1]))[:, 0], expected, atol=1e-12)
    draw = jax.jit(lambda key: families.sample(key, flow_of(flow_map), cross, jnp.asarray(1)))
    state, log_q, _ = draw(jax.random.key(3))
    np.testing.assert_allclose(log_q, REFERENCE.log_prob(state.at.x), atol=1e-12)


@pytest.mark.parametrize("name", ["hmc", "rwmh"])
def test_a_reference_that_is_the_target_has_the_exact_bound(name):
    """ELBO = log Z without variance, for every N; the target here is 3.5 nats heavier than the reference."""
    density = lambda x: REFERENCE.log_prob(x) + 3.5  # noqa: E731
    orbits = grown(maps(step=0.5)[name], 25, density=density)
    np.testing.assert_allclose(bounds(orbits, jnp.array([1, 5, 25])), 3.5, atol=1e-10)


DOUBLED = (1, 2, 4, 8, 16, 32, 64)


def rises(flow_map, batch=256):
    """The bound at lengths that double, its errors, and rises from each to the next in their paired standard errors."""
    found = np.asarray(bounds(grown(flow_map, 64, batch=batch), jnp.array(DOUBLED)))
    steps = np.diff(found, axis=1)
    error = lambda x: x.std(0, ddof=1) / np.sqrt(batch)  # noqa: E731
    return found.mean(0), error(found), steps.mean(0) / error(steps)


@pytest.mark.parametrize("name", ["rwmh", slow("hmc"), slow("mala")])
def test_bounds_of_exact_maps_do_not_fall(name):
    """q₂ₙ mixes q_N with its image under a map that preserves the target: no further from it, and no better than it."""
    mean, se, steps = rises(maps(step=0.1, leapfrogs=10)[name])
    assert np.all(steps > -4.0)
    assert steps.max() > 5.0, "what falls could be seen"
    assert np.all(mean < 4 * se)


def test_bounds_of_uncorrected_maps_may_fall():
    assert rises(maps(step=0.25, leapfrogs=10)["laplace"])[2].min() < -5.0


@pytest.mark.parametrize("name", ["laplace", "hmc"])
def test_draws_carry_the_density_of_the_inverse_recursion(name):
    flow_map, length = maps(step=0.02)[name], jnp.asarray(12)
    draw = jax.jit(jax.vmap(lambda key: families.sample(key, flow_of(flow_map), cross, length)))
    found, log_q, _ = draw(jax.random.split(jax.random.key(5), 6))
    direct = jax.jit(jax.vmap(lambda s: families.log_density_at(s, flow_of(flow_map), cross, length)))(found)
    np.testing.assert_allclose(log_q, direct, atol=1e-9)


@pytest.mark.parametrize("momentum", ["laplace", "gaussian"])
def test_the_density_integrates_to_one(momentum):
    """d = 1, over x, the momentum's distribution function and u; the midpoint rule is off by 2e-4 here."""
    reference = orbit.Reference(np.zeros(1), np.ones(1))
    density = lambda x: -0.5 * jnp.sum(((x - 2.0) / 2.0) ** 2) - jnp.log(2.0) - 0.5 * jnp.log(2 * jnp.pi)  # noqa: E731
    flow_map = HamiltonianMap(0.3, jnp.ones(1), 3, momentum)
    grid = lambda n, a, b: a + (b - a) * (np.arange(n) + 0.5) / n  # noqa: E731
    x, p, u = np.meshgrid(grid(240, -9.0, 11.0), grid(240, 0.0, 1.0), grid(12, 0.0, 1.0), indexing="ij")

    @jax.jit
    @jax.vmap
    def at(x, p, u):
        state = HamiltonianState(phase(x[None], density), flow_map.quantile(p[None]), u, jnp.zeros((), jnp.int32))
        return jnp.exp(families.log_density_at(state, flow_of(flow_map, reference), density, jnp.asarray(6)))

    values = at(x.ravel(), p.ravel(), u.ravel())
    assert float(values.mean() * 20.0) == pytest.approx(1.0, abs=5e-4)


@pytest.mark.parametrize("name", ["hmc", "gaussian"])
def test_weights_of_draws_have_mean_one(name):
    """E_{q_N}[q₀ / q_N] = 1, weights of at most N; and E[π / q_N] = Z = 1, without a useful variance if uncorrected."""
    flow_map, length = maps(step=0.1, leapfrogs=10)[name], jnp.asarray(20)
    draw = jax.jit(jax.vmap(lambda key: families.sample(key, flow_of(flow_map), cross, length)))
    found, log_q, _ = draw(jax.random.split(jax.random.key(7), 2000))
    known = [jax.vmap(REFERENCE.log_prob)(found.at.x), found.at.log_density]
    for log_p in known if name == "hmc" else known[:1]:
        weights = np.exp(np.asarray(log_p - log_q))
        assert abs(weights.mean() - 1.0) < 4 * weights.std() / np.sqrt(len(weights)) + 1e-3
        assert log_p is not known[0] or weights.max() < 20 * (1 + 1e-9)


def test_the_normal_quantile_is_scipys():
    p = np.concatenate([np.linspace(1e-3, 1 - 1e-3, 10_001), 10.0 ** np.linspace(-15.9, -3, 10_001)])
    found, expected = normal_quantile(jnp.asarray(p)), scipy.special.ndtri(p)
    assert np.all(np.abs(found - expected) < np.where(p < 1.4e-11, 5e-12, 1e-14))
    with jax.enable_x64(False):
        coarse = normal_quantile(jnp.asarray(p, jnp.float32))
        assert coarse.dtype == np.float32
        np.testing.assert_allclose(coarse[:10_001], expected[:10_001], atol=1e-5)


def test_coordinates_change_densities_by_their_volume():
    """∫ π is the same in y as in u, points go there and back, and a normal is the standard one in its own."""
    lower = np.array([[2.0, 0.0], [-1.0, 0.3]])
    whole = GaussianApproximation(jnp.array([1.0, -3.0]), Triangular(jnp.asarray(lower)))
    reference = orbit.Reference(jnp.zeros(2), jnp.ones(2), whole)
    y = jnp.array([0.3, -0.7])
    np.testing.assert_allclose(reference.to_u(y), whole.loc + lower @ np.asarray(y), atol=1e-12)
    np.testing.assert_allclose(reference.to_y(reference.to_u(y)), y, atol=1e-12)
    np.testing.assert_allclose(reference.log_volume, np.log(0.6), atol=1e-12)
    np.testing.assert_allclose(reference.density(whole.log_prob)(y), reference.log_prob(y), atol=1e-12)


@pytest.mark.parametrize("name", ["laplace", "gaussian"])
def test_quantile_undoes_the_distribution_function(name):
    flow_map = maps()[name]
    z = jnp.linspace(-5.0, 5.0, 101)
    np.testing.assert_allclose(flow_map.quantile(flow_map.cdf(z)), z, atol=1e-9)
    p = jnp.linspace(0.4, 0.6, 1001)
    assert np.all(np.diff(np.asarray(flow_map.quantile(p))) > 0)
    assert float(flow_map.cdf(jnp.array([-30.0]))[0]) > 0
