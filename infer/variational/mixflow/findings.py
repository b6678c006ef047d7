"""What the diagnosis says of a MixFlow beyond its draws."""

from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .approximation import MixFlowApproximation, round_trip

if TYPE_CHECKING:
    from .method import MixFlow, MixFlowState

UNRELIABLE = 1e-3
"""Median round-trip error, in units of the map's scale, above which densities at given points mean nothing."""
DOUBTFUL = 1e-6


def remarks(method: "MixFlow", state: "MixFlowState", flow: MixFlowApproximation) -> list[dict[str, Any]]:
    """Findings as keyword arguments of `Finding`."""
    return [*_step_size(method), *_length(method, flow), *_lost(state), *_digits(flow)]


def _step_size(method: "MixFlow") -> list[dict[str, Any]]:
    tuned = method.tuned
    if np.asarray(tuned.step_sizes).size == 1:
        return []
    chosen, grid = float(tuned.step_size), np.asarray(tuned.step_sizes)
    text = (
        f"Step size {chosen:.3g} has the largest bound of {grid.size} tried, from {grid.min():.3g} to {grid.max():.3g}."
    )
    at_edge = chosen in (grid.min(), grid.max())
    if at_edge:
        text += " It is the first or last of them: give a wider grid=."
    return [{"level": "note" if at_edge else "ok", "name": "step size", "message": text, "value": chosen}]


def _length(method: "MixFlow", flow: MixFlowApproximation) -> list[dict[str, Any]]:
    curve, filled = flow.curve, int(flow.curve.filled)
    elbo, se, lengths = (np.asarray(x)[:filled] for x in (curve.elbo, curve.se, curve.lengths))
    best = int(np.nanargmax(elbo))
    text = f"The bound is {elbo[best]:.4g} ± {se[best]:.2g} at length {lengths[best]:,}"
    if elbo[best] - elbo[-1] > 2 * np.hypot(se[best], se[-1]):
        text += f" and falls to {elbo[-1]:.4g} at {lengths[-1]:,}: the step size is too large for longer flows."
        return [{"level": "note", "name": "length", "message": text, "value": float(lengths[best])}]
    half = elbo[filled // 2]
    if lengths[-1] >= method.max_length and elbo[best] - half > max(method.tolerance, 2 * se[best]):
        text += f" and still rises (by {elbo[best] - half:.2g} in the second half): raise max_length."
        return [{"level": "note", "name": "length", "message": text, "value": float(lengths[best])}]
    return [{"level": "ok", "name": "length", "message": text + ".", "value": float(lengths[best])}]


def _lost(state: "MixFlowState") -> list[dict[str, Any]]:
    bounds = np.asarray(state.bounds)
    reached = ~np.all(np.isnan(bounds), axis=-2, keepdims=True)
    lost = int(np.any(~np.isfinite(bounds) & reached, axis=-1).sum())
    if not lost:
        return []
    text = (
        f"{lost} of {bounds.shape[-2] * bounds.shape[0]} trajectories left the finite numbers and are not in the "
        f"bound, which is too high by what they would have taken from it. Use a smaller step_size."
    )
    return [{"level": "warning", "name": "lost trajectories", "message": text, "value": lost, "threshold": 0}]


def _digits(flow: MixFlowApproximation) -> list[dict[str, Any]]:
    error = float(np.median(np.asarray(round_trip(flow, jax.random.key(0)))))
    text = f"There and back, orbits return to within {error:.1g} of their start (in standard deviations)"
    if error < DOUBTFUL:
        return [{"level": "ok", "name": "inversion", "message": text + ".", "value": error, "threshold": DOUBTFUL}]
    text += ": densities at given points " + ("mean nothing" if not error < UNRELIABLE else "have lost digits")
    text += "; those of draws, and the bound, are read off orbits and do not depend on it."
    return [{"level": "note", "name": "inversion", "message": text, "value": error, "threshold": DOUBTFUL}]
