"""The suite runs with shape checks on: annotated arrays of the package are checked at each call in this process."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from tests.shapes import check_shapes

MANY_MAPS = 25_000

# Before any test module imports the package. Programs that tests start (cold starts, command line) are not hooked.
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
    "pushforward.infer.variational.mixflow",
    "pushforward.infer.variational.pathfinder",
    "pushforward.infer.train",
    "pushforward.infer.variational.amortised",
    "pushforward.infer.variational.curvature",
    "pushforward.infer.variational.estimators",
    "pushforward.infer.variational.flowjax_rules",
    "pushforward.infer.variational.flows",
    "pushforward.infer.variational.gaussian",
    "pushforward.infer.variational.hierarchical",
    "pushforward.infer.variational.log_weights",
    "pushforward.infer.variational.mode",
    "pushforward.infer.variational.objectives",
    "pushforward.infer.variational.objectives_at_draws",
    "pushforward.infer.variational.rejection",
    "pushforward.infer.variational.rejection_families",
    "pushforward.infer.variational.score_recursion",
    "pushforward.infer.variational.sparse_cholesky",
    "pushforward.infer.variational.surrogates",
    "pushforward.infer.variational.whitening",
    "pushforward.models",
    "pushforward.samplers",
)
install_import_hook(CHECKED, f"{check_shapes.__module__}.{check_shapes.__name__}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One file, one worker, unless ``--dist`` asks for something else."""
    if config.getoption("dist") != "load":
        return None
    from tests.workers import ByFile

    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps() -> Iterator[None]:
    """Forget compiled programs before their memory maps reach Linux's limit (65,530), where the compiler crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()
