"""The command line: what it prints, its exit status, and what it says of wrong input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import pushforward as pf
from pushforward.cli import run
from pushforward.cli.cache import cache_directory
from pushforward.cli.data import check_arguments, pick, read_data
from pushforward.cli.settings import hyperparameters, parse, split_extra
from pushforward.infer.store import open_attrs

MODEL = """
import numpyro
import numpyro.distributions as dist

import pushforward as pf


def line(x, y=None, *, scale=1.0):
    a = numpyro.sample("a", dist.Normal(0.0, 5.0))
    b = numpyro.sample("b", dist.Normal(0.0, 5.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(a + b * x, scale), obs=y)


def target(x, y):
    return pf.Target.from_numpyro(line, x, y, scale=2.0)


def broken(x):
    raise RuntimeError("the model is broken")


constant = 3
"""
SMALL = ["--num-samples", "60", "--num-warmup", "60", "--num-chains", "2", "--quiet"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """No command writes into the user's cache, and none leaves its settings behind."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def files(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "data.csv").write_text("x,y\n1,2.1\n2,3.9\n3,6.2\n4,7.8\n")
    (tmp_path / "wide.csv").write_text("age,y,name\n1,2.1,a\n2,3.9,b\n3,6.2,c\n")
    return tmp_path


def process(*args, **options):
    command = [sys.executable, "-m", "pushforward", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


# -- fast answers -----------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    code = (
        "import resource, sys\n"
        "from pushforward.cli import run\n"
        "run(['--help']); run(['fit', '--help']); run(['--version'])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'jax', 'numpy', 'numpyro', 'blackjax', 'rich', 'pandas', 'xarray'} & set(sys.modules)\n"
        "print(used.ru_utime + used.ru_stime, sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.splitlines()[-1].split(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 0.5
    assert "--target-ess" in done.stdout
    assert f"pushforward {pf.__version__}" in done.stdout


def test_lists(capsys):
    assert run(["methods"]) == 0
    listed = capsys.readouterr().out
    for about in pf.methods():
        assert about.method in listed
    assert run(["models"]) == 0
    assert "eight_schools" in capsys.readouterr().out


# -- a fit, and what it left ------------------------------------------------------------------------------------------


def test_fit_prints_the_python_result(capsys, tmp_path):
    from pushforward.models import get

    out = tmp_path / "run"
    args = ["fit", "eight_schools", "--key", "3", "--num-samples", "150", "--num-warmup", "150", "--num-chains", "2"]
    args += ["--target-acceptance", "0.9", "--set", "max_tree_depth=8", "--thin", "2", "--sites", "mu, tau"]
    assert run([*args, "--out", str(out), "--precision", "32"]) == 0
    printed = capsys.readouterr().out
    method = pf.NUTS(target_acceptance=0.9, max_tree_depth=8)
    options = {"num_samples": 150, "num_warmup": 150, "num_chains": 2, "thin": 2, "sites": ["mu", "tau"]}
    same = pf.fit(get("eight_schools").target(), method, key=3, precision=32, progress=False, **options)
    stored = pf.load(out)
    for name, draws in same.draws().items():
        np.testing.assert_array_equal(stored.draws()[name], draws)
    assert sorted(stored.draws()) == ["mu", "tau"]
    for row in same.summary(round_to="auto").itertuples():
        assert " ".join(map(str, row)) in " ".join(printed.split())
    assert str(same.diagnose()) in printed

    # The same from the store, without its target.
    assert run(["summary", str(out), "--sites", "tau"]) == 0
    shown = capsys.readouterr().out
    assert "\ntau " in shown
    assert "\nmu " not in shown
    assert run(["diagnose", str(out)]) == 0
    assert str(stored.diagnose()) in capsys.readouterr().out
    assert run(["diagnose", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flagged"] == same.diagnose().flagged

    # Going on finds the model itself, by either spelling.
    assert run(["resume", str(out), "--num-samples", "200", "--quiet"]) == 0
    assert run(["fit", "--resume", str(out), "--num-samples", "220", "--quiet"]) == 0
    longer = pf.fit(
        get("eight_schools").target(), method, key=3, precision=32, progress=False, **options | {"num_samples": 220}
    )
    np.testing.assert_array_equal(pf.load(out).draws()["mu"], longer.draws()["mu"])
    assert open_attrs(out)["notes"]["command"] == {"model": "eight_schools", "data": None, "columns": None}


def test_file_and_data(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert run(["fit", "model.py:line", "--data", "data.csv", *SMALL, "--out", "run"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.chdir("/")  # the paths in the store are absolute
    assert run(["resume", str(files / "run"), "--num-samples", "80", "--quiet"]) == 0
    assert pf.load(files / "run").draws()["a"].shape == (2, 80)
    monkeypatch.chdir(files)
    assert run(["fit", "model.py:line", "--data", "wide.csv", "--columns", "x=age,y", *SMALL]) == 0
    assert run(["fit", "model.py:target", "--data", "data.csv", "--method", "hmc", "--num-leapfrog=5", *SMALL]) == 0
    assert run(["resume", str(files / "missing")]) == 1
    assert "does not exist" in capsys.readouterr().err
    # Changed data are not silently taken for the old ones.
    (files / "data.csv").write_text("x,y\n1,2.1\n2,3.9\n3,6.2\n4,9.9\n")
    assert run(["resume", str(files / "run"), "--num-samples", "90"]) == 1
    assert "another target" in capsys.readouterr().err


def test_report(tmp_path, capsys):
    file = tmp_path / "report.html"
    assert run(["fit", "challenger", *SMALL, "--out", str(tmp_path / "run"), "--report", str(file)]) == 0
    assert "<html" in file.read_text(encoding="utf-8").lower()
    assert run(["report", str(tmp_path / "run"), str(tmp_path / "again.html"), "--title", "O-rings"]) == 0
    assert "O-rings" in (tmp_path / "again.html").read_text(encoding="utf-8")
    assert "again.html" in capsys.readouterr().out


# -- wrong input: one line, the right status --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["fit"], 2, "Missing argument 'MODEL'"),
        (["fit", "a", "b"], 2, "One MODEL is fitted at a time, got a, b"),
        (["fit", "eight_schools", "--frobnicate"], 2, "a hyper-parameter without a value: --frobnicate"),
        (["fit", "eight_schools", "--step-sise", "1"], 2, "did you mean step_size?"),
        (["fit", "eight_schools", "--set", "nonsense=1"], 2, "it has step_size, target_acceptance"),
        (["fit", "eight_schools", "--set", "step_size"], 2, "--set takes NAME=VALUE, got 'step_size'"),
        (["fit", "eight_schools", "--method", "Nope"], 2, "the methods are"),
        (["fit", "eight_schools", "--num-samples", "many"], 2, "'many' is not a valid integer"),
        (["fit", "--resume", "run", "--thin", "3"], 2, "--thin cannot be changed with --resume"),
        (["fit", "--resume", "run", "--step-size", "3"], 2, "--step-size cannot be changed with --resume"),
        (["fit", "eight_schools", "--num-samples", "0"], 1, "num_samples must be a whole number >= 1, got 0"),
        (["fit", "eight_schools", "--target-acceptance", "2"], 1, "strictly between 0 and 1, got 2"),
        (["fit", "nine_schools"], 1, "neither a shipped model (eight_schools, "),
        (["fit", "model.py:plane"], 1, "the functions of"),
        (["fit", "model.py:constant"], 1, "are line, target, broken"),
        (["fit", "missing.py:line"], 1, "missing.py, which is not a file"),
        (["fit", "model.py:line"], 1, "line takes x, y, scale, and no data were given: x missing"),
        (["fit", "model.py:line", "--data", "wide.csv"], 1, "the data have age, name, and line takes x, y, scale"),
        (["fit", "model.py:line", "--data", "wide.csv", "--columns", "x=height"], 1, "names 'height'; the data"),
        (["fit", "model.py:line", "--data", "wide.csv", "--columns", "x=name,y"], 1, "x holds text ('a', ...)"),
        (["fit", "model.py:broken", "--data", "data.csv", "--columns", "x"], 1, "the model is broken"),
        (["fit", "model.py:line", "--data", "none.csv"], 1, "none.csv, which is not a file"),
        (["fit", "model.py:line", "--data", "model.py"], 1, "a data file is one of *.json, *.csv"),
        (["summary", "nowhere"], 1, "nowhere does not exist"),
        (["report", "nowhere"], 1, "nowhere does not exist"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)  # fmt: skip
def test_wrong_input(args, status, message, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    assert run(args) == status
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    if status == 1:
        assert said.startswith("pushforward: ")
        assert said.count("\n") == 1


def test_debug_shows_where(files, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(pf.InvalidArgument, match="neither a shipped model"):
        run(["fit", "nine_schools", "--debug"])


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_keep_what_there_is(number, status, tmp_path, tmp_path_factory, monkeypatch):
    out = tmp_path / "run"
    # What the first one compiles, the other loads.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "compiled"))
    command = [sys.executable, "-m", "pushforward", "fit", "eight_schools", "--num-samples", "100000000"]
    child = subprocess.Popen([*command, "--out", str(out), "--quiet"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not list(out.glob("posterior/mu/c.*")):
            assert child.poll() is None, child.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        child.send_signal(number)
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == status, said
    assert "Traceback" not in said
    assert pf.load(out).draws()["mu"].shape[1] > 0
    if number == signal.SIGINT:
        assert "partial; go on with: pushforward resume" in " ".join(said.split())


# -- the parts --------------------------------------------------------------------------------------------------------


def test_data_files_agree(tmp_path):
    import pyarrow
    import pyarrow.parquet

    x, y = np.array([1, 2, 3]), np.array([0.5, np.nan, 2.0])
    (tmp_path / "d.csv").write_text("x,y\n1,0.5\n2,NA\n3,2\n")
    (tmp_path / "d.tsv").write_text("x\ty\n1\t0.5\n2\t\n3\t2\n")
    (tmp_path / "d.json").write_text('{"x": [1, 2, 3], "y": [0.5, null, 2.0]}')
    (tmp_path / "rows.json").write_text('[{"x": 1, "y": 0.5}, {"x": 2}, {"x": 3, "y": 2.0}]')
    (tmp_path / "gap.json").write_text('[{"x": 1}, {"x": 2, "y": 2.0}]')
    assert list(read_data(tmp_path / "gap.json")) == ["x", "y"]
    np.savez(tmp_path / "d.npz", x=x, y=y)
    pyarrow.parquet.write_table(pyarrow.table({"x": x, "y": y}), tmp_path / "d.parquet")
    for name in ("d.csv", "d.tsv", "d.json", "rows.json", "d.npz", "d.parquet"):
        found = read_data(tmp_path / name)
        assert list(found) == ["x", "y"], name
        assert found["x"].dtype.kind == "i", name
        np.testing.assert_array_equal(found["x"], x, err_msg=name)
        np.testing.assert_array_equal(found["y"], y, err_msg=name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "x,y\n1,2\n3\n", "1 fields in line 3 and 2 names"),
        ("d.csv", "x,y\n\n1,2\n3\n", "1 fields in line 4 and 2 names"),
        ("d.csv", "x,y, x\n1,2,3\n", "two columns called x"),
        ("d.csv", "x,y\n", "1 lines"),
        ("d.json", "[1, 2]", "holds a list"),
        ("d.json", '{"x": [[1, 2], [3]]}', "x is not a rectangular array"),
        ("d.json", '{"x": ', "not readable as json"),
        ("d.npz", "no zip", "not readable as npz"),
    ],
)
def test_broken_data(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(pf.InvalidArgument, match=message):
        read_data(tmp_path / name)


def test_arguments_of_a_model():
    def anything(x, **others):
        del x, others

    assert check_arguments(anything, {"x": 1.0, "z": 2.0}, "anything") == {"x": 1.0, "z": 2.0}
    assert pick({"a": 1, "b": 2}, " x = a , b") == {"x": 1, "b": 2}
    for words, shown in [(["1.5", "abc"], "abc"), (["NA", "3", "x"], "x")]:
        with pytest.raises(pf.InvalidArgument, match=rf"x holds text \('{shown}', ...\)"):
            check_arguments(anything, {"x": np.array(words)}, "anything")
    with pytest.raises(pf.InvalidArgument, match="names 'c'; the data have a"):
        pick({"a": 1}, "c")


def test_settings():
    assert split_extra(["--a-b", "1", "model", "--c=2=3"]) == (["model"], {"a_b": "1", "c": "2=3"})
    assert [parse(t) for t in ("0.5", "3", "true", "None", "dense", "-1")] == [0.5, 3, True, None, "dense", -1]
    np.testing.assert_array_equal(parse("[1, 2.5]"), [1, 2.5])
    assert "schedule" not in hyperparameters(pf.NUTS)
    assert "max_tree_depth" in hyperparameters(pf.NUTS)


@pytest.mark.parametrize("args", [[], ["--no-cache"]])
def test_cache(args, tmp_path):
    fit = ["fit", "challenger", *SMALL, *args]
    assert process(*fit, env=os.environ).returncode == 0
    assert (any(cache_directory().rglob("*")) if cache_directory().exists() else False) == (not args)


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = process("fit", "challenger", *SMALL, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "file")})
    assert (done.returncode, done.stderr) == (0, "")
