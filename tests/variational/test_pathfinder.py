"""Pathfinder: its normals against dense algebra and exact inverse Hessians, its mixture's density, its evidence."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import pushforward as pf
from pushforward.infer.variational.pathfinder import NormalMixture, Pathfinder, PathState, normal_of_path, path_elbo

MEAN = np.array([1.0, -2.0, 0.5])
COVARIANCE = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.2], [0.0, 0.2, 0.25]])
LOG_Z = 1.7


def log_density(x, data):
    mean, precision = data
    _, log_det = jnp.linalg.slogdet(precision)
    quadratic = (x - mean) @ precision @ (x - mean)
    return LOG_Z - 0.5 * quadratic + 0.5 * log_det - 1.5 * jnp.log(2 * jnp.pi)


@cache
def gaussian() -> pf.Target:
    return pf.Target.from_log_density(log_density, np.zeros(3), data=(MEAN, np.linalg.inv(COVARIANCE)))


def some_path(dim: int = 5, rank: int = 4) -> PathState:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(rank, rank))
    return PathState(
        jnp.zeros(()),
        *map(jnp.asarray, (rng.normal(size=dim), rng.normal(size=dim), rng.uniform(0.5, 2, dim))),
        jnp.asarray(rng.normal(size=(dim, rank))),
        jnp.asarray(root @ root.T / 10),
    )


@pytest.mark.parametrize(("dim", "rank"), [(5, 4), (3, 6)])
def test_the_normal_of_a_path_is_the_dense_one(dim: int, rank: int) -> None:
    with jax.enable_x64(True):
        state = some_path(dim, rank)
        sigma = np.diag(state.alpha) + state.beta @ state.gamma @ state.beta.T
        mean, *rest = jax.jit(normal_of_path)(state)
        mixture = NormalMixture(jnp.zeros(1), mean[None], *(x[None] for x in rest))
        np.testing.assert_allclose(mean, state.position + sigma @ state.gradient, rtol=1e-10)
        np.testing.assert_allclose(mixture.covariance(), sigma, rtol=1e-10)
        u, log_q = jax.jit(lambda key: mixture.sample_and_log_prob(key, 50_000))(jax.random.key(0))
        exact = stats.multivariate_normal(np.asarray(mean), np.asarray(sigma))
        np.testing.assert_allclose(log_q, exact.logpdf(np.asarray(u)), rtol=1e-9)
        np.testing.assert_allclose(np.cov(np.asarray(u), rowvar=False), sigma, atol=0.03 * np.abs(sigma).max())


def test_the_mean_is_on_the_side_of_the_mode() -> None:
    # With the exact inverse Hessian one Newton step leads from anywhere to the mode.
    with jax.enable_x64(True):
        target, start = gaussian(), jnp.array([5.0, 5.0, 5.0])
        eigenvalues, vectors = np.linalg.eigh(COVARIANCE)
        alpha = np.full(3, eigenvalues.min() / 2)
        state = PathState(
            jnp.zeros(()), start, jax.grad(target.log_density)(start), jnp.asarray(alpha), jnp.asarray(vectors),
            jnp.diag(jnp.asarray(eigenvalues - alpha)),
        )  # fmt: skip
        np.testing.assert_allclose(normal_of_path(state)[0], MEAN, rtol=1e-9)
        # At the exact normal the ELBO is log Z for every set of draws.
        z = jax.random.normal(jax.random.key(0), (7, 3))
        assert float(path_elbo(state, target, z)) == pytest.approx(LOG_Z, abs=1e-9)


def test_gaussian_target() -> None:
    posterior = pf.fit(gaussian(), Pathfinder(), key=0, num_samples=4000, progress=False)
    with jax.enable_x64(True):
        np.testing.assert_allclose(posterior.approximation.mean(), MEAN, atol=0.05)
        np.testing.assert_allclose(posterior.approximation.covariance(), COVARIANCE, atol=0.15)
    found = posterior.evidence()
    assert found.log_evidence == pytest.approx(LOG_Z, abs=4 * found.se + 1e-3)
    assert found.se < 0.02
    elbo, error = posterior.elbo()
    assert elbo < LOG_Z + 4 * error
    assert posterior.draws()["x"].shape == (1, 4000, 3)


def two_modes(x):
    # Unequal, far apart, unequal widths: masses 0.25 and 0.75.
    left = jnp.log(0.25) + jnp.sum(-0.5 * ((x + 4) / 0.5) ** 2 - jnp.log(0.5) - 0.5 * jnp.log(2 * jnp.pi))
    right = jnp.log(0.75) + jnp.sum(-0.5 * (x - 4) ** 2 - 0.5 * jnp.log(2 * jnp.pi))
    return jnp.logaddexp(left, right)


def test_paths_to_two_modes_make_a_mixture() -> None:
    target = pf.Target.from_log_density(two_modes, np.zeros(2))
    start = np.array([[-3.0, -3.0], [3.0, 3.0]])
    posterior = pf.fit(target, Pathfinder(), key=0, num_chains=2, start=start, num_samples=4000, progress=False)
    # One path per mode: weights by ELBO are the masses.
    with jax.enable_x64(True):
        np.testing.assert_allclose(posterior.approximation.mean(), [2.0, 2.0], atol=0.1)
        shifted = posterior.approximation
        u, log_q = jax.jit(lambda key: shifted.sample_and_log_prob(key, 5))(jax.random.key(3))
        np.testing.assert_allclose(log_q, jax.jit(jax.vmap(shifted.log_prob))(u))
    assert posterior.evidence().log_evidence == pytest.approx(0.0, abs=0.02)
    equal = pf.fit(
        target, Pathfinder(weights="equal"), key=0, num_chains=2, start=start, num_samples=4000, progress=False
    )
    np.testing.assert_allclose(np.exp(equal.approximation.log_weights), 0.5)
    # Importance weights put right what equal weights get wrong.
    assert equal.evidence().log_evidence == pytest.approx(0.0, abs=0.06)


def test_the_heaviest_normal_gives_coordinates() -> None:
    with jax.enable_x64(True):
        parts = [np.stack(x) for x in zip(*(normal_of_path(some_path(4, rank)) for rank in (2, 2)), strict=True)]
        parts[0][1] += 3.0
        mixture = NormalMixture(jnp.log(jnp.array([0.2, 0.8])), *map(jnp.asarray, parts))
        with pytest.raises(pf.NotAvailable, match="mixture of 2 normals is not a map"):
            mixture.transport(jnp.zeros(4))
    q = pf.NUTS(precondition=mixture).precondition  # outside of 64 bits, as a user makes it
    with jax.enable_x64(True):
        z = jnp.array([0.3, -1.0, 0.7, 2.0])
        u, log_det = q.transport(z)
        np.testing.assert_allclose(q.transport(jnp.zeros(4))[0], parts[0][1], rtol=1e-12)
        np.testing.assert_allclose(q.pull(u), z, rtol=1e-10)
        np.testing.assert_allclose(q.log_prob(u), stats.norm.logpdf(z).sum() - log_det, rtol=1e-10)
        np.testing.assert_allclose(log_det, jnp.linalg.slogdet(jax.jacobian(lambda z: q.transport(z)[0])(z))[1])
        assert q.coordinates() is q


def test_log_prob_takes_sites_or_u() -> None:
    posterior = pf.fit(gaussian(), Pathfinder(), key=0, num_samples=10, progress=False)
    by_site = posterior.log_prob({"x": MEAN})
    assert by_site == pytest.approx(float(posterior.log_prob(MEAN)))
    assert posterior.log_prob(np.stack([MEAN, MEAN])).shape == (2,)
    assert by_site.dtype == np.float64


def test_refusals() -> None:
    with pytest.raises(pf.InvalidArgument, match="history must be a whole number >= 1, got 0"):
        Pathfinder(history=0)
    with pytest.raises(pf.InvalidArgument, match="weights must be one of 'elbo', 'equal', got 'psis'"):
        Pathfinder(weights="psis")
    state = jax.tree.map(lambda x: jnp.stack([x, x]), some_path())
    state = PathState(jnp.full(2, -jnp.inf), *jax.tree.leaves(state)[1:])
    with pytest.raises(pf.NonFinite, match="none of 2 paths has a normal with a finite ELBO"):
        Pathfinder().result(state, gaussian())
