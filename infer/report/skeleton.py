"""The skeleton of every HTML page: one self-contained file, of parts with headings, tables and pictures."""

import base64
import datetime
import html
import os
from importlib import resources
from pathlib import Path
from string import Template

from ..errors import InvalidArgument, StoreError


def write_page(path: str | os.PathLike, *, title: str, subtitle: str, verdict: str, level: str, body: str) -> Path:
    """Write a page; return its path.

    Parameters
    ----------
    path
        File to write; its folder is made where it does not exist.
    title, subtitle, verdict
        Plain text of the heading, of the line below it, and of the badge.
    level
        ``"ok"`` or ``"warning"``: the colour of the badge.
    body
        HTML.

    Raises
    ------
    InvalidArgument
        The path is a folder.
    StoreError
        The file cannot be written.
    """
    path = check_file(path)
    text = Template(_resource("template.html")).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        head=f'<p class="verdict {level}">{html.escape(verdict)}</p>',
        body=body,
        style=_resource("style.css"),
        script=_resource("page.js"),
        date=datetime.date.today().isoformat(),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"The report cannot be written to {str(path)!r}: {error.strerror}; choose another path."
        ) from error
    return path


def check_file(path: str | os.PathLike) -> Path:
    """The path; raise `InvalidArgument` where it is a folder, which one learns before the figures are drawn."""
    path = Path(path)
    if path.is_dir():
        raise InvalidArgument(
            f"path is the folder {str(path)!r}; a report is one file, e.g. {str(path / 'report.html')!r}."
        )
    return path


def section(title: str, content: str, name: str | None = None) -> str:
    """A part of a page with its heading; ``name`` is its anchor."""
    anchor = "" if name is None else f' id="{name}"'
    return f"<section{anchor}><h2>{html.escape(title)}</h2>\n{content}</section>\n"


def image(png: bytes, title: str) -> str:
    """A picture in the page itself."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">'


def download(text: str, file: str, words: str) -> str:
    """A link to CSV that is in the page itself."""
    data = base64.b64encode(text.encode()).decode()
    return f'<a class="download" download="{file}" href="data:text/csv;base64,{data}">{html.escape(words)}</a>'


def grid(names: list[str], labels: list[str], cells: list[list[str]]) -> str:
    """A table that scrolls: column heads, row heads, and cells that are HTML ``<td>`` elements already."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{html.escape(label)}</th>{''.join(row)}</tr>" for label, row in zip(labels, cells, strict=True)
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
