"""The step size of a MixFlow: the one of a grid with the largest bound, all tried on the same trajectories."""

from functools import partial
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...errors import NonFinite
from ...target import Target
from . import orbit
from .maps import phase
from .trajectories import lower_limit

if TYPE_CHECKING:
    from .method import MixFlow

LENGTH = 200
TRAJECTORIES = 32
STARTS = 256
LOOKS = 8
"""Lengths at which the bound is looked at."""


class Tuned(eqx.Module):
    """The grid, the bound that each step size reached (NaN: not finite) with its standard error, and the choice.

    Parameters
    ----------
    step_sizes, elbo, se
        Shape (g,); empty where the user gave the step size.
    step_size
        That of the largest bound, or the user's.
    num_evaluations
        Gradients that the search took.
    """

    step_sizes: Float[Array, " g"]
    elbo: Float[Array, " g"]
    se: Float[Array, " g"]
    step_size: Float[Array, "*d"]
    num_evaluations: int


def check_starts(key: PRNGKeyArray, target: Target, reference: orbit.Reference) -> None:
    """Raise `NonFinite`, with the share, where log density or gradient are not finite at draws of the reference."""
    share = float(_finite_starts(key, target, reference))
    if share < 1:
        raise NonFinite(
            f"MixFlow: the log density or its gradient is not finite at {1 - share:.1%} of {STARTS} draws of the "
            f"reference, so that no bound is; give a nearer or narrower reference=, or look at the model with "
            f"target.check()."
        )


@jax.jit
def _finite_starts(key: PRNGKeyArray, target: Target, reference: orbit.Reference) -> Array:
    """Share of draws of the reference at which log density and gradient are finite."""
    starts = jax.vmap(reference.sample)(jax.random.split(key, STARTS))
    log_density = reference.density(target.log_density)
    found = jax.vmap(lambda y: phase(y, log_density))(starts)
    return jnp.mean(jnp.isfinite(found.log_density) & jnp.isfinite(found.gradient).all(-1))


def tune(method: "MixFlow", key: PRNGKeyArray, target: Target, reference: orbit.Reference) -> Tuned:
    """Try every step size of the grid, on orbits of the homogeneous flow, of up to `LENGTH` maps.

    Raises
    ------
    NonFinite
        No step size gave a finite bound.
    """
    dtype = reference.loc.dtype
    if method.step_size is not None:
        given, none = jnp.asarray(method.step_size, dtype), jnp.zeros(0, dtype)
        return Tuned(none, none, none, given, 0)
    length = min(LENGTH, method.max_length)
    grid = jnp.asarray(method.grid, dtype)
    elbo, se = (np.asarray(x) for x in _search(method, key, target, reference, grid, length=length))
    if not np.any(np.isfinite(elbo)):
        raise NonFinite(
            f"MixFlow: no step size of the grid {tuple(method.grid)} gave a finite bound; give a smaller grid=, or a "
            f"nearer reference=."
        )
    best = int(np.argmax(lower_limit(elbo, se)))
    maps = len(method.grid) * TRAJECTORIES * 2 * (length - 1)
    return Tuned(grid, elbo, se, grid[best], maps * method.map(reference, 0.1).gradients)


@partial(jax.jit, static_argnames=("length",))
def _search(
    method: "MixFlow", key: PRNGKeyArray, target: Target, reference: orbit.Reference, grid: Array, *, length: int
) -> tuple[Array, Array]:
    """Largest bound over lengths of each step size, and its standard error; NaN where a trajectory was lost."""
    log_density = reference.density(target.log_density)
    lengths = -(-jnp.arange(1, LOOKS + 1) * length // LOOKS)

    def one(step_size: Array) -> tuple[Array, Array]:
        flow_map = method.map(reference, step_size)
        orbits = orbit.begin(key, flow_map, reference, log_density, TRAJECTORIES, length)
        orbits = orbit.grow(orbits, flow_map, reference, log_density, jnp.asarray(length - 1))
        bounds = orbit.bounds(orbits, lengths)
        elbo, se = bounds.mean(0), bounds.std(0, ddof=1) / jnp.sqrt(TRAJECTORIES)
        best = jnp.argmax(lower_limit(elbo, se))
        return elbo[best], se[best]

    return jax.lax.map(one, grid)
