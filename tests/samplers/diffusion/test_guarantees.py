"""What Gao & Zhu (2024) prove, on product Gaussians, where W2 is exact: initialisation, order, bias, complexity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.samplers.diffusion.schedules import (
    AbstractVP,
    ConstantVP,
    ExponentialVE,
    PolynomialVE,
    PolynomialVP,
    log_grid,
)
from pushforward.samplers.diffusion.scores import AbstractScore, GaussianScore
from pushforward.samplers.diffusion.solvers import RK4, AbstractSolver, FrozenScore, solve

MEAN, SD = np.full(10, 0.5), np.geomspace(0.2, 1, 10)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.partial(jax.jit, static_argnames="solver")
def w2(grid, base, mean, sd, solver: AbstractSolver):
    """From N(0, base²) along the grid to N(mean, sd²); steps are affine, read off two points."""
    score = GaussianScore(mean, sd**2)
    offset, other = (solve(score, solver, grid, y) for y in (jnp.zeros_like(mean), jnp.ones_like(mean)))
    return jnp.sqrt(jnp.sum((offset - mean) ** 2 + ((other - offset) * base - sd) ** 2))


@pytest.mark.parametrize(
    ("schedule", "wanted", "bounds"),
    [
        (ConstantVP(1.0), (0.652, 0.351, 0.123, 0.0165), (1.452, 0.881, 0.324, 0.0439)),
        (ExponentialVE(1.0, 1.0), (0.490, 0.173, 0.0233, 0.00043), (1.17, 0.454, 0.062, 0.00114)),
    ],
    ids=["vp", "ve"],
)
def test_error_of_the_start(schedule, wanted, bounds):
    """From N(0, σ_T² I) the exact flow ends within ‖x₀‖/√(1 + m₀ ρ_T²) of the target."""
    norm = np.sqrt(np.sum(MEAN**2 + SD**2))
    for t, value, bound in zip((1.0, 2.0, 4.0, 8.0), wanted, bounds):
        rho = float(schedule.rho(t))
        found = w2(jnp.asarray(log_grid(rho, 1e-5, 150)), rho, MEAN, SD, RK4())
        assert found == pytest.approx(value, rel=0.01, abs=6e-6)
        assert norm / np.sqrt(1 + rho**2) == pytest.approx(bound, rel=0.01)
        assert found < bound


def uniform(schedule, t, count):
    """Levels of uniform times down to 0."""
    return schedule.rho(t * jnp.linspace(1, 0, count + 1))


@pytest.mark.parametrize(("count", "value"), [(50, 0.227), (100, 0.120), (200, 0.0613)])
def test_order_of_the_exponential_integrator(count, value):
    """With uniform times of β = 1 up to 12 the error halves with the step."""
    grid = uniform(ConstantVP(1.0), 12.0, count)
    assert w2(grid, grid[0], MEAN, SD, FrozenScore("vp")) == pytest.approx(value, rel=5e-3)


def test_schedules_by_complexity():
    """With 30 steps and the best T: VP linear < VP constant < VE exponential < VE with g = 1 + t < g = √(1 + t)."""
    cases = [
        (PolynomialVP(1.0, 1.0, 1.0), 6.0),
        (ConstantVP(1.0), 14.0),
        (ExponentialVE(1.0, 0.5), 16.0),
        (PolynomialVE(1.0, 1.0, 1.0), 60.0),
        (PolynomialVE(1.0, 1.0, 0.5), 200.0),
    ]
    best, mean, sd = [], np.array([0.5]), np.array([0.7])
    for schedule, longest in cases:
        solver = FrozenScore("vp" if isinstance(schedule, AbstractVP) else "ve")
        grids = jax.vmap(lambda t, s=schedule: uniform(s, t, 30))(jnp.geomspace(0.3, longest, 80))
        best.append(float(jnp.min(jax.vmap(lambda g, s=solver: w2(g, g[0], mean, sd, s))(grids))))
    assert np.all(np.diff(best) > 0)
    assert best[0] < 0.025
    assert best[1] < 0.05


class Biased(AbstractScore):
    """A score with a constant vector added."""

    right: GaussianScore
    bias: np.ndarray

    def denoise(self, y, rho):
        return self.right.denoise(y, rho) + rho**2 * self.bias


def test_a_biased_score_shifts_the_mean_in_proportion():
    right = GaussianScore(MEAN, SD**2)
    grid = uniform(ConstantVP(1.0), 6.0, 40)
    run = jax.jit(lambda bias: solve(Biased(right, bias), FrozenScore("vp"), grid, jnp.zeros(10)))
    free, one, three = (run(m * np.linspace(0.1, 1, 10)) for m in (0.0, 0.1, 0.3))
    np.testing.assert_allclose(three - free, 3 * (one - free), rtol=1e-9)
    assert np.min(one - free) > 1e-3
