"""Linear layers: a fixed whitening, a trained triangular or diagonal map, and the LU-parameterised mixing of layers.

The last layer of a flow, next to u, is x ↦ m + L x, and before it comes x ↦ δ + M x. The former is Pathfinder's or of
a Laplace approximation and stays; only the latter is trained. Adam's steps have one length in all coordinates, so that
without the fixed one a posterior with standard deviations of 1e-3 and 1e3 could not be learned.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import score_recursion as recursion
from .bijection import Bijection, Structure

SOFTPLUS_ONE = 0.5413248546129181  # log(e − 1), where softplus is 1


class Whitening(Bijection):
    """y = m + L x, fixed: no gradient reaches m and L.

    Parameters
    ----------
    loc
        m, shape (d,).
    scale
        L, lower triangular with positive diagonal, shape (d, d); or a diagonal of shape (d,).
    """

    loc: Any
    scale: Any
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "linear"

    @classmethod
    def make(cls, loc: Float[Array, " d"], scale: Float[Array, "..."]) -> "Whitening":
        """With both marked as fixed, for paramax and so for our estimators."""
        from paramax import NonTrainable

        return cls(NonTrainable(loc), NonTrainable(scale), loc.shape[0])

    def _fixed(self) -> tuple[Array, Array]:
        from paramax import unwrap

        # flowjax unwraps a bijection before it uses it: then they are arrays already.
        return unwrap((self.loc, self.scale))

    def standard_deviations(self) -> Float[Array, " d"]:
        """Of y where x is standard normal."""
        _, scale = self._fixed()
        return scale if scale.ndim == 1 else jnp.sqrt(jnp.sum(scale**2, axis=1))

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """The draws of N(m, L Lᵀ) where x is standard."""
        del condition
        return _affine(*self._fixed(), x)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """L⁻¹ (y − m)."""
        del condition
        return _affine_inverse(*self._fixed(), y)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """G L⁻¹."""
        return (*self.transform_and_log_det(x), _push(self._fixed()[1], g))


class AffineMap(Bijection):
    """y = δ + M x with a triangular M of positive diagonal, or a diagonal one; begins at the identity.

    The diagonal is a softplus: Lipschitz, unlike exp, so that gradients stay bounded where scales are large (Kim et al.
    2023, arXiv:2303.10472).

    Parameters
    ----------
    loc
        δ, shape (d,).
    diagonal
        Its softplus is the diagonal of M, shape (d,).
    lower
        The strict lower triangle is M's, shape (d, d); None for a diagonal M.
    """

    loc: Float[Array, " d"]
    diagonal: Float[Array, " d"]
    lower: Float[Array, "d d"] | None
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "linear"

    @classmethod
    def make(cls, dim: int, *, full: bool) -> "AffineMap":
        """The identity."""
        lower = jnp.zeros((dim, dim)) if full else None
        return cls(jnp.zeros(dim), jnp.full(dim, SOFTPLUS_ONE), lower, dim)

    def _scale(self) -> Array:
        diagonal = jax.nn.softplus(self.diagonal)
        return diagonal if self.lower is None else jnp.tril(self.lower, -1) + jnp.diag(diagonal)

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """δ + M x."""
        del condition
        return _affine(self.loc, self._scale(), x)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """M⁻¹ (y − δ)."""
        del condition
        return _affine_inverse(self.loc, self._scale(), y)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """G M⁻¹."""
        return (*self.transform_and_log_det(x), _push(self._scale(), g))


class LUMixing(Bijection):
    """y = (L U x)[indices], L unit lower and U upper triangular: a general linear map between layers.

    Kingma & Dhariwal (2018), Glow, arXiv:1807.03039, eq. 10. Begins as the permutation. log|det| = Σ log u_ii.

    Parameters
    ----------
    lower, upper
        Their strict triangles are those of L and U, shape (d, d).
    log_diagonal
        Log diagonal of U, shape (d,).
    indices
        A permutation, fixed.
    """

    lower: Float[Array, "d d"]
    upper: Float[Array, "d d"]
    log_diagonal: Float[Array, " d"]
    indices: Int[Array, " d"]
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "linear"

    @classmethod
    def make(cls, indices: Int[Array, " d"]) -> "LUMixing":
        """The permutation."""
        dim = indices.shape[-1]
        return cls(jnp.zeros((dim, dim)), jnp.zeros((dim, dim)), jnp.zeros(dim), indices, dim)

    def _factors(self) -> tuple[Array, Array]:
        lower = jnp.tril(self.lower, -1) + jnp.eye(self.dim)
        return lower, jnp.triu(self.upper, 1) + jnp.diag(jnp.exp(self.log_diagonal))

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """Two triangular products."""
        del condition
        lower, upper = self._factors()
        return (lower @ (upper @ x))[self.indices], jnp.sum(self.log_diagonal)

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """Two triangular solves."""
        del condition
        lower, upper = self._factors()
        y = jnp.zeros_like(y).at[self.indices].set(y)
        x = solve_triangular(upper, solve_triangular(lower, y, lower=True, unit_diagonal=True), lower=False)
        return x, -jnp.sum(self.log_diagonal)

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """G U⁻¹ L⁻¹, in the new order."""
        lower, upper = self._factors()
        pushed = recursion.triangular(lower, recursion.triangular(upper, g, lower=False), lower=True)
        return (*self.transform_and_log_det(x), pushed[self.indices])


def random_permutation(key: PRNGKeyArray, dim: int) -> Int[Array, " d"]:
    """A random order that swaps the two halves, so that what one coupling layer kept the next one moves."""
    half = dim // 2
    first, second = jax.random.split(key)
    upper = half + jax.random.permutation(first, dim - half)
    return jnp.concatenate([upper, jax.random.permutation(second, half)])


def _affine(loc: Array, scale: Array, x: Array) -> tuple[Array, Array]:
    if scale.ndim == 1:
        return loc + scale * x, jnp.sum(jnp.log(scale))
    return loc + scale @ x, jnp.sum(jnp.log(jnp.diagonal(scale)))


def _affine_inverse(loc: Array, scale: Array, y: Array) -> tuple[Array, Array]:
    if scale.ndim == 1:
        return (y - loc) / scale, -jnp.sum(jnp.log(scale))
    return solve_triangular(scale, y - loc, lower=True), -jnp.sum(jnp.log(jnp.diagonal(scale)))


def _push(scale: Array, g: Array) -> Array:
    """G' with G' A = G."""
    if scale.ndim == 1:
        return jax.lax.stop_gradient(g / scale)
    return recursion.triangular(scale, g, lower=True)
