"""What `diagnose` says of a probability flow beyond its weights."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .method import ProbabilityFlow

R_HAT = 1.01
DIVERGING = 0.01
"""Share of the draws' transitions that may diverge without a warning."""
MEMORISED = 1.25
"""Loss held out, in units of that at draws learned from, above which a score repeats its draws."""
FEW = 1 / 50


def remarks(method: "ProbabilityFlow", state: Any, result: Any) -> list[dict[str, Any]]:
    """Findings as keyword arguments."""
    del state
    prepared, found = method.prepared, []
    r_hat = float(prepared.r_hat)
    if np.isfinite(r_hat):
        count = len(prepared.draws.points) + len(prepared.draws.held)
        found.append(_draws(r_hat, int(prepared.divergences), count))
    learned = getattr(result, "learned", None)
    if learned is not None:
        found.append(_training(learned))
        if hasattr(result, "flow"):
            found.append(_steps(len(result.flow.grid) - 1, float(learned.tuning), method))
    if prepared.ess is not None:
        found.append(_effective(np.asarray(prepared.ess), method.num_particles))
    return found


def _draws(r_hat: float, divergences: int, count: int) -> dict[str, Any]:
    text = f"The {count:,} draws that the score was learned from have a largest R-hat of {r_hat:.3f}"
    text += f" and {divergences} divergences" if divergences else ""
    if r_hat < R_HAT and divergences <= DIVERGING * count:
        return {"level": "ok", "name": "draws", "message": f"{text}.", "value": r_hat, "threshold": R_HAT}
    text += (
        f" (threshold {R_HAT}): what chains have missed or weighed wrongly the score has too. Weights put right what "
        "is there; look at a fit by NUTS alone."
    )
    return {"level": "warning", "name": "draws", "message": text, "value": r_hat, "threshold": R_HAT}


def _training(learned: Any) -> dict[str, Any]:
    held = float(np.asarray(learned.held_out)[int(learned.chosen)])
    ratio = held / max(float(learned.seen), 1e-12)
    text = f"The denoising loss is {held:.4g} at draws held out and {float(learned.seen):.4g} at those learned from"
    if ratio < MEMORISED:
        return {"level": "ok", "name": "training", "message": f"{text}.", "value": ratio, "threshold": MEMORISED}
    text += (
        f", {ratio:.2g} times less (threshold {MEMORISED}): the score repeats its draws, which may be too few or near "
        "duplicates. Give more draws, or a smaller network (hidden)."
    )
    return {"level": "warning", "name": "training", "message": text, "value": ratio, "threshold": MEMORISED}


def _steps(steps: int, change: float, method: "ProbabilityFlow") -> dict[str, Any]:
    text = f"{steps} steps of the solver"
    if not np.isfinite(change):
        return {"level": "note", "name": "solver", "message": f"{text}.", "value": float(steps)}
    text += f"; twice as many change log q by {change:.2g} nats at most"
    if change < method.tolerance:
        return {"level": "ok", "name": "solver", "message": f"{text}.", "value": change, "threshold": method.tolerance}
    text += (
        f" (threshold {method.tolerance:g}). Weights are exact for any number of steps; the score may be rough, which "
        "smaller networks or more draws mend."
    )
    return {"level": "note", "name": "solver", "message": text, "value": change, "threshold": method.tolerance}


def _effective(ess: np.ndarray, num_particles: int) -> dict[str, Any]:
    least, limit = float(ess.min()), FEW * num_particles
    text = f"Importance sampling of the score has {least:.0f} effective draws of {num_particles} at the worst level"
    if least >= limit:
        return {"level": "ok", "name": "effective draws", "message": f"{text}.", "value": least, "threshold": limit}
    text += f" (threshold {limit:.0f}): raise num_particles, use score='amortised', or dynamics='sde' with chains."
    return {"level": "warning", "name": "effective draws", "message": text, "value": least, "threshold": limit}
