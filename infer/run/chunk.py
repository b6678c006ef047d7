"""The compiled loop: one program that runs up to a fixed number of iterations of any method on any target.

Per iteration it costs the method's step plus O(d) writes into buffers of a fixed number of slots, on which the host
looks when the chunk ends. Nothing in it depends on how long a run is, so that a second fit, a longer run, new data of
the same shape or another step size compile nothing.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

from ..distributed.mesh import gathered
from ..method import AbstractMethod
from ..target import Target

SLOTS = 20000
SLOT_BYTES = 16 * 2**20
SUMMED = frozenset({"num_evaluations", "n_steps"})


class Chunk(NamedTuple):
    """What a chunk returns: the states, draws and infos by slot, and the number of iterations done.

    Only the first ``iterations // thin`` slots have been written.
    """

    states: Any
    draws: "Packed"
    infos: "Packed"
    iterations: Array


class Packed(eqx.Module):
    """Named arrays by slot, side by side in one buffer per dtype: one write per iteration instead of one per name.

    Parameters
    ----------
    buffers
        Name of a dtype → array (slots, width), or (slots, chains, width) of a group of chains.
    fields
        Of each array: name, dtype, offset in its buffer, shape of one value. Static, so that it leaves the compiled
        program with the buffers.
    """

    buffers: dict[str, Array]
    fields: tuple[tuple[str, str, int, tuple[int, ...]], ...] = eqx.field(static=True)

    @classmethod
    def empty(cls, like: dict[str, Any], slots: int, lead: tuple[int, ...]) -> "Packed":
        """Zeros for arrays of these shapes and dtypes, whose leading dimensions ``lead`` count chains."""
        fields, widths = [], {}
        for name, x in like.items():
            dtype, shape = x.dtype.name, x.shape[len(lead) :]
            fields.append((name, dtype, widths.get(dtype, 0), shape))
            widths[dtype] = widths.get(dtype, 0) + math.prod(shape)
        return cls({d: jnp.zeros((slots, *lead, width), d) for d, width in widths.items()}, tuple(fields))

    def write(self, slot: Array, values: dict[str, Array]) -> "Packed":
        """The same with ``values`` in a slot."""
        rows: dict[str, list[Array]] = {}
        for name, dtype, _, shape in self.fields:
            value = values[name]
            lead = value.shape[: value.ndim - len(shape)]
            rows.setdefault(dtype, []).append(value.reshape(*lead, math.prod(shape)))
        new = {dtype: self.buffers[dtype].at[slot].set(jnp.concatenate(row, -1)) for dtype, row in rows.items()}
        return Packed(new, self.fields)

    def unpack(self, slots: int, *, single: bool) -> dict[str, np.ndarray]:
        """Arrays (chains, slots, …) by name on the host, of the first ``slots`` slots; copies where few are used."""

        def first(buffer: Array) -> np.ndarray:
            rows = np.asarray(buffer)[:slots]
            return rows if 2 * slots > buffer.shape[0] else rows.copy()

        taken = {dtype: first(buffer) for dtype, buffer in self.buffers.items()}
        taken = {dtype: x[None] if single else np.swapaxes(x, 0, 1) for dtype, x in taken.items()}
        return {
            name: taken[dtype][..., offset : offset + math.prod(shape)].reshape(*taken[dtype].shape[:2], *shape)
            for name, dtype, offset, shape in self.fields
        }


class Origin(NamedTuple):
    """Where the keys of some chains come from: chain c of a stage has ``fold_in(fold_in(root, stage), c)``.

    Keys are folded inside the compiled programs: on the host each little operation on keys would be a program of its
    own, which a cold start compiles. ``chain`` is a number, or an array of those of a group.
    """

    root: PRNGKeyArray
    stage: Any
    chain: Any

    def keys(self) -> Key[Array, "*chains"]:
        """One key, or one per chain."""
        key = jax.random.fold_in(self.root, self.stage)
        fold = lambda chain: jax.random.fold_in(key, chain)  # noqa: E731
        return jax.vmap(fold)(self.chain) if self.chain.ndim else fold(self.chain)


@partial(jax.jit, static_argnames=("slots", "sites", "single", "thinned"), donate_argnames=("states",))
def run_chunk(
    method: AbstractMethod,
    target: Target,
    states: Any,
    origin: Origin,
    start: Array,
    length: Array,
    thin: Array,
    keep: Array,
    *,
    slots: int,
    sites: tuple[str, ...] | None,
    single: bool,
    thinned: bool,
) -> Chunk:
    """Run ``length`` iterations of ``method`` from iteration ``start``, or fewer if all chains are done.

    Parameters
    ----------
    states
        States of a group of chains, stacked on a leading axis; of one chain, without it, where ``single``.
    origin
        Of the keys, one per chain. Iteration t of a chain uses ``fold_in(key, t)`` and nothing else, whatever the
        chunks.
    start, length, thin, keep
        Traced scalars: first iteration, number of iterations (a multiple of ``thin``, at most ``slots * thin``), how
        many iterations share a slot, and whether draws are kept (else they are not even computed).
    slots, sites, single, thinned
        Static: buffer length, names of the sites to keep (None: all), whether the group is one unbatched chain, whether
        ``thin`` is above 1. One chain alone stays unbatched because under `vmap` every branch of a `lax.cond` is
        executed.
    """
    over = (lambda f: f) if single else jax.vmap
    freezes = type(method).done is not AbstractMethod.done
    keys = origin.keys()

    def at(t: Array) -> Key[Array, "*chains"]:
        return over(lambda key: jax.random.fold_in(key, t))(keys)

    # One by one inside the loop, keys would cost a tenth of a cheap transition.
    table = None if thinned else jax.vmap(at)(start + jnp.arange(slots, dtype=start.dtype))

    @partial(jax.jit, inline=True)  # traced once, for the shapes of its infos and in the loop
    def advance(
        method: AbstractMethod, target: Target, keys: Key[Array, "*chains"], states: Any, t: Array
    ) -> tuple[Any, Any]:
        def one(state: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
            new, info = method.step(key, state, target, t)
            if freezes:
                done = method.done(state)
                new = jax.tree.map(lambda old, fresh: jnp.where(done, old, fresh), state, new)
                info = jax.tree.map(lambda x: jnp.where(done, jnp.zeros_like(x), x), info)
            return new, info

        return over(one)(states, keys)

    def drawn(states: Any, keys: Key[Array, "*chains"]) -> dict[str, Array]:
        def one(state: Any, key: PRNGKeyArray) -> dict[str, Array]:
            values = target.draw(jax.random.fold_in(key, 1), method.draw(state))
            return values if sites is None else {name: values[name] for name in sites}

        return over(one)(states, keys)

    lead = () if single else (origin.chain.shape[0],)
    draws_like = jax.eval_shape(drawn, states, keys) if method.kind == "chains" else {}
    infos_like = jax.eval_shape(advance, method, target, keys, states, start)[1]
    draws = Packed.empty(draws_like, slots, lead)
    infos = Packed.empty(infos_like._asdict(), slots, lead)

    def body(carry: tuple) -> tuple:
        i, states, joined, draws, infos = carry
        t = start + i
        now = at(t) if table is None else table[i]
        states, info = advance(method, target, now, states, t)
        slot, within = i // thin, i % thin
        if thinned:
            joined = info = _join(joined, info, within == 0)
        infos = infos.write(slot, info._asdict())
        if draws_like:
            nothing = lambda: {name: jnp.zeros(x.shape, x.dtype) for name, x in draws_like.items()}  # noqa: E731
            # Written at every iteration of a slot; the last one stays.
            draws = draws.write(slot, jax.lax.cond(keep & (within == thin - 1), lambda: drawn(states, now), nothing))
        return i + 1, states, joined, draws, infos

    def going(carry: tuple) -> Array:
        i, states, *_ = carry
        more = i < length
        return more & ~jnp.all(over(method.done)(states)) if freezes else more

    joined = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), infos_like) if thinned else ()
    carry = (jnp.zeros_like(start), states, joined, draws, infos)
    iterations, states, _, draws, infos = jax.lax.while_loop(going, body, carry)
    return Chunk(*gathered((states, draws, infos, iterations)))


def _join(before: Any, info: Any, first: Array) -> Any:
    """Infos of iterations that share a slot: counts are added, flags joined, of floats the last is kept."""

    def one(name: str, old: Array, new: Array) -> Array:
        if new.dtype == jnp.bool_:
            return new | (old & ~first)
        if jnp.issubdtype(new.dtype, jnp.integer):
            return jnp.where(first, new, (jnp.add if name in SUMMED else jnp.maximum)(old, new))
        return new

    return type(info)(*(one(name, b, v) for name, b, v in zip(info._fields, before, info, strict=True)))


@partial(jax.jit, static_argnames=("single",))
def init_states(method: AbstractMethod, target: Target, origin: Origin, starts: Any, *, single: bool) -> Any:
    """States of a group of chains; weak types are stripped, since one of them would compile the second chunk anew."""
    one = lambda key, start: method.init(key, target, start)  # noqa: E731
    keys = origin.keys()
    states = one(keys, starts) if single else jax.vmap(one)(keys, starts)
    return gathered(jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), states))


@partial(jax.jit, static_argnames=("tries", "candidates"))
def find_start(
    target: Target, origin: Origin, given: Any, *, tries: int, candidates: int
) -> tuple[Array, Array, Array]:
    """A random point with a finite log density and gradient: the point, the density, whether found.

    Of the first ``candidates`` such points among at most ``tries`` the one of highest density is taken: a single point
    often lies where a recursion or a differential equation explodes, out of reach of every sampler. ``given`` is None,
    or a point that alone is tried.
    """
    value_and_grad = jax.value_and_grad(target.log_density)
    key = origin.keys()

    def evaluate(u: Array) -> tuple[Array, Array]:
        value, gradient = value_and_grad(u)
        return value, jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

    if given is not None:
        return given, *evaluate(given)

    def attempt(carry: tuple) -> tuple:
        i, count, best, highest = carry
        u = target.initial(jax.random.fold_in(key, i))
        value, finite = evaluate(u)
        # Until one is finite, the last one tried is kept, to say what is wrong with it.
        better = jnp.where(count > 0, finite & (value > highest), True)
        return i + 1, count + finite, jnp.where(better, u, best), jnp.where(better, value, highest)

    def going(carry: tuple) -> Array:
        i, count, *_ = carry
        return (i < tries) & (count < candidates)

    u = target.initial(key)
    none = jnp.zeros((), jnp.int32)
    _, count, best, highest = jax.lax.while_loop(
        going, attempt, (none, none, jnp.zeros_like(u), jnp.zeros((), u.dtype))
    )
    return best, highest, count > 0
