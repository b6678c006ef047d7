"""Pieces of the surrogates of `estimators`: draws, log densities at held draws, credits, path gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from .objectives import Objective
from .score_recursion import held, push_base, sample_and_score


class Drawn(NamedTuple):
    """Draws of q, flat: u (n, d), log q(u) (n,), and log densities of what was accepted (n,), see `rejection`."""

    u: Array
    log_q: Array
    accepted: Array | None = None


def split(q: Any) -> tuple[Any, Any]:
    """Parameters (inexact arrays that are not marked `paramax.NonTrainable`) and the rest; `eqx.combine` joins them."""
    from paramax import NonTrainable

    return eqx.partition(q, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, NonTrainable))


def draw(q: Any, key: PRNGKeyArray, n: int) -> Drawn:
    """Draws and log densities, differentiable; with the correction of acceptance–rejection where q has one."""
    if hasattr(q, "sample_and_correction"):
        return Drawn(*q.sample_and_correction(key, n))
    return Drawn(*q.sample_and_log_prob(key, n))


def has_score(q: Any) -> bool:
    """Whether the score of q can be carried along its draws: a method of its own, or a base and a bijection."""
    return hasattr(q, "sample_and_score") or (hasattr(q, "bijection") and hasattr(q, "base"))


def draws_shape(objective: Objective, num_draws: int | None) -> tuple[int, int]:
    """(M, K): the objective's, or with another M."""
    return (objective.num_draws if num_draws is None else num_draws), objective.num_samples


def at_draws(log_density: Callable, u: Float[Array, "n d"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Log densities at held draws, functions of the model's parameters, and to first order around them, of u alone."""
    fixed = stop_gradient(u)
    values, scores = jax.vmap(jax.value_and_grad(log_density))(fixed)
    along = stop_gradient(values) + jnp.sum(stop_gradient(scores) * (u - fixed), -1)
    return values, along


def model_part(objective: Objective, log_p: Array, log_q: Array, shape: tuple[int, int]) -> Float[Array, ""]:
    """The surrogate of the model's parameters: the objective at held draws and held log q; zero in value."""
    part = objective.model((log_p - stop_gradient(log_q)).reshape(shape))
    return part - stop_gradient(part)


def path_surrogate(
    objective: Objective,
    q: Any,
    log_density: Any,
    key: PRNGKeyArray,
    num_draws: int | None,
    recursive: bool,
) -> tuple[Array, tuple[Array, Array]]:
    """Path gradient: scores of π minus scores of q, weighed by the objective, along the draws; value, log weights."""
    shape = draws_shape(objective, num_draws)
    n = shape[0] * shape[1]
    if objective.sampling == "given":
        u, log_q, score = _given_path(q, objective.take(key, shape).reshape(n, -1), recursive)
    elif recursive:
        u, log_q, score = sample_and_score(q, key, n)
    else:
        u, _ = q.sample_and_log_prob(key, n)
        log_q, score = _density_and_score(q, u)
    log_p, scores_p = jax.vmap(jax.value_and_grad(log_density))(stop_gradient(u))
    log_q = stop_gradient(log_q)
    log_w = stop_gradient(log_p - log_q).reshape(shape)
    # KL(π‖q) is KL(T⁻¹#π‖q₀), whose path runs through z = T⁻¹(u). With ∂_φ T⁻¹(u) = −(∂T/∂z)⁻¹ ∂_φ T(z) its gradient
    # has the form of the ELBO's, at draws of π (Vaitl et al. 2024, alg. 3).
    c = jnp.full(shape, 1 / n, u.dtype) if objective.sampling == "given" else objective.coefficients(log_w)[1]
    along = jnp.sum(stop_gradient(c.reshape(n, 1) * (scores_p - score)) * u)
    value = objective(log_w)
    return along + model_part(objective, log_p, log_q, shape), (stop_gradient(value), log_w)


def _density_and_score(q: Any, u: Float[Array, "n d"]) -> tuple[Array, Array]:
    """Log densities and scores of q at held draws, by q's density."""
    return jax.vmap(jax.value_and_grad(held(q).log_prob))(stop_gradient(u))


def _given_path(q: Any, u: Float[Array, "n d"], recursive: bool) -> tuple[Array, Array, Array]:
    """Given draws as T_φ(z) at z = T_φ⁻¹(u) held fixed, with log q and score."""
    forward, back = transport_of(q)
    z = stop_gradient(jax.vmap(back)(u))
    if recursive:
        return push_base(q, z)
    moved = jax.vmap(forward)(z)
    return moved, *_density_and_score(q, moved)


def transport_of(q: Any) -> tuple[Callable, Callable]:
    """The map z ↦ u behind the draws of q, and its inverse: of its bijection, or `Approximation`'s own."""
    from paramax import unwrap

    if hasattr(q, "bijection"):
        bijection = unwrap(q.bijection)  # its constrained parameters computed
        return bijection.transform, bijection.inverse
    return lambda z: q.transport(z)[0], q.pull


def credit(objective: Objective, log_w: Float[Array, "m k"]) -> Float[Array, "m k"]:
    """L − b for each draw, held fixed; b is L with its log weight replaced by the mean of the others'.

    In its row where K > 1, of all draws where K = 1: the replacement depends on the other draws alone.
    """
    log_w = stop_gradient(log_w)
    m, k = log_w.shape
    rows = log_w if k > 1 else log_w.reshape(1, m)
    others = (jnp.sum(rows, -1, keepdims=True) - rows) / max(rows.shape[1] - 1, 1)
    if objective.linear:
        return ((rows - others) / log_w.size).reshape(m, k)
    whole = objective(log_w)

    def without(i: Array) -> Array:
        changed = jnp.where(jnp.arange(log_w.size) == i, jnp.ravel(others), jnp.ravel(log_w))
        return objective(changed.reshape(m, k))

    return whole - jax.lax.map(without, jnp.arange(m * k), batch_size=min(m * k, 256)).reshape(m, k)
