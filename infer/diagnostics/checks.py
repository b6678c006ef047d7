"""The checks of Markov chains, each a function from statistics to findings."""

import math
from typing import Any

import numpy as np

from .chains import chain_statistics, rhat_limit
from .findings import Finding
from .summary import Statistics
from .transitions import bfmi, divergence_sites, odd_chains, sample_stat, still_chains

R_HAT = 1.01
ESS_PER_CHAIN = 100
BFMI = 0.3
FEW_DIVERGENCES = 0.0025
TOLERANCE = 0.1
CHANCE = 0.05
HAMILTONIAN = (
    "The region where they occur is not explored in full: raise target_acceptance to 0.95 or more, or use a "
    "non-centred parameterisation."
)
"""What to do about divergences, unless the method has advice of its own."""


def finite(stats: Statistics) -> list[Finding]:
    """Draws that are NaN or infinite."""
    count = stats.columns["nonfinite"]
    bad = np.flatnonzero(count)
    if not bad.size:
        return []
    worst = bad[np.argsort(-count[bad], kind="stable")]
    i = worst[0]
    text = (
        f"{int(count[i]):,} of {stats.chains * stats.draws:,} draws of {stats.labels[i]} are NaN or infinite"
        f"{_more(bad.size)}: its moments and diagnostics do not exist. Look for overflow or a division by zero there."
    )
    names = tuple(stats.labels[j] for j in worst[:10])
    return [Finding("warning", "non-finite draws", text, float(count[i]), 0.0, names)]


def constant(stats: Statistics) -> np.ndarray:
    """Which scalars never vary beyond the rounding of their type, e.g. the diagonal of a correlation matrix."""
    c = stats.columns
    with np.errstate(invalid="ignore"):
        return c["sd"] <= 16 * c["resolution"] * np.abs(c["mean"])


def chains(tree: Any, stats: Statistics, extra: dict[str, Any]) -> list[Finding]:
    """All findings on Markov chains."""
    names = [str(c) for c in tree["posterior"]["chain"].values] if "chain" in tree["posterior"].coords else []
    names = names if len(names) == stats.chains else [str(c) for c in range(stats.chains)]
    keep = ~constant(stats) & (stats.columns["nonfinite"] == 0)
    still = _still(tree, stats, keep, names)
    if not keep.any():
        if still or (stats.columns["nonfinite"] > 0).any():
            return still
        text = f"None of the {len(stats.labels):,} scalars varies. Check the model and the sampler's acceptance."
        return [Finding("warning", "constant draws", text, 0.0, 0.0)]
    if stats.draws < 4:
        text = f"{stats.draws} draws per chain are too few to tell anything (at least 4, better 1,000)."
        return [*still, Finding("warning", "length", text, stats.draws, 4)]
    findings = (
        still
        + _odd(tree, stats, keep, names, {f.sites[0] for f in still})
        + _rhat(stats, keep)
        + _ess(stats, keep)
        + _errors(stats, keep)
        + _term(tree)
    )
    slow = any(f.level == "warning" and f.name in ("ESS", "R-hat") for f in findings)
    energy = _energy(tree, names)
    alone = not any(finding.level == "warning" for finding in findings + energy)
    return (
        findings
        + _divergences(tree, alone, extra.get("divergence") or "")
        + energy
        + _depth(tree, extra, slow)
        + _acceptance(tree, extra)
    )


def _rhat(stats: Statistics, keep: np.ndarray) -> list[Finding]:
    r_hat = np.where(keep, stats.columns["r_hat"], -np.inf)
    r_hat = np.where(np.isnan(r_hat), np.inf, r_hat)
    tests = int(keep.sum())
    limit = rhat_limit(stats.columns["ess_within"], stats.chains, tests, R_HAT)
    # Chance is an explanation only of chains that have the effective draws to be compared at all.
    limit = np.where(stats.columns["ess_bulk"] >= ESS_PER_CHAIN * stats.chains, np.minimum(limit, 1.05), R_HAT)
    worst = np.argsort(-r_hat)
    i = worst[0]
    above, beyond = int((r_hat > R_HAT).sum()), int((r_hat > limit).sum())
    alone = " (between the halves of one chain; run four to compare chains)" if stats.chains == 1 else ""
    sites = tuple(stats.labels[j] for j in worst[:10] if r_hat[j] > R_HAT)
    value = float(r_hat[i])
    if beyond:
        shown = f"{value:.3f}" if math.isfinite(value) else "infinite"
        text = (
            f"R-hat is {shown} for {stats.labels[i]}{alone}, and above {R_HAT} for {above:,} of {tests:,} scalars: "
            "the chains have not mixed. Run longer (warm-up too), start elsewhere, or reparameterise."
        )
        return [Finding("warning", "R-hat", text, value, R_HAT, sites)]
    if above:
        text = (
            f"R-hat is {value:.3f} for {stats.labels[i]}{alone} and above {R_HAT} for {above:,} of {tests:,} scalars, "
            "which chance explains for this many at their ESS; a longer run would lower it."
        )
        return [Finding("note", "R-hat", text, value, R_HAT, sites)]
    text = f"R-hat is at most {value:.3f}{alone} (threshold {R_HAT}) over {tests:,} scalars."
    return [Finding("ok", "R-hat", text, value, R_HAT)]


def _ess(stats: Statistics, keep: np.ndarray) -> list[Finding]:
    c, needed = stats.columns, ESS_PER_CHAIN * stats.chains
    both = np.where(keep, np.nan_to_num(np.fmin(c["ess_bulk"], c["ess_tail"]), nan=0.0), np.inf)
    worst = np.argsort(both)
    i = worst[0]
    low = int((both < needed).sum())
    which = "bulk" if c["ess_bulk"][i] <= c["ess_tail"][i] else "tail"
    if not low:
        text = f"ESS is at least {both[i]:,.0f} ({which}, {stats.labels[i]}; threshold {needed:,})."
        return [Finding("ok", "ESS", text, float(both[i]), needed)]
    factor = needed / max(both[i], 1.0)
    more = f"Draw about {factor:.1f} times as many, or reparameterise."
    if c["r_hat"][i] > 1.1:
        more = "The chains disagree, so more draws alone may not help: see the other warnings."
    elif stats.draws < ESS_PER_CHAIN:
        more = f"The chains have only {stats.draws:,} draws each: draw about {factor:.1f} times as many."
    text = (
        f"The {which} ESS of {stats.labels[i]} is {both[i]:,.0f} (threshold {needed:,}, 100 per chain), and {low:,} of "
        f"{int(keep.sum()):,} scalars are below. {more}"
    )
    names = tuple(stats.labels[j] for j in worst[:10] if both[j] < needed)
    return [Finding("warning", "ESS", text, float(both[i]), needed, names)]


def _term(tree: Any) -> list[Finding]:
    """R-hat and ESS of a nonsmooth term, such as ‖x‖₁, which may mix worse than each coordinate does."""
    values = sample_stat(tree, "nonsmooth")
    if values is None or not np.isfinite(values).all() or np.ptp(values) == 0 or values.shape[1] < 4:
        return []
    found = chain_statistics(values[None])
    ess, r_hat, needed = float(found["ess_bulk"][0]), float(found["r_hat"][0]), ESS_PER_CHAIN * len(values)
    poor = not (ess >= needed and r_hat <= 1.05)
    text = f"The nonsmooth term g(x) has a bulk ESS of {ess:,.0f} (threshold {needed:,}) and an R-hat of {r_hat:.3f}"
    text += ": chains differ in how far the draws are from its kinks; draw more, or use another step." if poor else "."
    return [Finding("warning" if poor else "ok", "nonsmooth term", text, ess, needed)]


def _errors(stats: Statistics, keep: np.ndarray) -> list[Finding]:
    """Whether Monte-Carlo error alone may put some mean off by `TOLERANCE` sd, or some sd by as large a part.

    The chance is the sum over scalars of the normal tail beyond the tolerance (Boole's inequality).
    """
    c = stats.columns
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = {
            "mean": np.nan_to_num(np.where(keep, c["mcse_mean"] / c["sd"], 0.0)),
            "sd": np.nan_to_num(np.where(keep, c["mcse_sd"] / c["sd"], 0.0)),
        }
    chance = {what: min(1.0, sum(map(_beyond_tolerance, part.tolist()))) for what, part in parts.items()}
    what = max(parts, key=lambda name: (chance[name], parts[name].max()))
    part, p = parts[what], chance[what]
    order = np.argsort(-part)
    i = order[0]
    text = (
        f"The least precise {what} is that of {stats.labels[i]}, with a Monte-Carlo error of {part[i]:.1%} of its sd; "
        f"the chance that some {what} is off by {TOLERANCE} sd is {'below 0.1%' if p < 0.001 else f'{p:.1%}'} "
        f"(threshold {CHANCE:.0%})."
    )
    if p <= CHANCE:
        return [Finding("ok", "precision", text, p, CHANCE)]
    text += " Draw more, or report quantiles, which heavy tails do not hurt." if what == "sd" else " Draw more."
    return [Finding("warning", "precision", text, p, CHANCE, tuple(stats.labels[j] for j in order[:3]))]


def _beyond_tolerance(error: float) -> float:
    """P(|N(0, error²)| > TOLERANCE)."""
    return math.erfc(TOLERANCE / error / math.sqrt(2)) if error > 0 else 0.0


def _still(tree: Any, stats: Statistics, keep: np.ndarray, names: list[str]) -> list[Finding]:
    c = stats.columns
    found = still_chains(c["chain_moves"][keep], c["chain_sd"][keep], sample_stat(tree, "acceptance_rate"))
    return [
        Finding(
            "warning",
            "stuck chain",
            f"Chain {names[k]} is stuck: {why}. Leave it out, start it elsewhere (start=…), or warm up longer.",
            sites=(names[k],),
        )
        for k, why in found.items()
        if k < len(names)
    ]


def _odd(tree: Any, stats: Statistics, keep: np.ndarray, names: list[str], still: set[str]) -> list[Finding]:
    bad = np.flatnonzero(keep & (stats.columns["r_hat"] > 1.05))
    found = odd_chains(stats.columns["chain_score"][bad], [stats.labels[i] for i in bad])
    lp = sample_stat(tree, "lp")
    findings = []
    for k, labels in found.items():
        if names[k] in still:
            continue
        text = f"Chain {names[k]} sits apart from the others in {', '.join(labels[:3])}{_more(len(labels), 3)}"
        if lp is not None and np.isfinite(lp).all():
            gap = float(lp[k].mean() - np.delete(lp, k, axis=0).mean())
            text += f"; its log density is {abs(gap):.1f} {'higher' if gap > 0 else 'lower'} on average"
        text += ". It found another mode, or has not arrived: start several chains there, or temper (SMC)."
        findings.append(Finding("warning", "chain apart", text, sites=(names[k], *labels[:10])))
    within = stats.columns["ess_within"][bad]
    if bad.size and not found and (within > ESS_PER_CHAIN * stats.chains).any() and stats.chains > 1:
        i = bad[np.argmax(np.where(within > ESS_PER_CHAIN * stats.chains, stats.columns["r_hat"][bad], 0))]
        text = (
            f"Each chain moves well by itself but they disagree on {stats.labels[i]}: there seem to be several modes. "
            "Break the symmetry (an ordering), or temper (SMC)."
        )
        findings.append(Finding("note", "modes", text, sites=(stats.labels[i],)))
    return findings


def _divergences(tree: Any, alone: bool, advice: str) -> list[Finding]:
    diverging = sample_stat(tree, "diverging")
    if diverging is None:
        return []
    diverging = diverging.astype(bool)
    count, total = int(diverging.sum()), diverging.size
    if not count:
        return [Finding("ok", "divergences", f"None of {total:,} transitions diverged.", 0, 0)]
    sites = divergence_sites(tree, diverging)
    text = f"{count:,} of {total:,} transitions diverged (threshold 0)"
    names = tuple(s.label for s in sites)
    if sites:
        text += f"; they concentrate: {', '.join(map(str, sites))}"
    if sites or count > FEW_DIVERGENCES * total:
        text += f". {advice or HAMILTONIAN}"
        return [Finding("warning", "divergences", text, count, 0, names)]
    if alone:
        text += ", too few and too scattered to bias the result"
        text += f". {advice}" if advice else "; target_acceptance=0.95 should remove them."
    else:
        text += "; with the warnings here they point to a region that is hard to explore: see those."
    return [Finding("note", "divergences", text, count, 0)]


def _energy(tree: Any, names: list[str]) -> list[Finding]:
    energy = sample_stat(tree, "energy")
    if energy is None or energy.shape[1] < 4:
        return []
    value = bfmi(energy)
    i = int(np.nanargmin(value)) if np.isfinite(value).any() else 0
    if not value[i] < BFMI:
        return [Finding("ok", "BFMI", f"BFMI is at least {value[i]:.2f} (threshold {BFMI}).", float(value[i]), BFMI)]
    low = [names[k] for k in np.flatnonzero(value < BFMI) if k < len(names)]
    where = f"chain{'s' * (len(low) > 1)} {', '.join(low)}"
    text = (
        f"BFMI is {value[i]:.2f} (threshold {BFMI}) in {where}: the sampler crosses the energies of the posterior too "
        "slowly to reach its tails. Reparameterise heavy tails or funnels (non-centred, log scale)."
    )
    return [Finding("warning", "BFMI", text, float(value[i]), BFMI, tuple(low))]


def _depth(tree: Any, extra: dict[str, Any], slow: bool) -> list[Finding]:
    reached = sample_stat(tree, "reached_max_tree_depth")
    depth = sample_stat(tree, "tree_depth")
    most = extra.get("max_tree_depth")
    if reached is None and depth is not None and most is not None:
        reached = depth >= most
    if reached is None or not reached.size:
        return []
    count = int(reached.astype(bool).sum())
    where = f" of {most}" if most is not None else ""
    if not count:
        return [Finding("ok", "tree depth", f"No trajectory was cut short by the maximal tree depth{where}.", 0, 0)]
    text = (
        f"{count:,} of {reached.size:,} trajectories ended at the maximal tree depth{where}, which costs efficiency, "
        "not correctness. Raise max_tree_depth, or use a dense metric."
    )
    warn = slow and count > 0.05 * reached.size
    return [Finding("warning" if warn else "note", "tree depth", text, count, 0)]


def _acceptance(tree: Any, extra: dict[str, Any]) -> list[Finding]:
    rate, target = sample_stat(tree, "acceptance_rate"), extra.get("target_acceptance")
    if rate is None or target is None:
        return []
    mean = float(np.nanmean(rate))
    if mean >= target - 0.15:
        return []
    text = f"Mean acceptance is {mean:.2f}, below the target of {target:.2f}: the warm-up was too short to adapt."
    return [Finding("note", "acceptance", text + " Raise num_warmup.", mean, float(target))]


def _more(count: int, shown: int = 1) -> str:
    return f" (and {count - shown:,} more scalars)" if count > shown else ""
