"""Benchmarks against other packages, by one command.

    python -m benchmarks all               # the three that follow
    python -m benchmarks peers             # an environment of the other packages and this one: .venv-peers
    python -m benchmarks run [NAME]...     # comparisons in that environment, all by default; results/*.json
    python -m benchmarks render            # docs/benchmarks.md from results/*.json

What there is to compare is in `benchmarks.races`. Runs take hours, one after the other, and want an idle machine.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from .races import COMPARISONS, LEVEL, Comparison, Race
from .reproduce import KEPT, compare, read_papers

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
ENVIRONMENT = ROOT / ".venv-peers"
INTRODUCTION = f"""# Benchmarks

<!-- Made by `python -m benchmarks render` from benchmarks/results and benchmarks/papers/results; edit those. -->

Two kinds: races against other packages, and the experiments of the papers behind the methods, run again. Behind is
shown like ahead. In the tables below "level" is a ratio of at most {LEVEL}; "–" is a goal that was not reached. Most
were measured on two cores that other work shares, in turn and with medians, so that ratios say more than seconds.

```console
python -m benchmarks all                  # an environment with the peers, the races, and this page; hours
pushforward reproduce fb-gvi --quick      # the experiments of one paper, minutes; from a checkout
pushforward reproduce fb-gvi --kept       # the figures kept in the repository beside the reference ones
```

What was compared how, and what we make of it, is in `benchmarks/README.md` of the repository.
"""


def python() -> Path:
    """The interpreter of the peers' environment, or this one where there is none."""
    found = [ENVIRONMENT / "bin" / "python", ENVIRONMENT / "Scripts" / "python.exe"]
    return next((path for path in found if path.exists()), Path(sys.executable))


def find_uv() -> list[str] | None:
    """The command that runs uv: the one that runs this, which tells its place, one on the path, or a module."""
    if path := os.environ.get("UV") or shutil.which("uv"):
        return [path]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else None


def peers() -> int:
    """Make the environment of the peers, apart from the package's own."""
    wanted = sorted({peer for comparison in COMPARISONS.values() for peer in comparison.peers})
    uv = find_uv()
    if uv is None:
        print("uv was not found, which makes the environment; python3 -m pip install uv", file=sys.stderr)
        return 1
    if subprocess.run([*uv, "venv", "--quiet", "--allow-existing", str(ENVIRONMENT)], check=False).returncode:
        return 1
    install = [*uv, "pip", "install", "--quiet", "--python", str(python()), "-e", f"{ROOT}[posteriordb]", *wanted]
    return subprocess.run(install, check=False).returncode


def run(names: list[str]) -> int:
    """Measure anew; the number of comparisons that failed."""
    failed = 0
    for name in names or COMPARISONS:
        command = [word.format(python=python()) for word in COMPARISONS[name].command]
        print(f"-- {name}: {' '.join(command)}", flush=True)
        failed += bool(subprocess.run([str(python()), "-m", *command], cwd=ROOT, check=False).returncode)
    return failed


def page() -> str:
    """The page of the documentation."""
    read = {name: comparison.read(RESULTS) for name, comparison in COMPARISONS.items()}
    count = Counter(race.verdict for races, _ in read.values() for race in races)
    parts = [INTRODUCTION, "## Against other packages\n"]
    parts.append(
        f"Of {count.total()} comparisons we are ahead in {count['ahead']}, level in {count['level']} and **behind in "
        f"{count['behind']}**.\nA line is a target and a peer, not a measure of importance.\n"
    )
    parts += [_table(COMPARISONS[name], races, about) for name, (races, about) in read.items() if races]
    return "\n".join([*parts, _papers()])


def _table(comparison: Comparison, races: list[Race], about: str) -> str:
    lines = [f"### {comparison.title}\n", f"{comparison.unit[0].upper()}{comparison.unit[1:]}.{about and f' {about}.'}"]
    lines += ["", "| | against | ours | theirs | we are |", "|---|---|---|---|---|"]
    for race in races:
        lines.append(
            f"| {race.setting} | {race.peer} | {_figure(race.ours)} | {_figure(race.theirs)} | {_words(race)} |"
        )
    return "\n".join(lines) + "\n"


def _words(race: Race) -> str:
    if race.ratio is None or race.verdict == "level":
        return race.verdict if race.verdict != "behind" else "**behind**"
    ratio = race.ratio if race.ratio > 1 else 1 / race.ratio
    words = f"{ratio:,.2g}" if ratio < 99.5 else f"{ratio:,.0f}"
    return f"{words} × ahead" if race.verdict == "ahead" else f"**{words} × behind**"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _papers() -> str:
    lines = [
        "## The papers' experiments\n",
        "Our figures beside those of `benchmarks/papers/references.toml`, each with its tolerance: closed forms,",
        "other implementations, and what the papers show. The whole tables are those of",
        "`pushforward reproduce NAME --kept`.\n",
        "| name | paper | within | outside: ours (reference) |",
        "|---|---|---|---|",
    ]
    for name, paper in read_papers().items():
        rows = compare(paper, *KEPT)
        outside = [f"{row.name}: {row.ours:.3g} ({row.reference:.3g})" for row in rows if row.within is False]
        within = f"{sum(row.within is True for row in rows)} of {len(rows)}"
        lines.append(f"| `{name}` | {paper['title']} | {within} | {'; '.join(outside) or '–'} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["all", "peers", "run", "render"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMPARISONS)}")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in COMPARISONS:
            parser.error(f"unknown comparison {name!r}; there are {', '.join(COMPARISONS)}.")
    failed = 0
    if given.what in ("all", "peers"):
        failed += peers()
    if given.what in ("all", "run"):
        failed += run(given.names)
    if given.what in ("all", "render"):
        PAGE.write_text(page(), encoding="utf-8")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
