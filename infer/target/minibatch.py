"""`FactoredTarget`: what all targets with one log likelihood per observation share, for mini-batches and shards."""

import abc
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..validate import check_count
from .arguments import as_array
from .base import Target

PASS = 16_384
"""Rows of a block, where a sum over all of them is taken block by block."""


class FactoredTarget(Target):
    """log π(u) = log prior(u) + Σᵢ log likelihood(u, rowᵢ); concrete targets say how one row enters."""

    @property
    @abc.abstractmethod
    def num_factors(self) -> int:
        """Number of observations, n."""

    @property
    @abc.abstractmethod
    def rows(self) -> Any:
        """The data that belong to observations: arrays with one entry per observation on the leading axis."""

    @abc.abstractmethod
    def factor_at(self, u: Float[Array, " d"], rows: Any) -> Float[Array, " b"]:
        """Log likelihood of each of some observations, given as `rows` has them."""

    @abc.abstractmethod
    def prior_given(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log prior density at values of the latent sites, in constrained coordinates."""

    @abc.abstractmethod
    def factor_given(self, values: dict[str, Array], rows: Any) -> Float[Array, " b"]:
        """`factor_at` at values of the latent sites."""

    @abc.abstractmethod
    def restricted(self, rows: Any) -> "FactoredTarget":
        """The target of some of the observations alone, given as `rows` has them."""

    def take(self, batch: Int[Array, " b"]) -> Any:
        """The rows with an index in ``batch``."""
        return jax.tree.map(lambda leaf: as_array(leaf)[batch], self.rows)

    def factor(self, u: Float[Array, " d"], batch: Int[Array, " b"]) -> Float[Array, " b"]:
        """Log likelihood of each observation with an index in ``batch``."""
        return self.factor_at(u, self.take(batch))

    def minibatch(self, key: PRNGKeyArray, t: Int[Array, ""] | int, size: int) -> Int[Array, " size"]:
        """Indices of iteration ``t``: uniform with replacement, a pure function of (key, t)."""
        size = check_count("size", size)
        return jax.random.randint(jax.random.fold_in(key, t), (size,), 0, self.num_factors)

    def log_density_minibatch(self, u: Float[Array, " d"], batch: Int[Array, " b"]) -> Float[Array, ""]:
        """Unbiased estimate of `log_density` from a mini-batch of b indices: log prior + n/b Σ log likelihood."""
        part = self.factor(u, batch)
        return self.log_prior(u) + self.num_factors / part.shape[0] * jnp.sum(part)

    def log_density_at_minibatch(self, values: dict[str, Array], batch: Int[Array, " b"]) -> Float[Array, ""]:
        """Unbiased estimate of `log_density_at` from a mini-batch of b indices."""
        part = self.factor_given(values, self.take(batch))
        return self.prior_given(values) + self.num_factors / part.shape[0] * jnp.sum(part)

    def passes(self) -> Iterator[tuple[Any, np.ndarray]]:
        """All rows once, on the host, in blocks of one shape: rows, and 1 for each that counts (0 for padding)."""
        return blocks(self.rows, self.num_factors)


def blocks(rows: Any, n: int) -> Iterator[tuple[Any, np.ndarray]]:
    """All of n rows once, in blocks of one shape; 1 for each that counts, 0 for padding."""
    rows, size = jax.tree.map(np.asarray, rows), min(PASS, n)
    for begin in range(0, n, size):
        index = np.arange(begin, begin + size)
        inside = index < n
        index = np.where(inside, index, 0)
        yield jax.tree.map(lambda leaf, index=index: leaf[index], rows), inside.astype(float)
