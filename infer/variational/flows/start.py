"""Where a flow begins: a normal that covers what several Pathfinder paths find, or a Laplace approximation's.

The paths' normals are mixed by their ELBOs as Pathfinder mixes them (Zhang et al. 2022), and the flow is whitened by
the mixture's mean and covariance: where there is one mode that is its normal, where there are several it covers those
found. Splines act within a box of some standard deviations around the centre, so that a start on one mode of two would
leave the other out of their reach.

A normal at a mode is narrow where the posterior is curved: of a banana it knows the width at its top, not the length
of its arms, and what lies beyond the box is found late or never. A flow may therefore begin wider (``width``). Steps of
Adam are no longer than its rate: a short run begins only as wide as it can take back.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...target import Target
from ..whitening import whitened
from .linear import Whitening

DENSE_DIM = 500
NUM_PATHS = 8
WHITENINGS = ("pathfinder", "laplace")
TAKEN_BACK = 2 / 3
"""Of the width beyond the normal's, by all steps of a run, in units of steps × rate."""
NUM_PROBES = 32
FINITE = 0.9
"""Share of the wide normal's draws at which the log density must be finite."""


def whitening(
    key: PRNGKeyArray, target: Target, start: Float[Array, " d"], how: str | None, wider: Any = 1.0
) -> Whitening:
    """The whitening by a normal found from ``start``; where there is no finite one, unit scale at ``start``.

    Above 500 dimensions it is diagonal.

    Parameters
    ----------
    how
        ``"pathfinder"`` (paths from ``start`` and from seven random points), ``"laplace"`` (at the mode that L-BFGS
        reaches from ``start``), or None for unit scale at ``start``.
    wider
        How many times as wide as the normal found, unless the log density is not finite at more than a tenth of the
        draws there.
    """
    dim = start.shape[0]
    if how is None:
        return Whitening.make(start, jnp.ones_like(start))
    if how == "laplace":
        frame = whitened(key, target, start, how)
        loc, scale = frame.shift, jnp.linalg.qr(frame.scale.T, mode="r").T
        scale *= jnp.sign(jnp.diagonal(scale))
    else:
        loc, covariance = _paths_moments(key, target, start)
        scale = jnp.linalg.cholesky(covariance)
    fine = jnp.all(jnp.isfinite(loc)) & jnp.all(jnp.isfinite(scale))
    loc, scale = jnp.where(fine, loc, start), jnp.where(fine, scale, jnp.eye(dim, dtype=start.dtype))
    if dim > DENSE_DIM:
        scale = jnp.sqrt(jnp.sum(scale**2, axis=1))
    wider = jnp.where(fine, jnp.asarray(wider, scale.dtype), 1.0)
    wide = Whitening.make(loc, wider * scale)
    z = jax.random.normal(jax.random.fold_in(key, 1), (NUM_PROBES, dim), start.dtype)
    at = jax.lax.map(lambda z: target.log_density(wide.transform_and_log_det(z)[0]), z)
    return Whitening.make(loc, jnp.where(jnp.mean(jnp.isfinite(at)) >= FINITE, wider, 1.0) * scale)


def first_width(width: Any, num_steps: Any, learning_rate: Any) -> Float[Array, ""]:
    """How many times as wide as the normal found a flow begins: as asked, but no more than its steps can take back."""
    return jnp.minimum(width, 1 + TAKEN_BACK * jnp.asarray(num_steps * learning_rate, float))


def _paths_moments(key: PRNGKeyArray, target: Target, start: Array) -> tuple[Array, Array]:
    """Mean and covariance of the paths' normals, mixed by their ELBOs; NaN where no path has a finite one."""
    from ..pathfinder import NormalMixture, Pathfinder, normal_of_path

    path = Pathfinder()
    keys = jax.random.split(key, NUM_PATHS)
    starts = jnp.concatenate([start[None], jax.vmap(target.initial)(keys[1:])])

    def one(given: tuple[PRNGKeyArray, Array]) -> tuple[Array, tuple[Array, ...]]:
        key, start = given
        state, _ = path.step(key, path.init(key, target, start), target, jnp.zeros((), jnp.int32))
        return state.elbo, normal_of_path(state)

    # One by one: side by side, every path would take as long as the longest, and compile for twice as long.
    elbos, normals = jax.lax.map(one, (keys, starts))
    fine = jnp.isfinite(elbos)
    for part in normals:
        fine &= jnp.all(jnp.isfinite(part), axis=tuple(range(1, part.ndim)))
    log_weights = jax.nn.log_softmax(jnp.where(fine, elbos, -jnp.inf))
    best = jnp.argmax(jnp.where(fine, elbos, -jnp.inf))
    # A weight of zero does not silence a NaN.
    normals = tuple(jnp.where(jnp.expand_dims(fine, tuple(range(1, x.ndim))), x, x[best]) for x in normals)
    mixture = NormalMixture(log_weights, *normals)
    return mixture.mean(), mixture.covariance()
