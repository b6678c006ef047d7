"""Functions of one row (agent, device) evaluated where the row is, and brought together.

A program must hold no two collectives of which neither waits for the other. On CPU those of one sequence start in its
order, but a loop that holds some may still run when a later one starts that does not need it, and processes that meet
in different orders abort. So whatever one evaluation brings together travels as one array, a value and its gradient
too; and who needs value, gradient and Hessian at a point asks for them in one call (`expansion` in
`infer.variational.mode`).
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from .mesh import PARTICLES, gathered, num_shards


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


def vmap_rows(function: Callable, *rows: Any, held: tuple = (), mesh: Mesh | None = None) -> Any:
    """``jax.vmap(function)(*held, *rows)``, each device its rows (agents); then all have what was found.

    Where rows do not come out even, the first is repeated, and what is found of the copies is dropped.

    Parameters
    ----------
    function
        Of one row of each of ``held`` and ``rows``; it may close over what all rows need. It returns real numbers,
        integers or booleans.
    *rows
        Pytrees of arrays with a common leading axis, which all devices have.
    held
        The same, of data that are not computed and may lie on the devices of their rows only: they stay there.
    mesh
        Devices along one axis; by default those along the particles in the mesh in force.
    """
    shards = _shards(mesh)
    if shards == 1:
        return jax.vmap(function)(*held, *rows)
    n = jax.tree.leaves((held, rows))[0].shape[0]
    if n % shards:
        held, rows = jax.tree.map(lambda leaf: _filled(leaf, -n % shards), (held, rows))
    layout = Packed(jax.eval_shape(jax.vmap(function), *held, *rows))
    cut = PartitionSpec(PARTICLES if mesh is None else mesh.axis_names[0])
    mapped = jax.shard_map(
        lambda *rows: layout.pack(jax.vmap(function)(*rows)), mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False
    )
    # Without the second of these the compiler may share out what rows are made from, and add it up in its own order.
    return layout.unpack(gathered(mapped(*held, *gathered(rows, mesh)), mesh)[:n])


def rows_in_place(function: Callable, held: tuple, mesh: Mesh) -> Any:
    """``jax.vmap(function)(*held)`` of rows that lie on the devices of ``mesh``, where what is found stays.

    Parameters
    ----------
    function
        Of one row of each of ``held``.
    held
        Pytrees of arrays with a common leading axis, a multiple of the devices.
    mesh
        Devices along one axis.
    """
    cut = PartitionSpec(mesh.axis_names[0])
    return jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)(*held)


def row_terms(function: Callable, u: Float[Array, " d"], held: tuple, mesh: Mesh | None = None) -> Float[Array, " n"]:
    """``function(u, *row)`` of each row, to be differentiated with respect to ``u`` where rows lie on several devices.

    Parameters
    ----------
    function
        A number, of a point that all rows share and one row of each of ``held``.
    u
        The point.
    held
        Pytrees of arrays with a common leading axis n; they stay on their devices.
    mesh
        As in `vmap_rows`.
    """
    n = jax.tree.leaves(held)[0].shape[0]

    def each(function: Callable, *points: Array) -> Any:
        # A copy for each row: what comes back lies side by side, and is added up in one order everywhere.
        copies = [jnp.broadcast_to(x, (n, *x.shape)) for x in points]
        return vmap_rows(
            lambda *given: function(*given[len(held) :], *given[: len(held)]), *copies, held=held, mesh=mesh
        )

    return each(function, u) if _shards(mesh) == 1 else terms_together(each, function, u)


def terms_together(each: Callable, function: Callable, u: Float[Array, " d"]) -> Float[Array, " n"]:
    """``each(function, u)``, with derivatives with respect to ``u`` that travel with the values.

    The compiler, left to itself, evaluates and brings together values and gradients apart. Here they are one array, and
    a product with the Hessian (forward over either) is a second one, later. Third derivatives are not thought of.

    Parameters
    ----------
    each
        ``each(f, *points)`` is ``f(*points, row)`` of every row.
    function
        A number, of a point and a row.
    u
        The point.
    """

    @jax.custom_jvp
    def terms(u: Array) -> Array:
        return each(function, u)

    @jax.custom_jvp
    def with_gradients(u: Array) -> tuple[Array, Array]:
        return each(jax.value_and_grad(function), u)

    @terms.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        values, gradients = with_gradients(*primals)
        return values, jnp.sum(gradients * tangents[0], axis=1)

    @with_gradients.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        def hessian_product(u: Array, du: Array, *row: Any) -> Array:
            return jax.jvp(lambda u: jax.grad(function)(u, *row), (u,), (du,))[1]

        values, gradients = with_gradients(*primals)
        turned = each(hessian_product, *primals, after(tangents[0], values))
        return (values, gradients), (jnp.sum(gradients * tangents[0], axis=1), turned)

    return terms(u)


def after(x: Array, done: Array) -> Array:
    """``x``, which no program can have before ``done``: a way to put collectives in order that no pass undoes."""
    first = done.ravel()[0]
    return x + 0 * jnp.where(jnp.isfinite(first), first, 0)


def gathered_rows(tree: Any, n: int) -> Any:
    """`gathered`, of what one program has computed of n rows; other leaves are left as they are."""
    if num_shards() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    chosen = [i for i, leaf in enumerate(leaves) if leaf.ndim and leaf.shape[0] == n]
    rows = [leaves[i] for i in chosen]
    layout = Packed(rows)
    for i, leaf in zip(chosen, layout.unpack(gathered(layout.pack(rows))), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


class Packed:
    """How the leaves of a pytree with a common leading axis lie side by side in one floating array.

    Integers that 32-bit floats cannot hold are two columns, of their upper and their lower half.
    """

    def __init__(self, shapes: Any) -> None:
        self.leaves, self.structure = jax.tree.flatten(shapes)
        self.dtype = jnp.result_type(float, *(leaf.dtype for leaf in self.leaves))
        self.halved = [
            self.dtype.itemsize == 4 and jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.dtype.itemsize > 2
            for leaf in self.leaves
        ]
        sizes = [math.prod(leaf.shape[1:]) for leaf in self.leaves]
        self.widths = [size * (2 if halved else 1) for size, halved in zip(sizes, self.halved, strict=True)]

    def pack(self, tree: Any) -> Float[Array, "n w"]:
        """One array; a single leaf as it is."""
        leaves = jax.tree.leaves(tree)
        if len(leaves) == 1:
            return leaves[0]
        columns: list[Array] = []
        for leaf, halved in zip(leaves, self.halved, strict=True):
            flat = leaf.reshape(leaf.shape[0], -1)
            columns += [flat >> 16, flat & 0xFFFF] if halved else [flat]
        return jnp.concatenate([column.astype(self.dtype) for column in columns], axis=1)

    def unpack(self, packed: Array) -> Any:
        """The pytree again, of all rows."""
        if len(self.leaves) == 1:
            return jax.tree.unflatten(self.structure, [packed])
        found, parts = [], jnp.split(packed, list(itertools.accumulate(self.widths))[:-1], axis=1)
        for part, leaf, halved in zip(parts, self.leaves, self.halved, strict=True):
            if halved:
                upper, lower = (half.astype(leaf.dtype) for half in jnp.split(part, 2, axis=1))
                part = (upper << 16) | lower
            found.append(part.reshape(-1, *leaf.shape[1:]).astype(leaf.dtype))
        return jax.tree.unflatten(self.structure, found)


def _shards(mesh: Mesh | None) -> int:
    return num_shards() if mesh is None else mesh.size


def _filled(x: Array, more: int) -> Array:
    """With copies of the first row at the end."""
    return jnp.concatenate([x, jnp.broadcast_to(x[:1], (more, *x.shape[1:]))])
