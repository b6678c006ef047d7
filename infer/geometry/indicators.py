"""Indicators of convex sets: 0 inside, ∞ outside; their proximal operators are projections, whatever the step.

References
----------
.. [1] J. Duchi, S. Shalev-Shwartz, Y. Singer, T. Chandra (2008). Efficient projections onto the ℓ₁-ball for learning in
   high dimensions. ICML.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..errors import InvalidArgument
from .term import AbstractTerm, check_entries, dtype_of, like


class AbstractBox(AbstractTerm):
    """Indicator of {x: lower ≤ x ≤ upper}."""

    separable: ClassVar[bool] = True

    @abc.abstractmethod
    def bounds(self, x: Array) -> tuple[Array, Array]:
        """Lower and upper bounds in the dtype of ``x``."""

    def acts_on(self, dim: int) -> np.ndarray:
        """Where a bound is finite."""
        lower, upper = (np.asarray(bound) for bound in self.bounds(jnp.zeros(dim)))
        return np.broadcast_to(np.isfinite(lower) | np.isfinite(upper), (dim,))

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """0 inside the box, bounds included, else ∞ (also where ``x`` is NaN)."""
        lower, upper = self.bounds(x)
        return indicator(jnp.all((lower <= x) & (x <= upper)), x)

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """The nearest point of the box."""
        del step
        return jnp.clip(x, *self.bounds(x))


class BoxIndicator(AbstractBox):
    """Indicator of a box, {x: lower ≤ x ≤ upper}; bounds may be infinite.

    Parameters
    ----------
    lower, upper
        Bounds: numbers, arrays of shape (d,), or dicts of a target's sites → number or array of the site's shape (sites
        without an entry are not bounded).
    """

    lower: Any
    upper: Any

    by_site: ClassVar[dict[str, float]] = {"lower": -np.inf, "upper": np.inf}

    def check(self) -> None:
        """Raise on bounds that are not numbers or in the wrong order; dicts are compared when they are bound."""
        for name in ("lower", "upper"):
            rule, remedy = "numbers or infinite", "leave a side open by an infinite bound"
            check_entries(name, getattr(self, name), lambda v: ~np.isnan(v), rule, remedy)
        known = int | float | np.generic | np.ndarray
        ends = (self.lower, self.upper)
        if all(isinstance(end, known) for end in ends) and not np.all(np.asarray(self.lower) <= np.asarray(self.upper)):
            raise InvalidArgument(f"lower must be at most upper, got lower={self.lower!r} and upper={self.upper!r}.")

    def bounds(self, x: Array) -> tuple[Array, Array]:
        """The two bounds."""
        return like(self.lower, x), like(self.upper, x)


class NonNegative(AbstractBox):
    """Indicator of the orthant {x: x ≥ 0}."""

    def bounds(self, x: Array) -> tuple[Array, Array]:
        """0 and ∞."""
        return jnp.zeros((), dtype_of(x)), jnp.full((), jnp.inf, dtype_of(x))


class SimplexIndicator(AbstractTerm):
    """Indicator of the probability simplex.

    Parameters
    ----------
    full
        True: all probabilities are coordinates, {x ≥ 0, Σx = 1}. False: the last one, 1 − Σx, is left out,
        {x ≥ 0, Σx ≤ 1}.
    """

    full: bool = eqx.field(static=True, default=True)

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """0 inside, else ∞; the sum is compared with 1 up to the rounding of d numbers."""
        excess, room = jnp.sum(x) - 1, 4 * x.size * jnp.finfo(dtype_of(x)).eps
        return indicator(jnp.all(x >= 0) & ((jnp.abs(excess) if self.full else excess) <= room), x)

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """The nearest point, max(x − t, 0) with the t that makes the sum 1, found by sorting (see [1]_, figure 1)."""
        del step
        on_face = jnp.maximum(x - _threshold(x), 0)
        if self.full:
            return on_face
        positive = jnp.maximum(x, 0)
        return jnp.where(jnp.sum(positive) <= 1, positive, on_face)


def _threshold(x: Float[Array, " d"]) -> Float[Array, ""]:
    """The t with Σ max(x − t, 0) = 1. Sums start at the largest entry, which keeps digits where |x| is large."""
    top = jnp.max(x)
    down = jnp.sort(x - top, descending=True)
    rank = jnp.arange(1, x.size + 1, dtype=dtype_of(x))
    levels = (jnp.cumsum(down) - 1) / rank
    count = jnp.sum(down > levels)
    return top + levels[count - 1]


def indicator(inside: Bool[Array, ""], x: Float[Array, " d"]) -> Float[Array, ""]:
    """0 or ∞ in the dtype of ``x``."""
    return jnp.where(inside, jnp.zeros((), dtype_of(x)), jnp.inf)
