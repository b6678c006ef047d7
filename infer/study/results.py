"""`Results`: what a study has found, as an xarray Dataset, tables, pictures and a page."""

import html
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument, NotAvailable, StoreError
from .ledger import Ledger
from .metrics import METRICS
from .trajectory import Budget

RESAMPLES = 2000
STORE, TABLE = "results.zarr", "results.parquet"


class Results:
    """Metrics of all runs of a study.

    Made by `Study.run`, or from its store by `Results.load`.

    Attributes
    ----------
    data : xarray.Dataset
        Dimensions target, method, seed and checkpoint. Variables: ``evaluations`` and ``seconds`` spent, one per
        metric, ``error`` (why a run failed; empty where it did not), and ``floor_…`` by target, the value of
        independent draws of the reference.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    @classmethod
    def load(cls, store: str | os.PathLike) -> "Results":
        """Results from the folder of a study.

        Raises
        ------
        StoreError
            There are none, or they cannot be read.
        """
        import xarray

        path = Path(store) / STORE
        if not path.exists():
            raise StoreError(f"{store} has no {STORE}; run the study with this store to its end first.")
        return cls(xarray.open_zarr(path).load())

    def save(self, store: Path) -> None:
        """Write ``results.zarr``, and where pyarrow is installed ``results.parquet``, in place of older ones."""
        fresh = store / f"{STORE}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        self.data.to_zarr(fresh, zarr_format=2, consolidated=True)
        shutil.rmtree(store / STORE, ignore_errors=True)
        os.replace(fresh, store / STORE)
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            return
        self.tidy().to_parquet(store / TABLE)

    # -- tables -------------------------------------------------------------------------------------------------------

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return json.loads(self.data.attrs["metrics"])

    @property
    def budget(self) -> Budget:
        """What each run could spend."""
        return Budget(**json.loads(self.data.attrs["budget"]))

    @property
    def failed(self) -> dict[str, str]:
        """``"target/method/seed"`` of each run that failed → why."""
        errors = self.data["error"]
        found = {}
        for t, target in enumerate(self._names("target")):
            for m, method in enumerate(self._names("method")):
                for s, seed in enumerate(self._names("seed")):
                    if text := str(errors.values[t, m, s]):
                        found[f"{target}/{method}/{seed}"] = text
        return found

    def tidy(self) -> Any:
        """A row per run and checkpoint; a pandas DataFrame."""
        columns = ["evaluations", "seconds", *self.metrics]
        return self.data[columns].to_dataframe().reset_index()

    def medians(self, metric: str) -> Any:
        """Median over seeds at the end of the budget: targets down, methods across, and the floor; a DataFrame."""
        self._check(metric)
        table = self._last(metric).median("seed").to_pandas()
        if METRICS[metric].floor:
            table["iid floor"] = self.data[f"floor_{metric}"].to_pandas()
        return table

    def winners(self, seed: int = 0) -> Any:
        """The best method of each target by each metric, with how sure that is; a pandas DataFrame.

        ``best``, of the lowest (of ESS, highest) median over seeds at the end of the budget; ``value``, that median;
        ``next`` and ``next_value``, the second; ``sure``, the share of resampled sets of seeds (the bootstrap) in which
        it is the best one. A method whose runs all failed is not among them; failed seeds of others count as worst.
        """
        import pandas as pd

        rng = np.random.default_rng(seed)
        rows = []
        for metric in self.metrics:
            larger = METRICS[metric].larger
            values = self._last(metric)
            for target in self._names("target"):
                table = values.sel(target=target).transpose("method", "seed").values
                known = np.isfinite(table).any(axis=1)
                if not known.any():
                    continue
                names = [name for name, keep in zip(self._names("method"), known, strict=True) if keep]
                signed = np.where(np.isfinite(table[known]), -table[known] if larger else table[known], np.inf)
                medians = np.median(signed, axis=1)
                order = np.argsort(medians, kind="stable")
                picks = rng.integers(0, signed.shape[1], (RESAMPLES, len(names), signed.shape[1]))
                drawn = np.median(np.take_along_axis(signed[None], picks, axis=2), axis=2)
                sure = float((drawn.argmin(axis=1) == order[0]).mean())
                sign = -1 if larger else 1
                second = order[1] if len(order) > 1 else None
                rows.append(
                    {
                        "metric": metric, "target": target, "best": names[order[0]], "value": sign * medians[order[0]],
                        "next": "" if second is None else names[second],
                        "next_value": np.nan if second is None else sign * medians[second],
                        "sure": sure if second is not None else np.nan,
                    }
                )  # fmt: skip
        return pd.DataFrame(rows)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, metric: str, against: str = "evaluations") -> Any:
        """Medians over seeds along the run with bands of quartiles, a panel per target; a matplotlib Figure.

        Parameters
        ----------
        metric
            Its name.
        against
            ``"evaluations"`` or ``"seconds"``.
        """
        from .curves import curves

        self._check(metric)
        if against not in ("evaluations", "seconds"):
            raise InvalidArgument(f"against must be 'evaluations' or 'seconds', got {against!r}.")
        return curves(self, metric, against)

    def report(self, path: str | os.PathLike = "study.html") -> Path:
        """Write a self-contained HTML page with winners, medians, pictures and failures; return its path."""
        from .curves import study_page

        return study_page(self, Path(path))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{self.data.sizes[name]} {name}s" for name in ("target", "method", "seed"))
        failed = f"; {len(self.failed)} runs failed" if self.failed else ""
        return f"<Results of a study: {sizes}, {self.budget.amount:g} {self.budget.unit} each{failed}>"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.winners().to_html(float_format='%.3g')}"

    def _last(self, metric: str) -> Any:
        return self.data[metric].isel(checkpoint=-1)

    def _names(self, dim: str) -> list[Any]:
        return self.data[dim].values.tolist()

    def _check(self, metric: str) -> None:
        if metric not in self.metrics:
            raise NotAvailable(f"The study has no metric {metric!r}; it has {', '.join(self.metrics)}.")


def read_results(
    ledger: Ledger, names: Mapping[tuple[str, str, int], str], seeds: Sequence[int], metrics: Sequence[str],
    budget: Budget,
) -> Results:  # fmt: skip
    """Results from the records of a ledger; runs that are not there are NaN."""
    import xarray

    targets, methods = (list(dict.fromkeys(key[i] for key in names)) for i in (0, 1))
    shape = (len(targets), len(methods), len(seeds))
    columns = {name: np.full((*shape, budget.checkpoints), np.nan) for name in ("evaluations", "seconds", *metrics)}
    errors = np.full(shape, "", dtype=object)
    for (target, method, seed), name in names.items():
        at = targets.index(target), methods.index(method), list(seeds).index(seed)
        record = ledger.records.get(name)
        if record is None:
            errors[at] = "not run"
        elif record["error"] is not None:
            errors[at] = record["error"]
        else:
            for column, array in columns.items():
                array[at] = [np.nan if value is None else value for value in record["value"][column]]
    floors, warned = {name: np.full(len(targets), np.nan) for name in metrics}, {}
    for record in ledger.records.values():
        kind, _, rest = record["name"].partition("floor of ")
        target = rest.rpartition("/")[0]
        if not kind and target in targets:
            for name in metrics:
                floors[name][targets.index(target)] = record["value"][name]
            if record["error"]:
                warned[target] = record["error"]
    dims = ("target", "method", "seed", "checkpoint")
    variables: dict[str, Any] = {name: (dims, array) for name, array in columns.items()}
    variables["error"] = (dims[:3], errors.astype(str))
    variables |= {f"floor_{name}": ("target", array) for name, array in floors.items()}
    coords = {"target": targets, "method": methods, "seed": list(seeds), "checkpoint": budget.fractions}
    attrs = {
        "metrics": json.dumps(list(metrics)), "budget": json.dumps(budget._asdict()), "references": json.dumps(warned),
    }  # fmt: skip
    return Results(xarray.Dataset(variables, coords=coords, attrs=attrs))
