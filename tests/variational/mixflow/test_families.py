"""Flows of random maps, and burn-in, against brute force, quadrature and the toy of the first paper."""

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import beta
from jaxtyping import Array, Float

from pushforward.infer.variational.mixflow import families, orbit
from pushforward.infer.variational.mixflow.families import Flow
from pushforward.infer.variational.mixflow.hamiltonian import HamiltonianMap
from pushforward.infer.variational.mixflow.maps import AbstractMap, Moved

from .cases import REFERENCE, cross, maps, wide

LENGTH = 5
CASES = [("homogeneous", 2), ("backward_irf", 0), ("forward_irf", 2), ("ensemble", 0)]
"""A burn-in of one nested family and of one that is not; the others are marked slow."""
SLOW = [("homogeneous", 0), ("backward_irf", 2), ("forward_irf", 0)]


def slow(case):
    return pytest.param(*case, marks=pytest.mark.slow)


ALL = [*CASES, *map(slow, SLOW)]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def flow(family, burn_in, flow_map, reference=REFERENCE, members=3, length=LENGTH):
    members, shifts = (members if family == "ensemble" else 1), None
    if family != "homogeneous":
        shifts = families.random_shifts(jax.random.key(9), reference, members, length)
    return Flow(flow_map, reference, shifts, family, burn_in, members)


def order(family, component):
    """Indices n of the maps T_n of a component, the one applied first in front, and its member."""
    if family == "ensemble":
        return list(range(1, LENGTH)), component
    back = family in ("homogeneous", "backward_irf")
    return list(range(component, 0, -1) if back else range(1, component + 1)), 0


@functools.partial(jax.jit, static_argnames=("ahead", "density"))
def move(flow_map, state, shift, *, ahead, density):
    return (flow_map.forward if ahead else flow_map.inverse)(state, density, shift)


def by_hand(q, state, density=cross):
    """log q_N(s) − log aux(s): each component pulled back by itself, its Jacobians multiplied."""
    parts = []
    for component in range(q.members) if q.family == "ensemble" else range(q.burn_in, LENGTH):
        maps, member = order(q.family, component)
        at, log_det = state, 0.0
        for n in reversed(maps):
            at, one, _ = move(q.flow_map, at, q.shift(jnp.asarray(n), member), ahead=False, density=density)
            log_det += one
        parts.append(q.reference.log_prob(at.at.x) + q.flow_map.log_auxiliary(at) - log_det)
    return np.logaddexp.reduce(parts) - np.log(len(parts)) - q.flow_map.log_auxiliary(state)


@pytest.mark.parametrize(
    ("family", "burn_in", "name"),
    [(family, burn_in, "gaussian") for family, burn_in in CASES]
    + [("backward_irf", 2, "mala")]
    + [slow((*case, "mala")) for case in (SLOW[0], SLOW[2], ("ensemble", 0))],
)
def test_densities_are_those_of_the_components(family, burn_in, name):
    q, length = flow(family, burn_in, maps()[name]), jnp.asarray(LENGTH)
    drawn = jax.jit(jax.vmap(lambda key: families.sample(key, q, cross, length)))(
        jax.random.split(jax.random.key(0), 20)
    )
    at = jax.jit(jax.vmap(lambda s: families.log_density_at(s, q, cross, length)))(drawn.state)
    np.testing.assert_allclose(drawn.log_q, at, atol=1e-9)
    for i in range(3):
        expected = by_hand(q, jax.tree.map(lambda x, i=i: x[i], drawn.state))
        np.testing.assert_allclose(at[i], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "burn_in"), [CASES[0], CASES[2], *(slow(case) for case in [CASES[1], CASES[3], *SLOW])]
)
def test_the_density_integrates_to_one(family, burn_in):
    """d = 1, constant shifts, over x and the momentum's distribution function."""
    reference = orbit.Reference(np.zeros(1), np.ones(1))
    flow_map = HamiltonianMap(0.3, jnp.ones(1), 3, "gaussian", np.pi / 16)
    q = flow(family, burn_in, flow_map, reference)
    grid = lambda n, a, b: a + (b - a) * (np.arange(n) + 0.5) / n  # noqa: E731
    x, p = np.meshgrid(grid(300, -9.0, 11.0), grid(300, 0.0, 1.0), indexing="ij")

    @jax.jit
    @jax.vmap
    def at(x, p):
        auxiliary = {"momentum": flow_map.quantile(p[None]), "phase": jnp.zeros(())}
        state = flow_map.state(x[None], auxiliary, wide)
        return jnp.exp(families.log_density_at(state, q, wide, jnp.asarray(LENGTH)))

    assert float(at(x.ravel(), p.ravel()).mean() * 20.0) == pytest.approx(1.0, abs=3e-3)  # edges of the shifts


@pytest.mark.parametrize(("family", "burn_in"), ALL)
def test_a_reference_that_is_the_target_is_found_whole(family, burn_in):
    density = lambda x: REFERENCE.log_prob(x) + 3.5  # noqa: E731
    q, length = flow(family, burn_in, maps(step=0.5)["mala"]), jnp.asarray(LENGTH)
    sample = jax.jit(jax.vmap(lambda key: families.sample(key, q, density, length)))
    drawn = sample(jax.random.split(jax.random.key(0), 20))
    np.testing.assert_allclose(drawn.state.at.log_density - drawn.log_q, 3.5, atol=1e-10)


@pytest.mark.parametrize(("family", "burn_in"), ALL)
def test_averages_are_those_of_the_points_of_a_trajectory(family, burn_in):
    q, length = flow(family, burn_in, maps()["mala"]), jnp.asarray(LENGTH)
    key = jax.random.key(4)
    average = lambda key: families.average(key, lambda x: {"x": x, "near": x[0] > 0}, q, cross, length)  # noqa: E731
    found = jax.jit(average)(key)
    begin, place = jax.jit(lambda key: families.begin_draw(key, q, cross))(key)
    if family in ("homogeneous", "forward_irf"):
        points, at = [], begin
        for n in range(LENGTH):
            points += [at.at.x] if n >= burn_in else []
            at = move(q.flow_map, at, q.shift(jnp.asarray(n + 1)), ahead=True, density=cross).state
        expected = np.mean(points, axis=0)
    else:
        maps_, member = order(family, int(families.component(place, length, q)) + burn_in)
        at = begin
        for n in maps_:
            at = move(q.flow_map, at, q.shift(jnp.asarray(n), member), ahead=True, density=cross).state
        expected = np.asarray(at.at.x)
        assert float(found["near"]) == float(expected[0] > 0)
    np.testing.assert_allclose(found["x"], expected, atol=1e-12)


@pytest.mark.parametrize("family", ["backward_irf", "ensemble", pytest.param("forward_irf", marks=pytest.mark.slow)])
def test_weights_of_draws_have_mean_one(family):
    """E_{q_N}[q₀ / q_N] = 1, and E[π / q_N] = Z = 1."""
    q, length = flow(family, 0, maps(step=0.1, leapfrogs=5)["hmc"], length=10), jnp.asarray(10)
    drawn = jax.jit(jax.vmap(lambda key: families.sample(key, q, cross, length)))(
        jax.random.split(jax.random.key(7), 2000)
    )
    log_q0 = jax.vmap(REFERENCE.log_prob)(drawn.state.at.x)
    for log_p in (log_q0, drawn.state.at.log_density) if family != "ensemble" else (drawn.state.at.log_density,):
        weights = np.exp(np.asarray(log_p - drawn.log_q))
        assert abs(weights.mean() - 1.0) < 4 * weights.std() / np.sqrt(len(weights)) + 1e-3


def test_the_curve_with_burn_in_is_that_of_its_draws():
    """The bound of a trajectory is the mean of log π − log q over its points from b on."""
    flow_map, length, burn_in = maps(step=0.02)["laplace"], 12, 4
    orbits = jax.jit(lambda key: orbit.begin(key, flow_map, REFERENCE, cross, 3, length))(jax.random.key(1))
    starts = orbits.front
    orbits = jax.jit(lambda o: orbit.grow(o, flow_map, REFERENCE, cross, jnp.asarray(length - 1)))(orbits)
    q = Flow(flow_map, REFERENCE, None, "homogeneous", burn_in)
    log_density = jax.jit(jax.vmap(lambda s: families.log_density_at(s, q, cross, jnp.asarray(length))))
    forward = jax.jit(jax.vmap(lambda s: flow_map.forward(s, cross).state))
    gaps, at = [], starts
    for n in range(length):
        if n >= burn_in:
            gaps.append(at.at.log_density - log_density(at))
        at = forward(at)
    found = jax.jit(orbit.bounds, static_argnums=2)(orbits, jnp.array([length]), burn_in)[:, 0]
    np.testing.assert_allclose(found, np.mean(gaps, axis=0), atol=1e-9)


def test_trajectories_say_more_than_draws():
    """Averages along trajectories agree with those of draws, and have a smaller variance for as many maps."""
    reference = orbit.Reference(np.zeros(1), np.ones(1))
    flow_map = maps(step=0.5, leapfrogs=3, dim=1)["hmc"]
    q, length, keys = Flow(flow_map, reference, None), jnp.asarray(30), jax.random.split(jax.random.key(2), 1000)
    along = np.asarray(jax.jit(jax.vmap(lambda k: families.average(k, lambda x: x[0], q, wide, length)))(keys))
    drawn = jax.jit(jax.vmap(lambda k: families.sample(k, q, wide, length)))(keys)
    single = np.asarray(drawn.state.at.x[:, 0])
    error = np.hypot(along.std(), single.std()) / np.sqrt(len(keys))
    assert abs(along.mean() - single.mean()) < 4 * error
    assert along.var() < 0.5 * single.var()  # a draw without its density costs half the maps of a trajectory


# -- rotations of the circle, the first figure of the first paper ------------------------------------------------------


class Place(NamedTuple):
    x: Array
    log_density: Array


class Spot(NamedTuple):
    at: Place


class Rotation(AbstractMap):
    """x → x + ξ mod 1, which preserves the uniform density."""

    by: float
    scale: Float[Array, " d"]
    measure_preserving: ClassVar[bool] = True

    def start(self, key, x, log_density):
        return Spot(Place(x, log_density(x)))

    def forward(self, state, log_density, shift=None):
        return self._moved((state.at.x + self.by) % 1.0, log_density)

    def inverse(self, state, log_density, shift=None):
        return self._moved((state.at.x - self.by) % 1.0, log_density)

    def _moved(self, x, log_density):
        return Moved(self.start(None, x, log_density), jnp.zeros(()), jnp.zeros(()))

    def log_auxiliary(self, state):
        return jnp.zeros(())

    def auxiliary(self, state):
        return {}

    def state(self, x, auxiliary, log_density):
        return self.start(None, x, log_density)

    @property
    def gradients(self) -> int:
        return 0


class TwoHumps(orbit.Reference):
    """0.6 Beta(2, 6) + 0.4 Beta(6, 1)."""

    def log_prob(self, x: Any) -> Any:
        return jnp.log(0.6 * beta.pdf(x[0], 2, 6) + 0.4 * beta.pdf(x[0], 6, 1))


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (np.pi / 16, {1: 0.2335, 20: 0.0353, 100: 0.0062, 1000: 0.0009}),
        (np.pi / 200, {20: 0.169, 100: 0.038, 1000: 0.0033}),
        (0.25, {20: 0.0641, 100: 0.0641, 1000: 0.0641}),
    ],
)
def test_rotations_reach_the_uniform_density_if_irrational(by, expected):
    """Total variation distance of q_N from uniform, components 0 to N − 1; a quarter turn never gets nearer."""
    one = np.ones(1)
    q = Flow(Rotation(by, one), TwoHumps(one, one), None)
    x = (np.arange(8000) + 0.5)[:, None] / 8000

    @jax.jit
    def distance(length):
        at = lambda x: families.log_density_at(q.flow_map.state(x, {}, zero), q, zero, length)  # noqa: E731
        return 0.5 * jnp.mean(jnp.abs(jnp.exp(jax.vmap(at)(x)) - 1.0))

    zero = lambda x: jnp.zeros(())  # noqa: E731
    for length, found in expected.items():
        digits = len(str(found).split(".")[1])
        assert float(distance(jnp.asarray(length))) == pytest.approx(found, abs=0.6 * 10.0**-digits + 1e-4)
