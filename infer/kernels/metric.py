"""Fields of matrices P_j at the particles, as blocks along the diagonal, in the form that a streamed sum takes.

The velocity of a mirrored Stein sampler holds Σ_j W_ij P_j (x_i − x_j). Where P_j is a diagonal plus a rank-one matrix
this is a few matrix products of the tile W, and no P_j is formed:

==============  =====================  ==========================================================
block           P                      Σ_j W_ij P_j x_i
==============  =====================  ==========================================================
`Identity`      I                      (W 1)_i x_i
`Diagonal`      diag(a)                (W a)_i ⊙ x_i
`RankOne`       diag(a) − l rᵀ         (W a)_i ⊙ x_i − ((W ∘ X Rᵀ) L)_i
`Dense`         any                    Σ_j W_ij vec(P_j), then one matrix–vector product
==============  =====================  ==========================================================

Per pair of particles they cost 2, 2m, 6m and 2m² operations for blocks of m coordinates.
"""

import abc
import itertools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float


class AbstractBlock(eqx.Module):
    """P_j of some consecutive coordinates, for all particles j."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """Number of coordinates, m."""

    @property
    def width(self) -> int:
        """Number of `columns`."""
        return self.size

    @abc.abstractmethod
    def apply(self, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """P_j v_j."""

    @abc.abstractmethod
    def columns(self, n: int, dtype: DTypeLike) -> Float[Array, "n c"]:
        """What is summed with weights W_ij to be `expand`ed at x_i."""

    @abc.abstractmethod
    def expand(self, sums: Float[Array, "r c"], x: Float[Array, "r m"]) -> Float[Array, "r m"]:
        """Σ_j W_ij P_j x_i from the sums over `columns`, but for the part of `outer`."""

    def outer(self) -> tuple[Float[Array, "n m"], Float[Array, "n m"]] | None:
        """(L, R) of the part −l rᵀ, or None."""
        return None


class Identity(AbstractBlock):
    """P = I."""

    length: int = eqx.field(static=True)

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.length

    @property
    def width(self) -> int:
        """One."""
        return 1

    def apply(self, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """The vectors themselves."""
        return v

    def columns(self, n: int, dtype: DTypeLike) -> Float[Array, "n 1"]:
        """Ones."""
        return jnp.ones((n, 1), dtype)

    def expand(self, sums: Float[Array, "r 1"], x: Float[Array, "r m"]) -> Float[Array, "r m"]:
        """(W 1) x."""
        return sums * x


class Diagonal(AbstractBlock):
    """P_j = diag(a_j)."""

    diagonal: Float[Array, "n m"]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.diagonal.shape[1]

    def apply(self, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """Products a ⊙ v."""
        return self.diagonal * v

    def columns(self, n: int, dtype: DTypeLike) -> Float[Array, "n m"]:
        """The diagonals."""
        del n, dtype
        return self.diagonal

    def expand(self, sums: Float[Array, "r m"], x: Float[Array, "r m"]) -> Float[Array, "r m"]:
        """(W a) ⊙ x."""
        return sums * x


class RankOne(AbstractBlock):
    """P_j = diag(a_j) − l_j r_jᵀ."""

    diagonal: Float[Array, "n m"]
    left: Float[Array, "n m"]
    right: Float[Array, "n m"]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.diagonal.shape[1]

    def apply(self, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """Vectors a ⊙ v − l (r·v)."""
        return self.diagonal * v - self.left * jnp.sum(self.right * v, axis=-1, keepdims=True)

    def columns(self, n: int, dtype: DTypeLike) -> Float[Array, "n m"]:
        """The diagonals."""
        del n, dtype
        return self.diagonal

    def expand(self, sums: Float[Array, "r m"], x: Float[Array, "r m"]) -> Float[Array, "r m"]:
        """(W a) ⊙ x."""
        return sums * x

    def outer(self) -> tuple[Float[Array, "n m"], Float[Array, "n m"]]:
        """(L, R)."""
        return self.left, self.right


class Dense(AbstractBlock):
    """Any P_j; for few coordinates."""

    matrices: Float[Array, "n m m"]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self.matrices.shape[1]

    @property
    def width(self) -> int:
        """m²."""
        return self.size**2

    def apply(self, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """P v."""
        return jnp.einsum("nab,nb->na", self.matrices, v)

    def columns(self, n: int, dtype: DTypeLike) -> Float[Array, "n c"]:
        """vec(P)."""
        del dtype
        return self.matrices.reshape(n, -1)

    def expand(self, sums: Float[Array, "r c"], x: Float[Array, "r m"]) -> Float[Array, "r m"]:
        """Σ_j W_ij P_j, times x."""
        return jnp.einsum("rab,rb->ra", sums.reshape(-1, self.size, self.size), x)


Metric = tuple[AbstractBlock, ...]


def slices(metric: Metric) -> list[tuple[AbstractBlock, slice]]:
    """Each block with its coordinates."""
    ends = list(itertools.accumulate(block.size for block in metric))
    return [(block, slice(end - block.size, end)) for block, end in zip(metric, ends, strict=True)]


def apply(metric: Metric, v: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """P_j v_j of all blocks."""
    return jnp.concatenate([block.apply(v[:, at]) for block, at in slices(metric)], axis=1)
