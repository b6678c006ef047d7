"""One of several processes, ``child.py WHAT OUT``: fits, and leaves its draws in files by process."""

import os
import signal
import sys
from pathlib import Path

import pushforward as pf

me = pf.distributed.initialize()

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

N, D = 240, 3


def data():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, D))
    return x, (rng.uniform(size=N) < 1 / (1 + np.exp(-x @ np.array([1.0, -0.5, 0.2])))).astype(float)


def log_prior(b):
    return -0.5 * jnp.sum(b**2) / 4


def log_likelihood(b, row):
    x, y = row
    return y * (x @ b) - jnp.logaddexp(0.0, x @ b)


def logistic(rows=None):
    return pf.Target.from_factors(log_prior, log_likelihood, data() if rows is None else rows, jnp.zeros(D))


def own_rows():
    """The rows of this process: a contiguous block."""
    at = np.array_split(np.arange(N), me.count)[me.index]
    x, y = data()
    return x[at], y[at]


QUIET = {"key": 3, "progress": False, "num_samples": 40, "num_warmup": 60}


def some_chains(**options):
    return pf.fit(logistic(), pf.NUTS(), chunk_length=25, **QUIET | options)


def chains(out):
    """Chains dealt out, to a store; then what is said where processes differ in their data, or in an argument."""
    found = {"chains": some_chains(store=out / "chains").draws()["x"]}
    if me.count > 1:
        others = {"rows": (tuple(x[: N - me.index] for x in data()), 40), "same": (None, 40 + me.index)}
        for what, (rows, num_samples) in others.items():
            try:
                pf.fit(logistic(rows), pf.NUTS(), **QUIET | {"num_samples": num_samples})
            except pf.DistributedError as error:
                found[what] = str(error)
    np.savez(out / f"draws-{me.index}.npz", **found)


def layouts(out):
    """Everything that devices of all processes share out."""
    target, found = logistic(), {}
    found["goal"] = pf.fit(target, pf.NUTS(), target_ess=50, **QUIET | {"num_samples": 1000}).draws()["x"]
    found["data"] = pf.fit(target, pf.NUTS(), mesh="data", num_chains=1, **QUIET).draws()["x"]
    local = pf.Target.from_local_rows(log_prior, log_likelihood, own_rows(), jnp.zeros(D))
    found["rows"] = pf.fit(local, pf.NUTS(), num_chains=1, **QUIET).draws()["x"]
    found["particles"] = pf.fit(target, pf.SVGD(num_particles=16, num_steps=30), key=3, progress=False).draws()["x"]
    found["batches"] = pf.fit(
        target, pf.SVGD(num_particles=8, num_steps=10, batch_size=16, learning_rate=0.1), key=3, progress=False,
        mesh="data",
    ).draws()["x"]  # fmt: skip
    for name, size in (("variational", None), ("variational_batches", 16)):
        method = pf.FBGVI(num_steps=20, batch_size=size)
        found[name] = pf.fit(target, method, key=3, progress=False, mesh="data").draws()["x"]
    found["agents"] = pf.fit(target.sharded(8), pf.DistributedADMM("ring", rho=5.0), num_chains=2, **QUIET).draws()["x"]
    # The same agents, whose data nobody else has.
    held, admm = local.sharded(8), pf.DistributedADMM("ring")
    found["held"] = pf.fit(held, pf.DistributedADMM("ring", rho=5.0), num_chains=2, **QUIET).draws()["x"]
    found["predicted"] = np.array([admm.predict(held).variance, admm.predict(target.sharded(8)).variance])
    found["federated"] = pf.fit(held, pf.SplitGibbs(rho=0.3), num_chains=2, **QUIET).draws()["x"]
    np.savez(out / f"draws-{me.index}.npz", **found)


def restart_agents(out):
    """`restart`, of agents whose data nobody else has."""
    local = pf.Target.from_local_rows(log_prior, log_likelihood, own_rows(), jnp.zeros(D))
    restart(out, local.sharded(8), pf.DistributedADMM("ring", rho=5.0), num_chains=2)


def restart(out, target=None, method=None, **options):
    """Process 1 is killed in its first life, when a checkpoint with draws is there; the second life resumes."""
    target, method = target or logistic(), method or pf.NUTS()
    store, mark = out / "run", out / "killed"
    if me.index == 1 and not mark.exists():
        from pushforward.infer.run import driver

        def after_chunk(self, stage, progress, original=driver.Run._after_chunk):
            original(self, stage, progress)
            if stage.keep and self.kept >= 60:
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        driver.Run._after_chunk = after_chunk
    if (store / "zarr.json").exists():
        posterior = pf.resume(store, target, progress=False, checkpoint_every=0)
    else:
        posterior = pf.fit(
            target, method, key=3, num_samples=120, num_warmup=60, store=store, chunk_length=20,
            checkpoint_every=0, progress=False, **options,
        )  # fmt: skip
    np.savez(out / f"draws-{me.index}.npz", x=posterior.draws()["x"])


def falls_silent(out):
    """A run of agents without end, in which process 1 ends or stops itself by the signal that a file names."""
    from pushforward.infer.run import driver

    def after_chunk(self, stage, progress, original=driver.Run._after_chunk):
        original(self, stage, progress)
        if me.index == 1 and stage.keep and self.kept >= 60:
            (out / "silent").touch()
            os.kill(os.getpid(), int((out / "signal").read_text()))

    driver.Run._after_chunk = after_chunk
    options = QUIET | {"num_samples": 10_000_000}
    pf.fit(logistic().sharded(8), pf.DistributedADMM("ring", rho=5.0), num_chains=2, chunk_length=20, **options)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
