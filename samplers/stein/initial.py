"""The particles that a user gives, as unconstrained coordinates."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ...infer.approximation import Approximation
from ...infer.errors import InvalidArgument
from ...infer.target import Target
from ...infer.target.words import describe


def initial_cloud(given: Any, key: PRNGKeyArray, target: Target, n: int, method: str) -> Array | None:
    """Particles u of shape (n, d), or None where none are given.

    Parameters
    ----------
    given
        None; an unconstrained array (n, d); values of all latent sites, with particles on a leading axis; an
        `Approximation` or a posterior with one, of which ``n`` draws are taken.

    Raises
    ------
    InvalidArgument
        The shape does not fit, a value lies outside of its support, or two particles are equal, which would never
        separate.
    """
    if given is None:
        return None
    approximation = getattr(given, "approximation", given)
    if isinstance(approximation, Approximation):
        return approximation.sample_and_log_prob(key, n)[0]
    if isinstance(given, Mapping):
        u = _from_values(given, target, n)
    else:
        u = jnp.asarray(given, float)
        if u.shape != (n, target.dim):
            raise InvalidArgument(
                f"initial has shape {u.shape}; {method}(num_particles={n}) on a target of dimension {target.dim} needs "
                f"({n}, {target.dim}), unconstrained, or a dict of values by site."
            )
    bad = np.argwhere(~np.isfinite(np.asarray(u)))
    if bad.size:
        row, column = (int(i) for i in bad[0])
        value = float(u[row, column])
        raise InvalidArgument(
            f"initial has {value} at particle {row}, unconstrained coordinate {column}: a value on or outside of the "
            f"boundary of its support; move it inside."
        )
    _, first, counts = np.unique(np.asarray(u), axis=0, return_index=True, return_counts=True)
    if counts.max() > 1:
        raise InvalidArgument(
            f"initial has {int(counts.max())} particles equal to particle {int(first[counts.argmax()])}; equal "
            f"particles move alike for ever, so give different ones."
        )
    return u


def _from_values(values: Mapping[str, Any], target: Target, n: int) -> Array:
    latent = {site.name: site.shape for site in target.sites if site.kind == "latent"}
    for name in [*latent, *values]:
        if name not in values or name not in latent:
            raise InvalidArgument(
                f"initial must have the latent sites {', '.join(latent)}, got {', '.join(values)}; {name!r} is in one "
                f"of them only."
            )
        if np.shape(values[name]) != (n, *latent[name]):
            simplex = np.shape(values[name]) == (n, *latent[name][:-1], latent[name][-1] - 1) if latent[name] else False
            remedy = "; of a simplex give all probabilities" if simplex else ""
            raise InvalidArgument(
                f"initial[{name!r}] has shape {np.shape(values[name])}; for {n} particles it must have shape "
                f"{(n, *latent[name])}{remedy}."
            )
    _check_supports(values, target)
    return jax.vmap(target.unconstrain)({name: jnp.asarray(values[name], float) for name in latent})


def _check_supports(values: Mapping[str, Any], target: Target) -> None:
    """Name the first particle and the value outside of a support."""
    if not target.has("support"):
        return
    for name, support in target.supports().items():
        if support is None or name not in values:
            continue
        given = np.asarray(values[name], float)
        inside = np.asarray(support.value(jnp.asarray(given)))
        rows = inside.reshape(given.shape[0], -1).all(axis=1)
        if rows.all():
            continue
        row = int(np.flatnonzero(~rows)[0])
        shown, where = np.array2string(given[row], precision=4, threshold=6), ""
        if inside.shape == given.shape and given.ndim > 1:
            place = tuple(int(i) for i in np.argwhere(~inside[row])[0])
            where, shown = f", entry {list(place)},", np.array2string(given[row][place], precision=4)
        raise InvalidArgument(
            f"initial[{name!r}] of particle {row}{where} is {shown}, outside of the support {support.value}; move it "
            f"inside, e.g. {_inward(name, describe(support.value))}."
        )


def _inward(name: str, words: str) -> str:
    """How to move values inside of a support, as code."""
    if words.startswith("simplex"):
        return f"p = np.maximum(initial[{name!r}], 1e-6); p / p.sum(-1, keepdims=True)"
    if words.startswith("positive"):
        return f"np.maximum(initial[{name!r}], 1e-6)"
    return f"np.clip(initial[{name!r}], low + 1e-6, high - 1e-6) of an interval (low, high)"
