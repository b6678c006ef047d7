"""What the maps of a MixFlow share: points, the leapfrog, and the interface of an invertible map.

A map acts on a state, the parameters x with auxiliary variables, and must be ergodic for the augmented target
π̄(s) = π(x) aux(s) or nearly so. `InvolutiveMap` preserves π̄ exactly; `HamiltonianMap` up to the energy error of its
leapfrog, and needs its log-Jacobian.

All act on one point; use `jax.vmap`. Every auxiliary variable has a density on its own: standard normal or Laplace
momenta, and uniforms on [0, 1), whose log density is 0. A leapfrog step costs one gradient and 4 d multiplications.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import erfc
from jaxtyping import Array, Bool, Float, PRNGKeyArray

LogDensity = Callable[[Float[Array, " d"]], Float[Array, ""]]
DIVERGENT = 1000.0
"""Energy error beyond which a trajectory has diverged, as in Stan."""

# Coefficients of AS 241, the highest power first: numerator and denominator for |p − ½| ≤ 0.425, and beyond.
CENTRAL_ABOVE = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080,
)  # fmt: skip
CENTRAL_BELOW = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
)  # fmt: skip
TAIL_ABOVE = (
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258,
    3.64784832476320460504, 5.76949722146069140550, 4.63033784615654529590, 1.42343711074968357734,
)  # fmt: skip
TAIL_BELOW = (
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940, 2.05319162663775882187, 1.0,
)  # fmt: skip


class Moved(NamedTuple):
    """Where a map leads.

    Parameters
    ----------
    state
        T(s), or T⁻¹(s).
    log_det
        log|det ∂T/∂s| of the forward map, at s or at T⁻¹(s).
    energy_error
        Of the leapfrog: log π̄ before it minus log π̄ after it; a move is accepted with probability min(1, e^−this).
    """

    state: Any
    log_det: Float[Array, ""]
    energy_error: Float[Array, ""]


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
    def forward(self, state: Any, log_density: LogDensity, shift: Float[Array, " e"] | None = None) -> Moved:
        """T(s); with ``shift``, d + 1 numbers in [0, 1), that of the map with these shifts in place of its own."""

    @abc.abstractmethod
    def inverse(self, state: Any, log_density: LogDensity, shift: Float[Array, " e"] | None = None) -> Moved:
        """The inverse, T⁻¹(s)."""

    def both(self, front: Any, back: Any, log_density: LogDensity) -> tuple[Moved, Moved]:
        """T of one batch of states and T⁻¹ of another; side by side where that is faster."""
        ahead = jax.vmap(lambda state: self.forward(state, log_density))(front)
        return ahead, jax.vmap(lambda state: self.inverse(state, log_density))(back)

    def either(
        self, state: Any, ahead: Bool[Array, ""], log_density: LogDensity, shift: Float[Array, " e"] | None = None
    ) -> Moved:
        """T(s) where ``ahead``, else T⁻¹(s); for the price of one where that is possible."""
        there, back = self.forward(state, log_density, shift), self.inverse(state, log_density, shift)
        return choose(ahead, there, back)

    @abc.abstractmethod
    def log_auxiliary(self, state: Any) -> Float[Array, ""]:
        """Log density of the auxiliary variables."""

    @abc.abstractmethod
    def auxiliary(self, state: Any) -> dict[str, Array]:
        """The auxiliary variables by name."""

    @abc.abstractmethod
    def state(self, x: Float[Array, " d"], auxiliary: dict[str, Array], log_density: LogDensity) -> Any:
        """The state of ``x`` and auxiliary variables by name; the inverse of `auxiliary`."""

    @property
    @abc.abstractmethod
    def gradients(self) -> int:
        """Gradients (or densities, where there are none) that an application costs."""


class Phase(NamedTuple):
    """A point of the sampler's space: x with the log density and its gradient there."""

    x: Float[Array, " d"]
    log_density: Float[Array, ""]
    gradient: Float[Array, " d"]


def phase(x: Float[Array, " d"], log_density: LogDensity) -> Phase:
    """The point x with what is known there."""
    return Phase(x, *jax.value_and_grad(log_density)(x))


def choose(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """One of two pytrees."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), yes, no)


def side_by_side(f: Callable[..., Any], one: tuple, two: tuple) -> tuple[Any, Any]:
    """Values of f at two batches of arguments, as one batch: a loop over few numbers costs as much for twice as many.

    One axis, not two: XLA's loops over a short inner batch are half as fast.
    """
    n = len(jax.tree.leaves(one)[0])
    out = jax.vmap(f)(*jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, two))
    return jax.tree.map(lambda x: x[:n], out), jax.tree.map(lambda x: x[n:], out)


def clip_unit(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Into [ε/2, 1 − ε/2], where quantiles are finite: p mod 1 can be 0."""
    eps = jnp.finfo(p.dtype).eps
    return jnp.clip(p, eps / 2, 1 - eps / 2)


def normal_cdf(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Φ(z), with all digits in the left tail, by one special function where `jax.scipy.special.ndtr` takes two."""
    return 0.5 * erfc(-z * 2.0**-0.5)


def normal_quantile(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Φ⁻¹(p) for p in [ε/2, 1 − ε/2], to 1e-14, and to 5e-12 below 1e-11.

    Two of the three rational functions of Wichura (1988), algorithm AS 241; in 1.1e-16 ≤ p < 1.4e-11 the second serves
    for the third. Half the time of `jax.scipy.special.ndtri`, the dearest part of a map where gradients are cheap.
    """
    q = p - 0.5
    central = jnp.abs(q) <= 0.425
    square = 0.180625 - q * q
    tail = jnp.sqrt(-jnp.log(jnp.minimum(p, 1.0 - p))) - 1.6
    above = jnp.where(central, q * _polynomial(CENTRAL_ABOVE, square), jnp.sign(q) * _polynomial(TAIL_ABOVE, tail))
    return above / jnp.where(central, _polynomial(CENTRAL_BELOW, square), _polynomial(TAIL_BELOW, tail))


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Horner's scheme, the highest power first."""
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def log_normal(v: Float[Array, " d"]) -> Float[Array, ""]:
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(v**2) - 0.5 * v.shape[-1] * jnp.log(2 * jnp.pi)


def leapfrog(
    at: Phase,
    momentum: Float[Array, " d"],
    velocity: Callable[[Array], Array],
    log_density: LogDensity,
    step: Float[Array, " d"],
    num_steps: int,
) -> tuple[Phase, Float[Array, " d"]]:
    """``num_steps`` leapfrog steps, one gradient each, with the half kicks between steps joined.

    Parameters
    ----------
    velocity
        Gradient of the kinetic energy.
    step
        ε, shape (d,); negative to go back.
    """

    def one(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, p = carry
        x = x + step * velocity(p)
        return x, p + step * gradient(x)

    gradient = jax.grad(log_density)
    begin = (at.x, momentum + 0.5 * step * at.gradient)
    x, p = jax.lax.fori_loop(0, num_steps - 1, one, begin) if num_steps > 1 else begin
    # Only the last log density is wanted: a sum at each step would cost more than the step where gradients are cheap.
    there = phase(x + step * velocity(p), log_density)
    return there, p + 0.5 * step * there.gradient
