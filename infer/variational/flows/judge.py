"""What a training returns: of each restart the best of three iterates, of the restarts the best, by fresh draws.

The objective of training is noisy, and at the end of a run it is known for other parameters than the averaged ones; so
the iterates are compared on the same 2,000 draws of the base. Where draws of the posterior are given, the log density
of those held out decides.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...errors import NonFinite
from ...target import Target
from ...train import choose
from .flow import ITERATES, Flow, Training

FINAL_DRAWS = 2000
MAX_BROKEN = 0.01


def best_flow(state: Any, target: Target, held_out: Float[np.ndarray, "n d"] | None) -> Flow:
    """The best restart at its best iterate, with what is known of all of them.

    Parameters
    ----------
    state
        `FlowState` with a leading axis over restarts.
    held_out
        Draws of the posterior that decide, in place of the ELBO.

    Raises
    ------
    NonFinite
        No iterate of a restart has a finite objective; with a draw at which the log density is not finite.
    """
    state = jax.tree.map(jnp.asarray, state)
    flows, names, values = [], [], []
    for i in range(state.train.skipped.shape[0]):
        one = jax.tree.map(lambda x, i=i: x[i], state)
        flow_of = lambda params, rest=one.rest: eqx.combine(params, rest)  # noqa: E731
        try:
            params, name, value = choose(one.train, lambda p, make=flow_of: judge(make(p), target, held_out))
        except NonFinite as error:
            raise NonFinite(f"{error}{broken_draw(flow_of(one.train.params), target)}") from None
        flows.append(flow_of(params))
        names.append(name)
        values.append(value)
    best = int(np.argmax(values))
    means = jnp.stack([jnp.mean(final_draws(flow)[0], axis=0) for flow in flows]) if len(flows) > 1 else None
    training = Training(
        values=jnp.asarray(values), means=means, skipped=state.train.skipped, chosen=jnp.asarray(best),
        parameters=jnp.asarray(ITERATES.index(names[best])),
    )  # fmt: skip
    return Flow(flows[best].bijection, training)


def judge(q: Flow, target: Target, held_out: Float[np.ndarray, "n d"] | None) -> Float[Array, ""]:
    """What decides between iterates: the ELBO by fresh draws, or the mean log density of the draws held out."""
    if held_out is not None:
        return _mean_log_prob(q, jnp.asarray(held_out, float))
    u, log_q = final_draws(q)
    return _mean_of_finite(_log_densities(target, u) - log_q)


def seen_gap(q: Flow, target: Target) -> float:
    """KL(q, π) as the weights of fresh draws see it, log E[w] − E[log w] ≥ 0: more than that no training could gain.

    What q has left out the weights do not see.
    """
    u, log_q = final_draws(q)
    log_w = np.asarray(_log_densities(target, u) - log_q)
    log_w = log_w[np.isfinite(log_w)]
    return float(np.log(np.mean(np.exp(log_w - log_w.max()))) + log_w.max() - log_w.mean())


def broken_draw(q: Flow, target: Target) -> str:
    """A draw of q at which the target, or q itself, is not finite; nothing if there is none."""
    u, log_q = final_draws(q)
    broken = ~np.isfinite(np.asarray(_log_densities(target, u) - log_q))
    if not broken.any():
        return ""
    example = np.array2string(np.asarray(u)[np.argmax(broken)], precision=4, threshold=8)
    return (
        f" Of {broken.size:,} draws, {int(broken.sum()):,} have no finite log density; one is u = {example}. If such "
        "values are not allowed, give the support of the constrained parameters to the target."
    )


@jax.jit
def final_draws(q: Flow) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
    """The draws, and their log densities, on which iterates are compared."""
    return q.sample_and_log_prob(jax.random.key(0), FINAL_DRAWS)


@jax.jit
def _mean_of_finite(log_w: Array) -> Array:
    """Their mean, as long as no more than a hundredth is not finite; else NaN."""
    finite = jnp.isfinite(log_w)
    mean = jnp.sum(jnp.where(finite, log_w, 0)) / jnp.maximum(finite.sum(), 1)
    return jnp.where(jnp.mean(finite) >= 1 - MAX_BROKEN, mean, jnp.nan)


@jax.jit
def _log_densities(target: Target, u: Array) -> Array:
    return jax.vmap(target.log_density)(u)


@jax.jit
def _mean_log_prob(q: Flow, u: Array) -> Array:
    return jnp.mean(jax.vmap(q.log_prob)(u))
