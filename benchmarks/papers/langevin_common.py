"""What the experiments of the Langevin samplers share: rows kept on disk as they come, runs of fixed step, figures."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import pushforward as pf
from benchmarks.papers.where import RESULTS

FULL = "--full" in sys.argv
"""Whether experiments have the papers' sizes; their rows go to files of their own."""


class Rows:
    """The rows of one experiment in ``results/langevin_<name>.json``, or ``…_full.json``; none is run twice."""

    def __init__(self, name: str, about: dict[str, Any], columns: tuple[str, ...]) -> None:
        self.path = RESULTS / f"langevin_{name}{'_full' if FULL else ''}.json"
        old = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.about, self.columns, self.rows = about, columns, old.get("rows", [])

    def add(self, key: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of these settings: the one on disk, or what ``compute`` finds, with its seconds."""
        for row in self.rows:
            if all(name in row and row[name] == value for name, value in key.items()):
                return row
        begun = time.perf_counter()
        row = key | compute()
        row["seconds"] = round(time.perf_counter() - begun, 1)
        self.rows.append(row)
        self.write()
        print("  ".join(f"{c}={show(row[c])}" for c in self.columns if c in row), flush=True)
        return row

    def write(self) -> None:
        """All rows, at once or not at all."""
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.about | {"rows": self.rows}, indent=1) + "\n")
        part.replace(self.path)

    def figure(self, size: tuple[float, float], *grid: int, **options: Any) -> tuple[Any, Any, Callable[[], None]]:
        """A figure, its axes, and the function that saves it beside the rows."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        fig, axes = plt.subplots(*grid, figsize=size, layout="constrained", squeeze=False, **options)

        def save() -> None:
            fig.savefig(self.path.with_suffix(".png"), dpi=110)
            plt.close(fig)

        return fig, axes, save


def show(value: Any) -> str:
    """A cell of a printed table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run(
    target: Any, method: Any, *, start: Any, steps: int, thin: int = 1, key: int = 0, skip: float = 0.0
) -> tuple[np.ndarray, dict]:
    """Draws (chain, draw, d) of a method as it is, without warm-up, from the rows of ``start``; and its statistics.

    The share ``skip`` of the run, at its beginning, does not count in the acceptance.
    """
    start = np.atleast_2d(np.asarray(start, float))
    with np.errstate(all="ignore"):
        posterior = pf.fit(
            target, method, key=key, start=start, num_chains=len(start), num_samples=steps // thin, thin=thin,
            num_warmup=0, progress=False,
        )  # fmt: skip
    stats = posterior.data["sample_stats"]
    about = {
        "acceptance": float(stats["acceptance_rate"][:, int(skip * steps / thin) :].mean())
        if method.adjusted
        else None,
        "divergences": int(stats["diverging"].sum()),
    }
    return np.asarray(posterior.draws()["x"]), about
