"""Mirrors that act on each coordinate by itself: functions of one variable, as `AbstractSeparable` wants them.

Sources: H. H. Bauschke, M. N. Dao, S. B. Lindstrom (2018), Regularizing with Bregman–Moreau envelopes, SIAM J.
Optimization 28(4), for the functions; D_φ is jointly convex where 1/φ'' is concave: H. H. Bauschke, J. M.
Borwein (2001), Joint and separate convexity of the Bregman distance.
"""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Float

from ..validate import check_positive
from .mirror import check_entries, parameter
from .separable_base import AbstractSeparable


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
    .. [1] U. Ghai, E. Hazan, Y. Singer (2020). Exponentiated gradient meets gradient descent. ALT.
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


class HalfLineBarrier(AbstractSeparable):
    """φ(x) = x²/2 − log x on x > 0: the barrier of the half-line whose dual y = x − 1/x is all of R.

    Near 0 it is `Burg`, in whose metric 1/x² steps are relative to x; far out it is Euclidean.
    """

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = False
    structure: ClassVar[str] = "diagonal"
    zero_inside: ClassVar[bool] = False

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(0, ∞)."""
        return 0.0, math.inf

    def phi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ(x) = x²/2 − log x."""
        return 0.5 * x**2 - jnp.log(x)

    def dphi(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ'(x) = x − 1/x."""
        return x - 1 / x

    def dphi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """φ*'(y) = (y + r)/2 = 2/(r − y), r = √(y² + 4)."""
        larger = 0.5 * (jnp.abs(y) + jnp.hypot(2.0, y))
        return jnp.where(y < 0, 1 / larger, larger)

    def log_d2phi_star(self, y: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Log x − log r, as φ'' = 1 + 1/x² and r = x + 1/x; log x = asinh(y/2)."""
        return jnp.arcsinh(0.5 * y) - jnp.log(jnp.hypot(2.0, y))


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
