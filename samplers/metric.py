"""Forms of a Hamiltonian metric (the inverse mass matrix, an estimate of the posterior covariance of u).

Variances (d,), a matrix (d, d), BlackJAX's low-rank triple, or a `Factor` of a matrix. The last two are used in
coordinates in which they are the identity (`whiten`), which costs two products with the factor per leapfrog step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Factor(NamedTuple):
    """A metric M as a factor F with F Fᵀ = M, and F⁻¹; each of shape (d, d), not triangular."""

    root: Float[Array, "*chain d d"]
    inverse: Float[Array, "*chain d d"]

    def matrix(self) -> Float[Array, "*chain d d"]:
        """F Fᵀ."""
        return self.root @ self.root.swapaxes(-1, -2)


def whiten(metric: Any, point: Any, log_density: Callable[[Array], Array]) -> tuple[Any, Any, Any, Any]:
    """Coordinates w about a point in which a metric is the identity: u = u₀ + F w with F Fᵀ = metric.

    BlackJAX's own kinetic energies of such metrics need a product for every velocity of every U-turn test.

    Parameters
    ----------
    metric
        A `Factor`, or BlackJAX's low-rank triple, whose F = diag(σ) (I + U (√Λ - I) Uᵀ) is applied in O(d rank).

    Returns
    -------
    The point, the log density and the metric (ones) in w, and the function that brings a point back to u.
    """
    if isinstance(metric, Factor):
        forward = lambda w: metric.root @ w  # noqa: E731
        transpose = lambda g: g @ metric.root  # noqa: E731
        inverse_transpose = lambda g: g @ metric.inverse  # noqa: E731
    else:
        sigma, directions, root = metric.sigma, metric.U, jnp.sqrt(metric.lam)
        stretch = lambda x, by: x + directions @ ((by - 1.0) * (directions.T @ x))  # noqa: E731
        forward = lambda w: sigma * stretch(w, root)  # noqa: E731
        transpose = lambda g: stretch(sigma * g, root)  # noqa: E731
        inverse_transpose = lambda g: stretch(g, 1.0 / root) / sigma  # noqa: E731

    def back(white: Any) -> Any:
        position = point.position + forward(white.position)
        return type(white)(position, white.logdensity, inverse_transpose(white.logdensity_grad))

    start = type(point)(jnp.zeros_like(point.position), point.logdensity, transpose(point.logdensity_grad))
    return start, lambda w: log_density(point.position + forward(w)), jnp.ones_like(point.position), back


def is_whitened(metric: Any) -> bool:
    """Whether trajectories run in coordinates of the metric's own."""
    return isinstance(metric, Factor) or hasattr(metric, "sigma")


def variances(metric: Any) -> Array:
    """Diagonal of a metric of any form, shape (d,)."""
    if isinstance(metric, Factor):
        return (metric.root**2).sum(-1)
    if hasattr(metric, "sigma"):  # diag(σ) (I + U (Λ - I) Uᵀ) diag(σ)
        return metric.sigma**2 * (1.0 + (metric.U**2 * (metric.lam - 1.0)).sum(-1))
    return metric if metric.ndim == 1 else jnp.diagonal(metric)


def as_metric(metric: Any, like: Any) -> Any:
    """A metric in the form of another one: what it says of directions is lost where that form has none.

    Parameters
    ----------
    metric
        Variances (d,), a matrix (d, d), a `Factor`, BlackJAX's low-rank triple, or None, which stays None.
    like
        A metric of the form that is wanted.
    """
    if metric is None or (type(metric) is type(like) and is_whitened(like)):
        return metric
    if hasattr(like, "sigma"):
        return like._replace(sigma=jnp.sqrt(variances(metric)))
    if isinstance(like, Factor):
        if not hasattr(metric, "sigma") and metric.ndim == 1:
            return Factor(jnp.diag(jnp.sqrt(metric)), jnp.diag(1.0 / jnp.sqrt(metric)))
        root = jnp.linalg.cholesky(as_matrix(metric))
        return Factor(root, jax.scipy.linalg.solve_triangular(root, jnp.eye(len(root)), lower=True))
    return variances(metric) if like.ndim == 1 else as_matrix(metric)


def as_matrix(metric: Any) -> Float[Array, "d d"]:
    """A metric of any form, as a matrix."""
    if isinstance(metric, Factor):
        return metric.matrix()
    if hasattr(metric, "sigma"):
        inner = jnp.eye(len(metric.sigma)) + (metric.U * (metric.lam - 1.0)) @ metric.U.T
        return metric.sigma[:, None] * inner * metric.sigma
    return metric if metric.ndim == 2 else jnp.diag(metric)


def log_volume(metric: Any) -> np.ndarray:
    """Log volume of the typical set, ½ log det(metric), of metrics stacked over chains; on the host, shape (chain,)."""
    if isinstance(metric, Factor):
        return np.linalg.slogdet(np.asarray(metric.root))[1]
    if hasattr(metric, "sigma"):
        return np.log(np.asarray(metric.sigma)).sum(-1) + 0.5 * np.log(np.asarray(metric.lam)).sum(-1)
    metric = np.asarray(metric)
    if metric.ndim == 2:
        return 0.5 * np.log(metric).sum(-1)
    return 0.5 * np.linalg.slogdet(metric)[1]
