"""The base of mirrors that act on each coordinate by itself: φ(x) = Σᵢ φᵢ(xᵢ).

A class writes four scalar functions, applied to arrays entry by entry; all else follows. Second derivatives are
written as log φ*''(y) = −log φ''(x), a function of the dual, which is finite where 1 − x, say, is not known any more.
As ∇·P = ∂ log φ*''/∂y, even the divergence is one derivative of it.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .mirror import AbstractMirror, Point, check_fits, gaussians


class AbstractSeparable(AbstractMirror):
    """A mirror φ(x) = Σᵢ φᵢ(xᵢ) whose Hessian is diagonal.

    Attributes
    ----------
    zero_inside : bool
        Whether 0 is an interior point of the domain, with φ'(0) = 0; otherwise 0 is on its boundary.
    """

    zero_inside: eqx.AbstractVar[bool]
    invertible: ClassVar[bool] = True

    @abc.abstractmethod
    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φᵢ(xᵢ), entry by entry."""

    @abc.abstractmethod
    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φᵢ'(xᵢ)."""

    @abc.abstractmethod
    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The inverse of ``dphi``."""

    @abc.abstractmethod
    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Log φᵢ*''(yᵢ) = −log φᵢ''(xᵢ) at the dual y."""

    @property
    def bounds(self) -> tuple[Any, Any]:
        """Ends of the domain: numbers, or arrays of shape (d,)."""
        return -math.inf, math.inf

    def d2phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φᵢ''(xᵢ)."""
        return jnp.exp(-self.log_d2phi_star(self.dphi(x)))

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Σᵢ φᵢ(xᵢ)."""
        return jnp.sum(self.phi(x))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        return Point(x, self.dphi(x))

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y."""
        return Point(self.dphi_star(y), y)

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """φ''(x) ⊙ v."""
        return jnp.exp(-self.log_d2phi_star(p.y)) * v

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """φ*''(y) ⊙ v."""
        return jnp.exp(self.log_d2phi_star(p.y)) * v

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """−Σ log φ*''(y)."""
        return -jnp.sum(self.log_d2phi_star(p.y))

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """φ''(x)^½ ⊙ ξ."""
        return jnp.exp(-0.5 * self.log_d2phi_star(p.y)) * gaussians(key, p.y.size, p.y.dtype)

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """φ*''(y)^½ ⊙ ξ."""
        return jnp.exp(0.5 * self.log_d2phi_star(p.y)) * gaussians(key, p.y.size, p.y.dtype)

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """∂ log φ*''(y) / ∂y."""
        return jax.jvp(self.log_d2phi_star, (p.y,), (jnp.ones_like(p.y),))[1]

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether lower < xᵢ < upper for all i."""
        lower, upper = self.bounds
        return jnp.all(jnp.isfinite(x) & (x > lower) & (x < upper))

    def check(self, dim: int) -> None:
        """Raise unless each parameter is a number or has ``dim`` entries."""
        for field in dataclasses.fields(self):
            check_fits(field.name, getattr(self, field.name), dim)
