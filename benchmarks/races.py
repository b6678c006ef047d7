"""What the comparisons with other packages have found, as rows of one shape: ours, theirs, and who is ahead."""

import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

LEVEL = 1.1
"""Below this ratio nobody is called ahead."""


class Race(NamedTuple):
    """One comparison.

    Parameters
    ----------
    setting
        What both did.
    peer
        Whom we are compared with.
    ours, theirs
        The figures; None where it was never reached.
    larger
        Whether larger is better.
    """

    setting: str
    peer: str
    ours: float | None
    theirs: float | None
    larger: bool = False

    @property
    def ratio(self) -> float | None:
        """By what factor we are better, below 1 where we are worse; None where one of the two is."""
        if not self.ours or not self.theirs:
            return None
        return self.ours / self.theirs if self.larger else self.theirs / self.ours

    @property
    def verdict(self) -> str:
        """``"ahead"``, ``"level"`` or ``"behind"``."""
        if self.ratio is None:
            return "ahead" if self.theirs is None and self.ours is not None else "behind"
        return "ahead" if self.ratio > LEVEL else "behind" if self.ratio < 1 / LEVEL else "level"


class Comparison(NamedTuple):
    """All races of a kind.

    Parameters
    ----------
    title, unit
        Heading, and what the figures are.
    command
        Module and arguments that measure it anew.
    file
        Of the results.
    races
        From what the file holds to races.
    peers
        Packages that the command needs besides ours.
    """

    title: str
    unit: str
    command: tuple[str, ...]
    file: str
    races: Callable[[Any], Iterator[Race]]
    peers: tuple[str, ...] = ()

    def read(self, folder: Path) -> tuple[list[Race], str]:
        """The races of the file, and when they were run; none where there is no file."""
        path = folder / self.file
        if not path.exists():
            return [], ""
        found = json.loads(path.read_text(encoding="utf-8"))
        return list(self.races(found)), _about(found)


def _about(found: Any) -> str:
    """Date, processor and load of a file, as far as it has them."""
    machine = found.get("machine", {}) if isinstance(found, dict) else {}
    about = machine | ({"date": found["date"]} if isinstance(found, dict) and "date" in found else {})
    parts = [about.get("date", ""), about.get("cpu", ""), f"{about['cores']} cores" if "cores" in about else ""]
    return ", ".join(part for part in parts if part)


def _median_by(rows: list[dict], keys: tuple[str, ...], value: str) -> dict[tuple, float]:
    """Median of a value over the rows that share keys."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row.get(value) is not None:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row[value])
    return {key: statistics.median(values) for key, values in groups.items()}


def _compiled(found: dict) -> Iterator[Race]:
    by = _median_by(found["rows"], ("target", "peer"), "ess_per_second")
    for (target, peer), theirs in by.items():
        if peer != "pushforward":
            yield Race(target, peer, by[target, "pushforward"], theirs, larger=True)


def _cold(found: dict) -> Iterator[Race]:
    by = _median_by(found["rows"], ("target", "filled", "peer"), "wall")
    for (target, filled, peer), theirs in by.items():
        if peer != "pushforward":
            setting = f"{target}, cache {'filled' if filled else 'empty'}"
            yield Race(setting, peer, by[target, filled, "pushforward"], theirs)


def _overhead(found: dict) -> Iterator[Race]:
    for name, peer in (("same", "bare BlackJAX loop, same statistics"), ("least", "bare BlackJAX loop")):
        ours, theirs = (_median_by(found["rows"], ("target",), value) for value in ("fit", name))
        for key in ours:
            yield Race(key[0], peer, ours[key], theirs[key])


def _gaussian(found: dict) -> Iterator[Race]:
    by = {(row["dim"], row["target"], row["method"]): row["gradients"] for row in found["rows"]}
    for (dim, target, method), theirs in by.items():
        if method.startswith(("NumPyro", "BlackJAX")):
            yield Race(f"{target}, d = {dim}", method, by[dim, target, "FBGVI stein"], theirs)


def _flows(found: dict) -> Iterator[Race]:
    by = {(row["target"], row["flow"], row["rate"]): row["final_gap"] for row in found["rows"]}
    for (target, flow, rate), theirs in by.items():
        if flow.startswith(("NumPyro", "flowjax", "normflows")):
            yield Race(f"{target}, rate {rate}", flow, by[target, "spline coupling", 0.005], theirs)


def _paths(found: dict) -> Iterator[Race]:
    by = {(row["flow"], row["dim"], row["gradient"]): row["least_ms"] for row in found["rows"]}
    pairs = {"plain": "flowjax plain", "recursion": "flowjax stick the landing"}
    for flow, dim, gradient in by:
        if gradient in pairs:
            peer = pairs[gradient]
            yield Race(f"{flow}, d = {dim}, {gradient}", peer, by[flow, dim, gradient], by[flow, dim, peer])


def _stein(found: dict) -> Iterator[Race]:
    by = {(row["n"], row["code"]): 1e3 * row["seconds"] for row in found["step"]}
    pairs = {"BlackJAX": "ours, all pairs", "NumPyro": "ours, all pairs", "NumPy, h given": "ours, h given"}
    for (n, code), theirs in by.items():
        if code in pairs:
            what = "width given" if code.endswith("given") else "median of all pairs, ours every tenth step"
            yield Race(f"{n:,} particles, {what}", code, by[n, pairs[code]], theirs)


def _langevin(found: dict) -> Iterator[Race]:
    best = {"digits": "BregmanProximalLangevin", "dirichlet": "MirrorLangevin", "mixture": "MirrorLangevin"}
    for target, rows in found["targets"].items():
        for name, row in rows.items():
            if name.startswith(("BlackJAX", "CUQIpy")):
                ours = rows[best[target]]["per_1000"]
                yield Race(f"{target}, {best[target]}", name, ours, row["per_1000"], larger=True)


def _mixflow(found: dict) -> Iterator[Race]:
    for row in found["leapfrog"]["rows"]:
        setting = f"{row['density']}, d = {row['dim']}, {row['leapfrogs']} steps"
        yield Race(setting, "BlackJAX's leapfrog", row["millions"]["package"], row["millions"]["blackjax"], larger=True)


def _processes(found: list) -> Iterator[Race]:
    runs: dict[tuple, list] = {}
    for row in found:
        if row["what"] == "simulated" and row["setting"] == 1 and row["learned"]:
            key = (row["response"], row["n"], row["method"], row.get("rho"), row.get("neighbors"))
            runs.setdefault(key, []).append(row)
    ours = [key for key in runs if key[2] in OURS]
    for (response, n, method, rho, neighbors), peer in itertools.product(ours, PEERS):
        theirs = {row["seed"]: row for row in runs.get((response, n, peer, None, None), [])}
        rows = runs[response, n, method, rho, neighbors]
        pairs = [(row, theirs[row["seed"]]) for row in rows if row["seed"] in theirs]
        if pairs:
            width = f"ρ = {rho:g}" if rho else f"{neighbors} neighbours"
            setting = f"{response}, n = {n:,}, {OURS[method]}, {width}, median of {len(pairs)}"
            for name, what in (("CRPS", "out_crps"), ("seconds", "fit_seconds")):
                if name == "CRPS" or not peer.startswith("gpytorch"):  # which has the seconds that it is given
                    one, other = (statistics.median(row[what] for row in side) for side in zip(*pairs, strict=True))
                    yield Race(f"{setting}: {name}", PEERS[peer], one, other)


OURS = {"doublekl": "`DoubleKL`", "vecchia-laplace": "`VecchiaLaplace`"}
PEERS = {"gpboost": "GPBoost", "gpytorch-svgp": "GPyTorch's SVGP", "gpytorch-vnngp": "GPyTorch's VNNGP"}
NUTS = ("benchmarks.nuts",)
COMPARISONS = {
    "compiled": Comparison(
        "NUTS, once compiled", "least bulk ESS per second, warm-up included", (*NUTS, "compiled"), "compiled.json",
        _compiled, ("nutpie", "pymc", "numba"),
    ),
    "cold": Comparison(
        "NUTS, from a fresh process to the summary", "wall seconds", (*NUTS, "cold"), "cold.json", _cold,
        ("nutpie", "pymc", "numba"),
    ),
    "overhead": Comparison(
        "`fit` against a bare loop", "wall seconds of the same draws", (*NUTS, "overhead"), "overhead.json", _overhead
    ),
    "gaussian": Comparison(
        "Gaussian variational inference", "gradients until within 0.001 nats of the best Gaussian",
        ("benchmarks.gaussian", "--dims", "10", "50"), "gaussian.json", _gaussian,
    ),
    "flows": Comparison(
        "Normalising flows as shipped (spline coupling), 2,000 steps", "nats left at the end",
        ("benchmarks.flows",), "flows.json", _flows,
    ),
    "path_gradients": Comparison(
        "One gradient of reverse-KL training", "milliseconds", ("benchmarks.path_gradients",), "path_gradients.json",
        _paths,
    ),
    "stein": Comparison("One step of SVGD", "milliseconds", ("benchmarks.stein", "step"), "stein.json", _stein),
    "langevin": Comparison(
        "Langevin samplers for kinks and constraints", "least bulk ESS per 1,000 gradients",
        ("benchmarks.langevin", "--cuqipy", "{python}"), "langevin.json", _langevin, ("cuqipy",),
    ),
    "mixflow": Comparison(
        "Leapfrog steps of MixFlows", "millions of leapfrog steps a second",
        ("benchmarks.mixflow", "leapfrog"), "mixflow.json", _mixflow,
    ),
    "gaussian_process": Comparison(
        "Latent Gaussian processes in five inputs, hyper-parameters learned",
        "CRPS of f at new inputs; seconds of the whole fit, compiling included",
        ("benchmarks.gaussian_process", "race", "--n", "2000", "8000", "--new", "2000", "--seeds", "3"),
        "gaussian_process.json", _processes, ("gpboost",),
    ),
}  # fmt: skip
