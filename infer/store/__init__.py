"""Stored runs: draws streamed to zarr, checkpoints, and results saved and loaded, all in one format.

`RunStore` is written during a run, `save_datatree` and `open_datatree` keep a finished result, `repair` rescues what
is left of a damaged one. Nothing here knows of methods or targets: only names, arrays and JSON.
"""

from .integrity import repair
from .read import has_checkpoint, latest_checkpoint, open_attrs, read_kept
from .run_store import RunStore
from .tree import open_datatree, save_datatree

__all__ = [
    "RunStore",
    "has_checkpoint",
    "latest_checkpoint",
    "open_attrs",
    "open_datatree",
    "read_kept",
    "repair",
    "save_datatree",
]
