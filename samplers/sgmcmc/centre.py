"""What is found out about a posterior before it is sampled by mini-batches: its mode, its curvature, the batch's noise.

The mode serves three ends. Control variates are centred there: the gradient of the log likelihood at u is estimated as

    ĝ(u) = Σᵢ ∇ℓᵢ(c) + (n/b) Σ_batch [∇ℓᵢ(u) − ∇ℓᵢ(c)],

whose variance is of the order of |u − c|², and not of n² (Baker et al. 2019, eq. 8). The inverse Hessian there gives
the coordinates z, u = c + S z, in which steps are taken, so that unscaled columns do no harm. And the variance of ĝ at
draws of the Laplace approximation gives the step size.

References
----------
.. [1] J. Baker, P. Fearnhead, E. Fox, C. Nemeth (2019). Control variates for stochastic gradient MCMC. Statistics and
   Computing 29. arXiv:1706.05439.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import NonFinite
from ...infer.variational.mode import climb
from ...infer.variational.mode import positive_definite as with_positive_eigenvalues

LARGEST_FULL = 500
"""Dimensions up to which the Hessian is a matrix; above it is its diagonal."""
NEWTON_STEPS = 20
CLIMB = 200
SETTLED = 1e-3
"""Newton decrement, in standard deviations, at which a point is taken for the mode."""
POINTS = 8
ROWS = 1024
POWER_STEPS = 30


class Centre(eqx.Module):
    """What `find_centre` found.

    Parameters
    ----------
    point, gradient
        c, and the gradient of the log likelihood of all data there.
    scale
        S: lower triangular (d, d), or the diagonal of a diagonal one.
    curvature
        The largest eigenvalue of −∇²log π in the coordinates z: 1 where S Sᵀ is the inverse Hessian.
    noise
        The largest eigenvalue of the covariance of ĝ in these coordinates, over draws of the Laplace approximation.
    left
        Newton decrement at c: its distance from the mode in standard deviations.
    """

    point: Float[Array, " d"]
    gradient: Float[Array, " d"]
    scale: Float[Array, "d ..."]
    curvature: Float[Array, ""]
    noise: Float[Array, ""]
    left: Float[Array, ""]

    def spread(self, z: Float[Array, " d"]) -> Float[Array, " d"]:
        """S z."""
        return self.scale @ z if self.scale.ndim == 2 else self.scale * z

    def pull(self, gradient: Float[Array, " d"]) -> Float[Array, " d"]:
        """Sᵀ ∇."""
        return self.scale.T @ gradient if self.scale.ndim == 2 else self.scale * gradient


def batch_gradient(target: Any, u: Float[Array, " d"], rows: Any) -> Float[Array, " d"]:
    """(n/b) Σ ∇ℓᵢ(u) over some rows."""
    size = jax.tree.leaves(rows)[0].shape[0]
    return target.num_factors / size * jax.grad(lambda v: jnp.sum(target.factor_at(v, rows)))(u)


def estimate(target: Any, centre: Centre, u: Float[Array, " d"], rows: Any, *, control: bool) -> Float[Array, " d"]:
    """∇ log π(u) from some rows, with or without control variates ([1]_, eq. 8)."""
    prior = jax.grad(target.log_prior)(u)
    if not control:
        return prior + batch_gradient(target, u, rows)
    there, here = jax.vmap(lambda v: batch_gradient(target, v, rows))(jnp.stack([u, centre.point]))
    return prior + centre.gradient + there - here


def find_centre(
    key: PRNGKeyArray, target: Any, start: Float[Array, " d"], *, batch_size: int, control: bool, precondition: bool
) -> Centre:
    """Climb to a mode, then look around: on the host, with all data, block by block.

    Raises
    ------
    NonFinite
        Log density or gradient are not finite on the way.
    """
    full = target.dim <= LARGEST_FULL
    point = _climb(target, jnp.asarray(start))
    value, gradient, hessian = _derivatives(target, point, full)
    decrement = np.inf
    for _ in range(NEWTON_STEPS):
        step, decrement = _newton(gradient, hessian)
        if not np.isfinite(float(decrement)):
            raise NonFinite(
                f"No mode was found to centre control variates at: the gradient has the norm "
                f"{float(jnp.linalg.norm(gradient)):.3g} where the search ended; look at target.check(), or use "
                f"control_variates=False, precondition=None."
            )
        if decrement < SETTLED:
            break
        for size in 0.5 ** np.arange(8):
            new = _derivatives(target, point + size * step, full)
            if new[0] >= value - 1e-10 * abs(value):
                point, (value, gradient, hessian) = point + size * step, new
                break
        else:
            break
    shape = _positive(hessian)
    scale = _scale(shape) if precondition else jnp.ones_like(point)
    curvature = _curvature(target, point, scale, hessian)
    likelihood = gradient - _prior(target, point, full=full)[1]
    found = Centre(point, likelihood, scale, curvature, jnp.zeros(()), jnp.asarray(decrement, point.dtype))
    around = _scale(shape)
    noise = _noise(key, target, found, around, batch_size=batch_size, control=control)
    return eqx.tree_at(lambda c: c.noise, found, noise)


@jax.jit
def _climb(target: Any, start: Array) -> Array:
    return climb(target.log_density, start, CLIMB)[0]


def _derivatives(target: Any, u: Array, full: bool) -> tuple[float, Array, Array]:
    """Log density, gradient and Hessian (or its diagonal) of −log π with all data."""
    parts = list(_prior(target, u, full=full))
    for rows, weights in target.passes():
        parts = [a + b for a, b in zip(parts, _likelihood(target, u, rows, weights, full=full), strict=True)]
    return float(parts[0]), parts[1], -parts[2]


@partial(jax.jit, static_argnames="full")
def _prior(target: Any, u: Array, *, full: bool) -> tuple[Array, Array, Array]:
    return _expand(target.log_prior, u, full)


@partial(jax.jit, static_argnames="full")
def _likelihood(target: Any, u: Array, rows: Any, weights: Array, *, full: bool) -> tuple[Array, Array, Array]:
    # Padding repeats a row, which is finite where the rows are; its weight is 0.
    return _expand(lambda v: jnp.sum(weights * target.factor_at(v, rows)), u, full)


def _expand(f: Any, u: Array, full: bool) -> tuple[Array, Array, Array]:
    """Value, gradient and Hessian, one column at a time so that memory stays that of a gradient."""
    value, gradient = jax.value_and_grad(f)(u)

    def column(i: Array) -> Array:
        unit = jnp.zeros_like(u).at[i].set(1.0)
        product = jax.jvp(jax.grad(f), (u,), (unit,))[1]
        return product if full else product[i]

    return value, gradient, jax.lax.map(column, jnp.arange(u.shape[0]))


def _newton(gradient: Array, hessian: Array) -> tuple[Array, Array]:
    """The Newton step, and its length in standard deviations."""
    shape = _positive(hessian)
    step = jnp.linalg.solve(shape, gradient) if hessian.ndim == 2 else gradient / shape
    return step, jnp.sqrt(jnp.sum(step * gradient))


def _positive(hessian: Array) -> Array:
    """A Hessian with positive eigenvalues, whatever the units of its columns; or a diagonal one."""
    diagonal = jnp.abs(jnp.diagonal(hessian) if hessian.ndim == 2 else hessian)
    diagonal = jnp.where(diagonal > 0, diagonal, 1.0)
    if hessian.ndim == 1:
        return diagonal
    unit = jnp.sqrt(diagonal)
    return with_positive_eigenvalues(hessian / jnp.outer(unit, unit)) * jnp.outer(unit, unit)


def _scale(hessian: Array) -> Array:
    """S with S Sᵀ = H⁻¹: the inverse transpose of a Cholesky factor, made lower triangular by reversing the order."""
    if hessian.ndim == 1:
        return 1 / jnp.sqrt(hessian)
    # H = J U Uᵀ J with J the reversal gives H = R Rᵀ, R upper triangular; S = R⁻ᵀ is lower triangular.
    upper = jnp.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]
    return jax.scipy.linalg.solve_triangular(upper.T, jnp.eye(hessian.shape[0], dtype=hessian.dtype), lower=True)


def _curvature(target: Any, point: Array, scale: Array, hessian: Array) -> Array:
    """The largest eigenvalue of SᵀHS."""
    if hessian.ndim == 2:
        scaled = scale.T @ hessian @ scale if scale.ndim == 2 else scale[:, None] * hessian * scale
        return jnp.max(jnp.abs(jnp.linalg.eigvalsh(scaled)))
    return _power(target, point, scale)


@jax.jit
def _power(target: Any, point: Array, scale: Array) -> Array:
    def product(v: Array) -> Array:
        return -scale * jax.jvp(jax.grad(target.log_density), (point,), (scale * v,))[1]

    def once(_: int, v: Array) -> Array:
        w = product(v)
        return w / jnp.linalg.norm(w)

    first = jax.random.normal(jax.random.key(0), point.shape, point.dtype)
    v = jax.lax.fori_loop(0, POWER_STEPS, once, first / jnp.linalg.norm(first))
    return jnp.linalg.norm(product(v))


@partial(jax.jit, static_argnames=("batch_size", "control"))
def _noise(key: PRNGKeyArray, target: Any, centre: Centre, around: Array, *, batch_size: int, control: bool) -> Array:
    """Largest eigenvalue of (n²/b) Cov_i Sᵀ[∇ℓᵢ(u) − ∇ℓᵢ(c)], averaged over u ~ N(c, H⁻¹); over ∇ℓᵢ(u) alone without
    control variates.
    """
    keys = jax.random.split(key, 2)
    sample = target.take(target.minibatch(keys[0], 0, ROWS))

    def gradients(u: Array) -> Float[Array, "rows d"]:
        def one(row: Any) -> Array:
            return jax.grad(lambda v: target.factor_at(v, jax.tree.map(lambda x: x[None], row))[0])(u)

        return jax.vmap(one)(sample)

    def covariance(k: PRNGKeyArray) -> Array:
        z = jax.random.normal(k, centre.point.shape, centre.point.dtype)
        u = centre.point + (around @ z if around.ndim == 2 else around * z)
        each = gradients(u) - (gradients(centre.point) if control else 0.0)
        each = jax.vmap(centre.pull)(each - jnp.mean(each, axis=0))
        return each.T @ each / ROWS if around.ndim == 2 else jnp.mean(each**2, axis=0)

    found = jnp.mean(jax.lax.map(covariance, jax.random.split(keys[1], POINTS)), axis=0)
    largest = jnp.max(jnp.linalg.eigvalsh(found)) if around.ndim == 2 else jnp.max(found)
    return target.num_factors**2 / batch_size * largest
