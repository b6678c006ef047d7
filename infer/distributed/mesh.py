"""What is shared out over devices: particles, agents, or the rows of the data.

A `Run` that has one group of chains, and a method that says it `spreads` or a target whose rows are spread, calls its
programs within `jax.set_mesh`. What is traced there asks `num_shards`; outside there is one shard, and nothing here
does anything. Who calls jitted functions of the package within such a mesh of their own gets the same.

The mesh may be that of one process or of several. Results are the same bits as long as a device has as many rows, so
nothing here adds up over devices in an order that these decide: parts are gathered and then added, everywhere alike.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ..errors import InvalidArgument

PARTICLES = "particles"
DATA = "data"
CHAINS = "chains"
AXES = (CHAINS, PARTICLES, DATA)


def particle_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices along the particles (or agents)."""
    return Mesh(np.array(devices), (PARTICLES,), axis_types=(AxisType.Auto,))


def data_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices along the rows of the data."""
    return Mesh(np.array(devices), (DATA,), axis_types=(AxisType.Auto,))


def read_mesh(mesh: Any) -> tuple[str | None, list[Any]]:
    """What is shared out, and over which devices, from the ``mesh`` argument of `fit`.

    Raises
    ------
    InvalidArgument
        It is neither a known word nor a mesh with one axis of that name over devices of all processes.
    """
    if mesh is None or (isinstance(mesh, str) and mesh in AXES):
        return mesh, jax.devices()
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1 or mesh.axis_names[0] not in AXES:
        found = f"a mesh with axes {mesh.axis_names}" if isinstance(mesh, Mesh) else repr(mesh)
        raise InvalidArgument(
            f"mesh must be one of {', '.join(map(repr, AXES))}, or a jax.sharding.Mesh with one axis of such a name, "
            f"got {found}."
        )
    devices = list(mesh.devices.flat)
    absent = set(range(jax.process_count())) - {device.process_index for device in devices}
    if absent:
        raise InvalidArgument(
            f"mesh has no device of process {min(absent)} (of {jax.process_count()}), which would have nothing to do; "
            f"make it of jax.devices(), or start fewer processes."
        )
    return str(mesh.axis_names[0]), devices


def everywhere(mesh: Mesh) -> NamedSharding:
    """A copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def place(x: Any, sharding: NamedSharding) -> Array:
    """An array that each process has (all of it), laid out; without talking to other processes."""
    if isinstance(x, jax.Array) and (not x.is_fully_addressable or _in_place(x, sharding.mesh)):
        return x
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(place(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    whole = np.asarray(x)
    whole = whole.astype(jax.dtypes.canonicalize_dtype(whole.dtype), copy=False)
    return jax.make_array_from_callback(whole.shape, sharding, lambda at: whole[at])


def _in_place(x: jax.Array, mesh: Any) -> bool:
    """Whether an array is laid out over these devices already."""
    return isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh


def alone() -> Any:
    """A context in which this process works for itself, on one of its devices, within what all do together.

    Programs that run outside of the driver's turn must hold no collectives: JAX starts the next program before the last
    has ended, and processes may then meet in different orders.
    """
    if jax.sharding.get_abstract_mesh().size <= 1:
        return nullcontext()
    return jax.set_mesh(particle_mesh(jax.local_devices()[:1]))


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
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or not {PARTICLES, DATA} & set(mesh.axis_names):
        return tree

    def whole(x: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, PartitionSpec()) if isinstance(x, jax.Array) else x

    return jax.tree.map(whole, tree)


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
    mapped = jax.shard_map(one_shard, in_specs=(cut, whole), out_specs=cut, check_vma=False)
    return gathered(mapped(gathered(rows), gathered(shared)))


def vmap_rows(function: Callable, *rows: Any, held: tuple = ()) -> Any:
    """``jax.vmap(function)(*held, *rows)``, each device its rows (agents) where they come out even; then all have it.

    Parameters
    ----------
    function
        Of one row of each of ``held`` and ``rows``; it may close over what all rows need.
    *rows
        Pytrees of arrays with a common leading axis, which all devices have.
    held
        The same, of data that are not computed and may lie on the devices of their rows only: they stay there.
    """
    shards = num_shards()
    if shards == 1 or jax.tree.leaves((held, rows))[0].shape[0] % shards:
        return jax.vmap(function)(*held, *rows)
    cut = PartitionSpec(PARTICLES)
    mapped = jax.shard_map(jax.vmap(function), in_specs=cut, out_specs=cut, check_vma=False)
    # Without the second of these the compiler may share out what rows are made from, and add it up in its own order.
    return gathered(mapped(*held, *gathered(rows)))
