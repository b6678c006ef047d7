"""Type checker of the import hook: beartype, on the annotations that hold an array's shape or dtype, and on no others.

The other annotations are promises to static checkers; what users pass in their stead is refused by the package's own
errors, which the tests want to see and beartype would come before. NumPy's arrays pass for JAX's, as they do in JAX.
"""

import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

CONF = BeartypeConf(is_pep484_tower=True)


def check_shapes(function: Callable) -> Callable:
    """``function`` with its arrays checked at each call."""
    hints = function.__annotations__
    if not any(map(has_array, hints.values())):
        return function
    function.__annotations__ = {name: widened(hint) if has_array(hint) else Any for name, hint in hints.items()}
    return beartype(function, conf=CONF)


def has_array(hint: Any) -> bool:
    """Whether an annotation names a jaxtyping array, at any depth."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(has_array(part) for part in typing.get_args(hint))


def widened(hint: Any) -> Any:
    """The annotation with NumPy's arrays beside JAX's."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype[jax.Array | np.ndarray, hint.dim_str] if hint.array_type is jax.Array else hint
    origin, parts = typing.get_origin(hint), tuple(map(widened, typing.get_args(hint)))
    if origin in (typing.Union, types.UnionType):
        return typing.Union[parts]  # noqa: UP007
    if origin is tuple or origin is list or origin is dict:
        return origin[parts]
    return hint
