"""One method on one target with one seed: its metrics along the run, at equal budgets.

Chains are run once, with the whole budget; what they had at a fraction of it are their draws up to then. What has no
draws along its run (approximations, particles) is run anew with each fraction: with the same key its iterations are the
same, so that these are the states of one run.

Budgets are in gradient evaluations, or in seconds after compilation: a short run of the same programs comes first. The
seconds at a draw are its share of the run's evaluations. A run ends with the chunk of iterations in which its budget is
spent; what chains have beyond it does not count, and chunks are short in proportion to the budget (and of a length that
no clock decides, so that a run with a budget of evaluations is the same each time).
"""

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InvalidArgument, PushforwardError
from ..posterior import Posterior
from ..run.fit import fit
from ..validate import check_count, check_positive
from .engine import uninterrupted
from .metrics import METRICS, Sample
from .reference import Truth

if TYPE_CHECKING:
    from ..method import AbstractMethod
    from ..target import Target

MOST_DRAWS = 20_000
"""Per chain; a budget that is larger than they cost is not used up."""
FEWEST_DRAWS = 4
SHORT = {"num_samples": 10, "num_warmup": 20}
DRAWS_OF_DENSITY = 1000
PARTS, LONGEST_CHUNK = 10, 1000
"""A chunk takes a tenth of the (smallest) budget."""


class Budget(NamedTuple):
    """What each run may spend.

    Parameters
    ----------
    unit
        ``"evaluations"`` or ``"seconds"``.
    amount
        Of all chains together.
    checkpoints
        At how many fractions 1, 1/2, 1/4, … of it the metrics are taken.
    """

    unit: str
    amount: float
    checkpoints: int

    @property
    def fractions(self) -> np.ndarray:
        """Budgets of the checkpoints, the smallest first."""
        return self.amount * 0.5 ** np.arange(self.checkpoints - 1, -1, -1)


def read_budget(given: Any, checkpoints: int) -> Budget:
    """A budget from a number of evaluations, or a dict ``{"evaluations": n}`` or ``{"seconds": s}``."""
    check_count("checkpoints", checkpoints)
    if isinstance(given, dict):
        if len(given) != 1 or next(iter(given)) not in ("evaluations", "seconds"):
            raise InvalidArgument(f"budget must have one entry, 'evaluations' or 'seconds', got {given!r}.")
        ((unit, amount),) = given.items()
    else:
        unit, amount = "evaluations", given
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise InvalidArgument(f"budget must be a number of {unit}, got {amount!r}.")
    check_positive("budget", amount)
    return Budget(unit, float(amount), checkpoints)


def warm_up(target: "Target", method: "AbstractMethod", options: dict[str, Any]) -> float:
    """Compile what a run needs; whatever fails here is told by the run itself. Returns evaluations per iteration."""
    short = SHORT if method.kind == "chains" else {"max_evaluations": 1, "chunk_length": 1}
    options = _together(method, options)
    with contextlib.suppress(PushforwardError, ValueError, FloatingPointError):
        posterior = fit(target, method, key=0, progress=False, **{**options, **short})
        iterations = sum(SHORT.values()) if method.kind == "chains" else 1
        return max(1.0, posterior.record["evaluations"] / iterations)
    return 1.0


def trajectory(
    target: "Target", method: "AbstractMethod", truth: Truth, metrics: tuple[str, ...], budget: Budget, seed: int,
    options: dict[str, Any], each: float,
) -> dict[str, Any]:  # fmt: skip
    """Metrics at each checkpoint: a dict of lists ``evaluations``, ``seconds``, and one per metric.

    ``each`` is what `warm_up` returned.
    """
    options = _together(method, options)
    if budget.unit == "evaluations":
        least = budget.amount if method.kind == "chains" else budget.fractions[0]
        options = {"chunk_length": int(np.clip(least / each / PARTS, 1, LONGEST_CHUNK))} | options
    samples: list[Sample | None]
    if method.kind == "chains":
        run = _run(target, method, budget, budget.amount, seed, options)
        samples = _along_chains(_spent_by_all(run, budget), truth, target, budget)
    else:
        samples = []
        for amount in budget.fractions:
            samples.append(_of_cloud(_run(target, method, budget, amount, seed, options), truth, target))
    found: dict[str, Any] = {
        "evaluations": [np.nan if s is None else float(s.evaluations) for s in samples],
        "seconds": [np.nan if s is None else float(s.seconds) for s in samples],
    }
    for name in metrics:
        found[name] = [np.nan if s is None else METRICS[name].function(s) for s in samples]
    return found


def _together(method: "AbstractMethod", options: dict[str, Any]) -> dict[str, Any]:
    """Restarts and clouds in one program: on threads of their own, the clock would say how far each comes."""
    if method.kind == "chains":
        return options
    return {"chains_per_program": options.get("num_chains") or type(method).default_chains} | options


def _run(
    target: "Target", method: "AbstractMethod", budget: Budget, amount: float, seed: int, options: dict[str, Any]
) -> tuple[Posterior, float]:
    """A run with this budget, and its wall time."""
    if budget.unit == "evaluations":
        limit: dict[str, Any] = {"max_evaluations": max(1, round(amount))}
    else:
        limit = {"max_seconds": amount}
    if method.kind == "chains":
        chains = options.get("num_chains") or type(method).default_chains
        most = int(min(MOST_DRAWS, -(-amount // chains))) if budget.unit == "evaluations" else MOST_DRAWS
        limit["num_samples"] = max(most, FEWEST_DRAWS)
    else:
        limit["num_samples"] = DRAWS_OF_DENSITY
    begun = time.monotonic()
    posterior = uninterrupted(fit(target, method, key=seed, progress=False, **{**limit, **options}))
    return posterior, time.monotonic() - begun


def _spent(posterior: Posterior) -> np.ndarray:
    """Evaluations of all chains up to each draw, shape (draw,), those before the first one included."""
    stages = posterior._need_run("a study").stages
    totals = posterior.record["totals"]
    before = {stage.name for stage in stages if not stage.keep} & totals.keys()
    each = posterior.data["sample_stats"]["num_evaluations"].values.sum(axis=0)
    return sum(totals[name]["num_evaluations"] for name in before) + np.cumsum(each)


def _spent_by_all(run: tuple[Posterior, float], budget: Budget) -> tuple[Posterior, float]:
    """A run whose draws, of which all chains have as many, have used up the budget.

    The run ends when all chains together have spent it, and some may be ahead of others by then, as the clock wants.
    """
    posterior, seconds = run
    while budget.unit == "evaluations":
        spent = _spent(posterior)
        if spent[-1] >= budget.amount or len(spent) >= MOST_DRAWS:
            break
        cost = max((spent[-1] - spent[0]) / max(len(spent) - 1, 1), 1.0)
        begun = time.monotonic()
        more = min(int((budget.amount - spent[-1]) / cost) + FEWEST_DRAWS, MOST_DRAWS - len(spent))
        posterior = uninterrupted(posterior.extend(more, progress=False))
        seconds += time.monotonic() - begun
    return posterior, seconds


def _along_chains(run: tuple[Posterior, float], truth: Truth, target: "Target", budget: Budget) -> list[Sample | None]:
    """What chains had at each checkpoint; None where there were no draws to speak of."""
    posterior, seconds = run
    draws = {name: value for name, value in posterior.draws().items() if name in truth.sites}
    chains = len(next(iter(draws.values())))
    total = float(posterior.record["evaluations"])
    spent = _spent(posterior)
    scale = seconds / total if total else 0.0
    u = _unconstrained(posterior)
    samples: list[Sample | None] = []
    for amount in budget.fractions:
        within = spent <= amount if budget.unit == "evaluations" else spent * scale <= amount
        count = int(within.sum())
        if count < FEWEST_DRAWS:
            samples.append(None)
            continue
        values = {name: value[:, :count].reshape(-1, *value.shape[2:]) for name, value in draws.items()}
        some = _first_draws(posterior, count) if amount == budget.amount else None
        samples.append(
            Sample(truth.standardised(values), None, chains, _first(u, count), _evidence(some),
                   float(spent[count - 1]), float(spent[count - 1]) * scale, truth, target)
        )  # fmt: skip
    return samples


def _of_cloud(run: tuple[Posterior, float], truth: Truth, target: "Target") -> Sample:
    """Particles, or independent draws of an approximation."""
    posterior, seconds = run
    lead = len(posterior.sample_dims)
    draws = {name: value.reshape(-1, *value.shape[lead:]) for name, value in posterior.draws().items()}
    weights = posterior._weights() if posterior.kind == "particles" else None
    spent = float(posterior.record["evaluations"])
    u = _unconstrained(posterior)
    found = _evidence(posterior)
    return Sample(truth.standardised(draws), weights, 0, _first(u, None), found, spent, seconds, truth, target)


def _unconstrained(posterior: Posterior) -> Any:
    """Function that gives the draws in unconstrained coordinates, worked out when first asked for."""
    return functools.cache(posterior.unconstrained)


def _first(u: Any, count: int | None) -> Any:
    """Function of an index into the first draws of all chains, or into all points of a cloud."""

    def some(index: np.ndarray) -> np.ndarray:
        points = u() if count is None else u()[:, :count]
        return points.reshape(-1, points.shape[-1])[index]

    return some


def _first_draws(posterior: Posterior, count: int) -> Posterior:
    draws = {name: value[:, :count] for name, value in posterior.draws().items()}
    return Posterior.from_draws(draws, target=posterior.target)


def _evidence(posterior: Posterior | None) -> Any:
    """Function that gives the log evidence; of chains it is asked for at the end only."""
    return lambda: np.nan if posterior is None else float(posterior.evidence().log_evidence)
