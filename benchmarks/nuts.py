"""NUTS side by side: `pf.fit` against BlackJAX called directly, NumPyro's MCMC and nutpie.

    python benchmarks/nuts.py all --posteriordb ../shared/posteriordb [--quick]

Sections: ``cold`` (a fresh process from start to summary, compilation cache empty and filled), ``compiled`` (effective
samples per second of a second run), ``memory`` (peak resident memory), ``overhead`` (`fit` against a bare BlackJAX
loop). Each writes a JSON file and prints a table. All that is compared is measured in turn, round after round, and
medians are shown: on a busy machine the seconds mean little, the ratios more.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from machine import machine  # noqa: E402
from peers import ADAPTERS, JAX_PEERS  # noqa: E402

PACKAGES = ("jax", "blackjax", "numpyro", "nutpie", "pymc", "pytensor", "numba", "pushforward")

TARGETS = {
    "eight_schools": "eight_schools-eight_schools_noncentered",
    "diamonds": "diamonds-diamonds",
    "gp_regr": "gp_pois_regr-gp_regr",
    "lotka_volterra": "hudson_lynx_hare-lotka_volterra",
    "hmm_drive_0": "bball_drive_event_0-hmm_drive_0",
}
WORKER = HERE / "peers" / "worker.py"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=(*SECTIONS, "all"))
    parser.add_argument("--posteriordb", default=str(HERE.parents[1] / "shared" / "posteriordb"))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--peers", nargs="+", default=list(ADAPTERS), choices=ADAPTERS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bits", type=int, default=64, choices=(32, 64))
    parser.add_argument("--quick", action="store_true", help="two rounds, eight schools and gp_regr")
    parser.add_argument("--out", default=str(HERE / "results"))
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.targets = 2, ["eight_schools", "gp_regr"]
    for name in SECTIONS if args.section == "all" else [args.section]:
        rows, table = SECTIONS[name](args)
        record = {"section": name, "machine": machine(PACKAGES), "options": {"rounds": args.rounds, "bits": args.bits}}
        record |= {"rows": rows}
        path = Path(args.out) / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".md").write_text(table + "\n")
        print(f"\n{name}\n{table}", flush=True)


# -- (a) and (c): a fresh process -------------------------------------------------------------------------------------


def cold(args):
    """Wall and CPU seconds and peak memory of a process from start to summary, cache empty, then filled."""
    rows = []
    for target in args.targets:
        with tempfile.TemporaryDirectory() as scratch:
            for round_ in range(args.rounds):
                for peer in args.peers:
                    cache = Path(scratch) / peer / str(round_)
                    cache.mkdir(parents=True)
                    for filled in (False, True):
                        seen = process(args, peer, target, cache)
                        if seen is not None:
                            rows.append({"target": target, "peer": peer, "filled": filled, "round": round_, **seen})
                        print(target, peer, "filled" if filled else "empty", seen, file=sys.stderr, flush=True)
    blocks = []
    for what, filled in (("wall", False), ("wall", True), ("cpu", False), ("cpu", True), ("peak_mb", False)):
        cells = medians([row for row in rows if row["filled"] == filled], what)
        title = {"wall": "wall seconds", "cpu": "CPU seconds", "peak_mb": "peak memory, MB"}[what]
        cache = f", compilation cache {'filled' if filled else 'empty'}"
        blocks.append(f"{title}{cache}\n\n" + table(args, cells, least=True))
    return rows, "\n\n".join(blocks)


def process(args, peer, target, cache):
    """Run a worker in a fresh process; None where it fails."""
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "NUMBA_CACHE_DIR": str(cache / "numba"),
        "PYTENSOR_FLAGS": f"base_compiledir={cache / 'pytensor'}",
    }
    begun = time.perf_counter()
    child = subprocess.Popen(command(args, "cold", peer, target), env=env, stdout=-1, stderr=-1)
    _, error = child.stdout.read(), child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begun
    child.returncode = status
    if status:
        print(error.decode()[-600:], file=sys.stderr)
        return None
    return {
        "wall": round(wall, 3),
        "cpu": round(usage.ru_utime + usage.ru_stime, 3),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
    }


def command(args, mode, peer, target):
    options = ["--posteriordb", args.posteriordb, "--bits", str(args.bits)]
    return [sys.executable, str(WORKER), mode, peer, TARGETS[target], *options]


# -- (b): once compiled -----------------------------------------------------------------------------------------------


def compiled(args):
    """Least bulk ESS per second, warm-up included, of runs that compile nothing; processes stay up, seeds go round."""
    rows = []
    for target in args.targets:
        workers = {}
        try:
            for peer in args.peers:
                workers[peer] = subprocess.Popen(
                    command(args, "serve", peer, target), stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
                )
                if not workers[peer].stdout.readline():  # compiled, one at a time
                    print(target, peer, "failed", file=sys.stderr)
                    del workers[peer]
            for seed in range(1, args.rounds + 1):
                for peer, worker in workers.items():
                    worker.stdin.write(f"{seed}\n")
                    worker.stdin.flush()
                    seen = json.loads(worker.stdout.readline())
                    seen |= {
                        "ess_per_second": seen["ess"] / seen["wall"],
                        "ess_per_cpu_second": seen["ess"] / seen["cpu"],
                    }
                    rows.append({"target": target, "peer": peer, "seed": seed, **seen})
                    print(target, peer, seed, seen, file=sys.stderr, flush=True)
        finally:
            for worker in workers.values():
                worker.stdin.close()
                worker.wait()
    parts = {
        "ess_per_second": "least bulk ESS per wall second",
        "ess_per_cpu_second": "least bulk ESS per CPU second",
        "wall": "wall seconds",
        "ess": "least bulk ESS",
        "error": "largest error of a mean, in posterior sd",
    }
    blocks = [
        f"{title}\n\n" + table(args, medians(rows, what), least=what in ("wall", "error"), ratios=what != "error")
        for what, title in parts.items()
    ]
    return rows, "\n\n".join(blocks)


# -- (c): memory and overhead -----------------------------------------------------------------------------------------


def memory(args):
    """Peak resident memory of a fit with ``store=``, summary included, over the number of draws."""
    rows = []
    for draws in (1000, 10_000) if args.quick else (1000, 10_000, 100_000):
        with tempfile.TemporaryDirectory() as scratch:
            text = (
                "import sys, resource, pushforward as pf\n"
                "from pushforward.models import posteriordb\n"
                f"target = posteriordb.load({TARGETS['eight_schools']!r}, {args.posteriordb!r}).target()\n"
                f"p = pf.fit(target, pf.NUTS(), num_samples={draws}, store={scratch + '/run'!r}, progress=False)\n"
                "table = p.summary()\n"
                "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, float(table['ess_bulk'].min()))\n"
            )
            begun = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
            if done.returncode:
                print(done.stderr[-600:], file=sys.stderr)
                continue
            peak, ess = map(float, done.stdout.split()[-2:])
            size = sum(f.stat().st_size for f in Path(scratch).rglob("*") if f.is_file()) / 2**20
            rows.append(
                {"draws": draws, "peak_mb": peak, "ess": ess, "seconds": time.perf_counter() - begun, "store_mb": size}
            )
            print(rows[-1], file=sys.stderr, flush=True)
    lines = ["| draws per chain | peak MB | store MB | seconds |", "|---|---|---|---|"]
    lines += [f"| {r['draws']} | {r['peak_mb']:.0f} | {r['store_mb']:.0f} | {r['seconds']:.0f} |" for r in rows]
    return rows, "\n".join(lines)


def overhead(args):
    """Time per gradient of `fit` against those of bare BlackJAX loops with the same kernel, start and settings."""
    rows, lines = (
        [],
        [
            "| target | draws | fit, wall s | / loop that keeps the same | / loop that keeps positions |",
            "|---|---|---|---|---|",
        ],
    )
    for target in (name for name in ("eight_schools", "hmm_drive_0") if name in args.targets):
        done = subprocess.run(
            [sys.executable, str(HERE / "peers" / "overhead.py"), args.posteriordb, TARGETS[target]]
            + (["--seconds", "3"] if args.quick else []) + ["--rounds", str(args.rounds)],
            capture_output=True, text=True,
        )  # fmt: skip
        print(done.stderr[-600:], file=sys.stderr)
        seen = [json.loads(line) for line in done.stdout.splitlines()]
        rows += [{"target": target, **row} for row in seen]
        wall = statistics.median(row["fit"] for row in seen)
        ratios = [statistics.median(row["fit"] / row[loop] for row in seen) for loop in ("same", "least")]
        lines.append(f"| {target} | {seen[0]['draws']:,} | {wall:.2f} | {ratios[0]:.3f} | {ratios[1]:.3f} |")
    return rows, "\n".join(lines)


# -- tables -----------------------------------------------------------------------------------------------------------


def medians(rows, what):
    """Median by (target, peer)."""
    keys = {(row["target"], row["peer"]) for row in rows}
    return {k: statistics.median(r[what] for r in rows if (r["target"], r["peer"]) == k) for k in keys}


def table(args, cells, *, least, ratios=True):
    """A row per target; what pushforward reached as a multiple of the best JAX peer and of the best nutpie."""
    best = min if least else max
    groups = {"best JAX peer": JAX_PEERS, "best nutpie": tuple(p for p in ADAPTERS if p.startswith("nutpie"))}
    head = ["", *args.peers, *([f"pushforward / {name}" for name in groups] if ratios else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for target in args.targets:
        row = [target] + [short(cells.get((target, peer))) for peer in args.peers]
        for peers in groups.values() if ratios else ():
            values = [cells[target, peer] for peer in peers if (target, peer) in cells]
            ours = cells.get((target, "pushforward"))
            row.append(f"{ours / best(values):.2f}" if values and ours is not None else "–")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def short(value):
    return "–" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


SECTIONS = {"cold": cold, "compiled": compiled, "memory": memory, "overhead": overhead}

if __name__ == "__main__":
    main()
