"""A process with one sampler on one target.

``worker.py cold …`` goes from nothing to a summary and exits; ``worker.py serve …`` compiles once and then answers
each seed on standard input with a line of JSON.
"""

import argparse
import json
import sys
import time
from pathlib import Path

BEGUN = time.perf_counter()
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


def make(args):
    import importlib

    from peers import ADAPTERS
    from pushforward.models import posteriordb

    if args.bits == 64 and not args.peer.startswith(("pushforward", "nutpie-pymc")):
        import jax

        jax.config.update("jax_enable_x64", True)
    reference = posteriordb.load(args.target, args.posteriordb)
    module = importlib.import_module(f"peers.{ADAPTERS[args.peer]}")
    adapter = module.Adapter(reference, args.peer, args.chains, args.warmup, args.draws)
    return adapter, reference


def worst_ess(draws, parameters):
    """Least bulk ESS over the parameters that have reference draws; the same function for all."""
    import numpy as np

    from pushforward.infer.diagnostics.chains import chain_statistics

    out = []
    for name, shape in parameters.items():
        values = np.asarray(draws[name], float).reshape(*draws[name].shape[:2], -1)
        assert values.shape[2] == int(np.prod(shape)), (name, draws[name].shape, shape)
        out.append(chain_statistics(np.ascontiguousarray(np.moveaxis(values, -1, 0)))["ess_bulk"].min())
    return float(min(out))


def worst_error(draws, reference):
    """Largest error of a mean in reference standard deviations, to see that all sample the same posterior."""
    import numpy as np

    out = []
    for name, truth in reference.draws.items():
        mean, sd = truth.mean(axis=(0, 1)), truth.std(axis=(0, 1))
        out.append(np.max(np.abs(np.asarray(draws[name]).mean(axis=(0, 1)) - mean) / sd))
    return float(max(out))


def measure(adapter, reference, seed):
    wall, cpu = time.perf_counter(), time.process_time()
    draws, evaluations = adapter.run(seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    ess = worst_ess(draws, reference.parameters)
    error = worst_error(draws, reference)
    return {"wall": wall, "cpu": cpu, "ess": ess, "error": error, "evaluations": evaluations}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("cold", "serve"))
    parser.add_argument("peer")
    parser.add_argument("target")
    parser.add_argument("--posteriordb", required=True)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--bits", type=int, default=64, choices=(32, 64))
    args = parser.parse_args()
    adapter, reference = make(args)
    if args.mode == "cold":
        adapter.run(0)
        text = adapter.summary()
        if text:
            print(text, file=sys.stderr)
        print(json.dumps({"inside": time.perf_counter() - BEGUN}), flush=True)
        return
    first = measure(adapter, reference, 0)
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(adapter, reference, int(line))), flush=True)


if __name__ == "__main__":
    main()
