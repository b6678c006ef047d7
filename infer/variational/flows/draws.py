"""Draws of the posterior that a flow is fitted to: from a user, in an order of their own, a part of them held out."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...errors import InvalidArgument
from .linear import Whitening

HELD_OUT = 0.1
MIN_DRAWS = 20


def given_draws(given: Any) -> Any:
    """Draws as an array (n, d), from an array or a `Posterior`."""
    if given is None:
        return None
    if hasattr(given, "unconstrained"):
        given = given.unconstrained()
        given = given.reshape(-1, given.shape[-1])
    draws = np.asarray(given)
    if draws.ndim != 2 or len(draws) < MIN_DRAWS:
        raise InvalidArgument(
            f"draws must be a Posterior or an array of shape (n, d) with n >= {MIN_DRAWS}, got shape {draws.shape}."
        )
    if not np.isfinite(draws).all():
        raise InvalidArgument(f"draws has {int((~np.isfinite(draws)).sum())} values that are not finite.")
    # In an order of its own, so that what is held out is from all chains and times.
    return draws[np.random.default_rng(0).permutation(len(draws))]


def held_out(n: int) -> int:
    """How many of ``n`` draws are held out."""
    return max(1, round(HELD_OUT * n))


def whitening_of(draws: Float[Array | np.ndarray, "n d"]) -> Whitening:
    """The whitening by the moments of the draws."""
    points = jnp.asarray(draws, float)
    covariance = jnp.atleast_2d(jnp.cov(points, rowvar=False))
    small = 1e-6 * jnp.diag(jnp.diag(covariance))  # where there are fewer draws than dimensions
    return Whitening.make(points.mean(0), jnp.linalg.cholesky(covariance * (1 - 1e-6) + small))
