"""Variance of gradients through a rejection sampler: the Dirichlet–multinomial of Naesseth et al. (2017), figure 2.

    python -m benchmarks.papers.rsvi [--blocks 10]

100 categories, 100 trials, prior 1. Mean squared error of single-sample estimates of ∂ELBO/∂α₁ without a baseline, the
other parameters at the posterior's: score function (of the whole integrand log p − log q), G-REP (standardised log
gammas) and rejection with B boosts, both with the entropy's gradient exact. Without a baseline a constant in log p
changes the variance: both are shown, log p with its normalising constants and without. The last columns have a
leave-one-out baseline of 2 draws, which the paper does not have and which no constant changes. The errors are means
of heavy-tailed squares: beside that of the first 4,000 repetitions, as many as the values to compare with had, the
least and the largest of all blocks of 4,000 are kept. Writes results/rsvi.json.
"""

import argparse
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, polygamma
from scipy.special import polygamma as polygamma_exact

from benchmarks.papers.where import RESULTS
from pushforward.infer.variational.rejection import log_gamma

CATEGORIES, TRIALS, BLOCK = 100, 100, 4000
SHAPES = (1.01, 1.5, 2.0, 3.0)
BOOSTS = (0, 1, 3, 10)
SHEET = {
    1.01: (3.0e4, 5.5e3, 2.2e4, 310, 7.6, 1.5),
    1.5: (1.8e4, 1.2e3, 1.1e3, 141, 6.7, 0.48),
    2.0: (1.2e4, 464, 177, 17, 1.8, 0.26),
    3.0: (7.0e3, 112, 34, 7.0, 0.96, 0.12),
}


def problem():
    """Counts, of numpy's legacy generator with seed 0."""
    state = np.random.RandomState(0)
    return state.multinomial(TRIALS, state.dirichlet(np.ones(CATEGORIES)))


def exact(alpha, counts):
    """∂ELBO/∂α₁, and its part from the entropy."""
    total, trigamma = alpha.sum(), partial(polygamma_exact, 1)
    entropy = (total - CATEGORIES) * trigamma(total) - (alpha[0] - 1) * trigamma(alpha[0])
    return counts[0] * trigamma(alpha[0]) - trigamma(total) * counts.sum() + entropy, entropy


def generalised(key, alpha):
    """Log gammas by G-REP: ε = (log z − ψ(α)) / sqrt ψ'(α) held fixed (Ruiz et al. 2016)."""
    root = jnp.sqrt(polygamma(1, alpha))
    epsilon = jax.lax.stop_gradient((jax.random.loggamma(key, alpha) - polygamma(0, alpha)) / root)
    log_z = epsilon * root + polygamma(0, alpha)
    return log_z, alpha * log_z - jnp.exp(log_z) - gammaln(alpha) + jnp.log(root)


@partial(jax.jit, static_argnames=("boosts",))
def estimates(keys, alpha, counts, *, boosts):
    """Of each key f, ∂f along the draws, ∂ log π of what was accepted, ∂ log q, log q; boosts None: G-REP."""

    def one(key):
        def draw(first):
            a = alpha.at[0].set(first)
            return generalised(key, a) if boosts is None else log_gamma(key, a, boosts=boosts, method="rejection")

        def f(first):
            log_z, accepted = draw(first)
            log_x = log_z - jax.nn.logsumexp(log_z)
            return (counts @ log_x, accepted[0]), log_x

        (value, _), (path, score), log_x = jax.jvp(f, (alpha[0],), (jnp.ones(()),), has_aux=True)
        of_q = log_x[0] - polygamma(0, alpha[0]) + polygamma(0, alpha.sum())
        log_q = gammaln(alpha.sum()) - gammaln(alpha).sum() + (alpha - 1) @ log_x
        return value, path, score, of_q, log_q

    return jax.lax.map(one, keys, batch_size=500)


def run(keys, alpha, counts, boosts):
    return [np.asarray(x) for x in estimates(keys, jnp.asarray(alpha), jnp.asarray(counts, float), boosts=boosts)]


def log_factorial(n):
    return gammaln(jnp.asarray(n, float) + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=10)
    blocks = parser.parse_args().blocks
    counts = problem()
    names = ["score", "G-REP", *(f"B={b}" for b in BOOSTS), *(f"B={b}, baseline" for b in BOOSTS)]
    print(f"{'alpha':>6} {'exact':>8} " + " ".join(f"{name:>14}" for name in names))
    rows = []
    constant = float(2 * log_factorial(TRIALS) - np.log(TRIALS) - log_factorial(counts).sum())
    for first in SHAPES:
        alpha = 1.0 + counts.astype(float)
        alpha[0] = first
        truth, entropy = exact(alpha, counts)
        keys = jax.random.split(jax.random.key(0), BLOCK * blocks)
        runs = {"G-REP" if b is None else f"B={b}": run(keys, alpha, counts, b) for b in (None, *BOOSTS)}
        for shift in (constant, 0.0):
            found = {}
            for name, (f, path, score, of_q, log_q) in runs.items():
                found[name] = path + (f + shift) * score + entropy
                found["score"] = (f + constant - log_q) * of_q
                pairs = [x.reshape(-1, 2) for x in (f, path, score)]  # each draw with the other's value as baseline
                credit = pairs[0] - pairs[0][:, ::-1]
                found[f"{name}, baseline"] = np.mean(pairs[1] + credit * pairs[2], 1) + entropy
            each = {name: np.mean((found[name] - truth).reshape(blocks, -1) ** 2, 1) for name in names}
            errors = {name: float(values[0]) for name, values in each.items()}
            spread = {name: [float(values.min()), float(values.max())] for name, values in each.items()}
            bias = {
                name: (found[name].mean() - truth) / (found[name].std() / np.sqrt(found[name].size)) for name in names
            }
            rows.append({"alpha": first, "exact": truth, "constants": shift != 0, "mse": errors, "z of bias": bias})
            rows[-1]["of blocks"] = spread
            rows[-1]["sheet"] = SHEET[first]
            print(f"{first:>6} {truth:>8.3f} " + " ".join(f"{errors[name]:>14.3g}" for name in names), flush=True)
            print(f"{'':>6} {'blocks':>8} " + " ".join(f"{a:>7.2g}{b:>7.2g}" for a, b in spread.values()), flush=True)
        print(f"{'':>6} {'sheet':>8} " + " ".join(f"{v:>14.3g}" for v in SHEET[first]))
    path = RESULTS / "rsvi.json"
    record = {"repetitions": BLOCK, "blocks": blocks, "rows": rows}
    path.write_text(json.dumps(record, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
