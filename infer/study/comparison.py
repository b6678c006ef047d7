"""`ModelComparison`: what `compare_models` has found."""

import dataclasses
import html
import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import NotAvailable


class Pointwise(NamedTuple):
    """A model's predictive densities.

    Parameters
    ----------
    elpd
        Array of shape (n,): log predictive density of each observation by a posterior that has not seen it.
    lppd
        Array of shape (n,): by the one that has.
    k_hat
        Array of shape (n,): Pareto k-hat where the first was had by importance weights; 0 where by a refit.
    good_k
        The k-hat up to which it is to be relied on.
    refitted
        Observations (or folds) that were refitted.
    loo
        ArviZ's ELPDData before refits; None for K-fold.
    remark
        Why nothing was refitted that should have been; empty otherwise.
    """

    elpd: np.ndarray
    lppd: np.ndarray
    k_hat: np.ndarray
    good_k: float
    refitted: tuple[int, ...]
    loo: Any
    remark: str = ""

    @property
    def total(self) -> float:
        """Expected log predictive density of all observations."""
        return float(self.elpd.sum())

    @property
    def error(self) -> float:
        """Its standard error, √(n var elpd_i)."""
        return math.sqrt(self.elpd.size * float(self.elpd.var()))

    @property
    def effective_parameters(self) -> float:
        """Their number p = Σ lppd_i − elpd_i."""
        return float((self.lppd - self.elpd).sum())

    @property
    def bad(self) -> np.ndarray:
        """Observations whose k-hat is too high still."""
        return np.flatnonzero(~(self.k_hat <= self.good_k))


class ModelComparison:
    """Models ranked by how well they predict what they have not seen.

    Made by `pushforward.compare_models`.

    Attributes
    ----------
    pointwise : dict
        Name of a model → its `Pointwise` densities.
    site : str
        What is predicted.
    folds : int or None
        K, or None for leave-one-out.
    failed : dict
        Name of a refit that failed → why. Its observation keeps the value by importance weights.
    log_evidence : dict
        Name of a model → its evidence, as `Posterior.evidence` gives it, or None.
    table : pandas.DataFrame
        A row per model, best first: ``rank``, ``elpd``, ``se``, ``p`` (effective parameters), ``elpd_diff`` and ``dse``
        (to the best one, and its standard error), ``p_worse``, ``weight``, ``refits``, ``bad_k`` (observations that
        cannot be relied on), and with evidence ``log_evidence``, ``evidence_se``, and ``prob``, the posterior
        probability of the model where all were equally likely before.
    """

    def __init__(
        self,
        pointwise: Mapping[str, Pointwise],
        *,
        site: str,
        weights: str,
        folds: int | None,
        failed: Mapping[str, str],
        log_evidence: Mapping[str, Any],
    ) -> None:
        self.pointwise, self.site, self.folds = dict(pointwise), site, folds
        self.failed, self.log_evidence = dict(failed), dict(log_evidence)
        self.table = self._table(weights)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each model, best first."""
        return {str(name): float(weight) for name, weight in self.table["weight"].items()}

    @property
    def notes(self) -> list[str]:
        """What to know about the numbers, in sentences."""
        said = [f"The refit {name} failed: {why}" for name, why in self.failed.items()]
        for name, found in self.pointwise.items():
            if found.bad.size:
                why = f", which were not refitted: {found.remark}" if found.remark else ""
                said.append(f"{found.bad.size} observations of {name} have a k-hat above {found.good_k:.2f}{why}.")
        return said

    def elpd_difference(self, first: str, second: str) -> tuple[float, float]:
        """Difference of two models' elpd and its standard error, from paired observations."""
        for name in (first, second):
            if name not in self.pointwise:
                raise NotAvailable(f"There is no model {name!r}; there are {', '.join(self.pointwise)}.")
        difference = self.pointwise[first].elpd - self.pointwise[second].elpd
        return float(difference.sum()), math.sqrt(difference.size * float(difference.var()))

    def _table(self, weights: str) -> Any:
        import arviz_stats
        import pandas as pd

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of k-hat and of few data, which are columns and notes
            given = {name: _elpd_data(found) for name, found in self.pointwise.items()}
            table = arviz_stats.compare(given, method=weights, round_to="none")
        columns = ["rank", "elpd", "se", "p", "elpd_diff", "dse", "p_worse", "weight"]
        table = table[[name for name in columns if name in table.columns]].copy()
        table["refits"] = [len(self.pointwise[str(name)].refitted) for name in table.index]
        table["bad_k"] = [int(self.pointwise[str(name)].bad.size) for name in table.index]
        if any(value is not None for value in self.log_evidence.values()):
            known = {name: value for name, value in self.log_evidence.items() if value is not None}
            table["log_evidence"] = pd.Series({name: float(value.log_evidence) for name, value in known.items()})
            table["evidence_se"] = pd.Series({name: float(value.se) for name, value in known.items()})
            if len(known) == len(self.pointwise):
                relative = np.exp(table["log_evidence"] - table["log_evidence"].max())
                table["prob"] = relative / relative.sum()
        return table

    @property
    def _how(self) -> str:
        return "leave-one-out" if self.folds is None else f"{self.folds}-fold"

    def __repr__(self) -> str:
        notes = "".join(f"\n{note}" for note in self.notes)
        return (
            f"Models by {self._how} cross-validation of {self.site}\n{self.table.to_string(float_format='%.4g')}{notes}"
        )

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        head = html.escape(f"Models by {self._how} cross-validation of {self.site}")
        return f"<p><b>{head}</b></p>{self.table.to_html(float_format='%.4g')}{notes}"


def _elpd_data(found: Pointwise) -> Any:
    """ArviZ's record of these densities, for its `compare`."""
    from arviz_stats.utils import ELPDDataLOO
    from xarray import DataArray

    fields: dict[str, Any] = {
        "elpd": found.total, "se": found.error, "p": found.effective_parameters, "n_samples": 1,
        "n_data_points": found.elpd.size, "scale": "log", "warning": bool(found.bad.size), "good_k": found.good_k,
        "elpd_i": DataArray(found.elpd, dims="obs"), "pareto_k": DataArray(found.k_hat, dims="obs"),
    }  # fmt: skip
    if found.loo is not None:
        fields["n_samples"] = found.loo.n_samples
    known = {field.name for field in dataclasses.fields(ELPDDataLOO)}
    return ELPDDataLOO(**{name: value for name, value in fields.items() if name in known})
