"""The kernels of the Langevin samplers in one dimension, as means and standard deviations for `stationary_law`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from pushforward.infer.diagnostics.stationary import stationary_moments
from pushforward.infer.geometry import L1
from pushforward.infer.target.primal import primal


class Kernel(NamedTuple):
    """A sampler with a step on a one-dimensional target, ready to be asked."""

    method: Any
    target: Any
    mirror: Any
    step: Any

    def local(self, w: Any) -> Any:
        """What is known at the dual w."""
        return self.method.locate(self.target, self.mirror, self.mirror.from_dual(jnp.reshape(w, (1,))))


def make(method: Any, target: Any, step: float) -> Kernel:
    found = primal(target)
    return Kernel(method, found, method.mirror_for(found, jnp.ones(1)), jnp.asarray(step))


def laplace(quadratic: float) -> Any:
    """π ∝ exp(−quadratic · x²/2 − |x|)."""
    return pf.Target.composite(lambda x: -0.5 * quadratic * jnp.sum(x**2), L1(1.0), np.zeros(1))


def proposals(kernel: Kernel, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Mean and standard deviation of the proposal from each point of the grid, in the dual, and the points."""
    key = jax.random.key(7)
    origin = kernel.local(0.1).point
    xi = kernel.mirror.noise(key, origin)[0] / jnp.sqrt(kernel.mirror.hess_mv(origin, jnp.ones(1))[0])
    locals_ = jax.vmap(kernel.local)(grid)

    def end(local: Any, noise: Any) -> Any:
        return kernel.method.propose(kernel.target, kernel.mirror, noise, local, kernel.step).local.point.y[0]

    mean = jax.vmap(lambda x: end(x, lambda p: jnp.zeros(1)))(locals_)
    there = jax.vmap(lambda x: end(x, lambda p: kernel.method.noise(key, kernel.mirror, p)))(locals_)
    return np.asarray(mean), np.asarray(jnp.abs((there - mean) / xi)), locals_


def second_moments(kernel: Kernel, grid: np.ndarray, log_ratio: Any = None) -> np.ndarray:
    """E x² and E |x| of the stationary law; with ``log_ratio(old, new)`` of the adjusted chain."""
    mean, sd, locals_ = proposals(kernel, grid)
    ratios = None
    if log_ratio is not None:
        over = jax.vmap(jax.vmap(log_ratio, (None, 0)), (0, None))
        ratios = np.asarray(jax.jit(over)(locals_, locals_))
    x = np.asarray(locals_.point.x)[:, 0]
    return stationary_moments(mean, sd, grid, x, lambda x: np.stack([x**2, np.abs(x)]), ratios)
