"""What a study measures: how far a sample is from the reference, and what it has cost.

All but KSD, ESS and evidence are of standardised scalars, (x − mean) / sd of the reference, so that numbers mean the
same for every target. Discrepancies are of at most `NUM_COMPARED` draws, evenly taken, with at most `MOST_COMPARED` of
the reference: their cost does not grow with the run, and one floor of independent draws holds all along it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..diagnostics.chains import chain_statistics
from ..diagnostics.discrepancies import energy_distance, gaussian_wasserstein, ksd, mmd, sliced_wasserstein
from ..diagnostics.psis import weighted_quantiles
from ..errors import PushforwardError
from .reference import Truth

if TYPE_CHECKING:
    from ..target import Target

NUM_COMPARED = 500
FLOOR_REPEATS = 20
INTERVAL = 0.9


class Sample(NamedTuple):
    """What a method has at a time of its run, and what it is compared with.

    Parameters
    ----------
    scalars
        Standardised draws (n, d), in the order in which they were made.
    weights
        Array (n,), or None where all weigh the same.
    chains
        Number of chains that the draws come from, one after the other; 0 where they are no chains.
    u
        Function that gives the draws in unconstrained coordinates (n, dim).
    evidence
        Function that gives the log evidence.
    evaluations, seconds
        Spent so far.
    truth
        The reference.
    target
        That of ``u``; None for draws of the reference itself, of which nothing else is asked.
    """

    scalars: np.ndarray
    weights: np.ndarray | None
    chains: int
    u: Callable[[np.ndarray], np.ndarray]
    evidence: Callable[[], float]
    evaluations: float
    seconds: float
    truth: Truth
    target: "Target | None"


def mean_error(sample: Sample) -> float:
    """Root mean square over scalars of the error of the mean, in reference sds."""
    return float(np.sqrt(np.square(np.average(sample.scalars, axis=0, weights=sample.weights)).mean()))


def sd_error(sample: Sample) -> float:
    """Root mean square over scalars of sd / reference sd − 1."""
    center = np.average(sample.scalars, axis=0, weights=sample.weights)
    variance = np.average(np.square(sample.scalars - center), axis=0, weights=sample.weights)
    return float(np.sqrt(np.square(np.sqrt(variance) - 1).mean()))


def energy(sample: Sample) -> float:
    """Square root of the energy distance."""
    some, weights = _some(sample)
    return float(np.sqrt(max(energy_distance(some, sample.truth.draws, x_weights=weights).squared, 0.0)))


def sliced(sample: Sample) -> float:
    """Sliced 2-Wasserstein distance."""
    some, weights = _some(sample)
    return float(sliced_wasserstein(some, sample.truth.draws, x_weights=weights).distance)


def gaussian(sample: Sample) -> float:
    """2-Wasserstein distance of the normals with the two means and covariances."""
    some, weights = _some(sample)
    center = np.average(some, axis=0, weights=weights)
    covariance = np.cov(some.T, aweights=weights, ddof=0)
    reference = sample.truth.draws
    return float(gaussian_wasserstein(center, covariance, reference.mean(0), np.cov(reference.T, ddof=0)))


def mmd_distance(sample: Sample) -> float:
    """Maximum mean discrepancy with a Gaussian kernel whose squared bandwidth is the number of scalars."""
    some, weights = _some(sample)
    bandwidth = float(np.sqrt(some.shape[1]))
    return float(np.sqrt(max(mmd(some, sample.truth.draws, bandwidth=bandwidth, x_weights=weights).squared, 0.0)))


def stein(sample: Sample) -> float:
    """Kernel Stein discrepancy in unconstrained coordinates, its bandwidth the reference's."""
    if sample.truth.bandwidth is None or sample.target is None:
        return np.nan
    index = _index(len(sample.scalars))
    found = ksd(sample.u(index), sample.target, bandwidth=sample.truth.bandwidth, weights=_weights(sample, index))
    return float(np.sqrt(max(found.squared, 0.0)))


def coverage(sample: Sample) -> float:
    """Mean over scalars of |share of the reference in the sample's central 90 % interval − 0.9|."""
    tails = ((1 - INTERVAL) / 2, (1 + INTERVAL) / 2)
    if sample.weights is None:
        low, high = np.quantile(sample.scalars, tails, axis=0)
    else:
        with np.errstate(divide="ignore"):
            low, high = weighted_quantiles(sample.scalars.T, np.log(sample.weights), tails).T
    inside = ((sample.truth.draws >= low) & (sample.truth.draws <= high)).mean(axis=0)
    return float(np.abs(inside - INTERVAL).mean())


def evidence_error(sample: Sample) -> float:
    """|log evidence − that of the reference|."""
    if sample.truth.log_evidence is None:
        return np.nan
    try:
        return abs(sample.evidence() - sample.truth.log_evidence)
    except PushforwardError:
        return np.nan


def ess(sample: Sample) -> float:
    """Least bulk effective sample size of the scalars; of chains only."""
    if not sample.chains or len(sample.scalars) < 4 * sample.chains:
        return np.nan
    values = sample.scalars.T.reshape(sample.scalars.shape[1], sample.chains, -1)
    return float(chain_statistics(np.ascontiguousarray(values))["ess_bulk"].min())


def ess_per_evaluation(sample: Sample) -> float:
    """`ess` per gradient evaluation, those of the warm-up included."""
    return ess(sample) / sample.evaluations if sample.evaluations else np.nan


def ess_per_second(sample: Sample) -> float:
    """`ess` per second after compilation, those of the warm-up included."""
    return ess(sample) / sample.seconds if sample.seconds else np.nan


class Metric(NamedTuple):
    """A metric: its function of a sample, what its axis says, and how it is read.

    Parameters
    ----------
    larger
        Whether larger is better.
    floor
        Whether independent draws of the reference have a value worth a line.
    """

    function: Callable[[Sample], float]
    label: str
    larger: bool = False
    floor: bool = True


METRICS = {
    "mean": Metric(mean_error, "error of means / sd"),
    "sd": Metric(sd_error, "relative error of sds"),
    "energy": Metric(energy, "energy distance, root"),
    "sliced_w2": Metric(sliced, "sliced W2"),
    "gaussian_w2": Metric(gaussian, "Gaussian W2"),
    "mmd": Metric(mmd_distance, "MMD"),
    "ksd": Metric(stein, "KSD", floor=False),
    "coverage": Metric(coverage, "error of the 90 % interval"),
    "evidence": Metric(evidence_error, "error of log evidence", floor=False),
    "ess": Metric(ess, "ESS", larger=True, floor=False),
    "ess_per_evaluation": Metric(ess_per_evaluation, "ESS / gradient", larger=True, floor=False),
    "ess_per_second": Metric(ess_per_second, "ESS / second", larger=True, floor=False),
}
DEFAULT = ("mean", "sd", "energy", "ess_per_evaluation", "ess_per_second")


def floor(name: str, truth: Truth, seed: int = 0) -> float:
    """Median value of a metric for `NUM_COMPARED` independent draws of the reference; NaN where it has none."""
    if not METRICS[name].floor:
        return np.nan
    rng = np.random.default_rng(seed)
    n = min(NUM_COMPARED, len(truth.spare))
    values = []
    for _ in range(FLOOR_REPEATS):
        chosen = truth.spare[rng.choice(len(truth.spare), n, replace=False)]
        sample = Sample(chosen, None, 0, lambda index: index, lambda: np.nan, 0, 0, truth, None)
        values.append(METRICS[name].function(sample))
    return float(np.median(values))


def _index(n: int) -> np.ndarray:
    """Of n draws `NUM_COMPARED`, evenly taken; where there are fewer, the first one again and again behind them."""
    if n >= NUM_COMPARED:
        return np.linspace(0, n - 1, NUM_COMPARED).round().astype(int)
    return np.append(np.arange(n), np.zeros(NUM_COMPARED - n, int))


def _weights(sample: Sample, index: np.ndarray) -> np.ndarray:
    """Of the draws at `_index`; 0 behind the last, so that one compiled program serves any number of draws."""
    weights = np.ones(len(index)) if sample.weights is None else sample.weights[index].astype(float)
    weights[len(sample.scalars) :] = 0.0
    return weights / weights.sum()


def _some(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    index = _index(len(sample.scalars))
    return sample.scalars[index], _weights(sample, index)
