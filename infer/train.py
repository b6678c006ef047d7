"""The optimisation loop's pure pieces, for every method whose `step` is a stochastic gradient step.

A method computes the estimate of its objective and of the gradient; `Trainer.update` does the rest of an iteration: it
skips what is not finite and counts it, clips, moves the parameters by Adam with a rate that falls along a cosine (or by
any optax optimiser), keeps a running average and the best iterate, and tests whether the objective still improves.

**Plateau.** The trace is cut into blocks, the first an eighth of the budget (384 to 1,024 steps), each half as long
again as the one before; a block is reduced to 16 cell means, and a straight line through them gives the present gain
per step and its error, from the scatter of the cells, so that noise that is correlated within a cell is accounted for.
Training stops when the upper confidence limit of what a further quarter of the budget (or a further block, if that is
longer) would gain falls below ``tolerance``. The limit of the j-th test has level 0.02 / (j (j + 1)), together 2 %
however many there are, and below 5 % where the noise is correlated over twenty steps. A trace that bends towards its
limit gains less than the line says; one that rests before it jumps fools this rule as any other. Where the noise hides
gains of the tolerance, it does not stop.

**Average.** Polynomial decay, θ̄ ← θ̄ + 9/(t + 9) (θ − θ̄), which forgets the early iterates (Shamir & Zhang 2013). It is
taken over the parameters as stored; which of the last, the averaged and the best iterate is returned is decided at
the end on fresh draws, by `choose`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .errors import InvalidArgument, NonFinite
from .validate import check_count, check_nonnegative, check_positive

CELLS = 16
SHORTEST = 384
GROWTH = 1.5
LEVEL = 0.02
MAX_TESTS = 64
DECAY = 8


class Plateau(eqx.Module):
    """What is known of whether a noisy trace still rises.

    Parameters
    ----------
    sums
        Of the values in each cell of the present block, shape (16,).
    position, length
        Values in the block so far, and those that fill it.
    tests
        Blocks that were filled.
    gain
        Upper limit of the gain that the last filled block predicts; infinite before it.
    reached
        Whether it was below the tolerance.
    """

    sums: Float[Array, " cells"]
    position: Int[Array, ""]
    length: Int[Array, ""]
    tests: Int[Array, ""]
    gain: Float[Array, ""]
    reached: Bool[Array, ""]

    @classmethod
    def empty(cls, first: Any, dtype: Any) -> "Plateau":
        """Before any value; ``first`` is the length of the first block, rounded to a multiple of 16."""
        zero = jnp.zeros((), jnp.int32)
        length = CELLS * jnp.maximum(1, jnp.round(jnp.asarray(first) / CELLS)).astype(jnp.int32)
        return cls(jnp.zeros(CELLS, dtype), zero, length, zero, jnp.asarray(jnp.inf, dtype), jnp.zeros((), bool))

    def add(self, value: Float[Array, ""], tolerance: Any, horizon: Any) -> "Plateau":
        """With one more value; ``horizon`` is the number of steps over which the gain is predicted, at least."""
        cell = self.position * CELLS // self.length
        sums = self.sums.at[cell].add(value)
        full = self.position + 1 >= self.length
        gain = upper_gain(sums * CELLS / self.length, self.tests) / self.length
        gain = gain * jnp.maximum(jnp.asarray(horizon, gain.dtype), self.length.astype(gain.dtype))
        gain = jnp.where(full, gain, self.gain)
        longer = CELLS * jnp.round(self.length * (GROWTH / CELLS)).astype(jnp.int32)
        return Plateau(
            sums=jnp.where(full, 0, sums),
            position=jnp.where(full, 0, self.position + 1),
            length=jnp.where(full, longer, self.length),
            tests=self.tests + full,
            gain=gain,
            reached=self.reached | (full & (gain < tolerance)),
        )


def first_block(num_steps: Any, window: int) -> Array:
    """Length of the first block: an eighth of the budget, within limits.

    At least 384, so that noise that is correlated over some steps averages out within a cell; at most eight windows.
    """
    return jnp.minimum(8 * window, jnp.maximum(SHORTEST, jnp.asarray(num_steps) / 8))


def upper_gain(cells: Float[Array, " cells"], tests: Int[Array, ""]) -> Float[Array, ""]:
    """Upper confidence limit of the gain over one block, from its cell means, at the level of test number ``tests``."""
    x = (np.arange(CELLS) - (CELLS - 1) / 2).astype(cells.dtype)  # parameters may be in 32 bits where others have 64
    square = np.sum(x**2)
    centred = cells - jnp.mean(cells)
    slope = jnp.sum(x * centred) / square
    error = jnp.sqrt(jnp.sum((centred - slope * x) ** 2) / (CELLS - 2) / square)
    quantile = jnp.asarray(_quantiles(), cells.dtype)[jnp.minimum(tests, MAX_TESTS - 1)]
    return CELLS * (slope + quantile * error)


@functools.cache
def _quantiles() -> tuple[float, ...]:
    """Student's t of the tests, 14 degrees of freedom, levels that add up to less than `LEVEL`."""
    from scipy.special import stdtrit

    return tuple(float(stdtrit(CELLS - 2, 1 - LEVEL / (j * (j + 1)))) for j in range(1, MAX_TESTS + 1))


class TrainState(eqx.Module):
    """State of a training run; parameters are pytrees as `estimators.split` gives them.

    Parameters
    ----------
    params, optimiser
        Present parameters, and the optimiser's state.
    average, best
        Averaged parameters, and those at the end of the window with the largest mean value.
    best_value, window_sum, window_count
        That mean, and the sum and the number of values in the present window.
    plateau
        See `Plateau`.
    skipped, bad
        Steps that were not finite and changed nothing, in all and in a row.
    """

    params: Any
    optimiser: Any
    average: Any
    best: Any
    best_value: Float[Array, ""]
    window_sum: Float[Array, ""]
    window_count: Int[Array, ""]
    plateau: Plateau
    skipped: Int[Array, ""]
    bad: Int[Array, ""]


class StepInfo(NamedTuple):
    """Length of the gradient before clipping, rate of the step, and whether it was skipped."""

    grad_norm: Array
    rate: Array
    skipped: Array


class Trainer(eqx.Module):
    """Hyper-parameters of an optimisation, and its pure functions.

    Parameters
    ----------
    learning_rate
        Of Adam at the beginning.
    num_steps
        Length of the cosine, and the budget of which the plateau rule looks a quarter ahead.
    final
        Share of the rate that is left at the end.
    clip
        Longest gradient (2-norm of all parameters together); None: any.
    tolerance
        Gain, in units of the objective (nats), below which a further quarter of the budget is not worth taking;
        None: never stop early.
    window
        Steps whose mean decides about the best iterate; the plateau rule's first block has at most eight times as many.
    optimizer
        An optax optimiser in place of Adam, with its own rate; clipping stays.
    max_bad
        Steps in a row that may be skipped before the value is reported as it is.
    """

    learning_rate: Any = 1e-3
    num_steps: Any = 10_000
    final: Any = 0.02
    clip: Any = 10.0
    tolerance: Any = 0.05
    window: int = eqx.field(static=True, default=128)
    optimizer: Any = eqx.field(static=True, default=None)
    max_bad: int = eqx.field(static=True, default=20)

    def __check_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_positive("num_steps", self.num_steps)
        check_nonnegative("final", self.final)
        for name in ("clip", "tolerance"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        check_count("window", self.window)
        check_count("max_bad", self.max_bad)
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise InvalidArgument(f"optimizer must be an optax GradientTransformation, got {self.optimizer!r}.")

    def init(self, params: Any) -> TrainState:
        """Before the first step."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        zero, count = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
        worst = jnp.asarray(-jnp.inf, dtype)
        plateau = Plateau.empty(first_block(self.num_steps, self.window), dtype)
        start = self._transform().init(params)
        return TrainState(params, start, params, params, worst, zero, count, plateau, count, count)

    def update(self, state: TrainState, value: Array, grads: Any, t: Array) -> tuple[TrainState, StepInfo]:
        """One step up the gradient; ``value`` is the objective's estimate, ``t`` counts the steps, never batched."""
        norm = _norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        shrink = 1.0 if self.clip is None else jnp.minimum(1.0, self.clip / jnp.maximum(norm, 1e-30))
        descent = jax.tree.map(lambda g: jnp.where(finite, -g * shrink, 0), grads)
        updates, optimiser = self._transform().update(descent, state.optimiser, state.params)
        rate = self.rate(t)
        if self.optimizer is None:
            updates = jax.tree.map(lambda u: -rate * u, updates)
        moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, updates)
        finite &= jnp.isfinite(_norm(moved))
        new = self._follow(state, moved, optimiser, value, t)
        skipped = state.skipped + ~finite
        kept = jax.tree.map(lambda old, fresh: jnp.where(finite, fresh, old), state, new)
        bad = jnp.where(finite, 0, state.bad + 1)
        kept = eqx.tree_at(lambda s: (s.skipped, s.bad), kept, (skipped, bad))
        return kept, StepInfo(norm, jnp.asarray(rate), ~finite)

    def rate(self, t: Array) -> Array:
        """Rate of step ``t``: half a cosine from the learning rate to its final share."""
        progress = jnp.minimum((t + 0.5) / self.num_steps, 1.0)
        return self.learning_rate * (self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress)))

    def done(self, state: TrainState) -> Bool[Array, ""] | bool:
        """Whether the objective has stopped to improve."""
        return False if self.tolerance is None else state.plateau.reached

    def reported(self, state: TrainState, value: Array) -> Array:
        """The value for the record: that of a skipped step is the best so far, until too many were skipped in a row."""
        calm = jnp.isfinite(value) | (state.bad >= self.max_bad) | ~jnp.isfinite(state.best_value)
        return jnp.where(calm, value, state.best_value)

    def _follow(self, state: TrainState, params: Any, optimiser: Any, value: Array, t: Array) -> TrainState:
        """Average, best iterate and plateau after a finite step."""
        share = (DECAY + 1) / (t + DECAY + 1.0)
        average = jax.tree.map(lambda a, p: a + (share * (p - a)).astype(a.dtype), state.average, params)
        total, count = state.window_sum + value.astype(state.window_sum.dtype), state.window_count + 1
        full = count >= self.window
        better = full & (total / count > state.best_value)
        tolerance = -jnp.inf if self.tolerance is None else self.tolerance
        return TrainState(
            params=params,
            optimiser=optimiser,
            average=average,
            best=jax.tree.map(lambda old, new: jnp.where(better, new, old), state.best, params),
            best_value=jnp.where(better, total / count, state.best_value),
            window_sum=jnp.where(full, 0, total),
            window_count=jnp.where(full, 0, count),
            plateau=state.plateau.add(value.astype(total.dtype), tolerance, self.num_steps / 4),
            skipped=state.skipped,
            bad=state.bad,
        )

    def _transform(self) -> Any:
        import optax

        return optax.scale_by_adam() if self.optimizer is None else self.optimizer


def _norm(tree: Any) -> Float[Array, ""]:
    """2-norm of all leaves together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)))


def choose(state: TrainState, evaluate: Callable[[Any], Any]) -> tuple[Any, str, float]:
    """The best of the last, averaged and best parameters by ``evaluate`` (larger is better; same draws for all).

    Returns the parameters, their name and the value. For one chain's state, on the host.

    Raises
    ------
    NonFinite
        None of the three has a finite value.
    """
    found = {}
    for name in ("average", "params", "best"):
        params = getattr(state, name)
        found[name] = (float(evaluate(params)), params)
    finite = {name: pair for name, pair in found.items() if np.isfinite(pair[0])}
    if not finite:
        values = {name: pair[0] for name, pair in found.items()}
        raise NonFinite(
            f"The objective is not finite at the trained parameters ({values}), after {int(state.skipped)} skipped "
            "steps; lower learning_rate, clip the gradient, or start from an approximation."
        )
    name = max(finite, key=lambda key: finite[key][0])
    return finite[name][1], {"params": "last"}.get(name, name), finite[name][0]
