"""Mirrors of the open simplex {x ∈ R^d : xᵢ > 0, s = 1 − Σ xᵢ > 0}: d of its d + 1 probabilities, the last left out.

Let q₁ … q_d and q₀ be powers of the probabilities x₁ … x_d and s, and Q the sum of all. For both mirrors

    H = diag(1/q) + 11ᵀ/q₀,   P = diag(q) − q qᵀ/Q,   log det H = log Q − Σ_{j=0}^d log qⱼ,

with q = x, hence Q = 1, for the entropy, and q = x² for the barrier. A diagonal plus a rank-one matrix: products and
draws take O(d) operations, draws one Gaussian more than there are coordinates, and no matrix is formed. The points
keep the logarithms of all probabilities, so that s is 1 − Σ x only where a user gives x.
"""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp, xlogy
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .mirror import AbstractMirror, Point, gaussians

NEWTON_STEPS = 16


class AbstractSimplex(AbstractMirror):
    """A mirror of the simplex; ``extra`` of its points are the log probabilities (d + 1,), that of s last."""

    full_dual: ClassVar[bool] = True
    structure: ClassVar[str] = "rank_one"
    invertible: ClassVar[bool] = True

    @abc.abstractmethod
    def log_q(self, p: Point) -> Float[Array, " n"]:
        """Logarithms of q₁ … q_d, q₀; n = d + 1."""

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """H v = v/q + Σv/q₀."""
        inverse = jnp.exp(-self.log_q(p))
        return inverse[:-1] * v + inverse[-1] * jnp.sum(v)

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """P v = q ⊙ (v − w·v), where w = q/Q."""
        return (jnp.exp(self.log_q(p)) * self._centered(p, v))[:-1]

    def inv_hess_quadratic(self, p: Point, v: Float[Array, " d"]) -> Float[Array, ""]:
        """Σ q (v − w·v)² over all d + 1, with v₀ = 0."""
        return jnp.sum(jnp.exp(self.log_q(p)) * self._centered(p, v) ** 2)

    def _centered(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " n"]:
        """(v, 0) − w·(v, 0), from differences to the entry of the largest weight, next to which nothing cancels."""
        w = jax.nn.softmax(self.log_q(p))
        away = jnp.append(v, jnp.zeros((), v.dtype))
        away = away - away[jnp.argmax(w)]
        return away - w @ away

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """Log Q − Σ log q."""
        log_q = self.log_q(p)
        return logsumexp(log_q) - jnp.sum(log_q)

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """ξ/√q + ξ₀/√q₀."""
        scaled = jnp.exp(-0.5 * self.log_q(p)) * gaussians(key, p.x.size + 1, p.x.dtype)
        return scaled[:-1] + scaled[-1]

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """ζ − w Σⱼ ζⱼ with ζ = √q ξ, j = 0 … d, the projection of independent noise on Σ = 0."""
        log_q = self.log_q(p)
        scaled = jnp.exp(0.5 * log_q) * gaussians(key, p.x.size + 1, p.x.dtype)
        return (scaled - jax.nn.softmax(log_q) * jnp.sum(scaled))[:-1]

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether all xᵢ > 0 and Σ xᵢ < 1."""
        return jnp.all(jnp.isfinite(x) & (x > 0)) & (jnp.sum(x) < 1)


class SimplexEntropy(AbstractSimplex):
    """φ(x) = Σ xᵢ log xᵢ + s log s, whose dual are the log odds log(xᵢ/s)."""

    jointly_convex: ClassVar[bool] = True

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Σ xᵢ log xᵢ + s log s."""
        probs = _probabilities(x)
        return jnp.sum(xlogy(probs, probs))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        logs = jnp.log(_probabilities(x))
        return Point(x, logs[:-1] - logs[-1], logs)

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """Softmax of (y, 0)."""
        logs = jax.nn.log_softmax(jnp.append(y, jnp.zeros((), y.dtype)))
        return Point(jnp.exp(logs[:-1]), y, logs)

    def log_q(self, p: Point) -> Float[Array, " n"]:
        """Log probabilities."""
        return p.extra

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """1 − (d + 1) x."""
        return 1 - p.extra.size * p.x


class SimplexBarrier(AbstractSimplex):
    """The logarithmic barrier φ(x) = −Σ log xᵢ − log s."""

    jointly_convex: ClassVar[bool] = False

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """−Σ log xᵢ − log s."""
        return -jnp.sum(jnp.log(_probabilities(x)))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        probs = _probabilities(x)
        return Point(x, 1 / probs[-1] - 1 / probs[:-1], jnp.log(probs))

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y.

        With y₀ = 0 all probabilities are xⱼ = 1/(1/s − yⱼ) = 1/(t + gⱼ), where gⱼ = maxₖ yₖ − yⱼ ≥ 0 and
        t ∈ [1, d + 1] solves Σⱼ 1/(t + gⱼ) = 1: no difference of large numbers is left.
        """
        dual = jnp.append(y, jnp.zeros((), y.dtype))
        gaps = jnp.max(dual) - dual
        # One more step from the root makes the derivative with respect to y that of the implicit function.
        shift = _newton(jax.lax.stop_gradient(_shift(jax.lax.stop_gradient(gaps))), gaps)
        logs = -jnp.log(shift + gaps)
        return Point(jnp.exp(logs[:-1]), y, logs)

    def log_q(self, p: Point) -> Float[Array, " n"]:
        """Twice the log probabilities."""
        return 2 * p.extra

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """2 x (1 − w) − 2 w (1 − Σⱼ wⱼ xⱼ), j = 0 … d, with w = x²/Q."""
        probs = jnp.exp(p.extra)
        weights = jax.nn.softmax(2 * p.extra)
        return (2 * probs * (1 - weights) - 2 * weights * (1 - weights @ probs))[:-1]


def _probabilities(x: Array) -> Array:
    """The d + 1 probabilities, the last one last."""
    return jnp.append(x, 1 - jnp.sum(x))


def _newton(t: Array, gaps: Array) -> Array:
    """One Newton step for F(t) = 1/Σ 1/(t + gⱼ) = 1. F is increasing and concave: from below, t never overshoots."""
    terms = 1 / (t + gaps)
    total = jnp.sum(terms)
    return t + (1 - 1 / total) * total**2 / jnp.sum(terms**2)


def _shift(gaps: Array) -> Array:
    """The root t of Σ 1/(t + gⱼ) = 1, from t = 1, where the largest term alone is 1."""
    return jax.lax.fori_loop(0, NEWTON_STEPS, lambda _, t: _newton(t, gaps), jnp.ones((), gaps.dtype))
