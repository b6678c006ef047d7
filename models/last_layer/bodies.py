"""Networks whose features tell near from far: residual layers of bounded slope, then random Fourier features.

A layer with weights of spectral norm at most c < 1 keeps x + g(Wx + b) between (1 − c) and (1 + c) times as far apart
as before ([1]_), so that inputs far from the data have features far from theirs; √(2/R) a cos(Wh + b) with fixed normal
W and uniform b then gives, in the limit of many features, the kernel a² exp(−s² ‖h − h′‖²/2) ([2]_): a last layer on
them has, far away, the variance of its prior.

References
----------
.. [1] J. Liu et al. (2020). Simple and principled uncertainty estimation with deterministic deep learning via distance
   awareness. NeurIPS. arXiv:2006.10108.
.. [2] A. Rahimi, B. Recht (2007). Random features for large-scale kernel machines. NIPS.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.validate import check_count, check_positive

ITERATIONS = 20


class RandomFeatures(eqx.Module):
    """Features √(2/R) a cos(Wh + b) of a kernel a² exp(−s² ‖h − h′‖²/2); W and b are not learned.

    Parameters
    ----------
    key
        Of W ~ N(0, s²) and b ~ U(0, 2π).
    in_size, num_features
        Sizes of h and of the features, R.
    frequency
        s, one over the length scale.
    amplitude
        a; ‖φ‖² is a², up to the error of R features.
    """

    matrix: Any
    phase: Any
    amplitude: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        in_size: int,
        num_features: int = 128,
        *,
        frequency: float = 1.0,
        amplitude: float = 1.0,
    ) -> None:
        from paramax import non_trainable

        for name, value in (("in_size", in_size), ("num_features", num_features)):
            check_count(name, value)
        for name, value in (("frequency", frequency), ("amplitude", amplitude)):
            check_positive(name, value)
        key_matrix, key_phase = jax.random.split(key)
        self.matrix = non_trainable(frequency * jax.random.normal(key_matrix, (num_features, in_size), float))
        self.phase = non_trainable(jax.random.uniform(key_phase, (num_features,), float, 0.0, 2 * math.pi))
        self.amplitude = amplitude

    def __call__(self, h: Float[Array, " i"], *, key: Any = None) -> Float[Array, " r"]:
        """φ of one h; the key is for `equinox.nn.Sequential`, and not used."""
        del key
        scale = self.amplitude * math.sqrt(2 / self.phase.shape[0])
        return scale * jnp.cos(self.matrix @ h + self.phase)


class SpectralMLP(eqx.Module):
    """h ← h + g(W̃h + b) for some layers, W̃ = W min(1, c/‖W‖₂): x ↦ h that keeps distances.

    The first layer maps x to the width by a matrix whose rows are orthonormal at the start, and is bounded in the same
    way. The norm is found by power iteration from a start that is kept fixed, through which gradients flow as through
    uᵀWv at the vectors found.

    Parameters
    ----------
    key
        Of the first weights.
    in_size, width, depth
        Sizes of x and of h; residual layers.
    bound
        c, largest spectral norm of a layer.
    activation
        g, of slope at most 1.
    """

    entry: Array
    weights: Array
    biases: Array
    activation: Callable = eqx.field(static=True)
    bound: float = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        in_size: int,
        width: int = 64,
        depth: int = 2,
        *,
        bound: float = 0.95,
        activation: Callable = jax.nn.elu,
    ) -> None:
        for name, value in (("in_size", in_size), ("width", width), ("depth", depth)):
            check_count(name, value)
        check_positive("bound", bound)
        key_entry, key_layers = jax.random.split(key)
        self.entry = jnp.linalg.qr(jax.random.normal(key_entry, (max(width, in_size), min(width, in_size)), float))[0]
        if width < in_size:
            self.entry = self.entry.T
        self.weights = jax.random.normal(key_layers, (depth, width, width), float) / math.sqrt(width)
        self.biases = jnp.zeros((depth, width), float)
        self.activation, self.bound = activation, bound

    def __call__(self, x: Float[Array, " i"], *, key: Any = None) -> Float[Array, " w"]:
        """H of one x; the key is for `equinox.nn.Sequential`, and not used."""
        del key
        h = bounded(self.entry, 1.0) @ x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = h + self.activation(bounded(weight, self.bound) @ h + bias)
        return h


def bounded(weight: Float[Array, "o i"], largest: float) -> Float[Array, "o i"]:
    """The matrix, divided so that its spectral norm is at most ``largest``."""
    return weight * jnp.minimum(1.0, largest / spectral_norm(weight))


def spectral_norm(weight: Float[Array, "o i"]) -> Float[Array, ""]:
    """‖W‖₂ by power iteration, from below; its gradient is u vᵀ at the singular vectors found."""
    fixed = jax.lax.stop_gradient(weight)
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x), 1e-30)  # noqa: E731
    start = unit(jnp.cos(jnp.arange(1.0, weight.shape[1] + 1, dtype=weight.dtype)))
    v = jax.lax.fori_loop(0, ITERATIONS, lambda _, v: unit(fixed.T @ (fixed @ v)), start)
    return unit(fixed @ v) @ (weight @ v)
