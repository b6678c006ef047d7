"""The four two-dimensional energies of Rezende & Mohamed (2015), table 1, as targets.

U2 to U4 are flat in z1, so that they are densities only when cut off: a soft box 10 Σ max(|z_i| − 4, 0)² is added, to
all four of them. The log normalisers are those of a quadrature on a grid.
"""

import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf

LOG_Z = {"U1": 1.8775, "U2": 2.1498, "U3": 2.7094, "U4": 2.7688}


def box(z):
    return 10 * jnp.sum(jnp.maximum(jnp.abs(z) - 4, 0) ** 2)


def w1(z):
    return jnp.sin(2 * jnp.pi * z[0] / 4)


def w2(z):
    return 3 * jnp.exp(-0.5 * ((z[0] - 1) / 0.6) ** 2)


def w3(z):
    return 3 * jax.nn.sigmoid((z[0] - 1) / 0.3)


def u1(z):
    two = jnp.logaddexp(-0.5 * ((z[0] - 2) / 0.6) ** 2, -0.5 * ((z[0] + 2) / 0.6) ** 2)
    return 0.5 * ((jnp.sqrt(jnp.sum(z**2) + 1e-12) - 2) / 0.4) ** 2 - two


def u2(z):
    return 0.5 * ((z[1] - w1(z)) / 0.4) ** 2


def u3(z):
    return -jnp.logaddexp(-0.5 * ((z[1] - w1(z)) / 0.35) ** 2, -0.5 * ((z[1] - w1(z) + w2(z)) / 0.35) ** 2)


def u4(z):
    return -jnp.logaddexp(-0.5 * ((z[1] - w1(z)) / 0.4) ** 2, -0.5 * ((z[1] - w1(z) + w3(z)) / 0.35) ** 2)


ENERGIES = {"U1": u1, "U2": u2, "U3": u3, "U4": u4}


def log_density(z, which):
    return -jax.lax.switch(which, tuple(ENERGIES.values()), z) - box(z)


def target(name: str) -> pf.Target:
    """One of the energies as a target, u = z; which one is data, so that all four share their programs."""
    return pf.Target.from_log_density(log_density, np.zeros(2), data=np.int32(list(ENERGIES).index(name)))
