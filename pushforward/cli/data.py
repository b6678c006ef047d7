"""Data files: JSON, CSV, Parquet or NPZ in, the keyword arguments of a model out."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..infer.errors import InvalidArgument

MISSING = {"", "na", "nan", "null", "none"}


def read_data(path: Path) -> dict[str, Any]:
    """Columns or entries of a data file by name, as NumPy arrays (numbers of a JSON file that stand alone as they are).

    Raises
    ------
    InvalidArgument
        The file is missing, of an unknown kind, or cannot be parsed; the message says where.
    """
    readers = {".json": _read_json, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidArgument(f"--data got {path}; a data file is one of {', '.join(f'*{s}' for s in readers)}.")
    if not path.is_file():
        raise InvalidArgument(f"--data got {path}, which is not a file; give the path of the data.")
    try:
        return reader(path)
    except InvalidArgument:
        raise
    except Exception as error:
        raise InvalidArgument(f"--data got {path}, which is not readable as {path.suffix[1:]}: {error}.") from error


def pick(data: Mapping[str, Any], columns: str | None) -> dict[str, Any]:
    """The entries named in ``columns``, ``"y,x=age"`` giving entry ``age`` the name ``x``; all where it is None."""
    if columns is None:
        return dict(data)
    picked = {}
    for item in columns.split(","):
        name, _, column = (part.strip() for part in item.partition("="))
        if (column or name) not in data:
            raise InvalidArgument(f"--columns names {column or name!r}; the data have {', '.join(data)}.")
        picked[name] = data[column or name]
    return picked


def check_arguments(function: Callable, data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return ``data`` if they are keyword arguments that ``function`` takes and include all that it needs.

    Raises
    ------
    InvalidArgument
        Naming what is missing, what is not known, and what the function takes.
    """
    parameters = inspect.signature(function).parameters.values()
    keywords = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in keywords]
    takes = f"{name} takes {', '.join(known)}" if known else f"{name} takes no arguments"
    anything = any(p.kind == p.VAR_KEYWORD for p in parameters)
    unknown = [key for key in data if key not in known]
    if unknown and not anything:
        raise InvalidArgument(
            f"the data have {', '.join(unknown)}, and {takes}; select and rename with --columns {_example(known)}."
        )
    missing = [p.name for p in keywords if p.default is p.empty and p.name not in data]
    if missing:
        have = f"the data have {', '.join(data)}" if data else "no data were given"
        raise InvalidArgument(f"{takes}, and {have}: {', '.join(missing)} missing; give them with --data FILE.")
    for parameter in keywords:
        value: Any = data.get(parameter.name)
        if getattr(getattr(value, "dtype", None), "kind", "f") not in "biufc":
            raise InvalidArgument(
                f"{parameter.name} holds text ({_first_word(value)!r}, ...), and models take numbers; encode it as "
                f"numbers, or leave it out with --columns."
            )
    return dict(data)


def _first_word(values: Any) -> str:
    """The first entry that is no number."""
    words = [str(value) for value in values.ravel()]
    return next((word for word in words if not _is_number(word)), words[0] if words else "")


def _is_number(word: str) -> bool:
    try:
        return float(word) is not None
    except ValueError:
        return word.lower() in MISSING


def _example(known: list[str]) -> str:
    return ",".join(f"{name}=COLUMN" if i == 0 else name for i, name in enumerate(known[:2])) or "NAME"


def _read_json(path: Path) -> dict[str, Any]:
    import json

    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        names = dict.fromkeys(name for row in content for name in row)
        content = {name: [row.get(name) for row in content] for name in names}
    if not isinstance(content, dict):
        raise InvalidArgument(f"--data got {path}, which holds a {type(content).__name__}; give an object of arrays.")
    return {name: _from_json(name, value) for name, value in content.items()}


def _from_json(name: str, value: Any) -> Any:
    import numpy as np

    if isinstance(value, dict):
        return {key: _from_json(f"{name}.{key}", item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
        return array.astype(float) if array.dtype == object else array  # null becomes NaN
    except (ValueError, TypeError):
        raise InvalidArgument(f"{name} is not a rectangular array of numbers; pad it, or split it by name.") from None


def _read_csv(path: Path) -> dict[str, Any]:
    import csv

    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        rows = [(reader.line_num, row) for row in reader if row]
    if len(rows) < 2:
        raise InvalidArgument(
            f"--data got {path} with {len(rows)} lines; a table has a line of names and lines of data."
        )
    names = [name.strip() for name in rows[0][1]]
    twice = [name for i, name in enumerate(names) if name and name in names[:i]]
    if twice:
        raise InvalidArgument(f"{path} has two columns called {twice[0]}; give each a name of its own.")
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise InvalidArgument(f"{path} has {len(row)} fields in line {number} and {len(names)} names; repair it.")
    columns = zip(*(row for _, row in rows[1:]), strict=True)
    return {name: _column(column) for name, column in zip(names, columns, strict=True) if name}


def _column(values: tuple[str, ...]) -> Any:
    """Whole numbers if all are, else numbers with NaN where one is missing, else text."""
    import numpy as np

    stripped = [value.strip() for value in values]
    try:
        return np.array([int(value) for value in stripped])
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float("nan") if value.lower() in MISSING else float(value) for value in stripped])
    except ValueError:
        return np.array(stripped)


def _read_parquet(path: Path) -> dict[str, Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InvalidArgument(
            f"--data got {path}, and reading Parquet needs pyarrow; install pushforward[parquet]."
        ) from None
    table = pyarrow.parquet.read_table(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _read_npz(path: Path) -> dict[str, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
