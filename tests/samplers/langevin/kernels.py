"""The kernels of the Langevin samplers in one dimension, as means and standard deviations for `stationary_law`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from pushforward.infer.diagnostics.stationary import stationary_acceptance, stationary_covariance, stationary_moments
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


@functools.cache
def laplace(quadratic: float) -> Any:
    """π ∝ exp(−quadratic · x²/2 − |x|)."""
    return pf.Target.composite(lambda x: -0.5 * quadratic * jnp.sum(x**2), L1(1.0), np.zeros(1))


def proposals(kernel: Kernel, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
    """Mean and standard deviation of the proposal from each point of the grid, in the dual, and the points."""
    mean, sd, locals_ = _proposals(kernel, grid)
    return np.asarray(mean), np.asarray(sd), locals_


@jax.jit
def _proposals(kernel: Kernel, grid: Any) -> tuple[Any, Any, Any]:
    key = jax.random.key(7)
    origin = kernel.local(0.1).point
    xi = kernel.mirror.noise(key, origin)[0] / jnp.sqrt(kernel.mirror.hess_mv(origin, jnp.ones(1))[0])
    locals_ = jax.vmap(kernel.local)(grid)

    def end(local: Any, noise: Any) -> Any:
        return kernel.method.propose(kernel.target, kernel.mirror, noise, local, kernel.step).local.point.y[0]

    mean = jax.vmap(lambda x: end(x, lambda p: jnp.zeros(1)))(locals_)
    there = jax.vmap(lambda x: end(x, lambda p: kernel.method.noise(key, kernel.mirror, p)))(locals_)
    return mean, jnp.abs((there - mean) / xi), locals_


def ratios(locals_: Any, log_ratio: Any) -> np.ndarray:
    """``log_ratio(old, new)`` between all points."""
    return np.asarray(jax.jit(jax.vmap(jax.vmap(log_ratio, (None, 0)), (0, None)))(locals_, locals_))


def second_moments(kernel: Kernel, grid: np.ndarray, log_ratio: Any = None) -> np.ndarray:
    """E x² and E |x| of the stationary law; with ``log_ratio(old, new)`` of the adjusted chain."""
    mean, sd, locals_ = proposals(kernel, grid)
    known = None if log_ratio is None else ratios(locals_, log_ratio)
    x = np.asarray(locals_.point.x)[:, 0]
    return stationary_moments(mean, sd, grid, x, lambda x: np.stack([x**2, np.abs(x)]), known)


def acceptance(kernel: Kernel, grid: np.ndarray, log_ratio: Any) -> float:
    """Mean acceptance of the adjusted chain."""
    mean, sd, locals_ = proposals(kernel, grid)
    return stationary_acceptance(mean, sd, grid, ratios(locals_, log_ratio))


def covariance(method: Any, target: Any, step: float) -> np.ndarray:
    """Stationary covariance of x under a kernel that is affine in x and its dual variables, from its derivatives."""
    found = primal(target)
    d = target.dim
    mirror, step = method.mirror_for(found, jnp.ones(d)), jnp.asarray(step)
    start = method.locate(found, mirror, mirror.at(jnp.zeros(d)))
    flat, back = jax.flatten_util.ravel_pytree((start.point.x, start.point.extra))

    def move(z: Any, key: Any) -> Any:
        x, extra = back(z)
        local = method.locate(found, mirror, mirror.at(x)._replace(extra=extra))
        noise = (lambda p: jnp.zeros(d)) if key is None else (lambda p: method.noise(key, mirror, p))
        point = method.propose(found, mirror, noise, local, step).local.point
        return jax.flatten_util.ravel_pytree((point.x, point.extra))[0]

    transition = jax.jit(jax.jacfwd(lambda z: move(z, None)))(flat)
    # The noise is linear in the normals that a key decides: as many keys as normals give its matrix.
    keys = jax.random.split(jax.random.key(1), 3 * d)
    normals = jax.vmap(lambda key: mirror.noise(key, mirror.at(jnp.zeros(d))))(keys)
    pushed = jax.jit(jax.vmap(lambda key: move(flat, key) - move(flat, None)))(keys)
    noise = np.linalg.lstsq(np.asarray(normals), np.asarray(pushed), rcond=None)[0].T
    return stationary_covariance(transition, noise)[:d, :d]
