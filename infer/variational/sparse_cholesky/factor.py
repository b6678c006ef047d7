"""Sparse upper factors of precisions: KL-optimal columns, incomplete Cholesky, solves by levels.

A precision is P = V Vᵀ, V upper triangular in maximin order, column i with rows in S_i (`ordering`). Values are stored
as (n, m): row i holds the column's entries in the order of S_i, padded on the left, its diagonal entry last.

* Prior ([1]_): U_i = K_ss⁻¹ e / √(eᵀ K_ss⁻¹ e) with s = S_i, i last, which is L⁻ᵀ e for K_ss = L Lᵀ. It minimises
  KL(N(0, K) ‖ N(0, (UUᵀ)⁻¹)) over the pattern. n m³/3 FLOPs.
* `incomplete_cholesky`, IC(0): V Vᵀ ≈ P on the pattern, from the last column to the first; Σ|S_i|² FLOPs.
* Solves: column i depends on those in S_i only, so that all columns of a level (`ordering.levels`) go together.
  `forward` solves Vᵀ w = e by gathers, `backward` V z = b by scatters; 2 n m FLOPs and as many words each.

References
----------
.. [1] F. Schäfer, M. Katzfuss, H. Owhadi (2021). SIAM J. Sci. Comput. 43.
"""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, Int

from .ordering import Rows, levels

WIDTH = 256
"""Columns that are solved together at most."""
BLOCK_BYTES = 64 * 2**20
FIRST_SHIFT = 1e-6


class Structure(eqx.Module):
    """Pattern, ancestors and schedule of a factor, as arrays; all indices count in maximin order, n stands for none.

    Parameters
    ----------
    order
        Row of the data behind each index, shape (n,).
    columns
        S, shape (n, m), padded on the left with n.
    ancestors
        A, shape (n, a), ascending, padded on the left with −1.
    schedule
        Columns that are solved together, shape (steps, w), earlier steps first, padded with n.
    first, second, updated
        Flat positions (i m + slot) of V_ji and V_ki, and of the entry (j, k) that their product changes, for the
        columns of each step; shape (steps, q), padded with n m.
    """

    order: Int[Array, " n"]
    columns: Int[Array, "n m"]
    ancestors: Int[Array, "n a"]
    schedule: Int[Array, "steps w"]
    first: Int[Array, "steps q"]
    second: Int[Array, "steps q"]
    updated: Int[Array, "steps q"]

    @property
    def mask(self) -> Bool[Array, "n m"]:
        """Which slots are filled."""
        return self.columns < self.columns.shape[0]


def build_structure(order: np.ndarray, pattern: Rows, ancestors: Rows, *, round_to: int = 1) -> Structure:
    """Arrays of a pattern, on the host.

    Parameters
    ----------
    round_to
        m is rounded up to a multiple of it, and other widths by up to a quarter if it is above 1, so that similar
        patterns share a compiled program.
    """
    n, widths = len(order), pattern.widths()
    m = _up(int(widths.max()), round_to)
    columns = pattern.padded(m)
    coarse = _quarters if round_to > 1 else int
    a = coarse(int(ancestors.widths().max()))
    slot, owner, entry = _pairs(pattern, columns)
    steps = _steps(levels(pattern), np.bincount(owner, minlength=n))
    rows = coarse(len(steps))
    schedule = np.full((rows, coarse(max(map(len, steps)))), n, np.int32)
    step_of = np.empty(n, np.int64)
    for t, members in enumerate(steps):
        schedule[t, : len(members)] = members
        step_of[members] = t
    counts = np.bincount(step_of[owner], minlength=rows)
    by_step = np.argsort(step_of[owner], kind="stable")
    within = np.arange(len(by_step)) - np.repeat(np.cumsum(counts) - counts, counts)
    tables = np.full((3, rows, coarse(max(int(counts.max(initial=0)), 1))), n * m, np.int32)
    for table, values in zip(tables, (owner * m + slot[0], owner * m + slot[1], entry), strict=True):
        table[np.repeat(np.arange(rows), counts), within] = values[by_step]
    columns = np.where(columns < 0, n, columns).astype(np.int32)
    arrays = (order.astype(np.int32), columns, ancestors.padded(a), schedule, *tables)
    return Structure(*(jnp.asarray(x) for x in arrays))


def columns_alone(order: np.ndarray, pattern: Rows) -> Structure:
    """Order and columns, for what takes no ancestors and solves nothing; the rest is empty."""
    n, columns = len(order), pattern.padded(int(pattern.widths().max()))
    none = jnp.zeros((0, 0), jnp.int32)
    columns = jnp.asarray(np.where(columns < 0, n, columns).astype(np.int32))
    return Structure(jnp.asarray(order.astype(np.int32)), columns, jnp.zeros((n, 0), jnp.int32), none, none, none, none)


def _pairs(pattern: Rows, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All j ≤ k in S_i ∖ i with j in S_k: their slots in column i, i, and the flat position of (j, k)."""
    n, m = columns.shape
    widths, start = pattern.widths(), pattern.start
    keys = np.repeat(np.arange(n), widths) * n + pattern.index  # (k, j) of all entries, ascending
    slots, owners, entries = [], [], []
    for width in np.unique(widths):
        if width < 2:
            continue
        who = np.flatnonzero(widths == width)
        one, two = np.triu_indices(int(width) - 1)
        for part in np.array_split(who, max(1, len(who) * len(one) // 2_000_000)):
            members = pattern.index[start[part][:, None] + np.arange(int(width) - 1)]
            wanted = members[:, two].astype(np.int64) * n + members[:, one]
            at = np.searchsorted(keys, wanted)
            there = keys[np.minimum(at, len(keys) - 1)] == wanted
            i, pair = np.nonzero(there)
            k = members[i, two[pair]]
            shift = m - int(width)
            slots.append(np.stack([one[pair], two[pair]]) + shift)
            owners.append(part[i])
            entries.append(k.astype(np.int64) * m + (m - widths[k]) + at[there] - start[k])
    if not slots:
        return np.zeros((2, 0), np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(slots, 1), np.concatenate(owners), np.concatenate(entries)


def _steps(level: np.ndarray, work: np.ndarray) -> list[np.ndarray]:
    """Columns level by level, in parts of bounded size and work."""
    budget = max(4 * WIDTH * float(work.mean()), float(work.max(initial=0)), 1.0)
    steps = []
    order = np.argsort(level, kind="stable")
    bounds = np.searchsorted(level[order], np.arange(level.max() + 2))
    for begin, end in itertools.pairwise(bounds):
        members = order[begin:end]
        spent = np.cumsum(work[members])
        part = np.maximum(np.arange(len(members)) // WIDTH, (spent / budget).astype(np.int64))
        steps.extend(np.split(members, np.flatnonzero(np.diff(part)) + 1))
    return steps


def _up(value: int, to: int) -> int:
    return -(-value // to) * to


def _quarters(value: int) -> int:
    """The next of 4, 5, 6, 7 times a power of two."""
    return _up(value, max(1, 1 << (max(value - 1, 1).bit_length() - 3))) if value > 4 else value


def prior_columns(
    covariance: Callable[[Any], Float[Array, "m m"]], inputs: Any, columns: Int[Array, "b m"]
) -> Float[Array, "b m"]:
    """The KL-optimal columns with these rows (`Structure.columns`, or some of its rows).

    Parameters
    ----------
    covariance
        From the inputs of m points to their covariance, nugget included.
    inputs
        Pytree of arrays with leading axis n, in maximin order.
    """
    n, m = jax.tree.leaves(inputs)[0].shape[0], columns.shape[1]
    unit = jnp.zeros(m).at[-1].set(1.0)

    def one(rows: Array) -> Array:
        there = rows < n
        block = covariance(jax.tree.map(lambda x: x[jnp.where(there, rows, 0)], inputs))
        # Padding is the identity: it is decoupled, and its gradient is finite.
        block = jnp.where(there[:, None] & there, block, jnp.eye(m))
        return jnp.where(there, solve_triangular(jnp.linalg.cholesky(block), unit, lower=True, trans=1), 0.0)

    # Blocks are made again for the gradient: kept, they would be m times as much as the factor.
    return jax.lax.map(
        jax.checkpoint(one), columns, batch_size=min(columns.shape[0], max(1, BLOCK_BYTES // (24 * m * m)))
    )


def times_transpose(s: Structure, v: Float[Array, "n m"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Vᵀ x."""
    return jnp.sum(v * jnp.append(x, 0.0)[s.columns], 1)


def times(s: Structure, v: Float[Array, "n m"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """V x."""
    return jnp.zeros_like(x).at[s.columns].add(v * x[:, None], mode="drop")


def precision_on_pattern(s: Structure, u: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """The entries of U Uᵀ that are in the pattern."""
    flat = jnp.append(jnp.ravel(u), 0.0)
    own = jnp.append(jnp.ravel(u * u[:, -1:]), 0.0)
    add = flat[s.first] * flat[s.second]
    return jnp.reshape(own.at[s.updated].add(add)[:-1], u.shape)


def incomplete_cholesky(s: Structure, p: Float[Array, "n m"]) -> tuple[Float[Array, "n m"], Float[Array, ""]]:
    """V with V Vᵀ ≈ P on the pattern, and the relative shift of P's diagonal that it took (0 unless it broke down)."""

    def attempt(shift: Array) -> Array:
        entries = jnp.append(jnp.ravel(p.at[:, -1].multiply(1 + shift)), 0.0)
        m = p.shape[1]

        def step(entries: Array, now: tuple) -> tuple[Array, None]:
            members, first, second, updated = now
            pivot = jnp.sqrt(entries.at[members * m + m - 1].get(mode="fill", fill_value=1.0))
            rows = members[:, None] * m + jnp.arange(m)
            values = entries.at[rows].get(mode="fill", fill_value=0.0) / pivot[:, None]
            entries = entries.at[rows].set(values, mode="drop")
            return entries.at[updated].add(-entries[first] * entries[second]).at[-1].set(0.0), None

        entries, _ = jax.lax.scan(step, entries, (s.schedule, s.first, s.second, s.updated), reverse=True)
        return jnp.reshape(entries[:-1], p.shape)

    def broken(carry: tuple) -> Array:
        shift, v = carry
        return ~jnp.all(jnp.isfinite(v)) & (shift < 1.0)

    def again(carry: tuple) -> tuple:
        last = carry[0]
        shift = jnp.where(last < 0, 0.0, jnp.where(last == 0, FIRST_SHIFT, 10 * last))
        return shift, attempt(shift)

    # The first attempt is in the loop too, which halves the program.
    shift, v = jax.lax.while_loop(broken, again, (-jnp.ones((), p.dtype), jnp.full_like(p, jnp.nan)))
    return v, shift


def forward(s: Structure, v: Float[Array, "n m"], e: Float[Array, " n"]) -> Float[Array, " n"]:
    """The w with Vᵀ w = e: a draw of N(0, (V Vᵀ)⁻¹) where e is standard normal."""

    def step(w: Array, members: Array) -> tuple[Array, None]:
        values = v.at[members].get(mode="fill", fill_value=1.0)
        parents = s.columns.at[members, :-1].get(mode="fill", fill_value=e.shape[0])
        known = w.at[parents].get(mode="fill", fill_value=0.0)
        new = (w.at[members].get(mode="fill", fill_value=0.0) - jnp.sum(values[:, :-1] * known, 1)) / values[:, -1]
        return w.at[members].set(new, mode="drop"), None

    return jax.lax.scan(step, e, s.schedule)[0]


def backward(s: Structure, v: Float[Array, "n m"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    """The z with V z = b."""

    def step(z: Array, members: Array) -> tuple[Array, None]:
        values = v.at[members].get(mode="fill", fill_value=1.0)
        parents = s.columns.at[members, :-1].get(mode="fill", fill_value=b.shape[0])
        new = z.at[members].get(mode="fill", fill_value=0.0) / values[:, -1]
        z = z.at[members].set(new, mode="drop")
        return z.at[parents].add(-values[:, :-1] * new[:, None], mode="drop"), None

    return jax.lax.scan(step, b, s.schedule, reverse=True)[0]


def ancestor_solve(
    s: Structure, v: Float[Array, "n m"], ancestors: Int[Array, " a"], b: Float[Array, "a k"]
) -> Float[Array, "a k"]:
    """V_AA⁻¹ b on a set of indices, ascending and padded on the left with −1 (or n)."""
    n, a = s.columns.shape[0], ancestors.shape[0]
    there = (ancestors >= 0) & (ancestors < n)
    known = jnp.where(there, ancestors, -1)
    rows = jnp.where(there[:, None], s.columns[jnp.where(there, ancestors, 0)], n)
    place = jnp.searchsorted(known, rows)
    inside = (rows < n) & (known[jnp.minimum(place, a - 1)] == rows)
    values = jnp.where(inside, v[jnp.where(there, ancestors, 0)], 0.0)
    block = jnp.diag(jnp.where(there, 0.0, 1.0))
    block = block.at[jnp.where(inside, place, a), jnp.arange(a)[:, None]].add(values, mode="drop")
    return solve_triangular(block, b, lower=False)


def conjugate_gradients(
    times_p: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    b: Float[Array, " n"],
    start: Float[Array, " n"],
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 200,
) -> tuple[Float[Array, " n"], Int[Array, ""]]:
    """P⁻¹ b by preconditioned conjugate gradients, and how many iterations it took."""
    r = b - times_p(start)
    z = precondition(r)
    limit = tolerance**2 * jnp.vdot(b, precondition(b))

    def going(carry: tuple) -> Array:
        _, _, _, _, rz, k = carry
        return (rz > limit) & (k < max_iterations)

    def step(carry: tuple) -> tuple:
        x, r, z, p, rz, k = carry
        q = times_p(p)
        size = rz / jnp.vdot(p, q)
        x, r = x + size * p, r - size * q
        z = precondition(r)
        new = jnp.vdot(r, z)
        return x, r, z, z + new / rz * p, new, k + 1

    x, _, _, _, _, k = jax.lax.while_loop(going, step, (start, r, z, z, jnp.vdot(r, z), jnp.zeros((), jnp.int32)))
    return x, k
