"""Metrics of SVNG: matrices and products, running means of mini-batches, what is not positive definite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.samplers.stein.metrics import as_metric, positive

RNG = np.random.default_rng(0)
N = 1500
X = RNG.normal(size=(N, 3))
Y = (RNG.uniform(size=N) < 1 / (1 + np.exp(-X @ [1.0, -1.0, 0.5]))).astype(float)
U = np.array([0.3, -0.2, 0.1])


@pytest.fixture(scope="module")
def target() -> pf.Target:
    def log_likelihood(w, row):
        x, y = row
        return y * (x @ w) - jnp.logaddexp(0.0, x @ w)

    return pf.Target.from_factors(lambda w: -0.5 * jnp.sum(w**2), log_likelihood, (X, Y), np.zeros(3))


def truth(kind: str, rows: np.ndarray) -> np.ndarray:
    """By hand; a mini-batch stands for all N."""
    x, y = X[rows], Y[rows]
    p = 1 / (1 + np.exp(-x @ U))
    weight = (y - p) ** 2 if kind == "fisher" else p * (1 - p)
    return N / len(rows) * (x.T * weight) @ x + (np.eye(3) if kind == "hessian" else 0)


@pytest.mark.parametrize("kind", ["hessian", "fisher", "observed"])
def test_matrices_and_products(target, kind):
    """All data, which are more than a block of rows and no multiple of it, and a mini-batch."""
    with jax.enable_x64(True):
        for rows in (None, np.array([3, 700, 1499])):
            metric = as_metric(kind, target, None if rows is None else jnp.asarray(rows))
            expected = truth(kind, np.arange(N) if rows is None else rows)
            np.testing.assert_allclose(metric.matrix(jnp.asarray(U)), expected, rtol=1e-10, atol=1e-9)
            v = jnp.array([1.0, 2.0, -1.0])
            np.testing.assert_allclose(metric.product(jnp.asarray(U), v), expected @ v, rtol=1e-10, atol=1e-9)


def test_the_running_mean_is_of_the_batches_before(target):
    """Weights min(1 − 1/t, decay) of the past; the first batch serves itself. A metric of the batch of the iteration
    would have errors that correlate with those of its score."""
    method = pf.SVNG(num_particles=2, metric="observed", batch_size=3, decay=0.6, damping=0.0)
    batches = [np.array(rows) for rows in ([0, 1, 2], [5, 6, 7], [8, 9, 10], [20, 30, 40])]
    with jax.enable_x64(True):
        y = jnp.asarray(np.stack([U, U]))
        memory, seen = method.remember(target, y), []
        for rows in batches:
            cloud = method.locate(target, y, jnp.asarray(rows), memory)
            memory = cloud.memory
            (block,) = cloud.metric
            seen.append(np.linalg.inv(np.asarray(block.matrices[0])))
    one, two, three, _ = (truth("observed", rows) for rows in batches)
    for found, expected in zip(
        seen, (one, one, 0.5 * one + 0.5 * two, 0.6 * (0.5 * one + 0.5 * two) + 0.4 * three), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_damping_is_raised_where_a_metric_is_not_positive_definite():
    with jax.enable_x64(True):
        matrices = jnp.stack([jnp.eye(2), jnp.diag(jnp.array([1.0, -0.5])), jnp.diag(jnp.array([2.0, 1e-9]))])
        factors, raised = positive(matrices, jnp.asarray(1.0))
        np.testing.assert_array_equal(raised, [False, True, False])
        found = factors @ jnp.swapaxes(factors, 1, 2)
        np.testing.assert_allclose(found[jnp.array([0, 2])], matrices[jnp.array([0, 2])], atol=1e-15)
        assert np.linalg.eigvalsh(found[1]).min() > 0
        np.testing.assert_allclose(found[1] - matrices[1], np.eye(2), atol=1e-12)  # the first power of ten above 0.5


def test_it_is_told(target):
    saddle = pf.SVNG(num_particles=5, num_steps=3, metric=lambda u: jnp.diag(jnp.array([1.0, 1.0, -1.0])))
    assert "damping was raised" in str(pf.fit(target, saddle, progress=False).diagnose())


def test_what_is_refused(target):
    with pytest.raises(pf.InvalidArgument, match=r"metric must be one of 'hessian', 'fisher', 'observed' or a"):
        pf.SVNG(metric="euclidean")
    with pytest.raises(pf.InvalidArgument, match="decay must be a finite number strictly between 0 and 1, got 1"):
        pf.SVNG(decay=1.0)
    with pytest.raises(pf.InvalidArgument, match=r"metric must return shape \(3, 3\), got \(2, 2\)"):
        pf.fit(target, pf.SVNG(metric=lambda u: jnp.eye(2)), progress=False)
    with pytest.raises(pf.NonFinite, match="metric must be finite, got nan at a start"):
        pf.fit(target, pf.SVNG(metric=lambda u: jnp.full((3, 3), jnp.nan)), progress=False)
    wide, normal = (pf.Target.from_log_density(lambda x: -jnp.sum(x**2), np.zeros(d)) for d in (300, 2))
    with pytest.raises(pf.InvalidArgument, match=r"num_particles=4000 matrices of 300 × 300 are more than SVNG holds"):
        pf.fit(wide, pf.SVNG(num_particles=4000, metric=lambda u: jnp.eye(300)), progress=False)
    with pytest.raises(pf.UnsupportedTarget, match=r"SVNG\(metric='observed'\) needs a target with factors"):
        pf.fit(normal, pf.SVNG(metric="observed"), progress=False)
