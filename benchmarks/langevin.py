"""Langevin samplers against NUTS, MALA and CUQIpy's MYULA, at kinks and on a simplex.

``python benchmarks/langevin.py [TARGET]... [--cuqipy PYTHON]`` writes ``results/langevin.json`` and ``.md``; ``PYTHON``
is that of an environment with ``cuqipy``.

Targets: logistic regression of the handwritten digits 3 and 8 on their pixels under a Laplace prior; the Dirichlet
posterior of sparse counts in 50 classes; the posterior of the weights of 15 known normals that overlap.

BlackJAX's NUTS (window adaptation, 1,000 + 1,000) and MALA (step driven to an acceptance of 0.574) get the subgradient
of |x| and, for the simplex, stick-breaking coordinates. A Langevin run is 4,000 + 16,000. A gradient and a proximal
operator count as one evaluation each. ESS is the least bulk ESS of all coordinates, of 4 chains; seconds are CPU
seconds of a second run, which compiles nothing, warm-up included, all in 64 bits. The error is the largest distance of
a mean to the reference (exact, or four times as many NUTS draws) in its standard deviations. The statistic is ‖x‖₁ of
the regression, and the mean of log p on a simplex.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.diagnostics.chains import chain_statistics
from pushforward.infer.geometry import L1, SimplexBarrier

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "langevin.json"
CHAINS, NUTS, LANGEVIN = 4, (1000, 1000), (4000, 16_000)
COLUMNS = ("method", "ess", "per_1000", "per_1000_all", "per_second", "r_hat", "error", "acceptance")


class Problem(NamedTuple):
    """A target, how a draw's coordinates follow from u, exact moments, and the data of a regression."""

    target: Any
    read: Callable[[np.ndarray], np.ndarray]
    exact: tuple[np.ndarray, np.ndarray] | None = None
    regression: tuple[np.ndarray, np.ndarray, float] | None = None


# -- targets ----------------------------------------------------------------------------------------------------------


def regression(x: np.ndarray, y: np.ndarray, weight: float) -> Problem:
    """Standardised columns and an intercept, b ~ Laplace(0, 1/weight)."""
    x = x[:, x.std(0) > 1e-8]
    x = np.column_stack([np.ones(len(x)), (x - x.mean(0)) / x.std(0)])

    def log_likelihood(b):
        z = x @ b
        return jnp.sum(y * z - jax.nn.softplus(z))

    target = pf.Target.composite(log_likelihood, L1(weight), np.zeros(x.shape[1]))
    return Problem(target, lambda u: u, None, (x, y, weight))


def digits() -> Problem:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    chosen = (y == 3) | (y == 8)
    return regression(x[chosen], (y[chosen] == 8).astype(float), 4.0)


def dirichlet() -> Problem:
    """Counts of 200 draws from Zipf's law, a uniform prior: many classes were seen never or once."""
    k = 50
    frequency = 1 / np.arange(1, k + 1)
    counts = np.random.default_rng(1).multinomial(200, frequency / frequency.sum())
    a = 1.0 + counts
    mean = a / a.sum()
    target = pf.Target.from_log_density(lambda p: counts @ jnp.log(p), np.full(k, 1 / k), constraints.simplex)
    return Problem(target, simplex_of(target), (mean, np.sqrt(mean * (1 - mean) / (a.sum() + 1))))


def mixture() -> Problem:
    """Weights of normals one standard deviation apart, from 300 draws of every third of them."""
    rng = np.random.default_rng(2)
    places = np.arange(15.0)
    data = rng.choice(places[::3], 300) + rng.normal(size=300)
    densities = np.exp(-0.5 * (data[:, None] - places) ** 2)
    target = pf.Target.from_log_density(
        lambda p: jnp.sum(jnp.log(densities @ p)), np.full(15, 1 / 15), constraints.simplex
    )
    return Problem(target, simplex_of(target))


def simplex_of(target: Any) -> Callable[[np.ndarray], np.ndarray]:
    constrain = jax.jit(jax.vmap(jax.vmap(lambda u: target.constrain(u)["x"])))

    def read(u):
        with jax.enable_x64(True):
            return np.asarray(constrain(jnp.asarray(u)))

    return read


TARGETS = {"digits": digits, "dirichlet": dirichlet, "mixture": mixture}


# -- samplers ---------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Draws (chain, draw, d) of u or of values, evaluations of the draws and of all, CPU seconds, mean acceptance."""

    draws: np.ndarray
    evaluations: float
    all_evaluations: float
    seconds: float
    acceptance: float | None


def timed(run: Callable[[int], Any]) -> tuple[Any, float]:
    run(0)
    begun = time.process_time()
    return run(1), time.process_time() - begun


def ours(method: Any, evaluations: int) -> Callable[[Problem], Run]:
    def apply(problem: Problem) -> Run:
        warmup, draws = NUTS if isinstance(method, pf.NUTS) else LANGEVIN
        posterior, seconds = timed(
            lambda key: pf.fit(
                problem.target, method, key=key, num_warmup=warmup, num_samples=draws, num_chains=CHAINS, progress=False
            )
        )
        stats = posterior.data["sample_stats"]
        spent = evaluations * CHAINS * draws
        everything = evaluations * posterior.record["evaluations"]
        name = next(iter(posterior.draws()))
        return Run(posterior.draws()[name], spent, everything, seconds, float(stats["acceptance_rate"].mean()))

    return apply


def nuts(problem: Problem, draws: int = NUTS[1]) -> Run:
    log_density = problem.target.log_density

    def one(key):
        keys = jax.random.split(key, 3)
        start = jax.random.uniform(keys[0], (problem.target.dim,), minval=-1.0, maxval=1.0)
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, parameters), learned = adaptation.run(keys[1], start, NUTS[0])
        step = blackjax.nuts(log_density, **parameters).step

        def body(state, key):
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps, info.acceptance_rate)

        _, found = jax.lax.scan(body, state, jax.random.split(keys[2], draws))
        return *found, learned.info.num_integration_steps

    return peer(one)


def mala(problem: Problem) -> Run:
    log_density, (warmup, draws) = problem.target.log_density, LANGEVIN
    kernel = blackjax.mala.build_kernel()

    def one(key):
        keys = jax.random.split(key, 3)
        start = jax.random.uniform(keys[0], (problem.target.dim,), minval=-1.0, maxval=1.0)

        def adapt(carry, key_and_t):
            state, log_step = carry
            state, info = kernel(key_and_t[0], state, log_density, jnp.exp(log_step))
            return (state, log_step + (info.acceptance_rate - 0.574) * (1.0 + key_and_t[1]) ** -0.6), log_step

        begin = (blackjax.mala.init(start, log_density), jnp.log(1e-3))
        (state, _), trace = jax.lax.scan(adapt, begin, (jax.random.split(keys[1], warmup), jnp.arange(warmup)))
        step = jnp.exp(trace[-warmup // 4 :].mean())

        def body(state, key):
            state, info = kernel(key, state, log_density, step)
            return state, (state.position, jnp.ones(()), info.acceptance_rate)

        _, found = jax.lax.scan(body, state, jax.random.split(keys[2], draws))
        return *found, jnp.ones(warmup)

    return peer(one)


def peer(one: Callable[[Any], Any]) -> Run:
    """Chains one after the other, so that none waits for the longest trajectory of all."""
    with jax.enable_x64(True):
        program = jax.jit(lambda keys: jax.lax.map(one, keys))
        run = lambda seed: jax.block_until_ready(program(jax.random.split(jax.random.key(seed), CHAINS)))  # noqa: E731
        (draws, spent, acceptance, before), seconds = timed(run)
    draws, spent, acceptance, before = (np.asarray(v) for v in (draws, spent, acceptance, before))
    return Run(draws, float(spent.sum()), float(spent.sum() + before.sum()), seconds, float(acceptance.mean()))


def cuqipy(python: str) -> Callable[[Problem], Run]:
    def apply(problem: Problem) -> Run:
        x, y, weight = problem.regression
        warmup, draws = LANGEVIN
        with tempfile.TemporaryDirectory() as folder:
            given, written = Path(folder) / "in.npz", Path(folder) / "out.npz"
            np.savez(given, x=x, y=y, weight=weight, warmup=warmup, draws=draws, chains=CHAINS)
            command = [python, str(HERE / "peers" / "cuqipy_myula.py"), str(given), str(written)]
            environment = os.environ | {
                "OPENBLAS_NUM_THREADS": "1"
            }  # idle threads spin, and would count as CPU seconds
            subprocess.run(command, check=True, capture_output=True, env=environment)
            found = np.load(written)
            spent = 2 * CHAINS * draws
            return Run(found["draws"], spent, spent + 2 * CHAINS * warmup, float(found["seconds"]), None)

    return apply


def methods(problem: Problem, python: str | None) -> dict[str, Callable[[Problem], Run]]:
    found = {"BlackJAX NUTS": nuts, "BlackJAX MALA": mala}
    if problem.regression is None:
        return found | {
            "MirrorLangevin": ours(pf.MirrorLangevin(), 1),
            "MirrorLangevin, barrier": ours(pf.MirrorLangevin(mirror={"x": SimplexBarrier()}), 1),
            "MirrorLangevin(adjusted=False), barrier": ours(
                pf.MirrorLangevin(mirror={"x": SimplexBarrier()}, adjusted=False, bias_check=False), 1
            ),
            "MAPLA": ours(pf.MAPLA(), 1),
        }
    if python:
        found["CUQIpy MYULA"] = cuqipy(python)
    bregman = pf.BregmanProximalLangevin
    return found | {
        "BregmanProximalLangevin": ours(bregman(), 2),
        "BregmanProximalLangevin('hyperbolic')": ours(bregman(mirror="hyperbolic"), 2),
        "BregmanProximalLangevin(adjusted=False)": ours(bregman(adjusted=False, bias_check=False), 2),
        "MirrorLangevin (subgradient)": ours(pf.MirrorLangevin(), 1),
        "ProximalLangevin (psgla)": ours(pf.ProximalLangevin(bias_check=False), 2),
    }


# -- measures and output ----------------------------------------------------------------------------------------------


def measure(problem: Problem, run: Run, reference: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    d = reference[0].size
    values = run.draws if run.draws.shape[-1] == d else problem.read(run.draws)
    stats = chain_statistics(np.moveaxis(values, -1, 0))
    ess = float(stats["ess_bulk"].min())
    size = np.abs(values).sum(-1) if problem.regression is not None else np.log(values).mean(-1)
    statistic = chain_statistics(size[None])
    return {
        "ess": ess,
        "ess_statistic": float(statistic["ess_bulk"][0]),
        "r_hat_statistic": float(statistic["r_hat"][0]),
        "per_1000": 1000 * ess / run.evaluations,
        "per_1000_all": 1000 * ess / run.all_evaluations,
        "per_second": ess / run.seconds,
        "seconds": run.seconds,
        "r_hat": float(stats["r_hat"].max()),
        "error": float((np.abs(values.mean((0, 1)) - reference[0]) / reference[1]).max()),
        "sd_error": float(np.abs(values.std((0, 1)) / reference[1] - 1).max()),
        "acceptance": run.acceptance,
    }


def tables(results: dict[str, Any]) -> str:
    head = (
        "| method | least bulk ESS | per 1,000 evaluations | … warm-up included | per CPU second | R-hat | "
        "ESS of statistic | error of mean | … of sd | acceptance |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    lines = [f"Langevin samplers against peers ({results['date']}); see `langevin.py` for what is measured.", ""]
    for name, rows in results["targets"].items():
        lines += [f"## {name} (d = {results['dims'][name]})", "", head]
        for method, row in rows.items():
            columns = ("ess", "per_1000", "per_1000_all", "per_second", "r_hat", "ess_statistic")
            columns += ("error", "sd_error", "acceptance")
            cells = ["–" if row.get(c) is None else f"{row[c]:.3g}" for c in columns]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []])
    parser.add_argument("--cuqipy", help="Python of an environment with cuqipy")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"targets": {}, "dims": {}}
    for name in options.targets or TARGETS:
        problem = TARGETS[name]()
        reference = problem.exact
        if reference is None:
            draws = problem.read(nuts(problem, 4 * NUTS[1]).draws)
            reference = draws.mean((0, 1)), draws.std((0, 1))
        rows = results["targets"][name] = {}
        results["dims"][name] = problem.target.dim
        for method, run in methods(problem, options.cuqipy).items():
            rows[method] = measure(problem, run(problem), reference)
            print(name, method, {k: v if v is None else float(f"{v:.3g}") for k, v in rows[method].items()}, flush=True)
            results["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            RESULTS.with_suffix(".md").write_text(tables(results))


if __name__ == "__main__":
    main()
