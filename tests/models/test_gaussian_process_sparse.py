"""Rules of q on the sparse prior (mean field, Laplace), and mini-batches of its columns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from scipy.special import gammaln

import pushforward as pf
from pushforward.infer.variational.sparse_cholesky.factor import forward
from pushforward.infer.variational.sparse_cholesky.ordering import maximin
from pushforward.models import LatentGP
from pushforward.models.gaussian_process import kernels, likelihoods
from pushforward.models.gaussian_process.fixed_point import settle
from pushforward.models.gaussian_process.pattern import Extent, build_pattern, make_problem
from pushforward.models.gaussian_process.stochastic import Variables, estimate


def counts(n=25, seed=4):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, 2))
    y = rng.poisson(np.exp(0.3 + 1.2 * np.sin(6 * x[:, 0]))).astype(float)
    return LatentGP(kernels.Matern32(np.array([0.4, 0.6]), 0.8), likelihoods.Poisson(), x, y, nugget=1e-3)


def dense(s, values):
    """A factor as a matrix, in maximin order."""
    n = values.shape[0]
    out = np.zeros((n + 1, n))
    out[np.asarray(s.columns), np.arange(n)[:, None]] = np.asarray(values)
    return out[:n]


def run(gp, method):
    return pf.fit(gp, method, num_samples=10, progress=False)


@pytest.mark.slow
def test_mean_field_is_the_best_independent_q():
    """Of all diagonal covariances; its mean is that of the full factor, its terms are those of dense algebra."""
    x = counts(40).X
    y = np.sin(6 * x[:, 0]) + np.random.default_rng(0).normal(size=40)
    gp = LatentGP(kernels.Matern32(0.4), likelihoods.Gaussian(1.0), x, y, nugget=1e-4)
    full = run(gp, pf.DoubleKL(rho=2.0, learn=False)).approximation
    q = run(gp, pf.DoubleKL(rho=2.0, learn=False, mean_field=True)).approximation
    np.testing.assert_allclose(q.loc, full.loc, atol=1e-9)
    with jax.enable_x64(True):
        s = q.gp.factors_of
        u = dense(s, gp.columns(s))
        order = np.asarray(s.order)
        mean, v = np.asarray(q.loc)[order], np.asarray(q.variance)[order]
        np.testing.assert_allclose(np.asarray(q.covariance()), np.diag(q.variance), atol=1e-12)

    def bound(variance):
        fit = -0.5 * np.sum(np.log(2 * np.pi) + (y[order] - mean) ** 2 + variance)
        white = u.T @ mean
        kl = 0.5 * (white @ white + variance @ (u**2).sum(1) - 40 - np.log(variance).sum()) - np.log(u.diagonal()).sum()
        return fit - kl

    assert float(q.elbo) == pytest.approx(bound(v), abs=1e-8)
    slope = [(bound(v * np.exp(step)) - bound(v * np.exp(-step))) / 2e-4 for step in 1e-4 * np.eye(40)]
    assert np.max(np.abs(slope)) < 1e-6
    assert float(q.elbo) < float(full.elbo) - 0.5
    assert np.all(v < np.asarray(full.variance)[order])
    assert np.median(v / np.asarray(full.variance)[order]) < 0.8


def laplace(gp, free):
    """Mode, covariance and evidence of a dense Laplace approximation with counts, by Newton's method in NumPy."""
    with jax.enable_x64(True):
        k = np.asarray(gp.with_free(jnp.asarray(free)).covariance(jnp.asarray(gp.X)))
    f, y = np.zeros(len(k)), np.asarray(gp.y)
    for _ in range(100):
        rate = np.exp(f)
        b = np.eye(len(k)) + k * rate
        f = np.linalg.solve(b, k @ (rate * f + y - rate))
    rate = np.exp(f)
    fit = np.sum(y * f - rate - gammaln(y + 1))
    evidence = fit - 0.5 * f @ np.linalg.solve(k, f) - 0.5 * np.linalg.slogdet(np.eye(len(k)) + k * rate)[1]
    return f, np.linalg.inv(np.linalg.inv(k) + np.diag(rate)), evidence


def test_vecchia_laplace_with_all_neighbours_is_laplace():
    gp = counts()
    q = run(gp, pf.VecchiaLaplace(neighbors=24, learn=False, tolerance=1e-9)).approximation
    with jax.enable_x64(True):
        free = np.asarray(gp.free())
        covariance = np.asarray(q.covariance())
    mode, expected, evidence = laplace(gp, free)
    np.testing.assert_allclose(q.loc, mode, atol=1e-8)
    np.testing.assert_allclose(covariance, expected, atol=1e-8)
    assert float(q.elbo) == pytest.approx(evidence, abs=1e-7)
    # A new observation: as of a fit with it.
    more = q.condition(np.array([[0.5, 0.5]]), [3.0], tolerance=1e-9)
    both = dataclasses.replace(gp, X=np.vstack([gp.X, [[0.5, 0.5]]]), y=np.append(gp.y, 3.0))
    assert float(more.elbo) == pytest.approx(laplace(both, free)[2], abs=0.05)  # 24 neighbours of 25
    np.testing.assert_allclose(more.loc, laplace(both, free)[0], atol=0.01)


@pytest.mark.slow
def test_gradient_of_laplace_evidence_follows_the_mode():
    """Finite differences of the dense evidence see the curvature change with the mode; leaving that out fails."""
    gp = counts()
    with jax.enable_x64(True):
        gp = jax.tree.map(jnp.asarray, gp)
        method = pf.VecchiaLaplace(neighbors=24, num_probes=4000).prepare(jax.random.key(0), gp, np.zeros(1))
        state = method.init(jax.random.key(0), gp, None)
        mode, covariance, evidence = laplace(gp, gp.free())
        state = dataclasses.replace(state, mean=jnp.asarray(mode), variance=jnp.asarray(covariance.diagonal()))
        learned = jax.jit(lambda m, s, g: m.step(jax.random.key(0), s, g, 0)[0])(method, state, gp)
        free = np.asarray(gp.free())
    slope = [(laplace(gp, free + e)[2] - laplace(gp, free - e)[2]) / 2e-4 for e in 1e-4 * np.eye(len(free))]
    found = np.asarray(learned.climb.gradient)
    assert np.all(np.abs(found - slope) < 0.02 * np.abs(slope).max()), (found, slope)
    assert float(learned.elbo) == pytest.approx(evidence, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["VecchiaLaplace", "DoubleKL"])
def test_learning_of_the_other_rules_ends_near_the_optimum(method):
    gp = counts(120)
    options = {"mean_field": True} if method == "DoubleKL" else {}
    post = run(gp, getattr(pf, method)(neighbors=119, gain=1e-4, num_probes=256, **options))
    if method == "VecchiaLaplace":
        with jax.enable_x64(True):
            at = np.asarray(post.target.free())
        best = laplace(gp, at)[2]
        for step in 0.3 * np.eye(len(at)):
            assert max(laplace(gp, at + step)[2], laplace(gp, at - step)[2]) < best + 0.02
    else:
        value = float(post.approximation.elbo)
        for step in 0.3 * np.eye(len(post.target.free())):
            with jax.enable_x64(True):
                moved = jax.tree.map(np.asarray, gp.with_free(post.target.free() + step))
            assert (
                float(run(moved, pf.DoubleKL(neighbors=119, learn=False, mean_field=True)).approximation.elbo)
                < value + 0.02
            )


# -- mini-batches -----------------------------------------------------------------------------------------------------


def test_batches_average_to_the_elbo_and_its_gradient():
    gp = counts(48)
    with jax.enable_x64(True):
        gp = jax.tree.map(jnp.asarray, gp)
        s = build_pattern(gp, Extent(rho=2.0))
        u = gp.columns(s)
        variables = Variables(gp.free(), 0.3 * jnp.cos(jnp.arange(48.0)), u.at[:, -1].set(jnp.log(1.2 * u[:, -1])))
        both = jax.jit(jax.value_and_grad(lambda v, rows: estimate(gp, s, v, rows)))
        whole = both(variables, jnp.arange(48))
        rows = jnp.asarray(np.random.default_rng(0).permutation(48).reshape(2, 24))
        parts = [both(variables, part) for part in rows]
        mean = jax.tree.map(lambda *parts: sum(parts) / 2, *parts)
    assert float(mean[0]) == pytest.approx(float(whole[0]), abs=1e-9)
    for one, other in zip(mean[1], whole[1], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9 * np.abs(other).max())
    assert abs(float(parts[0][0]) - float(whole[0])) > 1e-3


@pytest.mark.slow
def test_adam_reaches_the_elbo_of_the_fixed_point():
    """From Laplace's approximation, which is not the optimum with counts; V may end better than IC(0)."""
    gp = counts(48)
    fixed = run(gp, pf.DoubleKL(rho=2.0, learn=False)).approximation
    begin = run(gp, pf.StochasticDoubleKL(rho=2.0, learn=False, num_steps=1, learning_rate=1e-12)).approximation
    method = pf.StochasticDoubleKL(rho=2.0, learn=False, num_steps=1500, batch_size=24)
    q = run(gp, method).approximation
    assert float(begin.elbo) < float(fixed.elbo) - 0.1
    assert float(fixed.elbo) - 0.02 < float(q.elbo) < float(fixed.elbo) + 0.2
    np.testing.assert_allclose(q.loc, fixed.loc, atol=0.1 * np.sqrt(np.asarray(fixed.variance).max()))


@pytest.mark.slow
def test_adam_learns_hyper_parameters():
    gp = counts(150)
    fixed = run(gp, pf.DoubleKL(rho=2.0, num_probes=128))
    # So few counts say little of either scale: the ELBO is flat, and fewer steps end on the way.
    found = run(gp, pf.StochasticDoubleKL(rho=2.0, batch_size=50, num_steps=12_000))
    assert float(found.approximation.elbo) > float(fixed.approximation.elbo) - 1.0
    for name in ("kernel.lengthscale", "kernel.variance"):
        np.testing.assert_allclose(found.target.parameters()[name], fixed.target.parameters()[name], rtol=0.5)


# -- other checks -----------------------------------------------------------------------------------------------------


def test_sampled_elbo_is_that_of_quadrature():
    """E log p(y | f) - |U'(f - mu)|²/2 + ... over draws of q, in which no ancestor is left out."""
    gp = counts(40)
    with jax.enable_x64(True):
        gp = jax.tree.map(jnp.asarray, gp)
        s = build_pattern(gp, Extent(neighbors=39))  # ancestors are all earlier points

        @jax.jit
        def both(gp, s):
            u = gp.columns(s)
            problem = make_problem(gp, s, u)
            y = gp.y[s.order]
            found = settle(problem, gp.likelihood.start(y), jnp.ones(40), 1e-8, 100)
            draws = found.mean + jax.vmap(lambda e: forward(s, found.values, e))(
                jax.random.normal(jax.random.key(0), (5000, 40))
            )
            fit = jnp.sum(jax.vmap(jax.vmap(gp.likelihood.log_prob))(draws, jnp.broadcast_to(y, draws.shape)), 1)
            white = jnp.take(jnp.concatenate([draws, jnp.zeros((5000, 1))], 1), s.columns, axis=1)
            white = jnp.sum(white * u, -1)
            ratio = jnp.sum(jnp.log(u[:, -1]) - jnp.log(found.values[:, -1]))
            return found.elbo, fit - 0.5 * jnp.sum(white**2, 1) + ratio + 20.0

        exact, sampled = map(np.asarray, both(gp, s))
    error = sampled.std() / np.sqrt(5000)
    assert error < 0.1
    assert abs(sampled.mean() - exact) < 5 * error


@pytest.mark.parametrize(("width", "error"), [(1.0, 1e-5), (3.0, 2e-2)])
def test_more_nodes_say_the_same_of_student_t(width, error):
    """For a normal of so many scales; beyond about two, 32 nodes do not resolve the peak of log p to four digits."""
    likelihood, sd = likelihoods.StudentT(scale=0.4, df=3.0), 0.4 * width
    with jax.enable_x64(True):
        mean = jnp.linspace(-2.0, 2.0, 9)
        found = likelihood.expected(mean, jnp.full(9, sd**2), jnp.zeros(9)).value
    node, weight = np.polynomial.hermite_e.hermegauss(64)
    fine = st.t(3.0, scale=0.4).logpdf(np.asarray(mean)[:, None] + sd * node) @ (weight / weight.sum())
    np.testing.assert_allclose(found, fine, atol=error)


@pytest.mark.parametrize(("d", "chosen"), [(2, "maximin"), (5, "random")])
def test_of_two_orders_the_nearer_one(d, chosen):
    """Matérn-5/2 of length scale 1 in the unit cube, 20 nearest earlier points: conditional variances by hand."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(1500, d))
    gp = LatentGP(kernels.Matern52(np.ones(d)), likelihoods.Gaussian(0.1), x, rng.normal(size=len(x)), nugget=1e-4)

    def log_sd(order):
        total = 0.0
        for i in range(1, len(x)):
            gap = ((x[order[:i]] - x[order[i]]) ** 2).sum(1)
            near = np.append(order[:i][np.argsort(gap)[:20]], order[i])
            r = np.sqrt(5 * ((x[near, None] - x[near]) ** 2).sum(-1))
            k = (1 + r + r**2 / 3) * np.exp(-r) + 1e-4 * np.eye(len(near))
            total += 0.5 * np.log(k[-1, -1] - k[-1, :-1] @ np.linalg.solve(k[:-1, :-1], k[:-1, -1]))
        return total

    with jax.enable_x64(True):
        order = np.asarray(build_pattern(gp, Extent(neighbors=20), nearer=True).order)
        usual = np.asarray(build_pattern(gp, Extent(neighbors=20)).order)
    found = {"maximin": log_sd(maximin(x)[0]), "random": log_sd(np.random.default_rng(0).permutation(len(x)))}
    assert min(found, key=found.get) == chosen
    np.testing.assert_allclose(log_sd(order), found[chosen], rtol=1e-12)
    np.testing.assert_array_equal(usual, maximin(x)[0])
    with jax.enable_x64(True):
        default, given = (build_pattern(gp, e) for e in (Extent(), Extent(rho=2.0) if d == 2 else Extent(neighbors=20)))
    np.testing.assert_array_equal(default.columns, given.columns)
