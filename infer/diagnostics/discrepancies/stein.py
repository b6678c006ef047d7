"""Kernel Stein discrepancies (KSD) of a sample to a target, whose normalising constant is not needed.

With the score s = ∇log π, D = x − x', κ(r²) the kernel and W = −2κ', W' the derivative of W,

    KSD² = E k₀(X, X'),    k₀ = κ s·s' + W [(s − s')·D + d] + 2 W' ‖D‖².

Mirrored (MKSD), with the score b = P s + ∇·P of the density of the dual y = ∇φ(x), P = ∇²φ(x)⁻¹, and a kernel in x:

    k₀ = κ b·b' + W [(P'b − P b')·D + tr P P'] + 2 W' (P D)·(P' D);

with a kernel in y it is the KSD of y. A KSD sees the score only: it is blind to the weights of modes far apart, and
weak in many dimensions. On a support with edges the plain one is wrong (its Stein identity fails for a density that
does not vanish there); use the mirrored one.

References
----------
.. [1] Q. Liu, J. Lee, M. Jordan (2016). A kernelized Stein discrepancy for goodness-of-fit tests. ICML.
.. [2] J. Gorham, L. Mackey (2017). Measuring sample quality with kernels. ICML.
.. [3] J. Shi, C. Liu, L. Mackey (2022). Sampling with mirrored Stein operators. ICLR.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...geometry import AbstractMirror
from ...kernels.pairs import difference_products, inner_products, pair_sums, squared_distances
from ...kernels.radial import KERNELS, gradient_weight, kernel_value
from ...validate import check_choice
from .points import Discrepancy, as_bandwidth, as_weights, centred
from .scores import dual_points, scored

TILE_ENTRIES = 2**21
"""Of the largest array of a tile where P is a matrix."""


def ksd(
    points: Any, target: Any, *, kernel: str = "imq", bandwidth: float | None = None, weights: Any = None
) -> Discrepancy:
    """Kernel Stein discrepancy ([1]_, definition 3.2; with the IMQ kernel it sees all of a law's convergence, [2]_).

    Parameters
    ----------
    points
        Array (n, d). With a `Target` its unconstrained coordinates, or a posterior, or a dict (chain, draw, …) by site.
    target
        A `Target`; or the score, a function of one point (d,); or the scores at the points, (n, d).
    kernel
        ``"imq"``, (1 + r²/h)^(−1/2), or ``"rbf"``, exp(−r²/h).
    bandwidth
        h, a squared length; by default the median squared distance. Runs are compared with the same one.
    weights
        Of the points, not below 0; they need not sum to one. By default those of a posterior of particles.

    Returns
    -------
    Discrepancy
        With ``squared`` = KSD².

    Raises
    ------
    InvalidArgument
        Shapes do not fit, the bandwidth is not above 0, or weights do not fit.
    NonFinite
        A point or a score is NaN or infinite.
    """
    check_choice("kernel", kernel, KERNELS)
    x, score = scored(points, target)
    return _plain(x, score, kernel, bandwidth, as_weights("weights", weights, len(x), points))


def mksd(
    points: Any,
    target: Any,
    mirror: AbstractMirror | None = None,
    *,
    kernel: str = "imq",
    bandwidth: float | None = None,
    space: str = "dual",
    weights: Any = None,
) -> Discrepancy:
    """Mirrored kernel Stein discrepancy ([3]_, section 3), for targets on a convex set.

    Parameters
    ----------
    points
        Array (n, d) in the set; of a simplex all probabilities but the last. With a `Target` also a posterior, or a
        dict (chain, draw, …) by site.
    target
        A `Target`; or ∇log π in these coordinates, without a log-Jacobian, a function of one point (d,); or its values
        at the points, (n, d), of a simplex also with respect to all d + 1 probabilities, (n, d + 1).
    mirror
        A mirror map; by default, with a `Target`, that of its supports.
    kernel, bandwidth, weights
        As of `ksd`.
    space
        Of the kernel: ``"dual"``, y, or ``"primal"``, x. Only in the dual a small MKSD is known to mean a close law.

    Returns
    -------
    Discrepancy
        With ``squared`` = MKSD².

    Raises
    ------
    InvalidArgument
        As of `ksd`; or a point lies outside of the mirror's domain, or there is no mirror.
    NonFinite
        A point or a score is NaN or infinite.
    UnsupportedTarget
        A support of the target depends on data or other sites.

    Notes
    -----
    In the dual, and in the primal for mirrors by coordinate, the cost is that of `ksd`; in the primal for other mirrors
    O(n² d²), with memory O(n d²).
    """
    check_choice("kernel", kernel, KERNELS)
    check_choice("space", space, ("dual", "primal"))
    x, y, score, inverse = dual_points(points, target, mirror, inverse=space == "primal")
    w = as_weights("weights", weights, len(x), points)
    if inverse is None:
        return _plain(y, score, kernel, bandwidth, w)
    h = as_bandwidth(bandwidth, x)
    trace = np.sum(inverse.reshape(len(x), -1).astype(float) ** 2, axis=1)
    fields = {"x": centred(x)[0], "score": score, "inverse": inverse}
    if inverse.ndim == 2:
        return _statistics(_DIAGONAL[kernel], fields, trace, w, kernel, h)
    side = max(16, int((TILE_ENTRIES / x.shape[1]) ** 0.5))
    return _statistics(_DENSE[kernel], fields, trace, w, kernel, h, tile=min(side, 256))


def squared_ksd(x: Array, score: Array, bandwidth: Array, kernel: str = "imq") -> Array:
    """KSD² (the V-statistic) of points and their scores, to be traced in programs of samplers.

    Parameters
    ----------
    x, score
        Arrays (n, d).
    bandwidth
        h > 0.
    """
    n, d = x.shape
    share = jnp.full(n, 1 / n, x.dtype)
    rows, _ = pair_sums(_PLAIN[kernel], {"x": x - jnp.mean(x, axis=0), "score": score}, share, args=(bandwidth,))
    own = jnp.sum(score**2) / n + gradient_weight(kernel, jnp.ones((), x.dtype), bandwidth) * d
    return (jnp.sum(rows) + own) / n


def _plain(x: np.ndarray, score: np.ndarray, kernel: str, bandwidth: float | None, w: np.ndarray) -> Discrepancy:
    h = as_bandwidth(bandwidth, x)
    trace = np.full(len(x), x.shape[1], float)
    return _statistics(_PLAIN[kernel], {"x": centred(x)[0], "score": score}, trace, w, kernel, h)


def _statistics(
    function: Callable,
    fields: dict[str, np.ndarray],
    trace: np.ndarray,
    w: np.ndarray,
    kernel: str,
    h: float,
    tile: int | None = None,
) -> Discrepancy:
    """Statistics from the sums over pairs i ≠ j and k₀(x, x) = ‖s‖² + W(0) tr P P."""
    dtype = fields["x"].dtype
    with jax.enable_x64(True):
        rows = np.asarray(pair_sums(function, fields, w.astype(dtype), args=(np.asarray(h, dtype),), tile=tile)[0])
        itself = np.sum(fields["score"].astype(float) ** 2, axis=1)
        itself += float(gradient_weight(kernel, jnp.ones(()), jnp.asarray(h))) * trace
    off, diagonal, same = w @ rows, w**2 @ itself, w @ w
    squared, floor = float(off + diagonal), float(diagonal)
    if same >= 1:  # all weight on one point, which has no other
        return Discrepancy(squared, np.nan, np.nan, floor, h)
    unbiased = off / (1 - same)
    influence = rows / np.maximum(1 - w, np.finfo(float).tiny)
    influence -= w @ influence
    error = 2 * np.sqrt(np.sum((w * influence) ** 2) / (1 - same))
    return Discrepancy(squared, float(unbiased), float(error), floor, h)


# -- Stein kernels of a tile ------------------------------------------------------------------------------------------


def _radial(kernel: str, squared: Array, h: Array) -> tuple[Array, Array, Array]:
    """κ, W and 2 W'."""
    value = kernel_value(kernel, squared, h)
    weight = gradient_weight(kernel, value, h)
    slope = -weight / h if kernel == "rbf" else -1.5 * weight * value**2 / h
    return value, weight, 2 * slope


def _plain_tile(kernel: str, a: dict[str, Array], b: dict[str, Array], h: Array) -> Array:
    squared = squared_distances(a["x"], b["x"])
    value, weight, slope = _radial(kernel, squared, h)
    drift = difference_products(a["score"], b["score"], a["x"], b["x"])
    return value * inner_products(a["score"], b["score"]) + weight * (drift + a["x"].shape[1]) + slope * squared


def _diagonal_tile(kernel: str, a: dict[str, Array], b: dict[str, Array], h: Array) -> Array:
    """P = diag(p): (P'b − P b')·D, tr P P' and (P D)·(P' D) as matrix products."""
    value, weight, slope = _radial(kernel, squared_distances(a["x"], b["x"]), h)
    (x, s, p), (y, t, q) = ((side["x"], side["score"], side["inverse"]) for side in (a, b))
    drift = inner_products(s * x, q) - inner_products(s, q * y) - inner_products(p * x, t) + inner_products(p, t * y)
    metric = inner_products(p * x**2, q) - 2 * inner_products(p * x, q * y) + inner_products(p, q * y**2)
    return value * inner_products(s, t) + weight * (drift + inner_products(p, q)) + slope * metric


def _dense_tile(kernel: str, a: dict[str, Array], b: dict[str, Array], h: Array) -> Array:
    """P any symmetric matrix; P D and P' D are formed pair by pair."""
    value, weight, slope = _radial(kernel, squared_distances(a["x"], b["x"]), h)
    p, q = a["inverse"], b["inverse"]
    difference = a["x"][:, None] - b["x"]
    mine = jnp.einsum("iab,ijb->ija", p, difference, precision="highest")
    other = jnp.einsum("jab,ijb->ija", q, difference, precision="highest")
    drift = jnp.einsum("ia,ija->ij", a["score"], other) - jnp.einsum("ja,ija->ij", b["score"], mine)
    trace = inner_products(p.reshape(len(p), -1), q.reshape(len(q), -1))
    inner = inner_products(a["score"], b["score"])
    return value * inner + weight * (drift + trace) + slope * jnp.sum(mine * other, axis=-1)


def _by_kernel(tile: Callable) -> dict[str, Callable]:
    """One function for each kernel, made once: programs are cached by the identity of a function."""
    return {kernel: _named(tile, kernel) for kernel in KERNELS}


def _named(tile: Callable, kernel: str) -> Callable:
    def function(a: dict[str, Array], b: dict[str, Array], h: Array) -> Array:
        return tile(kernel, a, b, h)

    return function


_PLAIN, _DIAGONAL, _DENSE = _by_kernel(_plain_tile), _by_kernel(_diagonal_tile), _by_kernel(_dense_tile)
