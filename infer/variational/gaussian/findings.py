"""What tells whether a Gaussian run can be believed: size of the step, convergence, restarts."""

import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...linalg import Diagonal, Spectral, Triangular
from ...target import Target
from ..curvature import gradient_difference
from .state import GaussianState, final_elbos, to_u

if TYPE_CHECKING:
    from .common import AbstractGaussianVI

SHARE_ABOVE = 0.05
UNSETTLED_MEAN = 0.2
"""Distance of the mean from where its gradient points, in standard deviations, that counts as not converged."""
UNSETTLED_VARIANCE = (0.5, 2.0)
"""Eigenvalues of Cᵀ E[∇²V] C, all 1 at the optimum, outside of which variances have not converged."""
GROWTH = 1.2
NUM_DRAWS = 1024
NUM_PROBES = 64


def warn_of_large_steps(name: str, state: GaussianState) -> None:
    """Warn where step × curvature was above 1: the fixed point then has a wrong covariance."""
    share, worst, advice = _large_steps(state)
    if share > SHARE_ABOVE:
        warnings.warn(f"{name}: {_large(share, worst, advice)}", RuntimeWarning, stacklevel=3)


def remarks(method: "AbstractGaussianVI", state: GaussianState, target: Target) -> list[dict[str, Any]]:
    """Findings about a finished run, as keyword arguments of `Finding`."""
    ok = np.flatnonzero(np.asarray(state.failure) == 0)
    several = np.asarray(state.failure).size > 1
    elbos, errors = final_elbos(state, target) if several else (np.zeros(1), np.zeros(1))
    best = int(ok[np.argmax(elbos[ok])])
    chosen = jax.tree.map(lambda x: jnp.asarray(x[best]), state)
    found = _steps(method, state) + _convergence(method, chosen, target)
    if several:
        found += _restarts(state, elbos, errors, ok, best)
    skipped = int(np.asarray(state.skipped).sum())
    if skipped:
        text = f"{skipped:,} draws were left out since the log density or its derivatives were not finite there."
        found.append({"level": "note", "name": "skipped draws", "message": text, "value": skipped, "threshold": 0})
    return found


def _steps(method: "AbstractGaussianVI", state: GaussianState) -> list[dict[str, Any]]:
    if not method.curvature_decides:
        return []
    share, worst, advice = _large_steps(state)
    bad = share > SHARE_ABOVE
    text = _large(share, worst, advice) if bad else f"Step size × curvature was {worst:.2f} at most (limit 1)."
    level = "warning" if bad else "ok"
    return [{"level": level, "name": "step size", "message": text, "value": worst, "threshold": 1.0}]


def _large_steps(state: GaussianState) -> tuple[float, float, float]:
    """Share of steps with step × curvature above 1, its largest value, and the step size to use instead."""
    steps = np.maximum(np.asarray(state.num_steps), 1)
    return (
        float(np.max(np.asarray(state.above) / steps)),
        float(np.max(np.asarray(state.worst))),
        float(0.5 / np.max(np.asarray(state.curvature))),
    )


def _large(share: float, worst: float, advice: float) -> str:
    return (
        f"step_size × curvature was above 1 in {share:.0%} of the steps (up to {worst:.3g}): the covariance converges "
        f"to a wrong value, without any other sign. Use step_size={advice:.3g}, or None to have it chosen."
    )


def _convergence(method: "AbstractGaussianVI", state: GaussianState, target: Target) -> list[dict[str, Any]]:
    shift, low, high, concave = (float(x) for x in _stationarity(state, target))
    norm, trace = (float(x) for x in state.halfway)
    grows = float(state.factor.trace()) > GROWTH * trace > 0 or float(jnp.linalg.norm(state.mean)) > GROWTH * norm > 0
    least, most = UNSETTLED_VARIANCE
    found = []
    if method.covariance in ("block", "low_rank"):
        low = high = 1.0
    if shift > UNSETTLED_MEAN or low < least or high > most:
        text = (
            f"Not converged after {int(state.num_steps):,} steps: the mean would still move by {shift:.2g} sd "
            f"(threshold {UNSETTLED_MEAN}), and Σ × mean curvature, 1 at the optimum, is {low:.2g} to {high:.2g}."
        )
        if low < least and grows:
            text += (
                " Mean or variance still grew in the second half: under a flat prior (say separable data in a logistic "
                "regression) the posterior is improper and they grow for ever: give it a proper prior, or else"
            )
        plain = method.covariance == "full" and method.whiten is None
        text += " Raise num_steps, or use whiten='laplace'." if plain else " Raise num_steps, or give another start=."
        found.append({"level": "warning", "name": "convergence", "message": text, "value": shift})
    else:
        text = (
            f"The mean is within {shift:.2g} sd of a stationary point; Σ × mean curvature, 1 at the optimum, is "
            f"{low:.2g} to {high:.2g}."
        )
        found.append({"level": "ok", "name": "convergence", "message": text, "value": shift})
    if concave > SHARE_ABOVE:
        text = (
            f"In {concave:.0%} of the directions tried the log density is not concave: the Gaussian is a local optimum "
            "and may depend on the start. Compare restarts (num_chains), or start NUTS from it."
        )
        found.append({"level": "note", "name": "concavity", "message": text, "value": concave})
    return found


def _restarts(
    state: GaussianState, elbos: np.ndarray, errors: np.ndarray, ok: np.ndarray, best: int
) -> list[dict[str, Any]]:
    found = []
    total = np.asarray(state.failure).size
    if ok.size < total:
        text = f"{total - ok.size} of {total} restarts left the finite numbers and are not used."
        found.append({"level": "note", "name": "failed restarts", "message": text, "value": total - ok.size})
    gaussians = [to_u(jax.tree.map(lambda x, k=k: jnp.asarray(x[k]), state)) for k in ok]
    first = gaussians[int(np.flatnonzero(ok == best)[0])]
    far = np.array([float(jnp.max(jnp.abs(first.factor.solve(q.loc - first.loc)))) for q in gaussians])
    gap = elbos[best] - elbos[ok]
    apart = (far > 1.0) | (gap > 4 * np.hypot(errors[ok], errors[best]) + 0.1)
    spread = f"{ok.size} restarts: ELBO {elbos[ok].min():.2f} to {elbos[ok].max():.2f}, means up to {far.max():.2g} sd"
    if apart.any():
        text = (
            f"{spread} apart; {int(apart.sum())} ended elsewhere than the best. The posterior may have several modes, "
            "of which the result describes one: compare with SMC, or a mixture (Pathfinder)."
        )
        found.append({"level": "warning", "name": "restarts", "message": text, "value": float(far.max())})
    else:
        text = f"{spread} apart."
        found.append({"level": "ok", "name": "restarts", "message": text, "value": float(far.max())})
    return found


@jax.jit
def _stationarity(state: GaussianState, target: Target) -> tuple[Array, Array, Array, Array]:
    """Largest entry of Cᵀ E∇V; least and largest eigenvalue of Cᵀ E[∇²V] C; share of directions curving down.

    By gradients with the control variate, so that the noise vanishes for a Gaussian target.
    """
    q = to_u(state)
    key, key_probe = jax.random.split(jax.random.key(1))
    half = jax.random.normal(key, (NUM_DRAWS // 2, q.loc.shape[0]), q.loc.dtype)
    z = jnp.concatenate([half, -half])
    pull = jax.vjp(q.factor.apply, q.loc)[1]  # Cᵀ, linear
    v = lambda u: -target.log_density(u)  # noqa: E731
    scores = jax.vmap(lambda z: pull(jax.grad(v)(q.loc + q.factor.apply(z)))[0])(z)
    residual = scores - z
    if isinstance(q.factor, Spectral | Triangular):
        matrix = jnp.eye(z.shape[1]) + residual.T @ z / NUM_DRAWS
        values = jnp.linalg.eigvalsh(0.5 * (matrix + matrix.T))
    else:
        values = 1 + jnp.mean(residual * z, axis=0)
        if not isinstance(q.factor, Diagonal):
            values = jnp.ones_like(values)
    p = jax.random.normal(key_probe, (NUM_PROBES, z.shape[1]), z.dtype)
    p = p / jnp.linalg.norm(p, axis=1, keepdims=True)
    curved = jax.vmap(lambda z, p: jnp.vdot(p, gradient_difference(v, q.loc + q.factor.apply(z), p)))(z[:NUM_PROBES], p)
    return jnp.max(jnp.abs(residual.mean(0))), values.min(), values.max(), jnp.mean(curved < 0)
