"""What is shared out over devices: particles, agents, or the rows of the data.

A `Run` that has one group of chains, and a method that says it `spreads` or a target whose rows are spread, calls its
programs within `jax.set_mesh`. What is traced there asks `num_shards`; outside there is one shard, and nothing here
does anything. Who calls jitted functions of the package within such a mesh of their own gets the same.

The mesh may be that of one process or of several. Results are the same bits as long as a device has as many rows, so
nothing here adds up over devices in an order that these decide: parts are gathered and then added, everywhere alike.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.core
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


def local(tree: Any) -> Any:
    """The same arrays, which each device has whole, for use within `alone`."""

    def bare(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(bare(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return x.addressable_data(0)

    return jax.tree.map(bare, tree) if jax.sharding.get_abstract_mesh().size > 1 else tree


def shared(tree: Any) -> Any:
    """Arrays that `alone` has made, which are the same in each process, on all devices of the mesh in force."""
    mesh = jax.sharding.get_mesh()
    if mesh.size <= 1:
        return tree
    return jax.tree.map(lambda x: place(x, everywhere(mesh)) if isinstance(x, jax.Array) else x, tree)


def num_shards() -> int:
    """Devices along the particles in the mesh in force, 1 without one."""
    return dict(jax.sharding.get_abstract_mesh().shape).get(PARTICLES, 1)


def spread(x: Array) -> Array:
    """The same array with its rows shared out, where they come out even; a hint to the compiler."""
    if num_shards() == 1 or x.shape[0] % num_shards():
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(PARTICLES))


def gathered(tree: Any, mesh: Mesh | None = None) -> Any:
    """The same arrays, whole on each device (of a mesh, or the one in force).

    What a program returns is then laid out like what it was given.
    """
    if mesh is None:
        force = jax.sharding.get_abstract_mesh()
        if force.size <= 1 or not {PARTICLES, DATA} & set(force.axis_names):
            return tree
    sharding = PartitionSpec() if mesh is None else everywhere(mesh)

    def whole(x: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, sharding) if isinstance(x, jax.Array) else x

    return jax.tree.map(whole, tree)
