"""What `pf.MixFlow` decides: step sizes by common random numbers, where orbits stop, what it says, what it counts."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.report.figures import figures
from pushforward.infer.variational.mixflow import findings, trajectories, tuning
from pushforward.infer.variational.mixflow.approximation import Curve
from pushforward.infer.variational.mixflow.families import Flow

from .cases import REFERENCE, cross, maps


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def slow(case):
    return pytest.param(case, marks=pytest.mark.slow)


class Counter:
    """A target that counts how often its density is computed for each member of a batch."""

    def __init__(self, log_density):
        self.calls, self.log_density = 0, log_density
        self.target = pf.Target.from_log_density(self.density, np.zeros(2))

    def density(self, x):
        jax.debug.callback(lambda _: self.seen(), x[0])
        return self.log_density(x)

    def seen(self):
        self.calls += 1

    def taken(self):
        """Since the last time."""
        jax.effects_barrier()
        calls, self.calls = self.calls, 0
        return calls


# -- the step size ----------------------------------------------------------------------------------------------------


def test_step_sizes_are_tried_on_the_same_trajectories():
    """Two that hardly differ have bounds that hardly differ, far less than their standard errors; gradients count."""
    counter = Counter(cross)
    method = pf.MixFlow(kernel="mala", grid=(0.2, 0.2 * (1 + 1e-9), 0.1), max_length=8)
    tuned = tuning.tune(method, jax.random.key(0), counter.target, REFERENCE)
    assert tuned.num_evaluations == tuning.STARTS + counter.taken()
    tenth, fifth, again = np.asarray(tuned.elbo)
    assert abs(fifth - again) < 1e-6
    assert abs(fifth - tenth) > 1e-3
    assert np.all(np.asarray(tuned.se) > 1e-2)


# -- where orbits stop, and the errors of differences -----------------------------------------------------------------


def test_differences_have_paired_errors():
    """Trajectories that differ by 5 nats, all of which rise alike, say by how much the bound rises."""
    random = np.random.default_rng(0)
    base, noise = 5.0 * random.normal(size=(64, 1)), random.normal(size=64)
    bounds = jnp.asarray(base + np.array([0.0, 0.1, 0.3]))
    np.testing.assert_allclose(trajectories.paired_errors(bounds, jnp.asarray(2)), 0.0, atol=1e-12)
    np.testing.assert_allclose(trajectories.largest_gain(bounds[:, 0], bounds[:, 1]), 0.1, atol=1e-12)
    found = trajectories.paired_errors(bounds.at[:, 1].add(noise), jnp.asarray(0))
    np.testing.assert_allclose(found, [0.0, noise.std(ddof=1) / 8.0, 0.0], atol=1e-12)
    gain = trajectories.largest_gain(bounds[:, 0], bounds[:, 0] + noise)
    np.testing.assert_allclose(gain, noise.mean() + 2 * noise.std(ddof=1) / 8.0, atol=1e-12)


@pytest.mark.parametrize(
    ("rise", "noise", "filled", "length", "stops"),
    [
        (0.05, 0.0, 26, None, False),
        (0.0, 0.0, 26, None, True),
        (-0.05, 0.0, 26, None, True),
        (-5.0, 0.0, 26, None, True),
        (0.0, 1.0, 26, None, False),  # it may still rise by a quarter of a nat
        (-1.0, 1.0, 26, None, True),
        (0.0, 0.0, 26, 60, False),  # the length is given
        (0.0, 0.0, 4, None, False),  # too early
        (0.0, 0.0, 5, None, True),
        (np.nan, 0.0, 26, None, True),
        (np.nan, 0.0, 26, 60, True),  # nothing is left
    ],
)
def test_orbits_stop_where_the_bound_flattens_or_falls(rise, noise, filled, length, stops):
    """By the rise since half the length, whatever differences there are between trajectories."""
    method, random = pf.MixFlow(max_length=60, length=length), np.random.default_rng(1)
    bounds = np.repeat(5.0 * random.normal(size=(64, 1)), 26, axis=1)
    bounds[:, filled - 1] += rise + noise * random.permutation(np.linspace(-1.7, 1.7, 64))
    state = SimpleNamespace(bounds=jnp.asarray(bounds), filled=jnp.asarray(filled))
    assert method.lengths[-1] == 60
    assert bool(method.done(state)) == stops


def test_the_length_that_is_given_is_the_last():
    assert pf.MixFlow(length=30, max_length=60).lengths[-1] == 30


def said(elbo, skew=0.0, length=None, se=0.01, paired=0.01, exact=False, max_length=40):
    """The finding on the length of a flow whose bound is this at lengths 1, 10, 20, 30 and 40."""
    lengths, elbo, n = np.array([1, 10, 20, 30, 40]), np.asarray(elbo), 5
    at = int(np.argmax(elbo)) if length is None else n - 1
    errors = np.where(np.arange(n) == at, 0.0, paired)
    curve = Curve(lengths, elbo, np.full(n, se), np.zeros(n, int), np.asarray(n), np.full(n, skew), errors)
    flow_map = SimpleNamespace(measure_preserving=exact)
    flow = SimpleNamespace(flow_map=flow_map, family="homogeneous")
    method = SimpleNamespace(max_length=max_length, tolerance=0.01, length=length, num_trajectories=64)
    return findings._length(method, SimpleNamespace(curve=curve, length=lengths[at], flow=flow))[0]


RISING, FLAT, FALLING = [0.0, 0.1, 0.2, 0.4, 0.6], [0.0, 0.5, 0.6, 0.6, 0.6], [0.0, 0.5, 0.6, 0.5, 0.3]


def test_a_bound_that_falls_is_a_warning():
    """With the largest useful length: the one that is used, or the one to use where a longer one was given."""
    free, given = said(FALLING), said(FALLING, length=40)
    assert free["level"] == given["level"] == "warning"
    assert (free["value"], given["value"]) == (20, 40)
    for found in (free, given):
        assert "0.6 ± 0.01 at length 20 and falls to 0.3 at 40: the step size is too large" in found["message"]
        assert "20 is the largest useful length" in found["message"]
    exact = said(FALLING, exact=True)
    assert exact["level"] == "note"
    assert "by the luck of few trajectories alone: raise num_trajectories" in exact["message"]


def test_falls_and_rises_count_from_the_tolerance_and_their_paired_error_on():
    assert said(FALLING, paired=0.2)["level"] == "ok"
    assert said(FALLING, se=0.5, paired=0.01)["level"] == "warning"
    assert said([0.0, 0.5, 0.6, 0.6, 0.6 - 4e-8], se=1e-9, paired=1e-9)["level"] == "ok"
    rises = said(RISING, se=0.5)
    assert rises["level"] == "note"
    assert "still rises (by 0.4 in the second half): raise max_length" in rises["message"]
    assert said(RISING, paired=0.3)["level"] == "ok"
    assert said(FLAT)["level"] == "ok"
    stopped = said(FLAT, max_length=100)
    assert stopped["level"] == "ok"
    assert "growth stopped at 40 of 100, where it had risen by less than 0.01" in stopped["message"]


def test_a_skewed_bound_is_said_to_have_too_small_an_error():
    assert "are skewed (-3.0" in said(FLAT, skew=-3.0)["message"]
    assert said(FLAT, skew=-3.0)["level"] == "note"
    assert said(FALLING, skew=-3.0)["level"] == "warning"
    assert "skewed" not in said(FLAT, skew=-0.5)["message"]


def test_many_dimensions_are_said():
    flow = lambda dim: SimpleNamespace(reference=SimpleNamespace(loc=np.zeros(dim)))  # noqa: E731
    assert findings._dimension(SimpleNamespace(flow=flow(49))) == []
    assert "may lie far below the evidence" in findings._dimension(SimpleNamespace(flow=flow(50)))[0]["message"]


# -- what it costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        slow({"kernel": "mala", "grid": (0.1, 0.3), "max_length": 7}),
        slow({"family": "backward_irf", "num_leapfrog": 2, "step_size": 0.3, "max_length": 9}),
        slow({"family": "forward_irf", "kernel": "mala", "step_size": 0.3}),
        slow({"family": "forward_irf", "kernel": "rwmh", "step_size": 1.0, "burn_in": 3}),
        slow({"family": "ensemble", "kernel": "mala", "step_size": 0.3, "num_members": 3}),
        slow({"kernel": "hamiltonian", "num_leapfrog": 3, "step_size": 0.3}),
    ],
    ids=lambda s: ", ".join(map(str, s.values())),
)
def test_gradients_are_counted(settings):
    """Those of the look at the reference, the search, the starts and the maps, as they are run in a batch."""
    counter = Counter(cross)
    target = counter.target
    counter.taken()
    method = pf.MixFlow(**{"max_length": 8, "num_trajectories": 5, "reference_steps": 0} | settings)
    prepared = method.prepare(jax.random.key(0), target, [REFERENCE.loc, jnp.ones(2)])
    assert 2 * prepared.tuned.num_evaluations == counter.taken()
    state = jax.jit(lambda method, key: method.init(key, target, jnp.ones(2)))(prepared, jax.random.key(1))
    spent, counted = counter.taken(), 0
    step = jax.jit(lambda method, state, t: method.step(jax.random.key(2), state, target, t))
    for t in range(len(prepared.lengths)):
        state, info = step(prepared, state, jnp.asarray(t))
        counted += int(info.num_evaluations)
    assert counted == spent + counter.taken() + prepared.tuned.num_evaluations


@pytest.mark.parametrize("name", ["mala", slow("laplace")])
def test_a_draw_in_a_batch_costs_as_many_maps_as_a_density(name):
    """N − 1, wherever the components of the draws lie; and the gradient at the start."""
    counter, flow = Counter(cross), Flow(maps(leapfrogs=2)[name], REFERENCE, None)
    sample = jax.jit(jax.vmap(lambda key: trajectories.families.sample(key, flow, counter.density, jnp.asarray(9))))
    sample(jax.random.split(jax.random.key(0), 12))
    assert counter.taken() == 12 * (1 + 8 * flow.flow_map.gradients)


# -- the picture ------------------------------------------------------------------------------------------------------


def test_the_report_begins_with_the_bound_by_length():
    flow = Flow(maps()["mala"], REFERENCE, None)
    lengths, elbo, se = np.array([1, 10, 20, 30]), np.array([-2.0, -1.0, np.nan, -9.0]), np.full(4, 0.1)
    curve = Curve(lengths, elbo, se, np.zeros(4, int), np.asarray(3), np.zeros(4), se)
    target = pf.Target.from_log_density(cross, np.zeros(2))
    q = pf.infer.variational.mixflow.approximation.MixFlowApproximation(flow, np.asarray(10), target, curve)
    ((title, caption, make),) = q.pictures()
    assert title == "Evidence bound"
    assert "two standard errors" in caption
    axis = make(plt).axes[0]
    points, vertical = axis.lines[0].get_xydata(), axis.lines[-1].get_xdata()
    np.testing.assert_array_equal(points, [[1, -2.0], [10, -1.0]])  # neither the one that is lost nor what lies ahead
    np.testing.assert_array_equal(vertical, [10, 10])
    plt.close("all")
    drawn = pf.Posterior.from_draws({"x": np.random.default_rng(0).normal(size=(1, 50, 2))})
    first = next(figures(drawn.data, "approximation", drawn.summary(), None, q.pictures()))
    assert (first.title, first.png[:4]) == ("Evidence bound", b"\x89PNG")
