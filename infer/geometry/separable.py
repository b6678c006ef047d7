"""Mirrors that act on each coordinate by itself: φ(x) = Σᵢ φᵢ(xᵢ).

A class writes four scalar functions, applied to arrays entry by entry; all else follows. Second derivatives are
written as log φ*''(y) = −log φ''(x), a function of the dual, which is finite where 1 − x, say, is not known any more.
As ∇·P = ∂ log φ*''/∂y, even the divergence is one derivative of it.

Sources: H. H. Bauschke, M. N. Dao, S. B. Lindstrom (2018), Regularizing with Bregman–Moreau envelopes, SIAM J.
Optimization 28(4), for the functions; joint convexity of D_φ (1/φ'' concave) is theorem 3.3 of H. H. Bauschke,
J. M. Borwein (2001), Joint and separate convexity of the Bregman distance.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..validate import check_positive
from .mirror import AbstractMirror, Point, check_entries, check_fits, gaussians, parameter


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


class Euclidean(AbstractSeparable):
    """φ(x) = x²/2 on R: the primal is the dual."""

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = True
    structure: ClassVar[str] = "identity"
    zero_inside: ClassVar[bool] = True

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = x²/2."""
        return 0.5 * x**2

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = x."""
        return x

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = y."""
        return y

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """0."""
        return jnp.zeros_like(y)


class HyperbolicEntropy(AbstractSeparable):
    """φ(x) = x asinh(x/β) − √(x² + β²) on R: like x²/(2β) near 0, like x log x far out.

    Parameters
    ----------
    beta
        β > 0, the scale at which the one turns into the other: a number or an array of shape (d,).

    References
    ----------
    .. [1] U. Ghai, E. Hazan, Y. Singer (2020). Exponentiated gradient meets gradient descent. ALT. (Definition 1.)
    """

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = False
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = True

    beta: Any = eqx.field(converter=parameter)

    def __check_init__(self) -> None:
        check_entries("beta", self.beta)

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = x asinh(x/β) − √(x² + β²)."""
        beta = jnp.asarray(self.beta, x.dtype)
        return x * jnp.arcsinh(x / beta) - jnp.hypot(x, beta)

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = asinh(x/β)."""
        return jnp.arcsinh(x / jnp.asarray(self.beta, x.dtype))

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = β sinh y."""
        return jnp.asarray(self.beta, y.dtype) * jnp.sinh(y)

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Log β + log cosh y."""
        return jnp.log(jnp.asarray(self.beta, y.dtype)) + jnp.logaddexp(y, -y) - math.log(2.0)


class BoltzmannShannon(AbstractSeparable):
    """φ(x) = x log x − x on x > 0."""

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = True
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(0, ∞)."""
        return 0.0, math.inf

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = x log x − x."""
        return xlogy(x, x) - x

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = log x."""
        return jnp.log(x)

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = eʸ."""
        return jnp.exp(y)

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*''(y) = eʸ, so that its logarithm is y."""
        return y


class FermiDirac(AbstractSeparable):
    """φ(x) = x log x + (1 − x) log(1 − x) on (0, 1)."""

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = True
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(0, 1)."""
        return 0.0, 1.0

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = x log x + (1 − x) log(1 − x)."""
        return xlogy(x, x) + jax.scipy.special.xlog1py(1 - x, -x)

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = log x − log(1 − x)."""
        return jnp.log(x) - jnp.log1p(-x)

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = 1/(1 + e⁻ʸ)."""
        return jax.nn.sigmoid(y)

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Log x + log(1 − x), each from y."""
        return jax.nn.log_sigmoid(y) + jax.nn.log_sigmoid(-y)


class Hellinger(AbstractSeparable):
    """φ(x) = −√(1 − x²) on (−1, 1)."""

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = False
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = True

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(−1, 1)."""
        return -1.0, 1.0

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = −√(1 − x²)."""
        return -jnp.sqrt((1 - x) * (1 + x))

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = x/√(1 − x²)."""
        return x / jnp.sqrt((1 - x) * (1 + x))

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = y/√(1 + y²)."""
        return y / jnp.hypot(1.0, y)

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """−(3/2) log(1 + y²)."""
        return -3.0 * jnp.log(jnp.hypot(1.0, y))


class Burg(AbstractSeparable):
    """φ(x) = −log x on x > 0; its dual is y < 0 only, so that a step in the dual may leave it."""

    full_dual: ClassVar[bool] = False
    jointly_convex: ClassVar[bool] = False
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(0, ∞)."""
        return 0.0, math.inf

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = −log x."""
        return -jnp.log(x)

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = −1/x."""
        return -1 / x

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = −1/y; negative, hence outside of the domain, where y > 0."""
        return -1 / y

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """−2 log(−y)."""
        return -2 * jnp.log(-y)


class PowerMirror(AbstractSeparable):
    """φ(x) = |x|^p/p on R; for p ≠ 2 its second derivative at 0 is 0 or infinite.

    Parameters
    ----------
    p
        The power, a number > 1.
    """

    full_dual: ClassVar[bool] = True
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = True

    p: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        check_positive("p", self.p)
        check_entries("p", self.p, above=1.0)

    @property
    def jointly_convex(self) -> bool:
        """Whether p is 2."""
        return self.p == 2

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = |x|^p/p."""
        return jnp.abs(x) ** self.p / self.p

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = sign(x) |x|^(p−1)."""
        return jnp.sign(x) * jnp.abs(x) ** (self.p - 1)

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = sign(y) |y|^(1/(p−1))."""
        return jnp.sign(y) * jnp.abs(y) ** (1 / (self.p - 1))

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """−log(p − 1) − (p − 2)/(p − 1) log |y|."""
        p = jnp.asarray(self.p, y.dtype)
        safe = jnp.abs(y) if self.p != 2 else jnp.ones_like(y)  # 0 log 0, and its derivative, are 0 here
        return -jnp.log(p - 1) - (p - 2) / (p - 1) * jnp.log(safe)


class BoxBarrier(AbstractSeparable):
    """The logarithmic barrier φ(x) = −log(a² − x²) on (−a, a).

    Parameters
    ----------
    half_width
        a > 0: a number or an array of shape (d,).
    """

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = False
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = True

    half_width: Any = eqx.field(converter=parameter)

    def __check_init__(self) -> None:
        check_entries("half_width", self.half_width)

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(−a, a)."""
        return -self.half_width, self.half_width

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = −log(a − x) − log(a + x)."""
        a = jnp.asarray(self.half_width, x.dtype)
        return -jnp.log(a - x) - jnp.log(a + x)

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = 2x/(a² − x²)."""
        a = jnp.asarray(self.half_width, x.dtype)
        return 2 * x / ((a - x) * (a + x))

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = a²y/(1 + r), r = √(1 + a²y²)."""
        a = jnp.asarray(self.half_width, y.dtype)
        return a * (a * y) / (1 + jnp.hypot(1.0, a * y))

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Log a² − log r − log(1 + r), as a² − x² = 2a²/(1 + r) and a² + x² = 2a²r/(1 + r)."""
        a = jnp.asarray(self.half_width, y.dtype)
        r = jnp.hypot(1.0, a * y)
        return 2 * jnp.log(a) - jnp.log(r) - jnp.log1p(r)
