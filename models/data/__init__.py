"""The small public data sets that are shipped with the package, as JSON: see `load`."""

import json
from importlib.resources import files
from typing import Any


def load(name: str) -> dict[str, Any]:
    """Content of ``<name>.json``: ``source``, ``data`` (lists by field), and where natural ``coords``."""
    return json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
