"""Gradients through a rejection sampler, for gamma variables and what is made of them: Dirichlet, beta, Wishart, …

Naesseth, Ruiz, Linderman & Blei (2017), Reparameterization gradients through acceptance–rejection sampling algorithms,
arXiv:1610.05683. A proposal z = h(ε, θ) is accepted or not; the accepted ε has density (eq. 4)

    π(ε; θ) ∝ q(h(ε, θ); θ) |∂h/∂ε|,

which depends on θ a little, so that (eq. 5)

    ∇ E_q f = E_π[∇_z f ∇_θ h] + E_π[f ∇_θ log π(ε; θ)].

The first term is taken by differentiating the draws made here. For the second they come with `log_accepted`, log π up
to a constant as a function of θ at held ε, whose expected gradient is zero: it may be multiplied by f minus any
baseline that does not depend on the draw. `estimators.Reparameterised` does so with a leave-one-out baseline (the paper
has none).

Gamma(α, 1) is Marsaglia and Tsang's, h = (α − ⅓) (1 + ε / sqrt(9α − 3))³ for α ≥ 1. To have α + B in its place,
z = z̃ Π u_i^(1/(α + i − 1)), i = 1 … B, z̃ ~ Gamma(α + B) (section 5), which holds for all α > 0 and shrinks the second
term; we keep that term for B > 1 too, which the authors drop, and work with log z: for small α, z itself is zero in
floating point with high probability.

JAX differentiates gamma draws implicitly, without a second term, but its derivatives are wrong for small shapes (of
E log z at α = 0.01: 5.8e3 in 32 bit, where 1.0e4 is right). Hence ``method="auto"``: JAX's where they are right, by
rejection below.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import InvalidArgument
from ..validate import check_choice, check_count

# Shapes below which JAX's implicit derivatives are not used: theirs are wrong below about 0.05 in 32 bit, 0.01 in 64.
IMPLICIT_FROM = {4: 0.1, 8: 0.03}
BOOSTS = 4


class AcceptedDraw(NamedTuple):
    """A draw, differentiable in the parameters, and log π(ε; θ) of what was accepted, of the same batch shape."""

    value: Array
    log_accepted: Array


def log_gamma(
    key: PRNGKeyArray, concentration: Float[Array, "*s"], *, boosts: int = BOOSTS, method: str = "auto"
) -> AcceptedDraw:
    """Logarithms of Gamma(α, 1) draws.

    Parameters
    ----------
    concentration
        α > 0, any shape; one draw each.
    boosts
        B: 0 (then α ≥ 1) or more; the more, the smaller the correction.
    method
        ``"rejection"``, ``"implicit"`` (JAX's derivative, no correction), or ``"auto"``: implicit where it is right.

    Returns
    -------
    AcceptedDraw
        ``value`` log z and ``log_accepted`` (zero where implicit), shaped as ``concentration``.

    Raises
    ------
    InvalidArgument
        An unknown method, or a negative number of boosts.
    """
    check_choice("method", method, ("auto", "rejection", "implicit"))
    check_count("boosts", boosts, minimum=0)
    alpha = jnp.asarray(concentration)
    key_rejection, key_implicit = jax.random.split(key)
    if method == "implicit":
        return AcceptedDraw(jax.random.loggamma(key_implicit, alpha), jnp.zeros_like(alpha))
    if method == "rejection":
        return _by_rejection(key_rejection, alpha, boosts)
    small = alpha < IMPLICIT_FROM[alpha.dtype.itemsize]
    # Each branch sees only shapes that it takes: what is not selected must not have NaN derivatives either.
    rejected = _by_rejection(key_rejection, jnp.where(small, alpha, 1.0), max(boosts, 1))
    implicit = jax.random.loggamma(key_implicit, jnp.where(small, 1.0, alpha))
    return AcceptedDraw(jnp.where(small, rejected.value, implicit), jnp.where(small, rejected.log_accepted, 0.0))


def _by_rejection(key: PRNGKeyArray, alpha: Float[Array, "*s"], boosts: int) -> AcceptedDraw:
    key_gamma, key_uniform = jax.random.split(key)
    boosted = alpha + boosts
    shape, width = boosted - 1 / 3, jax.lax.rsqrt(9 * boosted - 3)
    # ε of an accepted draw is a function of the draw, so that any exact sampler of Gamma(α + B) will do.
    accepted = stop_gradient(jax.random.gamma(key_gamma, boosted))
    epsilon = stop_gradient((jnp.cbrt(accepted / shape) - 1) / width)
    log_root = jnp.log1p(epsilon * width)
    log_h = jnp.log(shape) + 3 * log_root
    log_slope = jnp.log(3 * shape * width) + 2 * log_root
    log_accepted = (boosted - 1) * log_h - jnp.exp(log_h) - gammaln(boosted) + log_slope
    # log u is minus an exponential; u itself might be rounded to zero.
    log_uniform = -jax.random.exponential(key_uniform, (boosts, *alpha.shape), alpha.dtype)
    powers = alpha + np.arange(boosts).reshape(-1, *([1] * alpha.ndim))
    return AcceptedDraw(log_h + jnp.sum(log_uniform / powers, 0), log_accepted)


def log_dirichlet(key: PRNGKeyArray, concentration: Float[Array, "*s k"], **options: Any) -> AcceptedDraw:
    """Logarithms of Dirichlet(α) draws, by normalised gammas; options of `log_gamma`."""
    log_z, log_accepted = log_gamma(key, concentration, **options)
    return AcceptedDraw(log_z - jax.nn.logsumexp(log_z, -1, keepdims=True), jnp.sum(log_accepted, -1))


def logit_beta(key: PRNGKeyArray, a: Float[Array, "*s"], b: Float[Array, "*s"], **options: Any) -> AcceptedDraw:
    """Log odds of Beta(a, b) draws, as the difference of two log gammas; options of `log_gamma`."""
    log_z, log_accepted = log_gamma(key, jnp.stack(jnp.broadcast_arrays(a, b)), **options)
    return AcceptedDraw(log_z[0] - log_z[1], jnp.sum(log_accepted, 0))


def student_t(key: PRNGKeyArray, df: Float[Array, "*s"], **options: Any) -> AcceptedDraw:
    """Student's t draws with ``df`` degrees of freedom: a normal over the root of a gamma; options of `log_gamma`."""
    key_normal, key_gamma = jax.random.split(key)
    half = jnp.asarray(df) / 2
    log_z, log_accepted = log_gamma(key_gamma, half, **options)
    normal = jax.random.normal(key_normal, half.shape, half.dtype)
    return AcceptedDraw(normal * jnp.exp(0.5 * (jnp.log(half) - log_z)), log_accepted)


def log_inverse_gamma(key: PRNGKeyArray, concentration: Float[Array, "*s"], **options: Any) -> AcceptedDraw:
    """Logarithms of inverse-gamma draws of scale 1, 1 / Gamma(α, 1); options of `log_gamma`."""
    log_z, log_accepted = log_gamma(key, concentration, **options)
    return AcceptedDraw(-log_z, log_accepted)


def wishart(key: PRNGKeyArray, df: Float[Array, ""], scale_tril: Float[Array, "..."], **options: Any) -> AcceptedDraw:
    """A Wishart(ν, A Aᵀ) draw, as its lower Cholesky factor.

    Bartlett's: L = A B with B lower triangular, B_ii² ~ χ²(ν − i) for i from 0, standard normals below the diagonal.

    Parameters
    ----------
    df
        ν > p − 1.
    scale_tril
        A, lower triangular with positive diagonal, shape (p, p).
    options
        Of `log_gamma`.

    Returns
    -------
    AcceptedDraw
        ``value`` L, shape (p, p), and ``log_accepted`` of its p gammas together.

    Raises
    ------
    InvalidArgument
        ``scale_tril`` is not square.
    """
    shape = jnp.shape(scale_tril)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise InvalidArgument(f"scale_tril must be a square lower triangular matrix, got shape {shape}.")
    key_gamma, key_normal = jax.random.split(key)
    half = 0.5 * (df - np.arange(shape[0]))
    log_z, log_accepted = log_gamma(key_gamma, half, **options)
    below = jnp.tril(jax.random.normal(key_normal, shape, half.dtype), -1)
    bartlett = below + jnp.diag(jnp.exp(0.5 * (np.log(2) + log_z)))
    return AcceptedDraw(scale_tril @ bartlett, jnp.sum(log_accepted))
