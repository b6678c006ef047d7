"""The rules of `score_recursion` for flowjax's bijections."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array

from . import score_recursion as recursion
from .score_recursion import Pushed, held


def rule_of(bijection: Any) -> Callable[..., Pushed]:
    """(bijection, x, g) ↦ (y, log_det, g') for flowjax's bijections, by their kind; the dense one for all others."""
    from flowjax import bijections as fb

    rules = (
        (fb.Chain, _chain),
        (fb.Scan, _scan),
        (fb.Coupling, _flowjax_coupling),
        (fb.MaskedAutoregressive, _flowjax_autoregressive),
        ((fb.Affine, fb.Loc, fb.Scale), _elementwise),
        (fb.TriangularAffine, _triangular_affine),
        ((fb.Permute, fb.Flip, fb.Identity, fb.Reshape), _orthogonal),
        ((fb.Householder, fb.DiscreteCosine), _orthogonal),
        (fb.Planar, _flowjax_planar),
        ((fb.Invert, fb.NumericalInverse), _inverted),
        ((fb.Tanh, fb.LeakyTanh, fb.Sigmoid, fb.SoftPlus, fb.Exp, fb.Power), _elementwise),
    )
    for kinds, rule in rules:
        if isinstance(bijection, kinds):
            return rule
    if isinstance(bijection, fb.Vmap) and bijection.bijection.shape == ():
        return _elementwise
    return recursion.dense


def _chain(chain: Any, x: Array, g: Array) -> Pushed:
    log_det = jnp.zeros((), x.dtype)
    for bijection in chain.bijections:
        x, part, g = recursion.push(bijection, x, g)
        log_det += part
    return x, log_det, g


def _scan(scan: Any, x: Array, g: Array) -> Pushed:
    arrays, static = eqx.partition(scan.bijection, eqx.is_array)

    def one(carry: Pushed, layer: Any) -> tuple[Pushed, None]:
        x, log_det, g = carry
        x, part, g = recursion.push(eqx.combine(layer, static), x, g)
        return (x, log_det + part.astype(log_det.dtype), stop_gradient(g)), None

    return jax.lax.scan(one, (x, jnp.zeros((), x.dtype), stop_gradient(g)), arrays)[0]


def _elementwise(bijection: Any, x: Array, g: Array) -> Pushed:
    fixed = held(bijection)
    log_det, _, pushed = recursion.elementwise(fixed.transform_and_log_det, stop_gradient(x), stop_gradient(g))
    return bijection.transform(x), log_det, pushed


def _triangular_affine(bijection: Any, x: Array, g: Array) -> Pushed:
    y, log_det = bijection.transform_and_log_det(x)
    return y, stop_gradient(log_det), recursion.triangular(bijection.triangular, g, lower=bijection.lower)


def _orthogonal(bijection: Any, x: Array, g: Array) -> Pushed:
    """Permutations, reflections, rotations: G' = G Jᵀ, the map's own tangent."""
    fixed = held(bijection)
    y, log_det = bijection.transform_and_log_det(x)
    _, pushed = jax.jvp(fixed.transform, (stop_gradient(x),), (stop_gradient(g),))
    return y, stop_gradient(log_det), pushed


def _flowjax_planar(bijection: Any, x: Array, g: Array) -> Pushed:
    flat = bijection.get_planar()
    if flat.activation != "tanh":  # piecewise linear: its log determinant is locally constant
        return recursion.dense(bijection, x, g)
    return recursion.planar(flat.weight, flat.get_act_scale(), flat.bias, x, g)


def _inverted(bijection: Any, x: Array, g: Array) -> Pushed:
    """A layer whose inverse is the cheap direction."""
    y, log_det = bijection.transform_and_log_det(x)
    fixed = held(bijection)
    _, pull = jax.vjp(fixed.inverse_and_log_det, stop_gradient(y))
    return y, stop_gradient(log_det), pull((stop_gradient(g), jnp.ones_like(log_det)))[0]


def _flowjax_coupling(layer: Any, x: Array, g: Array) -> Pushed:
    k = layer.untransformed_dim

    def parts(layer: Any) -> tuple[Callable, Callable]:
        return layer.conditioner, lambda p, x: layer._flat_params_to_transformer(p).transform_and_log_det(x)

    y, log_det, pushed = recursion.coupling(*parts(layer), parts(held(layer)), (x[:k], x[k:]), (g[:k], g[k:]))
    return jnp.concatenate([x[:k], y]), log_det, jnp.concatenate(pushed)


def _flowjax_autoregressive(layer: Any, x: Array, g: Array) -> Pushed:
    def parts(layer: Any) -> tuple[Callable, Callable]:
        network = layer.masked_autoregressive_mlp
        return network, lambda p, x: layer._flat_params_to_transformer(p).transform_and_log_det(x)

    return recursion.autoregressive(*parts(layer), parts(held(layer)), x, g)
