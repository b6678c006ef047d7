"""Whitening: coordinates in which the target is near a standard normal, by Pathfinder's or Laplace's Gaussian.

The Bures–Wasserstein geometry is not affine invariant, so that the number of steps grows with the condition number of
the posterior; in y = L⁻¹ (x − m₀), with N(m₀, L Lᵀ) near the posterior, it does not.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...target import Target
from .mode import find_mode, positive_definite
from .oracle import Frame

WHITENINGS = ("pathfinder", "laplace")


def whitened(key: PRNGKeyArray, target: Target, start: Float[Array, " d"], how: str) -> Frame:
    """The frame of a Gaussian found from ``start``; where it has no finite one, that of the start itself."""
    loc, scale = _pathfinder(key, target, start) if how == "pathfinder" else _laplace(target, start)
    fine = jnp.all(jnp.isfinite(scale)) & jnp.all(jnp.isfinite(loc))
    scale = jnp.where(fine, scale, jnp.eye(start.shape[0], dtype=start.dtype))
    return Frame(jnp.where(fine, loc, start), scale, jnp.linalg.slogdet(scale)[1])


def _laplace(target: Target, start: Array) -> tuple[Array, Array]:
    mode = find_mode(target.log_density, start, num_newton=3)
    values, vectors = jnp.linalg.eigh(positive_definite(mode.hessian))
    return mode.point, vectors / jnp.sqrt(values)


def _pathfinder(key: PRNGKeyArray, target: Target, start: Array) -> tuple[Array, Array]:
    from ..pathfinder import Pathfinder, normal_of_path

    path = Pathfinder(max_iterations=60)
    state: Any = path.init(key, target, start)
    state, _ = path.step(key, state, target, jnp.zeros((), int))
    loc, scale, basis, factor = normal_of_path(state)
    inner = basis @ (factor - jnp.eye(factor.shape[0], dtype=factor.dtype)) @ basis.T
    return loc, scale[:, None] * (jnp.eye(loc.shape[0], dtype=loc.dtype) + inner)
