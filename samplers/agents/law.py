"""The exact law of a sampler on agents with quadratic shares: mean and covariance of all iterates, at any iteration.

With quadratic shares an iteration is affine, z⁺ = F z + c + N ξ, z being iterates and memory of all agents; F, c and N
are read off the sampler's own update by differentiation, so that what is worked out is the law of the code that runs.
Means and covariances then follow m⁺ = F m + c, P⁺ = F P Fᵀ + N Nᵀ. A sampler that flips coins has an affine map for
each way that they can fall, and averages over these (`mixed`).
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, gmres

from ...infer.target.shards import ShardedTarget

FORGOTTEN = 30
"""Mixing times after which nothing is left of the start."""
LONGEST = 1e9
UNIT = 1e-9
RESIDUAL, BASIS = 1e-6, 60
"""Relative residual of the covariance of a sampler that flips coins, and vectors that GMRES keeps for it."""


class QuadraticShares(eqx.Module):
    """Stands for a sharded target whose shares are ½zᵀH_i z − b_iᵀz."""

    hessians: Float[Array, "n d d"]
    linear: Float[Array, "n d"]

    @property
    def num_agents(self) -> int:
        """Number of shares."""
        return self.linear.shape[0]

    @property
    def dim(self) -> int:
        """Dimension of z."""
        return self.linear.shape[1]

    @property
    def shards(self) -> tuple[Array, Array]:
        """What the agents hold."""
        return self.hessians, self.linear

    def share(self, z: Float[Array, " d"], shard: tuple[Array, Array]) -> Float[Array, ""]:
        """Minus the potential of one agent."""
        hessian, linear = shard
        return linear @ z - 0.5 * z @ hessian @ z


def contrasted(shares: QuadraticShares, most: int) -> QuadraticShares:
    """These shares along the directions v in which they differ most: vᵀH_i v, as if those were eigenvectors of all.

    Those of the largest eigenvalues of Σ(H_i − H̄)², H̄ the average; what is concave is left out.
    """
    hessians, linear = np.asarray(shares.hessians), np.asarray(shares.linear)
    apart = hessians - hessians.mean(0)
    vectors = np.linalg.eigh(np.einsum("nij,njk->ik", apart, apart))[1][:, -most:]
    curvatures = np.maximum(np.einsum("ik,nij,jk->nk", vectors, hessians, vectors), 0.0)
    return QuadraticShares(curvatures[:, :, None] * np.eye(vectors.shape[1]), linear @ vectors)


class Affine(NamedTuple):
    """z⁺ = F z + c + N ξ, and where the agents' iterates and the average are in z."""

    transition: Float[np.ndarray, "k k"]
    shift: Float[np.ndarray, " k"]
    noise: Float[np.ndarray, "k r"]
    iterates: Float[np.ndarray, "n d k"]
    average: Float[np.ndarray, "d k"]


class Law(NamedTuple):
    """Mean and covariance of z."""

    mean: Float[np.ndarray, " k"]
    covariance: Float[np.ndarray, "k k"]

    def of(self, rows: Float[np.ndarray, "d k"]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of what these rows select: an agent's iterate, or the average."""
        return rows @ self.mean, rows @ self.covariance @ rows.T


def affine(method: Any, target: ShardedTarget, count: int = 0, coins: Any = None) -> Affine:
    """The iteration of a prepared method as an affine map, at iteration ``count`` (which step sizes may depend on).

    ``coins`` stand in for the last entry of the method's draws, if it has any, and are held fixed.
    """
    return Affine(*map(np.asarray, _affine(method, target, jnp.asarray(count), coins)))


@jax.jit
def _affine(method: Any, target: Any, count: Array, coins: Any) -> tuple[Array, ...]:
    shape = (target.num_agents, target.dim)
    x = jnp.zeros(shape)
    normals = jax.tree.map(jnp.zeros_like, method.normals(jax.random.key(0), shape, x.dtype))
    if coins is not None:
        *normals, _ = normals
    start = (x, jax.tree.map(jnp.zeros_like, method.first_memory(jax.random.key(0), x)))
    flat, unravel = ravel_pytree(start)
    flat_noise, unravel_noise = ravel_pytree(normals)

    def update(z: Array, xi: Array) -> Array:
        x, memory = unravel(z)
        drawn = unravel_noise(xi)
        new = method.advance(x, memory, drawn if coins is None else (*drawn, coins), target, count)
        return ravel_pytree((new.x, new.memory))[0]

    transition, noise = jax.jacfwd(update, argnums=(0, 1))(flat, flat_noise)
    iterates = jax.jacfwd(lambda z: unravel(z)[0])(flat)
    average = jax.jacfwd(lambda z: method.centre(*unravel(z)))(flat)
    return transition, update(flat, flat_noise), noise, iterates, average


def growth(method: Any, target: Any, iterations: int = 300) -> float:
    """Largest factor by which an iteration of the affine map stretches what it has come to, by power iteration.

    1 for what has invariants and is stable; for more agents times dimensions than `affine` can take.
    """
    return float(_growth(method, target, iterations))


@jax.jit
def _growth(method: Any, target: Any, iterations: Array) -> Array:
    shape = (target.num_agents, target.dim)
    silent = jax.tree.map(jnp.zeros_like, method.normals(jax.random.key(0), shape, jnp.zeros(0).dtype))
    first = jax.random.normal(jax.random.key(1), shape)

    def update(z: Any) -> Any:
        new = method.advance(*z, silent, target, jnp.asarray(0))
        return new.x, new.memory

    z = first, method.first_memory(jax.random.key(0), first)
    shift = update(jax.tree.map(jnp.zeros_like, z))

    def again(i: Array, carry: tuple) -> tuple:
        z, grown = carry
        z = jax.tree.map(jnp.subtract, update(z), shift)
        size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(z)))
        # The first half is for all but the fastest mode to be forgotten.
        grown = grown + jnp.where(2 * i >= iterations, jnp.log(size), 0.0)
        return jax.tree.map(lambda leaf: leaf / size, z), grown

    _, grown = jax.lax.fori_loop(0, iterations, again, (z, jnp.zeros(())))
    return jnp.exp(grown / (iterations - iterations // 2))


def start(method: Any, target: Any, sd: float = 1.0) -> Law:
    """The law of a start at 0 from which the agents are independently ``sd`` standard normals apart; no memory."""
    x = jnp.zeros((target.num_agents, target.dim))

    def first(flat: Array) -> Array:
        x_now = flat.reshape(x.shape)
        return ravel_pytree((x_now, method.first_memory(jax.random.key(0), x_now)))[0]

    spread = sd * np.asarray(jax.jacfwd(first)(x.ravel()))
    return Law(np.zeros(len(spread)), spread @ spread.T)


def advance(law: Law, step: Affine) -> Law:
    """The law one iteration later."""
    f, n = step.transition, step.noise
    return Law(f @ law.mean + step.shift, f @ law.covariance @ f.T + n @ n.T)


def stationary(step: Affine, start: Law) -> Law:
    """The law after so many iterations from ``start`` that it is forgotten, by doubling the map.

    Invariants, such as the sum of the duals, stay what they are; no more doublings than needed, since rounding grows
    along them.
    """
    f, c, q = step.transition, step.shift, step.noise @ step.noise.T
    for _ in range(int(np.ceil(np.log2(FORGOTTEN * (1 + min(mixing_time(step), LONGEST)))))):
        c, q, f = f @ c + c, f @ q @ f.T + q, f @ f
    return Law(f @ start.mean + c, f @ start.covariance @ f.T + q)


def mixed(cases: Sequence[tuple[float, Affine]], mean: Affine) -> Law:
    """The law that an iteration keeps which is one of several affine maps, each with its probability.

    With m the fixed point of the average map, P = Σ_c p_c [F_c P F_cᵀ + N_c N_cᵀ + (F_c m + c_c − m)(…)ᵀ]: linear
    equations, solved by GMRES. Without a law of finite variance what solves them is not positive; it is then infinite.
    """
    size = len(mean.shift)
    m = np.linalg.solve(np.eye(size) - mean.transition, mean.shift)
    spreads = [(p, np.column_stack([step.noise, step.transition @ m + step.shift - m])) for p, step in cases]
    source = _total(p * spread @ spread.T for p, spread in spreads)

    def left(flat: np.ndarray) -> np.ndarray:
        covariance = flat.reshape(size, size)
        return flat - _total(p * step.transition @ covariance @ step.transition.T for p, step in cases).ravel()

    operator = LinearOperator((size**2, size**2), matvec=left, dtype=float)
    found, failed = gmres(operator, source.ravel(), rtol=RESIDUAL, restart=BASIS, maxiter=BASIS)
    covariance = found.reshape(size, size)
    if failed or covariance.diagonal().min() < -RESIDUAL * np.abs(covariance).max():
        covariance = np.full((size, size), np.inf)
    return Law(m, 0.5 * (covariance + covariance.T))


def average_map(cases: Sequence[tuple[float, Affine]]) -> Affine:
    """The affine map that the mean follows."""
    parts = zip(*(step for _, step in cases), strict=True)
    return Affine(*(_total(p * x for (p, _), x in zip(cases, part, strict=True)) for part in parts))


def _total(terms: Iterable[np.ndarray]) -> np.ndarray:
    return reduce(np.add, terms)


def mixing_time(step: Affine) -> float:
    """−1/log |λ| of the slowest mode that is not an invariant (∞ if one grows)."""
    sizes = np.abs(np.linalg.eigvals(step.transition))
    sizes = sizes[np.abs(sizes - 1) > UNIT]
    slowest = float(sizes.max(initial=0.0))
    return np.inf if slowest >= 1 else -1 / np.log(slowest) if slowest > 0 else 0.0
