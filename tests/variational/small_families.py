"""Small families of `Approximation` whose gradients are known, and flowjax's flows as one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pushforward.infer.approximation import Approximation


class Normal(Approximation):
    """Independent normals with log scales."""

    loc: Array
    log_scale: Array

    def sample_and_log_prob(self, key, n):
        u = self.loc + jnp.exp(self.log_scale) * jax.random.normal(key, (n, self.loc.shape[0]), self.loc.dtype)
        return u, jax.vmap(self.log_prob)(u)

    def log_prob(self, u):
        z = (u - self.loc) * jnp.exp(-self.log_scale)
        return jnp.sum(-0.5 * z**2 - self.log_scale - 0.5 * jnp.log(2 * jnp.pi))


class LocationScale(Approximation):
    """u = m + C z, with any C; its density is left out (zero), so that only the energy has a gradient."""

    loc: Array
    scale: Array

    def sample_and_log_prob(self, key, n):
        z = jax.random.normal(key, (n, self.loc.shape[0]), self.loc.dtype)
        moved = z * self.scale if self.scale.ndim == 1 else z @ self.scale.T
        return self.loc + moved, jnp.zeros(n, self.loc.dtype)


class FlowjaxFlow(Approximation):
    """What flowjax's flows are: a base and a bijection."""

    base: Any
    bijection: Any

    def sample_and_log_prob(self, key, n):
        from paramax import unwrap

        z = self.base.sample(key, (n,))
        u, log_det = jax.vmap(unwrap(self.bijection).transform_and_log_det)(z)
        return u, self.base.log_prob(z) - log_det

    def log_prob(self, u):
        from paramax import unwrap

        z, log_det = unwrap(self.bijection).inverse_and_log_det(u)
        return self.base.log_prob(z) + log_det
