"""Python blocks of Markdown files, and the module that makes the tables."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def blocks(markdown: str) -> list[str]:
    """All ```` ```python ```` blocks."""
    return re.findall(r"^```python\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)


def load_tables() -> ModuleType:
    """``docs/tables.py``."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
