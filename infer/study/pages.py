"""HTML pages of calibrations and studies: one self-contained file each."""

import base64
import datetime
import html
import io
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument, StoreError
from ..report.page import read_style

if TYPE_CHECKING:
    from .calibration import Calibration

DPI = 110
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="pushforward">
<title>$title</title>
<style>
$style
</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p class="soft">$subtitle</p>
$head
</header>
$body
<footer>Written by pushforward on $date. This file is complete in itself: it loads nothing and runs no scripts.</footer>
</main>
</body>
</html>
""")


def calibration_page(calibration: "Calibration", path: Path) -> Path:
    """See `Calibration.report`."""
    level = "ok" if calibration.passed else "warning"
    verdict = "Calibrated" if calibration.passed else "Not calibrated"
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in [calibration.verdict, *calibration.notes])
    worst = calibration.table.head(200)
    body = section("Verdict", notes)
    body += section(
        "Ranks",
        "<p>Above: ranks of the true values among the draws, with what 99 % of uniform ranks have (grey). Below: their "
        "distribution function minus the uniform one, with a band that holds all of it with probability "
        f"{1 - calibration.level / len(calibration.tests):.4g}. A ∪ is a posterior too narrow, a ∩ one too wide, a "
        "slope one beside the truth.</p>" + picture(calibration.plot(), "Ranks of the true values"),
    )
    body += section("Quantities", table(worst, digits=3))
    title = f"Calibration of {calibration.method}" + (f" on {calibration.model}" if calibration.model else "")
    subtitle = f"{calibration.num_fits} data sets · {calibration.num_draws} draws each · {calibration.seconds:,.0f} s"
    return write_page(path, title, subtitle, f'<p class="verdict {level}">{verdict}</p>', body)


def section(title: str, content: str) -> str:
    """A part of a page with its heading."""
    return f"<section><h2>{html.escape(title)}</h2>\n{content}</section>\n"


def picture(figure: Any, title: str) -> str:
    """A matplotlib figure as an image in the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}"></figure>'


def table(frame: Any, digits: int = 4) -> str:
    """A pandas DataFrame as a table that scrolls, with all of it as CSV behind a link."""
    shown = frame.map(lambda value: f"{value:.{digits}g}" if isinstance(value, float) else str(value))
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in shown.columns)
    rows = "".join(
        f"<tr><th>{html.escape(str(label))}</th>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>"
        for label, row in zip(shown.index, shown.to_numpy(), strict=True)
    )
    data = base64.b64encode(frame.to_csv().encode()).decode()
    link = f'<a class="download" download="table.csv" href="data:text/csv;base64,{data}">As CSV</a>'
    return (
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="soft">{link}</p>'
    )


def write_page(path: Path, title: str, subtitle: str, head: str, body: str) -> Path:
    """Write a page; return its path.

    Raises
    ------
    InvalidArgument, StoreError
        The path is a folder, or cannot be written.
    """
    if path.is_dir():
        raise InvalidArgument(
            f"path is the folder {str(path)!r}; a report is one file, e.g. {str(path / 'study.html')!r}."
        )
    text = PAGE.substitute(
        title=html.escape(title), subtitle=html.escape(subtitle), head=head, body=body, style=read_style(),
        date=datetime.date.today().isoformat(),
    )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"The report cannot be written to {str(path)!r}: {error.strerror}; choose another path."
        ) from error
    return path
