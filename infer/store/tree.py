"""DataTrees in and out of stores."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .guards import check_free
from .integrity import check, read_root
from .layout import MARKER, from_json, group_node, storable, to_json
from .run_store import RunStore
from .static import write_static


def open_datatree(path: str | os.PathLike) -> Any:
    """A stored run or result as a lazily opened ``xarray.DataTree``; its ``attrs`` are those that were stored.

    Values are read when they are used and not kept, so that a summary of many draws needs little memory
    (``tree.load()`` keeps them). Works while the run is going on, and shows the draws of its last flush.

    Raises
    ------
    StoreError
        If there is no store, or one of another format, or it is damaged; the message says which draws are intact.
    """
    path = Path(path)
    _, nodes = read_root(path)
    check(path, nodes)
    return lazy_tree(path)


def lazy_tree(path: Path) -> Any:
    """`open_datatree` without its checks."""
    import xarray as xr

    tree = xr.open_datatree(path, engine="zarr", chunks=None, consolidated=True, cache=False)
    for node in tree.subtree:
        node.attrs = from_json({key: value for key, value in node.attrs.items() if key != MARKER})
    return tree


def save_datatree(
    path: str | os.PathLike, tree: Any, attrs: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Write a whole ``xarray.DataTree``: `open_datatree` gives it back.

    It is written beside ``path`` and then moved there, so that ``path`` is complete or untouched, and may be the very
    store that ``tree`` is read from. Variables are copied in blocks, never loaded as a whole.

    Parameters
    ----------
    tree
        Groups of variables of numbers, strings or dates.
    attrs
        Added to the tree's own; anything that JSON can hold.
    overwrite
        Whether a store at ``path`` may be replaced. Nothing but a store ever is.
    """
    path = Path(path)
    check_free(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); choose another path.") from error
    try:
        with RunStore.create(beside / "new", attrs={**tree.attrs, **(attrs or {})}) as store, store._writing():
            for node in tree.subtree:
                _write_node(store, node)
            store._catalog.publish({}, [], store.attrs)
            store._disk.sync()
        if path.exists():
            os.replace(path, beside / "old")
        os.replace(beside / "new", path)
    except OSError as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error  # not of the place beside
        raise StoreError(f"{path} was not written ({reason}); what was there is as it was.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_node(store: RunStore, node: Any) -> None:
    """Write one group; lazily read variables of numbers block by block."""
    group = node.path.strip("/")
    prefix = f"{group}/" if group else ""
    dataset = node.to_dataset(inherit=False)
    attributes = to_json(dataset.attrs)
    others = [str(name) for name in dataset.coords if name not in dataset.dims]
    if others:
        attributes["coordinates"] = " ".join(others)  # how xarray knows that they are no data variables
    if group:
        store._catalog.nodes[group] = group_node(attributes)
    for name, variable in dataset.variables.items():
        array, decoding = (variable, {}) if variable.dtype.kind in "biufc" else storable(str(name), variable.values)
        attrs = {key: value for key, value in to_json(variable.attrs).items() if key not in decoding}
        dims = tuple(map(str, variable.dims))
        store._catalog.nodes[f"{prefix}{name}"] = write_static(
            store._disk, f"{prefix}{name}", array, dims, attrs | decoding
        )
