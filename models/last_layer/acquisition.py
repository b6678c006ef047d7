"""Where to evaluate next: the logarithm of expected improvement, which stays differentiable where that underflows."""

import math
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array

FAR = -20.0
SERIES = (1.0, -3.0, 15.0, -105.0, 945.0, -10395.0)


def log_expected_improvement(mean: Any, sd: Any, best: Any) -> Array:
    """Log E max(f − best, 0) for f ~ N(mean, sd²), elementwise; for minimisation negate mean and best.

    With z = (mean − best)/sd it is log sd + log(φ(z) + z Φ(z)). For z < −1 the bracket cancels, and is
    φ(z) (1 + z Φ(z)/φ(z)) with the ratio from log Φ; for z < −20 it is φ(z)/z² (1 − 3/z² + 15/z⁴ − …).

    References
    ----------
    S. Ament et al. (2023). Unexpected improvements to expected improvement for Bayesian optimization. NeurIPS.
    arXiv:2310.20708.
    """
    mean, sd, best = (jnp.asarray(a, float) for a in (mean, sd, best))
    z = (mean - best) / sd
    near, low, far = (
        jnp.where(use, z, at) for use, at in ((z > -1, 0.0), ((z <= -1) & (z > FAR), -2.0), (z <= FAR, FAR))
    )
    half = 0.5 * math.log(2 * math.pi)
    direct = jnp.log(jnp.exp(-0.5 * near**2 - half) + near * jnp.exp(log_ndtr(near)))
    scaled = -0.5 * low**2 - half + jnp.log1p(low * jnp.exp(log_ndtr(low) + 0.5 * low**2 + half))
    series = jnp.polyval(jnp.array(SERIES[::-1]), 1 / far**2)
    tail = -0.5 * far**2 - half - 2 * jnp.log(-far) + jnp.log(series)
    return jnp.log(sd) + jnp.where(z > -1, direct, jnp.where(z > FAR, scaled, tail))
