"""Targets with known answers, and the compiled loop of a method without the driver."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf


def quadratic(x, data):
    mean, precision = data
    return -0.5 * (x - mean) @ precision @ (x - mean)


@cache
def gaussian(dim: int = 4, low: float = 0.05, high: float = 1.0) -> tuple[pf.Target, np.ndarray, np.ndarray]:
    """Target N(mean, covariance) whose precision has eigenvalues from ``low`` to ``high``; mean, covariance."""
    rng = np.random.default_rng(dim)
    rotation, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    precision = rotation @ np.diag(np.geomspace(low, high, dim)) @ rotation.T
    precision = 0.5 * (precision + precision.T)
    mean = rng.uniform(size=dim)
    return pf.Target.from_log_density(quadratic, np.zeros(dim), data=(mean, precision)), mean, np.linalg.inv(precision)


def poisson_rate(z, y):
    return y * z - jnp.exp(z)


@cache
def poisson(dim: int = 1) -> pf.Target:
    """V(x) = Σ exp(xᵢ) − 3 xᵢ + xᵢ²/2, up to the prior's constant: a count of 3 for each coordinate."""
    return pf.glm_target(np.eye(dim), np.full(dim, 3.0), poisson_rate)


@cache
def poisson_density(dim: int = 1) -> pf.Target:
    """The same as a density without structure."""
    return pf.Target.from_log_density(lambda x: jnp.sum(3 * x - jnp.exp(x) - 0.5 * x**2), np.zeros(dim))


@cache
def regression() -> pf.Target:
    """A Poisson regression with correlated posterior, d = 3."""
    rng = np.random.default_rng(4)
    design = rng.normal(size=(12, 3)) @ np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 0.7]])
    return pf.glm_target(design, rng.poisson(2.0, size=12).astype(float), "poisson", prior_precision=0.5)


# The optimum of `poisson`, its F = KL − log Z, and log ∫ exp(−V), to twelve digits.
POISSON = {"mean": 0.687422729064, "variance": 0.301879750481, "f": -0.182551310946, "log_z": 0.194163008704}


@partial(jax.jit, static_argnames=("steps",))
def run(method: Any, target: pf.Target, key: Any, start: Any, *, steps: int) -> tuple[Any, Any]:
    """Final state and infos of ``steps`` iterations."""
    state = jax.tree.map(jnp.asarray, method.init(key, target, start))

    def body(state: Any, t: Any) -> tuple[Any, Any]:
        return method.step(jax.random.fold_in(key, t), state, target, t)

    return jax.lax.scan(body, state, jnp.arange(steps))


def iterate(method: Any, target: pf.Target, start: Any = None, steps: int = 400, key: int = 0) -> tuple[Any, Any]:
    """`run`, in 64 bits, from ``start`` (default 0) and in coordinates of u."""
    method = dataclasses.replace(method, whiten=None)
    with jax.enable_x64(True):
        start = jnp.zeros(target.dim) if start is None else jnp.asarray(start, float)
        return run(method, target, jax.random.key(key), start, steps=steps)


def covariance(state: Any) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(state.factor.covariance())


def normal_kl(m0, s0, m1, s1) -> float:
    """KL(N(m0, s0) ‖ N(m1, s1))."""
    p = np.linalg.inv(s1)
    delta = np.asarray(m0) - m1
    log_det = np.linalg.slogdet(s1)[1] - np.linalg.slogdet(s0)[1]
    return 0.5 * float(np.trace(p @ s0) + delta @ p @ delta - len(delta) + log_det)
