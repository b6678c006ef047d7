"""The SDE partner, weights of paths, the predictor–corrector, and Picard sweeps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.errors import InvalidArgument
from pushforward.samplers.diffusion.picard import picard
from pushforward.samplers.diffusion.schedules import edm_grid, log_grid
from pushforward.samplers.diffusion.scores import GaussianScore
from pushforward.samplers.diffusion.solvers import DDIM, DPMpp2M, Heun, solve, trajectory
from pushforward.samplers.diffusion.stochastic import ancestral, ancestral_path, predictor_corrector

from .cases import narrow, two_modes

BASE = np.sqrt(1601)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def normals(n, d=4, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)))


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def test_ancestral_steps_have_their_moments():
    """Mean and variance of the reverse chain of N(.5, .4²), by the recursion of its affine steps."""
    score, grid, n = narrow(), log_grid(40.0, 0.05, 12, to_zero=True), 4000
    y = jax.jit(jax.vmap(lambda key, z: ancestral(key, score, jnp.asarray(grid), BASE * z)[-1]))(keys(n), normals(n, 1))
    mean, variance = 0.0, BASE**2
    for rho, rho_next in itertools.pairwise(grid):
        gap = rho**2 - rho_next**2
        slope = 1 - gap / (0.16 + rho**2)
        mean = slope * mean + gap * 0.5 / (0.16 + rho**2)
        variance = slope**2 * variance + rho_next**2 * gap / rho**2  # with gap in its place: 10 % more
    assert np.mean(y) == pytest.approx(mean, abs=4 * np.sqrt(variance / n))
    assert np.var(y) == pytest.approx(variance, rel=4 * np.sqrt(2 / n))


@pytest.mark.parametrize("steps", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_weights_of_paths_are_unbiased(steps):
    wrong, target, n = two_modes((0.6, 0.4), 1.05, 1.15), two_modes(), 8000
    grid = jnp.asarray(edm_grid(40.0, 0.05, steps))
    x, log_q = jax.jit(jax.vmap(lambda key, z: ancestral_path(key, wrong, grid, BASE, z, 0.3)))(keys(n), normals(n))
    w = np.exp(jax.vmap(lambda x: target.log_density(x, 0.0))(x) - log_q)
    error = w.std() / np.sqrt(n)
    assert abs(w.mean() - 1) < 3.5 * error
    assert error < 0.08


def test_weights_of_paths_of_a_point_like_gaussian():
    """Of N(0, s²) with s → 0 the reverse chain is exact, and the weight is the base's alone."""
    score, grid = GaussianScore.from_moments([0.0], [1e-12]), jnp.asarray(log_grid(40.0, 1.0, 5))
    x, log_q = jax.jit(jax.vmap(lambda key, z: ancestral_path(key, score, grid, 40.0, z, 1e-3)))(
        keys(50), normals(50, 1)
    )
    # x₀ ~ N(0, ℓ²) in the last kernel, and the noise from 0 to ρ_n is 1: log q = log N(x₀; 0, ℓ²) up to 1e-5.
    np.testing.assert_allclose(log_q, -0.5 * (x[:, 0] / 1e-3) ** 2 - np.log(1e-3) - 0.5 * np.log(2 * np.pi), atol=0.02)


def test_the_corrector_removes_error():
    """Six steps of DDIM leave a standard deviation that Langevin steps bring to the truth."""
    score, n = GaussianScore.from_moments([0.5, -0.5], [0.16, 0.16]), 4000
    grid, ys = jnp.asarray(log_grid(40.0, 0.05, 6)), BASE * normals(n, 2)
    plain = jax.vmap(lambda y: solve(score, DDIM(), grid, y))(ys)
    truth = np.sqrt(0.16 + 0.05**2)
    assert np.max(np.abs(plain.std(0) / truth - 1)) > 0.1
    run = jax.jit(lambda key, k: predictor_corrector(key, score, DDIM(), grid, ys, num_corrections=k), static_argnums=1)
    better = run(jax.random.key(0), 20)
    assert np.max(np.abs(better.std(0) / truth - 1)) < 0.06
    with pytest.raises(InvalidArgument, match="num_corrections must be a whole number >= 1, got 0"):
        run(jax.random.key(0), 0)


@pytest.mark.parametrize("solver", [DDIM(), Heun()])
def test_sweeps_of_picard(solver):
    """Sweep j leaves the points 0 … j as the sequential solver has them; all points are right long before the last."""
    score, grid, y = two_modes(), jnp.asarray(edm_grid(40.0, 0.05, 24)), BASE * normals(1)[0]
    exact = trajectory(score, solver, grid, y)
    sweep = jax.jit(lambda most: picard(score, solver, grid, y, tolerance=1e-14, max_sweeps=most), static_argnums=0)
    for most in (1, 5):
        path, count = sweep(most)
        assert count == most
        np.testing.assert_allclose(path[: most + 1], exact[: most + 1], rtol=1e-10, atol=1e-12)
        assert np.max(np.abs(path[most + 1 :] - exact[most + 1 :])) > 1e-9
    for window in (None, 6, 1):
        swept = jax.jit(lambda w=window: picard(score, solver, grid, y, window=w, tolerance=1e-4))()
        np.testing.assert_allclose(swept.path, exact, atol=5e-3 * BASE)
        np.testing.assert_allclose(swept.path[-1], exact[-1], atol=5e-3)
        assert swept.num_sweeps <= 24
    assert jax.jit(lambda: picard(score, solver, grid, y, tolerance=1e-3))().num_sweeps < 20


def test_sweeps_refuse_multistep_solvers():
    with pytest.raises(InvalidArgument, match=r"solver must be a single-step one, .* got DPMpp2M"):
        picard(two_modes(), DPMpp2M(), jnp.asarray([2.0, 1.0]), normals(1)[0])
