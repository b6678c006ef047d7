"""`SpreadTarget`: the rows of a target shared out over devices, so that one long chain can use all of them.

Each device evaluates the log likelihood of its own rows. The parts are gathered and added everywhere in the order of
the devices, so that processes × devices of the same product give the same bits (an all-reduce would add in an order of
its own). Per evaluation d numbers travel to the devices (they are there already) and one back, d of the gradient.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ..distributed.mesh import DATA, data_mesh, gathered
from ..distributed.processes import check_same, exchange, num_processes
from ..distributed.rows import Packed, row_terms
from ..errors import InvalidArgument, UnsupportedTarget
from .arguments import as_array
from .base import Target
from .factors import FactorTarget, from_factors
from .minibatch import blocks
from .spread_shards import joined, local_part, spread_shards
from .static import fingerprint
from .wrapped import WrappedTarget

CUT, WHOLE = PartitionSpec(DATA), PartitionSpec()


class SpreadTarget(WrappedTarget):
    """A target whose rows lie on several devices, of one process or of several. Made by `fit` and `from_local_rows`.

    Attributes
    ----------
    target
        The target that knows prior, coordinates and how one row enters; without rows of its own where it can be.
    spread_rows
        Arrays of shape (m k, …) on k devices, padded with repetitions.
    mask
        Shape (m k,): True where a row is data.
    place
        For each row of the data, in order, its place in these arrays.
    mesh
        The devices.
    digest
        Of the data, for the fingerprint.
    """

    target: Target
    spread_rows: Any
    mask: Any
    place: Any
    mesh: Mesh = eqx.field(static=True)
    digest: str = eqx.field(static=True)

    @property
    def num_factors(self) -> int:
        """Number of observations, n."""
        return self.place.shape[0]

    @property
    def rows(self) -> Any:
        """The data, one entry per observation on the leading axis: brings them together."""
        return _taken(self, jnp.arange(self.num_factors))

    def passes(self) -> Iterator[tuple[Any, np.ndarray]]:
        """See `infer.target.minibatch`; brings the data together."""
        return blocks(self.rows, self.num_factors)

    def structure(self) -> frozenset[str]:
        """Prior and factors of the target within; what needs all rows in one place is left to it."""
        return self.target.structure() & {"prior", "proper_prior", "factors", "support"}

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior, and the log likelihoods of all devices."""
        return self.target.log_prior(u) + jnp.sum(self._parts(u, self.spread_rows, self.mask))

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log density in constrained coordinates."""
        u = self.target.unconstrain(values)
        prior = cast("Any", self.target).prior_given(values)
        return prior + jnp.sum(self._parts(u, self.spread_rows, self.mask))

    def factor_at(self, u: Float[Array, " d"], rows: Any) -> Float[Array, " b"]:
        """Log likelihood of each of some rows."""
        return cast("Any", self.target).factor_at(u, rows)

    def take(self, batch: Int[Array, " b"]) -> Any:
        """The rows with an index in ``batch``, on all devices."""
        at = as_array(self.place)[batch]
        block = self.mask.shape[0] // self.mesh.size
        layout = Packed(jax.eval_shape(lambda rows: jax.tree.map(lambda leaf: leaf[at], rows), self.spread_rows))

        def mine(rows: Any, at: Array) -> Array:
            place = at - block * jax.lax.axis_index(DATA)
            found = layout.pack(jax.tree.map(lambda leaf: leaf[jnp.clip(place, 0, block - 1)], rows))
            here = (place >= 0) & (place < block)
            # One of the devices has it, and what the others add is zero.
            return jax.lax.psum(jnp.where(here.reshape(-1, *[1] * (found.ndim - 1)), found, 0), DATA)

        whole = jax.shard_map(mine, mesh=self.mesh, in_specs=(CUT, WHOLE), out_specs=WHOLE, check_vma=False)
        return layout.unpack(whole(self.spread_rows, gathered(at, self.mesh)))

    def factor(self, u: Float[Array, " d"], batch: Int[Array, " b"]) -> Float[Array, " b"]:
        """Log likelihood of each observation with an index in ``batch``, on all devices."""
        return self.factor_at(u, self.take(batch))

    def minibatch(self, key: Any, t: Any, size: int) -> Int[Array, " size"]:
        """Indices of iteration ``t``: uniform with replacement, a pure function of (key, t)."""
        return jax.random.randint(jax.random.fold_in(key, t), (size,), 0, self.num_factors)

    def log_density_minibatch(self, u: Float[Array, " d"], batch: Int[Array, " b"]) -> Float[Array, ""]:
        """Unbiased estimate of `log_density` from a mini-batch of b indices, shared out where it comes out even."""
        rows, mask = self.take(batch), jnp.ones(batch.shape, bool)
        parts = self._parts(u, rows, mask) if batch.shape[0] % self.mesh.size == 0 else self.factor_at(u, rows)
        return self.target.log_prior(u) + self.num_factors / batch.shape[0] * jnp.sum(parts)

    def _parts(self, u: Float[Array, " d"], rows: Any, mask: Array) -> Float[Array, " k"]:
        """Log likelihood of the rows of each device."""

        def part(u: Array, rows: Any, mask: Array) -> Array:
            # Padding repeats a row that is data, so that nothing in it is infinite where the mask hides it.
            return jnp.sum(jnp.where(mask, self.factor_at(u, rows), 0.0))

        parts = jax.tree.map(lambda leaf: leaf.reshape(self.mesh.size, -1, *leaf.shape[1:]), (rows, mask))
        return row_terms(part, u, parts, self.mesh)

    def sharded(self, by: Any) -> Any:
        """See `Target.sharded`; rows stay in their process, of which each has as many agents.

        Parameters
        ----------
        by
            A number of agents of all processes together; or the agent 0, 1, … *of this process* of each of its rows.
        """
        mine = local_part(self.mask)
        return spread_shards(self.target, jax.tree.map(lambda leaf: local_part(leaf)[mine], self.spread_rows), by)

    def _identity(self) -> list[Any]:
        return [fingerprint([self.target._identity()]), self.digest]


def spread_rows(target: Target, mesh: Mesh) -> Target:
    """The target with its rows shared out over a mesh along the data.

    Raises
    ------
    UnsupportedTarget
        It has no log likelihood for each row.
    """
    if isinstance(target, SpreadTarget):
        return target
    if "factors" not in target.structure():
        raise UnsupportedTarget(
            f"mesh='data' needs a target with one log likelihood per observation, and this {type(target).__name__} has "
            f"none; build it with Target.from_factors, or from a NumPyro model whose data share a leading axis."
        )
    source: Any = target
    rows = jax.tree.map(np.asarray, source.rows)
    n = jax.tree.leaves(rows)[0].shape[0]
    room = -(-n // mesh.size) * mesh.size
    sharding = NamedSharding(mesh, CUT)
    padded = np.arange(room) % n

    def lay_out(leaf: np.ndarray) -> Array:
        leaf = leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at])

    filled = jax.tree.map(lambda leaf: lay_out(leaf[padded]), rows)
    return SpreadTarget(_without_rows(target), filled, lay_out(np.arange(room) < n), np.arange(n), mesh, "")


def from_local_rows(
    log_prior: Callable, log_likelihood: Callable, rows: Any, example: Any, support: Any = None
) -> SpreadTarget:
    """See `Target.from_local_rows`."""
    target = from_factors(log_prior, log_likelihood, rows, example, support)
    rows = jax.tree.map(np.asarray, target.rows)
    shapes = {
        jax.tree_util.keystr(path) or "rows": [list(leaf.shape[1:]), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(rows)
    }
    template = _without_rows(target)
    check_same("the rows of the data", {f"shape and dtype of {name}": shape for name, shape in shapes.items()})
    check_same("the target", {"its functions and sites": template.fingerprint()})
    devices = jax.local_device_count()
    counts = [told[0] for told, _ in exchange([target.num_factors, devices])]
    if num_processes() * devices != jax.device_count():
        raise InvalidArgument(
            f"from_local_rows needs as many devices in each process; process {jax.process_index()} has {devices} of "
            f"{jax.device_count()}, and there are {num_processes()} processes."
        )
    block = -(-max(counts) // devices)  # rows of a device
    mesh = data_mesh(jax.devices())
    parts = _deal(target.num_factors, devices)
    index = np.concatenate([np.resize(part if len(part) else np.zeros(1, int), block) for part in parts])
    masks = [np.arange(block) < len(part) for count in counts for part in _deal(count, devices)]
    digests = [fingerprint([jax.tree.map(lambda leaf, part=part: leaf[part], rows)]) for part in parts]
    digest = fingerprint([one for told, _ in exchange(digests) for one in told])
    return SpreadTarget(
        template,
        jax.tree.map(lambda leaf: joined(leaf[index], mesh, DATA), rows),
        joined(np.concatenate(masks[jax.process_index() * devices :][:devices]), mesh, DATA),
        np.flatnonzero(np.concatenate(masks)),
        mesh,
        digest,
    )


def _deal(n: int, devices: int) -> list[np.ndarray]:
    """Numbers of the rows of each device of a process that has ``n``."""
    return np.array_split(np.arange(n), devices)


@jax.jit
def _taken(target: SpreadTarget, batch: Array) -> Any:
    return target.take(batch)


def _without_rows(target: Target) -> Target:
    """The same target with one row of zeros, where it is known how to take its rows from it."""
    if not isinstance(target, FactorTarget):
        return target
    one = jax.tree.map(lambda leaf: np.zeros((1, *leaf.shape[1:]), leaf.dtype), target.data)
    return eqx.tree_at(lambda t: t.data, target, one)
