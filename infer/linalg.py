"""Factors C of covariances Σ = C Cᵀ: what Gaussian families need of them, without ever forming Σ or an inverse.

A factor draws (x = m + C u), whitens (C⁻¹ x), and describes the directions in which its family may move: the image
S C of the factor under a symmetric S (a mean Hessian) restricted to the family, called a *push* here, which has the
factor's own shape. It comes from Hessian–vector products (`push_image`) or from gradients (`push_outer`), since
E[∇V(m + C u) uᵀ] = S C (Price's theorem).

Costs for dimension d: `Spectral` and `Triangular` O(d²) per draw and O(d³) per step, `Blocks` the same per block,
`Diagonal` O(d), `LowRank` O(d r).
"""

import abc
from collections.abc import Callable
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int


class AbstractFactor(eqx.Module):
    """A factor C of a covariance Σ = C Cᵀ of dimension d."""

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Dimension d."""

    @abc.abstractmethod
    def apply(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C u."""

    @abc.abstractmethod
    def solve(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻¹ x."""

    @abc.abstractmethod
    def solve_transpose(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻ᵀ u."""

    @abc.abstractmethod
    def log_det(self) -> Float[Array, ""]:
        """Log |det C|, half the log determinant of Σ."""

    @abc.abstractmethod
    def probes(self, z: Float[Array, " d"]) -> Float[Array, "k d"]:
        """Vectors whose images under S `push_image` needs; ``z`` is a standard normal draw, for traces."""

    @abc.abstractmethod
    def push_image(self, images: Float[Array, "k d"], z: Float[Array, " d"]) -> Any:
        """The push S C of a symmetric S, from its images of `probes`."""

    @abc.abstractmethod
    def push_outer(self, g: Float[Array, "n d"], u: Float[Array, "n d"]) -> Any:
        """The push whose mean estimate is (1/n) Σᵢ gᵢ uᵢᵀ."""

    @abc.abstractmethod
    def push_inverse(self) -> Any:
        """The push of S = Σ⁻¹, which is C⁻ᵀ."""

    @abc.abstractmethod
    def step(self, push: Any, size: Float[Array, ""], backward: Callable[[Array], Array]) -> Self:
        """A new factor: C − size · push, then ``backward`` on its scalars (singular values, standard deviations)."""

    def dense(self) -> Float[Array, "d d"]:
        """C as a matrix."""
        return jax.vmap(self.apply, out_axes=1)(jnp.eye(self.dim))

    def covariance(self) -> Float[Array, "d d"]:
        """C Cᵀ."""
        c = self.dense()
        return c @ c.T

    def trace(self) -> Float[Array, ""]:
        """Trace of Σ."""
        return jnp.sum(self.dense() ** 2)


def entropy_prox(size: Float[Array, ""] | float) -> Callable[[Array], Array]:
    """Proximal map of minus the entropy in Wasserstein distance, on standard deviations.

    s⁺ = (s + √(s² + 4 size)) / 2, at least √size (Diao et al. 2023, section 3).
    """
    return lambda s: 0.5 * (s + jnp.sqrt(s**2 + 4 * size))


def left_singular(c: Float[Array, "d d"], *, exact: bool = False) -> tuple[Float[Array, "d d"], Float[Array, " d"]]:
    """U and s of C = U diag(s) Wᵀ; what is right of s turns isotropic draws only, and is dropped.

    In 64 bits by the eigenvectors of C Cᵀ, several times faster than a singular value decomposition. A small s is then
    off by up to √eps · max s, which is harmless where a proximal map follows that keeps s above √step; ``exact`` asks
    for the decomposition of C itself.
    """
    if exact or c.dtype != jnp.float64:
        u, s, _ = jnp.linalg.svd(c, full_matrices=False)
        return u, s
    squares, u = jnp.linalg.eigh(c @ c.T)
    return u, jnp.sqrt(jnp.maximum(squares, 0.0))


class Spectral(AbstractFactor):
    """C = U diag(s), U orthogonal.

    Parameters
    ----------
    basis, scale
        U and s > 0, shapes (d, d) and (d,).
    """

    basis: Float[Array, "d d"]
    scale: Float[Array, " d"]

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.scale.shape[0]

    def apply(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """U (s u)."""
        return self.basis @ (self.scale * u)

    def solve(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Uᵀ x / s."""
        return (x @ self.basis) / self.scale

    def solve_transpose(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """U (u / s)."""
        return self.basis @ (u / self.scale)

    def log_det(self) -> Float[Array, ""]:
        """Σ log s."""
        return jnp.sum(jnp.log(self.scale))

    def probes(self, z: Float[Array, " d"]) -> Float[Array, "k d"]:
        """The columns of C."""
        del z
        return (self.basis * self.scale).T

    def push_image(self, images: Float[Array, "k d"], z: Float[Array, " d"]) -> Float[Array, "d d"]:
        """S C."""
        del z
        return images.T

    def push_outer(self, g: Float[Array, "n d"], u: Float[Array, "n d"]) -> Float[Array, "d d"]:
        """Mean of g uᵀ."""
        return g.T @ u / g.shape[0]

    def push_inverse(self) -> Float[Array, "d d"]:
        """U diag(1/s)."""
        return self.basis / self.scale

    def step(self, push: Array, size: Float[Array, ""], backward: Callable[[Array], Array]) -> "Spectral":
        """Singular values of C − size · push, mapped by ``backward``."""
        basis, scale = left_singular(self.basis * self.scale - size * push)
        return Spectral(basis, backward(scale))

    def dense(self) -> Float[Array, "d d"]:
        """U diag(s)."""
        return self.basis * self.scale

    def trace(self) -> Float[Array, ""]:
        """Σ s²."""
        return jnp.sum(self.scale**2)


class Triangular(AbstractFactor):
    """Lower triangular C with positive diagonal.

    Parameters
    ----------
    tril
        C, shape (d, d), zero above the diagonal.
    """

    tril: Float[Array, "d d"]

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.tril.shape[0]

    def apply(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C u."""
        return self.tril @ u

    def solve(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻¹ x."""
        return solve_triangular(self.tril, x, lower=True)

    def solve_transpose(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻ᵀ u."""
        return solve_triangular(self.tril, u, lower=True, trans=1)

    def log_det(self) -> Float[Array, ""]:
        """Σ log Cᵢᵢ."""
        return jnp.sum(jnp.log(jnp.diagonal(self.tril)))

    def probes(self, z: Float[Array, " d"]) -> Float[Array, "k d"]:
        """The columns of C."""
        del z
        return self.tril.T

    def push_image(self, images: Float[Array, "k d"], z: Float[Array, " d"]) -> Float[Array, "d d"]:
        """S C, all of it: the natural gradient needs what is above the diagonal too."""
        del z
        return images.T

    def push_outer(self, g: Float[Array, "n d"], u: Float[Array, "n d"]) -> Float[Array, "d d"]:
        """Mean of g uᵀ."""
        return g.T @ u / g.shape[0]

    def push_inverse(self) -> Float[Array, "d d"]:
        """C⁻ᵀ."""
        return solve_triangular(self.tril, jnp.eye(self.dim, dtype=self.tril.dtype), lower=True, trans=1)

    def step(self, push: Array, size: Float[Array, ""], backward: Callable[[Array], Array]) -> "Triangular":
        """C − size · tril(push), with ``backward`` on the diagonal."""
        half = self.tril - size * jnp.tril(push)
        diagonal = backward(jnp.diagonal(half))
        return Triangular(jnp.tril(half, -1) + jnp.diag(diagonal))

    def dense(self) -> Float[Array, "d d"]:
        """C."""
        return self.tril


class Diagonal(AbstractFactor):
    """C = diag(s).

    Parameters
    ----------
    scale
        s > 0, shape (d,).
    """

    scale: Float[Array, " d"]

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.scale.shape[0]

    def apply(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """S u."""
        return self.scale * u

    def solve(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """X / s."""
        return x / self.scale

    def solve_transpose(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """U / s."""
        return u / self.scale

    def log_det(self) -> Float[Array, ""]:
        """Σ log s."""
        return jnp.sum(jnp.log(self.scale))

    def probes(self, z: Float[Array, " d"]) -> Float[Array, "k d"]:
        """The columns of C: a diagonal has no cheaper exact form (gradients give it at O(d) per draw)."""
        del z
        return jnp.diag(self.scale)

    def push_image(self, images: Float[Array, "k d"], z: Float[Array, " d"]) -> Float[Array, " d"]:
        """The diagonal of S C."""
        del z
        return jnp.diagonal(images)

    def push_outer(self, g: Float[Array, "n d"], u: Float[Array, "n d"]) -> Float[Array, " d"]:
        """Mean of g u, elementwise."""
        return jnp.mean(g * u, axis=0)

    def push_inverse(self) -> Float[Array, " d"]:
        """1 / s."""
        return 1 / self.scale

    def step(self, push: Array, size: Float[Array, ""], backward: Callable[[Array], Array]) -> "Diagonal":
        """|s − size · push|, mapped by ``backward``."""
        return Diagonal(backward(jnp.abs(self.scale - size * push)))

    def covariance(self) -> Float[Array, "d d"]:
        """diag(s²)."""
        return jnp.diag(self.scale**2)

    def trace(self) -> Float[Array, ""]:
        """Σ s²."""
        return jnp.sum(self.scale**2)


class Blocks(AbstractFactor):
    """Block-diagonal C: some coordinates share a factor, coordinates of different blocks are independent.

    Parameters
    ----------
    factors
        For each size b of blocks a `Spectral` or `Triangular` whose leaves have a leading axis of blocks, k.
    index
        For each size of blocks, the coordinates of each block, shape (k, b).
    """

    factors: tuple[AbstractFactor, ...]
    index: tuple[Int[Array, "k b"], ...]

    @property
    def dim(self) -> int:
        """Dimension d."""
        return sum(at.size for at in self.index)

    def apply(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C u, block by block."""
        return self._each(lambda f, x: f.apply(x), u)

    def solve(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻¹ x, block by block."""
        return self._each(lambda f, x: f.solve(x), x)

    def solve_transpose(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻ᵀ u, block by block."""
        return self._each(lambda f, x: f.solve_transpose(x), u)

    def log_det(self) -> Float[Array, ""]:
        """Sum of those of the blocks."""
        return sum(jnp.sum(jax.vmap(lambda f: f.log_det())(factor)) for factor in self.factors)

    def probes(self, z: Float[Array, " d"]) -> Float[Array, "k d"]:
        """The columns of C."""
        del z
        return self.dense().T

    def push_image(self, images: Float[Array, "k d"], z: Float[Array, " d"]) -> tuple[Array, ...]:
        """The diagonal blocks of S C."""
        del z
        return tuple(jax.vmap(lambda at: images.T[at][:, at])(at) for at in self.index)

    def push_outer(self, g: Float[Array, "n d"], u: Float[Array, "n d"]) -> tuple[Array, ...]:
        """Means of g uᵀ within the blocks."""
        return tuple(jnp.einsum("nki,nkj->kij", g[:, at], u[:, at]) / g.shape[0] for at in self.index)

    def push_inverse(self) -> tuple[Array, ...]:
        """C⁻ᵀ, block by block."""
        return tuple(jax.vmap(lambda f: f.push_inverse())(factor) for factor in self.factors)

    def step(self, push: Any, size: Float[Array, ""], backward: Callable[[Array], Array]) -> "Blocks":
        """The step of each block."""
        each = jax.vmap(lambda f, p: f.step(p, size, backward))
        return Blocks(tuple(each(f, p) for f, p in zip(self.factors, push, strict=True)), self.index)

    def _each(self, f: Callable, x: Float[Array, " d"]) -> Float[Array, " d"]:
        out = jnp.zeros_like(x)
        for factor, at in zip(self.factors, self.index, strict=True):
            out = out.at[at].set(jax.vmap(f)(factor, x[at]))
        return out


class LowRank(AbstractFactor):
    """Symmetric C = U diag(s) Uᵀ + σ (I − U Uᵀ), U with r < d orthonormal columns: low rank plus isotropic.

    A push is the pair (S C U, tr(P S C P) / (d − r)) with P = I − U Uᵀ.

    Parameters
    ----------
    basis, scale
        U and s > 0, shapes (d, r) and (r,).
    rest
        σ > 0, the standard deviation in all other directions.
    """

    basis: Float[Array, "d r"]
    scale: Float[Array, " r"]
    rest: Float[Array, ""]

    @property
    def dim(self) -> int:
        """Dimension d."""
        return self.basis.shape[0]

    def apply(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C u."""
        return self._combine(u, self.scale, self.rest)

    def solve(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻¹ x."""
        return self._combine(x, 1 / self.scale, 1 / self.rest)

    def solve_transpose(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """C⁻ᵀ u = C⁻¹ u."""
        return self.solve(u)

    def log_det(self) -> Float[Array, ""]:
        """Σ log s + (d − r) log σ."""
        return jnp.sum(jnp.log(self.scale)) + (self.dim - self.scale.shape[0]) * jnp.log(self.rest)

    def probes(self, z: Float[Array, " d"]) -> Float[Array, "k d"]:
        """U diag(s), and a random direction outside of U for the trace (Hutchinson)."""
        return jnp.concatenate([(self.basis * self.scale).T, self._outside(z)[None]])

    def push_image(self, images: Float[Array, "k d"], z: Float[Array, " d"]) -> tuple[Array, Array]:
        """S C U, and the trace of P S C P by Hutchinson's estimator, per direction outside of U."""
        *_, last = images
        # Not divided by d − r: by the probe's own squared norm, which is exact where S is a multiple of the identity.
        outside = self._outside(z)
        return images[:-1].T, self.rest * jnp.vdot(outside, last) / jnp.vdot(outside, outside)

    def push_outer(self, g: Float[Array, "n d"], u: Float[Array, "n d"]) -> tuple[Array, Array]:
        """Means of g (uᵀ U) and of (P g)·(P u) / (d − r)."""
        inner = jnp.sum(g * jax.vmap(self._outside)(u)) / (self.dim - self.scale.shape[0])
        return g.T @ (u @ self.basis) / g.shape[0], inner / g.shape[0]

    def push_inverse(self) -> tuple[Array, Array]:
        """U diag(1/s), and 1/σ."""
        return self.basis / self.scale, 1 / self.rest

    def step(self, push: Any, size: Float[Array, ""], backward: Callable[[Array], Array]) -> "LowRank":
        """Left singular vectors of U diag(s) − size · S C U; ``backward`` on s and σ."""
        image, rest = push
        q, r = jnp.linalg.qr(self.basis * self.scale - size * image)
        inner, scale, _ = jnp.linalg.svd(r)
        return LowRank(q @ inner, backward(scale), backward(jnp.abs(self.rest - size * rest)))

    def trace(self) -> Float[Array, ""]:
        """Σ s² + (d − r) σ²."""
        return jnp.sum(self.scale**2) + (self.dim - self.scale.shape[0]) * self.rest**2

    def _combine(self, x: Array, scale: Array, rest: Array) -> Array:
        inner = x @ self.basis
        return self.basis @ (scale * inner) + rest * (x - self.basis @ inner)

    def _outside(self, z: Array) -> Array:
        return z - self.basis @ (z @ self.basis)
