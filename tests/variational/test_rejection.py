"""Gradients through rejection samplers: unbiased for any shape, and wrong without their correction."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpyro.distributions import biject_to, constraints
from scipy.special import digamma, polygamma

import pushforward as pf
from pushforward.infer.variational.estimators import Reparameterised
from pushforward.infer.variational.objectives import ELBO
from pushforward.infer.variational.rejection import log_dirichlet, log_gamma, log_inverse_gamma, wishart
from pushforward.infer.variational.rejection_families import (
    BetaFamily,
    DirichletFamily,
    GammaFamily,
    StudentFamily,
    WishartFamily,
)

N = 30_000


@jax.jit
def draw(q):
    return q.sample_and_log_prob(jax.random.key(2), 4_000)


@partial(jax.jit, static_argnames=("boosts", "method"))
def tangents(alphas, *, boosts, method):
    """log z and log π of draws, and their derivatives in α, draw by draw; one program for all shapes."""
    sample = partial(log_gamma, jax.random.key(0), boosts=boosts, method=method)
    return jax.jvp(sample, (alphas,), (jnp.ones_like(alphas),))


def estimated(alpha, *, correct=True, boosts=4, method="auto"):
    """∂/∂α of E log z and of E z², with the mean as baseline: mean and standard error each."""
    draws, slopes = tangents(jnp.full(N, alpha), boosts=boosts, method=method)
    log_z, log_z_slope, accepted_slope = (np.asarray(x, float) for x in (draws[0], *slopes))
    result = []
    for f, slope in ((log_z, log_z_slope), (np.exp(2 * log_z), 2 * np.exp(2 * log_z) * log_z_slope)):
        found = slope + (correct * (f - f.mean()) * accepted_slope)
        result.append((found.mean(), found.std() / np.sqrt(N)))
    return result


@pytest.mark.parametrize(("alpha", "trigamma"), [(0.3, 12.24536), (1.2, 1.267377), (5.0, 0.2213230)])
@pytest.mark.parametrize("boosts", [0, 2])
def test_mean_logarithm_and_square(alpha: float, trigamma: float, boosts: int) -> None:
    if boosts == 0 and alpha < 1:
        pytest.skip("the proposal without boosts is that of shapes of at least 1")
    assert float(polygamma(1, alpha)) == pytest.approx(trigamma, rel=1e-6)
    with jax.enable_x64(True):
        found = estimated(alpha, method="rejection", boosts=boosts)
        for (mean, se), truth in zip(found, (trigamma, 2 * alpha + 1), strict=True):
            assert abs(mean - truth) < 4 * se
            assert se < 0.04 * truth


def test_without_the_correction_it_is_biased() -> None:
    with jax.enable_x64(True):
        mean, se = estimated(1.2, method="rejection", boosts=0, correct=False)[0]
        assert mean == pytest.approx(1.393, abs=4 * se + 1e-3)  # where 1.2674 is right
        assert abs(mean - 1.267377) > 10 * se
        # It shrinks with the boosts, which is why the authors drop it.
        mean, se = estimated(1.2, method="rejection", boosts=4, correct=False)[0]
        assert mean == pytest.approx(1.2687, abs=4 * se + 1e-3)


@pytest.mark.parametrize(("bits", "alpha"), [(32, 0.001), pytest.param(64, 0.01, marks=pytest.mark.slow)])
def test_small_shapes_choose_rejection(bits: int, alpha: float) -> None:
    truth = float(polygamma(1, alpha))
    with jax.enable_x64(bits == 64):
        mean, se = estimated(alpha)[0]
        assert abs(mean - truth) < 4 * se + 2e-4 * truth
        assert se < 0.04 * truth
        if alpha == 0.001:  # what JAX would have given
            implicit, _ = estimated(alpha, method="implicit")[0]
            assert implicit < 0.8 * truth
    # Implicit derivatives have no correction, rejected draws have one.
    accepted = log_gamma(jax.random.key(0), jnp.asarray([0.001, 0.5])).log_accepted
    assert accepted[0] != 0
    assert accepted[1] == 0


@pytest.mark.slow
def test_draws_have_the_distribution() -> None:
    rule = {"method": "rejection", "boosts": 2}
    with jax.enable_x64(True):
        z = np.exp(log_gamma(jax.random.key(1), jnp.full(4_000, 0.7), **rule).value)
        assert scipy.stats.kstest(z, scipy.stats.gamma(0.7).cdf).pvalue > 1e-4
        families = {
            scipy.stats.beta(0.5, 2.0): jax.nn.sigmoid,
            scipy.stats.t(3.0, 1.0, 0.5): lambda u: u,
            scipy.stats.gamma(0.5, scale=1 / 3.0): jnp.exp,
        }
        made = (
            BetaFamily(jnp.log(jnp.full(1, 0.5)), jnp.log(jnp.full(1, 2.0)), rule),
            StudentFamily(jnp.ones(1), jnp.log(jnp.full(1, 0.5)), jnp.log(jnp.full(1, 3.0)), rule),
            GammaFamily(jnp.log(jnp.full(1, 0.5)), jnp.log(jnp.full(1, 3.0)), rule),
        )
        for (law, constrain), q in zip(families.items(), made, strict=True):
            u, log_q = draw(q)
            x = np.asarray(constrain(u[:, 0]))
            assert scipy.stats.kstest(x, law.cdf).pvalue > 1e-4
            slope = np.asarray(jax.vmap(jax.grad(constrain))(u[:, 0]))
            np.testing.assert_allclose(log_q, law.logpdf(x) + np.log(slope), rtol=1e-8, atol=1e-8)


def test_dirichlet_in_stick_breaking_coordinates() -> None:
    alpha = np.array([0.4, 1.5, 3.0, 0.8])
    with jax.enable_x64(True):
        q = DirichletFamily(jnp.log(alpha), {"method": "rejection"})
        u, log_q = draw(q)
        transform = biject_to(constraints.simplex)
        x = transform(u)
        np.testing.assert_allclose(x.mean(0), alpha / alpha.sum(), atol=4 * 0.3 / np.sqrt(4_000))
        for i in range(3):
            log_det = transform.log_abs_det_jacobian(u[i], x[i])
            expected = scipy.stats.dirichlet(alpha).logpdf(np.asarray(x[i])) + log_det
            assert float(log_q[i]) == pytest.approx(float(expected), rel=1e-9)
        # At shapes where most parts are zero in floating point the logarithms stay finite.
        log_x, accepted = log_dirichlet(jax.random.key(1), jnp.full((100, 5), 1e-3))
        assert np.all(np.isfinite(log_x))
        assert accepted.shape == (100,)


def test_gradient_of_the_elbo_is_that_of_the_divergence() -> None:
    # q = Gamma(α, 1), π = Gamma(a, b): KL = (α − a) ψ(α) − log Γ(α) + log Γ(a) − a log b + α (b − 1).
    a, b, alpha = 2.0, 0.5, 0.6
    with jax.enable_x64(True):
        target = lambda u: a * u[0] - b * jnp.exp(u[0])  # noqa: E731
        exact = -alpha * ((alpha - a) * float(polygamma(1, alpha)) + b - 1)
        q = GammaFamily(jnp.log(jnp.full(1, alpha)), jnp.zeros(1), {"method": "rejection", "boosts": 1})
        once = jax.jit(
            lambda key: Reparameterised().value_and_grad(ELBO(64), q, target, key).grads.log_concentration[0]
        )
        found = np.asarray(jax.lax.map(once, jax.random.split(jax.random.key(0), 800), batch_size=100))
        assert found.mean() == pytest.approx(exact, abs=4 * found.std() / np.sqrt(800))
        assert found.std() / np.sqrt(800) < 0.02 * abs(exact)


# The shapes of Bartlett's gammas are (ν − i) / 2: 0.05 for the last of three at ν = 2.1.
@pytest.mark.parametrize(("df", "boosts"), [(2.1, 2), (6.0, 0)])
def test_wishart_by_bartlett(df: float, boosts: int) -> None:
    scale_tril = np.array([[1.0, 0, 0], [0.4, 0.8, 0], [-0.3, 0.5, 1.3]])
    halves = 0.5 * (df - np.arange(3))

    @jax.jit
    def draws(df):
        one = lambda key: wishart(key, df, jnp.asarray(scale_tril), method="rejection", boosts=boosts)  # noqa: E731
        return jax.vmap(one)(jax.random.split(jax.random.key(0), N))

    with jax.enable_x64(True):
        (tril, _), (slope, accepted) = jax.jvp(draws, (df,), (1.0,))
        tril, slope, accepted = (np.asarray(x) for x in (tril, slope, accepted))
        log_det = 2 * np.log(np.diagonal(tril, axis1=1, axis2=2)).sum(1)
        log_det_slope = 2 * (np.diagonal(slope, axis1=1, axis2=2) / np.diagonal(tril, axis1=1, axis2=2)).sum(1)
        trace, trace_slope = (tril**2).sum((1, 2)), 2 * (tril * slope).sum((1, 2))
        scale = scale_tril @ scale_tril.T
        exact = {  # E log|W| = Σ ψ((ν − i)/2) + p log 2 + log|S|, E tr W = ν tr S
            "log det": (np.sum(digamma(halves)) + 3 * np.log(2) + np.linalg.slogdet(scale)[1], log_det),
            "its slope": (0.5 * np.sum(polygamma(1, halves)), log_det_slope + (log_det - log_det.mean()) * accepted),
            "trace": (df * np.trace(scale), trace),
            "its slope in ν": (np.trace(scale), trace_slope + (trace - trace.mean()) * accepted),
        }
        for name, (truth, found) in exact.items():
            se = found.std() / np.sqrt(N)
            assert abs(found.mean() - truth) < 4 * se, name
            assert se < 0.03 * abs(truth), name
        if boosts == 0:  # without the correction the slope is wrong
            wrong = log_det_slope.mean() - exact["its slope"][0]
            assert abs(wrong) > 4 * log_det_slope.std() / np.sqrt(N)


def test_wishart_family_has_the_density() -> None:
    with jax.enable_x64(True):
        q = WishartFamily(jnp.log(2.5), jnp.array([0.1, -0.2, 0.3]), jnp.array([0.4, -0.3, 0.5]))
        u, log_q = jax.jit(lambda key: q.sample_and_log_prob(key, 3))(jax.random.key(0))
        law = scipy.stats.wishart(float(q.df), np.asarray(q.scale_tril @ q.scale_tril.T))
        for x, found in zip(np.asarray(u), log_q, strict=True):
            tril = np.diag(np.exp(x[:3]))
            tril[np.tril_indices(3, -1)] = x[3:]
            # |∂W/∂L| = 2^p Π L_ii^(p − i), and L_ii = exp(u_i).
            log_jacobian = 3 * np.log(2) + np.sum((3 - np.arange(3) + 1) * x[:3])
            assert float(found) == pytest.approx(law.logpdf(tril @ tril.T) + log_jacobian, rel=1e-10)


def test_inverse_gamma_is_the_inverse() -> None:
    with jax.enable_x64(True):
        alphas = jnp.full(N, 4.0)
        sample = partial(log_inverse_gamma, jax.random.key(0), method="rejection", boosts=1)
        draws, slopes = jax.jit(lambda a: jax.jvp(sample, (a,), (jnp.ones_like(a),)))(alphas)
        z = np.exp(draws.value)
        found = np.asarray(z * slopes.value + (z - z.mean()) * slopes.log_accepted)
        assert z.mean() == pytest.approx(1 / 3, abs=4 * z.std() / np.sqrt(N))
        assert found.mean() == pytest.approx(-1 / 9, abs=4 * found.std() / np.sqrt(N))


def test_refusals() -> None:
    with pytest.raises(pf.InvalidArgument, match="method must be one of 'auto', 'rejection', 'implicit', got 'x'"):
        log_gamma(jax.random.key(0), jnp.ones(2), method="x")
    with pytest.raises(pf.InvalidArgument, match="boosts must be a whole number >= 0, got -1"):
        log_gamma(jax.random.key(0), jnp.ones(2), boosts=-1)
    with pytest.raises(pf.InvalidArgument, match=r"at least 2 entries, got shape \(1,\)"):
        DirichletFamily(jnp.zeros(1))
    with pytest.raises(pf.InvalidArgument, match=r"scale_tril must be a square .* got shape \(2, 3\)"):
        wishart(jax.random.key(0), jnp.asarray(3.0), jnp.ones((2, 3)))
    with pytest.raises(pf.InvalidArgument, match=r"entries for p = 3 rows, got shape \(2,\)"):
        WishartFamily(jnp.zeros(()), jnp.zeros(3), jnp.zeros(2))
