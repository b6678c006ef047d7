"""Experiment F2 at reduced scale: deep latent Gaussian models of binarised digits with flows as posteriors.

    python -m benchmarks.papers.digits [--steps 2000]

Rezende & Mohamed (2015), section 6.2, train a model of binarised MNIST (40 latents, 500,000 updates) whose inference
network also gives the parameters of K planar maps: −log p(x) of test images falls as K rises from 10 to 80, below
that of a diagonal normal and, from K = 20 on, below that of as many additive couplings (NICE). Here: scikit-learn's 8
× 8 digits, pixels above half of their range, 1,500 for training, 297 held out; 6 latents, one hidden layer of 64
units either way. The encoder gives location and scale of a normal and, for each planar map, w, u and b; couplings are
shared by all images. ELBO with one draw, Adam 1e-3, batches of 100, annealing over the first fifth.

For each posterior: the bound on held-out images, −log p(x) by 2,000 importance weights, and the gap between the two,
which is the divergence of the posterior family. Writes ``results/digits.json``.
"""

import argparse
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.infer.train import Trainer
from pushforward.infer.variational.amortised import amortised
from pushforward.infer.variational.estimators import FastPath, split
from pushforward.infer.variational.flows.bijection import Chain, Stack
from pushforward.infer.variational.flows.families import Shape, build
from pushforward.infer.variational.flows.linear import SOFTPLUS_ONE, AffineMap
from pushforward.infer.variational.flows.planar import Planar
from pushforward.infer.variational.objectives import ELBO, IWAE

FILE = RESULTS / "digits.json"
LATENT, HIDDEN, BATCH, DRAWS = 6, 64, 100, 2000
POSTERIORS = {"normal": 0, "planar 4": 4, "planar 16": 16, "NICE 4": 4, "NICE 16": 16}


def images():
    from sklearn.datasets import load_digits

    pixels = (load_digits().images.reshape(-1, 64) > 8).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pixels))
    return pixels[order[:1500]], pixels[order[1500:]]


def networks(key, posterior):
    """Encoder, decoder, and the coupling layers where there are any."""
    encoder, decoder, layers = jax.random.split(key, 3)
    count = POSTERIORS[posterior]
    planar = count if posterior.startswith("planar") else 0
    made = {
        "encoder": eqx.nn.MLP(64, 2 * LATENT + planar * (2 * LATENT + 1), HIDDEN, 1, jax.nn.silu, key=encoder),
        "decoder": eqx.nn.MLP(LATENT, 64, HIDDEN, 1, jax.nn.silu, key=decoder),
    }
    if posterior.startswith("NICE"):
        shape = Shape(num_layers=count, hidden=(HIDDEN,), mixing="permutation")
        made["layers"] = build(layers, "nice", LATENT, shape).bijections[0]
    return made


def guide(networks, image):
    """The posterior of one image: a normal, pushed through the maps."""
    out = networks["encoder"](2 * image - 1)
    loc, scale, rest = out[:LATENT], out[LATENT : 2 * LATENT], out[2 * LATENT :]
    normal = AffineMap(loc, SOFTPLUS_ONE + scale, None, LATENT)
    if "layers" in networks:
        return pf.Flow(Chain((normal, networks["layers"])))
    if not rest.size:
        return pf.Flow(Chain((normal,)))
    rest = rest.reshape(-1, 2 * LATENT + 1)
    w = rest[:, :LATENT] + 1 / jnp.sqrt(LATENT)  # away from zero, where the map has no direction
    u = rest[:, LATENT : 2 * LATENT] + SOFTPLUS_ONE * w / jnp.sum(w**2, axis=1, keepdims=True)
    return pf.Flow(Chain((normal, Stack(Planar(w, u, rest[:, -1], LATENT)))))


def joint(networks, image):
    """Log joint density of an image and u."""

    def log_density(u):
        logits = networks["decoder"](u)
        return (
            -0.5 * jnp.sum(u**2)
            - 0.5 * LATENT * jnp.log(2 * jnp.pi)
            + jnp.sum(image * logits - jax.nn.softplus(logits))
        )

    return log_density


def train(posterior, seed, data, steps):
    """The networks after ``steps`` updates."""
    trainer = Trainer(learning_rate=1e-3, num_steps=steps, tolerance=None)
    params, static = split(networks(jax.random.key(seed), posterior))

    @jax.jit
    def run(state, data):
        def step(state, t):
            batch, draw = jax.random.split(jax.random.fold_in(jax.random.key(seed + 100), t))
            beta = jnp.minimum(1.0, 0.01 + t / (0.2 * steps))

            def at(networks, image):
                log_density = joint(networks, image)
                return guide(networks, image), lambda u: beta * log_density(u)

            chosen = data[jax.random.randint(batch, (BATCH,), 0, len(data))]
            found = amortised(FastPath(), ELBO(1), eqx.combine(state.params, static), at, chosen, draw)
            return trainer.update(state, found.value, found.grads, t)[0], None

        return jax.lax.scan(step, state, jnp.arange(steps))[0]

    state = run(trainer.init(params), jnp.asarray(data))
    return eqx.combine(state.params, static)


@eqx.filter_jit
def log_weights(networks, held_out):
    def one(args):
        image, key = args
        u, log_q = guide(networks, image).sample_and_log_prob(key, DRAWS)
        return jax.vmap(joint(networks, image))(u) - log_q

    return jax.lax.map(one, (held_out, jax.random.split(jax.random.key(1), len(held_out))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    data, held_out = images()
    rows = {}
    for posterior in POSTERIORS:
        for seed in range(args.seeds):
            log_w = np.asarray(log_weights(train(posterior, seed, data, args.steps), jnp.asarray(held_out)))
            bound = log_w.mean(1)
            evidence = np.asarray(IWAE(DRAWS).terms(log_w[:, None, :]))[:, 0]
            row = {"seed": seed, "bound": float(-bound.mean()), "negative_log_p": float(-evidence.mean())}
            row |= {
                "gap": float((evidence - bound).mean()),
                "gap_error": float((evidence - bound).std() / len(bound) ** 0.5),
            }
            rows.setdefault(posterior, []).append(row)
            print(posterior, row, flush=True)
            FILE.write_text(json.dumps({"steps": args.steps, "posteriors": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
