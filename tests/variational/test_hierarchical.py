"""Families with an auxiliary variable: unbiased for Z whatever the reverse model, and tighter the more it draws."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import pushforward as pf
from pushforward.infer.variational.estimators import Reparameterised, StickingTheLanding, check
from pushforward.infer.variational.hierarchical import Hierarchical
from pushforward.infer.variational.objectives import ELBO

from .small_families import Normal

SLOPE, NOISE, PRIOR_SD = 0.9, 0.6, 1.3


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def normal(loc, sd):
    return Normal(jnp.atleast_1d(loc), jnp.log(jnp.atleast_1d(jnp.asarray(sd, float))))


class Linear(eqx.Module):
    """x ↦ N(slope x, sd²)."""

    slope: Array
    sd: Array

    def __call__(self, x):
        return normal(self.slope * x, self.sd)


def family(num_auxiliary, *, exact=False, slope=0.3, sd=0.9):
    """v ~ N(0, 1), u | v ~ N(0.9 v, 0.6²), so that u ~ N(0, 1.17); r(v | u) exact, or not."""
    variance = SLOPE**2 + NOISE**2
    if exact:
        slope, sd = SLOPE / variance, NOISE / np.sqrt(variance)
    conditional, reverse = Linear(jnp.asarray(SLOPE), jnp.asarray(NOISE)), Linear(jnp.asarray(slope), jnp.asarray(sd))
    return Hierarchical(normal(0.0, 1.0), conditional, reverse, num_auxiliary), variance


def log_density(u):
    """N(0, 1.3²) times exp 0.4."""
    return 0.4 + jnp.sum(-0.5 * (u / PRIOR_SD) ** 2 - jnp.log(PRIOR_SD) - 0.5 * jnp.log(2 * jnp.pi))


@jax.jit
def log_weights(q):
    u, log_q = q.sample_and_log_prob(jax.random.key(0), 100_000)
    return jax.vmap(log_density)(u) - log_q


def mean_and_error(x):
    return float(np.mean(x)), float(np.std(x) / np.sqrt(len(x)))


def test_with_the_exact_reverse_model_the_density_is_the_marginal_one() -> None:
    q, variance = family(2, exact=True)
    u, log_q = q.sample_and_log_prob(jax.random.key(1), 10)
    exact = -0.5 * u[:, 0] ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    np.testing.assert_allclose(log_q, exact, rtol=1e-10)


def test_bounds_between_the_joint_and_the_marginal_one() -> None:
    # ELBO of the marginal: 0.4 − KL(N(0, 1.17) ‖ N(0, 1.69)). For K = 0 it is lower by E KL(q(v | u) ‖ r(v | u)).
    _, variance = family(0)
    marginal = 0.4 - 0.5 * (variance / PRIOR_SD**2 - 1 - np.log(variance / PRIOR_SD**2))
    true_slope, true_variance = SLOPE / variance, NOISE**2 / variance
    gap = 0.5 * ((true_variance + (true_slope - 0.3) ** 2 * variance) / 0.81 - 1 - np.log(true_variance / 0.81))
    found = [mean_and_error(log_weights(family(k)[0])) for k in (0, 1, 4, 30)]
    assert found[0][0] == pytest.approx(marginal - gap, abs=4 * found[0][1])
    assert np.all(np.diff([value for value, _ in found]) > 4 * found[0][1])
    assert found[-1][0] < marginal + 4 * found[-1][1]
    assert found[-1][0] == pytest.approx(marginal, abs=0.05 * gap)


@pytest.mark.parametrize("num_auxiliary", [0, 3])
def test_the_evidence_is_unbiased_for_every_reverse_model(num_auxiliary: int) -> None:
    # No wider than √2 times the exact one, or the weights have no variance.
    mean, error = mean_and_error(np.exp(log_weights(family(num_auxiliary, slope=0.6, sd=0.6)[0])))
    assert mean == pytest.approx(np.exp(0.4), abs=4 * error)
    assert error < 0.02
    # With one weight too few in the mean it is not.
    if num_auxiliary:
        assert abs(mean * num_auxiliary / (num_auxiliary + 1) - np.exp(0.4)) > 10 * error


def test_semi_implicit_is_the_prior_as_reverse_model() -> None:
    q, variance = family(200)
    q = Hierarchical(q.prior, q.conditional, num_auxiliary=200)
    u, log_q = q.sample_and_log_prob(jax.random.key(1), 500)
    exact = -0.5 * u[:, 0] ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
    assert np.mean(log_q - exact) == pytest.approx(0, abs=0.02)


def test_its_gradient_is_that_of_the_bound() -> None:
    # Reverse model at its optimum: ∂ELBO/∂slope of u | v is that of −KL of the marginal normal.
    q, variance = family(0, exact=True)
    found = jax.jit(
        lambda key: Reparameterised().value_and_grad(ELBO(20_000), q, log_density, key).grads.conditional.slope
    )(jax.random.key(0))
    assert float(found) == pytest.approx(-SLOPE * (1 / PRIOR_SD**2 - 1 / variance), abs=0.03)
    with pytest.raises(pf.InvalidArgument, match="needs log_prob, which Hierarchical lacks"):
        check(ELBO(), StickingTheLanding(), q)
    with pytest.raises(pf.InvalidArgument, match="num_auxiliary must be a whole number >= 0, got -1"):
        Hierarchical(q.prior, q.conditional, num_auxiliary=-1)
