"""Speed and memory of MixFlows on one core.

    taskset -c 0 python benchmarks/mixflow.py [--quick] [SECTION]...

* ``leapfrog``: leapfrog steps per second of the package's orbits (involutive HMC, forward and backward, with all that a
  bound needs), of a bare ``lax.scan`` leapfrog loop (value and gradient, two half kicks), and of BlackJAX's velocity
  Verlet in a scan; d = 2 to 100, 64 trajectories, 64 bits. In one process, in turn; least of the rounds.
* ``density``: seconds for the densities of 10,000 given points at N = 1,000, and peak temporary memory of the compiled
  program for several N
* ``bound``: the same memory for bounds of 64 orbits

Writes ``results/mixflow.json``.
"""

import argparse
import json
import os
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from pushforward.infer.variational.mixflow import families, orbit
from pushforward.infer.variational.mixflow.families import Flow
from pushforward.infer.variational.mixflow.hamiltonian import HamiltonianMap
from pushforward.infer.variational.mixflow.involutive import InvolutiveMap

RESULTS = Path(__file__).resolve().parent / "results" / "mixflow.json"
TRAJECTORIES, LEAPFROGS, STEP = 64, 50, 0.1


def normal(x):
    """A normal whose scales differ, the cheapest log density there is."""
    return -0.5 * jnp.sum((x * jnp.linspace(0.5, 2.0, x.size)) ** 2)


def funnel(x):
    """Neal's."""
    return -0.5 * (x[0] / 3) ** 2 - 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * (x.size - 1) * x[0]


def regression(x):
    """Logistic regression on 200 rows, a log density that costs something."""
    rows, y = np.sin(np.arange(200 * x.size)).reshape(200, x.size), np.arange(200) % 2
    return jnp.sum(y * (rows @ x) - jax.nn.softplus(rows @ x)) - 0.5 * jnp.sum(x**2)


@partial(jax.jit, static_argnames=("density", "maps"))
def package(key, reference, *, density, maps):
    """Ends of two-sided orbits of the package."""
    flow_map = InvolutiveMap(STEP, jnp.ones_like(reference.loc), "hmc", LEAPFROGS)
    orbits = orbit.begin(key, flow_map, reference, density, TRAJECTORIES, maps + 1)
    orbits = orbit.grow(orbits, flow_map, reference, density, jnp.asarray(maps))
    return orbits.front.at.x, orbits.back.at.x, orbits.ahead.a, orbits.behind.a


@partial(jax.jit, static_argnames=("density", "maps"))
def bare(key, reference, *, density, maps):
    """As many leapfrog steps, and nothing else."""
    value_and_grad = jax.value_and_grad(density)

    def one(carry, _):
        x, p, _, gradient = carry
        p = p + 0.5 * STEP * gradient
        x = x + STEP * p
        value, gradient = value_and_grad(x)
        return (x, p + 0.5 * STEP * gradient, value, gradient), None

    def run(key):
        x = reference.sample(key)
        begin = (x, reference.sample(jax.random.fold_in(key, 1)), *value_and_grad(x))
        return jax.lax.scan(one, begin, None, length=2 * maps * LEAPFROGS)[0][0]

    return jax.vmap(run)(jax.random.split(key, TRAJECTORIES))


@partial(jax.jit, static_argnames=("density", "maps"))
def blackjax_verlet(key, reference, *, density, maps):
    """The same with BlackJAX's integrator."""
    import blackjax
    from blackjax.mcmc import integrators, metrics

    del blackjax
    metric = metrics.default_metric(jnp.ones_like(reference.loc))
    step = integrators.velocity_verlet(density, metric.kinetic_energy)

    def run(key):
        x = reference.sample(key)
        begin = integrators.new_integrator_state(density, x, reference.sample(jax.random.fold_in(key, 1)))
        return jax.lax.scan(lambda s, _: (step(s, STEP), None), begin, None, length=2 * maps * LEAPFROGS)[0].position

    return jax.vmap(run)(jax.random.split(key, TRAJECTORIES))


def leapfrog(quick):
    """Million steps per second, wall and CPU."""
    rows, rounds = [], 3 if quick else 9
    for density in (normal, funnel, regression):
        for dim in (2, 10, 50, 100):
            reference = orbit.Reference(jnp.zeros(dim), jnp.ones(dim))
            maps = max(2, (200 if quick else 1000) // (10 + dim) // (20 if density is regression else 1))
            contestants = {"package": package, "bare": bare, "blackjax": blackjax_verlet}
            seconds = {name: [] for name in contestants}
            for i in range(rounds + 1):
                for name, run in contestants.items():
                    begun = time.process_time()
                    jax.block_until_ready(run(jax.random.key(i), reference, density=density, maps=maps))
                    seconds[name].append(time.process_time() - begun)
            steps = 2 * maps * LEAPFROGS * TRAJECTORIES
            rate = {name: steps / min(times[1:]) / 1e6 for name, times in seconds.items()}
            middle = {name: steps / statistics.median(times[1:]) / 1e6 for name, times in seconds.items()}
            rows.append({"density": density.__name__, "dim": dim, "millions": rate, "median": middle})
            rows[-1] |= {f"of_{name}": rate["package"] / rate[name] for name in ("bare", "blackjax")}
            print(rows[-1], flush=True)
    return rows


def flow_of(dim):
    one = jnp.ones(dim)
    return Flow(HamiltonianMap(STEP, one, 10, "laplace"), orbit.Reference(jnp.zeros(dim), one), None)


@jax.jit
def densities(flow, points, length):
    """At given points, with momenta of one."""

    def one(x):
        auxiliary = {"momentum": jnp.ones_like(x), "phase": jnp.zeros(())}
        return families.log_density_at(flow.flow_map.state(x, auxiliary, funnel), flow, funnel, length)

    return jax.vmap(one)(points)


def density(quick):
    """Seconds and temporary memory."""
    dim, points = 10, 1000 if quick else 10_000
    flow, at = flow_of(dim), jnp.asarray(np.random.default_rng(0).normal(size=(points, dim)))
    compiled = densities.lower(flow, at, jnp.asarray(1000)).compile()
    jax.block_until_ready(compiled(flow, at, jnp.asarray(2)))
    rows = []
    for length in (10, 100, 1000):
        begun, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(flow, at, jnp.asarray(length)))
        rows.append({"length": length, "points": points, "dim": dim, "leapfrogs": 10})
        rows[-1] |= {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        # One program for all lengths: its memory does not know of them.
        rows[-1]["temporary_mb"] = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(rows[-1], flush=True)
    return rows


def bound(quick):
    """Memory of bounds."""
    rows = []
    for length in (250, 500, 1000, 2000):
        flow = flow_of(10)

        def run(key, flow, longest, length=length):
            orbits = orbit.begin(key, flow.flow_map, flow.reference, funnel, TRAJECTORIES, length)
            orbits = orbit.grow(orbits, flow.flow_map, flow.reference, funnel, longest - 1)
            return orbit.bounds(orbits, longest[None])

        compiled = jax.jit(run).lower(jax.random.key(0), flow, jnp.asarray(length)).compile()
        found = compiled.memory_analysis()
        rows.append({"length": length, "trajectories": TRAJECTORIES, "temporary_mb": found.temp_size_in_bytes / 1e6})
        rows[-1]["per_point_bytes"] = found.temp_size_in_bytes / length / TRAJECTORIES
        print(rows[-1], flush=True)
    return rows


SECTIONS = {"leapfrog": leapfrog, "density": density, "bound": bound}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter runs, fewer points")
    given = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in given.sections or SECTIONS:
        with jax.enable_x64(True):
            rows = SECTIONS[name](given.quick)
        about = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
        found[name] = {"about": about | {"load": os.getloadavg()[0], "quick": given.quick}, "rows": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
