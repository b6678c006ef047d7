"""Evidence of observations with Gaussian noise, the process integrated out: a product of conditionals of y.

    log p̂(y | θ) = Σ log N(y_i | y_c), c the nearest observations that come before i

which is the KL-optimal sparse factor ([1]_, as `LatentGP.columns`) of the covariance of *y*, K + σ² I, with nothing
left of it but its determinant and Wᵀ (y − μ): O(n m³), no other determinant and no probes. Each conditional is exact
([2]_), so that few observations say nearly all about hyper-parameters ([3]_ takes 10, then 30).

References
----------
.. [1] F. Schäfer, M. Katzfuss, H. Owhadi (2021). SIAM J. Sci. Comput. 43.
.. [2] A. V. Vecchia (1988). J. R. Stat. Soc. B 50.
.. [3] J. Guinness (2021). Stat. Comput. 31.
"""

from typing import cast

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Float

from ...infer.variational.sparse_cholesky.factor import BLOCK_BYTES, Structure
from .latent import LatentGP
from .likelihoods import Gaussian


def log_evidence(gp: LatentGP, s: Structure) -> Float[Array, ""]:
    """Log p̂(y) of a process with a `Gaussian` likelihood, at its hyper-parameters."""
    x, noise = jnp.asarray(gp.X)[s.order], cast("Gaussian", gp.likelihood).variance
    residual = (jnp.asarray(gp.y, x.dtype) - gp.mean.at(jnp.asarray(gp.X)))[s.order]
    n, m = s.columns.shape

    def one(rows: Array) -> Array:
        there = rows < n
        block = gp.covariance(x[jnp.where(there, rows, 0)]) + noise * jnp.eye(m)
        # Padding is the identity: it is decoupled, and its gradient is finite.
        block = jnp.where(there[:, None] & there, block, jnp.eye(m))
        return log_conditional(block, jnp.where(there, residual[jnp.where(there, rows, 0)], 0.0))

    # Blocks are made again for the gradient, or it would hold all of them.
    return jnp.sum(jax.lax.map(jax.checkpoint(one), s.columns, batch_size=max(1, min(n, BLOCK_BYTES // (24 * m * m)))))


@jax.custom_jvp
def log_conditional(k: Float[Array, "m m"], r: Float[Array, " m"]) -> Float[Array, ""]:
    """Log density of the last of r ~ N(0, k) given the others.

    Derivatives take products with k̇ in place of those of a Cholesky factor, four times faster: with b the weights of
    the others, v = (−b, 1), s² = vᵀ k v, z = vᵀ r / s and u = (k_cc⁻¹ r_c, 0),

        ds² = vᵀ k̇ v,   dz = (vᵀ ṙ − uᵀ k̇ v) / s − z ds² / 2s²
    """
    return _log_conditional(k, r)[0]


def _log_conditional(k: Array, r: Array) -> tuple[Array, ...]:
    factor = (jnp.linalg.cholesky(k[:-1, :-1]), True)
    solved = cho_solve(factor, jnp.stack([k[:-1, -1], r[:-1]], 1))
    v, u = jnp.append(-solved[:, 0], 1.0), jnp.append(solved[:, 1], 0.0)
    variance = k[-1] @ v
    z = v @ r / jnp.sqrt(variance)
    return -0.5 * (jnp.log(2 * jnp.pi * variance) + z**2), v, u, variance, z


@log_conditional.defjvp
def _derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, v, u, variance, z = _log_conditional(*primals)
    k, r = tangents
    image = k @ v
    along = 0.5 * (v @ image) / variance
    return value, -along - z * ((v @ r - u @ image) / jnp.sqrt(variance) - z * along)
