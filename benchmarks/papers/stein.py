"""The experiments of "Sampling with mirrored Stein operators" (Shi, Liu & Mackey 2022) run again.

    python -m benchmarks.papers.stein [PART]...

Parts, each an entry of ``results/stein.json``; without names, those that have none yet:

* ``dirichlet``: a sparse Dirichlet of 20 categories, energy distance by iteration (i-a)
* ``quadratic``: a quadratic density on the simplex of 20 categories (i-b)
* ``square``: the uniform law on (−1, 1)² (i-c)
* ``selective``: a two-dimensional selective density, against its moments by quadrature (ii-a)
* ``coverage``: intervals after a randomised Lasso, 100 replications of noise (ii-b); 1,000 particles in 20 clouds,
  where the paper has 5,000 in 100
* ``logistic``: mini-batches of a badly scaled logistic regression, made in the script, in place of Covertype (iii)

Energy distances are V-statistics, whose floor for independent draws is beside them. ``figure`` draws what there is.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.models.selective import randomized_lasso

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS = 3
REPLICATIONS = 100
STEPS = (0, 10, 20, 40, 60, 100, 150, 200, 300, 499)
ALPHA = np.full(20, 0.1) + np.array([90.0, 5.0, 5.0] + [0.0] * 17)
A = np.array([[2.398594640215344, -1.9081586746841988], [0.0, 1.1809919098644999]])
C = np.array([2.397510925712619, -1.4610393671912956])
SIGMA = 0.2488836156425015
OBSERVED = np.array([0.308830847329477, 1.4801243006679028])
QUADRATURE = {"mean": [0.1518567, 1.3891187], "var": [0.0134787, 0.0234345], "below": 0.20971}


def rmsprop(rate):
    """Keras' RMSprop, whose mean square begins at zero."""
    return optax.rmsprop(rate, decay=0.9, eps=1e-7, eps_in_sqrt=False, initial_scale=0.0)


def methods(spectrum):
    """The two samplers of the paper, with its settings."""
    common = {"rule": "exact_median", "tolerance": 0.0}
    return {
        "MirroredSVGD": partial(pf.MirroredSVGD, **common),
        "SVMD": partial(pf.SVMD, spectrum=spectrum, jitter=1e-5, **common),
    }


def path(target, method, steps, key):
    """The cloud after each number of iterations: runs of one program, which go the same way as far as they go."""
    return [pf.fit(target, method(num_steps=t + 1), key=key, progress=False, precision=64).draws()["x"] for t in steps]


def distances(clouds, reference):
    """Energy distances to draws of the target."""
    return [float(pf.discrepancies.energy_distance(cloud, reference).squared) for cloud in clouds]


def compare(target, reference, start, steps, rates, spectrum, n, **options):
    """Rows of one target: method × rate × seed."""
    rows = []
    for name, method in methods(spectrum).items():
        for rate in rates:
            optimizer = rmsprop(rate)
            for seed in range(SEEDS):
                run = partial(method, num_particles=n, optimizer=optimizer, initial={"x": start(seed)}, **options)
                begun = time.perf_counter()
                found = distances([x[:, : reference.shape[1]] for x in path(target, run, steps, seed)], reference)
                rows.append({"method": name, "rate": rate, "seed": seed, "distance": found})
                print(name, rate, seed, [float(f"{x:.2g}") for x in found], f"{time.perf_counter() - begun:.0f} s")
    return rows


def floor(reference, n):
    """The energy distance of n independent draws."""
    return float(pf.discrepancies.energy_distance(reference[:n], reference[n:]).squared)


def project(x):
    """The Euclidean projection onto the simplex, by sorting."""
    ordered = jnp.sort(x)[::-1]
    sums = jnp.cumsum(ordered) - 1
    count = jnp.arange(1, x.size + 1)
    k = jnp.sum(ordered - sums / count > 0)
    return jnp.maximum(x - sums[k - 1] / k, 0)


def projected_svgd(score, start, steps, rate, floor_at=1e-12):
    """SVGD in the first d − 1 coordinates, each step followed by a projection: the baseline that has no mirror."""
    from pushforward.infer.kernels.bandwidth import choose_bandwidth
    from pushforward.infer.kernels.velocity import velocity

    optimizer = rmsprop(rate)

    @jax.jit
    def step(x, state):
        inner = jnp.maximum(x, floor_at)
        h = choose_bandwidth("exact_median", jax.random.key(0), x[:, :-1])
        phi = velocity("imq", x[:, :-1], jax.vmap(score)(inner), h)
        update, state = optimizer.update(-phi, state)
        moved = x[:, :-1] + update
        return jax.vmap(project)(jnp.column_stack([moved, 1 - moved.sum(1)])), state

    x, state, clouds = jnp.asarray(start), optimizer.init(jnp.asarray(start[:, :-1])), []
    for t in range(max(steps) + 1):
        x, state = step(x, state)
        if t in steps:
            clouds.append(np.asarray(x))
    return clouds


def on_simplex(log_density, reference, score, spectrum):
    """Both samplers and the baseline on a target of 20 probabilities."""
    target = pf.Target.from_log_density(log_density, np.full(20, 0.05), constraints.simplex)
    start = lambda seed: np.random.default_rng(seed).dirichlet(np.full(20, 5.0), 50)  # noqa: E731
    rows = compare(target, reference, start, STEPS, (0.1, 0.01), spectrum, 50)
    for rate in (1e-2, 1e-3, 1e-4):
        with jax.enable_x64(True):
            clouds = projected_svgd(score, start(0), STEPS, rate)
        found = distances([x[:, :19] for x in clouds], reference)
        rows.append({"method": "projected SVGD", "rate": rate, "seed": 0, "distance": found})
        print("projected", rate, [float(f"{x:.2g}") for x in found])
    begin = distances([start(0)[:, :19]], reference)[0]
    return {"steps": STEPS, "start": begin, "floor": floor(reference, 50), "rows": rows}


def dirichlet():
    """(i-a): α = 0.1 but for the first three categories, 90, 5 and 5."""
    reference = np.random.default_rng(100).dirichlet(ALPHA, 1000)[:, :19]

    def log_density(values):
        return jnp.sum((ALPHA - 1) * jnp.log(values))

    def score(x):
        return (ALPHA[:-1] - 1) / x[:-1] - (ALPHA[-1] - 1) / x[-1]

    return on_simplex(log_density, reference, score, 0.998)


def quadratic():
    """(i-b): −θᵀAθ/(2σ²) of the first 19 probabilities."""
    r = np.random.RandomState(123).uniform(-1, 1, (19, 19))
    matrix = r @ r.T
    matrix /= np.abs(matrix).max()
    scale = 0.01**2

    def log_density(values):
        x = values[:-1]
        return -0.5 * x @ jnp.asarray(matrix) @ x / scale

    target = pf.Target.from_log_density(log_density, np.full(20, 0.05), constraints.simplex)
    exact = pf.fit(target, pf.NUTS(), num_samples=1000, num_chains=4, progress=False)
    print(exact.diagnose())
    draws = exact.draws()["x"].reshape(-1, 20)
    found = on_simplex(log_density, draws[::4, :19], lambda x: -matrix @ x[:-1] / scale, 0.98)
    return found | {"mean": draws.mean(0)[[0, 1, 2, 3, 19]].tolist()}


def square():
    """(i-c): uniform on (−1, 1)²; kernel of fixed width."""
    target = pf.Target.from_log_density(lambda x: 0.0 * jnp.sum(x), np.zeros(2), constraints.interval(-1.0, 1.0))
    reference = np.random.default_rng(100).uniform(-1, 1, (500, 2))
    start = lambda seed: np.random.default_rng(seed).uniform(-0.5, 0.5, (500, 2))  # noqa: E731
    steps = (0, 50, 100, 200, 400, 1000)
    rows = compare(target, reference, start, steps, (0.01,), 0.998, 500, bandwidth=0.1)
    begin = distances([start(0)], reference)[0]
    fresh = np.random.default_rng(101).uniform(-1, 1, (1000, 2))
    return {"steps": steps, "start": begin, "floor": floor(fresh, 500), "rows": rows}


def selective_target():
    """−‖Aθ + c‖²/(2σ²) on the positive quadrant."""
    return pf.Target.from_log_density(
        lambda x: -0.5 * jnp.sum((A @ x + C) ** 2) / SIGMA**2, OBSERVED, constraints.positive
    )


def selective_draws(n):
    """Exact ones, by rejection from the untruncated normal."""
    rng, inverse, kept = np.random.default_rng(100), np.linalg.inv(A), []
    while sum(len(x) for x in kept) < n:
        draws = (SIGMA * rng.standard_normal((4 * n, 2)) - C) @ inverse.T
        kept.append(draws[(draws > 0).all(1)])
    return np.concatenate(kept)[:n]


def selective():
    """(ii-a): clouds of 50; moments of ten of them together."""
    target, reference = selective_target(), selective_draws(1000)
    start = lambda seed: OBSERVED * np.exp(np.random.default_rng(seed).standard_normal((50, 2)))  # noqa: E731
    steps = (0, 50, 100, 200, 400, 999)
    rows = compare(target, reference, start, steps, (0.1, 0.01), 0.99, 50)
    moments = {}
    for name, method in methods(0.99).items():
        run = partial(method, num_particles=50, num_steps=1000, optimizer=rmsprop(0.01))
        clouds = [
            pf.fit(target, run(initial={"x": start(seed)}), key=seed, progress=False, precision=64).draws()["x"]
            for seed in range(10)
        ]
        pooled = np.concatenate(clouds)
        moments[name] = {
            "mean": pooled.mean(0).tolist(),
            "var": pooled.var(0).tolist(),
            "below": float((pooled[:, 0] < 0.05).mean()),
        }
        print(name, moments[name])
    begin = distances([start(0)], reference)[0]
    return {
        "steps": steps, "start": begin, "floor": floor(selective_draws(1050), 50), "rows": rows,
        "moments": moments, "quadrature": QUADRATURE,
    }  # fmt: skip


def gibbs(selection, n, seed):
    """Exact draws of a selective density, by truncated normals."""
    from scipy.special import ndtr, ndtri

    rng = np.random.default_rng(seed)
    precision = selection.design.T @ selection.design / selection.scale**2
    pull = -selection.design.T @ selection.offset / selection.scale**2
    o, out = selection.magnitudes.copy(), np.empty((n, selection.magnitudes.size))
    for k in range(-200, n):
        for j in range(o.size):
            sd = precision[j, j] ** -0.5
            mean = (pull[j] - precision[j] @ o + precision[j, j] * o[j]) * sd**2
            o[j] = mean - sd * ndtri(rng.uniform() * ndtr(mean / sd))
        if k >= 0:
            out[k] = o
    return out


def coverage():
    """(ii-b): no column has an effect, so that the coefficients of every selected model are zero."""
    levels, n, p = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99), 100, 40
    counts = {name: {level: [] for level in levels} for name in ("exact", "MirroredSVGD", "SVMD", "naive")}
    seconds, empty = dict.fromkeys(counts, 0.0), 0
    for seed in range(REPLICATIONS):
        rng = np.random.default_rng(seed)
        X = np.sqrt(0.7) * rng.standard_normal((n, p)) + np.sqrt(0.3) * rng.standard_normal((n, 1))
        X -= X.mean(0)
        X /= X.std(0, ddof=1) * np.sqrt(n)
        penalty = 0.7 * np.mean(np.abs(X.T @ rng.standard_normal((n, 1000))).max(0))
        try:
            selection = randomized_lasso(X, rng.standard_normal(n), penalty, key=seed)
        except pf.InvalidArgument:  # nothing is selected
            empty += 1
            continue
        target = selection.target()
        for name in counts:
            begun = time.perf_counter()
            if name == "naive":
                draws = None
            elif name == "exact":
                draws = gibbs(selection, 5000, seed)
            else:
                method = getattr(pf, name)(num_particles=50, num_steps=1000, learning_rate=0.01, tolerance=0.0)
                draws = pf.fit(target, method, key=seed, num_chains=20, progress=False, precision=64).draws()["x"]
            seconds[name] += time.perf_counter() - begun
            for level in levels:
                found = selection.naive_intervals(level) if draws is None else selection.intervals(draws, level)
                counts[name][level] += [(i.lower < 0 < i.upper, i.upper - i.lower) for i in found]
        if seed % 20 == 19:
            print(
                seed + 1, {k: round(float(np.mean([c for c, _ in v[0.9]])), 3) for k, v in counts.items()}, flush=True
            )
    rows = []
    for name, by_level in counts.items():
        for level, seen in by_level.items():
            hits, widths = np.array(seen).T
            k, m, z = hits.sum(), len(hits), 1.96
            rows.append({
                "sampler": name, "level": level, "coverage": (k + z**2 / 2) / (m + z**2), "intervals": m,
                "error": float(np.sqrt(level * (1 - level) / m)), "width": float(widths.mean()),
            })  # fmt: skip
    return {"replications": REPLICATIONS, "empty": empty, "seconds": seconds, "rows": rows}


def logistic():
    """(iii) without Covertype: 14 features of scales 1 to 0.03, rotated; 16,000 observations, batches of 256."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(1, 0.03, 14)
    rotation = np.linalg.qr(rng.standard_normal((14, 14)))[0]
    x = np.column_stack([rng.standard_normal((20_000, 14)) * scales @ rotation, np.ones(20_000)])
    w = 2 * rng.standard_normal(15)
    y = (rng.uniform(size=20_000) < 1 / (1 + np.exp(-x @ w))).astype(float)
    train, test = (x[:16_000], y[:16_000]), (x[16_000:], y[16_000:])

    def log_likelihood(w, row):
        return row[1] * (row[0] @ w) - jnp.logaddexp(0.0, row[0] @ w)

    target = pf.Target.from_factors(lambda w: -0.5 * jnp.sum(w**2), log_likelihood, train, np.zeros(15))

    def held_out(cloud):
        p = np.mean(1 / (1 + np.exp(-test[0] @ cloud.T)), axis=1)
        return float(np.mean(test[1] * np.log(p) + (1 - test[1]) * np.log1p(-p)))

    start = np.random.default_rng(1).uniform(-0.6, 0.6, (20, 15))
    steps, rows = (0, 49, 99, 199, 399, 599), []
    common = {"num_particles": 20, "kernel": "rbf", "rule": "exact_median", "batch_size": 256, "initial": start}
    runs = {
        "SVGD": partial(pf.SVGD, optimizer=optax.sgd(1.0 / 16_000), **common),
        "SVNG, Hessian": partial(pf.SVNG, optimizer=optax.sgd(0.5), **common),
    }
    for name, method in runs.items():
        for seed in range(SEEDS):
            found = [held_out(cloud) for cloud in path(target, method, steps, seed)]
            rows.append({"method": name, "seed": seed, "held_out": found})
            print(name, seed, [round(v, 4) for v in found])
    return {"steps": steps, "rows": rows, "truth": held_out(w[None])}


PARTS = {f.__name__: f for f in (dirichlet, quadratic, square, selective, coverage, logistic)}


def figure(results):
    """Energy distance by iteration, one panel per target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in ("dirichlet", "quadratic", "square", "selective") if name in results]
    fig, axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3.2), layout="constrained", squeeze=False)
    colours = {"MirroredSVGD": "C0", "SVMD": "C1", "projected SVGD": "C7"}
    for ax, name in zip(axes[0], names, strict=True):
        found = results[name]
        best = 0.01 if name in ("square", "selective") else 0.1
        for method, colour in colours.items():
            rows = [r for r in found["rows"] if r["method"] == method and r["rate"] in (best, 1e-4)]
            for k, row in enumerate(rows):
                ax.plot(np.array(found["steps"]) + 1, row["distance"], colour, lw=1.2, label=method if k == 0 else None)
        ax.axhline(found["floor"], color="k", ls=":", lw=1, label="independent draws")
        ax.set(title=name, xlabel="iteration", yscale="log", xscale="log")
    axes[0, 0].set_ylabel("energy distance")
    axes[0, 0].legend(fontsize=7)
    fig.savefig(RESULTS / "stein.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, figure")
    args = parser.parse_args()
    file = RESULTS / "stein.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.parts or [name for name in PARTS if name not in results]:
        if name != "figure":
            results[name] = PARTS[name]()
            file.write_text(json.dumps(results, indent=1) + "\n")
    figure(results)


if __name__ == "__main__":
    main()
