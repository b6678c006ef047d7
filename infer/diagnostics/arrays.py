"""Draws in memory in the form in which the diagnostics read them, that of a DataTree, without importing xarray.

Importing xarray and pandas takes as long as fitting a small model; a summary and a diagnosis need neither.
"""

from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any

import numpy as np


class Variable:
    """An array with named dimensions, as much of `xarray.DataArray` as the diagnostics use."""

    def __init__(self, values: np.ndarray, dims: tuple[str, ...], coords: Mapping[str, "Variable"]) -> None:
        self.values, self.dims = values, dims
        self.coords = {name: coords[name] for name in dims if name in coords}

    @property
    def variable(self) -> "Variable":
        """Itself."""
        return self

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.values.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return self.values.shape

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        return dict(zip(self.dims, self.shape, strict=True))

    def transpose(self, *dims: "str | EllipsisType") -> "Variable":
        """The same with its dimensions in this order, ``...`` standing for the others."""
        named = [d for d in dims if isinstance(d, str)]
        others = [d for d in self.dims if d not in named]
        order = [d for given in dims for d in ([given] if isinstance(given, str) else others)]
        return Variable(self.values.transpose([self.dims.index(d) for d in order]), tuple(order), self.coords)

    def __getitem__(self, index: tuple) -> "Variable":
        """Values at an index by position, of which only ``values`` are of use."""
        values = np.asarray(self.values[index])
        return Variable(values, tuple(f"dim_{i}" for i in range(values.ndim)), {})


class ArrayGroup:
    """Variables by name; as much of a node of a DataTree as the diagnostics use."""

    def __init__(self, data_vars: dict[str, Variable]) -> None:
        self.data_vars = data_vars
        self.coords = {name: coord for v in data_vars.values() for name, coord in v.coords.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each dimension."""
        return {name: size for v in self.data_vars.values() for name, size in v.sizes.items()}

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of all dimensions."""
        return tuple(self.sizes)

    def __getitem__(self, name: str) -> Variable:
        return self.data_vars[name] if name in self.data_vars else self.coords[name]


class ArrayTree:
    """Groups by name; as much of a DataTree as the diagnostics use.

    Parameters
    ----------
    groups
        Group → variable → array whose leading dimensions are ``sample_dims``.
    sample_dims
        ``("chain", "draw")`` or ``("particle",)``.
    dims
        Variable → names of its other dimensions; by default ``name_dim_0``, …
    coords
        Dimension → labels; numbers from 0 by default.
    """

    def __init__(
        self,
        groups: Mapping[str, Mapping[str, np.ndarray]],
        sample_dims: Sequence[str],
        dims: Mapping[str, Sequence[str]],
        coords: Mapping[str, Any],
    ) -> None:
        labels = {name: Variable(np.asarray(values), (name,), {}) for name, values in coords.items()}
        self.children = {
            group: ArrayGroup({name: _variable(name, x, sample_dims, dims, labels) for name, x in arrays.items()})
            for group, arrays in groups.items()
        }

    def __getitem__(self, group: str) -> ArrayGroup:
        return self.children[group]


def _variable(
    name: str, array: Any, sample_dims: Sequence[str], dims: Mapping[str, Sequence[str]], labels: dict[str, Variable]
) -> Variable:
    values = np.asarray(array)
    given = [*sample_dims, *dims.get(name, ())][: values.ndim]
    given += [f"{name}_dim_{i}" for i in range(values.ndim - len(given))]
    counted = {d: Variable(np.arange(n), (d,), {}) for d, n in zip(given, values.shape, strict=True) if d not in labels}
    return Variable(values, tuple(given), labels | counted)
