"""Tables of a posterior: one row per scalar, and only columns that mean something for its kind."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidArgument
from ..validate import check_choice, check_fraction
from .chains import chain_statistics, sorted_quantiles
from .draws import blocks, sample_dims
from .psis import psis, weighted_moments, weighted_quantiles, weights_ess

CI_PROB = 0.89
"""Probability of the equal-tailed interval, ArviZ's default."""

KINDS = ("chains", "particles", "approximation")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """All statistics of all scalars of a posterior, from one pass over its draws; a summary or a diagnosis reads it.

    Parameters
    ----------
    kind
        ``"chains"``, ``"particles"`` or ``"approximation"``.
    labels, sites
        Name of each scalar, and of its variable.
    columns
        Name of a statistic → array whose first axis runs over the scalars.
    chains, draws
        Number of chains (1 unless ``kind`` is ``"chains"``), and of draws in each.
    ci_prob
        Probability of the interval in ``columns["quantiles"]`` (scalar, 2).
    """

    kind: str
    labels: list[str]
    sites: list[str]
    columns: dict[str, np.ndarray]
    chains: int
    draws: int
    ci_prob: float


def statistics(
    tree: Any,
    kind: str,
    *,
    var_names: str | Sequence[str] | None = None,
    ci_prob: float = CI_PROB,
    log_weights: Any = None,
) -> Statistics:
    """Compute the statistics of every scalar of ``tree["posterior"]``, reading it block by block.

    Parameters
    ----------
    tree
        DataTree with a group ``posterior`` of dimensions (chain, draw, …), or (particle, …).
    kind
        ``"chains"``, ``"particles"`` or ``"approximation"``.
    var_names
        Variables to keep; None for all.
    ci_prob
        Probability of the equal-tailed interval.
    log_weights
        Log weight of each draw, shape (n,) or (chain, draw), normalised or not. For ``"particles"`` they are part of
        the posterior; for ``"approximation"`` they are log π − log q, smoothed here, and add reweighted moments.

    Raises
    ------
    InvalidArgument
        For an unknown kind or variable, weights of another number than the draws, or a posterior without draws.
    """
    check_choice("kind", kind, KINDS)
    check_fraction("ci_prob", ci_prob)
    group = tree["posterior"]
    counts = [int(group.sizes[d]) for d in sample_dims(group)]
    total = int(np.prod(counts))
    if total == 0:
        raise InvalidArgument(
            f"tree['posterior'] has the sizes {dict(group.sizes)}; a summary needs at least one draw."
        )
    weights = None
    if log_weights is not None:
        weights = np.asarray(log_weights, dtype=float).ravel()
        if weights.size != total:
            raise InvalidArgument(f"log_weights has {weights.size} values for {total} draws; it needs one per draw.")
        if kind == "approximation":
            weights = psis(weights).log_weights
    tails = ((1 - ci_prob) / 2, (1 + ci_prob) / 2)
    labels: list[str] = []
    sites: list[str] = []
    parts: list[dict[str, np.ndarray]] = []
    for block in blocks(group, var_names):
        labels += block.labels
        sites += block.sites
        if kind == "chains":
            part = chain_statistics(block.values, tails)
        else:
            part = _cloud_statistics(block.values.reshape(len(block.labels), -1), kind, weights, tails)
        parts.append(part | {"resolution": block.resolution})
    if not parts:
        raise InvalidArgument(f"tree['posterior'] has the variables {list(group.data_vars)}; none of them is numeric.")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    chains = counts[0] if kind == "chains" else 1
    return Statistics(kind, labels, sites, columns, chains, total // chains, ci_prob)


def summary(
    tree: Any,
    kind: str,
    *,
    var_names: str | Sequence[str] | None = None,
    ci_prob: float = CI_PROB,
    round_to: int | str | None = None,
    log_weights: Any = None,
    stats: Statistics | None = None,
) -> Any:
    """Summarise a posterior as a `pandas.DataFrame` with one row per scalar.

    Columns for chains, named as in ArviZ: ``mean``, ``sd``, ``eti89_lb``, ``eti89_ub``, ``ess_bulk``, ``ess_tail``,
    ``r_hat``, ``mcse_mean``, ``mcse_sd``. Particles and approximations have no R-hat: ``mean``, ``sd``, the interval,
    and ``mcse_mean`` where it is known (independent draws, or weights); an approximation with ``log_weights`` adds the
    reweighted ``psis_mean`` and ``psis_sd`` with ``psis_mcse_mean``.

    Parameters
    ----------
    tree, kind, var_names, ci_prob, log_weights
        As for `statistics`.
    round_to
        Number of decimals; ``"auto"`` for text with as many digits as the Monte-Carlo error supports; None for the
        numbers as they are.
    stats
        What `statistics` returned for the same arguments, to spare the pass over the draws.
    """
    import pandas as pd

    if stats is None:
        stats = statistics(tree, kind, var_names=var_names, ci_prob=ci_prob, log_weights=log_weights)
    frame = pd.DataFrame(table(stats), index=stats.labels)
    if round_to == "auto":
        return format_summary(frame)
    return frame if round_to is None else frame.round(round_to)


def table(stats: Statistics) -> dict[str, np.ndarray]:
    """The columns of a summary by name, in order, without importing pandas."""
    c = stats.columns
    percent = f"{100 * stats.ci_prob:g}"
    out = {"mean": c["mean"], "sd": c["sd"]}
    out |= {f"eti{percent}_lb": c["quantiles"][:, 0], f"eti{percent}_ub": c["quantiles"][:, 1]}
    names = {
        "chains": ("ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd"),
        "particles": ("mcse_mean",),
        "approximation": ("mcse_mean", "psis_mean", "psis_sd", "psis_mcse_mean"),
    }[stats.kind]
    return out | {name: c[name] for name in names if name in c}


def format_summary(frame: Any) -> Any:
    """The same table as text: as many digits as the Monte-Carlo error supports, whole ESS, R-hat to three decimals."""
    columns = {name: frame[name].to_numpy() for name in frame}
    return type(frame)(format_table(columns), index=frame.index)


def format_table(columns: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """`format_summary` of the columns that `table` returns."""

    def digits(error: Any, value: Any) -> int:
        scale = error if np.isfinite(error) and error > 0 else abs(value) / 100
        return int(np.clip(1 - np.floor(np.log10(scale)), 0, 12)) if np.isfinite(scale) and scale > 0 else 3

    out = {}
    errors = columns["mcse_mean"] if "mcse_mean" in columns else columns["sd"] / 100
    places = [digits(e, v) for e, v in zip(errors, columns["mean"], strict=True)]
    for name, column in columns.items():
        if name.startswith("ess"):
            out[name] = [f"{v:.0f}" if np.isfinite(v) else "–" for v in column]
        elif name == "r_hat":
            out[name] = ["–" if np.isnan(v) else "∞" if np.isinf(v) else f"{v:.3f}" for v in column]
        else:
            out[name] = [_number(v, p) for v, p in zip(column, places, strict=True)]
    return out


def _number(value: float, places: int) -> str:
    if not np.isfinite(value):
        return "–" if np.isnan(value) else str(value)
    if value != 0 and (abs(value) >= 1e7 or (abs(value) < 1e-4 and places > 6)):
        return f"{value:.3g}"
    return f"{value:.{places}f}"


def _cloud_statistics(
    x: np.ndarray, kind: str, weights: np.ndarray | None, tails: tuple[float, ...]
) -> dict[str, np.ndarray]:
    """Statistics of draws without an order, (scalar, n): independent ones, or a cloud with or without weights."""
    n = x.shape[-1]
    finite = np.isfinite(x)
    out = {
        "nonfinite": (~finite).sum(axis=-1),
        "distinct": 1 + (np.diff(np.sort(x, axis=-1), axis=-1) > 0).sum(axis=-1),
    }
    x = np.where(finite.all(axis=-1, keepdims=True), x, np.nan)
    nothing = np.full(len(x), np.nan)
    plain = {"mean": x.mean(axis=-1), "sd": x.std(axis=-1, ddof=1) if n > 1 else nothing}
    if weights is None or kind == "approximation":
        out |= plain | {"quantiles": sorted_quantiles(np.sort(x, axis=-1), tails)}
    if kind == "approximation":
        out["mcse_mean"] = out["sd"] / np.sqrt(n)
    if weights is not None:
        moments = weighted_moments(x, weights)
        if kind == "approximation":
            out |= {"psis_mean": moments.mean, "psis_sd": moments.sd, "psis_mcse_mean": moments.mean_error}
        else:
            out |= {"mean": moments.mean, "sd": moments.sd, "mcse_mean": moments.sd / np.sqrt(weights_ess(weights))}
            out["quantiles"] = weighted_quantiles(x, weights, tails)
    return out
