"""Simulation-based inference on the tasks of sbibm: two-sample tests against stored reference posteriors, beside sbi.

    python -m benchmarks.simulators --sbibm FOLDER [--sbi PYTHON] [--simulations N] [--observations K …] [TASK …]

``--sbibm`` is the unpacked wheel of the package (``pip download --no-deps sbibm``; it is not imported), ``--sbi`` a
Python that has PyTorch and sbi, whose NPE and NPSE learn with their defaults from the very simulations that ours learns
from. C2ST is the package's: the accuracy of a perceptron in five-fold cross-validation between 10,000 reference draws
and as many of the method, .5 at best. Seconds are of the training and of the draws of all observations, apart. Writes
results/simulators.json, a row per task, method and observation; rows that are there are kept.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import pushforward as pf
from benchmarks.rows import Rows

ROWS = Rows(Path(__file__).parent / "results" / "simulators.json", ("task", "simulations", "method", "observation"))
DRAWS = 10_000


def box(bound, dim):
    """A uniform prior on a cube, and what sbi is told of it."""
    return dist.Uniform(-bound, bound).expand([dim]).to_event(1), {"kind": "box", "bound": bound, "dim": dim}


def two_moons(folder):
    def simulate(key, values):
        key_a, key_r = jax.random.split(key)
        x = values["theta"]
        a = jax.random.uniform(key_a, minval=-jnp.pi / 2, maxval=jnp.pi / 2)
        r = 0.1 + 0.01 * jax.random.normal(key_r)
        moon = jnp.stack([jnp.cos(a) * r + 0.25, jnp.sin(a) * r])
        return moon + jnp.stack([-jnp.abs(x[0] + x[1]), x[1] - x[0]]) / jnp.sqrt(2.0)

    return *box(1.0, 2), simulate


def gaussian_linear(folder):
    def simulate(key, values):
        return values["theta"] + jnp.sqrt(0.1) * jax.random.normal(key, (10,))

    prior = dist.Normal(0, np.sqrt(0.1)).expand([10]).to_event(1)
    return prior, {"kind": "normal", "loc": [0.0] * 10, "precision": (10 * np.eye(10)).tolist()}, simulate


def gaussian_linear_uniform(folder):
    return *box(1.0, 10), gaussian_linear(folder)[-1]


def gaussian_mixture(folder):
    def simulate(key, values):
        key_k, key_x = jax.random.split(key)
        scale = jnp.where(jax.random.bernoulli(key_k), 1.0, 0.1)
        return values["theta"] + scale * jax.random.normal(key_x, (2,))

    return *box(10.0, 2), simulate


def slcp(folder):
    def simulate(key, values):
        x = values["theta"]
        one, two, rho = x[2] ** 2, x[3] ** 2, jnp.tanh(x[4])
        covariance = jnp.array([[one**2, rho * one * two], [rho * one * two, two**2]]) + 1e-6 * jnp.eye(2)
        return (x[:2] + jax.random.normal(key, (4, 2)) @ jnp.linalg.cholesky(covariance).T).ravel()

    return *box(3.0, 5), simulate


def bernoulli_glm(folder):
    def stored(name, count):
        raw = (folder / "bernoulli_glm" / "files" / f"{name}.pt").read_bytes()
        return np.frombuffer(raw[-4 * count :], np.float32).astype(float)

    stimulus, design = stored("stimulus_I", 100), stored("design_matrix", 1000).reshape(100, 10)
    m = 9
    differences = np.eye(m) - np.diag(np.ones(m - 1), -1)
    roots = differences @ differences + np.diag(np.sqrt(np.arange(m) / m))
    precision = np.zeros((m + 1, m + 1))
    precision[0, 0], precision[1:, 1:] = 0.5, roots.T @ roots

    def simulate(key, values):
        y = 1.0 * jax.random.bernoulli(key, jax.nn.sigmoid(design @ values["theta"]))
        padded = jnp.pad(y, 8)
        lags = jnp.stack([padded[i : i + 100] @ stimulus for i in range(17)])[-9:]
        return jnp.concatenate([y.sum()[None], lags])

    prior = dist.MultivariateNormal(jnp.zeros(m + 1), precision_matrix=jnp.asarray(precision))
    return prior, {"kind": "normal", "loc": [0.0] * (m + 1), "precision": precision.tolist()}, simulate


def runge_kutta(field, start, end, steps, every):
    """States at 0 and after every so many steps."""
    h = end / steps

    def step(u, _):
        a = field(u)
        b = field(u + h / 2 * a)
        c = field(u + h / 2 * b)
        d = field(u + h * c)
        u = u + h / 6 * (a + 2 * b + 2 * c + d)
        return u, u

    return jnp.concatenate([start[None], jax.lax.scan(step, start, None, length=steps)[1]])[::every]


def lotka_volterra(folder):
    def simulate(key, values):
        alpha, beta, gamma, delta = values["theta"]

        def field(u):
            return jnp.stack([alpha * u[0] - beta * u[0] * u[1], -gamma * u[1] + delta * u[0] * u[1]])

        u = runge_kutta(field, jnp.array([30.0, 1.0]), 20.0, 1000, 5)[::21].T.ravel()  # every .1, of which each 21st
        return jnp.exp(jnp.log(u) + 0.1 * jax.random.normal(key, u.shape))

    loc = np.array([-0.125, -3.0, -0.125, -3.0])
    return dist.LogNormal(loc, 0.5).to_event(1), {"kind": "lognormal", "loc": loc.tolist(), "sd": [0.5] * 4}, simulate


def sir(folder):
    people = 1e6

    def simulate(key, values):
        beta, gamma = values["theta"]

        def field(u):
            caught = beta * u[0] * u[1] / people
            return jnp.stack([-caught, caught - gamma * u[1]])

        share = runge_kutta(field, jnp.array([people - 1, 1.0]), 160.0, 1600, 10)[::17, 1] / people
        return dist.Binomial(1000, jnp.clip(share, 0, 1)).sample(key)

    loc, sd = np.log([0.4, 0.125]), np.array([0.5, 0.2])
    return dist.LogNormal(loc, sd).to_event(1), {"kind": "lognormal", "loc": loc.tolist(), "sd": sd.tolist()}, simulate


TASKS = {
    f.__name__: f
    for f in (
        two_moons, gaussian_mixture, gaussian_linear, gaussian_linear_uniform, slcp, sir, lotka_volterra, bernoulli_glm,
    )
}  # fmt: skip


def c2st(x, y):
    """Accuracy of sbibm's classifier: .5 where the two cannot be told apart."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, sd, dim = x.mean(0), x.std(0), x.shape[1]
    both = (np.concatenate([x, y]) - mean) / sd
    label = np.repeat([0, 1], [len(x), len(y)])
    network = MLPClassifier(hidden_layer_sizes=(10 * dim, 10 * dim), max_iter=10_000, random_state=1)
    return float(cross_val_score(network, both, label, cv=KFold(5, shuffle=True, random_state=1)).mean())


def of_ours(simulator, simulations, observations):
    began = time.perf_counter()
    amortised = simulator.learn(simulations=simulations, key=1)
    trained = time.perf_counter()
    draws = [np.asarray(amortised.posterior(x, num_samples=DRAWS, key=2).draws()["theta"])[0] for x in observations]
    return {"probability flow": (draws, trained - began, time.perf_counter() - trained)}


def of_sbi(name, args, prior, theta, x, observations):
    """NPE or NPSE, in a process of another Python; nothing where that takes longer than is allowed."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.npz", Path(folder) / "found.npz"
        np.savez(given, theta=theta, x=x, observations=observations, prior=json.dumps(prior), draws=DRAWS)
        worker = Path(__file__).resolve().parent / "peers" / "sbi_posteriors.py"
        try:
            command = [args.sbi, str(worker), name, str(given), str(found)]
            subprocess.run(command, check=True, cwd=folder, timeout=60 * args.minutes)
        except subprocess.TimeoutExpired:
            return {}
        out = np.load(found)
        return {f"sbi {name}": (list(out["draws"]), float(out["training"]), float(out["drawing"]))}


def run(name, args):
    """All methods on one task."""
    folder = args.sbibm / "sbibm" / "tasks"
    stored = [folder / name / "files" / f"num_observation_{k}" for k in args.observations]
    observations = np.stack([np.loadtxt(f / "observation.csv", delimiter=",", skiprows=1) for f in stored])
    observations = observations.reshape(len(stored), -1)
    methods = ["probability flow"] + ([f"sbi {kind}" for kind in args.kinds] if args.sbi else [])
    task = {"task": name, "simulations": args.simulations}
    known = lambda method, k: ROWS.known(task | {"method": method, "observation": k})  # noqa: E731
    missing = [method for method in methods if not all(known(method, k) for k in args.observations)]
    if not missing:
        return
    prior, told, simulate = TASKS[name](folder)
    simulator = pf.models.Simulator({"theta": prior}, simulate)
    simulations = simulator.draw(args.simulations, key=0)
    found = of_ours(simulator, simulations, observations) if "probability flow" in missing else {}
    theta = np.asarray(jax.vmap(lambda u: simulator.target.constrain(u)["theta"])(jnp.asarray(simulations.u)))
    for method in missing:
        if method.startswith("sbi"):
            done = of_sbi(method.split()[1], args, told, theta, simulations.x, observations)
            if not done:
                for k in args.observations:
                    row = task | {"method": method, "observation": k, "c2st": None}
                    ROWS.keep(row | {"stopped_after_minutes": args.minutes})
            found |= done
    for method, (draws, training, drawing) in found.items():
        for k, f, mine in zip(args.observations, stored, draws, strict=True):
            if not known(method, k):
                reference = np.loadtxt(f / "reference_posterior_samples.csv.bz2", delimiter=",", skiprows=1)
                score = c2st(reference[:DRAWS], mine)
                row = task | {"method": method, "observation": k, "c2st": score, "training": training}
                ROWS.keep(row | {"draws": drawing})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--sbibm", type=Path, required=True)
    parser.add_argument("--sbi", metavar="PYTHON")
    parser.add_argument("--kinds", nargs="*", default=["NPE", "NPSE"], choices=["NPE", "NPSE"], help="of sbi")
    parser.add_argument("--minutes", type=float, default=30, help="that sbi has for a task and method")
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", type=int, nargs="*", default=[1, 2, 3])
    args = parser.parse_args()
    for name in args.tasks or TASKS:
        run(name, args)


if __name__ == "__main__":
    main()
