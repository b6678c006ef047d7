"""The linear regressions of the paper's experiments, as the method sheet generates them, and their exact posteriors."""

from functools import cache

import jax.numpy as jnp
import numpy as np

import pushforward as pf

LAMBDA, XI = 10.0, 4.0


@cache
def regression(agents: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True parameter (2,), covariates (agents, rows, 2), responses (agents, rows)."""
    rng = np.random.RandomState(10)
    truth = rng.multivariate_normal(np.zeros(2), LAMBDA * np.eye(2))
    xs, ys = [], []
    for _ in range(agents):
        x = rng.multivariate_normal(np.zeros(2), np.eye(2), rows)
        xs.append(x)
        ys.append(x @ truth + rng.normal(0, XI, rows))
    return truth, np.array(xs), np.array(ys)


def linear_target(agents: int, rows: int) -> pf.Target:
    """The regression with one shard for each agent."""
    _, x, y = regression(agents, rows)
    target = pf.Target.from_factors(
        lambda b: -jnp.sum(b**2) / (2 * LAMBDA),
        lambda b, datum: -((datum["y"] - datum["x"] @ b) ** 2) / (2 * XI**2),
        {"x": x.reshape(-1, 2), "y": y.reshape(-1)},
        np.zeros(2),
    )
    return target.sharded(agents)


def posterior(agents: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and covariance."""
    _, x, y = regression(agents, rows)
    x, y = x.reshape(-1, 2), y.reshape(-1)
    covariance = np.linalg.inv(x.T @ x / XI**2 + np.eye(2) / LAMBDA)
    return covariance @ x.T @ y / XI**2, covariance


def wasserstein(m: np.ndarray, c: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """W2 of two normals."""
    root = _root(covariance)
    return float(np.sqrt(max(np.sum((m - mean) ** 2) + np.trace(c + covariance - 2 * _root(root @ c @ root)), 0.0)))


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
