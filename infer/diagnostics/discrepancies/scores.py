"""Scores of a target at many points, and points in the coordinates of a mirror."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ... import evaluate
from ...errors import InvalidArgument
from ...geometry import AbstractMirror
from ...geometry.simplex import AbstractSimplex
from ...target.base import Target
from ...target.mirrors import product_mirror
from ...target.primal import Primal, primal
from .points import as_points, check_finite

BATCH = 1024


class DualPoints(NamedTuple):
    """Points in both coordinates of a mirror, and what a mirrored Stein kernel needs of them.

    Attributes
    ----------
    x, y
        Primal and dual coordinates, arrays (n, d).
    score
        b = P ∇log π + ∇·P, the score of the density of y: (n, d).
    inverse
        P: its diagonal (n, d) for mirrors by coordinate, else (n, d, d); None where it is not needed.
    """

    x: np.ndarray
    y: np.ndarray
    score: np.ndarray
    inverse: np.ndarray | None


def scored(points: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, d) and the scores there.

    Raises
    ------
    InvalidArgument
        ``target`` is none of a target, a function and an array, or the scores have another shape than the points.
    NonFinite
        A point or a score is NaN or infinite.
    """
    if isinstance(target, Target) and not hasattr(points, "__array__"):
        points = unconstrained(points, target)
    x = as_points("points", points)
    if isinstance(target, Target):
        _check_dim(x, target.dim)
        with jax.enable_x64(True):
            return x, _checked(_target_scores(target, x), x)
    return x, _checked(_scores(target, x), x)


def unconstrained(points: Any, target: Target) -> Any:
    """A posterior's draws, or a dict (chain, draw, …) of them, as points u of its target; others as they are."""
    if hasattr(points, "draws"):
        points, leading = points.draws(), len(points.sample_dims)
    elif isinstance(points, Mapping):
        leading = 2
    else:
        return points
    values = _pooled(points, [site.name for site in target.sites if site.kind == "latent"], leading)
    with jax.enable_x64(True):
        return evaluate.over_draws(evaluate.unconstrain_draw, target, values)


def dual_points(points: Any, target: Any, mirror: AbstractMirror | None, *, inverse: bool) -> DualPoints:
    """Points in both coordinates of a mirror, with the score of the dual density.

    Raises
    ------
    InvalidArgument
        There is no mirror, or a point is outside of its domain.
    NonFinite
        A point or a score is NaN or infinite.
    """
    within = primal(target) if isinstance(target, Target) else None
    if within is not None and (isinstance(points, Mapping) or hasattr(points, "draws")):
        points = _in_x(points, within)
    x = as_points("points", points)
    if mirror is None and within is not None:
        mirror = product_mirror(within.coordinates)
    if not isinstance(mirror, AbstractMirror):
        raise InvalidArgument(f"mirror must be a mirror of pushforward.infer.geometry, got {mirror!r}.")
    mirror.check(x.shape[1])
    with jax.enable_x64(True):
        inside = np.asarray(jax.vmap(mirror.contains)(jnp.asarray(x)))
        if not inside.all():
            row = int(np.argmin(inside))
            raise InvalidArgument(
                f"points must be inside the domain of {type(mirror).__name__}; {np.sum(~inside)} are not, first row "
                f"{row}: {x[row]}. (Of a simplex all probabilities but the last are given.)"
            )
        if within is not None:
            _check_dim(x, target.dim)
            score = _checked(_primal_scores(within, x), x)
        else:
            score = _checked(_reduced(_scores(target, x), x, mirror), x)
        y, dual_score, matrices = _dual(mirror, x, score, inverse)
    found = DualPoints(x, np.asarray(y), np.asarray(dual_score), None if matrices is None else np.asarray(matrices))
    check_finite("the dual score", found.score)
    return found


@partial(jax.jit, static_argnums=3)
def _dual(mirror: AbstractMirror, x: Array, score: Array, inverse: bool) -> tuple[Array, Array, Array | None]:
    def one(x: Array, s: Array) -> tuple[Array, Array, Array | None]:
        p = mirror.at(x)
        matrix = None
        if inverse and mirror.structure in ("identity", "diagonal"):
            matrix = mirror.inv_hess_mv(p, jnp.ones_like(x))
        elif inverse:
            matrix = jax.vmap(lambda v: mirror.inv_hess_mv(p, v))(jnp.eye(x.size, dtype=x.dtype))
        return p.y, mirror.inv_hess_mv(p, s) + mirror.div_inv_hess(p), matrix

    return jax.vmap(one)(x, score)


def _in_x(points: Any, within: Primal) -> np.ndarray:
    """Draws by site in the coordinates x."""
    leading = len(points.sample_dims) if hasattr(points, "draws") else 2
    draws = points.draws() if hasattr(points, "draws") else points
    values = _pooled(draws, [block.name for block in within.coordinates.blocks], leading)
    with jax.enable_x64(True):
        parts = [np.asarray(jax.vmap(block.cut)(values[block.name])) for block in within.coordinates.blocks]
    return np.concatenate(parts, axis=1)


def _pooled(draws: Mapping[str, Any], names: list[str], leading: int) -> dict[str, np.ndarray]:
    missing = [name for name in names if name not in draws]
    if missing:
        raise InvalidArgument(f"points must hold all latent sites; {', '.join(missing)} not among {', '.join(draws)}.")
    arrays = {name: np.asarray(draws[name]) for name in names}
    return {name: array.reshape(-1, *array.shape[leading:]) for name, array in arrays.items()}


def _check_dim(x: np.ndarray, dim: int) -> None:
    if x.shape[1] != dim:
        raise InvalidArgument(f"points must have the {dim} coordinates of the target, got {x.shape[1]}.")


def _scores(score: Any, x: np.ndarray) -> Any:
    """Scores by a function of one point, or as they were given."""
    if not callable(score):
        return score
    with jax.enable_x64(True):
        one = jax.eval_shape(score, jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        if getattr(one, "shape", None) != x.shape[1:]:
            found = getattr(one, "shape", type(one).__name__)
            raise InvalidArgument(f"score must map a point {x.shape[1:]} to one of that shape, got {found}.")
        return jax.lax.map(score, jnp.asarray(x), batch_size=BATCH)


@jax.jit
def _target_scores(target: Target, x: Array) -> Array:
    return jax.lax.map(jax.grad(target.log_density), x, batch_size=BATCH)


@jax.jit
def _primal_scores(within: Primal, x: Array) -> Array:
    return jax.lax.map(jax.grad(within.log_density), x, batch_size=BATCH)


def _reduced(score: Any, x: np.ndarray, mirror: AbstractMirror) -> Any:
    """Scores in the coordinates of x: of all probabilities of a simplex, s_i − s_last of all but the last."""
    if np.shape(score) != (x.shape[0], x.shape[1] + 1) or not isinstance(mirror, AbstractSimplex):
        return score
    score = np.asarray(score)
    return score[:, :-1] - score[:, -1:]


def _checked(score: Any, x: np.ndarray) -> np.ndarray:
    try:
        score = np.asarray(score, dtype=x.dtype)
    except (TypeError, ValueError):
        raise InvalidArgument(
            f"target must be a Target, a function of one point or an array of scores, got {type(score).__name__}."
        ) from None
    score = score[:, None] if score.ndim == 1 and x.shape[1] == 1 else score
    if score.shape != x.shape:
        raise InvalidArgument(f"the scores must have the shape {x.shape} of the points, got {score.shape}.")
    check_finite("the score", score)
    return score
