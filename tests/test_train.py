"""The optimisation loop: what stops it, what it skips, and which iterate it returns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal

import pushforward as pf
from pushforward.infer.train import GROWTH, Plateau, Trainer, choose, first_block, upper_gain

STEPS, SHORT = 6000, 1000
TOLERANCE = 0.05
RUNS = 250


def noise(kind: str, runs: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    if kind == "normal":
        e = rng.normal(size=(runs, STEPS))
    elif kind == "heavy":
        e = rng.standard_t(3.0, size=(runs, STEPS)) / np.sqrt(3)
    elif kind == "skewed":  # as estimates of the ELBO: a long tail to the left
        e = -(rng.gamma(0.2, size=(runs, STEPS)) - 0.2) / np.sqrt(0.2)
    else:  # correlated over about twenty steps
        e = scipy.signal.lfilter([np.sqrt(1 - 0.9**2)], [1, -0.9], rng.normal(size=(runs, STEPS)))
    return e.astype(np.float32)


TRACES = {  # the mean of the trace at part x of the budget, and beyond
    "straight": lambda x: 0.21 * x,  # a further quarter gains just above the tolerance
    "steeper": lambda x: 0.5 * x,
    "saturating": lambda x: -10 * np.exp(-4 * x),
    "power": lambda x: -5 / np.sqrt(1 + 20 * x),
}


@jax.jit
def stop(trace):
    """Step at which the rule stops, whether it does, and the length of the last block."""
    steps = trace.shape[0]

    def one(plateau, value):
        new = plateau.add(value, TOLERANCE, steps / 4)
        return jax.tree.map(lambda old, fresh: jnp.where(plateau.reached, old, fresh), plateau, new), plateau.reached

    plateau, reached = jax.lax.scan(one, Plateau.empty(first_block(steps, 128), trace.dtype), trace)
    return jnp.sum(~reached), plateau.reached, plateau.length / GROWTH


def false_stops(rule, mean, noise, scale):
    steps = noise.shape[1]
    traces = (mean(np.arange(steps) / steps) + scale * noise).astype(np.float32)
    at, stopped, length = map(np.asarray, jax.vmap(rule)(traces))
    to_come = mean((at + np.maximum(length, steps / 4)) / steps) - mean(at / steps)
    return np.mean(stopped & (to_come > TOLERANCE))


@pytest.mark.parametrize("steps", [STEPS, SHORT])
@pytest.mark.parametrize("kind", ["normal", "heavy", "skewed", "correlated"])
def test_fewer_than_one_in_twenty_rising_traces_is_stopped(kind: str, steps: int) -> None:
    e = noise(kind, RUNS)[:, :steps]
    worst = {
        (name, scale): false_stops(stop, mean, e, scale) for name, mean in TRACES.items() for scale in (0.03, 0.3, 3.0)
    }
    assert max(worst.values()) < 0.05, worst


def test_a_patience_that_knows_no_noise_fails_the_same_test() -> None:
    def patience(trace):  # no new maximum of the running mean in 300 steps
        def one(carry, value):
            mean, best, since = carry
            mean = mean + 0.02 * (value - mean)
            better = mean > best
            since = jnp.where(since >= 300, since, jnp.where(better, 0, since + 1))
            return (mean, jnp.maximum(best, mean), since), since >= 300

        reached = jax.lax.scan(one, (trace[0], trace[0], 0), trace)[1]
        return jnp.sum(~reached), reached[-1], jnp.zeros(())

    assert false_stops(jax.jit(patience), TRACES["steeper"], noise("normal", 100), 0.5) > 0.5


@pytest.mark.parametrize("steps", [STEPS, SHORT])
def test_flat_traces_are_stopped_where_the_noise_lets_it_be_seen(steps: int) -> None:
    e = noise("normal", 100)[:, :steps]
    at, stopped, _ = jax.vmap(stop)(0.03 * e)
    assert np.mean(stopped) > 0.95
    assert np.median(at) < 0.5 * steps
    _, stopped, _ = jax.vmap(stop)(5.0 * e)
    assert np.mean(stopped) < 0.05, "noise hides gains of the tolerance, so that nothing may be concluded"


def test_the_gain_of_a_straight_line_is_its_rise() -> None:
    cells = 3.0 + 0.25 * np.arange(16)
    assert upper_gain(jnp.asarray(cells), jnp.asarray(0)) == pytest.approx(16 * 0.25, rel=1e-5)
    # One value off the line: error of the slope by hand, Student's t of 14 degrees of freedom at 1 − 0.02 / 2.
    cells[7] += 1.0
    slope, intercept = np.polyfit(np.arange(16), cells, 1)
    residual = cells - slope * np.arange(16) - intercept
    error = np.sqrt(residual @ residual / 14 / np.sum((np.arange(16) - 7.5) ** 2))
    assert upper_gain(jnp.asarray(cells), jnp.asarray(0)) == pytest.approx(16 * (slope + 2.624494 * error), rel=1e-4)


def quadratic(params):
    return -0.5 * jnp.sum((params["a"] - 3.0) ** 2) - 0.5 * (params["b"] + 1.0) ** 2


def run(trainer, steps, *, noise=0.0, spoil=(), start=None):
    @jax.jit
    def loop(state):
        def one(state, t):
            key = jax.random.fold_in(jax.random.key(0), t)
            value, grads = jax.value_and_grad(quadratic)(state.params)
            grads = jax.tree.map(lambda g: g + noise * jax.random.normal(key, g.shape), grads)
            bad = jnp.any(t == jnp.asarray([-1, *spoil]))
            grads = jax.tree.map(lambda g: jnp.where(bad, jnp.nan, g), grads)
            return trainer.update(state, value, grads, t)

        return jax.lax.scan(one, state, jnp.arange(steps))

    start = {"a": jnp.zeros(2), "b": jnp.zeros(())} if start is None else start
    return loop(trainer.init(start))


def test_it_climbs_to_the_maximum_and_the_rate_falls_along_a_cosine() -> None:
    state, info = run(Trainer(0.1, 600, tolerance=None), 600)
    np.testing.assert_allclose(state.params["a"], 3.0, atol=1e-3)
    np.testing.assert_allclose(state.params["b"], -1.0, atol=1e-3)
    rates = np.asarray(info.rate)
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert rates[300] == pytest.approx(0.1 * (0.02 + 0.98 * 0.5), rel=1e-2)
    assert rates[-1] == pytest.approx(0.002, rel=1e-2)


def test_steps_that_are_not_finite_change_nothing_and_are_counted() -> None:
    clean, _ = run(Trainer(0.1, 50, final=1.0), 50)
    spoiled, info = run(Trainer(0.1, 50, final=1.0), 53, spoil=(0, 7, 8))
    assert int(spoiled.skipped) == 3
    assert np.asarray(info.skipped).nonzero()[0].tolist() == [0, 7, 8]
    for name in ("a", "b"):
        np.testing.assert_array_equal(clean.params[name], spoiled.params[name])
    many, _ = run(Trainer(0.1, 50, max_bad=5), 10, spoil=tuple(range(10)))
    assert int(many.bad) == 10
    assert np.isnan(Trainer(max_bad=5).reported(many, jnp.nan))
    assert Trainer(window=1).reported(run(Trainer(window=1), 3)[0], jnp.asarray(jnp.nan)) <= 0


def test_clipping_bounds_the_gradient_that_the_optimiser_sees() -> None:
    start = {"a": jnp.full(2, 1e3), "b": jnp.zeros(())}
    plain = Trainer(clip=2.0, optimizer=optax.sgd(1.0))
    state, info = run(plain, 1, start=start)
    moved = np.concatenate([np.ravel(state.params["a"] - 1e3), np.ravel(state.params["b"])])
    assert np.linalg.norm(moved) == pytest.approx(2.0, rel=1e-2)
    assert info.grad_norm[0] == pytest.approx(np.sqrt(2) * (1e3 - 3), rel=1e-5)


def test_the_average_is_nearer_than_the_last_and_is_chosen() -> None:
    state, _ = run(Trainer(optimizer=optax.sgd(0.2), clip=None, tolerance=None), 3000, noise=1.0)
    far = {name: np.sum((getattr(state, name)["a"] - 3.0) ** 2) for name in ("params", "average")}
    assert far["average"] < far["params"]
    params, name, value = choose(state, quadratic)
    assert value == max(float(quadratic(getattr(state, n))) for n in ("params", "average", "best"))
    assert params is getattr(state, "params" if name == "last" else name)


def test_nothing_finite_is_an_error() -> None:
    state, _ = run(Trainer(), 2)
    with pytest.raises(pf.NonFinite, match=r"not finite at the trained parameters .* lower learning_rate"):
        choose(state, lambda params: np.nan)


def test_refusals() -> None:
    with pytest.raises(pf.InvalidArgument, match="learning_rate must be a finite number > 0, got -1"):
        Trainer(-1.0)
    with pytest.raises(pf.InvalidArgument, match="clip must be a finite number > 0, got 0"):
        Trainer(clip=0)
    with pytest.raises(pf.InvalidArgument, match="optimizer must be an optax"):
        Trainer(optimizer="adam")
