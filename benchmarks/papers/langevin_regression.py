"""Sparse logistic regression under a Laplace prior, against long NUTS: ``s2`` of `benchmarks.papers.langevin`.

The handwritten digits 3 and 8 on their standardised pixels (357 pictures, 54 pixels that vary and an intercept),
g = α‖w‖₁ with α = 1 and 4: without a setting of the paper at hand, those of `benchmarks/langevin.py` and a weaker one.
Every sampler has four chains, 2,000 iterations of warm-up and 20,000 draws; step sizes and scales are those that
warm-up learns, so that what differs are the kernels. The unadjusted ones are run again at half of the step.
Errors are in standard deviations of the reference, NUTS with 4 × 10,000 draws.
"""

import dataclasses
from typing import Any

import numpy as np

import pushforward as pf
from pushforward.infer.diagnostics.chains import chain_statistics

from ..langevin import digits, regression
from .langevin_common import Rows

ALPHAS = (1.0, 4.0)
HALVED = ("MYULA", "PSGLA")


def samplers() -> dict[str, Any]:
    """The kernels."""
    bregman = pf.BregmanProximalLangevin
    loose = {"adjusted": False, "bias_check": False}
    dual = {"mirror": "hyperbolic", "envelope": "hyperbolic"}
    return {
        "MYULA": bregman(**loose),
        "LBMUMLA": bregman(**dual, **loose),
        "RBMUMLA": bregman(side="right", **dual, **loose),
        "PSGLA": pf.ProximalLangevin(bias_check=False),
        "MYMALA": bregman(),
        "adjusted LBMUMLA": bregman(**dual),
        "adjusted RBMUMLA": bregman(side="right", **dual),
        "MALA, subgradient": pf.MirrorLangevin(),
        "MAMLA, subgradient": pf.MirrorLangevin(mirror="hyperbolic"),
    }


def s2(warmup: int = 2000, draws: int = 20_000) -> None:
    """Errors of means, of standard deviations and of E|w|, and the least ESS per 1,000 iterations."""
    about = {"chains": 4, "warmup": warmup, "draws": draws, "reference": "NUTS, 4 x 10,000"}
    columns = ("alpha", "method", "step", "mean_error", "sd_error", "ess_per_1000", "acceptance", "seconds")
    rows = Rows("s2", about, columns)
    x, y, _ = digits().regression
    for alpha in ALPHAS:
        target = regression(x[:, 1:], y, alpha).target
        cache: dict[str, Any] = {}

        def reference(target=target, cache=cache):
            if not cache:
                exact = pf.fit(target, pf.NUTS(), key=1, num_warmup=2000, num_samples=10_000, progress=False)
                w = exact.draws()["x"]
                cache.update(mean=w.mean((0, 1)), sd=w.std((0, 1)), size=np.abs(w).mean((0, 1)))
                cache["r_hat"] = float(chain_statistics(np.moveaxis(w, -1, 0))["r_hat"].max())
            return cache

        def compute(method, reference=reference, target=target):
            gold = reference()
            posterior = pf.fit(
                target, method, key=0, num_warmup=warmup, num_samples=draws, num_chains=4, progress=False
            )
            w = posterior.draws()["x"]
            scale = np.asarray(posterior._learned()["scale"]).mean(0)
            stats = posterior.data["sample_stats"]
            ess = chain_statistics(np.moveaxis(w, -1, 0))["ess_bulk"]
            return {
                "mean_error": float((np.abs(w.mean((0, 1)) - gold["mean"]) / gold["sd"]).max()),
                "sd_error": float(np.abs(w.std((0, 1)) / gold["sd"] - 1).max()),
                "sd_ratio": float((w.std((0, 1)) / gold["sd"]).mean()),
                "size_ratio": float((np.abs(w).mean((0, 1)) / gold["size"]).mean()),
                "ess_per_1000": float(1000 * ess.min() / (4 * draws)),
                "acceptance": float(stats["acceptance_rate"].mean()) if method.adjusted else None,
                "step_size": float(stats["step_size"].mean()),
                "scale": None if isinstance(method, pf.ProximalLangevin) else scale.tolist(),
                "reference_r_hat": gold["r_hat"],
                "mean": w.mean((0, 1)).round(4).tolist(),
                "gold": gold["mean"].round(4).tolist(),
                "gold_sd": gold["sd"].round(4).tolist(),
            }

        for name, method in samplers().items():
            row = rows.add({"alpha": alpha, "method": name, "step": "learned"}, lambda m=method: compute(m))
            if name in HALVED:
                scale = None if row["scale"] is None else np.array(row["scale"])
                half = dataclasses.replace(method, step_size=row["step_size"] / 2, scale=scale)
                rows.add({"alpha": alpha, "method": name, "step": "half"}, lambda m=half: compute(m))
    figure(rows)


def figure(rows: Rows) -> None:
    """The largest error of a mean, and the mean ratio of standard deviations, by sampler."""
    _, axes, save = rows.figure((9, 3.8), 1, 2)
    for i, alpha in enumerate(ALPHAS):
        chosen = [row for row in rows.rows if row["alpha"] == alpha]
        names = [row["method"] + (", ½ step" if row["step"] == "half" else "") for row in chosen]
        places = np.arange(len(chosen)) + 0.2 * (i - 0.5)
        axes[0, 0].plot([row["mean_error"] for row in chosen], places, f"C{i}o", label=f"α = {alpha:g}")
        axes[0, 1].plot([row["sd_ratio"] for row in chosen], places, f"C{i}o")
    for axis, title in zip(axes[0], ("largest error of a mean, in sds", "sd over the sd of NUTS, mean"), strict=True):
        axis.set(yticks=np.arange(len(names)), yticklabels=names, xlabel=title)
        axis.grid(axis="x", alpha=0.3)
    axes[0, 1].axvline(1.0, color="k", lw=0.6)
    axes[0, 0].set(xlim=(0, None))
    axes[0, 0].legend(fontsize=8)
    save()
