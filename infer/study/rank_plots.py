"""Pictures of ranks: histograms, and empirical distribution functions with a simultaneous band."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.figures import STYLE
from .pages import new_figure
from .uniformity import band

if TYPE_CHECKING:
    from .calibration import Calibration

COLUMNS = 4
BARS = 20
BLUE, RED, GREY = "#2a5db0", "#b3261e", "#d5dae1"


def rank_figure(calibration: "Calibration", names: list[str]) -> Any:
    """Two rows of panels for each four scalars: histograms above, differences of distribution functions below."""
    import matplotlib

    n, draws = calibration.num_fits, calibration.num_draws
    low, high = band(n, draws, calibration.level / len(calibration.tests))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = new_figure(figsize=(2.7 * columns, 3.6 * rows), layout="constrained")
        axes = figure.subplots(2 * rows, columns, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for at, name in enumerate(names):
            row, column = 2 * (at // columns), at % columns
            rejected = calibration.tests[name].p_value * len(calibration.tests) <= calibration.level
            colour = RED if rejected else BLUE
            _histogram(axes[row, column], calibration.ranks[name], draws, colour)
            axes[row, column].set_title(f"{name}  p = {calibration.tests[name].p_value:.2g}")
            _difference(axes[row + 1, column], calibration.ranks[name], draws, (low, high), colour)
    return figure


def _histogram(axis: Any, ranks: np.ndarray, draws: int, colour: str) -> None:
    """Counts of ranks in bars, with what 99 % of uniform ones have."""
    from scipy.stats import binom

    axis.axis("on")
    edges = np.linspace(0, draws + 1, min(BARS, draws + 1) + 1).round()
    counts, _ = np.histogram(ranks, edges)
    width = np.diff(edges)
    share = width / (draws + 1)
    axis.bar(edges[:-1], counts / width, width, align="edge", color=colour, alpha=0.75)
    lower, upper = binom.ppf(0.005, len(ranks), share) / width, binom.ppf(0.995, len(ranks), share) / width
    axis.fill_between(
        edges, np.append(lower, lower[-1]), np.append(upper, upper[-1]), step="post", color=GREY, zorder=0
    )
    axis.set(xlim=(0, draws + 1), yticks=[], xticks=[0, draws // 2, draws])


def _difference(axis: Any, ranks: np.ndarray, draws: int, bounds: tuple[np.ndarray, np.ndarray], colour: str) -> None:
    axis.axis("on")
    cells, n = draws + 1, len(ranks)
    z = np.arange(1, cells) / cells
    counts = np.cumsum(np.bincount(ranks, minlength=cells))[:-1]
    axis.fill_between(z, bounds[0] / n - z, bounds[1] / n - z, color=GREY)
    axis.plot(z, counts / n - z, color=colour)
    axis.axhline(0, color="#8a94a0", lw=0.6)
    axis.set(xlim=(0, 1), xlabel="rank / L", xticks=[0, 0.5, 1])
