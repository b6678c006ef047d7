"""Spline flows with default settings on the development posteriors of posteriordb, against their reference draws.

    python -m benchmarks.posteriordb_flows [--posteriordb PATH] [--keys 0 1 2] [posterior …]

One process per fit. Written down are Pareto k-hat of 4,000 draws and its threshold, whether the diagnosis flags the
fit, the largest error of the means in reference standard deviations (as drawn, and corrected by Pareto-smoothed
weights), the evidence, and what the fit took: steps, gradients, wall and CPU seconds of the whole process, compiling
included. A fit holds if k-hat is below its threshold and the corrected means are within 0.1 sd, or if it says that
k-hat is too large.

Results go to ``results/flows_on_posteriordb.json``; what is there is run again when it is named.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "flows_on_posteriordb.json"
DATABASE = Path(__file__).resolve().parents[1].parent / "shared" / "posteriordb"
NUM_DRAWS = 4000
TOLERANCE = 0.1


def fit(name: str, key: int, database: Path) -> dict:
    """One fit and what became of it."""
    began = time.perf_counter()
    import numpy as np

    import pushforward as pf
    from pushforward.infer.diagnostics.psis import k_hat_threshold, psis
    from pushforward.models import posteriordb

    reference = posteriordb.load(name, database)
    target = reference.target()
    posterior = pf.fit(target, pf.NormalizingFlow(), key=key, num_samples=NUM_DRAWS, progress=False)
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    log_w = posterior.log_weights()
    smoothed, plain = psis(log_w), np.full(NUM_DRAWS, 1 / NUM_DRAWS)
    weights = np.exp(smoothed.log_weights)
    trace, diagnosis = posterior.iterations, posterior.diagnose()
    out = {
        "dim": int(target.dim),
        "k_hat": float(smoothed.k_hat),
        "threshold": float(k_hat_threshold(NUM_DRAWS)),
        "flagged": bool(diagnosis.flagged),
        "warnings": [finding.name for finding in diagnosis.findings if finding.level == "warning"],
        "ess_share": float(1 / np.sum(weights**2) / NUM_DRAWS),
        "mean_error": mean_error(posterior, reference, plain),
        "corrected_mean_error": mean_error(posterior, reference, weights),
        "elbo": float(np.mean(log_w)),
        "evidence": float(np.log(np.mean(np.exp(log_w - log_w.max()))) + log_w.max()),
        "steps": int(trace["loss"].shape[1]),
        "skipped": int(np.sum(trace["skipped"])),
        "gradients": int(np.sum(trace["num_evaluations"])),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "load": os.getloadavg()[0],
    }
    good = out["k_hat"] <= out["threshold"]
    return out | {"holds": out["corrected_mean_error"] < TOLERANCE if good else out["flagged"], "reliable": good}


def mean_error(posterior, reference, weights) -> float:
    """Largest difference of weighted means from the reference's, in reference standard deviations."""
    import numpy as np

    found, errors = posterior.draws(), []
    for site, exact in reference.draws.items():
        if site in found:
            exact = exact.reshape(-1, *exact.shape[2:])
            errors.append(np.nanmax(np.abs(np.tensordot(weights, found[site][0], 1) - exact.mean(0)) / exact.std(0)))
    return float(max(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("posteriors", nargs="*")
    parser.add_argument("--posteriordb", type=Path, default=DATABASE)
    parser.add_argument("--keys", type=int, nargs="+", default=[0])
    parser.add_argument("--one", action="store_true", help="fit the one posterior and key here and print the result")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(fit(given.posteriors[0], given.keys[0], given.posteriordb)))
        return
    from pushforward.models import posteriordb

    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for key in given.keys:
        for name in given.posteriors or posteriordb.names():
            if not given.posteriors and str(key) in found.get(name, {}):
                continue
            command = [sys.executable, "-m", "benchmarks.posteriordb_flows", "--one", name, "--keys", str(key)]
            done = subprocess.run([*command, "--posteriordb", given.posteriordb], capture_output=True, text=True)
            row = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1]}
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            found.setdefault(name, {})[str(key)] = row
            RESULTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(name, key, row, flush=True)


if __name__ == "__main__":
    main()
