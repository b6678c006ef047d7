"""One cloud of particles over all devices: rows of a sum over pairs are shared out, its columns are everywhere.

A `Run` that has one group of chains, and a method that says it `spreads`, calls its programs within `jax.set_mesh` of
`particle_mesh`. What is traced there asks `num_shards`; outside there is one shard, and nothing here does anything. Who
calls jitted functions of the package within such a mesh of their own gets the same.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

PARTICLES = "particles"


def particle_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices along the particles."""
    return Mesh(np.array(devices), (PARTICLES,), axis_types=(AxisType.Auto,))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def num_shards() -> int:
    """Devices along the particles in the mesh in force, 1 without one."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(PARTICLES, 1)


def spread(x: Array) -> Array:
    """The same array with its rows shared out, where they come out even; a hint to the compiler."""
    if num_shards() == 1 or x.shape[0] % num_shards():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(PARTICLES))


def gathered(tree: Any) -> Any:
    """The same arrays, whole on each device, so that what a program returns is laid out like what it was given."""
    if num_shards() == 1:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def map_rows(function: Callable[[Any, Any], Array], rows: Any, shared: Any) -> Array:
    """``function(row, shared)`` of each row (leading axis, a multiple of the shards), one after the other on a device.

    Parameters
    ----------
    function
        Traced once.
    rows
        Arrays with a leading axis.
    shared
        What all rows need.
    """

    def one_shard(rows: Any, shared: Any) -> Array:
        return jax.lax.map(lambda row: function(row, shared), rows)

    if num_shards() == 1:
        return one_shard(rows, shared)
    cut, whole = PartitionSpec(PARTICLES), PartitionSpec()
    return jax.shard_map(one_shard, in_specs=(cut, whole), out_specs=cut, check_vma=False)(rows, shared)


def vmap_rows(function: Callable[..., Any], *rows: Any) -> Any:
    """``jax.vmap(function)(*rows)`` with the rows of all arguments shared out; every device takes equally many.

    Where the number of rows is no multiple of the devices, the last row is done again to fill up, and dropped.
    """
    shards, count = num_shards(), jax.tree.leaves(rows)[0].shape[0]
    if shards == 1:
        return jax.vmap(function)(*rows)
    fill = -count % shards
    last = jax.tree.map(lambda x: jax.numpy.repeat(x[-1:], fill, axis=0), rows)
    rows = jax.tree.map(lambda x, y: jax.numpy.concatenate([x, y]), rows, last) if fill else rows
    cut = PartitionSpec(PARTICLES)
    out = jax.shard_map(jax.vmap(function), in_specs=cut, out_specs=cut, check_vma=False)(*rows)
    return jax.tree.map(lambda x: x[:count], out)
