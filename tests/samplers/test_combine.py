"""Sub-posteriors and their combination, on normal models whose products are known."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf
from pushforward.infer.diagnostics.chains import effective_sample_size
from pushforward.infer.errors import InvalidArgument, NonFinite
from pushforward.infer.target import Target
from pushforward.samplers.combine import _moments, combine, semiparametric, shrinkage, transport

N, D, AGENTS, PRIOR, NOISE = 60, 2, 3, 4.0, 1.5
RNG = np.random.default_rng(0)
# Shards of differing, correlated designs: what diagonal weights get wrong.
MIX = [np.array([[1.0, 0.9], [0.0, 0.4]]), np.array([[0.4, 0.0], [-0.9, 1.0]]), np.array([[1.0, 0.0], [0.0, 0.2]])]
AGENT = np.repeat(np.arange(AGENTS), N // AGENTS)
X = np.concatenate([RNG.normal(size=(N // AGENTS, D)) @ m for m in MIX])
Y = X @ np.array([1.0, -2.0]) + NOISE * RNG.normal(size=N)


def model(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, PRIOR).expand([D]).to_event(1))
    with numpyro.plate("rows", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, NOISE), obs=y)


def exact(rows=slice(None), prior_power=1.0, likelihood_power=1.0):
    """Mean and covariance of prior^a · likelihood^b of some rows."""
    precision = prior_power * np.eye(D) / PRIOR**2 + likelihood_power * X[rows].T @ X[rows] / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ (likelihood_power * X[rows].T @ Y[rows] / NOISE**2), covariance


@pytest.fixture(scope="module")
def target():
    return Target.from_numpyro(model, X, Y)


@pytest.fixture(scope="module")
def dealt(target):
    return target.sharded(AGENT)


def drawn(dealt, *, inflated=False, size=(4, 2500), seed=0):
    """Posteriors of exact, independent draws of the sub-posteriors."""
    powers = (1.0, AGENTS) if inflated else (1.0 / AGENTS, 1.0)
    rng = np.random.default_rng(seed)
    found = []
    for i in range(AGENTS):
        mean, covariance = exact(i == AGENT, *powers)
        draws = mean + rng.normal(size=(*size, D)) @ np.linalg.cholesky(covariance).T
        found.append(pf.Posterior.from_draws({"b": draws}, target=dealt.sub_posterior(i, inflated=inflated)))
    return found


def assert_moments(posterior, rtol=0.06):
    """Mean within 5 Monte-Carlo errors, covariance within ``rtol`` of the exact one, in units of the posterior."""
    mean, covariance = exact()
    b = posterior.draws()["b"].reshape(-1, D)
    z = np.linalg.solve(np.linalg.cholesky(covariance), (b - mean).T).T
    np.testing.assert_allclose(z.mean(0), 0, atol=5 / np.sqrt(3000))
    np.testing.assert_allclose(np.cov(z, rowvar=False), np.eye(D), atol=rtol)


@pytest.mark.parametrize("inflated", [False, True])
def test_sub_posteriors_are_powers_of_prior_and_likelihood(dealt, inflated):
    powers = (1.0, AGENTS) if inflated else (1.0 / AGENTS, 1.0)
    with jax.enable_x64(True):
        for i in range(AGENTS):
            part = dealt.sub_posterior(i, inflated=inflated)
            mean, covariance = exact(i == AGENT, *powers)
            gradient, hessian = jax.grad(part.log_density), jax.hessian(part.log_density)
            np.testing.assert_allclose(gradient(jnp.asarray(mean)), 0, atol=1e-9)
            np.testing.assert_allclose(hessian(jnp.asarray(mean)), -np.linalg.inv(covariance), rtol=1e-9, atol=1e-9)
            assert part.observed["y"].shape == (N // AGENTS,)


def test_sub_posteriors_multiply_to_the_posterior_of_a_constrained_target():
    """The log-Jacobian is part of the prior of u, counted once by all agents together."""

    def scale(y):
        s = numpyro.sample("s", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Normal(0.0, s), obs=y)

    whole = Target.from_numpyro(scale, Y)
    dealt = whole.sharded(4)
    with jax.enable_x64(True):
        u = jnp.array([0.3])
        parts = sum(dealt.sub_posterior(i).log_density(u) for i in range(4))
        np.testing.assert_allclose(parts, whole.log_density(u), rtol=1e-12)


@pytest.mark.parametrize("how", ["consensus", "parametric", "swiss"])
def test_normal_sub_posteriors_are_combined_exactly(target, dealt, how):
    posterior = combine(drawn(dealt, inflated=how == "swiss"), how, target=target, num_samples=4000)
    assert_moments(posterior)
    assert posterior.kind == ("approximation" if how == "parametric" else "chains")
    said = str(posterior.diagnose())
    assert "Exact for normal ones" in said
    if how == "parametric":
        mean, covariance = exact()
        np.testing.assert_allclose(posterior.approximation.mean(), mean, atol=0.02)
        with jax.enable_x64(True):
            found = np.asarray(posterior.approximation.covariance())
        np.testing.assert_allclose(found, covariance, rtol=0.06, atol=1e-3)
        assert "k-hat" in said


def test_the_semiparametric_product_of_normal_densities_is_exact():
    rng = np.random.default_rng(0)
    means = [np.array([1.0, 0.0]), np.array([-1.0, 0.5]), np.array([0.3, -0.5])]
    covariance = np.array([[3.0, 1.0], [1.0, 2.0]])
    draws = [m + rng.normal(size=(4, 2500, 2)) @ np.linalg.cholesky(covariance).T for m in means]
    u, replaced = semiparametric(rng, draws, [_moments(i, x) for i, x in enumerate(draws)], 2500, 4)
    z = np.linalg.solve(np.linalg.cholesky(covariance / 3), (u - np.mean(means, 0)).reshape(-1, 2).T)
    np.testing.assert_allclose(z.mean(1), 0, atol=0.12)
    np.testing.assert_allclose(np.cov(z), np.eye(2), atol=0.15)
    assert 0.4 < replaced.mean() < 0.95


def test_skewed_sub_posteriors_need_the_semiparametric_product():
    """exp(a u − eᵘ), the density of the log of a gamma variable: three of them have the product of shape 3a, rate 3."""
    from scipy.special import digamma, polygamma

    rng, a = np.random.default_rng(1), 1.0
    part = Target.from_log_density(lambda u: a * u - jnp.exp(u), np.zeros(()))
    parts = [
        pf.Posterior.from_draws({"x": np.log(rng.gamma(a, size=(4, 2500)))}, target=part) for _ in range(3)
    ]  # fmt: skip
    mean, sd = digamma(3 * a) - np.log(3), np.sqrt(polygamma(1, 3 * a))
    rough = combine(parts, "consensus")
    fine = combine(parts, "semiparametric", num_samples=2500)
    off = {p: abs(p.draws()["x"].mean() - mean) / sd for p in (rough, fine)}
    assert off[rough] > 0.3
    assert off[fine] < 0.12
    assert [f.name for f in rough.diagnose().warnings if f.name == "combination"]
    assert "replaced" in str(fine.diagnose())
    assert fine.data["sample_stats"]["acceptance_rate"].shape == (4, 2500)


def test_diagonal_weights_would_be_wrong(dealt):
    """The example tells full from diagonal weights: those are off by far more than the tolerance above."""
    mean, covariance = exact()
    parts = [exact(i == AGENT, 1 / AGENTS, 1.0) for i in range(AGENTS)]
    weights = [np.diag(1 / np.diagonal(c)) for _, c in parts]
    total = np.linalg.inv(sum(weights))
    wrong_mean = total @ sum(w @ m for w, (m, _) in zip(weights, parts, strict=True))
    wrong = total @ sum(w @ c @ w for w, (_, c) in zip(weights, parts, strict=True)) @ total
    sd = np.sqrt(np.diagonal(covariance))
    assert np.abs((wrong_mean - mean) / sd).max() > 0.3
    assert (np.diagonal(wrong) / np.diagonal(covariance)).max() > 1.2
    # Weights that are covariances, not their inverses, as in a released package.
    upside_down = np.linalg.solve(sum(c for _, c in parts), sum(c @ m for m, c in parts))
    assert np.abs((upside_down - mean) / sd).max() > 2


def test_runs_of_one_key_are_not_coupled(target, dealt):
    """NUTS with the same key on each shard: paired draw by draw their common noise would widen or narrow the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = [
            pf.fit(dealt.sub_posterior(i), num_samples=1500, num_warmup=300, num_chains=2, progress=False)
            for i in range(AGENTS)
        ]
    posterior = combine(parts, target=target)
    mean, covariance = exact()
    z = (posterior.draws()["b"] - mean) / np.sqrt(np.diagonal(covariance))
    error = 1 / np.sqrt(effective_sample_size(np.moveaxis(z, -1, 0)))
    assert np.all(np.abs(z.mean((0, 1))) < 4.5 * error)
    np.testing.assert_allclose(z.std((0, 1)), 1, atol=0.08)


def test_transport_carries_one_covariance_to_the_other():
    a, b = (c @ c.T + np.eye(3) for c in np.random.default_rng(1).normal(size=(2, 3, 3)))
    found = transport(a, b)
    np.testing.assert_allclose(found @ a @ found.T, b, rtol=1e-10)
    np.testing.assert_allclose(found, found.T, rtol=1e-10)


def test_covariances_of_few_draws_are_shrunk(dealt):
    x = np.random.default_rng(0).normal(size=(40, 10))
    assert shrinkage(x) > 0.8  # uncorrelated: nothing but noise in the correlations
    correlated = x[:, :1] + 0.1 * x
    assert shrinkage(correlated) < 0.1
    few = combine(drawn(dealt, size=(1, 15)))
    assert "shrunk" in str(few.diagnose())
    assert "shrunk" not in str(combine(drawn(dealt, size=(1, 100))).diagnose())


def test_a_heavy_tailed_prior_to_a_power_is_warned_of():
    def heavy(y):
        m = numpyro.sample("m", dist.StudentT(2.0, 0.0, 1.0))
        s = numpyro.sample("s", dist.HalfCauchy(1.0))
        numpyro.sample("y", dist.Normal(m, s), obs=y)

    whole = Target.from_numpyro(heavy, Y)
    with pytest.warns(RuntimeWarning, match="to the power 1/4 is not integrable along the site 'm'"):
        whole.sharded(4).sub_posterior(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole.sharded(2).sub_posterior(1)  # |m|^-3/2 is
        whole.sharded(4).sub_posterior(1, inflated=True)


@pytest.mark.parametrize("how", ["consensus", "swiss"])
def test_all_chains_count_where_their_numbers_differ(dealt, how):
    """Chains that are apart, as the one of agent 1 is from its others: a mean over the first alone would be off."""
    parts = drawn(dealt, size=(4, 500), inflated=how == "swiss")
    whole = combine(parts, how)
    b = parts[1].draws()["b"] + np.array([3.0, -1.0, -1.0, -1.0])[:, None, None]
    apart = pf.Posterior.from_draws({"b": b}, target=parts[1].target)
    short = pf.Posterior.from_draws({"b": parts[2].draws()["b"][:2]}, target=parts[2].target)
    found = combine([parts[0], apart, short], how)
    assert found.draws()["b"].shape[1] == 1000
    error = np.sqrt(np.diagonal(exact()[1]))
    np.testing.assert_allclose(
        (found.draws()["b"].mean((0, 1)) - whole.draws()["b"].mean((0, 1))) / error, 0, atol=0.25
    )
    assert "from 1000 to 2000 draws" in str(found.diagnose())


def test_parts_of_several_shardings_are_refused(target, dealt):
    """Agents 0, 1 and 2, of three and of four."""
    parts = drawn(dealt, size=(1, 50))
    other = pf.Posterior.from_draws({"b": parts[1].draws()["b"]}, target=target.sharded(4).sub_posterior(1))
    with pytest.raises(InvalidArgument, match=r"of one sharding.*posteriors\[1\] is agent 1 of 4, posteriors\[2\] is"):
        combine([parts[0], other, parts[2]])


def test_bad_input(target, dealt):
    parts = drawn(dealt, size=(1, 50))
    with pytest.raises(InvalidArgument, match=r"how must be one of .*, got 'average'"):
        combine(parts, "average")
    with pytest.raises(InvalidArgument, match="at least two Posteriors, got Posterior"):
        combine(parts[:1])
    with pytest.raises(
        InvalidArgument, match=r"agents 0 to 2, each once, got agents \[0, 1\] and 0 others; a posterior"
    ):
        combine(parts[:2])
    with pytest.raises(InvalidArgument, match=r"got agents \[0, 1, 1\]"):
        combine([parts[0], parts[1], parts[1]])
    with pytest.raises(InvalidArgument, match=r"how='swiss' needs sub-posteriors .*inflated=True\); that of agent 0"):
        combine(parts, "swiss")
    with pytest.raises(
        InvalidArgument, match=r"needs sub-posteriors prior\^\(1/n\) .* the powers 1 of the prior and 3"
    ):
        combine(drawn(dealt, size=(1, 50), inflated=True))
    with pytest.raises(InvalidArgument, match=r"posteriors\[1\] has no target"):
        combine([parts[0], pf.Posterior.from_draws({"b": np.zeros((1, 5, 2))})])
    still = pf.Posterior.from_draws({"b": np.ones((1, 50, 2))}, target=parts[1].target)
    with pytest.raises(NonFinite, match=r"of the 50 draws of posteriors\[1\] in 2 coordinates is singular"):
        combine([parts[0], still, parts[2]])
    with pytest.raises(InvalidArgument, match="agent must be below 3, the number of shards, got 3"):
        dealt.sub_posterior(3)
