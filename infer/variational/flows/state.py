"""What the training of a flow carries along and what it records of a step."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...train import TrainState

BLOCKS = ("location", "scale", "layers")


class FlowState(eqx.Module):
    """State of the training of a flow.

    Parameters
    ----------
    train
        Parameters, optimiser, averages.
    rest
        What of the flow is not trained: permutations and the whitening.
    anchor
        Of the control variates of mini-batches; None without.
    """

    train: TrainState
    rest: Any
    anchor: Any = None


class FlowInfo(NamedTuple):
    """What is known of a step; the loss is minus the objective.

    ``elbo`` and ``elbo_error`` are the mean of the log weights and its standard error (at the present temperature);
    ``variance_…`` the trace of the gradient's covariance, by block of parameters, from the two halves of the draws.
    """

    loss: Array
    elbo: Array
    elbo_error: Array
    temperature: Array
    grad_norm: Array
    variance_location: Array
    variance_scale: Array
    variance_layers: Array
    rate: Array
    skipped: Array
    num_evaluations: Array


def block_sums(tree: Any, dtype: Any) -> dict[str, Array]:
    """Sums of a flow's leaves by block: location and scale of the affine map, everything else."""
    chain = tree.bijection.bijections
    *layers, affine, _ = chain
    scale = [affine.diagonal] + ([] if affine.lower is None else [affine.lower])
    total = lambda leaves: sum(jax.tree.leaves(leaves), jnp.zeros((), dtype))  # noqa: E731
    sums = (total(affine.loc), total(scale), total(layers))
    return {f"variance_{name}": value for name, value in zip(BLOCKS, sums, strict=True)}
