"""The step size of a MixFlow: the one of a grid with the largest bound, all tried on the same trajectories."""

from functools import partial
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...errors import NonFinite
from ...target import Target
from . import orbit

if TYPE_CHECKING:
    from .method import MixFlow

LENGTH = 200
TRAJECTORIES = 32


class Tuned(eqx.Module):
    """The grid, the bound that each step size reached (NaN: not finite) with its standard error, and the choice.

    Parameters
    ----------
    step_sizes, elbo, se
        Shape (g,).
    step_size
        That of the largest bound.
    num_evaluations
        Gradients that the search took.
    """

    step_sizes: Float[Array, " g"]
    elbo: Float[Array, " g"]
    se: Float[Array, " g"]
    step_size: Float[Array, ""]
    num_evaluations: int


def tune(method: "MixFlow", key: PRNGKeyArray, target: Target, reference: orbit.Reference) -> Tuned:
    """Try every step size of the grid, on orbits of a fifth of the length at least.

    Raises
    ------
    NonFinite
        No step size gave a finite bound; the message says how many draws of the reference had a finite density.
    """
    dtype = reference.loc.dtype
    if method.step_size is not None:
        given = jnp.asarray(method.step_size, dtype)
        return Tuned(given[None], jnp.full(1, jnp.nan, dtype), jnp.full(1, jnp.nan, dtype), given, 0)
    length = min(LENGTH, method.max_length)
    grid = jnp.asarray(method.grid, dtype)
    elbo, se, finite = _search(method, key, target, reference, grid, length=length)
    if not np.any(np.isfinite(elbo)):
        raise NonFinite(
            f"MixFlow: no step size of the grid {tuple(method.grid)} gave a finite bound, and {float(finite):.0%} of "
            f"the reference's draws have a finite log density; give a smaller grid=, a nearer reference=, or "
            f"look at the model with target.check()."
        )
    best = int(np.argmax(np.where(np.isfinite(elbo), elbo, -np.inf)))
    maps = len(method.grid) * TRAJECTORIES * 2 * (length - 1)
    return Tuned(grid, elbo, se, grid[best], maps * method.map(reference, 0.1).gradients)


@partial(jax.jit, static_argnames=("length",))
def _search(
    method: "MixFlow", key: PRNGKeyArray, target: Target, reference: orbit.Reference, grid: Array, *, length: int
) -> tuple[Any, Any, Any]:
    """Largest bound over lengths of each step size, its standard error, and the share of finite starts."""
    lengths = jnp.unique(jnp.linspace(1, length, 8).astype(int), size=8, fill_value=length)

    def one(step_size: Array) -> tuple[Array, Array]:
        flow_map = method.map(reference, step_size)
        orbits = orbit.begin(key, flow_map, reference, target.log_density, TRAJECTORIES, length)
        orbits = orbit.grow(orbits, flow_map, reference, target.log_density, jnp.asarray(length - 1))
        bounds = orbit.bounds(orbits, lengths)
        best = jnp.argmax(jnp.nan_to_num(bounds.mean(0), nan=-jnp.inf))
        return bounds[:, best].mean(), bounds[:, best].std(ddof=1) / jnp.sqrt(TRAJECTORIES)

    elbo, se = jax.lax.map(one, grid)
    starts = jax.vmap(reference.sample)(jax.random.split(key, 256))
    return elbo, se, jnp.isfinite(jax.vmap(target.log_density)(starts)).mean()
