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
from jaxtyping import Array, Float, PRNGKeyArray

LogDensity = Callable[[Float[Array, " d"]], Float[Array, ""]]
DIVERGENT = 1000.0
"""Energy error beyond which a trajectory has diverged, as in Stan."""


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
        """T of one state and T⁻¹ of another; side by side where that is faster."""
        return self.forward(front, log_density), self.inverse(back, log_density)

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


def side_by_side(f: Callable[..., Any], one: tuple, two: tuple) -> tuple[Any, Any]:
    """Values of f at two tuples of arguments, as a batch: a loop over few numbers costs as much for twice as many."""
    out = jax.vmap(f)(*jax.tree.map(lambda a, b: jnp.stack([a, b]), one, two))
    return jax.tree.map(lambda x: x[0], out), jax.tree.map(lambda x: x[1], out)


def clip_unit(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Into [ε/2, 1 − ε/2], where quantiles are finite: p mod 1 can be 0."""
    eps = jnp.finfo(p.dtype).eps
    return jnp.clip(p, eps / 2, 1 - eps / 2)


def normal_cdf(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Φ(z), with all digits in the left tail, by one special function where `jax.scipy.special.ndtr` takes two."""
    return 0.5 * erfc(-z * 2.0**-0.5)


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
    if num_steps == 1:
        p = momentum + 0.5 * step * at.gradient
        there = phase(at.x + step * velocity(p), log_density)
        return there, p + 0.5 * step * there.gradient
    gradient = jax.grad(log_density)

    def one(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, p, _ = carry
        x = x + step * velocity(p)
        g = gradient(x)
        return x, p + step * g, g

    begin = (at.x, momentum + 0.5 * step * at.gradient, at.gradient)
    x, p, g = jax.lax.fori_loop(0, num_steps, one, begin)
    # Only the last log density is wanted: a sum at each step would cost more than the step where gradients are cheap.
    return Phase(x, log_density(x), g), p - 0.5 * step * g
