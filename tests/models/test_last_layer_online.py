"""Closed forms given features and noise, and their updates by one row after another."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.models.last_layer.acquisition import log_expected_improvement
from pushforward.models.last_layer.discriminative import SoftmaxHead
from pushforward.models.last_layer.online import condition, conjugate, rank_one
from pushforward.models.last_layer.regression import NormalHead, StudentTHead

RNG = np.random.default_rng(0)
PHI, Y = RNG.normal(size=(12, 4)), RNG.normal(size=(12, 2))
HEADS = [
    NormalHead("dense_precision", prior_scale=(0.5, 1.0, 2.0, 3.0), noise=(0.3, 1.5)),
    StudentTHead("dense_precision", prior_scale=2.0, shape=2.0, rate=1.5),
]


@pytest.fixture(autouse=True)
def in_64_bits():
    with jax.enable_x64(True):
        yield


def prior_of(head: Any) -> Any:
    """The head before any row: q is the prior."""
    head = head.build(jax.random.key(0), 4, Y)
    precision = jnp.broadcast_to(jnp.diag(1 / head.prior), (2, 4, 4))
    from pushforward.models.last_layer.covariance import from_precision

    return dataclasses.replace(head, weights=from_precision("dense_precision", jnp.zeros((2, 4)), precision))


def test_the_factor_of_a_rank_one_update() -> None:
    a, x = RNG.normal(size=(5, 5)), RNG.normal(size=5)
    factor = np.linalg.cholesky(a @ a.T + np.eye(5))
    expected = np.linalg.cholesky(factor @ factor.T + np.outer(x, x))
    image = np.linalg.solve(factor, x)
    np.testing.assert_allclose(rank_one(jnp.asarray(factor), jnp.asarray(image)), expected, atol=1e-13)
    many = jax.lax.fori_loop(
        0, 500, lambda _, f: rank_one(f, jax.scipy.linalg.solve_triangular(f, x, lower=True)), jnp.asarray(factor)
    )
    np.testing.assert_allclose(many @ many.T, factor @ factor.T + 500 * np.outer(x, x), rtol=1e-10)


@pytest.mark.parametrize("head", HEADS, ids=["normal", "student"])
def test_rows_one_by_one_in_any_order_are_the_batch(head: Any) -> None:
    batch = jax.jit(conjugate)(prior_of(head), PHI, Y)
    for order in (np.arange(12), np.random.default_rng(1).permutation(12)):
        found = condition(prior_of(head), jnp.asarray(PHI[order]), jnp.asarray(Y[order]))
        for one, other in zip(jax.tree.leaves(batch), jax.tree.leaves(found), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("head", HEADS, ids=["normal", "student"])
@pytest.mark.parametrize("form", ["dense", pytest.param("dense_precision", marks=pytest.mark.slow), "diagonal"])
def test_the_closed_form_is_where_the_bound_is_stationary(head: Any, form: str) -> None:
    best = jax.jit(conjugate)(dataclasses.replace(head, covariance=form).build(jax.random.key(0), 4, Y), PHI, Y)
    names = ("weights",) if isinstance(head, NormalHead) else ("weights", "log_shape", "log_rate")
    fields = {name: getattr(best, name) for name in names}
    gradient = jax.jit(jax.grad(lambda f: dataclasses.replace(best, **f).loss(PHI, Y, 12)))(fields)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradient)) < 1e-10


def test_epistemic_variance_never_grows_with_data() -> None:
    head, points = prior_of(HEADS[0]), RNG.normal(size=(20, 4))
    before, with_row = head.weights.quadratic(points), jax.jit(condition)
    for i in range(5):
        head = with_row(head, jnp.asarray(PHI[i : i + 1]), jnp.asarray(Y[i : i + 1]))
        after = head.weights.quadratic(points)
        assert np.all(np.asarray(after) <= np.asarray(before) + 1e-14)
        before = after


def test_what_has_no_closed_form_is_refused() -> None:
    with pytest.raises(pf.InvalidArgument, match="NormalHead or a StudentTHead, got SoftmaxHead"):
        conjugate(SoftmaxHead(num_classes=2).build(jax.random.key(0), 4, np.array([0, 1])), PHI, Y)
    with pytest.raises(pf.InvalidArgument, match="factor of the precision, got covariance='dense'"):
        condition(NormalHead().build(jax.random.key(0), 4, Y), PHI, Y)
    with pytest.raises(pf.InvalidArgument, match="'low_rank' has no closed form"):
        conjugate(NormalHead("low_rank", rank=1).build(jax.random.key(0), 4, Y), PHI, Y)


def test_log_expected_improvement_far_below_the_best() -> None:
    """Against quadrature of ∫ t exp(zt − t²/2) dt, then the asymptotic series; its slope by `best` is −Φ(z)/EI."""
    import scipy.integrate
    import scipy.stats as st

    for mean, sd, best in ((1.0, 0.5, 0.3), (0.0, 1.0, 0.9), (0.0, 2.0, 2.4), (0.0, 1.0, 6.0), (0.0, 1.0, 30.0)):
        z = (mean - best) / sd
        value, _ = scipy.integrate.quad(lambda t, z=z: t * np.exp(z * t - 0.5 * t * t), 0, 40, epsabs=0, epsrel=1e-12)
        expected = np.log(sd) + st.norm.logpdf(z) + np.log(value)
        assert float(log_expected_improvement(mean, sd, best)) == pytest.approx(expected, rel=1e-10)
    far = np.array([500.0, 1e3, 1e5])
    series = st.norm.logpdf(far) - 2 * np.log(far) + np.log1p(-3 / far**2)
    np.testing.assert_allclose(log_expected_improvement(0.0, 1.0, far), series, atol=1e-9, rtol=0)
    slope = jax.vmap(jax.grad(lambda b: log_expected_improvement(0.0, 1.0, b)))(
        jnp.array([-3.0, 0.99, 1.01, 20.0, 1e4])
    )
    assert np.isfinite(slope).all()
    z = -np.array([-3.0, 0.99, 1.01, 20.0])
    expected = -st.norm.cdf(z) / np.exp([float(log_expected_improvement(0.0, 1.0, -a)) for a in z])
    np.testing.assert_allclose(slope[:4], expected, rtol=1e-8)
