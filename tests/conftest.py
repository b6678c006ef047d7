"""The suite runs with shape checks on: annotated arrays of the package are checked at each call in this process."""

from jaxtyping import install_import_hook

from tests.shapes import check_shapes

# Before any test module imports the package. Programs that tests start (cold starts, command line) are not hooked.
# Families and objectives under infer/variational join this list once their own annotations hold.
CHECKED = (
    "pushforward.infer.target",
    "pushforward.infer.diagnostics",
    "pushforward.infer.geometry",
    "pushforward.infer.run",
    "pushforward.infer.store",
    "pushforward.infer.report",
    "pushforward.infer.approximation",
    "pushforward.infer.evaluate",
    "pushforward.infer.method",
    "pushforward.infer.posterior",
    "pushforward.infer.variational.autoguide",
    "pushforward.infer.variational.guides",
    "pushforward.infer.variational.pathfinder",
    "pushforward.models",
    "pushforward.samplers",
)
install_import_hook(CHECKED, f"{check_shapes.__module__}.{check_shapes.__name__}")
