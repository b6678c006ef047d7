"""The figures of a report: ArviZ's plots where it has them, as PNG bytes.

Figures are made and closed under a local style; neither matplotlib's backend nor its settings are changed.
"""

import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..diagnostics.psis import psis
from . import selection

NUM_WORST = 6
NUM_FOREST = 30
NUM_PAIR = 4
DPI = 110
_POINTS = {"scatter": {"size": 5, "alpha": 0.35}}

STYLE = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8a94a0", "figure.facecolor": "white",
    "axes.facecolor": "white", "savefig.facecolor": "white", "font.family": "sans-serif", "lines.linewidth": 1.2,
    "text.parse_math": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure: title, caption, and PNG bytes, or None where it could not be drawn (the caption says why)."""

    title: str
    caption: str
    png: bytes | None


def figures(tree: Any, kind: str, summary: Any, diagnosis: Any, own: Sequence[Any] = ()) -> Iterator[Figure]:
    """All figures that mean something for this posterior, in the order of the report; first ``own`` ones."""
    for title, caption, make in own:
        yield _draw(title, caption, make)
    worst = selection.worst_first(summary, kind)
    everything = [label for label in summary.index if label in set(worst)]
    if not worst:
        return
    weights = selection.plot_weights(tree, kind)
    some = selection.scalar_tree(tree, worst[:NUM_WORST], weights)
    shown = _shown(len(some["posterior"].data_vars), len(everything), "the worst by ESS" if kind == "chains" else "")
    thinned = _thinned(tree, kind)
    yield _forest(tree, everything, weights, kind)
    if kind == "chains":
        yield from _chain_figures(tree, some, worst, diagnosis, shown + thinned)
    else:
        raw = selection.cloud_weights(tree, kind)
        if kind == "approximation" and raw is not None:
            yield _draw("Marginals", "Draws of the approximation (filled) and reweighted by Pareto-smoothed importance "
                        "weights (line). " + shown, lambda plt: _marginals(plt, some, tree, kind))  # fmt: skip
        else:
            yield _draw("Marginals", "Kernel density estimates. " + shown, lambda plt: _arviz("plot_dist", some))
        if raw is not None:
            yield _draw(*_weights_text(raw, kind), lambda plt: _weights(plt, raw, kind))
        if len(some["posterior"].data_vars) > 1:
            pair = selection.scalar_tree(tree, worst[:NUM_PAIR], weights, 1000)
            yield _draw(
                "Pairs", "At most 1,000 draws. " + shown, lambda plt: _arviz("plot_pair", pair, visuals=_POINTS)
            )
    yield from _predictive_figures(tree)


def _chain_figures(tree: Any, some: Any, worst: list[str], diagnosis: Any, shown: str) -> Iterator[Figure]:
    text = "Density and trace of each chain: chains that agree lie on each other, and a mixing trace looks like noise. "
    text += "Black ticks are divergent transitions. " if _diverged(some) else ""
    yield _draw("Traces", text + shown, lambda plt: _arviz("plot_trace_dist", some, compact=False))
    text = "ECDF of each chain's ranks minus the uniform one; black where a test at 1 % finds that chains differ. "
    grid = _grid(len(some["posterior"].data_vars))
    yield _draw("Ranks", text + shown, lambda plt: _arviz("plot_rank", some, **grid))
    if int(tree["posterior"].sizes["draw"]) <= selection.MAX_DRAWS:
        text = "Bulk (blue) and tail ESS (orange) of the first draws: both should grow in proportion to their number. "
        yield _draw("Effective sample size", text + shown, lambda plt: _arviz("plot_ess_evolution", some, **grid))
    stats = some["sample_stats"].data_vars if "sample_stats" in some.children else {}
    if "energy" in stats:
        text = (
            "Marginal energy and energy transition densities: a transition density much narrower than the marginal one "
            "(BFMI below 0.3) explores tails slowly."
        )
        yield _draw("Energy", text, lambda plt: _arviz("plot_energy", some))
    if len(worst) > 1:
        yield _pair(tree, worst, diagnosis)


def _pair(tree: Any, worst: list[str], diagnosis: Any) -> Figure:
    sites = [s for f in diagnosis.findings if f.name == "divergences" for s in f.sites]
    labels = list(dict.fromkeys([s for s in sites if s in worst] + worst))[:NUM_PAIR]
    pair = selection.scalar_tree(tree, labels)
    diverged = _diverged(pair)
    text = "Scatter of " + ", ".join(labels) + ". "
    text += "Divergent transitions are marked: where they gather, the sampler fails to go further." if diverged else ""
    return _draw("Pairs", text, lambda plt: _arviz("plot_pair", pair, visuals=_POINTS | {"divergence": diverged}))


def _forest(tree: Any, labels: list[str], weights: Any, kind: str) -> Figure:
    some = selection.scalar_tree(tree, labels[:NUM_FOREST], weights)
    combined = kind != "chains" or len(labels) > 12
    text = f"Median and equal-tailed intervals of 50 % and 89 %, {'all draws' if combined else 'chain by chain'}. "
    text += _shown(min(len(labels), NUM_FOREST), len(labels), "the first") + _thinned(tree, kind)
    return _draw("Intervals", text, lambda plt: _forest_axes(some, combined))


def _forest_axes(some: Any, combined: bool) -> Any:
    figure = _arviz("plot_forest", some, combined=combined, point_estimate="median")
    figure.axes[0].set_axis_off()  # the column of names needs no axis
    return figure


def _predictive_figures(tree: Any) -> Iterator[Figure]:
    if {"posterior_predictive", "observed_data"} <= set(tree.children):
        text = "Replicated data (thin lines) and the observed (black): where they differ, the model misses something."
        yield _draw("Posterior predictive check", text, lambda plt: _arviz("plot_ppc_dist", tree))
    if "log_likelihood" in tree.children:
        for name in tree["log_likelihood"].data_vars:
            text = (
                "Pareto k-hat of each observation in leave-one-out cross-validation; above 0.7 it is too influential."
            )
            yield _draw(f"Leave-one-out: {name}", text, lambda plt, name=name: _loo(tree, str(name)))


def _draw(title: str, caption: str, make: Callable[[Any], Any]) -> Figure:
    """Draw one figure under the local style; one that fails must not cost the report."""
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    try:
        with warnings.catch_warnings(), plt.rc_context(STYLE), plt.ioff():
            warnings.simplefilter("ignore")
            figure = make(plt)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.15)
        return Figure(title, caption.strip(), buffer.getvalue())
    except Exception as error:  # whatever a plotting library raises
        return Figure(title, f"This figure could not be drawn ({type(error).__name__}: {error}).", None)
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _arviz(name: str, tree: Any, **options: Any) -> Any:
    import arviz_plots

    return arviz_plots.__dict__[name](tree, backend="matplotlib", **options).viz["figure"].item()


def _loo(tree: Any, name: str) -> Any:
    import arviz_plots
    import arviz_stats

    result = arviz_stats.loo(tree, pointwise=True, var_name=name)
    return arviz_plots.plot_khat(result, backend="matplotlib").viz["figure"].item()


def _marginals(plt: Any, some: Any, tree: Any, kind: str) -> Any:
    """Histograms of q and of its reweighted draws; weights as they are, so nothing is resampled."""
    log_weights = np.asarray(selection.smoothed(tree, kind))
    count = int(tree["posterior"].sizes["draw"])
    keep = np.arange(0, count, max(1, -(-count // selection.MAX_DRAWS)))
    weights = np.exp(log_weights[keep] - log_weights[keep].max())
    names = list(some["posterior"].data_vars)
    rows = -(-len(names) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(10, 2.3 * rows), squeeze=False, layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        x = some["posterior"][name].values.ravel()
        bins = np.linspace(*np.quantile(x, [0.002, 0.998]), 45)
        axis.hist(x, bins, density=True, color="#9fb8dd", label="approximation")
        axis.hist(x, bins, density=True, weights=weights, histtype="step", color="#b3261e", lw=1.4, label="reweighted")
        axis.set_title(name)
        axis.set_yticks([])
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    axes.flat[0].legend(fontsize=8, frameon=False)
    return figure


def _weights_text(raw: np.ndarray, kind: str) -> tuple[str, str]:
    if kind == "particles":
        return "Weights", "Share of the total weight held by the heaviest particles; the diagonal is equal weights."
    return (
        "Importance weights",
        f"Left: the largest importance ratios π/q against their rank, on log axes, where the Pareto tail with k-hat = "
        f"{psis(raw).k_hat:.2f} is a line. Right: share of the total weight held by the heaviest draws; the diagonal "
        "is equal weights.",
    )


def _weights(plt: Any, raw: np.ndarray, kind: str) -> Any:
    tail = kind == "approximation"
    figure, axes = plt.subplots(1, 1 + tail, figsize=(4.5 * (1 + tail), 3.2), squeeze=False, layout="constrained")
    w = np.sort(np.exp(raw - raw.max()))[::-1]
    if tail:
        count = max(10, int(3 * np.sqrt(w.size)))
        rank = np.arange(1, w.size + 1)
        axes[0, 0].loglog(rank, w / w.mean(), ".", ms=3, color="#9aa7b5", label="all")
        axes[0, 0].loglog(rank[:count], w[:count] / w.mean(), ".", ms=4, color="#2a5db0", label="tail")
        axes[0, 0].set(xlabel="rank", ylabel="weight / mean weight")
        for side in (axes[0, 0].xaxis, axes[0, 0].yaxis):  # the style takes dollar signs literally, for names' sake
            side.set_major_formatter(lambda value, _: f"{value:g}")
            side.set_minor_formatter(lambda value, _: "")
        axes[0, 0].set_ylim(bottom=max(1e-4, w[-1] / w.mean() / 2))
        axes[0, 0].legend(fontsize=8, frameon=False)
    share = np.linspace(0, 1, w.size + 1)
    axes[0, -1].plot(share, np.concatenate(([0.0], np.cumsum(w) / w.sum())), color="#2a5db0")
    axes[0, -1].plot([0, 1], [0, 1], ":", color="#8a94a0")
    axes[0, -1].set(xlabel="share of draws, heaviest first", ylabel="share of the weight")
    return figure


def _grid(panels: int) -> dict[str, Any]:
    """Options for ArviZ: panels in rows of three, with room for their titles."""
    rows = -(-panels // 3)
    size = {"figsize": (10, 2.6 * rows + 0.3), "figsize_units": "inches", "layout": "constrained"}
    return {"col_wrap": 3, "figure_kwargs": size}


def _diverged(some: Any) -> bool:
    stats = some["sample_stats"].data_vars if "sample_stats" in some.children else {}
    return "diverging" in stats and bool(stats["diverging"].any())


def _shown(shown: int, total: int, how: str) -> str:
    if shown >= total:
        return ""
    return f"Shown are {shown} of {total:,} scalars{', ' + how if how else ''}. "


def _thinned(tree: Any, kind: str) -> str:
    name = "particle" if "particle" in tree["posterior"].sizes else "draw"
    count = int(tree["posterior"].sizes[name])
    every = -(-count // selection.MAX_DRAWS)
    ordinal = {2: "second", 3: "third"}.get(every, f"{every}th")
    return f"Every {ordinal} draw is plotted. " if every > 1 and kind == "chains" else ""
