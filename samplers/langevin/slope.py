"""Scales that the slope α of a nonsmooth term sets: the smoothing of its envelope, and the largest step."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ...infer.errors import InvalidArgument


def default_smoothing(term: Any, hyperbolic: bool) -> Any:
    """The envelope parameter λ from the slope α of a term: 0.1/α for the hyperbolic entropy, whose prox shrinks the
    dual by λα; 0.1/α² for the Euclidean envelope, whose prox shrinks x, of scale 1/α.

    Raises
    ------
    InvalidArgument
        The term has no slopes; λ must then be given.
    """
    weights = getattr(term, "weights", getattr(term, "weight", None))
    if weights is None or isinstance(weights, Mapping):
        raise InvalidArgument(
            f"smoothing=None needs a term with weights, such as L1; for {type(term).__name__} give the envelope "
            f"parameter λ yourself, e.g. smoothing=0.1."
        )
    slope = jnp.asarray(weights, float)
    slope = jnp.where(slope > 0, slope, 1.0)
    slope = slope if term.separable else jnp.max(slope)
    return 0.1 / slope if hyperbolic else 0.1 / slope**2


def term_step(term: Any) -> Any:
    """The largest step that a nonsmooth term of slope α allows, 0.1/α²: a flat f alone would allow any."""
    weights = getattr(term, "weights", getattr(term, "weight", None))
    return jnp.inf if weights is None else jnp.min(default_smoothing(term, False))
