"""`NetScore`: a network's denoiser in the skip form, exact for N(0, I) where the network is zero.

In x = α y, α = 1/√(1 + ρ²), σ = ρ α, a network N(x, log ρ) predicts the noise as ε̂ = σ x − α N, that is

    D(y, ρ) = α² y + σ N(α y, log ρ),                       ∇_x log p_t(x) = −x + α N/σ.

Inputs have unit size at all levels, and of whitened data N itself has: at ρ → 0 it is minus the noise, at ρ → ∞ the
data's mean given nothing. A diffusion in the preconditioning of [1]_ has other coefficients of the same kind.

References
----------
.. [1] T. Karras et al. (2022). Elucidating the design space of diffusion-based generative models. arXiv:2206.00364.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.variational.flows.networks import Network
from .scores import AbstractScore, Level

FREQUENCIES = np.pi / 8 * np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0])
"""Of the features sin, cos of log ρ; the slowest turns once in 16 units, which are all levels from 1e-3 to 1e3."""


class NetScore(AbstractScore):
    """The denoiser of a trained network.

    Parameters
    ----------
    net
        A perceptron of d + 16 (+ c) inputs and d outputs.
    context
        What it is conditioned on, shape (c,), or None.
    """

    net: Network
    context: Float[Array, " c"] | None = None

    @classmethod
    def make(
        cls, key: PRNGKeyArray, dim: int, hidden: tuple[int, ...], context: int = 0, dtype: Any = jnp.float32
    ) -> "NetScore":
        """Before training: the denoiser of N(0, I).

        Parameters
        ----------
        hidden
            Units of each hidden layer.
        context
            Size of what it is conditioned on.
        """
        sizes = (dim + 2 * len(FREQUENCIES) + context, *hidden, dim)
        net = jax.tree.map(lambda x: x.astype(dtype), Network.make(key, sizes, "silu"))
        return cls(net, jnp.zeros(context, dtype) if context else None)

    def outputs(self, x: Float[Array, " d"], log_rho: Level) -> Float[Array, " d"]:
        """N(x, log ρ)."""
        angles = jnp.asarray(FREQUENCIES, x.dtype) * log_rho
        inputs = [x, jnp.sin(angles), jnp.cos(angles)]
        return self.net(jnp.concatenate(inputs if self.context is None else [*inputs, self.context]))

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[x₀ | y]."""
        rho = jnp.asarray(rho, y.dtype)
        alpha2 = 1 / (1 + rho**2)
        alpha = jnp.sqrt(alpha2)
        return alpha2 * y + rho * alpha * self.outputs(alpha * y, jnp.log(rho))

    def given(self, context: Float[Array, " c"]) -> "NetScore":
        """The same network conditioned on something else."""
        return NetScore(self.net, context)
