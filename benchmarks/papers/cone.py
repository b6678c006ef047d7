"""Programmable objectives on the noisy cone of Becker et al. (2024): one model, three objectives, and their optima.

    python -m benchmarks.papers.cone

x, y ~ N(0, 10), z ~ N(r², 0.1 + r²/100) with r² = x² + y², standard deviations; z = 5 was observed. Fitted: independent
normals by the ELBO and by IWAE with 5 draws, and a ring with an auxiliary angle (a hierarchical family: its bound is
that of the joint density of point and angle, "HVI"), whose marginal density is known too. Writes results/cone.json.
"""

import json
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.papers.where import RESULTS
from pushforward.infer.approximation import Approximation
from pushforward.infer.train import Trainer
from pushforward.infer.variational.estimators import DReG, Reparameterised, StickingTheLanding
from pushforward.infer.variational.objectives import ELBO, IWAE

SHEET = {
    "log evidence": -5.323232,
    "mean field, ELBO": -8.074537,
    "mean field, IWAE 5": -7.54,
    "IWAE 5 at the ELBO's optimum": -7.845,
    "ring, auxiliary angle": -9.74814,
    "ring, marginal density": -5.37,
}


def log_density(u):
    """Log joint density at z = 5."""
    r2 = jnp.sum(u**2)
    scale = 0.1 + r2 / 100
    prior = -0.005 * r2 - jnp.log(2 * jnp.pi * 100)
    return prior - 0.5 * ((5 - r2) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


class MeanField(Approximation):
    """Independent normals."""

    loc: jax.Array
    log_scale: jax.Array

    def sample_and_log_prob(self, key, n):
        u = self.loc + jnp.exp(self.log_scale) * jax.random.normal(key, (n, 2), self.loc.dtype)
        return u, jax.vmap(self.log_prob)(u)

    def log_prob(self, u):
        return jnp.sum(-0.5 * ((u - self.loc) * jnp.exp(-self.log_scale)) ** 2 - self.log_scale) - jnp.log(2 * jnp.pi)


class Ring(Approximation):
    """A circle of radius √5 with normal noise; the angle is uniform, and so is its reverse model."""

    log_scale: jax.Array
    marginal: bool = eqx.field(static=True, default=False)

    def sample_and_log_prob(self, key, n):
        key_angle, key_noise = jax.random.split(key)
        angle = 2 * jnp.pi * jax.random.uniform(key_angle, (n,))
        noise = jax.random.normal(key_noise, (n, 2))
        u = np.sqrt(5) * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1) + jnp.exp(self.log_scale) * noise
        conditional = -0.5 * jnp.sum(noise**2, 1) - 2 * self.log_scale - jnp.log(2 * jnp.pi)
        return u, jax.vmap(self.log_prob)(u) if self.marginal else conditional

    def log_prob(self, u):
        # ∫ N(u; √5 e(a), s²) da / 2π = N-part × I0(√5 |u| / s²), with the exponentially scaled Bessel function.
        s2, r = jnp.exp(2 * self.log_scale), jnp.linalg.norm(u)
        scaled = jax.scipy.special.i0e(np.sqrt(5) * r / s2)
        return -0.5 * (r - np.sqrt(5)) ** 2 / s2 + jnp.log(scaled) - jnp.log(2 * jnp.pi * s2)


@partial(jax.jit, static_argnames=("steps",))
def train(objective, estimator, q, key, *, steps):
    """The family after ``steps`` of Adam, averaged."""
    trainer = Trainer(learning_rate=0.02, num_steps=steps, tolerance=None)

    def step(state, t):
        found = estimator.value_and_grad(objective, state.params, log_density, jax.random.fold_in(key, t))
        return trainer.update(state, found.value, found.grads, t)[0], None

    return jax.lax.scan(step, trainer.init(q), jnp.arange(steps))[0].average


@jax.jit
def value(objective, q, key):
    """The bound at q, from 250,000 draws, and its standard error."""
    u, log_q = q.sample_and_log_prob(key, 250_000)
    terms = objective.terms((jax.vmap(log_density)(u) - log_q).reshape(-1, objective.num_samples))
    return jnp.mean(terms), jnp.std(terms) / np.sqrt(terms.size)


def log_evidence():
    """By the trapezoidal rule."""
    grid = jnp.linspace(-6, 6, 1201)
    values = jax.vmap(lambda x: jax.vmap(lambda y: log_density(jnp.stack([x, y])))(grid))(grid)
    return float(jax.nn.logsumexp(values) + 2 * jnp.log(grid[1] - grid[0]))


def run(steps=4000):
    """Optimum by name: the bound, its standard error, and parameters."""
    key, check = jax.random.key(0), jax.random.key(1)
    start = MeanField(jnp.array([3.0, 0.0]), jnp.zeros(2))
    field = train(ELBO(64), StickingTheLanding(), start, key, steps=steps)
    tight = train(IWAE(5, 16), DReG(), field, key, steps=steps)
    ring = train(ELBO(64), Reparameterised(), Ring(jnp.zeros(())), key, steps=steps)
    marginal = Ring(jnp.asarray(-3.2), marginal=True)
    return {
        "log evidence": (log_evidence(), 0.0, None),
        "mean field, ELBO": (*value(ELBO(), field, check), [field.loc, field.log_scale]),
        "mean field, IWAE 5": (*value(IWAE(5), tight, check), [tight.loc, tight.log_scale]),
        "IWAE 5 at the ELBO's optimum": (*value(IWAE(5), field, check), None),
        "ring, auxiliary angle": (*value(ELBO(), ring, check), [ring.log_scale]),
        "ring, marginal density": (*value(ELBO(), marginal, check), [marginal.log_scale]),
    }


def main():
    rows = []
    for name, (bound, error, params) in run().items():
        shown = [] if params is None else [np.round(np.asarray(p), 4).tolist() for p in params]
        rows.append(
            {"name": name, "value": float(bound), "se": float(error), "sheet": SHEET[name], "parameters": shown}
        )
        print(f"{name:<30}{float(bound):>10.4f} ± {float(error):.4f}  sheet {SHEET[name]:>9.4f}  {shown}")
    path = RESULTS / "cone.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
