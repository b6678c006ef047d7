"""`fit`: any method on any target it suits; `resume`: a run that was killed; `load`: a stored result."""

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from ..distributed.mesh import DATA, PARTICLES, read_mesh
from ..distributed.processes import barrier, check_same, is_first, num_processes, warn_of_copies
from ..errors import InvalidArgument
from ..method import AbstractMethod
from ..target import Target
from ..target.names import check_names
from ..target.spread import SpreadTarget
from ..target.spread_shards import SpreadShards
from ..validate import check_count, check_nonnegative, check_path, check_positive
from .checkpoint import check_origin, read_checkpoint, rebuild_run, versions, write_checkpoint
from .driver import CHECKPOINT_SECONDS, Run
from .elsewhere import create_store, open_store
from .memory import give_back
from .observe import Stopping
from .plan import (
    Plan,
    check_plan,
    default_chains_per_program,
    read_key,
    rebuild_method,
    record_method,
)
from .precision import check_precision

if TYPE_CHECKING:
    from pushforward.choose import Choice

    from ..posterior import Posterior

NUM_SAMPLES = 1000
NUM_WARMUP = 1000
WARM_WARMUP = 100
SAMPLES_WITH_GOAL = 100_000

HINTS = {
    "prior": "build it with Target.from_numpyro or Target.from_factors, which keep prior and likelihood apart",
    "proper_prior": "build it with Target.from_numpyro, whose prior can be drawn from, and without ImproperUniform",
    "likelihood": "build it with Target.from_numpyro or Target.from_factors",
    "predictive": "build it with Target.from_numpyro",
    "support": "build it with Target.from_log_density(..., support=...)",
    "composite": "build it with Target.composite(smooth, nonsmooth) or target.split(site)",
    "factors": "build it with Target.from_factors(log_prior, log_likelihood, data)",
    "shards": "build it with Target.from_factors(log_prior, log_likelihood, data)",
    "last_layer": "build it with models.LastLayer(features, head, x, y)",
    "numpyro": "build it with Target.from_numpyro(model, ...)",
    "latent_gp": "build it with pushforward.models.LatentGP(kernel, likelihood, X, y)",
}


def fit(
    target: Target,
    method: AbstractMethod | None = None,
    *,
    key: Any = 0,
    num_samples: int | None = None,
    num_warmup: int | None = None,
    num_chains: int | None = None,
    start: Any = None,
    thin: int = 1,
    sites: Sequence[str] | None = None,
    max_seconds: float | None = None,
    max_evaluations: int | None = None,
    target_ess: float | None = None,
    target_rhat: float | None = None,
    store: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    precision: int | None = None,
    chains_per_program: int | None = None,
    chunk_length: int | None = None,
    checkpoint_every: float = CHECKPOINT_SECONDS,
    notes: dict[str, Any] | None = None,
    mesh: Any = None,
) -> "Posterior":
    """Infer ``target`` with ``method``.

    Parameters
    ----------
    target
        What is inferred; see `Target`.
    method
        How; `pushforward.methods` lists them all. Without one it is chosen by the structure of the target and by
        ``max_evaluations``, mostly NUTS: ``record["chosen"]`` of the result says why, and its diagnosis is looked at.
        Where it warns, the fix that it names is run once (a site non-centred, a longer run, …) and kept if it warns
        less; with draws, a budget, a start or a store of yours it is advice only, in the log ``"pushforward"``.
    key
        An int or a JAX key. On one machine the same key gives the same bits, whatever ``chunk_length``, ``store`` or
        the number of devices, for the same ``chains_per_program``.
    num_samples
        Draws kept per chain (default 1,000; at most 100,000 where ``target_ess`` or ``target_rhat`` decides). For a
        method whose result is a density: draws of it, all together.
    num_warmup
        Warm-up iterations (default 1,000; 100, of the step size alone, where ``start`` is a posterior).
    num_chains
        Chains (default 4), clouds of particles (1) or restarts.
    start
        Where chains begin: None (random), values by site, an unconstrained array (d,) or (num_chains, d), an
        `Approximation`, or a `Posterior`, of this or of other data, whose step size and metric are then reused.
    thin
        Iterations per kept draw.
    sites
        Names of the sites to keep; all by default.
    max_seconds, max_evaluations, target_ess, target_rhat
        Rules that end the run early; see `Stopping`.
    store
        A directory to which draws stream (zarr; readable during the run) and checkpoints are written. Memory then does
        not grow with the number of draws, and `resume` goes on after a kill.
    overwrite
        Replace what is in ``store``.
    progress
        False silences the bar.
    precision
        64 or 32 bits; by default 64 on the CPU and 32 on accelerators. No global setting of JAX is changed.
    chains_per_program
        Chains that share a compiled program and run in lock-step. By default 1 on the CPU, where chains run on threads
        (above 16 chains, an eighth of them), and all chains of a device on accelerators.
    chunk_length
        Iterations between two looks of the host; chosen by the clock where it is None. No result depends on it.
    checkpoint_every
        Seconds between checkpoints, where there is a ``store``.
    notes
        Anything that JSON can hold, kept in the ``store`` as ``record["notes"]``.
    mesh
        What is shared out over the devices (of all processes, see `pushforward.distributed`): ``"chains"``;
        ``"particles"``, of methods that spread them or agents over devices; ``"data"``, the rows of a target with one
        log likelihood per row, and with them mini-batches. Or a ``jax.sharding.Mesh`` with one axis of such a name. By
        default what the method spreads, else chains.

    Returns
    -------
    Posterior

    Raises
    ------
    InvalidArgument, UnsupportedTarget
        An argument is out of range, or the method needs structure that the target lacks.
    NonFinite
        No start with a finite log density was found, or a chain left the finite numbers.
    StoreError
        The store exists, cannot be written, or is full.
    """
    warn_of_copies()
    method, choice = read_method(method, target, max_evaluations=max_evaluations, num_warmup=num_warmup)
    given = (num_samples, num_warmup, start, max_seconds, max_evaluations, target_ess, target_rhat, mesh)
    retry: dict[str, Any] | None = None
    if all(value is None for value in given):
        retry = {
            "key": key, "num_chains": num_chains, "thin": thin, "sites": sites, "progress": progress,
            "precision": precision, "chains_per_program": chains_per_program,
        }  # fmt: skip
    if start is not None and not method.takes_start:
        raise InvalidArgument(
            f"start has no effect on {type(method).__name__}, which begins at draws of the prior, got a "
            f"{type(start).__name__}; leave it out."
        )
    start = method.default_start() if start is None else start
    run_start, warm = start, hasattr(start, "start_for") and start.teaches(method)
    goal = _check_goals(method, target_ess=target_ess, target_rhat=target_rhat)
    num_chains = type(method).default_chains if num_chains is None else check_count("num_chains", num_chains)
    words, generator = read_key(key)
    shared, devices = _check_mesh(mesh, target, method)
    whole = len(devices) > 1 and (shared in (PARTICLES, DATA) or (shared is None and method.spreads))
    if chains_per_program is None:
        backend = jax.default_backend()
        chains_per_program = num_chains if whole else default_chains_per_program(num_chains, backend, len(devices))
    whole = whole and chains_per_program >= num_chains
    if shared in (PARTICLES, DATA) and len(devices) > 1 and not whole:
        raise InvalidArgument(
            f"chains_per_program={chains_per_program} parts {num_chains} chains, which share one with "
            f"mesh={shared!r}; leave it out."
        )
    plan = Plan(
        key=words,
        generator=generator,
        num_samples=(SAMPLES_WITH_GOAL if goal else NUM_SAMPLES) if num_samples is None else num_samples,
        num_warmup=(WARM_WARMUP if warm else NUM_WARMUP) if num_warmup is None else num_warmup,
        num_chains=num_chains,
        thin=thin,
        chains_per_program=chains_per_program,
        precision=check_precision(precision),
        sites=_check_sites(sites, target),
        stopping=Stopping(max_seconds, max_evaluations, target_ess, target_rhat),
        warm=warm,
        mesh=shared,
        devices=len(devices) if whole else 0,
    )
    check_plan(plan)
    if chunk_length is not None:
        check_count("chunk_length", chunk_length)
    check_nonnegative("checkpoint_every", checkpoint_every)
    if store is not None:
        check_path("store", store)
    record = origin(target, method, plan, started=start is not None)
    check_alike(record, store=None if store is None else str(store), chunk_length=chunk_length)
    options = {
        "progress": progress if is_first() else False,
        "chunk_length": chunk_length,
        "checkpoint_every": checkpoint_every,
        "when_compiling": _import_summary,
        "devices": devices,
    }
    if store is None:
        run = Run(target, method, plan, **options)
        run.start(run_start)
        return _checked(finish(run), choice, retry)
    attrs = record | ({} if notes is None else {"notes": notes}) | ({} if choice is None else {"chosen": choice.reason})
    with create_store(store, coords=target.coords, dims=target.dims, attrs=attrs, overwrite=overwrite) as opened:
        run = Run(target, method, plan, sink=opened, checkpoint=_saver(opened), **options)
        run.start(run_start)
        posterior = finish(run, opened)
    barrier()  # what process 0 has written is whole
    return _checked(posterior, choice)


def _checked(
    posterior: "Posterior", choice: "Choice | None", retry: dict[str, Any] | None = None
) -> "Posterior":  # fmt: skip
    """The posterior; of a method that the user did not choose, looked at, and perhaps fitted once more."""
    if choice is None:
        return posterior
    from pushforward.choose import settle

    return settle(posterior, choice, retry=retry)


def resume(
    path: str | os.PathLike,
    target: Target,
    *,
    method: AbstractMethod | None = None,
    num_samples: int | None = None,
    max_seconds: float | None = None,
    progress: bool | None = None,
    checkpoint_every: float = CHECKPOINT_SECONDS,
) -> "Posterior":
    """Go on with a run that was killed, at its last checkpoint: the draws are those of a run never interrupted.

    Parameters
    ----------
    path
        The ``store`` that was given to `fit`.
    target
        The target of the run; loading runs no code, so that it comes from the user.
    method
        Needed only where the method holds what is not plain data (an optimiser, a kernel of the user's).
    num_samples
        Draws per chain in all, if more than the run was asked for. Without it, a run that a stopping rule has ended
        stays as it is; with it, the rules no longer count.
    max_seconds
        Wall time to go on for, from now; a run that ended because its time was up goes on. Other rules still count.
    progress, checkpoint_every
        As in `fit`.

    Raises
    ------
    StoreError
        The store is missing or damaged, or was made with another target, method or version.
    """
    check_path("path", path)
    if max_seconds is not None:
        check_positive("max_seconds", max_seconds)
    with open_store(path) as opened:
        attrs = opened.attrs
        check_origin(attrs, target, path)
        method = rebuild_method(attrs["method"], method, path)
        options = {"progress": progress if is_first() else False, "checkpoint_every": checkpoint_every}
        run = rebuild_run(opened, attrs, target, method, sink=opened, checkpoint=_saver(opened), **options)
        asked = {"num_samples": num_samples, "max_seconds": max_seconds}
        check_alike(origin(target, method, run.plan, started=False), store=str(path), **asked)
        if num_samples is not None and num_samples > run.asked:
            run.extend(num_samples - run.asked)
        if max_seconds is not None:
            run.allow(max_seconds)
        posterior = finish(run, opened)
    barrier()
    return posterior


def load(path: str | os.PathLike, target: Target | None = None, *, method: AbstractMethod | None = None) -> "Posterior":
    """Open a stored result; runs nothing but, for a method with a density, the method's own ``result``.

    Parameters
    ----------
    path
        A directory written by `fit` with ``store=`` or by `Posterior.save`.
    target
        Needed for what goes beyond the draws: prediction, densities, evidence, `extend`.
    method
        As in `resume`.
    """
    from ..posterior import Posterior
    from ..store import latest_checkpoint, open_attrs

    check_path("path", path)
    attrs = open_attrs(path)
    run = None
    if target is not None and "method" in attrs:
        check_origin(attrs, target, path)
        saved = None
        with contextlib.suppress(ValueError):  # damaged checkpoints: the draws can be read all the same
            saved = latest_checkpoint(path)
        if saved is not None:
            run = Run(target, rebuild_method(attrs["method"], method, path), Plan.from_record(saved[0]["plan"]))
            read_checkpoint(run, path, *saved)
    return Posterior.from_store(Path(path), attrs, target, run)


def finish(run: Run, store: Any = None) -> "Posterior":
    """Drive a run to its end and wrap what came of it."""
    from ..posterior import Posterior

    run.go()
    if store is not None:
        give_back()
    return Posterior.from_run(run, store)


def origin(target: Target, method: AbstractMethod, plan: Plan, *, started: bool) -> dict[str, Any]:
    """The record kept with a result: what it was made from, and how."""
    return {
        "versions": versions(),
        "fingerprint": target.fingerprint(),
        "model": target.name,
        "sites": [site.name for site in target.sites],
        "kind": method.kind,
        "method": record_method(method),
        "plan": plan.record(),
        "started": started,
        "backend": jax.default_backend(),
    }


def check_alike(record: dict[str, Any], **options: Any) -> None:
    """Raise `DistributedError` unless all processes of this job are about to do the same."""
    if num_processes() > 1:
        plan = {f"plan.{name}": value for name, value in record["plan"].items()}
        check_same("what they fit", {k: v for k, v in record.items() if k != "plan"} | plan | options)


def read_method(method: AbstractMethod | None, target: Any, **budget: Any) -> tuple[AbstractMethod, "Choice | None"]:
    """The method, checked; without one that which suits the target and the budget, with the reason."""
    choice = None
    if method is None and isinstance(target, Target):
        from pushforward.choose import choose_method

        choice = choose_method(target, **budget)
        method = choice.method
    return check_method(method, target), choice


def check_method(method: Any, target: Any) -> AbstractMethod:
    """The method; raise where target or method is not one, or they do not suit."""
    if not isinstance(target, Target):
        raise InvalidArgument(
            f"target must be a Target, got {type(target).__name__}; wrap a NumPyro model with "
            f"Target.from_numpyro(model, ...), a log density with Target.from_log_density(fn, example)."
        )
    if isinstance(method, type) and issubclass(method, AbstractMethod):
        raise InvalidArgument(
            f"method must be an instance, got the class {method.__name__}; write {method.__name__}()."
        )
    if not isinstance(method, AbstractMethod):
        raise InvalidArgument(
            f"method must be one of pushforward.methods(), got {type(method).__name__}; wrap a BlackJAX "
            f"SamplingAlgorithm as pushforward.Kernel(algorithm)."
        )
    if target.dim == 0:
        raise InvalidArgument(
            f"target has {target.dim} coordinates, so there is nothing to infer; give it a parameter."
        )
    target.require(type(method).__name__, method.requires, HINTS)
    check_names(site.name for site in target.sites)
    return method


def _check_mesh(mesh: Any, target: Target, method: AbstractMethod) -> tuple[str | None, list[Any]]:
    """What is shared out over which devices."""
    shared, devices = read_mesh(mesh)
    if isinstance(target, SpreadTarget):
        if shared not in (None, DATA):
            raise InvalidArgument(f"mesh={shared!r} does not go with a target whose rows are spread; leave it out.")
        return DATA, list(target.mesh.devices.flat)
    if isinstance(target, SpreadShards):
        if shared not in (None, PARTICLES):
            raise InvalidArgument(f"mesh={shared!r} does not go with a target whose agents are spread; leave it out.")
        return PARTICLES, list(target.mesh.devices.flat)
    if shared == PARTICLES and not method.spreads:
        raise InvalidArgument(
            f"mesh='particles' needs a method that spreads its particles or agents over devices, and "
            f"{type(method).__name__} does not; use mesh='chains' or mesh='data'."
        )
    if shared == DATA and "factors" not in target.structure():
        target.require("mesh='data'", ("factors",), HINTS)
    return shared, devices


def _check_goals(method: AbstractMethod, **goals: float | None) -> bool:
    """Whether a goal is set; raise where the method has no chains of which it could be one."""
    given = {name: value for name, value in goals.items() if value is not None}
    for name, value in given.items():
        if method.kind != "chains":
            what = {"particles": "particles", "approximation": "independent draws"}[method.kind]
            raise InvalidArgument(
                f"{name}={value!r} is a goal for chains, and {type(method).__name__} gives {what}; leave it out."
            )
    return bool(given)


def _check_sites(sites: Sequence[str] | None, target: Target) -> tuple[str, ...] | None:
    if sites is None:
        return None
    known = [site.name for site in target.sites]
    if isinstance(sites, str) or not isinstance(sites, Iterable) or not (sites := tuple(sites)):
        raise InvalidArgument(
            f"sites must be a list of the names of the sites to keep, got {sites!r}; the target's sites are "
            f"{', '.join(known)}."
        )
    for name in sites:
        if name not in known:
            raise InvalidArgument(f"sites names {name!r}; the target's sites are {', '.join(known)}.")
    return sites


def _saver(store: Any) -> Callable[[Run], None]:
    return lambda run: write_checkpoint(store, run) if is_first() else None


def _import_summary() -> None:
    """Import what the summary needs while the compiler, which holds no lock, is busy."""
    with contextlib.suppress(ImportError):
        import pandas  # noqa: F401
