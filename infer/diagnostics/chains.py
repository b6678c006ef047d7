"""Rank-normalised R-hat, effective sample sizes and Monte-Carlo errors of many scalars at once.

The definitions are those of Vehtari, Gelman, Simpson, Carpenter & Bürkner, "Rank-normalization, folding, and
localization: an improved R-hat for assessing convergence of MCMC", Bayesian Analysis 16 (2021), 667-718, and the
numbers those of ArviZ (held equal to 1e-10 by a test). ArviZ computes them scalar by scalar, and importing it costs
seconds; here they are a handful of array operations over all scalars, on NumPy alone.

Cost per scalar of N draws: two sorts, and five times one FFT of each half chain and one inverse FFT; about six
arrays of N doubles live at a time.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from statistics import NormalDist

import numpy as np

TAIL = 0.05
"""Tail ESS is the smaller one of the ESS of the 5 % and 95 % quantiles (Vehtari et al. 2021, section 4.3)."""


def split_chains(x: np.ndarray) -> np.ndarray:
    """Split chains in halves: (scalar, chain, draw) to (scalar, 2 chain, draw // 2), an odd middle draw left out.

    The halves of a chain follow each other; of an even number of draws it is a view.
    """
    scalars, chains, draws = x.shape
    half = draws // 2
    if draws % 2:
        x = np.stack((x[..., :half], x[..., half + 1 :]), axis=2)
    return x.reshape(scalars, 2 * chains, half)


def rank_normalize(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores of the pooled draws of each scalar, and the sorted draws.

    z = Φ⁻¹((r − 3/8) / (N + 1/4)) with average ranks r for ties (Vehtari et al. 2021, eq. 14).

    Parameters
    ----------
    x
        Finite array of shape (scalar, chain, draw).

    Returns
    -------
    z : array of the shape of ``x``
    ordered : array of shape (scalar, chain * draw)
    """
    flat = x.reshape(x.shape[0], -1)
    n = flat.shape[-1]
    z, ordered = np.empty_like(flat), np.empty_like(flat)
    for row, into, sorted_row in zip(flat, z, ordered, strict=True):  # one at a time: each needs its order
        order = np.argsort(row)
        np.take(row, order, out=sorted_row, mode="clip")  # as "raise", without a buffer
        scores = _untied_scores(n)
        _average_ties(scores, sorted_row)
        into[order] = scores
    return z.reshape(x.shape), ordered


def split_rhat(z: np.ndarray) -> np.ndarray:
    """R-hat of (scalar, chain, draw), chains as they are: sqrt((W (n − 1)/n + B/n) / W).

    Chains that stand still make it infinite where they differ, and NaN, the value of a constant, where they do not.
    """
    n = z.shape[-1]
    variances = z.var(axis=-1, ddof=1)
    variances[z.max(axis=-1) == z.min(axis=-1)] = 0.0  # not the rounding error of their mean
    within = variances.mean(axis=-1)
    between = z.mean(axis=-1).var(axis=-1, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((n - 1) / n + between / within)


def effective_sample_size(x: np.ndarray, between: bool = True) -> np.ndarray:
    """Effective sample size of the mean of (scalar, chain, draw), chains as they are.

    Parameters
    ----------
    x
        Finite array of shape (scalar, chain, draw), at least two draws.
    between
        Whether the variance between chains enters, as it must to tell whether chains agree. Without it the result
        says how well each chain moves in its own region.

    Returns
    -------
    Array of shape (scalar,); the number of draws where a scalar is constant, as in ArviZ.

    References
    ----------
    Vehtari et al. (2021), eq. 10-13; truncation by the initial monotone sequence of Geyer (1992).
    """
    chains, n = x.shape[1:]
    means = x.mean(axis=-1)
    # Autocovariances are needed summed over chains only, and the transform is linear: one inverse FFT per scalar.
    length = _fft_length(2 * n)
    power = np.zeros((len(x), length // 2 + 1))
    for chain in range(chains):
        spectrum = np.fft.rfft(x[:, chain] - means[:, chain, None], n=length, axis=-1)
        power += spectrum.real**2 + spectrum.imag**2
    covariance = np.fft.irfft(power, n=length, axis=-1)[:, :n] / (chains * n)
    within = covariance[:, :1] * (n / (n - 1))
    total = covariance[:, :1].copy()
    if chains > 1 and between:
        total += means.var(axis=-1, ddof=1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = 1.0 - (within - covariance) / total
    rho[:, 0] = 1.0
    tau = np.maximum(_integrated_time(rho), 1.0 / math.log10(chains * n))
    flat = x.reshape(x.shape[0], -1)
    constant = flat.max(axis=-1) - flat.min(axis=-1) < 1e-15
    return np.where(constant, float(chains * n), chains * n / tau)


def chain_statistics(x: np.ndarray, quantiles: tuple[float, ...] = ()) -> dict[str, np.ndarray]:
    """All that a summary and a diagnosis need to know of some scalars, from one pass over their draws.

    Parameters
    ----------
    x
        float64 array of shape (scalar, chain, draw).
    quantiles
        Probabilities whose quantiles are wanted.

    Returns
    -------
    dict of arrays of shape (scalar,), besides ``quantiles`` (scalar, quantile) and ``chain_mean``, ``chain_sd``,
    ``chain_score`` (mean of the normal scores) and ``chain_moves`` (share of draws that differ from the one before),
    of shape (scalar, chain). Scalars with non-finite draws are NaN throughout but for ``nonfinite``, their number.
    """
    nonfinite = (~np.isfinite(x)).sum(axis=(1, 2))
    good = np.flatnonzero(nonfinite == 0)
    with np.errstate(all="ignore"):  # squares of diverged chains overflow: what follows of them is infinite or NaN
        part = _finite_statistics(x if good.size == len(x) else x[good], quantiles)
    if good.size < len(x):
        part = {name: _scatter(value, good, len(x)) for name, value in part.items()}
    return part | {"nonfinite": nonfinite}


def _finite_statistics(x: np.ndarray, quantiles: tuple[float, ...]) -> dict[str, np.ndarray]:
    scalars, chains, n = x.shape
    flat = x.reshape(scalars, chains * n)
    mean = flat.mean(axis=-1)
    out = {
        "mean": mean,
        "sd": flat.std(axis=-1, ddof=1) if flat.shape[-1] > 1 else np.full(scalars, np.nan),
        "chain_mean": x.mean(axis=-1),
        "chain_sd": x.std(axis=-1),
        "chain_moves": (x[..., 1:] != x[..., :-1]).mean(axis=-1) if n > 1 else np.ones((scalars, chains)),
    }
    if n < 4 or scalars == 0:  # too short for any of what follows
        nothing = np.full(scalars, np.nan)
        names = ("ess_bulk", "ess_tail", "ess_within", "ess_mean", "ess_sd", "r_hat", "mcse_mean", "mcse_sd")
        out |= dict.fromkeys(names, nothing) | {"chain_score": np.full((scalars, chains), np.nan)}
        return out | {"quantiles": sorted_quantiles(np.sort(flat, axis=-1), quantiles)}

    split = split_chains(x)
    z, ordered = rank_normalize(split)
    out["ess_bulk"] = effective_sample_size(z)
    out["ess_within"] = effective_sample_size(z, between=False)
    out["chain_score"] = z.mean(axis=-1).reshape(scalars, chains, 2).mean(axis=-1)
    r_hat = split_rhat(z)
    del z
    middle = ordered.shape[-1] // 2  # the number of draws in half chains is even
    median = (ordered[:, middle - 1] + ordered[:, middle]) / 2
    folded = split - median[:, None, None]
    z = rank_normalize(np.abs(folded, out=folded))[0]
    del folded
    # The larger one, not a NaN that only one of them has.
    out["r_hat"] = np.fmax(r_hat, split_rhat(z))
    del z
    if n % 2:
        ordered = np.sort(flat, axis=-1)
    out["quantiles"] = sorted_quantiles(ordered, quantiles)
    low, high = sorted_quantiles(ordered, (TAIL, 1 - TAIL)).T[:, :, None, None]
    out["ess_tail"] = np.minimum(
        effective_sample_size((split <= low).astype(float)), effective_sample_size((split <= high).astype(float))
    )
    out["ess_mean"] = effective_sample_size(split)
    del ordered
    squares = split - mean[:, None, None]
    out["ess_sd"] = effective_sample_size(np.square(squares, out=squares))
    del squares
    second = np.square(flat - mean[:, None])
    variance, fourth = second.mean(axis=-1), np.square(second).mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        out["mcse_mean"] = out["sd"] / np.sqrt(out["ess_mean"])
        out["mcse_sd"] = np.sqrt((fourth - variance**2) / out["ess_sd"] / variance / 4)
    return out


def sorted_quantiles(ordered: np.ndarray, probabilities: tuple[float, ...]) -> np.ndarray:
    """Linearly interpolated quantiles (NumPy's default, type 7) of sorted rows, shape (row, probability)."""
    if not ordered.shape[-1]:
        return np.full((len(ordered), len(probabilities)), np.nan)
    at = np.asarray(probabilities, dtype=float) * (ordered.shape[-1] - 1)
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, ordered.shape[-1] - 1)
    return ordered[:, below] + (ordered[:, above] - ordered[:, below]) * (at - below)


def worst_ess(draws: Mapping[str, np.ndarray]) -> float:
    """The smallest bulk ESS of all scalars, given draws by site of shape (chain, draw, …); NaN counts as 0."""
    worst = [chain_statistics(x)["ess_bulk"] for x in _scalars(draws)]
    return float(np.nan_to_num(np.concatenate(worst), nan=0.0).min())


def worst_rhat(draws: Mapping[str, np.ndarray]) -> float:
    """The largest R-hat of all scalars that vary, given draws by site of shape (chain, draw, …); NaN counts as ∞."""
    worst = [0.0]
    for x in _scalars(draws):
        vary = np.ptp(x, axis=(1, 2)) != 0
        if vary.any():
            worst.append(float(np.nan_to_num(chain_statistics(x[vary])["r_hat"], nan=np.inf).max()))
    return max(worst)


def _scalars(draws: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Draws by site of shape (chain, draw, …) as float64 arrays (scalar, chain, draw)."""
    return [
        np.moveaxis(x.reshape(*x.shape[:2], -1), -1, 0).astype(float) for x in map(np.asarray, draws.values()) if x.size
    ]


def rhat_limit(ess_within: np.ndarray, chains: int, tests: int, base: float = 1.01) -> np.ndarray:
    """The largest R-hat that chance explains among ``tests`` scalars, and never less than ``base``.

    For chains that agree, B/W is τ times a χ² variable over its degrees of freedom m − 1 (m half chains), and
    τ/n = m/ESS, so that R-hat² exceeds 1 + (m / ESS) χ²/(m − 1) with the probability of that quantile. The ESS is that
    within chains: chains that disagree do not raise their own limit.

    Parameters
    ----------
    ess_within
        Array of shape (scalar,).
    chains
        Number of chains before splitting.
    tests
        Number of scalars looked at; the error of 1 % is shared among them and the two R-hats of each.
    base
        Threshold below which nothing is ever reported (Vehtari et al. 2021: 1.01).
    """
    m = 2 * chains
    z = NormalDist().inv_cdf(1 - 0.01 / (2 * max(tests, 1)))
    k = m - 1
    quantile = k * (1 - 2 / (9 * k) + z * math.sqrt(2 / (9 * k))) ** 3  # Wilson & Hilferty (1931)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(base, np.sqrt(1 + m / ess_within * quantile / k))


def _integrated_time(rho: np.ndarray) -> np.ndarray:
    """Integrated autocorrelation time of each row of autocorrelations, by Geyer's initial monotone sequence."""
    n = rho.shape[-1]
    last = max(0, (n - 3) // 2) if n > 3 else 0  # the last pair (ρ_2k, ρ_2k+1) that may be looked at
    pairs = rho[:, : 2 * last + 2].reshape(len(rho), last + 1, 2).sum(axis=-1)
    # K: the first pair that is not positive, or the last one.
    stop = ~(pairs > 0)
    stop[:, -1] = True
    end = stop.argmax(axis=-1)
    before = np.arange(last + 1) < end[:, None]
    monotone = np.where(before, np.minimum.accumulate(pairs, axis=-1), 0.0).sum(axis=-1)
    at = np.arange(len(rho))
    even = rho[at, 2 * end]
    # ρ_2K alone improves antithetic chains; it is dropped where neither it nor its pair is positive.
    even = np.where((even > 0) | (pairs[at, end] >= 0), even, 0.0)
    return np.where(np.isnan(pairs[:, 0]), np.nan, -1.0 + 2.0 * monotone + even)


def _untied_scores(n: int) -> np.ndarray:
    """Normal scores of the ranks 1, 2, …, n."""
    scores = np.empty(n)
    scores[n // 2 :] = _upper_scores(n)[(n - 1) % 2 :: 2]
    np.negative(scores[: (n - 1) // 2 : -1], out=scores[: n // 2])
    return scores


def _average_ties(scores: np.ndarray, ordered: np.ndarray) -> None:
    """Give the places of equal numbers the score of their average rank, in place."""
    n = len(ordered)
    before_equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    if not before_equal.size:
        return
    breaks = np.flatnonzero(np.diff(before_equal) > 1)
    first = before_equal[np.append(0, breaks + 1)]
    last = before_equal[np.append(breaks, -1)] + 1
    from_centre = first + last - (n - 1)  # twice the distance of the average rank from (n + 1)/2
    values = np.copysign(_upper_scores(n)[np.abs(from_centre)], from_centre)
    lengths = last - first + 1
    places = np.repeat(first - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    scores[places] = np.repeat(values, lengths)


@lru_cache(maxsize=8)
def _upper_scores(n: int) -> np.ndarray:
    """Φ⁻¹((r − 3/8) / (n + 1/4)) for the ranks r = (n + 1)/2, (n + 2)/2, …, n, the others being minus these.

    The standard library's Φ⁻¹ spares importing SciPy.
    """
    inverse: Callable[[float], float] = NormalDist().inv_cdf
    upper = (np.arange(n, 2 * n) / 2 + 0.5 - 0.375) / (n + 0.25)
    parts = (upper[at : at + 10_000].tolist() for at in range(0, n, 10_000))  # few Python floats at a time
    scores = np.fromiter(map(inverse, itertools.chain.from_iterable(parts)), float, n)
    scores[0] = 0.0
    scores.setflags(write=False)
    return scores


@lru_cache(maxsize=32)
def _fft_length(n: int) -> int:
    """The smallest 2^a 3^b 5^c that is at least ``n``."""
    best = 1 << (n - 1).bit_length()
    for five in (5**c for c in range(1 + int(math.log(n, 5)))):
        for three in (3**b for b in range(1 + int(math.log(n, 3)))):
            rest = -(-n // (five * three))
            best = min(best, five * three * (1 << (rest - 1).bit_length()))
    return best


def _scatter(value: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    out = np.full((size, *value.shape[1:]), np.nan)
    out[rows] = value
    return out
