"""Signal-to-noise ratios of gradients of multi-sample bounds (Rainforth et al. 2018, section 4; Tucker et al. 2019).

    python -m benchmarks.papers.snr [--quick]

z ~ N(μ, I) in 20 dimensions, x | z ~ N(z, I), guide N(A x + b, 2/3 I), all parameters at their optimum plus
N(0, 0.01²). Mean over parameters of |E g| / sd g for the guide (A, b) and the model (μ), all of them given one
observation x, on which they depend. With one draw they are known in closed form, for 10,000 observations here: where
the reference lies among them, and which comes nearest to its ratios with one draw. Rows are the mean of the first
three observations, and, under "nearest", of that one, for which all rows but the first are predictions. Writes
results/snr.json.
"""

import argparse
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.papers.where import RESULTS
from pushforward.infer.approximation import Approximation
from pushforward.infer.variational.amortised import amortised
from pushforward.infer.variational.estimators import DReG, Reparameterised
from pushforward.infer.variational.objectives import IWAE

DIM = 20
REFERENCE = {  # (bound, M, K) → guide, model; from the method sheet (1500 repetitions)
    ("IWAE", 1, 1): (0.110, 0.735),
    ("IWAE", 1, 10): (0.045, 1.90),
    ("IWAE", 1, 100): (0.025, 5.91),
    ("IWAE", 1, 1000): (None, 18.6),
    ("IWAE", 10, 1): (0.334, None),
    ("IWAE", 100, 1): (1.05, None),
    ("DReG", 1, 1): (0.42, None),
    ("DReG", 1, 10): (0.51, None),
    ("DReG", 1, 100): (1.23, None),
    ("DReG", 1, 1000): (3.87, None),
}


class Guide(Approximation):
    """N(A x + b, 2/3 I) at one x."""

    loc: jax.Array

    def sample_and_log_prob(self, key, n):
        u = self.loc + np.sqrt(2 / 3) * jax.random.normal(key, (n, DIM), self.loc.dtype)
        return u, jax.vmap(self.log_prob)(u)

    def log_prob(self, u):
        return jnp.sum(-0.75 * (u - self.loc) ** 2) - 0.5 * DIM * np.log(2 * np.pi * 2 / 3)


def build(trained, x):
    """Guide and log joint density of an observation."""
    guide = Guide(trained["a"] @ x + trained["b"])
    return guide, lambda u: -0.5 * jnp.sum((u - trained["mu"]) ** 2 + (x - u) ** 2)


@eqx.filter_jit
def gradients(estimator, objective, trained, x, keys):
    """The guide's and the model's gradients of each key, flat."""

    def one(key):
        grads = amortised(estimator, objective, trained, build, x[None], key).grads
        return jnp.concatenate([grads["a"].ravel(), grads["b"]]), grads["mu"]

    return jax.lax.map(one, keys, batch_size=20)


def drawn(seed):
    """An observation, and parameters near their optimum."""
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=DIM)
    x = mu + rng.normal(size=DIM) + rng.normal(size=DIM)
    near = lambda value: value + 0.01 * rng.normal(size=np.shape(value))  # noqa: E731
    return x, {"a": near(0.5 * np.eye(DIM)), "b": near(mu / 2), "mu": near(mu)}


def with_one_draw(seed):
    """Ratios of guide, model and doubly reparameterised guide for M = K = 1, exactly.

    With z = m + s ε, s² = 2/3: ∂/∂b = x + μ − 2z, ∂/∂μ = z − μ, and by the path alone x + μ − 2z + (z − m) / s²; a
    row of A has those of b times x.
    """
    x, trained = drawn(seed)
    loc, sd = trained["a"] @ x + trained["b"], np.sqrt(2 / 3)
    off = np.mean(np.abs(x + trained["mu"] - 2 * loc))
    return off / (2 * sd), np.mean(np.abs(loc - trained["mu"])) / sd, off / (sd * (2 - 1 / sd**2))


def among_observations(reference, n=10_000):
    """Where the reference's ratios lie among those of n observations, and the observation that comes nearest."""
    found = np.array([with_one_draw(seed) for seed in range(n)])
    away = np.sum((np.log(found) - np.log(reference)) ** 2, 1)
    names = ("guide", "model", "guide doubly reparameterised")
    return int(np.argmin(away)), {
        name: {
            "median": float(np.median(ratio)),
            "5 to 95 %": np.quantile(ratio, [0.05, 0.95]).tolist(),
            "reference": exact,
            "share above the reference": float(np.mean(ratio > exact)),
        }
        for name, ratio, exact in zip(names, found.T, reference, strict=True)
    }


def ratios(estimator, objective, reps, seed):
    """Of guide and model, signal-to-noise ratio and its square without what noise alone gives."""
    x, trained = jax.tree.map(jnp.asarray, drawn(seed))
    found = gradients(estimator, objective, trained, x, jax.random.split(jax.random.key(seed), reps))
    shown = []
    for g in map(np.asarray, found):
        ratio = np.mean(g, 0) / np.std(g, 0)
        # Noise alone gives a ratio of about 1/√reps; the mean square is rid of it.
        shown += [np.mean(np.abs(ratio)), np.mean(ratio**2) - 1 / reps]
    return shown


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 repetitions, K up to 100")
    quick = parser.parse_args().quick
    work, rows = (30_000 if quick else 1_500_000), []
    nearest, observations = among_observations(
        (REFERENCE["IWAE", 1, 1][0], REFERENCE["IWAE", 1, 1][1], REFERENCE["DReG", 1, 1][0])
    )
    print(f"observation {nearest} of", json.dumps(observations, indent=1))
    heads = ("guide", "nearest", "sheet", "model", "nearest", "sheet")
    print(f"{'':>6} {'M':>4} {'K':>5}", *(f"{head:>8}" for head in heads))
    for (name, m, k), (guide, model) in REFERENCE.items():
        if quick and k > 100:
            continue
        reps = int(np.clip(work / (m * k), 300, 300 if quick else 30_000))
        estimator = DReG() if name == "DReG" else Reparameterised()
        found = np.mean([ratios(estimator, IWAE(k, m), reps, seed) for seed in range(3)], 0)
        near = ratios(estimator, IWAE(k, m), reps, nearest)
        rows.append(
            {
                "repetitions": reps,
                "bound": name,
                "M": m,
                "K": k,
                "guide": found[0],
                "model": found[2],
                "sheet": [guide, model],
                "nearest": {"guide": near[0], "model": near[2]},
            }
        )
        rows[-1] |= {"guide, root mean square": max(found[1], 0) ** 0.5, "model, root mean square": found[3] ** 0.5}
        show = lambda v: f"{v:8.3f}" if v is not None else f"{'':>8}"  # noqa: E731
        shown = (found[0], near[0], guide, found[2], near[2], model)
        print(f"{name:>6} {m:>4} {k:>5}", *map(show, shown), flush=True)
    by = {(r["bound"], r["M"], r["K"]): r for r in rows}
    largest = max(k for _, _, k in by)

    def slope(bound, who, first, last):
        (a, b), n = (
            (by[(bound, *at)][f"{who}, root mean square"] for at in (first, last)),
            np.prod(last) / np.prod(first),
        )
        return float(np.log(b / a) / np.log(n))

    slopes = {
        "model, K": slope("IWAE", "model", (1, 1), (1, largest)),
        "guide, K from 1 to 10": slope("IWAE", "guide", (1, 1), (1, 10)),
        "guide, M": slope("IWAE", "guide", (1, 1), (100, 1)),
        "guide doubly reparameterised, K from 10": slope("DReG", "guide", (1, 10), (1, largest)),
    }
    for name, found in slopes.items():
        print(f"slope, {name}: {found:.2f}")
    results = {"rows": rows, "slopes": slopes, "observations": observations | {"nearest": nearest}}
    path = RESULTS / "snr.json"
    path.write_text(json.dumps(results, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
