"""BFGS on a few parameters, one evaluation per call: for objectives that are evaluated inside a compiled loop.

Each call is given value and gradient at the point asked for last and names the next one: the accepted point plus a
fraction of the quasi-Newton direction, halved until the objective rises by at least 1e-4 of what the gradient promises
(Nocedal & Wright 2006, algorithm 6.1 with backtracking; updates without positive curvature are left out).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LONGEST = 1.0
"""Largest change of a parameter in a step: of logarithms, a factor of e."""
ENOUGH = 1e-4
SMALLEST = 1e-3
VAIN, LITTLE = 0.2, 1.0


class Climb(eqx.Module):
    """State: the best point with value and gradient, the inverse Hessian of −objective, and the step being tried.

    Parameters
    ----------
    point, value, gradient
        Of the last point accepted; the value is −∞ before the first.
    inverse
        B, approximately the inverse Hessian of the negative objective.
    direction, size
        The next point asked for is point + size × direction.
    gain
        What the gradient promises of a full step, half of gᵀ B g.
    first
        Whether B is still a multiple of the identity.
    """

    point: Float[Array, " p"]
    value: Float[Array, ""]
    gradient: Float[Array, " p"]
    inverse: Float[Array, "p p"]
    direction: Float[Array, " p"]
    size: Float[Array, ""]
    gain: Float[Array, ""]
    first: Bool[Array, ""]

    @classmethod
    def at(cls, point: Float[Array, " p"]) -> "Climb":
        """Before the first evaluation, which is asked for at ``point``."""
        zero, nothing = jnp.zeros((), point.dtype), jnp.zeros_like(point)
        eye = jnp.eye(point.shape[0], dtype=point.dtype)
        return cls(point, zero - jnp.inf, nothing, eye, nothing, zero, zero + jnp.inf, jnp.ones((), bool))

    def asked(self) -> Float[Array, " p"]:
        """Where value and gradient are wanted next."""
        return self.point + self.size * self.direction

    def told(self, value: Float[Array, ""], gradient: Float[Array, " p"]) -> "Climb":
        """The state after an evaluation there."""
        begins = jnp.isneginf(self.value)
        promised = self.size * jnp.vdot(self.gradient, self.direction)
        rises = jnp.isfinite(value) & (begins | (value >= self.value + ENOUGH * promised))
        step, fall = self.size * self.direction, self.gradient - gradient
        along = jnp.vdot(step, fall)
        useful = rises & ~begins & (along > 1e-10 * jnp.linalg.norm(step) * jnp.linalg.norm(fall))
        safe = jnp.where(useful, along, 1.0)
        square = jnp.vdot(fall, fall)
        scaled = jnp.where(self.first & useful, along / jnp.where(square > 0, square, 1.0), 1.0) * jnp.eye(len(step))
        base = jnp.where(self.first & useful, scaled, self.inverse)
        left = jnp.eye(len(step)) - jnp.outer(step, fall) / safe
        inverse = jnp.where(useful, left @ base @ left.T + jnp.outer(step, step) / safe, self.inverse)
        point = jnp.where(rises, self.asked(), self.point)
        kept, slope = jnp.where(rises, value, self.value), jnp.where(rises, gradient, self.gradient)
        direction = inverse @ slope
        gain = 0.5 * jnp.vdot(slope, direction)
        longest = jnp.max(jnp.abs(direction), initial=0.0)
        direction = direction * jnp.minimum(1.0, LONGEST / jnp.maximum(longest, 1e-300))
        size = jnp.where(rises, jnp.ones_like(self.size), 0.5 * self.size)
        first = self.first & ~useful
        return Climb(point, kept, slope, inverse, direction, size, gain, first)

    def arrived(self, tolerance: Float[Array, ""] | float) -> Bool[Array, ""]:
        """Whether a further step promises less than ``tolerance``, or none rises any more.

        With factors that are not quite optimal, the gradient is not quite that of the value: where little is left to
        gain, a few vain halvings are the end too.
        """
        vain = (self.size < SMALLEST) | ((self.size < VAIN) & (self.gain < LITTLE))
        return (self.gain < tolerance) | (vain & ~jnp.isneginf(self.value))

    def anew(self) -> "Climb":
        """The same knowledge for an objective that has changed a little: the accepted point is asked for again."""
        zero = jnp.zeros_like(self.value)
        return Climb(
            self.point, zero - jnp.inf, self.gradient, self.inverse, jnp.zeros_like(self.point), zero, zero + jnp.inf,
            self.first,
        )  # fmt: skip
