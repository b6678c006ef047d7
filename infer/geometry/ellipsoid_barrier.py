"""The logarithmic barrier of an ellipsoid, and factors of the matrices that describe ellipsoids."""

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..errors import InvalidArgument
from .mirror import AbstractMirror, Point, check_entries, check_fits, gaussians, known, parameter


class InBall(NamedTuple):
    """What a point of an ellipsoid keeps: w = Lᵀx of shape (d,), where A = L Lᵀ, and q = 1 − ‖w‖²."""

    w: Array
    q: Array


class EllipsoidBarrier(AbstractMirror):
    """φ(x) = −log(1 − xᵀAx) on the ellipsoid xᵀAx < 1.

    With A = L Lᵀ it is the barrier of the unit ball in w = Lᵀx, where H is (2/q) I + (4/q²) w wᵀ, q = 1 − ‖w‖². All
    operations are products with L or triangular solves: O(d) for a ball or an ellipsoid along the axes, else O(d²).

    Parameters
    ----------
    matrix
        A, positive definite: a number (the ball of radius A^(−½)), an array of shape (d,) (its diagonal), or (d, d).
    """

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = False
    invertible: ClassVar[bool] = True

    factor: Any

    def __init__(self, matrix: Any):
        self.factor = cholesky("matrix", matrix)

    @property
    def structure(self) -> str:
        """``"rank_one"``, ``"dense"`` for a matrix that is not diagonal."""
        return "dense" if np.ndim(self.factor) == 2 else "rank_one"

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """−log(1 − xᵀAx)."""
        return -jnp.log(_gap(apply(self.factor, x, transpose=True)))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        w = apply(self.factor, x, transpose=True)
        q = _gap(w)
        return Point(x, apply(self.factor, 2 * w / q), InBall(w, q))

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """The point with dual coordinates y: w = z/(1 + R) and q = 2/(1 + R), z = L⁻¹y, R = √(1 + ‖z‖²)."""
        z = solve(self.factor, y)
        denominator = 1 + jnp.sqrt(1 + z @ z)
        w = z / denominator
        return Point(solve(self.factor, w, transpose=True), y, InBall(w, 2 / denominator))

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """H v = L (2/q)(u + (2/q) w (w·u)), u = Lᵀv."""
        w, q = p.extra
        u = apply(self.factor, v, transpose=True)
        return apply(self.factor, 2 / q * (u + 2 / q * w * (w @ u)))

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """P v = L⁻ᵀ (q/2)(u − 2 w (w·u)/(1 + ‖w‖²)), u = L⁻¹v."""
        w, q = p.extra
        u = solve(self.factor, v)
        return solve(self.factor, q / 2 * (u - 2 * w * (w @ u) / (1 + w @ w)), transpose=True)

    def inv_hess_quadratic(self, p: Point, v: Float[Array, " d"]) -> Float[Array, ""]:
        """(q/2)‖u − c w (w·u)‖², with the root of `inv_noise`."""
        w, q = p.extra
        u = solve(self.factor, v)
        return q / 2 * jnp.sum((u - _root(w, q) * w * (w @ u)) ** 2)

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """2 log |L| + d log(2/q) + log((1 + ‖w‖²)/q)."""
        w, q = p.extra
        return 2 * log_det(self.factor, w) + w.size * jnp.log(2 / q) + jnp.log((1 + w @ w) / q)

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """L (√(2/q) ξ + (2/q) w ξ₀)."""
        w, q = p.extra
        xi = gaussians(key, w.size + 1, w.dtype)
        return apply(self.factor, jnp.sqrt(2 / q) * xi[:-1] + 2 / q * w * xi[-1])

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """L⁻ᵀ √(q/2) (ξ − c w (w·ξ)), where (I − c w wᵀ)² = I − 2 w wᵀ/(1 + ‖w‖²)."""
        w, q = p.extra
        xi = gaussians(key, w.size, w.dtype)
        return solve(self.factor, jnp.sqrt(q / 2) * (xi - _root(w, q) * w * (w @ xi)), transpose=True)

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """−h (d + 1 + h) L⁻ᵀw, where h = q/(1 + ‖w‖²)."""
        w, q = p.extra
        h = q / (1 + w @ w)
        return -h * (w.size + 1 + h) * p.x

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether xᵀAx < 1."""
        return jnp.all(jnp.isfinite(x)) & (_gap(apply(self.factor, x, transpose=True)) > 0)

    def check(self, dim: int) -> None:
        """Raise unless the matrix has ``dim`` rows, or is a number."""
        if np.ndim(self.factor) == 2:
            check_fits("matrix", self.factor[:, 0], dim)
        else:
            check_fits("matrix", self.factor, dim)


def _root(w: Array, q: Array) -> Array:
    """The c of (I − c w wᵀ)² = I − 2 w wᵀ/(1 + ‖w‖²)."""
    plus = 1 + w @ w
    return 2 / (plus * (1 + jnp.sqrt(q / plus)))


# -- factors L of a positive definite matrix A = L Lᵀ: a number, a diagonal (d,) or a lower triangle (d, d) -----------


def cholesky(name: str, matrix: Any) -> Any:
    """L of a matrix given as a number, a diagonal or in full.

    Raises
    ------
    InvalidArgument
        The matrix is not symmetric and positive definite, or has another shape.
    """
    matrix = parameter(matrix)
    if np.ndim(matrix) < 2:
        check_entries(name, matrix)
        return matrix**0.5
    entries = known(matrix)
    if np.ndim(matrix) != 2 or np.shape(matrix)[0] != np.shape(matrix)[1]:
        raise InvalidArgument(f"{name} must be a number, a diagonal or a square matrix, got shape {np.shape(matrix)}.")
    if entries is None:
        return jnp.linalg.cholesky(matrix)
    if not np.all(np.isfinite(entries)):
        raise InvalidArgument(f"{name} must be finite, got {entries[~np.isfinite(entries)][0]} in it.")
    if not np.allclose(entries, entries.T, rtol=1e-6, atol=0):
        worst = np.max(np.abs(entries - entries.T))
        raise InvalidArgument(f"{name} must be symmetric, but differs from its transpose by up to {worst:g}.")
    try:
        return np.linalg.cholesky(entries)
    except np.linalg.LinAlgError:
        least = np.linalg.eigvalsh(entries)[0]
        raise InvalidArgument(f"{name} must be positive definite, but has the eigenvalue {least:g}.") from None


def apply(factor: Any, v: Array, transpose: bool = False) -> Array:
    """L v, or Lᵀ v."""
    factor = jnp.asarray(factor, v.dtype)
    if factor.ndim < 2:
        return factor * v
    return (factor.T if transpose else factor) @ v


def solve(factor: Any, v: Array, transpose: bool = False) -> Array:
    """L⁻¹ v, or L⁻ᵀ v."""
    factor = jnp.asarray(factor, v.dtype)
    if factor.ndim < 2:
        return v / factor
    return solve_triangular(factor, v, trans=int(transpose), lower=True)


def log_det(factor: Any, v: Array) -> Array:
    """Log |det L|, for vectors like ``v``."""
    factor = jnp.asarray(factor, v.dtype)
    diagonal = factor if factor.ndim < 2 else jnp.diagonal(factor)
    return jnp.sum(jnp.broadcast_to(jnp.log(diagonal), v.shape))


def _gap(w: Array) -> Array:
    """1 − ‖w‖², negative outside of the ball."""
    norm_squared = w @ w
    norm = jnp.sqrt(jnp.where(norm_squared > 0.25, norm_squared, 1.0))
    return jnp.where(norm_squared > 0.25, (1 - norm) * (1 + norm), 1 - norm_squared)
