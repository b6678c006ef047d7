"""Reports as a reader has them, in headless Chromium; skipped where there is none (`test_report` reads the files)."""

import numpy as np
import pytest

import pushforward as pf
from tests.report.browser import chromium, look

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium on the path")

TABLE = """
const table = document.querySelector("#summary table"), body = table.tBodies[0];
const column = (i) => [...body.rows].map((row) => row.cells[i].textContent);
const press = (i) => table.tHead.rows[0].cells[i].click();
found.given = column(1).map(Number);
press(1); found.up = column(1).map(Number);
press(1); found.down = column(1).map(Number);
press(0); found.names = column(0);
press(2); found.marks = [...table.tHead.rows[0].cells].map((cell) => cell.getAttribute("aria-sort"));
"""
LOOKS = """
const channels = (color) => color.match(/[0-9.]+/g).slice(0, 3).map((part) => {
  const c = part / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; });
const light = (color) => { const [r, g, b] = channels(color); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (color !== "rgba(0, 0, 0, 0)") return color;
  } };
const contrast = (element) => {
  const [a, b] = [light(getComputedStyle(element).color), light(ground(element))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05); };
found.contrast = Math.min(...[...document.querySelectorAll("h1, h2, h3, p, td, th, dd, dt, pre, .level, .verdict, a")]
  .map(contrast));
found.page = light(getComputedStyle(document.body).backgroundColor);
found.wide = document.documentElement.scrollWidth - innerWidth;
found.small = Math.min(...[...document.querySelectorAll("p, td, th, dd, dt, pre")]
  .map((e) => parseFloat(getComputedStyle(e).fontSize)));
found.pictures = [...document.images].map((image) => [image.complete, image.naturalWidth > 0]).flat();
"""
ZOOM = """
const image = document.querySelector("figure img"), before = image.getBoundingClientRect().width;
image.click(); found.larger = image.getBoundingClientRect().width / before;
image.click(); found.back = image.getBoundingClientRect().width / before;
found.natural = image.naturalWidth / before;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A fit that went wrong, with a target, so that every part of a report is there."""
    rng = np.random.default_rng(0)
    target = pf.Target.from_log_density(lambda x: -0.5 * (x**2).sum(), np.zeros(12))
    x = rng.normal(size=(4, 200, 12)) + 3 * np.arange(4)[:, None, None] * (np.arange(12) == 3)
    path = tmp_path_factory.mktemp("report") / "fit.html"
    return pf.Posterior.from_draws({"x": x}, target=target).report(path).read_text(encoding="utf-8")


def check_quiet(found):
    assert found["troubles"] == []
    assert found["fetched"] == []


def test_tables_sort(page):
    found = look(page, TABLE)
    check_quiet(found)
    assert found["given"] != sorted(found["given"])
    assert found["up"] == sorted(found["given"])
    assert found["down"] == sorted(found["given"], reverse=True)
    assert found["names"] == [f"x[{i}]" for i in range(12)]  # x[10] behind x[9]
    assert found["marks"][:3] == [None, None, "ascending"]


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_legible_on_a_phone_and_in_the_dark(page, width, dark):
    options = ["--blink-settings=preferredColorScheme=0"] if dark else []
    found = look(page, LOOKS, *options, width=width)
    check_quiet(found)
    assert (found["page"] < 0.05) is dark
    assert found["contrast"] >= 4.5  # WCAG's level AA
    assert found["small"] >= 12
    assert found["wide"] <= 0  # nothing to scroll sideways but inside of tables
    assert found["pictures"]
    assert all(found["pictures"])


def test_pictures_grow(page):
    found = look(page, ZOOM, width=360)
    check_quiet(found)
    assert found["larger"] == pytest.approx(found["natural"], rel=0.01)
    assert found["larger"] > 1.5
    assert found["back"] == pytest.approx(1.0)


def test_errors_of_scripts_and_the_network_would_be_seen(page):
    """What `check_quiet` rests on."""
    broken = page.replace('"use strict";', '"use strict"; nothing();', 1)
    assert "nothing is not defined" in " ".join(look(broken, "")["troubles"])
    loads = page.replace("</main>", '<img src="https://example.org/a.png"></main>', 1)
    assert any("example.org" in trouble for trouble in look(loads, "")["troubles"])
