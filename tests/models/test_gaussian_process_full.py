"""Hyper-parameters of latent processes with priors: densities by dense algebra, NUTS against quadrature."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st
from numpyro.distributions.transforms import PowerTransform

import pushforward as pf
from pushforward.infer.variational.sparse_cholesky.ordering import maximin, nearest_pattern
from pushforward.models import LatentGP, posteriordb
from pushforward.models.gaussian_process import kernels, likelihoods, means
from pushforward.models.gaussian_process.evidence import log_conditional

DATABASE = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
SCALE, NOISE = dist.LogNormal(-1.0, 0.5), dist.HalfNormal(0.5)


def matern32(x, scale):
    r = np.sqrt(3) * np.linalg.norm((x[:, None] - x) / scale, axis=2)
    return (1 + r) * np.exp(-r)


def observed(n=60, likelihood=None):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(n, 2))
    y = np.sin(5 * x[:, 0]) + 0.2 * rng.normal(size=n)
    gp = LatentGP(kernels.Matern32([0.4, 0.6]), likelihoods.Gaussian(0.1), x, y, mean=means.Constant(0.2), nugget=1e-4)
    if likelihood is None:
        return gp
    return dataclasses.replace(gp, likelihood=likelihood, y=rng.poisson(np.exp(y)).astype(float))


def priors_at(scales, noise):
    """Log density of the logarithms."""
    value = st.norm(-1, 0.5).logpdf(np.log(scales)).sum()
    return value if noise is None else value + st.halfnorm(scale=0.5).logpdf(noise) + np.log(noise)


@pytest.fixture(scope="module")
def marginal():
    return observed().with_priors({"kernel.lengthscale": SCALE, "likelihood.variance": NOISE}, neighbors=6)


def test_marginal_density_is_the_product_of_conditionals_of_y(marginal):
    scales, noise = np.array([0.3, 0.9]), 0.07
    x, r = marginal.gp.X, marginal.gp.y - 0.2
    k = matern32(x, scales) + (1e-4 + noise) * np.eye(60)
    order = maximin(x / [0.4, 0.6])[0]  # that of the process given
    pattern = nearest_pattern((x / [0.4, 0.6])[order], 6)[0]
    expected = priors_at(scales, noise)
    for i in range(60):
        own, before = order[i], order[pattern.of(i)[:-1]]
        weight = np.linalg.solve(k[np.ix_(before, before)], k[before, own])
        expected += st.norm(weight @ r[before], np.sqrt(k[own, own] - weight @ k[before, own])).logpdf(r[own])
    with jax.enable_x64(True):
        u = marginal.unconstrain({"kernel.lengthscale": scales, "likelihood.variance": noise})
        assert u.shape == (marginal.dim,) == (3,)
        assert float(jax.jit(marginal.log_density)(u)) == pytest.approx(expected, abs=1e-8)
        prior = float(jax.jit(marginal.log_prior)(u))
    assert prior == pytest.approx(priors_at(scales, noise), abs=1e-10)


def test_density_with_a_full_pattern_is_the_exact_one():
    gp = observed(25)
    target = gp.with_priors({"kernel.lengthscale": SCALE}, rho=1e6)
    k = matern32(gp.X, np.array([0.4, 0.6])) + (1e-4 + 0.1) * np.eye(25)
    with jax.enable_x64(True):
        u = jnp.log(jnp.asarray([0.4, 0.6]))
        found = float(jax.jit(target.log_density)(u))
    expected = st.multivariate_normal(np.full(25, 0.2), k).logpdf(gp.y) + priors_at(np.array([0.4, 0.6]), None)
    assert found == pytest.approx(expected, abs=1e-8)


def sparse_precision(target, gp):
    n, s = gp.dim, target.pattern
    u = np.zeros((n + 1, n))
    u[np.asarray(s.columns), np.arange(n)[:, None]] = np.asarray(gp.columns(jax.tree.map(jnp.asarray, s)))
    place = np.argsort(np.asarray(s.order))
    u = u[:n][np.ix_(place, place)]
    return u @ u.T


def test_process_drawn_afterwards_has_its_posterior(marginal):
    with jax.enable_x64(True):
        values = {"kernel.lengthscale": np.array([0.4, 0.6]), "likelihood.variance": 0.1}
        u = marginal.unconstrain(values)
        keys = jax.random.split(jax.random.key(0), 20_000)
        f = np.asarray(jax.jit(jax.vmap(lambda key: marginal.draw(key, u)["f"]))(keys))
        covariance = np.linalg.inv(sparse_precision(marginal, marginal.gp) + 10 * np.eye(60))
    mean = 0.2 + covariance @ (10 * (marginal.gp.y - 0.2))
    variance = covariance.diagonal()
    assert np.all(abs(f.mean(0) - mean) < 5 * np.sqrt(variance / 20_000))
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / 20_000)
    assert np.all(abs(np.cov(f.T) - covariance) < 5 * error)


def test_joint_density_of_counts_and_what_is_kept():
    gp = observed(30, likelihoods.Poisson())
    target = gp.with_priors({"kernel.lengthscale": SCALE, "kernel.variance": dist.LogNormal(0.0, 1.0)}, neighbors=5)
    w = np.random.default_rng(1).normal(size=30)
    with jax.enable_x64(True):
        at = gp.with_parameters({"kernel.lengthscale": jnp.asarray([0.3, 0.5]), "kernel.variance": 1.3})
        values = {"kernel.lengthscale": np.array([0.3, 0.5]), "kernel.variance": 1.3, "f_white": w}
        u = target.unconstrain(values)
        assert target.dim == 33
        found, kept = float(jax.jit(target.log_density)(u)), jax.jit(target.constrain)(u)
        precision = sparse_precision(target, at)
    f, order = np.asarray(kept["f"]), np.asarray(target.pattern.order)
    r = f - 0.2
    assert r @ precision @ r == pytest.approx(w @ w, rel=1e-9)  # U' (f - mu) = w, so that f has the sparse prior
    back = np.linalg.cholesky(precision[np.ix_(order[::-1], order[::-1])])[::-1, ::-1]  # upper, in maximin order
    np.testing.assert_allclose(back.T @ r[order], w, atol=1e-8)
    prior = st.norm(-1, 0.5).logpdf(np.log([0.3, 0.5])).sum() + st.norm().logpdf(np.log(1.3))
    expected = prior + st.norm().logpdf(w).sum() + st.poisson(np.exp(f)).logpmf(gp.y).sum()
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.slow
def test_nuts_finds_the_posterior_of_a_length_scale():
    """By quadrature, with all points as neighbours; and what comes after: draws of the process, prediction, loo."""
    rng = np.random.default_rng(5)
    x = np.sort(rng.uniform(size=(14, 1)), 0)
    y = np.sin(6 * x[:, 0]) + 0.3 * rng.normal(size=14)
    gp = LatentGP(kernels.Matern32(0.4), likelihoods.Gaussian(0.09), x, y)
    target = gp.with_priors({"kernel.lengthscale": SCALE})
    post = pf.fit(target, pf.NUTS(), num_warmup=300, num_samples=1000, num_chains=2, progress=False)
    logs = np.linspace(-4, 2.5, 600)
    density, mean = [], []
    for log in logs:
        k = matern32(x, np.exp(log)) + 1e-6 * np.eye(14)
        density.append(
            st.multivariate_normal(np.zeros(14), k + 0.09 * np.eye(14)).logpdf(y) + st.norm(-1, 0.5).logpdf(log)
        )
        mean.append(k @ np.linalg.solve(k + 0.09 * np.eye(14), y))
    weight = np.exp(np.array(density) - max(density))
    weight /= weight.sum()
    log = np.log(post.data["posterior"]["kernel.lengthscale"].values)
    exact = weight @ logs
    sd = np.sqrt(weight @ (logs - exact) ** 2)
    assert abs(log.mean() - exact) < 0.15 * sd, (log.mean(), exact, sd)
    assert log.std() == pytest.approx(sd, rel=0.15)
    f = post.data["posterior"]["f"].values.reshape(-1, 14)
    np.testing.assert_allclose(f.mean(0), weight @ np.array(mean), atol=0.03)
    assert post.predict(np.array([[0.5], [2.0]]))["y"].shape == (2, 1000, 2)
    assert post.log_likelihood()["y"].shape == (2, 1000, 14)


def test_bad_priors_are_named():
    gp = observed(10)
    for priors, message in (
        ({}, "priors must be a dict"),
        ({"kernel.scale": SCALE}, "priors names 'kernel.scale'; the hyper-parameters are kernel.lengthscale"),
        ({"kernel.variance": 1.0}, r"priors\['kernel.variance'\] must be a NumPyro distribution, got 1.0"),
        ({"kernel.lengthscale": dist.LogNormal(np.zeros(3), 1.0)}, r"is of shape \(3,\)"),
    ):
        with pytest.raises(pf.InvalidArgument, match=message):
            gp.with_priors(priors)


@pytest.mark.slow
@pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")
@pytest.mark.parametrize("name", ["gp_regr", "gp_pois_regr"])
def test_reference_posteriors(name):
    reference = posteriordb.load(f"gp_pois_regr-{name}", DATABASE)
    data = reference.data
    amplitude = dist.TransformedDistribution(dist.HalfNormal(2.0), PowerTransform(2.0))
    priors = {"kernel.lengthscale": dist.Gamma(25.0, 4.0), "kernel.variance": amplitude}
    kernel, x = kernels.RBF(5.0, 4.0), np.asarray(data["x"], float)
    if name == "gp_regr":
        priors["likelihood.variance"] = dist.HalfNormal(1.0)  # the model adds sigma, not its square, to the diagonal
        gp = LatentGP(kernel, likelihoods.Gaussian(1.0), x, data["y"], nugget=0.0)
    else:
        gp = LatentGP(kernel, likelihoods.Poisson(), x, data["k"], nugget=1e-10)
    post = pf.fit(gp.with_priors(priors), pf.NUTS(), num_samples=4000, progress=False)
    draws = {k: v.values.reshape(-1, *v.shape[2:]) for k, v in post.data["posterior"].data_vars.items()}
    found = {"rho": draws["kernel.lengthscale"], "alpha": np.sqrt(draws["kernel.variance"])}
    if name == "gp_regr":
        found["sigma"] = draws["likelihood.variance"]
    else:
        found["f"] = draws["f"]
    for key, value in found.items():
        expected = reference.draws[key].reshape(-1, *value.shape[1:])
        sd = expected.std(0)
        assert np.all(abs(value.mean(0) - expected.mean(0)) < 0.1 * sd), key
        np.testing.assert_allclose(value.std(0), sd, rtol=0.1, err_msg=key)


def test_derivatives_of_a_conditional_are_those_of_the_dense_one():
    """First and second, by hand-written products, against a difference of two multivariate normals."""
    rng = np.random.default_rng(0)
    a, moved = rng.normal(size=(2, 5, 5))
    r, shift = rng.normal(size=(2, 5))

    def dense(k, r):
        return -0.5 * (r @ jnp.linalg.solve(k, r) + jnp.linalg.slogdet(k)[1] + len(r) * jnp.log(2 * jnp.pi))

    def along(t, f):
        return f(a @ a.T + jnp.eye(5) + t * (moved + moved.T), r + t * shift)

    with jax.enable_x64(True):
        for order in (lambda f: f, jax.grad, lambda f: jax.grad(jax.grad(f))):
            found = order(lambda t: along(t, log_conditional))(0.1)
            expected = order(lambda t: along(t, lambda k, r: dense(k, r) - dense(k[:-1, :-1], r[:-1])))(0.1)
            assert float(found) == pytest.approx(float(expected), rel=1e-9)
