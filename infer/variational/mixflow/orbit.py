"""Evidence bounds of a homogeneous MixFlow of every length, read off two-sided orbits of its map.

q_N = (1/(N − b)) Σ_{b≤n<N} Tⁿ# q₀. Let s_k, −N < k < N, be the two-sided orbit of s₀ ~ q₀ × aux, and S_k the
log-Jacobian of Tᵏ at s₀. With a_k = log q₀(x_k) + log aux(s_k) + S_k, for b ≤ i < N

    log q_N(s_i) = −S_i − log(N − b) + LSE_{i−N<k≤i−b} a_k = −S_i − log(N − b) + logaddexp(R_{N−1−i}, F_{i−b}),
    R_j = LSE_{−j≤k≤0} a_k,   F_i = LSE_{1≤k≤i} a_k,

since every window contains the seam. Nothing is subtracted, no draw is inverted, and the arrays of the longest orbit
give the bound of every shorter flow. A map that preserves π̄ has S_k = log π̄(s₀) − log π̄(s_k): then, up to a constant
that cancels, a_k = log q₀(x_k) − log π(x_k), and no Jacobian is needed.

Densities are those of u with the auxiliary variables' divided out, log q_N(s) − log aux(s): importance weights of them
have mean Z. An orbit costs 2 (N − 1) maps and 6 N numbers.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..gaussian.approximation import GaussianApproximation
from .maps import DIVERGENT, AbstractMap, LogDensity


class Reference(eqx.Module):
    """q₀ = N(loc, diag(scale²)), whose draws are where orbits begin, in the coordinates y that maps act in.

    Parameters
    ----------
    loc, scale
        Shape (d,).
    coordinates
        The normal N(m, C Cᵀ) that whitens, u = m + C y; None: y = u. Maps, orbits and families know y alone, and the
        log density that they are given is that of `density`.
    """

    loc: Float[Array, " d"]
    scale: Float[Array, " d"]
    coordinates: GaussianApproximation | None = None

    def density(self, log_density: LogDensity) -> LogDensity:
        """Of a log density of u, that of y; they have the same integral."""
        q = self.coordinates
        if q is None:
            return log_density

        def of_y(y: Float[Array, " d"]) -> Float[Array, ""]:
            u, log_det = q.transport(y)
            return log_density(u) + log_det

        return of_y

    def to_u(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """The point u of coordinates ``y``."""
        return y if self.coordinates is None else self.coordinates.transport(y)[0]

    def to_y(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """The coordinates y of a point ``u``."""
        return u if self.coordinates is None else self.coordinates.pull(u)

    @property
    def log_volume(self) -> Float[Array, ""]:
        """Log |det ∂u/∂y|."""
        q = self.coordinates
        return jnp.zeros((), self.loc.dtype) if q is None else q.factor.log_det()

    def sample(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One draw."""
        return self.loc + self.scale * jax.random.normal(key, self.loc.shape, self.loc.dtype)

    def log_prob(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density."""
        z = (x - self.loc) / self.scale
        return -0.5 * jnp.sum(z**2) - jnp.sum(jnp.log(self.scale)) - 0.5 * len(z) * jnp.log(2 * jnp.pi)


def start(key: PRNGKeyArray, flow_map: AbstractMap, reference: Reference, log_density: LogDensity) -> Any:
    """Where an orbit begins: x ~ q₀ with auxiliary variables of their density."""
    first, second = jax.random.split(key)
    return flow_map.start(second, reference.sample(first), log_density)


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


class Tally(NamedTuple):
    """Sums over the maps of an orbit (scalars), or of each of a batch.

    Parameters
    ----------
    maps
        Their number.
    divergences
        Those with an energy error beyond `DIVERGENT`, or not finite.
    energy_error
        Absolute, of the others.
    acceptance
        Probabilities min(1, e^−error).
    """

    maps: Int[Array, "..."]
    divergences: Int[Array, "..."]
    energy_error: Float[Array, "..."]
    acceptance: Float[Array, "..."]

    def add(self, error: Float[Array, "..."]) -> "Tally":
        """With one more map of this energy error."""
        fine = jnp.abs(error) < DIVERGENT  # not for NaN either
        return Tally(
            self.maps + 1,
            self.divergences + ~fine,
            self.energy_error + jnp.where(fine, jnp.abs(error), 0.0),
            self.acceptance + jnp.where(jnp.isnan(error), 0.0, jnp.exp(-jnp.maximum(error, 0.0))),
        )


def no_maps(shape: tuple[int, ...], dtype: Any) -> Tally:
    """The tally before the first map."""
    zeros, none = jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32)
    return Tally(none, none, zeros, zeros)


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
    tally
        Of the maps of each orbit, both sides.
    """

    front: Any
    back: Any
    front_jacobian: Float[Array, " batch"]
    back_jacobian: Float[Array, " batch"]
    ahead: Seen
    behind: Seen
    length: Int[Array, ""]
    tally: Tally


def begin(
    key: PRNGKeyArray, flow_map: AbstractMap, reference: Reference, log_density: LogDensity, batch: int, max_length: int
) -> Orbits:
    """Orbits of length one."""
    states = jax.vmap(lambda key: start(key, flow_map, reference, log_density))(jax.random.split(key, batch))
    zeros = jnp.zeros(batch, reference.loc.dtype)
    seen = jax.vmap(lambda s, j: look(flow_map, reference, s, j))(states, zeros)
    arrays = jax.tree.map(lambda x: jnp.zeros((batch, max_length), x.dtype).at[:, 0].set(x), seen)
    tally = no_maps((batch,), zeros.dtype)
    return Orbits(states, states, zeros, zeros, arrays, arrays, jnp.ones((), jnp.int32), tally)


def grow(
    orbits: Orbits, flow_map: AbstractMap, reference: Reference, log_density: LogDensity, steps: Int[Array, ""]
) -> Orbits:
    """``steps`` further maps on either side of every orbit."""
    seen = jax.vmap(lambda s, j: look(flow_map, reference, s, j))

    def one(_: Array, orbits: Orbits) -> Orbits:
        front, back = flow_map.both(orbits.front, orbits.back, log_density)
        forward, backward = orbits.front_jacobian, orbits.back_jacobian
        if not flow_map.measure_preserving:
            forward, backward = forward + front.log_det, backward - back.log_det
        write = lambda array, value: array.at[:, orbits.length].set(value)  # noqa: E731
        return Orbits(
            front=front.state,
            back=back.state,
            front_jacobian=forward,
            back_jacobian=backward,
            ahead=jax.tree.map(write, orbits.ahead, seen(front.state, forward)),
            behind=jax.tree.map(write, orbits.behind, seen(back.state, backward)),
            length=orbits.length + 1,
            tally=orbits.tally.add(front.energy_error).add(back.energy_error),
        )

    return jax.lax.fori_loop(0, steps, one, orbits)


def bounds(orbits: Orbits, lengths: Int[Array, " g"], burn_in: int = 0) -> Float[Array, "batch g"]:
    """The trajectory-averaged ELBO of each orbit for flows of these lengths, none above that of the orbits."""

    def of_orbit(ahead: Seen, behind: Seen) -> Float[Array, " g"]:
        parts, i = sides(ahead, behind), jnp.arange(ahead.a.shape[0])

        def at(n: Array) -> Array:
            gap = ahead.log_density - log_densities(ahead, parts, n, burn_in)
            return jnp.sum(jnp.where((i >= burn_in) & (i < n), gap, 0.0)) / (n - burn_in)

        return jax.lax.map(at, lengths)

    return jax.vmap(of_orbit)(orbits.ahead, orbits.behind)


def sides(ahead: Seen, behind: Seen) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The cumulative sums R and F of one orbit, which serve flows of every length."""
    i = jnp.arange(ahead.a.shape[0])
    return jax.lax.cumlogsumexp(behind.a), jax.lax.cumlogsumexp(jnp.where(i == 0, -jnp.inf, ahead.a))


def log_densities(
    ahead: Seen, sides: tuple[Array, Array], length: Int[Array, ""], burn_in: int = 0
) -> Float[Array, " n"]:
    """Densities log q_N(s_i) − log aux(s_i) along one orbit, b ≤ i < N; what lies beyond means nothing."""
    past, future = sides
    i = jnp.arange(ahead.a.shape[0])
    window = jnp.logaddexp(past[jnp.clip(length - 1 - i, 0)], future[jnp.clip(i - burn_in, 0)])
    return window - ahead.b - jnp.log((length - burn_in).astype(window.dtype))
