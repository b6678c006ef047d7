"""`fit` without warm-up against a bare `lax.scan` of BlackJAX's NUTS: same kernel, start, step size, metric; one chain.

The bare loop keeps positions and the number of leapfrog steps and makes constrained draws of them at the end, in one
call. Times are per leapfrog step, since keys, and so trajectories, differ; scaled to the same number of steps.
"""

import argparse
import json
import sys
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from pushforward.models import posteriordb


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("posteriordb")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    target = posteriordb.load(args.target, args.posteriordb).target()
    learned = pf.fit(target, pf.NUTS(metric="diagonal"), num_chains=1, progress=False)
    state = learned._run.final_states()
    values = jax.vmap(learned._run.prepared.learned)(state)
    settings = jax.tree.map(lambda x: np.asarray(x)[0], values)
    start = np.asarray(state.point.position)[0]
    nuts = pf.NUTS(
        step_size=float(settings["step_size"]), inverse_mass_matrix=settings["inverse_mass_matrix"], metric="diagonal"
    )
    kernel = blackjax.nuts(
        target.log_density, settings["step_size"], jax.tree.map(jnp.asarray, settings["inverse_mass_matrix"])
    )

    def body(state, key):
        state, info = kernel.step(key, state)
        return state, (state.position, info.num_integration_steps)

    @jax.jit
    def bare(key, keys):
        _, (positions, steps) = jax.lax.scan(
            body, kernel.init(jnp.asarray(start)), jax.random.split(key, keys.shape[0])
        )
        return jax.lax.map(target.constrain, positions), steps.sum()

    def run_bare(seed, draws):
        values, steps = bare(jax.random.key(seed), jnp.zeros(draws))
        {name: np.asarray(value) for name, value in values.items()}
        return int(steps)

    def run_fit(seed, draws):
        posterior = pf.fit(
            target, nuts, key=seed, num_chains=1, num_warmup=0, num_samples=draws, start=start, progress=False
        )
        posterior.draws()
        return posterior.record["evaluations"]

    draws = 20_000
    run_bare(0, draws)
    _, wall, _ = timed(run_bare, 1, draws)
    draws = int(draws * args.seconds / wall)
    run_bare(0, draws)
    run_fit(0, 100)
    for seed in range(1, args.rounds + 1):
        steps, wall, cpu = timed(run_bare, seed, draws)
        more, fit_wall, fit_cpu = timed(run_fit, seed, draws)
        scale = steps / more
        row = {"draws": draws, "bare": wall, "fit": fit_wall * scale, "bare_cpu": cpu, "fit_cpu": fit_cpu * scale}
        print(json.dumps(row), flush=True)
        print(row, file=sys.stderr, flush=True)


def timed(f, *args):
    wall, cpu = time.perf_counter(), time.process_time()
    out = f(*args)
    return out, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
