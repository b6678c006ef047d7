"""What the diagnosis says of a MixFlow beyond its draws."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .approximation import DOUBTFUL, UNRELIABLE, MixFlowApproximation
from .trajectories import half_of, lower_limit

if TYPE_CHECKING:
    from .method import MixFlow, MixFlowState

LOW_ACCEPTANCE = 0.5
LARGE_ERROR = 0.5
"""Nats of energy per map, above which an uncorrected map is far from preserving the target."""
SKEWED = -1.0
"""Skewness of trajectories' bounds below which their standard error is said to be too small."""
MANY = 50
"""Dimensions from which on the bound of the augmented space is said to lie low."""


def remarks(method: "MixFlow", state: "MixFlowState", flow: MixFlowApproximation) -> list[dict[str, Any]]:
    """Findings as keyword arguments of `Finding`."""
    return [
        *_step_size(method), *_length(method, flow), *_lost(flow), *_energy(state, flow), *_digits(flow),
        *_dimension(flow),
    ]  # fmt: skip


def _step_size(method: "MixFlow") -> list[dict[str, Any]]:
    tuned = method.tuned
    grid = np.asarray(tuned.step_sizes)
    if not grid.size:
        return []
    chosen = float(tuned.step_size)
    text = (
        f"Step size {chosen:.3g} has the largest bound of {grid.size} tried, from {grid.min():.3g} to {grid.max():.3g}."
    )
    at_edge = chosen in (grid.min(), grid.max())
    if at_edge:
        text += " It is the first or last of them: a wider grid= may hold a better one."
    return [{"level": "note" if at_edge else "ok", "name": "step size", "message": text, "value": chosen}]


def _length(method: "MixFlow", flow: MixFlowApproximation) -> list[dict[str, Any]]:
    """Where the bound is largest, and why orbits stopped to grow."""
    curve, filled = flow.curve, int(flow.curve.filled)
    elbo, se, paired, lengths = (np.asarray(x)[:filled] for x in (curve.elbo, curve.se, curve.paired, curve.lengths))
    at = int(np.searchsorted(lengths, int(flow.length)).clip(0, filled - 1))
    top = at if method.length is None else int(np.argmax(lower_limit(elbo, se)))
    text = f"The bound is {elbo[top]:.4g} ± {se[top]:.2g} at length {lengths[top]:,}"
    found = {"level": "ok", "name": "length", "value": float(lengths[at])}
    # Differences are from the bound at the length of the flow, which is the last one where the user gave it.
    if elbo[top] - elbo[-1] > max(method.tolerance, 2 * max(paired[top], paired[-1])):
        found |= _falling(flow, f"{text} and falls to {elbo[-1]:.4g} at {lengths[-1]:,}", int(lengths[top]))
        text = found["message"]
    elif method.length is None and lengths[-1] < method.max_length:
        text += (
            f"; growth stopped at {lengths[-1]:,} of {method.max_length:,}, where it had risen by less than "
            f"{method.tolerance:g} since half of it"
        )
    else:
        half = int(half_of(lengths, len(lengths) - 1))
        gain = elbo[at] - elbo[half]
        if gain > max(method.tolerance, 2 * paired[half]):
            text += f" and still rises (by {gain:.2g} in the second half): raise max_length"
            found["level"] = "note"
    return [found | _with_skew(method, flow, at, text, found["level"])]


def _falling(flow: MixFlowApproximation, text: str, largest: int) -> dict[str, Any]:
    """That the bound falls: for want of precision of the map, or of trajectories where the map has none to lose."""
    if flow.flow.flow_map.measure_preserving and flow.flow.family == "homogeneous":
        text += ", as that of an exact map does by the luck of few trajectories alone: raise num_trajectories"
        return {"level": "note", "message": text}
    if flow.flow.flow_map.measure_preserving:
        return {"level": "note", "message": f"{text}: give length={largest}, or raise num_trajectories"}
    text += (
        f": the step size is too large for longer flows, and {largest:,} is the largest useful length. A smaller "
        f"step_size with a larger max_length goes higher"
    )
    return {"level": "warning", "message": text}


def _with_skew(method: "MixFlow", flow: MixFlowApproximation, at: int, text: str, level: str) -> dict[str, Any]:
    """The message and its level, with a word on the error of the bound where that is too small."""
    skew, se = float(np.asarray(flow.curve.skew)[at]), float(np.asarray(flow.curve.se)[at])
    if not (skew < SKEWED and se > method.tolerance / 2):
        return {"message": text + ".", "level": level}
    text += (
        f". Its trajectories' bounds are skewed ({skew:.1f}; threshold {SKEWED:g}), so that the error is too small "
        f"and the bound rather too high: elbo() has it of more draws, num_trajectories={method.num_trajectories} "
        f"may be raised."
    )
    return {"message": text, "level": level if level == "warning" else "note"}


def _lost(flow: MixFlowApproximation) -> list[dict[str, Any]]:
    curve = flow.curve
    lost = int(np.asarray(curve.lost)[: int(curve.filled)].max(initial=0))
    if not lost:
        return []
    text = (
        f"{lost} trajectories left the finite numbers and are not in the bound of the lengths where they had, which is "
        f"too high by what they would have taken from it. Use a smaller step_size."
    )
    return [{"level": "warning", "name": "lost trajectories", "message": text, "value": lost, "threshold": 0}]


def _energy(state: "MixFlowState", flow: MixFlowApproximation) -> list[dict[str, Any]]:
    """Divergences, and acceptance or mean energy error of all maps of the fit."""
    tally = state.orbits.tally
    maps, divergences = (int(np.asarray(count).sum()) for count in (tally.maps, tally.divergences))
    found: list[dict[str, Any]] = []
    if divergences and maps:
        preserving = flow.flow.flow_map.measure_preserving
        text = f"{divergences:,} of {maps:,} maps had an energy error above 1,000 or that was not finite; "
        text += (
            "their proposals were rejected, which leaves bound and densities exact."
            if preserving
            else "such orbits leave the target's mass. Use a smaller step_size."
        )
        level = "note" if preserving else "warning"
        found.append({"level": level, "name": "divergences", "message": text, "value": divergences, "threshold": 0})
    if not maps:
        return found
    if flow.flow.flow_map.measure_preserving:
        share = float(np.asarray(tally.acceptance).sum() / maps)
        low = share < LOW_ACCEPTANCE
        text = f"Proposals are accepted with probability {share:.2f} on average"
        text += ", so that orbits hardly move: a smaller step_size may do better." if low else "."
        return [*found, {"level": "note" if low else "ok", "name": "acceptance", "message": text, "value": share}]
    mean = float(np.asarray(tally.energy_error).sum() / max(maps - divergences, 1))
    high = mean > LARGE_ERROR
    text = f"The leapfrog changes the energy by {mean:.2g} per map on average"
    text += ": the map hardly preserves the target, use a smaller step_size." if high else "."
    return [*found, {"level": "note" if high else "ok", "name": "energy error", "message": text, "value": mean}]


def _dimension(flow: MixFlowApproximation) -> list[dict[str, Any]]:
    """That the bound, which is one of the augmented space, lies lower the more coordinates there are."""
    dim = flow.flow.reference.loc.size
    if dim < MANY:
        return []
    text = (
        f"With {dim} dimensions (from {MANY} on) the bound, which counts the auxiliary variables in, may lie far below "
        f"the evidence: compare with another method, e.g. the evidence of SMC() or of NUTS() draws."
    )
    return [{"level": "note", "name": "dimension", "message": text, "value": float(dim), "threshold": float(MANY)}]


def _digits(flow: MixFlowApproximation) -> list[dict[str, Any]]:
    error = flow.inversion()
    text = (
        f"There and back, orbits return to within {error.distance:.1g} of their start (in standard deviations), and "
        f"log densities at given points are off by {error.nats:.1g} nats at most, at nine draws in ten"
    )
    finding = {"name": "inversion", "value": error.nats, "threshold": DOUBTFUL}
    if error.nats < DOUBTFUL:
        return [finding | {"level": "ok", "message": text + "."}]
    text += ": those densities " + ("have lost digits" if error.nats <= UNRELIABLE else "mean nothing")
    text += "; those of draws, and the bound, are read off orbits and do not depend on it."
    return [finding | {"level": "note", "message": text}]
