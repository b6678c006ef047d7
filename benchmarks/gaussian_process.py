"""`DoubleKL`: accuracy on simulated processes, growth of its cost with the number of observations, real data.

``python -m benchmarks.gaussian_process simulated``: the settings of Cao et al. (2023), the first by default: inputs
uniform on [0, 1]^5, Matérn-3/2 with length scales .25 (.25) 1.25, variance 1, nugget 1e-4; responses normal with
variance .01, of a t with two degrees of freedom and scale .1, or binary through the logistic function. Their second is
the first with ``--n 8000 --new 2000 --learn``; the others have 20 and 50 inputs, a rational quadratic and a squared
exponential covariance. Scores are those of f without noise, as in the paper: RMSE, and NLL without ½ log 2π, at the
data and at new inputs (32 neighbours), and CRPS there. ``--learn`` learns all hyper-parameters, from length scales of
.25 (.5, 1 in 20 and 50 inputs), ``--learn observations`` by the evidence of y in place of the ELBO (so also for the
others below). ``--method gpboost`` is GPBoost's Vecchia likelihood (for binary responses with Laplace's approximation,
both with 20 neighbours), which always learns them, where GPBoost is installed; ``gpytorch-svgp`` and
``gpytorch-vnngp`` are GPyTorch's, in the Python that ``--torch`` names, for ``--seconds``. ``race`` runs all that there
are, learning, each in a process of its own.

``growth``: n uniform inputs on [0, 1]², Matérn-3/2 of length scale 0.1 (by 4,000 random frequencies), noise variance
0.1, ρ = 2, all hyper-parameters learned from length scales of 0.3; and at 2,000 new inputs the same scores.

``uci DIR NAME …``: sets of the repository treforevans/uci_datasets, split 0: inputs scaled to [0, 1] and y standardised
by the training part, constant columns and rows within 1e-3 of an earlier one left out; Matérn-3/2 with a length scale
per input from 0.25, noise from 0.25, all learned, ρ as in the paper's scripts. RMSE, NLPD with ½ log 2π, and CRPS of y.
``--method svgp --inducing 500`` is the low-rank baseline, ``--rows`` takes the first so many training rows only.

A line of JSON per run, which replaces that of the same settings in ``results/gaussian_process.json``. Seconds are those
of the whole fit (ordering, compilation and all), wall clock and CPU; ``compile_seconds`` (wall clock, of XLA) and
``order_seconds`` (of one order and pattern) are parts of it. Memory is the peak of the process, so that a run that is
to be measured must come first.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import pushforward as pf
from benchmarks.papers.where import results_of
from benchmarks.rows import Rows
from pushforward.infer.run.precision import precision
from pushforward.infer.variational.sparse_cholesky.factor import Structure
from pushforward.models.gaussian_process import kernels, likelihoods, scores

ROWS = Rows(
    results_of(__file__) / "gaussian_process.json",
    (
        "what",
        "setting",
        "name",
        "method",
        "n",
        "seed",
        "rho",
        "neighbors",
        "size",
        "num_neighbors",
        "response",
        "learned",
    ),
)
NOISE = 0.01
STUDENT = {"scale": 0.1, "df": 2.0}
RHO = {"elevators": 1.25, "bike": 1.75, "kin40k": 1.25, "protein": 1.5, "keggdirected": 1.5}
METHODS = ("doublekl", "svgp", "vecchia-laplace", "gpboost", "gpytorch-svgp", "gpytorch-vnngp")
NEAR = 1e-3
FREQUENCIES = 4000


class Setting(NamedTuple):
    """A process of the paper: its kernel, that at which learning begins, and the variance of its nugget."""

    truth: kernels.Kernel
    start: kernels.Kernel
    nugget: float = 1e-4


def scales(d: int) -> np.ndarray:
    """Length scales .25, .5, …"""
    return 0.25 * np.arange(1, d + 1)


def from_equal(kernel: Any, d: int, scale: float, **rest: Any) -> Any:
    """Where learning begins: all length scales equal, and half of the variance."""
    return kernel(np.full(d, scale), 0.5, **rest)


SETTINGS = {
    1: Setting(kernels.Matern32(scales(5)), from_equal(kernels.Matern32, 5, 0.25)),
    3: Setting(kernels.Matern32(scales(20)), from_equal(kernels.Matern32, 20, 0.5)),
    4: Setting(kernels.Matern32(scales(50)), from_equal(kernels.Matern32, 50, 1.0)),
    5: Setting(
        kernels.RationalQuadratic(scales(5), alpha=0.5), from_equal(kernels.RationalQuadratic, 5, 0.25, alpha=1.0), 9e-4
    ),
    6: Setting(kernels.RBF(scales(5) / 2), from_equal(kernels.RBF, 5, 0.25), 9e-4),
}


def simulate(setting: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Inputs, the process, and the responses by name."""
    rng = np.random.default_rng(seed)
    kernel, _, nugget = SETTINGS[setting]
    x = rng.uniform(size=(n, len(kernel.lengthscale)))
    with precision(64):
        rows = [
            np.asarray(kernel.matrix(jnp.asarray(part), jnp.asarray(x))) for part in np.array_split(x, 1 + n // 500)
        ]
    covariance = np.concatenate(rows)
    f = np.linalg.cholesky(covariance + nugget * np.eye(n)) @ rng.normal(size=n)
    binary = (rng.uniform(size=n) < 1 / (1 + np.exp(-f))).astype(float)
    normal = f + np.sqrt(NOISE) * rng.normal(size=n)
    student = f + STUDENT["scale"] * rng.standard_t(STUDENT["df"], size=n)
    return x, f, {"gaussian": normal, "logit": binary, "student": student}


def rough(x: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """A process with nearly the covariance of Matérn-3/2: its spectral density is that of a t of 3 degrees."""
    omega = rng.normal(size=(FREQUENCIES, x.shape[1])) / np.sqrt(rng.chisquare(3, size=(FREQUENCIES, 1)) / 3) / scale
    phase, size = rng.uniform(0, 2 * np.pi, FREQUENCIES), rng.normal(size=FREQUENCIES)
    parts = [np.cos(part @ omega.T + phase) @ size for part in np.array_split(x, max(1, len(x) // 2000))]
    return np.sqrt(2 / FREQUENCIES) * np.concatenate(parts)


def score(mean: np.ndarray, variance: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """RMSE, and NLL without ½ log 2π."""
    error = (mean - truth) ** 2
    nll = 0.5 * np.mean(np.log(variance) + error / variance)
    return round(float(np.sqrt(error.mean())), 4), round(float(nll), 4)


def fit(gp: Any, method: Any, seed: int) -> tuple[Any, dict[str, Any]]:
    """A posterior, and what it cost."""
    import jax

    compiling: list[float] = []

    def hear(event: str, seconds: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiling.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(hear)
    begun, cpu = time.perf_counter(), time.process_time()
    posterior = pf.fit(gp, method, key=seed, num_samples=10, progress=False)
    cost = {
        "fit_seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "compile_seconds": round(sum(compiling), 1),
    }
    q = posterior.approximation
    if isinstance(q.gp.factors_of, Structure):
        widths = np.asarray(q.gp.factors_of.mask).sum(1)
        cost |= {
            "mean_columns": round(float(widths.mean()), 1), "most_ancestors": int(q.gp.factors_of.ancestors.shape[1])
        }  # fmt: skip
    cost |= {
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "elbo": round(float(q.elbo), 2),
        "parameters": {k: np.round(np.asarray(v), 4).tolist() for k, v in q.gp.parameters().items()},
    }  # fmt: skip
    return q, cost


def simulated(n: int, seed: int, rho: float, response: str, asked: Any) -> dict:
    """A fit of a setting of the paper and its scores."""
    x, f, responses = simulate(asked.setting, n + asked.new, seed)
    y, new = responses[response][:n], x[n:]
    row = {"what": "simulated", "setting": asked.setting, "method": asked.method, "n": n}
    row |= {"seed": seed, "response": response}
    if asked.method == "gpboost":
        found, cost = by_gpboost(x[:n], y, new, response)
        row |= {"learned": "evidence"}
    elif asked.method.startswith("gpytorch"):
        found, cost = by_gpytorch(x[:n], y, new, response, asked)
        row |= {"learned": "elbo"}
    else:
        q, cost = fit(
            process(asked.setting, x[:n], y, response, bool(asked.learn)),
            method_of(asked.method, rho, asked.inducing, asked.learn, asked.neighbors),
            seed,
        )
        begun = time.perf_counter()
        prediction = q.predict(new, num_neighbors=asked.num_neighbors)
        cost["predict_seconds"] = round(time.perf_counter() - begun, 1)
        found = (prediction.mean, prediction.variance)
        row |= {
            "rho": rho if asked.neighbors is None else None,
            "neighbors": asked.neighbors,
            "num_neighbors": asked.num_neighbors,
            "learned": asked.learn or False,
            "in_rmse_nll": score(np.asarray(q.loc), np.asarray(q.variance), f[:n]),
        }
    crps = scores.crps_normal(found[0], np.sqrt(found[1]), f[n:])
    return row | {"out_rmse_nll": score(*found, f[n:]), "out_crps": round(float(np.mean(crps)), 4), **cost}


def process(number: int, x: np.ndarray, y: np.ndarray, response: str, learn: bool) -> Any:
    """The model of a setting, with its true hyper-parameters or with those that learning begins at."""
    setting = SETTINGS[number]
    likelihood = {
        "gaussian": likelihoods.Gaussian(0.25 if learn else NOISE),
        "student": likelihoods.StudentT(0.25, 5.0) if learn else likelihoods.StudentT(**STUDENT),
        "logit": likelihoods.BernoulliLogit(),
    }[response]
    return pf.models.LatentGP(setting.start if learn else setting.truth, likelihood, x, y, nugget=setting.nugget)


def by_gpboost(x: np.ndarray, y: np.ndarray, new: np.ndarray, response: str) -> tuple[Any, dict[str, Any]]:
    """Mean and variance of f at new inputs, and what they cost."""
    import gpboost

    begun, cpu = time.perf_counter(), time.process_time()
    model = gpboost.GPModel(
        gp_coords=x, cov_function="matern_ard", cov_fct_shape=1.5, gp_approx="vecchia", num_neighbors=20,
        likelihood="gaussian" if response == "gaussian" else "bernoulli_logit",
    )  # fmt: skip
    model.fit(y=y)
    fitted = time.perf_counter()
    cost = {"fit_seconds": round(fitted - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    found = model.predict(gp_coords_pred=new, predict_var=True, predict_response=False)
    cost |= {
        "predict_seconds": round(time.perf_counter() - fitted, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "parameters": np.round(np.ravel(model.get_cov_pars()), 4).tolist(),
    }  # fmt: skip
    return (found["mu"], found["var"]), cost


def by_gpytorch(x: np.ndarray, y: np.ndarray, new: np.ndarray, response: str, asked: Any) -> tuple[Any, dict[str, Any]]:
    """Mean and variance of f at new inputs, and what they cost, by a process of another Python."""
    with tempfile.TemporaryDirectory() as folder:
        given, sink = Path(folder) / "given.npz", Path(folder) / "found.npz"
        np.savez(given, x=x, y=y, new=new, response=response, seconds=asked.seconds, scale=0.25)
        worker = Path(__file__).resolve().parent / "peers" / "gpytorch_processes.py"
        name = asked.method.removeprefix("gpytorch-")
        subprocess.run([asked.torch, str(worker), name, str(given), str(sink)], check=True, cwd=folder)
        found = dict(np.load(sink))
    cost = {
        "fit_seconds": round(float(found["seconds"]), 1), "cpu_seconds": round(float(found["cpu"]), 1),
        "steps": int(found["steps"]), "predict_seconds": round(float(found["predicted"]), 1),
        "parameters": np.round(found["scales"], 4).tolist(),
    }  # fmt: skip
    return (found["mean"], found["variance"]), cost


def growth(n: int, seed: int, rho: float, learn: str) -> dict:
    """A fit in two inputs, and its cost."""
    from pushforward.models.gaussian_process.pattern import Extent, build_pattern

    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n + 2000, 2))
    f = rough(x, 0.1, rng)
    y = f + np.sqrt(0.1) * rng.normal(size=len(f))
    gp = pf.models.LatentGP(kernels.Matern32(np.full(2, 0.3)), likelihoods.Gaussian(1.0), x[:n], y[:n])
    begun = time.perf_counter()
    with precision(64):
        build_pattern(gp, Extent(rho))
    ordering = round(time.perf_counter() - begun, 1)
    q, cost = fit(gp, method_of("doublekl", rho, 0, learn), seed)
    begun = time.perf_counter()
    found = q.predict(x[n:])
    return {
        "what": "growth", "method": "doublekl", "n": n, "seed": seed, "rho": rho, "learned": learn,
        "order_seconds": ordering,
        "in_rmse_nll": score(np.asarray(q.loc), np.asarray(q.variance), f[:n]),
        "out_rmse_nll": score(found.mean, found.variance, f[n:]),
        "predict_seconds": round(time.perf_counter() - begun, 1), **cost,
    }  # fmt: skip


def method_of(name: str, rho: float, num_inducing: int, learn: str | None, neighbors: int | None = None) -> Any:
    """The method of a name on the command line, with what ``--learn`` says."""
    learn = {None: False, "elbo": True}.get(learn, learn)
    pattern = {"rho": rho} if neighbors is None else {"neighbors": neighbors}
    return {
        "doublekl": lambda: pf.DoubleKL(**pattern, learn=learn),
        "vecchia-laplace": lambda: pf.VecchiaLaplace(**pattern, learn=learn),
        "svgp": lambda: pf.SVGP(num_inducing, learn=learn),
    }[name]()


def uci(folder: Path, name: str, rho: float, asked: Any) -> dict:
    """A fit of real data and its scores on the test rows."""
    learn = asked.learn or "elbo"
    from scipy.spatial import KDTree

    data = np.loadtxt(folder / name / "data.csv.gz", delimiter=",")
    test = np.loadtxt(folder / name / "test_mask.csv.gz", delimiter=",", usecols=0).astype(bool)
    x, y = data[:, :-1], data[:, -1]
    low, high = x[~test].min(0), x[~test].max(0)
    x = ((x - low) / np.where(high > low, high - low, 1.0))[:, high > low]
    x = x[:, x[~test].std(0) > 1e-4]
    y = (y - y[~test].mean()) / y[~test].std()
    train, new, here, there = x[~test], x[test], y[~test], y[test]
    later = np.unique(KDTree(train).query_pairs(NEAR, output_type="ndarray").max(1, initial=-1))
    keep = np.setdiff1d(np.arange(len(train)), later)[: asked.rows]
    kernel = kernels.Matern32(np.full(x.shape[1], 0.25), 1.0)
    gp = pf.models.LatentGP(kernel, likelihoods.Gaussian(0.25), train[keep], here[keep])
    q, cost = fit(gp, method_of(asked.method, rho, asked.inducing, learn, asked.neighbors), 0)
    begun = time.perf_counter()
    found = q.predict(new)
    seconds = round(time.perf_counter() - begun, 1)
    mean, variance = found.observed()
    rmse, nll = score(mean, variance, there)
    return {
        "what": "uci", "name": name, "method": asked.method, "n": len(keep), "d": x.shape[1],
        "learned": learn,
        "size": None if asked.neighbors else asked.inducing if asked.method == "svgp" else rho,
        "neighbors": asked.neighbors, "rmse": rmse,
        "nlpd": round(nll + 0.5 * np.log(2 * np.pi), 4),
        "crps": round(float(scores.crps_normal(mean, np.sqrt(variance), there).mean()), 4),
        "predict_seconds": seconds, **cost,
    }  # fmt: skip


def race(asked: Any) -> None:
    """Each method and response in a process of its own, which it begins cold; all with 20 neighbours, as GPBoost.

    GPyTorch's, which could go on for ever, have as long as `DoubleKL` took.
    """
    for n, seed, response in itertools.product(asked.n, range(asked.seeds), asked.response):
        learn = "observations" if response == "gaussian" else "elbo"
        methods = ["gpboost", "doublekl"] + ([] if response == "gaussian" else ["vecchia-laplace"])
        for method in methods + (["gpytorch-svgp", "gpytorch-vnngp"] if asked.torch else []):
            if asked.method not in (None, method) and not method.startswith(asked.method + "-"):
                continue
            words = ["simulated", "--learn", learn, "--method", method, "--n", n]
            words += ["--new", asked.new, "--first-seed", seed, "--response", response, "--neighbors", 20]
            words += ["--rho", 0, "--num-neighbors", 40]
            if method.startswith("gpytorch"):
                fitted = {"method": "doublekl", "n": n, "seed": seed, "response": response, "neighbors": 20}
                ours = [row["fit_seconds"] for row in ROWS if all(row.get(k) == v for k, v in fitted.items())]
                words += ["--torch", asked.torch, "--seconds", ours[0]]
            subprocess.run([sys.executable, "-m", "benchmarks.gaussian_process", *map(str, words)], check=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulated", "race", "growth", "uci"])
    parser.add_argument("names", nargs="*", help="folder and sets, for uci")
    parser.add_argument("--setting", type=int, choices=SETTINGS, default=1, help="of simulated")
    parser.add_argument("--n", type=int, nargs="+", default=[2000])
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--num-neighbors", type=int, default=32, help="of the data, for a prediction")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--rho", type=float, nargs="+")
    parser.add_argument("--neighbors", type=int, help="columns of the prior's factor, in place of --rho")
    parser.add_argument("--response", nargs="+", default=["gaussian", "logit"])
    parser.add_argument("--learn", nargs="?", const="elbo", choices=["elbo", "observations"])
    parser.add_argument("--method", choices=(*METHODS, "gpytorch"), help="of a race: all by default")
    parser.add_argument("--torch", metavar="PYTHON", help="that has PyTorch and GPyTorch, for gpytorch-…")
    parser.add_argument("--seconds", type=float, default=60, help="that these have for a fit")
    parser.add_argument("--inducing", type=int, default=500)
    parser.add_argument("--rows", type=int)
    asked = parser.parse_args()
    if asked.what == "race":
        race(asked)
        return
    asked.method = asked.method or "doublekl"
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds if asked.what != "uci" else 0):
        for n in asked.n:
            for rho in asked.rho or ([2.0] if asked.what == "growth" else [1.5, 2.0]):
                if asked.what == "growth":
                    ROWS.keep(growth(n, seed, rho, asked.learn or "elbo"))
                    continue
                for response in asked.response:
                    ROWS.keep(simulated(n, seed, rho, response, asked))
    if asked.what == "uci":
        folder, *names = asked.names
        for name in names:
            for rho in asked.rho or [RHO.get(name, 1.5)]:
                ROWS.keep(uci(Path(folder), name, rho, asked))


if __name__ == "__main__":
    main()
