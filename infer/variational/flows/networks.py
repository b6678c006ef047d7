"""The networks that give a layer its parameters: plain, and masked so that output i sees only inputs before i.

Last weights are zero: a flow begins at the identity, and its first gradients reach the last layer only. Masks are
constants made of the sizes (Germain, Gregor, Murray & Larochelle 2015, MADE, arXiv:1502.03509).
"""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...validate import check_choice

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "silu": jax.nn.silu, "gelu": jax.nn.gelu}


class Network(eqx.Module):
    """A perceptron; with ``masks`` a masked one.

    Parameters
    ----------
    weights, biases
        Of each layer, shapes (out, in) and (out,).
    activation
        ``"tanh"``, ``"relu"``, ``"silu"`` or ``"gelu"``.
    dims
        (d, P) of an autoregressive network of d inputs and d × P outputs, else None.
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    activation: str = eqx.field(static=True)
    dims: tuple[int, int] | None = eqx.field(static=True, default=None)

    @classmethod
    def make(
        cls, key: PRNGKeyArray, sizes: tuple[int, ...], activation: str, dims: tuple[int, int] | None = None
    ) -> "Network":
        """Random first layers (variance 1/fan-in), a last layer of zeros."""
        check_choice("activation", activation, tuple(ACTIVATIONS))
        masks = _masks(sizes, dims)
        weights = []
        for i, k in enumerate(jax.random.split(key, len(sizes) - 1)):
            shape = (sizes[i + 1], sizes[i])
            if i == len(sizes) - 2:
                weights.append(jnp.zeros(shape))
                continue
            fan_in = shape[1] if masks is None else np.maximum(masks[i].sum(1, keepdims=True), 1)
            weights.append(jax.random.normal(k, shape) / jnp.sqrt(fan_in))
        return cls(tuple(weights), tuple(jnp.zeros(size) for size in sizes[1:]), activation, dims)

    def __call__(self, x: Float[Array, " i"]) -> Float[Array, " o"]:
        """The outputs at one point."""
        sizes = (self.weights[0].shape[1], *(w.shape[0] for w in self.weights))
        masks = _masks(sizes, self.dims)
        activate, last = ACTIVATIONS[self.activation], len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            weight = weight if masks is None else weight * masks[i]
            x = weight @ x + bias
            x = x if i == last else activate(x)
        return x


def _masks(sizes: tuple[int, ...], dims: tuple[int, int] | None) -> Any:
    """Masks (out, in) of a masked network: output block i sees the inputs 0, …, i − 1."""
    if dims is None:
        return None
    dim, num_params = dims
    degrees = [np.arange(1, dim + 1)]
    # With one input nothing may be seen: degree 1 of the hidden units reaches no output.
    degrees += [np.arange(size) % max(dim - 1, 1) + 1 for size in sizes[1:-1]]
    masks = [b[:, None] >= a[None, :] for a, b in itertools.pairwise(degrees)]
    outputs = np.repeat(np.arange(1, dim + 1), num_params)
    masks.append(outputs[:, None] > degrees[-1][None, :])
    return [mask.astype(np.float32) for mask in masks]
