"""Schedules, scores and solvers against closed forms, quantile couplings and orders of convergence."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from pushforward.infer.errors import InvalidArgument
from pushforward.samplers.diffusion import schedules
from pushforward.samplers.diffusion.continuous import flow
from pushforward.samplers.diffusion.schedules import edm_grid, log_grid, time_grid
from pushforward.samplers.diffusion.scores import AbstractScore, GaussianScore, MixtureScore
from pushforward.samplers.diffusion.solvers import (
    DDIM,
    DPM2,
    RK4,
    AbstractSolver,
    DPMpp2M,
    DPMpp3M,
    FrozenScore,
    Heun,
    num_calls,
    solve,
)

from .cases import FOUR_WEIGHTS, four_modes, line, narrow, two_modes

SCHEDULES = [
    schedules.ConstantVE(1.5),
    schedules.LinearVE(2.0),
    schedules.ExponentialVE(1.0, 0.5),
    schedules.PolynomialVE(2.0, 1.0, 1.0),
    schedules.PolynomialVE(1.0, 0.0, 0.5),
    schedules.ConstantVP(1.3),
    schedules.LinearVP(),
    schedules.PolynomialVP(2.0, 0.1, 2.0),
    schedules.CosineVP(),
]
ids = [type(s).__name__ for s in SCHEDULES]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("schedule", SCHEDULES, ids=ids)
def test_levels_solve_their_equations(schedule):
    t = np.array([1e-6, 0.01, 0.3, 0.8])
    # dρ²/dt = g²/α², d log α/dt = −f, and the inverse.
    np.testing.assert_allclose(
        jax.vmap(jax.grad(lambda t: schedule.squared_level(t) + 0 * t))(t),
        schedule.diffusion(t) / schedule.alpha(t) ** 2, rtol=1e-12,
    )  # fmt: skip
    slopes = jax.vmap(jax.grad(lambda t: jnp.log(schedule.alpha(t)) + 0 * t))(t)
    np.testing.assert_allclose(slopes, -schedule.drift(t), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(schedule.time(schedule.rho(t)), t, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(t), schedule.alpha(t) * schedule.rho(t))
    np.testing.assert_allclose(schedule.squared_level(0.0), 0, atol=1e-30)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=ids)
def test_schedules_solve_the_same_equation(schedule):
    """In (x, t), with f and g of the schedule: the ODE's slope, DDIM's step, and the exponential integrator's."""
    score, y = two_modes(), jnp.array([0.3, -1.0, 0.8, 0.1])
    first, last = schedule.time(jnp.array([2.0, 1.2]))
    alpha, alpha_next = schedule.alpha(first), schedule.alpha(last)
    x = alpha * y

    def drift(t):
        # dx/dt = −f x − ½ g² ∇ log p_t: with g² in place of g²/2 nothing here holds.
        at = schedule.rho(t)
        here = schedule.alpha(t) * y
        return -schedule.drift(t) * here - 0.5 * schedule.diffusion(t) * score.score(y, at) / schedule.alpha(t)

    # y = x/α: dy/dt = (dx/dt + f x)/α, and dy/dρ = (y − D)/ρ.
    rate = jax.grad(schedule.rho)(first)
    slope = (drift(first) + schedule.drift(first) * x) / alpha
    np.testing.assert_allclose(slope / rate, (y - score.denoise(y, 2.0)) / 2.0, rtol=1e-10)
    # DDIM in x: (σ'/σ) x + (α' − α σ'/σ) D.
    ratio = schedule.sigma(last) / schedule.sigma(first)
    there = ratio * x + (alpha_next - alpha * ratio) * score.denoise(y, 2.0)
    ours, _ = DDIM().step(score, y, None, 2.0, 1.2)
    np.testing.assert_allclose(there / alpha_next, ours, rtol=1e-10)
    # The frozen score: e^(∫f) x + ½ s ∫ e^(∫f) g², by quadrature in t.
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t = 0.5 * (first + last) + 0.5 * (first - last) * nodes
    integral = jnp.sum(weights * alpha_next / schedule.alpha(t) * schedule.diffusion(t)) * 0.5 * (first - last)
    there = alpha_next / alpha * x + 0.5 * integral * score.score(y, 2.0) / alpha
    form = "ve" if isinstance(schedule, schedules.AbstractVE) else "vp"
    ours, _ = FrozenScore(form).step(score, y, None, 2.0, 1.2)
    np.testing.assert_allclose(there / alpha_next, ours, rtol=1e-9)


def test_grids():
    assert log_grid(8.0, 1.0, 3).tolist() == pytest.approx([8, 4, 2, 1])
    assert edm_grid(9.0, 1.0, 2, power=2.0, to_zero=True).tolist() == pytest.approx([9, 4, 1, 0])
    even = schedules.ConstantVP(1.0).time(time_grid(schedules.ConstantVP(1.0), 40.0, 0.01, 10))
    np.testing.assert_allclose(np.diff(even), np.diff(even)[0], rtol=1e-9)
    assert num_calls(Heun(), edm_grid(80.0, 0.002, 17, to_zero=True)) == 35  # the 2n − 1 of n = 18 levels
    with pytest.raises(InvalidArgument, match="rho_max must be above rho_min = 2, got 1"):
        log_grid(1.0, 2.0, 4)
    with pytest.raises(InvalidArgument, match="num_steps must be a whole number >= 1, got 0"):
        edm_grid(2.0, 1.0, 0)
    with pytest.raises(InvalidArgument, match="end must be above begin = 2"):
        schedules.LinearVP(2.0, 1.0)


@pytest.mark.parametrize("diagonal", [True, False])
def test_scores_are_gradients(diagonal):
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(3, 4, 4))
    covariances = factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(4)
    covariances = np.einsum("kii->ki", covariances) if diagonal else covariances
    mixture = MixtureScore.from_moments([1.0, 2, 3], rng.normal(size=(3, 4)), covariances)
    y = jnp.asarray(rng.normal(size=4))
    for score in (mixture, GaussianScore.from_moments(np.arange(4.0), covariances[0])):
        np.testing.assert_allclose(score.score(y, 0.7), jax.grad(score.log_density)(y, 0.7), rtol=1e-11)
    full = [c * np.eye(4) if diagonal else c for c in covariances]
    parts = [
        stats.multivariate_normal(m, c + 0.49 * np.eye(4)).logpdf(y) for m, c in zip(mixture.components.mean, full)
    ]
    np.testing.assert_allclose(mixture.log_density(y, 0.7), np.logaddexp.reduce(np.log([1 / 6, 1 / 3, 0.5]) + parts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, -0.5], np.zeros((2, 1)), np.ones((2, 1))), "weights must be positive"),
        (([1.0], np.zeros((2, 1)), np.ones((2, 1))), "means must have shape"),
        (
            ([1.0], np.zeros((1, 2)), np.ones((1, 3))),
            r"covariances\[0\] must have shape \(2, 2\) or \(2,\), got",
        ),
        (([1.0], np.zeros((1, 2)), [[[1.0, 0], [1, 1]]]), "must be symmetric"),
        (([1.0], np.zeros((1, 2)), [[[1.0, 2], [2, 1]]]), "an eigenvalue of -1"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        MixtureScore.from_moments(*arguments)


@pytest.mark.parametrize("schedule", [schedules.LinearVP(), schedules.ExponentialVE(1.0, 1.0)], ids=["vp", "ve"])
def test_gaussians_are_rescaled(schedule):
    """x₀ = m + s (x_T − α m)/√(α² s² + σ²)."""
    m, s = np.array([0.5, -1.0, 2.0]), np.array([0.2, 1.0, 3.0])
    score = GaussianScore.from_moments(m, s**2)
    alpha, sigma, rho = (float(f(1.0)) for f in (schedule.alpha, schedule.sigma, schedule.rho))
    x = np.array([0.7, -3.0, 1.5]) * sigma
    found = flow(score, jnp.asarray(x / alpha), rho, 1e-5, trace=None, rtol=1e-8, atol=1e-10).y
    np.testing.assert_allclose(found, m + s * (x - alpha * m) / np.sqrt(alpha**2 * s**2 + sigma**2), atol=1e-6)


def test_the_map_of_a_line_couples_quantiles():
    starts = np.sqrt(2501) * np.array([-2, -0.3, 0.1, 1.7])
    ends = jax.vmap(lambda y: flow(line(), y, 50.0, 1e-4, trace=None, rtol=1e-9, atol=1e-11).y)(starts[:, None])[:, 0]
    np.testing.assert_allclose(ends, [-2.717747, 0.044784, 0.673215, 2.217640], atol=1e-5)

    def cdf(x, rho):
        return 0.3 * stats.norm.cdf(x, -2, np.hypot(0.5, rho)) + 0.7 * stats.norm.cdf(x, 1, np.hypot(0.8, rho))

    wanted = [optimize.brentq(lambda x, y=y: cdf(x, 1e-4) - cdf(y, 50.0), -10, 10, xtol=1e-12) for y in starts]
    np.testing.assert_allclose(ends, wanted, atol=1e-6)


class InvertedRatio(AbstractSolver):
    """DPM-Solver++(2M) with r the other way round."""

    order = 2
    calls = 1
    multistep = True

    def init(self, y):
        return DPMpp2M().init(y)

    def step(self, score, y, carry, rho, rho_next):
        d, u = score.denoise(y, rho), jnp.log(rho)
        h = u - jnp.log(rho_next)
        before = jnp.where(carry.count > 0, carry.log_levels[0] - u, 1)
        bar = jnp.where(carry.count > 0, d + before / h / 2 * (d - carry.denoised[0]), d)
        return rho_next / rho * y + (1 - rho_next / rho) * bar, carry.add(d, u)


class HalvedCurvature(AbstractSolver):
    """DPM-Solver++(3M) with the divided difference in place of the second derivative."""

    order = 3
    calls = 1
    multistep = True

    def init(self, y):
        return DPMpp3M().init(y)

    def step(self, score, y, carry, rho, rho_next):
        there, new = DPMpp3M().step(score, y, carry, rho, rho_next)
        h = jnp.log(rho / rho_next)
        h1, h2 = carry.log_levels[0] - jnp.log(rho), carry.log_levels[1] - carry.log_levels[0]
        first, d = carry.denoised[0], score.denoise(y, rho)
        divided = ((d - first) / h1 - (first - carry.denoised[1]) / h2) / (h1 + h2)
        phi3 = (jnp.expm1(-h) / h + 1) / h - 0.5
        return there + jnp.where(carry.count > 1, phi3 * h**2 * divided, 0), new


def exact(y, rho, rho_next):
    """Where the flow of N(.5, .4²) leads."""
    return 0.5 + (y - 0.5) * np.sqrt((0.16 + rho_next**2) / (0.16 + rho**2))


def worst(solver, n):
    """The largest error on N(.5, .4²) from three starts, ρ from 20 to .05."""
    starts, grid = jnp.array([-30.0, 7, 25])[:, None], jnp.asarray(log_grid(20.0, 0.05, n))
    ends = jax.jit(jax.vmap(lambda y: solve(narrow(), solver, grid, y)))(starts)
    return float(jnp.max(jnp.abs(ends - exact(starts, 20.0, 0.05))))


def slope(counts, errors):
    """The order of convergence, by regression."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


class Begun(AbstractSolver):
    """A multistep solver that begins with what it would remember of two exact steps of length ``h`` before ρ = 20."""

    solver: AbstractSolver
    h: float
    order = 3
    calls = 1
    multistep = True

    def init(self, y):
        carry = self.solver.init(y)
        for k in (2, 1):
            rho = 20.0 * np.exp(k * self.h)
            carry = carry.add(narrow().denoise(exact(y, 20.0, rho), rho), jnp.log(rho))
        return carry

    def step(self, score, y, carry, rho, rho_next):
        return self.solver.step(score, y, carry, rho, rho_next)


@pytest.mark.parametrize(
    ("solver", "last", "band"),
    [
        (FrozenScore("vp"), 3.4e-3, 0.03),
        (FrozenScore("ve"), 2.0e-2, 0.06),
        (DDIM(), 2.8e-3, 0.03),
        (Heun(), 2.7e-5, 0.04),
        (DPM2(), 1.3e-5, 0.04),
        (DPMpp2M(), 1.2e-5, 0.04),
        (RK4(), 1.8e-9, 0.1),
    ],
)
def test_orders_of_convergence(solver, last, band):
    errors = [worst(solver, n) for n in (80, 160, 320)]
    assert slope((80, 160, 320), errors) == pytest.approx(solver.order, abs=band)
    assert errors[-1] == pytest.approx(last, rel=0.05)


def test_order_of_three_steps():
    counts = (320, 640, 1280)
    found = {
        solver: slope(counts, [worst(Begun(solver(), np.log(400) / n), n) for n in counts])
        for solver in (DPMpp3M, HalvedCurvature)
    }
    assert found[DPMpp3M] == pytest.approx(3, abs=0.1)
    assert found[HalvedCurvature] < 2.1


class Polynomial(AbstractScore):
    """A denoiser that depends on s = log ρ alone: 1 + 2 s + c s²."""

    curvature: float

    def denoise(self, y, rho):
        s = jnp.log(rho)
        return (1 + 2 * s + self.curvature * s**2) * jnp.ones_like(y)


@pytest.mark.parametrize(
    ("solver", "curvature", "right"),
    [(DPMpp2M(), 0.0, True), (InvertedRatio(), 0.0, False), (DPMpp3M(), 3.0, True), (HalvedCurvature(), 3.0, False)],
)
def test_extrapolations_are_exact_for_polynomials(solver, curvature, right):
    """After steps of other lengths: of a line its value half way, of a parabola the integral of e^(s−h) D."""
    score, levels, y = Polynomial(curvature), [3.0, 2.0, 1.7, 0.6], jnp.array([0.4])
    carry = solver.init(y)
    for rho, rho_next in itertools.pairwise(levels[:3]):
        _, carry = solver.step(score, y, carry, rho, rho_next)
    found, _ = solver.step(score, y, carry, 1.7, 0.6)
    ratio = 0.6 / 1.7
    if curvature:
        # dy/dρ = (y − D)/ρ, so that y/ρ falls by ∫ D/ρ² dρ.
        d = lambda rho: float(score.denoise(jnp.zeros(1), rho)[0])  # noqa: E731
        wanted = ratio * y + 0.6 * integrate.quad(lambda rho: d(rho) / rho**2, 0.6, 1.7)[0]
    else:
        wanted = ratio * y + (1 - ratio) * score.denoise(y, np.sqrt(1.7 * 0.6))
    assert (abs(found - wanted) < 1e-9).all() == right


def test_the_midpoint_is_the_noise_form_of_dpm_solver():
    score, y, rho, rho_next = two_modes(), jnp.array([0.3, -1.0, 0.8, 0.1]), 1.3, 0.8
    noise = lambda y, rho: (y - score.denoise(y, rho)) / rho  # noqa: E731
    h, middle = np.log(rho / rho_next), np.sqrt(rho * rho_next)
    first = noise(y, rho)
    at = y - middle * np.expm1(h / 2) * first
    there = y - rho_next * np.expm1(h) * first - rho_next * np.expm1(h) * (noise(at, middle) - first)
    np.testing.assert_allclose(DPM2().step(score, y, None, rho, rho_next)[0], there, rtol=1e-12)


@pytest.mark.parametrize("solver", [DDIM(), Heun(), DPM2(), DPMpp2M(), DPMpp3M(), RK4()])
def test_the_step_to_zero_denoises(solver):
    score, y = two_modes(), jnp.array([0.3, -1.0, 0.8, 0.1])
    carry = solver.init(y)
    if solver.multistep:
        for rho in (0.5, 0.4):
            y, carry = solver.step(score, y, carry, rho, rho - 0.1)
    np.testing.assert_allclose(solver.step(score, y, carry, 0.3, 0.0)[0], score.denoise(y, 0.3), rtol=1e-12)


def test_errors_by_calls_on_four_modes():
    """A part of the table of benchmarks/papers/probability_flow.py."""
    score, _, _ = four_modes()
    starts = np.sqrt(1601) * np.random.default_rng(0).normal(size=(128, 2))

    def ends(solver, grid):
        return jax.jit(jax.vmap(lambda y: solve(score, solver, jnp.asarray(grid), y)))(starts)

    def error(solver, grid):
        return float(jnp.sqrt(jnp.mean(jnp.sum((ends(solver, grid) - truth) ** 2, 1))))

    truth = ends(RK4(), log_grid(40.0, 0.005, 400))
    assert error(DPMpp2M(), log_grid(40.0, 0.005, 20)) < 0.12
    assert error(DPMpp2M(), log_grid(40.0, 0.005, 40)) < 0.05
    assert error(RK4(), edm_grid(40.0, 0.005, 19)) < 0.01
    # Uniform in time every solver stalls.
    assert error(DPMpp2M(), time_grid(schedules.ConstantVP(), 40.0, 0.005, 80)) > 0.08
    assert error(RK4(), time_grid(schedules.ConstantVP(), 40.0, 0.005, 20)) > 0.08


def test_weights_of_modes_are_kept():
    score, _, _ = four_modes()
    n = 4000
    starts = np.sqrt(1601) * np.random.default_rng(3).normal(size=(n, 2))
    grid = jnp.asarray(log_grid(40.0, 0.005, 20))
    ends = jax.jit(jax.vmap(lambda y: solve(score, DPMpp2M(), grid, y)))(starts)
    joint = jax.vmap(lambda y: score._joint(y, 0.005))(ends)
    shares = np.bincount(np.argmax(joint, 1), minlength=4) / n
    np.testing.assert_array_less(np.abs(shares - FOUR_WEIGHTS), 3 * np.sqrt(FOUR_WEIGHTS * (1 - FOUR_WEIGHTS) / n))
