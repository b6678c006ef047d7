"""`get`: a shipped model with its data, by name, as ``pushforward fit NAME`` finds it."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..infer.errors import InvalidArgument

_DATA = {  # name of the model in `classics` -> name of its data
    "eight_schools": "eight_schools",
    "eight_schools_centered": "eight_schools",
    "seeds": "seeds",
    "challenger": "challenger",
    "dugongs": "dugongs",
}


@dataclasses.dataclass(frozen=True)
class Example:
    """A shipped model with its data.

    Parameters
    ----------
    name
        As in `names`.
    data
        Keyword arguments of `model`: field → NumPy array.
    coords
        Name of a plate → its labels; empty where they would be numbers.
    about
        What the data are, in one sentence.
    source
        Where they come from.
    """

    name: str
    data: dict[str, np.ndarray]
    coords: dict[str, list[str]]
    about: str
    source: str

    @property
    def model(self) -> Callable[..., None]:
        """The NumPyro function (this is where NumPyro gets imported)."""
        return getattr(importlib.import_module(".classics", __package__), self.name)

    @property
    def kwargs(self) -> dict[str, np.ndarray]:
        """The same as `data`: what `model` is called with."""
        return dict(self.data)

    def target(self) -> Any:
        """`Target.from_numpyro` of the model and its data, with labels for its dimensions."""
        from ..infer.target import Target

        target = Target.from_numpyro(self.model, **self.kwargs)
        return target.replace(coords={**target.coords, **self.coords}) if self.coords else target

    def __repr__(self) -> str:
        """Name, what it is about, and the fields of the data."""
        fields = ", ".join(f"{name}{list(value.shape)}" for name, value in self.data.items())
        return f"<Example {self.name}: {self.about} Data: {fields}>"


def names() -> list[str]:
    """Names of the shipped models."""
    return list(_DATA)


def get(name: str) -> Example:
    """The shipped model called ``name``.

    Raises
    ------
    InvalidArgument
        If there is none of this name.
    """
    from .data import load

    if name not in _DATA:
        raise InvalidArgument(f"name must be that of a shipped model, one of {', '.join(_DATA)}; got {name!r}.")
    stored = load(_DATA[name])
    data = {field: np.asarray(values) for field, values in stored["data"].items()}
    return Example(name, data, stored.get("coords", {}), stored["about"], stored["source"])
