"""What `Posterior.diagnose` says of a trained last layer."""

from typing import Any

import jax
import numpy as np

from .model import LastLayer
from .regression import NormalHead, StudentTHead

FADED = 0.05
"""KL per weight, in nats, below which a posterior is its prior."""
OVERFITTED = 0.1
TINY, HUGE = 1e-3, 3.0


def remarks(target: LastLayer, facts: dict[str, Any], num_steps: int, patience: int | None) -> list[dict[str, Any]]:
    """Keyword arguments of findings; ``facts`` are those of the restart that was chosen."""
    found = []
    best, last, at, count = (float(facts[name]) for name in ("best_score", "score", "best_at", "count"))
    if target.held is None:
        text = (
            "No rows were held out: nothing says when training should have ended, and the last state of such training "
            "overfits. Give validation=0.2."
        )
        found.append({"level": "warning", "name": "validation", "message": text})
    elif not np.isfinite(best):
        text = f"The rows held out never had a finite predictive density (last: {last:g}). Lower learning_rate."
        found.append({"level": "warning", "name": "validation", "message": text, "value": best})
    else:
        if best - last > OVERFITTED:
            text = (
                f"The validation NLL was least ({-best:.4g}) after {at:.0f} steps and rose to {-last:.4g} after "
                f"{count:.0f}: the state of step {at:.0f} is kept. See iterations for both curves."
            )
            found.append({"level": "note", "name": "overfitting", "message": text, "value": best - last})
        if count >= num_steps and count - at < 0.02 * count:
            text = f"The validation NLL still fell at the last of {num_steps:,} steps ({-best:.4g}); raise num_steps."
            found.append({"level": "warning", "name": "steps", "message": text, "value": count})
    others = np.asarray(facts["restarts"])
    if len(others) > 1 and np.isfinite(others).all():
        text = f"The validation NLL of {len(others)} restarts: {-others.max():.4g} (kept) to {-others.min():.4g}."
        found.append({"level": "note", "name": "restarts", "message": text, "value": float(np.ptp(others))})
    with jax.enable_x64(True):
        head = target.head
        kl = float(head.divergence()) / head.weights.mean.size
        noise = np.zeros(0)
        if isinstance(head, NormalHead):
            noise = np.exp(np.asarray(head.log_sd))
        elif isinstance(head, StudentTHead):
            noise = np.exp(0.5 * (np.asarray(head.log_rate) - np.asarray(head.log_shape)))
    if kl < FADED:
        text = (
            f"The posterior is its prior: KL per weight {kl:.3g} nats (threshold {FADED}). The features carry nothing, "
            f"or kl_weight is too large."
        )
        found.append({"level": "warning", "name": "posterior", "message": text, "value": kl})
    for sd in noise[(noise < TINY) | (noise > HUGE)]:
        text = (
            f"The noise's standard deviation is {sd:.3g} times that of y (expected {TINY:g} to {HUGE:g}): the fit "
            f"interpolates, or explains nothing. Look at the loss, or give a noise= or its prior's scale=."
        )
        found.append({"level": "warning", "name": "noise", "message": text, "value": float(sd)})
    return found
