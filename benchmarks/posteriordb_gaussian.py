"""`FBGVI` with and without whitening on the reference posteriors of posteriordb.

``python benchmarks/posteriordb_gaussian.py PATH [--names …] [--whiten auto laplace pathfinder None]
[--expectation price]`` writes ``results/gaussian_on_posteriordb.json`` and ``.md``; rows of other posteriors and
settings stay as they are. PATH is a clone of posteriordb.

One start, default settings but for the whitening, 4,000 draws: Pareto k-hat, the largest error of a mean in posterior
standard deviations before and after weighting by importance, ELBO, what the diagnosis says of convergence, gradients (a
Hessian–vector product counts one), and CPU seconds with compilation.
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np

import pushforward as pf
from pushforward.infer.diagnostics.psis import psis
from pushforward.models import posteriordb

RESULTS = Path(__file__).resolve().parent / "results" / "gaussian_on_posteriordb.json"
KEYS = ("name", "whiten", "expectation")


def measure(name, path, whiten, expectation):
    reference = posteriordb.load(name, path)
    target, began = reference.target(), time.process_time()
    row = {"name": name, "dim": target.dim, "expectation": expectation, "whiten": whiten}
    method = pf.FBGVI(whiten=None if whiten == "None" else whiten, expectation=expectation)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            posterior = pf.fit(target, method, key=0, num_samples=4000, progress=False)
    except pf.PushforwardError as error:
        return row | {"error": str(error)[:160], "seconds": round(time.process_time() - began, 1)}
    seconds, smoothed = time.process_time() - began, psis(posterior.log_weights())
    draws, weights = posterior.draws(), np.exp(smoothed.log_weights)
    errors = {"error_of_means": 0.0, "error_of_corrected_means": 0.0}
    for site in set(draws) & set(reference.draws):
        exact = reference.draws[site].reshape(-1, *reference.draws[site].shape[2:])
        for kind, mean in zip(errors, (draws[site][0].mean(0), np.tensordot(weights, draws[site][0], 1)), strict=True):
            errors[kind] = max(errors[kind], float(np.nanmax(np.abs(mean - exact.mean(0)) / exact.std(0))))
    trace = posterior.iterations
    return row | errors | {
        "k_hat": float(smoothed.k_hat),
        "elbo": float(posterior.elbo()[0]),
        "convergence": posterior.diagnose()["convergence"].level,
        "evaluations": int(trace["num_evaluations"].sum()),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def write(rows):
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    lines = [
        "| posterior | d | whiten | expectation | k-hat | error of means (corrected), sd | ELBO | converged | CPU s |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for r in rows:
        about = f"| {r['name']} | {r['dim']} | {r['whiten']} | {r['expectation']} | "
        if "error" in r:
            lines.append(f"{about}– | – | – | stops: not finite | {r['seconds']} |")
            continue
        lines.append(
            f"{about}{r['k_hat']:.2f} | {r['error_of_means']:.2g} ({r['error_of_corrected_means']:.2g}) | "
            f"{r['elbo']:.2f} | {r['convergence']} | {r['seconds']} |"
        )
    RESULTS.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--names", nargs="+", default=posteriordb.names())
    parser.add_argument("--whiten", nargs="+", default=["auto", "laplace", "pathfinder", "None"])
    parser.add_argument("--expectation", nargs="+", default=["price"])
    args = parser.parse_args()
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name in args.names:
        for expectation in args.expectation:
            for whiten in args.whiten:
                row = measure(name, args.path, whiten, expectation)
                others = [r for r in rows if any(r[k] != row[k] for k in KEYS)]
                rows = sorted([*others, row], key=lambda r: [r[k] for k in KEYS])
                print(row, flush=True)
                write(rows)


if __name__ == "__main__":
    main()
