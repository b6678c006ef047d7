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


LEVEL_FEATURES = 2 * len(FREQUENCIES)


def level_features(log_rho: Level) -> Float[Array, " 16"]:
    """What a network sees of a level: `FREQUENCIES`."""
    angles = jnp.asarray(FREQUENCIES, jnp.asarray(log_rho).dtype) * log_rho
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class NetScore(AbstractScore):
    """The denoiser of a trained network.

    Parameters
    ----------
    net
        A perceptron of d + 16 inputs and d outputs.
    """

    net: Network

    @classmethod
    def make(
        cls, key: PRNGKeyArray, dim: int, hidden: tuple[int, ...], dtype: Any = jnp.float32
    ) -> "NetScore":  # fmt: skip
        """Before training: the denoiser of N(0, I), of so many units in each hidden layer."""
        sizes = (dim + LEVEL_FEATURES, *hidden, dim)
        return cls(jax.tree.map(lambda x: x.astype(dtype), Network.make(key, sizes, "silu")))

    def outputs(self, x: Float[Array, " d"], log_rho: Level) -> Float[Array, " d"]:
        """N(x, log ρ)."""
        return self.net(jnp.concatenate([x, level_features(jnp.asarray(log_rho, x.dtype))]))

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[x₀ | y]."""
        rho = jnp.asarray(rho, y.dtype)
        alpha2 = 1 / (1 + rho**2)
        alpha = jnp.sqrt(alpha2)
        return alpha2 * y + rho * alpha * self.outputs(alpha * y, jnp.log(rho))
