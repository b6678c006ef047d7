"""Densities: dense Jacobians, inverses, closed forms, and evidence that wrong formulas miss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.errors import InvalidArgument
from pushforward.samplers.diffusion import continuous
from pushforward.samplers.diffusion.approximation import DiffusionApproximation
from pushforward.samplers.diffusion.density import DiscreteFlow, inverse_and_log_det, transform_and_log_det
from pushforward.samplers.diffusion.schedules import edm_grid, log_grid
from pushforward.samplers.diffusion.scores import GaussianScore, MixtureScore
from pushforward.samplers.diffusion.solvers import (
    DDIM,
    DPM2,
    RK4,
    DPMpp2M,
    DPMpp3M,
    FrozenScore,
    Heun,
    solve,
    steps,
    trajectory,
)
from pushforward.samplers.diffusion.weights import Density, log_ratio, log_weights

from .cases import two_modes

BASE = np.sqrt(1 + 40.0**2)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def normals(n, d=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)))


@pytest.mark.parametrize(
    ("solver", "to_zero"),
    [
        (FrozenScore(), False),
        (DDIM(), True),
        (Heun(), True),
        (DPM2(), False),
        (DPMpp2M(), True),
        (RK4(), False),
        pytest.param(DPMpp3M(), True, marks=pytest.mark.slow),
        pytest.param(RK4(), True, marks=pytest.mark.slow),
    ],
)
def test_log_determinants_and_inverses(solver, to_zero):
    q = DiscreteFlow.make(two_modes(), edm_grid(40, 0.05, 12, to_zero=to_zero), solver)
    z = normals(8)
    y, log_q, folds = jax.jit(jax.vmap(q.transform))(z)
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda z: solve(q.score, q.solver, q.grid, BASE * z))))(z)
    by_hand = -0.5 * np.sum(z**2, 1) - 2 * np.log(2 * np.pi) - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_q, by_hand, atol=1e-10)
    assert not folds.any()
    if not isinstance(solver, DDIM | RK4 | DPMpp2M | DPMpp3M):
        return  # the inverse is the same code for all single-step solvers, and for the multistep ones
    back, pulled = jax.jit(jax.vmap(q.log_prob))(y)
    np.testing.assert_allclose(back, log_q, atol=1e-9)
    np.testing.assert_allclose(pulled.y, BASE * z, atol=1e-8)
    assert pulled.residual.max() < 1e-12


def test_memory_of_multistep_solvers_counts():
    """The product of the steps' own Jacobians, past denoisers held fixed, is not the determinant."""
    score, grid, y = two_modes(), jnp.asarray(edm_grid(40, 0.05, 12)), BASE * normals(1)[0]
    right = jax.jit(transform_and_log_det)(score, DPMpp2M(), grid, y).log_det

    def one(state, at):
        y, carry, total = state
        step = lambda y: DPMpp2M().step(score, y, carry, *at)  # noqa: E731
        return (*step(y), total + jnp.linalg.slogdet(jax.jacfwd(lambda y: step(y)[0])(y))[1]), None

    _, begins, ends = steps(grid, y)
    total = jax.lax.scan(one, (y, DPMpp2M().init(y), jnp.zeros(())), (begins, ends))[0][2]
    assert abs(total - right) > 0.05


@functools.partial(jax.jit, static_argnames="trace")
def along(score, y, rho, rho_end, rtol, trace, keys):
    """Ends of the flow of many points."""
    return jax.vmap(lambda y, key: continuous.flow(score, y, rho, rho_end, trace=trace, key=key, rtol=rtol, atol=rtol))(
        y, keys
    )


def test_continuous_densities_are_those_of_the_mixture():
    score, starts = two_modes(), np.hypot(1, 80.0) * normals(16)
    keys = jax.random.split(jax.random.key(0), 16)
    first = jax.vmap(lambda y: score.log_density(y, 80.0))
    last = jax.vmap(lambda y: score.log_density(y, 1e-3))
    there = along(score, starts, 80.0, 1e-3, 1e-5, "exact", keys)
    log_q = first(starts) - there.change
    np.testing.assert_allclose(log_q, last(there.y), atol=2e-3)
    # And back: the density at a point, and the point where it came from.
    back = along(score, there.y, 1e-3, 80.0, 1e-8, "exact", keys)
    again = along(score, back.y, 80.0, 1e-3, 1e-8, "exact", keys)
    np.testing.assert_allclose(again.y, there.y, atol=1e-5)
    np.testing.assert_allclose(again.change, -back.change, atol=1e-5)
    np.testing.assert_allclose(first(back.y) + back.change, last(there.y), atol=1e-5)
    # Hutchinson's estimate has the right mean, and much noise.
    one = along(score, jnp.broadcast_to(starts[0], starts.shape), 80.0, 1e-3, 1e-5, "hutchinson", keys).change
    assert np.std(one) > 0.1
    assert abs(np.mean(one) - there.change[0]) < 4 * np.std(one) / np.sqrt(16)
    with pytest.raises(InvalidArgument, match="key is None"):
        continuous.flow(score, starts[0], 80.0, 1e-3, trace="hutchinson")
    with pytest.raises(InvalidArgument, match="trace must be one of 'exact', 'hutchinson', got 'rademacher'"):
        continuous.flow(score, starts[0], 80.0, 1e-3, trace="rademacher")


def test_continuous_log_prob_has_the_gaussian_base():
    score, y = GaussianScore.from_moments(np.zeros(3), np.ones(3)), jnp.array([0.3, 1.0, -2.0])
    run = jax.jit(lambda y: continuous.continuous_log_prob(score, y, 0.01, 40.0, BASE)[0])
    log_q = run(y)
    np.testing.assert_allclose(log_q, score.log_density(y, 0.01), atol=1e-6)


@pytest.fixture(scope="module")
def wrong():
    """Twelve Heun steps with a score whose weights, means and covariances are wrong: draws and log weights."""
    with jax.enable_x64(True):
        score, target = two_modes((0.6, 0.4), 1.05, 1.15), two_modes()
        q = DiscreteFlow.make(score, edm_grid(40.0, 0.05, 12), Heun())
        z = normals(6000)
        y, log_q, folds = jax.jit(jax.vmap(q.transform))(z)
        log_pi = jax.vmap(lambda y: target.log_density(y, 0.0))(y)

        def trapezoid(z):
            """∫ div(y − D) du by the trapezoidal rule at the points of the same path."""
            path = trajectory(score, Heun(), q.grid, BASE * z)
            velocity = lambda y, rho: y - score.denoise(y, rho)  # noqa: E731
            div = jax.vmap(lambda y, rho: jnp.trace(jax.jacfwd(velocity)(y, rho)))(path, q.grid)
            change = jnp.sum(0.5 * (div[1:] + div[:-1]) * jnp.diff(jnp.log(q.grid)))
            return -0.5 * jnp.sum(z**2) - 2 * jnp.log(2 * jnp.pi * BASE**2) - change

        traced = log_pi - jax.jit(jax.vmap(trapezoid))(z)
        return np.asarray(y), np.asarray(log_pi), np.asarray(log_q), np.asarray(folds), np.asarray(traced)


def estimate(log_w):
    w = np.exp(log_w)
    return w.mean(), w.std() / np.sqrt(len(w))


def test_evidence_is_unbiased_with_a_wrong_score(wrong):
    y, log_pi, log_q, folds, traced = wrong
    log_w = log_weights(log_pi, Density(log_q, "discrete"))
    z, error = estimate(log_w)
    assert abs(z - 1) < 3 * error < 0.06
    assert not folds.any()
    # Weights repair the share of the modes, which the score has wrong.
    left = y[:, 0] < -0.4
    share = np.sum(np.exp(log_w) * left) / np.sum(np.exp(log_w))
    truth = np.mean(_exact(20_000)[:, 0] < -0.4)
    assert abs(left.mean() - truth) > 0.1
    assert abs(share - truth) < 0.03
    # What looks as good: the trapezoidal rule of the exact trace on the same path, and no log-determinant of the base.
    z, error = estimate(traced)
    assert abs(z - 1) > 10 * error


def _exact(n):
    score, rng = two_modes(), np.random.default_rng(5)
    k = rng.choice(2, n, p=[0.3, 0.7])
    means, variances, axes = (np.asarray(x) for x in jax.tree.leaves(score.components))
    return means[k] + np.einsum("nij,nj->ni", axes[k], np.sqrt(variances[k]) * rng.normal(size=(n, 4)))


def test_kinds_of_densities_do_not_mix():
    discrete, exact, noisy = (Density(jnp.zeros(2), kind) for kind in ("discrete", "continuous", "hutchinson"))
    assert log_ratio(discrete, Density(jnp.ones(2), "discrete")).tolist() == [-1, -1]
    assert log_weights(jnp.ones(2), exact).tolist() == [1, 1]
    with pytest.raises(InvalidArgument, match="'discrete' and 'continuous', differ by the error of the steps"):
        log_ratio(discrete, exact)
    with pytest.raises(InvalidArgument, match="kind 'hutchinson' are random"):
        log_weights(jnp.zeros(2), noisy)
    with pytest.raises(InvalidArgument, match="kind 'hutchinson' are random"):
        log_ratio(noisy, noisy)


def test_too_few_steps_fold_the_map():
    """Two steps of Heun between far modes: the map turns back between them, and says so."""
    score = MixtureScore.from_moments([0.5, 0.5], [[-1.0], [1.0]], [[0.01], [0.01]])
    y = jnp.linspace(-30, 30, 201)[:, None]
    folds, ends = {}, {}
    for n in (2, 24):
        q = DiscreteFlow.make(score, log_grid(20.0, 0.05, n), Heun())
        pushed = jax.jit(jax.vmap(lambda y, q=q: transform_and_log_det(q.score, q.solver, q.grid, y)))(y)
        folds[n], ends[n] = pushed.folds, pushed.y[:, 0]
    assert not folds[24].any()
    assert np.all(np.diff(ends[24]) > 0)
    assert folds[2].any() == bool(np.any(np.diff(ends[2]) < 0))
    assert folds[2].any()


@pytest.mark.parametrize("grid", [[1.0], [1.0, 2.0], [2.0, 1.0, 1.0], [2.0, -1.0], [np.inf, 1.0]])
def test_bad_grids_are_refused(grid):
    with pytest.raises(InvalidArgument, match="grid must be two or more finite noise levels that fall"):
        DiscreteFlow.make(two_modes(), grid, DDIM())


def test_inverses_of_long_steps():
    """Newton's method from the reversed step is far off where steps are long, and finds the origin still."""
    score = MixtureScore.from_moments([0.5, 0.5], [[-1.0], [1.0]], [[0.01], [0.01]])
    pull = jax.jit(lambda y, grid: inverse_and_log_det(score, DDIM(), grid, y))
    for value, levels in [(0.02, [20.0, 0.0]), (0.9, [0.5, 0.02]), (-1.3, [3.0, 0.5])]:
        grid = jnp.array(levels)
        found = pull(jnp.array([value]), grid)
        assert found.residual < 1e-12
        there = transform_and_log_det(score, DDIM(), grid, found.y)
        np.testing.assert_allclose(there.y, value, atol=1e-10)
        np.testing.assert_allclose(there.log_det, found.log_det, atol=1e-9)


def test_draws_alone_are_those_that_come_with_densities():
    flow = DiscreteFlow.make(GaussianScore(jnp.zeros(2), jnp.array([0.5, 2.0])), np.geomspace(20.0, 0.1, 6), Heun())
    found = DiffusionApproximation(flow, jnp.array([1.0, -1.0]), jnp.array([[2.0, 0.0], [0.5, 1.5]]))
    drawn, _ = found.sample_and_log_prob(jax.random.key(0), 50)
    np.testing.assert_allclose(found.sample_points(jax.random.key(0), 50), drawn, rtol=1e-12)
