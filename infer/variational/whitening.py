"""Whitening: coordinates in which the target is near a standard normal, by Pathfinder's or Laplace's Gaussian.

The Bures–Wasserstein geometry is not affine invariant, so that the number of steps grows with the condition number of
the posterior; in y = L⁻¹ (x − m₀), with N(m₀, L Lᵀ) near the posterior, it does not.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..target import Target
from .mode import find_mode, positive_definite

WHITENINGS = ("pathfinder", "laplace")
NUM_DRAWS = 32
"""Draws by which a normal found is compared with a unit normal at the start."""


class Frame(eqx.Module):
    """Whitening coordinates y: u = shift + scale y.

    Parameters
    ----------
    shift, scale
        Shapes (d,) and (d, d), the latter with log |det| ``log_det``.
    fits
        Whether they are those of the normal found; else the start, and the identity.
    """

    shift: Float[Array, " d"]
    scale: Float[Array, "d d"]
    log_det: Float[Array, ""]
    fits: Bool[Array, ""]

    def to_u(self, y: Float[Array, " d"]) -> Float[Array, " d"]:
        """The point u of coordinates ``y``."""
        return self.shift + self.scale @ y


def whitened(key: PRNGKeyArray, target: Target, start: Float[Array, " d"], how: str) -> Frame:
    """The frame of a Gaussian found from ``start``.

    Where it is not finite, or fits worse than N(start, I), it is that of the start itself: the mode of a funnel, or of
    an improper posterior, may be nowhere near the mass. Compared are medians of the log weights, which one draw far out
    in a tail does not decide as it does the ELBO.
    """
    key_path, key_draws = jax.random.split(key)
    loc, scale = _pathfinder(key_path, target, start) if how == "pathfinder" else _laplace(target, start)
    fine = jnp.all(jnp.isfinite(scale)) & jnp.all(jnp.isfinite(loc))
    unit = jnp.eye(start.shape[0], dtype=start.dtype)
    loc, scale = jnp.where(fine, loc, start), jnp.where(fine, scale, unit)
    log_det = jnp.linalg.slogdet(scale)[1]
    z = jax.random.normal(key_draws, (NUM_DRAWS, start.shape[0]), start.dtype)

    def log_weights(z: Array) -> Array:
        there, here = target.log_density(loc + scale @ z), target.log_density(start + z)
        return jnp.stack([there, here]) + 0.5 * z @ z

    each = jax.lax.map(log_weights, z)
    found, plain = jnp.median(jnp.where(jnp.isfinite(each), each, -jnp.inf), axis=0)
    fits = fine & (found + log_det >= plain)
    return Frame(jnp.where(fits, loc, start), jnp.where(fits, scale, unit), jnp.where(fits, log_det, 0.0), fits)


def _laplace(target: Target, start: Array) -> tuple[Array, Array]:
    mode = find_mode(target.log_density, start, num_newton=3)
    values, vectors = jnp.linalg.eigh(positive_definite(mode.hessian))
    return mode.point, vectors / jnp.sqrt(values)


def _pathfinder(key: PRNGKeyArray, target: Target, start: Array) -> tuple[Array, Array]:
    from .pathfinder import Pathfinder, normal_of_path

    path = Pathfinder(max_iterations=60)
    state: Any = path.init(key, target, start)
    state, _ = path.step(key, state, target, jnp.zeros((), int))
    loc, scale, basis, factor = normal_of_path(state)
    inner = basis @ (factor - jnp.eye(factor.shape[0], dtype=factor.dtype)) @ basis.T
    return loc, scale[:, None] * (jnp.eye(loc.shape[0], dtype=loc.dtype) + inner)
