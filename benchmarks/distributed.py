"""What several processes cost, and what 10,000 agents over a wide-area network would: seconds and bytes.

    python benchmarks/distributed.py [processes] [latency] [--layouts 1x1 1x2 2x1 4x1]

* ``processes``: for each layout (processes x devices) the start, each collective (inside a compiled loop, per call, by
  size), what a run exchanges between rounds, and 200 iterations of `pf.DistributedADMM` (8 agents, 100 chains, d = 10)
* ``latency``: synchronous rounds of agents whose messages take random times. A round of an agent begins when the last
  of its neighbours' messages is there; the recursion is compared with agents that really wait (asyncio), and then run
  for 10,000 agents
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
SIZES = (10, 1_000, 100_000)
STEPS = 50
ROUNDS = 5
BYTES_PER_SECOND = 1.25e7
"""100 Mbit/s: the line of an institution."""
OVERHEAD = 100
"""Bytes of headers per message."""


# -- processes --------------------------------------------------------------------------------------------------------


def collectives():
    """Milliseconds of one call inside a compiled loop, by collective and size; best of some rounds."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    n = jax.device_count()
    mesh = Mesh(np.array(jax.devices()), ("all",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("all"))
    ring = [(i, (i + 1) % n) for i in range(n)]
    bodies = {
        "psum": lambda x: jax.lax.psum(x, "all") / n,
        "ppermute": lambda x: jax.lax.ppermute(x, "all", ring),
        "all_gather": lambda x: jnp.mean(jax.lax.all_gather(x, "all"), 0),
        "nothing": lambda x: x * 0.5,
    }
    found = {}
    for name, body in bodies.items():
        for size in SIZES:

            def loop(x, body=body):
                return jax.lax.fori_loop(0, STEPS, lambda _, x: body(x) + 1.0, x)

            cut = PartitionSpec("all")
            program = jax.jit(jax.shard_map(loop, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False))
            x = jax.make_array_from_callback((n * size,), rows, lambda at, size=size: np.ones(n * size, np.float32)[at])
            found[f"{name} {size}"] = 1e3 * best(lambda program=program, x=x: program(x).block_until_ready()) / STEPS
    return found


def best(call):
    call()
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def admm():
    """Seconds per 200 iterations of a fit, compiling not counted."""
    import pushforward as pf

    rng = np.random.default_rng(0)
    a = rng.standard_normal((8 * 20, 10))
    y = a @ np.ones(10) + rng.standard_normal(160)

    def log_likelihood(b, row):
        return -0.5 * (row[1] - row[0] @ b) ** 2

    target = pf.Target.from_factors(lambda b: -0.5 * (b @ b), log_likelihood, (a, y), np.zeros(10)).sharded(8)
    method = pf.DistributedADMM("ring", rho=5.0, precondition=None)
    options = {"num_chains": 100, "chains_per_program": 100, "num_warmup": 0, "progress": False}
    posterior = pf.fit(target, method, num_samples=200, **options)
    begun = time.perf_counter()
    posterior = pf.fit(target, method, num_samples=400, chunk_length=200, **options)
    return (time.perf_counter() - begun) / 2, float(posterior.draws()["x"].mean())


def child():
    began = time.perf_counter()
    import pushforward as pf

    imported = time.perf_counter()
    me = pf.distributed.initialize()
    joined = time.perf_counter()
    found = {"import": imported - began, "initialize and self-test": joined - imported, "collectives": collectives()}
    sizes = {"short": 100, "a megabyte": 10**6}
    found["exchange"] = {
        name: 1e3 * best(lambda size=size: pf.distributed.exchange(None, {"x": np.zeros(size, np.uint8)}))
        for name, size in sizes.items()
    }
    found["admm seconds per 200"], found["admm mean"] = admm()
    if me.index == 0:
        print("RESULT " + json.dumps(found), flush=True)


def processes(layouts):
    found = {}
    for layout in layouts:
        count, devices = map(int, layout.split("x"))
        command = [sys.executable, "-m", "pushforward", "launch", "-n", str(count), "--timeout", "300"]
        command += ["--devices-per-process", str(devices), __file__, "child"]
        env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        found[layout] = json.loads(line.removeprefix("RESULT "))
        print(layout, json.dumps(found[layout], indent=1), flush=True)
    return found


# -- latency ----------------------------------------------------------------------------------------------------------


def torus(side):
    """Neighbours of each agent, (n, 4)."""
    at = np.arange(side * side).reshape(side, side)
    return np.stack([np.roll(at, 1, 0), np.roll(at, -1, 0), np.roll(at, 1, 1), np.roll(at, -1, 1)], -1).reshape(-1, 4)


def random_regular(n, rng):
    """A union of two random cycles: degree 4, an expander with high probability."""
    columns = []
    for _ in range(2):
        order = rng.permutation(n)
        after, before = np.empty(n, int), np.empty(n, int)
        after[order], before[order] = np.roll(order, -1), np.roll(order, 1)
        columns += [after, before]
    return np.stack(columns, 1)


def latencies(rng, shape, median, jitter):
    """Log-normal one-way times: heavy to the right, as those of long lines are."""
    return median * np.exp(jitter * rng.standard_normal(shape))


def recursion(neighbours, rounds, rng, *, median, jitter, compute, message):
    """Seconds until the last agent has done all rounds: an agent goes on when all messages of its round are there."""
    ready = np.zeros(len(neighbours))
    for _ in range(rounds):
        sent = ready + compute
        arrives = sent[neighbours] + message / BYTES_PER_SECOND * neighbours.shape[1]
        arrives = arrives + latencies(rng, neighbours.shape, median, jitter)
        ready = np.maximum(sent, arrives.max(1))
    return ready.max()


async def _live(neighbours, rounds, rng, median, jitter, compute):
    n = len(neighbours)
    boxes = [[asyncio.Queue() for _ in range(2)] for _ in range(n)]
    loop = asyncio.get_running_loop()
    waits = latencies(rng, (rounds, *neighbours.shape), median, jitter)
    back = [np.flatnonzero((neighbours == i).any(1)) for i in range(n)]

    async def agent(i):
        for k in range(rounds):
            await asyncio.sleep(compute)
            for j in back[i]:
                slot = int(np.flatnonzero(neighbours[j] == i)[0])
                loop.call_later(waits[k, j, slot], boxes[j][k % 2].put_nowait, i)
            for _ in neighbours[i]:
                await boxes[i][k % 2].get()

    begun = time.perf_counter()
    await asyncio.gather(*(agent(i) for i in range(n)))
    return time.perf_counter() - begun


def latency():
    """The recursion against agents that really wait, and the plan for 10,000 agents."""
    found = {}
    setting = {"median": 0.5, "jitter": 0.5, "compute": 0.1}
    side, rounds = 6, 15
    neighbours = torus(side)
    predicted = [recursion(neighbours, rounds, np.random.default_rng(s), **setting, message=0) for s in range(20)]
    lived = asyncio.run(_live(neighbours, rounds, np.random.default_rng(0), *setting.values()))
    found["check"] = {"agents": side * side, "rounds": rounds, **setting, "live": lived,
                      "recursion": [min(predicted), float(np.mean(predicted)), max(predicted)]}  # fmt: skip
    rng = np.random.default_rng(0)
    graphs = {"torus": torus(100), "random": random_regular(10_000, rng)}
    plan = []
    for name, neighbours in graphs.items():
        for dim in (100, 10_000):
            for jitter in (0.0, 0.5, 1.0):
                message = 8 * dim + OVERHEAD
                wide = {"median": 0.05, "jitter": jitter, "compute": 0.01, "message": message}
                per_round = recursion(neighbours, 300, rng, **wide) / 300
                plan.append({"graph": name, "dim": dim, "jitter": jitter, "bytes per agent and round": 4 * message,
                             "bytes per round": 4 * message * 10_000, "seconds per round": per_round,
                             "hours for 10,000 rounds": per_round * 10_000 / 3600})  # fmt: skip
    found["plan"] = plan
    print(json.dumps(found, indent=1))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["processes", "latency"])
    parser.add_argument("--layouts", nargs="*", default=["1x1", "1x2", "1x4", "2x1", "4x1"])
    options = parser.parse_args()
    if options.parts == ["child"]:
        child()
        return
    path = RESULTS / "distributed.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if "processes" in options.parts:
        found["processes"] = found.get("processes", {}) | processes(options.layouts)
        found["load"] = os.getloadavg()
    if "latency" in options.parts:
        found["latency"] = latency()
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
