"""What the agents agree on before a run: a mode, curvature and coordinates in which the posterior is about N(0, I).

Gradients and Hessians of the shares come together here. A user who gives step sizes and ``precondition=None`` has no
mode looked for; what is left is the curvature that exact proximal steps and conditional draws are made of.
"""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...infer.distributed.rows import gathered_rows, rows_in_place, vmap_rows
from ...infer.errors import NonFinite
from ...infer.linalg import Spectral
from ...infer.target.shards import ShardedTarget
from ...infer.variational.gaussian.approximation import GaussianApproximation
from ...infer.variational.mode import expansion, find_mode
from .prox import Quadratic, factors_of, factors_of_convex_part

SAME = 1.0
"""Hessians at two points are the same if they differ by so many times the square root of the machine epsilon."""
MAX_ENTRIES = 20_000_000
WIDER = 2.0


@jax.jit
def laplace(target: ShardedTarget, start: Float[Array, " d"]) -> tuple[GaussianApproximation, Array]:
    """N(mode, H⁻¹) of the whole posterior, and the least eigenvalue of H."""
    mode = find_mode(target.log_density, start)
    values, vectors = jnp.linalg.eigh(0.5 * (mode.hessian + mode.hessian.T))
    return GaussianApproximation(mode.point, Spectral(vectors, 1 / jnp.sqrt(values))), values[0]


def whitening(method: str, target: ShardedTarget, start: Float[Array, " d"]) -> GaussianApproximation:
    """Laplace's approximation; raise where there is none."""
    found, least = laplace(target, start)
    if not float(least) > 0:
        raise NonFinite(
            f"{method} found no mode to take its coordinates from: the least eigenvalue of the Hessian is "
            f"{float(least):.3g}; give precondition= a fit (pf.Pathfinder(), a short NUTS run) or another start."
        )
    return found


class AroundMode:
    """Starts for chains: draws of Laplace's approximation, made twice as wide; random ones where there is no mode.

    Far from the mode a likelihood can be flat, a logistic one at many standard deviations say, and steps scaled to the
    mode take thousands of iterations to come near.
    """

    def start_for(self, target: Any, key: Any, num_chains: int) -> tuple[Array, None]:
        """Points (num_chains, d), and nothing that was learned."""
        keys = jax.random.split(key, num_chains)
        points = jnp.stack([jnp.asarray(target.initial(one)) for one in keys])
        found, least = laplace(target, points[0])
        if float(least) > 0:
            normals = jax.vmap(lambda one: jax.random.normal(one, points[0].shape, points.dtype))(keys)
            points = jax.vmap(lambda z: found.transport(WIDER * z)[0])(normals)
        return points, None

    def teaches(self, method: Any) -> bool:
        """Of no step size."""
        del method
        return False


class Curvature(NamedTuple):
    """Hessians H_i of the agents' potentials, b_i = H_i z − ∇f_i(z), and whether f_i are quadratic."""

    hessians: Float[Array, "n d d"]
    linear: Float[Array, "n d"]
    quadratic: Any


class Compared(NamedTuple):
    """Largest entries of a share's Hessian, of its change to elsewhere, of the slope there, and of its error."""

    hessian: Float[Array, "*n"]
    change: Float[Array, "*n"]
    slope: Float[Array, "*n"]
    bend: Float[Array, "*n"]


@jax.jit
def curvature(method: Any, target: ShardedTarget, point: Float[Array, " d"]) -> Curvature:
    """Curvature of the shares at a point in the method's coordinates, brought together."""
    hessians, linear, compared = vmap_rows(partial(_expanded, method, target, point), held=(target.shards,))
    return Curvature(hessians, linear, _are_quadratic(compared))


@jax.jit
def curvature_in_place(method: Any, target: Any, point: Float[Array, " d"]) -> Curvature:
    """The same, where Hessians stay on the devices of their agents' data."""
    hessians, linear, compared = rows_in_place(partial(_expanded, method, target, point), (target.shards,), target.mesh)
    return Curvature(hessians, linear, _are_quadratic(gathered_rows(compared, target.num_agents)))


def _expanded(method: Any, target: ShardedTarget, point: Array, shard: Any) -> tuple[Array, Array, Compared]:
    """H and b of one share at a point, and how both compare with elsewhere."""
    f = lambda z: method.potential(target, z, shard)  # noqa: E731
    away = jnp.cos(jnp.arange(point.shape[0]) + 1.0) + 0.5
    (_, gradient, hessian), (_, slope, other) = expansion(f, point), expansion(f, point + away)
    change, bend = hessian - other, gradient + hessian @ away - slope
    compared = Compared(*(jnp.max(jnp.abs(x)) for x in (hessian, change, slope, bend)))
    return hessian, hessian @ point - gradient, compared


def _are_quadratic(compared: Compared) -> Array:
    """Whether nothing but rounding tells the shares from quadratics."""
    hessian, change, slope, bend = (jnp.max(x) for x in compared)
    scale = hessian + jnp.finfo(hessian.dtype).tiny
    limit = SAME * jnp.finfo(hessian.dtype).eps ** 0.5
    # A share with a quadratic part and jumps of its slope would pass the first test.
    return (change <= limit * scale) & (bend <= limit * (slope + scale))


def mode_curvature(method: Any, target: ShardedTarget, start: Float[Array, " d"]) -> Curvature | None:
    """Curvature of the shares at the mode, in the method's coordinates; None where it is not convex there."""
    coordinates = method.coordinates
    found, least = laplace(target, start)
    if not float(least) > 0:
        return None
    point = found.loc if coordinates is None else coordinates.pull(found.loc)
    return curvature(bare(method), target, point)


def bare(method: Any) -> Any:
    """The method with nothing but its coordinates, so that words among its settings do not meet the compiler."""
    return Bare(method.coordinates)


class Bare(eqx.Module):
    """Coordinates, and shares in them."""

    coordinates: Any

    def potential(self, target: ShardedTarget, z: Float[Array, " d"], shard: Any) -> Float[Array, ""]:
        """One agent's f_i at ``z``; the map's log-Jacobian is part of the prior."""
        if self.coordinates is None:
            return -target.share(z, shard)
        u, log_det = self.coordinates.transport(z)
        return -target.share(u, shard) - log_det / target.num_agents


def factorised(method: Any, target: ShardedTarget, kappa: Float[Array, " n"]) -> Quadratic | None:
    """The shares' curvature at the origin of the method's coordinates, plus κI, factorised; None if it is too large.

    With b_i where the shares are quadratic; without, and with what is concave in them left out, where they are not.
    What is found of data that lie on several devices stays there.
    """
    if target.num_agents * target.dim**2 > MAX_ENTRIES:
        return None
    mesh, origin = getattr(target, "mesh", None), jnp.zeros(target.dim)
    found = (curvature if mesh is None else curvature_in_place)(bare(method), target, origin)
    quadratic = bool(found.quadratic)
    factor, rows = factors_of if quadratic else factors_of_convex_part, (found.hessians, kappa)
    if mesh is None:
        factors = jax.vmap(factor)(*rows)
    else:
        factors = jax.jit(lambda *rows: rows_in_place(factor, rows, mesh))(*rows)
    return Quadratic(*factors, found.linear if quadratic else None)


def eigenvalues(hessians: Float[Array, "n d d"]) -> np.ndarray:
    """Eigenvalues of the average Hessian, smallest first."""
    mean = np.asarray(jnp.mean(hessians, axis=0))
    return np.linalg.eigvalsh(0.5 * (mean + mean.T))


def sharpest(found: Curvature) -> float:
    """Largest curvature of a share."""
    return float(np.linalg.eigvalsh(np.asarray(found.hessians)).max())
