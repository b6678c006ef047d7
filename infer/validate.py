"""Checks of common arguments: each raises `InvalidArgument` with the argument's name, the value found and the rule."""

import math
import operator
import os
from collections.abc import Iterable
from typing import Any

from .errors import InvalidArgument


def check_positive(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number above 0 (traced values and arrays made by JAX pass)."""
    _check_number(name, value, lambda v: v > 0, "> 0")


def check_nonnegative(name: str, value: Any) -> None:
    """Raise unless ``value`` is a finite number of at least 0."""
    _check_number(name, value, lambda v: v >= 0, ">= 0")


def check_fraction(name: str, value: Any) -> None:
    """Raise unless ``value`` lies strictly between 0 and 1."""
    _check_number(name, value, lambda v: 0 < v < 1, "strictly between 0 and 1")


def check_count(name: str, value: Any, minimum: int = 1) -> int:
    """Return ``value`` as an int; raise unless it is a whole number of at least ``minimum``."""
    try:
        count = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{name} must be a whole number, got {value!r}; write it without decimals.") from None
    if isinstance(value, bool) or count < minimum:
        raise InvalidArgument(f"{name} must be a whole number >= {minimum}, got {value!r}.")
    return count


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if getattr(value, "ndim", 0) or value not in choices:
        raise InvalidArgument(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_path(name: str, value: Any) -> None:
    """Raise unless ``value`` may be a path."""
    if not isinstance(value, str | os.PathLike):
        raise InvalidArgument(f"{name} must be a path, got {value!r}; give a string or a pathlib.Path.")


def _check_number(name: str, value: Any, ok: Any, rule: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        if hasattr(value, "dtype") or not isinstance(value, str | bytes | bool | type(None)):
            return  # an array or a tracer: programs may pass them, only users' numbers are checked
        raise InvalidArgument(f"{name} must be a number {rule}, got {value!r}.")
    if not math.isfinite(value) or not ok(value):
        raise InvalidArgument(f"{name} must be a finite number {rule}, got {value!r}.")
