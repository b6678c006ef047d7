"""The study of `study.toml` from an empty folder, timed: medians over the seeds at its last checkpoint.

    python -m benchmarks.study

Six methods on five posteriors with ten seeds. Writes results/study.json, which the guide to choosing a method quotes.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine

HERE = Path(__file__).resolve().parent
METRICS = ("mean", "sd", "energy", "coverage", "ess_per_evaluation", "ess_per_second")


def main() -> None:
    import pandas as pd

    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "pushforward", "study", str(HERE / "study.toml"), "--out", f"{folder}/study"]
        subprocess.run(command, check=True)
        wall, spent = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        table = pd.read_parquet(f"{folder}/study/results.parquet")
    last = table[table["checkpoint"] == table["checkpoint"].max()]
    medians = last.groupby(["target", "method"], sort=False)[list(METRICS)].median()
    found = {
        "command": "python -m benchmarks.study",
        "machine": about,
        "wall_seconds": round(wall),
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime),
        "budget": int(last["checkpoint"].max()),
        "runs": int(table.groupby(["target", "method", "seed"]).ngroups),
        "medians": {
            metric: {
                target: {method: float(f"{value:.4g}") for (_, method), value in rows.items() if value == value}
                for target, rows in medians[metric].groupby(level="target", sort=False)
            }
            for metric in METRICS
        },
    }
    (HERE / "results" / "study.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['runs']} runs in {wall:.0f} s ({found['cpu_seconds']} s of processors)")


if __name__ == "__main__":
    main()
