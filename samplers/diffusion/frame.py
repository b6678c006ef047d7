"""Before a score is learned: draws of the posterior, the coordinates in which they are white, checks of the density."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer import evaluate
from ...infer.errors import InvalidArgument, NonFinite
from ...infer.method import AbstractMethod
from ...infer.target import Target
from .training import Draws, Levels

MIN_DRAWS = 20
PROBES = 1000
WIDE = 1.5
FINITE = 0.9
"""Share of draws of a normal 1.5 times as wide as the posterior at which the log density must be finite."""
RATIO = 1e3
"""Of the largest to the smallest scale, above which coordinates that are not whitened cannot be learned."""
SMALLEST = 0.1
"""Least local scale that the lowest noise level follows."""
LOWEST = 0.03
CHAINS = 4


class Prepared(eqx.Module):
    """What is known before the steps.

    Parameters
    ----------
    loc, scale
        Whitening, u = loc + scale y, shapes (d,) and (d, d).
    levels
        Lowest and highest noise level.
    draws
        To learn from; None for scores without draws.
    num_evaluations
        Of the log density or its gradient, so far.
    r_hat, divergences
        Of the draws, where they were made here; NaN and 0 elsewhere.
    ess
        Median of the effective draws of a Monte Carlo score at each level, or None.
    """

    loc: Any
    scale: Any
    levels: Levels
    draws: Draws | None
    num_evaluations: Any
    r_hat: Any = np.nan
    divergences: Any = 0
    ess: Any = None


def given_draws(given: Any) -> Any:
    """Draws (n, d) of an array or a `Posterior`; of weighted particles, drawn by their weights."""
    if given is None:
        return None
    if hasattr(given, "unconstrained"):
        weights = given.log_weights() if given.kind == "particles" else None
        given = given.unconstrained()
        given = given.reshape(-1, given.shape[-1])
        if weights is not None:
            share = np.exp(weights - weights.max())
            given = given[np.random.default_rng(0).choice(len(given), len(given), p=share / share.sum())]
    draws = np.asarray(given)
    if draws.ndim != 2 or len(draws) < MIN_DRAWS:
        raise InvalidArgument(
            f"from_draws must be a Posterior or an array of shape (n, d) with n >= {MIN_DRAWS}, got shape "
            f"{draws.shape}."
        )
    if not np.isfinite(draws).all():
        raise InvalidArgument(f"from_draws has {int((~np.isfinite(draws)).sum())} values that are not finite.")
    return draws


def make_draws(
    key: PRNGKeyArray, target: Target, method: AbstractMethod, num_draws: int
) -> tuple[np.ndarray, int, tuple[float, int]]:
    """Draws by a sampler, the evaluations spent on them, and the R-hat and divergences of chains (else NaN and 0)."""
    from ...infer.run.fit import fit

    bits = 64 if jax.config.jax_enable_x64 else 32
    chains = CHAINS if method.kind == "chains" else None
    posterior = fit(target, method, key=key, num_samples=num_draws, num_chains=chains, progress=False, precision=bits)
    if posterior.record["stopped"] == "interrupted":
        raise KeyboardInterrupt
    quality = np.nan, 0
    if posterior.kind == "chains":
        from ...infer.diagnostics.chains import worst_rhat

        diverging = posterior.record["totals"].get("sample", {}).get("diverging", 0)
        quality = worst_rhat({"u": posterior.unconstrained()}), int(diverging)
    return given_draws(posterior), posterior.record["evaluations"], quality


def whitening(draws: np.ndarray, whiten: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and Cholesky factor of the draws; without whitening zero and one, with a warning where scales differ."""
    dim = draws.shape[1]
    if whiten:
        covariance = np.cov(draws, rowvar=False).reshape(dim, dim)
        if len(draws) <= dim + 1:  # singular: shrunk towards its diagonal
            covariance = 0.5 * (covariance + np.diag(np.diag(covariance)))
        jitter = 1e-8 * np.trace(covariance) / dim
        if not jitter > 0:
            raise InvalidArgument(f"draws do not move: their covariance has the trace {np.trace(covariance):g}.")
        scale = np.sqrt(np.diag(covariance))
        correlation = covariance / np.outer(scale, scale) + 1e-8 * np.eye(dim)
        return draws.mean(0), scale[:, None] * np.linalg.cholesky(correlation)
    deviations = draws.std(0)
    ratio = deviations.max() / max(deviations.min(), np.finfo(float).tiny)
    if ratio > RATIO:
        warnings.warn(
            f"ProbabilityFlow: standard deviations differ by a factor of {ratio:.2g} (threshold {RATIO:g}), and one "
            f"noise level does not suit all; leave out whiten=False.",
            RuntimeWarning,
            stacklevel=2,
        )
    return np.zeros(dim), np.eye(dim)


def check_density(key: PRNGKeyArray, target: Target, loc: Any, scale: Any) -> None:
    """Raise unless the log density is finite at most points around the posterior.

    Raises
    ------
    NonFinite
        It is not, at more than a tenth of the draws of a normal 1.5 times as wide as the posterior.
    """
    z = np.asarray(jax.random.normal(key, (PROBES, len(loc))))
    u = np.asarray(loc) + WIDE * z @ np.asarray(scale).T
    values = np.asarray(evaluate.over_draws(evaluate.log_density_at, target, u))
    broken = ~np.isfinite(values)
    if np.mean(broken) > 1 - FINITE:
        example = np.array2string(u[np.argmax(broken)], precision=4, threshold=8)
        raise NonFinite(
            f"ProbabilityFlow: the log density is not finite at {np.mean(broken):.0%} of the draws of a normal "
            f"{WIDE} times as wide as the posterior (one is u = {example}); if the parameters are constrained, give "
            f"their support to the target, Target.from_log_density(..., support=...)."
        )


def gradients(target: Target, loc: np.ndarray, scale: np.ndarray, draws: np.ndarray) -> np.ndarray | None:
    """∇ log π in whitened coordinates at each draw; None, with a warning, where one is not finite."""
    found = np.asarray(evaluate.over_draws(_gradient, target, draws)) @ scale
    if not np.isfinite(found).all():
        bad = int((~np.isfinite(found).all(1)).sum())
        warnings.warn(
            f"ProbabilityFlow: the gradient is not finite at {bad} of {len(found)} draws, and none is used (as with "
            f"blend=None); look at the model with target.check().",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return found


def _gradient(key: PRNGKeyArray, target: Target, u: Array) -> Float[Array, " d"]:
    del key
    return jax.grad(target.log_density)(u)


def levels(rho_max: float, rho_min: float | None, fisher: np.ndarray | None) -> Levels:
    """The interval of levels; the lowest one by default 0.03 times the smallest local scale, F's −½."""
    if rho_min is None:
        local = 1.0 if fisher is None else float(np.clip(np.max(fisher) ** -0.5, SMALLEST, 1.0))
        rho_min = LOWEST * local
    return Levels(jnp.asarray(rho_min, float), jnp.asarray(rho_max, float))
