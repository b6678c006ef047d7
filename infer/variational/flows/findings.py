"""What a finished training says of itself: whether it had ended, what it skipped, whether restarts agree, and layers
whose parameters ran into a limit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .bijection import Bijection, Chain, Invert, Stack
from .continuous import MAX_STEPS, Continuous
from .coupled import Triangular
from .flow import Flow, Training
from .judge import final_draws
from .transformers import Affine

SHIFT = 0.5
"""Distance of restarts' means, in standard deviations of the draws, that counts as another place."""
GAP = 0.5
"""Gain in nats that a training which was cut off might still have made, that is worth a warning."""
GROWTH = 30.0
"""Spread of the draws, in standard deviations of the start, beyond which the target may be improper."""
NUM_PROBES = 500
PINNED = 0.95
"""Of the limit of a layer's log scale, from where on it counts as pinned."""
OFTEN = 0.01
"""Share of the draws with a pinned log scale that is worth a warning."""
BUDGET = 0.5
"""Share of the solver's steps that is worth a warning."""


def remarks(q: Flow, gain: float, gap: float, plateau: Any, num_steps: int) -> list[dict]:
    """Findings as keyword arguments of `Finding`.

    Parameters
    ----------
    q
        The flow that was kept, with the training of all restarts.
    gain
        Upper limit of what a further quarter of the steps would have gained; infinite where it is not known.
    gap
        What is left to gain as the weights of the draws see it; infinite where it is not known.
    plateau, num_steps
        The tolerance of the rule that stops, and the steps asked for.
    """
    training, (draws, _) = q.training, (np.asarray(x) for x in final_draws(q))
    chain: Any = q.bijection
    start = np.asarray(chain.bijections[-1].standard_deviations())
    spread = float(np.max(np.std(draws, axis=0) / np.maximum(start, np.finfo(float).tiny)))
    found = [_ended(gain, gap, plateau, num_steps, spread), *limits(q)]
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


def _ended(gain: float, gap: float, plateau: Any, num_steps: int, spread: float) -> dict:
    if plateau is not None and gain < plateau:
        text = f"Training ended on a plateau: a further quarter of the steps would gain less than {plateau:.2g} nats."
        return {"level": "ok", "name": "training", "message": text, "value": gain, "threshold": plateau}
    text = f"Training ended with its {num_steps:,} steps"
    if np.isfinite(gain):
        text += f"; a further quarter of them would gain {max(gain, 0):.2g} nats at most"
        if gap < gain:
            text += f", and {gap:.2g} are left by the weights of the draws"
    improper, far = spread > GROWTH, np.isfinite(gain) and min(gain, gap) > GAP
    if improper:
        text += (
            f", and the draws spread {spread:.0f} times as wide as at the start: the target may be improper, so that "
            "no density fits it. Give it a proper prior"
        )
    elif far:
        text += f" (threshold {GAP}): raise num_steps"
    level = "warning" if improper or far else "note"
    return {"level": level, "name": "training", "message": f"{text}.", "value": min(gain, gap), "threshold": GAP}


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


def limits(q: Flow) -> list[dict]:
    """Layers whose log scales are at their limit at some draws, and solvers near the end of their steps."""
    z = q.sample_base(jax.random.key(1), NUM_PROBES)
    chain: Any = q.bijection
    layers = chain.bijections[0]  # where limits matter nothing comes before the stack
    found, shares = [], pinned_shares(layers, z)
    if shares is not None and np.max(shares) > OFTEN:
        worst = int(np.argmax(shares))
        text = (
            f"Layer {worst} of 0 to {len(shares) - 1} has a log scale at its limit at {shares[worst]:.0%} of draws: "
            "the flow would stretch further than it may: raise scale_limit, or take a spline family."
        )
        value = float(shares[worst])
        found.append({"level": "warning", "name": "log scales", "message": text, "value": value, "threshold": OFTEN})
    used = solver_share(layers, z)
    if used is not None and not used < BUDGET:
        text = (
            f"The solver takes up to {used:.0%} of its {MAX_STEPS} steps per draw: the field has become stiff. Raise "
            "tolerance, or take another family."
        )
        found.append({"level": "warning", "name": "solver", "message": text, "value": used, "threshold": BUDGET})
    return found


def pinned_shares(layers: Bijection, z: Float[Array, "n d"]) -> np.ndarray | None:
    """Share of the draws at which a log scale is within 5 % of its limit, by layer; None for flows without a limit."""
    kind = _triangular(layers.layer)[0] if isinstance(layers, Stack) else None
    if kind is None or not isinstance(kind.transformer, Affine):
        return None
    return np.asarray(_pinned(layers, z))


@jax.jit
def _pinned(layers: Stack, z: Float[Array, "n d"]) -> Float[Array, " layers"]:
    def body(x: Array, layer: Bijection) -> tuple[Array, Array]:
        map_of, inverted = _triangular(layer)
        # Scales are parameters at the input of the triangular map, which is the output of its inverse.
        at = jax.vmap(map_of.inverse)(x) if inverted else x
        log_scales = jax.vmap(map_of.transform_and_log_diagonal)(at)[1]
        pinned = jnp.any(jnp.abs(log_scales) > PINNED * map_of.transformer.limit, axis=-1)
        return jax.vmap(layer.transform)(x), jnp.mean(pinned)

    return jax.lax.scan(body, z, layers.layer)[1]


def _triangular(layer: Bijection) -> tuple[Any, bool]:
    """The triangular map of a layer, None if it has none, and whether the layer takes its inverse."""
    first = layer.bijections[0] if isinstance(layer, Chain) else layer
    inverted = isinstance(first, Invert)
    first = first.bijection if inverted else first
    return (first if isinstance(first, Triangular) else None), inverted


def solver_share(layers: Bijection, z: Float[Array, "n d"]) -> float | None:
    """Largest share of the solver's budget of steps that a draw takes; None for flows without a solver."""
    if not (isinstance(layers, Stack) and isinstance(layers.layer, Continuous)):
        return None
    return float(jnp.max(_solver_steps(layers, z))) / MAX_STEPS


@jax.jit
def _solver_steps(layers: Stack, z: Float[Array, "n d"]) -> Array:
    def body(x: Array, layer: Continuous) -> tuple[Array, Array]:
        return jax.vmap(layer.transform)(x), jax.vmap(layer.num_steps)(x)

    return jax.lax.scan(body, z, layers.layer)[1]
