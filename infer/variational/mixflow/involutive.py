"""Involutive MCMC kernels as maps: Hamiltonian Monte Carlo, MALA and random walks that can be run backwards.

Xu & Campbell (2025), "Asymptotically exact variational flows via involutive MCMC kernels", arXiv:2506.02162.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

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


class InvolutiveState(NamedTuple):
    """x, a momentum v, and uniforms w (of the next momentum) and a (of the next acceptance).

    Parameters
    ----------
    at
        x with its log density and gradient.
    v, w
        Shape (d,).
    a
        Scalar.
    """

    at: Phase
    v: Float[Array, " d"]
    w: Float[Array, " d"]
    a: Float[Array, ""]


class InvolutiveMap(AbstractMap):
    """An MCMC kernel as a deterministic map that preserves π(x) N(v; 0, I) U(w) U(a) exactly.

    w ← w + θ_w, a ← a + θ_a (mod 1); swap v and w through Φ; propose (x', v') by an involution of (x, ṽ); accept if
    a ≤ r, and then a' = a / r, with r the ratio of π(x) N(v). Its inverse needs r alone to tell what had been accepted.
    A proposal that is not finite is rejected, in both directions.

    Parameters
    ----------
    step_size
        ε, in units of ``scale``; a number, or one per coordinate.
    scale
        Shape (d,).
    kernel
        ``"hmc"`` (leapfrog, momentum flipped), ``"mala"`` (one leapfrog step) or ``"rwmh"`` (x + ε v, no gradient).
    num_leapfrog
        L, for ``"hmc"``.
    shift_w, shift_a
        θ_w (a number or one per coordinate) and θ_a in (0, 1); irrational, or the orbit is periodic.
    """

    step_size: Any
    scale: Float[Array, " d"]
    kernel: str = eqx.field(static=True, default="hmc")
    num_leapfrog: int = eqx.field(static=True, default=20)
    shift_w: Any = jnp.pi / 8
    shift_a: Any = jnp.pi / 7

    measure_preserving: ClassVar[bool] = True

    def start(self, key: PRNGKeyArray, x: Float[Array, " d"], log_density: LogDensity) -> InvolutiveState:
        """Draws v ~ N(0, I), and w and a uniform."""
        keys = jax.random.split(key, 3)
        v = jax.random.normal(keys[0], x.shape, x.dtype)
        w = jax.random.uniform(keys[1], x.shape, x.dtype)
        return InvolutiveState(phase(x, log_density), v, w, jax.random.uniform(keys[2], (), x.dtype))

    def forward(self, state: InvolutiveState, log_density: LogDensity, shift: Any = None) -> Moved:
        """Shift, swap, propose, accept or not."""
        v = self._refreshed(state, shift)
        return self._accepted(state, v, *self.involution(state.at, v, log_density), shift)

    def inverse(self, state: InvolutiveState, log_density: LogDensity, shift: Any = None) -> Moved:
        """The involution again; its ratio tells whether the move had been accepted."""
        return self._undone(state, *self.involution(state.at, state.v, log_density), shift)

    def both(self, front: InvolutiveState, back: InvolutiveState, log_density: LogDensity) -> tuple[Moved, Moved]:
        """All proposals in one batch."""
        v = jax.vmap(lambda state: self._refreshed(state, None))(front)
        propose = lambda at, v: self.involution(at, v, log_density)  # noqa: E731
        ahead, behind = side_by_side(propose, (front.at, v), (back.at, back.v))
        accepted = jax.vmap(lambda state, v, proposal: self._accepted(state, v, *proposal, None))(front, v, ahead)
        return accepted, jax.vmap(lambda state, proposal: self._undone(state, *proposal, None))(back, behind)

    def either(
        self, state: InvolutiveState, ahead: Bool[Array, ""], log_density: LogDensity, shift: Any = None
    ) -> Moved:
        """One proposal serves both ways."""
        v = jnp.where(ahead, self._refreshed(state, shift), state.v)
        proposal = self.involution(state.at, v, log_density)
        return choose(ahead, self._accepted(state, v, *proposal, shift), self._undone(state, *proposal, shift))

    def _refreshed(self, state: InvolutiveState, shift: Array | None) -> Float[Array, " d"]:
        """The momentum of the next proposal."""
        return normal_quantile(clip_unit((state.w + self._shifts(shift)[0]) % 1.0))

    def _accepted(self, state: InvolutiveState, v: Array, there: Phase, flipped: Array, shift: Array | None) -> Moved:
        """T(s), given its proposal."""
        a = (state.a + self._shifts(shift)[1]) % 1.0
        log_r = _joint(there, flipped) - _joint(state.at, v)
        accept = jnp.log(a) <= log_r
        at, momentum = choose(accept, (there, flipped), (state.at, v))
        new = InvolutiveState(at, momentum, normal_cdf(state.v), jnp.where(accept, a * jnp.exp(-log_r), a))
        return Moved(new, _joint(state.at, state.v) - _joint(at, momentum), -log_r)

    def _undone(self, state: InvolutiveState, there: Phase, flipped: Array, shift: Array | None) -> Moved:
        """T⁻¹(s), given its proposal."""
        shift_w, shift_a = self._shifts(shift)
        log_r = _joint(state.at, state.v) - _joint(there, flipped)
        accepted = jnp.log(state.a) + log_r <= 0
        at, v = choose(accepted, (there, flipped), (state.at, state.v))
        a = jnp.where(accepted, state.a * jnp.exp(log_r), state.a)
        before = normal_quantile(clip_unit(state.w))
        old = InvolutiveState(at, before, (normal_cdf(v) - shift_w) % 1.0, (a - shift_a) % 1.0)
        error = jnp.where(accepted, -log_r, log_r)
        return Moved(old, _joint(at, before) - _joint(state.at, state.v), error)

    def involution(self, at: Phase, v: Float[Array, " d"], log_density: LogDensity) -> tuple[Phase, Float[Array, " d"]]:
        """The proposal; applied twice it leads back, and it preserves volume."""
        step = self.step_size * self.scale
        if self.kernel == "rwmh":
            x = at.x + step * v
            return Phase(x, log_density(x), at.gradient), -v
        there, moved = leapfrog(at, v, lambda p: p, log_density, step, self.num_leapfrog if self.kernel == "hmc" else 1)
        return there, -moved

    def log_auxiliary(self, state: InvolutiveState) -> Float[Array, ""]:
        """That of the momentum, log N(v; 0, I); w and a are uniform."""
        return log_normal(state.v)

    def auxiliary(self, state: InvolutiveState) -> dict[str, Array]:
        """``momentum`` and ``uniform`` (d,), and ``acceptance``, a scalar."""
        return {"momentum": state.v, "uniform": state.w, "acceptance": state.a}

    def state(self, x: Float[Array, " d"], auxiliary: dict[str, Array], log_density: LogDensity) -> InvolutiveState:
        """The inverse of `auxiliary`."""
        parts = (auxiliary[name] for name in ("momentum", "uniform", "acceptance"))
        return InvolutiveState(phase(x, log_density), *parts)

    @property
    def gradients(self) -> int:
        """One per leapfrog step; a random walk takes a density instead."""
        return self.num_leapfrog if self.kernel == "hmc" else 1

    def _shifts(self, shift: Array | None) -> tuple[Any, Any]:
        return (self.shift_w, self.shift_a) if shift is None else (shift[:-1], shift[-1])


def _joint(at: Phase, v: Array) -> Array:
    return at.log_density + log_normal(v)
