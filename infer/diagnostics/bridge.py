"""Evidence by bridge sampling from draws of the posterior.

Meng & Wong, "Simulating ratios of normalizing constants via a simple identity: a theoretical exploration", Statistica
Sinica 6 (1996); in the form of Gronau et al., "A tutorial on bridge sampling", J. Math. Psychology 81 (2017), with a
multivariate normal proposal and the relative error of Frühwirth-Schnatter (2004), which knows of autocorrelation.

Cost: one log density for each of the second half of the draws and for as many of the proposal, and one Cholesky
factor of d × d; the iteration itself is two sums over these numbers.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import InvalidArgument, NonFinite
from ..validate import check_count
from .chains import effective_sample_size
from .psis import importance_evidence, weights_ess


@dataclasses.dataclass(frozen=True)
class Evidence:
    """An estimate of log Z = log ∫ exp(log_density(u)) du.

    Parameters
    ----------
    log_evidence
        The estimate; for an improper prior a mere normaliser.
    se
        Standard error of ``log_evidence``: the estimated relative error of Z.
    num_iterations
        Iterations of the fixed point (0 where there is none).
    converged
        Whether it reached its tolerance.
    ess
        Effective number of draws used (of runs, where each has its own estimate).
    num_evaluations
        Log densities evaluated, or estimates averaged.
    """

    log_evidence: float
    se: float
    num_iterations: int
    converged: bool
    ess: float
    num_evaluations: int

    def __str__(self) -> str:
        if math.isnan(self.se):
            return f"log evidence {self.log_evidence:.3f} (one estimate: its error is not known)"
        said = f"log evidence {self.log_evidence:.3f} ± {self.se:.2g}"
        if not self.converged:
            return f"{said} (the iteration did not converge: do not use it)"
        if not self.se < 0.5:
            return f"{said} (the proposal hardly overlaps the posterior: draw more, or transform the parameters)"
        return said


def bridge_sampling(
    key: Any,
    u: np.ndarray,
    log_density_batch: Callable[[np.ndarray], Any],
    *,
    max_draws: int = 40_000,
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Evidence:
    """Estimate the log evidence from unconstrained draws.

    The first half of each chain fits a normal proposal q; the second half and as many draws of q are bridged with the
    optimal bridge function, whose constant is found by iterating

        r ← mean_q[l / (s₁ l + s₂ r)] / mean_p[1 / (s₁ l + s₂ r)],   l = exp(log_density)/q,

    with s₁ : s₂ as the effective number of posterior draws to that of proposal draws (Gronau et al. 2017, eq. 15).

    Parameters
    ----------
    key
        An int or a JAX key, for the draws of the proposal.
    u
        Draws of the posterior in unconstrained coordinates, float array of shape (chain, draw, d).
    log_density_batch
        Maps float64 (n, d) to the unnormalised log densities (n,). It is called twice with the same n.
    max_draws
        Draws beyond this number are thinned away.
    tolerance
        Relative change of r at which the iteration ends.
    max_iterations
        Where it ends otherwise, with ``converged`` False.

    Raises
    ------
    InvalidArgument
        If ``u`` is not (chain, draw, d) with more draws in half the chains than dimensions, or does not vary in some
        direction.
    NonFinite
        If a draw of the posterior has a log density that is not finite.
    """
    u = np.asarray(u, dtype=float)
    check_count("max_draws", max_draws, 100)
    if u.ndim != 3 or u.shape[1] < 8 or u.shape[0] * (u.shape[1] // 2) < 2 * u.shape[2]:
        raise InvalidArgument(
            f"u has the shape {u.shape}; bridge sampling needs (chain, draw, d) with at least 8 draws and, in half of "
            "the chains, twice as many as dimensions."
        )
    if not np.isfinite(u).all():
        raise NonFinite(f"u has {int((~np.isfinite(u)).sum())} values that are not finite; all draws must be.")
    u = u[:, :: max(1, math.ceil(u.shape[0] * u.shape[1] / max_draws))]
    half = u.shape[1] // 2
    mean, factor = _fit_normal(u[:, :half].reshape(-1, u.shape[2]))
    second = u[:, half:]
    draws = second.reshape(-1, u.shape[2])
    n = len(draws)
    noise = _generator(key).standard_normal((n, u.shape[2]))
    log_norm = -0.5 * u.shape[2] * math.log(2 * math.pi) - np.log(np.diag(factor)).sum()
    white = np.linalg.solve(factor, (draws - mean).T)
    l_posterior = _evaluate(log_density_batch, draws) - (log_norm - 0.5 * np.square(white).sum(axis=0))
    l_proposal = _evaluate(log_density_batch, mean + noise @ factor.T) - (
        log_norm - 0.5 * np.square(noise).sum(axis=-1)
    )
    if not np.isfinite(l_posterior).all():
        bad = int((~np.isfinite(l_posterior)).sum())
        raise NonFinite(
            f"log_density_batch is not finite at {bad} of {n} draws of u; they must be draws of this target."
        )
    # Proposals outside the support, or where the log density overflows, have weight zero.
    l_proposal = np.where(np.isnan(l_proposal), -np.inf, l_proposal)
    if not np.isfinite(l_proposal).any():
        raise NonFinite(
            f"log_density_batch is finite at none of {n} draws of the proposal fitted to u; check the draws."
        )
    ess = min(_ess(l_posterior.reshape(second.shape[:2])), n)
    log_r, steps, converged = _iterate(l_posterior, l_proposal, ess, tolerance, max_iterations)
    se = _relative_error(l_posterior.reshape(second.shape[:2]), l_proposal, log_r, ess)
    return Evidence(log_r, se, steps, converged, ess, 2 * n)


def evidence_from_weights(log_weights: Any) -> Evidence:
    """Evidence by importance sampling: log mean of π/q over independent draws of q, with the error of the log.

    Parameters
    ----------
    log_weights
        log π(u) − log q(u) as it is, not normalised, shape (n,).
    """
    raw = np.asarray(log_weights, dtype=float).ravel()
    if not raw.size or np.isnan(raw).any() or not (raw.max() < np.inf) or not np.isfinite(raw).any():
        raise NonFinite(
            f"log_weights has {int(np.isfinite(raw).sum())} finite of {raw.size} values; no evidence follows."
        )
    estimate = importance_evidence(raw)
    return Evidence(estimate.value, estimate.error, 0, True, weights_ess(raw), raw.size)


def evidence_from_runs(log_evidence: Any) -> Evidence:
    """Evidence of independent runs, each with an unbiased estimate of Z as SMC has it: log of their mean.

    The standard error is that between the runs, by the delta method; NaN for a single run.

    Parameters
    ----------
    log_evidence
        One estimate per run, shape (runs,).
    """
    raw = np.atleast_1d(np.asarray(log_evidence, dtype=float)).ravel()
    if not raw.size or not np.isfinite(raw).all():
        raise NonFinite(f"log_evidence has {int(np.isfinite(raw).sum())} finite of {raw.size} values; run again.")
    estimate = importance_evidence(raw)
    return Evidence(estimate.value, estimate.error, 0, True, float(raw.size), raw.size)


def _iterate(
    l_posterior: np.ndarray, l_proposal: np.ndarray, ess: float, tolerance: float, most: int
) -> tuple[float, int, bool]:
    """The fixed point r of the optimal bridge, in logs."""
    log_s1, log_s2 = math.log(ess / (ess + l_proposal.size)), math.log(l_proposal.size / (ess + l_proposal.size))
    log_r = float(np.median(l_posterior))
    for step in range(1, most + 1):
        top = _log_mean(l_proposal - np.logaddexp(log_s1 + l_proposal, log_s2 + log_r))
        bottom = _log_mean(-np.logaddexp(log_s1 + l_posterior, log_s2 + log_r))
        new = top - bottom
        if abs(new - log_r) <= tolerance:
            return new, step, True
        log_r = new
    return log_r, most, False


def _relative_error(l_posterior: np.ndarray, l_proposal: np.ndarray, log_r: float, ess: float) -> float:
    """Root of the estimated relative mean-squared error of r (Gronau et al. 2017, eq. 16, with ESS for n/ρ)."""
    n = l_proposal.size
    log_s1, log_s2 = math.log(ess / (ess + n)), math.log(n / (ess + n))
    # f1 = p/(s1 p + s2 q) on draws of q, f2 = q/(s1 p + s2 q) on draws of p, with p normalised by r.
    f1 = np.exp(l_proposal - log_r - np.logaddexp(log_s1 + l_proposal - log_r, log_s2))
    f2 = np.exp(-np.logaddexp(log_s1 + l_posterior - log_r, log_s2))
    part1 = f1.var(ddof=1) / f1.mean() ** 2 / n
    part2 = f2.var(ddof=1) / f2.mean() ** 2 / max(_ess(f2), 1.0)
    return math.sqrt(part1 + part2)


def _fit_normal(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and Cholesky factor of the covariance of draws (n, d)."""
    mean = draws.mean(axis=0)
    sd = draws.std(axis=0, ddof=1)
    if not (sd > 0).all():
        raise InvalidArgument(f"u does not vary in dimension {int(np.argmin(sd > 0))}; leave it out of the parameters.")
    scaled = (draws - mean) / sd  # a correlation matrix is conditioned best
    try:
        factor = np.linalg.cholesky(scaled.T @ scaled / (len(draws) - 1))
    except np.linalg.LinAlgError:
        raise InvalidArgument(
            f"u varies in fewer than {draws.shape[1]} directions; leave redundant parameters out, or draw more."
        ) from None
    return mean, sd[:, None] * factor


def _evaluate(log_density_batch: Callable[[np.ndarray], Any], u: np.ndarray) -> np.ndarray:
    value = np.asarray(log_density_batch(u), dtype=float)
    if value.shape != (len(u),):
        raise InvalidArgument(
            f"log_density_batch returned the shape {value.shape} for {u.shape}; it must be ({len(u)},)."
        )
    return value


def _ess(values: np.ndarray) -> float:
    return float(effective_sample_size(values[None])[0])


def _log_mean(x: np.ndarray) -> float:
    top = x.max()
    return float(top + math.log(np.exp(x - top).mean()))


def _generator(key: Any) -> np.random.Generator:
    """A generator of its own for each int or JAX key; the tag keeps it apart from a user's ``default_rng(key)``."""
    if hasattr(key, "dtype") and not isinstance(key, np.generic | np.ndarray):
        import jax

        if jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
    words = [int(word) for word in np.asarray(key).ravel()]
    if any(word < 0 for word in words):
        raise InvalidArgument(f"key is {key!r}; it must be a whole number >= 0, or a JAX key.")
    return np.random.default_rng([0x627269646765, *words])
