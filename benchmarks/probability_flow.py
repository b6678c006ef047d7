"""Probability flows learned from draws: importance-sampling efficiency and evidence, beside normalizing flows.

    python -m benchmarks.probability_flow targets [--quick]     banana (d = 2, 10), two modes with wrong weights (d = 8)
    python -m benchmarks.probability_flow schools [--quick]     eight schools, non-centred and centred; a regression
    python -m benchmarks.probability_flow posteriordb [posterior …]   ten keys each, beside bridge sampling
    python -m benchmarks.probability_flow speed                draws per second, beside flowjax and BlackJAX

``targets``: 4,000 exact draws (of the two modes with weights .4 and .6, in truth .7 and .3) whiten and train; ESS/N and
the evidence (true value 0) are of 4,000 weighted draws. The flow is a rational-quadratic spline coupling fitted to the
same draws by maximum likelihood. ``schools`` begins with NUTS as the method does by default. One process, so that
seconds include compiling where a shape is new; the load of the machine is written down with each row.

``speed``: the same 4,000 draws for ours and for flowjax's flows (whitened alike, its defaults but for a spline and at
most 200 epochs), then 20,000 draws with densities, compiled before; BlackJAX's `schrodinger_follmer` has the density
alone and gives none. ``error_seconds`` is se² of log Ẑ times the seconds of training and draws: what one more unit of
precision costs.

Writes results/probability_flow.json, a row per target, method and key; rows that are there are replaced.
"""

import argparse
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from benchmarks.rows import Rows
from pushforward.infer.diagnostics.psis import psis, weights_ess

ROWS = Rows(Path(__file__).parent / "results" / "probability_flow.json", ("target", "dim", "method", "key"))
DATABASE = Path(__file__).resolve().parents[1].parent / "shared" / "posteriordb"
NUM_DRAWS = 4000
BLENDS = {"DSM": None, "blend 0.2": 0.2, "blend auto": "auto"}
POSTERIORS = (
    "eight_schools-eight_schools_noncentered", "kidiq-kidscore_momhs", "kidiq-kidscore_momhsiq",
    "earnings-logearn_height", "earnings-logearn_interaction", "mesquite-logmesquite_logvolume", "arK-arK",
    "arma-arma11", "nes1980-nes", "sblrc-blr", "gp_pois_regr-gp_regr", "kilpisjarvi_mod-kilpisjarvi",
    "hudson_lynx_hare-lotka_volterra", "diamonds-diamonds",
)  # fmt: skip


def banana(dim):
    def log_density(u):
        curved = (u[1] - 0.5 * (u[0] ** 2 - 1)) / 0.3
        rest = jnp.sum(u[2:] ** 2)
        return -0.5 * (u[0] ** 2 + curved**2 + rest) - 0.5 * dim * jnp.log(2 * jnp.pi) - jnp.log(0.3)

    def draws(rng, n):
        z = rng.normal(size=(n, dim))
        z[:, 1] = 0.5 * (z[:, 0] ** 2 - 1) + 0.3 * z[:, 1]
        return z

    return pf.Target.from_log_density(log_density, np.zeros(dim)), draws


def two_modes(dim):
    def log_density(u):
        one, other = (-0.5 * jnp.sum((u - s * 1.06) ** 2) / 0.25 for s in (1, -1))
        both = jnp.logaddexp(jnp.log(0.7) + one, jnp.log(0.3) + other)
        return both - 0.5 * dim * jnp.log(2 * jnp.pi * 0.25)

    def draws(rng, n):
        sign = np.where(rng.random(n) < 0.4, 1.0, -1.0)[:, None]
        return 1.06 * sign + 0.5 * rng.normal(size=(n, dim))

    return pf.Target.from_log_density(log_density, np.zeros(dim)), draws


def regression(dim=20, n=100):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, dim))
    y = (rng.random(n) < 1 / (1 + np.exp(-x @ rng.normal(size=dim)))).astype(float)

    def log_density(b):
        logits = x @ b
        prior = -0.5 * jnp.sum(b**2) - 0.5 * dim * jnp.log(2 * jnp.pi)
        return jnp.sum(y * logits - jax.nn.softplus(logits)) + prior

    return pf.Target.from_log_density(log_density, np.zeros(dim))


def measure(name, label, target, method, key, num_draws=NUM_DRAWS):
    began = time.perf_counter()
    posterior = pf.fit(target, method, key=key, num_samples=num_draws, progress=False)
    seconds = time.perf_counter() - began
    log_w = posterior.log_weights()
    smoothed, evidence = psis(log_w), posterior.evidence()
    row = {
        "target": name, "method": label, "key": key, "dim": int(target.dim),
        "ess_share": weights_ess(log_w) / log_w.size, "k_hat": float(smoothed.k_hat),
        "log_evidence": evidence.log_evidence, "se": evidence.se, "seconds": seconds, "load": os.getloadavg()[0],
    }  # fmt: skip
    if name == "two modes":
        positive = posterior.draws()["x"][0].sum(1) > 0
        row |= {"mode": float(positive.mean()), "weighted_mode": float(np.exp(smoothed.log_weights) @ positive)}
    if hasattr(posterior.approximation, "flow"):
        row["solver_steps"] = len(posterior.approximation.flow.grid) - 1
    print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row, posterior


def targets(quick):
    steps = 1000 if quick else 4000
    for name, (target, draws) in (("banana", banana(2)), ("banana", banana(10)), ("two modes", two_modes(8))):
        for key in range(1 if quick else 3):
            given = draws(np.random.default_rng(key), 4000)
            for label, blend in BLENDS.items():
                method = pf.ProbabilityFlow(from_draws=given, blend=blend, num_steps=steps)
                yield measure(name, label, target, method, key)[0]
            yield measure(name, "spline flow", target, pf.NormalizingFlow(draws=given, num_steps=steps), key)[0]


def schools(quick):
    steps = 1000 if quick else 4000
    models = {name: pf.models.get(name) for name in ("eight_schools", "eight_schools_centered")}
    found = {name: pf.Target.from_numpyro(e.model, **e.data) for name, e in models.items()}
    for name, target in (*found.items(), ("regression", regression())):
        for key in range(1 if quick else 3):
            draws = pf.fit(target, pf.NUTS(), key=key, num_samples=1000, progress=False)
            for label, blend in BLENDS.items():
                method = pf.ProbabilityFlow(from_draws=draws, blend=blend, num_steps=steps)
                yield measure(name, label, target, method, key)[0]


def posteriordb(names, keys):
    from pushforward.models import posteriordb as database

    for name in names or POSTERIORS:
        reference = database.load(name, DATABASE)
        target = reference.target()
        bridge = pf.fit(target, pf.NUTS(), key=99, num_samples=4000, progress=False).evidence()
        for key in keys:
            method = pf.ProbabilityFlow(num_draws=250)
            row, posterior = measure(name, "NUTS 1,000 + flow", target, method, key)
            row |= {"bridge": bridge.log_evidence, "bridge_se": bridge.se}
            weights = np.exp(psis(posterior.log_weights()).log_weights)
            row["mean_error"] = mean_error(posterior, reference, weights)
            yield row


def speed(quick):
    for name, (target, draws) in (("banana", banana(10)), ("two modes", two_modes(8))):
        given = draws(np.random.default_rng(0), 4000)
        many = 2000 if quick else 20_000
        runs = {
            "speed: DSM": lambda g=given, t=target: ours(g, t, None, quick),
            "speed: blend auto": lambda g=given, t=target: ours(g, t, "auto", quick),
            "speed: flowjax coupling": lambda g=given, t=target: flowjax(g, t, "coupling", quick),
            "speed: flowjax autoregressive": lambda g=given, t=target: flowjax(g, t, "autoregressive", quick),
        }
        for label, run in runs.items():
            began = time.perf_counter()
            sample = run()
            training = time.perf_counter() - began
            jax.block_until_ready(sample(jax.random.key(1), many))
            began = time.perf_counter()
            u, log_q = jax.block_until_ready(sample(jax.random.key(2), many))
            drawing = time.perf_counter() - began
            with jax.enable_x64(True):
                log_w = np.asarray(jax.vmap(target.log_density)(jnp.asarray(u, float))) - np.asarray(log_q, float)
            weights = np.exp(log_w - log_w.max())
            se = float(weights.std() / weights.mean() / np.sqrt(many))
            yield shown(
                {
                    "target": name, "method": label, "key": 0, "dim": target.dim, "training": training,
                    "draws_per_second": many / drawing, "ess_share": weights_ess(log_w) / many, "se": se,
                    "log_evidence": float(log_w.max() + np.log(weights.mean())), "k_hat": float(psis(log_w).k_hat),
                    "error_seconds": se**2 * (training + drawing), "load": os.getloadavg()[0],
                }
            )  # fmt: skip
        yield shown(follmer(name, target, draws, 1000 if quick else 4000))


def shown(row):
    print({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return row


def ours(given, target, blend, quick):
    """A function of a key and a number to draws and their log densities."""
    method = pf.ProbabilityFlow(from_draws=given, blend=blend, num_steps=1000 if quick else 4000)
    q = pf.fit(target, method, key=0, num_samples=10, progress=False).approximation
    program = eqx.filter_jit(lambda key, n: q.sample_and_log_prob(key, n))

    def sample(key, n):
        with jax.enable_x64(True):
            return program(key, n)

    return sample


def flowjax(given, target, kind, quick):
    """The same of a flow of flowjax's, trained on whitened draws."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import StandardNormal
    from flowjax.flows import coupling_flow, masked_autoregressive_flow
    from flowjax.train import fit_to_data

    mean, root = given.mean(0), np.linalg.cholesky(np.cov(given.T))
    whitened = np.linalg.solve(root, (given - mean).T).T.astype(np.float32)
    make = {"coupling": coupling_flow, "autoregressive": masked_autoregressive_flow}[kind]
    # inverted flows are quick to fit to draws and slow to draw from; here both are wanted, as both are of ours
    flow = make(
        jax.random.key(0), base_dist=StandardNormal((target.dim,)), invert=kind == "coupling",
        transformer=RationalQuadraticSpline(knots=8, interval=4),
    )  # fmt: skip
    flow, _ = fit_to_data(
        jax.random.key(1), flow, whitened, max_epochs=20 if quick else 200, max_patience=10, show_progress=False
    )

    @eqx.filter_jit
    def sample(key, n):
        y, log_q = flow.sample_and_log_prob(key, (n,))
        return mean + y @ root.T, log_q - np.log(np.diag(root)).sum()

    return sample


def follmer(name, target, draws, many):
    """BlackJAX's: 100 steps of 1,024 points, from the density alone; errors of means and sds against exact draws."""
    import blackjax

    algorithm = blackjax.schrodinger_follmer(target.log_density, 100, 1024)
    sample = jax.jit(lambda key: algorithm.sample(key, algorithm.init(jnp.zeros(target.dim)), many))
    jax.block_until_ready(sample(jax.random.key(0)))
    began = time.perf_counter()
    x = np.asarray(jax.block_until_ready(sample(jax.random.key(1))).position)
    seconds, exact = time.perf_counter() - began, draws(np.random.default_rng(9), 200_000)
    return {
        "target": name, "method": "speed: BlackJAX schrodinger_follmer", "key": 0, "dim": target.dim, "training": 0.0,
        "draws_per_second": many / seconds, "sd_ratio": float(np.min(x.std(0) / exact.std(0))),
        "mean_error": float(np.max(np.abs(x.mean(0) - exact.mean(0)) / exact.std(0))), "load": os.getloadavg()[0],
    }  # fmt: skip


def mean_error(posterior, reference, weights):
    """Largest difference of weighted means from the reference's, in its standard deviations."""
    found, errors = posterior.draws(), []
    for site, exact in reference.draws.items():
        if site in found:
            exact = exact.reshape(-1, *exact.shape[2:])
            errors.append(np.nanmax(np.abs(np.tensordot(weights, found[site][0], 1) - exact.mean(0)) / exact.std(0)))
    return float(max(errors))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("targets", "schools", "posteriordb", "speed"))
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quick", action="store_true", help="one key, a quarter of the training steps; nothing kept")
    parser.add_argument("--keys", type=int, nargs="*", default=list(range(10)))
    given = parser.parse_args()
    if given.what == "posteriordb":
        rows = posteriordb(given.names, given.keys)
    else:
        rows = {"targets": targets, "schools": schools, "speed": speed}[given.what](given.quick)
    for row in rows:
        if not given.quick:
            ROWS.keep(row)


if __name__ == "__main__":
    main()
