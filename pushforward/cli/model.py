"""From what the user typed, ``eight_schools`` or ``file.py:function``, to a target; and back from a stored run."""

import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

from ..infer.errors import InvalidArgument, PushforwardError, StoreError
from .data import check_arguments, pick, read_data


@dataclasses.dataclass(frozen=True)
class Reference:
    """What `fit` was told to fit, as plain data; kept in the store, so that `resume` finds the target.

    Parameters
    ----------
    model
        Name of a shipped model, or ``path.py:function`` with an absolute path.
    data
        Absolute path of the data file, or None.
    columns
        As given with ``--columns``.
    """

    model: str
    data: str | None = None
    columns: str | None = None

    @classmethod
    def given(cls, model: str, data: str | None, columns: str | None) -> "Reference":
        """The reference with its paths made absolute."""
        file, separator, function = model.rpartition(":")
        if separator and file.endswith(".py"):
            model = f"{Path(file).absolute()}:{function}"
        return cls(model, None if data is None else str(Path(data).absolute()), columns)

    @classmethod
    def stored(cls, attrs: dict[str, Any], path: Any) -> "Reference":
        """The reference in the record of a stored run."""
        found = (attrs.get("notes") or {}).get("command")
        if found is None:
            raise StoreError(f"{path} was not written by the command line; name its MODEL, and --data, too.")
        return cls(found["model"], found["data"], found["columns"])

    def target(self) -> Any:
        """Load code and data, and build the target.

        Raises
        ------
        InvalidArgument
            There is no such model, file or function, or the data do not fit.
        """
        data = {} if self.data is None else pick(read_data(Path(self.data)), self.columns)
        file, separator, function = self.model.rpartition(":")
        if separator and file.endswith(".py"):
            return _target_of(_load_function(Path(file), function), data, function)
        return _shipped(self.model, data)


def _shipped(name: str, data: dict[str, Any]) -> Any:
    from ..models import get, names

    if name not in names():
        raise InvalidArgument(
            f"MODEL is {name!r}, which is neither a shipped model ({', '.join(names())}) nor a function in a file, "
            f"written file.py:function."
        )
    example = get(name)
    return _target_of(example.model, data, name) if data else example.target()


def _load_function(path: Path, name: str) -> Any:
    import importlib.util

    if not path.is_file():
        raise InvalidArgument(f"MODEL names {path}, which is not a file; give file.py:function.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"MODEL names {path}, which is not a Python file; give file.py:function.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # for what the file imports from its own folder
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except PushforwardError:
        raise
    except Exception as error:
        raise InvalidArgument(f"MODEL names {path}, which fails with {type(error).__name__}: {error}.") from error
    function = getattr(module, name, None)
    if not callable(function):
        here = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise InvalidArgument(f"MODEL names {name!r}; the functions of {path} are {', '.join(here) or '(none)'}.")
    return function


def _target_of(function: Any, data: dict[str, Any], name: str) -> Any:
    """The target that ``function`` returns, or the posterior of the NumPyro model that it is."""
    from ..infer.target import Target

    data = check_arguments(function, data, name)
    try:
        made = function(**data)
    except PushforwardError:
        raise
    except Exception:  # what a NumPyro model does outside of inference; a broken function fails again below
        made = None
    return made if isinstance(made, Target) else Target.from_numpyro(function, **data)
