"""Wasserstein distances that have an exact formula: in one dimension, over projections, and of Gaussians.

References
----------
.. [1] N. Bonneel, J. Rabin, G. Peyré, H. Pfister (2015). Sliced and Radon Wasserstein barycenters of measures. J. Math.
   Imaging and Vision 51.
.. [2] R. Bhatia, T. Jain, Y. Lim (2019). On the Bures–Wasserstein distance between positive definite matrices. Expo.
   Math. 37.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from ...errors import InvalidArgument
from ...validate import check_count
from .points import as_points, as_weights, centred, check_finite, same_columns

CHUNK_BYTES = 32 * 2**20


class Sliced(NamedTuple):
    """A sliced Wasserstein distance.

    Attributes
    ----------
    distance : float
        (Mean over projections of W_p^p)^(1/p). It is above 0 also for two samples of one law.
    power : float
        The mean of W_p^p over projections.
    standard_error : float
        Of ``power``, from the choice of the projections only.
    """

    distance: float
    power: float
    standard_error: float


def wasserstein_1d(x: Any, y: Any, *, p: float = 2, x_weights: Any = None, y_weights: Any = None) -> float:
    """W_p of two weighted samples of numbers, exactly: (∫ |F⁻¹(u) − G⁻¹(u)|^p du)^(1/p).

    Parameters
    ----------
    x, y
        Arrays (n,) and (m,).
    p
        At least 1.
    x_weights, y_weights
        Weights of the points, not below 0; they need not sum to one. By default those of a posterior of particles.

    Raises
    ------
    InvalidArgument
        There is more than one coordinate, p is below 1, or weights do not fit.
    NonFinite
        A point is NaN or infinite.
    """
    x, y, w, v = _samples(x, y, p, x_weights, y_weights)
    if x.shape[1] != 1:
        raise InvalidArgument(f"x and y must have one coordinate, got {x.shape[1]}; use sliced_wasserstein.")
    return float(_power(x[:, 0], y[:, 0], w, v, p) ** (1 / p))


def sliced_wasserstein(
    x: Any,
    y: Any,
    *,
    p: float = 2,
    num_projections: int = 200,
    key: Any = 0,
    x_weights: Any = None,
    y_weights: Any = None,
) -> Sliced:
    """Sliced W_p ([1]_): the mean of W_p^p over random directions, to the power 1/p.

    Parameters
    ----------
    x, y
        Arrays (n, d) and (m, d), or posteriors.
    p
        At least 1.
    num_projections
        Number of directions, uniform on the sphere.
    key
        An int or a JAX key; the directions follow from it.
    x_weights, y_weights
        Weights of the points, not below 0; they need not sum to one. By default those of a posterior of particles.

    Raises
    ------
    InvalidArgument
        The samples differ in their number of coordinates, p is below 1, or weights do not fit.
    NonFinite
        A point is NaN or infinite.
    """
    count = check_count("num_projections", num_projections)
    x, y, w, v = _samples(x, y, p, x_weights, y_weights)
    with jax.enable_x64(True):
        key = jax.random.key(check_count("key", key, 0)) if isinstance(key, int) else key
        directions = np.asarray(jax.random.normal(key, (count, x.shape[1]), float))
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    chunk = max(1, CHUNK_BYTES // (8 * max(len(x), len(y))))
    powers = np.empty(count)
    for begin in range(0, count, chunk):
        some = directions[begin : begin + chunk].T
        pairs = zip((x @ some).T, (y @ some).T, strict=True)
        powers[begin : begin + chunk] = [_power(a, b, w, v, p) for a, b in pairs]
    error = powers.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return Sliced(float(powers.mean() ** (1 / p)), float(powers.mean()), float(error))


def gaussian_wasserstein(mean: Any, covariance: Any, other_mean: Any, other_covariance: Any) -> float:
    """W₂ of two Gaussians: (‖m₁ − m₂‖² + tr[C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½])^½.

    The trace is the least ‖A − B Q‖² over orthogonal Q, with C₁ = A Aᵀ and C₂ = B Bᵀ ([2]_, theorem 1): a sum of
    squares, which keeps its digits where the covariances are close. They may be singular.

    Parameters
    ----------
    mean, other_mean
        Arrays (d,).
    covariance, other_covariance
        Arrays (d, d), symmetric and positive semidefinite.

    Raises
    ------
    InvalidArgument
        Shapes do not fit, or a covariance is not symmetric, or has an eigenvalue below 0.
    NonFinite
        An entry is NaN or infinite.
    """
    a, root_a = _gaussian("mean", mean, "covariance", covariance)
    b, root_b = _gaussian("other_mean", other_mean, "other_covariance", other_covariance)
    if a.shape != b.shape:
        raise InvalidArgument(f"both Gaussians must have the same dimension, got {a.size} and {b.size}.")
    left, _, right = np.linalg.svd(root_b.T @ root_a)
    return float(np.hypot(np.linalg.norm(a - b), np.linalg.norm(root_a - root_b @ (left @ right))))


def _gaussian(mean_name: str, mean: Any, name: str, covariance: Any) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the symmetric root of the covariance."""
    mean, covariance = np.atleast_1d(np.asarray(mean, float)), np.atleast_2d(np.asarray(covariance, float))
    d = mean.size
    if mean.ndim != 1 or covariance.shape != (d, d):
        raise InvalidArgument(f"{mean_name} (d,) and {name} (d, d) must fit, got {mean.shape} and {covariance.shape}.")
    check_finite(mean_name, mean)
    check_finite(name, covariance)
    scale = np.abs(covariance).max()
    asymmetry = np.abs(covariance - covariance.T).max()
    if asymmetry > 1e-6 * scale:
        raise InvalidArgument(f"{name} must be symmetric, but differs from its transpose by {asymmetry:g}.")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-6 * scale:
        raise InvalidArgument(f"{name} must be positive semidefinite, but has the eigenvalue {values[0]:g}.")
    return mean, (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _samples(
    x: Any, y: Any, p: float, x_weights: Any, y_weights: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Both samples, centred, in 64 bits; equal weights of equally many points as None."""
    if not 1 <= p < np.inf:
        raise InvalidArgument(f"p must be a finite number >= 1, got {p!r}.")
    a, b = as_points("x", x).astype(np.float64), as_points("y", y).astype(np.float64)
    same_columns(a, b)
    w, v = as_weights("x_weights", x_weights, len(a), x), as_weights("y_weights", y_weights, len(b), y)
    if len(a) == len(b) and np.ptp(w) == np.ptp(v) == 0:
        return *centred(a, b), None, None
    return *centred(a, b), w, v


def _power(x: np.ndarray, y: np.ndarray, w: np.ndarray | None, v: np.ndarray | None, p: float) -> float:
    """W_p^p: quantiles in order, over the pieces of (0, 1) on which both quantile functions are constant."""
    if w is None or v is None:
        return float(np.mean(np.abs(np.sort(x) - np.sort(y)) ** p))
    x, cumulative_x = _quantiles(x, w)
    y, cumulative_y = _quantiles(y, v)
    ends = np.sort(np.concatenate([cumulative_x, cumulative_y]))
    widths = np.diff(ends, prepend=0.0)
    # The piece that ends at u has the quantile of the first point whose cumulative weight reaches u.
    a = x[np.minimum(np.searchsorted(cumulative_x, ends), x.size - 1)]
    b = y[np.minimum(np.searchsorted(cumulative_y, ends), y.size - 1)]
    return float(widths @ np.abs(a - b) ** p)


def _quantiles(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x)
    cumulative = np.cumsum(weights[order])
    return x[order], cumulative / cumulative[-1]
