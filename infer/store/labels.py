"""Names of dimensions and their labels."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument, StoreError
from .layout import Disk, from_json, storable, to_json
from .static import write_static


class Labels:
    """Dimensions of the variables of a run, and the labels along them.

    Parameters
    ----------
    dims
        Name of a variable → names of its dimensions behind (chain, draw); others get ``name_dim_0``, ….
    coords
        Name of a dimension → its labels: numbers, strings or dates; others get 0, 1, ….
    """

    def __init__(self, dims: Mapping[str, Iterable[str]], coords: Mapping[str, Any]):
        self._dims = {name: tuple(names) for name, names in dims.items()}
        self._coords = {dim: storable(f"coords[{dim!r}]", labels) for dim, labels in coords.items()}
        for dim, (labels, _) in self._coords.items():
            if labels.ndim != 1:
                raise InvalidArgument(f"coords[{dim!r}] has shape {labels.shape}; give one label per element.")

    def dims(
        self, name: str, shape: tuple[int, ...], sample_dims: tuple[str, ...], given: Mapping[str, Iterable[str]]
    ) -> tuple[str, ...]:
        """Names of all dimensions of a variable, checked against its shape and the labels."""
        inner = shape[len(sample_dims) :]
        default = [f"{name}_dim_{i}" for i in range(len(inner))]
        names = tuple(given.get(name, self._dims.get(name, default)))
        if len(names) != len(inner):
            raise InvalidArgument(f"dims of {name!r} are {names}, but its shape is {inner}; name each dimension.")
        if name in names or len({*names, *sample_dims}) != len(shape):
            raise InvalidArgument(f"dims of {name!r} are {names}; they must differ from each other and from its name.")
        for dim, size in zip(names, inner):
            if dim in self._coords and (found := len(self._coords[dim][0])) != size:
                raise InvalidArgument(
                    f"coords[{dim!r}] has {found} labels, but {name!r} has {size} elements there; give one label each."
                )
        return (*sample_dims, *names)

    def write(self, disk: Disk, group: str, sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
        """Write the labels of these dimensions (name → size); their metadata by name."""
        nodes = {}
        for dim, size in sizes.items():
            labels, decoding = self._coords.get(dim, (np.arange(size, dtype=np.int64), {}))
            nodes[dim] = write_static(disk, f"{group}/{dim}", labels, (dim,), decoding)
        return nodes

    def to_json(self) -> dict[str, Any]:
        """What `read` needs."""
        coords = {
            dim: {"dtype": labels.dtype.str, "values": to_json(labels), "attributes": decoding}
            for dim, (labels, decoding) in self._coords.items()
        }
        return {"dims": self._dims, "coords": coords}

    @classmethod
    def read(cls, path: Path) -> "Labels":
        """The labels of the store at ``path``; `StoreError` if their file is damaged."""
        try:
            layout = json.loads((path / "layout.json").read_bytes())
            labels = cls(layout["dims"], {})
            labels._coords = {
                dim: (np.array(from_json(entry["values"]), entry["dtype"]), entry["attributes"])
                for dim, entry in layout["coords"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{path}/layout.json is damaged ({error!r}), so that the run cannot go on; its draws can be read."
            ) from error
        return labels
