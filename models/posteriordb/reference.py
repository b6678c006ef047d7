"""`load`: a posterior of posteriordb, with its data, its NumPyro model and its reference draws.

posteriordb (Magnusson et al., 2024, "posteriordb: Testing, Benchmarking and Developing Bayesian Inference Algorithms")
is a folder ``posterior_database`` of JSON files; only the standard library is needed to read one.
"""

import dataclasses
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...infer.errors import InvalidArgument, NotAvailable, StoreError
from . import catalogue

_VARIABLE = "POSTERIORDB"
_INDEXED = re.compile(r"^(?P<name>[^\[\]]+)(?:\[(?P<index>\d+(?:,\s*\d+)*)\])?$")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A posterior with a known answer.

    Parameters
    ----------
    name
        Name of the posterior, e.g. ``"eight_schools-eight_schools_centered"``.
    data
        Data by field, as stored: NumPy arrays (of dimension 0 for a number).
    draws
        Reference draws: name of a parameter → float64 array of shape (chain, draw, *shape); empty where posteriordb
        has none for this posterior.
    info
        posteriordb's record of the posterior; under ``"reference"`` how its draws were made, where there are some.
    """

    name: str
    data: dict[str, np.ndarray]
    draws: dict[str, np.ndarray]
    info: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
    own_model: Callable[..., Any] | None = dataclasses.field(default=None, repr=False)
    own_kwargs: dict[str, Any] | None = dataclasses.field(default=None, repr=False)

    @property
    def model_name(self) -> str:
        """Name of the model in posteriordb."""
        return self.info.get("model_name", self.name.partition("-")[2])

    @property
    def model(self) -> Callable[..., Any]:
        """The NumPyro model: the one given to `load`, or the package's own."""
        return catalogue.model_function(self.model_name) if self.own_model is None else self.own_model

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `model`: the data, transformed where the model wants them so."""
        if self.own_kwargs is not None:
            return dict(self.own_kwargs)
        if self.own_model is not None:
            return {name: value if value.ndim else value.item() for name, value in self.data.items()}
        return catalogue.arguments(self.model_name, self.data)

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters that have reference draws."""
        return {name: value.shape[2:] for name, value in self.draws.items()}

    def target(self) -> Any:
        """`Target.from_numpyro` of the model and its data."""
        from ...infer.target import Target

        return Target.from_numpyro(self.model, **self.kwargs)

    def __repr__(self) -> str:
        """Name, data, parameters and number of reference draws."""
        data = ", ".join(f"{name}{list(value.shape) if value.ndim else ''}" for name, value in self.data.items())
        parameters = ", ".join(f"{name}{list(shape) if shape else ''}" for name, shape in self.parameters.items())
        sizes = next((value.shape[:2] for value in self.draws.values()), None)
        draws = f"{sizes[0]} x {sizes[1]} reference draws of {parameters}" if sizes else "no reference draws"
        return f"<Reference {self.name}: data {data}; {draws}>"


def names() -> list[str]:
    """Names of the posteriors whose models the package has; `load` takes others of these models, too."""
    return list(catalogue.POSTERIORS)


def load(
    name: str, path: Any = None, *, model: Callable[..., Any] | None = None, kwargs: dict[str, Any] | None = None
) -> Reference:
    """Load a posterior with its data and its reference draws.

    Parameters
    ----------
    name
        Name of the posterior, e.g. ``"arK-arK"``.
    path
        A posteriordb clone or its folder ``posterior_database``, or a ``posteriordb.PosteriorDatabase``; by default
        the path in the environment variable ``POSTERIORDB``.
    model
        Your own NumPyro model, for a posterior whose model the package does not have, or instead of it. It is called
        with the fields of the data by name, numbers as Python numbers.
    kwargs
        Keyword arguments for ``model`` instead of the data.

    Raises
    ------
    StoreError
        If there is no such database or posterior, or a file of it is missing or unreadable.
    NotAvailable
        If the package has no model for this posterior and ``model`` is not given.
    InvalidArgument
        If ``kwargs`` is given without ``model``.
    """
    if kwargs is not None and model is None:
        raise InvalidArgument(f"kwargs ({', '.join(kwargs)}) go to a model of yours; give load its model= too.")
    root = _root(path)
    record = root / "posteriors" / f"{name}.json"
    if not record.is_file():
        raise StoreError(
            f"{root} has no posterior {name!r}; it has {_some(p.stem for p in record.parent.glob('*.json'))}."
        )
    info = _read(record)
    model_name = info["model_name"]
    if model is None and model_name not in catalogue.MODELS:
        raise NotAvailable(
            f"the package has no NumPyro model {model_name!r}, the model of {name}; it has "
            f"{', '.join(sorted(catalogue.MODELS))}. Pass yours as load({name!r}, model=...)."
        )
    data = {key: np.asarray(value) for key, value in _read(_find(root, info, "data_name", "data/data")).items()}
    draws = {}
    reference = info.get("reference_posterior_name")
    if reference:
        draws = to_arrays(_read(_find(root, info, "reference_posterior_name", "reference_posteriors/draws/draws")))
        about = root / "reference_posteriors" / "draws" / "info" / f"{reference}.info.json"
        info = info | {"reference": _read(about) if about.is_file() else {}}
    return Reference(name=name, data=data, draws=draws, info=info, own_model=model, own_kwargs=kwargs)


def to_arrays(chains: list[dict[str, list[float]]]) -> dict[str, np.ndarray]:
    """Gather scalars such as ``theta[1,2]`` into arrays of shape (chain, draw, *shape); indices start at 1.

    Entries that a reference leaves out (the upper half of a Cholesky factor, say) are NaN.
    """
    found: dict[str, dict[tuple[int, ...], np.ndarray]] = {}
    for label in chains[0]:
        match = _INDEXED.match(label)
        if match is None:
            raise StoreError(f"the reference draws have a parameter {label!r}; names are like theta or theta[1,2].")
        index = tuple(int(i) - 1 for i in match["index"].split(",")) if match["index"] else ()
        found.setdefault(match["name"], {})[index] = np.array([chain[label] for chain in chains], dtype=np.float64)
    arrays = {}
    for name, entries in found.items():
        shape = tuple(np.max(list(entries), axis=0) + 1) if () not in entries else ()
        array = np.full(next(iter(entries.values())).shape + shape, np.nan)
        for index, values in entries.items():
            array[(slice(None), slice(None), *index)] = values
        arrays[name] = array
    return arrays


def _root(path: Any) -> Path:
    """The folder ``posterior_database``."""
    if path is None:
        path = os.environ.get(_VARIABLE)
        if not path:
            raise StoreError(
                f"no posteriordb was given and {_VARIABLE} is {path!r}: pass path= or set {_VARIABLE} to a clone of "
                "github.com/stan-dev/posteriordb."
            )
    if hasattr(path, "path") and not isinstance(path, str | os.PathLike):  # posteriordb.PosteriorDatabase
        path = path.path
    start = Path(path).expanduser()
    for root in (start, start / "posterior_database"):
        if (root / "posteriors").is_dir():
            return root
    raise StoreError(f"{start} is no posteriordb: neither it nor its posterior_database has a folder 'posteriors'.")


def _find(root: Path, info: dict[str, Any], key: str, folder: str) -> Path:
    name = info[key]
    for suffix in (".json", ".json.zip"):
        if (file := root / folder / f"{name}{suffix}").is_file():
            return file
    raise StoreError(f"{root / folder} has neither {name}.json nor {name}.json.zip, the {key} of {info['name']}.")


def _read(file: Path) -> Any:
    """Content of a JSON file, or of the one JSON file in a zip archive."""
    try:
        if file.suffix == ".zip":
            with zipfile.ZipFile(file) as archive:
                member = next(n for n in archive.namelist() if n.endswith(".json") and not n.startswith("__MACOSX"))
                return json.loads(archive.read(member))
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, zipfile.BadZipFile, StopIteration, ValueError) as error:
        raise StoreError(f"{file} cannot be read ({error or 'no JSON file inside'}); fetch it again.") from error


def _some(found: Any, most: int = 30) -> str:
    found = sorted(found)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
