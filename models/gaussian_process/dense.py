"""The prior of a latent process as a dense matrix, and of low rank by inducing inputs.

Dense ([1]_, section 3.4): B = I + Λ^½ K Λ^½ = L Lᵀ, whose eigenvalues are at least 1 whatever K is. n³/3 FLOPs, 8 n²
bytes and as much again for a gradient.

Low rank ([2]_; with sites in place of noise [3]_): u = g(Z) at M inducing inputs, w_i = L_u⁻¹ k(Z, x_i) with K_ZZ = L_u
L_uᵀ, B = I + Σ λ_i w_i w_iᵀ. Sites see k(x_i, Z) K_ZZ⁻¹ u only; the residual k_ii − |w_i|² is left to the prior, so
that the ELBO pays E log p for it. n M² FLOPs, 8 n M bytes. Under Gaussian noise this is the bound of [2]_, log N(y; μ,
Q + σ² I) − tr(K − Q) / (2 σ²).

References
----------
.. [1] C. E. Rasmussen, C. K. I. Williams (2006). Gaussian processes for machine learning. MIT Press.
.. [2] M. K. Titsias (2009). Variational learning of inducing variables in sparse Gaussian processes. AISTATS.
.. [3] V. Adam, P. E. Chang, M. E. Khan, A. Solin (2021). NeurIPS. arXiv:2111.03412.
.. [4] D. R. Burt, C. E. Rasmussen, M. van der Wilk (2020). Convergence of sparse variational inference in Gaussian
   processes regression. JMLR 21(131).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from .sites import AbstractForm, Conditioned, Sites, nuggets, of_smooth, posterior_density

if TYPE_CHECKING:
    from .latent import LatentGP

BLOCK_BYTES = 64 * 2**20
DENSE_DENSITY = 1000
"""Observations up to which the density of a low-rank q is that of a dense matrix: its diagonal part may be 0."""
JITTER = 1e-9
"""Added to K_ZZ, relative to the variance. It makes u a noisy look at g(Z), for which the bound holds as well."""
SPENT = 1e-9
"""Share of the variance below which a further inducing input would tell nothing."""


class Dense(AbstractForm):
    """K itself."""

    def condition(self, gp: "LatentGP", sites: Sites) -> Conditioned:
        """See `AbstractForm`."""
        x, root = jnp.asarray(gp.X), jnp.sqrt(sites.precision)
        k = gp.kernel.matrix(x, x)
        lower = _factor(root[:, None] * k * root)
        half = solve_triangular(lower, root[:, None] * k, lower=True)
        pulled = k @ sites.linear
        mean = pulled - half.T @ (half @ sites.linear)
        evidence = 0.5 * jnp.vdot(sites.linear, mean) - jnp.sum(jnp.log(jnp.diagonal(lower)))
        explained = jnp.maximum(jnp.diagonal(k) - jnp.sum(half**2, 0), 0.0)
        return Conditioned(mean, explained, jnp.zeros_like(mean), evidence)

    def draw(self, gp: "LatentGP", sites: Sites, key: PRNGKeyArray, n: int) -> Float[Array, "k n"]:
        """See `AbstractForm`."""
        return self.draw_at(gp, sites, jnp.asarray(gp.X), key, n)

    def predict(self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], *, gradients: bool) -> tuple[Array, ...]:
        """See `AbstractForm`."""
        moments = self._at(gp, sites)
        return in_blocks(lambda at: moments(at, joint=False), x, gp.dim, gradients=gradients)

    def draw_at(
        self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], key: PRNGKeyArray, n: int
    ) -> Float[Array, "s k"]:
        """See `AbstractForm`."""
        return draw_normal(*self._at(gp, sites)(x, joint=True), key, n)

    def log_density(self, gp: "LatentGP", given: Sites, f: Float[Array, " n"]) -> Float[Array, ""]:
        """See `AbstractForm`."""
        return posterior_density(gp, self, given, f, gp.log_prior(f))

    def _at(self, gp: "LatentGP", sites: Sites) -> Callable[..., tuple[Array, Array]]:
        """Mean and variance, or covariance, of g − μ as a function of inputs."""
        data, root = jnp.asarray(gp.X), jnp.sqrt(sites.precision)
        k = gp.kernel.matrix(data, data)
        lower = _factor(root[:, None] * k * root)
        weight = sites.linear - root * _solve(lower, root * (k @ sites.linear))  # K⁻¹ E (g − μ)

        def moments(x: Array, *, joint: bool) -> tuple[Array, Array]:
            cross = gp.kernel.matrix(data, x)
            half = solve_triangular(lower, root[:, None] * cross, lower=True)
            if joint:
                return cross.T @ weight, gp.kernel.matrix(x, x) - half.T @ half
            return cross.T @ weight, jnp.maximum(gp.kernel.diagonal(x) - jnp.sum(half**2, 0), 0.0)

        return moments


class Inducing(AbstractForm):
    """K by way of the process at a few inputs.

    Parameters
    ----------
    inputs
        Z, shape (M, d).
    """

    inputs: Float[Array, "M d"]

    def condition(self, gp: "LatentGP", sites: Sites) -> Conditioned:
        """See `AbstractForm`."""
        x = jnp.asarray(gp.X)
        w, lower, c = self._parts(gp, sites)
        half = solve_triangular(lower, w, lower=True)
        evidence = 0.5 * jnp.sum(c**2) - jnp.sum(jnp.log(jnp.diagonal(lower)))
        residual = jnp.maximum(gp.kernel.diagonal(x) - jnp.sum(w**2, 0), 0.0)
        return Conditioned(half.T @ c, jnp.sum(half**2, 0), residual, evidence)

    def draw(self, gp: "LatentGP", sites: Sites, key: PRNGKeyArray, n: int) -> Float[Array, "k n"]:
        """See `AbstractForm`."""
        w, lower, c = self._parts(gp, sites)
        z = c + jax.random.normal(key, (n, len(c)), c.dtype)
        return z @ solve_triangular(lower, w, lower=True)

    def predict(self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], *, gradients: bool) -> tuple[Array, ...]:
        """See `AbstractForm`."""
        moments = self._at(gp, sites)
        return in_blocks(lambda at: moments(at, joint=False), x, len(self.inputs), gradients=gradients)

    def draw_at(
        self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], key: PRNGKeyArray, n: int
    ) -> Float[Array, "s k"]:
        """See `AbstractForm`."""
        return draw_normal(*self._at(gp, sites)(x, joint=True), key, n)

    def log_density(self, gp: "LatentGP", given: Sites, f: Float[Array, " n"]) -> Float[Array, ""]:
        """See `AbstractForm`: f has a covariance of low rank, H Hᵀ, plus a diagonal δ."""
        x = jnp.asarray(gp.X)
        t = nuggets(gp, x)
        shrink = 1 / (1 + given.precision * t)
        w, lower, c = self._parts(gp, of_smooth(gp, given))
        h = shrink[:, None] * solve_triangular(lower, w, lower=True).T
        delta = shrink * t + jnp.maximum(gp.kernel.diagonal(x) - jnp.sum(w**2, 0), 0.0)
        r = f - gp.mean.at(x) - h @ c - shrink * t * given.linear
        if gp.dim <= DENSE_DENSITY:
            root = jnp.linalg.cholesky(h @ h.T + jnp.diag(delta))
            white, log_det = solve_triangular(root, r, lower=True), 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
            return -0.5 * (white @ white + log_det + gp.dim * jnp.log(2 * jnp.pi))
        scaled = h / delta[:, None]
        root = _factor(h.T @ scaled)
        white = solve_triangular(root, scaled.T @ r, lower=True)
        log_det = jnp.sum(jnp.log(delta)) + 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
        return -0.5 * (r @ (r / delta) - white @ white + log_det + gp.dim * jnp.log(2 * jnp.pi))

    def _parts(self, gp: "LatentGP", sites: Sites) -> tuple[Array, Array, Array]:
        """W, the factor of B, and its inverse times W r."""
        w = self._features(gp, jnp.asarray(gp.X))
        lower = _factor((w * sites.precision) @ w.T)
        return w, lower, solve_triangular(lower, w @ sites.linear, lower=True)

    def _features(self, gp: "LatentGP", x: Float[Array, "k d"]) -> Float[Array, "M k"]:
        """L_u⁻¹ k(Z, x)."""
        z = jnp.asarray(self.inputs)
        lower = jnp.linalg.cholesky(gp.kernel.matrix(z, z) + JITTER * jnp.diag(gp.kernel.diagonal(z)))
        return solve_triangular(lower, gp.kernel.matrix(z, x), lower=True)

    def _at(self, gp: "LatentGP", sites: Sites) -> Callable[..., tuple[Array, Array]]:
        _, lower, c = self._parts(gp, sites)

        def moments(x: Array, *, joint: bool) -> tuple[Array, Array]:
            w = self._features(gp, x)
            half = solve_triangular(lower, w, lower=True)
            if joint:
                return half.T @ c, gp.kernel.matrix(x, x) - w.T @ w + half.T @ half
            left = jnp.maximum(gp.kernel.diagonal(x) - jnp.sum(w**2, 0), 0.0)
            return half.T @ c, left + jnp.sum(half**2, 0)

        return moments


def choose_inducing(gp: "LatentGP", count: int) -> Float[np.ndarray, "M d"]:
    """Rows of X, each the one of which those before it tell least ([4]_): a pivoted Cholesky factor of K.

    At most ``count``; fewer where these determine all others. O(n M²).
    """
    rows, left = jax.tree.map(np.asarray, _pivots(gp, min(count, gp.dim)))
    enough = np.flatnonzero(left <= SPENT * left[0])
    return np.asarray(gp.X)[rows[: enough[0] if enough.size else None]]


@eqx.filter_jit
def _pivots(gp: "LatentGP", count: int) -> tuple[Array, Array]:
    x = jnp.asarray(gp.X)
    diagonal = gp.kernel.diagonal(x)

    def step(carry: tuple, k: Array) -> tuple[tuple, tuple]:
        table, left = carry
        i = jnp.argmax(left)
        pivot = left[i]
        row = (gp.kernel.matrix(x[i][None], x)[0] - table[:, i] @ table) / jnp.sqrt(jnp.maximum(pivot, 1e-300))
        row = jnp.where(pivot > SPENT * diagonal.max(), row, 0.0)
        left = jnp.maximum(left - row**2, 0.0).at[i].set(0.0)
        return (table.at[k].set(row), left), (i, pivot)

    start = (jnp.zeros((count, len(x)), x.dtype), diagonal)
    return jax.lax.scan(step, start, jnp.arange(count))[1]


def in_blocks(
    moments: Callable[[Array], tuple[Array, Array]], x: Float[Array, "k d"], width: int, *, gradients: bool
) -> tuple[Array, ...]:
    """`with_slopes`, of so many inputs at once as keeps ``width`` numbers for each in bounds."""
    k = len(x)
    size = max(1, min(k, BLOCK_BYTES // (8 * width)))
    blocks = -(-k // size)
    padded = jnp.concatenate([x, jnp.broadcast_to(x[:1], (blocks * size - k, x.shape[1]))])
    found = jax.lax.map(
        lambda at: with_slopes(moments, at, gradients=gradients), jnp.reshape(padded, (blocks, size, x.shape[1]))
    )
    return tuple(jnp.reshape(part, (blocks * size, *part.shape[2:]))[:k] for part in found)


def with_slopes(
    moments: Callable[[Array], tuple[Array, Array]], x: Float[Array, "k d"], *, gradients: bool
) -> tuple[Array, ...]:
    """Mean and variance, and their derivatives if wanted: no new input has a say in the moments at another."""
    if not gradients:
        return moments(x)
    (mean, variance), pull = jax.vjp(moments, x)
    one, nothing = jnp.ones_like(mean), jnp.zeros_like(mean)
    return mean, variance, pull((one, nothing))[0], pull((nothing, one))[0]


def draw_normal(
    mean: Float[Array, " k"], covariance: Float[Array, "k k"], key: PRNGKeyArray, n: int
) -> Float[Array, "s k"]:
    """Draws of N(mean, covariance), by an eigendecomposition: the covariance may be singular."""
    values, vectors = jnp.linalg.eigh(covariance)
    z = jax.random.normal(key, (n, len(mean)), mean.dtype)
    return mean + (z * jnp.sqrt(jnp.maximum(values, 0.0))) @ vectors.T


def _factor(inner: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return jnp.linalg.cholesky(jnp.eye(len(inner), dtype=inner.dtype) + inner)


def _solve(lower: Float[Array, "n n"], b: Float[Array, " n"]) -> Float[Array, " n"]:
    return jax.scipy.linalg.cho_solve((lower, True), b)
