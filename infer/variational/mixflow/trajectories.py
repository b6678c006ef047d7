"""The state of a MixFlow's fit: trajectories, and the bound of each by length."""

from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...target import Target
from . import families, orbit
from .families import Flow

BLOCKS = 25
"""Iterations in which orbits reach ``max_length``."""
DOUBLINGS = 7
"""The same, for flows without two-sided orbits."""


class MixFlowState(eqx.Module):
    """The flow, orbits so far, and each one's bound by length, NaN where not reached.

    Parameters
    ----------
    flow
        Maps with their mixture.
    orbits
        Two-sided orbits; of random maps only their starts.
    place
        Uniform numbers that choose the components of draws of random maps.
    bounds
        Of each trajectory at each length.
    filled
        Lengths reached.
    """

    flow: Flow
    orbits: orbit.Orbits
    place: Float[Array, " batch"]
    bounds: Float[Array, "batch g"]
    filled: Int[Array, ""]


class MixFlowInfo(NamedTuple):
    """What an iteration shows.

    Parameters
    ----------
    elbo, elbo_se
        Best bound so far, and its standard error.
    length
        N reached.
    lost
        Trajectories that have left the finite numbers.
    divergences
        Maps so far whose energy error was above 1,000.
    num_evaluations
        Gradients; those of the search for a step size stand in the first iteration.
    """

    elbo: Array
    elbo_se: Array
    length: Array
    lost: Array
    divergences: Array
    num_evaluations: Array


@lru_cache
def lengths_to_see(family: str, first: int, last: int) -> np.ndarray:
    """Lengths N at which the bound of a family is looked at, from a flow of one component to the longest."""
    if family == "homogeneous":
        found = first + np.ceil((last - first) * np.arange(BLOCKS + 1) / BLOCKS)
    else:
        found = np.append(first, first + np.ceil((last - first) / 2.0 ** np.arange(DOUBLINGS, -1, -1)))
    return np.unique(found.astype(int))


def grow(state: MixFlowState, target: Target, length: Array) -> tuple[orbit.Orbits, Array, Array]:
    """Orbits grown to this length, their bounds, and maps per trajectory."""
    flow, more = state.flow, length - state.orbits.length
    orbits = orbit.grow(state.orbits, flow.flow_map, flow.reference, flow.reference.density(target.log_density), more)
    return orbits, orbit.bounds(orbits, length[None], flow.burn_in)[:, 0], 2 * more


def draw(state: MixFlowState, target: Target, length: Array) -> tuple[orbit.Orbits, Array, Array]:
    """Draws of this length from the starts, each with the one-draw bound log π − log q, and maps per draw."""
    flow = state.flow
    log_density = flow.reference.density(target.log_density)
    one = lambda begin, place: families.draw(begin, place, flow, log_density, length)  # noqa: E731
    drawn = jax.vmap(one)(state.orbits.front, state.place)
    tally = jax.tree.map(jnp.add, state.orbits.tally, drawn.tally)
    orbits = eqx.tree_at(lambda o: (o.tally, o.length), state.orbits, (tally, length))
    return orbits, drawn.state.at.log_density - drawn.log_q, families.maps_per_draw(flow, length)


def mean_over_trajectories(
    bounds: Float[Array, "batch g"],
) -> tuple[Float[Array, " g"], Float[Array, " g"], Int[Array, " g"]]:
    """Mean and standard error of the finite ones, NaN where there is none; and the number of the others."""
    finite = jnp.isfinite(bounds)
    count = jnp.maximum(finite.sum(0), 1)
    mean = jnp.where(finite.any(0), jnp.where(finite, bounds, 0.0).sum(0) / count, jnp.nan)
    square = jnp.where(finite, (bounds - mean) ** 2, 0.0).sum(0) / jnp.maximum(count - 1, 1)
    return mean, jnp.sqrt(square / count), jnp.sum(~finite, axis=0)


def largest_gain(before: Float[Array, " batch"], after: Float[Array, " batch"]) -> Float[Array, ""]:
    """Of the bound between two lengths: the mean over trajectories, and two standard errors of the difference more."""
    mean, se, _ = mean_over_trajectories((after - before)[:, None])
    return mean[0] + 2.0 * se[0]


def paired_errors(bounds: Float[Array, "batch g"], at: Int[Array, ""]) -> Float[Array, " g"]:
    """Standard errors of the bound of each length less that of one of them, over the same trajectories."""
    return mean_over_trajectories(bounds - bounds[:, at][:, None])[1]


def half_of(lengths: Any, now: Any) -> Any:
    """Index of the longest length that is at most half the one at index ``now``, or the first."""
    return jnp.maximum(jnp.searchsorted(lengths, lengths[now] // 2, side="right") - 1, 0)


def skewness(bounds: Float[Array, "batch g"]) -> Float[Array, " g"]:
    """Of the finite ones; 0 where they do not differ."""
    finite = jnp.isfinite(bounds)
    count = jnp.maximum(finite.sum(0), 1)
    mean = jnp.where(finite, bounds, 0.0).sum(0) / count
    square, cube = (jnp.where(finite, (bounds - mean) ** power, 0.0).sum(0) / count for power in (2, 3))
    return jnp.where(square > 0, cube / jnp.where(square > 0, square, 1.0) ** 1.5, 0.0)


def lower_limit(elbo: Float[Array, " g"], se: Float[Array, " g"]) -> Float[Array, " g"]:
    """The bounds less two standard errors, −inf where there is none: what lengths and step sizes are chosen by.

    A short flow's bound is far noisier than a long one's, and the largest of the means may well be the luckiest.
    """
    return jnp.where(jnp.isfinite(elbo), elbo - 2.0 * se, -jnp.inf)
