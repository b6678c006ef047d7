"""`Calibration`: what `calibrate` has found: ranks, tests, coverage, a verdict, and pictures."""

import html
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument, NonFinite
from .engine import Done
from .uniformity import check_uniform

LOG_LIKELIHOOD = "log likelihood"
INTERVALS = (0.5, 0.8, 0.95)
MOST_FAILED = 0.05
"""Share of failed fits above which nothing is said: which data sets fail may depend on the truth."""
CLEAR = 3.0
"""z-score from which a table says in words how ranks differ from uniform ones."""


class Calibration:
    """Ranks of true values among posterior draws, over simulated data sets.

    Made by `pushforward.calibrate`.

    Attributes
    ----------
    ranks : dict of array
        Name of a scalar → ranks 0, …, L, shape (fits,).
    num_draws : int
        L.
    method, model : str
    level : float
        Probability with which an exact method fails, at most.
    asked : int
        Data sets asked for.
    failed : dict
        Name of a data set whose fit failed → why.
    ess : array
        Least effective sample size of each fit by chains; empty for other methods.
    warned : dict
        What `Posterior.diagnose` warns of → in how many fits; without what short chains bring about.
    seconds : float
        Of all fits together.
    """

    def __init__(
        self,
        ranks: dict[str, np.ndarray],
        *,
        num_draws: int,
        method: str,
        model: str,
        level: float,
        asked: int,
        failed: dict[str, str] | None = None,
        ess: Any = (),
        warned: dict[str, int] | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.num_draws, self.method, self.model, self.level = num_draws, method, model, level
        self.asked, self.failed, self.warned, self.seconds = asked, dict(failed or {}), dict(warned or {}), seconds
        self.ess = np.asarray(ess, float)
        self.ranks = {name: np.asarray(value, int) for name, value in ranks.items()}
        self.tests = {name: check_uniform(value, num_draws) for name, value in self.ranks.items()}
        self._table: Any = None

    @classmethod
    def of(cls, done: Sequence[Done], method: str, model: str, num_draws: int, level: float, n: int) -> "Calibration":
        """From the fits that were made.

        Raises
        ------
        NonFinite
            All of them failed.
        """
        good = [one for one in done if one.error is None]
        failed = {one.name: str(one.error) for one in done if one.error is not None}
        if not good:
            why = next(iter(failed.items()), ("none", "interrupted before the first was done"))
            raise NonFinite(f"All {len(done)} fits failed; {why[0]}: {why[1]}")
        ranks = {name: np.array([one.value["ranks"][name] for one in good]) for name in good[0].value["ranks"]}
        ess = [one.value["ess"] for one in good if one.value["ess"] is not None]
        warned = Counter(name for one in good for name in one.value["warned"])
        return cls(
            ranks, num_draws=num_draws, method=method, model=model, level=level, asked=n, failed=failed, ess=ess,
            warned=warned, seconds=sum(one.seconds for one in done),
        )  # fmt: skip

    # -- the verdict --------------------------------------------------------------------------------------------------

    @property
    def num_fits(self) -> int:
        """Fits that were made and did not fail, N."""
        return len(next(iter(self.ranks.values())))

    @property
    def p_value(self) -> float:
        """Of all quantities together: the least p-value times their number (Bonferroni), at most 1."""
        return min(1.0, len(self.tests) * min(test.p_value for test in self.tests.values()))

    @property
    def passed(self) -> bool:
        """Whether ranks are as an exact method's, at the level asked for, and few fits failed."""
        return self.p_value > self.level and not self.too_many_failed

    @property
    def too_many_failed(self) -> bool:
        """Whether more than 5 % of the fits failed, so that the others are no fair sample of the prior."""
        return len(self.failed) > MOST_FAILED * (self.num_fits + len(self.failed))

    @property
    def verdict(self) -> str:
        """In a sentence."""
        of = f"{self.method} on {self.model}" if self.model else self.method
        many = f"{self.num_fits} fits, {len(self.tests)} quantities, p = {self.p_value:.2g}"
        if self.p_value <= self.level:
            name, test = min(self.tests.items(), key=lambda item: item[1].p_value)
            words = described(test.location, test.spread)
            return f"{of} is not calibrated: {words or 'ranks are not uniform'}, most clearly of {name} ({many})."
        if self.too_many_failed:
            made = len(self.failed) + self.num_fits
            return f"{of}: {len(self.failed)} of {made} fits failed, too many to tell ({many})."
        return f"{of} is calibrated as far as these show ({many})."

    @property
    def notes(self) -> list[str]:
        """What else to know, in sentences."""
        said = []
        if self.num_fits + len(self.failed) < self.asked:
            said.append(f"Interrupted: {self.num_fits + len(self.failed)} of {self.asked} data sets were fitted.")
        if self.failed:
            name, why = next(iter(self.failed.items()))
            said.append(f"{len(self.failed)} fits failed, {name} with {why}")
        short = int((self.ess < self.num_draws).sum())
        if short:
            said.append(
                f"{short} fits had an ESS below {self.num_draws} (the least {self.ess.min():.0f}): their ranks lean "
                f"to the ends also where the method is right."
            )
        if self.warned:
            of = ", ".join(
                f"{name} in {count}" for name, count in sorted(self.warned.items(), key=lambda item: -item[1])
            )
            said.append(f"diagnose() warns of {of} of the fits.")
        return said

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def table(self) -> Any:
        """A row per scalar, worst first; a pandas DataFrame.

        ``p``, the p-value of its ranks alone; ``p_adjusted``, times the number of quantities; ``location`` and
        ``spread``, z-scores of mean and spread of the ranks; ``cover50``, …, shares of true values in central
        intervals; ``reads``, in words.
        """
        if self._table is None:
            import pandas as pd

            rows = {}
            for name, test in self.tests.items():
                covered = {f"cover{100 * q:g}": self.coverage(q)[name][0] for q in INTERVALS}
                rows[name] = {
                    "p": test.p_value, "p_adjusted": min(1.0, len(self.tests) * test.p_value),
                    "location": test.location, "spread": test.spread, **covered,
                    "reads": described(test.location, test.spread),
                }  # fmt: skip
            self._table = pd.DataFrame.from_dict(rows, orient="index").sort_values("p", kind="stable")
        return self._table

    def coverage(self, prob: float) -> dict[str, tuple[float, float]]:
        """Share of true values in the central interval of this probability, by scalar, with its standard error.

        The interval of the L draws that leaves out as many on each side, of the probability next to ``prob`` that L
        draws can have: of 100 draws, 51/101 for a half.
        """
        if not 0 < prob < 1:
            raise InvalidArgument(f"prob must lie strictly between 0 and 1, got {prob!r}.")
        cells = self.num_draws + 1
        out = round((1 - prob) * cells / 2)  # cells left out on each side
        share = (cells - 2 * out) / cells
        found = {}
        for name, ranks in self.ranks.items():
            inside = float(((ranks >= out) & (ranks < cells - out)).mean())
            found[name] = (inside, math.sqrt(share * (1 - share) / len(ranks)))
        return found

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, names: Sequence[str] | None = None, *, most: int = 12) -> Any:
        """Rank histograms, and empirical distribution functions minus the uniform one with their simultaneous band.

        Parameters
        ----------
        names
            Scalars; the worst ones by default.
        most
            How many by default.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from .rank_plots import rank_figure

        for name in names or ():
            if name not in self.ranks:
                raise InvalidArgument(f"names has {name!r}; the quantities are {', '.join(self.ranks)}.")
        return rank_figure(self, list(names) if names else list(self.table.index[:most]))

    def report(self, path: str | os.PathLike = "calibration.html") -> Path:
        """Write a self-contained HTML page with verdict, pictures and table; return its path."""
        from .pages import calibration_page

        return calibration_page(self, Path(path))

    def __repr__(self) -> str:
        return "\n".join([self.verdict, *(f"  {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<p><b>{html.escape(self.verdict)}</b></p>{notes}{self.table.head(20).to_html()}"


def described(location: float, spread: float) -> str:
    """How ranks differ from uniform ones, in words; empty where they do not clearly."""
    if max(abs(location), abs(spread)) < CLEAR:
        return ""
    if abs(spread) >= abs(location):
        return "draws are too narrow" if spread > 0 else "draws are too wide"
    return "draws are too low" if location > 0 else "draws are too high"
