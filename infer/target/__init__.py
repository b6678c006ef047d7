"""Targets: everything that can be inferred. `base` has the interface, one module each way in."""

from .base import Site as Site
from .base import Target as Target
