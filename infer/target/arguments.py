"""Data as leaves: how the arguments of a model or a density are split into arrays and the rest, and put together."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ..errors import InvalidArgument, PushforwardError
from .static import ByContent


class Layout(eqx.Module):
    """How a pytree is put together from array leaves and the rest; wholly static.

    Parameters
    ----------
    treedef
        Of the whole.
    rest
        One entry per leaf: a `ByContent`, or None where the leaf is an array.
    """

    treedef: Any = eqx.field(static=True)
    rest: tuple[ByContent | None, ...] = eqx.field(static=True)

    def join(self, arrays: list[Any]) -> Any:
        """The pytree with these arrays as they are."""
        given = iter(arrays)
        return jax.tree.unflatten(self.treedef, [next(given) if r is None else r.value for r in self.rest])

    def fixed(self) -> list[Any]:
        """The values of the leaves that are no arrays."""
        return [r.value for r in self.rest if r is not None]


def splits(tree: Any) -> Iterator[tuple[Layout, list[Any]]]:
    """Ways to split a pytree into a `Layout` and arrays, from "all arrays are leaves" to "everything is fixed".

    Code that looks at its data with Python or NumPy cannot be traced with the first; floating-point arrays only is
    tried next (indices and counts are what such code mostly looks at), and last nothing is traced.
    """
    leaves, treedef = jax.tree.flatten(tree)
    given = [as_given(leaf) for leaf in leaves]
    last = None
    for is_leaf in (is_array, _is_float_array, lambda leaf: False):
        traced = tuple(is_leaf(leaf) for leaf in given)
        if traced == last:
            continue
        last = traced
        rest = tuple(None if t else ByContent(leaf) for t, leaf in zip(traced, leaves, strict=True))
        yield Layout(treedef, rest), [leaf for t, leaf in zip(traced, given, strict=True) if t]


def first_that_traces(tree: Any, build: Callable[[Layout, list[Any]], Any], explain: Callable[[Exception], str]) -> Any:
    """``build(layout, arrays)`` for the first of `splits` for which it works.

    Raises
    ------
    InvalidArgument
        None works; the message is ``explain(error)``. Errors of the package pass as they are.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, np.ma.MaskedArray):
            raise InvalidArgument(
                f"the data have a masked array of shape {leaf.shape} with {np.ma.count_masked(leaf)} masked values; "
                f"JAX knows none: pass array.filled(0) and the mask, and apply it with numpyro.handlers.mask."
            )
    error: Any = None
    for layout, arrays in splits(tree):
        try:
            return build(layout, arrays)
        except PushforwardError:
            raise
        except Exception as caught:
            error = caught
    raise InvalidArgument(explain(error)) from error


def unwrap_partial(fn: Callable, args: tuple, kwargs: dict) -> tuple[Callable, tuple, dict]:
    """The function inside of `functools.partial`, and all its arguments, so that data in it are leaves too."""
    while isinstance(fn, functools.partial):
        args, kwargs, fn = (*fn.args, *args), {**fn.keywords, **kwargs}, fn.func
    return fn, args, kwargs


def as_given(leaf: Any) -> Any:
    """NumPy arrays for arrays and columns of any library; everything else as it is."""
    if isinstance(leaf, jax.Array):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return leaf if is_key or isinstance(leaf, jax.core.Tracer) else np.asarray(leaf)
    if type(leaf).__name__ in ("Series", "Index", "RangeIndex", "DataArray") and hasattr(leaf, "__array__"):
        return np.asarray(leaf)
    # A copy: the target does not follow later changes, and JAX, which knows constants by the identity of their array,
    # would take for it what a program outside of the 64-bit scope made of the same array, in 32 bits.
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


def is_array(leaf: Any) -> bool:
    """Arrays of numbers, and NumPy's floating scalars (its integers are counts: sizes of plates)."""
    if isinstance(leaf, np.ndarray | np.floating):
        return np.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
    return isinstance(leaf, jax.Array)


def _is_float_array(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, np.inexact)


def as_array(leaf: Any) -> Any:
    """As a model gets it: a JAX array, as if it had come in through `jax.jit`."""
    leaf = as_given(leaf)
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.floating) and is_array(leaf) else leaf


def count_nan(value: Any) -> int:
    """Number of NaN in an array of floats; 0 for anything else."""
    if not isinstance(value, np.ndarray | jax.Array) or not jnp.issubdtype(value.dtype, np.inexact):
        return 0
    return int(np.isnan(np.asarray(value)).sum())


def shown(args: tuple, kwargs: dict) -> str:
    """Arguments with their shapes, for a message."""

    def show(value: Any) -> str:
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return f"{value.dtype}{list(value.shape)}"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
        text = repr(value)
        return text if len(text) < 40 else text[:37] + "..."

    return ", ".join([*map(show, args), *(f"{k}={show(v)}" for k, v in kwargs.items())]) or "none"


def first_line(error: BaseException) -> str:
    """The first line of an error, with its type."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}".removesuffix(": ")


def short_name(fn: Callable) -> str:
    """Name of a function or of a callable object's class; ``""`` of a lambda."""
    name = getattr(fn, "__name__", type(fn).__name__)
    return "" if "<" in name else name


def name_of(fn: Callable) -> str:
    """Module and name of a function or of a callable object's class."""
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    return f"{getattr(fn, '__module__', type(fn).__module__)}.{name}"
