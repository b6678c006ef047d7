"""The planar and radial maps of Rezende & Mohamed (2015), arXiv:1505.05770, eqs. 10-14, with their constraints.

They differ from common implementations: the constraint of the planar map projects along w / ‖w‖² (the norm squared),
and both begin at the identity, which u = 0 is not.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import score_recursion as recursion
from .bijection import Bijection, Structure
from .linear import SOFTPLUS_ONE

START_NOISE = 1e-2


class Planar(Bijection):
    """f(z) = z + û tanh(wᵀz + b), log|det| = log(1 + (1 − tanh²) wᵀû), at O(d).

    û = u + (m(wᵀu) − wᵀu) w / ‖w‖² with m(a) = softplus(a) − 1 keeps wᵀû ≥ −1, so that f is one-to-one. It has no
    algebraic inverse.

    Parameters
    ----------
    w, u
        Shape (d,).
    b
        Shape ().
    """

    w: Float[Array, " d"]
    u: Float[Array, " d"]
    b: Float[Array, ""]
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "planar"

    @classmethod
    def make(cls, key: PRNGKeyArray, dim: int) -> "Planar":
        """The identity up to noise: m(wᵀu) = 0 for u = log(e − 1) w / ‖w‖²."""
        key_w, key_u = jax.random.split(key)
        w = jax.random.normal(key_w, (dim,))
        u = SOFTPLUS_ONE * w / jnp.sum(w**2) + START_NOISE * jax.random.normal(key_u, (dim,))
        return cls(w, u, jnp.zeros(()), dim)

    def direction(self) -> Float[Array, " d"]:
        """û: u, moved so that wᵀû > −1."""
        inner = self.w @ self.u
        return self.u + (jax.nn.softplus(inner) - 1 - inner) * self.w / jnp.sum(self.w**2)

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """Eqs. 10 and 12."""
        del condition
        t = jnp.tanh(self.w @ x + self.b)
        # wᵀû is taken from softplus: as a product it may be rounded below −1.
        inner = jax.nn.softplus(self.w @ self.u) - 1
        return x + self.direction() * t, jnp.log1p((1 - t**2) * inner)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """By Sherman and Morrison, O(d)."""
        return recursion.planar(self.w, self.direction(), self.b, x, g)


class Radial(Bijection):
    """f(z) = z + β̂ (z − z₀) / (α + r), r = ‖z − z₀‖, at O(d).

    α = softplus(·) > 0, β̂ = −α + softplus(β) ≥ −α, and with h = 1 / (α + r)
    log|det| = (d − 1) log(1 + β̂h) + log(1 + β̂h − β̂ r h²).
    Along a ray it is r ↦ r + β̂ r / (α + r), a quadratic equation: unlike the planar map it has an inverse.

    Parameters
    ----------
    center
        z₀, shape (d,).
    alpha, beta
        Before their softplus, shape ().
    """

    center: Float[Array, " d"]
    alpha: Float[Array, ""]
    beta: Float[Array, ""]
    dim: int = eqx.field(static=True)

    @classmethod
    def make(cls, key: PRNGKeyArray, dim: int) -> "Radial":
        """The identity up to noise: softplus(β) = α."""
        key_center, key_beta = jax.random.split(key)
        start = jnp.asarray(SOFTPLUS_ONE)
        noise = START_NOISE * jax.random.normal(key_beta, ())
        return cls(jax.random.normal(key_center, (dim,)), start, start + noise, dim)

    def _constrained(self) -> tuple[Array, Array]:
        alpha = jax.nn.softplus(self.alpha)
        return alpha, jax.nn.softplus(self.beta) - alpha

    def _log_det(self, r: Array) -> Array:
        alpha, beta = self._constrained()
        h = 1 / (alpha + r)
        return (self.dim - 1) * jnp.log1p(beta * h) + jnp.log1p(beta * h - beta * r * h**2)

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """Eq. 14."""
        del condition
        alpha, beta = self._constrained()
        away = x - self.center
        r = jnp.sqrt(jnp.sum(away**2) + 1e-12)  # a gradient at z₀ too
        return x + beta / (alpha + r) * away, self._log_det(r)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """J = (1 + β̂h) I − β̂ h² / r (x − z₀)(x − z₀)ᵀ, by Sherman and Morrison."""
        fixed, (at, g) = recursion.held(self), jax.lax.stop_gradient((x, g))
        (alpha, beta), away = fixed._constrained(), at - fixed.center
        r = jnp.sqrt(jnp.sum(away**2) + 1e-12)
        h = 1 / (alpha + r)
        gradient = jax.grad(lambda x: fixed.transform_and_log_det(x)[1])(at)
        pushed = recursion.rank_one(g - gradient, away, -beta * h**2 / r * away, 1 + beta * h)
        return (*self.transform_and_log_det(x), pushed)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """The positive root of r² + (α + β̂ − ρ) r − αρ = 0, ρ = ‖y − z₀‖."""
        del condition
        alpha, beta = self._constrained()
        away = y - self.center
        rho = jnp.sqrt(jnp.sum(away**2) + 1e-12)
        b = alpha + beta - rho
        root = jnp.sqrt(b**2 + 4 * alpha * rho)
        # Of the two forms of the root, the one that does not cancel.
        r = jnp.where(b > 0, 2 * alpha * rho / (b + root), (root - b) / 2)
        return self.center + away / (1 + beta / (alpha + r)), -self._log_det(r)
