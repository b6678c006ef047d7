"""``pushforward study study.toml``: a study from a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..infer.errors import InvalidArgument
from .show import debug_option

if TYPE_CHECKING:
    from ..infer.study.study import Study

TOP = ("targets", "methods", "seeds", "budget", "metrics", "checkpoints")
OF_TARGET = ("model", "data", "columns", "reference")
NUTS_RUN = "nuts"


@click.command(short_help="Compare methods on targets at equal budgets, from a file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: the file's name]")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes; 1 shares compiled programs best.")
@click.option("--engine", type=click.Choice(["processes", "ray"]), default="processes", show_default=True)
@click.option("--report", type=click.Path(path_type=Path), help="HTML report.  [default: report.html in --out]")
@click.option("--overwrite", is_flag=True, help="Begin anew.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@debug_option
def study(
    file: Path,
    out: Path | None,
    workers: int,
    engine: str,
    report: Path | None,
    overwrite: bool,
    quiet: bool,
    debug: bool,
) -> None:
    """Run the study in FILE, or what is left of it, and write its results and a report.

    A run that was stopped or killed goes on where it was, and a study to which seeds, methods or targets were added
    runs what is new.
    """
    del debug  # `run` looks for it
    from .cache import use_cache

    use_cache(True)
    store = file.with_suffix("") if out is None else out
    made = read_study(file)
    results = made.run(
        store, overwrite=overwrite, num_workers=workers, engine=engine, progress=False if quiet else None
    )
    page = results.report(store / "report.html" if report is None else report)
    if quiet:
        return
    click.echo(repr(results))
    click.echo(results.winners().to_string(index=False, float_format="%.3g"))
    for name, why in results.failed.items():
        click.echo(f"failed: {name}: {why}")
    click.echo(f"Results: {store}\nReport: {page}")


def read_study(file: Path) -> "Study":
    """The study that a TOML file describes.

    Raises
    ------
    InvalidArgument
        The file is none, or has an unknown name; the message has the nearest one.
    """
    import tomllib

    from ..infer.study.study import Study, check_known

    try:
        given = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidArgument(f"FILE names {file}, which is not there; give a study as a TOML file.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"{file} is not a TOML file: {error}.") from None
    for name in given:
        check_known(str(file), name, TOP)
    for name in ("targets", "methods"):
        if not isinstance(given.get(name), dict) or not all(isinstance(v, dict) for v in given[name].values()):
            raise InvalidArgument(f"{file} must have tables [{name}.NAME], got {given.get(name)!r}.")
    targets, reference = {}, {}
    for name, entry in given["targets"].items():
        targets[name], found = _target(file, name, entry)
        if found is not None:
            reference[name] = found
    methods = {name: _method(file, name, dict(entry)) for name, entry in given["methods"].items()}
    rest = {name: given[name] for name in ("seeds", "budget", "metrics", "checkpoints") if name in given}
    return Study(targets, methods, reference=reference, **rest)


def _target(file: Path, name: str, entry: dict[str, Any]) -> tuple[Any, Any]:
    """A target, and its reference, None where NUTS is to make it."""
    from ..infer.study.study import check_known
    from .model import Reference

    for key in entry:
        check_known(f"[targets.{name}] of {file}", key, OF_TARGET)
    if "model" not in entry:
        raise InvalidArgument(f"[targets.{name}] of {file} needs model = …, got {', '.join(entry) or 'nothing'}.")
    model, folder = str(entry["model"]), file.parent
    if model.startswith("posteriordb:"):
        return _posteriordb(file, name, model.removeprefix("posteriordb:"), entry)
    path, separator, function = model.rpartition(":")
    if separator and path.endswith(".py"):
        model = f"{folder / path}:{function}"
    data = entry.get("data")
    target = Reference.given(model, None if data is None else str(folder / data), entry.get("columns")).target()
    wanted = entry.get("reference", NUTS_RUN)
    if wanted == NUTS_RUN:
        return target, None
    return target, _draws(file, name, folder / str(wanted))


def _posteriordb(file: Path, name: str, posterior: str, entry: dict[str, Any]) -> tuple[Any, Any]:
    from ..models.posteriordb import load

    path = entry.get("data")
    found = load(posterior, None if path is None else file.parent / path)
    if entry.get("reference") == NUTS_RUN or not found.draws:
        return found.target(), None
    if "reference" in entry:
        raise InvalidArgument(
            f"[targets.{name}] of {file} has reference = {entry['reference']!r}; of posteriordb it is its own, or "
            f"'{NUTS_RUN}'."
        )
    target = found.target()
    known = {site.name for site in target.sites}
    return target, {site: draws for site, draws in found.draws.items() if site in known}


def _draws(file: Path, name: str, path: Path) -> dict[str, Any]:
    """Reference draws from an NPZ file, one array per site."""
    import numpy as np

    try:
        with np.load(path) as stored:
            return {site: stored[site] for site in stored.files}
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"[targets.{name}] of {file} has reference = {str(path)!r}, which is not an NPZ file ({error}); give one, "
            f"or '{NUTS_RUN}'."
        ) from None


def _method(file: Path, name: str, entry: dict[str, Any]) -> Any:
    """A method, and options of fit, those under ``fit``."""
    from ..infer.study.study import check_known
    from .settings import find_method, hyperparameters, method_names

    options = entry.pop("fit", {})
    kind = str(entry.pop("method", name))
    names = {public.lower(): public for public in method_names()}
    if kind.lower() not in names:
        check_known(f"[methods.{name}] of {file}", kind, names.values())
    cls = find_method(kind)
    known = [*hyperparameters(cls), "method", "fit"]
    for key in entry:
        check_known(f"[methods.{name}] of {file}", key, known)
    return cls(**entry), options
