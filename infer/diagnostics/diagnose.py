"""`diagnose`: findings in words about a posterior of any kind."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import checks
from .findings import Diagnosis, Finding, cut_short
from .psis import elbo, importance_evidence, k_hat_threshold, psis, weights_ess
from .summary import Statistics, statistics

SHIFT = 0.1
"""Differences of means in standard deviations, or of standard deviations in parts, that matter."""


def diagnose(
    tree: Any,
    kind: str,
    *,
    extra: Mapping[str, Any] | None = None,
    log_weights: Any = None,
    stats: Statistics | None = None,
) -> Diagnosis:
    """Look at everything that can tell whether to believe a posterior, and say it in words.

    Parameters
    ----------
    tree
        DataTree with a group ``posterior``; ``sample_stats`` is read where it is.
    kind
        ``"chains"``, ``"particles"`` or ``"approximation"``.
    extra
        What the tree does not know, all optional: ``"method"`` (its name), ``"warning"`` (a sentence about the method,
        e.g. that it is unadjusted), ``"divergence"`` (what one is of this method and what to do, in sentences; default:
        those of Hamiltonian samplers), ``"remarks"`` (findings of the method itself, as dicts), ``"stopped"`` (why the
        run ended early), ``"asked"`` (draws per chain asked for), ``"max_tree_depth"``, ``"target_acceptance"``,
        ``"log_weights"`` (as the argument).
    log_weights
        Log weights of the draws. For an approximation log π − log q as it is, not normalised: it gives ELBO, evidence
        and k-hat.
    stats
        What `statistics` returned for the same tree, kind and log weights, to spare a pass over the draws.

    Returns
    -------
    Diagnosis
        ``diagnosis.flagged`` is whether any finding is a warning; ``print(diagnosis)`` shows all.

    Notes
    -----
    Thresholds. R-hat 1.01, and ESS 100 per chain: Vehtari et al. (2021); an R-hat above 1.01 is no warning as long
    as chance explains it for this number of scalars and this ESS (`rhat_limit`). BFMI 0.3: Betancourt (2016). k-hat
    min(1 − 1/log10 n, 0.7): Vehtari et al. (2024).
    """
    extra = dict(extra or {})
    log_weights = extra.get("log_weights") if log_weights is None else log_weights
    raw = None if log_weights is None else np.asarray(log_weights, dtype=float).ravel()
    broken = raw is not None and not (np.isfinite(raw).any() and not np.isnan(raw).any() and (raw < np.inf).all())
    if stats is None:
        stats = statistics(tree, kind, log_weights=None if broken else raw)
    findings = _told(extra, stats)
    findings += checks.finite(stats)
    if kind == "chains":
        findings += checks.chains(tree, stats, extra)
        size = f"{stats.chains} chain{'s' * (stats.chains > 1)} × {stats.draws:,} draws, {len(stats.labels):,} scalars"
    elif kind == "particles":
        findings += _particles(stats, None if broken else raw)
        size = f"{stats.draws:,} particles, {len(stats.labels):,} scalars"
    else:
        findings += _approximation(stats, None if broken else raw)
        size = f"{stats.draws:,} independent draws, {len(stats.labels):,} scalars"
    if raw is not None and broken:
        bad = int((np.isnan(raw) | (raw == np.inf)).sum())
        found = f"{bad:,} of {raw.size:,} log weights are NaN or +inf" if bad else "All log weights are −inf"
        findings.append(
            Finding("warning", "weights", f"{found}, so no weighting is possible. Check the log density there.", bad, 0)
        )
    return Diagnosis(kind, tuple(findings), size)


def _told(extra: dict[str, Any], stats: Statistics) -> list[Finding]:
    """What the caller knows beforehand."""
    findings = []
    if extra.get("warning"):
        findings.append(Finding("note", "method", str(extra["warning"])))
    if extra.get("stopped") and not cut_short(extra["stopped"]):
        text = f"The run ended after {stats.draws:,} draws per chain, its goal reached: {extra['stopped']}."
        findings.append(Finding("ok", "goal", text, stats.draws))
    elif extra.get("stopped"):
        asked = extra.get("asked")
        missing = stats.kind == "chains" and asked and asked > stats.draws
        size = f" after {stats.draws:,} of {asked:,} draws per chain" if missing else ""
        text = f"The run is partial: it ended early{size} ({extra['stopped']}). What follows is about the draws so far."
        findings.append(Finding("note", "partial run", text, stats.draws, asked))
    if extra.get("moved"):
        chains = ", ".join(sorted(extra["moved"], key=int))
        text = (
            f"Early in warm-up chains {chains} had settled where less than exp(-20) of the posterior is, and went on "
            "from the place of another chain. If you expect a mode of its own there, start chains in it (start=…)."
        )
        findings.append(Finding("note", "chains moved", text, len(extra["moved"]), 0))
    return findings + [Finding(**remark) for remark in extra.get("remarks") or ()]


def _approximation(stats: Statistics, raw: np.ndarray | None) -> list[Finding]:
    if raw is None:
        text = "The draws come without densities, so nothing tells how close the approximation is to the posterior."
        return [Finding("note", "weights", text + " Compare with a few hundred draws of NUTS.")]
    n = raw.size
    k = psis(raw).k_hat
    limit = k_hat_threshold(n)
    findings = []
    if math.isnan(k):
        text = f"{n} draws are too few to judge the approximation by its weights; 1,000 or more are enough."
        findings.append(Finding("note", "k-hat", text))
    elif k > limit:
        text = (
            f"Pareto k-hat is {k:.2f} (threshold {limit:.2f}): the approximation misses part of the posterior, and "
            "reweighting cannot repair it. Use a richer family or more steps, or start NUTS from it."
        )
        findings.append(Finding("warning", "k-hat", text, k, limit))
    elif k > 0.5:
        text = (
            f"Pareto k-hat is {k:.2f} (good below 0.5, usable below {limit:.2f}): use the reweighted moments "
            "(psis_mean, psis_sd) rather than those of the approximation."
        )
        findings.append(Finding("note", "k-hat", text, k, 0.5))
    else:
        text = f"Pareto k-hat is {k:.2f} (threshold {limit:.2f}): importance weights correct what remains."
        findings.append(Finding("ok", "k-hat", text, k, limit))

    bound, evidence, size = elbo(raw, np.zeros(n)), importance_evidence(raw), weights_ess(psis(raw).log_weights)
    text = f"ELBO {bound.value:.2f} ± {bound.error:.2g}"
    if not (k > limit):
        text += f"; log evidence by importance sampling {evidence.value:.2f} ± {evidence.error:.2g}"
    findings.append(Finding("ok", "ELBO", f"{text}; {n:,} draws are worth {size:,.0f} by their weights.", bound.value))
    return findings + _shift(stats, k <= limit)


def _shift(stats: Statistics, usable: bool) -> list[Finding]:
    """How far reweighting moves means and standard deviations."""
    c = stats.columns
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = np.abs(c["psis_mean"] - c["mean"]) / c["psis_sd"]
        noise = c["psis_mcse_mean"] / c["psis_sd"]
        ratio = np.abs(np.log(c["sd"] / c["psis_sd"]))
    keep = ~checks.constant(stats) & np.isfinite(moved)
    if not usable or not keep.any():
        return []
    beyond = keep & (moved > SHIFT + 3 * noise)
    wide = keep & (ratio > math.log1p(SHIFT) + 3 * noise)
    if not (beyond | wide).any():
        text = f"Reweighting moves no mean by more than {moved[keep].max():.2f} sd."
        return [Finding("ok", "shift", text, float(moved[keep].max()), SHIFT)]
    size = np.where(keep, np.maximum(moved, ratio), 0.0)
    worst = [i for i in np.argsort(-size) if (beyond | wide)[i]]
    i = worst[0]
    text = (
        f"Reweighting moves the mean of {stats.labels[i]} by {moved[i]:.2f} sd and multiplies its sd by "
        f"{c['psis_sd'][i] / c['sd'][i]:.2f} (threshold {SHIFT} sd, {SHIFT:.0%}), and {len(worst):,} of "
        f"{int(keep.sum()):,} scalars beyond what noise explains. Use the reweighted moments, or a richer family."
    )
    sites = tuple(stats.labels[j] for j in worst[:10])
    return [Finding("warning", "shift", text, float(size[i]), SHIFT, sites)]


def _particles(stats: Statistics, raw: np.ndarray | None) -> list[Finding]:
    c, n = stats.columns, stats.draws
    findings = []
    if raw is not None:
        size = weights_ess(raw)
        enough = min(100.0, 0.5 * n)
        if size < enough:
            text = (
                f"The weights make {n:,} particles worth {size:.0f} (threshold {enough:.0f}). Use more particles, or "
                "more and smaller tempering steps."
            )
            findings.append(Finding("warning", "weights", text, size, enough))
        else:
            text = f"The weights make {n:,} particles worth {size:,.0f} (threshold {enough:.0f})."
            findings.append(Finding("ok", "weights", text, size, enough))
    constant = checks.constant(stats)
    if constant.all() and n > 1:
        text = (
            "All particles coincide (variance 0): the cloud has collapsed. Use more mutation steps or another kernel."
        )
        return [*findings, Finding("warning", "collapse", text, 0.0, 0.0)]
    distinct = int(c["distinct"].max())
    if distinct < n / 2:
        text = (
            f"Only {distinct:,} of {n:,} particles are distinct (threshold half): resampling multiplied a few. Use "
            "more mutation steps at each temperature."
        )
        findings.append(Finding("warning", "collapse", text, distinct, n / 2))
    elif n <= int((~constant).sum()):
        text = (
            f"{n:,} particles in {int((~constant).sum()):,} varying scalars span only {n - 1:,} directions: variances "
            "come out too small. Use more particles than dimensions."
        )
        findings.append(Finding("note", "collapse", text, n, float((~constant).sum())))
    else:
        findings.append(Finding("ok", "collapse", f"{distinct:,} of {n:,} particles are distinct.", distinct, n / 2))
    return findings
