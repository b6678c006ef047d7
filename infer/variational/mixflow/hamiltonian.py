"""The first paper's map: Hamiltonian dynamics without a Metropolis test, with a deterministic refreshment.

Xu, Chen & Campbell (2023), "MixFlows: principled variational inference via mixed flows", ICML, arXiv:2205.07475.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .maps import (
    AbstractMap,
    LogDensity,
    Moved,
    Phase,
    choose,
    clip_unit,
    leapfrog,
    log_normal,
    normal_cdf,
    normal_quantile,
    phase,
    side_by_side,
)


class HamiltonianState(NamedTuple):
    """x, a momentum ρ, and the phase u of the refreshment, as u₀ and the number of maps, so that it never drifts."""

    at: Phase
    rho: Float[Array, " d"]
    u0: Float[Array, ""]
    count: Int[Array, ""]


class HamiltonianMap(AbstractMap):
    """Leapfrog without a Metropolis test, then a deterministic refreshment of the momentum.

    Coordinate i is refreshed by ρ_i ← R⁻¹((R(ρ_i) + g(x_i, u_i)) mod 1) with R the momentum's distribution function
    and u_i = u + i π/16, so that a sweep is parallel over coordinates. The target is preserved up to the energy error,
    and the bound falls again beyond some length.

    Parameters
    ----------
    step_size, scale, num_leapfrog
        As in `InvolutiveMap`.
    momentum
        ``"gaussian"``, or ``"laplace"``: inverts with fewer lost digits, but its velocity has kinks.
    shift
        g: ``"stream"`` (½ sin(2x + u) + ½), or a number in (0, 1), irrational.
    """

    step_size: Any
    scale: Float[Array, " d"]
    num_leapfrog: int = eqx.field(static=True, default=20)
    momentum: str = eqx.field(static=True, default="gaussian")
    shift: Any = eqx.field(static=True, default="stream")

    measure_preserving: ClassVar[bool] = False

    def start(self, key: PRNGKeyArray, x: Float[Array, " d"], log_density: LogDensity) -> HamiltonianState:
        """ρ from its density, u uniform."""
        one, two = jax.random.split(key)
        draw = jax.random.laplace if self.momentum == "laplace" else jax.random.normal
        rho, u0 = draw(one, x.shape, x.dtype), jax.random.uniform(two, (), x.dtype)
        return HamiltonianState(phase(x, log_density), rho, u0, jnp.zeros((), jnp.int32))

    def forward(self, state: HamiltonianState, log_density: LogDensity, shift: Any = None) -> Moved:
        """Leapfrog, then refresh; log|det| = Σ log m(before) − log m(after)."""
        return self._refreshed(state, *self._leapfrog(state.at, state.rho, log_density, 1.0), shift)

    def inverse(self, state: HamiltonianState, log_density: LogDensity, shift: Any = None) -> Moved:
        """Refresh backwards, then leapfrog with the step reversed."""
        rho = self._unrefreshed(state, shift)
        return self._undone(state, rho, *self._leapfrog(state.at, rho, log_density, -1.0))

    def both(self, front: HamiltonianState, back: HamiltonianState, log_density: LogDensity) -> tuple[Moved, Moved]:
        """All leapfrogs in one batch."""
        rho = jax.vmap(lambda state: self._unrefreshed(state, None))(back)
        run = lambda at, rho, sign: self._leapfrog(at, rho, log_density, sign)  # noqa: E731
        there = jnp.ones(len(rho), rho.dtype)
        ahead, behind = side_by_side(run, (front.at, front.rho, there), (back.at, rho, -there))
        refreshed = jax.vmap(lambda state, end: self._refreshed(state, *end, None))(front, ahead)
        return refreshed, jax.vmap(lambda state, rho, end: self._undone(state, rho, *end))(back, rho, behind)

    def either(
        self, state: HamiltonianState, ahead: Bool[Array, ""], log_density: LogDensity, shift: Any = None
    ) -> Moved:
        """One leapfrog serves both ways."""
        rho = jnp.where(ahead, state.rho, self._unrefreshed(state, shift))
        at, moved = self._leapfrog(state.at, rho, log_density, jnp.where(ahead, 1.0, -1.0).astype(rho.dtype))
        return choose(ahead, self._refreshed(state, at, moved, shift), self._undone(state, rho, at, moved))

    def _refreshed(self, state: HamiltonianState, at: Phase, rho: Array, shift: Array | None) -> Moved:
        """T(s), given where its leapfrog ends."""
        fresh = self.quantile((self.cdf(rho) + self.shifts(at.x, state.u0, state.count, shift)) % 1.0)
        log_det = self.log_momentum(rho) - self.log_momentum(fresh)
        new = HamiltonianState(at, fresh, state.u0, state.count + 1)
        return Moved(new, log_det, self._error(state.at, state.rho, at, rho))

    def _unrefreshed(self, state: HamiltonianState, shift: Array | None) -> Float[Array, " d"]:
        """The momentum before its refreshment."""
        return self.quantile((self.cdf(state.rho) - self.shifts(state.at.x, state.u0, state.count - 1, shift)) % 1.0)

    def _undone(self, state: HamiltonianState, rho: Array, at: Phase, before: Array) -> Moved:
        """T⁻¹(s), given the momentum before its refreshment and where the leapfrog from there leads."""
        log_det = self.log_momentum(rho) - self.log_momentum(state.rho)
        old = HamiltonianState(at, before, state.u0, state.count - 1)
        return Moved(old, log_det, self._error(at, before, state.at, rho))

    def _leapfrog(self, at: Phase, rho: Array, log_density: LogDensity, sign: Any) -> tuple[Phase, Array]:
        return leapfrog(at, rho, self.velocity, log_density, sign * self.step_size * self.scale, self.num_leapfrog)

    def _error(self, before: Phase, rho: Array, after: Phase, moved: Array) -> Array:
        return before.log_density + self.log_momentum(rho) - after.log_density - self.log_momentum(moved)

    def log_auxiliary(self, state: HamiltonianState) -> Float[Array, ""]:
        """That of the momentum, log m(ρ); u is uniform."""
        return self.log_momentum(state.rho)

    def auxiliary(self, state: HamiltonianState) -> dict[str, Array]:
        """``momentum`` (d,), and ``phase``, a scalar: u as it is after this many maps."""
        moves = state.count * state.rho.shape[-1]
        return {"momentum": state.rho, "phase": (state.u0 + moves * (jnp.pi / 16)) % 1.0}

    def state(self, x: Float[Array, " d"], auxiliary: dict[str, Array], log_density: LogDensity) -> HamiltonianState:
        """The inverse of `auxiliary`, with the count begun anew."""
        zero = jnp.zeros((), jnp.int32)
        return HamiltonianState(phase(x, log_density), auxiliary["momentum"], auxiliary["phase"], zero)

    @property
    def gradients(self) -> int:
        """One per leapfrog step."""
        return self.num_leapfrog

    def shifts(self, x: Float[Array, " d"], u0: Float[Array, ""], count: Int[Array, ""], given: Any) -> Array:
        """The shift g of each coordinate, in [0, 1]."""
        if given is not None:
            return given[:-1]
        if self.shift != "stream":
            return jnp.full_like(x, self.shift)
        index = count * x.shape[0] + jnp.arange(x.shape[0])
        u = (u0 + index * (jnp.pi / 16)) % 1.0
        return 0.5 * jnp.sin(2.0 * x + u) + 0.5

    def velocity(self, rho: Float[Array, " d"]) -> Float[Array, " d"]:
        """−∇ log m(ρ)."""
        return jnp.sign(rho) if self.momentum == "laplace" else rho

    def log_momentum(self, rho: Float[Array, " d"]) -> Float[Array, ""]:
        """Sum over coordinates of log m(ρ_i)."""
        if self.momentum == "laplace":
            return -jnp.sum(jnp.abs(rho)) - rho.shape[-1] * jnp.log(2.0)
        return log_normal(rho)

    def cdf(self, rho: Float[Array, " d"]) -> Float[Array, " d"]:
        """R(ρ)."""
        if self.momentum == "laplace":
            return 0.5 - 0.5 * jnp.sign(rho) * jnp.expm1(-jnp.abs(rho))
        return normal_cdf(rho)

    def quantile(self, p: Float[Array, " d"]) -> Float[Array, " d"]:
        """R⁻¹(p)."""
        p = clip_unit(p)
        if self.momentum == "laplace":
            return jnp.sign(0.5 - p) * jnp.log1p(-2.0 * jnp.abs(p - 0.5))
        return normal_quantile(p)
