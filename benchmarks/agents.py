"""Speed of distributed ADMM against the same arithmetic written plainly in NumPy, and its cost by edges and dimension.

    python benchmarks/agents.py [speed] [cost]

``speed``: iterations per second of 100 chains of 5 to 1,000 agents, quadratic shares, D = 2 to 100: a compiled loop
over `DistributedADMM.advance` on one device, and NumPy twice: ``plain`` runs chain after chain, agent after agent, as
the published experiments do; ``rows`` has the chains as rows of matrices. Shares are factorised beforehand in all
three. Rounds alternate; the best of three is kept. ``cost``: seconds per iteration of
1,000 agents on graphs with more and more edges, whose ratio to edges × D should be flat.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_factor, cho_solve

import pushforward as pf
from pushforward.samplers.agents.law import QuadraticShares

RESULTS = Path(__file__).resolve().parent / "results"
CHAINS = 100
ROUNDS = 3
LEAST = 20
"""Iterations in one call of a compiled loop, whose start and end cost as much as two."""


def shares(agents, dim):
    """Quadratic shares with unlike Hessians."""
    rng = np.random.default_rng(agents + dim)
    roots = rng.normal(size=(agents, dim, dim)) / np.sqrt(dim)
    return QuadraticShares(
        jnp.asarray(roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(dim)), jnp.asarray(rng.normal(size=(agents, dim)))
    )


def compiled(method, target, steps):
    """A function that runs ``steps`` iterations of all chains, and its first arguments."""
    x = jnp.zeros((CHAINS, target.num_agents, target.dim))
    memory = jax.vmap(lambda x: method.first_memory(jax.random.key(0), x))(x)
    keys = jax.random.split(jax.random.key(1), CHAINS)

    @jax.jit
    def run(x, memory):
        def one(carry, t):
            def chain(key, x, memory):
                normals = method.normals(jax.random.fold_in(key, t), x.shape, x.dtype)
                new = method.advance(x, memory, normals, target, t)
                return new.x, new.memory

            return jax.vmap(chain)(keys, *carry), None

        return jax.lax.scan(one, (x, memory), jnp.arange(steps))[0]

    return run, (x, memory)


def by_hand(method, target, steps, chains):
    """The same in NumPy: a loop over agents, with ``chains`` as rows; run for as many batches as make up all chains."""
    hessians, linear = np.asarray(target.hessians), np.asarray(target.linear)
    d = linear.shape[1]
    rho, adjacency = float(method.rho), method.links.adjacency()
    neighbours = [np.flatnonzero(row) for row in adjacency]
    factors = [cho_factor(h + 2 * rho * len(j) * np.eye(d)) for h, j in zip(hessians, neighbours, strict=True)]
    ends, shared = adjacency.sum(), method.noise == "shared"

    def run():
        for _ in range(CHAINS // chains):
            batch(np.random.default_rng(0), np.zeros((chains, *linear.shape)))

    def batch(rng, x):
        p = np.zeros_like(x)
        for _ in range(steps):
            new = np.empty_like(x)
            common = rng.normal(size=(chains, d)) / np.sqrt(rho * ends) if shared else None
            for i, j in enumerate(neighbours):
                w = common if shared else rng.normal(size=(chains, d)) / np.sqrt(rho * len(j))
                right = linear[i] - p[:, i] + rho * (len(j) * x[:, i] + x[:, j].sum(1)) - 2 * rho * len(j) * w
                new[:, i] = cho_solve(factors[i], right.T).T
            for i, j in enumerate(neighbours):
                p[:, i] += rho * (len(j) * new[:, i] - new[:, j].sum(1))
            x = new

    return run


def best_of(*runs):
    """Seconds of each, best of rounds that alternate."""
    found = [[] for _ in runs]
    for _ in range(ROUNDS):
        for seconds, run in zip(found, runs, strict=True):
            begun = time.perf_counter()
            jax.block_until_ready(run())
            seconds.append(time.perf_counter() - begun)
    return [min(seconds) for seconds in found]


def speed():
    """Iterations per second, ours and NumPy's."""
    rows = []
    for noise in ("shared", "langevin"):
        for agents in (5, 20, 100, 1000):
            for dim in (2, 10, 100):
                target = shares(agents, dim)
                method = pf.DistributedADMM("ring", rho=1.0, noise=noise, plan=False).fix(target)
                work = agents * dim * (dim + 10)
                steps, few = max(LEAST, int(4e6 / work)), max(1, int(1e5 / work))
                run, start = compiled(method, target, steps)
                jax.block_until_ready(run(*start))
                runs = partial(run, *start), by_hand(method, target, 1, 1), by_hand(method, target, few, CHAINS)
                ours, plain, as_rows = best_of(*runs)
                row = {"noise": noise, "agents": agents, "dim": dim}
                row |= {"ours": steps / ours, "plain": 1 / plain, "rows": few / as_rows}
                rows.append(row | {"over plain": row["ours"] / row["plain"], "over rows": row["ours"] / row["rows"]})
                print({k: v if isinstance(v, str | int) else round(v, 1) for k, v in rows[-1].items()}, flush=True)
    return rows


def cost():
    """Seconds per iteration over edges × D."""
    rows, rng, n = [], np.random.default_rng(0), 1000
    for graph in ("ring", "torus", "star", 10, 40, 160, "complete"):
        for dim in (2, 20):
            adjacency = graph
            if isinstance(graph, int):
                upper = np.triu(rng.random((n, n)) < graph / n, 1)
                upper |= np.eye(n, k=1, dtype=bool)
                adjacency = (upper | upper.T).astype(int)
            target = shares(n, dim)
            method = pf.DistributedADMM(adjacency, rho=1.0, plan=False).fix(target)
            run, start = compiled(method, target, 5)
            jax.block_until_ready(run(*start))
            (seconds,) = best_of(partial(run, *start))
            edges = method.links.num_edges
            row = {"graph": graph, "form": method.links.form, "edges": edges, "dim": dim, "milliseconds": 200 * seconds}
            rows.append(row | {"nanoseconds per edge, dimension and chain": 2e8 * seconds / (edges * dim * CHAINS)})
            print({k: v if isinstance(v, str | int) else round(v, 2) for k, v in rows[-1].items()}, flush=True)
    return rows


PARTS = {"speed": speed, "cost": cost}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    args = parser.parse_args()
    file = RESULTS / "agents.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.parts or list(PARTS):
        with jax.enable_x64(True):
            results[name] = PARTS[name]()
        file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
