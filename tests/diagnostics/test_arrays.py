"""Draws in memory give the same statistics and findings as the DataTree made of them, and need no xarray."""

import subprocess
import sys

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.diagnostics.arrays import ArrayTree
from pushforward.infer.diagnostics.diagnose import diagnose
from pushforward.infer.diagnostics.summary import statistics


def groups(rng):
    draws = {
        "mu": rng.normal(size=(4, 200)),
        "theta": rng.normal(size=(4, 200, 3)),
        "sigma": rng.gamma(2.0, size=(4, 200, 2, 2)),
    }
    stats = {"diverging": rng.random((4, 200)) < 0.1, "energy": rng.normal(size=(4, 200)), "lp": draws["mu"]}
    return {"posterior": draws, "sample_stats": stats}


def test_the_same_as_a_datatree():
    made = groups(np.random.default_rng(0))
    dims, coords = {"theta": ("school",)}, {"school": ["a", "b", "c"]}
    posterior = pf.Posterior.from_draws(made["posterior"], sample_stats=made["sample_stats"], dims=dims, coords=coords)
    tree = posterior.data
    view = ArrayTree(made, ("chain", "draw"), dims, coords)
    ours, theirs = statistics(view, "chains"), statistics(tree, "chains")
    assert ours.labels == theirs.labels
    assert ours.labels[:4] == ["mu", "theta[a]", "theta[b]", "theta[c]"]
    for name, column in theirs.columns.items():
        np.testing.assert_array_equal(ours.columns[name], column, err_msg=name)
    assert str(diagnose(view, "chains")) == str(diagnose(tree, "chains"))


def test_particles():
    x = np.random.default_rng(1).normal(size=(50, 2))
    view = ArrayTree({"posterior": {"x": x}}, ("particle",), {}, {})
    stats = statistics(view, "particles")
    assert stats.labels == ["x[0]", "x[1]"]
    np.testing.assert_allclose(stats.columns["mean"], x.mean(0))


@pytest.mark.parametrize("order", [("chain", "draw", ...), ("k", ..., "chain")])
def test_transpose(order):
    xarray = pytest.importorskip("xarray")
    values = np.arange(24.0).reshape(2, 3, 4)
    array = xarray.DataArray(values, dims=("chain", "draw", "k"))
    view = ArrayTree({"g": {"x": values}}, ("chain", "draw"), {"x": ("k",)}, {})["g"]["x"]
    assert view.transpose(*order).dims == array.transpose(*order).dims
    np.testing.assert_array_equal(view.transpose(*order).values, array.transpose(*order).values)


def test_needs_neither_xarray_nor_pandas():
    code = (
        "import sys, numpy as np, pushforward as pf\n"
        "p = pf.Posterior.from_draws({'x': np.random.default_rng(0).normal(size=(4, 100))})\n"
        "p.statistics(); p.diagnose()\n"
        "assert not {'xarray', 'pandas', 'arviz_base'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
