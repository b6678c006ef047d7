"""The experiments of forward–backward Gaussian variational inference and of its control variate, run again.

``python -m benchmarks.papers.fb_gvi [EXPERIMENT]...`` writes ``results/fb_gvi.json`` and a figure; the experiments:

* ``e1``, ``e2``: Diao et al. 2023, Gaussian target of condition number 200, exact and with one draw a step
* ``e3``: theirs on logistic regression, with a proper prior: under their flat one half of the data sets are separable,
  and the posterior improper; ``e3_flat``: with the flat prior, on the first data set that is not separable
* ``e4``: Luu et al. 2025, Gaussian (d = 10, 50, 200), Student-t and logistic (d = 200), one draw a step, 300 steps
* ``estimators``: Stein and Price, with and without control variates, on Gaussian and logistic targets

KL is that of the Gaussian targets in closed form, of the others from draws or quadrature; logarithms are natural. What
the papers' figures show is next to it in ``expected``.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from scipy.optimize import linprog

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.infer.linalg import Triangular

# -- targets ----------------------------------------------------------------------------------------------------------


def parameters(d, seed, alpha=5e-3):
    """Mean in [0, 1]^d and a covariance with eigenvalues from 1 to 1/α, randomly rotated."""
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(rng.normal(size=(d, d)))
    q = q * np.sign(np.diag(r))
    return rng.uniform(size=d), q @ np.diag(np.geomspace(1, 1 / alpha, d)) @ q.T


def quadratic(x, data):
    mean, precision = data
    return -0.5 * (x - mean) @ precision @ (x - mean)


def gaussian(d, seed, exact=False):
    mean, covariance = parameters(d, seed)
    precision = np.linalg.inv(covariance)
    precision = 0.5 * (precision + precision.T)
    if exact:
        target = pf.glm_target(np.ones((0, d)), np.ones(0), prior_precision=precision, prior_mean=mean)
    else:
        target = pf.Target.from_log_density(quadratic, np.zeros(d), data=(mean, precision))
    reference = pf.GaussianApproximation(jnp.asarray(mean), Triangular(jnp.linalg.cholesky(jnp.asarray(covariance))))
    return target, lambda q: q.kl_to(reference)


def student(x, data):
    mean, precision, log_det = data
    d, nu = x.shape[0], 4.0
    q = (x - mean) @ precision @ (x - mean)
    constant = gammaln(0.5 * (nu + d)) - gammaln(0.5 * nu) - 0.5 * d * jnp.log(nu * jnp.pi) + 0.5 * log_det
    return constant - 0.5 * (nu + d) * jnp.log1p(q / nu)


def student_t(d, seed):
    """KL by 1,000 draws; its density is normalised."""
    mean, covariance = parameters(d, seed)
    precision = np.linalg.inv(covariance)
    data = (mean, 0.5 * (precision + precision.T), np.linalg.slogdet(precision)[1])
    target = pf.Target.from_log_density(student, np.zeros(d), data=data)

    def kl(q):
        u, log_q = q.sample_and_log_prob(jax.random.key(99), 1000)
        return jnp.mean(log_q - jax.vmap(target.log_density)(u))

    return target, kl


def logistic(d, n, seed, prior_precision):
    """The papers' data, with F = KL − log Z by quadrature."""
    rng = np.random.default_rng(seed)
    truth, design = rng.normal(size=d), rng.normal(size=(n, d))
    design = design / np.sqrt(np.linalg.eigvalsh(design.T @ design)[-1])
    response = (rng.uniform(size=n) < 1 / (1 + np.exp(-design @ truth))).astype(float)
    return pf.glm_target(design, response, prior_precision=prior_precision), design, response


def free_energy(target):
    def value(q):
        expected, _, _ = target.gaussian_expectations(q.loc, q.factor.dense())
        return expected - q.entropy()

    return value


def gradient_norm(target):
    """Squared norm of the Bures–Wasserstein gradient, by quadrature."""

    def value(q):
        c = q.factor.dense()
        _, g, hessian = target.gaussian_expectations(q.loc, c)
        gap = jax.vmap(hessian, 1, 1)(c) - jnp.linalg.inv(c).T
        return jnp.sum(g**2) + jnp.sum(gap**2)

    return value


# -- runs -------------------------------------------------------------------------------------------------------------


def trajectory(method, target, metric, *, steps, seeds, start=None):
    """The metric after each step, shape (seeds, steps + 1), begun at N(0, I), one seed after the other."""
    d = target.dim
    start = jnp.zeros(d) if start is None else start

    @jax.jit
    def run(method, target, key):
        state = jax.tree.map(jnp.asarray, method.init(key, target, start))

        def body(state, t):
            new, _ = method.step(jax.random.fold_in(key, t), state, target, t)
            return new, metric(pf.GaussianApproximation(new.mean, new.factor))

        first = metric(pf.GaussianApproximation(state.mean, state.factor))
        _, values = jax.lax.scan(body, state, jnp.arange(steps))
        return jnp.concatenate([first[None], values])

    return np.stack([np.asarray(run(method, target, jax.random.key(seed))) for seed in seeds])


def settings(**more):
    return {"schedule": "constant", "initial_covariance": 1.0, "antithetic": False, **more}


def ln(x):
    return np.log(np.maximum(x, 1e-300))


def e1():
    """Exact expectations, total time 200."""
    target, kl = gaussian(10, 0, exact=True)
    rows = []
    expected = {("FB", 180): -3.97, ("FB", 200): -5.21, ("FB", 400): -5.22, ("BW", 200): -5.29}
    for name, cls in (("FB", pf.FBGVI), ("BW", pf.BWSGD)):
        for steps in (180, 200, 400):
            method = cls(expectation="gauss_hermite", step_size=200 / steps, num_steps=steps, **settings())
            found = ln(trajectory(method, target, kl, steps=steps, seeds=[0])[0])
            rows.append(
                {"method": name, "steps": steps, "step_size": 200 / steps, "final": float(found[-1]),
                 "peak_after_start": float(found[steps // 2 :].max()), "expected": expected.get((name, steps)),
                 "curve": curve(found)}
            )  # fmt: skip
    return {
        "metric": "ln KL",
        "rows": rows,
        "note": "BW at 1.111 leaves its fixed point after t = 170, in the paper's figure up to about +3.9",
    }


def e2():
    """One draw a step, total time 400."""
    target, kl = gaussian(10, 0)
    precision = np.linalg.eigvalsh(np.linalg.inv(parameters(10, 0)[1]))
    rows = []
    for name, cls in (("FB", pf.FBGVI), ("BW", pf.BWSGD)):
        for steps in (360, 400, 6400):
            step = 400 / steps
            method = cls(step_size=step, num_draws=1, control="none", num_steps=steps, **settings())
            values = trajectory(method, target, kl, steps=steps, seeds=range(10))
            tail = values[:, -steps // 4 :]
            floor = float(0.5 * np.sum(step * precision / (2 - step * precision))) if step <= 1 else None
            rows.append(
                {"method": name, "steps": steps, "step_size": step,
                 "mean_ln_kl_of_last_quarter": float(ln(tail).mean()), "mean_kl_of_last_quarter": float(tail.mean()),
                 "highest_ln_kl": float(ln(values[:, steps // 10 :]).max()),
                 "floor_kl": floor, "expected": {(400, "FB"): -0.3, (6400, "FB"): -3.5}.get((steps, name)),
                 "curve": curve(ln(values[0]))}
            )  # fmt: skip
    return {"metric": "ln KL", "rows": rows, "note": "the floor is ½ Σ ηλ/(2−ηλ); BW at 1.111 spikes in the figure"}


def separable(design, response):
    """Whether a hyperplane through the origin separates the responses: then no maximum of the likelihood exists."""
    signed = design * (2 * response - 1)[:, None]
    # Maximise the sum of margins within a box; 0 is the best exactly where no direction has all margins >= 0.
    found = linprog(-signed.sum(0), A_ub=-signed, b_ub=np.zeros(len(signed)), bounds=(-1, 1))
    return -found.fun > 1e-9


def e3(prior_precision=0.01, seed=0):
    """Logistic regression with d = 10, n = 20 under N(0, 10²) and one draw a step, total time 1600."""
    target, _, _ = logistic(10, 20, seed, prior_precision)
    both = lambda q: jnp.stack([gradient_norm(target)(q), free_energy(target)(q)])  # noqa: E731
    exact = pf.FBGVI(expectation="gauss_hermite", step_size=2.0, num_steps=6000, **settings())
    optimum = float(trajectory(exact, target, free_energy(target), steps=6000, seeds=[0])[0, -1])
    with_laplace = pf.fit(target, pf.Laplace(), progress=False).approximation
    at_laplace = np.asarray(both(with_laplace))
    rows = [
        {"method": "Laplace", "ln_gradient": float(ln(at_laplace[0])), "excess_f": float(at_laplace[1] - optimum)},
    ]
    for name, cls in (("FB", pf.FBGVI), ("BW", pf.BWSGD)):
        for steps in (200, 1600, 4000):
            method = cls(step_size=1600 / steps, num_draws=1, control="none", num_steps=steps, **settings())
            values = trajectory(method, target, both, steps=steps, seeds=range(5))
            tail = values[:, -steps // 4 :]
            rows.append(
                {"method": name, "steps": steps, "step_size": 1600 / steps,
                 "mean_ln_gradient_of_last_quarter": float(ln(tail[..., 0]).mean()),
                 "highest_ln_gradient": float(np.nanmax(ln(values[:, steps // 10 :, 0]))),
                 "mean_excess_f_of_last_quarter": float((tail[..., 1] - optimum).mean()),
                 "highest_excess_f": float(np.nanmax(values[:, steps // 10 :, 1]) - optimum),
                 "expected": E3_FIGURE.get((name, steps)) if prior_precision == 0 else None}
            )  # fmt: skip
    about = {"metric": "ln |BW gradient|², F − min F", "rows": rows, "minimum": optimum, "data_seed": seed}
    return about | {"prior_sd": None if prior_precision == 0 else prior_precision**-0.5}


# ln |BW gradient|², as far as it can be read off the paper's figure; its data set is not known.
E3_FIGURE = {
    ("FB", 200): "-3 to -1.4",
    ("FB", 1600): "-3.1 to -3.4",
    ("FB", 4000): "-3.1 to -3.4",
    ("BW", 200): "to 4.4",
}


def e3_flat():
    """The same under the paper's flat prior; and how many of 200 data sets are separable."""
    found = [separable(*logistic(10, 20, seed, 0.0)[1:]) for seed in range(200)]
    return e3(0.0, found.index(False)) | {"separable_of_200": int(np.sum(found))}


SHEET = {  # KL, mean of the last 10 of 300 steps, another run of the same experiment
    (10, 0.0): 1.09, (10, 0.9): 0.0112, (10, 1.0): 0.0017, (50, 0.0): 3.63, (50, 0.9): 0.0367, (50, 1.0): 0.0028,
    (200, 0.0): 13.2, (200, 0.9): 0.140, (200, 1.0): 0.0088,
}  # fmt: skip


def e4():
    """300 steps of size 1, one draw each."""
    rows = []
    for kind, d in (("gaussian", 10), ("gaussian", 50), ("gaussian", 200), ("student", 200), ("logistic", 200)):
        seeds = range({10: 10, 50: 5}.get(d, 2))
        begun = time.perf_counter()
        if kind == "gaussian":
            target, metric = gaussian(d, 42)
        elif kind == "student":
            target, metric = student_t(d, 42)
        else:
            target, _, _ = logistic(d, 1000, 42, prior_precision=0.0)
            metric = free_energy(target)
        runs = {}
        for c in (0.0, 0.9, 1.0):
            method = pf.SVRGVI(coefficient=c, step_size=1.0, num_steps=300, initial_covariance=1.0)
            runs[f"c = {c}"] = trajectory(method, target, metric, steps=300, seeds=seeds)
        method = pf.BWSGD(step_size=1.0, num_steps=300, initial_covariance=1.0)
        runs["BW-SGD"] = trajectory(method, target, metric, steps=300, seeds=seeds)
        rate, steps = {"student": (1e-3, 8000), "logistic": (1e-2, 3000)}.get(
            kind, (1e-2, 5000) if d < 100 else (1e-3, 10_000)
        )
        advi = pf.ADVI(step_size=rate, num_steps=steps, num_draws=1, **settings())
        runs["ADVI, STL"] = trajectory(advi, target, metric, steps=steps, seeds=list(seeds)[: 3 if d < 200 else 1])
        if kind != "gaussian":
            laplace = pf.fit(target, pf.Laplace(), progress=False, start=np.zeros(d), num_chains=1).approximation
            runs["Laplace"] = np.full((1, 10), float(metric(laplace)))
        least = min(np.nanmin(values) for values in runs.values()) if kind == "logistic" else 0.0
        for name, values in runs.items():
            tail = values[:, -10:].mean(1) - least
            c = float(name[4:]) if name.startswith("c = ") else None
            floor = None
            if kind == "gaussian" and c is not None:
                eigenvalues = 1 / np.geomspace(1, 200, d)
                floor = float((1 - c) ** 2 / 2 * np.sum(eigenvalues / (2 - eigenvalues)))
            rows.append(
                {"target": kind, "dim": d, "method": name, "steps": values.shape[1] - 1, "seeds": values.shape[0],
                 "last_10": float(tail.mean()), "spread": float(tail.std()), "floor": floor,
                 "expected": SHEET.get((d, c)) if kind == "gaussian" else None, "curve": curve(values[0] - least)}
            )  # fmt: skip
            print(rows[-1] | {"curve": None}, flush=True)
        print(kind, d, f"{time.perf_counter() - begun:.0f} s", flush=True)
    return {"metric": "KL (logistic: F − min F), not its logarithm", "rows": rows}


def estimators():
    """Stein and Price with their control variates, constant steps: 8 draws (Gaussian), 16 in pairs (logistic)."""
    rows = []
    for d in (10,):
        target, kl = gaussian_between(d, 0.05, 1.0)
        for expectation, control in (
            ("stein", "none"),
            ("stein", "mean"),
            ("stein", "full"),
            ("price", "none"),
            ("price", "full"),
        ):
            for step in (0.01, 0.1, 0.5):
                method = pf.FBGVI(expectation=expectation, control=control, num_draws=8, step_size=step, **settings())
                found = trajectory(method, target, kl, steps=3000, seeds=range(4))[:, -300:].mean()
                rows.append(
                    {"target": "gaussian", "dim": d, "expectation": expectation, "control": control, "step_size": step,
                     "kl": float(found)}
                )  # fmt: skip
    rng = np.random.default_rng(0)
    design = rng.normal(size=(100, 10))
    response = (rng.uniform(size=100) < 1 / (1 + np.exp(-design @ rng.normal(size=10)))).astype(float)
    target = pf.glm_target(design, response, prior_precision=0.25)
    exact = pf.FBGVI(expectation="gauss_hermite", num_steps=4000, initial_covariance=1.0)
    least = float(trajectory(exact, target, free_energy(target), steps=4000, seeds=[0])[0, -1])
    _, _, hessian = target.gaussian_expectations(jnp.zeros(10), jnp.eye(10))
    largest = 0.5 / float(jnp.linalg.eigvalsh(jax.vmap(hessian)(jnp.eye(10)))[-1])
    for expectation, control in (("stein", "none"), ("stein", "full"), ("price", "none"), ("price", "full")):
        for part in (1.0, 0.25):
            options = settings(antithetic=True)
            method = pf.FBGVI(
                expectation=expectation, control=control, num_draws=16, step_size=part * largest, **options
            )
            found = trajectory(method, target, free_energy(target), steps=3000, seeds=range(4))[:, -300:].mean()
            rows.append(
                {"target": "logistic", "dim": 10, "expectation": expectation, "control": control,
                 "step_size": part * largest, "excess_f": float(found - least)}
            )  # fmt: skip
    return {"metric": "KL, or F − min F", "rows": rows}


def gaussian_between(d, low, high):
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    precision = q @ np.diag(np.geomspace(low, high, d)) @ q.T
    target = pf.Target.from_log_density(quadratic, np.zeros(d), data=(np.zeros(d), 0.5 * (precision + precision.T)))
    covariance = jnp.asarray(np.linalg.inv(precision))
    reference = pf.GaussianApproximation(jnp.zeros(d), Triangular(jnp.linalg.cholesky(covariance)))
    return target, lambda q: q.kl_to(reference)


def curve(values, points=200):
    """At most so many points of a trajectory, for the figure."""
    at = np.unique(np.linspace(0, len(values) - 1, points).astype(int))
    return {"at": (at / (len(values) - 1)).round(4).tolist(), "value": np.asarray(values)[at].astype(float).tolist()}


# -- output -----------------------------------------------------------------------------------------------------------


def figure(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [name for name in ("e1", "e2", "e4") if name in results]
    fig, axes = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 3.4), layout="constrained", squeeze=False)
    for ax, name in zip(axes[0], shown, strict=True):
        rows = [row for row in results[name]["rows"] if "curve" in row]
        if name == "e4":
            rows = [row for row in rows if row["target"] == "gaussian" and row["dim"] == 50]
        for row in rows:
            label = f"{row['method']}" + (f", η = {row['step_size']:.3g}" if "step_size" in row else "")
            ax.plot(row["curve"]["at"], row["curve"]["value"], lw=1, label=label)
        if name == "e4":
            ax.set_yscale("log")
        ax.set(xlabel="part of the run", ylabel="KL" if name == "e4" else "ln KL", title=TITLES[name])
        ax.legend(fontsize=6)
    fig.savefig(path, dpi=150)
    plt.close(fig)


TITLES = {"e1": "Gaussian, exact", "e2": "Gaussian, one draw", "e4": "Gaussian, d = 50, one draw, η = 1"}
EXPERIMENTS = {"e1": e1, "e2": e2, "e3": e3, "e3_flat": e3_flat, "estimators": estimators, "e4": e4}


def main(names):
    path = RESULTS / "fb_gvi.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    with jax.enable_x64(True):
        for name in names or EXPERIMENTS:
            begun = time.perf_counter()
            results[name] = EXPERIMENTS[name]() | {"seconds": round(time.perf_counter() - begun, 1)}
            path.write_text(json.dumps(rounded(results), indent=1) + "\n")
            for row in results[name]["rows"]:
                print(name, {k: v for k, v in row.items() if k != "curve"}, flush=True)
    figure(results, RESULTS / "fb_gvi.png")


def rounded(value):
    """Numbers with six digits; those that are not finite as None."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


if __name__ == "__main__":
    main(sys.argv[1:])
