"""Curvature of −log π: products with its Hessian, and a look at its sign before anything is optimised."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import InvalidArgument
from ..run.start import Warm
from ..target import Target


def hessian_vector(v: Callable, x: Float[Array, " d"], p: Float[Array, " d"]) -> Float[Array, " d"]:
    """∇²V(x) p, forward over reverse."""
    return jax.jvp(jax.grad(v), (x,), (p,))[1]


def gradient_difference(v: Callable, x: Float[Array, " d"], p: Float[Array, " d"]) -> Float[Array, " d"]:
    """∇²V(x) p by a central difference of gradients, for a unit vector p."""
    gradient = jax.grad(v)
    h = jnp.finfo(x.dtype).eps ** (1 / 3) * (1 + jnp.linalg.norm(x))
    return (gradient(x + h * p) - gradient(x - h * p)) / (2 * h)


def check_curvature(key: PRNGKeyArray, target: Target, start: Any, covariance: Any) -> None:
    """Raise where −log π curves downwards, or not at all, in every direction tried around the starts.

    Raises
    ------
    InvalidArgument
        With the point, the log density there, and the curvatures found.
    """
    u = _first_point(start, target.dim)
    found = np.asarray(_probed(key, target, u, jnp.asarray(covariance, u.dtype)))
    found = found[np.isfinite(found)]
    if not found.size or np.any(found > 0):
        return
    where = f"at {np.array2string(np.asarray(u), precision=4, threshold=6)} (log density {_value(target, u):.6g})"
    if np.all(found == 0):
        raise InvalidArgument(
            f"target has a log density without curvature around the start, {where}: no Gaussian is nearest to it; "
            f"give its parameters a proper prior."
        )
    raise InvalidArgument(
        f"target has a log density with positive curvature everywhere around the start, {where}; of -log density it "
        f"was {found.min():.3g} to {found.max():.3g} in {found.size} directions: is its sign flipped? A target returns "
        f"log density, not its negative; otherwise give another start=."
    )


@jax.jit
def _probed(key: PRNGKeyArray, target: Target, u: Array, covariance: Array) -> Array:
    """Curvatures of −log π along random directions at draws of N(u, covariance), and of three times its width."""
    key_draws, key_probes = jax.random.split(key)
    d = u.shape[0]
    scale = jnp.linalg.cholesky(covariance) if covariance.ndim == 2 else jnp.sqrt(covariance)
    z = jax.random.normal(key_draws, (8, d), u.dtype)
    z = jnp.concatenate([z, 3 * z])
    x = u + (z @ scale.T if covariance.ndim == 2 else z * scale)
    p = jax.random.normal(key_probes, (x.shape[0], 4, d), u.dtype)
    p = p / jnp.linalg.norm(p, axis=-1, keepdims=True)
    v = lambda u: -target.log_density(u)  # noqa: E731
    one = lambda x, p: jnp.vdot(p, gradient_difference(v, x, p))  # noqa: E731
    return jax.vmap(jax.vmap(one, (None, 0)))(x, p).ravel()


def _value(target: Target, u: Array) -> float:
    return float(target.log_density(u))


def _first_point(start: Any, dim: int) -> Array:
    first = start[0] if isinstance(start, list) else start
    u = first.u if isinstance(first, Warm) else first
    return jnp.reshape(jnp.asarray(u), (-1, dim))[0]
