"""Stein particles side by side with BlackJAX, NumPyro and plain NumPy: seconds per step, and memory.

    python benchmarks/stein.py [step] [growth] [memory] [million] [--rounds N]

* ``step``: one step of SVGD (RBF, bandwidth included) on N(0, I) of 50 dimensions in 32 bits: ours, with the bandwidth
  from 1,000 particles every tenth step (the default) and from all pairs as often; BlackJAX's `svgd`; NumPyro's
  `SVGD`; and NumPy, the same arithmetic with whole matrices, bandwidth given
* ``growth``: seconds per step and peak memory (of a process of its own) by the number of particles
* ``memory``: peak memory of 20,000 particles beside BlackJAX's and NumPy's, each in a process of its own
* ``million``: 100,000 and 1,000,000 particles: bytes that a compiled step takes; seconds and peak memory of its sums
  for 2,048 of the rows, in a process of its own; the seconds of all rows that follow
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
DIM = 50
STEPS = 10
MOST = 12 * 2**30
"""Bytes of address space that a child may take, so that what does not fit fails by itself."""


def ours(n, **options):
    """Ten steps of `pf.SVGD`, per step."""
    import jax
    import jax.numpy as jnp

    import pushforward as pf

    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(DIM, np.float32))
    method = pf.SVGD(num_particles=n, kernel="rbf", initial=particles(n), learning_rate=1e-3, **options)
    method = method.prepare(jax.random.key(0), target, None)
    state = method.init(jax.random.key(0), target, jnp.zeros(DIM))

    @jax.jit
    def steps(state, t):
        body = lambda s, i: (method.step(jax.random.fold_in(jax.random.key(1), i), s, target, i)[0], None)  # noqa: E731
        return jax.lax.scan(body, state, t + jnp.arange(STEPS))[0]

    return lambda: steps(state, 0).y.block_until_ready()


def blackjax(n):
    """One step of BlackJAX's, its bandwidth with it."""
    import blackjax as bj
    import jax
    import jax.numpy as jnp
    import optax

    algorithm = bj.svgd(lambda x: -x, optax.sgd(1e-3))
    state = algorithm.init(jnp.asarray(particles(n)), {"length_scale": 1.0})
    step = jax.jit(algorithm.step)
    return lambda: jax.block_until_ready(step(state).particles)


def numpyro(n):
    """Ten updates of NumPyro's, per step."""
    import jax
    import jax.numpy as jnp
    import numpyro as npy
    import numpyro.distributions as dist
    from numpyro.contrib.einstein import RBFKernel, SteinVI
    from numpyro.infer.autoguide import AutoDelta
    from numpyro.optim import SGD

    def model():
        npy.sample("x", dist.Normal(jnp.zeros(DIM), 1.0).to_event(1))

    guide = AutoDelta(model)
    stein = SteinVI(model, guide, SGD(1e-3), RBFKernel(), num_stein_particles=n, num_elbo_particles=1)
    state = stein.init(jax.random.key(0))
    update = jax.jit(stein.update)
    return lambda: jax.block_until_ready(update(state)[0])


def plain(n):
    """NumPy with whole matrices."""
    x = particles(n)
    score, h = -x, np.float32(2 * DIM)

    def step():
        centred = x - x.mean(0)
        norm = (centred**2).sum(1)
        k = np.exp((2 * centred @ centred.T - norm[:, None] - norm) / h)
        sums = k @ np.column_stack([score - (2 / h) * centred, np.ones(n, np.float32)])
        return (sums[:, :DIM] + (2 / h) * sums[:, DIM:] * centred) / n

    return step


def particles(n):
    """Standard normal ones."""
    return np.random.default_rng(0).standard_normal((n, DIM)).astype(np.float32)


CODES = {
    "ours": lambda n: ours(n),
    "ours, all pairs": lambda n: ours(n, rule="exact_median"),
    "ours, h given": lambda n: ours(n, bandwidth=2.0 * DIM),
    "NumPy, h given": plain,
    "BlackJAX": blackjax,
    "NumPyro": numpyro,
}
PER_CALL = {"ours": STEPS, "ours, all pairs": STEPS, "ours, h given": STEPS}


def step(args):
    """Rows n × code."""
    rows = []
    for n in (500, 2000, 5000):
        calls = {}
        for name, make in CODES.items():
            if name == "rows":
                continue
            try:
                call = make(n)
                call()
            except Exception as error:  # a peer may refuse or run out of memory
                print(name, n, f"{type(error).__name__}: {str(error)[:200]}")
                rows.append({"n": n, "code": name, "seconds": None, "error": f"{type(error).__name__}"})
                continue
            calls[name] = call
        best = dict.fromkeys(calls, np.inf)
        for _ in range(args.rounds):
            for name, call in calls.items():
                best[name] = min(best[name], seconds_once(call) / PER_CALL.get(name, 1))
        rows += [{"n": n, "code": name, "seconds": value} for name, value in best.items()]
        for name, value in best.items():
            print(f"{n:6d}  {name:18s} {1e3 * value:10.2f} ms   {value / best['ours']:8.1f} × ours", flush=True)
    return rows


def seconds_once(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def child(name, n):
    """Seconds per step and peak memory of one code, in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
    call = CODES[name](n)
    call()
    value = min(seconds_once(call) for _ in range(2)) / PER_CALL.get(name, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"n": n, "code": name, "seconds": value, "peak_mib": round(peak)}))


def apart(name, n):
    """`child` in a process of its own."""
    command = [sys.executable, __file__, "child", name, str(n)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        return {"n": n, "code": name, "seconds": None, "error": last[:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def growth(args):
    """Ours by n."""
    rows = [apart("ours", n) for n in (1000, 2000, 4000, 8000, 16_000, 32_000)]
    for row in rows:
        print(row)
    return rows


def memory(args):
    """20,000 particles; NumPy's and BlackJAX's matrices of n² (and n² d) numbers may not fit."""
    rows = [apart(name, 20_000) for name in ("ours", "NumPy, h given")]
    rows.append(apart("BlackJAX", 20_000))
    for row in rows:
        print(row)
    return rows


def compiled_bytes(n):
    """Of a whole step of `pf.SVGD` in 32 bits: state in and out, and temporaries; compiled for this device, not run."""
    import jax
    import jax.numpy as jnp

    import pushforward as pf

    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(DIM, np.float32))
    method = pf.SVGD(num_particles=n, kernel="rbf", initial=particles(n), learning_rate=1e-3)
    state = jax.eval_shape(lambda: method.init(jax.random.key(0), target, jnp.zeros(DIM)))
    step = lambda key, state, t: method.step(key, state, target, t)[0]  # noqa: E731
    lowered = jax.jit(step).lower(jax.random.key(0), state, jax.ShapeDtypeStruct((), "int32"))
    found = lowered.compile().memory_analysis()
    return {"state_bytes": found.argument_size_in_bytes, "temporary_bytes": found.temp_size_in_bytes}


def some_rows(n, rows=2048):
    """The velocity at some of n particles."""
    import jax.numpy as jnp
    from jax import jit

    from pushforward.infer.kernels.velocity import velocity

    x = jnp.asarray(particles(n))
    run = jit(lambda x: velocity("rbf", x, -x, jnp.float32(2.0 * DIM), at=x[:rows]))
    return lambda: run(x).block_until_ready()


def million(args):
    """Two sizes."""
    rows = []
    for n in (100_000, 1_000_000):
        row = compiled_bytes(n) | apart("rows", n)
        row["all_rows_seconds"] = row["seconds"] * n / 2048
        rows.append(row)
        print(row, flush=True)
    return rows


CODES["rows"] = some_rows
SECTIONS = {"step": step, "growth": growth, "memory": memory, "million": million}


def main():
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    file = RESULTS / "stein.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.sections or SECTIONS:
        results[name] = SECTIONS[name](args)
        file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
