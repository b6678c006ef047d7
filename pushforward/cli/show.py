"""What the commands print: rich tables on a terminal, plain columns elsewhere."""

import sys
from collections.abc import Sequence
from typing import Any

import click

MOST_ROWS = 40

debug_option = click.option("--debug", is_flag=True, help="Show a traceback on errors.")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: bool = True) -> None:
    """Print a table; the first column is aligned left, the others right if ``numeric``."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for i, name in enumerate(columns):
            table.add_column(name, justify="right" if numeric and i else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console(highlight=False, markup=False).print(table)
        return
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if numeric and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def print_summary(posterior: Any, sites: Sequence[str] | None = None, most: int | None = MOST_ROWS) -> None:
    """Print the summary table, at most ``most`` rows of it."""
    from ..infer.diagnostics.summary import format_table, table

    stats = posterior.statistics(sites)
    columns = format_table(table(stats))
    rows = list(zip(stats.labels, *columns.values(), strict=True))
    print_table(("", *columns), rows[:most])
    if most is not None and len(rows) > most:
        click.echo(f"… {len(rows) - most:,} more of {len(rows):,} rows")


def print_diagnosis(posterior: Any) -> None:
    """Print the diagnosis, warnings in yellow on a terminal."""
    for line in str(posterior.diagnose()).splitlines():
        click.secho(line, fg="yellow" if line.startswith("  WARNING") else None)
