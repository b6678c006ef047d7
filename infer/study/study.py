"""`Study`: any methods on any targets at equal budgets, with metrics along the run, in a store that survives a kill."""

import dataclasses
import difflib
import hashlib
import inspect
import json
import os
import pickle
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..distributed.pool import told
from ..distributed.sweep import Outcome, sweep
from ..errors import InvalidArgument
from ..method import AbstractMethod
from ..posterior import Posterior
from ..run.fit import HINTS, fit
from ..run.observe import Progress, Seen
from ..run.plan import record_method
from ..target import Target
from ..validate import check_choice, check_count
from .engine import run_jobs
from .ledger import Ledger
from .metrics import DEFAULT, METRICS, floor
from .reference import Truth, make_truth
from .results import Results, read_results
from .trajectory import Budget, read_budget, trajectory, warm_up

SEEDS = 5
CHECKPOINTS = 6
REFERENCE_DRAWS = 2500


class Study:
    """A comparison of methods on targets: what accuracy for what cost.

    Parameters
    ----------
    targets
        Name → `Target`.
    methods
        Name → method, or a pair (method, options of `pushforward.fit` such as ``num_chains``).
    seeds
        Keys of the runs: a list, or their number.
    budget
        Of each run: a number of gradient evaluations (of all chains together), ``{"evaluations": n}``, or
        ``{"seconds": s}``, after compilation.
    metrics
        Names; see ``pushforward.infer.study.metrics.METRICS``. By default errors of means and sds, energy distance,
        ESS per gradient and per second.
    reference
        Name of a target → its reference: a `Posterior`, a reference of posteriordb, or a dict of draws by site, which
        may have ``"log_evidence"``. Targets without one are sampled by a long run of `pushforward.NUTS`.
    checkpoints
        Metrics are taken at 1, 1/2, 1/4, … of the budget, so many times.

    Raises
    ------
    InvalidArgument
        An unknown name (the message has the nearest one), a method that does not suit a target, or a reference that
        does not match its target.
    """

    def __init__(
        self,
        targets: Mapping[str, Target],
        methods: Mapping[str, Any],
        seeds: int | Sequence[int] = SEEDS,
        budget: Any = 20_000,
        metrics: Sequence[str] | None = None,
        reference: Mapping[str, Any] | None = None,
        *,
        checkpoints: int = CHECKPOINTS,
    ) -> None:
        self.targets = _named("targets", targets, Target)
        self.methods: dict[str, tuple[AbstractMethod, dict[str, Any]]] = {}
        for name, given in _named("methods", methods).items():
            self.methods[name] = _method(name, given)
        self.seeds = tuple(range(check_count("seeds", seeds))) if isinstance(seeds, int) else _seeds(seeds)
        self.budget = read_budget(budget, checkpoints)
        self.metrics = tuple(DEFAULT if metrics is None else metrics)
        for name in self.metrics:
            check_known("metrics", name, METRICS)
        self.reference = dict(reference or {})
        for name in self.reference:
            check_known("reference", name, self.targets)
        for target in self.targets.values():
            for method, _ in self.methods.values():
                target.require(type(method).__name__, method.requires, HINTS)
        self._truths: dict[str, Truth] = {
            name: make_truth(name, self.targets[name], given) for name, given in self.reference.items()
        }
        self.warned: dict[str, str] = {}

    def run(
        self,
        store: str | os.PathLike,
        *,
        overwrite: bool = False,
        num_workers: int = 1,
        engine: str = "processes",
        progress: bool | None = None,
    ) -> Results:
        """Do what has not been done yet, and return all results.

        Parameters
        ----------
        store
            A folder. Each run is recorded there when it is done; called again after a stop or a kill, or with more
            seeds, methods or targets, only what is missing is run.
        overwrite
            Begin anew.
        num_workers
            1: in this process, where a program is compiled once for all seeds. More: so many processes, each of which
            takes a method on a target with all its seeds; call it below ``if __name__ == "__main__":``, with targets
            of functions of a module.
        engine
            ``"processes"`` of this machine, or ``"ray"``, tasks of a Ray cluster.
        progress
            False silences the bar.

        Raises
        ------
        StoreError
            The store is of another version, another budget or other metrics, or in use.
        InvalidArgument
            With several workers, a target or method that does not pickle.
        """
        check_choice("engine", engine, ("processes", "ray"))
        check_count("num_workers", num_workers)
        identity = {"budget": self.budget._asdict(), "metrics": list(self.metrics)}
        with Ledger(store, "study", identity, overwrite=overwrite) as ledger:
            for name in self.targets:
                self._make_truth(name, ledger, progress)
            if num_workers == 1 and engine == "processes":
                self._here(ledger, progress)
            else:
                self._elsewhere(ledger, num_workers, engine, progress)
            results = read_results(ledger, self.names(), self.seeds, self.metrics, self.budget)
            results.save(Path(store))
        return results

    def names(self) -> dict[tuple[str, str, int], str]:
        """(target, method, seed) → the name of its job, which tells it from one with other settings."""
        found = {}
        for target, given in self.targets.items():
            marks = [given.fingerprint(), _digest_of(self._truths.get(target))]
            for name, (method, options) in self.methods.items():
                text = json.dumps([*marks, record_method(method), options], default=str, sort_keys=True)
                digest = hashlib.sha256(text.encode()).hexdigest()[:8]
                found |= {(target, name, seed): f"{target}/{name}/{seed}/{digest}" for seed in self.seeds}
        return found

    # -- running ------------------------------------------------------------------------------------------------------

    def _here(self, ledger: Ledger, progress: bool | None) -> None:
        warmed: dict[tuple[str, str], float] = {}

        def job(target: str, method: str, seed: int) -> Callable[[], dict[str, Any]]:
            def one() -> dict[str, Any]:
                if (target, method) not in warmed:
                    warmed[target, method] = warm_up(self.targets[target], *self.methods[method])
                return self._work(target, method)(seed, warmed[target, method])

            return one

        names = self.names()
        jobs = ((name, job(*which)) for which, name in names.items())
        done = run_jobs(jobs, total=len(names), what="study", ledger=ledger, progress=progress, fatal=())
        if len(done) < len(names):
            raise KeyboardInterrupt

    def _elsewhere(self, ledger: Ledger, num_workers: int, engine: str, progress: bool | None) -> None:
        todo: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for (target, method, seed), name in self.names().items():
            if name not in ledger.records:
                todo.setdefault((target, method), []).append((seed, name))
        settings = []
        for (target, method), seeds in todo.items():
            work = self._work(target, method)
            settings.append((_pickled(target, method, work), [seed for seed, _ in seeds]))
        jobs, bar, ended = list(todo.values()), Progress(progress), [0, 0]

        def done(number: int, outcome: Outcome) -> None:
            for position, (_, name) in enumerate(jobs[number]):
                value, error = (None, outcome.error) if outcome.error is not None else outcome.result[position][:2]
                seconds = outcome.seconds if outcome.error is not None else outcome.result[position][2]
                ledger.append({"name": name, "value": value, "error": error, "seconds": seconds})
                ended[1] += error is not None
            ended[0] += 1
            bar.show(Seen("study", ended[0], len(jobs), 0.0, {"failed": ended[1]}))

        try:
            sweep(do_seeds, settings, engine=engine, num_workers=num_workers, done=done)
        finally:
            bar.close()

    def _work(self, target: str, method: str) -> "Work":
        made, options = self.methods[method]
        return Work(self.targets[target], made, self._truths[target], self.metrics, self.budget, options)

    def _make_truth(self, name: str, ledger: Ledger, progress: bool | None) -> None:
        """Take the reference that was given, or sample one, and keep what the report wants to know of it."""
        if name not in self._truths:
            path = ledger.path / f"reference-{hashlib.sha256(name.encode()).hexdigest()[:8]}.npz"
            posterior = _long_run(self.targets[name], path, progress)
            if (diagnosis := posterior.diagnose()).flagged:
                self.warned[name] = diagnosis.headline
            self._truths[name] = make_truth(name, self.targets[name], posterior)
        label = f"floor of {name}/{_digest_of(self._truths[name])}"
        if label not in ledger.records:
            floors = {metric: floor(metric, self._truths[name]) for metric in self.metrics}
            ledger.append({"name": label, "value": floors, "error": self.warned.get(name), "seconds": 0.0})


@dataclasses.dataclass(frozen=True)
class Work:
    """All that a run needs but its seed; it pickles where its target does."""

    target: Target
    method: AbstractMethod
    truth: Truth
    metrics: tuple[str, ...]
    budget: Budget
    options: dict[str, Any]

    def __call__(self, seed: int, each: float) -> dict[str, Any]:
        """Metrics at each checkpoint; see `trajectory`."""
        return trajectory(self.target, self.method, self.truth, self.metrics, self.budget, seed, self.options, each)


def do_seeds(setting: tuple[bytes, list[int]]) -> list[tuple[Any, str | None, float]]:
    """In a worker: all seeds of a method on a target; value, error and seconds of each."""
    work = pickle.loads(setting[0])
    each = warm_up(work.target, work.method, work.options)
    found: list[tuple[Any, str | None, float]] = []
    for seed in setting[1]:
        begun = time.monotonic()
        try:
            value, error = work(seed, each), None
        except Exception as raised:
            value, error = None, told(raised)
        found.append((value, error, time.monotonic() - begun))
    return found


def check_known(what: str, name: Any, known: Iterable[str]) -> None:
    """Raise `InvalidArgument` with the nearest match unless ``name`` is one of ``known``."""
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(str(name), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
        raise InvalidArgument(f"{what} has the unknown name {name!r}; {hint}")


def _named(what: str, given: Any, kind: type | None = None) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not given:
        raise InvalidArgument(f"{what} must be a dict by name with at least one entry, got {given!r}.")
    for name, value in given.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise InvalidArgument(f"{what} has the name {name!r}; names are words without a slash.")
        if kind is not None and not isinstance(value, kind):
            raise InvalidArgument(f"{what}[{name!r}] must be a {kind.__name__}, got {type(value).__name__}.")
    return dict(given)


def _method(name: str, given: Any) -> tuple[AbstractMethod, dict[str, Any]]:
    method, options = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
    if not isinstance(method, AbstractMethod):
        raise InvalidArgument(
            f"methods[{name!r}] must be a method such as NUTS(), or a pair of one and a dict, got {given!r}."
        )
    ours = {"key", "progress", "store", "overwrite", "max_evaluations", "max_seconds", "target", "method"}
    known = set(inspect.signature(fit).parameters) - ours
    for option in dict(options):
        check_known(f"the options of methods[{name!r}]", option, sorted(known))
    return method, dict(options)


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        raise InvalidArgument(f"seeds must be a number or a list of whole numbers, got {seeds!r}.")
    found = tuple(check_count("seeds", seed, 0) for seed in seeds)
    if len(set(found)) != len(found) or not found:
        raise InvalidArgument(f"seeds must be different whole numbers, and some, got {list(found)}.")
    return found


def _pickled(target: str, method: str, work: Work) -> bytes:
    try:
        return pickle.dumps(work)
    except Exception as error:
        raise InvalidArgument(
            f"target {target!r} or method {method!r} cannot be sent to another process ({type(error).__name__}: "
            f"{error}); define its functions in a module, or use num_workers=1."
        ) from None


def _long_run(target: Target, path: Path, progress: bool | None) -> Posterior:
    """A reference by NUTS, kept beside the ledger so that a resumed study has the same one."""
    import pushforward

    mark = target.fingerprint()
    if path.exists():
        with np.load(path) as stored:
            if str(stored["fingerprint"]) == mark:
                draws = {name.removeprefix("site."): stored[name] for name in stored.files if name.startswith("site.")}
                return Posterior.from_draws(draws, target=target)
    posterior = fit(target, pushforward.NUTS(), key=2**40, num_samples=REFERENCE_DRAWS, progress=progress)
    draws = {f"site.{name}": value for name, value in posterior.draws().items()}
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, fingerprint=np.array(mark), **draws)
    os.replace(fresh, path)
    return posterior


def _digest_of(truth: Truth | None) -> str:
    """Of the reference's numbers; of one yet to be sampled, nothing."""
    if truth is None:
        return ""
    digest = hashlib.sha256(json.dumps([truth.labels, truth.log_evidence]).encode())
    for array in (truth.mean, truth.sd, truth.draws):
        digest.update(array.tobytes())
    return digest.hexdigest()[:8]
