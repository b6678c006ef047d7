"""A prepared method as arrays and JSON, and back, for checkpoints.

What `prepare` returns is the stage's method with other fields: orderings, neighbours, a whitening, a fitted reference.
Each field is written down where it is not the stage's own. Loading runs no code: classes are looked up in this package,
and must be modules or named tuples. A value of another class is written down as lost, which only resuming minds.
"""

import dataclasses
import importlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import StoreError
from ..method import AbstractMethod

PACKAGE = __name__.split(".")[0]
NOTHING = object()


def encode(prepared: AbstractMethod, own: AbstractMethod) -> tuple[Any, dict[str, np.ndarray]]:
    """A prepared method as JSON-able data and arrays by path, given the stage's ``own`` method, which resuming has."""
    arrays: dict[str, np.ndarray] = {}

    def one(value: Any, own: Any, path: str) -> Any:
        if value is own:
            return {"own": True}
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
            arrays[path] = np.asarray(jax.random.key_data(value) if is_key else value)
            return {"array": path, "jax": isinstance(value, jax.Array)} | (
                {"key": str(jax.random.key_impl(value))} if is_key else {}
            )
        if value is None or type(value) in (bool, int, float, str):
            return {"plain": value}
        if type(value) in (list, tuple):
            return {type(value).__name__: [one(x, NOTHING, f"{path}/{i}") for i, x in enumerate(value)]}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {"dict": {key: one(x, NOTHING, f"{path}/{key}") for key, x in value.items()}}
        cls = type(value)
        if _is_ours(cls) or (cls is type(own) and _has_fields(cls)):
            fields = {k: one(getattr(value, k), getattr(own, k, NOTHING), f"{path}/{k}") for k in _fields(cls)}
            return {"class": "own" if cls is type(own) else f"{cls.__module__}:{cls.__qualname__}", "fields": fields}
        return {"lost": f"{cls.__module__}.{cls.__qualname__}"}

    return one(prepared, own, "method"), arrays


def decode(record: Any, arrays: dict[str, np.ndarray], own: AbstractMethod) -> AbstractMethod:
    """The inverse of `encode`.

    Raises
    ------
    StoreError
        A field held what could not be stored; the message names it.
    """

    def one(record: dict[str, Any], own: Any, path: str) -> Any:
        (kind, content), *more = record.items()
        if kind == "own":
            return own
        if kind == "plain":
            return content
        if kind == "array":
            options = dict(more)
            if "key" in options:
                return jax.random.wrap_key_data(arrays[content], impl=options["key"])
            return jnp.asarray(arrays[content]) if options["jax"] else arrays[content]
        if kind in ("list", "tuple"):
            items = [one(x, NOTHING, f"{path}[{i}]") for i, x in enumerate(content)]
            return tuple(items) if kind == "tuple" else items
        if kind == "dict":
            return {key: one(x, NOTHING, f"{path}[{key!r}]") for key, x in content.items()}
        if kind == "class":
            cls = type(own) if content == "own" else _lookup(content)
            return _make(cls, {k: one(x, getattr(own, k, NOTHING), f"{path}.{k}") for k, x in record["fields"].items()})
        raise StoreError(
            f"The checkpoint lacks {path} of the prepared {type(own_method).__name__}: it was a {content}, which "
            f"cannot be stored; fit it again, without a stop, or let prepare build arrays only."
        )

    own_method = own
    return one(record, own, type(own).__name__)


def _has_fields(cls: type) -> bool:
    return issubclass(cls, eqx.Module) or (issubclass(cls, tuple) and hasattr(cls, "_fields"))


def _is_ours(cls: type) -> bool:
    """Whether a class is one of this package that its name finds again."""
    return _has_fields(cls) and cls.__module__.split(".")[0] == PACKAGE and "<" not in cls.__qualname__


def _fields(cls: type) -> tuple[str, ...]:
    return cls._fields if hasattr(cls, "_fields") else tuple(field.name for field in dataclasses.fields(cls))


def _lookup(name: str) -> type:
    module, _, qualname = name.partition(":")
    if module.split(".")[0] == PACKAGE:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and _has_fields(found):
            return found
    raise StoreError(f"The checkpoint names the class {name!r}, which {PACKAGE} does not have; fit it again.")


def _make(cls: type, fields: dict[str, Any]) -> Any:
    if issubclass(cls, tuple):
        return cls(**fields)
    made = object.__new__(cls)  # as pytrees are rebuilt: fields were converted and checked when the first was made
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made
