"""Pareto-smoothed importance sampling: k-hat, smoothed weights, reweighted moments, ELBO and evidence with errors.

Vehtari, Simpson, Gelman, Yao & Gabry, "Pareto smoothed importance sampling", JMLR 25 (2024), 1-58. The generalised
Pareto fit is that of Zhang & Stephens, "A new and efficient estimation method for the generalized Pareto distribution",
Technometrics 51 (2009). Held equal to ArviZ by a test; on NumPy alone, because importing ArviZ's layer costs seconds.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidArgument

FLAT = 1e-12
"""Largest weights that differ by less, relative to the largest, differ by rounding: q is π."""


class Smoothed(NamedTuple):
    """Smoothed importance weights.

    Parameters
    ----------
    log_weights
        float64 array of shape (n,), normalised: its exponentials sum to 1.
    k_hat
        Shape of the generalised Pareto distribution fitted to the largest weights. Minus infinity where these are all
        equal; NaN with fewer than 25 draws, where no tail can be fitted.
    """

    log_weights: np.ndarray
    k_hat: float


class Moments(NamedTuple):
    """Weighted mean and standard deviation of each scalar with their standard errors, each of shape (scalar,)."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray


class Estimate(NamedTuple):
    """A number, or a pytree of arrays, and its standard error."""

    value: Any
    error: Any


def psis(log_weights: np.ndarray) -> Smoothed:
    """Smooth the tail of importance weights log π(u) − log q(u) and estimate its shape.

    The largest ⌊3√n⌋ weights (⌊n/5⌋ for n ≤ 225) are replaced by the expected order statistics of the generalised
    Pareto distribution fitted to them, none above the largest raw weight (Vehtari et al. 2024, algorithm 1).

    Parameters
    ----------
    log_weights
        Unnormalised, shape (n,); minus infinity is a weight of zero.

    Raises
    ------
    InvalidArgument
        For NaN or plus infinity, or if all weights are zero.
    """
    raw = np.array(log_weights, dtype=float).ravel()
    bad = int((np.isnan(raw) | (raw == np.inf)).sum())
    if bad or not np.isfinite(raw).any():
        found = f"{bad} values that are NaN or +inf" if bad else f"no finite value among {raw.size}"
        raise InvalidArgument(f"log_weights has {found}; every draw of q needs a log density below infinity.")
    n = raw.size
    raw -= raw.max()
    tail = math.floor(3 * math.sqrt(n)) if n > 225 else n // 5
    if tail < 5:
        return Smoothed(raw - _logsumexp(raw), math.nan)
    order = np.argsort(raw)
    largest = order[-tail:]
    cutoff = math.exp(max(raw[order[-tail - 1]], np.log(np.finfo(float).tiny)))
    excess = np.exp(raw[largest]) - cutoff
    if raw[largest[0]] == 0.0 or excess[-1] <= FLAT:
        return Smoothed(raw - _logsumexp(raw), -math.inf)
    k_hat, scale = fit_generalized_pareto(np.maximum(excess, 0.0))
    if math.isfinite(k_hat) and scale > 0:
        p = np.arange(0.5, tail) / tail
        step = -np.log1p(-p) if k_hat == 0 else np.expm1(-k_hat * np.log1p(-p)) / k_hat
        raw[largest] = np.minimum(np.log(cutoff + scale * step), 0.0)
    elif math.isnan(k_hat) and raw[largest[tail // 4]] < math.log(FLAT):
        k_hat = math.inf  # next to a few draws the others weigh nothing: too heavy a tail to be fitted
    return Smoothed(raw - _logsumexp(raw), float(k_hat))


def fit_generalized_pareto(excess: np.ndarray) -> tuple[float, float]:
    """Shape k and scale σ of a generalised Pareto distribution, from sorted excesses over its threshold.

    Posterior mean of Zhang & Stephens (2009) on a grid of b = −k/σ, with k then drawn to 0.5 by a prior worth ten
    observations (Vehtari et al. 2024, appendix).
    """
    n = excess.size
    quartile = excess[int(n / 4 + 0.5) - 1]
    if quartile <= excess[0]:
        return math.nan, math.nan
    points = 30 + int(math.sqrt(n))
    b = (1 - np.sqrt(points / (np.arange(1, points + 1) - 0.5))) / (3 * quartile) + 1 / excess[-1]
    k = np.log1p(-b[:, None] * excess).mean(axis=-1)
    profile = n * (np.log(-b / k) - k - 1)
    weights = np.exp(profile - _logsumexp(profile))
    heavy = weights >= 10 * np.finfo(float).eps
    b_hat = float((b[heavy] * weights[heavy]).sum() / weights[heavy].sum())
    k_hat = float(np.log1p(-b_hat * excess).mean())
    if math.isnan(k_hat):
        return math.inf, math.nan
    return (n * k_hat + 5.0) / (n + 10.0), -k_hat / b_hat


def k_hat_threshold(n: int) -> float:
    """The k-hat up to which ``n`` draws are enough: min(1 − 1/log10(n), 0.7) (Vehtari et al. 2024, eq. 13)."""
    return min(1 - 1 / math.log10(n), 0.7) if n > 10 else 0.0


def weights_ess(log_weights: np.ndarray) -> float:
    """Kish's effective sample size (Σw)² / Σw² of log weights, normalised or not."""
    w = np.exp(log_weights - np.max(log_weights))
    return float(w.sum() ** 2 / np.square(w).sum())


def weighted_moments(values: np.ndarray, log_weights: np.ndarray) -> Moments:
    """Self-normalised importance-sampling moments with their errors by the delta method.

    Parameters
    ----------
    values
        Array of shape (scalar, n).
    log_weights
        Array of shape (n,), normalised or not; usually smoothed.
    """
    w = np.exp(log_weights - _logsumexp(log_weights))
    mean = values @ w
    squares = np.square(values - mean[:, None])
    # The bias of a weighted variance is that of n_eff draws. Where one draw has all the weight it is without bound.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        variance = (squares @ w) / max(1 - float(w @ w), np.finfo(float).tiny)
        sd = np.sqrt(variance)
        mean_error = np.sqrt(squares @ np.square(w))
        spread = np.sqrt(np.square(squares - variance[:, None]) @ np.square(w))
        return Moments(mean, sd, mean_error, spread / (2 * sd))


def weighted_quantiles(values: np.ndarray, log_weights: np.ndarray, probabilities: tuple[float, ...]) -> np.ndarray:
    """Quantiles of weighted rows (scalar, n), interpolated between the middles of the steps of the distribution."""
    w = np.exp(log_weights - _logsumexp(log_weights))
    order = np.argsort(values, axis=-1)
    out = np.empty((len(values), len(probabilities)))
    for row, at in enumerate(order):
        steps = w[at]
        out[row] = np.interp(probabilities, np.cumsum(steps) - steps / 2, values[row, at])
    return out


def elbo(log_p: np.ndarray, log_q: np.ndarray) -> Estimate:
    """Evidence lower bound E_q[log p − log q] from independent draws of q, with its standard error."""
    gap = np.asarray(log_p, dtype=float).ravel() - np.asarray(log_q, dtype=float).ravel()
    error = gap.std(ddof=1) / math.sqrt(gap.size) if gap.size > 1 and np.isfinite(gap).all() else math.nan
    return Estimate(float(gap.mean()), float(error))


def importance_evidence(log_weights: np.ndarray) -> Estimate:
    """Log evidence log mean(π/q), with the delta-method error of the log; meaningful where k-hat is below 0.7."""
    raw = np.asarray(log_weights, dtype=float).ravel()
    ratio = np.exp(raw - raw.max())
    error = ratio.std(ddof=1) / math.sqrt(raw.size) / ratio.mean() if raw.size > 1 else math.nan
    return Estimate(_logsumexp(raw) - math.log(raw.size), float(error))


def _logsumexp(x: np.ndarray) -> float:
    top = float(np.max(x))
    return top if not math.isfinite(top) else top + math.log(float(np.exp(x - top).sum()))
