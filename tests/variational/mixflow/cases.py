"""Targets, maps and references that the tests of MixFlows share."""

import jax
import jax.numpy as jnp
import numpy as np

from pushforward.infer.variational.mixflow import orbit
from pushforward.infer.variational.mixflow.hamiltonian import HamiltonianMap
from pushforward.infer.variational.mixflow.involutive import InvolutiveMap

MEANS = np.array([[0.0, 2.0], [-2.0, 0.0], [2.0, 0.0], [0.0, -2.0]])
SCALES = np.array([[0.15, 1.0], [1.0, 0.15], [1.0, 0.15], [0.15, 1.0]])


def cross(x):
    """Four Gaussians that form a cross, normalised."""
    means, scales = MEANS.astype(x.dtype), SCALES.astype(x.dtype)
    each = -0.5 * jnp.sum(((x - means) / scales) ** 2, -1) - np.sum(np.log(scales), -1) - jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(each) - jnp.log(4.0)


def banana(x):
    """A normal bent along a parabola, normalised."""
    y = x[1] - 0.1 * x[0] ** 2 + 10.0
    return -0.5 * (x[0] ** 2 / 100 + y**2) - jnp.log(10 * 2 * jnp.pi)


def wide(x):
    """N(2, 2²) in one dimension."""
    return -0.5 * jnp.sum(((x - 2.0) / 2.0) ** 2) - jnp.log(2.0) - 0.5 * jnp.log(2 * jnp.pi)


def maps(step=0.1, leapfrogs=5, dim=2):
    """One of each kind."""
    scale = np.linspace(0.7, 1.3, dim)
    return {
        "hmc": InvolutiveMap(step, scale, "hmc", leapfrogs),
        "mala": InvolutiveMap(step, scale, "mala"),
        "rwmh": InvolutiveMap(5 * step, scale, "rwmh"),
        "gaussian": HamiltonianMap(step, scale, leapfrogs, "gaussian"),
        "laplace": HamiltonianMap(step, scale, leapfrogs, "laplace"),
        "constant": HamiltonianMap(step, scale, leapfrogs, "laplace", np.pi / 16),
    }


NAMES = list(maps())
REFERENCE = orbit.Reference(np.array([0.014, -0.032]), np.array([0.5, 1.99]))
STORED_CROSS = orbit.Reference(np.array([0.014, -0.032]), np.array([0.161, 1.991]))
STORED_BANANA = orbit.Reference(np.array([-0.006, -9.533]), np.array([2.208, 1.003]))
