"""NumPyro's objects in words."""

from typing import Any

import jax
import jax.core
import numpy as np


def describe(support: Any) -> str:
    """A NumPyro constraint in words, e.g. ``"positive"``, ``"interval(0, 10)"``, ``"simplex"``."""
    from numpyro.distributions import constraints

    if isinstance(support, constraints.independent):
        return describe(support.base_constraint)
    name = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(support).__name__).strip("_")
    bounded = ("greater_than", "greater_than_eq", "less_than", "less_than_eq", "interval", "open_interval")
    bounds = [getattr(support, k) for k in ("lower_bound", "upper_bound") if name in bounded and hasattr(support, k)]
    if not bounds:
        return "real" if name in ("real_vector", "real_matrix") else name
    shown = []
    for bound in bounds:
        traced = isinstance(bound, jax.core.Tracer)
        shown.append(f"{float(bound):g}" if not traced and np.ndim(bound) == 0 else "…")
    if name == "greater_than" and shown == ["0"]:
        return "positive"
    return f"{name}({', '.join(shown)})"


def innermost(fn: Any) -> Any:
    """The distribution inside of masks, expansions, event dimensions and transforms."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
