"""Mean functions of a latent Gaussian process."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .kernels import as_parameter


class Mean(eqx.Module):
    """A mean function; its parameters are real numbers."""

    @abc.abstractmethod
    def at(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The mean at inputs."""


class Zero(Mean):
    """0."""

    def at(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The mean at inputs."""
        return jnp.zeros(x.shape[0], x.dtype)


class Constant(Mean):
    """One number."""

    value: Any = 0.0

    def at(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The mean at inputs."""
        return jnp.broadcast_to(jnp.asarray(self.value, x.dtype), x.shape[:1])


class Linear(Mean):
    """intercept + x · slope, with ``slope`` of shape (d,)."""

    slope: Any = eqx.field(converter=as_parameter)
    intercept: Any = 0.0

    def at(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The mean at inputs."""
        return self.intercept + x @ jnp.asarray(self.slope, x.dtype)
