"""Metrics G(u) of `SVNG`: as matrices, and as products with a vector, whose derivatives its drift needs.

A mini-batch stands for all data: sums over it are scaled by N/B. Matrices of all data are summed in blocks of rows, so
that memory does not grow with their number.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

METRICS = ("hessian", "fisher", "observed")
ROWS = 1024
"""In a block."""
LEAST, TRIES = 1e-6, 15


class AbstractMetric(eqx.Module):
    """G as a function of u."""

    @property
    def shared(self) -> bool:
        """Whether all particles have that of their mean."""
        return False

    @abc.abstractmethod
    def matrix(self, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """G."""

    @abc.abstractmethod
    def product(self, u: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
        """G v."""


class Given(AbstractMetric):
    """A function of the user's."""

    function: Callable[[Array], Array] = eqx.field(static=True)

    def matrix(self, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """As it is."""
        return self.function(u)

    def product(self, u: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
        """By the matrix."""
        return self.function(u) @ v


class Curvature(AbstractMetric):
    """−∇² log density, one for all."""

    target: Any
    batch: Array | None

    @property
    def shared(self) -> bool:
        """Yes."""
        return True

    def log_density(self, u: Array) -> Array:
        """Of all data, or of the mini-batch in their place."""
        return self.target.log_density(u) if self.batch is None else self.target.log_density_minibatch(u, self.batch)

    def matrix(self, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """Maybe indefinite."""
        return -jax.hessian(self.log_density)(u)

    def product(self, u: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
        """By the derivative of the gradient."""
        return -jax.jvp(jax.grad(self.log_density), (u,), (v,))[1]


class AbstractOfFactors(AbstractMetric):
    """A sum over observations."""

    target: Any
    batch: Array | None

    @abc.abstractmethod
    def of_rows(self, u: Array, rows: Array, weights: Array) -> Array:
        """The part of some observations."""

    @property
    def scale(self) -> float:
        """What a mini-batch is multiplied by."""
        return 1.0 if self.batch is None else self.target.num_factors / self.batch.shape[0]

    @property
    def chosen(self) -> Array:
        """The observations."""
        return jnp.arange(self.target.num_factors) if self.batch is None else self.batch

    def matrix(self, u: Float[Array, " d"]) -> Float[Array, "d d"]:
        """Summed in blocks of rows; what fills the last has weight 0."""
        rows = self.chosen
        if rows.size <= ROWS:
            return self.scale * self.of_rows(u, rows, jnp.ones(rows.size, u.dtype))
        fill = -rows.size % ROWS
        weights = jnp.pad(jnp.ones(rows.size, u.dtype), (0, fill)).reshape(-1, ROWS)
        blocks = (jnp.pad(rows, (0, fill), mode="edge").reshape(-1, ROWS), weights)
        add = lambda total, block: (total + self.of_rows(u, *block), None)  # noqa: E731
        return self.scale * jax.lax.scan(add, jnp.zeros((u.size, u.size), u.dtype), blocks)[0]


class Fisher(AbstractOfFactors):
    """Σ_i g_i g_iᵀ, g_i the gradient of the log likelihood of observation i."""

    def of_rows(self, u: Array, rows: Array, weights: Array) -> Array:
        """Jᵀ W J of the Jacobian J of the log likelihoods."""
        jacobian = jax.jacfwd(lambda u: self.target.factor(u, rows))(u)
        return jacobian.T @ (weights[:, None] * jacobian)

    def product(self, u: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
        """Jᵀ(J v), one derivative forward and one back."""
        likelihoods = lambda u: self.target.factor(u, self.chosen)  # noqa: E731
        along = jax.jvp(likelihoods, (u,), (v,))[1]
        return self.scale * jax.vjp(likelihoods, u)[1](along)[0]


class Observed(AbstractOfFactors):
    """−Σ_i ∇² of the log likelihoods."""

    def of_rows(self, u: Array, rows: Array, weights: Array) -> Array:
        """By their weighted sum."""
        return -jax.hessian(lambda u: weights @ self.target.factor(u, rows))(u)

    def product(self, u: Float[Array, " d"], v: Float[Array, " d"]) -> Float[Array, " d"]:
        """By the derivative of the gradient."""
        total = lambda u: jnp.sum(self.target.factor(u, self.chosen))  # noqa: E731
        return -self.scale * jax.jvp(jax.grad(total), (u,), (v,))[1]


def as_metric(given: str | Callable[[Array], Array], target: Any, batch: Array | None) -> AbstractMetric:
    """The metric of one of the `METRICS`, or that of a function."""
    if callable(given):
        return Given(given)
    return {"hessian": Curvature, "fisher": Fisher, "observed": Observed}[given](target, batch)


def positive(matrices: Float[Array, "n d d"], scale: Array) -> tuple[Float[Array, "n d d"], Bool[Array, " n"]]:
    """Cholesky factors, with more on the diagonal, tenfold each time, where there is none; and where that was so."""
    basis = jnp.eye(matrices.shape[1], dtype=matrices.dtype)
    matrices = 0.5 * (matrices + jnp.swapaxes(matrices, 1, 2))

    def factors(extra: Array) -> Array:
        return jnp.linalg.cholesky(matrices + extra[:, None, None] * basis)

    def failed(found: Array) -> Array:
        return ~jnp.all(jnp.isfinite(found), axis=(1, 2))

    def more(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tries, extra, found = carry
        extra = jnp.where(failed(found), jnp.maximum(10 * extra, LEAST * scale), extra)
        return tries + 1, extra, factors(extra)

    start = jnp.zeros(matrices.shape[0], matrices.dtype)
    first = (jnp.zeros((), int), start, factors(start))
    _, extra, found = jax.lax.while_loop(lambda c: (c[0] < TRIES) & jnp.any(failed(c[2])), more, first)
    return found, extra > 0
