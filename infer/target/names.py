"""Names of sites that ArviZ's DataTree can hold: what ``numpyro.handlers.scope`` calls net/bias is net.bias."""

from collections.abc import Callable, Iterable
from typing import Any

from ..errors import InvalidArgument

RESERVED = ("chain", "draw", "particle")
"""Dimensions of a posterior: a variable of such a name would be its labels."""


def dotted(name: str) -> str:
    """The name without slashes, which part groups in xarray and zarr."""
    return name.replace("/", ".")


def with_dotted_names(model: Callable) -> Callable:
    """The NumPyro model whose sites and plates have dots where theirs have slashes.

    Sites inside of a ``scan`` keep their names: it looks their values up before any handler around it is asked.
    """
    from numpyro.primitives import CondIndepStackFrame, Messenger

    class Dotted(Messenger):
        def process_message(self, msg: dict[str, Any]) -> None:
            if "_scan_current_index" in (msg.get("infer") or {}):
                return
            if msg.get("name"):
                msg["name"] = dotted(msg["name"])
            if any("/" in frame.name for frame in msg.get("cond_indep_stack") or ()):
                frames = msg["cond_indep_stack"]
                msg["cond_indep_stack"] = [CondIndepStackFrame(dotted(f.name), f.dim, f.size) for f in frames]

    return Dotted(model)


def check_names(names: Iterable[str]) -> None:
    """Raise `InvalidArgument` for the name of a site that could not be kept, or read, in ``posterior.data``."""
    for name in names:
        if name in RESERVED:
            raise InvalidArgument(
                f"the target has a site {name!r}, the name of a dimension of every posterior; rename the site."
            )
        if not name or "/" in name or name.startswith((".", "__")):
            raise InvalidArgument(
                f"the target has a site {name!r}, a name that neither ArviZ's DataTree nor a store can hold: it must "
                f"not be empty, start with '.' or '__', or contain '/'; rename the site."
            )
