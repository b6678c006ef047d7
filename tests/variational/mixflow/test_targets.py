"""The targets of the benchmark of MixFlows are normalised."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAPERS = Path(__file__).resolve().parents[3] / "benchmarks" / "papers"


@pytest.fixture(scope="module")
def targets():
    spec = importlib.util.spec_from_file_location("mixflow_targets", PAPERS / "mixflow_targets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [
        ("cross", (-9, -9), (9, 9)),
        ("banana", (-60, -16), (60, 350)),
        ("warped", (-6, -6), (6, 6)),
        ("mixture", -15, 15),
    ],
)
def test_synthetic_targets_are_normalised(targets, name, lower, upper):
    density, data, dim = targets.SYNTHETIC[name]["density"]
    lower, upper = (np.broadcast_to(np.asarray(x, float), (dim,)) for x in (lower, upper))
    count = 600 if dim == 2 else 4000
    axes = [np.linspace(a, b, count) for a, b in zip(lower, upper, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(lambda x: jnp.exp(density(x, data))))(grid)
        total = float(values.sum()) * float(np.prod((upper - lower) / (count - 1)))
    assert total == pytest.approx(1.0, abs=1e-3)
