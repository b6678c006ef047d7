"""Scoped floating-point precision: no global JAX setting is ever changed."""

import contextlib
from collections.abc import Iterator

import jax

from ..validate import check_choice


def default_precision() -> int:
    """64 where the default backend is the CPU, 32 on accelerators."""
    return 64 if jax.default_backend() == "cpu" else 32


@contextlib.contextmanager
def precision(bits: int) -> Iterator[None]:
    """Run a block in 32- or 64-bit floating point.

    Outside of a 64-bit scope JAX silently cuts float64 arrays to 32 bits, so that every public function that touches
    the arrays of a 64-bit fit enters this scope again. The scope belongs to a thread.
    """
    with jax.enable_x64(bits == 64):
        yield


def check_precision(bits: int | None) -> int:
    """Return ``bits`` or the default; raise `InvalidArgument` unless it is 32 or 64."""
    if bits is None:
        return default_precision()
    check_choice("precision", bits, (32, 64))
    return int(bits)
