"""What a Bayesian last layer adds to a network's time; many seeds at once; the cost of a new row.

    python benchmarks/last_layer.py [overhead] [seeds] [online] [epochs --torch PYTHON] [--widths 256 512]

``overhead``: a network of four equal hidden layers and one output, batches of 128, 32 bits, against the same with a
linear last layer and squared error: forward pass (mean and variance against mean) and training step (loss, gradient,
Adam), the least of many interleaved repeats. ``seeds``: 200 steps of `VBLL`'s own step on a table of 512 × 8 with a
network of 2 × 50, for 1 and for 20 restarts in one program, and the product of matrices that such a step is made of.
``online``: seconds per row of `condition`, 64 bits, for D features. ``epochs``: seconds of an epoch, once compiled, for
1 and for 20 restarts, beside the package vbll in a Python that has it and PyTorch: 8,192 rows of 8, a network of 2 × 50
or 4 × 256 with a dense last layer, batches of 32, AdamW, 32 bits, one thread of PyTorch and two; and the NLL of as many
new rows after 20 epochs. Writes ``results/last_layer.json``; the load of the machine is written down with each row.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from pushforward.models import LastLayer
from pushforward.models.last_layer import NormalHead
from pushforward.models.last_layer.online import condition

RESULTS = Path(__file__).parent / "results" / "last_layer.json"
WIDTHS, BATCH, INPUTS = (64, 256, 512, 1024, 2048), 128, 16


def least(programs, repeats, seconds=1.5):
    """Least seconds of each program, run in turn."""
    best = dict.fromkeys(programs, np.inf)
    for run in programs.values():
        jax.block_until_ready(run())
    begun = time.perf_counter()
    for i in range(repeats):
        if i >= 5 and time.perf_counter() - begun > seconds * len(programs):
            break
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def overhead(width):
    """Ratios of forward passes and of training steps to those with a linear last layer."""
    import optax

    body = eqx.nn.MLP(INPUTS, width, width, 3, jax.nn.relu, jax.nn.relu, key=jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (BATCH, INPUTS)), jax.random.normal(jax.random.key(2), (BATCH, 1))
    adam = optax.adam(1e-3)
    forward, training = {}, {}

    def add(name, last, predict, loss):
        params, rest = eqx.partition((body, last), eqx.is_inexact_array)
        state = adam.init(params)

        @jax.jit
        def ahead(params, x):
            net, last = eqx.combine(params, rest)
            return predict(last, jax.vmap(net)(x))

        @jax.jit
        def step(params, state, x, y):
            def objective(params):
                net, last = eqx.combine(params, rest)
                return loss(last, jax.vmap(net)(x), y)

            updates, new = adam.update(jax.grad(objective)(params), state, params)
            return optax.apply_updates(params, updates), new

        forward[name] = lambda: ahead(params, x)
        training[name] = lambda: step(params, state, x, y)

    linear = eqx.nn.Linear(width, 1, key=jax.random.key(3))
    add("linear", linear, lambda last, phi: jax.vmap(last)(phi),
        lambda last, phi, y: jnp.mean((jax.vmap(last)(phi) - y) ** 2))  # fmt: skip
    for form in ("diagonal", "dense"):
        head = NormalHead(form).build(jax.random.key(4), width, np.asarray(y))
        add(form, head, lambda last, phi: last.moments(phi), lambda last, phi, y: last.loss(phi, y, 10_000))
    found = {}
    for what, programs in (("forward", forward), ("training", training)):
        seconds = least(programs, 300)
        found[what] = {name: seconds[name] / seconds["linear"] for name in ("diagonal", "dense")}
        found[what]["linear seconds"] = seconds["linear"]
    return found


def training(method, steps):
    """So many of a method's own steps, one restart per key, as a compiled function of target and keys."""

    @jax.jit
    def run(target, keys):
        def one(key):
            advance = lambda t, state: method.step(jax.random.fold_in(key, t), state, target, t)[0]  # noqa: E731
            return advance, method.init(key, target, None)

        states = jax.vmap(lambda key: one(key)[1])(keys)
        body = lambda t, states: jax.vmap(lambda key, state: one(key)[0](t, state))(keys, states)  # noqa: E731
        return jax.lax.fori_loop(0, steps, body, states).params  # of which every step is a part

    return run


def seeds():
    """Seconds of 200 steps for 1 and for 20 restarts in one program."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(640, 8)), rng.normal(size=640)
    body = eqx.nn.MLP(8, 50, 50, 1, jax.nn.relu, jax.nn.relu, key=jax.random.key(0))
    target, method = LastLayer(body, NormalHead(), x, y), pf.VBLL()

    run = training(method, 200)
    keys = {n: jax.random.split(jax.random.key(0), n) for n in (1, 20)}
    seconds = least({n: lambda k=k: run(target, k) for n, k in keys.items()}, 20, seconds=4)
    products = product(1), product(20)
    return {
        "one": seconds[1],
        "twenty": seconds[20],
        "ratio": seconds[20] / seconds[1],
        "product, microseconds": [1e6 * s for s in products],
        "product, GFLOP per second": [2e-9 * n * 32 * 50 * 50 / s for n, s in zip((1, 20), products, strict=True)],
    }


def epochs(width, layers, python, threads):
    """Seconds per epoch of ours and of vbll's, and what new rows say of both after 20."""
    rng, count, rows, batch = np.random.default_rng(0), 20, 8192, 32
    x = rng.normal(size=(2 * rows, 8))
    y = np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.3 * rng.normal(size=2 * rows)
    given = {"x": x[:rows], "y": y[:rows], "new": x[rows:], "there": y[rows:]}
    body = eqx.nn.MLP(8, width, width, layers - 1, jax.nn.relu, jax.nn.relu, key=jax.random.key(0))
    target = LastLayer(body, NormalHead(), given["x"], given["y"], validation=None)
    run, seconds = training(pf.VBLL(batch_size=batch), rows // batch), {}
    for n in (1, 20):
        keys = jax.random.split(jax.random.key(0), n)
        seconds[n] = least({n: lambda keys=keys: run(target, keys)}, 10, seconds=10)[n]
    method = pf.VBLL(num_steps=count * rows // batch, batch_size=batch)
    posterior = pf.fit(target, method, num_samples=10, progress=False)
    nll = -float(np.mean(posterior.approximation.log_score(given["new"], given["there"])))
    with tempfile.TemporaryDirectory() as folder:
        source, sink = Path(folder) / "given.npz", Path(folder) / "found.json"
        np.savez(source, **given, batch=batch, epochs=count, width=width, layers=layers, rate=1e-3, threads=threads)
        worker = Path(__file__).resolve().parent / "peers" / "vbll_epochs.py"
        subprocess.run([python, str(worker), str(source), str(sink)], check=True, cwd=folder)
        theirs = json.loads(sink.read_text())
    return {
        "ours": seconds[1], "twenty of ours": seconds[20], "vbll": min(theirs["seconds"]),
        "ratio": min(theirs["seconds"]) / seconds[1], "nll": nll, "nll of vbll": theirs["nll"],
    }  # fmt: skip


def product(n):
    """Seconds of n products of 32 × 50 by 50 × 50, in a loop of 200."""
    x, w = jax.random.normal(jax.random.key(0), (n, 32, 50)), jax.random.normal(jax.random.key(1), (n, 50, 50))
    run = jax.jit(lambda x, w: jax.lax.fori_loop(0, 200, lambda _, x: 0.1 * jnp.einsum("nij,njk->nik", x, w), x))
    return least({n: lambda: run(x, w)}, 100)[n] / 200


def online(size, rows=64):
    """Seconds per row."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        phi, y = jnp.asarray(rng.normal(size=(rows, size))), jnp.asarray(rng.normal(size=(rows, 1)))
        head = NormalHead("dense_precision").build(jax.random.key(0), size, np.asarray(y))
        run = jax.jit(lambda w, phi, y: condition(eqx.tree_at(lambda h: h.weights, head, w), phi, y).weights.mean)
        return least({"row": lambda: run(head.weights, phi, y)}, 20)["row"] / rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["overhead", "seeds", "online"])
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--torch", metavar="PYTHON", help="that has PyTorch and vbll, for epochs")
    given = parser.parse_args()
    if "epochs" in given.parts and not given.torch:
        parser.error("epochs needs --torch PYTHON")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    jobs = {
        "overhead": {str(width): lambda w=width: overhead(w) for width in given.widths},
        "seeds": {"2 x 50": seeds},
        "online": {str(size): lambda s=size: {"seconds per row": online(s)} for size in (64, 128, 256, 512, 1024)},
        "epochs": {
            f"{layers} x {width}, {threads} threads": lambda w=width, k=layers, t=threads: epochs(w, k, given.torch, t)
            for width, layers in ((50, 2), (256, 4))
            for threads in (1, 2)
        },
    }
    for part in given.parts:
        for name, job in jobs[part].items():
            found.setdefault(part, {})[name] = job() | {"load": os.getloadavg()[0]}
            print(part, name, found[part][name], flush=True)
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
