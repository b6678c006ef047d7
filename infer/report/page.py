"""`write_report`: diagnosis, summary, figures and record of a posterior in one HTML file."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..diagnostics.findings import Diagnosis, cut_short
from ..diagnostics.summary import format_summary
from .figures import figures
from .skeleton import check_file, download, grid, image, section, write_page

MAX_ROWS = 200
OPEN_ROWS = 40

READING = {
    "chains": (
        "<p><b>mean</b>, <b>sd</b> and the equal-tailed interval <b>eti</b> describe the posterior. <b>mcse_mean</b> "
        "and <b>mcse_sd</b> are the Monte-Carlo errors of mean and sd. <b>ess_bulk</b> and <b>ess_tail</b> say how "
        "many independent draws would know the centre and the 5 % and 95 % quantiles as well; below 100 per chain they "
        "are not to be relied on. <b>r_hat</b> compares chains, also for spread: 1 is agreement, above 1.01 they "
        "differ (Vehtari, Gelman, Simpson, Carpenter and Bürkner 2021).</p>"
    ),
    "approximation": (
        "<p><b>mean</b>, <b>sd</b> and the equal-tailed interval <b>eti</b> describe independent draws of the "
        "approximation, not of the posterior. <b>psis_mean</b> and <b>psis_sd</b> are reweighted towards the posterior "
        "by Pareto-smoothed importance sampling; they can be trusted while k-hat is below 0.7 (Vehtari, Simpson, "
        "Gelman, Yao and Gabry 2024). There is no R-hat: independent draws always agree with each other.</p>"
    ),
    "particles": (
        "<p><b>mean</b>, <b>sd</b> and the equal-tailed interval <b>eti</b> describe the cloud, with its weights where "
        "it has some; <b>mcse_mean</b> then follows from the effective number of particles. There is no R-hat and no "
        "ESS of chains: particles are not a time series.</p>"
    ),
}


def write_report(
    path: str | os.PathLike,
    *,
    tree: Any,
    kind: str,
    summary: Any,
    diagnosis: Diagnosis,
    record: Mapping[str, Any],
    title: str,
    pictures: Sequence[Any] = (),
) -> Path:
    """Write a self-contained HTML report.

    Parameters
    ----------
    path
        File to write; its folder is made where it does not exist.
    tree
        DataTree with a group ``posterior``; ``sample_stats``, ``posterior_predictive`` with ``observed_data``, and
        ``log_likelihood`` give further figures.
    kind
        ``"chains"``, ``"particles"`` or ``"approximation"``.
    summary
        What `pushforward.infer.diagnostics.summary.summary` returned, not rounded.
    diagnosis
        What `pushforward.infer.diagnostics.diagnose.diagnose` returned.
    record
        Method, key, versions, settings, seconds, as kept with the posterior; shown as it is.
    title
        Heading of the page.
    pictures
        Further figures, which come first: title, caption, and a function of pyplot that returns a figure.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    InvalidArgument
        If ``path`` is a folder.
    StoreError
        If the file cannot be written.
    """
    check_file(path)
    drawn = "".join(map(_figure, figures(tree, kind, summary, diagnosis, pictures)))
    findings = "".join(map(_finding, diagnosis.findings))
    count = len(diagnosis.warnings)
    return write_page(
        path,
        title=title,
        subtitle=_subtitle(record, diagnosis),
        verdict="No warnings" if not count else f"{count} warning{'s' if count > 1 else ''}",
        level="warning" if count else "ok",
        body=f'<dl class="facts">{_facts(record)}</dl>\n'
        + section("Diagnosis", findings or "<p>Nothing was looked at.</p>", "diagnosis")
        + section("Summary", _summary(summary, kind, diagnosis), "summary")
        + section("Plots", drawn or "<p>No scalar varies, so there is nothing to plot.</p>", "plots")
        + section("Method and record", _record(record), "method")
        + section("How to read this", READING[kind], "reading"),
    )


def _subtitle(record: Mapping[str, Any], diagnosis: Diagnosis) -> str:
    parts = [_method(record), diagnosis.size]
    if record.get("stopped"):
        parts.append(f"{'PARTIAL: ' if cut_short(record['stopped']) else ''}{record['stopped']}")
    return " · ".join(p for p in parts if p)


def _method(record: Mapping[str, Any]) -> str:
    method = record.get("method", "")
    return str(method.get("name", "") if isinstance(method, Mapping) else method)


def _facts(record: Mapping[str, Any]) -> str:
    """The few things that one wants to see first."""
    plan = record.get("plan", {}) if isinstance(record.get("plan"), Mapping) else {}
    versions = record.get("versions", {}) if isinstance(record.get("versions"), Mapping) else {}
    seconds = record.get("seconds")
    evaluations = record.get("evaluations")
    facts = {
        "Method": _method(record),
        "Key": _key(record.get("key", plan.get("key"))),
        "Warm-up": plan.get("num_warmup"),
        "Precision": f"{plan['precision']} bits" if "precision" in plan else None,
        "Time": f"{seconds:,.1f} s" if isinstance(seconds, int | float) else None,
        "Evaluations": f"{evaluations:,.0f}" if isinstance(evaluations, int | float) else None,
        "Device": record.get("backend"),
        "Version": versions.get("pushforward"),
    }
    return "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(_value(value))}</dd></div>"
        for name, value in facts.items()
        if value not in (None, "")
    )


def _key(words: Any) -> Any:
    """The integer that a key was made from, where its words are those of one."""
    if isinstance(words, list | tuple) and len(words) == 2:
        return f"{(int(words[0]) << 32) + int(words[1]):,}"
    return words


def _finding(f: Any) -> str:
    code = "" if f.fix is None else f"<pre>{html.escape(str(f.fix))}</pre>"
    return (
        f'<div class="finding {f.level}"><span class="level">{f.level}</span><b>{html.escape(f.name)}</b>'
        f"<span>{html.escape(f.message)}{code}</span></div>"
    )


def _summary(summary: Any, kind: str, diagnosis: Diagnosis) -> str:
    """The table, its suspicious cells marked, and the whole of it as CSV behind a link."""
    shown = summary.head(MAX_ROWS)
    text = format_summary(shown)
    bad = np.zeros(shown.shape, dtype=bool)
    if kind == "chains":
        needed = next((f.threshold for f in diagnosis.findings if f.name == "ESS" and f.threshold), 0.0)
        for j, name in enumerate(shown.columns):
            if name == "r_hat":
                bad[:, j] = shown[name].to_numpy() > 1.01
            elif name.startswith("ess"):
                bad[:, j] = shown[name].to_numpy() < needed
    cells = [
        [f"<td{' class=bad' if b else ''}>{html.escape(v)}</td>" for v, b in zip(row, marks, strict=True)]
        for row, marks in zip(text.to_numpy(), bad, strict=True)
    ]
    table = grid([str(name) for name in shown.columns], [str(label) for label in shown.index], cells)
    if len(shown) > OPEN_ROWS:
        table = f"<details open><summary>{len(shown):,} rows</summary>{table}</details>"
    more = f"Shown are the first {MAX_ROWS} of {len(summary):,} scalars. " if len(summary) > MAX_ROWS else ""
    link = download(summary.to_csv(), "summary.csv", "All of it as CSV")
    return f'{table}<p class="soft">{more}{link}</p>'


def _figure(f: Any) -> str:
    picture = image(f.png, f.title) if f.png else ""
    caption = f"<figcaption><h3>{html.escape(f.title)}</h3>{html.escape(f.caption)}</figcaption>"
    return f"<figure>{caption}{picture}</figure>"


def _record(record: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in _flatten(record)
    )
    if not rows:
        return "<p>The draws came without a record of how they were made.</p>"
    return f'<div class="scroll"><table class="record"><tbody>{rows}</tbody></table></div>'


def _flatten(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and short values; what is empty is left out."""
    rows = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        elif value is not None and value != "" and not (isinstance(value, list | tuple) and not value):
            rows.append((f"{prefix}{name}", _value(value)))
    return rows


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        text = ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)
        return text if len(text) <= 300 else text[:297] + "…"
    return f"{value:.6g}"
