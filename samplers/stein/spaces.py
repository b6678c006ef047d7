"""Where the particles of a mirrored sampler live: dual coordinates, their scores, and the matrices P as blocks.

The score in the dual is b = P s + ∇·P = ∇_y log p(x(y)) + ∇·P, s the gradient of the log density in x (Shi, Liu &
Mackey 2022, section 3; ∇·P = ∇_y log det ∇²φ*(y) holds the log-Jacobian of the map, without which a Gamma(3, 1) comes
out as a Gamma(2, 1)). P s is taken through ∇φ*, and a simplex is given to the model with all of its probabilities, so
that nothing overflows at a boundary and nobody computes 1 − Σ x.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...infer.geometry import Affine, Batch, Product
from ...infer.geometry.mirror import AbstractMirror, Point
from ...infer.geometry.simplex import AbstractSimplex
from ...infer.kernels.metric import Dense, Diagonal, Identity, Metric, RankOne
from ...infer.target.mirrors import log_probabilities
from ...infer.target.primal import Primal

FLOOR = {"float32": 1e-30, "float64": 1e-300}


class Cloud(NamedTuple):
    """What a velocity needs of the particles.

    Parameters
    ----------
    x
        Coordinates of the kernel, (n, d).
    drift
        b, (n, d).
    metric
        Blocks of P; None for the identity.
    points
        The particles in primal and dual coordinates, on a leading axis; None without a mirror.
    score
        ∇ log density in the coordinates of the steps, (n, d); None where that is b.
    memory
        What the sampler carries to the next iteration.
    turned
        A matrix (d, d) that velocities are to be divided by; None where there is none.
    """

    x: Array
    drift: Array
    metric: Metric | None = None
    points: Point | None = None
    score: Array | None = None
    memory: Any = None
    turned: Array | None = None


def values_at(found: Primal, mirror: AbstractMirror, point: Point) -> dict[str, Array]:
    """Values of the sites at a point; of a simplex all probabilities, from their logarithms."""
    logs = log_probabilities(found.coordinates, mirror, point)
    return found.coordinates.values(point.x) | {name: jnp.exp(value) for name, value in logs.items()}


def unconstrained(found: Primal, mirror: AbstractMirror, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The u of the particles; a probability that underflows is raised to a floor first."""
    from numpyro.distributions import biject_to

    floor = FLOOR[jnp.result_type(y).name]

    def one(y: Array) -> Array:
        values, parts = values_at(found, mirror, mirror.from_dual(y)), []
        for block in found.coordinates.blocks:
            value = values[block.name]
            if block.kind == "simplex":
                value = jnp.maximum(value, floor)
            parts.append(value if block.is_real else biject_to(block.support.value)._inverse(value))
        return jnp.concatenate([jnp.reshape(part, (-1,)) for part in parts])

    return jax.vmap(one)(y)


def inverse_hessians(mirror: AbstractMirror, points: Point) -> Metric:
    """P at the points, which have a leading axis, in the cheapest blocks."""
    n, size = points.x.shape
    if isinstance(mirror, Product):
        parts = zip(mirror.parts, points.extra, strict=True)
        return tuple(block for part, inner in parts if inner.x.shape[1] for block in inverse_hessians(part, inner))
    if isinstance(mirror, Batch):
        parts = (jax.tree.map(lambda leaf, k=k: leaf[:, k], points.extra) for k in range(mirror.count))
        return tuple(block for inner in parts for block in inverse_hessians(mirror.mirror, inner))
    if isinstance(mirror, Affine):
        scale = jnp.broadcast_to(jnp.asarray(mirror.scale, points.x.dtype), (size,))
        return _scaled(inverse_hessians(mirror.mirror, points.extra), scale, n)
    if mirror.structure == "identity":
        return (Identity(size),)
    if mirror.structure == "diagonal":
        return (Diagonal(jax.vmap(mirror.inv_hess_mv)(points, jnp.ones((n, size), points.x.dtype))),)
    if isinstance(mirror, AbstractSimplex):
        log_q = jax.vmap(mirror.log_q)(points)
        q = jnp.exp(log_q)[:, :-1]
        return (RankOne(q, q, jax.nn.softmax(log_q)[:, :-1]),)
    basis = jnp.eye(size, dtype=points.x.dtype)
    return (Dense(jax.vmap(lambda p: jax.vmap(lambda v: mirror.inv_hess_mv(p, v))(basis))(points)),)


def _scaled(metric: Metric, scale: Array, n: int) -> Metric:
    """S P S with S = diag(scale)."""
    out, begin = [], 0
    for block in metric:
        s = scale[begin : begin + block.size]
        begin += block.size
        match block:
            case Identity():
                out.append(Diagonal(jnp.broadcast_to(s**2, (n, s.size))))
            case Diagonal():
                out.append(Diagonal(s**2 * block.diagonal))
            case RankOne():
                out.append(RankOne(s**2 * block.diagonal, s * block.left, s * block.right))
            case Dense():
                out.append(Dense(s[:, None] * block.matrices * s))
    return tuple(out)
