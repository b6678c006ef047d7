"""Solvers of the probability-flow ODE, dy/dρ = (y − D(y, ρ))/ρ, from a noise level ρ to a lower one ρ'.

=================  =====  ============  ===========================================================================
solver             order  calls a step  step
=================  =====  ============  ===========================================================================
`FrozenScore`      1      1             y + w ∇ log p̃_ρ(y): the exponential integrator of [1]_
`DDIM`             1      1             (ρ'/ρ) y + (1 − ρ'/ρ) D: Euler in ρ, [2]_
`Heun`             2      2             trapezoid in ρ, [3]_ algorithm 1
`DPM2`             2      2             midpoint at √(ρ ρ'), [4]_; the same as DPM-Solver-2 in its noise form
`DPMpp2M`          2      1             D extrapolated along log ρ through two values, [5]_ algorithm 2
`DPMpp3M`          3      1             D extrapolated along log ρ through three values
`RK4`              4      4             the classical Runge–Kutta scheme for dy/du = y − D, u = log ρ
=================  =====  ============  ===========================================================================

A step is a pure function (y, carry, ρ, ρ') → (y', carry'), so that the same one serves draws, log-determinants
(`density`), inversion and Picard sweeps (`picard`). Only multistep solvers carry something: the denoisers of past
steps. A step to ρ' = 0 is DDIM's, y' = D, for all but `FrozenScore`; it makes a draw, D(y), whose density needs the
step's Jacobian like any other.

**Third order.** The exact step is y' = e^−h y + ∫₀^h e^(s−h) D(s) ds, s = log ρ − log ρ(s), h = log ρ/ρ'. With D(s) the
parabola through the last three values it is e^−h y − φ₁ D + φ₂ h Ḋ − φ₃ h² D̈, where φ₁ = e^−h − 1, φ₂ = φ₁/h + 1,
φ₃ = φ₂/h − ½. (The divided difference of second order is D̈/2; with it in place of D̈ the order falls to two.) The first
two steps know fewer values and are of lower order; as D hardly varies at high noise, their errors are small, but it is
they that remain on very fine grids.

References
----------
.. [1] X. Gao, L. Zhu (2024). Convergence analysis for general probability flow ODEs of diffusion models in Wasserstein
   distances. arXiv:2401.17958.
.. [2] J. Song, C. Meng, S. Ermon (2021). Denoising diffusion implicit models. arXiv:2010.02502.
.. [3] T. Karras et al. (2022). Elucidating the design space of diffusion-based generative models. arXiv:2206.00364.
.. [4] C. Lu et al. (2022). DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling. arXiv:2206.00927.
.. [5] C. Lu et al. (2022). DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models.
   arXiv:2211.01095.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.validate import check_choice
from .scores import AbstractScore, Level

Point = Float[Array, " d"]


class AbstractSolver(eqx.Module):
    """One step of a solver.

    Attributes
    ----------
    order
        Of the error in the step, on smooth scores.
    calls
        Of the score, in a step.
    multistep
        Whether a step uses what earlier ones left in the carry.
    """

    order: ClassVar[int]
    calls: ClassVar[int]
    multistep: ClassVar[bool] = False

    def init(self, y: Point) -> Any:
        """The carry before the first step."""
        del y

    @abc.abstractmethod
    def step(self, score: AbstractScore, y: Point, carry: Any, rho: Level, rho_next: Level) -> tuple[Point, Any]:
        """From y at ρ to ρ' < ρ (or, for single-step solvers, back to ρ' > ρ)."""


class FrozenScore(AbstractSolver):
    """y' = y + w ∇ log p̃_ρ(y): linear part of the drift solved, the score of x_t = α y frozen.

    With the schedule's f and g², w = ½ ∫ g²/(α α_t) dτ = ½ ∫ (α/α_t) dv over v = ρ'² … ρ². For a variance-exploding
    schedule (α = 1) w = (ρ² − ρ'²)/2; for a variance-preserving one (α = 1/√(1 + v)) w = √(1 + ρ²) (√(1 + ρ²) −
    √(1 + ρ'²)). Nothing else of the schedule matters. It is not `DDIM`, which freezes D.

    Parameters
    ----------
    form
        ``"vp"`` or ``"ve"``.
    """

    form: str = eqx.field(static=True, default="vp")
    order: ClassVar[int] = 1
    calls: ClassVar[int] = 1

    def __check_init__(self) -> None:
        check_choice("form", self.form, ("vp", "ve"))

    def step(self, score: AbstractScore, y: Point, carry: Any, rho: Level, rho_next: Level) -> tuple[Point, Any]:
        """A step."""
        # √(1+ρ²) − √(1+ρ'²) as a quotient keeps its digits at low noise.
        half = 0.5 * (rho - rho_next) * (rho + rho_next)
        if self.form == "vp":
            top, end = jnp.sqrt(1 + rho**2), jnp.sqrt(1 + rho_next**2)
            half = half * (2 * top / (top + end))
        return y + half * score.score(y, rho), carry


class DDIM(AbstractSolver):
    """y' = (ρ'/ρ) y + (1 − ρ'/ρ) D(y, ρ): the denoiser frozen, Euler's method in ρ."""

    order: ClassVar[int] = 1
    calls: ClassVar[int] = 1

    def step(self, score: AbstractScore, y: Point, carry: Any, rho: Level, rho_next: Level) -> tuple[Point, Any]:
        """A step."""
        return _toward(y, score.denoise(y, rho), rho_next / rho), carry


class Heun(AbstractSolver):
    """The slope (y − D)/ρ averaged over both ends of a step, the far end reached by Euler's method."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def step(self, score: AbstractScore, y: Point, carry: Any, rho: Level, rho_next: Level) -> tuple[Point, Any]:
        """A step."""
        slope = (y - score.denoise(y, rho)) / rho
        there = y + (rho_next - rho) * slope
        level = _above_zero(rho, rho_next)
        other = (there - score.denoise(there, level)) / level
        return jnp.where(rho_next > 0, y + (rho_next - rho) * 0.5 * (slope + other), there), carry


class DPM2(AbstractSolver):
    """The slope at the geometric midpoint √(ρ ρ'), reached by Euler's method."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 2

    def step(self, score: AbstractScore, y: Point, carry: Any, rho: Level, rho_next: Level) -> tuple[Point, Any]:
        """A step."""
        denoised = score.denoise(y, rho)
        middle = jnp.sqrt(rho * _above_zero(rho, rho_next))
        there = _toward(y, denoised, middle / rho)
        slope = (there - score.denoise(there, middle)) / middle
        return jnp.where(rho_next > 0, y + (rho_next - rho) * slope, denoised), carry


class Past(eqx.Module):
    """What a multistep solver keeps: denoisers and levels of the last two steps, and how many there were.

    The count is a number of the dtype of y so that tangents may run through the whole carry.
    """

    denoised: Float[Array, "2 d"]
    log_levels: Float[Array, "2"]
    count: Float[Array, ""]

    @classmethod
    def none(cls, y: Point) -> "Past":
        """Before the first step."""
        return cls(jnp.zeros((2, *y.shape), y.dtype), jnp.zeros(2, y.dtype), jnp.zeros((), y.dtype))

    def add(self, denoised: Point, log_level: Array) -> "Past":
        """With one more step."""
        return Past(jnp.stack([denoised, self.denoised[0]]), jnp.stack([log_level, self.log_levels[0]]), self.count + 1)


class DPMpp2M(AbstractSolver):
    """DPM-Solver++(2M): D̄ = D + (D − D₋₁)/(2 r), r = h₋₁/h, and y' = (ρ'/ρ) y + (1 − ρ'/ρ) D̄."""

    order: ClassVar[int] = 2
    calls: ClassVar[int] = 1
    multistep: ClassVar[bool] = True

    def init(self, y: Point) -> Past:
        """No past steps."""
        return Past.none(y)

    def step(self, score: AbstractScore, y: Point, carry: Past, rho: Level, rho_next: Level) -> tuple[Point, Past]:
        """A step."""
        denoised, log_rho = score.denoise(y, rho), jnp.log(jnp.asarray(rho, y.dtype))
        h = log_rho - jnp.log(_above_zero(rho, rho_next))
        before = jnp.where(carry.count > 0, carry.log_levels[0] - log_rho, 1)
        extrapolated = denoised + 0.5 * (h / before) * (denoised - carry.denoised[0])
        use = jnp.where((carry.count > 0) & (rho_next > 0), extrapolated, denoised)
        return _toward(y, use, rho_next / rho), carry.add(denoised, log_rho)


class DPMpp3M(AbstractSolver):
    """DPM-Solver++ of third order with the parabola through three denoisers; the first two steps are of lower order."""

    order: ClassVar[int] = 3
    calls: ClassVar[int] = 1
    multistep: ClassVar[bool] = True

    def init(self, y: Point) -> Past:
        """No past steps."""
        return Past.none(y)

    def step(self, score: AbstractScore, y: Point, carry: Past, rho: Level, rho_next: Level) -> tuple[Point, Past]:
        """A step."""
        denoised, log_rho = score.denoise(y, rho), jnp.log(jnp.asarray(rho, y.dtype))
        h = log_rho - jnp.log(_above_zero(rho, rho_next))
        one, two = carry.count > 0, carry.count > 1
        h1 = jnp.where(one, carry.log_levels[0] - log_rho, 1)
        h2 = jnp.where(two, carry.log_levels[1] - carry.log_levels[0], 1)
        first = (denoised - carry.denoised[0]) / h1
        second = (first - (carry.denoised[0] - carry.denoised[1]) / h2) / (h1 + h2)
        second = jnp.where(two, second, 0)
        slope = jnp.where(one, first + h1 * second, 0)
        phi1 = jnp.expm1(-h)
        phi2 = phi1 / h + 1
        phi3 = phi2 / h - 0.5
        moved = jnp.exp(-h) * y - phi1 * denoised + phi2 * h * slope - phi3 * h**2 * 2 * second
        return jnp.where(rho_next > 0, moved, denoised), carry.add(denoised, log_rho)


class RK4(AbstractSolver):
    """The classical scheme of fourth order in u = log ρ; smooth, so that densities want it."""

    order: ClassVar[int] = 4
    calls: ClassVar[int] = 4

    def step(self, score: AbstractScore, y: Point, carry: Any, rho: Level, rho_next: Level) -> tuple[Point, Any]:
        """A step."""
        level = _above_zero(rho, rho_next)
        h, middle = jnp.log(level / rho), jnp.sqrt(rho * level)
        denoised = score.denoise(y, rho)
        k1 = y - denoised
        at = y + 0.5 * h * k1
        k2 = at - score.denoise(at, middle)
        at = y + 0.5 * h * k2
        k3 = at - score.denoise(at, middle)
        at = y + h * k3
        k4 = at - score.denoise(at, level)
        return jnp.where(rho_next > 0, y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), denoised), carry


SOLVERS: dict[str, type[AbstractSolver]] = {
    "frozen": FrozenScore,
    "ddim": DDIM,
    "heun": Heun,
    "dpm2": DPM2,
    "dpm++2m": DPMpp2M,
    "dpm++3m": DPMpp3M,
    "rk4": RK4,
}
"""By the names under which methods take them."""


def solve(
    score: AbstractScore,
    solver: AbstractSolver,
    grid: Float[Array, " levels"],
    y: Point,
    key: PRNGKeyArray | None = None,
) -> Point:
    """The point at the end of the grid.

    Parameters
    ----------
    grid
        Noise levels ρ₀ > ρ₁ > … ≥ 0, the last zero where a final denoising is wanted.
    y
        At ρ₀, shape (d,).
    key
        Of the randomness of a Monte Carlo score, new at each step; None: as the score is.
    """
    return trajectory(score, solver, grid, y, key)[-1]


def trajectory(
    score: AbstractScore,
    solver: AbstractSolver,
    grid: Float[Array, " levels"],
    y: Point,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "levels d"]:
    """The points at all levels of the grid; the arguments are those of `solve`."""

    def one(state: tuple[Point, Any], at: tuple[Array, Array, Array]) -> tuple[tuple[Point, Any], Point]:
        k, rho, rho_next = at
        here = score if key is None else score.refresh(jax.random.fold_in(key, k))
        moved, carry = solver.step(here, *state, rho, rho_next)
        return (moved, carry), moved

    path = jax.lax.scan(one, (y, solver.init(y)), steps(grid, y))[1]
    return jnp.concatenate([y[None], path])


def steps(grid: Float[Array, " levels"], y: Float[Array, "..."]) -> tuple[Array, Array, Array]:
    """Number, beginning and end of each step of a grid, in the dtype of y."""
    levels = jnp.asarray(grid, y.dtype)
    return jnp.arange(len(levels) - 1), levels[:-1], levels[1:]


def num_calls(solver: AbstractSolver, grid: Any) -> int:
    """Calls of the score by `solve`: of the final step to zero only one counts, though a batch computes all."""
    count = len(grid) - 1
    ends = float(grid[-1]) == 0
    return solver.calls * (count - ends) + ends


def _toward(y: Point, denoised: Point, ratio: Any) -> Point:
    """The point y moved toward D."""
    return ratio * y + (1 - ratio) * denoised


def _above_zero(rho: Level, rho_next: Level) -> Any:
    """ρ', or ρ/2 where that is 0: the value is not used, but must be finite."""
    return jnp.where(rho_next > 0, rho_next, 0.5 * rho)
