"""Latent Gaussian processes against closed forms: chains, dense algebra, 40 points with known answers."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st

import pushforward as pf
from pushforward.infer.variational.sparse_cholesky.factor import build_structure
from pushforward.infer.variational.sparse_cholesky.ordering import Rows, maximin
from pushforward.models import LatentGP
from pushforward.models.gaussian_process import kernels, likelihoods, means
from pushforward.models.gaussian_process.fixed_point import (
    Problem,
    all_marginals,
    elbo_terms,
    marginals,
    move_mean,
    posterior_factor,
)
from pushforward.models.gaussian_process.method import DoubleKL
from pushforward.models.gaussian_process.pattern import (
    RADII,
    Extent,
    build_pattern,
    check_memory,
    choose_radius,
    colours,
    make_problem,
)


def run(gp, *, num_samples=200, **options):
    return pf.fit(gp, DoubleKL(**options), num_samples=num_samples, progress=False)


def smooth(n=150, d=2, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, d))
    f = np.sin(6 * x[:, 0]) + np.cos(4 * x.sum(1))
    return x, f, f + noise * rng.normal(size=n)


def everyone(s):
    """The structure with all earlier points as ancestors, for which the marginals are exact."""
    n = s.columns.shape[0]
    table = np.where(np.arange(n) <= np.arange(n)[:, None], np.arange(n), -1)
    rolled = np.stack([np.roll(row, n - 1 - i) for i, row in enumerate(table)]).astype(np.int32)
    return dataclasses.replace(s, ancestors=jnp.asarray(rolled))


def dense(s, values):
    """A factor as a matrix, rows and columns in the order of the data."""
    n = values.shape[0]
    out = np.zeros((n + 1, n))
    out[np.asarray(s.columns), np.arange(n)[:, None]] = np.asarray(values)
    place = np.argsort(np.asarray(s.order))
    return out[:n][np.ix_(place, place)]


@jax.jit
def terms(s, problem, v, mean):
    """Marginals, and the terms of the ELBO, compiled once per shape."""
    variance, inner = all_marginals(s, v, problem.u)
    return variance, inner, elbo_terms(problem, v, mean, variance, inner)


# -- known answers ----------------------------------------------------------------------------------------------------


def test_ornstein_uhlenbeck_chain_is_exact():
    x = np.array([0, 0.1, 0.25, 0.45, 0.7, 1])
    gp = LatentGP(kernels.Matern12(0.5), likelihoods.Gaussian(0.1), x, np.sin(6 * x), nugget=0.0)
    chain = [np.array([0]), *(np.array([i - 1, i]) for i in range(1, 6))]
    start = np.concatenate([[0], np.cumsum([len(row) for row in chain])])
    rows = Rows(start, np.concatenate(chain).astype(np.int32))
    with jax.enable_x64(True):
        s = everyone(build_structure(np.arange(6), rows, rows))

        @jax.jit
        def solve(s):
            problem = make_problem(gp, s, gp.columns(s))
            v, _ = posterior_factor(problem, jnp.full(6, 10.0))
            variance, inner = all_marginals(s, v, problem.u)
            mean, _ = move_mean(problem, v, jnp.full(6, 10.0), jnp.zeros(6), variance, 1e-14)
            return v, mean, variance, jnp.sum(elbo_terms(problem, v, mean, variance, inner))

        v, mean, variance, elbo = solve(s)
        elbo = float(elbo)
    assert elbo == pytest.approx(-6.1110664689, abs=1e-8)
    np.testing.assert_allclose(mean, [0.097741, 0.512955, 0.864990, 0.374324, -0.714820, -0.293547], atol=1e-6)
    np.testing.assert_allclose(variance, [0.079403, 0.073705, 0.078639, 0.081930, 0.084146, 0.087879], atol=1e-6)
    diagonal = [3.548803, 3.747109, 3.593337, 3.510122, 3.458183, 3.380978]
    np.testing.assert_allclose(v[:, -1], diagonal, atol=1e-6)
    k = np.exp(-abs(x[:, None] - x) / 0.5) + 0.1 * np.eye(6)
    assert elbo == pytest.approx(st.multivariate_normal(np.zeros(6), k).logpdf(np.sin(6 * x)), abs=1e-9)


def forty():
    k = np.arange(1, 41)
    x = np.stack([(k * k * 2**0.5) % 1, (k * k * 3**0.5) % 1], 1)
    y = np.sin(7 * x[:, 0]) + np.cos(5 * x[:, 1])
    return LatentGP(kernels.Matern32(0.3), likelihoods.Gaussian(0.05), x, y, nugget=1e-4)


@pytest.mark.parametrize(
    ("rho", "evidence", "full", "reduced"),
    [
        pytest.param(1.5, -24.386406, -24.387646, -24.387683, marks=pytest.mark.slow),
        (2.0, -21.731543, -21.738000, -21.737995),
        pytest.param(3.0, -18.781680, -18.782418, -18.782223, marks=pytest.mark.slow),
    ],
)
def test_forty_points(rho, evidence, full, reduced):
    gp = forty()
    q = run(gp, rho=rho, learn=False).approximation
    assert float(q.elbo) == pytest.approx(reduced, abs=1e-5)
    with jax.enable_x64(True):
        s = everyone(q.gp.factors_of)
        u = gp.columns(s)
        problem, v = make_problem(gp, s, u), q.values
        exact = float(jnp.sum(terms(s, problem, v, q.loc[s.order])[2]))
        place = np.asarray(s.order)
        precision = (dense(s, u) @ dense(s, u).T)[np.ix_(place, place)]
    assert exact == pytest.approx(full, abs=1e-5)
    y = np.asarray(gp.y)[np.asarray(s.order)]
    hat = st.multivariate_normal(np.zeros(40), np.linalg.inv(precision) + 0.05 * np.eye(40)).logpdf(y)
    assert hat == pytest.approx(evidence, abs=1e-5)
    assert exact < hat  # the bound
    mean = np.linalg.solve(precision + 20 * np.eye(40), 20 * y)  # exact whatever V is
    np.testing.assert_allclose(q.loc[s.order], mean, atol=1e-8)


def test_terms_of_a_partition_add_up():
    gp = forty()
    q = run(gp, rho=2.0, learn=False).approximation
    with jax.enable_x64(True):
        s = q.gp.factors_of
        problem = make_problem(q.gp, s, q.gp.columns(s))
        variance, inner, each = terms(s, problem, q.values, q.loc[s.order])
        part_of = jax.jit(marginals)
        parts = [part_of(s, q.values, problem.u[:39][k::3], jnp.arange(39)[k::3]) for k in range(3)]
        for k, (part, within) in enumerate(parts):
            np.testing.assert_allclose(part, variance[:39][k::3], rtol=1e-12)
            np.testing.assert_allclose(within, inner[:39][k::3], rtol=1e-12)
        assert float(each.sum()) == pytest.approx(float(q.elbo), abs=1e-9)


def test_relabelled_rows_give_the_same_evidence():
    gp = forty()
    rows = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(39)])
    other = dataclasses.replace(gp, X=gp.X[rows], y=gp.y[rows])
    one, two = (run(g, rho=2.0, learn=False).approximation for g in (gp, other))
    assert float(one.elbo) == pytest.approx(float(two.elbo), abs=1e-8)
    np.testing.assert_allclose(np.asarray(one.loc)[rows], two.loc, atol=1e-8)


# -- against dense algebra --------------------------------------------------------------------------------------------


def exact_gp(gp, new):
    """Mean and variance of f at new inputs, and the log evidence, of a Gaussian likelihood by dense algebra."""
    with jax.enable_x64(True):
        x, noise = jnp.asarray(gp.X), float(gp.likelihood.variance)
        k = np.asarray(gp.covariance(x)) + noise * np.eye(gp.dim)
        cross = np.asarray(gp.kernel.matrix(x, jnp.asarray(new)))
        mu, mu_new = np.asarray(gp.mean.at(x)), np.asarray(gp.mean.at(jnp.asarray(new)))
        own = (1 + gp.tau2()) * np.asarray(gp.kernel.diagonal(jnp.asarray(new)))
    weights = np.linalg.solve(k, cross)
    evidence = st.multivariate_normal(mu, k).logpdf(gp.y)
    return mu_new + weights.T @ (gp.y - mu), own - (weights * cross).sum(0), evidence


KERNELS = {
    "ard": kernels.Matern32(np.array([0.4, 0.7]), 1.5),
    "sum": kernels.Matern12(0.3, 0.5) + kernels.Matern52(0.6, 0.8),
    "product": kernels.RationalQuadratic(0.5, 1.2, alpha=0.8) * kernels.Matern32(0.9),
}


@pytest.mark.parametrize("name", ["product", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ard", "sum"))])
def test_full_pattern_is_the_exact_process(name):
    x, _, y = smooth(60)
    mean = means.Linear(np.array([0.3, -0.2]), 0.1)
    gp = LatentGP(KERNELS[name], likelihoods.Gaussian(0.02), x, y, mean=mean, nugget=1e-6)
    post = run(gp, neighbors=59, learn=False)
    new = np.random.default_rng(9).uniform(size=(15, 2))
    expected, variance, evidence = exact_gp(gp, new)
    found = post.approximation.predict(new, num_neighbors=60)
    np.testing.assert_allclose(found.mean, expected, atol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5, atol=1e-8)
    assert float(post.approximation.elbo) == pytest.approx(evidence, abs=1e-5)
    assert post.elbo()[0] == pytest.approx(evidence, abs=1e-5)  # q is the posterior: every weight is the evidence
    assert post.elbo()[1] < 1e-5


KERNEL_VALUES = {
    "Matern12": lambda r: np.exp(-r),
    "Matern32": lambda r: (1 + 3**0.5 * r) * np.exp(-(3**0.5) * r),
    "Matern52": lambda r: (1 + 5**0.5 * r + 5 / 3 * r**2) * np.exp(-(5**0.5) * r),
    "RBF": lambda r: np.exp(-0.5 * r**2),
    "RationalQuadratic": lambda r: 1 / (1 + 0.5 * r**2),
}


@pytest.mark.parametrize("name", KERNEL_VALUES)
def test_kernels_are_the_textbook_ones(name):
    x = np.random.default_rng(0).normal(size=(6, 3))
    scale = [0.5, 1.0, 2.0]
    kernel = getattr(kernels, name)(scale, 2.5)
    r = np.linalg.norm((x[:, None] - x) / scale, axis=2)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            kernel.matrix(jnp.asarray(x), jnp.asarray(x)), 2.5 * KERNEL_VALUES[name](r), rtol=1e-9
        )
        np.testing.assert_allclose(kernel.diagonal(jnp.asarray(x)), 2.5)
        np.testing.assert_allclose((kernel + kernels.RBF(0.7)).scales(3), [0.5, 0.7, 0.7])


@pytest.mark.slow
def test_large_radius_predicts_as_the_exact_process():
    x, _, y = smooth(300)
    gp = LatentGP(kernels.Matern32(0.4), likelihoods.Gaussian(0.01), x, y, nugget=1e-4)
    new = np.random.default_rng(1).uniform(size=(80, 2))
    expected, variance, _ = exact_gp(gp, new)
    errors = []
    for rho in (1.0, 4.0):
        found = run(gp, rho=rho, learn=False, num_samples=2).approximation.predict(new)
        errors.append(np.abs(found.mean - expected).max())
        off = np.abs(np.log(found.variance / variance))
        assert off.max() < {1.0: 1.5, 4.0: 0.25}[rho]
    assert errors[0] > 2 * errors[1]
    assert errors[1] < 0.2 * np.sqrt(variance.max())
    assert np.median(off) < 0.05


@pytest.fixture(scope="module")
def fitted():
    """A process of 120 points, q at its hyper-parameters, and both precisions as matrices."""
    x, _, y = smooth(120)
    gp = LatentGP(kernels.Matern32(0.4), likelihoods.Gaussian(0.05), x, y, mean=means.Constant(0.3), nugget=1e-8)
    q = run(gp, rho=2.0, learn=False, num_samples=2).approximation
    s = q.gp.factors_of
    with jax.enable_x64(True):
        u = dense(s, gp.columns(s))
    return gp, q, u @ u.T, dense(s, q.values)


def given_neighbours(gp, new, near):
    """Weights on all rows, prior mean and variance of f at each new input, by dense algebra with these neighbours."""
    with jax.enable_x64(True):
        x = jnp.asarray(gp.X)
        k, cross = np.asarray(gp.covariance(x)), np.asarray(gp.kernel.matrix(x, jnp.asarray(new)))
        own = (1 + gp.tau2()) * np.asarray(gp.kernel.diagonal(jnp.asarray(new)))
    weight = np.zeros((len(new), len(gp.X)))
    for i, rows in enumerate(near):
        weight[i, rows] = np.linalg.solve(k[np.ix_(rows, rows)], cross[rows, i])
    return weight, own - np.einsum("ij,ji->i", weight, cross)


def test_prediction_is_that_of_the_sparse_prior(fitted):
    """All that is between `predict` and the exact process is the sparse prior, the neighbours, and IC(0)."""
    gp, q, prior, v = fitted
    new = np.random.default_rng(1).uniform(size=(30, 2))
    near = np.argsort(np.linalg.norm(new[:, None] - gp.X, axis=2))[:, :32]
    weight, own = given_neighbours(gp, new, near)
    covariance = np.linalg.inv(prior + 20 * np.eye(120))  # the optimum of double KL, whatever the posterior's pattern
    mean = 0.3 + weight @ (covariance @ (20 * (gp.y - 0.3)))
    found = q.predict(new)
    np.testing.assert_allclose(found.mean, mean, atol=1e-7)
    # Variances are those of V with all ancestors up to what the reduced ones leave out, and of the optimum up to IC(0).
    by_factor = own + ((np.linalg.inv(v) @ weight.T) ** 2).sum(0)
    np.testing.assert_allclose(found.variance, by_factor, rtol=1e-3)
    np.testing.assert_allclose(found.variance, own + np.einsum("ij,jk,ik->i", weight, covariance, weight), rtol=1e-2)
    with jax.enable_x64(True):
        everything = dataclasses.replace(q, gp=q.gp.with_structure(everyone(q.gp.factors_of)))
        np.testing.assert_allclose(everything.predict(new).variance, by_factor, rtol=1e-9)
    assert by_factor.max() / by_factor.min() > 1.3


def test_gradients_of_predictions(fitted):
    gp, q, *_ = fitted
    new = np.vstack([np.random.default_rng(2).uniform(0.1, 0.9, size=(4, 2)), gp.X[:1]])
    found = q.predict(new, gradients=True)
    np.testing.assert_allclose(found.mean, q.predict(new).mean, atol=1e-12)
    for j in range(2):
        step = 1e-5 * np.eye(2)[j]
        up, down = q.predict(new[:4] + step), q.predict(new[:4] - step)
        np.testing.assert_allclose(found.mean_gradient[:4, j], (up.mean - down.mean) / 2e-5, atol=1e-5)
        slope = (up.variance - down.variance) / 2e-5
        np.testing.assert_allclose(found.variance_gradient[:4, j], slope, atol=1e-6)
        assert abs(slope).max() > 1e-3
    assert np.isfinite(found.mean_gradient).all()


@pytest.mark.slow
def test_joint_draws_are_coherent(fitted):
    gp, q, _, v = fitted
    new = np.vstack([np.random.default_rng(3).uniform(size=(5, 2)), [[0.5, 0.5], [0.51, 0.5], [1.3, 1.3], [1.3, 1.25]]])
    with jax.enable_x64(True):
        x, at = jnp.asarray(gp.X), jnp.asarray(new)
        cross = np.asarray(gp.kernel.matrix(x, at))
        weight = np.linalg.solve(np.asarray(gp.covariance(x)), cross).T
        own = np.asarray(gp.covariance(at)) - weight @ cross
    expected = own + weight @ np.linalg.inv(v @ v.T) @ weight.T
    draws = q.sample_jointly(new, 1, 20_000, num_neighbors=120)  # all rows, and all new inputs before
    error = np.sqrt((expected**2 + np.outer(expected.diagonal(), expected.diagonal())) / 20_000)
    assert np.all(abs(np.cov(draws.T) - expected) < 5 * error)
    assert (
        expected[7, 8] > 10 * error[7, 8]
    )  # outside of the data draws are of the prior: by themselves they would fail
    mean = 0.3 + weight @ (np.asarray(q.loc) - 0.3)
    assert np.all(abs(draws.mean(0) - mean) < 5 * np.sqrt(expected.diagonal() / 20_000))
    alone = q.sample_jointly(new[:1], 2, 2000)
    assert alone.shape == (2000, 1)
    with pytest.raises(pf.InvalidArgument, match="num_samples"):
        q.sample_jointly(new, num_samples=0)


@pytest.mark.slow
def test_more_observations_at_the_same_hyper_parameters(fitted):
    gp, q, *_ = fitted
    rng = np.random.default_rng(7)
    new, y = rng.uniform(size=(10, 2)), rng.normal(size=10)
    whole = dataclasses.replace(gp, X=np.vstack([gp.X, new]), y=np.concatenate([gp.y, y]))
    found = q.condition(new, y)
    with jax.enable_x64(True):
        s = build_pattern(whole, Extent(rho=2.0))
        u = dense(s, jax.jit(whole.columns)(s))
        variance, *_ = terms(s, make_problem(whole, s, whole.columns(s)), found.values, found.loc[s.order])
    covariance = np.linalg.inv(u @ u.T + 20 * np.eye(130))
    np.testing.assert_allclose(found.loc, 0.3 + covariance @ (20 * (whole.y - 0.3)), atol=1e-7)
    there, precision, v = dense(s, np.asarray(s.mask, float)) > 0, u @ u.T, dense(s, found.values)
    np.testing.assert_allclose((v @ v.T)[there], (precision + 20 * np.eye(130))[there], atol=1e-8 * precision.max())
    np.testing.assert_allclose(found.variance[s.order], variance, rtol=1e-10)
    hat = st.multivariate_normal(np.full(130, 0.3), np.linalg.inv(precision) + 0.05 * np.eye(130)).logpdf(whole.y)
    assert float(found.elbo) == pytest.approx(hat, abs=0.05)
    assert abs(np.asarray(found.loc)[:120] - np.asarray(q.loc)).max() > 0.1
    with pytest.raises(pf.InvalidArgument, match=r"y has shape \(3,\)"):
        q.condition(new, y[:3])
    with pytest.raises(pf.InvalidArgument, match="rows 1 and 120"):
        q.condition(gp.X[1:2], y[:1])


@pytest.mark.slow
def test_more_counts_at_the_same_hyper_parameters():
    rng = np.random.default_rng(6)
    x = rng.uniform(size=(60, 2))
    counts = rng.poisson(np.exp(1 + np.sin(6 * x[:, 0])))
    whole = LatentGP(kernels.Matern32(0.5), likelihoods.Poisson(), x, counts)
    first = dataclasses.replace(whole, X=x[:50], y=counts[:50])
    settings = {"rho": 2.0, "learn": False, "num_samples": 2, "tolerance": 1e-8}
    q, expected = (run(gp, **settings).approximation for gp in (first, whole))
    found = q.condition(x[50:], counts[50:], tolerance=1e-8)
    np.testing.assert_allclose(found.loc, expected.loc, atol=1e-6)
    np.testing.assert_allclose(found.variance, expected.variance, rtol=1e-6)
    assert float(found.elbo) == pytest.approx(float(expected.elbo), abs=1e-5)
    assert abs(np.asarray(found.loc)[:50] - np.asarray(q.loc)).max() > 0.01
    with pytest.raises(pf.InvalidArgument, match=r"y\[50\] is -1"):
        q.condition(x[50:51], [-1])


def test_prediction_at_a_point_of_the_data_is_that_of_the_data(fitted):
    gp, q, *_ = fitted
    found = q.predict(gp.X[:20] + 0.4e-4 / np.sqrt(2))
    np.testing.assert_allclose(found.mean, q.loc[:20], atol=1e-3)
    np.testing.assert_allclose(found.variance, q.variance[:20], rtol=2e-2)


def test_density_draws_and_covariance_agree(fitted):
    gp, q, _, v = fitted
    with jax.enable_x64(True):
        covariance = np.asarray(q.covariance())
        u, log_q = q.sample_and_log_prob(jax.random.key(0), 20_000)
        u = np.asarray(u)
        density = st.multivariate_normal(np.asarray(q.mean()), covariance)
        np.testing.assert_allclose(log_q[:20], density.logpdf(u[:20]), atol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.vmap(q.log_prob))(jnp.asarray(u[:5])), log_q[:5], atol=1e-8)
        z = jnp.asarray(gp.X[:, 0])
        np.testing.assert_allclose(jax.jit(lambda z: q.pull(q.transport(z)[0]))(z), z, atol=1e-8)
    np.testing.assert_allclose(covariance, np.linalg.inv(v @ v.T), atol=1e-9)
    error = np.sqrt((covariance**2 + np.outer(covariance.diagonal(), covariance.diagonal())) / 20_000)
    assert np.all(abs(np.cov(u.T) - covariance) < 5 * error)
    np.testing.assert_allclose(q.variance, covariance.diagonal(), rtol=0.05)


# -- likelihoods ------------------------------------------------------------------------------------------------------

COUNTS = np.array([0.0, 1.0, 3.0, 7.0])
LIKELIHOODS = {
    "Gaussian": (likelihoods.Gaussian(0.3), np.array([-1.0, 0.2, 2.0, 0.0])),
    "StudentT": (likelihoods.StudentT(0.8, 4.0), np.array([-1.0, 0.2, 2.0, 0.0])),
    "BernoulliLogit": (likelihoods.BernoulliLogit(), np.array([0.0, 1.0, 1.0, 0.0])),
    "BernoulliProbit": (likelihoods.BernoulliProbit(), np.array([0.0, 1.0, 1.0, 0.0])),
    "Poisson": (likelihoods.Poisson(), COUNTS),
    "NegativeBinomial": (likelihoods.NegativeBinomial(2.0), COUNTS),
    "FromDistribution": (likelihoods.FromDistribution(lambda f: dist.Poisson(jnp.exp(f))), COUNTS),
}  # fmt: skip


REPEATED = ("BernoulliLogit", "FromDistribution", "Gaussian", "Poisson")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in REPEATED else []) for name in LIKELIHOODS]
)
def test_expectations_under_a_normal(name):
    """By a fine grid, and their derivatives by differences."""
    likelihood, y = LIKELIHOODS[name]
    mean, variance = np.array([-0.5, 0.3, 1.2, 0.0]), np.array([0.2, 0.6, 0.3, 0.1])
    z = np.linspace(-9, 9, 6001)
    weight = st.norm.pdf(z) * (z[1] - z[0])
    with jax.enable_x64(True):
        each = jax.jit(jax.vmap(jax.vmap(likelihood.log_prob, (0, None)), (0, 0)))

        def by_grid(mean, variance):
            return (
                np.asarray(each(jnp.asarray(mean[:, None] + np.sqrt(variance)[:, None] * z), jnp.asarray(y))) @ weight
            )

        found = jax.jit(likelihood.expected)(jnp.asarray(mean), jnp.asarray(variance), jnp.asarray(y))
        given = likelihood.distribution(jnp.asarray(mean)).log_prob(jnp.asarray(y))
        np.testing.assert_allclose(each(jnp.asarray(mean)[:, None], jnp.asarray(y))[:, 0], given, atol=1e-5)
        np.testing.assert_allclose(found.value, by_grid(mean, variance), atol=1e-4)
        slope = (by_grid(mean + 1e-4, variance) - by_grid(mean - 1e-4, variance)) / 2e-4
        np.testing.assert_allclose(found.gradient, slope, atol=2e-3)
        # Price: the derivative by the variance is half the mean second derivative.
        bend = (by_grid(mean, variance + 1e-4) - by_grid(mean, variance - 1e-4)) / 2e-4
        np.testing.assert_allclose(found.curvature, -2 * bend, atol=5e-3)


def test_poisson_closed_form_equals_quadrature():
    likelihood, y = likelihoods.Poisson(), jnp.asarray(COUNTS)
    with jax.enable_x64(True):
        mean, variance = jnp.asarray([-0.5, 0.3, 1.2, 0.0]), jnp.asarray([0.2, 0.6, 0.3, 0.1])
        closed = likelihood.expected(mean, variance, y)
        rule = jax.jit(partial(likelihoods.Likelihood.expected, likelihood))(mean, variance, y)
        for one, two in zip(closed, rule, strict=True):
            np.testing.assert_allclose(one, two, atol=1e-8)


@pytest.mark.slow  # the fast suite has it of sites, and of Laplace's rule on the sparse prior
@pytest.mark.parametrize("name", ["StudentT", "Poisson", "BernoulliLogit", "BernoulliProbit", "NegativeBinomial"])
def test_fixed_point_of_a_full_pattern_is_the_optimum_of_the_elbo(name):
    """With all earlier points as neighbours q is any Gaussian, and its stationary equations are dense ones."""
    rng = np.random.default_rng(4)
    x = np.sort(rng.uniform(size=25))
    f = 1.2 * np.sin(7 * x)
    likelihood = LIKELIHOODS[name][0]
    with jax.enable_x64(True):
        y = np.asarray(likelihood.distribution(jnp.asarray(f)).sample(jax.random.key(1)), float)
    gp = LatentGP(kernels.Matern52(0.3), likelihood, x, y, nugget=1e-3)
    post = run(gp, neighbors=24, learn=False, max_iterations=200, tolerance=1e-7)
    q = post.approximation
    with jax.enable_x64(True):
        k = np.asarray(gp.covariance(jnp.asarray(gp.X)))
        covariance = np.asarray(q.covariance())
        expected = likelihood.expected(q.loc, jnp.asarray(covariance.diagonal()), jnp.asarray(y))
        inverse = np.linalg.inv(k)
        np.testing.assert_allclose(inverse @ np.asarray(q.loc), expected.gradient, atol=1e-4)
        site = np.maximum(np.asarray(expected.curvature), 1e-8)
        np.testing.assert_allclose(np.linalg.inv(covariance), inverse + np.diag(site), atol=1e-3 * abs(inverse).max())
        kl = 0.5 * (
            np.trace(inverse @ covariance) + np.asarray(q.loc) @ inverse @ np.asarray(q.loc) - 25
            + np.linalg.slogdet(k)[1] - np.linalg.slogdet(covariance)[1]
        )  # fmt: skip
        fit = float(jnp.sum(expected.value))
    assert float(q.elbo) == pytest.approx(fit - kl, abs=1e-4)
    by_draws, error = post.elbo()
    assert abs(by_draws - float(q.elbo)) < 5 * error + 1e-6


def test_impossible_observations_are_named():
    x = np.arange(3.0)
    for likelihood, y, rule in (
        (likelihoods.BernoulliLogit(), [0, 1, -1], r"y\[2\] is -1; .* 0 or 1"),
        (likelihoods.Poisson(), [0, 1.5, 2], r"y\[1\] is 1.5; .* whole numbers"),
    ):
        with pytest.raises(pf.InvalidArgument, match=rule):
            LatentGP(kernels.RBF(), likelihood, x, y)


# -- learning ---------------------------------------------------------------------------------------------------------


def test_gradient_of_the_elbo_is_that_of_the_optimum():
    x, _, y = smooth(80, noise=0.3)
    gp = LatentGP(
        kernels.Matern32(np.array([0.3, 0.5])), likelihoods.Gaussian(0.2), x, y, mean=means.Constant(0.2), nugget=1e-4
    )
    with jax.enable_x64(True):
        gp = jax.tree.map(jnp.asarray, gp)
        s, scales = build_pattern(gp, Extent(rho=4.0)), gp.kernel.scales(2)
        found = jnp.asarray(colours((x / np.asarray(scales))[np.asarray(s.order)], 2000))
        method = dataclasses.replace(
            DoubleKL(rho=4.0, num_probes=2000), phase=0, pattern=s, colours=found, scales=scales
        )
        state = method.init(jax.random.key(0), gp, None)
        learned = jax.jit(lambda m, s, g: m.step(jax.random.key(0), s, g, 0)[0])(method, state, gp)
        last = dataclasses.replace(method, phase=2)
        iterate = jax.jit(lambda m, s, g: m.step(jax.random.key(0), s, g, 0)[0].elbo)

        def elbo(free):
            return float(
                iterate(last, dataclasses.replace(state, climb=dataclasses.replace(state.climb, point=free)), gp)
            )

        free, differences = gp.free(), []
        for k in range(len(free)):
            shift = 1e-4 * jnp.eye(len(free))[k]
            differences.append((elbo(free + shift) - elbo(free - shift)) / 2e-4)
        np.testing.assert_allclose(learned.elbo, elbo(free), rtol=5e-3)
    gradient = np.asarray(learned.climb.gradient)
    assert np.all(abs(gradient - differences) < 0.02 * np.abs(differences).max()), (gradient, differences)


@pytest.fixture(scope="module")
def learned():
    x, f, y = smooth(150, noise=0.2)
    gp = LatentGP(
        kernels.Matern32(np.array([0.1, 0.1]), 1.0),
        likelihoods.Gaussian(1.0),
        x,
        y,
        mean=means.Constant(0.1),
        nugget=1e-4,
        fixed=("mean.value",),
    )
    return x, f, y, gp, run(gp, rho=3.0, num_probes=128, gain=1e-3)


def newton(evidence, free, learned):
    """The step to the maximum of an evidence, in sd of what the data leave open, and the nats that it promises."""
    gradient = jax.jit(jax.grad(evidence))
    slope = np.asarray(gradient(free))
    moved = [free + sign * 1e-4 * e for e in np.eye(len(free)) for sign in (1, -1)]
    up, down = np.moveaxis(np.stack([gradient(at) for at in moved]).reshape(-1, 2, len(free)), 1, 0)
    bend = (up - down) / 2e-4
    slope, bend = slope[learned], (0.5 * (bend + bend.T))[learned][:, learned]
    step = -np.linalg.solve(bend, slope)
    return step / np.sqrt(np.diag(np.linalg.inv(-bend))), 0.5 * float(slope @ step)


def exact_evidence(gp):
    """Log p(y) as a function of the logarithms, dense, up to a constant."""
    x, y = jnp.asarray(gp.X), jnp.asarray(gp.y)

    def evidence(free):
        there = gp.with_free(free)
        k, r = there.covariance(x) + there.likelihood.variance * jnp.eye(len(y)), y - there.mean.at(x)
        return -0.5 * r @ jnp.linalg.solve(k, r) - 0.5 * jnp.linalg.slogdet(k)[1]

    return evidence


def test_learning_reaches_the_optimum_of_the_evidence(learned):
    """Of the sparse prior, under the order that the posterior has."""
    *_, gp, post = learned
    s = post.target.factors_of
    with jax.enable_x64(True):
        x, y = jnp.asarray(gp.X), jnp.asarray(gp.y)
        n, free = len(y), post.target.free()

        def evidence(free):
            """By P = U U' + I / noise, dense."""
            there = gp.with_free(free)
            columns, noise = there.columns(s), there.likelihood.variance
            u = jnp.zeros((n + 1, n)).at[s.columns, jnp.arange(n)[:, None]].set(columns)[:n]
            r, p = (y - there.mean.at(x))[s.order], u @ u.T + jnp.eye(n) / noise
            lower = jnp.linalg.cholesky(p)
            white = jax.scipy.linalg.solve_triangular(lower, r, lower=True) / noise
            log_det = n * jnp.log(noise) + 2 * jnp.sum(jnp.log(jnp.diag(lower))) - 2 * jnp.sum(jnp.log(columns[:, -1]))
            return -0.5 * (r @ r / noise - white @ white + log_det + n * jnp.log(2 * jnp.pi))

        found, gain = newton(evidence, free, gp.learned())
        hat = float(jax.jit(evidence)(free))
    assert np.all(abs(found) < 0.1), found
    assert gain < 0.01
    assert float(post.approximation.elbo) == pytest.approx(hat, abs=0.1)  # IC(0) and reduced ancestors


@pytest.mark.slow
def test_learning_is_near_the_optimum_of_the_exact_evidence(learned):
    *_, gp, post = learned
    with jax.enable_x64(True):
        found, gain = newton(exact_evidence(gp), post.target.free(), gp.learned())
    assert np.all(abs(found) < 1), found  # within what the data leave open: the sparse prior moves the optimum
    assert gain < 0.5


def test_learning_from_observations_is_at_the_optimum_of_the_exact_evidence(learned):
    """Columns are given their nearest observations, as many as those of the prior, which moves nothing."""
    *_, gp, _ = learned
    post = run(gp, rho=3.0, gain=1e-3, learn="observations")
    with jax.enable_x64(True):
        found, gain = newton(exact_evidence(gp), post.target.free(), gp.learned())
    assert np.all(abs(found) < 0.1), found
    assert gain < 0.01


def test_posterior_of_a_learned_process(learned):
    *_, gp, post = learned
    named = post.target.parameters()
    assert set(named) == {"kernel.lengthscale", "kernel.variance", "likelihood.variance", "mean.value"}
    assert float(named["mean.value"]) == 0.1
    assert float(named["likelihood.variance"]) == pytest.approx(0.04, rel=0.3)
    assert float(gp.likelihood.variance) == 1.0  # the user's target stays what it is
    new = np.random.default_rng(8).uniform(size=(200, 2))
    truth = np.sin(6 * new[:, 0]) + np.cos(4 * new.sum(1))
    found = post.approximation.predict(new)
    z = (truth - found.mean) / np.sqrt(found.variance)
    assert np.sqrt(np.mean((truth - found.mean) ** 2)) < 0.12
    assert 0.6 < np.std(z) < 1.4
    drawn = post.predict(new[:7])
    assert drawn["f"].shape == drawn["y"].shape == (1, 200, 7)
    np.testing.assert_allclose(
        drawn["f"].values[0].mean(0), found.mean[:7], atol=5 * found.variance[:7].max() ** 0.5 / 14
    )
    assert post.log_likelihood()["y"].shape == (1, 200, 150)
    mean, variance = found.observed()
    np.testing.assert_allclose(mean, found.mean, atol=1e-9)
    np.testing.assert_allclose(variance, found.variance + float(named["likelihood.variance"]), rtol=1e-9)
    density = st.norm(found.mean, np.sqrt(variance)).logpdf(truth)
    np.testing.assert_allclose(found.log_prob(truth), density, atol=1e-3)
    assert "fixed point" in str(post.diagnose())


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    x, y = np.arange(4.0), np.zeros(4)
    kernel, noise = kernels.Matern32(), likelihoods.Gaussian()
    for change, message in (
        ({"X": np.array([0.0, 1.0, 2.0, 1.0])}, "rows 1 and 3"),
        ({"y": np.zeros(3)}, r"y has shape \(3,\)"),
        ({"kernel": kernels.Matern32}, "Matern32"),
        ({"kernel": kernels.Matern32(-1.0)}, "lengthscale of kernel must be positive"),
        ({"kernel": kernel + kernels.RBF(np.ones(3))}, r"lengthscale of kernel.right has shape \(3,\)"),
        ({"likelihood": "gaussian"}, "likelihood must be one of"),
        ({"nugget": -1.0}, "nugget must be at least 0, got -1.0"),
        ({"fixed": ("noise",)}, "fixed names 'noise'"),
    ):
        given = {"kernel": kernel, "likelihood": noise, "X": x, "y": y} | change
        with pytest.raises(pf.InvalidArgument, match=message):
            LatentGP(**given)
    with pytest.raises(pf.NonFinite, match=r"y\[2\] is nan"):
        LatentGP(kernel, noise, x, np.array([0, 0, np.nan, 0]))
    for options, message in (
        ({"rho": 0.5}, 'rho must be at least 1, or "auto", got 0.5'),
        ({"rho": 2.0, "neighbors": 5}, "exclude each other"),
        ({"num_steps": 0}, "num_steps"),
        ({"learn": "y"}, "learn must be one of .*got 'y'"),
    ):
        with pytest.raises(pf.InvalidArgument, match=message):
            DoubleKL(**options)
    gp = LatentGP(kernel, noise, x, y)
    with pytest.raises(pf.InvalidArgument, match="precision=32"):
        pf.fit(gp, DoubleKL(), precision=32, progress=False)
    counts = LatentGP(kernel, likelihoods.Poisson(), x, y)
    with pytest.raises(pf.InvalidArgument, match='learn="observations" takes a Gaussian likelihood, got Poisson'):
        pf.fit(counts, DoubleKL(learn="observations"), progress=False)
    with pytest.raises(pf.UnsupportedTarget, match="needs a target with latent_gp"):
        pf.fit(pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(2)), DoubleKL())


def test_patterns_that_do_not_fit_are_refused():
    with pytest.raises(pf.InvalidArgument, match=r"rho=9 leads to columns of 50 entries .* 5,000 pairs .* GiB"):
        check_memory("rho=9", np.full(100, 50), 5000, limit=100_000)
    with pytest.raises(pf.InvalidArgument, match="rho=2 leads to a pattern"):
        check_memory("rho=2", np.zeros(0), 10**12)
    check_memory("rho=2", np.full(10**5, 11), 10**6)


def test_an_order_serves_while_length_scales_stay():
    gp = forty()
    with jax.enable_x64(True):
        method = DoubleKL(rho=1.5).prepare(jax.random.key(0), gp, np.zeros(1))
        state = method.init(jax.random.key(0), gp, None)
        for factor, kept in ((1.15, True), (1.5, False)):
            climb = dataclasses.replace(state.climb, point=state.climb.point.at[0].add(np.log(factor)))
            after = method.prepare(jax.random.key(0), gp, [dataclasses.replace(state, climb=climb)])
            np.testing.assert_allclose(after.scales, 0.3 if kept else 0.3 * factor)
        end = jax.tree.map(lambda leaf: leaf[None], dataclasses.replace(state, change=jnp.zeros(()), climb=climb))
        remarks = method.remarks(end, gp, method.result(end, gp))
    assert [r["name"] for r in remarks if r["level"] == "warning"] == ["order"]
    assert "1.5 times" in next(r["message"] for r in remarks if r["name"] == "order")


def test_automatic_radius_is_where_the_divergence_stops_falling():
    """Against the divergence of all columns by the determinant of U, built for each radius."""
    x, _, y = smooth(150)
    gp = LatentGP(kernels.Matern12(0.3), likelihoods.Gaussian(0.05), x, y)
    with jax.enable_x64(True):
        order, reach = maximin(x / 0.3)
        chosen = choose_radius(gp, (x / 0.3)[order], order, reach)
        k = np.asarray(gp.covariance(jnp.asarray(x[order])))
        gap, level = np.linalg.norm(x[order][:, None] - x[order], axis=2) / 0.3, []
        for rho in RADII:
            logs = 0.0
            for i in range(150):
                near = np.flatnonzero(gap[i, : i + 1] <= rho * reach[i] * (1 + 1e-9))
                block = k[np.ix_(near, near)]
                logs += 0.5 * np.log(np.linalg.inv(block)[-1, -1])  # U_ii² = (K_ss⁻¹)_ii
            level.append(logs / 150)
        built = build_pattern(gp, Extent("auto"))
        expected = build_pattern(gp, Extent(chosen))
    gained = np.diff(level)
    assert RADII[int(np.flatnonzero(gained < 0.01)[0])] == chosen
    assert 1.5 < chosen < 8
    np.testing.assert_array_equal(built.columns, expected.columns)


def test_colours_keep_points_of_one_colour_apart():
    z = np.random.default_rng(0).uniform(size=(400, 2))
    found = colours(z, 16)
    assert set(found) == set(range(16))
    gap = (
        np.linalg.norm(z[:, None] - z, axis=2)
        + np.where(found[:, None] == found, 0, np.inf)
        + np.diag(np.full(400, np.inf))
    )
    by_chance = np.random.default_rng(1).permutation(found)
    chance = np.linalg.norm(z[:, None] - z, axis=2) + np.where(by_chance[:, None] == by_chance, 0, np.inf)
    np.fill_diagonal(chance, np.inf)
    np.fill_diagonal(gap, np.inf)
    assert np.median(gap.min(1)) > 1.5 * np.median(chance.min(1))
    assert len(set(colours(z[:10], 16))) == 10


def test_singular_blocks_end_in_one_sentence():
    x = np.linspace(0, 1e-6, 30)
    gp = LatentGP(kernels.RBF(), likelihoods.Gaussian(), x, np.zeros(30), nugget=0.0)
    with pytest.raises(pf.NonFinite, match="not positive definite"):
        run(gp, learn=False, num_samples=2)


def test_problem_keeps_the_order_of_its_structure():
    gp = forty()
    with jax.enable_x64(True):
        s = build_pattern(gp, Extent(rho=2.0))
        problem = make_problem(gp, s, gp.columns(s))
        assert isinstance(problem, Problem)
        np.testing.assert_array_equal(problem.y, gp.y[np.asarray(s.order)])
