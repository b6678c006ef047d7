"""The README: its Python runs, its commands exist, and its table is that of the methods there are."""

import re
import shlex
from pathlib import Path

from docs_helpers import blocks, load_tables

from pushforward.cli import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(README)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert "Diagnosis: no warnings" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert names["posterior"].data["predictions"]["y"].shape == (4, 1000, 2)
    # The slope is known: least squares, since the prior is wide.
    x, y = names["x"], names["y"]
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert abs(names["posterior"].draws()["b"].mean() - slope) < 0.05


def test_commands_exist():
    commands = re.findall(r"uv run pushforward (.*)", README)
    assert commands
    for command in commands:
        name, *args = shlex.split(command)
        options = {option for parameter in cli.commands[name].params for option in parameter.opts}
        assert {arg for arg in args if arg.startswith("--")} <= options


def test_table_of_methods_is_up_to_date():
    assert load_tables().with_table(README) == README, "run: python docs/tables.py --write"


def test_links_exist():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / link).exists(), link
