"""Covariance families: the first factor of a run, for each structure and geometry."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...errors import InvalidArgument
from ...linalg import AbstractFactor, Blocks, Diagonal, LowRank, Spectral, Triangular
from ...target import Target

COVARIANCES = ("full", "block", "diagonal", "low_rank")
GEOMETRIES = ("bures", "cholesky")
MAX_FULL_DIM = 2000


def first_factor(
    key: PRNGKeyArray,
    covariance: Float[Array, "..."],
    dim: int,
    structure: str,
    *,
    triangular: bool = False,
    blocks: tuple[tuple[int, ...], ...] = (),
    rank: int = 1,
) -> AbstractFactor:
    """A factor of the given structure whose covariance is, or is nearest to, ``covariance``.

    Parameters
    ----------
    key
        For the directions of a low-rank factor that has none yet.
    covariance
        A number, a diagonal (d,) or a matrix (d, d).
    triangular
        Lower triangular instead of spectral factors.
    blocks
        Coordinates of each block.
    """
    diagonal = jnp.broadcast_to(jnp.diagonal(covariance) if covariance.ndim == 2 else covariance, (dim,))
    if structure == "diagonal":
        return Diagonal(jnp.sqrt(diagonal))
    if structure == "low_rank":
        if covariance.ndim == 0:
            basis, _ = jnp.linalg.qr(jax.random.normal(key, (dim, rank), diagonal.dtype))
            return LowRank(basis, jnp.full(rank, jnp.sqrt(covariance)), jnp.sqrt(covariance))
        values, vectors = jnp.linalg.eigh(covariance if covariance.ndim == 2 else jnp.diag(diagonal))
        return LowRank(vectors[:, -rank:], jnp.sqrt(values[-rank:]), jnp.sqrt(jnp.mean(values[:-rank])))
    dense = covariance if covariance.ndim == 2 else jnp.diag(diagonal)
    one = _triangular if triangular else _spectral
    if structure == "full":
        return one(dense)
    sizes = sorted({len(block) for block in blocks})
    index = [jnp.asarray([block for block in blocks if len(block) == size], jnp.int32) for size in sizes]
    return Blocks(tuple(jax.vmap(lambda at: one(dense[at][:, at]))(at) for at in index), tuple(index))


def site_blocks(target: Target) -> tuple[tuple[int, ...], ...]:
    """One block of coordinates per latent site."""
    blocks, at = [], 0
    for site in target.sites:
        if site.kind == "latent":
            blocks.append(tuple(range(at, at + site.size)))
            at += site.size
    return tuple(blocks)


def check_blocks(blocks: Any, dim: int) -> None:
    """Raise unless every coordinate stands in exactly one block."""
    found = sorted(i for block in blocks for i in block)
    if found != list(range(dim)):
        raise InvalidArgument(
            f"blocks must hold each of the coordinates 0 to {dim - 1} once, got {blocks!r}; leave it out for one block "
            f"per site."
        )


def check_covariance(name: str, value: Any) -> None:
    """Raise unless ``value`` is a number > 0, a vector of such, or a symmetric positive definite matrix of floats."""
    array = np.asarray(value)
    if array.dtype.kind not in "f" and not isinstance(value, int | float):
        raise InvalidArgument(f"{name} must hold floating-point numbers, got dtype {array.dtype}; use .astype(float).")
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != array.shape[1]):
        raise InvalidArgument(f"{name} has shape {array.shape}; it must be a number, (d,) or (d, d).")
    if not np.all(np.isfinite(array)):
        raise InvalidArgument(f"{name} must be finite, got {array[~np.isfinite(array)].flat[0]}.")
    if array.ndim < 2:
        if np.any(array <= 0):
            raise InvalidArgument(f"{name} must hold variances > 0, got {array.min():g}.")
        return
    values = np.linalg.eigvalsh(array)
    if not np.allclose(array, array.T, rtol=1e-6, atol=1e-9 * np.abs(array).max()) or values[0] <= 0:
        raise InvalidArgument(
            f"{name} must be symmetric positive definite, got a matrix with eigenvalues from {values[0]:g} to "
            f"{values[-1]:g}{'' if np.allclose(array, array.T) else ' that is not symmetric'}."
        )


def check_size(method: str, structure: str, dim: int) -> None:
    """Raise where a full covariance is out of reach."""
    if structure == "full" and dim > MAX_FULL_DIM:
        gigabytes = 4 * 8 * dim**2 / 2**30
        raise InvalidArgument(
            f"covariance='full' of {method} in dimension {dim:,} needs about {gigabytes:.1f} GB and {30 * dim**3:.1g} "
            f"operations a step (the limit is {MAX_FULL_DIM:,}); use covariance='diagonal' or 'low_rank'."
        )


def _spectral(covariance: Float[Array, "d d"]) -> Spectral:
    values, vectors = jnp.linalg.eigh(covariance)
    return Spectral(vectors, jnp.sqrt(values))


def _triangular(covariance: Float[Array, "d d"]) -> Triangular:
    return Triangular(jnp.linalg.cholesky(covariance))
