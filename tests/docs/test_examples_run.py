"""The scripts of ``examples/`` run, and their notebooks are those of the scripts."""

import importlib.util
import os
import subprocess
import sys

import pytest
from docs_helpers import ROOT

SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "build.py")


def test_there_are_some():
    assert SCRIPTS


FAST = ("eight_schools",)
"""The blocks of the pages run all families by default; the other scripts take a minute each."""


@pytest.mark.parametrize(
    "script",
    [pytest.param(path, marks=() if path.stem in FAST else pytest.mark.slow) for path in SCRIPTS],
    ids=lambda path: path.stem,
)
def test_script_runs(script, tmp_path):
    if "sklearn" in script.read_text(encoding="utf-8"):
        pytest.importorskip("sklearn", reason="the example's data are scikit-learn's")
    env = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_that_of_the_script(script):
    """Its cells are the script's, all were executed, and none failed. To renew it: python examples/build.py."""
    nbformat = pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("build", ROOT / "examples" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    expected = build.cells(script.read_text(encoding="utf-8"))
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in expected]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None
            assert all(output.output_type != "error" for output in cell.outputs)
