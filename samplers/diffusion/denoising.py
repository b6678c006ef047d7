"""`DenoisingSampler`: a diffusion learned from the density alone, whose draws carry exact weights (DDS, [1]_).

The noising process is the Ornstein–Uhlenbeck chain x ← √(1 − a) x + σ √a ε, which leaves N(0, σ² I) as it is. Run from
N(0, σ² I) with a drift, x' = √(1 − a_k) x + a_k v(x, k) + σ √a_k ε, the density of a whole path against that of the
noising chain begun at π is

    log w = log π(x_K) − log N(x_K; 0, σ² I) − Σ_k [a_k |v|²/(2σ²) + √a_k v·ε/σ],

so that E[w] = Z for any drift; the mean of log w is a bound of log Z, which training raises. With v = 0 and
π = N(0, σ² I) all weights are one. Steps are small at the end, where the detail is: a_k ∝ cos⁴.

A drift trained on its own paths learns no mode that they do not reach.

References
----------
.. [1] F. Vargas, W. Grathwohl, A. Doucet (2023). Denoising diffusion samplers. ICLR. arXiv:2302.13834.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.approximation import Approximation
from ...infer.target import Target
from ...infer.variational.flows.networks import Network
from .network import FREQUENCIES

CLIP = 100.0
"""Of the gradient that the drift sees."""
RATE = 0.1
"""Time per step: the sum of all a_k is K times as much."""


class Drift(eqx.Module):
    """v(x, k) = f(x, k) + h(k) clip(∇ log π(x)), both networks zero at first."""

    body: Network
    gate: Network

    @classmethod
    def make(cls, key: PRNGKeyArray, dim: int, hidden: tuple[int, ...]) -> "Drift":
        """Before training: zero."""
        one, two = jax.random.split(key)
        features = 2 * len(FREQUENCIES)
        body = Network.make(one, (dim + features, *hidden, dim), "silu")
        return cls(body, Network.make(two, (features, *hidden, dim), "silu"))

    def __call__(self, x: Float[Array, " d"], time: Array, gradient: Float[Array, " d"]) -> Float[Array, " d"]:
        """The drift at ``time`` in [0, 1]."""
        angles = jnp.asarray(FREQUENCIES, x.dtype) * 8 * time
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])
        gradient = jnp.clip(jnp.where(jnp.isfinite(gradient), gradient, 0.0), -CLIP, CLIP)
        return self.body(jnp.concatenate([x, features])) + self.gate(features) * gradient


class DenoisingSampler(Approximation):
    """Draws of a denoising diffusion sampler and their path weights.

    `sample_and_log_prob` returns log π − log w, which is the log density of a path, not of the draw: the law
    E[exp(log π − log q)] = Z holds, and densities at given points are not to be had.

    Parameters
    ----------
    drift
        v.
    target
        Whose gradient the drift sees.
    loc, scale
        Whitening: u = loc + scale x, shapes (d,) and (d, d).
    steps
        a_k, shape (K,).
    sigma
        σ.
    """

    drift: Drift
    target: Target
    loc: Float[Array, " d"]
    scale: Float[Array, "d d"]
    steps: Float[Array, " k"]
    sigma: Float[Array, ""]

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws u, and log q of their paths."""
        x, log_q = jax.vmap(lambda key: self.path(key, self.drift))(jax.random.split(key, n))
        log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.scale))))
        return self.loc + x @ self.scale.T, log_q - log_det

    def path(self, key: PRNGKeyArray, judge: Drift) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The end of one path in whitened coordinates, and log q = log N(x; 0, σ² I) + Σ (2 v·δ − a |v|²)/(2σ²).

        δ = a v + σ √a ε is the step beyond the noising chain's; ``judge`` gives the v of log q, the same function with
        or without gradients in its parameters.
        """
        dim, count = self.loc.shape[0], self.steps.shape[0]
        x = self.sigma * jax.random.normal(key, (dim,), self.loc.dtype)

        def step(carry: tuple, now: tuple) -> tuple[tuple, None]:
            (x, cost), (k, a) = carry, now
            eps = jax.random.normal(jax.random.fold_in(key, k + 1), (dim,), x.dtype)
            gradient = self.gradient(x)
            delta = a * self.drift(x, k / count, gradient) + self.sigma * jnp.sqrt(a) * eps
            v = judge(x, k / count, gradient)
            cost = cost + (jnp.sum(v * delta) - 0.5 * a * jnp.sum(v**2)) / self.sigma**2
            return (jnp.sqrt(1 - a) * x + delta, cost), None

        (x, cost), _ = jax.lax.scan(step, (x, jnp.zeros((), x.dtype)), (jnp.arange(count), self.steps))
        normal = -0.5 * jnp.sum((x / self.sigma) ** 2) - dim * jnp.log(self.sigma) - 0.5 * dim * np.log(2 * np.pi)
        return x, normal + cost

    def gradient(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """∇ log π at a whitened point."""
        return self.scale.T @ jax.grad(self.target.log_density)(self.loc + self.scale @ x)

    def bound(self, key: PRNGKeyArray, n: int) -> Float[Array, ""]:
        """Mean of log w over ``n`` paths, for its gradient; paths whose weight is not finite are left out.

        The gradient goes along the paths alone: that of log q at a given path is zero in the mean, and without it the
        noise of the whole vanishes where the drift is right (Roeder et al. 2017, sticking the landing).
        """
        judge = jax.lax.stop_gradient(self.drift)
        x, log_q = jax.vmap(lambda key: self.path(key, judge))(jax.random.split(key, n))
        log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(self.scale))))
        log_p = jax.vmap(lambda x: self.target.log_density(self.loc + self.scale @ x))(x) + log_det
        log_w = log_p - log_q
        fine = jnp.isfinite(log_w)
        return jnp.where(jnp.mean(fine) > 0.9, jnp.sum(jnp.where(fine, log_w, 0)) / jnp.maximum(fine.sum(), 1), jnp.nan)


def cosine_steps(count: int) -> np.ndarray:
    """a_k ∝ cos⁴(½π (k/K + 0.008)/1.008), with sum K/10, at most 1/2."""
    k = np.arange(count)
    shape = np.cos(0.5 * np.pi * (k / count + 0.008) / 1.008) ** 4
    return np.minimum(RATE * count * shape / shape.sum(), 0.5)
