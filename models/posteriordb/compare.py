"""`compare`: how far draws are from reference draws, in units that do not depend on the problem."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...infer.errors import InvalidArgument, NotAvailable
from ...infer.validate import check_fraction
from .reference import Reference


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Distance of a posterior from its reference.

    Parameters
    ----------
    table
        pandas DataFrame with a row per scalar parameter (``theta[0]``, …) and the columns ``mean``, ``sd``,
        ``ref_mean``, ``ref_sd``; ``mean_error``, the difference of the means in reference standard deviations;
        ``sd_ratio``; ``mcse_mean``, ``ref_mcse_mean``, ``mcse_sd``, ``ref_mcse_sd``, Monte-Carlo standard errors;
        ``z_mean`` and ``z_sd``, differences in units of the joint standard error; ``within``, whether both are below
        `bound`.
    bound
        The largest |z| that Monte-Carlo error explains: exceeded anywhere in the table with probability at most `rate`.
    rate
        That probability, shared among all z by Bonferroni's rule.
    """

    name: str
    table: Any
    bound: float
    rate: float

    @property
    def max_mean_error(self) -> float:
        """Largest difference of means, in reference standard deviations."""
        return float(self.table["mean_error"].abs().max(skipna=False))

    @property
    def max_sd_error(self) -> float:
        """Largest distance of a ratio of standard deviations from 1."""
        return float((self.table["sd_ratio"] - 1.0).abs().max(skipna=False))

    @property
    def within_mc_error(self) -> bool:
        """Whether Monte-Carlo error explains every difference."""
        return bool(self.table["within"].all())

    def within_tolerance(self, mean: float = 0.1, sd: float = 0.1) -> bool:
        """Whether every mean is within ``mean`` reference sds, and every ratio of sds within ``sd`` of 1."""
        return self.max_mean_error <= mean and self.max_sd_error <= sd

    def __repr__(self) -> str:
        """The largest errors and the verdict, in words."""
        worst = self.table["mean_error"].abs().idxmax()
        outside = int((~self.table["within"]).sum())
        explained = "Monte-Carlo error explains all of it"
        if outside:
            explained = f"Monte-Carlo error does not explain {outside} of them (|z| > {self.bound:.2f})"
        return (
            f"<Comparison with {self.name}: {len(self.table)} parameters, largest error of a mean "
            f"{self.max_mean_error:.3f} sd ({worst}), of an sd {100 * self.max_sd_error:.1f} %; {explained}>"
        )


def compare(posterior: Any, reference: Any, *, rate: float = 0.01) -> Comparison:
    """Compare draws with reference draws, parameter by parameter.

    Parameters
    ----------
    posterior
        A `Posterior`, an xarray DataTree with a group ``posterior``, a Dataset, or a dict of arrays of shape
        (chain, draw, *shape). Names that the reference does not have are passed over.
    reference
        A `Reference`, or a dict of arrays of shape (chain, draw, *shape).
    rate
        Probability with which exact draws fail in `Comparison.within_mc_error`, at most.

    Returns
    -------
    Comparison

    Raises
    ------
    InvalidArgument
        If the posterior lacks a parameter of the reference, has it in another shape, or has fewer than 4 draws.
    NotAvailable
        If there are no reference draws.

    Notes
    -----
    Both sides have an error: of a mean sd / sqrt(ESS), and of a standard deviation likewise by the ESS of squared
    deviations, both with ArviZ's ESS (Vehtari et al., 2021, doi:10.1214/20-BA1221). The ESS is an estimate, too: below
    about 100, z is a guide only. A parameter whose reference does not vary must agree to 1e-8.
    """
    import pandas as pd
    from scipy.stats import norm

    check_fraction("rate", rate)
    name, truth = (reference.name, reference.draws) if isinstance(reference, Reference) else ("reference", reference)
    if not truth:
        raise NotAvailable(f"{name} has no reference draws to compare with; use compare(posterior, draws) with yours.")
    draws = _draws(posterior)
    rows = {}
    for site, expected in truth.items():
        expected = np.asarray(expected, dtype=np.float64)
        found = _matching(site, draws, expected)
        for index in np.ndindex(expected.shape[2:]):
            theirs, ours = expected[(..., *index)], found[(..., *index)]
            if not np.isnan(theirs).all():  # entries that the reference leaves out
                label = f"{site}[{', '.join(map(str, index))}]" if index else site
                rows[label] = _row(ours, theirs)
    table = pd.DataFrame.from_dict(rows, orient="index")
    bound = float(norm.isf(rate / (2 * 2 * len(table))))  # two-sided, two z in each row
    table["within"] = (table["z_mean"].abs() < bound) & (table["z_sd"].abs() < bound)
    return Comparison(name=name, table=table, bound=bound, rate=rate)


def _draws(posterior: Any) -> Mapping[str, np.ndarray]:
    """Draws by name, as (chain, draw, *shape); a cloud or independent draws count as one chain."""
    data: Any = getattr(posterior, "data", posterior)
    if isinstance(posterior, Mapping) and not hasattr(posterior, "data_vars"):
        data = posterior
    if hasattr(data, "children"):  # a DataTree
        data = data["posterior"] if "posterior" in data.children else data  # pyright: ignore[reportAttributeAccessIssue]
    if not hasattr(data, "data_vars"):
        if not isinstance(data, Mapping):
            raise InvalidArgument(
                f"posterior must be a Posterior, a DataTree, a Dataset or a dict of draws, got {type(data).__name__}."
            )
        return {name: np.asarray(value) for name, value in data.items()}
    arrays = {}
    for name, variable in data.data_vars.items():  # pyright: ignore[reportAttributeAccessIssue]
        kept = [dim for dim in ("chain", "draw", "particle", "sample") if dim in variable.dims]
        array = np.asarray(variable.transpose(*kept, ...).values)
        arrays[str(name)] = array if len(kept) >= 2 else array[None]
    return arrays


def _matching(site: str, draws: Mapping[str, np.ndarray], expected: np.ndarray) -> np.ndarray:
    """Our draws of one site, checked against the reference's."""
    if site not in draws:
        raise InvalidArgument(
            f"posterior has no draws of {site!r}, a parameter of the reference; it has {', '.join(draws)}."
        )
    found = np.asarray(draws[site], dtype=np.float64)
    if found.shape[2:] != expected.shape[2:] or found.ndim < 2:
        raise InvalidArgument(
            f"posterior's {site!r} has shape {found.shape}; (chain, draw, *{expected.shape[2:]}) is needed."
        )
    if found.shape[1] < 4:
        raise InvalidArgument(f"posterior has {found.shape[1]} draws a chain; 4 is the least to compare.")
    return found


def _row(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """All columns of one scalar; both arguments are (chain, draw)."""
    mean, sd, error, sd_error = _moments(ours)
    ref_mean, ref_sd, ref_error, ref_sd_error = _moments(theirs)
    row = {"mean": mean, "sd": sd, "ref_mean": ref_mean, "ref_sd": ref_sd}
    if ref_sd > 1e-12 * max(abs(ref_mean), 1e-300):
        row |= {"mean_error": (mean - ref_mean) / ref_sd, "sd_ratio": sd / ref_sd}
        z_mean = (mean - ref_mean) / np.hypot(error, ref_error)
        z_sd = (sd - ref_sd) / np.hypot(sd_error, ref_sd_error)
    else:  # a constant, such as the corner of a correlation matrix's Cholesky factor
        same = np.allclose(ours, ref_mean, rtol=1e-8, atol=1e-8)
        row |= {"mean_error": 0.0 if same else np.inf, "sd_ratio": 1.0 if same else np.inf}
        z_mean = z_sd = 0.0 if same else np.inf
    row |= {"mcse_mean": error, "ref_mcse_mean": ref_error, "mcse_sd": sd_error, "ref_mcse_sd": ref_sd_error}
    return row | {"z_mean": float(z_mean), "z_sd": float(z_sd)}


def _moments(draws: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, standard deviation, and the Monte-Carlo standard errors of both."""
    from arviz_stats.base import array_stats

    mean, sd = float(draws.mean()), float(draws.std(ddof=1))
    if not sd > 0:  # constant (or NaN): no error to estimate
        return mean, sd, 0.0, 0.0
    return mean, sd, float(array_stats.mcse(draws, method="mean")), float(array_stats.mcse(draws, method="sd"))
