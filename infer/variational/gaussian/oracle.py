"""Expectations under the current Gaussian N(m, C Cᵀ): g = E ∇V and the push S C of S = E ∇²V, and how noisy they are.

V = −log π, x = m + C u, G = ∇V(x), and c is the coefficient of the control variate:

* Price: ∇²V(x) applied to the columns of C, g from r = G − c C⁻ᵀ u   (Diao et al. 2023, eq. 3; Luu et al. 2025)
* Stein: S C = E[G uᵀ], by c C⁻ᵀ + (1/n) Σ r uᵀ                        (sticking the landing on the matrix part too)
* Gauss–Hermite: both to rounding, where the target knows its one-dimensional integrals

With c = 1 all noise of the mean, and for Stein's form of the matrix too, vanishes at the optimum of a Gaussian target.
Draws come in antithetic pairs (u, −u): g is then exact for quadratic V. Costs: n gradients, and for Price n times as
many Hessian–vector products as the family has probes (d for a full covariance), one draw at a time. The variance logged
for Price's matrix takes antithetic draws as independent.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...linalg import AbstractFactor
from ..curvature import gradient_difference, hessian_vector
from ..whitening import Frame

EXPECTATIONS = ("price", "stein", "gauss_hermite")
POWER_STEPS = 30


class Settings(eqx.Module):
    """What decides an estimate; all but the coefficient is static."""

    expectation: str = eqx.field(static=True)
    num_draws: int = eqx.field(static=True)
    antithetic: bool = eqx.field(static=True)
    control: str = eqx.field(static=True)
    coefficient: Any
    skip_nonfinite: bool = eqx.field(static=True)
    num_nodes: int = eqx.field(static=True, default=32)


class Moments(eqx.Module):
    """Estimates of one step.

    Parameters
    ----------
    gradient, push
        E ∇V and S C, in the coordinates of the run.
    image
        S v for the given direction v.
    elbo, elbo_se
        ELBO in u and its standard error.
    variance_mean, variance_push
        Variance of the two estimates, summed over their entries.
    finite
        Whether all draws were; ``skipped`` were left out, ``bad`` is the first of them.
    """

    gradient: Float[Array, " d"]
    push: Any
    image: Float[Array, " d"]
    elbo: Float[Array, ""]
    elbo_se: Float[Array, ""]
    variance_mean: Float[Array, ""]
    variance_push: Float[Array, ""]
    finite: Any
    skipped: Int[Array, ""]
    bad: Float[Array, " d"]
    num_evaluations: Int[Array, ""]
    num_hvps: Int[Array, ""]


def potential(target: Any, frame: Frame | None) -> Callable[[Array], Array]:
    """V = −log π in the coordinates of the run, without the frame's constant."""
    if frame is None:
        return lambda x: -target.log_density(x)
    return lambda y: -target.log_density(frame.to_u(y))


def antithetic_normal(key: PRNGKeyArray, n: int, d: int, dtype: Any, antithetic: bool = True) -> Float[Array, "n d"]:
    """Standard normal draws; the second half is minus the first, where ``antithetic`` and n is even."""
    if not antithetic or n % 2:
        return jax.random.normal(key, (n, d), dtype)
    half = jax.random.normal(key, (n // 2, d), dtype)
    return jnp.concatenate([half, -half])


def moments(
    key: PRNGKeyArray,
    target: Any,
    frame: Frame | None,
    mean: Float[Array, " d"],
    factor: AbstractFactor,
    direction: Float[Array, " d"],
    settings: Settings,
) -> Moments:
    """Estimate the expectations under N(mean, C Cᵀ)."""
    key_draws, key_probe = jax.random.split(key)
    d = mean.shape[0]
    z = jax.random.normal(key_probe, (d,), mean.dtype)
    if settings.expectation == "gauss_hermite":
        return exact_moments(target, frame, mean, factor, direction, z, settings.num_nodes)
    n = settings.num_draws
    u = antithetic_normal(key_draws, n, d, mean.dtype, settings.antithetic)
    x = mean + jax.vmap(factor.apply)(u)
    estimate = price_moments if settings.expectation == "price" else stein_moments
    return estimate(potential(target, frame), factor, frame, x, u, direction, z, settings)


def price_moments(
    v: Callable,
    factor: AbstractFactor,
    frame: Frame | None,
    x: Float[Array, "n d"],
    u: Float[Array, "n d"],
    direction: Float[Array, " d"],
    z: Float[Array, " d"],
    settings: Settings,
) -> Moments:
    """Gradients and Hessian–vector products at each draw, accumulated one draw at a time."""
    probes = jnp.concatenate([factor.probes(z), direction[None]])

    def one(total: tuple, x: Array) -> tuple[tuple, tuple]:
        (value, gradient), tangent = jax.linearize(jax.value_and_grad(v), x)
        images = jax.vmap(lambda p: tangent(p)[1])(probes)
        push = factor.push_image(images[:-1], z)
        ok = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)) & jnp.all(jnp.isfinite(images))
        if settings.skip_nonfinite:
            gradient, images, push = jax.tree.map(lambda a: jnp.where(ok, a, 0.0), (gradient, images, push))
        sums, squares, image = total
        sums = jax.tree.map(jnp.add, sums, push)
        return (sums, squares + _squared(push), image + images[-1]), (value, gradient, ok)

    nothing = jax.tree.map(jnp.zeros_like, factor.push_inverse())
    carry = (nothing, jnp.zeros((), x.dtype), jnp.zeros_like(direction))
    (sums, squares, image), (values, gradients, ok) = jax.lax.scan(one, carry, x)
    n, ok = _counted(ok, settings)
    push = jax.tree.map(lambda a: a / n, sums)
    variance = jnp.maximum(squares / n - _squared(push), 0.0) / jnp.maximum(n - 1, 1)
    c = _coefficient(settings, push, factor)
    r = _where(ok, gradients - c * jax.vmap(factor.solve_transpose)(u))
    hvps = jnp.asarray(x.shape[0] * probes.shape[0], int)
    return Moments(
        r.sum(0) / n, push, image / n, *_elbo(values, u, factor, frame, ok, n, settings), _variance(r, n, settings),
        variance,
        ok.all() | settings.skip_nonfinite, (~ok).sum(), x[jnp.argmin(ok)], x.shape[0] + hvps, hvps,
    )  # fmt: skip


def stein_moments(
    v: Callable,
    factor: AbstractFactor,
    frame: Frame | None,
    x: Float[Array, "n d"],
    u: Float[Array, "n d"],
    direction: Float[Array, " d"],
    z: Float[Array, " d"],
    settings: Settings,
) -> Moments:
    """Gradients alone: E[∇V(x) uᵀ] = S C."""
    del z
    values, gradients = jax.vmap(jax.value_and_grad(v))(x)
    ok = jnp.isfinite(values) & jnp.all(jnp.isfinite(gradients), axis=1)
    n, ok = _counted(ok, settings)
    scores = jax.vmap(factor.solve_transpose)(u)
    residual = _where(ok, gradients - scores)
    c = settings.coefficient if settings.control != "none" else 0.0
    r = residual + _where(ok, (1 - c) * scores)
    matrix = c if settings.control == "full" else 0.0
    outer = _where(ok, gradients - matrix * scores)
    push = jax.tree.map(
        lambda a, b: matrix * a + b * (x.shape[0] / n), factor.push_inverse(), factor.push_outer(outer, u)
    )
    # S v, for the curvature, always with the control variate: of this only the noise changes.
    w = factor.solve(direction)
    image = factor.solve_transpose(w) + residual.T @ (u @ w) / n
    count = jnp.asarray(x.shape[0], int)
    return Moments(
        r.sum(0) / n, push, image, *_elbo(values, u, factor, frame, ok, n, settings), _variance(r, n, settings),
        _outer_variance(factor, outer, u, n, settings), ok.all() | settings.skip_nonfinite, (~ok).sum(),
        x[jnp.argmin(ok)], count, jnp.zeros_like(count),
    )  # fmt: skip


def exact_moments(
    target: Any,
    frame: Frame | None,
    mean: Float[Array, " d"],
    factor: AbstractFactor,
    direction: Float[Array, " d"],
    z: Float[Array, " d"],
    num_nodes: int,
) -> Moments:
    """Quadrature by the target itself; no noise."""
    dense = factor.dense()
    if frame is None:
        value, gradient, hessian = target.gaussian_expectations(mean, dense, num_nodes)
    else:
        value, gradient, inner = target.gaussian_expectations(frame.to_u(mean), frame.scale @ dense, num_nodes)
        gradient, hessian = frame.scale.T @ gradient, lambda y: frame.scale.T @ inner(frame.scale @ y)
    images = jax.vmap(hessian)(jnp.concatenate([factor.probes(z), direction[None]]))
    zero = jnp.zeros((), mean.dtype)
    entropy = factor.log_det() + 0.5 * mean.shape[0] * (1 + jnp.log(2 * jnp.pi))
    elbo = entropy - value + (0.0 if frame is None else frame.log_det)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(images)) & jnp.all(jnp.isfinite(gradient))
    count = jnp.ones((), int)
    return Moments(
        gradient, factor.push_image(images[:-1], z), images[-1], elbo, zero, zero, zero, finite, jnp.zeros((), int),
        mean, count, jnp.zeros_like(count),
    )  # fmt: skip


def power_iteration(
    key: PRNGKeyArray, target: Any, frame: Frame | None, mean: Array, factor: AbstractFactor, settings: Settings
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """Largest curvature |λ| of S = E ∇²V under N(mean, C Cᵀ), and its direction.

    Where Hessians are not wanted (Stein) their products are differences of gradients.
    """
    key_start, key_draws = jax.random.split(key)
    d = mean.shape[0]
    start = jax.random.normal(key_start, (d,), mean.dtype)
    n = max(settings.num_draws, 8)
    x = mean + jax.vmap(factor.apply)(antithetic_normal(key_draws, n, d, mean.dtype))
    v = potential(target, frame)
    if settings.expectation == "gauss_hermite":
        zero = jnp.zeros_like(mean)
        image = lambda p: exact_moments(target, frame, mean, factor, p, zero, settings.num_nodes).image  # noqa: E731
    elif settings.expectation == "price":
        image = lambda p: jnp.mean(jax.lax.map(lambda x: hessian_vector(v, x, p), x), axis=0)  # noqa: E731
    else:
        image = lambda p: jnp.mean(jax.lax.map(lambda x: gradient_difference(v, x, p), x), axis=0)  # noqa: E731

    def body(_: int, carry: tuple) -> tuple:
        _, p = carry
        s = image(p)
        return jnp.abs(jnp.vdot(p, s)), s / jnp.maximum(jnp.linalg.norm(s), jnp.finfo(s.dtype).tiny)

    first = start / jnp.linalg.norm(start)
    return jax.lax.fori_loop(0, POWER_STEPS, body, (jnp.zeros((), mean.dtype), first))


def _coefficient(settings: Settings, push: Any, factor: AbstractFactor) -> Any:
    """c, or its optimum tr S / tr Σ⁻¹ (Luu et al. 2025, section 4) where it is adaptive."""
    if settings.control == "none":
        return 0.0
    if settings.control == "adaptive":
        inverse = factor.push_inverse()
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), push, inverse)
        return sum(jax.tree.leaves(products)) / _squared(inverse)
    return settings.coefficient


def _counted(ok: Array, settings: Settings) -> tuple[Any, Array]:
    """Number of draws that count, and which: all, unless those that are not finite are to be skipped."""
    if not settings.skip_nonfinite:
        return ok.shape[0], jnp.asarray(ok)
    return jnp.maximum(ok.sum(), 1), ok


def _where(ok: Array, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return jnp.where(ok[:, None], x, 0.0)


def _squared(push: Any) -> Array:
    return sum(jnp.sum(a**2) for a in jax.tree.leaves(push))  # type: ignore[return-value]


def _paired(settings: Settings, n: int) -> bool:
    return settings.antithetic and n % 2 == 0


def _variance(r: Float[Array, "n d"], n: Any, settings: Settings) -> Float[Array, ""]:
    """Variance of the mean of n vectors, summed over entries; antithetic pairs count as one."""
    if _paired(settings, r.shape[0]):
        half = r.shape[0] // 2
        r, n = 0.5 * (r[:half] + r[half:]), n / 2
    return jnp.maximum(jnp.sum(r**2) / n - jnp.sum((r.sum(0) / n) ** 2), 0.0) / jnp.maximum(n - 1, 1)


def _outer_variance(factor: AbstractFactor, g: Array, u: Array, n: Any, settings: Settings) -> Float[Array, ""]:
    """The same for the mean of the pushes g uᵀ."""
    if _paired(settings, g.shape[0]):
        half = g.shape[0] // 2
        g, u, n = 0.5 * (g[:half] - g[half:]), u[:half], n / 2
    mean = _squared(factor.push_outer(g, u)) * (g.shape[0] / n) ** 2
    each = jax.vmap(lambda g, u: _squared(factor.push_outer(g[None], u[None])))(g, u)
    return jnp.maximum(jnp.sum(each) / n - mean, 0.0) / jnp.maximum(n - 1, 1)


def _elbo(
    values: Array, u: Array, factor: AbstractFactor, frame: Frame | None, ok: Array, n: Any, settings: Settings
) -> tuple[Array, Array]:
    """Mean of log π − log q over the draws, and its standard error (NaN for one draw, or one antithetic pair)."""
    constant = factor.log_det() + 0.5 * u.shape[1] * jnp.log(2 * jnp.pi)
    each = 0.5 * jnp.sum(u**2, axis=1) + constant - values + (0.0 if frame is None else frame.log_det)
    elbo = jnp.sum(jnp.where(ok, each, 0.0)) / n
    spread = jnp.where(ok, each - elbo, 0.0)
    if _paired(settings, u.shape[0]):
        spread = 0.5 * (spread[: u.shape[0] // 2] + spread[u.shape[0] // 2 :])
    m = spread.shape[0]
    return elbo, jnp.sqrt(jnp.sum(spread**2) / (m * (m - 1))) if m > 1 else jnp.full_like(elbo, jnp.nan)
