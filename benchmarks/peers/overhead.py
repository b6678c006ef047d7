"""`fit` without warm-up against a bare `lax.scan` of BlackJAX's NUTS: same kernel, start, step size, metric; one chain.

Two bare loops: ``least`` keeps positions and the number of leapfrog steps and makes constrained draws of them at the
end, in one call; ``same`` keeps what `fit` keeps, draws of every site and the statistics of every transition. Times are
per leapfrog step, since keys, and so trajectories, differ; scaled to the same number of steps.
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

    def least(state, key):
        state, info = kernel.step(key, state)
        return state, (info.num_integration_steps, state.position)

    def same(state, key):
        state, info = kernel.step(key, state)
        statistics = (info.acceptance_rate, info.is_divergent, info.energy, state.logdensity)
        kept = (target.constrain(state.position), *statistics, info.num_trajectory_expansions)
        return state, (info.num_integration_steps, kept)

    def loop(body, finish):
        @jax.jit
        def bare(key, keys):
            keys = jax.random.split(key, keys.shape[0])
            _, (steps, kept) = jax.lax.scan(body, kernel.init(jnp.asarray(start)), keys)
            return steps, finish(kept)

        def run(seed, draws):
            steps, _ = jax.tree.map(np.asarray, bare(jax.random.key(seed), jnp.zeros(draws)))
            return int(steps.sum())

        return run

    loops = {
        "least": loop(least, lambda positions: jax.lax.map(target.constrain, positions)),
        "same": loop(same, lambda kept: kept),
    }

    def run_fit(seed, draws):
        posterior = pf.fit(
            target, nuts, key=seed, num_chains=1, num_warmup=0, num_samples=draws, start=start, progress=False
        )
        posterior.draws()
        return posterior.record["evaluations"]

    draws = 20_000
    loops["least"](0, draws)
    _, wall, _ = timed(loops["least"], 1, draws)
    draws = int(draws * args.seconds / wall)
    for run in loops.values():
        run(0, draws)
    run_fit(0, 100)
    for seed in range(1, args.rounds + 1):
        more, fit_wall, fit_cpu = timed(run_fit, seed, draws)
        row = {"draws": draws, "fit": fit_wall, "fit_cpu": fit_cpu}
        for name, run in loops.items():
            steps, wall, cpu = timed(run, seed, draws)
            row |= {name: wall * more / steps, f"{name}_cpu": cpu * more / steps}
        print(json.dumps(row), flush=True)
        print(row, file=sys.stderr, flush=True)


def timed(f, *args):
    wall, cpu = time.perf_counter(), time.process_time()
    out = f(*args)
    return out, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
