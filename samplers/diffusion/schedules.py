"""Schedules of linear diffusions, and grids of noise levels.

The forward process dx = −f(t) x dt + g(t) dB has x_t = α(t) x₀ + σ(t) ε with α = exp(−∫f) and σ² = α² ∫ g²/α². In the
coordinates (y, ρ) = (x/α, σ/α) all schedules have the same ODE (see `scores`), so that one is only a way to space noise
levels, `time_grid`, and the α that scales x. Variance-exploding: α = 1, ρ = σ. Variance-preserving: f = g²/2 = β/2,
α² = e^−B, B = ∫β, ρ² = e^B − 1.

===============  ==============================  ===================================================================
schedule         rate                            level
===============  ==============================  ===================================================================
`ConstantVE`     g = a                           ρ² = a² t
`LinearVE`       g = √(a t)                      ρ² = a t²/2
`ExponentialVE`  g = a e^(b t)                   ρ² = a² (e^(2 b t) − 1)/(2 b)
`PolynomialVE`   g = (b + a t)^c                 ρ² = ((b + a t)^(2c+1) − b^(2c+1))/(a (2c + 1))
`ConstantVP`     β = b                           B = b t
`LinearVP`       β = b₀ + (b₁ − b₀) t            B = b₀ t + (b₁ − b₀) t²/2
`PolynomialVP`   β = (b + a t)^p                 B = ((b + a t)^(p+1) − b^(p+1))/(a (p + 1))
`CosineVP`       α = cos(θ(t))/cos(θ(0))         ρ² = sin(θ − θ₀) sin(θ + θ₀)/cos² θ, θ = π (t + s)/(2 (1 + s)), t < 1
===============  ==============================  ===================================================================

Levels are written without a difference of nearly equal numbers, so that small ones have all their digits. A grid
uniform in the time of a schedule down to zero stalls every solver on its last step; take `log_grid` or `edm_grid`.

References
----------
.. [1] Y. Song et al. (2021). Score-based generative modeling through stochastic differential equations.
   arXiv:2011.13456.
.. [2] A. Nichol, P. Dhariwal (2021). Improved denoising diffusion probabilistic models. arXiv:2102.09672 (cosine).
.. [3] T. Karras et al. (2022). Elucidating the design space of diffusion-based generative models. arXiv:2206.00364,
   equation 5 (`edm_grid`).
.. [4] X. Gao, L. Zhu (2024). arXiv:2401.17958, section 3 (the families).
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument
from ...infer.validate import check_count, check_fraction, check_nonnegative, check_positive

Time = Float[Array, "..."] | float


class AbstractSchedule(eqx.Module):
    """α(t), σ(t), ρ(t) and its inverse, f(t) and g²(t); all elementwise."""

    @abc.abstractmethod
    def squared_level(self, t: Time) -> Array:
        """The level ρ(t)²."""

    @abc.abstractmethod
    def time(self, rho: Time) -> Array:
        """The t at which the level is ρ."""

    @abc.abstractmethod
    def alpha(self, t: Time) -> Array:
        """The scale α(t) of x₀."""

    @abc.abstractmethod
    def drift(self, t: Time) -> Array:
        """f(t), in dx = −f x dt + g dB."""

    @abc.abstractmethod
    def diffusion(self, t: Time) -> Array:
        """The squared diffusion g(t)²."""

    def rho(self, t: Time) -> Array:
        """The level ρ(t) = σ/α."""
        return jnp.sqrt(self.squared_level(t))

    def sigma(self, t: Time) -> Array:
        """The standard deviation σ(t) of the noise."""
        return self.alpha(t) * self.rho(t)


class AbstractVE(AbstractSchedule):
    """A variance-exploding schedule: f = 0, α = 1."""

    def alpha(self, t: Time) -> Array:
        """One."""
        return jnp.ones_like(jnp.asarray(t, float))

    def drift(self, t: Time) -> Array:
        """Zero."""
        return jnp.zeros_like(jnp.asarray(t, float))


class AbstractVP(AbstractSchedule):
    """A variance-preserving schedule: f = β/2, g² = β, told by B(t) = ∫β and its inverse."""

    @abc.abstractmethod
    def integral(self, t: Time) -> Array:
        """The integral B(t) of β."""

    @abc.abstractmethod
    def inverse_integral(self, integral: Any) -> Array:
        """The t at which ∫β is B."""

    def squared_level(self, t: Time) -> Array:
        """The level ρ² = e^B − 1."""
        return jnp.expm1(self.integral(t))

    def time(self, rho: Time) -> Array:
        """From B = log(1 + ρ²)."""
        return self.inverse_integral(jnp.log1p(jnp.square(rho)))

    def alpha(self, t: Time) -> Array:
        """The scale e^(−B/2)."""
        return jnp.exp(-0.5 * self.integral(t))

    def drift(self, t: Time) -> Array:
        """The rate β/2."""
        return 0.5 * self.diffusion(t)


class ConstantVE(AbstractVE):
    """g = a."""

    a: float = 1.0

    def __check_init__(self) -> None:
        check_positive("a", self.a)

    def squared_level(self, t: Time) -> Array:
        """The level a² t."""
        return self.a**2 * jnp.asarray(t)

    def time(self, rho: Time) -> Array:
        """The inverse."""
        return jnp.square(rho / self.a)

    def diffusion(self, t: Time) -> Array:
        """The square a²."""
        return jnp.full_like(jnp.asarray(t, float), self.a**2)


class LinearVE(AbstractVE):
    """g = √(a t)."""

    a: float = 1.0

    def __check_init__(self) -> None:
        check_positive("a", self.a)

    def squared_level(self, t: Time) -> Array:
        """The level a t²/2."""
        return 0.5 * self.a * jnp.square(t)

    def time(self, rho: Time) -> Array:
        """The inverse."""
        return jnp.asarray(rho) * jnp.sqrt(2 / jnp.asarray(self.a, float))

    def diffusion(self, t: Time) -> Array:
        """The square a t."""
        return self.a * jnp.asarray(t)


class ExponentialVE(AbstractVE):
    """g = a e^(b t)."""

    a: float = 1.0
    b: float = 1.0

    def __check_init__(self) -> None:
        check_positive("a", self.a)
        check_positive("b", self.b)

    def squared_level(self, t: Time) -> Array:
        """The level a² (e^(2bt) − 1)/(2b)."""
        return self.a**2 / (2 * self.b) * jnp.expm1(2 * self.b * jnp.asarray(t))

    def time(self, rho: Time) -> Array:
        """The inverse."""
        return jnp.log1p(2 * self.b * jnp.square(rho / self.a)) / (2 * self.b)

    def diffusion(self, t: Time) -> Array:
        """The square a² e^(2bt)."""
        return self.a**2 * jnp.exp(2 * self.b * jnp.asarray(t))


class PolynomialVE(AbstractVE):
    """g = (b + a t)^c."""

    a: float = 1.0
    b: float = 1.0
    c: float = 1.0

    def __check_init__(self) -> None:
        check_positive("a", self.a)
        check_nonnegative("b", self.b)
        check_positive("c", self.c)

    def squared_level(self, t: Time) -> Array:
        """The integral of (b + a t)^(2c)."""
        return _power_integral(t, self.a, self.b, 2 * self.c)

    def time(self, rho: Time) -> Array:
        """The inverse."""
        return _inverse_power_integral(jnp.square(rho), self.a, self.b, 2 * self.c)

    def diffusion(self, t: Time) -> Array:
        """The square (b + a t)^(2c)."""
        return (self.b + self.a * jnp.asarray(t)) ** (2 * self.c)


class ConstantVP(AbstractVP):
    """β = b."""

    b: float = 1.0

    def __check_init__(self) -> None:
        check_positive("b", self.b)

    def integral(self, t: Time) -> Array:
        """The integral b t."""
        return self.b * jnp.asarray(t)

    def inverse_integral(self, integral: Any) -> Array:
        """The inverse."""
        return integral / self.b

    def diffusion(self, t: Time) -> Array:
        """The rate b."""
        return jnp.full_like(jnp.asarray(t, float), self.b)


class LinearVP(AbstractVP):
    """β = b₀ + (b₁ − b₀) t, on [0, 1] from 0.1 to 20 as in [1]_."""

    begin: float = 0.1
    end: float = 20.0

    def __check_init__(self) -> None:
        check_nonnegative("begin", self.begin)
        check_positive("end", self.end)
        if not self.end > self.begin:
            raise InvalidArgument(f"end must be above begin = {self.begin}, got {self.end}; or use ConstantVP.")

    def integral(self, t: Time) -> Array:
        """The integral b₀ t + (b₁ − b₀) t²/2."""
        return jnp.asarray(t) * (self.begin + 0.5 * (self.end - self.begin) * jnp.asarray(t))

    def inverse_integral(self, integral: Any) -> Array:
        """The root of the parabola, as a quotient without cancellation."""
        slope = self.end - self.begin
        return 2 * integral / (self.begin + jnp.sqrt(self.begin**2 + 2 * slope * integral))

    def diffusion(self, t: Time) -> Array:
        """The rate β."""
        return self.begin + (self.end - self.begin) * jnp.asarray(t)


class PolynomialVP(AbstractVP):
    """β = (b + a t)^p."""

    a: float = 1.0
    b: float = 1.0
    power: float = 1.0

    def __check_init__(self) -> None:
        check_positive("a", self.a)
        check_nonnegative("b", self.b)
        check_positive("power", self.power)

    def integral(self, t: Time) -> Array:
        """The integral of (b + a t)^p."""
        return _power_integral(t, self.a, self.b, self.power)

    def inverse_integral(self, integral: Any) -> Array:
        """The inverse."""
        return _inverse_power_integral(integral, self.a, self.b, self.power)

    def diffusion(self, t: Time) -> Array:
        """The rate β."""
        return (self.b + self.a * jnp.asarray(t)) ** self.power


class CosineVP(AbstractSchedule):
    """α = cos θ/cos θ₀ with θ = π (t + s)/(2 (1 + s)), for 0 ≤ t < 1."""

    offset: float = 0.008

    def __check_init__(self) -> None:
        check_fraction("offset", self.offset)

    def angle(self, t: Time) -> Array:
        """The angle θ(t)."""
        return 0.5 * jnp.pi * (jnp.asarray(t) + self.offset) / (1 + self.offset)

    def squared_level(self, t: Time) -> Array:
        """The level (cos² θ₀ − cos² θ)/cos² θ."""
        turned = 0.5 * jnp.pi * jnp.asarray(t) / (1 + self.offset)
        return jnp.sin(turned) * jnp.sin(turned + 2 * self.angle(0.0)) / jnp.cos(self.angle(t)) ** 2

    def time(self, rho: Time) -> Array:
        """From tan² θ = (ρ² + sin² θ₀)/cos² θ₀, the difference of two tangents in the form of one."""
        first, tangent = self.angle(0.0), jnp.tan(self.angle(0.0))
        excess = jnp.square(rho) / jnp.cos(first) ** 2  # tan² θ − tan² θ₀
        other = jnp.sqrt(tangent**2 + excess)
        turned = jnp.arctan(excess / (other + tangent) / (1 + other * tangent))
        return turned * 2 * (1 + self.offset) / jnp.pi

    def alpha(self, t: Time) -> Array:
        """The ratio of cosines."""
        return jnp.cos(self.angle(t)) / jnp.cos(self.angle(0.0))

    def drift(self, t: Time) -> Array:
        """The rate β/2."""
        return 0.5 * self.diffusion(t)

    def diffusion(self, t: Time) -> Array:
        """β = π/(1 + s) tan θ."""
        return jnp.pi / (1 + self.offset) * jnp.tan(self.angle(t))


def edm_grid(
    rho_max: float, rho_min: float, num_steps: int, *, power: float = 7.0, to_zero: bool = False
) -> np.ndarray:
    """Levels (ρ_max^(1/p) + i/n (ρ_min^(1/p) − ρ_max^(1/p)))^p, i = 0, …, n: dense at low noise, [3]_.

    Parameters
    ----------
    rho_max, rho_min
        The first and the last level.
    num_steps
        Steps from ρ_max to ρ_min.
    power
        p; 1 is uniform in ρ, and large ones come near to `log_grid`.
    to_zero
        Whether a step to level 0 follows.

    Returns
    -------
    Array, shape (n + 1,), or (n + 2,) with the zero; 64 bits
    """
    check_positive("power", power)
    count = _check_levels(rho_max, rho_min, num_steps)
    grid = np.linspace(rho_max ** (1 / power), rho_min ** (1 / power), count + 1) ** power
    return _finish(grid, rho_max, rho_min, to_zero)


def log_grid(rho_max: float, rho_min: float, num_steps: int, *, to_zero: bool = False) -> np.ndarray:
    """Levels uniform in log ρ; the arguments are those of `edm_grid`."""
    count = _check_levels(rho_max, rho_min, num_steps)
    return _finish(np.geomspace(rho_max, rho_min, count + 1), rho_max, rho_min, to_zero)


def time_grid(
    schedule: AbstractSchedule, rho_max: float, rho_min: float, num_steps: int, *, to_zero: bool = False
) -> np.ndarray:
    """Levels uniform in the time of a schedule; the other arguments are those of `edm_grid`."""
    count = _check_levels(rho_max, rho_min, num_steps)
    with jax.enable_x64(True):
        first, last = (float(schedule.time(rho)) for rho in (rho_max, rho_min))
        grid = np.asarray(schedule.rho(np.linspace(first, last, count + 1)))
    return _finish(grid, rho_max, rho_min, to_zero)


def _check_levels(rho_max: float, rho_min: float, num_steps: int) -> int:
    check_positive("rho_max", rho_max)
    check_positive("rho_min", rho_min)
    if not rho_max > rho_min:
        raise InvalidArgument(f"rho_max must be above rho_min = {rho_min:g}, got {rho_max:g}.")
    return check_count("num_steps", num_steps)


def _finish(grid: np.ndarray, rho_max: float, rho_min: float, to_zero: bool) -> np.ndarray:
    """The grid with its ends exactly as asked for."""
    return np.concatenate([[rho_max], grid[1:-1], [rho_min], [0.0] * to_zero])


def _power_integral(t: Time, a: float, b: float, power: float) -> Array:
    """∫₀ᵗ (b + a τ)^p dτ; in relative terms exact at small t where b > 0."""
    q = power + 1
    if isinstance(b, float | int) and b == 0:
        return a**power * jnp.asarray(t) ** q / q
    return b**q * jnp.expm1(q * jnp.log1p(a * jnp.asarray(t) / b)) / (a * q)


def _inverse_power_integral(value: Any, a: float, b: float, power: float) -> Array:
    """The t of `_power_integral`."""
    q = power + 1
    if isinstance(b, float | int) and b == 0:
        return (q * jnp.asarray(value) / a**power) ** (1 / q)
    return b / a * jnp.expm1(jnp.log1p(a * q * jnp.asarray(value) / b**q) / q)
