"""Where a flow begins: the normal of a Pathfinder path or of a Laplace approximation, as its whitening."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...target import Target
from ..gaussian.whitening import whitened
from .linear import Whitening

DENSE_DIM = 500


def whitening(key: PRNGKeyArray, target: Target, start: Float[Array, " d"], how: str | None) -> Whitening:
    """The whitening by a normal found from ``start``; where there is no finite one, unit scale at ``start``.

    Above 500 dimensions it is diagonal.

    Parameters
    ----------
    how
        ``"pathfinder"``, ``"laplace"`` (at the mode that L-BFGS reaches), or None for unit scale at ``start``.
    """
    if how is None:
        return Whitening.make(start, jnp.ones_like(start))
    frame = whitened(key, target, start, how)
    if start.shape[0] > DENSE_DIM:
        return Whitening.make(frame.shift, jnp.sqrt(jnp.sum(frame.scale**2, axis=1)))
    return Whitening.make(frame.shift, triangular_factor(frame.scale))


def triangular_factor(root: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """The lower Cholesky factor of root rootᵀ, without forming the product."""
    lower = jnp.linalg.qr(root.T, mode="r").T
    return lower * jnp.sign(jnp.diagonal(lower))
