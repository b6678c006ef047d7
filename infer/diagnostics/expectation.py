"""The mean of a function over the draws of a posterior, with its Monte-Carlo error."""

import math
from typing import Any

import jax
import numpy as np

from .chains import effective_sample_size, split_chains
from .psis import Estimate, weighted_moments, weights_ess

SHORTEST = 4
"""Draws per chain below which autocorrelation cannot be seen."""


def expectation(values: Any, kind: str, log_weights: np.ndarray | None = None) -> Estimate:
    """The mean of values over draws, and its standard error.

    Parameters
    ----------
    values
        Pytree of arrays: (chain, draw, …) for ``"chains"``, (draw, …) otherwise.
    kind
        ``"chains"`` (the error knows of autocorrelation), or ``"particles"``.
    log_weights
        Of particles, shape (n,); without them their error is NaN, since such a cloud is not one of independent draws.

    Returns
    -------
    Two pytrees of float64 arrays.
    """
    leaves, tree = jax.tree.flatten(values)
    one = _of_chains if kind == "chains" else lambda x: _of_particles(x, log_weights)
    means, errors = zip(*(one(np.asarray(x, float)) for x in leaves), strict=True)
    return Estimate(jax.tree.unflatten(tree, means), jax.tree.unflatten(tree, errors))


def _of_chains(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and MCSE of an array (chain, draw, …)."""
    chains, draws, *shape = x.shape
    scalars = np.ascontiguousarray(np.moveaxis(x.reshape(chains, draws, -1), -1, 0))
    if draws < SHORTEST or not np.isfinite(scalars).all():
        error = np.full(len(scalars), np.nan)
    else:
        sd = scalars.reshape(len(scalars), -1).std(axis=-1, ddof=1)
        error = sd / np.sqrt(effective_sample_size(split_chains(scalars)))
    return x.mean(axis=(0, 1)), error.reshape(shape)


def _of_particles(x: np.ndarray, log_weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and error of an array (particle, …)."""
    shape = x.shape[1:]
    if log_weights is None:
        return x.mean(axis=0), np.full(shape, np.nan)
    moments = weighted_moments(x.reshape(len(x), math.prod(shape)).T, log_weights)
    return moments.mean.reshape(shape), (moments.sd / math.sqrt(weights_ess(log_weights))).reshape(shape)
