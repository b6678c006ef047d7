"""What of a posterior the plots show: some scalars, and at most so many draws of each."""

import re
from typing import Any

import numpy as np

from ..diagnostics.draws import sample_dims, scalar_labels, select
from ..diagnostics.psis import psis

MAX_DRAWS = 4000
"""Draws per chain in a plot; longer chains are thinned evenly for it."""


def worst_first(summary: Any, kind: str) -> list[str]:
    """Names of the scalars, those to be looked at first before the others; constants are left out."""
    moving = summary[summary["sd"] > 0]
    if kind == "chains" and "ess_bulk" in moving:
        size = moving[["ess_bulk", "ess_tail"]].min(axis=1)
        return list(size.sort_values(kind="stable").index)
    if "psis_mean" in moving:
        shift = ((moving["psis_mean"] - moving["mean"]) / moving["sd"]).abs()
        return list(shift.sort_values(ascending=False, kind="stable").index)
    return list(moving.index)


def scalar_tree(tree: Any, labels: list[str], log_weights: np.ndarray | None = None, most: int = MAX_DRAWS) -> Any:
    """A DataTree of (chain, draw) with the named scalars as variables of their own, thinned to ``most`` draws.

    Clouds with weights are resampled to equal weights (systematically, without chance), for plots know no weights.
    """
    import xarray

    group = tree["posterior"]
    dims = sample_dims(group)
    count = int(group.sizes[dims[-1]])
    if log_weights is None:
        keep = np.arange(0, count, max(1, -(-count // most)))
    else:
        keep = resample(log_weights, min(count, most))
    variables = {}
    for name in select(group, None):
        names = scalar_labels(group[name], name, dims)
        wanted = [(i, label) for i, label in enumerate(names) if label in labels]
        if not wanted:
            continue
        variable = group[name].variable.transpose(*dims, ...)
        shape = variable.shape[len(dims) :]
        for i, label in wanted:
            values = np.asarray(variable[(slice(None),) * len(dims) + np.unravel_index(i, shape)].values, dtype=float)
            variables[label] = (("chain", "draw"), np.atleast_2d(values)[:, keep])
    coords = {"chain": np.arange(1 if len(dims) == 1 else group.sizes["chain"]), "draw": np.arange(len(keep))}
    ordered = {label: variables[label] for label in labels if label in variables}
    groups = {"posterior": xarray.Dataset(ordered, coords=coords)}
    if dims != ("particle",) and "sample_stats" in tree.children:
        stats = tree["sample_stats"]
        kept = {
            name: (("chain", "draw"), np.asarray(stats[name].transpose("chain", "draw").values)[:, keep])
            for name in ("diverging", "energy")
            if name in stats.data_vars and set(stats[name].dims) == {"chain", "draw"}
        }
        if kept:
            groups["sample_stats"] = xarray.Dataset(kept, coords=coords)
    return xarray.DataTree.from_dict(groups)


def resample(log_weights: np.ndarray, count: int) -> np.ndarray:
    """Indices of ``count`` systematic draws with these log weights, starting in the middle of the first step."""
    w = np.exp(log_weights - np.max(log_weights))
    return np.searchsorted(np.cumsum(w) / w.sum(), (np.arange(count) + 0.5) / count).clip(0, len(w) - 1)


def cloud_weights(tree: Any, kind: str) -> np.ndarray | None:
    """Log weights of a cloud, raw and flat, where the tree has them."""
    if kind == "chains" or "sample_stats" not in tree.children:
        return None
    for name in ("log_weight", "log_weights"):
        if name in tree["sample_stats"].data_vars:
            raw = np.asarray(tree["sample_stats"][name].values, dtype=float).ravel()
            return raw if np.isfinite(raw).any() and not np.isnan(raw).any() else None
    return None


def plot_weights(tree: Any, kind: str) -> np.ndarray | None:
    """The log weights by which plots of draws are resampled: those of particles; an approximation is shown as it is."""
    return cloud_weights(tree, kind) if kind == "particles" else None


def smoothed(tree: Any, kind: str) -> np.ndarray | None:
    """Pareto-smoothed log weights of an approximation."""
    raw = cloud_weights(tree, kind)
    return None if raw is None or kind != "approximation" else psis(raw).log_weights


def base_name(label: str) -> str:
    """The variable of a scalar's name: ``theta`` of ``theta[Choate]``."""
    return re.sub(r"\[.*\]$", "", label)
