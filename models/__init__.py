"""Targets that come with the package: classic data sets with their models, and posteriordb's reference posteriors.

Importing this module imports neither JAX nor NumPyro; `get` and `Example.model` do.
"""

import importlib
from typing import Any

from .examples import Example, get, names
from .simulator import Simulator

__all__ = [
    "Example",
    "LastLayer",  # pyright: ignore[reportUnsupportedDunderAll]
    "LatentGP",  # pyright: ignore[reportUnsupportedDunderAll]
    "Simulator",
    "gaussian_process",  # pyright: ignore[reportUnsupportedDunderAll]
    "get",
    "last_layer",  # pyright: ignore[reportUnsupportedDunderAll]
    "names",
    "posteriordb",  # pyright: ignore[reportUnsupportedDunderAll]
]


def __getattr__(name: str) -> Any:
    if name in ("gaussian_process", "last_layer", "posteriordb"):
        return importlib.import_module(f".{name}", __name__)
    if name == "LastLayer":
        return importlib.import_module(".last_layer.model", __name__).LastLayer
    if name == "LatentGP":
        return importlib.import_module(".gaussian_process.latent", __name__).LatentGP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
