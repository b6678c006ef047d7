"""``launch``: one script as several processes of this machine."""

import sys
from pathlib import Path
from typing import Any

import click

from .show import debug_option
from .supervise import Job, supervise


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@click.option("-n", "--processes", type=click.IntRange(1), required=True, help="How many processes.")
@click.option("--devices-per-process", type=click.IntRange(1), help="CPU devices that each process has.")
@click.option("--restarts", type=click.IntRange(0), default=0, show_default=True, help="Starts after a failure.")
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds for all to meet.")
@click.option("--heartbeat", type=float, default=60.0, show_default=True, help="Seconds of silence that mean death.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where process 0 listens.  [default: a free one]")
@click.option("--logs", type=click.Path(path_type=Path), help="Directory for the logs of processes 1, 2, …")
@click.argument("script", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@debug_option
def launch(script: Path, arguments: tuple[str, ...], debug: bool, **options: Any) -> None:
    """Run SCRIPT with ARGUMENTS as several processes of this machine that share its work.

    The script calls pushforward.distributed.initialize() first; what fit then does is shared out. Process 0 writes to
    this terminal. If one process ends with an error, the others are ended too, and the end of its log is shown. With
    --restarts all are started again, and a script that resumes from its store, if there is one, goes on.
    """
    del debug
    from ..infer.errors import InvalidArgument

    if not script.is_file():
        raise InvalidArgument(f"SCRIPT is {script}, which is not a file; give the path of a Python script.")
    status = supervise(Job(command=(sys.executable, str(script), *arguments), **options), tell=_tell)
    if status:
        raise SystemExit(status)


def _tell(text: str) -> None:
    click.echo(f"pushforward launch: {text}", err=True)
