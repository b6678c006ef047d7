"""Densities and evidence bounds of a MixFlow, read off orbits of its map.

q_N = (1/N) Σ_{n<N} Tⁿ# q₀. Let s_k, −N < k < N, be the two-sided orbit of s₀ ~ q₀ × aux, and S_k the log-Jacobian of Tᵏ
at s₀. With a_k = log q₀(x_k) + log aux(s_k) + S_k,

    log q_N(s_i) = −S_i − log N + LSE_{i−N<k≤i} a_k = −S_i − log N + logaddexp(R_{N−1−i}, F_i),
    R_j = LSE_{−j≤k≤0} a_k,   F_i = LSE_{1≤k≤i} a_k,

since every window contains the seam. Nothing is subtracted, no draw is inverted, and the arrays of the longest orbit
give the bound of every shorter flow. A map that preserves π̄ has S_k = log π̄(s₀) − log π̄(s_k): then, up to a constant
that cancels, a_k = log q₀(x_k) − log π(x_k), and no Jacobian is needed.

Densities are those of u with the auxiliary variables' divided out, log q_N(s) − log aux(s): importance weights of them
have mean Z.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .maps import AbstractMap, LogDensity


class Reference(eqx.Module):
    """q₀ = N(loc, diag(scale²)), whose draws are where orbits begin.

    Parameters
    ----------
    loc, scale
        Shape (d,).
    """

    loc: Float[Array, " d"]
    scale: Float[Array, " d"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One draw."""
        return self.loc + self.scale * jax.random.normal(key, self.loc.shape, self.loc.dtype)

    def log_prob(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density."""
        z = (x - self.loc) / self.scale
        return -0.5 * jnp.sum(z**2) - jnp.sum(jnp.log(self.scale)) - 0.5 * len(z) * jnp.log(2 * jnp.pi)


class Seen(NamedTuple):
    """What an orbit leaves at each of its points, scalars.

    Parameters
    ----------
    a
        log q₀ + log aux + S, or log q₀ − log π (see the module).
    b
        S + log aux, or −log π: log q_N − log aux = LSE a − log N − b.
    log_density
        log π(x).
    """

    a: Float[Array, "..."]
    b: Float[Array, "..."]
    log_density: Float[Array, "..."]


def look(flow_map: AbstractMap, reference: Reference, state: Any, log_jacobian: Array) -> Seen:
    """The scalars of a point whose Tᵏ has this log-Jacobian."""
    log_q0, log_density = reference.log_prob(state.at.x), state.at.log_density
    if flow_map.measure_preserving:
        return Seen(log_q0 - log_density, -log_density, log_density)
    b = log_jacobian + flow_map.log_auxiliary(state)
    return Seen(log_q0 + b, b, log_density)


class Orbits(eqx.Module):
    """A batch of two-sided orbits that grow.

    Parameters
    ----------
    front, back
        States T^{n} s₀ and T^{−n} s₀ (batched).
    front_jacobian, back_jacobian
        S at both ends, shape (batch,).
    ahead, behind
        `Seen` at k = 0, 1, … and at k = 0, −1, …, shape (batch, max_length).
    length
        N: points filled on either side, s₀ included.
    """

    front: Any
    back: Any
    front_jacobian: Float[Array, " batch"]
    back_jacobian: Float[Array, " batch"]
    ahead: Seen
    behind: Seen
    length: Int[Array, ""]


def begin(
    key: PRNGKeyArray, flow_map: AbstractMap, reference: Reference, log_density: LogDensity, batch: int, max_length: int
) -> Orbits:
    """Orbits of length one."""

    def one(key: PRNGKeyArray) -> Any:
        first, second = jax.random.split(key)
        return flow_map.start(second, reference.sample(first), log_density)

    states = jax.vmap(one)(jax.random.split(key, batch))
    zeros = jnp.zeros(batch, reference.loc.dtype)
    seen = jax.vmap(lambda s, j: look(flow_map, reference, s, j))(states, zeros)
    arrays = jax.tree.map(lambda x: jnp.zeros((batch, max_length), x.dtype).at[:, 0].set(x), seen)
    return Orbits(states, states, zeros, zeros, arrays, arrays, jnp.ones((), jnp.int32))


def grow(
    orbits: Orbits, flow_map: AbstractMap, reference: Reference, log_density: LogDensity, steps: Int[Array, ""]
) -> Orbits:
    """``steps`` further maps on either side of every orbit."""
    seen = jax.vmap(lambda s, j: look(flow_map, reference, s, j))

    def one(_: Array, orbits: Orbits) -> Orbits:
        front, more = jax.vmap(lambda s: flow_map.forward(s, log_density))(orbits.front)
        back, less = jax.vmap(lambda s: flow_map.inverse(s, log_density))(orbits.back)
        forward, backward = orbits.front_jacobian + more, orbits.back_jacobian - less
        write = lambda array, value: array.at[:, orbits.length].set(value)  # noqa: E731
        return Orbits(
            front=front,
            back=back,
            front_jacobian=forward,
            back_jacobian=backward,
            ahead=jax.tree.map(write, orbits.ahead, seen(front, forward)),
            behind=jax.tree.map(write, orbits.behind, seen(back, backward)),
            length=orbits.length + 1,
        )

    return jax.lax.fori_loop(0, steps, one, orbits)


def bounds(orbits: Orbits, lengths: Int[Array, " g"]) -> Float[Array, "batch g"]:
    """The trajectory-averaged ELBO of each orbit for flows of these lengths, none above that of the orbits."""

    def of_orbit(ahead: Seen, behind: Seen) -> Float[Array, " g"]:
        parts, i = sides(ahead, behind), jnp.arange(ahead.a.shape[0])

        def at(n: Array) -> Array:
            return jnp.sum(jnp.where(i < n, ahead.log_density - log_densities(ahead, parts, n), 0.0)) / n

        return jax.lax.map(at, lengths)

    return jax.vmap(of_orbit)(orbits.ahead, orbits.behind)


def sides(ahead: Seen, behind: Seen) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The cumulative sums R and F of one orbit, which serve flows of every length."""
    i = jnp.arange(ahead.a.shape[0])
    return jax.lax.cumlogsumexp(behind.a), jax.lax.cumlogsumexp(jnp.where(i == 0, -jnp.inf, ahead.a))


def log_densities(ahead: Seen, sides: tuple[Array, Array], length: Int[Array, ""]) -> Float[Array, " n"]:
    """Densities log q_N(s_i) − log aux(s_i) along one orbit, 0 ≤ i < N; what lies beyond N means nothing."""
    past, future = sides
    i = jnp.arange(ahead.a.shape[0])
    window = jnp.logaddexp(past[jnp.clip(length - 1 - i, 0)], future)
    return window - ahead.b - jnp.log(length.astype(window.dtype))


class Walk(NamedTuple):
    """A point of an orbit, the log-Jacobian from where the walk began, and the log sum of a over the points passed."""

    state: Any
    log_jacobian: Float[Array, ""]
    total: Float[Array, ""]


def walk(
    at: Walk, steps: Int[Array, ""], flow_map: AbstractMap, reference: Reference, log_density: LogDensity, ahead: bool
) -> Walk:
    """``steps`` maps on, or back."""

    def one(_: Array, at: Walk) -> Walk:
        state, log_det = (flow_map.forward if ahead else flow_map.inverse)(at.state, log_density)
        log_jacobian = at.log_jacobian + (log_det if ahead else -log_det)
        total = jnp.logaddexp(at.total, look(flow_map, reference, state, log_jacobian).a)
        return Walk(state, log_jacobian, total)

    return jax.lax.fori_loop(0, steps, one, at)


def log_density_at(
    state: Any, flow_map: AbstractMap, reference: Reference, log_density: LogDensity, length: Int[Array, ""]
) -> Float[Array, ""]:
    """The density log q_N(s) − log aux(s) of any point of the augmented space, by N − 1 inverse maps in O(1) memory."""
    zero = jnp.zeros((), reference.loc.dtype)
    first = look(flow_map, reference, state, zero)
    total = walk(Walk(state, zero, first.a), length - 1, flow_map, reference, log_density, ahead=False).total
    return total - first.b - jnp.log(length.astype(total.dtype))


def draw(
    key: PRNGKeyArray, flow_map: AbstractMap, reference: Reference, log_density: LogDensity, length: Int[Array, ""]
) -> tuple[Any, Float[Array, ""]]:
    """One draw s ~ q_N and log q_N(s) − log aux(s), read off its own orbit: N − 1 maps.

    s = T^K s₀ with K uniform; the window of s is K maps ahead of s₀ and N − 1 − K behind it.
    """
    keys = jax.random.split(key, 3)
    k = jax.random.randint(keys[0], (), 0, length)
    start = flow_map.start(keys[1], reference.sample(keys[2]), log_density)
    zero = jnp.zeros((), reference.loc.dtype)
    begin = Walk(start, zero, look(flow_map, reference, start, zero).a)
    there = walk(begin, k, flow_map, reference, log_density, ahead=True)
    behind = begin._replace(total=there.total)
    total = walk(behind, length - 1 - k, flow_map, reference, log_density, ahead=False).total
    last = look(flow_map, reference, there.state, there.log_jacobian)
    return there.state, total - last.b - jnp.log(length.astype(total.dtype))
