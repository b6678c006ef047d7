"""The experiments of "Sampling with mirrored Stein operators" (Shi, Liu & Mackey 2022) run again.

    python -m benchmarks.papers.stein [PART]...

Parts, each an entry of ``results/stein.json``; without names, those that have none yet:

* ``dirichlet``: a sparse Dirichlet of 20 categories, energy distance by iteration (i-a)
* ``quadratic``: a quadratic density on the simplex of 20 categories (i-b)
* ``square``: the uniform law on (−1, 1)² (i-c); beside the distance to 500 draws, as in the paper, that to the law
* ``selective``: a two-dimensional selective density, against its moments by quadrature (ii-a)
* ``coverage``: intervals after a randomised Lasso, 100 replications of noise (ii-b); 5,000 particles in 100 clouds;
  pivots integrated, as `Selection.intervals` does, and sampled, as in the paper
* ``coverage_exact``: the same with exact draws, and naively
* ``coverage_svmd``: the same by SVMD, ten times as dear
* ``coverage_small``: both with 1,000 particles in 20 clouds
* ``logistic``: mini-batches of a badly scaled logistic regression, made in the script, in place of Covertype (iii)
* ``covertype``: Covertype itself, from your own file: ``--file PATH``, in LIBSVM's format (covtype.libsvm.binary),
  UCI's covtype.data, plain or gzipped, or MATLAB's covertype.mat; not among the default parts

Energy distances are V-statistics, whose floor for independent draws is beside them. ``figure`` draws what there is.
"""

import argparse
import itertools
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.distributions import constraints
from scipy.stats import qmc

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.models.selective import randomized_lasso

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
    # Of the distance to 500 draws most is that of these draws from their law: of these, and of others.
    law = 2 * qmc.Sobol(2, seed=0).random(2**13) - 1
    others = distances([np.random.default_rng(seed).uniform(-1, 1, (500, 2)) for seed in range(101, 111)], law)
    ends = {}
    for name, method in methods(0.998).items():
        run = partial(method, num_particles=500, bandwidth=0.1, optimizer=rmsprop(0.01), initial={"x": start(0)})
        cloud = path(target, run, (400,), 0)[0]
        against = [np.random.default_rng(seed).uniform(-1, 1, (500, 2)) for seed in range(101, 111)]
        ends[name] = {
            "law": distances([cloud], law)[0],
            "draws": float(np.mean([distances([cloud], draws)[0] for draws in against])),
        }
    return {
        "steps": steps, "start": begin, "floor": float(np.mean(others)), "reference": distances([reference], law)[0],
        "ends": ends, "rows": rows,
    }  # fmt: skip


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


def sampled(selection, draws, levels, seed):
    """Intervals as in the paper: one normal draw of the estimate for each draw of the density, and weights.

    Ends are found within the draws, so that wide intervals are cut short; `Selection.intervals` integrates instead.
    """
    rng, base = np.random.default_rng(seed), draws @ selection.design.T + selection.offset
    out = {level: [] for level in levels}
    for i, centre in enumerate(selection.coefficients):
        slope, sd = selection.slopes[i], np.sqrt(selection.covariance[i, i])
        along, steep, noise = base @ slope, slope @ slope, sd * rng.standard_normal(len(draws))

        def pivot(value, noise=noise, along=along, steep=steep, centre=centre):
            shift = noise + value - centre
            log_weight = -(2 * along * shift + steep * shift**2) / (2 * selection.scale**2)
            weight = np.exp(log_weight - log_weight.max())
            return weight[shift <= 0].sum() / weight.sum()

        def end(level, pivot=pivot, low=centre - 10 * sd, high=centre + 10 * sd):
            if pivot(low) < level or pivot(high) > level:
                return low if pivot(low) < level else high
            for _ in range(30):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if pivot(middle) >= level else (low, middle)
            return low

        for level in levels:
            out[level].append((end(0.5 * (1 + level)), end(0.5 * (1 - level))))
    return out


LEVELS = (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)


def replication(names, seed, clouds):
    """Of each sampler, pivot and level: whether each interval has the truth, and its width; None without selection."""
    n, p, rng = 100, 40, np.random.default_rng(seed)
    X = np.sqrt(0.7) * rng.standard_normal((n, p)) + np.sqrt(0.3) * rng.standard_normal((n, 1))
    X -= X.mean(0)
    X /= X.std(0, ddof=1) * np.sqrt(n)
    penalty = 0.7 * np.mean(np.abs(X.T @ rng.standard_normal((n, 1000))).max(0))
    try:
        selection = randomized_lasso(X, rng.standard_normal(n), penalty, key=seed)
    except pf.InvalidArgument:  # nothing is selected
        return None
    seconds, intervals = {}, []
    for name in names:
        begun, draws = time.perf_counter(), magnitudes(name, selection, seed, clouds)
        seconds[name] = time.perf_counter() - begun
        cut = {} if draws is None else sampled(selection, draws, LEVELS, seed)
        for level in LEVELS:
            found = selection.naive_intervals(level) if draws is None else selection.intervals(draws, level)
            seen = {"naive" if draws is None else "integrated": [(i.lower, i.upper) for i in found]}
            for pivot, ends in (seen | ({"sampled": cut[level]} if cut else {})).items():
                intervals.extend([name, pivot, level, bool(a < 0 < b), float(b - a)] for a, b in ends)
    return {"seconds": seconds, "intervals": intervals}


def covered(names, replications, clouds=100):
    """Coverage and widths by sampler, pivot and level; replications are kept as they come, and a killed run goes on."""
    part = RESULTS / f"stein_{'_'.join(names)}_{clouds}.part"
    done = [json.loads(line) for line in part.read_text().splitlines()] if part.exists() else []
    with part.open("a") as file:
        for seed in range(len(done), replications):
            done.append(replication(names, seed, clouds))
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
            print(seed + 1, done[-1] and {k: round(v, 1) for k, v in done[-1]["seconds"].items()}, flush=True)
    counts, kept = {}, [found for found in done if found is not None]
    for name, pivot, level, hit, width in itertools.chain.from_iterable(found["intervals"] for found in kept):
        counts.setdefault((name, pivot, level), []).append((hit, width))
    rows = []
    for (name, pivot, level), seen in counts.items():
        hits, widths = np.array(seen).T
        k, m, z = hits.sum(), len(hits), 1.96
        rows.append({
            "sampler": name, "pivot": pivot, "level": level, "coverage": (k + z**2 / 2) / (m + z**2), "intervals": m,
            "error": float(np.sqrt(level * (1 - level) / m)), "width": float(widths.mean()),
        })  # fmt: skip
    part.unlink()
    seconds = {name: sum(found["seconds"][name] for found in kept) for name in names}
    return {"replications": replications, "empty": len(done) - len(kept), "seconds": seconds, "rows": rows}


def magnitudes(name, selection, seed, clouds):
    """Draws of the selective density, 50 particles in each cloud; None for intervals that forget the selection."""
    if name == "naive":
        return None
    if name == "exact":
        return gibbs(selection, 5000, seed)
    options = {"spectrum": 0.98, "jitter": 1e-5} if name == "SVMD" else {}
    method = getattr(pf, name)(num_particles=50, num_steps=1000, learning_rate=0.01, tolerance=0.0, **options)
    run = pf.fit(selection.target(), method, key=seed, num_chains=clouds, progress=False, precision=64)
    return run.draws()["x"]


def coverage():
    """(ii-b): no column has an effect, so that the coefficients of every selected model are zero."""
    return covered(("MirroredSVGD",), REPLICATIONS)


def coverage_exact():
    """(ii-b) with exact draws, and intervals that forget the selection."""
    return covered(("exact", "naive"), REPLICATIONS)


def coverage_svmd():
    """(ii-b) by SVMD."""
    return covered(("SVMD",), REPLICATIONS)


def coverage_small():
    """(ii-b) with a fifth of the particles."""
    return covered(("MirroredSVGD", "SVMD"), REPLICATIONS, 20)


def compare_logistic(train, test, steps, seeds, rates):
    """Held-out log density of clouds of 20 by mini-batches of 256, as in the paper; one entry per method and seed."""
    n, d = train[0].shape

    def log_likelihood(w, row):
        return row[1] * (row[0] @ w) - jnp.logaddexp(0.0, row[0] @ w)

    target = pf.Target.from_factors(lambda w: -0.5 * jnp.sum(w**2), log_likelihood, train, np.zeros(d))

    def held_out(cloud):
        along = test[0] @ cloud.T
        p = np.mean(1 / (1 + np.exp(-along)), axis=1)
        eps = np.finfo(float).eps
        return {
            "held_out": float(np.mean(test[1] * np.log(p + eps) + (1 - test[1]) * np.log1p(eps - p))),
            "accuracy": float(np.mean((p > 0.5) == test[1])),
        }

    limit = np.sqrt(6 / (d + 1))
    common = {"num_particles": 20, "kernel": "rbf", "rule": "exact_median", "batch_size": min(256, n), "tolerance": 0.0}
    # Damping of 0.01 by observation, of a metric whose mean diagonal is about a tenth of that of the features.
    damped = {"damping": 0.04 / float(np.mean(train[0] ** 2)), "spectrum": 0.98}
    runs = {
        "SVGD": partial(pf.SVGD, optimizer=optax.sgd(rates[0] / n), **common),
        "SVNG, Hessian": partial(pf.SVNG, optimizer=optax.sgd(rates[1]), **common),
        "SVNG, Fisher": partial(pf.SVNG, optimizer=optax.sgd(rates[1]), metric="fisher", **damped, **common),
        "SVNG, observed": partial(pf.SVNG, optimizer=optax.sgd(rates[1]), metric="observed", **damped, **common),
    }
    rows = []
    for name, method in runs.items():
        for seed in range(seeds):
            start = np.random.default_rng(seed).uniform(-limit, limit, (20, d))
            begun = time.perf_counter()
            found = [
                held_out(pf.fit(target, method(initial=start, num_steps=t + 1), key=seed, progress=False).draws()["x"])
                for t in steps
            ]
            row = {key: [one[key] for one in found] for key in found[0]}
            rows.append({"method": name, "seed": seed, "seconds": time.perf_counter() - begun} | row)
            print(name, seed, [round(v, 4) for v in row["held_out"]], f"{rows[-1]['seconds']:.0f} s", flush=True)
    return rows, held_out


def logistic():
    """(iii) without Covertype: 14 features of scales 1 to 0.03, rotated; 16,000 observations, batches of 256."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(1, 0.03, 14)
    rotation = np.linalg.qr(rng.standard_normal((14, 14)))[0]
    x = np.column_stack([rng.standard_normal((20_000, 14)) * scales @ rotation, np.ones(20_000)])
    w = 2 * rng.standard_normal(15)
    y = (rng.uniform(size=20_000) < 1 / (1 + np.exp(-x @ w))).astype(float)
    steps = (49, 99, 199, 599)
    rows, held_out = compare_logistic((x[:16_000], y[:16_000]), (x[16_000:], y[16_000:]), steps, SEEDS, (1.0, 0.5))
    return {"steps": steps, "rows": rows, "truth": held_out(w[None])["held_out"]}


def read_covertype(file):
    """Features (n, 54) in [0, 1] by column, and labels, 0 for what the paper's file calls 2.

    LIBSVM's binary form has labels 1 and 2; UCI's has seven types in its last column, of which number 2 is against all
    others; a MATLAB file (``covtype``) has labels 1 and 2, or ±1, in its first column.
    """
    name = Path(file).name
    if name.endswith(".mat"):
        from scipy.io import loadmat

        table = loadmat(file)["covtype"]
        table = np.asarray(table.todense() if hasattr(table, "todense") else table, float)
        x, label = table[:, 1:], table[:, 0]
        y = label == 1
    elif "libsvm" in name or name.endswith((".svm", ".bz2", ".scale")):
        from sklearn.datasets import load_svmlight_file

        found, label = load_svmlight_file(file, n_features=54)
        x, y = found.toarray(), label == label.min()
    else:
        table = np.loadtxt(file, delimiter=",")
        x, y = table[:, :54], table[:, 54] != 2
    low, high = x.min(0), x.max(0)
    return (x - low) / np.where(high > low, high - low, 1), y.astype(float)


def covertype(file, epochs=2):
    """(iii): train on 72 % of the rows, test on 20 %; two epochs, five seeds."""
    x, y = read_covertype(file)
    x = np.column_stack([x, np.ones(len(x))])
    order = np.random.default_rng(0).permutation(len(x))
    cut = len(x) // 5
    test, train = order[:cut], order[cut : len(x) - (len(x) - cut) // 10]
    last = max(epochs * len(train) // 256, 1)
    steps = tuple(sorted({min(t, last) - 1 for t in (50, 150, 250, 500, 1100, 2600, last)}))
    rows, _ = compare_logistic((x[train], y[train]), (x[test], y[test]), steps, 5, (1.0, 0.5))
    return {"steps": steps, "observations": len(train), "rows": rows}


PARTS = {
    f.__name__: f
    for f in (
        dirichlet, quadratic, square, selective, coverage, coverage_exact, coverage_svmd, coverage_small, logistic,
    )
}  # fmt: skip


def figure(results):
    """Energy distance by iteration, one panel per target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in ("dirichlet", "quadratic", "square", "selective") if name in results]
    if not names:
        return
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
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, covertype, figure")
    parser.add_argument("--file", help="of Covertype")
    args = parser.parse_args()
    if "covertype" in args.parts and not args.file:
        parser.error("covertype needs --file PATH")
    parts = PARTS | {"covertype": lambda: covertype(args.file), "figure": None}
    file = RESULTS / "stein.json"
    read = lambda: json.loads(file.read_text()) if file.exists() else {}  # noqa: E731
    for name in args.parts or [name for name in PARTS if name not in read()]:
        if parts[name] is not None:
            found = parts[name]()
            file.write_text(json.dumps(read() | {name: found}, indent=1) + "\n")
    figure(read())


if __name__ == "__main__":
    main()
