"""`StreamTarget`: a target whose observations stay on disk, a block of them in memory at a time."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..errors import InvalidArgument, UnsupportedTarget
from ..validate import check_count
from .base import Target
from .factors import FactorTarget, from_factors
from .minibatch import FactoredTarget
from .reader import Reader
from .wrapped import WrappedTarget

PACE = 256


class StreamTarget(WrappedTarget, FactoredTarget):
    """log prior + Σ log likelihood of rows that are read block by block. Make one with `Target.from_stream`.

    The block in memory serves some iterations, until each of its rows was used once; then `Run` puts the next one in
    its place.

    Attributes
    ----------
    target
        The target of the rows in memory.
    reader
        Reads the blocks.
    num_rows
        Of all data, n.
    pace
        Rows that an iteration uses.
    """

    target: FactorTarget
    reader: Reader = eqx.field(static=True)
    num_rows: int = eqx.field(static=True)
    pace: int = eqx.field(static=True, default=PACE)

    # -- blocks ---------------------------------------------------------------------------------------------------

    @property
    def block_rows(self) -> int:
        """Rows in memory, m."""
        return self.target.num_factors

    @property
    def iterations_per_block(self) -> int:
        """How many iterations a block serves: each of its rows about once."""
        return max(1, self.block_rows // self.pace)

    def paced(self, rows: int) -> Self:
        """For a method that uses this many rows in an iteration."""
        if rows > self.block_rows:
            raise InvalidArgument(
                f"an iteration uses {rows} rows, and {self.block_rows} are in memory; lower batch_size, or raise "
                f"block_rows of the target."
            )
        return dataclasses.replace(self, pace=rows)

    def block_at(self, stage: int, t: int) -> tuple[int, int]:
        """See `Target.block_at`."""
        return stage, t // self.iterations_per_block

    def block_ends(self, t: int) -> int:
        """See `Target.block_ends`."""
        return (t // self.iterations_per_block + 1) * self.iterations_per_block

    def with_block(self, block: tuple[int, int]) -> Self:
        """See `Target.with_block`."""
        return dataclasses.replace(self, target=dataclasses.replace(self.target, data=self.reader.block(*block)))

    def passes(self) -> Iterator[tuple[Any, np.ndarray]]:
        """All rows once, read from disk."""
        return self.reader.passes()

    # -- densities ------------------------------------------------------------------------------------------------

    @property
    def num_factors(self) -> int:
        """Number of all observations, n."""
        return self.num_rows

    @property
    def rows(self) -> Any:
        """The rows in memory."""
        return self.target.rows

    def minibatch(self, key: PRNGKeyArray, t: Int[Array, ""] | int, size: int) -> Int[Array, " size"]:
        """Indices, into the rows in memory, of iteration ``t``: the next ones, which are in random order already."""
        del key
        size = check_count("size", size)
        first = (t % self.iterations_per_block) * self.pace
        return jnp.asarray((first + jnp.arange(size)) % self.block_rows)

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """An estimate, from the rows in memory: log prior + n/m Σ log likelihood."""
        return self.log_prior(u) + self.num_rows / self.block_rows * jnp.sum(self.factor_at(u, self.rows))

    def factor_at(self, u: Float[Array, " d"], rows: Any) -> Float[Array, " b"]:
        """Log likelihood of each of some observations, given as `rows` has them."""
        return self.target.factor_at(u, rows)

    def prior_given(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log prior density at values of the sites."""
        return self.target.prior_given(values)

    def factor_given(self, values: dict[str, Array], rows: Any) -> Float[Array, " b"]:
        """`factor_at` at values of the sites."""
        return self.target.factor_given(values, rows)

    def restricted(self, rows: Any) -> FactorTarget:
        """The target of some of the observations alone, in memory."""
        return self.target.restricted(rows)

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """The prior with the log-Jacobian, and the estimate of the likelihood."""
        prior = self.log_prior(u)
        return {"prior": prior, "factors": self.log_density(u) - prior}

    def structure(self) -> frozenset[str]:
        """Prior and factors; what needs all data at once is not there."""
        return frozenset({"prior", "factors", "stream"})

    def require(self, method_name: str, requires: tuple[str, ...], hints: dict[str, str]) -> None:
        """Raise `UnsupportedTarget` unless the method is one of mini-batches."""
        if "factors" not in requires:
            raise UnsupportedTarget(
                f"{method_name} evaluates the density of all data, and of this target's {self.num_rows} rows "
                f"{self.block_rows} are in memory at a time; use SGLD() or SGHMC()."
            )
        super().require(method_name, requires, hints)

    def sharded(self, by: Any) -> Target:
        """Not of a stream."""
        raise UnsupportedTarget(f"sharded({by!r}) needs the rows in memory; give each agent a stream of its own.")

    def _identity(self) -> list[Any]:
        supports = [support.digest.hex() for support in self.target.coordinates.supports]
        functions = [getattr(fn, "__qualname__", "") for fn in self.target.layout.join(self.target.functions)]
        return [functions, supports, self.target.functions, *self.reader.identity()]


def from_stream(
    log_prior: Callable,
    log_likelihood: Callable,
    source: Any,
    example: Any,
    support: Any = None,
    *,
    num_rows: int | None = None,
    block_rows: int | None = None,
    seed: int = 0,
) -> StreamTarget:
    """See `Target.from_stream`."""
    reader = Reader(source, num_rows, block_rows, check_count("seed", seed, 0))
    first = jax.tree.map(np.asarray, reader.block(0, 0))
    return StreamTarget(from_factors(log_prior, log_likelihood, first, example, support), reader, reader.num_rows)
