"""Block neural autoregressive flow: a monotone network (De Cao, Titov & Aziz 2019, arXiv:1904.04676).

Coordinate i owns a block of ``width`` hidden units. Weights from block j to block i are free for j < i, positive for
j = i and zero for j > i, so that output i is increasing in x_i and the Jacobian is lower triangular; its diagonal is a
product of small positive matrices. There is no inverse in closed form.

A network that ends in bounded units has a bounded range and loses the tails. As in the paper's gated residual, a layer
is y = σ(g) f(x) + (1 − σ(g)) x: it maps onto all of R^d, and begins near the identity.
"""

import itertools
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .bijection import Structure
from .coupled import Triangular

START_GATE = -3.0


class BlockAutoregressive(Triangular):
    """One gated layer of a block neural autoregressive flow.

    Parameters
    ----------
    weights
        Raw weights, shapes (d w_out, d w_in); positive blocks are their exponentials.
    gains
        Log length of each row of the masked weights, shapes (d w_out,) (weight normalisation).
    biases
        Shapes (d w_out,).
    gate
        g, shape (d,).
    """

    weights: tuple[Float[Array, "_ _"], ...]
    gains: tuple[Float[Array, " _"], ...]
    biases: tuple[Float[Array, " _"], ...]
    gate: Float[Array, " d"]
    dim: int = eqx.field(static=True)
    structure: ClassVar[Structure] = "autoregressive"

    @classmethod
    def make(cls, key: PRNGKeyArray, dim: int, widths: tuple[int, ...]) -> "BlockAutoregressive":
        """Random weights, the gate almost shut."""
        widths = (1, *widths, 1)
        pairs = list(itertools.pairwise(widths))
        weights = [
            jax.random.normal(k, (dim * o, dim * i)) / jnp.sqrt(dim * i)
            for k, (i, o) in zip(jax.random.split(key, len(pairs)), pairs, strict=True)
        ]
        zeros = tuple(jnp.zeros(w.shape[0]) for w in weights)
        return cls(tuple(weights), zeros, zeros, jnp.full(dim, START_GATE), dim)

    def transform_and_log_diagonal(self, x: Array) -> tuple[Array, Array]:
        """Image, and the logs of (1 − σ(g)) + σ(g) ∂f_i/∂x_i."""
        h, slope, last = x, jnp.ones((self.dim, 1), x.dtype), len(self.weights) - 1
        for layer, (raw, gain, bias) in enumerate(zip(self.weights, self.gains, self.biases, strict=True)):
            weight, diagonal = _masked(raw, gain, self.dim)
            h = weight @ h + bias
            slope = jnp.einsum("doi,di->do", diagonal, slope)
            if layer < last:
                h = jnp.tanh(h)
                slope *= 1 - h.reshape(self.dim, -1) ** 2
        share = jax.nn.sigmoid(self.gate)
        # The gate bounds the sum away from zero, where products of tanh' vanish: no log-space products are needed.
        return share * h + (1 - share) * x, jnp.log(share * slope[:, 0] + (1 - share))


def _masked(raw: Array, gain: Array, dim: int) -> tuple[Array, Array]:
    """Normalised weights (d o, d i), and their diagonal blocks (d, o, i)."""
    out, inp = raw.shape[0] // dim, raw.shape[1] // dim
    own = np.kron(np.eye(dim, dtype=bool), np.ones((out, inp), bool))
    before = np.kron(np.tri(dim, k=-1, dtype=bool), np.ones((out, inp), bool))
    weight = jnp.where(own, jnp.exp(jnp.where(own, raw, 0)), jnp.where(before, raw, 0))
    weight *= (jnp.exp(gain) / jnp.sqrt(jnp.sum(weight**2, axis=1)))[:, None]
    each = np.arange(dim)
    return weight, weight.reshape(dim, out, dim, inp)[each, :, each]
