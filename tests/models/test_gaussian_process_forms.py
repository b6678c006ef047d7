"""Dense, Markov and low-rank forms of a latent process against dense algebra in NumPy and SciPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import pushforward as pf
from pushforward.models import LatentGP
from pushforward.models.gaussian_process import kernels, likelihoods, means
from pushforward.models.gaussian_process.chain import Chain
from pushforward.models.gaussian_process.dense import Dense, Inducing, choose_inducing
from pushforward.models.gaussian_process.sites import Sites, elbo, first_sites, iterate, settle
from pushforward.models.gaussian_process.sites_posterior import SitesPosterior

NOISE, NUGGET = 0.1, 1e-3
SMALL = kernels.Matern52(0.4, 0.7)
MIXED = kernels.Matern32(0.3) * kernels.Matern12(0.9) + SMALL


def series(kernel, n=40, **options):
    """Unsorted times, with two that nearly coincide."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=n)
    x[7] = x[3] + 1e-7
    y = np.sin(7 * x) + np.sqrt(NOISE) * rng.normal(size=n)
    return LatentGP(kernel, likelihoods.Gaussian(NOISE), x, y, mean=means.Constant(0.2), nugget=NUGGET, **options)


NEW = np.concatenate([np.random.default_rng(1).uniform(-0.3, 1.4, size=8), [0.5, 0.5 + 1e-6]])


def textbook(kernel, one, two):
    """Covariances of Matérn kernels, their sums and products, in NumPy."""
    if hasattr(kernel, "left"):
        parts = textbook(kernel.left, one, two), textbook(kernel.right, one, two)
        return parts[0] + parts[1] if isinstance(kernel, kernels.Sum) else parts[0] * parts[1]
    order = {"Matern12": 1, "Matern32": 2, "Matern52": 3}[type(kernel).__name__]
    r = np.sqrt(2 * order - 1) * abs(one[:, None] - two) / float(kernel.lengthscale)
    return float(kernel.variance) * [1, 1 + r, 1 + r + r**2 / 3][order - 1] * np.exp(-r)


def matrices(gp):
    """Prior covariance at the data, with new inputs and at these, nugget included where an input meets itself."""
    x = np.asarray(gp.X)[:, 0]
    nugget = lambda k: k + NUGGET * np.diag(np.diag(k))  # noqa: E731
    own = [nugget(textbook(gp.kernel, at, at)) for at in (x, NEW)]
    return own[0], textbook(gp.kernel, x, NEW), own[1]


def posterior_at_new(gp, noise):
    k, cross, own = matrices(gp)
    weight = np.linalg.solve(k + noise * np.eye(gp.dim), cross)
    return 0.2 + weight.T @ (gp.y - 0.2), own - weight.T @ cross


@jax.jit
def under_noise(gp, form):
    """The posterior under Gaussian noise, without a fit."""
    sites = first_sites(gp)
    value, found = elbo(gp, form, sites)
    return SitesPosterior(gp, form, sites, gp.mean.at(gp.X) + found.mean, found.explained + found.residual, value)


def with_form(gp, form):
    with jax.enable_x64(True):
        return under_noise(jax.tree.map(jnp.asarray, gp), form)


FORMS = {
    "dense": (MIXED, Dense()),
    "chain": (MIXED, Chain()),
    "parallel chain": (SMALL, Chain(parallel=True)),
    "all inputs": (MIXED, None),
}
SLOW = ("dense", "all inputs", "parallel chain")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FORMS])
def test_every_form_is_the_exact_process(name):
    kernel, form = FORMS[name]
    gp = series(kernel)
    q = with_form(gp, Inducing(gp.X) if form is None else form)
    k, *_ = matrices(gp)
    noisy = k + NOISE * np.eye(40)
    loose = 300 if form is None else 1  # the jitter of K at the inducing inputs
    assert float(q.elbo) == pytest.approx(
        st.multivariate_normal(np.full(40, 0.2), noisy).logpdf(gp.y), abs=1e-8 * loose
    )
    np.testing.assert_allclose(q.loc, 0.2 + k @ np.linalg.solve(noisy, gp.y - 0.2), atol=1e-10 * loose)
    np.testing.assert_allclose(q.variance, np.diag(k - k @ np.linalg.solve(noisy, k)), atol=1e-10 * loose)
    mean, covariance = posterior_at_new(gp, NOISE)
    found = q.predict(NEW)
    np.testing.assert_allclose(found.mean, mean, atol=1e-10 * loose)
    np.testing.assert_allclose(found.variance, covariance.diagonal(), atol=1e-10 * loose)


@pytest.mark.slow
@pytest.mark.parametrize("form", [Chain(), Dense()], ids=["chain", "dense"])
def test_draws_densities_and_gradients(form):
    gp = series(SMALL)
    q = with_form(gp, form)
    k, *_ = matrices(gp)
    covariance = k - k @ np.linalg.solve(k + NOISE * np.eye(40), k)
    with jax.enable_x64(True):
        draws, log_q = jax.jit(lambda q: q.sample_and_log_prob(jax.random.key(1), 4000))(q)
        np.testing.assert_allclose(q.covariance(), covariance, atol=1e-9)
    exact = st.multivariate_normal(np.asarray(q.loc), covariance).logpdf(np.asarray(draws))
    np.testing.assert_allclose(log_q, exact, atol=1e-5)
    # log q of draws is -log det(2 pi Sigma)/2 - chi²(40)/2: a wrong spread of the draws shows here in all directions.
    square = -2 * (exact - st.multivariate_normal(np.zeros(40), covariance).logpdf(np.zeros(40)))
    assert abs(square.mean() - 40) < 5 * np.sqrt(80 / 4000)
    _, expected = posterior_at_new(gp, NOISE)
    joint = q.sample_jointly(NEW, 1, 4000)
    error = np.sqrt((expected**2 + np.outer(expected.diagonal(), expected.diagonal())) / 4000)
    assert np.all(abs(np.cov(joint.T) - expected) < 5 * error)
    assert expected[8, 9] > 10 * error[8, 9]
    step = 1e-5
    found, up, down = (q.predict(NEW + at, gradients=True) for at in (0.0, step, -step))
    np.testing.assert_allclose(found.mean_gradient[:, 0], (up.mean - down.mean) / (2 * step), atol=1e-6)
    np.testing.assert_allclose(found.variance_gradient[:, 0], (up.variance - down.variance) / (2 * step), atol=1e-6)


def test_low_rank_is_the_collapsed_bound():
    """Titsias' log N(y; mu, Q + noise) - tr(K - Q) / (2 noise), the nugget a part of the noise of what is explained."""
    gp = series(SMALL)
    k, *_ = matrices(gp)
    evidence = st.multivariate_normal(np.full(40, 0.2), k + NOISE * np.eye(40)).logpdf(gp.y)
    with jax.enable_x64(True):
        z = choose_inducing(gp, 6)
        assert z.shape == (6, 1)
        smooth = k / (1 + NUGGET * np.eye(40))
        rows, left = [], smooth.diagonal().copy()
        for _ in range(6):  # each the one of largest variance given those before it
            rows.append(int(np.argmax(np.round(left, 9))))
            left = np.diag(smooth - smooth[:, rows] @ np.linalg.solve(smooth[np.ix_(rows, rows)], smooth[rows]))
        np.testing.assert_allclose(z[:, 0], gp.X[rows, 0])
        everything_told = choose_inducing(LatentGP(kernels.RBF(3.0), gp.likelihood, gp.X, gp.y), 40)
    assert len(everything_told) < 20  # the others are determined by these to nine digits
    q = with_form(gp, Inducing(z))
    low = smooth[:, rows] @ np.linalg.solve(smooth[np.ix_(rows, rows)], smooth[rows])
    nugget = NUGGET * smooth.diagonal()
    covariance = low + np.diag(nugget) + NOISE * np.eye(40)
    bound = st.multivariate_normal(np.full(40, 0.2), covariance).logpdf(gp.y) - np.sum(np.diag(smooth - low)) / (
        2 * NOISE
    )
    assert float(q.elbo) == pytest.approx(bound, abs=1e-5)
    assert bound < evidence - 0.01
    # What draws at the data have, and log q: low rank plus a diagonal.
    with jax.enable_x64(True):
        draws, log_q = jax.jit(lambda q: q.sample_and_log_prob(jax.random.key(2), 200))(q)
        spread = np.asarray(q.covariance())
    inside = low + np.diag(nugget)
    expected = inside - inside @ np.linalg.solve(covariance, inside) + np.diag(np.diag(smooth - low))
    np.testing.assert_allclose(spread, expected, atol=1e-7)
    exact = st.multivariate_normal(np.asarray(q.loc), expected).logpdf(np.asarray(draws))
    np.testing.assert_allclose(log_q, exact, atol=1e-4)


@pytest.mark.slow
def test_density_of_a_long_low_rank_posterior(monkeypatch):
    """By Woodbury's identity as by a dense matrix."""
    gp = series(SMALL)
    with jax.enable_x64(True):
        q = with_form(gp, Inducing(choose_inducing(gp, 6)))
        at = np.asarray(q.loc) + 0.1
        dense = float(q.log_prob(at))
        monkeypatch.setattr("pushforward.models.gaussian_process.dense.DENSE_DENSITY", 10)
        assert float(q.log_prob(at)) == pytest.approx(dense, abs=1e-7)


@pytest.mark.parametrize("likelihood", ["Poisson", pytest.param("StudentT", marks=pytest.mark.slow)])
def test_fixed_point_is_the_optimum_of_the_elbo(likelihood):
    """Dense stationary equations; the chain and all inducing inputs end at the same q."""
    gp = series(SMALL, n=20)
    y = np.random.default_rng(5).poisson(np.exp(np.sin(7 * gp.X[:, 0]))).astype(float)
    given = {"Poisson": likelihoods.Poisson(), "StudentT": likelihoods.StudentT(0.4, 3.0)}[likelihood]
    gp = dataclasses.replace(gp, likelihood=given, y=y)
    with jax.enable_x64(True):
        gp = jax.tree.map(jnp.asarray, gp)
        solve = jax.jit(lambda gp, form: settle(gp, form, first_sites(gp), 1e-10, 200))
        chain = solve(gp, Chain())
        k, *_ = matrices(gp)
        found = jax.jit(given.expected)(chain.mean, chain.variance, gp.y)
    inverse = np.linalg.inv(k)
    covariance = np.linalg.inv(inverse + np.diag(np.maximum(found.curvature, 1e-8)))
    above = np.asarray(chain.mean) - 0.2
    np.testing.assert_allclose(above, k @ np.asarray(found.gradient), atol=1e-7)
    np.testing.assert_allclose(chain.variance, covariance.diagonal(), atol=1e-8)
    kl = 0.5 * (
        np.trace(inverse @ covariance) + above @ inverse @ above - 20
        + np.linalg.slogdet(k)[1] - np.linalg.slogdet(covariance)[1]
    )  # fmt: skip
    assert float(chain.elbo) == pytest.approx(float(np.asarray(found.value).sum()) - kl, abs=1e-7)
    if likelihood == "StudentT":
        with jax.enable_x64(True):
            dense, low = solve(gp, Dense()), solve(gp, Inducing(gp.X))
        np.testing.assert_allclose(dense.mean, chain.mean, atol=1e-7)
        np.testing.assert_allclose(low.elbo, chain.elbo, atol=1e-5)


@pytest.mark.slow
def test_a_step_never_lowers_the_elbo():
    """From far away, where a whole natural-gradient step of counts overflows."""
    gp = series(SMALL, n=20)
    y = np.where(np.arange(20) == 4, 3000.0, 0.0)
    gp = dataclasses.replace(gp, likelihood=likelihoods.Poisson(), y=y)
    with jax.enable_x64(True):
        gp = jax.tree.map(jnp.asarray, gp)
        step = jax.jit(lambda gp, given: iterate(gp, Dense(), given))
        given, values, betas = Sites(jnp.zeros(20), jnp.full(20, 1e-8)), [], []
        for _ in range(60):
            found = step(gp, given)
            given = found.sites
            values.append(float(found.elbo))
            betas.append(float(found.step_size))
    assert np.all(np.diff(values) > -1e-8 * abs(values[-1]))
    assert min(betas) < 1
    assert float(found.change) < 1e-6


# -- fits -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ornstein_uhlenbeck_chain():
    x = np.array([0, 0.1, 0.25, 0.45, 0.7, 1])
    gp = LatentGP(kernels.Matern12(0.5), likelihoods.Gaussian(0.1), x, np.sin(6 * x), nugget=0.0)
    post = pf.fit(gp, pf.StateSpaceGP(learn=False), num_samples=20, progress=False)
    q = post.approximation
    assert float(q.elbo) == pytest.approx(-6.1110664689, abs=1e-8)
    np.testing.assert_allclose(q.loc, [0.097741, 0.512955, 0.864990, 0.374324, -0.714820, -0.293547], atol=1e-6)
    assert post.elbo()[0] == pytest.approx(-6.1110664689, abs=1e-7)  # prior density of a chain, density of q
    assert isinstance(post.target.factors_of, Chain)


@pytest.mark.parametrize(
    "method", ["DenseGP", *(pytest.param(m, marks=pytest.mark.slow) for m in ("StateSpaceGP", "SVGP"))]
)
def test_learning_reaches_the_maximum_of_the_evidence(method):
    gp = dataclasses.replace(series(kernels.Matern32(1.0, 0.2)), fixed=("mean.value",))
    post = pf.fit(gp, getattr(pf, method)(gain=1e-6), num_samples=20, progress=False)
    q = post.approximation

    def evidence(free):
        scale, variance, noise, _ = np.exp(free)
        k, *_ = matrices(dataclasses.replace(gp, kernel=kernels.Matern32(scale, variance)))
        return st.multivariate_normal(np.full(40, 0.2), k + noise * np.eye(40)).logpdf(gp.y)

    with jax.enable_x64(True):
        best = np.asarray(post.target.free())
    slope = [(evidence(best + step) - evidence(best - step)) / 2e-4 for step in 1e-4 * np.eye(4)[:3]]
    assert np.all(np.abs(slope) < 0.02), slope
    assert float(q.elbo) == pytest.approx(evidence(best), abs=1e-4)
    with jax.enable_x64(True):
        assert evidence(best) > evidence(np.asarray(gp.free())) + 1
    assert float(post.target.mean.value) == 0.2
    assert "fixed point" in str(post.diagnose())
    assert post.predict(NEW)["y"].shape == (1, 20, 10)
    if method != "DenseGP":
        return
    # More observations: as if they had been there, at the same hyper-parameters.
    more, y = np.array([0.31, 1.2]), np.array([0.5, -0.3])
    found = q.condition(more, y)
    whole = dataclasses.replace(q.gp, X=np.append(gp.X[:, 0], more), y=np.append(gp.y, y))
    exact = with_form(whole, Dense())
    np.testing.assert_allclose(found.loc, exact.loc, atol=1e-10)
    assert float(found.elbo) == pytest.approx(float(exact.elbo), abs=1e-9)
    with pytest.raises(pf.InvalidArgument, match=r"y has shape \(3,\); it must have one entry for each of the 2"):
        q.condition(more, np.zeros(3))


@pytest.mark.slow
def test_learning_with_counts_climbs_the_elbo():
    """The gradient by hyper-parameters with sites held fixed is that of the optimum."""
    gp = series(SMALL, n=30)
    y = np.random.default_rng(5).poisson(np.exp(np.sin(7 * gp.X[:, 0]))).astype(float)
    gp = dataclasses.replace(gp, likelihood=likelihoods.Poisson(), y=y)
    post = pf.fit(gp, pf.StateSpaceGP(gain=1e-5), num_samples=20, progress=False)
    with jax.enable_x64(True):
        gp = jax.tree.map(jnp.asarray, gp)
        best = jax.jit(
            lambda free: settle(gp.with_free(free), Chain(), first_sites(gp.with_free(free)), 1e-10, 200).elbo
        )
        at = post.target.free()
        slope = [float(best(at + step) - best(at - step)) / 2e-3 for step in 1e-3 * np.eye(len(at))]
        assert float(post.approximation.elbo) == pytest.approx(float(best(at)), abs=1e-6)
    assert np.all(np.abs(slope) < 0.05), slope


@pytest.mark.slow
def test_a_long_series_is_linear_in_memory_and_has_a_density():
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(0, 100, size=20_000))
    gp = LatentGP(kernels.Matern32(1.0), likelihoods.Gaussian(0.1), x, np.sin(x) + 0.3 * rng.normal(size=20_000))
    post = pf.fit(gp, pf.StateSpaceGP(learn=False), num_samples=5, progress=False)
    assert post.elbo()[0] == pytest.approx(float(post.approximation.elbo), rel=1e-6)
    found = post.approximation.predict(np.linspace(0, 100, 500))
    assert np.sqrt(np.mean((found.mean - np.sin(np.linspace(0, 100, 500))) ** 2)) < 0.1


def test_what_forms_refuse():
    gp = series(SMALL)
    for kernel in (kernels.RBF(), SMALL + kernels.RationalQuadratic()):
        with pytest.raises(pf.UnsupportedTarget, match="not the covariance of a Markov chain"):
            pf.fit(dataclasses.replace(gp, kernel=kernel), pf.StateSpaceGP(), progress=False)
    plane = LatentGP(SMALL, gp.likelihood, np.arange(6.0).reshape(3, 2), np.zeros(3))
    with pytest.raises(pf.UnsupportedTarget, match="one input, this one has 2"):
        pf.fit(plane, pf.StateSpaceGP(), progress=False)
    long = LatentGP(SMALL, gp.likelihood, np.arange(4001.0), np.zeros(4001))
    with pytest.raises(pf.InvalidArgument, match="at most 4,000 observations, got 4,001"):
        pf.fit(long, pf.DenseGP(), progress=False)
    with pytest.raises(pf.InvalidArgument, match="num_inducing"):
        pf.SVGP(num_inducing=0)
    with pytest.raises(pf.InvalidArgument, match="precision=32 leaves DenseGP"):
        pf.fit(gp, pf.DenseGP(), precision=32, progress=False)
