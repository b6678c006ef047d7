"""Training a flow to a given ELBO: `NormalizingFlow` against flowjax, NumPyro's flow guides, and normflows.

    python -m benchmarks.flows [--targets twisted eight_schools] [--only …] [--steps 2000] [--seeds 1] [--torch PYTHON]

Two targets with known log Z: four twisted pairs a ~ N(0, 1), b | a ~ N(a² − 1, 0.3²) (d = 8, log Z = 0), and eight
schools, not centred (d = 10, log Z by quadrature over its one scale). All take 64 draws a step, Adam with a rate that
falls along a cosine to 2 %, run in 64 bits in one process, in turn; of two first rates the better counts. Ours begin as
they are shipped, at Pathfinder's normal and annealed (the seconds of the start count), three times as wide ("width 3"),
and, "from N(0, I)", like the peers. flowjax's and normflows' coupling flows have our splines, depth and width;
NumPyro's guides are as shipped. normflows needs PyTorch: its rows are run by the Python that ``--torch`` names, in a
process and a thread of its own, with the densities written once more in torch (`peers/normflows_spline.py`) and its
plain gradient, and left out without it.

The ELBO is estimated with 4,000 fresh draws after every 200 steps. Looked for is the first of two looks in a row at
which log Z − ELBO is below 0.1 and 0.02 nats: steps, and CPU and wall seconds of the steps, compilation excluded (but
for flowjax, whose loop over steps is in Python, with that loop). Writes ``results/flows.json`` and ``.md``.
"""

import argparse
import functools
import json
import os
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf

RESULTS = Path(__file__).resolve().parent / "results"
LOOK, DRAWS, JUDGED = 200, 64, 4000
GOALS = (0.1, 0.02)
RATES = (1e-3, 5e-3)
PLAIN = {"whiten": None, "anneal": 0.0}


def twisted(u):
    a, b = u[:4], u[4:]
    normal = lambda x, scale: -0.5 * (x / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)  # noqa: E731
    return jnp.sum(normal(a, 1.0) + normal(b - a**2 + 1, 0.3))


def eight_schools():
    from pushforward.models import posteriordb

    root = Path(__file__).resolve().parents[1].parent / "shared" / "posteriordb"
    return posteriordb.load("eight_schools-eight_schools_noncentered", root).target()


TARGETS = {
    "twisted": lambda: pf.Target.from_log_density(twisted, np.zeros(8)),
    "eight_schools": eight_schools,
}


def schedule(rate, steps):
    """The same cosine for all."""
    return lambda t: rate * (0.02 + 0.98 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum((t + 0.5) / steps, 1.0))))


def ours(family, **options):
    """Begin, advance by `LOOK` steps, ELBO."""

    def make(name, target, rate, steps):
        del name
        method = pf.NormalizingFlow(family, num_steps=steps, learning_rate=rate, plateau=None, **options)
        key = jax.random.key(0)

        @jax.jit
        def begin(seed):
            return method.init(jax.random.fold_in(key, seed), target, jnp.zeros(target.dim))

        @jax.jit
        def advance(state, seed, t):
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, seed), t), LOOK)
            body = lambda state, given: (method.step(given[0], state, target, given[1])[0], None)  # noqa: E731
            return jax.lax.scan(body, state, (keys, t + jnp.arange(LOOK)))[0]

        @jax.jit
        def elbo(state, key):
            return mean_log_weight(eqx.combine(state.train.params, state.rest).sample_and_log_prob(key, JUDGED), target)

        return begin, advance, elbo

    return make


def flowjax_peer(kind):
    def make(_, target, rate, steps):
        import optax
        from flowjax.bijections import RationalQuadraticSpline
        from flowjax.distributions import StandardNormal
        from flowjax.flows import coupling_flow, masked_autoregressive_flow
        from flowjax.train.losses import ElboLoss
        from flowjax.train.train_utils import step
        from paramax import NonTrainable

        optimizer = optax.adam(schedule(rate, steps))
        loss = ElboLoss(target.log_density, DRAWS, stick_the_landing=kind.startswith("coupling"))

        def begin(seed):
            common = {"base_dist": StandardNormal((target.dim,)), "invert": False}
            if kind == "coupling":
                spline = RationalQuadraticSpline(knots=8, interval=5)
                flow = coupling_flow(
                    jax.random.key(seed), transformer=spline, flow_layers=8, nn_width=32, nn_depth=2, **common
                )
            else:
                flow = masked_autoregressive_flow(
                    jax.random.key(seed), flow_layers=3, nn_width=32, nn_depth=2, **common
                )
            is_fixed = lambda leaf: isinstance(leaf, NonTrainable)  # noqa: E731
            params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=is_fixed)
            return params, static, optimizer.init(params)

        def advance(state, seed, t):
            params, static, moments = state
            for key in jax.random.split(jax.random.fold_in(jax.random.key(seed), t), LOOK):
                params, moments, _ = step(params, static, key=key, optimizer=optimizer, opt_state=moments, loss_fn=loss)
            return params, static, moments

        @eqx.filter_jit
        def elbo(state, key):
            flow = eqx.combine(state[0], state[1], is_leaf=lambda leaf: isinstance(leaf, NonTrainable))
            return mean_log_weight(flow.sample_and_log_prob(key, (JUDGED,)), target)

        return begin, advance, elbo

    return make


def numpyro_peer(guide_name):
    def make(_, target, rate, steps):
        import numpyro
        from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_value

        from pushforward.infer.variational.guides import flat_model

        start = init_to_value(values={"u": jnp.zeros(target.dim)})
        guide = getattr(autoguide, guide_name)(flat_model(target, target.dim), init_loc_fn=start)
        adam = numpyro.optim.Adam(schedule(rate, steps))
        svi = SVI(flat_model(target, target.dim), guide, adam, Trace_ELBO(num_particles=DRAWS))
        judged = Trace_ELBO(num_particles=JUDGED)

        def begin(seed):
            return svi.init(jax.random.key(seed))

        @jax.jit
        def advance(state, seed, t):
            del seed, t
            return jax.lax.scan(lambda state, _: (svi.update(state)[0], None), state, None, length=LOOK)[0]

        @jax.jit
        def elbo(state, key):
            return -judged.loss(key, svi.get_params(state), svi.model, svi.guide)

        return begin, advance, elbo

    return make


CONTESTANTS = {
    "spline coupling": ours("spline-coupling"),
    "spline coupling, width 3": ours("spline-coupling", width=3.0),
    "spline coupling, from N(0, I)": ours("spline-coupling", **PLAIN),
    "affine coupling": ours("realnvp"),
    "inverse autoregressive": ours("iaf", num_layers=3),
    "flowjax spline coupling": flowjax_peer("coupling"),
    "flowjax inverse autoregressive": flowjax_peer("autoregressive"),
    "NumPyro AutoIAFNormal": numpyro_peer("AutoIAFNormal"),
    "NumPyro AutoBNAFNormal": numpyro_peer("AutoBNAFNormal"),
    "normflows spline coupling": None,
}


def mean_log_weight(drawn, target):
    u, log_q = drawn
    return jnp.mean(jax.vmap(target.log_density)(u) - log_q)


def train(make, name, target, rate, steps, seed):
    """ELBO, CPU and wall seconds of the steps after every look; compiling is done before."""
    begin, advance, elbo = make(name, target, rate, steps)
    jax.block_until_ready(advance(begin(seed), seed, 0))
    times, values = [[0.0, 0.0]], []
    state, spent = timed(begin, seed)
    times[0] = spent
    for look in range(steps // LOOK):
        state, spent = timed(advance, state, seed, look * LOOK)
        times.append(spent)
        values.append(float(elbo(state, jax.random.key(10_000 + look))))
    return np.asarray(values), np.cumsum(times, axis=0)[1:]


def train_normflows(python, name, target, rate, steps, seed):
    """The same by normflows, in a process of an environment that has it."""
    points = np.random.default_rng(0).normal(size=(5, target.dim))
    given = {
        "name": name, "dim": target.dim, "look": LOOK, "draws": DRAWS, "judged": JUDGED, "seed": seed,
        "rates": np.asarray(schedule(rate, steps)(jnp.arange(steps))).tolist(),
        "points": points.tolist(), "log_density": np.asarray(jax.vmap(target.log_density)(points)).tolist(),
    }  # fmt: skip
    script = Path(__file__).parent / "peers" / "normflows_spline.py"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "given.json").write_text(json.dumps(given))
        subprocess.run([python, script, f"{folder}/given.json", f"{folder}/found.npz"], check=True)
        with np.load(f"{folder}/found.npz") as found:
            return found["elbo"], found["times"]


def timed(f, *args):
    cpu, wall = time.process_time(), time.perf_counter()
    out = jax.block_until_ready(f(*args))
    return out, [time.process_time() - cpu, time.perf_counter() - wall]


def row_of(values, times, log_z):
    """When each goal was reached, and the gap at the end."""
    gap = log_z - values
    row = {"final_gap": float(gap[-1]), "cpu_seconds": float(times[-1, 0]), "gaps": [round(float(g), 4) for g in gap]}
    for goal in GOALS:
        below = np.isfinite(gap) & (gap < goal)
        there = np.flatnonzero(below[:-1] & below[1:])
        found = None
        if there.size:
            i = int(there[0])
            found = {"steps": (i + 1) * LOOK, "cpu": float(times[i, 0]), "wall": float(times[i, 1])}
        row[f"to {goal}"] = found
    return row


def log_z_of(name):
    """Exact: the twisted pairs are normalised, and of eight schools all but τ is integrated in closed form."""
    if name == "twisted":
        return 0.0
    y, sigma = np.array([28.0, 8, -3, 7, -1, 1, 18, 12]), np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    tau = np.exp(np.linspace(-20, 12, 6401))
    variances = sigma**2 + tau[:, None] ** 2
    # y | τ ~ N(0, diag(σ² + τ²) + 5² 1 1ᵀ), by the matrix determinant lemma and Sherman and Morrison.
    inner = 1 / 25 + np.sum(1 / variances, 1)
    squares = np.sum(y**2 / variances, 1) - np.sum(y / variances, 1) ** 2 / inner
    log_y = -0.5 * (squares + np.sum(np.log(variances), 1) + np.log(25 * inner) + y.size * np.log(2 * np.pi))
    log_tau = np.log(2 / (5 * np.pi)) - np.log1p((tau / 5) ** 2) + np.log(tau)
    return float(np.log(np.trapezoid(np.exp(log_y + log_tau), np.log(tau))))


def table(rows):
    lines = [
        "| target | flow | rate | " + " | ".join(f"to {g} nats: steps, CPU s" for g in GOALS) + " | gap at the end |"
    ]
    lines.append("|---|---|---|" + "---|" * (len(GOALS) + 1))
    for row in rows:
        cells = [f"{f['steps']:,}, {f['cpu']:.1f}" if (f := row[f"to {goal}"]) else "not reached" for goal in GOALS]
        cells.append(f"{row['final_gap']:.3f}")
        lines.append(f"| {row['target']} | {row['flow']} | {row['rate']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--only", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--torch", help="Python of an environment with PyTorch and normflows")
    args = parser.parse_args()
    path = RESULTS / "flows.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    with jax.enable_x64(True):
        for name in args.targets:
            target = TARGETS[name]()
            log_z = log_z_of(name)
            for flow in args.only:
                learn = functools.partial(train, CONTESTANTS[flow])
                if CONTESTANTS[flow] is None:
                    if args.torch is None:
                        print("normflows is left out without --torch", flush=True)
                        continue
                    learn = functools.partial(train_normflows, args.torch)
                for rate in args.rates:
                    for seed in range(args.seeds):
                        about = {"target": name, "flow": flow, "rate": rate, "seed": seed, "log_z": log_z}
                        rows = [r for r in rows if any(r[k] != about[k] for k in ("target", "flow", "rate", "seed"))]
                        row = row_of(*learn(name, target, rate, args.steps, seed), log_z)
                        rows.append(about | {"steps": args.steps, "load": os.getloadavg()[0]} | row)
                        print({k: v for k, v in rows[-1].items() if k != "gaps"}, flush=True)
                        record = {"date": datetime.now(UTC).date().isoformat(), "jax": jax.__version__, "rows": rows}
                        path.write_text(json.dumps(record, indent=1) + "\n")
                        path.with_suffix(".md").write_text(table(rows) + "\n")


if __name__ == "__main__":
    main()
