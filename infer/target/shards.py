"""`ShardedTarget`: the observations of a target dealt out to agents, each with its share of the prior.

π(u) ∝ exp(−Σᵢ fᵢ(u)), fᵢ(u) = −log likelihoodᵢ(u) − (1/n) log prior(u): the prior, and with it the log-Jacobian of the
supports, is counted once, split here and nowhere else. Shards of different sizes are padded to the largest and masked.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..distributed.rows import row_terms
from ..errors import InvalidArgument, UnsupportedTarget
from ..validate import check_count
from .arguments import as_array
from .base import Target
from .sub_posterior import SubPosterior, sub_posterior
from .wrapped import WrappedTarget


class Shard(NamedTuple):
    """What agents hold: rows of data (…, m, …), and which of them are data and not padding (…, m)."""

    rows: Any
    mask: Bool[Array, "*agents m"]


class ShardedTarget(WrappedTarget):
    """A target whose observations are dealt out to n agents. Make one with `Target.sharded`.

    Attributes
    ----------
    target
        The target that knows prior, coordinates and how one observation enters.
    rows
        Arrays of shape (n, m, …), m the size of the largest shard.
    mask
        Shape (n, m): True where a row is data.
    """

    target: Target
    rows: Any
    mask: Any

    @property
    def num_agents(self) -> int:
        """Number of shards, n."""
        return self.mask.shape[0]

    @property
    def sizes(self) -> np.ndarray:
        """Observations of each agent, shape (n,)."""
        return np.asarray(self.mask).sum(1)

    @property
    def shards(self) -> Shard:
        """All shards, on a leading axis."""
        return Shard(jax.tree.map(as_array, self.rows), jnp.asarray(self.mask))

    def share(self, u: Float[Array, " d"], shard: Shard) -> Float[Array, ""]:
        """The part −fᵢ(u) of the log density that one agent, who holds ``shard``, can evaluate."""
        return self.log_prior(u) / self.num_agents + self.shard_log_likelihood(u, shard)

    def shard_log_likelihood(self, u: Float[Array, " d"], shard: Shard) -> Float[Array, ""]:
        """Log likelihood of one agent's data."""
        # Padding repeats a row that is data, so that nothing in it is infinite where the mask hides it.
        each: Any = self.target.factor_at(u, shard.rows)  # type: ignore[attr-defined]
        return jnp.sum(jnp.where(shard.mask, each, 0.0))

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior and the log likelihoods of all agents."""
        return self.log_prior(u) + jnp.sum(self.log_likelihoods(u))

    def log_likelihoods(self, u: Float[Array, " d"]) -> Float[Array, " n"]:
        """Log likelihood of each agent's data."""
        return row_terms(self.shard_log_likelihood, u, (self.shards,))

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log density in constrained coordinates."""
        return self.target.log_density_at(values)

    def sub_posterior(self, agent: int, *, inflated: bool = False) -> SubPosterior:
        """What one agent can infer alone: a target of its own data, for `pushforward.combine`.

        Parameters
        ----------
        agent
            Number of the agent, 0, 1, …
        inflated
            prior · likelihoodⁿ, for ``how="swiss"``; otherwise prior^(1/n) · likelihood, whose product over agents is
            the posterior.

        Raises
        ------
        InvalidArgument
            There is no such agent.

        Warns
        -----
        RuntimeWarning
            The prior to the power 1/n is improper.
        """
        agent = check_count("agent", agent, 0)
        if agent >= self.num_agents:
            raise InvalidArgument(f"agent must be below {self.num_agents}, the number of shards, got {agent}.")
        mine = np.asarray(self.mask)[agent]
        rows = jax.tree.map(lambda leaf: np.asarray(leaf)[agent][mine], self.rows)
        return sub_posterior(self.target, rows, agent, self.num_agents, inflated=inflated)  # type: ignore[arg-type]

    def structure(self) -> frozenset[str]:
        """What the target within has, and ``"shards"``."""
        return self.target.structure() | {"shards"}

    def _identity(self) -> list[Any]:
        return [self.target.fingerprint(), self.mask, self.rows]


def sharded(target: Target, by: Any) -> ShardedTarget:
    """See `Target.sharded`."""
    if isinstance(target, ShardedTarget):
        raise InvalidArgument(
            f"sharded was called on a target that is in {target.num_agents} shards already; deal out the target "
            f"within, its attribute target."
        )
    if "factors" not in target.structure():
        raise UnsupportedTarget(
            f"sharded needs a target with one log likelihood per observation, and this {type(target).__name__} has "
            f"none; build it with Target.from_factors, or from a NumPyro model whose data share a leading axis."
        )
    source: Any = target
    members = members_of(by, source.num_factors)
    return ShardedTarget(target, *dealt(source.rows, members, max(map(len, members))))


def dealt(rows: Any, members: list[np.ndarray], size: int) -> tuple[Any, Bool[np.ndarray, "n m"]]:
    """Rows (…) of each agent as arrays (n, m, …), and which of them are data, m being ``size``."""
    index = np.stack([np.resize(rows, size) for rows in members])
    mask = np.stack([np.arange(size) < len(rows) for rows in members])
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], rows), mask


def members_of(by: Any, num_rows: int) -> list[np.ndarray]:
    """Indices of each agent's observations."""
    if np.ndim(by) == 0:
        num_agents = check_count("by", by)
        if num_agents > num_rows:
            raise InvalidArgument(f"by asks for {num_agents} shards of {num_rows} observations; each needs one.")
        return np.array_split(np.arange(num_rows), num_agents)
    agents = np.asarray(by)
    if agents.shape != (num_rows,) or agents.dtype.kind not in "iu":
        raise InvalidArgument(
            f"by must be a number of shards or the agent (0, 1, …) of each of the {num_rows} observations, got an "
            f"array of shape {agents.shape} and dtype {agents.dtype}."
        )
    counts = np.bincount(agents, minlength=1) if agents.min() >= 0 else np.zeros(1, int)
    if (counts == 0).any():
        raise InvalidArgument(
            f"by must number the agents 0, 1, … without gaps; agent {int(np.argmin(counts))} has {counts.min()} "
            f"observations, and the numbers go from {agents.min()} to {agents.max()}."
        )
    order = np.argsort(agents, kind="stable")
    return np.split(order, np.cumsum(counts)[:-1])


def num_agents_of(target: Target) -> int | None:
    """Number of agents of a sharded target, None of others."""
    return target.num_agents if isinstance(target, ShardedTarget) else None


def deal(method: str, target: Target, num_agents: int | None) -> ShardedTarget:
    """The target with its observations in ``num_agents`` shards, for a method: as it is, or dealt out evenly.

    Raises
    ------
    InvalidArgument
        The target has another number of shards, or nobody has said how many there are.
    """
    have = num_agents_of(target)
    if have is None and num_agents is None:
        raise InvalidArgument(
            f"{method} must know the number of agents: give it a graph with that many nodes, or the target as "
            f"target.sharded(number) or target.sharded(agent_of_each_observation); got graph and target without one."
        )
    if have is not None and num_agents not in (None, have):
        raise InvalidArgument(f"{method} has a graph of {num_agents} agents, and the target has {have} shards.")
    return target if isinstance(target, ShardedTarget) else cast("ShardedTarget", target.sharded(num_agents))


def concatenated(shards: Sequence[Any]) -> tuple[Any, np.ndarray]:
    """Shards given one by one, as one data set and the agent of each observation, for `Target.sharded`."""
    sizes = [np.shape(jax.tree.leaves(shard)[0])[0] for shard in shards]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *shards), np.repeat(np.arange(len(sizes)), sizes)
