"""One small, perturbed flow per family: what the laws run over. A family without an entry fails the suite."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp

from pushforward.infer.variational.flows.bijection import Bijection
from pushforward.infer.variational.flows.families import FAMILIES, NO_INVERSE, Shape, build

DIM = 3
SMALL = Shape(num_layers=2, hidden=(4,), num_bins=3, tolerance=1e-9)
SHAPES = dict.fromkeys(FAMILIES, SMALL) | {
    "planar": SMALL._replace(num_layers=4),
    "radial": SMALL._replace(num_layers=4),
    "continuous": SMALL._replace(num_layers=1),
}
WITH_INVERSE = [name for name in FAMILIES if name not in NO_INVERSE]


def perturbed(bijection: Bijection, seed: int = 1, size: float = 0.3) -> Bijection:
    """The same with noise on all its parameters, so that it is no longer near the identity."""
    leaves, treedef = jax.tree.flatten(bijection)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noisy = [
        x + size * jax.random.normal(k, x.shape, x.dtype) if eqx.is_inexact_array(x) else x
        for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, noisy)


@cache
def flow_of(name: str, dim: int = DIM) -> Bijection:
    """A flow of the family in 64 bits."""
    with jax.enable_x64(True):
        return perturbed(build(jax.random.key(0), name, dim, SHAPES[name]))


def points(n: int, dim: int = DIM, seed: int = 2) -> jax.Array:
    """Standard normal points, some of them far out."""
    with jax.enable_x64(True):
        return jax.random.normal(jax.random.key(seed), (n, dim)) * jnp.linspace(0.5, 3.0, n)[:, None]
