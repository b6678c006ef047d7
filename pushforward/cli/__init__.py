"""The command line, ``pushforward``: `main` and its commands.

Nothing but click is imported until a command needs it, so that ``pushforward --help`` answers at once.
"""

import atexit
import gc
import os
import sys
from collections.abc import Sequence

import click

from .. import __version__
from .fit import fit, resume
from .launch import launch
from .lists import methods, models
from .reproduce import reproduce
from .stored import diagnose, report, summary
from .study import study

INTERRUPTED = 130
"""Exit status after Ctrl-C, 128 + SIGINT, as shells have it."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pushforward", message="%(prog)s %(version)s")
def cli() -> None:
    """Probabilistic inference and sampling: a target, a method, a fit, a posterior."""


for command in (fit, resume, launch, study, reproduce, summary, diagnose, report, methods, models):
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 an error, 2 wrong usage, 130 interrupted, 143 terminated.

    A short fit spends a tenth of its time in collecting garbage that importing and tracing hardly make, and another
    tenth in taking the interpreter down; a process of one command can do with less of the first, without the second.
    """
    gc.set_threshold(200_000, 50, 100)
    status = run(sys.argv[1:] if args is None else list(args))
    if "matplotlib" in sys.modules:  # it may have a temporary folder to remove
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except BrokenPipeError:
                status = status or 1
    os._exit(status)


def run(args: Sequence[str]) -> int:
    """Run the command line; return the exit status. Errors are one line on stderr, with ``--debug`` a traceback."""
    try:
        return int(cli.main(list(args), prog_name="pushforward", standalone_mode=False) or 0)
    except SystemExit as stopped:  # SIGTERM, after a checkpoint
        return stopped.code if isinstance(stopped.code, int) else 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("pushforward: interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment]  # nobody reads it, and flushing it at exit would fail again
        return 1
    except Exception as error:
        if "--debug" in args:
            raise
        return _tell(error)


def _tell(error: Exception) -> int:
    from ..infer.errors import PushforwardError

    message = " ".join(str(error).split())
    if not isinstance(error, PushforwardError):
        message = f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    click.echo(f"pushforward: {message}", err=True)
    return 1
