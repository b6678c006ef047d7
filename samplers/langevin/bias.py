"""How far an unadjusted sampler is off: what its step size changes against half of it.

The bias of a Langevin scheme of weak order one is a γ + O(γ²), so that the difference of a moment at γ and at γ/2 is
half the bias at γ. Both are run with the same noise, so that their difference has a small variance.

References
----------
.. [1] D. Talay, L. Tubaro (1990). Expansion of the global error for numerical schemes solving stochastic differential
   equations. Stochastic Analysis and Applications 8(4).
"""

from typing import Any

import numpy as np

WORTH_TELLING = 0.05


def describe_bias(name: str, pair: Any) -> list[dict[str, Any]]:
    """A finding on the bias, from the pairs of all chains.

    Parameters
    ----------
    name
        Of the sampler.
    pair
        `Pair` with a leading axis of chains; None where it was not asked for.
    """
    if pair is None or not np.all(np.asarray(pair.count) > 0):
        message = f"{name} has no Metropolis test, and its bias was not estimated; use bias_check=True with a warm-up."
        return [{"level": "note", "name": "bias", "message": message}]
    with np.errstate(all="ignore"):  # squares of a chain that ran away overflow; what follows is not finite
        mean, sd = estimate_bias(np.asarray(pair.means))
    if not np.all(np.isfinite(mean[0]) & np.isfinite(sd[0])):
        message = f"The bias of {name} was not estimated: a coordinate did not move."
        return [{"level": "note", "name": "bias", "message": message}]
    worst = int(np.argmax(np.maximum(np.abs(mean[0]), np.abs(sd[0]))))
    text = (
        f"{name} has no Metropolis test. Half the step size tells its bias, where it is largest: "
        f"{100 * mean[0, worst]:+.1f} ± {100 * mean[1, worst]:.1f} % of a standard deviation in the mean, "
        f"{100 * sd[0, worst]:+.1f} ± {100 * sd[1, worst]:.1f} % in the standard deviation"
    )
    sure = [abs(value[0, worst]) - 2 * np.nan_to_num(value[1, worst]) for value in (mean, sd)]
    large = max(sure) > WORTH_TELLING
    advice = "; lower step_size" if large else ""
    return [
        {
            "level": "warning" if large else "note",
            "name": "bias",
            "message": f"{text}{advice}.",
            "value": float(max(mean[0, worst], sd[0, worst], key=abs)),
        }
    ]


def estimate_bias(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bias at γ, twice the difference to γ/2: of the mean in standard deviations, and of the sd, relative.

    Parameters
    ----------
    means
        Of x and x², at γ and at γ/2, shape (chain, 2, 2, d).

    Returns
    -------
    tuple of arrays (2, d)
        Estimates, and their standard errors over chains (NaN for a single chain).
    """
    pooled = means.mean(0)
    variance = pooled[:, 1] - pooled[:, 0] ** 2
    sd = np.sqrt(np.where(variance > 1e-12 * pooled[:, 1], variance, np.nan))
    mean_gap = 2 * (means[:, 0, 0] - means[:, 1, 0]) / sd[1]
    square_gap = 2 * (means[:, 0, 1] - means[:, 1, 1])
    # d(sd) = (d E[x²] − 2 E[x] d E[x]) / (2 sd)
    sd_gap = (square_gap - 2 * pooled[1, 0] * mean_gap * sd[1]) / (2 * sd[1] ** 2)
    return _with_error(mean_gap), _with_error(sd_gap)


def _with_error(values: np.ndarray) -> np.ndarray:
    chains = values.shape[0]
    error = values.std(0, ddof=1) / np.sqrt(chains) if chains > 1 else np.full(values.shape[1:], np.nan)
    return np.stack([values.mean(0), error])
