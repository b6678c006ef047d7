"""Where a store may be, and what may be in it."""

import shutil
from pathlib import Path

from ..errors import InvalidArgument, StoreError


def check_name(what: str, name: str) -> None:
    """Raise `InvalidArgument` for a name of a group or variable that zarr or xarray could not keep apart."""
    if not name or "/" in name or name.startswith((".", "__")) or (what == "group" and name == "checkpoint"):
        raise InvalidArgument(
            f"{what} name {name!r} cannot be stored; it must not be empty, start with '.' or '__', or contain '/', "
            f"which separates groups in zarr and xarray."
        )


def check_free(path: Path, overwrite: bool) -> None:
    """Raise `StoreError` unless ``path`` is absent, an empty directory, or a store that may be overwritten."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; choose another path.")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not overwrite:
        raise StoreError(f"{path} exists and is not empty; choose another path, resume it, or pass overwrite=True.")
    if not (path / "layout.json").exists():
        raise StoreError(f"{path} is not a stored run and is not overwritten; choose another path or delete it.")


def clear(path: Path) -> None:
    """Delete an old store, its metadata first: readers see all of it or nothing."""
    (path / "zarr.json").unlink(missing_ok=True)
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()
