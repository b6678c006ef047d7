"""``fit`` and ``resume``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .show import debug_option, print_diagnosis, print_summary

SIGINT_STATUS = 130


def _output_options(function: Callable) -> Callable:
    """The options that ``fit`` and ``resume`` share."""
    options = [
        click.option("--report", "report", type=click.Path(path_type=Path), help="Write an HTML report to this file."),
        click.option("--no-cache", is_flag=True, help="Do not keep compiled programs in ~/.cache/pushforward."),
        click.option("--quiet", is_flag=True, help="Print nothing but errors."),
        debug_option,
    ]
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True},
    options_metavar="[OPTIONS] [--HYPER-PARAMETER VALUE]...",
    short_help="Fit a model and say whether to believe the result.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="MODEL")
@click.option("--data", type=click.Path(), help="JSON, CSV, Parquet or NPZ file: arguments of the model by name.")
@click.option("--columns", help="Entries of the data to use, comma-separated; x=age gives age the name x.")
@click.option("--method", help="Name of the method (see `pushforward methods`).  [default: NUTS]")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Set a hyper-parameter; repeatable.")
@click.option("--key", type=int, default=0, show_default=True, help="Seed.")
@click.option("--num-samples", type=int, help="Draws kept per chain.  [default: 1000]")
@click.option("--num-warmup", type=int, help="Warm-up iterations.  [default: 1000]")
@click.option("--num-chains", type=int, help="Chains.  [default: 4]")
@click.option("--thin", type=int, default=1, show_default=True, help="Iterations per kept draw.")
@click.option("--sites", help="Sites to keep, comma-separated.  [default: all]")
@click.option("--precision", type=click.Choice(["32", "64"]), help="Bits.  [default: 64 on the CPU]")
@click.option("--max-seconds", type=float, help="Stop after this time.")
@click.option("--max-evaluations", type=int, help="Stop after so many gradient evaluations.")
@click.option("--target-ess", type=float, help="Stop at this bulk ESS.")
@click.option("--target-rhat", type=float, help="Stop at this R-hat.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory for draws and checkpoints.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("--resume", "resumed", type=click.Path(path_type=Path), help="Go on with the run in this directory.")
@_output_options
def fit(arguments: tuple[str, ...], **options: Any) -> None:
    """Fit MODEL, and print a summary and a diagnosis.

    MODEL is the name of a shipped model (see `pushforward models`), or file.py:function, where the function is a
    NumPyro model or returns a pushforward.Target. Entries of the --data file become its keyword arguments.

    Any hyper-parameter of the method is an option too, e.g. --target-acceptance 0.95.

    \b
    pushforward fit eight_schools --report report.html
    pushforward fit model.py:regression --data cars.csv --method HMC --num-leapfrog 10 --out runs/cars
    """  # noqa: D301
    from .settings import split_assignments, split_extra

    positional, extra = split_extra(arguments)
    settings = {**extra, **split_assignments(options.pop("assignments"))}
    if len(positional) > 1:
        raise click.UsageError(f"One MODEL is fitted at a time, got {', '.join(positional)}")
    resumed = options.pop("resumed")
    if resumed is not None:
        _refuse_with_resume(options, settings)
        _resume(resumed, positional, options)
        return
    if not positional:
        raise click.UsageError("Missing argument 'MODEL'")
    _fit(positional[0], settings, options)


@click.command(short_help="Go on with a run that was killed or stopped.")
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--num-samples", type=int, help="Draws per chain in all, if more than were asked for.")
@_output_options
def resume(store: Path, **options: Any) -> None:
    """Go on with the run in STORE at its last checkpoint; model and data are found where they were."""
    _resume(store, [], {"data": None, "columns": None, **options})


def _fit(model: str, settings: dict[str, str], options: dict[str, Any]) -> None:
    import logging

    from .cache import use_cache

    use_cache(not options["no_cache"])
    import pushforward

    from .model import Reference
    from .settings import make_method

    logging.getLogger("pushforward").addHandler(logging.NullHandler())  # the diagnosis is printed below

    name = options["method"]
    method = None if name is None and not settings else make_method(name or "NUTS", settings)
    reference = Reference.given(model, options["data"], options["columns"])
    target = reference.target()
    posterior = pushforward.fit(
        target,
        method,
        key=options["key"],
        num_samples=options["num_samples"],
        num_warmup=options["num_warmup"],
        num_chains=options["num_chains"],
        thin=options["thin"],
        sites=None if options["sites"] is None else [name.strip() for name in options["sites"].split(",")],
        precision=None if options["precision"] is None else int(options["precision"]),
        max_seconds=options["max_seconds"],
        max_evaluations=options["max_evaluations"],
        target_ess=options["target_ess"],
        target_rhat=options["target_rhat"],
        store=options["out"],
        overwrite=options["overwrite"],
        progress=False if options["quiet"] else None,
        notes={"command": vars(reference)},
    )
    _finish(posterior, options, options["out"])


def _resume(store: Path, positional: list[str], options: dict[str, Any]) -> None:
    from .cache import use_cache

    use_cache(not options["no_cache"])
    import pushforward

    from ..infer.store import open_attrs
    from .model import Reference

    if positional:
        reference = Reference.given(positional[0], options["data"], options["columns"])
    else:
        reference = Reference.stored(open_attrs(store), store)
    progress = False if options["quiet"] else None
    posterior = pushforward.resume(store, reference.target(), num_samples=options["num_samples"], progress=progress)
    _finish(posterior, options, store)


def _refuse_with_resume(options: dict[str, Any], settings: dict[str, str]) -> None:
    """A resumed run is what it was: only its length may be changed."""
    context = click.get_current_context()
    allowed = {"data", "columns", "num_samples", "report", "no_cache", "quiet", "debug"}
    given = [name for name in options if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]
    changed = [name for name in given if name not in allowed] + list(settings)
    if changed:
        raise click.UsageError(f"--{changed[0].replace('_', '-')} cannot be changed with --resume")


def _finish(posterior: Any, options: dict[str, Any], store: Path | None) -> None:
    """Print what came of a run; exit with 130 if it was interrupted."""
    quiet = options["quiet"]
    if not quiet:
        click.echo(repr(posterior))
        if "chosen" in posterior.record:
            click.echo(f"Chosen: {posterior.record['chosen']}")
        print_summary(posterior)
        print_diagnosis(posterior)
    if store is not None and not quiet:
        click.echo(f"Run: {store}")
    if options["report"] is not None:
        path = posterior.report(options["report"])
        if not quiet:
            click.echo(f"Report: {path}")
    if posterior.record.get("stopped") == "interrupted":
        hint = f"; go on with: pushforward resume {store}" if store is not None else ""
        click.echo(f"pushforward: interrupted, the draws above are partial{hint}", err=True)
        click.get_current_context().exit(SIGINT_STATUS)
