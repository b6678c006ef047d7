"""Nonsmooth terms g with their proximal operators: prox(x, s) = argmin_z g(z) + ‖z − x‖² / (2 s).

References
----------
.. [1] N. Parikh, S. Boyd (2014). Proximal algorithms. Foundations and Trends in Optimization 1(3).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument
from ..validate import check_count
from .term import AbstractTerm, check_entries, dtype_of, like


def soft(x: Array, threshold: Any) -> Array:
    """Soft thresholding, sign(x) · max(|x| − threshold, 0), see [1]_, equation 6.9; exact where |x| ≤ threshold."""
    return x - jnp.clip(x, -threshold, threshold)


class L1(AbstractTerm):
    """The weighted ℓ₁ term g(x) = Σᵢ wᵢ |xᵢ − lᵢ|, of which a Laplace(l, 1/w) prior is the exponential.

    Parameters
    ----------
    weights
        Weights w ≥ 0: a number, an array of shape (d,), or a dict of a target's sites → number or array of the site's
        shape (sites without an entry weigh 0). A dict is resolved by `bind`.
    loc
        Where the term is 0, in one of the same forms.
    """

    weights: Any
    loc: Any = 0.0

    separable: ClassVar[bool] = True
    by_site: ClassVar[dict[str, float]] = {"weights": 0.0, "loc": 0.0}

    def check(self) -> None:
        """Raise on a parameter outside its range."""
        check_entries("weights", self.weights, lambda w: w >= 0, ">= 0", "a norm is convex")

    def acts_on(self, dim: int) -> np.ndarray:
        """Where w > 0."""
        return np.broadcast_to(np.asarray(self.weights) > 0, (dim,))

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x)."""
        return jnp.sum(like(self.weights, x) * jnp.abs(x - like(self.loc, x)))

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """L + soft(x − l, s w), see [1]_, §6.5."""
        loc = like(self.loc, x)
        return loc + soft(x - loc, like(step, x) * like(self.weights, x))


class ElasticNet(AbstractTerm):
    """The elastic net g(x) = Σᵢ wᵢ |xᵢ − lᵢ| + (vᵢ/2) (xᵢ − lᵢ)².

    Parameters
    ----------
    weights
        Weights w ≥ 0 of the absolute values, in the forms that `L1` takes.
    ridge
        Weights v ≥ 0 of the squares, likewise.
    loc
        Where the term is 0, likewise.
    """

    weights: Any
    ridge: Any
    loc: Any = 0.0

    separable: ClassVar[bool] = True
    by_site: ClassVar[dict[str, float]] = {"weights": 0.0, "ridge": 0.0, "loc": 0.0}

    def check(self) -> None:
        """Raise on a parameter outside its range."""
        check_entries("weights", self.weights, lambda w: w >= 0, ">= 0", "a norm is convex")
        check_entries("ridge", self.ridge, lambda v: v >= 0, ">= 0", "the term is convex")

    def acts_on(self, dim: int) -> np.ndarray:
        """Where w or v > 0."""
        return np.broadcast_to((np.asarray(self.weights) > 0) | (np.asarray(self.ridge) > 0), (dim,))

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x)."""
        away = x - like(self.loc, x)
        return jnp.sum(like(self.weights, x) * jnp.abs(away) + 0.5 * like(self.ridge, x) * away**2)

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """L + soft(x − l, s w) / (1 + s v), see [1]_, §6.5."""
        loc, step = like(self.loc, x), like(step, x)
        return loc + soft(x - loc, step * like(self.weights, x)) / (1 + step * like(self.ridge, x))


class GroupL2(AbstractTerm):
    """The group lasso g(x) = Σ_k w_k ‖x_k‖₂ over disjoint groups of coordinates.

    Parameters
    ----------
    weights
        Weights w ≥ 0: a number, or an array of shape (K,), one per group.
    groups
        The group 0, …, K − 1 of each coordinate, −1 for a coordinate in none: integers of shape (d,), or a dict of a
        target's sites → integers of the site's shape or one integer (sites without an entry are in no group).
    """

    weights: Any
    groups: Any
    num_groups: int = eqx.field(static=True)

    by_site: ClassVar[dict[str, float]] = {"groups": -1}

    def __init__(self, weights: Any, groups: Any) -> None:
        self.groups = dict(groups) if isinstance(groups, Mapping) else np.asarray(groups)
        labels = [np.asarray(g) for g in (self.groups.values() if isinstance(groups, Mapping) else [self.groups])]
        for part in labels:
            if not np.issubdtype(part.dtype, np.integer) or (part < -1).any():
                raise InvalidArgument(f"groups must be integers >= -1 (-1: in no group), got {part.tolist()!r}.")
        self.num_groups = 1 + max((int(part.max(initial=-1)) for part in labels), default=-1)
        check_entries("weights", weights, lambda w: w >= 0, ">= 0", "a norm is convex")
        if np.shape(weights) not in ((), (self.num_groups,)):
            raise InvalidArgument(
                f"weights has shape {np.shape(weights)}, but there are {self.num_groups} groups; give a number, or one "
                f"weight per group."
            )
        self.weights = weights

    def acts_on(self, dim: int) -> np.ndarray:
        """The coordinates in a group."""
        return np.broadcast_to(np.asarray(self.groups) >= 0, (dim,))

    @property
    def size(self) -> int | None:
        """The number of labels."""
        return None if isinstance(self.groups, Mapping) else self.groups.shape[0]

    def norms(self, x: Float[Array, " d"]) -> Float[Array, " groups"]:
        """‖x_k‖₂ of each group, and at the end 0 for the coordinates in none."""
        total = jax.ops.segment_sum(x**2, self._labels(), self.num_groups + 1).at[-1].set(0.0)
        none = total == 0  # where 0 is a subgradient, and the derivative of the root is none
        return jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, total)))

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x)."""
        return jnp.sum(like(self.weights, x) * self.norms(x)[:-1])

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """Block soft thresholding, x_k · max(1 − s w_k / ‖x_k‖, 0), see [1]_, §6.5; ``step`` is one number."""
        norms = self.norms(x)[:-1]
        shrink = like(step, x) * like(self.weights, x) * jnp.ones_like(norms)
        kept = jnp.where(norms > shrink, 1 - shrink / jnp.where(norms > 0, norms, 1), 0)
        return x * jnp.append(kept, jnp.ones((), dtype_of(x)))[self._labels()]

    def _labels(self) -> Array:
        labels = jnp.asarray(self.groups, jnp.int32)
        return jnp.where(labels < 0, self.num_groups, labels)


class NuclearNorm(AbstractTerm):
    """The nuclear norm g(x) = w Σ_k σ_k(X), X the (rows, columns) matrix whose rows follow each other in x.

    Parameters
    ----------
    weight
        Weight w ≥ 0.
    shape
        Rows and columns of X.
    """

    weight: Any
    shape: tuple[int, ...] = eqx.field(static=True, converter=tuple)

    def check(self) -> None:
        """Raise on a parameter outside its range."""
        check_entries("weight", self.weight, lambda w: w >= 0, ">= 0", "a norm is convex")
        if len(self.shape) != 2:
            raise InvalidArgument(f"shape must be (rows, columns), got {self.shape}.")
        for length in self.shape:
            check_count("shape", length)

    @property
    def size(self) -> int:
        """Number of entries of X."""
        return math.prod(self.shape)

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x)."""
        return like(self.weight, x) * jnp.sum(jnp.linalg.svd(x.reshape(self.shape), compute_uv=False))

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """U soft(σ, s w) Vᵀ, see [1]_, §6.7; ``step`` is one number."""
        u, sigma, vt = jnp.linalg.svd(x.reshape(self.shape), full_matrices=False)
        return ((u * soft(sigma, like(step, x) * like(self.weight, x))) @ vt).reshape(-1)


class UserTerm(AbstractTerm):
    """A term given by two functions.

    Parameters
    ----------
    value
        x of shape (d,) → g(x).
    prox
        (x, step) → argmin_z g(z) + ‖z − x‖² / (2 step). Both are traced by JAX; g should be convex, else the operator
        is not single-valued and no guarantee of a proximal sampler holds.
    """

    value_function: Callable[[Array], Array] = eqx.field(static=True)
    prox_function: Callable[[Array, Any], Array] = eqx.field(static=True)

    def __init__(self, value: Callable[[Array], Array], prox: Callable[[Array, Any], Array]) -> None:
        for name, function in (("value", value), ("prox", prox)):
            if not callable(function):
                raise InvalidArgument(f"{name} must be a function, got {function!r}.")
        self.value_function, self.prox_function = value, prox

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The user's value."""
        return self.value_function(x)

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """The user's operator."""
        return self.prox_function(x, step)


def prox_conjugate(term: Any, v: Float[Array, "*shape"], step: Any) -> Float[Array, "*shape"]:
    """Proximal operator of the convex conjugate, prox_{s g*}(v) = v − s prox_{g/s}(v/s).

    Moreau's identity, [1]_, §2.5.

    Parameters
    ----------
    term
        The term g.
    v
        Where, in the dual space: of the shape that ``term.prox`` takes.
    step
        s > 0, a number.
    """
    return v - step * term.prox(v / step, 1 / step)
