"""Variational methods on mini-batches: a linear regression, whose posterior is a Gaussian in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf

N, D, BATCH = 4000, 4, 40


@pytest.fixture(scope="module")
def regression():
    """Target, mean and covariance."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D))
    y = x @ np.arange(1, D + 1) + 2 * rng.standard_normal(N)
    target = pf.Target.from_factors(
        lambda b: -0.5 * b @ b / 9, lambda b, row: -0.5 * ((row[1] - row[0] @ b) / 2) ** 2, (x, y), jnp.zeros(D)
    )
    covariance = np.linalg.inv(np.eye(D) / 9 + x.T @ x / 4)
    return target, covariance @ x.T @ y / 4, covariance


def errors(method, regression):
    """Of the means in standard deviations, of the standard deviations in parts."""
    target, mean, covariance = regression
    found = pf.fit(target, method, key=1, progress=False).approximation
    factor, sd = np.asarray(found.factor.dense()), np.sqrt(np.diag(covariance))
    return np.abs((np.asarray(found.loc) - mean) / sd).max(), np.abs(np.sqrt(np.diag(factor @ factor.T)) / sd - 1).max()


@pytest.mark.parametrize(
    "method",
    [
        pf.FBGVI(num_steps=400, batch_size=BATCH),
        pytest.param(pf.FBGVI(num_steps=1000, batch_size=BATCH, expectation="stein"), marks=pytest.mark.slow),
        pytest.param(pf.FBGVI(num_steps=1000, batch_size=BATCH, whiten=None), marks=pytest.mark.slow),
        pytest.param(pf.NGVI(num_steps=400, batch_size=BATCH), marks=pytest.mark.slow),
    ],
)
def test_gaussians_are_those_of_all_data(method, regression):
    """Noise of the remainder is about sqrt(d/b) of the curvature, and averages out over the last hundred steps."""
    mean, sd = errors(method, regression)
    assert mean < 0.01
    assert sd < 0.05


def test_without_control_variates_noise_remains_and_is_found(regression):
    target, mean, covariance = regression
    fitted = pf.fit(target, pf.FBGVI(num_steps=400, batch_size=BATCH, control_variates=False), key=1, progress=False)
    off = np.abs((np.asarray(fitted.approximation.loc) - mean) / np.sqrt(np.diag(covariance))).max()
    assert 0.1 < off < 10
    assert any(one.level == "warning" for one in fitted.diagnose().findings)


@pytest.mark.slow
def test_a_flow_is_that_of_all_data(regression):
    target, mean, covariance = regression
    method = pf.NormalizingFlow(num_steps=600, family="realnvp", batch_size=BATCH, plateau=None)
    found = pf.fit(target, method, key=1, progress=False).sample(20_000)["x"].reshape(-1, D)
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((found.mean(0) - mean) / sd).max() < 0.06
    assert np.abs(found.std(0) / sd - 1).max() < 0.05


def test_what_cannot_be_is_refused():
    with pytest.raises(pf.InvalidArgument, match="takes all data at each step, and batch_size is 8"):
        pf.FBGVI(expectation="gauss_hermite", batch_size=8)
    with pytest.raises(pf.InvalidArgument, match="batch_size=8 is of the observations"):
        pf.NormalizingFlow(draws=np.random.default_rng(0).standard_normal((30, 2)), batch_size=8)
    whole = pf.Target.from_log_density(lambda x: -0.5 * x @ x, jnp.zeros(2))
    for method in (pf.FBGVI(batch_size=8), pf.NormalizingFlow(batch_size=8)):
        with pytest.raises(pf.UnsupportedTarget, match="batch_size=8"):
            pf.fit(whole, method, progress=False)
