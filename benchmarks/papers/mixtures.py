"""Experiment P1 at reduced scale: path gradients against plain ones, from the density (reverse KL) and from draws.

    python -m benchmarks.papers.mixtures [--steps 2000] [--seeds 2]

Vaitl, Winkler, Richter & Kessel (2024), section 5: a mixture of 64 normals in six dimensions, two clusters at ±1 along
each, with variance 0.5; there RealNVP of 4 × 6 couplings with 500 hidden units and 5,000 steps of 500 draws, here 6
couplings with 64 hidden units, 2,000 steps of 256 draws, Adam 1e-3 along a cosine, and 10,000 draws to train on. Of
each estimator: mean −log q of 10,000 fresh draws of the mixture, the share of effective draws of q (reverse), and of
the mixture, 1 / (E_p w E_p 1/w) (forward), which sees modes that were lost.

And the toy on overfitting: 16 draws of N(0.2, 0.5 I) in two dimensions, 3 couplings, 500 steps by likelihood and by
path gradients; mean −log q of the 16, and of 10,000 fresh draws. Writes ``results/mixtures.json``.
"""

import argparse
import json
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.infer.train import Trainer
from pushforward.infer.variational.estimators import FastPath, FixedDraws, Reparameterised, split
from pushforward.infer.variational.flows.families import Shape, build
from pushforward.infer.variational.objectives import ELBO, ForwardKL

FILE = RESULTS / "mixtures.json"
BATCH, NUM_TRAIN, NUM_TEST = 256, 10_000, 10_000


def mixture(u):
    """Log density of the 64 normals: the product of two in each dimension."""
    one = lambda mean: -((u - mean) ** 2) - 0.5 * jnp.log(jnp.pi)  # noqa: E731
    return jnp.sum(jnp.logaddexp(one(-1.0), one(1.0)) - jnp.log(2.0))


def mixture_draws(key, n):
    signs, noise = jax.random.split(key)
    return jax.random.rademacher(signs, (n, 6), float) + jnp.sqrt(0.5) * jax.random.normal(noise, (n, 6))


def normal(u):
    return jnp.sum(-((u - 0.2) ** 2) - 0.5 * jnp.log(jnp.pi))


def normal_draws(key, n):
    return 0.2 + jnp.sqrt(0.5) * jax.random.normal(key, (n, 2))


def train(objective, estimator, log_density, dim, layers, steps, seed):
    """The flow after ``steps`` updates."""
    flow = build(jax.random.key(seed), "realnvp", dim, Shape(num_layers=layers, hidden=(64,)))
    params, static = split(pf.Flow(flow))
    trainer = Trainer(learning_rate=1e-3, num_steps=steps, tolerance=None)

    @jax.jit
    def run(state):
        def step(state, t):
            key = jax.random.fold_in(jax.random.key(seed + 100), t)
            found = estimator.value_and_grad(objective, eqx.combine(state.params, static), log_density, key)
            return trainer.update(state, found.value, found.grads, t)[0], None

        return jax.lax.scan(step, state, jnp.arange(steps))[0]

    return eqx.combine(run(trainer.init(params)).params, static)


def likelihood(q, u):
    return -float(jnp.mean(eqx.filter_jit(jax.vmap(q.log_prob))(u)))


def share(log_w):
    """(Σ w)² / (n Σ w²)."""
    w = np.exp(np.asarray(log_w) - np.max(log_w))
    return float(w.sum() ** 2 / np.sum(w**2) / w.size)


def judge(q, log_density, test):
    """Mean −log q of draws of π, and effective shares of the draws of q and of π."""
    u, log_q = eqx.filter_jit(partial(q.sample_and_log_prob, n=NUM_TEST))(jax.random.key(5))
    density = jax.jit(jax.vmap(log_density))
    forward = np.asarray(density(test) - eqx.filter_jit(jax.vmap(q.log_prob))(test))
    means = [np.log(np.mean(np.exp(s * forward - np.max(s * forward)))) + np.max(s * forward) for s in (1, -1)]
    return {
        "negative log q": likelihood(q, test),
        "reverse share": share(density(u) - log_q),
        "forward share": float(np.exp(-sum(means))),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    draws = {"train": mixture_draws(jax.random.key(1), NUM_TRAIN), "test": mixture_draws(jax.random.key(2), NUM_TEST)}
    of_draws = ForwardKL(draws["train"], num_draws=BATCH)
    ways = {
        "reverse, whole derivative": (ELBO(BATCH), Reparameterised()),
        "reverse, path": (ELBO(BATCH), FastPath()),
        "forward, likelihood": (of_draws, FixedDraws()),
        "forward, path": (of_draws, FastPath()),
    }
    found = {
        "steps": args.steps,
        "entropy": -float(jnp.mean(jax.vmap(mixture)(draws["test"]))),
        "mixture": {},
        "toy": {},
    }
    few, many = normal_draws(jax.random.key(3), 16), normal_draws(jax.random.key(4), NUM_TEST)
    found["toy"]["exact"] = [-float(jnp.mean(jax.vmap(normal)(u))) for u in (few, many)]
    for way, estimator in (("likelihood", FixedDraws()), ("path", FastPath())):
        q = train(ForwardKL(few, num_draws=16), estimator, normal, 2, 3, 500, 0)
        found["toy"][way] = [likelihood(q, few), likelihood(q, many)]
        print("toy", way, found["toy"][way], flush=True)
    for way, (objective, estimator) in ways.items():
        for seed in range(args.seeds):
            row = judge(train(objective, estimator, mixture, 6, 6, args.steps, seed), mixture, draws["test"])
            found["mixture"].setdefault(way, []).append(row)
            print(way, row, flush=True)
            FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
