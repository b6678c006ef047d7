"""Every Python block of the documentation runs, page by page, each page in one namespace."""

import re
from datetime import date
from pathlib import Path

import pytest
from docs_helpers import ROOT, blocks, load_tables

import pushforward as pf

PAGES = sorted((ROOT / "docs").glob("*.md"))
LONG = (
    "agents", "calibration", "coming_from", "diffusion", "distributed", "flows", "gaussian", "gaussian_processes",
    "gradients", "last_layers", "mixflow", "sgmcmc", "stein",
)  # fmt: skip
"""Pages that fit for a quarter of a minute and more: two of them each day, all of them among the slow tests."""
TURNS = [LONG[(date.today().toordinal() + after) % len(LONG)] for after in (0, len(LONG) // 2)]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow if page.stem in LONG and page.stem not in TURNS else ())
        for page in PAGES
        if blocks(page.read_text(encoding="utf-8"))
    ],
    ids=lambda p: p.stem,
)
def test_python_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, code in enumerate(blocks(page.read_text(encoding="utf-8"))):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


def test_pages_are_all_in_the_menu():
    menu = re.findall(r"^\s+- .*?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(menu) == sorted(page.name for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_is_named_exists(page):
    """`pf.name` in prose is a public name, links between pages have a page, markers have a maker."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bpf\.([A-Za-z_]+)", text):
        assert name in pf.__all__, name
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    assert "generated:" not in load_tables().on_page_markdown(text)


def test_tables_name_all_methods():
    tables = load_tables()
    for about in pf.methods():
        assert f"| `{about.method}` |" in tables.methods_table()
        assert f"### {about.method}\n" in tables.method_pages()
    assert all(f'"pushforward.{name}"' in tables.reference() for name in ("fit", "Posterior", "Target", "NUTS"))
    assert all(f"## {name}\n" in tables.command_line() for name in ("fit", "resume", "summary"))


def test_error_page_lists_all_classes():
    from pushforward.infer import errors

    page = (Path(ROOT) / "docs" / "errors.md").read_text(encoding="utf-8")
    for name, thing in vars(errors).items():
        if isinstance(thing, type) and issubclass(thing, errors.PushforwardError):
            assert f"`{name}`" in page
