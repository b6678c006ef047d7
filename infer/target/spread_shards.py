"""`SpreadShards`: agents' observations that stay where they are, in the process (and on the device) of their agent."""

from typing import Any, cast

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ..distributed.mesh import PARTICLES, particle_mesh
from ..distributed.processes import exchange, num_processes
from ..errors import InvalidArgument, UnsupportedTarget
from ..validate import check_count
from .base import Target
from .shards import ShardedTarget, dealt, members_of
from .static import fingerprint
from .sub_posterior import SubPosterior, sub_posterior


class SpreadShards(ShardedTarget):
    """A target whose agents live in several processes, or on several devices of one. Made by `Target.sharded`.

    Agents are numbered in the order of the processes, of which each has as many.

    Attributes
    ----------
    target
        The target that knows prior, coordinates and how one row enters; without rows of its own.
    rows
        Arrays of shape (n, m, …) laid out over the devices by agent.
    mask
        Shape (n, m), laid out alike.
    mesh
        The devices.
    counts
        Observations of each agent, n numbers.
    digest
        Of the data, for the fingerprint.
    """

    target: Target
    rows: Any
    mask: Any
    mesh: Mesh = eqx.field(static=True)
    counts: tuple[int, ...] = eqx.field(static=True)
    digest: str = eqx.field(static=True)

    @property
    def sizes(self) -> np.ndarray:
        """Observations of each agent, shape (n,)."""
        return np.asarray(self.counts)

    def structure(self) -> frozenset[str]:
        """Prior of the target within, and shards; what needs all rows in one place is left out."""
        return self.target.structure() & {"prior", "proper_prior", "support"} | {"shards"}

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log density in constrained coordinates."""
        prior = cast("Any", self.target).prior_given(values)
        return prior + self.log_likelihoods(self.target.unconstrain(values)).sum()

    def sub_posterior(self, agent: int, *, inflated: bool = False) -> SubPosterior:
        """See `ShardedTarget.sub_posterior`; of the agents of this process."""
        agent = check_count("agent", agent, 0)
        count = self.num_agents // num_processes()
        first = jax.process_index() * count
        if not first <= agent < first + count:
            last = first + count - 1
            raise InvalidArgument(f"agent must be one whose data this process has, {first} to {last}, got {agent}.")
        mine = local_part(self.mask)[agent - first]
        rows = jax.tree.map(lambda leaf: local_part(leaf)[agent - first][mine], self.rows)
        return sub_posterior(self.target, rows, agent, self.num_agents, inflated=inflated)  # type: ignore[arg-type]

    def _identity(self) -> list[Any]:
        return [self.target.fingerprint(), self.digest]


def spread_shards(template: Target, rows: Any, by: Any) -> SpreadShards:
    """Shards of the rows of all processes, each of which gives its own.

    Parameters
    ----------
    template
        The target, without rows.
    rows
        Those of this process.
    by
        Number of agents of all processes; or the agent 0, 1, … of this process of each of its rows.

    Raises
    ------
    InvalidArgument
        Processes do not have as many agents each, or an agent has no row.
    """
    num_rows, processes = jax.tree.leaves(rows)[0].shape[0], num_processes()
    if np.ndim(by) == 0 and check_count("by", by) % processes:
        raise InvalidArgument(f"by must be a multiple of {processes}, the number of processes, got {by}.")
    members = members_of(by // processes if np.ndim(by) == 0 else by, num_rows)
    told = [each for each, _ in exchange([len(rows) for rows in members])]
    if len({len(each) for each in told}) > 1:
        raise InvalidArgument(
            f"by must give each process as many agents, and they have {', '.join(str(len(each)) for each in told)}; "
            f"deal their rows out to equal numbers of agents."
        )
    counts = tuple(count for each in told for count in each)
    parts, mask = dealt(rows, members, max(counts))
    digests = [fingerprint([jax.tree.map(lambda leaf, one=one: leaf[one], rows)]) for one in members]
    digest = fingerprint([one for each, _ in exchange(digests) for one in each])
    mesh = _mesh(len(members))
    lay_out = lambda leaf: joined(leaf, mesh, PARTICLES)  # noqa: E731
    return SpreadShards(template, jax.tree.map(lay_out, parts), lay_out(mask), mesh, counts, digest)


def joined(local: np.ndarray, mesh: Mesh, axis: str) -> Array:
    """The array of all devices, from the part of this process; in the user's dtype, whatever the precision in force."""
    rows = local.shape[0] * num_processes()
    with jax.enable_x64(True):
        sharding = NamedSharding(mesh, PartitionSpec(axis))
        return jax.make_array_from_process_local_data(sharding, local, (rows, *local.shape[1:]))


def local_part(x: Array) -> np.ndarray:
    """What this process has of an array laid out by rows."""
    pieces = sorted(x.addressable_shards, key=lambda piece: piece.index[0].start or 0)
    return np.concatenate([np.asarray(piece.data) for piece in pieces])


def _mesh(num_agents: int) -> Mesh:
    """Of each process as many devices as its agents can be dealt out to evenly."""
    count = max(k for k in range(1, jax.local_device_count() + 1) if num_agents % k == 0)
    chosen, taken = [], dict.fromkeys(range(jax.process_count()), 0)
    for device in jax.devices():
        if taken[device.process_index] < count:
            chosen.append(device)
            taken[device.process_index] += 1
    if len(chosen) != count * jax.process_count():
        found = ", ".join(map(str, taken.values()))
        raise UnsupportedTarget(f"Local rows need as many devices in each process, and there are {found}.")
    return particle_mesh(sorted(chosen, key=lambda device: device.process_index))
