"""``summary``, ``diagnose`` and ``report`` of a stored run."""

import json
from pathlib import Path
from typing import Any

import click

from .show import MOST_ROWS, debug_option, print_diagnosis, print_summary

store_argument = click.argument("store", type=click.Path(path_type=Path))


@click.command()
@store_argument
@click.option("--sites", help="Sites to show, comma-separated; all by default.")
@click.option("--all", "everything", is_flag=True, help=f"Show all rows, not only the first {MOST_ROWS}.")
@debug_option
def summary(store: Path, sites: str | None, everything: bool, debug: bool) -> None:
    """Print the summary table of the run in STORE (also while it is going on)."""
    del debug
    posterior = _load(store)
    click.echo(repr(posterior))
    names = None if sites is None else [name.strip() for name in sites.split(",")]
    print_summary(posterior, names, None if everything else MOST_ROWS)


@click.command()
@store_argument
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@debug_option
def diagnose(store: Path, as_json: bool, debug: bool) -> None:
    """Say in words whether the run in STORE can be believed."""
    del debug
    posterior = _load(store)
    if as_json:
        click.echo(json.dumps(posterior.diagnose().to_dict(), indent=1))
    else:
        print_diagnosis(posterior)


@click.command()
@store_argument
@click.argument("file", type=click.Path(path_type=Path), default="report.html")
@click.option("--title", help="Title of the report.")
@debug_option
def report(store: Path, file: Path, title: str | None, debug: bool) -> None:
    """Write the HTML report of the run in STORE to FILE (default report.html)."""
    del debug
    click.echo(f"Report: {_load(store).report(file, title=title)}")


def _load(store: Path) -> Any:
    import pushforward

    return pushforward.load(store)
