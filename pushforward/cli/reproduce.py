"""``pushforward reproduce NAME``: the experiments of a paper, from a checkout of the repository."""

import subprocess
import sys
from pathlib import Path

import click

from ..infer.errors import NotAvailable
from .show import debug_option

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "fb-gvi", "flows", "mixflows", "bregman-langevin", "mirrored-stein", "d-admms", "pf-ode", "dklgp", "vbll",
)  # fmt: skip


@click.command(short_help="Rerun the experiments of a method's paper and compare (from a checkout).")
@click.argument("name", type=click.Choice(NAMES), metavar="NAME")
@click.option("--quick", "size", flag_value="quick", default=True, help="Some of them, minutes.  [default]")
@click.option("--full", "size", flag_value="full", help="All of them, hours.")
@click.option("--kept", "size", flag_value="kept", help="Run nothing: the results kept in the repository.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: reproduced/NAME]")
@click.option("--data", type=click.Path(path_type=Path), help="Folder with posteriordb, uci, … for --full.")
@debug_option
def reproduce(name: str, size: str, out: Path | None, data: Path | None, debug: bool) -> int:
    """Rerun the experiments of the paper of a method: fb-gvi, flows, mixflows, bregman-langevin, mirrored-stein,
    d-admms, pf-ode, dklgp or vbll.

    Prints our figures beside the reference ones, each with whether it is within its tolerance, and writes them as JSON.
    Exit status 1 where one is outside.
    """
    del debug  # `run` looks for it
    if not (ROOT / "benchmarks" / "reproduce.py").exists():
        raise NotAvailable(
            f"reproduce {name} needs the folder benchmarks/ of the repository, and this installation in {ROOT} has "
            f"none; run it in a checkout, with `uv run pushforward reproduce {name}`."
        )
    command = [sys.executable, "-m", "benchmarks.reproduce", name, f"--{size}"]
    command += ["--out", str((out or Path("reproduced") / name).resolve())]
    command += [] if data is None else ["--data", str(data.resolve())]
    return subprocess.run(command, cwd=ROOT, check=False).returncode
