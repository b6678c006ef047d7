"""The logarithmic barrier of a polytope."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..errors import InvalidArgument, NotAvailable
from .mirror import AbstractMirror, Point, check_fits, gaussians, known, parameter


class InPolytope(NamedTuple):
    """What a point of a polytope keeps: the slacks b − Ax of shape (m,) and the lower Cholesky factor of H, (d, d)."""

    slacks: Array
    chol: Array


class PolytopeBarrier(AbstractMirror):
    """φ(x) = −Σⱼ log(bⱼ − aⱼ·x) on the polytope A x < b, which may be unbounded but must not contain a line.

    H = AᵀD²A with D = diag(1/slacks). ∇φ has no inverse in closed form: this mirror serves samplers in the primal
    (MAPLA). A point costs O(m d² + d³/3) operations, its Cholesky factor included, everything else O(m d + d²).

    Parameters
    ----------
    A
        Of shape (m, d), of rank d.
    b
        Of shape (m,).
    """

    full_dual: ClassVar[bool] = True
    jointly_convex: ClassVar[bool] = False
    structure: ClassVar[str] = "dense"
    invertible: ClassVar[bool] = False

    A: Any = eqx.field(converter=parameter)
    b: Any = eqx.field(converter=parameter)

    def __check_init__(self) -> None:
        check_halfspaces(self.A, self.b)
        normals = known(self.A)
        if normals is not None and np.linalg.matrix_rank(normals) < normals.shape[1]:
            raise InvalidArgument(
                f"A has rank {np.linalg.matrix_rank(normals)} in {normals.shape[1]} dimensions, so that the polytope "
                f"contains a whole line, on which its barrier is flat; add bounds."
            )

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """−Σ log(b − Ax)."""
        return -jnp.sum(jnp.log(self._slacks(x)))

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point with primal coordinates x."""
        slacks = self._slacks(x)
        rows = self._normals(x) / slacks[:, None]
        return Point(x, jnp.sum(rows, axis=0), InPolytope(slacks, jnp.linalg.cholesky(rows.T @ rows)))

    def from_dual(self, y: Float[Array, " d"]) -> Point:
        """Not available: ∇φ has no inverse in closed form."""
        raise NotAvailable(
            f"{type(self).__name__} has no inverse mirror map (asked for at a dual of shape {np.shape(y)}); use MAPLA, "
            f"which proposes in the primal."
        )

    def hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """H v = AᵀD²A v."""
        rows = self._normals(p.x) / p.extra.slacks[:, None]
        return rows.T @ (rows @ v)

    def inv_hess_mv(self, p: Point, v: Float[Array, " d"]) -> Float[Array, " d"]:
        """P v = H⁻¹ v."""
        return cho_solve((p.extra.chol, True), v)

    def log_det_hess(self, p: Point) -> Float[Array, ""]:
        """Log det AᵀD²A."""
        return 2 * jnp.sum(jnp.log(jnp.diagonal(p.extra.chol)))

    def noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """AᵀD ξ with m Gaussians."""
        slacks = p.extra.slacks
        return self._normals(p.x).T @ (gaussians(key, slacks.size, slacks.dtype) / slacks)

    def inv_noise(self, key: PRNGKeyArray, p: Point) -> Float[Array, " d"]:
        """C⁻ᵀ ξ with H = C Cᵀ."""
        xi = gaussians(key, p.x.size, p.x.dtype)
        return solve_triangular(p.extra.chol, xi, trans=1, lower=True)

    def div_inv_hess(self, p: Point) -> Float[Array, " d"]:
        """−P ∇ log det H = −2 P AᵀD ℓ, where ℓⱼ = ‖C⁻¹aⱼ/slackⱼ‖² are the leverages."""
        rows = self._normals(p.x) / p.extra.slacks[:, None]
        leverages = jnp.sum(solve_triangular(p.extra.chol, rows.T, lower=True) ** 2, axis=0)
        return -2 * self.inv_hess_mv(p, rows.T @ leverages)

    def contains(self, x: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether A x < b."""
        return jnp.all(jnp.isfinite(x)) & jnp.all(self._slacks(x) > 0)

    def check(self, dim: int) -> None:
        """Raise unless A has ``dim`` columns."""
        check_fits("each row of A", self.A[0], dim)

    def _normals(self, x: Array) -> Array:
        return jnp.asarray(self.A, x.dtype)

    def _slacks(self, x: Array) -> Array:
        return jnp.asarray(self.b, x.dtype) - self._normals(x) @ x


def check_halfspaces(normals: Any, offsets: Any) -> None:
    """Raise unless A x < b is a system of finite inequalities, one per row of A."""
    if np.ndim(normals) != 2 or np.shape(offsets) != np.shape(normals)[:1] or 0 in np.shape(normals):
        raise InvalidArgument(
            f"A must have shape (m, d) and b (m,), one row per inequality; got {np.shape(normals)} and "
            f"{np.shape(offsets)}."
        )
    for name, entries in (("A", known(normals)), ("b", known(offsets))):
        if entries is not None and not np.all(np.isfinite(entries)):
            raise InvalidArgument(f"{name} must be finite, got {entries[~np.isfinite(entries)][0]}; drop such rows.")
