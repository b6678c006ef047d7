"""Energy distance and maximum mean discrepancy (MMD) of two samples.

Both are a mean over pairs, with g(x, y) = ‖x − y‖ and g = −k:

    D² = 2 E g(X, Y) − E g(X, X') − E g(Y, Y').

Two equal laws have D² = 0, all others D² > 0. The V-statistic of independent samples of one law has the mean
(E g(X, X') − g(X, X)) (1/n + 1/m), the ``floor`` of the result: a small D² means nothing next to it.

References
----------
.. [1] G. J. Székely, M. L. Rizzo (2013). Energy statistics: a class of statistics based on distances. J. Stat. Plan.
   Inference 143.
.. [2] A. Gretton, K. Borgwardt, M. Rasch, B. Schölkopf, A. Smola (2012). A kernel two-sample test. JMLR 13.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...errors import InvalidArgument
from ...kernels.pairs import pair_sums, squared_distances
from ...kernels.radial import KERNELS, kernel_value
from ...validate import check_choice
from .points import Discrepancy, as_bandwidth, as_points, as_weights, centred, median_bandwidth, same_columns

Means = Callable[[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None], tuple[np.ndarray, np.ndarray]]


def energy_distance(x: Any, y: Any, *, x_weights: Any = None, y_weights: Any = None) -> Discrepancy:
    """Energy distance: 2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖.

    Parameters
    ----------
    x, y
        Arrays (n, d) and (m, d), or posteriors.
    x_weights, y_weights
        Weights of the points, not below 0; they need not sum to one. By default those of a posterior of particles.

    Returns
    -------
    Discrepancy
        ``squared`` is the energy distance itself, which is a squared metric. In one dimension by sorting.

    Raises
    ------
    InvalidArgument
        The samples differ in their number of coordinates, or weights do not fit.
    NonFinite
        A point is NaN or infinite.
    """
    x, y, w, v = _samples(x, y, x_weights, y_weights)
    means = _sorted_means if x.shape[1] == 1 else _tiled_means(_distances, ())
    return _compare(means, x, y, w, v, itself=0.0)


def mmd(
    x: Any,
    y: Any,
    *,
    kernel: str = "rbf",
    bandwidth: float | Sequence[float] | None = None,
    x_weights: Any = None,
    y_weights: Any = None,
) -> Discrepancy:
    """Squared maximum mean discrepancy: E k(X, X') + E k(Y, Y') − 2 E k(X, Y).

    Parameters
    ----------
    x, y
        Arrays (n, d) and (m, d), or posteriors.
    kernel
        ``"rbf"``, exp(−r²/h), or ``"imq"``, (1 + r²/h)^(−1/2).
    bandwidth
        h, a squared length, or several, over which the kernels are averaged. By default the median squared distance of
        both samples, times 1/4, 1/2, 1, 2 and 4.
    x_weights, y_weights
        Weights of the points, not below 0; they need not sum to one. By default those of a posterior of particles.

    Raises
    ------
    InvalidArgument
        The samples differ in their number of coordinates, a bandwidth is not above 0, or weights do not fit.
    NonFinite
        A point is NaN or infinite.
    """
    check_choice("kernel", kernel, KERNELS)
    x, y, w, v = _samples(x, y, x_weights, y_weights)
    if bandwidth is None:
        given: Sequence[Any] = [median_bandwidth(x, y) * 2.0**k for k in range(-2, 3)]
    elif np.ndim(bandwidth) == 0:
        given = [bandwidth]
    else:
        given = list(bandwidth)
    if not given:
        raise InvalidArgument(f"bandwidth must be a number above 0 or some of them, got {bandwidth!r}.")
    h = tuple(as_bandwidth(value) for value in given)
    means = _tiled_means(_NEGATIVE_KERNEL[kernel], (np.asarray(h, x.dtype),))
    return _compare(means, x, y, w, v, itself=-1.0)._replace(bandwidth=h[0] if len(h) == 1 else h)


def _samples(x: Any, y: Any, x_weights: Any, y_weights: Any) -> tuple[np.ndarray, ...]:
    """Both samples, centred, and their weights."""
    a, b = as_points("x", x), as_points("y", y)
    same_columns(a, b)
    return *centred(a, b), as_weights("x_weights", x_weights, len(a), x), as_weights("y_weights", y_weights, len(b), y)


def _compare(means: Means, x: np.ndarray, y: np.ndarray, w: np.ndarray, v: np.ndarray, itself: float) -> Discrepancy:
    """D² from means of g over pairs; ``itself`` is g of a point and itself."""
    across_x, across_y = means(x, y, w, v)
    own_x, own_y = means(x, x, w, None)[0], means(y, y, v, None)[0]
    cross = w @ across_x
    unbiased, variance, floor = 2 * cross, 0.0, 0.0
    for weights, own, across in ((w, own_x, across_x), (v, own_y, across_y)):
        same = weights @ weights  # Σ w_i², the weight of the pairs i = j
        if same >= 1:  # all weight on one point, which has no other
            return Discrepancy(_v_statistic(cross, w @ own_x, v @ own_y, w, v, itself), np.nan, np.nan, np.nan)
        within = (weights @ own) / (1 - same)
        unbiased -= within
        floor += same * (within - itself)
        influence = across - own / np.maximum(1 - weights, np.finfo(float).tiny)
        influence -= weights @ influence
        variance += 4 * np.sum((weights * influence) ** 2) / (1 - same)
    squared = _v_statistic(cross, w @ own_x, v @ own_y, w, v, itself)
    return Discrepancy(float(squared), float(unbiased), float(np.sqrt(variance)), float(floor))


def _v_statistic(cross: Any, own_x: Any, own_y: Any, w: np.ndarray, v: np.ndarray, itself: float) -> float:
    return float(2 * cross - own_x - own_y - itself * (w @ w + v @ v))


def _tiled_means(function: Callable, args: tuple) -> Means:
    """Means of g by row and by column, from tiles; of one sample (``v`` is None) over the pairs i ≠ j."""

    def means(x: np.ndarray, y: np.ndarray, w: np.ndarray, v: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            other = (y, v.astype(x.dtype)) if v is not None else ()
            sums = pair_sums(function, x, w.astype(x.dtype), *other, args=args)
            return np.asarray(sums[0]), np.asarray(sums[1])

    return means


def _sorted_means(x: np.ndarray, y: np.ndarray, w: np.ndarray, v: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Means of |x_i − y_j| in one dimension, from sorted points and cumulative sums."""
    a, b = x[:, 0].astype(float), y[:, 0].astype(float)
    v = w if v is None else v
    return _mean_distance(a, b, v), _mean_distance(b, a, w)


def _mean_distance(at: np.ndarray, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ_j w_j |at − p_j| = at (2 W − W_all) − (2 S − S_all), with W and S the sums of w and w p over p_j ≤ at."""
    order = np.argsort(points, kind="stable")
    below = np.searchsorted(points[order], at, side="right")
    w = np.concatenate([[0.0], np.cumsum(weights[order])])
    s = np.concatenate([[0.0], np.cumsum(weights[order] * points[order])])
    return at * (2 * w[below] - w[-1]) - (2 * s[below] - s[-1])


def _distances(x: Array, y: Array) -> Array:
    return jnp.sqrt(squared_distances(x, y))


def _negative_rbf(x: Array, y: Array, bandwidths: Array) -> Array:
    return -_mean_kernel("rbf", x, y, bandwidths)


def _negative_imq(x: Array, y: Array, bandwidths: Array) -> Array:
    return -_mean_kernel("imq", x, y, bandwidths)


def _mean_kernel(kernel: str, x: Array, y: Array, bandwidths: Array) -> Array:
    squared = squared_distances(x, y)
    values = [kernel_value(kernel, squared, bandwidths[k]) for k in range(bandwidths.shape[0])]
    return sum(values[1:], values[0]) / bandwidths.shape[0]


_NEGATIVE_KERNEL = {"rbf": _negative_rbf, "imq": _negative_imq}
