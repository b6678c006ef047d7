"""How far predictions can be trusted: calibration on rows held out, and telling them from rows of another kind."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

LEVELS = tuple(k / 20 for k in range(1, 20))
BINS = 15


class Calibration(NamedTuple):
    """What was promised and what was found, as NumPy arrays.

    Parameters
    ----------
    expected
        Regression: levels of central predictive intervals, 0.05 … 0.95. Classification: mean largest probability in
        each of 15 bins that has rows.
    observed
        Regression: share of y within the interval. Classification: share of rows of the bin whose label was predicted.
    share
        Share of the rows that each entry rests on.
    error
        Σ share |observed − expected|: for classification the expected calibration error.
    """

    expected: np.ndarray
    observed: np.ndarray
    share: np.ndarray
    error: float


def of_regression(ranks: Float[np.ndarray, " n"]) -> Calibration:
    """From the predictive distribution functions at y, uniform where predictions are calibrated."""
    levels = np.array(LEVELS)
    observed = np.mean(np.abs(2 * np.ravel(ranks) - 1)[:, None] <= levels, 0)
    share = np.full(len(levels), 1 / len(levels))
    return Calibration(levels, observed, share, float(share @ np.abs(observed - levels)))


def of_classes(probabilities: Float[np.ndarray, "n k"], y: Any) -> Calibration:
    """From predictive probabilities, in bins of equal width of the largest one."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == np.asarray(y)
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = [bins == k for k in range(BINS) if np.any(bins == k)]
    expected, observed = (np.array([of[b].mean() for b in rows]) for of in (confidence, right))
    share = np.array([b.mean() for b in rows])
    return Calibration(expected, observed, share, float(share @ np.abs(observed - expected)))


def distribution_function(predictive: Any, y: Any) -> np.ndarray:
    """P(Y ≤ y) of each row under a predictive, also where it is a mixture."""
    import numpyro.distributions as dist

    y = jnp.asarray(y, float)
    if isinstance(predictive, dist.MixtureSameFamily):
        inner = distribution_function(predictive.component_distribution, y[..., None])
        return np.sum(np.asarray(predictive.mixing_distribution.probs) * inner, -1)
    if isinstance(predictive, dist.StudentT):
        t = (y - predictive.loc) / predictive.scale
        tail = 0.5 * jax.scipy.special.betainc(0.5 * predictive.df, 0.5, predictive.df / (predictive.df + t**2))
        return np.asarray(jnp.where(t > 0, 1 - tail, tail))
    return np.asarray(predictive.cdf(y))


def separation(inside: Any, outside: Any) -> float:
    """P(score inside > score outside), ties counting half: the area under the ROC curve."""
    inside, outside = np.asarray(inside), np.sort(np.asarray(outside))
    below = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    return float(below.mean() / (2 * len(outside)))


def draw_calibration(plt: Any, found: Calibration, task: str) -> Any:
    """Expected against observed; the diagonal is calibration."""
    figure, axis = plt.subplots(figsize=(4.2, 3.8), layout="constrained")
    axis.plot([0, 1], [0, 1], ":", color="#8a94a0")
    axis.plot(found.expected, found.observed, ".-", color="#2a5db0")
    if task == "classification":
        axis.vlines(found.expected, 0, found.share, color="#9fb8dd", lw=4, zorder=0)
        axis.set(xlabel="largest probability", ylabel="share predicted right (bars: share of rows)")
    else:
        axis.set(xlabel="level of the predictive interval", ylabel="share of y within")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), title=f"calibration error {found.error:.3f}")
    return figure


def draw_scores(plt: Any, scores: dict[str, np.ndarray]) -> Any:
    """Histograms of scores of rows of several kinds, on one axis."""
    figure, axis = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    every = np.concatenate([np.ravel(s) for s in scores.values()])
    bins = np.linspace(*np.quantile(every, [0.0, 1.0]), 41)
    for color, (name, values) in zip(("#2a5db0", "#b3261e", "#8a94a0"), scores.items(), strict=False):
        axis.hist(np.ravel(values), bins, density=True, alpha=0.55, color=color, label=name)
    axis.set(xlabel="score (high: like the rows learned from)", yticks=[])
    axis.legend(frameon=False)
    return figure
