"""Pictures of a study, and its page."""

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.figures import STYLE
from ..report.skeleton import section, write_page
from .metrics import METRICS, NUM_COMPARED
from .pages import new_figure, picture, table

if TYPE_CHECKING:
    from .results import Results

COLUMNS = 3
COLOURS = ("#2a5db0", "#b3261e", "#1f6b43", "#8a5a00", "#6b3fa0", "#0f7c8a", "#c2488b", "#5b6875")


def curves(results: "Results", metric: str, against: str) -> Any:
    """See `Results.plot`."""
    import matplotlib
    from matplotlib.ticker import LogLocator, NullFormatter

    data, info = results.data, METRICS[metric]
    targets = data["target"].values.tolist()
    columns = min(COLUMNS, len(targets))
    rows = -(-len(targets) // columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(figsize=(max(5.5, 3.6 * columns + 0.4), 2.8 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(targets) :]:
            axis.axis("off")
        for axis, target in zip(axes.flat, targets, strict=False):
            for number, method in enumerate(data["method"].values.tolist()):
                one = data.sel({"target": target, "method": method}).transpose("seed", "checkpoint")
                _curve(axis, one[against].values, one[metric].values, COLOURS[number % len(COLOURS)], method)
            if info.floor and np.isfinite(floor := float(data[f"floor_{metric}"].sel(target=target))):
                axis.axhline(floor, color="#5b6875", ls="--", lw=1, label=f"{NUM_COMPARED} independent draws")
            axis.set(title=target, xlabel=against, ylabel=info.label)
            if not any(np.any(line.get_ydata() > 0) for line in axis.lines):
                axis.set(xticks=[], yticks=[])
                axis.text(0.5, 0.5, "no positive values", transform=axis.transAxes, ha="center", va="center")
                continue
            axis.set(xscale="log", yscale="log")
            for side in (axis.xaxis, axis.yaxis):  # the style takes dollar signs literally, for names' sake
                side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
                side.set_major_formatter(lambda value, _: f"{value:g}")
                side.set_minor_formatter(NullFormatter())
        handles, labels = axes.flat[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False)
    return figure


def _curve(axis: Any, x: np.ndarray, y: np.ndarray, colour: str, label: str) -> None:
    """Median over seeds with the quartiles as a band, where at least half of the seeds have a value."""
    keep = np.isfinite(y).mean(axis=0) >= 0.5
    if not keep.any():
        axis.plot([], [], color=colour, label=label)  # in the legend all the same
        return
    x, y = np.nanmedian(x[:, keep], axis=0), y[:, keep]
    low, middle, high = np.nanquantile(y, (0.25, 0.5, 0.75), axis=0)
    axis.plot(x, middle, "o-", ms=3, color=colour, label=label)
    axis.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)


def study_page(results: "Results", path: Path) -> Path:
    """See `Results.report`."""
    budget = results.budget
    winners = results.winners()
    if len(winners):
        winners = winners.set_index(["metric", "target"])
        winners.index = [f"{metric}, {target}" for metric, target in winners.index]
    body = section(
        "Winners",
        "<p>The method with the best median over seeds at the end of the budget. <b>sure</b> is the share of resampled "
        "sets of seeds in which it stays the best.</p>" + (table(winners, digits=3) if len(winners) else ""),
    )
    for metric in results.metrics:
        info = METRICS[metric]
        text = f"<p>{html.escape(info.label)}; {'larger' if info.larger else 'smaller'} is better. "
        text += "Medians over seeds, with the quartiles as a band.</p>"
        pictures = picture(results.plot(metric), f"{info.label} against evaluations")
        body += section(metric, text + pictures + table(results.medians(metric), digits=3))
    if results.failed:
        rows = "".join(f"<p><b>{html.escape(name)}</b> {html.escape(why)}</p>" for name, why in results.failed.items())
        body += section("Runs that failed", rows)
    for target, headline in json.loads(results.data.attrs.get("references", "{}")).items():
        body += section(f"The reference of {target}", f"<p>{html.escape(headline)}</p>")
    sizes = results.data.sizes
    subtitle = (
        f"{sizes['target']} targets · {sizes['method']} methods · {sizes['seed']} seeds · "
        f"{budget.amount:g} {budget.unit} per run"
    )
    failed = len(results.failed)
    level, words = ("warning", f"Runs that failed: {failed}") if failed else ("ok", "No run failed")
    return write_page(path, title="Study of methods", subtitle=subtitle, verdict=words, level=level, body=body)
