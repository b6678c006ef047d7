"""Scales that the slope α of a nonsmooth term sets: the smoothing of its envelope, and the largest step."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ...infer.errors import InvalidArgument
from ...infer.geometry.compose import Blocks, Sum


def default_smoothing(term: Any, hyperbolic: bool) -> Any:
    """The envelope parameter λ from the slope α of a term: 0.1/α for the hyperbolic entropy, whose prox shrinks the
    dual by λα; 0.1/α² for the Euclidean envelope, whose prox shrinks x, of scale 1/α.

    Raises
    ------
    InvalidArgument
        The term has no slopes; λ must then be given.
    """
    slope = slopes(term)
    if slope is None:
        raise InvalidArgument(
            f"smoothing=None needs a term with weights, such as L1; for {type(term).__name__} give the envelope "
            f"parameter λ yourself, e.g. smoothing=0.1."
        )
    return 0.1 / slope if hyperbolic else 0.1 / slope**2


def slopes(term: Any) -> Any:
    """The slope α, per coordinate of a separable term (1 where it has none), else the largest; None if not known."""
    if isinstance(term, Sum):
        return slopes(term.term)
    if isinstance(term, Blocks):
        found = [slopes(part) for part in term.parts if part is not None]
        return (
            None if any(slope is None for slope in found) else jnp.max(jnp.stack([jnp.max(slope) for slope in found]))
        )
    weights = getattr(term, "weights", getattr(term, "weight", None))
    if weights is None or isinstance(weights, Mapping):
        return None
    slope = jnp.asarray(weights, float)
    slope = jnp.where(slope > 0, slope, 1.0)
    return slope if term.separable else jnp.max(slope)


def term_step(term: Any, metric: Any = None) -> Any:
    """The largest step that a nonsmooth term of slope α allows, 0.1/α², as a flat f alone would allow any.

    In a metric M, shape (d, d), a coordinate moves by γ Mᵢᵢ: 0.1/(α² Mᵢᵢ).
    """
    slope = slopes(term)
    if slope is None:
        return jnp.inf
    return jnp.min(0.1 / (slope**2 * (1.0 if metric is None else jnp.diag(metric))))
