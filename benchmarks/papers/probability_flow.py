"""Convergence of probability-flow ODEs: Gaussians in closed form (Gao & Zhu 2024), and errors by calls of the score.

    python -m benchmarks.papers.probability_flow [--quick]

1. Starting from N(0, σ_T² I) in place of the noised target: W2 of the exact flow's end, and the bound
   ‖x₀‖/√(1 + m₀ ρ_T²).
2. The exponential integrator with exact scores and uniform steps of time: W2 by the number of steps, and its order.
3. The fewest steps with which W2 ≤ ε, over the best T, by schedule, accuracy and dimension.
4. Root mean square error of 512 paths by calls of the score, for solvers and grids, on four modes in the plane
   (He, Rojas & Tao 2024), whitened; mean over five sets of starts.
5. Orders of convergence on a Gaussian, by regression.

Tables 1 to 3 are for product Gaussians, on which steps are affine and W2 is exact. Writes
results/probability_flow.json.
"""

import argparse
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.papers.where import RESULTS
from pushforward.samplers.diffusion.schedules import (
    AbstractVP,
    ConstantVP,
    ExponentialVE,
    LinearVP,
    PolynomialVE,
    PolynomialVP,
    edm_grid,
    log_grid,
    time_grid,
)
from pushforward.samplers.diffusion.scores import GaussianScore, MixtureScore
from pushforward.samplers.diffusion.solvers import (
    DDIM,
    DPM2,
    RK4,
    DPMpp2M,
    DPMpp3M,
    FrozenScore,
    Heun,
    num_calls,
    solve,
)

FOUR_WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
FOUR_MEANS = np.array([[0.0, 0.0], [0.0, 11.0], [9.0, 9.0], [11.0, 0.0]])
FOUR_COVARIANCES = np.array(
    [[[1, 0.5], [0.5, 1]], [[0.3, -0.2], [-0.2, 0.3]], [[1, 0.3], [0.3, 1]], [[1.2, -1], [-1, 1.2]]]
)


def form(schedule):
    return "vp" if isinstance(schedule, AbstractVP) else "ve"


def initialisation():
    """W2 of the exact flow from the wrong base, and its bound: d = 10, sd .2 … 1 in ratios, mean .5."""
    sd, mean, rows = np.geomspace(0.2, 1, 10), 0.5, []
    for name, schedule, times in [("VP", ConstantVP(1.0), (1, 2, 4, 8)), ("VE", ExponentialVE(1.0, 1.0), (1, 2, 4, 8))]:
        for t in times if name == "VP" else (1.0, 2.0, 4.0, 8.0):
            alpha, sigma, rho = (float(f(float(t))) for f in (schedule.alpha, schedule.sigma, schedule.rho))
            shrink = sd / np.sqrt(alpha**2 * sd**2 + sigma**2)
            exact = np.sqrt(np.sum((mean * alpha * shrink) ** 2 + (sd - shrink * sigma) ** 2))
            bound = np.sqrt(np.sum(mean**2 + sd**2)) / np.sqrt(1 + rho**2 / sd.max() ** 2)
            rows.append({"schedule": name, "T": t, "W2": exact, "bound": bound})
    return rows


@functools.partial(jax.jit, static_argnames="which")
def w2(grid, mean, sd, base, which):
    """Of a coordinate: the affine map of the steps, read off two points."""
    score = GaussianScore(mean, sd**2)
    ends = jax.vmap(lambda y: solve(score, FrozenScore(which), grid, y))(jnp.stack([0 * mean, jnp.ones_like(mean)]))
    offset, slope = ends[0], ends[1] - ends[0]
    return jnp.sqrt(jnp.sum((offset - mean) ** 2 + (slope * base - sd) ** 2))


def uniform(schedule, t, count, padded):
    """Levels of uniform times down to 0, with steps that do nothing in front, so that lengths repeat."""
    times = t * jnp.concatenate([jnp.ones(padded - count), jnp.linspace(1, 0, count + 1)])
    return schedule.rho(times)


def order():
    sd, mean = jnp.geomspace(0.2, 1, 10), 0.5 * jnp.ones(10)
    schedule, rows = ConstantVP(1.0), []
    for count in (50, 100, 200, 400, 800, 1600):
        grid = uniform(schedule, 12.0, count, count)
        rows.append({"steps": count, "W2": float(w2(grid, mean, sd, grid[0], "vp"))})
    slope = -np.polyfit(np.log([r["steps"] for r in rows]), np.log([r["W2"] for r in rows]), 1)[0]
    return {"rows": rows, "order": slope}


SCHEDULES = {
    "VP constant, β = 1": (ConstantVP(1.0), 14.0),
    "VP linear, β = t": (PolynomialVP(1.0, 0.0, 1.0), 6.0),
    "VP linear, β = 1 + t": (PolynomialVP(1.0, 1.0, 1.0), 6.0),
    "VP linear, β = .1 + 19.9 t": (LinearVP(), 2.0),
    "VE e^(t/2)": (ExponentialVE(1.0, 0.5), 16.0),
    "VE 1 + t": (PolynomialVE(1.0, 1.0, 1.0), 60.0),
    "VE (1 + t)^½": (PolynomialVE(1.0, 1.0, 0.5), 250.0),
}


def fewest(schedule, longest, epsilon, most):
    """The least K with min_T W2 ≤ ε for d = 1, sd .7, mean .5; None if above ``most``."""
    times = jnp.geomspace(0.2, longest, 200)
    mean, sd = jnp.array([0.5]), jnp.array([0.7])

    def best(count):
        padded = 8 if count <= 8 else 2 ** int(np.ceil(np.log2(count)))
        grids = jax.vmap(lambda t: uniform(schedule, t, count, padded))(times)
        return float(jnp.min(jax.vmap(lambda g: w2(g, mean, sd, g[0], form(schedule)))(grids)))

    high = 1
    while best(high) > epsilon:
        high *= 2
        if high > most:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if best(middle) <= epsilon else (middle, high)
    return high


def complexity(quick):
    """W2 of d equal coordinates is √d times that of one: (d, ε) counts as (1, ε/√d)."""
    cells, rows = [(1, 0.1), (1, 0.05), (1, 0.025), (4, 0.1), (16, 0.1), (64, 0.1)], []
    for name, (schedule, longest) in SCHEDULES.items():
        found = {}
        for d, epsilon in cells:
            target = epsilon / np.sqrt(d)
            if quick and target < 0.02:
                continue
            if target not in found:
                found[target] = fewest(schedule, longest, target, 8192)
            rows.append({"schedule": name, "d": d, "epsilon": epsilon, "steps": found[target]})
        print(name, {round(float(k), 4): v for k, v in found.items()}, flush=True)
    return rows


def four_modes():
    loc = FOUR_WEIGHTS @ FOUR_MEANS
    centred = FOUR_MEANS - loc
    covariance = np.einsum("k,kij->ij", FOUR_WEIGHTS, FOUR_COVARIANCES + centred[:, :, None] * centred[:, None, :])
    inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    covariances = inverse @ FOUR_COVARIANCES @ inverse.T
    return MixtureScore.from_moments(
        FOUR_WEIGHTS, centred @ inverse.T, 0.5 * (covariances + covariances.transpose(0, 2, 1))
    )


GRIDS = {
    "log ρ": log_grid,
    "EDM": edm_grid,
    "VP time": lambda *levels: time_grid(ConstantVP(1.0), *levels),
}
ROWS = [
    ("frozen score, VP form", FrozenScore("vp"), "log ρ"),
    ("frozen score, VE form", FrozenScore("ve"), "log ρ"),
    ("DDIM", DDIM(), "EDM"),
    ("DDIM", DDIM(), "log ρ"),
    ("Heun", Heun(), "EDM"),
    ("DPM-2", DPM2(), "log ρ"),
    ("DPM-Solver++ 2M", DPMpp2M(), "log ρ"),
    ("DPM-Solver++ 3M", DPMpp3M(), "log ρ"),
    ("RK4", RK4(), "EDM"),
    ("RK4", RK4(), "log ρ"),
    ("DDIM", DDIM(), "VP time"),
    ("Heun", Heun(), "VP time"),
    ("DPM-Solver++ 2M", DPMpp2M(), "VP time"),
    ("RK4", RK4(), "VP time"),
]


@functools.partial(jax.jit, static_argnames="solver")
def ends(score, solver, grid, starts):
    return jax.vmap(lambda y: solve(score, solver, grid, y))(starts)


def by_calls(quick):
    score, rows = four_modes(), []
    sets = [np.sqrt(1601) * np.random.default_rng(seed).normal(size=(512, 2)) for seed in range(1 if quick else 5)]
    truths = [ends(score, RK4(), jnp.asarray(log_grid(40.0, 0.005, 800)), starts) for starts in sets]
    again = ends(score, RK4(), jnp.asarray(log_grid(40.0, 0.005, 400)), sets[0])
    print(
        f"reference: its own difference to half the steps {np.sqrt(np.mean(np.sum((again - truths[0]) ** 2, 1))):.1e}"
    )
    for name, solver, grid in ROWS:
        row = {"solver": name, "grid": grid, "error": {}, "median": {}}
        for calls in (10, 20, 40, 80, 160):
            steps = max(1, round(calls / solver.calls))
            levels = GRIDS[grid](40.0, 0.005, steps)
            gaps = [np.sum((ends(score, solver, jnp.asarray(levels), s) - t) ** 2, 1) for s, t in zip(sets, truths)]
            used = num_calls(solver, levels)
            row["error"][used] = float(np.mean([np.sqrt(np.mean(g)) for g in gaps]))
            row["median"][used] = float(np.mean([np.sqrt(np.median(g)) for g in gaps]))
        rows.append(row)
        print(f"{name:>22} {grid:>8}", {k: f"{v:.4f}" for k, v in row["error"].items()}, flush=True)
    return rows


def orders():
    """Largest error over three starts on N(.5, .4²), ρ from 20 to .05 on a log grid, and the slope."""
    score, rows = GaussianScore.from_moments([0.5], [0.16]), []
    starts = jnp.array([-30.0, 7, 25])[:, None]
    exact = 0.5 + (starts - 0.5) * np.sqrt((0.16 + 0.05**2) / (0.16 + 400))
    for solver in (FrozenScore("vp"), FrozenScore("ve"), DDIM(), Heun(), DPM2(), DPMpp2M(), DPMpp3M(), RK4()):
        counts = (1000, 2000, 4000, 8000) if isinstance(solver, DPMpp3M) else (40, 80, 160, 320)
        errors = [
            float(np.max(np.abs(ends(score, solver, jnp.asarray(log_grid(20.0, 0.05, n)), starts) - exact)))
            for n in counts
        ]
        name = type(solver).__name__ + (f" {solver.form}" if isinstance(solver, FrozenScore) else "")
        rows.append(
            {"solver": name, "steps": counts, "errors": errors}
            | {"order": float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])}
        )
        print(f"{name:>16} {rows[-1]['order']:.3f}", [f"{e:.1e}" for e in errors], flush=True)
    return rows


PARTS = {
    "initialisation": lambda quick: initialisation(),
    "order": lambda quick: order(),
    "orders": lambda quick: orders(),
    "errors by calls": by_calls,
    "complexity": complexity,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="coarse accuracies and one set of starts only")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run; others are kept")
    arguments = parser.parse_args()
    path = RESULTS / "probability_flow.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part in arguments.only:
        results[part] = PARTS[part](arguments.quick)
        print(part, json.dumps(results[part], default=float), flush=True)
        path.write_text(json.dumps(results, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
