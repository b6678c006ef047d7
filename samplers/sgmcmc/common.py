"""What SGLD and SGHMC share: gradients of mini-batches, coordinates, the step size, the twin that tells the bias.

Both are approximate in two ways, and both fall with the step size: that of the discretisation, and the noise of the
mini-batches, which heats the chain. There is no Metropolis test.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.distributed.rows import after
from ...infer.errors import InvalidArgument
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.run.fit import HINTS
from ...infer.run.start import Warm
from ...infer.target import Target
from ...infer.target.shards import ShardedTarget
from ...infer.target.stream import StreamTarget
from ...infer.validate import check_choice, check_count, check_positive
from ..langevin.bias import describe_bias
from .centre import Centre, estimate, find_centre

BIAS = 0.025
"""Bias of a standard deviation, predicted for a normal posterior, that the automatic step size allows."""
COMMON = 0.1
"""Share of a chain's variance from mini-batches above which chains that share them tell little of each other."""


class Twin(NamedTuple):
    """Running moments of the chain at step h and of its twin at h/2, driven by the same noise.

    Parameters
    ----------
    u
        Where the twin is.
    count
        Iterations in the means.
    means
        Of u and u², of the chain and of the twin, shape (2, 2, d).
    """

    u: Float[Array, " d"]
    count: Array
    means: Float[Array, "2 2 d"]


class SGState(eqx.Module):
    """State of a chain: where it is, its twin, and what was found before it began, for the next stage."""

    u: Float[Array, " d"]
    twin: Twin
    centre: Centre


class SGInfo(NamedTuple):
    """sample_stats of one iteration; evaluations are of mini-batches."""

    step_size: Array
    diverging: Array
    num_evaluations: Array


class AbstractStochasticGradient(AbstractMethod):
    """Hyper-parameters and functions that both have; see the concrete classes."""

    step_size: Any = None
    batch_size: int = eqx.field(static=True, default=128)
    control_variates: bool = eqx.field(static=True, default=True)
    precondition: str | None = eqx.field(static=True, default="auto")
    decay: Any = 0.0
    decay_from: Any = 1000.0
    bias_check: bool = eqx.field(static=True, default=True)
    centre: Any = None
    pair_from: Any = None

    kind: ClassVar = "chains"
    requires: ClassVar = ("factors",)
    exact: ClassVar[bool] = False
    warning: ClassVar[str] = (
        "Stochastic-gradient samplers are approximate: there is no Metropolis test, and the noise of mini-batches adds "
        "to the spread; both errors fall with the step size."
    )
    divergence: ClassVar[str] = (
        "Here that is a step to a point that is not finite; the chain stayed where it was. Lower step_size, or raise "
        "batch_size."
    )

    def __check_init__(self) -> None:
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        check_count("batch_size", self.batch_size)
        if self.precondition is not None:
            check_choice("precondition", self.precondition, ("auto",))
        if not isinstance(self.decay, int | float) or not 0 <= self.decay < 1:
            raise InvalidArgument(f"decay must be a number of at least 0 and below 1, got {self.decay!r}.")
        check_positive("decay_from", self.decay_from)

    # -- what a sampler writes ------------------------------------------------------------------------------------

    @property
    def batches_per_step(self) -> int:
        """Mini-batches of one iteration."""
        return 1

    @abc.abstractmethod
    def move(self, key: PRNGKeyArray, target: Any, u: Array, batches: Array, step: Array) -> Array:
        """The next point, from ``batches`` of indices, shape (`batches_per_step`, b)."""

    @abc.abstractmethod
    def move_twin(self, key: PRNGKeyArray, target: Any, u: Array, batches: Array, step: Array) -> Array:
        """The same at half the step, with the noise of `move` for this key and twice as many mini-batches."""

    @abc.abstractmethod
    def variance(self, step: Any, curvature: Any, noise: Any) -> Any:
        """Stationary variance on a normal of this curvature, of which mini-batches add ``noise`` to the gradient."""

    # -- the method -------------------------------------------------------------------------------------------------

    def arrange(self, target: Target) -> Target:
        """The observations of shards are brought together; a stream is told how fast it is read."""
        target = target.target if isinstance(target, ShardedTarget) else target
        if not isinstance(target, StreamTarget):
            return target
        rows = self.batch_size * self.batches_per_step
        arranged = target.paced(rows)
        if self.bias_check and 2 * rows > target.block_rows:
            raise InvalidArgument(
                f"an iteration uses {2 * rows} rows while the bias is estimated, and {target.block_rows} are in "
                f"memory; lower batch_size, raise block_rows of the target, or give bias_check=False."
            )
        return arranged

    def enters(self, target: Target) -> Target:
        """A stream is read twice as fast where a twin runs: of its two half steps each has rows of its own."""
        if not isinstance(target, StreamTarget):
            return target
        return target.paced((1 if self.pair_from is None else 2) * self.batch_size * self.batches_per_step)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Warm-up; a stage that estimates the bias; sampling."""
        plain = dataclasses.replace(self, pair_from=None)
        sample = Stage("sample", plain, budget.num_samples * budget.thin)
        if budget.num_warmup == 0:
            return (sample,)
        warmup = Stage("warm-up", dataclasses.replace(self, decay=0.0), budget.num_warmup, keep=False)
        length = budget.num_warmup // 2
        if not self.bias_check or length == 0:
            return (warmup, sample)
        pairing = dataclasses.replace(self, decay=0.0, pair_from=np.int32(length // 4))
        return (warmup, Stage("bias", pairing, length, keep=False), sample)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "AbstractStochasticGradient":
        """The mode, from where the first chain begins, and what is known there; once a run."""
        target.require(type(self).__name__, self.requires, HINTS)
        first = start[0]
        if isinstance(first, SGState):
            centre = first.centre
            single = np.ndim(centre.noise) == 0
            return self._with(centre if single else jax.tree.map(lambda x: x[0], centre))
        u = first.u if isinstance(first, Warm) else first
        u = jnp.reshape(jnp.asarray(u), (-1, target.dim))[0]
        centre = find_centre(
            key, target, u, batch_size=self.batch_size, control=self.control_variates,
            precondition=self.precondition is not None,
        )  # fmt: skip
        prepared = self._with(centre)
        prepared.check_step()
        return prepared

    def check_step(self) -> None:
        """Raise where the user's step size is one at which the recursion explodes on a normal of this curvature."""
        if self.step_size is None or isinstance(self.step_size, jax.core.Tracer):
            return
        found = float(self.variance(self.step_size, self.centre.curvature, 0.0))
        if not (np.isfinite(found) and found > 0):
            raise InvalidArgument(
                f"step_size={self.step_size:g} is too large: where −∇²log π has the eigenvalue "
                f"{float(self.centre.curvature):.3g}, its largest at the mode, the recursion explodes; "
                f"{self.automatic_step():.2g} would be chosen automatically."
            )

    def automatic_step(self) -> float:
        """The largest step of a geometric grid whose predicted bias is allowed; on the host."""
        curvature, noise = float(self.centre.curvature), float(self.centre.noise)
        steps = self.largest_step(curvature) * 0.95 ** np.arange(400)
        with np.errstate(all="ignore"):
            ratio = np.sqrt(self.variance(steps, curvature, noise) * curvature)
        good = np.abs(ratio - 1) <= BIAS
        return float(steps[np.argmax(good)] if good.any() else steps[-1])

    def largest_step(self, curvature: float) -> float:
        """Where the search for a step size begins."""
        return 1.0 / curvature

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> SGState:
        """A draw of the Laplace approximation at the centre; the state of the stage before."""
        centre = self._centre()
        if isinstance(start, SGState):
            return SGState(start.u, self._no_twin(start.u) if self.pair_from is not None else start.twin, centre)
        u = start.u if isinstance(start, Warm) else start
        if self.precondition is not None:
            u = centre.point + centre.spread(jax.random.normal(key, u.shape, u.dtype))
        else:
            u = centre.point
        return SGState(u, self._no_twin(u), centre)

    def _no_twin(self, u: Array) -> Twin:
        return Twin(u, jnp.zeros((), u.dtype), jnp.zeros((2, 2, *u.shape), u.dtype))

    def step(self, key: PRNGKeyArray, state: SGState, target: Any, t: Array) -> tuple[SGState, SGInfo]:
        """One iteration; while the bias is estimated, two of half the step by the twin."""
        key_batch, key_move = jax.random.split(key)
        count = self.batches_per_step
        pairing = self.pair_from is not None
        size = (2 if pairing else 1) * count * self.batch_size
        index = target.minibatch(key_batch, t, size).reshape(-1, count, self.batch_size)
        step = self.step_at(t)
        u, moved = _finite(self.move(key_move, target, state.u, index[0], step), state.u)
        twin, evaluations = state.twin, count
        if pairing:
            begin = after(twin.u, u)  # not beside the chain's own move, where data lie on several devices
            at, _ = _finite(self.move_twin(key_move, target, begin, jnp.concatenate(list(index)), step), twin.u)
            twin = _update(twin, u, at, t >= self.pair_from)
            evaluations += 2 * count
        evaluations *= 2 if self.control_variates else 1
        info = SGInfo(step, ~moved, jnp.asarray(evaluations, jnp.int32))
        return SGState(u, twin, state.centre), info

    def step_at(self, t: Array) -> Array:
        """The step size of iteration t: h (1 + t/τ)^−γ (Welling & Teh 2011)."""
        step = jnp.asarray(self.step_size, float)
        return step * (1 + t / self.decay_from) ** (-self.decay)

    def gradient(self, target: Any, u: Array, batch: Array) -> Array:
        """Estimate of ∇ log π(u) in the coordinates z: Sᵀ ĝ."""
        centre = self._centre()
        return centre.pull(estimate(target, centre, u, target.take(batch), control=self.control_variates))

    def draw(self, state: SGState) -> Float[Array, " d"]:
        """Where the chain is."""
        return state.u

    def learned(self, state: SGState) -> dict[str, Array]:
        """The step size and the centre."""
        return {"step_size": jnp.asarray(self.step_size), "centre": state.centre.point, "scale": state.centre.scale}

    def remarks(self, state: SGState, target: Target, result: Any) -> list[dict[str, Any]]:
        """What half the step size says of the bias, and what is predicted for a normal posterior."""
        del result
        name = type(self).__name__
        seen = np.all(np.asarray(state.twin.count) > 0)
        centre = self._centre()
        predicted = float(np.sqrt(self.variance(self.step_size, centre.curvature, centre.noise) * centre.curvature)) - 1
        message = (
            f"On a normal posterior with the curvature found at the mode, steps of {float(self.step_size):.2g} and "
            f"mini-batches of {self.batch_size} make standard deviations at most {100 * predicted:.1f} % too large."
        )
        level = "note" if abs(predicted) <= 4 * BIAS else "warning"
        found = [{"level": level, "name": "step size", "message": message, "value": predicted, "threshold": 4 * BIAS}]
        if float(centre.left) > 0.1:
            text = (
                f"The centre is {float(centre.left):.2g} sd from a mode (threshold 0.1): the search did not converge, "
                f"and control variates help less. Give start=, or look at target.check()."
            )
            found.append({"level": "warning", "name": "centre", "message": text, "value": float(centre.left)})
        found += self._common() if isinstance(target, StreamTarget) else []
        return [*describe_bias(name, state.twin if seen else None), *found]

    def _common(self) -> list[dict[str, Any]]:
        """What chains of a stream have in common: their mini-batches, and with these part of where they go."""
        centre = self._centre()
        alone, all_of_it = (
            float(self.variance(self.step_size, centre.curvature, noise)) for noise in (0.0, centre.noise)
        )
        share = 1 - alone / all_of_it
        text = (
            f"All chains of a stream see the same mini-batches, whose noise is predicted to make up to "
            f"{100 * share:.2g} % of a chain's variance (threshold {100 * COMMON:.0f} %): that much chains move "
            f"together, and R-hat, ESS and the ± of the bias, which take them for independent, do not see it"
        )
        large = not share <= COMMON
        text += (
            "; compare fits of streams with other seeds (Target.from_stream(seed=...)), or lower step_size, raise "
            "batch_size or use control variates" if large else ""
        )  # fmt: skip
        level = "warning" if large else "note"
        return [{"level": level, "name": "common noise", "message": f"{text}.", "value": share, "threshold": COMMON}]

    def _centre(self) -> Centre:
        if self.centre is None:
            raise InvalidArgument(
                f"{type(self).__name__} looks for the mode before it runs, and centre is {self.centre}: use fit."
            )
        return self.centre

    def _with(self, centre: Centre) -> "AbstractStochasticGradient":
        found = dataclasses.replace(self, centre=centre)
        return found if self.step_size is not None else dataclasses.replace(found, step_size=found.automatic_step())


def _finite(new: Array, old: Array) -> tuple[Array, Array]:
    ok = jnp.all(jnp.isfinite(new))
    return jnp.where(ok, new, old), ok


def _update(twin: Twin, u: Array, at: Array, counts: Array) -> Twin:
    """Running means of u and u² of both."""
    moments = jnp.stack([jnp.stack([x, x**2]) for x in (u, at)])
    count = twin.count + counts
    share = jnp.where(counts, 1.0 / jnp.maximum(count, 1.0), 0.0)
    return Twin(at, count, twin.means + share * (moments - twin.means))
