"""Speed and memory of MixFlows on one core.

    taskset -c 0 python benchmarks/mixflow.py [--quick] [SECTION]...

* ``leapfrog``: leapfrog steps per second, 128 trajectories in 64 bits, of
  - ``package``: 64 two-sided orbits of involutive HMC, L leapfrogs a map, with all that a bound needs: each map
    refreshes d momenta by Φ and Φ⁻¹, accepts or not, and leaves log q₀ and log π;
  - ``integrator``: the package's leapfrog alone, in as many runs of L steps;
  - ``bare``: a ``lax.scan`` of value and gradient and two half kicks, without refreshment, acceptance or records;
  - ``blackjax``: its velocity Verlet in a scan.
  Densities that cost next to nothing (d = 2 to 100), and logistic regressions. CPU seconds in one process, in turn; the
  least of the rounds.
* ``density``: seconds for the densities of 10,000 given points at N = 1,000 (d = 10, 10 leapfrogs)
* ``memory``: peak resident memory of child processes that compute densities of 1,000 points, or bounds of 64 orbits,
  for several N

Writes ``results/mixflow.json`` and ``results/mixflow.md``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
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
from pushforward.infer.variational.mixflow.maps import leapfrog as leapfrog_steps
from pushforward.infer.variational.mixflow.maps import phase

RESULTS = Path(__file__).resolve().parent / "results" / "mixflow.json"
TRAJECTORIES, STEP = 64, 0.1


def normal(x):
    """A normal whose scales differ, the cheapest log density there is."""
    return -0.5 * jnp.sum((x * jnp.linspace(0.5, 2.0, x.size)) ** 2)


def funnel(x):
    """Neal's."""
    return -0.5 * (x[0] / 3) ** 2 - 0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * (x.size - 1) * x[0]


def logistic_200(x):
    """Logistic regression on 200 rows."""
    return logistic(x, 200)


def logistic_1000(x):
    """The same on 1,000 rows."""
    return logistic(x, 1000)


def logistic(x, n):
    """A log density that costs something."""
    rows, y = np.sin(np.arange(n * x.size)).reshape(n, x.size), np.arange(n) % 2
    return jnp.sum(y * (rows @ x) - jax.nn.softplus(rows @ x)) - 0.5 * jnp.sum(x**2)


compiled = partial(jax.jit, static_argnames=("density", "maps", "leapfrogs"))


@compiled
def package(key, reference, *, density, maps, leapfrogs):
    """Ends of two-sided orbits of the package."""
    flow_map = InvolutiveMap(STEP, jnp.ones_like(reference.loc), "hmc", leapfrogs)
    orbits = orbit.begin(key, flow_map, reference, density, TRAJECTORIES, maps + 1)
    orbits = orbit.grow(orbits, flow_map, reference, density, jnp.asarray(maps))
    return orbits.front.at.x, orbits.back.at.x, orbits.ahead.a, orbits.behind.a


def runs(key, reference, density, begin, one, steps):
    """``steps`` times ``one``, on as many trajectories as two-sided orbits have ends."""

    def run(key):
        x = reference.sample(key)
        first = begin(x, jax.random.normal(key, x.shape))
        return jax.lax.scan(lambda s, _: (one(s), None), first, None, length=steps)[0]

    return jax.vmap(run)(jax.random.split(key, 2 * TRAJECTORIES))


@compiled
def integrator(key, reference, *, density, maps, leapfrogs):
    """The package's leapfrog alone."""
    step = jnp.full_like(reference.loc, STEP)
    one = lambda s: leapfrog_steps(*s, lambda p: p, density, step, leapfrogs)  # noqa: E731
    return runs(key, reference, density, lambda x, p: (phase(x, density), p), one, maps)


@compiled
def bare(key, reference, *, density, maps, leapfrogs):
    """As many leapfrog steps, and nothing else."""
    value_and_grad = jax.value_and_grad(density)

    def one(carry):
        x, p, _, gradient = carry
        p = p + 0.5 * STEP * gradient
        x = x + STEP * p
        value, gradient = value_and_grad(x)
        return x, p + 0.5 * STEP * gradient, value, gradient

    return runs(key, reference, density, lambda x, p: (x, p, *value_and_grad(x)), one, maps * leapfrogs)


@compiled
def blackjax_verlet(key, reference, *, density, maps, leapfrogs):
    """The same with BlackJAX's integrator."""
    import blackjax
    from blackjax.mcmc import integrators, metrics

    del blackjax
    metric = metrics.default_metric(jnp.ones_like(reference.loc))
    step = integrators.velocity_verlet(density, metric.kinetic_energy)
    begin = lambda x, p: integrators.new_integrator_state(density, x, p)  # noqa: E731
    return runs(key, reference, density, begin, lambda s: step(s, STEP), maps * leapfrogs)


CONTESTANTS = {"package": package, "integrator": integrator, "bare": bare, "blackjax": blackjax_verlet}
CASES = [(density, dim, 50) for density in (normal, funnel) for dim in (2, 10, 50, 100)]
CASES += [
    (normal, 10, 200),
    (funnel, 10, 200),
    (logistic_200, 10, 50),
    (logistic_1000, 20, 50),
    (logistic_1000, 20, 10),
]


def leapfrog(quick):
    """Million steps per CPU second."""
    rows, rounds = [], 3 if quick else 7
    for density, dim, leapfrogs in CASES:
        reference = orbit.Reference(jnp.zeros(dim), jnp.ones(dim))
        costly = density in (logistic_200, logistic_1000)
        maps = max(2, (500 if quick else 2000) // (10 + dim) * 50 // leapfrogs // (20 if costly else 1))
        seconds = {name: [] for name in CONTESTANTS}
        for i in range(rounds + 1):
            for name, run in CONTESTANTS.items():
                begun = time.process_time()
                found = run(jax.random.key(i), reference, density=density, maps=maps, leapfrogs=leapfrogs)
                jax.block_until_ready(found)
                seconds[name].append(time.process_time() - begun)
        steps = 2 * maps * leapfrogs * TRAJECTORIES
        rate = {name: steps / min(times[1:]) / 1e6 for name, times in seconds.items()}
        rows.append({"density": density.__name__, "dim": dim, "leapfrogs": leapfrogs, "maps": maps, "millions": rate})
        rows[-1] |= {f"of_{name}": rate["package"] / rate[name] for name in ("bare", "blackjax")}
        rows[-1]["integrator_of_bare"] = rate["integrator"] / rate["bare"]
        print(rows[-1], flush=True)
    return rows


def flow_of(dim, leapfrogs=10):
    one = jnp.ones(dim)
    return Flow(HamiltonianMap(STEP, one, leapfrogs, "laplace"), orbit.Reference(jnp.zeros(dim), one), None)


@jax.jit
def densities(flow, points, length):
    """At given points, with momenta of one."""

    def one(x):
        auxiliary = {"momentum": jnp.ones_like(x), "phase": jnp.zeros(())}
        return families.log_density_at(flow.flow_map.state(x, auxiliary, funnel), flow, funnel, length)

    return jax.vmap(one)(points)


def density(quick):
    """Seconds of the densities of given points."""
    dim, points = 10, 1000 if quick else 10_000
    flow, at = flow_of(dim), jnp.asarray(np.random.default_rng(0).normal(size=(points, dim)))
    jax.block_until_ready(densities(flow, at, jnp.asarray(2)))
    rows = []
    for length in (10, 100, 1000):
        begun, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(densities(flow, at, jnp.asarray(length)))
        rows.append({"length": length, "points": points, "dim": dim, "leapfrogs": 10})
        rows[-1] |= {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        print(rows[-1], flush=True)
    return rows


def child(kind, length):
    """One computation of its own process: its peak resident memory, in megabytes."""
    import resource

    if kind == "density":
        flow, at = flow_of(10, leapfrogs=1), jnp.asarray(np.random.default_rng(0).normal(size=(1000, 10)))
        jax.block_until_ready(densities(flow, at, jnp.asarray(length)))
    else:
        flow = flow_of(10, leapfrogs=1)

        @jax.jit
        def run(key, flow):
            orbits = orbit.begin(key, flow.flow_map, flow.reference, funnel, TRAJECTORIES, length)
            orbits = orbit.grow(orbits, flow.flow_map, flow.reference, funnel, jnp.asarray(length - 1))
            return orbit.bounds(orbits, jnp.asarray([length]))

        jax.block_until_ready(run(jax.random.key(0), flow))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory(quick):
    """Peak resident memory by length."""
    rows = []
    for kind, lengths in (("density", (10, 1000, 10_000)), ("bound", (10, 10_000, 20_000, 40_000))):
        for length in lengths[:2] if quick else lengths:
            given = [sys.executable, __file__, "--child", kind, str(length)]
            peak = float(subprocess.run(given, check=True, capture_output=True, text=True).stdout)
            rows.append({"of": kind, "length": length, "peak_mb": peak})
            print(rows[-1], flush=True)
    return rows


def table(found):
    """The results as text."""
    lines = ["# MixFlows: speed and memory", ""]
    if "leapfrog" in found:
        lines += ["Leapfrog steps per CPU second, as a share of a bare loop's (see `benchmarks/mixflow.py`).", ""]
        lines += ["| density | d | L | bare, millions/s | package | its integrator alone | package, of BlackJAX's |"]
        lines += ["|---|---|---|---|---|---|---|"]
        for row in found["leapfrog"]["rows"]:
            lines.append(
                f"| {row['density']} | {row['dim']} | {row['leapfrogs']} | {row['millions']['bare']:.3g} | "
                f"{row['of_bare']:.2f} | {row['integrator_of_bare']:.2f} | {row['of_blackjax']:.2f} |"
            )
    if "density" in found:
        lines += ["", "| points | N | d | leapfrogs | seconds | CPU seconds |", "|---|---|---|---|---|---|"]
        for row in found["density"]["rows"]:
            shown = (row[name] for name in ("points", "length", "dim", "leapfrogs", "seconds", "cpu_seconds"))
            lines.append("| " + " | ".join(f"{x:,.3g}" if isinstance(x, float) else f"{x:,}" for x in shown) + " |")
    if "memory" in found:
        lines += ["", "| peak resident memory of | N | MB |", "|---|---|---|"]
        lines += [f"| {row['of']} | {row['length']:,} | {row['peak_mb']:.0f} |" for row in found["memory"]["rows"]]
    loads = ", ".join(f"{name} {found[name]['about']['load']:.1f}" for name in SECTIONS if name in found)
    return "\n".join([*lines, "", f"Load of the machine at the end of each part: {loads}."]) + "\n"


SECTIONS = {"leapfrog": leapfrog, "density": density, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter runs, fewer points")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        with jax.enable_x64(True):
            return child(given.child[0], int(given.child[1]))
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in given.sections or SECTIONS:
        with jax.enable_x64(True):
            rows = SECTIONS[name](given.quick)
        about = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
        found[name] = {"about": about | {"load": os.getloadavg()[0], "quick": given.quick}, "rows": rows}
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        RESULTS.with_suffix(".md").write_text(table(found), encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
