"""What all discrepancies share: samples as arrays (n, d), weights that sum to one, bandwidths, and the result."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import InvalidArgument, NonFinite
from ...validate import check_positive

SUBSAMPLE = 1000


class Discrepancy(NamedTuple):
    """A squared discrepancy.

    Attributes
    ----------
    squared : float
        The V-statistic: pairs of a point with itself included, never below 0 (but for rounding).
    unbiased : float
        The U-statistic, without these pairs: its mean is the discrepancy of the law that the points were drawn from. It
        may be below 0. NaN for a single point.
    standard_error : float
        Of ``unbiased`` for independent points, from its row means. Where the laws agree, it is too large, by up to √2.
    floor : float
        The mean of ``squared`` for independent points if the laws agreed; more is a difference, less (of particles
        that repel each other) better than an independent sample.
    bandwidth : float or None
        Of the kernel; freeze it to compare runs.
    """

    squared: float
    unbiased: float
    standard_error: float
    floor: float
    bandwidth: float | tuple[float, ...] | None = None

    @property
    def distance(self) -> float:
        """√squared."""
        return math.sqrt(max(self.squared, 0.0))


def flatten(draws: Any, names: Sequence[str] | None = None, *, sample_dims: int | None = None) -> np.ndarray:
    """Draws by site as points.

    Parameters
    ----------
    draws
        A `Posterior`, or site → array (chain, draw, …).
    names
        Of the sites to keep, in this order; by default all of them, sorted.
    sample_dims
        Number of leading axes that count draws: 2, or 1 for particles. By default that of the posterior, else 2.

    Returns
    -------
    numpy.ndarray
        Shape (n, d): all chains one after the other, and the entries of all sites side by side.

    Raises
    ------
    InvalidArgument
        A name is unknown, or the arrays do not agree on the number of draws.
    """
    if not isinstance(draws, Mapping):
        if not hasattr(draws, "draws"):
            raise InvalidArgument(f"draws must be a posterior or a dict of arrays by site, got {type(draws).__name__}.")
        sample_dims = len(draws.sample_dims) if sample_dims is None else sample_dims
        draws = draws.draws()
    leading = 2 if sample_dims is None else sample_dims
    chosen = sorted(draws) if names is None else list(names)
    unknown = [name for name in chosen if name not in draws]
    if unknown or not chosen:
        raise InvalidArgument(f"names must be some of {', '.join(sorted(draws))}; got {unknown or chosen}.")
    arrays = {name: np.asarray(draws[name]) for name in chosen}
    shapes = {name: array.shape[:leading] for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(array.ndim < leading for array in arrays.values()):
        raise InvalidArgument(
            f"all sites must have the same {leading} leading axes of draws, got {shapes}; sample_dims says how many."
        )
    return np.concatenate([array.reshape(math.prod(shapes[name]), -1) for name, array in arrays.items()], axis=1)


def as_points(name: str, points: Any) -> np.ndarray:
    """``points`` as an array (n, d) in 32 or 64 bits.

    Raises
    ------
    InvalidArgument
        They are no numbers, none, or have another shape.
    NonFinite
        One of them is NaN or infinite.
    """
    if isinstance(points, Mapping) or hasattr(points, "draws"):
        points = flatten(points)
    try:
        array = np.asarray(points)
        array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} must be an array of numbers (n, d), got {type(points).__name__}.") from None
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size:
        raise InvalidArgument(f"{name} must be an array (n, d) of at least one point, got shape {array.shape}.")
    check_finite(name, array)
    return array


def check_finite(name: str, array: np.ndarray) -> None:
    """Raise `NonFinite` with the first row that is not finite."""
    wrong = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1))
    if wrong.size:
        row = wrong[0]
        raise NonFinite(f"{name} must be finite; {wrong.size} of {len(array)} rows are not, first {row}: {array[row]}.")


def as_weights(name: str, weights: Any, n: int, sample: Any = None) -> np.ndarray:
    """``weights`` of n points, divided by their sum; for None those of a posterior of particles, or equal.

    Raises
    ------
    InvalidArgument
        Another number of them, one below 0 or not finite, or all 0.
    """
    if weights is None:
        log_weights = particle_log_weights(sample)
        weights = np.ones(n) if log_weights is None else np.exp(log_weights - log_weights.max())
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (n,):
        raise InvalidArgument(f"{name} must have one entry for each of the {n} points, got shape {weights.shape}.")
    wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
    if wrong.size or not weights.sum() > 0:
        found = wrong[0] if wrong.size else weights.sum()
        raise InvalidArgument(f"{name} must be finite, >= 0 and not all 0, got {found:g}; take exp of log weights.")
    return weights / weights.sum()


def particle_log_weights(sample: Any) -> np.ndarray | None:
    """Log weights of a posterior of weighted particles; None for all else, whose points count alike."""
    return sample.log_weights() if getattr(sample, "kind", None) == "particles" else None


def same_columns(x: np.ndarray, y: np.ndarray) -> None:
    """Raise unless both samples have as many coordinates."""
    if x.shape[1] != y.shape[1]:
        raise InvalidArgument(f"x and y must have as many coordinates, got {x.shape[1]} and {y.shape[1]}.")


def centred(*samples: np.ndarray) -> tuple[np.ndarray, ...]:
    """The samples less their common mean, taken in 64 bits: distances in 32 bits are relative to what is left."""
    centre = np.mean([sample.mean(0, dtype=np.float64) for sample in samples], axis=0)
    dtype = np.result_type(*(sample.dtype for sample in samples))
    return tuple((sample - centre).astype(dtype) for sample in samples)


def median_bandwidth(*samples: Any) -> float:
    """The median squared distance between the points of all samples: h of the kernels exp(−r²/h) and (1 + r²/h)^(−1/2).

    From at most 1,000 points, evenly spaced in their order; deterministic. There is no factor log n.

    Raises
    ------
    InvalidArgument
        The median is 0, as most of the points are equal.
    """
    points = np.concatenate([as_points("points", sample) for sample in samples]).astype(np.float64)
    points = points[np.linspace(0, len(points) - 1, min(len(points), SUBSAMPLE)).round().astype(int)]
    points = points - points.mean(0)
    norms = np.sum(points**2, axis=1)
    squared = np.maximum(norms[:, None] + norms - 2 * points @ points.T, 0)[np.triu_indices(len(points), 1)]
    h = float(np.median(squared)) if squared.size else 0.0
    if not h > 0:
        raise InvalidArgument(f"the median distance of {len(points)} points is {h:g}; give a bandwidth, e.g. 1.0.")
    return h


def as_bandwidth(bandwidth: Any, *samples: np.ndarray) -> float:
    """``bandwidth``, checked; the median heuristic for None."""
    if bandwidth is None:
        return median_bandwidth(*samples)
    check_positive("bandwidth", bandwidth)
    return float(bandwidth)
