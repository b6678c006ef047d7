"""Seconds per gradient of reverse-KL training: path gradients by the score recursion, by the inverse, and plain ones.

    python benchmarks/path_gradients.py [--quick]

Coupling and inverse autoregressive flows in 16 and 64 dimensions, 6 layers, 256 draws, in 32 bits; the target is a
normal, so that the flow is all the work. In one process, in turn: least and median of the rounds, and CPU seconds,
which other work on the machine disturbs less. The flows' parameters are moved by N(0, 0.05²) from flowjax's start, near
which the recursion's iteration would end early.

    plain       our Reparameterised(): the whole derivative of log π − log q through the draws
    drop-in     our StickingTheLanding(): the score of q by a second pass, through the inverse
    recursion   our FastPath(): the score carried along
    flowjax     flowjax's ElboLoss on the same flow, stick_the_landing off and on

The flows are flowjax's; their forward direction is the one that is drawn from. Writes results/path_gradients.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from flowjax import flows
from flowjax.distributions import StandardNormal
from flowjax.train.losses import ElboLoss

from pushforward.infer.variational.estimators import FastPath, Reparameterised, StickingTheLanding, split
from pushforward.infer.variational.flows.flow import Flow
from pushforward.infer.variational.flows.foreign import Foreign
from pushforward.infer.variational.objectives import ELBO

DRAWS, LAYERS = 256, 6


def log_density(u):
    """A normal with other scales than the flow's start."""
    return -0.5 * jnp.sum((u * jnp.linspace(0.5, 2.0, u.size)) ** 2)


def contestants(kind, dim):
    """Name → a compiled function of a key that returns a gradient."""
    make = flows.coupling_flow if kind == "coupling" else flows.masked_autoregressive_flow
    made = make(
        jax.random.key(0),
        base_dist=StandardNormal((dim,)),
        invert=False,
        flow_layers=LAYERS,
        nn_width=64,
        nn_depth=2,
    )
    params, static = split(made)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    made = eqx.combine(jax.tree.unflatten(tree, leaves), static)
    q = Flow(Foreign.wrap(made.bijection))
    ours = {"plain": Reparameterised(), "drop-in": StickingTheLanding(), "recursion": FastPath()}
    found = {
        name: jax.jit(lambda key, e=e: e.value_and_grad(ELBO(DRAWS), q, log_density, key).grads)
        for name, e in ours.items()
    }
    params, static = split(made)
    for name, landing in (("flowjax plain", False), ("flowjax stick the landing", True)):
        loss = ElboLoss(log_density, DRAWS, stick_the_landing=landing)
        found[name] = jax.jit(lambda key, loss=loss: jax.grad(lambda p: loss(p, static, key))(params))
    return found


def measure(run, keys):
    """Wall and CPU seconds per call."""
    wall, cpu = time.perf_counter(), time.process_time()
    for key in keys:
        jax.block_until_ready(run(key))
    return (time.perf_counter() - wall) / len(keys), (time.process_time() - cpu) / len(keys)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 gradients instead of 12 of 3")
    rounds, calls = (3, 2) if parser.parse_args().quick else (12, 3)
    rows = []
    for kind in ("coupling", "inverse autoregressive"):
        for dim in (16, 64):
            runs = contestants(kind, dim)
            compiled = {name: measure(run, [jax.random.key(0)]) for name, run in runs.items()}
            seconds = {name: [] for name in runs}
            for i in range(rounds):
                keys = jax.random.split(jax.random.key(i + 1), calls)
                for name, run in runs.items():
                    seconds[name].append(measure(run, keys))
            least = {name: min(wall for wall, _ in times) for name, times in seconds.items()}
            cpu = {name: statistics.median(cpu for _, cpu in times) for name, times in seconds.items()}
            for name, times in seconds.items():
                row = {"flow": kind, "dim": dim, "gradient": name, "least_ms": 1e3 * least[name]}
                row |= {"median_ms": 1e3 * statistics.median(wall for wall, _ in times), "cpu_ms": 1e3 * cpu[name]}
                row |= {"first_call_s": compiled[name][0], "of_plain": least[name] / least["plain"]}
                row["of_plain_cpu"] = cpu[name] / cpu["plain"]
                rows.append(row)
                print(
                    f"{kind:<23}{dim:>3}  {name:<26}{row['least_ms']:>9.2f} ms (median {row['median_ms']:.2f}, CPU "
                    f"{row['cpu_ms']:.2f}), of plain {row['of_plain']:.2f}, CPU {row['of_plain_cpu']:.2f}; "
                    f"first call {row['first_call_s']:.1f} s",
                    flush=True,
                )
    about = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
    about |= {"load": os.getloadavg()[0], "draws": DRAWS, "layers": LAYERS, "rounds": rounds, "calls": calls}
    path = Path(__file__).parent / "results" / "path_gradients.json"
    path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
