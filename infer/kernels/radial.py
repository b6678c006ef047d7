"""Radial kernels of squared distances: the Gaussian (RBF) and the inverse multiquadric (IMQ).

Both are at most 1, so that sums of them need no running maximum. Their gradients are

    ∇₁k(x_j, x_i) = W_ij (x_i − x_j),

with a weight W that follows from the value alone: 2k/h for the RBF, k³/h for the IMQ.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

Kernel = Literal["imq", "rbf"]
KERNELS = ("imq", "rbf")


def kernel_value(kernel: str, squared: Float[Array, "*n"], bandwidth: Float[Array, ""]) -> Float[Array, "*n"]:
    """k(r²): exp(−r²/h) of ``"rbf"``, (1 + r²/h)^(−1/2) of ``"imq"``."""
    scaled = squared / bandwidth
    return jnp.exp(-scaled) if kernel == "rbf" else 1 / jnp.sqrt(1 + scaled)


def gradient_weight(kernel: str, value: Float[Array, "*n"], bandwidth: Float[Array, ""]) -> Float[Array, "*n"]:
    """W, from the value of the kernel."""
    return 2 * value / bandwidth if kernel == "rbf" else value**3 / bandwidth


def squared_distances(
    x: Float[Array, "n d"], y: Float[Array, "m d"], x_norm: Float[Array, " n"], y_norm: Float[Array, " m"]
) -> Float[Array, "n m"]:
    """‖x_i − y_j‖² = ‖x_i‖² + ‖y_j‖² − 2 x_i·y_j, not below 0; the norms are the squared ones.

    The points should be centred: rounding is relative to the norms. The product is taken in full precision on every
    device; tensor cores would keep three digits of it.
    """
    return jnp.maximum(x_norm[:, None] + y_norm - 2 * jnp.matmul(x, y.T, precision="highest"), 0)
