"""What stands beside the arrays of a target: labels, and arguments compared by their content.

A target crosses ``jax.jit`` as a pytree. Its arrays are leaves; all else is in the tree definition, which JAX hashes
and compares to decide whether a program is compiled already. So everything here has a hash and an equality that mean
"the compiled program is the same".
"""

import hashlib
import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ..errors import InvalidArgument


class Labels:
    """Names of dimensions and their labels. All `Labels` compare equal: no computation sees them.

    Parameters
    ----------
    dims
        Name of a site → the names of its dimensions.
    coords
        Name of a dimension → its labels.
    """

    __slots__ = ("coords", "dims")

    def __init__(self, dims: Mapping[str, Iterable[str]] | None = None, coords: Mapping[str, Any] | None = None):
        self.dims = {site: tuple(names) for site, names in (dims or {}).items()}
        self.coords = dict(coords or {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels)

    def __hash__(self) -> int:
        return hash(Labels)

    def __repr__(self) -> str:
        return f"Labels(dims={self.dims!r}, coords={sorted(self.coords)!r})"


class ByContent:
    """A value of any type that hashes and compares by its content (functions: by identity).

    Parameters
    ----------
    value
        A Python scalar, string, array, function, data frame, or anything that pickles.
    """

    __slots__ = ("digest", "value")

    def __init__(self, value: Any):
        self.value = value
        self.digest = content_digest(value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ByContent) or self.digest != other.digest:
            return False
        return self.value is other.value or not callable(self.value) or _is_data(self.value)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return repr(self.value)


def content_digest(value: Any) -> bytes:
    """SHA-256 of a value's type and content, the same in every process; functions count by module and name."""
    digest = hashlib.sha256(type(value).__qualname__.encode())
    if isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, jax.Array):
        concrete = jax.random.key_data(value) if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key) else value
        digest.update(content_digest(np.asarray(concrete)))
    elif hasattr(value, "__qualname__"):  # a function, method or class
        name = value.__qualname__  # pyright: ignore[reportAttributeAccessIssue]
        digest.update(f"{getattr(value, '__module__', '')}.{name}".encode())
    elif isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        digest.update(repr(value).encode())
    else:
        try:
            digest.update(pickle.dumps(value))
        except Exception:  # what cannot be pickled counts by its type's name here, and by identity in ByContent
            digest.update(f"{type(value).__module__}".encode())
    return digest.digest()


def fingerprint(parts: Any) -> str:
    """SHA-256 (hex) of the content of nested lists, tuples and dicts."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(content_digest(leaf))
    return digest.hexdigest()


def _is_data(value: Any) -> bool:
    """Whether a callable is compared by what it holds, not by which object it is (say a reparameterisation)."""
    if hasattr(value, "__qualname__"):
        return False
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


UNNAMED = re.compile(r".+_dim_\d+")
"""What ArviZ calls a dimension without a name."""


def check_labels(
    shapes: Mapping[str, tuple[int, ...]], dims: Mapping[str, Iterable[str]], coords: Mapping[str, Any]
) -> None:
    """Raise unless ``dims`` and ``coords`` fit the shapes of the sites.

    Raises
    ------
    InvalidArgument
        An unknown site or dimension, a wrong number of names, or coordinates of another length than the dimension.
    """
    lengths: dict[str, tuple[int, str]] = {}
    for site, names in dims.items():
        if site not in shapes:
            raise InvalidArgument(f"dims names the site {site!r}, which the target lacks; its sites: {_join(shapes)}.")
        names = tuple(names)
        if len(names) != len(shapes[site]):
            raise InvalidArgument(
                f"dims[{site!r}] has the {len(names)} names {list(names)}, but the site has shape {shapes[site]}; "
                f"give one name per axis."
            )
        for name, length in zip(names, shapes[site], strict=True):
            lengths.setdefault(name, (length, site))
            if lengths[name][0] != length:
                raise InvalidArgument(
                    f"dims uses the name {name!r} for an axis of length {lengths[name][0]} (site "
                    f"{lengths[name][1]!r}) and for one of length {length} (site {site!r}); use two names."
                )
    for name, labels in coords.items():
        if np.ndim(labels) != 1:
            raise InvalidArgument(f"coords[{name!r}] has {np.ndim(labels)} axes; give a one-dimensional sequence.")
        if name not in lengths and not UNNAMED.fullmatch(name):
            known = f"those that have names are {_join(lengths)}" if lengths else "none has a name"
            raise InvalidArgument(f"coords labels the dimension {name!r}, which no site has; {known}: give dims too.")
        if name in lengths and len(labels) != lengths[name][0]:
            raise InvalidArgument(
                f"coords[{name!r}] has {len(labels)} labels, but the dimension has length {lengths[name][0]} "
                f"(site {lengths[name][1]!r})."
            )


def _join(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
