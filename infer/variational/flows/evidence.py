"""Evidence from both sides: by draws of an approximation q, and by draws of the posterior itself.

With w = π / q (π unnormalised), draws of q give log Z = log E_q[w], draws of p = π / Z give −log E_p[1 / w], both
together the bridge estimate of Meng & Wong (1996) and the bounds E_q[log w] ≤ log Z ≤ E_p[log w]. The weights of q's
draws know nothing of what q has left out, nor does their k-hat; those of the posterior's draws do: where q misses a
mode the two disagree, and 1 / (E_p[w] E_p[1/w]), the effective share of q's draws as p sees it, is near 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...approximation import Approximation
from ...diagnostics.psis import importance_evidence, k_hat_threshold, psis
from ...errors import InvalidArgument, NonFinite
from ...run.plan import read_key
from ...run.precision import precision
from ...target import Target
from ...validate import check_count
from .draws import given_draws

ITERATIONS = 200
AGREE = 0.1
"""Nats by which the two sides may differ beyond their errors."""


class TwoSided(NamedTuple):
    """Log evidence from both sides.

    Parameters
    ----------
    log_evidence
        The bridge estimate, from both sets of draws.
    from_approximation, from_posterior
        The estimates from one set alone.
    error
        Standard error of the difference of these two (posterior draws taken as independent).
    lower, upper
        E_q[log w] and E_p[log w], which bound log Z in expectation.
    k_hat, k_hat_posterior
        Pareto k-hat of w at draws of q, and of 1 / w at draws of the posterior.
    forward_ess
        1 / (E_p[w] E_p[1/w]), between 0 and 1.
    reliable
        Whether both k-hats are below their thresholds and the two estimates agree.
    """

    log_evidence: float
    from_approximation: float
    from_posterior: float
    error: float
    lower: float
    upper: float
    k_hat: float
    k_hat_posterior: float
    forward_ess: float
    reliable: bool


def two_sided_evidence(
    target: Target, approximation: Any, draws: Any, *, num_samples: int = 4000, key: Any = 0, bits: int = 64
) -> TwoSided:
    """Evidence by an approximation and by draws of the posterior, and whether the two agree.

    Parameters
    ----------
    approximation
        An `Approximation` with a density at given points, or a `Posterior` that has one.
    draws
        Draws of the posterior, unconstrained (n, d), or a `Posterior`; best others than those that it was fitted to.
    num_samples
        Draws of the approximation.
    key, bits
        Randomness and precision, 32 or 64.

    Raises
    ------
    NotAvailable
        The approximation has no density at given points.
    NonFinite
        The log density of the target or of the approximation is NaN or +inf at a draw.
    InvalidArgument
        ``approximation`` is none.
    """
    q = getattr(approximation, "approximation", approximation)
    if not isinstance(q, Approximation):
        raise InvalidArgument(
            f"approximation must be an Approximation or a Posterior with one, got {type(q).__name__}."
        )
    check_count("num_samples", num_samples, 100)
    words, generator = read_key(key)
    points = given_draws(draws)
    with precision(bits):
        root = jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)
        u, log_q = _drawn(q, root, num_samples)
        of_q = np.asarray(_log_densities(target, u) - log_q)
        points = jnp.asarray(points, float)
        of_p = np.asarray(_log_densities(target, points) - _log_probs(q, points))
    for name, log_w in (("the approximation", of_q), ("the posterior", of_p)):
        bad = np.isnan(log_w) | (log_w == np.inf)
        if bad.any():
            raise NonFinite(f"{int(bad.sum())} of {log_w.size} log weights at draws of {name} are NaN or +inf.")
    return summarise(of_q, of_p)


def summarise(of_q: np.ndarray, of_p: np.ndarray) -> TwoSided:
    """`TwoSided` from log weights log π − log q at draws of q and of the posterior."""
    one, other = importance_evidence(of_q), importance_evidence(-of_p)
    k, k_posterior = psis(of_q).k_hat, psis(-of_p).k_hat
    error = float(np.hypot(one.error, other.error))
    agree = abs(one.value + other.value) < 4 * error + AGREE
    # Of equal weights there is no k-hat (NaN), and nothing to fear.
    limits = not (k > k_hat_threshold(of_q.size) or k_posterior > k_hat_threshold(of_p.size))
    return TwoSided(
        log_evidence=bridge(of_q, of_p),
        from_approximation=one.value,
        from_posterior=-other.value,
        error=error,
        lower=float(of_q.mean()),
        upper=float(of_p.mean()),
        k_hat=float(k),
        k_hat_posterior=float(k_posterior),
        forward_ess=float(np.exp(-importance_evidence(of_p).value - other.value)),
        reliable=bool(agree and limits),
    )


def bridge(of_q: np.ndarray, of_p: np.ndarray) -> float:
    """Optimal bridge estimate of log Z from log weights at both sets of draws (Meng & Wong 1996, eq. 4.1)."""
    share = np.log([of_p.size, of_q.size]) - np.log(of_p.size + of_q.size)
    log_r = float(np.median(of_p))

    def log_mean(x: np.ndarray) -> float:
        return float(np.logaddexp.reduce(x) - np.log(x.size))

    for _ in range(ITERATIONS):
        before = log_r
        above = of_q - np.logaddexp(share[0] + of_q, share[1] + log_r)
        below = -np.logaddexp(share[0] + of_p, share[1] + log_r)
        log_r = log_mean(above) - log_mean(below)
        if abs(log_r - before) < 1e-10:
            break
    return log_r


@jax.jit
def _log_densities(target: Target, u: Array) -> Array:
    return jax.vmap(target.log_density)(u)


@jax.jit
def _log_probs(q: Approximation, u: Array) -> Array:
    return jax.vmap(q.log_prob)(u)


def _drawn(q: Approximation, key: Any, n: int) -> tuple[Array, Array]:
    return jax.jit(lambda q, key: q.sample_and_log_prob(key, n))(q, key)
