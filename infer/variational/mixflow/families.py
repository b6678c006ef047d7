"""The four mixtures of a MixFlow: their draws with densities, and densities at given points in O(1) memory.

With maps T_n (n ≥ 1; one map T for all n, or the same kernel with shifts drawn once for each n), q_N is the uniform
mixture over b ≤ n < N of the push-forwards of q₀ by

    homogeneous    Tⁿ                     density N − 1 inverse maps
    backward_irf   T_1 ∘ T_2 ∘ … ∘ T_n    density N − 1 inverse maps: the component n is one map on from n − 1
    forward_irf    T_n ∘ … ∘ T_2 ∘ T_1    density N (N − 1) / 2 inverse maps, every component by itself
    ensemble       T_{N−1,m} ∘ … ∘ T_{1,m}, a mixture over m < M sequences; density M (N − 1) inverse maps

(Xu & Campbell 2025, arXiv:2506.02162.) Random maps need a kernel that is irreducible, not a map that is ergodic.

Of a draw by the first two, s = T_1 ⋯ T_K s₀, all that the inverse pass from s would meet is known: the points between
s₀ and s, and what lies behind s₀. So a draw with its density costs N − 1 maps, and no draw is inverted. Draws of a
batch differ in K: they run on and back in one loop, as two would cost the largest K and N − 1 less the smallest.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .maps import AbstractMap, LogDensity, Moved, choose
from .orbit import Reference, Tally, look, no_maps, start

FAMILIES = ("homogeneous", "backward_irf", "forward_irf", "ensemble")
NESTED = ("homogeneous", "backward_irf")
"""Families of which one inverse pass meets all components."""
AVERAGED = ("homogeneous", "forward_irf")
"""Families of which a trajectory meets all components."""


class Flow(eqx.Module):
    """Which mixture, of which maps.

    Parameters
    ----------
    flow_map, reference
        T and q₀.
    shifts
        Of random maps: d + 1 numbers in [0, 1) for each of the members and each n; None: the map's own for all n.
        A table, since a generator inside of the loops over maps takes minutes to compile.
    family
        One of `FAMILIES`.
    burn_in
        b: the first component of the mixture.
    members
        M, of an ensemble.
    """

    flow_map: AbstractMap
    reference: Reference
    shifts: Float[Array, "m n e"] | None
    family: str = eqx.field(static=True, default="homogeneous")
    burn_in: int = eqx.field(static=True, default=0)
    members: int = eqx.field(static=True, default=1)

    def shift(self, n: Array, member: Any = 0) -> Float[Array, " e"] | None:
        """The shifts of T_n; None: the map's own."""
        return None if self.shifts is None else self.shifts[member, n - 1]

    def components(self, length: Int[Array, ""]) -> Int[Array, ""]:
        """How many are mixed."""
        return jnp.full_like(length, self.members) if self.family == "ensemble" else length - self.burn_in


def random_shifts(key: PRNGKeyArray, reference: Reference, members: int, length: int) -> Float[Array, "m n e"]:
    """Shifts of ``length`` − 1 maps (of one at least) of each member."""
    shape = (members, max(length - 1, 1), reference.loc.shape[0] + 1)
    return jax.random.uniform(key, shape, reference.loc.dtype)


class Walk(NamedTuple):
    """A point, the log-Jacobian from where the walk began, the log sum of a over components met, and what maps cost."""

    state: Any
    log_jacobian: Float[Array, ""]
    total: Float[Array, ""]
    tally: Tally


def begin_walk(state: Any, flow: Flow) -> Walk:
    """At a point, with no component met."""
    zero = jnp.zeros((), flow.reference.loc.dtype)
    return Walk(state, zero, zero - jnp.inf, no_maps((), zero.dtype))


def seen(at: Walk, flow: Flow) -> Float[Array, ""]:
    """The summand a of a component that has its reference here."""
    return look(flow.flow_map, flow.reference, at.state, at.log_jacobian).a


def meet(at: Walk, flow: Flow, counts: Array | bool) -> Walk:
    """The component of this point added, if it counts."""
    return at._replace(total=jnp.logaddexp(at.total, jnp.where(counts, seen(at, flow), -jnp.inf)))


def walk(
    at: Walk,
    steps: Int[Array, ""],
    flow: Flow,
    log_density: LogDensity,
    index: Callable[[Array], Array],
    *,
    ahead: bool,
    member: Any = 0,
    counts: Callable[[Array], Array | bool] | None = None,
) -> Walk:
    """``steps`` maps on, or back.

    Parameters
    ----------
    index
        Of step j = 1, 2, … the n of its map T_n.
    counts
        Of step j whether the point that it leads to is met; None: none is.
    """
    move = flow.flow_map.forward if ahead else flow.flow_map.inverse

    def one(j: Array, at: Walk) -> Walk:
        new = _moved(at, move(at.state, log_density, flow.shift(index(j), member)), flow, 1.0 if ahead else -1.0)
        return new if counts is None else meet(new, flow, counts(j))

    return jax.lax.fori_loop(1, steps + 1, one, at)


def _moved(at: Walk, moved: Moved, flow: Flow, sign: Any) -> Walk:
    """The walk after a map (sign 1) or its inverse (−1)."""
    log_jacobian = at.log_jacobian
    if not flow.flow_map.measure_preserving:
        log_jacobian = log_jacobian + sign * moved.log_det
    return Walk(moved.state, log_jacobian, at.total, at.tally.add(moved.energy_error))


def pull(at: Walk, steps: Int[Array, ""], flow: Flow, log_density: LogDensity, member: Any = 0) -> Float[Array, ""]:
    """The summand a after T_1⁻¹ ∘ … ∘ T_n⁻¹, with n = ``steps``."""
    return seen(walk(at, steps, flow, log_density, lambda j: steps + 1 - j, ahead=False, member=member), flow)


def each_component(
    at: Walk, length: Int[Array, ""], flow: Flow, log_density: LogDensity, own: tuple[Array, Array] | None = None
) -> Float[Array, ""]:
    """The log sum of a over components whose inverse passes share nothing; of ``own``, a component and its a, known."""

    def one(c: Array, total: Array) -> Array:
        if flow.family == "ensemble":
            value = pull(at, length - 1, flow, log_density, c)
        else:
            value = pull(at, c + flow.burn_in, flow, log_density)
        if own is not None:
            value = jnp.where(c == own[0], own[1], value)
        return jnp.logaddexp(total, value)

    return jax.lax.fori_loop(0, flow.components(length), one, at.total)


def log_density_at(state: Any, flow: Flow, log_density: LogDensity, length: Int[Array, ""]) -> Float[Array, ""]:
    """The density log q_N(s) − log aux(s) of any point of the augmented space, by inverse maps in O(1) memory."""
    at = begin_walk(state, flow)
    if flow.family in NESTED:
        met = meet(at, flow, flow.burn_in == 0)
        last = walk(met, length - 1, flow, log_density, lambda j: j, ahead=False, counts=lambda j: j >= flow.burn_in)
        total = last.total
    else:
        total = each_component(at, length, flow, log_density)
    return _normalised(total, at, flow, length)


def _normalised(total: Array, at: Walk, flow: Flow, length: Int[Array, ""]) -> Float[Array, ""]:
    b = look(flow.flow_map, flow.reference, at.state, at.log_jacobian).b
    return total - b - jnp.log(flow.components(length).astype(total.dtype))


class Draw(NamedTuple):
    """A draw, log q_N(s) − log aux(s), and the tally of its maps."""

    state: Any
    log_q: Float[Array, ""]
    tally: Tally


def component(place: Float[Array, ""], length: Int[Array, ""], flow: Flow) -> Int[Array, ""]:
    """The component at this place in [0, 1)."""
    count = flow.components(length)
    return jnp.minimum((place * count).astype(count.dtype), count - 1)


def draw(begin: Any, place: Float[Array, ""], flow: Flow, log_density: LogDensity, length: Int[Array, ""]) -> Draw:
    """The draw from a start and a uniform number, which chooses the component, with its density."""
    c = component(place, length, flow)
    at = begin_walk(begin, flow)
    if flow.family in NESTED:
        there, behind = _on_and_back(meet(at, flow, True), c + flow.burn_in, flow, log_density, length)
        return Draw(there.state, _normalised(behind.total, there, flow, length), behind.tally)
    there = _arrive(at, c, flow, log_density, length)
    total = each_component(there, length, flow, log_density, own=(c, seen(at, flow)))
    return Draw(there.state, _normalised(total, there, flow, length), there.tally)


def _on_and_back(
    begin: Walk, k: Array, flow: Flow, log_density: LogDensity, length: Int[Array, ""]
) -> tuple[Walk, Walk]:
    """Where k maps lead, and the end of N − 1 − k inverse ones from the same start, with all components met."""

    def one(j: Array, carry: tuple[Walk, Walk]) -> tuple[Walk, Walk]:
        at, there = carry
        ahead = j <= k
        at = choose(j == k + 1, begin._replace(total=at.total, tally=at.tally), at)
        moved = flow.flow_map.either(at.state, ahead, log_density, flow.shift(jnp.where(ahead, k + 1 - j, j)))
        at = meet(_moved(at, moved, flow, jnp.where(ahead, 1.0, -1.0)), flow, ~ahead | (k - j >= flow.burn_in))
        return at, choose(ahead, at, there)

    at, there = jax.lax.fori_loop(1, length, one, (begin, begin))
    return there, at


def _arrive(at: Walk, c: Array, flow: Flow, log_density: LogDensity, length: Int[Array, ""]) -> Walk:
    """Where component c leads, with nothing met on the way."""
    if flow.family == "ensemble":
        return walk(at, length - 1, flow, log_density, lambda j: j, ahead=True, member=c)
    k = c + flow.burn_in
    order = (lambda j: j) if flow.family == "forward_irf" else (lambda j: k + 1 - j)
    return walk(at, k, flow, log_density, order, ahead=True)


def maps_per_draw(flow: Flow, length: Int[Array, ""]) -> Int[Array, ""]:
    """What a draw with its density costs in a batch, where each runs as far as the longest."""
    on, burnt = length - 1, flow.burn_in
    if flow.family in NESTED:
        return on
    return on + (flow.members * on if flow.family == "ensemble" else (length * on - burnt * (burnt - 1)) // 2)


def sample(key: PRNGKeyArray, flow: Flow, log_density: LogDensity, length: Int[Array, ""]) -> Draw:
    """One independent draw, with its density."""
    return draw(*begin_draw(key, flow, log_density), flow, log_density, length)


def begin_draw(key: PRNGKeyArray, flow: Flow, log_density: LogDensity) -> tuple[Any, Float[Array, ""]]:
    """The start and the place of a draw."""
    first, second = jax.random.split(key)
    place = jax.random.uniform(second, (), flow.reference.loc.dtype)
    return start(first, flow.flow_map, flow.reference, log_density), place


def average(
    key: PRNGKeyArray, f: Callable[[Array], Any], flow: Flow, log_density: LogDensity, length: Int[Array, ""]
) -> Any:
    """An unbiased estimate of E f(x): the average along a trajectory, or f at one draw where components share none."""
    begin, place = begin_draw(key, flow, log_density)
    at = begin_walk(begin, flow)

    def value(state: Any) -> Any:
        return jax.tree.map(lambda y: jnp.asarray(y, state.at.x.dtype), f(state.at.x))

    if flow.family not in AVERAGED:
        return value(_arrive(at, component(place, length, flow), flow, log_density, length).state)
    at = walk(at, jnp.asarray(flow.burn_in), flow, log_density, lambda j: j, ahead=True)

    def move(j: Array, carry: tuple) -> tuple:
        state, total = carry
        state = flow.flow_map.forward(state, log_density, flow.shift(flow.burn_in + j)).state
        return state, jax.tree.map(jnp.add, total, value(state))

    count = flow.components(length)
    _, total = jax.lax.fori_loop(1, count, move, (at.state, value(at.state)))
    return jax.tree.map(lambda x: x / count, total)
