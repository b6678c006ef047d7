"""Invertible maps whose orbits a MixFlow mixes: involutive MCMC kernels, and uncorrected Hamiltonian dynamics.

A map acts on a state, the parameters x with auxiliary variables, and must be ergodic for the augmented target
π̄(s) = π(x) aux(s) or nearly so. `InvolutiveMap` preserves π̄ exactly; `HamiltonianMap` up to the energy error of its
leapfrog, and needs its log-Jacobian.

All act on one point; use `jax.vmap`. Every auxiliary variable has a density on its own: standard normal or Laplace
momenta, and uniforms on [0, 1), whose log density is 0.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Int, PRNGKeyArray

LogDensity = Callable[[Float[Array, " d"]], Float[Array, ""]]


class AbstractMap(eqx.Module):
    """An invertible map T of the augmented space; a pytree.

    Attributes
    ----------
    measure_preserving
        Whether T preserves π̄ exactly, so that log|det ∂T/∂s| = log π̄(s) − log π̄(T s).
    scale
        Of the coordinates: lengths are in units of it, shape (d,).
    """

    measure_preserving: ClassVar[bool]
    scale: eqx.AbstractVar[Float[Array, " d"]]

    @abc.abstractmethod
    def start(self, key: PRNGKeyArray, x: Float[Array, " d"], log_density: LogDensity) -> Any:
        """A state at ``x`` with auxiliary variables drawn from their density."""

    @abc.abstractmethod
    def forward(self, state: Any, log_density: LogDensity) -> tuple[Any, Float[Array, ""]]:
        """T(s) and log|det ∂T/∂s|."""

    @abc.abstractmethod
    def inverse(self, state: Any, log_density: LogDensity) -> tuple[Any, Float[Array, ""]]:
        """The inverse, T⁻¹(s'), and log|det ∂T/∂s| of the forward map there."""

    @abc.abstractmethod
    def log_auxiliary(self, state: Any) -> Float[Array, ""]:
        """Log density of the auxiliary variables."""

    @property
    @abc.abstractmethod
    def gradients(self) -> int:
        """Gradients that an application costs."""


class Phase(NamedTuple):
    """A point of the sampler's space: x with the log density and its gradient there."""

    x: Float[Array, " d"]
    log_density: Float[Array, ""]
    gradient: Float[Array, " d"]


def phase(x: Float[Array, " d"], log_density: LogDensity) -> Phase:
    """The point x with what is known there."""
    return Phase(x, *jax.value_and_grad(log_density)(x))


def clip_unit(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Into [ε/2, 1 − ε/2], where quantiles are finite: p mod 1 can be 0."""
    eps = jnp.finfo(p.dtype).eps
    return jnp.clip(p, eps / 2, 1 - eps / 2)


# -- involutive MCMC --------------------------------------------------------------------------------------------------


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
    a ≤ r, and then a' = a / r, with r the ratio of π(x) N(v). Its inverse needs r alone to tell what had been accepted
    (Xu & Campbell 2025, arXiv:2506.02162).

    Parameters
    ----------
    step_size
        ε, in units of ``scale``.
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

    def forward(self, state: InvolutiveState, log_density: LogDensity) -> tuple[InvolutiveState, Float[Array, ""]]:
        """Shift, swap, propose, accept or not."""
        w, a = (state.w + self.shift_w) % 1.0, (state.a + self.shift_a) % 1.0
        v = ndtri(clip_unit(w))
        there, flipped = self.involution(state.at, v, log_density)
        log_r = _joint(there, flipped) - _joint(state.at, v)
        accept = jnp.log(a) <= log_r
        at, momentum = _select(accept, (there, flipped), (state.at, v))
        new = InvolutiveState(at, momentum, ndtr(state.v), jnp.where(accept, a * jnp.exp(-log_r), a))
        return new, _joint(state.at, state.v) - _joint(at, momentum)

    def inverse(self, state: InvolutiveState, log_density: LogDensity) -> tuple[InvolutiveState, Float[Array, ""]]:
        """The involution again; its ratio tells whether the move had been accepted."""
        there, flipped = self.involution(state.at, state.v, log_density)
        log_r = _joint(state.at, state.v) - _joint(there, flipped)
        accepted = jnp.log(state.a) + log_r <= 0
        at, v = _select(accepted, (there, flipped), (state.at, state.v))
        a = jnp.where(accepted, state.a * jnp.exp(log_r), state.a)
        before = ndtri(clip_unit(state.w))
        old = InvolutiveState(at, before, (ndtr(v) - self.shift_w) % 1.0, (a - self.shift_a) % 1.0)
        return old, _joint(at, before) - _joint(state.at, state.v)

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
        return _log_normal(state.v)

    @property
    def gradients(self) -> int:
        """One per leapfrog step; a random walk takes a density instead."""
        return self.num_leapfrog if self.kernel == "hmc" else 1


def _joint(at: Phase, v: Array) -> Array:
    return at.log_density + _log_normal(v)


def _log_normal(v: Array) -> Array:
    return -0.5 * jnp.sum(v**2) - 0.5 * v.shape[-1] * jnp.log(2 * jnp.pi)


def _select(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def leapfrog(
    at: Phase,
    momentum: Float[Array, " d"],
    velocity: Callable[[Array], Array],
    log_density: LogDensity,
    step: Float[Array, " d"],
    num_steps: int,
) -> tuple[Phase, Float[Array, " d"]]:
    """``num_steps`` leapfrog steps, one gradient each; ``velocity`` is the gradient of the kinetic energy."""

    def one(_: Array, both: tuple[Phase, Array]) -> tuple[Phase, Array]:
        at, p = both
        p = p + 0.5 * step * at.gradient
        at = phase(at.x + step * velocity(p), log_density)
        return at, p + 0.5 * step * at.gradient

    return jax.lax.fori_loop(0, num_steps, one, (at, momentum))


# -- uncorrected Hamiltonian dynamics ---------------------------------------------------------------------------------


class HamiltonianState(NamedTuple):
    """x, a momentum ρ, and the phase u of the refreshment, as u₀ and the number of maps, so that it never drifts."""

    at: Phase
    rho: Float[Array, " d"]
    u0: Float[Array, ""]
    count: Int[Array, ""]


class HamiltonianMap(AbstractMap):
    """Leapfrog without a Metropolis test, then a deterministic refreshment of the momentum (Xu, Chen & Campbell 2023).

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
        g: ``"stream"`` (½ sin(2x + u) + ½), or a number in (0, 1).
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

    def forward(self, state: HamiltonianState, log_density: LogDensity) -> tuple[HamiltonianState, Float[Array, ""]]:
        """Leapfrog, then refresh; log|det| = Σ log m(before) − log m(after)."""
        at, rho = leapfrog(
            state.at, state.rho, self.velocity, log_density, self.step_size * self.scale, self.num_leapfrog
        )
        fresh = self.quantile((self.cdf(rho) + self.shifts(at.x, state.u0, state.count)) % 1.0)
        log_det = self.log_momentum(rho) - self.log_momentum(fresh)
        return HamiltonianState(at, fresh, state.u0, state.count + 1), log_det

    def inverse(self, state: HamiltonianState, log_density: LogDensity) -> tuple[HamiltonianState, Float[Array, ""]]:
        """Refresh backwards, then leapfrog with the step reversed."""
        count = state.count - 1
        rho = self.quantile((self.cdf(state.rho) - self.shifts(state.at.x, state.u0, count)) % 1.0)
        log_det = self.log_momentum(rho) - self.log_momentum(state.rho)
        at, before = leapfrog(
            state.at, rho, self.velocity, log_density, -self.step_size * self.scale, self.num_leapfrog
        )
        return HamiltonianState(at, before, state.u0, count), log_det

    def log_auxiliary(self, state: HamiltonianState) -> Float[Array, ""]:
        """That of the momentum, log m(ρ); u is uniform."""
        return self.log_momentum(state.rho)

    @property
    def gradients(self) -> int:
        """One per leapfrog step."""
        return self.num_leapfrog

    def shifts(self, x: Float[Array, " d"], u0: Float[Array, ""], count: Int[Array, ""]) -> Float[Array, " d"]:
        """The shift g of each coordinate, in [0, 1]."""
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
        return _log_normal(rho)

    def cdf(self, rho: Float[Array, " d"]) -> Float[Array, " d"]:
        """R(ρ)."""
        if self.momentum == "laplace":
            return 0.5 - 0.5 * jnp.sign(rho) * jnp.expm1(-jnp.abs(rho))
        return ndtr(rho)

    def quantile(self, p: Float[Array, " d"]) -> Float[Array, " d"]:
        """R⁻¹(p)."""
        p = clip_unit(p)
        if self.momentum == "laplace":
            return jnp.sign(0.5 - p) * jnp.log1p(-2.0 * jnp.abs(p - 0.5))
        return ndtri(p)
