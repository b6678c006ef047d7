"""Bounds of E log softmax(z)_y for logits z ~ N(m, diag(v)), and the mean of softmax(z).

For any a, with log-sum-exp written LSE,

    E log softmax(z)_y ≥ m_y − ½ Σ_k a_k² v_k − LSE_k(m_k + ½ (1 − 2 a_k) v_k)          (Knowles & Minka [1]_)

a = 0 is Jensen's inequality (the second theorem of [2]_). The right side is concave in a, and largest at the fixed
point a = p(a), p(a) = softmax(m + ½ (1 − 2a) v), which is found by Newton's method: with V = diag(v) the Hessian is
−V − V (diag(p) − p pᵀ) V, diagonal plus rank one, so that a step is O(K). Where variances are large, the fixed-point
iteration crawls or oscillates. At the optimum the derivative by a vanishes, so that none is taken. The larger of the
two bounds is used: a valid one after any number of steps.

Where v is random too, a_k = ½ − h_k/v_k leaves constants h in the log-sum-exp, and the rest is a closed form in E v and
E 1/v: with r_k ≤ 1/E[1/v_k] and h_k = (½ − a_k) r_k

    E log softmax(z)_y ≥ m_y − ½ Σ_k a_k² r_k − LSE_k(m_k + ½ (1 − 2 a_k) r_k) − ⅛ Σ_k (E v_k − r_k),

the bound at variances r less a term without a, for any a. In [3]_ a is one number for all classes, and is learned; here
that is ``"reduced"``, and a is otherwise the best one for each row.

References
----------
.. [1] D. Knowles, T. Minka (2011). Non-conjugate variational message passing for multinomial and binary regression.
   NIPS.
.. [2] J. Harrison, J. Willes, J. Snoek (2024). Variational Bayesian last layers. ICLR. arXiv:2404.11599.
.. [3] J. Harrison, J. Willes, J. Snoek (2025). Heteroscedastic variational Bayesian last layers. AABI.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument

ITERATIONS = 10
SIZES = (1.0, 0.5, 0.1, 0.01)
POINTS = 256
ROWS = 256


def jensen(m: Float[Array, " k"], v: Float[Array, " k"], y: Int[Array, ""]) -> Float[Array, ""]:
    """m_y − LSE(m + ½ v)."""
    return m[y] - logsumexp(m + 0.5 * v)


def tilted(m: Float[Array, " k"], v: Float[Array, " k"], y: Int[Array, ""], a: Float[Array, " k"]) -> Float[Array, ""]:
    """The bound at a given a."""
    return m[y] - 0.5 * jnp.sum(a**2 * v) - logsumexp(m + 0.5 * (1 - 2 * a) * v)


def best_tilt(m: Float[Array, " k"], v: Float[Array, " k"]) -> Float[Array, " k"]:
    """The a of the largest bound."""
    m, v = jax.lax.stop_gradient((m, v))
    sizes = jnp.asarray(SIZES, m.dtype)

    def value(a: Array) -> Array:
        return -0.5 * jnp.sum(a**2 * v) - logsumexp(m + 0.5 * (1 - 2 * a) * v)

    def step(_: int, a: Array) -> Array:
        p = jax.nn.softmax(m + 0.5 * (1 - 2 * a) * v)
        scale = 1 + p * v
        common = jnp.sum(p * v * (p - a) / scale) / (1 - jnp.sum(p * (p * v / scale)))
        tried = a + sizes[:, None] * (p - a + p * common) / scale
        return tried[jnp.argmax(jax.vmap(value)(tried))]

    return jax.lax.fori_loop(0, ITERATIONS, step, jax.nn.softmax(m))


def knowles_minka(m: Float[Array, " k"], v: Float[Array, " k"], y: Int[Array, ""]) -> Float[Array, ""]:
    """The largest of the bounds."""
    return jnp.maximum(tilted(m, v, y, best_tilt(m, v)), jensen(m, v, y))


def monte_carlo(
    m: Float[Array, " k"], v: Float[Array, " k"], y: Int[Array, ""], key: PRNGKeyArray, num_draws: int = 10
) -> Float[Array, ""]:
    """An unbiased estimate of the expectation itself, from reparameterised draws."""
    z = m + jnp.sqrt(v) * jax.random.normal(key, (num_draws, m.shape[0]), m.dtype)
    return jnp.mean(jax.nn.log_softmax(z)[:, y])


@functools.cache
def normal_points(n: int, dim: int) -> np.ndarray:
    """N points that fill N(0, I) evenly (scrambled Sobol, always the same), shape (n, dim)."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    if dim > qmc.Sobol.MAXDIM:
        return np.random.default_rng(0).normal(size=(n, dim))
    return ndtri(np.clip(qmc.Sobol(dim, seed=0).random(n), 1e-9, 1 - 1e-9))


def mean_probabilities(
    m: Float[Array, "n k"], v: Float[Array, "n k"], *, num_points: int = POINTS
) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
    """E softmax(z) and E H(softmax(z)) of each row by quasi-random points.

    The same points for all rows and calls, so that predictions are functions of x.
    """
    points = jnp.asarray(normal_points(num_points, m.shape[1]), m.dtype)
    return mean_softmax(lambda row: row[0] + jnp.sqrt(row[1]) * points, (m, v), points.size)


def mean_softmax(
    logits: Callable[[Any], Float[Array, "s k"]], rows: Any, size: int
) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
    """Means over s of softmax and of its entropy, of the logits of each row; at most 2²⁴/size rows at a time."""

    def one(row: Any) -> tuple[Array, Array]:
        logs = jax.nn.log_softmax(logits(row))
        shares = jnp.exp(logs)
        return jnp.mean(shares, 0), -jnp.mean(jnp.sum(shares * logs, -1))

    return jax.lax.map(one, rows, batch_size=min(ROWS, max(1, 2**24 // size)))


def entropy(p: Float[Array, "n k"]) -> Float[Array, " n"]:
    """−Σ p log p."""
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0), -1)


def check_labels(y: Any, num_classes: int | None) -> tuple[np.ndarray, int]:
    """Labels as whole numbers, and the number of classes.

    Raises
    ------
    InvalidArgument
        They are not whole numbers from 0 to K − 1, in one dimension.
    """
    y = np.asarray(y)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise InvalidArgument(
            f"y must be class labels, whole numbers of shape (n,), got {y.dtype} of shape {y.shape}; use "
            f"y.astype(int) if these are labels."
        )
    k = int(y.max()) + 1 if num_classes is None else num_classes
    if y.min() < 0 or y.max() >= k:
        raise InvalidArgument(f"labels must be in 0 … {k - 1}, got {int(y.min())} to {int(y.max())}.")
    return y, max(k, 2)
