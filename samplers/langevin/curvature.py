"""The curvature of a target's smooth part, by products with its Hessian."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...infer.target.primal import Primal

POWER_STEPS = 30
FLAT = 1e-6
"""The least curvature that is told."""


def hessian_product(target: Primal, x: Array, v: Array) -> Array:
    """∇²f(x) v."""
    return -jax.jvp(jax.grad(target.smooth_log_density), (x,), (v,))[1]


@eqx.filter_jit
def curvature(target: Primal, x: Array, metric: Array | None) -> Array:
    """The largest eigenvalue in size of ∇²f(x), or of M^{½}∇²f(x)M^{½}, by power iteration; M (d, d), or a diagonal."""
    root = jnp.ones_like(x) if metric is None else jnp.sqrt(metric) if metric.ndim == 1 else jnp.linalg.cholesky(metric)

    def product(v: Array) -> Array:
        if root.ndim == 1:
            return root * hessian_product(target, x, root * v)
        return root.T @ hessian_product(target, x, root @ v)

    def once(_: int, v: Array) -> Array:
        w = product(v)
        return w / jnp.maximum(jnp.linalg.norm(w), jnp.finfo(w.dtype).tiny)

    start = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    v = jax.lax.fori_loop(0, POWER_STEPS, once, start / jnp.linalg.norm(start))
    return jnp.maximum(jnp.linalg.norm(product(v)), FLAT)
