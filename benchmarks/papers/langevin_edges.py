"""Edges of supports: ``edges`` of `benchmarks.papers.langevin`.

Dirichlet, beta and gamma laws whose moments are known, by mirror Langevin in the metric of an entropy (1/x at an edge)
and of a barrier (1/x²). Without a Metropolis test steps from near an edge on an entropy end in a corner or far out;
with it both are exact, and slow where the density is infinite at the edge. Warm-up 2,000, 8 chains of 20,000 draws.
``acceptance`` tries targets of the mean acceptance; here those of the default are 0.5, and 0.4 at infinite densities.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.diagnostics.chains import chain_statistics
from pushforward.infer.geometry import default_mirror

from .langevin_common import FULL, Rows


def laws() -> dict[str, tuple[Any, Any, np.ndarray, np.ndarray]]:
    """Target, support, mean and standard deviation by name."""
    found: dict[str, tuple[Any, Any, np.ndarray, np.ndarray]] = {}
    for a in ([4.0, 4, 4], [1.0, 2, 3], [0.5, 1, 2], [0.1, 0.1, 0.1]):
        a = np.array(a)
        mean, total = a / a.sum(), a.sum()
        target = pf.Target.from_log_density(lambda p, a=a: (a - 1) @ jnp.log(p), np.full(3, 1 / 3), constraints.simplex)
        name = f"Dirichlet({', '.join(f'{v:g}' for v in a)})"
        found[name] = target, constraints.simplex, mean, np.sqrt(mean * (1 - mean) / (total + 1))
    for a, b in ((4.0, 4.0), (1.0, 2.0)):
        target = pf.Target.from_log_density(
            lambda x, a=a, b=b: jnp.sum((a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x)),
            np.full(1, 0.5), constraints.unit_interval,
        )  # fmt: skip
        mean, variance = a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)
        found[f"Beta({a:g}, {b:g})"] = target, constraints.unit_interval, np.array([mean]), np.sqrt([variance])
    for a in (3.0, 1.0, 0.5, 0.1):
        target = pf.Target.from_log_density(
            lambda x, a=a: jnp.sum((a - 1) * jnp.log(x) - x), np.ones(1), constraints.positive
        )
        found[f"Gamma({a:g})"] = target, constraints.positive, np.array([a]), np.array([np.sqrt(a)])
    return found


def acceptance(warmup: int = 2000, draws: int = 20_000) -> None:
    """The least bulk ESS of x, and of its squares about the mean, by mirror and target acceptance."""
    rows = Rows(
        "acceptance", {"chains": 8, "warmup": warmup, "draws": draws},
        ("law", "mirror", "target", "ess", "ess_squares", "step_size", "seconds"),
    )  # fmt: skip

    def compute(target, method, mean):
        posterior = pf.fit(target, method, key=0, num_warmup=warmup, num_samples=draws, num_chains=8, progress=False)
        x = posterior.draws()["x"]
        least = lambda v: float(np.nanmin(chain_statistics(np.moveaxis(v, -1, 0))["ess_bulk"]))  # noqa: E731
        step = float(posterior.data["sample_stats"]["step_size"].mean())
        return {"ess": least(x), "ess_squares": least((x - mean) ** 2), "step_size": step}

    for law, (target, support, mean, _) in (laws() | smooth_laws()).items():
        for name in ("entropy", "barrier") if FULL else ("entropy",):
            mirror = {"x": default_mirror(support, mean.size, barrier=name == "barrier")}
            for accept in (0.3, 0.4, 0.5, 0.6, 0.7) if FULL else (0.4, 0.5, 0.6):
                method = pf.MirrorLangevin(mirror=mirror, target_acceptance=accept)
                key = {"law": law, "mirror": name, "target": accept}
                rows.add(key, lambda t=target, m=method, mu=mean: compute(t, m, mu))
    _, axes, save = rows.figure((8, 4.5), 1, 1)
    entropy = [row for row in rows.rows if row["mirror"] == "entropy"]
    for i, law in enumerate(dict.fromkeys(row["law"] for row in entropy)):
        mine = [row for row in entropy if row["law"] == law]
        line = "-" if i < 10 else "--"
        axes[0, 0].plot([row["target"] for row in mine], [row["ess"] for row in mine], f"C{i % 10}o{line}", label=law)
    axes[0, 0].set(yscale="log", xlabel="target acceptance", ylabel="least bulk ESS of 160,000, entropy")
    axes[0, 0].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save()


def smooth_laws() -> dict[str, tuple[Any, Any, np.ndarray, None]]:
    """Laws of more coordinates, and some with little mass at their edges."""
    found: dict[str, tuple[Any, Any, np.ndarray, None]] = {}
    for shape in (6.0, 30.0):
        target = pf.Target.from_log_density(
            lambda x, a=shape: jnp.sum((a - 1) * jnp.log(x) - x), np.ones(1), constraints.positive
        )
        found[f"Gamma({shape:g})"] = target, constraints.positive, np.array([shape]), None
    counts = np.random.default_rng(1).multinomial(100, (1 / np.arange(1, 21)) / np.sum(1 / np.arange(1, 21)))
    for name, a in (
        ("Dirichlet(3), d = 9", np.full(10, 3.0)),
        ("Dirichlet(10), d = 19", np.full(20, 10.0)),
        ("Dirichlet(1 + counts), d = 19", 1.0 + counts),
    ):
        target = pf.Target.from_log_density(
            lambda p, a=a: (a - 1) @ jnp.log(p), np.full(a.size, 1 / a.size), constraints.simplex
        )
        found[name] = target, constraints.simplex, a / a.sum(), None
    return found


def edges(warmup: int = 2000, draws: int = 20_000) -> None:
    """Errors of mean and standard deviation in standard deviations, and the least bulk ESS."""
    rows = Rows(
        "edges", {"chains": 8, "warmup": warmup, "draws": draws},
        ("law", "method", "mean_error", "sd_ratio", "ess", "step_size", "acceptance", "seconds"),
    )  # fmt: skip

    def compute(target, method, mean, sd):
        with np.errstate(all="ignore"):
            posterior = pf.fit(
                target, method, key=0, num_warmup=warmup, num_samples=draws, num_chains=8, progress=False
            )
            x = posterior.draws()["x"]
            stats = posterior.data["sample_stats"]
            ess = chain_statistics(np.moveaxis(x, -1, 0))["ess_bulk"]
            adjusted = getattr(method, "adjusted", True)
            ratio = x.std((0, 1)) / sd
            return {
                "mean_error": float((np.abs(x.mean((0, 1)) - mean) / sd).max()),
                "sd_ratio": float(ratio[np.argmax(np.abs(np.log(np.maximum(ratio, 1e-300))))]),
                "ess": float(np.nanmin(ess)) if np.isfinite(ess).any() else 0.0,
                "step_size": float(stats["step_size"].mean()),
                "acceptance": float(stats["acceptance_rate"].mean()) if adjusted else None,
                "evaluations": int(stats["num_evaluations"].sum()),
            }

    for law, (target, support, mean, sd) in laws().items():
        size = mean.size
        mirrors = {
            name: {"x": default_mirror(support, size, barrier=name == "barrier")} for name in ("entropy", "barrier")
        }
        methods: dict[str, Any] = {}
        for name, mirror in mirrors.items():
            methods[f"MLA, {name}"] = pf.MirrorLangevin(mirror=mirror, adjusted=False, bias_check=False)
            methods[f"MAMLA, {name}"] = pf.MirrorLangevin(mirror=mirror)
        methods["NUTS"] = pf.NUTS()
        for name, method in methods.items():
            rows.add({"law": law, "method": name}, lambda m=method, t=target, mu=mean, s=sd: compute(t, m, mu, s))
    names = list(laws())
    _, axes, save = rows.figure((9, 4), 1, 2)
    for i, method in enumerate(("MLA, entropy", "MLA, barrier", "MAMLA, entropy", "MAMLA, barrier", "NUTS")):
        chosen = {row["law"]: row for row in rows.rows if row["method"] == method}
        wrong = [min(abs(chosen[law]["sd_ratio"] - 1), 1e3) for law in names]
        axes[0, 0].plot(wrong, range(len(names)), f"C{i}o", label=method)
        if not method.startswith("MLA"):
            per = [1000 * chosen[law]["ess"] / chosen[law]["evaluations"] for law in names]
            axes[0, 1].plot(per, range(len(names)), f"C{i}o")
    axes[0, 0].set(xscale="log", yticks=range(len(names)), yticklabels=names, xlabel="|sd / exact − 1|, at most 1,000")
    axes[0, 1].set(xscale="log", yticks=[], xlabel="least bulk ESS per 1,000 evaluations")
    axes[0, 0].legend(fontsize=7)
    save()
