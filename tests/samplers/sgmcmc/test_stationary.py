"""SGLD and SGHMC on a normal posterior: means, and variances with their known bias, against a recursion of matrices.

For a linear-Gaussian model each kernel is an affine map of the state with added noise; that of the mini-batches has a
covariance that is quadratic in u − c, so that its mean over u follows from the covariance of u. The recursion of that
covariance is written here in NumPy, with none of the package's code.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.target import Target
from pushforward.samplers.sgmcmc.centre import find_centre

N, NOISE, PRIOR = 40, 0.7, 3.0
RNG = np.random.default_rng(5)
X = RNG.normal(size=(N, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])
Y = X @ np.array([0.5, -1.0]) + NOISE * RNG.normal(size=N)
HESSIAN = X.T @ X / NOISE**2 + np.eye(2) / PRIOR**2
COVARIANCE = np.linalg.inv(HESSIAN)
MEAN = COVARIANCE @ X.T @ Y / NOISE**2


def log_prior(p):
    return -0.5 * jnp.sum(p**2) / PRIOR**2


def log_likelihood(p, row):
    return -0.5 * (row["y"] - row["x"] @ p) ** 2 / NOISE**2


@pytest.fixture(scope="module")
def target():
    return Target.from_factors(log_prior, log_likelihood, {"x": X, "y": Y}, np.zeros(2))


def gradient_noise(covariance, batch, control):
    """Cov of (n/b) Σ ∇ℓᵢ, or of its difference to that at the mode, over with-replacement batches; u ~ (m, covariance).

    ∇ℓᵢ(u) = xᵢ (yᵢ − xᵢᵀu)/s², so the difference is −xᵢ xᵢᵀ (u − c)/s². Averaged over u as stationarity needs it.
    """
    a = np.einsum("ni,nj->nij", X, X) / NOISE**2  # curvature of each row
    residual = X * (Y - X @ MEAN)[:, None] / NOISE**2
    second = np.einsum("nij,jk,nlk->il", a, covariance, a) / N
    mean = a.mean(0)
    second -= mean @ covariance @ mean
    if not control:
        second += np.cov(residual.T, bias=True)
    return N**2 / batch * second


def stationary(sampler, step, batch, control, wrong=1.0):
    """Covariance of u under a sampler in the coordinates u = m + S z with S Sᵀ = H⁻¹; ``wrong`` scales its noise."""
    root = np.linalg.cholesky(COVARIANCE)
    eye, nothing = np.eye(2), np.zeros((2, 2))
    state = np.eye(2)  # of z, where the curvature is 1

    def heat(z):
        return step**2 * root.T @ gradient_noise(root @ z @ root.T, batch, control) @ root

    kick = np.block([[eye, nothing], [-0.5 * step * eye, eye]])
    drift = np.block([[eye, step * eye], [nothing, eye]])
    full = np.block([[eye, nothing], [-step * eye, (1 - FRICTION * step) * eye]])
    for _ in range(3000):
        if sampler == "SGLD":
            new = (1 - step) ** 2 * state + 2 * step * wrong * eye + heat(state)
        else:
            joint = kick @ np.block([[state, nothing], [nothing, wrong * eye]]) @ kick.T
            joint[2:, 2:] += heat(state) / 4
            for _ in range(STEPS - 1):
                moved = drift @ joint @ drift.T
                joint = full @ moved @ full.T
                joint[2:, 2:] += heat(moved[:2, :2]) + 2 * FRICTION * step * eye
            new = (drift @ joint @ drift.T)[:2, :2]
        done, state = np.abs(new - state).max() < 1e-10, new
        if done:
            break
    return root @ state @ root.T


STEPS, FRICTION = 5, 0.3
CASES = {
    "SGLD, all data": (pf.SGLD(step_size=0.4, batch_size=4000), "SGLD", 0.4, 4000, True),
    "SGLD, control variates": (pf.SGLD(step_size=0.4, batch_size=4), "SGLD", 0.4, 4, True),
    "SGLD, mini-batches alone": (
        pf.SGLD(step_size=0.15, batch_size=4, control_variates=False), "SGLD", 0.15, 4, False,
    ),
    "SGHMC, control variates": (
        pf.SGHMC(step_size=0.4, batch_size=4, num_integration_steps=STEPS, friction=FRICTION), "SGHMC", 0.4, 4, True,
    ),
    "SGHMC, mini-batches alone": (
        pf.SGHMC(step_size=0.25, batch_size=8, control_variates=False, num_integration_steps=STEPS, friction=FRICTION),
        "SGHMC", 0.25, 8, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_variance_is_the_known_one_and_not_the_posterior_s(target, name):
    method, sampler, step, batch, control = CASES[name]
    posterior = pf.fit(
        target, method, key=3, num_samples=6000, num_warmup=200, num_chains=16, chains_per_program=16, progress=False
    )
    expected = stationary(sampler, step, batch, control)
    root = np.linalg.cholesky(expected)
    z = np.linalg.solve(root, (posterior.draws()["x"].reshape(-1, 2) - MEAN).T).T
    chains = z.reshape(16, -1, 2)
    mean_error = chains.mean(1).std(0, ddof=1) / 4
    assert np.all(np.abs(z.mean(0)) < 5 * mean_error)
    squares = np.einsum("csi,csj->cij", chains, chains) / chains.shape[1]
    error = squares.std(0, ddof=1) / 4
    assert np.all(np.abs(squares.mean(0) - np.eye(2)) < 5 * error + 1e-3), squares.mean(0)
    # The test can see the bias, and a noise that is 10 % off.
    resolved = 5 * error.max() + 1e-3
    truth = np.linalg.solve(root, COVARIANCE) @ np.linalg.inv(root).T
    assert np.abs(truth - np.eye(2)).max() > resolved or name.endswith("control variates")
    wrong = np.linalg.solve(root, stationary(sampler, step, batch, control, wrong=1.1)) @ np.linalg.inv(root).T
    assert np.abs(wrong - np.eye(2)).max() > resolved


def test_predicted_variances_are_those_of_the_recursion():
    """`variance`, from which the step size is chosen, against the matrices above, for noise of one size."""
    for method, sampler, step, *_ in CASES.values():
        for noise in (0.0, 0.7):
            state = 1.0
            for _ in range(4000):
                if sampler == "SGLD":
                    state = (1 - step) ** 2 * state + 2 * step + step**2 * noise
                else:
                    z, zp, p = state, 0.0, 1.0
                    zp, p = zp - 0.5 * step * z, p - step * zp + 0.25 * step**2 * z + 0.25 * step**2 * noise
                    for i in range(STEPS):
                        z, zp = z + 2 * step * zp + step**2 * p, zp + step * p
                        if i + 1 < STEPS:
                            keep = 1 - FRICTION * step
                            p = keep**2 * p - 2 * keep * step * zp + step**2 * z
                            p += 2 * FRICTION * step + step**2 * noise
                            zp = keep * zp - step * z
                    state = z
            np.testing.assert_allclose(method.variance(step, 1.0, noise), state, rtol=1e-8)


def test_the_centre_is_the_mode_with_its_curvature_and_noise(target):
    with jax.enable_x64(True):
        centre = find_centre(jax.random.key(0), target, jnp.ones(2), batch_size=4, control=True, precondition=True)
    np.testing.assert_allclose(centre.point, MEAN, atol=1e-8)
    root = np.asarray(centre.scale)
    np.testing.assert_allclose(root @ root.T, COVARIANCE, rtol=1e-8)
    np.testing.assert_allclose(centre.gradient, MEAN / PRIOR**2, atol=1e-8)  # against that of the prior
    np.testing.assert_allclose(centre.curvature, 1.0, rtol=1e-8)
    expected = np.linalg.eigvalsh(root.T @ gradient_noise(COVARIANCE, 4, True) @ root).max()
    np.testing.assert_allclose(centre.noise, expected, rtol=0.6)  # from eight points
    with jax.enable_x64(True):
        plain = find_centre(jax.random.key(0), target, jnp.ones(2), batch_size=4, control=False, precondition=False)
    np.testing.assert_allclose(plain.curvature, np.linalg.eigvalsh(HESSIAN).max(), rtol=1e-8)
    np.testing.assert_allclose(plain.scale, 1.0)


def test_control_variates_leave_the_gradient_unbiased_and_quieter(target):
    method = pf.SGLD(batch_size=1)
    with jax.enable_x64(True):
        start = [jnp.ones(2)]
        prepared = method.prepare(jax.random.key(0), target, start)
        plain = dataclasses.replace(prepared, control_variates=False)
        u = jnp.asarray(MEAN + 0.3 * np.sqrt(np.diagonal(COVARIANCE)))
        singles = jnp.arange(N)[:, None]
        with_control, without = (
            np.asarray(jax.vmap(lambda i, m=m: m.gradient(target, u, i))(singles)) for m in (prepared, plain)
        )
        exact = prepared.centre.scale.T @ jax.grad(target.log_density)(u)
    np.testing.assert_allclose(with_control.mean(0), exact, rtol=1e-8)
    np.testing.assert_allclose(without.mean(0), exact, rtol=1e-8)
    assert np.all(with_control.std(0) < 0.5 * without.std(0))
