"""The step size of a MixFlow: the one with the largest bound of several, all tried on the same trajectories."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...errors import NonFinite
from ...target import Target
from . import orbit
from .maps import phase
from .settings import search_lengths
from .trajectories import largest_gain, lower_limit, mean_over_trajectories

if TYPE_CHECKING:
    from .method import MixFlow

GRID = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
WIDER = 3
"""Steps beyond the ends of `GRID`, at most."""
FINALISTS = 3
"""Step sizes that are compared on longer orbits as well."""
TRAJECTORIES = 32
STARTS = 256
LOOKS = 8
"""Lengths at which the bound is looked at."""


class Tuned(eqx.Module):
    """Step sizes tried, the bound that each reached (NaN: not finite) with its standard error, and the choice.

    Parameters
    ----------
    step_sizes, elbo, se
        Shape (g,), increasing; empty where the user gave the step size.
    step_size
        That of the largest bound, or the user's.
    num_evaluations
        Gradients that the look at the reference and the search took; of a prepared method each restart's share.
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
    """Try step sizes on orbits of the homogeneous flow: all on short ones, and the best on longer ones.

    A grid of the package's own goes on beyond an end that is best. Longer orbits are not run where the bound of the
    short ones no longer rises, by the rule that stops the orbits of the fit.

    Raises
    ------
    NonFinite
        No step size gave a finite bound.
    """
    dtype = reference.loc.dtype
    if method.step_size is not None:
        given, none = jnp.asarray(method.step_size, dtype), jnp.zeros(0, dtype)
        return Tuned(none, none, none, given, STARTS)
    longest = method.max_length if method.length is None else method.length
    short, room = (min(length, longest) for length in search_lengths(method))
    evaluations = STARTS
    gradients = method.map(reference, 0.1).gradients
    tried: dict[float, Look] = {}

    def look(step_size: float, length: int) -> None:
        nonlocal evaluations
        evaluations += TRAJECTORIES * (1 + 2 * (length - 1) * gradients)
        given = jnp.asarray(step_size, dtype), jnp.asarray(length)
        tried[step_size] = Look(*map(float, _search(method, key, target, reference, *given, room=room)))

    def ranking() -> list[float]:
        return sorted(tried, key=lambda step_size: tried[step_size].lower, reverse=True)

    for step_size in GRID if method.grid is None else method.grid:
        look(float(step_size), short)
    for _ in range(WIDER if method.grid is None else 0):
        best = ranking()[0]
        if best not in (min(tried), max(tried)) or not np.isfinite(tried[best].lower):
            break
        look(best * 1.5 if best == max(tried) else best / 2, short)
    first, *others = ranking()
    if not np.isfinite(tried[first].lower):
        raise NonFinite(
            f"MixFlow: no step size of the grid {tuple(sorted(tried))} gave a finite bound; give a smaller grid=, or a "
            f"nearer reference=."
        )
    if room > short and tried[first].gain >= method.tolerance:
        finalists = [first, *others[: FINALISTS - 1]]
        for step_size in finalists:
            look(step_size, room)
        first = max(finalists, key=lambda step_size: tried[step_size].lower)
    steps = sorted(tried)
    elbo, se = (jnp.asarray([getattr(tried[step], name) for step in steps], dtype) for name in ("elbo", "se"))
    return Tuned(jnp.asarray(steps, dtype), elbo, se, jnp.asarray(first, dtype), evaluations)


class Look(NamedTuple):
    """The largest bound over lengths that lost no trajectory, its standard error, and the most of the last half's gain.

    NaN where there is none: all lengths had lost one; for the gain, the last.
    """

    elbo: float
    se: float
    gain: float

    @property
    def lower(self) -> float:
        """By which step sizes are compared."""
        value = self.elbo - 2.0 * self.se
        return value if np.isfinite(value) else -np.inf


@partial(jax.jit, static_argnames=("room",))
def _search(
    method: "MixFlow",
    key: PRNGKeyArray,
    target: Target,
    reference: orbit.Reference,
    step_size: Array,
    length: Array,
    *,
    room: int,
) -> tuple[Array, Array, Array]:
    """The `Look` at a step size on orbits of this length, at most ``room``."""
    log_density, flow_map = reference.density(target.log_density), method.map(reference, step_size)
    lengths = -(-jnp.arange(1, LOOKS + 1) * length // LOOKS)
    orbits = orbit.begin(key, flow_map, reference, log_density, TRAJECTORIES, room)
    orbits = orbit.grow(orbits, flow_map, reference, log_density, length - 1)
    bounds = orbit.bounds(orbits, lengths)
    elbo, se, lost = mean_over_trajectories(bounds)
    elbo = jnp.where(lost == 0, elbo, jnp.nan)
    best = jnp.argmax(lower_limit(elbo, se))
    gain = jnp.where(lost[-1] == 0, largest_gain(bounds[:, LOOKS // 2 - 1], bounds[:, -1]), jnp.nan)
    return elbo[best], se[best], gain
