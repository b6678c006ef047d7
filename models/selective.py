"""Inference after selection by the Lasso: the randomised Lasso, its selective density, and intervals that cover.

Coefficients that a Lasso has picked look larger than they are, and their usual intervals cover too seldom. The
randomised Lasso

    minimise ½‖y − Xβ‖² + λ‖β‖₁ − ω·β + (ε/2)‖β‖²,        ω ~ N(0, τ²I),

keeps the active set E with its signs z, and the subgradient u elsewhere. Given these, ω is an affine function of the
magnitudes o = |β_E| > 0,

    ω = B o + c,    B = (XᵀX_E + ε I_E) diag(z),    c = −Xᵀy + (λz on E, u elsewhere),

so that o has the density exp(−‖B o + c‖²/(2τ²)) on the positive orthant: the `target`, to be sampled by any method. In
−Xᵀy the part that moves with the least-squares coefficient β̄_i of the selected model, −XᵀX_E V e_i / V_ii with
V = Cov(β̄), is split off; what is left is conditioned on. For a true coefficient μ the pair of β̄_i + s and o has the
density

    N(β̄_i + s; μ, V_ii) exp(−‖B o + c + ℓ_i s‖²/(2τ²)),    ℓ_i = −XᵀX_E V e_i / V_ii,

so that draws of o at s = 0 weigh exp(−[2 (B o + c)·ℓ_i s + ‖ℓ_i‖² s²]/(2τ²)), whose integral over s is done exactly.
pivot(μ) = P(s ≤ 0) is uniform at the true μ; where it is (1 ± level)/2 the interval ends. The weights are uneven where
the noise of the selection is small next to that of β̄ (a ``noise_scale`` below a third of the noise of y): each interval
tells their effective number.

References
----------
.. [1] X. Tian, S. Panigrahi, J. Markovic, N. Bi, J. Taylor (2016). Selective sampling after solving a convex problem.
   arXiv:1609.05609.
.. [2] J. Shi, C. Liu, L. Mackey (2022). Sampling with mirrored Stein operators. ICLR, section 6.2.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ..infer.errors import InvalidArgument, NonFinite
from ..infer.validate import check_fraction, check_positive

SWEEPS = 100_000
TOLERANCE = 1e-12
KKT = 1e-4
Pivot = Callable[[float], tuple[float, float]]
BRACKET = 10.0
"""Ends of intervals are looked for within so many standard deviations of the estimate."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """Of one coefficient of the selected model.

    Attributes
    ----------
    column
        Of X.
    estimate
        Least squares in the selected model.
    lower, upper
        Ends.
    found
        Whether both ends lie within ten standard deviations; if not, the one that does not is put there.
    ess
        Effective number of draws at the end where it is smaller; the ends of fewer than a hundred or so are rough.
    """

    column: int
    estimate: float
    lower: float
    upper: float
    found: bool
    ess: float


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a randomised Lasso has selected, and all that inference after it needs.

    Attributes
    ----------
    active
        Columns of X with a coefficient, E.
    signs
        Of their coefficients, z.
    magnitudes
        o > 0.
    coefficients
        Least squares in the selected model, β̄.
    covariance
        V, with the residual variance of the selected model.
    design, offset
        B and c.
    scale
        τ.
    slopes
        ℓ, one row per active column.
    """

    active: np.ndarray
    signs: np.ndarray
    magnitudes: np.ndarray
    coefficients: np.ndarray
    covariance: np.ndarray
    design: np.ndarray
    offset: np.ndarray
    scale: float
    slopes: np.ndarray

    def target(self) -> Any:
        """The selective density of the magnitudes, a `Target` with one positive site ``"x"``."""
        from numpyro.distributions import constraints

        from ..infer.target import Target

        root = np.linalg.cholesky(self.design.T @ self.design).T
        centre = np.linalg.solve(root.T, self.design.T @ self.offset)
        data = (root / self.scale, centre / self.scale)
        return Target.from_log_density(_log_density, self.magnitudes, constraints.positive, data=data)

    def pivot(self, draws: Any, index: int, value: float) -> float:
        """P(β̄ ≤ what was seen) given the selection, if the coefficient of ``active[index]`` is ``value``.

        Uniform on (0, 1) at the true value.

        Parameters
        ----------
        draws
            Of the `target`: array (…, number of active columns).
        index
            Position in ``active``.
        value
            μ.
        """
        return self._pivots(self._draws(draws), index)(value)[0]

    def intervals(self, draws: Any, level: float = 0.9) -> list[Interval]:
        """Confidence intervals of the coefficients of the selected model, which cover also after the selection.

        Parameters
        ----------
        draws
            Of the `target`: array (…, number of active columns), a few thousand.
        level
            Confidence, in (0, 1).

        Raises
        ------
        InvalidArgument
            The shape of ``draws``, a draw that is not positive, or the level.
        """
        check_fraction("level", level)
        draws, out = self._draws(draws), []
        for i, column in enumerate(self.active):
            centre, sd = self.coefficients[i], np.sqrt(self.covariance[i, i])
            pivot, around = self._pivots(draws, i), (centre - BRACKET * sd, centre + BRACKET * sd)
            lower, low_found = _cross(pivot, 0.5 * (1 + level), *around)
            upper, up_found = _cross(pivot, 0.5 * (1 - level), *around)
            ess = min(pivot(end)[1] for end in (lower, upper))
            out.append(Interval(int(column), float(centre), lower, upper, low_found and up_found, ess))
        return out

    def naive_intervals(self, level: float = 0.9) -> list[Interval]:
        """Those of least squares that forget the selection, and cover too seldom: for comparison."""
        from scipy.stats import norm

        check_fraction("level", level)
        half = norm.ppf(0.5 * (1 + level)) * np.sqrt(np.diagonal(self.covariance))
        rows = zip(self.active, self.coefficients, half, strict=True)
        return [Interval(int(c), float(b), float(b - h), float(b + h), True, np.inf) for c, b, h in rows]

    def _draws(self, draws: Any) -> np.ndarray:
        given = np.asarray(draws, float)
        if given.shape[-1:] != self.active.shape:
            raise InvalidArgument(
                f"draws have shape {given.shape}; with {self.active.size} active columns the last axis must have "
                f"that length."
            )
        given = given.reshape(-1, self.active.size)
        if not (given > 0).all():
            raise InvalidArgument(f"draws must be positive magnitudes, got {given[~(given > 0)][0]} among them.")
        return given

    def _pivots(self, draws: np.ndarray, index: int) -> Pivot:
        """The pivot as a function of μ, and the effective number of draws."""
        from scipy.special import log_ndtr, logsumexp

        variance, precision = self.covariance[index, index], 1 / self.scale**2
        slope = self.slopes[index]
        along = (draws @ self.design.T + self.offset) @ slope
        width = 1 / (1 / variance + slope @ slope * precision)

        def pivot(value: float) -> tuple[float, float]:
            # Given o, s is N(mean, width), and exp(mean²/(2 width)) is the weight of o.
            mean = width * ((value - self.coefficients[index]) / variance - along * precision)
            log_weight = 0.5 * mean**2 / width
            below = logsumexp(log_weight + log_ndtr(-mean / np.sqrt(width)))
            total = logsumexp(log_weight)
            return float(np.exp(below - total)), float(np.exp(2 * total - logsumexp(2 * log_weight)))

        return pivot


def _log_density(o: Any, data: Any) -> Any:
    """−‖R o + R⁻ᵀBᵀc‖²/(2τ²) with R the Cholesky factor of BᵀB; at module level, so that selections share programs."""
    import jax.numpy as jnp

    root, centre = data
    return -0.5 * jnp.sum((root @ o + centre) ** 2)


def randomized_lasso(
    X: Any, y: Any, penalty: float, *, ridge: float | None = None, noise_scale: float | None = None, key: int = 0
) -> Selection:
    """Select columns by a Lasso with a random tilt, and keep what inference after it needs.

    Parameters
    ----------
    X
        Columns, shape (n, p), each of squared norm about one.
    y
        Response, shape (n,).
    penalty
        λ > 0, in units of Xᵀy.
    ridge
        ε ≥ 0; default sd(y) √m / √n, m the mean squared norm of a column.
    noise_scale
        τ > 0; default sd(y) √m / 4.
    key
        Of ω.

    Returns
    -------
    Selection

    Raises
    ------
    InvalidArgument
        Shapes or values that do not fit; nothing is selected; or the selected columns are collinear.
    NonFinite
        X or y hold NaN or infinite values, or the optimiser did not reach the minimum.
    """
    X, y = np.asarray(X, float), np.asarray(y, float)
    if X.ndim != 2 or y.shape != X.shape[:1]:
        raise InvalidArgument(f"X has shape {X.shape} and y {y.shape}; they must be (n, p) and (n,).")
    for name, array in (("X", X), ("y", y)):
        if not np.isfinite(array).all():
            raise NonFinite(f"{name} must be finite, got {array[~np.isfinite(array)][0]}; drop or impute such rows.")
    check_positive("penalty", penalty)
    n, p = X.shape
    size = np.sqrt(np.mean(np.sum(X**2, axis=0)))
    ridge = size * np.std(y, ddof=1) / np.sqrt(n) if ridge is None else float(ridge)
    noise_scale = 0.25 * np.std(y, ddof=1) * size if noise_scale is None else float(noise_scale)
    check_positive("noise_scale", noise_scale)
    omega = noise_scale * np.random.default_rng(key).standard_normal(p)
    beta = _solve(X, y, penalty, ridge, omega)
    # Minus the gradient of the smooth part: λ sign(β) on E, between −λ and λ elsewhere.
    subgradient = X.T @ (y - X @ beta) + omega - ridge * beta
    active = np.flatnonzero(beta)
    _check_optimal(beta, subgradient, penalty)
    if active.size == 0:
        raise InvalidArgument(
            f"nothing is selected at penalty={penalty:g}: no coefficient differs from zero; lower the penalty."
        )
    return _selection(X, y, penalty, ridge, noise_scale, beta, subgradient, active)


def _selection(
    X: np.ndarray,
    y: np.ndarray,
    penalty: float,
    ridge: float,
    scale: float,
    beta: np.ndarray,
    subgradient: np.ndarray,
    active: np.ndarray,
) -> Selection:
    chosen, signs = X[:, active], np.sign(beta[active])
    gram = chosen.T @ chosen
    if active.size >= len(y) or np.linalg.matrix_rank(chosen) < active.size:
        raise InvalidArgument(
            f"the {active.size} selected columns {active.tolist()} are collinear or as many as the {len(y)} rows; "
            f"raise the penalty, or drop columns."
        )
    coefficients = np.linalg.solve(gram, chosen.T @ y)
    variance = np.sum((y - chosen @ coefficients) ** 2) / (len(y) - active.size)
    covariance = variance * np.linalg.inv(gram)
    design = X.T @ chosen
    design[active, np.arange(active.size)] += ridge
    offset = -X.T @ y + subgradient
    offset[active] = -X[:, active].T @ y + penalty * signs
    slopes = -(X.T @ chosen @ covariance / np.diagonal(covariance)).T
    magnitudes = np.abs(beta[active])
    return Selection(active, signs, magnitudes, coefficients, covariance, design * signs, offset, float(scale), slopes)


def _solve(X: np.ndarray, y: np.ndarray, penalty: float, ridge: float, omega: np.ndarray) -> np.ndarray:
    """Coordinate descent from zero, until no coefficient moves."""
    gram, linear = X.T @ X, X.T @ y + omega
    beta = np.zeros(X.shape[1])
    curvature = np.diagonal(gram) + ridge
    for _ in range(SWEEPS):
        largest = 0.0
        for j in range(beta.size):
            pull = linear[j] - gram[j] @ beta + gram[j, j] * beta[j]
            new = np.sign(pull) * max(abs(pull) - penalty, 0.0) / curvature[j]
            largest = max(largest, abs(new - beta[j]))
            beta[j] = new
        if largest <= TOLERANCE * max(1.0, np.abs(beta).max()):
            break
    return beta


def _check_optimal(beta: np.ndarray, subgradient: np.ndarray, penalty: float) -> None:
    active = beta != 0
    wrong = max(
        np.abs(subgradient[active] - penalty * np.sign(beta[active])).max(initial=0.0),
        (np.abs(subgradient[~active]) - penalty).max(initial=0.0),
    )
    if wrong > KKT * penalty:
        raise NonFinite(
            f"the Lasso was not solved: its optimality conditions are off by {wrong / penalty:.2g} of the penalty; are "
            f"columns of X collinear?"
        )


def _cross(pivot: Pivot, level: float, low: float, high: float) -> tuple[float, bool]:
    """Where the falling pivot crosses a level, and whether it does between the ends."""
    if pivot(low)[0] < level:
        return float(low), False
    if pivot(high)[0] > level:
        return float(high), False
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if pivot(middle)[0] >= level else (low, middle)
    return float(0.5 * (low + high)), True
