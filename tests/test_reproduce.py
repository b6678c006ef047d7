"""`pushforward reproduce` and the page of benchmarks: comparisons, lists, and with each commit one experiment run."""

import json
import subprocess
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import reproduce as runner
from benchmarks.races import COMPARISONS, Race
from pushforward.cli import run

command = import_module("pushforward.cli.reproduce")  # the package has the command itself under that name
ROOT = Path(__file__).resolve().parents[1]
PAPERS = runner.read_papers()
CHEAP = [name for name, paper in PAPERS.items() if "ci" in paper]


def turn():
    """A number that changes with the commit, or, where there is no history, with the day."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return int(found.stdout[:8], 16) if found.returncode == 0 else int(time.time() // 86400)


def check_part(name, tmp_path, capsys):
    status = runner.main([name, "--ci", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "reproduced.json").read_text())
    ran = [figure for figure in record["figures"] if figure["within"] is not None]
    assert ran
    assert [figure for figure in ran if not figure["within"]] == []
    assert record["troubles"] == []
    assert status == 0
    assert record["machine"]["versions"]["jax"]
    assert f"{len(ran)} of {len(ran)} figures within" in capsys.readouterr().out


def test_a_part_in_its_turn(tmp_path, capsys):
    check_part(CHEAP[turn() % len(CHEAP)], tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_every_cheap_part(name, tmp_path, capsys):
    check_part(name, tmp_path, capsys)


def test_every_experiment_is_there():
    assert list(PAPERS) == list(command.NAMES)
    for paper in PAPERS.values():
        for size in ("quick", "full"):
            for module, *_ in paper[size]:
                assert find_spec(module), module
        for figure in paper["figures"]:
            assert sum(kind in figure for kind in ("within", "factor", "most", "least")) == 1, figure["name"]
            assert figure["source"] in ("theory", "paper", "rerun")


@pytest.mark.parametrize("name", PAPERS)
def test_kept_results_have_the_figures(name):
    """A renamed row or a moved number would read as “not run” for ever."""
    rows = runner.compare(PAPERS[name], *runner.KEPT)
    assert [row.name for row in rows if row.ours is None] == []


@pytest.mark.parametrize(
    ("figure", "low", "high"),
    [
        ({"reference": -5.0, "within": 0.5}, -5.5, -4.5),
        ({"reference": 2.0, "factor": 4.0}, 0.5, 8.0),
        ({"reference": -2.0, "factor": 4.0}, -8.0, -0.5),
        ({"reference": 2.0, "most": True}, -float("inf"), 2.0),
        ({"reference": 2.0, "least": True}, 2.0, float("inf")),
    ],
)
def test_tolerances(figure, low, high):
    assert runner.interval(figure) == (low, high)


def test_ways_through_results():
    found = {"rows": [{"a": 1, "b": "x", "c": [1.0, 2.0]}, {"a": 1, "b": "y", "c": [3.0, 6.0]}, {"a": 2, "c": [9, 9]}]}
    assert runner.look_up(found, ["rows", {"a": 1}, "c", -1]) == 4.0  # averaged over rows
    assert runner.look_up(found, ["rows", {"a": 1, "b": "y"}, "c", 0]) == 3.0
    assert runner.look_up(found, ["rows", {"a": 3}, "c", 0]) is None
    assert runner.look_up(found, ["lines", 0]) is None
    assert runner.look_up(found, ["rows", {"a": 2}, "c", 2]) is None


def test_what_is_outside_is_said(monkeypatch, capsys):
    papers = runner.read_papers()
    figure = papers["pf-ode"]["figures"][0]
    figure["reference"] += 2 * figure["within"]
    monkeypatch.setattr(runner, "read_papers", lambda: papers)
    assert runner.main(["pf-ode", "--kept"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if figure["name"] in line] == ["OUTSIDE"]
    count = len(papers["pf-ode"]["figures"])
    assert lines[-1].startswith(f"{count - 1} of {count} figures within")


def test_experiments_that_fail_or_lack_data(tmp_path):
    troubles = runner.run(
        [["benchmarks.papers.nothing", "e1"], ["benchmarks.papers.mixflow", "boston", "--uci", "{uci}"]], tmp_path, None
    )
    assert troubles[0].startswith("failed: papers.nothing e1: ")
    assert "No module named benchmarks.papers.nothing" in troubles[0]
    assert troubles[1].startswith("left out: papers.mixflow boston --uci {uci}, which needs uci in the folder of")


def test_outside_of_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    assert run(["reproduce", "vbll"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs the folder benchmarks/ of the repository" in said
    assert run(["reproduce", "vbl"]) == 2


# -- races ------------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_the_results_say():
    """Made anew by `python -m benchmarks render`."""
    assert benchmarks.PAGE.read_text(encoding="utf-8") == benchmarks.page()


def test_every_race_has_a_script_and_results():
    for name, comparison in COMPARISONS.items():
        assert find_spec(comparison.command[0]), name
        races, _ = comparison.read(benchmarks.RESULTS)
        assert races, name


@pytest.mark.parametrize(
    ("race", "ratio", "verdict"),
    [
        (Race("t", "p", 2.0, 1.0), 0.5, "behind"),
        (Race("t", "p", 2.0, 1.0, larger=True), 2.0, "ahead"),
        (Race("t", "p", 1.0, 2.0), 2.0, "ahead"),
        (Race("t", "p", 1.0, 1.05), 1.05, "level"),
        (Race("t", "p", 1.0, 1.05, larger=True), 1 / 1.05, "level"),
        (Race("t", "p", 400, None), None, "ahead"),  # they never arrived
        (Race("t", "p", None, 400), None, "behind"),
        (Race("t", "p", None, None), None, "behind"),
    ],
)
def test_who_is_ahead(race, ratio, verdict):
    assert race.ratio == (None if ratio is None else pytest.approx(ratio))
    assert race.verdict == verdict


def test_losses_are_shown_like_wins(monkeypatch, tmp_path):
    """A results file in which we lose everywhere."""
    rows = [{"target": "t", "peer": peer, "ess_per_second": ess} for peer, ess in (("pushforward", 10), ("other", 50))]
    (tmp_path / "compiled.json").write_text(json.dumps({"rows": rows, "date": "2026-01-01"}))
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    page = benchmarks.page()
    assert "Of 1 comparisons we are ahead in 0, level in 0 and **behind in 1**." in page
    assert "| t | other | 10 | 50 | **5 × behind** |" in page
