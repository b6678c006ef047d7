"""What the samplers on agents share: iterates by agent, coordinates, the average that is kept, what is watched.

A sampler writes `normals` (the standard normal draws of one iteration) and `advance` (the update given those draws);
for quadratic shares `advance` is affine in all it is given, from which `law` works out what a sampler converges to.
Agents are a mapped axis: they are vmapped on one device and shared out over several. The keys of an agent are those of
its number, so that the draws depend on no layout.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.approximation import Approximation, as_approximation
from ...infer.distributed.mesh import alone, local, shared
from ...infer.distributed.rows import vmap_rows
from ...infer.errors import InvalidArgument, UnsupportedTarget
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.run.start import Warm
from ...infer.target import Target
from ...infer.target.shards import Shard, ShardedTarget, deal
from ...infer.validate import check_choice, check_count, check_nonnegative
from . import findings
from .tuning import Bare

OWN = "auto"


class Seen(NamedTuple):
    """Running moments over a stage: of the average iterate (d,), of the agents' distance from it, of acceptance."""

    count: Array
    mean: Array
    square: Array
    gap: Array
    acceptance: Array


class AgentState(eqx.Module):
    """Iterates of all agents of one chain.

    Parameters
    ----------
    x
        Iterates, in the coordinates of the steps.
    memory
        What else a sampler carries on: duals, momenta, a server's parameter.
    count
        Iterations since the chain began.
    seen
        What was seen in this stage.
    tuned
        What was chosen before the first stage, for the next ones.
    """

    x: Float[Array, "*chains n d"]
    memory: Any
    count: Int[Array, "*chains"]
    seen: Seen
    tuned: Any


class AgentInfo(NamedTuple):
    """Record of one iteration.

    Parameters
    ----------
    disagreement
        Root mean square distance of the agents from their average, in the coordinates of the steps.
    residual, slowest
        Largest residual of an agent's inner solve, in units of what is tolerated, and that agent.
    fault
        The agent whose share is not convex enough for a solve, plus one; minus (the agent whose iterate is no longer
        finite, plus one); 0 for none.
    acceptance
        Share of the agents' own Metropolis steps that were accepted; NaN where there are none.
    num_evaluations
        Of all shares together.
    """

    disagreement: Array
    residual: Array
    slowest: Array
    fault: Array
    acceptance: Array
    num_evaluations: Array


class Advanced(NamedTuple):
    """What one iteration leads to: iterates, memory, and the rest as in `AgentInfo`."""

    x: Array
    memory: Any
    residual: Any = 0.0
    slowest: Any = 0
    fault: Any = 0
    num_evaluations: Any = 1
    acceptance: Any = jnp.nan


class AbstractAgents(AbstractMethod):
    """Hyper-parameters and functions that all have; see the concrete classes."""

    precondition: Any = eqx.field(default=OWN, converter=lambda given: _as_coordinates(given), kw_only=True)
    keep: Any = eqx.field(static=True, default="average", kw_only=True)
    scatter: Any = eqx.field(default=0.0, kw_only=True)
    coordinates: Approximation | None = eqx.field(default=None, kw_only=True)
    planned: Any = eqx.field(default=None, kw_only=True)

    kind: ClassVar = "chains"
    requires: ClassVar[tuple[str, ...]] = ("shards",)
    exact: ClassVar[bool] = False
    spreads: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_nonnegative("scatter", self.scatter)
        if isinstance(self.precondition, str):
            check_choice("precondition", self.precondition, (OWN,))
        if self.keep != "average":
            check_count("keep", self.keep, 0)

    # -- what a sampler writes ----------------------------------------------------------------------------------------

    def agents(self) -> int | None:
        """Number of agents, as far as the hyper-parameters tell."""
        return None

    @abc.abstractmethod
    def tune(self, key: PRNGKeyArray, target: ShardedTarget, start: Array) -> Self:
        """The method with everything chosen that was left open, coordinates too; host work before the first stage."""

    def placed(self, num_agents: int) -> Self:
        """The method with what is known of its agents once their number is."""
        del num_agents
        return self

    def fix(self, target: ShardedTarget) -> Self:
        """The method with all the arrays that it needs; host work before each stage."""
        return dataclasses.replace(self.placed(target.num_agents), precondition=None)

    @abc.abstractmethod
    def tuned(self) -> Any:
        """What `tune` chose, as arrays; `retuned` takes it."""

    @abc.abstractmethod
    def retuned(self, tuned: Any) -> Self:
        """The method with what an earlier stage was tuned to."""

    def first_memory(self, key: PRNGKeyArray, x: Float[Array, "n d"]) -> Any:
        """What a chain carries on besides ``x``, at its start."""
        del key, x

    @abc.abstractmethod
    def normals(self, key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> Any:
        """Standard normal draws of one iteration (and uniform ones, if any), for (n, d) iterates."""

    @abc.abstractmethod
    def advance(self, x: Float[Array, "n d"], memory: Any, normals: Any, target: ShardedTarget, t: Array) -> Advanced:
        """One iteration: the update equations of the paper."""

    def centre(self, x: Float[Array, "n d"], memory: Any) -> Float[Array, " d"]:
        """The average that is kept."""
        del memory
        return jnp.mean(x, axis=0)

    # -- what the driver calls ----------------------------------------------------------------------------------------

    def arrange(self, target: Target) -> Target:
        """The target in shards."""
        return deal(type(self).__name__, target, self.agents())

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Burn-in, whose draws are dropped, and sampling; nothing is adapted in between."""
        kept = budget.num_samples * budget.thin
        method = dataclasses.replace(self, planned=budget.num_warmup + kept)
        sample = Stage("sample", method, kept)
        return (Stage("burn-in", method, budget.num_warmup, keep=False), sample) if budget.num_warmup else (sample,)

    def default_start(self) -> Any:
        """Draws of the approximation that preconditions, if one was given."""
        return self.precondition if isinstance(self.precondition, Approximation) else None

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> Self:
        """Tune before the first stage; later ones go on with what the states carry."""
        if not isinstance(target, ShardedTarget):
            raise UnsupportedTarget(
                f"{type(self).__name__} shares its agents out over the devices, not the rows of the data, and got a "
                f"{type(target).__name__}; leave out mesh, or give mesh='particles' or 'chains'."
            )
        # Where each process has all data, each works it out for itself, and alike.
        if getattr(target, "mesh", None) is not None:
            return self._prepared(key, target, start)
        key, start = local((key, start))
        with alone():
            prepared = self._prepared(key, target, start)
        return shared(prepared)

    def settle(self, target: Target) -> Self:
        """What steps are solved with, which stays where the shares are."""
        assert isinstance(target, ShardedTarget)
        if getattr(target, "mesh", None) is not None:
            return self.fix(target)
        method = local(self)
        with alone():
            fixed = method.fix(target)
        return shared(fixed)

    def _prepared(self, key: PRNGKeyArray, target: ShardedTarget, start: Any) -> Self:
        if self.keep != "average" and self.keep >= target.num_agents:
            raise InvalidArgument(f"keep={self.keep} is no agent; there are {target.num_agents}, 0 the first.")
        first = start[0]
        if isinstance(first, AgentState):
            tuned = first.tuned if first.x.ndim == 2 else jax.tree.map(lambda x: x[0], first.tuned)
            return self.retuned(tuned).placed(target.num_agents)
        point = first.u if isinstance(first, Warm) else first
        return self.tune(key, target, jnp.atleast_2d(jnp.asarray(point))[0])

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> AgentState:
        """All agents at the chain's start, ``scatter`` standard normals apart."""
        assert isinstance(target, ShardedTarget)
        if isinstance(start, AgentState):
            return dataclasses.replace(start, seen=self._nothing_seen(start.x))
        u = start.u if isinstance(start, Warm) else start
        z = u if self.coordinates is None else self.coordinates.pull(u)
        apart, memory = jax.random.split(key)
        x = jnp.broadcast_to(z, (target.num_agents, z.shape[0]))
        x = x + self.scatter * agent_normals(apart, x.shape, x.dtype)
        count = jnp.zeros((), int)
        return AgentState(x, self.first_memory(memory, x), count, self._nothing_seen(x), self.tuned())

    def step(self, key: PRNGKeyArray, state: AgentState, target: Target, t: Array) -> tuple[AgentState, AgentInfo]:
        """One iteration of all agents."""
        assert isinstance(target, ShardedTarget)
        normals = self.normals(key, state.x.shape, state.x.dtype)
        new = self.advance(state.x, state.memory, normals, target, state.count)
        centre = self.centre(new.x, new.memory)
        gap = jnp.mean(jnp.sum((new.x - centre) ** 2, axis=1))
        residual = jnp.asarray(new.residual, gap.dtype)
        lost = ~jnp.all(jnp.isfinite(new.x), axis=1)
        fault = jnp.where((new.fault == 0) & lost.any(), -1 - jnp.argmax(lost), new.fault)
        slowest, fault, spent = (jnp.asarray(x, jnp.int32) for x in (new.slowest, fault, new.num_evaluations))
        accepted = jnp.asarray(new.acceptance, gap.dtype)
        info = AgentInfo(jnp.sqrt(gap), residual, slowest, fault, accepted, spent)
        seen = _update(state.seen, centre, gap, accepted)
        return AgentState(new.x, new.memory, state.count + 1, seen, state.tuned), info

    def draw(self, state: AgentState) -> Float[Array, " d"]:
        """The average, or the iterate of the agent that is kept."""
        z = self.centre(state.x, state.memory) if self.keep == "average" else state.x[self.keep]
        return z if self.coordinates is None else self.coordinates.transport(z)[0]

    def merit(self, infos: Any) -> dict[str, Array]:
        """How far agents are apart."""
        return {"disagreement": np.mean(infos.disagreement)}

    def alarm(self, infos: Any) -> str | None:
        """A share that is not convex enough, an iterate that is not finite, or inner solves that keep failing."""
        faults = np.asarray(infos.fault)
        if faults.any():
            return findings.fault(type(self).__name__, faults)
        return findings.unsolved(type(self).__name__, np.asarray(infos.residual), np.asarray(infos.slowest))

    def remarks(self, state: AgentState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Disagreement of the agents, measured."""
        del target, result
        return findings.disagreement(self, state.seen) + findings.acceptance(type(self).__name__, state.seen)

    # -- parts ------------------------------------------------------------------------------------------------------

    def potential(self, target: ShardedTarget, z: Float[Array, " d"], shard: Shard) -> Float[Array, ""]:
        """One agent's f_i at ``z``, in the coordinates of the steps."""
        return Bare(self.coordinates).potential(target, z, shard)

    def moved(
        self, update: Callable, target: ShardedTarget, x: Float[Array, "n d"], *rows: Array
    ) -> Float[Array, "n d"]:
        """``update(∇f_i(x_i), *rows_i)`` of all agents, worked out where their data are: nothing else leaves there."""

        def one(shard: Shard, x: Array, *row: Array) -> Array:
            return update(jax.grad(lambda z: self.potential(target, z, shard))(x), *row)

        return vmap_rows(one, x, *rows, held=(target.shards,))

    def _nothing_seen(self, x: Float[Array, "n d"]) -> Seen:
        zeros = jnp.zeros(x.shape[-1], x.dtype)
        zero = jnp.zeros((), x.dtype)
        return Seen(zero, zeros, zeros, zero, zero)


def agent_normals(key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> Float[Array, "n d"]:
    """Standard normals of each agent from a key of its own: ``fold_in(key, agent)``."""
    keys = jax.vmap(lambda agent: jax.random.fold_in(key, agent))(jnp.arange(shape[0]))
    return jax.vmap(lambda one: jax.random.normal(one, shape[1:], dtype))(keys)


def shared_normals(key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> Float[Array, " d"]:
    """Standard normals that all agents draw alike, from the common key."""
    return jax.random.normal(jax.random.fold_in(key, shape[0]), shape[1:], dtype)


def _update(seen: Seen, centre: Array, gap: Array, accepted: Array) -> Seen:
    """Welford's recursion."""
    count = seen.count + 1
    off = centre - seen.mean
    mean = seen.mean + off / count
    gap, accepted = (old + (new - old) / count for old, new in ((seen.gap, gap), (seen.acceptance, accepted)))
    return Seen(count, mean, seen.square + off * (centre - mean), gap, accepted)


def _as_coordinates(given: Any) -> Any:
    return given if given is None or isinstance(given, str) else as_approximation("precondition", given)
