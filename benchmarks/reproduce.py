"""The papers' experiments run again, and what came of them beside what should.

    python -m benchmarks.reproduce NAME [--quick | --full | --kept] [--out FOLDER] [--data FOLDER]

is what ``pushforward reproduce NAME`` calls. What is run and the figures to compare with are in
`papers/references.toml`; every experiment is a module that writes JSON to the folder of ``PUSHFORWARD_RESULTS``
(`papers/where.py`). FOLDER gets these files, the output of the experiments (``log.txt``), and ``reproduced.json``: the
machine, and of each figure ours, the reference, and whether it is within.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from .machine import machine

ROOT = Path(__file__).resolve().parents[1]
KEPT = (ROOT / "benchmarks" / "papers" / "results", ROOT / "benchmarks" / "results")
REFERENCES = ROOT / "benchmarks" / "papers" / "references.toml"
PLACES = {
    "posteriordb": "posteriordb", "uci": "uci", "german": "german.pp.gz", "credit": "UCI_Credit_Card.csv",
    "authors": "Ergodic-variational-flow-code",
}  # fmt: skip
"""What a command may ask for, and where it is in the folder of ``--data``."""
MARKS = {True: "within", False: "OUTSIDE", None: "not run"}


class Compared(NamedTuple):
    """A figure of ours beside the reference.

    Parameters
    ----------
    name, source
        What it is, and where the reference is from.
    reference, low, high
        The reference, and the interval that counts as within.
    ours
        None where the experiment has not been run.
    """

    name: str
    source: str
    reference: float
    low: float
    high: float
    ours: float | None

    @property
    def within(self) -> bool | None:
        """Whether ours is in the interval; None where there is none of ours."""
        return None if self.ours is None else self.low <= self.ours <= self.high

    def record(self) -> dict[str, Any]:
        """As JSON has it; an open end of the interval is None."""
        ends = {name: end if math.isfinite(end) else None for name, end in (("low", self.low), ("high", self.high))}
        return self._asdict() | ends | {"within": self.within}


def read_papers(path: Path = REFERENCES) -> dict[str, Any]:
    """What there is to reproduce, by name."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def interval(figure: dict[str, Any]) -> tuple[float, float]:
    """The values that are as good as the reference."""
    reference = figure["reference"]
    if "within" in figure:
        return reference - figure["within"], reference + figure["within"]
    if "factor" in figure:
        low, high = sorted((reference / figure["factor"], reference * figure["factor"]))
        return low, high
    return (-math.inf, reference) if figure.get("most") else (reference, math.inf)


def look_up(found: Any, way: list[Any]) -> float | None:
    """The number at the end of the way, averaged over the rows that it leads to; None where it breaks off."""
    if not way:
        return None if found is None else float(found)
    here, rest = way[0], way[1:]
    if isinstance(here, dict):
        rows = [row for row in found if all(row.get(name) == value for name, value in here.items())]
        values = [value for row in rows if (value := look_up(row, rest)) is not None]
        return sum(values) / len(values) if values else None
    try:
        return look_up(found[here], rest)
    except (KeyError, IndexError):
        return None


def compare(paper: dict[str, Any], *folders: Path) -> list[Compared]:
    """All figures of a paper beside what the files of a folder have, or of the first that has them."""
    found = {}
    for name in {figure["file"] for figure in paper["figures"]}:
        there = [folder / name for folder in folders if (folder / name).exists()]
        found[name] = json.loads(there[0].read_text(encoding="utf-8")) if there else {}
    return [
        Compared(
            figure["name"], figure["source"], figure["reference"], *interval(figure),
            look_up(found[figure["file"]], figure["at"]),
        )
        for figure in paper["figures"]
    ]  # fmt: skip


def run(commands: list[list[str]], folder: Path, data: Path | None) -> list[str]:
    """Run the experiments one after the other; what was left out or failed, in words."""
    folder.mkdir(parents=True, exist_ok=True)
    troubles = []
    environment = os.environ | {"PUSHFORWARD_RESULTS": str(folder)}
    for command in commands:
        asked = [name for name in PLACES if any(f"{{{name}}}" in word for word in command)]
        missing = [PLACES[name] for name in asked if data is None or not (data / PLACES[name]).exists()]
        shown = " ".join(command).replace("benchmarks.", "")
        if missing:
            troubles.append(f"left out: {shown}, which needs {', '.join(missing)} in the folder of --data")
            continue
        places = {} if data is None else {name: data.resolve() / PLACES[name] for name in PLACES}
        words = [word.format(**places) if asked else word for word in command]
        begun = time.monotonic()
        print(f"running {shown} …", flush=True)
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            status = subprocess.run(
                [sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            ).returncode
        print(f"  {time.monotonic() - begun:,.0f} s", flush=True)
        if status:
            last = (folder / "log.txt").read_text(encoding="utf-8").rstrip().rpartition("\n")[2]
            troubles.append(f"failed: {shown}: {last}")
    return troubles


def show(title: str, rows: list[Compared]) -> str:
    """The table, as text."""
    lines = [title, f"{'':9}{'ours':>11}{'reference':>11}  {'within':<21}source"]
    for row in rows:
        ours = "–" if row.ours is None else f"{row.ours:.5g}"
        between = f"[{row.low:.4g}, {row.high:.4g}]"
        lines.append(f"{MARKS[row.within]:9}{ours:>11}{row.reference:>11.5g}  {between:<21} {row.source:<8} {row.name}")
    count = sum(row.within is not None for row in rows)
    lines.append(f"{sum(row.within is True for row in rows)} of {count} figures within; {len(rows) - count} not run.")
    return "\n".join(lines)


def reproduce(name: str, size: str, out: Path, data: Path | None) -> int:
    """Run a paper's experiments and compare; 0 where every figure that was run is within, else 1."""
    paper = read_papers()[name]
    troubles = [] if size == "kept" else run(paper[size], out, data)
    rows = compare(paper, *(KEPT if size == "kept" else [out]))
    print(show(paper["title"], rows))
    for trouble in troubles:
        print(trouble)
    if size != "kept":
        record = {
            "name": name, "size": size, "machine": machine(), "troubles": troubles,
            "figures": [row.record() for row in rows],
        }  # fmt: skip
        (out / "reproduced.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"Results: {out}")
    bad = any(row.within is False for row in rows) or any(trouble.startswith("failed") for trouble in troubles)
    return int(bad or all(row.within is None for row in rows))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    papers = read_papers()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(papers), metavar="NAME", help=", ".join(papers))
    sizes = parser.add_mutually_exclusive_group()
    for size, text in (
        ("quick", "some of the experiments, minutes (the default)"), ("full", "all of them, hours"),
        ("ci", "those that take seconds"), ("kept", "run nothing: the results kept in the repository"),
    ):  # fmt: skip
        sizes.add_argument(f"--{size}", action="store_const", const=size, dest="size", help=text)
    parser.add_argument("--out", type=Path, help="folder of the results (default: reproduced/NAME)")
    parser.add_argument("--data", type=Path, help="folder with posteriordb, uci, …, for --full")
    given = parser.parse_args(arguments)
    size = given.size or "quick"
    if size not in papers[given.name] and size != "kept":
        parser.error(f"{given.name} has no experiments for --{size}; use --quick.")
    return reproduce(given.name, size, given.out or Path("reproduced") / given.name, given.data)


if __name__ == "__main__":
    raise SystemExit(main())
