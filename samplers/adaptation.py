"""Warm-up of the Hamiltonian family: step size by dual averaging, metric by windows.

Dual averaging (Hoffman & Gelman 2014, section 3.2) and the diagonal, dense and low-rank estimators of the metric are
BlackJAX's; the matrix of least Fisher divergence is in `fisher`. The schedule is data (`schedule`), so that warm-up and
sampling are the same compiled program.
"""

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import fisher
from .metric import as_metric
from .schedule import Schedule

FISHER_DIM = 50

METRICS = {
    "fisher": None,
    "diagonal": "fisher_diag",
    "diagonal_welford": "welford_diag",
    "dense": "welford_dense",
    "low_rank": "fisher_low_rank",
}


class Settings(NamedTuple):
    """What the warm-up is asked for.

    Parameters
    ----------
    metric
        ``"fisher"`` (matrix from draws and gradients; ``"low_rank"`` above `FISHER_DIM` dimensions), ``"diagonal"``
        (its diagonal), ``"low_rank"`` (diagonal plus ``max_rank`` directions), ``"diagonal_welford"`` (variances, as
        Stan) or ``"dense"`` (covariance, as Stan).
    target_acceptance
        Mean acceptance statistic that the step size is driven to.
    max_rank
        Number of directions of the low-rank metric.
    """

    metric: str
    target_acceptance: Any
    max_rank: int


class Adaptation(eqx.Module):
    """What warm-up learns: dual averaging of the step size, the metric's estimator, the level of the log density."""

    dual_averaging: Any
    estimator: Any
    level: Array

    @property
    def metric(self) -> Any:
        """Inverse mass matrix in force, in one of the forms of `metric`."""
        return self.estimator.inverse_mass_matrix

    def step_size(self, adapting: Any) -> Array:
        """Step size in force: the exploring iterate during warm-up, the average of the iterates after it."""
        da = self.dual_averaging
        return jnp.exp(jnp.where(adapting, da.log_step_size, da.log_step_size_avg))


class Estimator(NamedTuple):
    """How a metric is learned in a window: pure functions of a state that has an ``inverse_mass_matrix``.

    Parameters
    ----------
    init
        ``init(dim) -> state``.
    update
        ``update(state, point, good) -> state``: see a point, unless it is not a good one.
    final
        ``final(state, age) -> state``: the metric of the window. ``age`` is 0 in the first window, 1 in the other short
        ones at the beginning, 2 later: what is learned then is in proportion.
    """

    init: Any
    update: Any
    final: Any


def _estimator(settings: Settings, dim: int) -> Estimator:
    if settings.metric == "fisher" and dim <= FISHER_DIM:
        return Estimator(
            fisher.init,
            lambda state, point, good: fisher.update(state, point.position, point.logdensity_grad, good),
            fisher.final,
        )
    if settings.metric in ("fisher", "low_rank"):
        return _low_rank(settings.max_rank, max(64, min(512, 2**20 // dim)))
    from blackjax.adaptation.metric_recipes import lookup_recipe

    core = lookup_recipe(METRICS[settings.metric]).build_core()

    def update(state: Any, point: Any, good: Array) -> Any:
        seen = core.update(state, point.position, point.logdensity_grad)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), seen, state)

    return Estimator(core.init, update, lambda state, age: core.final(state))


@lru_cache
def _low_rank(max_rank: int, buffer: int) -> Estimator:
    """BlackJAX's, from the last ``buffer`` draws of a window: 512, or what 8 MB hold, at least 64.

    Its buffers must not pass through a `lax.cond`, which would copy them at every iteration (see `_light`).
    """
    from blackjax.adaptation.metric_recipes import lookup_recipe

    core = dataclasses.replace(lookup_recipe(METRICS["low_rank"]), max_rank=max_rank).build_core(buffer_size=buffer)

    def update(state: Any, point: Any, good: Array) -> Any:
        seen = core.update(state, point.position, point.logdensity_grad)
        # A draw that is not good stays in the buffer's next free row, to be overwritten: only the counts are undone.
        light = jax.tree.map(lambda new, old: jnp.where(good, new, old), _light(seen), _light(state))
        return _heavy(light, seen)

    def final(state: Any, age: Array) -> Any:
        # Directions estimated from a few draws on the way to the typical set would throw the chain off it.
        learned, directions = core.final(state), age == 2
        metric = learned.inverse_mass_matrix
        metric = metric._replace(U=jnp.where(directions, metric.U, 0.0), lam=jnp.where(directions, metric.lam, 1.0))
        return learned._replace(inverse_mass_matrix=metric)

    return Estimator(core.init, update, final)


HEAVY = ("draws_buffer", "grads_buffer", "moment")


def _light(estimator: Any) -> Any:
    """An estimator's state without what the end of a window reads and does not write."""
    return estimator._replace(**{name: None for name in HEAVY if hasattr(estimator, name)})


def _heavy(light: Any, whole: Any) -> Any:
    """The same with that of another state."""
    return light._replace(**{name: getattr(whole, name) for name in HEAVY if hasattr(whole, name)})


def _start_averaging(averaging: Any, step_size: Any) -> Any:
    """Dual averaging from a step size, whose average is that step size until it has one of its own."""
    state = averaging[0](jnp.asarray(step_size, float))
    return state._replace(log_step_size_avg=state.log_step_size)


def start_adaptation(
    settings: Settings, step_size: Any, log_density: Array, gradient: Array, metric: Any = None
) -> Adaptation:
    """Start from a step size and, where known, a metric of any form; else from one scaled by the gradient.

    Without a metric the first one is diag(1 / abs(gradient)), the curvature of a log density that falls by one over the
    distance to its mode: nutpie's start, which spares badly scaled targets many deep trees.
    """
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    averaging = dual_averaging_adaptation(settings.target_acceptance)
    estimator = _estimator(settings, gradient.shape[0]).init(gradient.shape[0])
    if metric is None:
        metric = 1.0 / jnp.clip(jnp.abs(gradient), 1e-10, 1e10)
        metric = jnp.where(jnp.abs(gradient) < 1e-10, 1.0, metric)
    estimator = estimator._replace(inverse_mass_matrix=as_metric(metric, estimator.inverse_mass_matrix))
    return Adaptation(_start_averaging(averaging, step_size), estimator, jnp.asarray(log_density, float))


def update_adaptation(
    settings: Settings,
    state: Adaptation,
    schedule: Schedule,
    t: Array,
    point: Any,
    acceptance: Array,
    diverging: Array,
) -> Adaptation:
    """One iteration of warm-up, and the end of a window where ``t`` is one; nothing once adapting is over.

    Draws of divergent transitions are kept from the metric: they tell where the integrator failed.
    """
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    averaging = dual_averaging_adaptation(settings.target_acceptance)
    estimator = _estimator(settings, point.position.shape[0])
    good = schedule.adapting & (t >= schedule.start) & (t < schedule.stop) & ~diverging
    seen = estimator.update(state.estimator, point, good)

    def end_window(both: tuple) -> tuple:
        dual_averaging, light = both
        learned = estimator.final(_heavy(light, seen), schedule.age(t))
        # A window without good draws teaches nothing.
        metric = learned.inverse_mass_matrix
        sound = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(metric)]).all()
        metric = jax.tree.map(lambda new, old: jnp.where(sound, new, old), metric, state.metric)
        restarted = _start_averaging(averaging, averaging[2](dual_averaging))
        return restarted, _light(learned._replace(inverse_mass_matrix=metric))

    def learn(both: tuple) -> tuple:
        dual_averaging, light = both
        both = averaging[1](dual_averaging, acceptance), light
        return jax.lax.cond(jnp.any(t == schedule.ends), end_window, lambda both: both, both)

    both = (state.dual_averaging, _light(seen))
    dual_averaging, light = jax.lax.cond(schedule.adapting, learn, lambda both: both, both)
    level = state.level + jnp.where(schedule.adapting, 0.1, 0.0) * (point.logdensity - state.level)
    return Adaptation(dual_averaging, _heavy(light, seen), level)


def hopeless(level: np.ndarray, volume: np.ndarray, dim: int, margin: float) -> np.ndarray | None:
    """For each chain the chain to go on from, where some are in regions of negligible mass; else None.

    A chain is moved if both its log density and its log density plus log volume (a Gaussian's estimate of the log mass
    of its region) lie ``margin`` nats below those of the best chain: then less than exp(-margin) of the posterior is
    where it is. A narrow peak and a broad plateau of like mass both stay. The volume that a stuck chain has learned
    means nothing, so that it counts for at most 5 nats a dimension: a region 150 times as wide in every direction.

    Parameters
    ----------
    level, volume
        Mean log density and log volume of each chain, shape (chain,).
    """
    mass = level + volume
    best = int(np.argmax(np.where(np.isfinite(mass), level, -np.inf)))
    gained = np.minimum(volume - volume[best], 5.0 * dim)
    lost = ~(level > level[best] - margin) & ~(level + gained > level[best] - margin)
    lost[best] = False  # also where the margin is lost in rounding, as of densities without bound
    if not lost.any() or not np.isfinite(mass[best]):
        return None
    source = np.arange(len(level))
    kept = source[~lost]
    source[lost] = kept[np.arange(lost.sum()) % len(kept)]
    return source
