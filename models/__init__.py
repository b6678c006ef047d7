"""Targets that come with the package: classic data sets with their models, and posteriordb's reference posteriors.

Importing this module imports neither JAX nor NumPyro; `get` and `Example.model` do.
"""

import importlib
from typing import Any

from .examples import Example, get, names
from .simulator import Simulator

__all__ = ["Example", "LastLayer", "Simulator", "get", "last_layer", "names", "posteriordb"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in ("last_layer", "posteriordb"):
        return importlib.import_module(f".{name}", __name__)
    if name == "LastLayer":
        return importlib.import_module(".last_layer.model", __name__).LastLayer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
