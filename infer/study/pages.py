"""HTML pages of calibrations and studies: one self-contained file each."""

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..report.skeleton import download, grid, image, section, write_page

if TYPE_CHECKING:
    from .calibration import Calibration

DPI = 110


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
    return write_page(path, title=title, subtitle=subtitle, verdict=verdict, level=level, body=body)


def new_figure(**options: Any) -> Any:
    """A matplotlib figure that a notebook shows also where pyplot, which would teach it to, is not in use."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            return _png(self)

    return Shown(**options)


def picture(figure: Any, title: str) -> str:
    """A matplotlib figure as an image in the page."""
    return f"<figure>{image(_png(figure), title)}</figure>"


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def table(frame: Any, digits: int = 4) -> str:
    """A pandas DataFrame as a table that scrolls, with all of it as CSV behind a link."""
    shown = frame.map(lambda value: f"{value:.{digits}g}" if isinstance(value, float) else str(value))
    cells = [[f"<td>{html.escape(value)}</td>" for value in row] for row in shown.to_numpy()]
    rows = grid([str(name) for name in shown.columns], [str(label) for label in shown.index], cells)
    return f'{rows}<p class="soft">{download(frame.to_csv(), "table.csv", "As CSV")}</p>'
