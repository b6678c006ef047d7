"""Expectations: unbiased, as noisy as theory says, and without noise where they should be."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.linalg import Diagonal, Spectral, Triangular
from pushforward.infer.variational.gaussian.oracle import Settings, antithetic_normal, moments, power_iteration

from .helpers import gaussian, iterate, normal_kl, poisson, poisson_density, regression, run

MEAN, SCALE = np.array([0.7, 0.2, -0.4]), np.array([0.6, 0.5, 0.8])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def settings(expectation="stein", n=1, control="full", coefficient=1.0, antithetic=False, skip=False):
    return Settings(expectation, n, antithetic, control, coefficient, skip)


def rotated(scale):
    q, _ = np.linalg.qr(np.random.default_rng(8).normal(size=(3, 3)))
    return Spectral(jnp.asarray(q), jnp.asarray(scale))


def repeat(target, factor, how, n=20_000, mean=MEAN):
    """Independent estimates, as NumPy arrays with a leading axis."""
    return jax.tree.map(np.asarray, estimates(target, factor, how, jnp.asarray(mean), n=n))


@partial(jax.jit, static_argnames=("n",))
def estimates(target, factor, how, mean, *, n):
    direction = jnp.zeros(3).at[0].set(1.0)
    one = lambda key: moments(key, target, None, mean, factor, direction, how)  # noqa: E731
    return jax.vmap(one)(jax.random.split(jax.random.key(0), n))


def close(values, truth, z=4.5):
    """Whether the mean of the values over axis 0 is the truth, within z standard errors."""
    error = np.asarray(values).std(0) / np.sqrt(len(values))
    return np.all(np.abs(np.mean(values, 0) - truth) <= z * error + 1e-12)


@pytest.mark.parametrize("expectation", ["stein", "price"])
@pytest.mark.parametrize("control", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_estimates_are_unbiased(expectation: str, control: str) -> None:
    factor = rotated(SCALE)
    exact = repeat(poisson(3), factor, settings("gauss_hermite"), 1)
    found = repeat(poisson_density(3), factor, settings(expectation, 1, control))
    assert close(found.gradient, exact.gradient[0])
    assert close(found.push, exact.push[0])
    assert close(found.image, exact.image[0])
    assert close(found.elbo - 1.5 * np.log(2 * np.pi), exact.elbo[0])
    np.testing.assert_allclose(exact.push[0], np.diag(hessian_diagonal(factor)) @ factor.dense(), rtol=1e-10)
    assert not close(found.push, -exact.push[0])
    assert not close(found.gradient, exact.gradient[0] + np.mean(np.asarray(factor.solve_transpose(jnp.ones(3)))))


def hessian_diagonal(factor):
    return np.exp(MEAN + 0.5 * np.diag(factor.covariance())) + 1


@pytest.mark.slow
def test_families_see_their_part_of_the_hessian() -> None:
    target = regression()
    dense = rotated(SCALE)
    s = np.asarray(repeat(target, dense, settings("gauss_hermite"), 1).push[0] @ np.linalg.inv(dense.dense()))
    diagonal = Diagonal(jnp.asarray(SCALE))
    tril = Triangular(jnp.linalg.cholesky(dense.covariance()))
    for factor, expected in ((diagonal, None), (tril, s @ tril.dense())):
        exact = repeat(target, factor, settings("gauss_hermite"), 1)
        found = repeat(target, factor, settings("stein", 4), 4000)
        assert close(found.push, exact.push[0])
        if expected is not None:
            np.testing.assert_allclose(exact.push[0], expected, atol=1e-9)


def test_no_noise_at_the_optimum_of_a_gaussian() -> None:
    target, mean, sigma = gaussian(3)
    factor = Triangular(jnp.linalg.cholesky(jnp.asarray(sigma)))
    stein = repeat(target, factor, settings("stein"), 50, mean)
    assert np.max(np.abs(stein.push - factor.push_inverse())) < 1e-12
    assert np.max(np.abs(stein.gradient)) < 1e-12
    assert np.max(np.abs(repeat(target, factor, settings("price"), 50, mean).gradient)) < 1e-12
    assert np.max(stein.variance_push) < 1e-20
    assert np.std(stein.elbo) < 1e-12  # every draw has the same weight
    noisy = repeat(target, factor, settings("stein", control="mean"), 50, mean)
    assert np.max(np.abs(noisy.gradient)) < 1e-12
    assert np.std(noisy.push, 0).min() > 0.1


def test_antithetic_draws_are_exact_for_a_quadratic() -> None:
    target, mean, sigma = gaussian(3)
    precision = np.linalg.inv(sigma)
    found = repeat(target, rotated(SCALE), settings("stein", 4, "none", antithetic=True), 10)
    np.testing.assert_allclose(found.gradient, np.broadcast_to(precision @ (MEAN - mean), (10, 3)), atol=1e-12)
    u = antithetic_normal(jax.random.key(0), 6, 3, float)
    np.testing.assert_array_equal(u[:3], -u[3:])


@pytest.mark.slow
@pytest.mark.parametrize("antithetic", [False, True])
def test_logged_variances_are_those_of_the_estimates(antithetic: bool) -> None:
    for expectation in ("stein", "price"):
        if antithetic and expectation == "price":
            continue
        how = settings(expectation, 6, "none", antithetic=antithetic)
        found = repeat(poisson_density(3), rotated(SCALE), how, 4000)
        assert found.variance_mean.mean() == pytest.approx(found.gradient.var(0).sum(), rel=0.1)
        assert found.variance_push.mean() == pytest.approx(found.push.var(0).sum(), rel=0.1)
        assert np.sqrt((found.elbo_se**2).mean()) == pytest.approx(found.elbo.std(), rel=0.1)


@pytest.mark.parametrize(
    ("coefficient", "num_draws"), [(0.0, 1), (0.5, 1), pytest.param(0.0, 2, marks=pytest.mark.slow)]
)
def test_noise_floor(coefficient: float, num_draws: int) -> None:
    # E KL = (1−c)²/2n Σ ηλ/(2−ηλ) for a Gaussian target; with the sign of c wrong, (1+c)² stands there.
    target, _, sigma = gaussian(3, 0.3, 1.0)
    eigenvalues, step = 1 / np.linalg.eigvalsh(sigma), 0.8
    method = pf.SVRGVI(
        step_size=step, coefficient=coefficient, num_draws=num_draws, initial_covariance=sigma, num_steps=60
    )

    kl = np.asarray(kl_along(method, target, jax.random.split(jax.random.key(3), 600)))[:, 20:]
    floor = (1 - coefficient) ** 2 / (2 * num_draws) * np.sum(step * eigenvalues / (2 - step * eigenvalues))
    assert float(kl.mean()) == pytest.approx(floor, rel=0.05)


@jax.jit
def kl_along(method, target, keys):
    """KL of 60 steps of many runs that begin at the target's mean, with its covariance."""
    mean, precision = (jnp.asarray(x) for x in target.data)

    def one(key):
        def body(state, t):
            state, _ = method.step(jax.random.fold_in(key, t), state, target, t)
            delta = state.mean - mean
            return state, 0.5 * delta @ precision @ delta

        return jax.lax.scan(body, method.init(key, target, mean), jnp.arange(60))[1]

    return jax.vmap(one)(keys)


def test_full_control_reaches_the_optimum_where_that_of_the_mean_alone_does_not() -> None:
    target, mean, sigma = gaussian(4)
    found = {}
    for control in ("full", "mean"):
        method = pf.FBGVI(
            expectation="stein", control=control, num_draws=8, antithetic=False, step_size=0.1, num_steps=3000,
            schedule="constant",
        )  # fmt: skip
        state, _ = iterate(method, target, steps=3000)
        found[control] = normal_kl(state.mean, np.asarray(state.factor.covariance()), mean, sigma)
    assert found["full"] < 1e-10
    assert found["mean"] > 1e-3


def test_adaptive_coefficient_is_the_ratio_of_traces() -> None:
    # At Σ = a Λ⁻¹ the gradient is exactly a times the control, and tr S / tr Σ⁻¹ = a: no noise is left.
    target, mean, sigma = gaussian(3)
    factor = Triangular(jnp.linalg.cholesky(jnp.asarray(2.5 * sigma)))
    quiet = repeat(target, factor, settings("price", control="adaptive"), 20, mean)
    assert np.max(np.abs(quiet.gradient)) < 1e-11
    assert np.max(np.abs(repeat(target, factor, settings("price"), 20, mean).gradient)) > 0.1


def test_curvature_by_products_and_by_differences_of_gradients() -> None:
    target, _, sigma = gaussian(4, 0.05, 3.0)
    factor = Diagonal(jnp.ones(4))
    for expectation in ("price", "stein"):
        curvature, direction = power_iteration(
            jax.random.key(1), target, None, jnp.zeros(4), factor, settings(expectation, 8)
        )
        assert float(curvature) == pytest.approx(3.0, rel=1e-4)
        np.testing.assert_allclose(sigma @ direction, direction / 3.0, atol=1e-3)


def test_stationarity_is_the_norm_of_the_bures_wasserstein_gradient() -> None:
    # ‖g‖² + tr[(S − Σ⁻¹) Σ (S − Σ⁻¹)] is E |g + (S − Σ⁻¹)(x − m)|² under the Gaussian itself.
    method = pf.FBGVI(expectation="gauss_hermite", step_size=0.1, initial_covariance=0.4)
    start = np.array([0.5, -0.2, 0.1])
    _, infos = iterate(method, regression(), start, steps=1)
    exact = repeat(regression(), Diagonal(jnp.full(3, np.sqrt(0.4))), settings("gauss_hermite"), 1, start)
    full = repeat(regression(), Triangular(jnp.eye(3) * np.sqrt(0.4)), settings("gauss_hermite"), 1, start)
    s = np.asarray(full.push[0]) / np.sqrt(0.4)
    x = np.random.default_rng(0).normal(size=(200_000, 3)) * np.sqrt(0.4)
    field = np.asarray(exact.gradient[0]) + x @ (s - np.eye(3) / 0.4)
    assert float(infos.gradient_norm[0]) == pytest.approx(np.mean(np.sum(field**2, 1)), rel=0.01)


@pytest.mark.slow
def test_restarts_in_one_program_are_those_of_many() -> None:
    target, _, _ = gaussian(3)
    method = pf.FBGVI(num_steps=150, step_size=0.2, expectation="stein")
    keys, starts = jax.random.split(jax.random.key(0), 8), jax.random.normal(jax.random.key(1), (8, 3))
    together, _ = jax.vmap(lambda key, start: run(method, target, key, start, steps=150))(keys, starts)
    for k in (0, 7):
        alone, _ = run(method, target, keys[k], starts[k], steps=150)
        np.testing.assert_allclose(together.mean[k], alone.mean, atol=1e-9)
        np.testing.assert_allclose(together.factor.scale[k], alone.factor.scale, atol=1e-9)


def test_32_bits_are_close_to_64() -> None:
    method = pf.FBGVI(expectation="gauss_hermite", num_steps=300, whiten=None)
    double, _ = iterate(method, regression(), steps=300)
    with jax.enable_x64(False):
        single, _ = run(method, regression(), jax.random.key(0), jnp.zeros(3, jnp.float32), steps=300)
        assert single.mean.dtype == jnp.float32
        found = np.asarray(single.mean), np.asarray(single.factor.covariance())
    np.testing.assert_allclose(found[0], double.mean, atol=1e-3)
    np.testing.assert_allclose(found[1], double.factor.covariance(), atol=1e-3)


def test_draws_that_are_not_finite_are_left_out_and_counted() -> None:
    # Infinite beyond 2.5: the rest is averaged over what is left.
    walled = pf.Target.from_log_density(lambda x: jnp.where(x[0] > 2.5, jnp.nan, -0.5 * x[0] ** 2), np.zeros(1))
    method = pf.FBGVI(step_size=0.3, num_steps=400, skip_nonfinite=True)
    for expectation in ("price", "stein"):
        state, _ = iterate(dataclasses.replace(method, expectation=expectation), walled, steps=400)
        assert int(state.failure) == 0
        assert int(state.skipped) > 0
        assert float(state.factor.trace()) == pytest.approx(1.0, abs=0.05)
    said = r"FBGVI: the log density \(nan\) .* at the draw \[[2-9]\.\d+\] of iteration \d+; give the support"
    with pytest.raises(pf.NonFinite, match=said):
        pf.fit(walled, pf.FBGVI(step_size=0.3, num_steps=400), start=np.zeros(1), progress=False)
