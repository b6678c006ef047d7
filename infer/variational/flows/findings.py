"""What a finished training says of itself: whether it had ended, what it skipped, and whether restarts agree."""

from typing import Any

import numpy as np

from .flow import Training

SHIFT = 0.5
"""Distance of restarts' means, in standard deviations of the draws, that counts as another place."""
GAP = 0.5
"""Gain in nats that a training which was cut off might still have made, that is worth a warning."""
GROWTH = 30.0
"""Spread of the draws, in standard deviations of the start, beyond which the target may be improper."""


def remarks(training: Training, draws: Any, scale: Any, gain: float, plateau: Any, num_steps: int) -> list[dict]:
    """Findings as keyword arguments of `Finding`.

    Parameters
    ----------
    training
        Of all restarts.
    draws, scale
        Draws of u of the flow that was kept, shape (n, d), and the standard deviations that it began with, shape (d,).
    gain
        Upper limit of what a further quarter of the steps would have gained; infinite where it is not known.
    plateau, num_steps
        The tolerance of the rule that stops, and the steps asked for.
    """
    draws = np.asarray(draws)
    spread = float(np.max(np.std(draws, axis=0) / np.maximum(np.asarray(scale), np.finfo(float).tiny)))
    found = [_ended(gain, plateau, num_steps, spread)]
    skipped = int(np.sum(np.asarray(training.skipped)))
    if skipped:
        text = f"{skipped:,} steps were skipped, since the log density or its gradient was not finite at a draw."
        often = skipped > 0.01 * num_steps
        if often:
            text += " Look at target.check(); lower learning_rate, or raise num_draws."
        found.append(
            {"level": "warning" if often else "note", "name": "skipped steps", "message": text, "value": skipped}
        )
    if training.means is not None:
        found.append(_restarts(training, np.std(draws, axis=0)))
    return found


def _ended(gain: float, plateau: Any, num_steps: int, spread: float) -> dict:
    if plateau is not None and gain < plateau:
        text = f"Training ended on a plateau: a further quarter of the steps would gain less than {plateau:.2g} nats."
        return {"level": "ok", "name": "training", "message": text, "value": gain, "threshold": plateau}
    text = f"Training ended with its {num_steps:,} steps"
    if np.isfinite(gain):
        text += f"; a further quarter of them would gain {max(gain, 0):.2g} nats at most"
    improper, far = spread > GROWTH, np.isfinite(gain) and gain > GAP
    if improper:
        text += (
            f", and the draws spread {spread:.0f} times as wide as at the start: the target may be improper, so that "
            "no density fits it. Give it a proper prior"
        )
    elif far:
        text += f" (threshold {GAP}): raise num_steps"
    level = "warning" if improper or far else "note"
    return {"level": level, "name": "training", "message": f"{text}.", "value": gain, "threshold": GAP}


def _restarts(training: Training, sd: np.ndarray) -> dict:
    values, means = np.asarray(training.values), np.asarray(training.means)
    far = np.max(np.abs(means - means[int(training.chosen)]) / np.maximum(sd, np.finfo(float).tiny), axis=1)
    apart = int(np.sum(far > SHIFT))
    text = (
        f"{len(values)} restarts end at {values.min():.2f} to {values.max():.2f} nats, their means up to "
        f"{far.max():.2g} sd apart"
    )
    if not apart:
        return {"level": "ok", "name": "restarts", "message": f"{text}.", "value": float(far.max()), "threshold": SHIFT}
    text += (
        f"; {apart} of them ended elsewhere than the best. The posterior may have several modes, of which the result "
        "may describe one: raise anneal, or compare with SMC."
    )
    return {"level": "warning", "name": "restarts", "message": text, "value": float(far.max()), "threshold": SHIFT}
