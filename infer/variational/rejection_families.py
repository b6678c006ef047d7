"""Families of u that are drawn by rejection: gamma, beta, Dirichlet, Student's t, Wishart.

Their draws come with the correction that `estimators.Reparameterised` needs, see `rejection`.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import betaln, gammaln
from jaxtyping import Array, Float, PRNGKeyArray

from ..approximation import Approximation
from ..errors import InvalidArgument
from .rejection import log_dirichlet, log_gamma, logit_beta, student_t, wishart


def _sorted(options: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(dict(options).items()))


class RejectionFamily(Approximation):
    """A family of u drawn by rejection; its parameters are unconstrained and its draws carry their correction."""

    options: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def one(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw and the log density of what was accepted."""

    def sample_and_correction(
        self, key: PRNGKeyArray, n: int
    ) -> tuple[Float[Array, "n d"], Float[Array, " n"], Float[Array, " n"]]:
        """``n`` draws, log densities and log π(ε; θ), see `estimators.Reparameterised`."""
        u, log_accepted = jax.vmap(self.one)(jax.random.split(key, n))
        return u, jax.vmap(self.log_prob)(u), log_accepted

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` draws and log densities."""
        return self.sample_and_correction(key, n)[:2]


class GammaFamily(RejectionFamily):
    """Independent gamma variables, in coordinates u = log z.

    Parameters
    ----------
    log_concentration, log_rate
        Shape (d,).
    options
        Of `log_gamma`.
    """

    log_concentration: Float[Array, " d"]
    log_rate: Float[Array, " d"]
    options: Any = eqx.field(static=True, default=(), converter=_sorted)

    def one(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw and the log density of what was accepted."""
        log_z, log_accepted = log_gamma(key, jnp.exp(self.log_concentration), **dict(self.options))
        return log_z - self.log_rate, jnp.sum(log_accepted)

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``."""
        alpha, log_z = jnp.exp(self.log_concentration), u + self.log_rate
        return jnp.sum(alpha * log_z - jnp.exp(log_z) - gammaln(alpha))


class BetaFamily(RejectionFamily):
    """Independent beta variables, in coordinates u = logit x.

    Parameters
    ----------
    log_a, log_b
        Shape (d,).
    options
        Of `log_gamma`.
    """

    log_a: Float[Array, " d"]
    log_b: Float[Array, " d"]
    options: Any = eqx.field(static=True, default=(), converter=_sorted)

    def one(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw and the log density of what was accepted."""
        u, log_accepted = logit_beta(key, jnp.exp(self.log_a), jnp.exp(self.log_b), **dict(self.options))
        return u, jnp.sum(log_accepted)

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``."""
        a, b = jnp.exp(self.log_a), jnp.exp(self.log_b)
        return jnp.sum(a * jax.nn.log_sigmoid(u) + b * jax.nn.log_sigmoid(-u) - betaln(a, b))


class DirichletFamily(RejectionFamily):
    """A Dirichlet on the simplex of k parts, in the k − 1 stick-breaking coordinates of NumPyro.

    u_i = log x_i − log Σ_{j>i} x_j + log(k − i − 1), i from 0; the log-Jacobian of u ↦ x is Σ log x.

    Parameters
    ----------
    log_concentration
        Shape (k,), k at least 2.
    options
        Of `log_gamma`.
    """

    log_concentration: Float[Array, " k"]
    options: Any = eqx.field(static=True, default=(), converter=_sorted)

    def __check_init__(self) -> None:
        shape = np.shape(self.log_concentration)
        if len(shape) == 1 and shape[0] < 2:
            raise InvalidArgument(f"log_concentration must have at least 2 entries, got shape {shape}.")

    def one(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw and the log density of what was accepted."""
        log_x, log_accepted = log_dirichlet(key, jnp.exp(self.log_concentration), **dict(self.options))
        rest = jax.lax.cumlogsumexp(log_x, reverse=True)[1:]
        return log_x[:-1] - rest + np.log(np.arange(rest.shape[0], 0, -1)), log_accepted

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``."""
        v = u - np.log(np.arange(u.shape[0], 0, -1))
        taken, left = jax.nn.log_sigmoid(v), jnp.cumsum(jax.nn.log_sigmoid(-v))
        log_x = jnp.concatenate([taken + jnp.concatenate([jnp.zeros(1, u.dtype), left[:-1]]), left[-1:]])
        alpha = jnp.exp(self.log_concentration)
        return jnp.sum(alpha * log_x - gammaln(alpha)) + gammaln(jnp.sum(alpha))


class StudentFamily(RejectionFamily):
    """Independent Student's t variables with learned degrees of freedom.

    Parameters
    ----------
    loc, log_scale, log_df
        Shape (d,).
    options
        Of `log_gamma`.
    """

    loc: Float[Array, " d"]
    log_scale: Float[Array, " d"]
    log_df: Float[Array, " d"]
    options: Any = eqx.field(static=True, default=(), converter=_sorted)

    def one(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw and the log density of what was accepted."""
        t, log_accepted = student_t(key, jnp.exp(self.log_df), **dict(self.options))
        return self.loc + jnp.exp(self.log_scale) * t, jnp.sum(log_accepted)

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``."""
        df, t = jnp.exp(self.log_df), (u - self.loc) * jnp.exp(-self.log_scale)
        norm = gammaln((df + 1) / 2) - gammaln(df / 2) - 0.5 * jnp.log(np.pi * df) - self.log_scale
        return jnp.sum(norm - (df + 1) / 2 * jnp.log1p(t**2 / df))


class WishartFamily(RejectionFamily):
    """A Wishart on matrices W = L Lᵀ of p rows, in coordinates u = (log of the diagonal of L, rows below it).

    Parameters
    ----------
    log_excess
        Logarithm of ν − p + 1, what the degrees of freedom have beyond their limit, shape ().
    log_diagonal, lower
        The scale matrix A Aᵀ: the logarithm of A's diagonal, shape (p,), and A below it row by row, (p (p − 1) / 2,).
    options
        Of `log_gamma`.
    """

    log_excess: Float[Array, ""]
    log_diagonal: Float[Array, " p"]
    lower: Float[Array, " t"]
    options: Any = eqx.field(static=True, default=(), converter=_sorted)

    def __check_init__(self) -> None:
        p, given = np.shape(self.log_diagonal), np.shape(self.lower)
        if len(p) == 1 and len(given) == 1 and given[0] != p[0] * (p[0] - 1) // 2:
            raise InvalidArgument(f"lower must have p (p - 1) / 2 entries for p = {p[0]} rows, got shape {given}.")

    @property
    def df(self) -> Float[Array, ""]:
        """Degrees of freedom ν."""
        return self.log_diagonal.shape[0] - 1 + jnp.exp(self.log_excess)

    @property
    def scale_tril(self) -> Float[Array, "p p"]:
        """A."""
        return cholesky_of(jnp.concatenate([self.log_diagonal, self.lower]), self.log_diagonal.shape[0])

    def one(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """One draw and the log density of what was accepted."""
        tril, log_accepted = wishart(key, self.df, self.scale_tril, **dict(self.options))
        return jnp.concatenate([jnp.log(jnp.diagonal(tril)), tril[np.tril_indices(len(tril), -1)]]), log_accepted

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``: of Bartlett's B = A⁻¹ L, less the log-determinant Σ i log A_ii of its rows."""
        p = self.log_diagonal.shape[0]
        tril = cholesky_of(u, p)
        b = solve_triangular(self.scale_tril, tril, lower=True)
        half = 0.5 * (self.df - np.arange(p))
        log_y = 2 * (u[:p] - self.log_diagonal) - np.log(2)  # B_ii² / 2 is Gamma(half)
        diagonal = np.log(2) + half * log_y - jnp.exp(log_y) - gammaln(half)
        below = -0.5 * b[np.tril_indices(p, -1)] ** 2 - 0.5 * np.log(2 * np.pi)
        return jnp.sum(diagonal) + jnp.sum(below) - jnp.sum(np.arange(p) * self.log_diagonal)


def cholesky_of(u: Float[Array, " d"], p: int) -> Float[Array, "p p"]:
    """The lower triangular matrix of p rows with coordinates ``u``: log diagonal, then the rows below it."""
    below = jnp.zeros((p, p), u.dtype).at[np.tril_indices(p, -1)].set(u[p:])
    return below + jnp.diag(jnp.exp(u[:p]))
