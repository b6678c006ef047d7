"""Objectives of log weights: their identities, their bounds, and the weights of doubly reparameterised draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.variational.objectives import (
    CIWAE,
    CUBO,
    ELBO,
    IWAE,
    PIWAE,
    ForwardKL,
    FunctionObjective,
    LogVariance,
    Objective,
    Renyi,
    WakeKL,
    as_objective,
)

LOG_W = np.random.default_rng(0).normal(size=(3, 5)) * 2


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def test_each_is_its_formula() -> None:
    w = np.exp(LOG_W)
    expected = [
        (ELBO(), LOG_W.mean()),
        (IWAE(5, 3), np.log(w.mean(1)).mean()),
        (CIWAE(0.3, 5, 3), 0.3 * LOG_W.mean() + 0.7 * np.log(w.mean(1)).mean()),
        (Renyi(0.4, 5, 3), (np.log((w**0.6).mean(1)) / 0.6).mean()),
        (Renyi(2.0, 5, 3), (-np.log((w**-1.0).mean(1))).mean()),
        (CUBO(2.0, 5, 3), (-np.log((w**2).mean(1)) / 2).mean()),
        (LogVariance(5, 3), (-0.5 * LOG_W.var(1, ddof=1)).mean()),
        (ForwardKL(np.zeros((2, 1))), -LOG_W.mean()),
        (WakeKL(5, 3), (np.log(w.mean(1)) - (w / w.sum(1, keepdims=True) * LOG_W).sum(1)).mean()),
    ]
    for objective, value in expected:
        assert float(objective(LOG_W)) == pytest.approx(value, rel=1e-12), objective
    assert float(PIWAE(5, 3)(LOG_W)) == pytest.approx(np.log(w.mean(1)).mean())
    assert float(PIWAE(5, 3).model(LOG_W)) == pytest.approx(np.log(w.mean()))


@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_identities(scale: float) -> None:
    x = LOG_W * scale  # weights that overflow must not matter
    value_and_grad = lambda objective: jax.value_and_grad(objective)(x)  # noqa: E731
    pairs = [
        (CIWAE(1.0, 5), ELBO()),
        (CIWAE(0.0, 5), IWAE(5)),
        (Renyi(0.0, 5), IWAE(5)),
        (as_objective(lambda w: jax.nn.logsumexp(w) - jnp.log(5.0), num_samples=5), IWAE(5)),
    ]
    for one, other in pairs:
        for a, b in zip(value_and_grad(one), value_and_grad(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(CUBO(1.0, 5)(x), -IWAE(5)(x), rtol=1e-12)
    # One draw a term: MIWAE is the ELBO.
    np.testing.assert_allclose(IWAE(1, 15)(x.reshape(15, 1)), ELBO()(x), rtol=1e-12)


@pytest.mark.parametrize(
    "objective",
    [
        ELBO(),
        IWAE(5),
        CIWAE(0.3, 5),
        PIWAE(5, 3),
        Renyi(0.4, 5),
        Renyi(-1.0, 5),
        Renyi(2.0, 5),
        CUBO(2.0, 5),
        CUBO(3.0, 5),
    ],
    ids=lambda o: type(o).__name__,
)
def test_coefficients_in_closed_form(objective: Objective) -> None:
    for mine, general in zip(objective.coefficients(LOG_W), Objective.coefficients(objective, LOG_W), strict=True):
        np.testing.assert_allclose(mine, general, rtol=1e-9, atol=1e-12)
    hessian = jax.hessian(lambda x: objective(x.reshape(3, 5)))(LOG_W.ravel())
    g, c = objective.coefficients(LOG_W)
    np.testing.assert_allclose(g - c, np.diag(hessian).reshape(3, 5), rtol=1e-9, atol=1e-12)


def test_iwae_weights_are_squared() -> None:
    w = np.exp(LOG_W[0]) / np.exp(LOG_W[0]).sum()
    g, c = IWAE(5).coefficients(LOG_W[:1])
    np.testing.assert_allclose(g[0], w, rtol=1e-12)
    np.testing.assert_allclose(c[0], w**2, rtol=1e-12)


def test_bounds_rise_with_the_number_of_draws() -> None:
    # π̃ = exp(log Z) N(0, 1), q = N(1, 1.5²): E log w is known, the others lie between it and log Z.
    log_z, rng = 0.7, np.random.default_rng(1)
    u = 1 + 1.5 * rng.normal(size=(20_000, 64))
    log_w = log_z - 0.5 * u**2 + 0.5 * ((u - 1) / 1.5) ** 2 + np.log(1.5)
    elbo = log_z - (np.log(1 / 1.5) + 0.5 * (1.5**2 + 1 - 1))
    values, errors = [], []
    for k in (1, 4, 16, 64):
        terms = np.asarray(IWAE(k).terms(log_w[:, :k]))
        values.append(terms.mean())
        errors.append(terms.std() / np.sqrt(len(terms)))
    assert values[0] == pytest.approx(elbo, abs=4 * errors[0])
    assert np.all(np.diff(values) > 0)
    assert values[-1] < log_z
    assert values[-1] == pytest.approx(log_z, abs=0.02)
    # E w² = Z² ∫ N(0,1)² / q, finite; the upper bound from all draws.
    v = 1 / (2 - 1 / 1.5**2)
    second = 1.5 * np.sqrt(2 * np.pi) / (2 * np.pi) * np.sqrt(2 * np.pi * v) * np.exp(0.5 / 1.5**2 + 0.5 * v / 1.5**4)
    assert -float(CUBO(2.0)(log_w.reshape(1, -1))) == pytest.approx(log_z + 0.5 * np.log(second), abs=0.01)
    assert second > 1


def test_user_functions_are_checked() -> None:
    with pytest.raises(pf.InvalidArgument, match=r"must map 8 log weights to one number, got .*\(8,\)"):
        as_objective(lambda w: w)
    with pytest.raises(pf.InvalidArgument, match="must be an Objective or a function of log weights, got 3"):
        as_objective(3)
    assert as_objective(IWAE(4)) == IWAE(4)
    assert FunctionObjective(jnp.mean, 4, 2).shape == (2, 4)


@pytest.mark.slow
def test_a_function_of_log_weights_is_fitted_through_the_face() -> None:
    # Its optimum is known: the mean of log w less λ times their variance is maximised by q = π alone, as the ELBO is.
    def cautious(log_w):
        return jnp.mean(log_w) - 0.5 * jnp.var(log_w)

    def log_density(x):
        return -0.5 * jnp.sum((x - jnp.array([1.0, -2.0])) ** 2 / jnp.array([0.5, 3.0]) ** 2)

    target = pf.Target.from_log_density(log_density, np.zeros(2))
    objective = pf.objectives.as_objective(cautious, num_samples=6, num_draws=4)
    fitted = {"num_layers": 2, "hidden": (8,), "num_steps": 150, "whiten": None, "learning_rate": 0.05, "anneal": 0}
    found = {}
    for estimator in (None, pf.estimators.Reparameterised()):
        method = pf.NormalizingFlow("realnvp", objective=objective, estimator=estimator, **fitted)
        posterior = pf.fit(target, method, key=0, num_samples=2000, progress=False)
        found[estimator] = posterior.elbo()[0]
    log_z = np.log(2 * np.pi * 0.5 * 3.0)
    assert found[None] == pytest.approx(log_z, abs=0.02)
    assert found[pf.estimators.Reparameterised()] == pytest.approx(log_z, abs=0.1)
    # By default as many draws as the built-in objectives have.
    assert pf.NormalizingFlow(objective=cautious).objective.shape == (8, 8)


def test_refusals() -> None:
    with pytest.raises(pf.InvalidArgument, match="num_samples must be a whole number >= 1, got 0"):
        IWAE(0)
    with pytest.raises(
        pf.InvalidArgument, match=r"alpha must be a finite number other than 1, got 1\.0; for 1 use ELBO"
    ):
        Renyi(1.0)
    with pytest.raises(pf.InvalidArgument, match=r"weight must lie between 0 .* got 2"):
        CIWAE(2)
    with pytest.raises(pf.InvalidArgument, match=r"order must be at least 1, got 0\.5"):
        CUBO(0.5)
    with pytest.raises(pf.InvalidArgument, match="num_samples must be a whole number >= 2, got 1"):
        LogVariance(1)
    with pytest.raises(pf.InvalidArgument, match=r"draws must be an array of shape \(n, d\), got shape \(3,\)"):
        ForwardKL(np.zeros(3))
