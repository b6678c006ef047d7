"""Warm-up of the Hamiltonian family: step size by dual averaging, metric by windows.

The parts are BlackJAX's: Nesterov dual averaging (Hoffman & Gelman 2014, section 3.2) and its metric estimators
(Welford's variance or covariance; the Fisher-divergence estimators of Seyboldt, Carlson & Carpenter 2024, diagonal and
low-rank). This module holds the schedule as data, so that warm-up and sampling are the same compiled program.
"""

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

MAX_WINDOWS = 64
DENSE_DIM = 50

METRICS = {
    "diagonal": "fisher_diag",
    "diagonal_welford": "welford_diag",
    "dense": "welford_dense",
    "low_rank": "fisher_low_rank",
}


class Schedule(NamedTuple):
    """When the metric is learned: arrays of fixed sizes, so that warm-ups of all lengths share a program.

    Parameters
    ----------
    start, stop
        The metric's estimators see the draws of iterations ``start <= t < stop``.
    ends
        Last iteration of each window, int array of shape (MAX_WINDOWS,), padded with -1; the metric is updated there.
    directions_from
        The low-rank metric is diagonal in the windows that end before this iteration: directions estimated from a few
        draws on the way to the typical set would throw the chain off it.
    adapting
        False in the sampling stage: step size (its average) and metric are frozen.
    """

    start: Any
    stop: Any
    ends: Any
    directions_from: Any
    adapting: Any


def window_schedule(num_warmup: int, *, first: int = 75, window: int = 25, last: int = 50) -> Schedule:
    """Stan's warm-up: a fast interval, slow windows that double in size, a fast interval.

    Parameters
    ----------
    num_warmup
        Length of the warm-up in iterations.
    first, window, last
        Length of the first interval, of the first window, and of the last interval; shrunk in proportion
        (15 %, 75 %, 10 %) where the warm-up is shorter than their sum. Below 20 iterations only the step size adapts.
    """
    if num_warmup < 20:
        return step_size_schedule(num_warmup)
    if first + window + last > num_warmup:
        first, last = int(0.15 * num_warmup), int(0.1 * num_warmup)
        window = num_warmup - first - last
    stop, ends, begin = num_warmup - last, [], first
    while begin < stop:
        # A window whose successor, twice as long, would not fit takes all that is left.
        size = window if 3 * window <= stop - begin else stop - begin
        begin += size
        ends.append(begin - 1)
        window *= 2
    return _schedule(first, stop, ends)


def growing_schedule(num_warmup: int, *, early: float = 0.05, window: int = 30, last: float = 0.15) -> Schedule:
    """Windows of ten draws at once, then windows that grow by half, then the step size alone, as nutpie's.

    Seyboldt, Carlson & Carpenter (2026), section 3.2: gradients carry enough information for a diagonal metric after
    ten draws, so that little is spent in a bad one. Directions are learned from the longer windows only.

    Parameters
    ----------
    num_warmup
        Length of the warm-up in iterations.
    early, window, last
        Share of the windows of ten, length of the first longer window, share of the last interval.
    """
    if num_warmup < 20:
        return step_size_schedule(num_warmup)
    stop = num_warmup - max(round(last * num_warmup), 1)
    early_stop = min(round(early * num_warmup), stop)
    step = max(10, -(-early_stop // (MAX_WINDOWS - 20)))
    ends = list(range(step - 1, early_stop, step))
    begin, size = (ends[-1] + 1 if ends else 0), float(window)
    directions_from = begin
    while begin < stop:
        width = int(size) if begin + 2.5 * size <= stop else stop - begin
        begin += width
        ends.append(begin - 1)
        size *= 1.5
    return _schedule(0, stop, ends)._replace(directions_from=np.int32(directions_from))


def step_size_schedule(num_warmup: int) -> Schedule:
    """A warm-up that leaves the metric as it is."""
    return _schedule(num_warmup, num_warmup, [])


def split_schedule(schedule: Schedule, at: int) -> tuple[Schedule, Schedule]:
    """The schedule up to iteration ``at`` and from there on, each counting from 0."""
    shift = np.int32(at)
    ends = np.asarray(schedule.ends)
    late = np.where(ends >= at, ends - at, -1).astype(np.int32)
    later = schedule._replace(
        start=np.maximum(schedule.start - shift, 0).astype(np.int32), stop=np.int32(schedule.stop - shift),
        ends=late, directions_from=np.int32(schedule.directions_from - shift),
    )  # fmt: skip
    return schedule, later


def frozen() -> Schedule:
    """No warm-up: step size and metric stay."""
    return _schedule(0, 0, [])._replace(adapting=np.bool_(False))


def _schedule(start: int, stop: int, ends: list[int]) -> Schedule:
    padded = np.full(MAX_WINDOWS, -1, np.int32)
    padded[: len(ends)] = ends
    return Schedule(np.int32(start), np.int32(stop), padded, np.int32(start), np.bool_(True))


class Settings(NamedTuple):
    """What the warm-up is asked for.

    Parameters
    ----------
    metric
        ``"diagonal"`` (Fisher estimate from draws and gradients), ``"diagonal_welford"`` (Stan's variances),
        ``"dense"`` (covariance) or ``"low_rank"`` (diagonal plus ``max_rank`` directions).
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
        """Inverse mass matrix in force: (d,), (d, d) or BlackJAX's low-rank triple."""
        return self.estimator.inverse_mass_matrix

    def step_size(self, adapting: Any) -> Array:
        """Step size in force: the exploring iterate during warm-up, the average of the iterates after it."""
        da = self.dual_averaging
        return jnp.exp(jnp.where(adapting, da.log_step_size, da.log_step_size_avg))


def _buffer(dim: int) -> int:
    """How many of a window's last draws the low-rank metric is estimated from: 512, or what 8 MB hold, at least 64."""
    return max(64, min(512, 2**20 // dim))


@lru_cache
def _estimator(metric: str, max_rank: int, buffer: int) -> Any:
    from blackjax.adaptation.metric_recipes import lookup_recipe

    recipe = lookup_recipe(METRICS[metric])
    if metric != "low_rank":
        return recipe.build_core()
    return dataclasses.replace(recipe, max_rank=max_rank).build_core(buffer_size=buffer)


def _start_averaging(averaging: Any, step_size: Any) -> Any:
    """Dual averaging from a step size, whose average is that step size until it has one of its own."""
    state = averaging[0](jnp.asarray(step_size, float))
    return state._replace(log_step_size_avg=state.log_step_size)


def start_adaptation(
    settings: Settings, step_size: Any, log_density: Array, gradient: Array, metric: Any = None
) -> Adaptation:
    """Start from a step size and, where known, a metric; else from one scaled by the gradient.

    Without a metric the first one is diag(1 / abs(gradient)), the curvature of a log density that falls by one over the
    distance to its mode: nutpie's start, which spares badly scaled targets many deep trees.
    """
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    averaging = dual_averaging_adaptation(settings.target_acceptance)
    estimator = _estimator(settings.metric, settings.max_rank, _buffer(gradient.shape[0])).init(gradient.shape[0])
    scale = 1.0 / jnp.clip(jnp.abs(gradient), 1e-10, 1e10)
    scale = jnp.where(jnp.abs(gradient) < 1e-10, 1.0, scale)
    if metric is None:
        like = estimator.inverse_mass_matrix
        metric = {1: lambda: scale, 2: lambda: jnp.diag(scale)}[like.ndim]() if hasattr(like, "ndim") else None
        metric = like._replace(sigma=jnp.sqrt(scale)) if metric is None else metric
    estimator = estimator._replace(inverse_mass_matrix=metric)
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

    Draws of divergent transitions are kept from the metric: they tell where the integrator failed. The estimator's
    buffers of draws never pass through a `lax.cond`, which would copy them at every iteration.
    """
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    averaging = dual_averaging_adaptation(settings.target_acceptance)
    estimator = _estimator(settings.metric, settings.max_rank, _buffer(point.position.shape[0]))

    good = schedule.adapting & (t >= schedule.start) & (t < schedule.stop) & ~diverging
    seen = estimator.update(state.estimator, point.position, point.logdensity_grad)
    seen, buffers = _without_buffers(seen)
    # A draw that is not good stays in the buffer's next free row, to be overwritten: only the counts are undone.
    seen = jax.tree.map(lambda new, old: jnp.where(good, new, old), seen, _without_buffers(state.estimator)[0])

    def end_window(both: tuple) -> tuple:
        dual_averaging, seen = both
        step_size = averaging[2](dual_averaging)
        learned, _ = _without_buffers(estimator.final(_with_buffers(seen, buffers)))
        metric = learned.inverse_mass_matrix
        if settings.metric == "low_rank":
            directions = t >= schedule.directions_from
            metric = metric._replace(U=jnp.where(directions, metric.U, 0.0), lam=jnp.where(directions, metric.lam, 1.0))
        # A window without good draws teaches nothing.
        sound = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(metric)]).all()
        metric = jax.tree.map(lambda new, old: jnp.where(sound, new, old), metric, state.metric)
        return _start_averaging(averaging, step_size), learned._replace(inverse_mass_matrix=metric)

    def learn(both: tuple) -> tuple:
        dual_averaging, seen = both
        both = averaging[1](dual_averaging, acceptance), seen
        return jax.lax.cond(jnp.any(t == schedule.ends), end_window, lambda both: both, both)

    both = (state.dual_averaging, seen)
    dual_averaging, seen = jax.lax.cond(schedule.adapting, learn, lambda both: both, both)
    level = state.level + jnp.where(schedule.adapting, 0.1, 0.0) * (point.logdensity - state.level)
    return Adaptation(dual_averaging, _with_buffers(seen, buffers), level)


def _without_buffers(estimator: Any) -> tuple[Any, Any]:
    """An estimator's state without the buffers of the low-rank one, and these."""
    if not hasattr(estimator, "draws_buffer"):
        return estimator, None
    return estimator._replace(draws_buffer=None, grads_buffer=None), (estimator.draws_buffer, estimator.grads_buffer)


def _with_buffers(estimator: Any, buffers: Any) -> Any:
    return estimator if buffers is None else estimator._replace(draws_buffer=buffers[0], grads_buffer=buffers[1])


def whiten(metric: Any, point: Any, log_density: Any) -> tuple[Any, Any, Any, Any]:
    """Coordinates w about a point in which a low-rank metric is the identity: u = u₀ + L w with L Lᵀ = metric.

    L = diag(σ) (I + U (√Λ - I) Uᵀ). The integrator then costs two products with L per step, of which up to
    `DENSE_DIM` dimensions are done with a matrix; BlackJAX's own low-rank metric needs one for every velocity of every
    U-turn test.

    Returns
    -------
    The point, the log density and the metric (ones) in w, and the function that brings a point back to u.
    """
    sigma, directions, root = metric.sigma, metric.U, jnp.sqrt(metric.lam)
    dim = sigma.shape[0]
    if dim <= DENSE_DIM:
        factor = sigma[:, None] * (jnp.eye(dim) + (directions * (root - 1.0)) @ directions.T)
        apply = lambda w: factor @ w  # noqa: E731
    else:
        apply = lambda w: sigma * (w + directions @ ((root - 1.0) * (directions.T @ w)))  # noqa: E731

    def transpose(g: Array) -> Array:
        g = sigma * g
        return g + directions @ ((root - 1.0) * (directions.T @ g))

    def back(white: Any) -> Any:
        g = white.logdensity_grad
        gradient = (g + directions @ ((1.0 / root - 1.0) * (directions.T @ g))) / sigma
        return type(white)(point.position + apply(white.position), white.logdensity, gradient)

    start = type(point)(jnp.zeros_like(point.position), point.logdensity, transpose(point.logdensity_grad))
    return start, lambda w: log_density(point.position + apply(w)), jnp.ones(dim, sigma.dtype), back


def variances(metric: Any) -> Array:
    """Diagonal of a metric of any form, shape (d,)."""
    if hasattr(metric, "sigma"):  # diag(σ) (I + U (Λ - I) Uᵀ) diag(σ)
        return metric.sigma**2 * (1.0 + (metric.U**2 * (metric.lam - 1.0)).sum(-1))
    return metric if metric.ndim == 1 else jnp.diagonal(metric)


def as_metric(metric: Any, like: Any) -> Any:
    """A metric in the form of another one: what it says of directions is lost where that form has none.

    Parameters
    ----------
    metric
        Variances (d,), a matrix (d, d), BlackJAX's low-rank metric, or None, which stays None.
    like
        A metric of the form that is wanted.
    """
    if metric is None:
        return None
    if hasattr(like, "sigma"):
        return metric if hasattr(metric, "sigma") else like._replace(sigma=jnp.sqrt(variances(metric)))
    if like.ndim == 1:
        return variances(metric)
    if hasattr(metric, "sigma"):
        inner = jnp.eye(like.shape[0]) + (metric.U * (metric.lam - 1.0)) @ metric.U.T
        return metric.sigma[:, None] * inner * metric.sigma
    return metric if metric.ndim == 2 else jnp.diag(metric)


def log_volume(metric: Any) -> np.ndarray:
    """Log volume of the typical set, ½ log det(metric), of metrics stacked over chains; on the host, shape (chain,)."""
    if hasattr(metric, "sigma"):
        return np.log(np.asarray(metric.sigma)).sum(-1) + 0.5 * np.log(np.asarray(metric.lam)).sum(-1)
    metric = np.asarray(metric)
    if metric.ndim == 2:
        return 0.5 * np.log(metric).sum(-1)
    return 0.5 * np.linalg.slogdet(metric)[1]


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
    if not lost.any():
        return None
    source = np.arange(len(level))
    kept = source[~lost]
    source[lost] = kept[np.arange(lost.sum()) % len(kept)]
    return source
