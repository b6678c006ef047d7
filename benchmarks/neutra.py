"""NUTS in the coordinates of a flow or of a normal (`precondition=`), against NUTS as it is shipped.

    python -m benchmarks.neutra [--targets diamonds funnel twisted] [--only NUTS Pathfinder FBGVI flow] [--draws 1000]

- ``diamonds``: the regression of posteriordb, 26 dimensions, strongly correlated; nearly normal.
- ``funnel``: v ~ N(0, 3²), nine x ~ N(0, e^v) (Neal 2003), which no one metric suits.
- ``twisted``: four pairs a ~ N(0, 1), b | a ~ N(a² − 1, 0.1²): thin curved sheets.

Four chains of 1,000 warm-up and as many kept iterations; each sampler runs twice with other keys, and the second is
measured, which compiles nothing. Least bulk ESS over all coordinates per second and per gradient, warm-up included;
the largest error of a mean in standard deviations; divergences. What the approximation itself cost, compiling
included, is written beside it. Rows that are not asked for stay. Writes ``results/neutra.json``.
"""

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import pushforward as pf

RESULTS = Path(__file__).resolve().parent / "results"
DATABASE = Path(__file__).resolve().parents[1].parent / "shared" / "posteriordb"


def funnel(u):
    v, x = u[0], u[1:]
    return -0.5 * (v / 3) ** 2 - 0.5 * jnp.sum(x**2) * jnp.exp(-v) - 0.5 * x.size * v


def twisted(u):
    a, b = u[:4], u[4:]
    return -0.5 * jnp.sum(a**2) - 0.5 * jnp.sum(((b - a**2 + 1) / 0.1) ** 2)


def diamonds():
    """The target, and means and standard deviations of each site."""
    from pushforward.models import posteriordb

    reference = posteriordb.load("diamonds-diamonds", DATABASE)
    flat = {site: draws.reshape(-1, *draws.shape[2:]) for site, draws in reference.draws.items()}
    return reference.target(), {site: (draws.mean(0), draws.std(0)) for site, draws in flat.items()}


def made(log_density, dim, sd):
    target = pf.Target.from_log_density(log_density, np.zeros(dim))
    return target, {"x": (np.zeros(dim), np.asarray(sd))}


TARGETS = {
    "diamonds": (diamonds, {"num_steps": 1500}),
    "funnel": (lambda: made(funnel, 10, [3.0] + [np.exp(9 / 4)] * 9), {}),
    "twisted": (lambda: made(twisted, 8, [1.0] * 4 + [np.sqrt(2.01)] * 4), {}),
}


APPROXIMATIONS = {
    "NUTS": None,
    "Pathfinder": lambda **_: pf.Pathfinder(),
    "FBGVI": lambda **_: pf.FBGVI(),
    "flow": lambda **options: pf.NormalizingFlow(**options),
}
"""Of which NUTS takes its coordinates; flows with the options of the target."""


def approximated(target, method):
    posterior = pf.fit(target, method, key=0, num_samples=4000, progress=False)
    print(posterior.diagnose(), flush=True)
    return posterior


def timed(run):
    cpu, wall = time.process_time(), time.perf_counter()
    out = run()
    return out, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def sample(target, method, draws, moments):
    """The second of two runs, measured."""
    run = lambda key: pf.fit(target, method, key=key, num_samples=draws, num_warmup=1000, progress=False)  # noqa: E731
    run(1)
    posterior, seconds = timed(lambda: run(2))
    found = posterior.draws()
    errors = [
        np.max(np.abs(found[site].mean((0, 1)) - mean) / sd) for site, (mean, sd) in moments.items() if site in found
    ]
    summary = posterior.summary()
    ess = float(np.min(summary["ess_bulk"]))
    gradients = int(posterior.record["evaluations"])
    return {
        "ess": ess,
        "seconds": seconds,
        "ess_per_second": ess / seconds["wall"],
        "ess_per_cpu_second": ess / seconds["cpu"],
        "gradients": gradients,
        "ess_per_1000_gradients": 1000 * ess / gradients,
        "leapfrogs": float(np.mean(posterior.data["sample_stats"]["n_steps"])),
        "divergences": int(np.sum(posterior.data["sample_stats"]["diverging"])),
        "max_rhat": float(np.max(summary["r_hat"])),
        "mean_error": float(max(errors)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--only", nargs="+", default=list(APPROXIMATIONS), choices=APPROXIMATIONS)
    args = parser.parse_args()
    path = RESULTS / "neutra.json"
    for name in args.targets:
        make, options = TARGETS[name]
        target, moments = make()
        for label in args.only:
            approximate = APPROXIMATIONS[label]
            row, method = {"date": datetime.now(UTC).date().isoformat()}, pf.NUTS()
            if approximate is not None:
                given = approximate(**options)
                found, row["approximation"] = timed(lambda t=target, m=given: approximated(t, m))
                method = pf.NUTS(precondition=found)
            row |= {"load": os.getloadavg()[0]} | sample(target, method, args.draws, moments)
            print(name, label, row, flush=True)
            record = json.loads(path.read_text()) if path.exists() else {}
            record.setdefault(name, {"dim": int(target.dim)})["NUTS" if label == "NUTS" else f"NUTS, {label}"] = row
            path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
