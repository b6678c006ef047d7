"""Importance weights of draws whose densities know how they were computed: what must not be mixed is refused."""

from typing import Literal

import equinox as eqx
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument

Kind = Literal["discrete", "continuous", "path", "hutchinson"]


class Density(eqx.Module):
    """Log densities that know how they were computed.

    Parameters
    ----------
    log_q
        Of any shape.
    kind
        ``"discrete"``, ``"continuous"`` (exact trace), ``"path"`` (of a whole path, see `stochastic.ancestral_path`),
        or ``"hutchinson"``.
    """

    log_q: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)


def log_weights(log_target: Float[Array, "..."], density: Density) -> Float[Array, "..."]:
    """Log importance weights, log π − log q.

    Raises
    ------
    InvalidArgument
        The density holds Hutchinson's estimates.
    """
    _refuse_hutchinson(density)
    return log_target - density.log_q


def log_ratio(one: Density, other: Density) -> Float[Array, "..."]:
    """The log ratio of two densities of the same points.

    Raises
    ------
    InvalidArgument
        One is discrete and the other continuous, or one holds Hutchinson's estimates.
    """
    for density in (one, other):
        _refuse_hutchinson(density)
    if one.kind != other.kind:
        raise InvalidArgument(
            f"Densities of two kinds, {one.kind!r} and {other.kind!r}, differ by the error of the steps, and have no "
            f"ratio; compute both in the same way."
        )
    return one.log_q - other.log_q


def _refuse_hutchinson(density: Density) -> None:
    if density.kind == "hutchinson":
        raise InvalidArgument(
            f"Densities of kind {density.kind!r} are random, and the exponential of one is not a weight: noise "
            f"dominates its mean. Use discrete log-determinants, or trace='exact'."
        )
