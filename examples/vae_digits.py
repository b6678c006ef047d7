# %% [markdown]
# # A variational autoencoder on handwritten digits
#
# An amortised guide is a function: an encoder network maps an image to the approximation of its latent variables. The
# objectives and gradient estimators are those of every other family, here with a model whose parameters are trained
# along. Data: scikit-learn's 1,797 digits of 8 × 8 pixels with values 0 to 16.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import pushforward as pf
from pushforward.infer.train import Trainer
from pushforward.infer.variational.amortised import amortised
from pushforward.infer.variational.estimators import DReG, Reparameterised, StickingTheLanding, split
from pushforward.infer.variational.objectives import ELBO, IWAE

images = load_digits().images.reshape(-1, 64).astype(np.float32)
order = np.random.default_rng(0).permutation(len(images))
train, held_out = images[order[:1500]], images[order[1500:]]
print(train.shape, held_out.shape)

# %% [markdown]
# The model: $u \sim N(0, I)$ in 8 dimensions, pixel $\sim$ Binomial(16, logistic(decoder$(u)$)). The guide: independent
# normals with location and scale by the encoder. Any `Approximation` would do.

# %%
LATENT = 8


class Normal(pf.Approximation):
    loc: jax.Array
    log_scale: jax.Array

    def sample_and_log_prob(self, key, n):
        u = self.loc + jnp.exp(self.log_scale) * jax.random.normal(key, (n, LATENT))
        return u, jax.vmap(self.log_prob)(u)

    def log_prob(self, u):
        z = (u - self.loc) * jnp.exp(-self.log_scale)
        return jnp.sum(-0.5 * z**2 - self.log_scale - 0.5 * jnp.log(2 * jnp.pi))


def networks(key):
    encoder, decoder = jax.random.split(key)
    return {
        "encoder": eqx.nn.MLP(64, 2 * LATENT, 128, 1, jax.nn.silu, key=encoder),
        "decoder": eqx.nn.MLP(LATENT, 64, 128, 1, jax.nn.silu, key=decoder),
    }


def build(networks, image):
    loc, log_scale = jnp.split(networks["encoder"](image / 8 - 1), 2)

    def log_density(u):
        logits = networks["decoder"](u)
        prior = -0.5 * jnp.sum(u**2) - 0.5 * LATENT * jnp.log(2 * jnp.pi)
        return prior + jnp.sum(log_binomial(image) + image * logits - 16 * jax.nn.softplus(logits))

    return Normal(loc, jnp.clip(log_scale, -6, 3)), log_density


def log_binomial(k):
    return jax.scipy.special.gammaln(17.0) - jax.scipy.special.gammaln(k + 1) - jax.scipy.special.gammaln(17 - k)


# %% [markdown]
# Three ways to train the same networks, each with 8 draws per image: the ELBO with path gradients for the guide, the
# importance-weighted bound with plain reparameterised gradients, and the same bound with doubly reparameterised ones.
# The model's gradient is that of the objective in all of them.

# %%
STEPS, BATCH = 2500, 100
ways = {
    "ELBO, path": (ELBO(8), StickingTheLanding()),
    "IWAE, reparameterised": (IWAE(8), Reparameterised()),
    "IWAE, doubly reparameterised": (IWAE(8), DReG()),
}
trainer = Trainer(learning_rate=2e-3, num_steps=STEPS, tolerance=None)


def fit(objective, estimator, key):
    params, static = split(networks(key))

    @jax.jit
    def run(state, key):
        def step(state, t):
            key_batch, key_draw = jax.random.split(jax.random.fold_in(key, t))
            batch = jnp.asarray(train)[jax.random.randint(key_batch, (BATCH,), 0, len(train))]
            found = amortised(estimator, objective, eqx.combine(state.params, static), build, batch, key_draw)
            state, _ = trainer.update(state, found.value, found.grads, t)
            return state, found.value

        return jax.lax.scan(step, state, jnp.arange(STEPS))

    state, trace = run(trainer.init(params), key)
    return eqx.combine(state.average, static), np.asarray(trace)


fitted = {name: fit(*way, jax.random.key(1)) for name, way in ways.items()}

# %% [markdown]
# ## Bounds of the log evidence of held-out digits
#
# The bound rises with the number of draws $K$ towards the log evidence; at $K = 1$ it is the ELBO. Nats per image, with
# the standard error over the 297 images.


# %%
@eqx.filter_jit
def held_out_log_weights(trained, key):
    def one(image, key):
        q, log_density = build(trained, image)
        u, log_q = q.sample_and_log_prob(key, 1000)
        return jax.vmap(log_density)(u) - log_q

    return jax.lax.map(lambda args: one(*args), (jnp.asarray(held_out), jax.random.split(key, len(held_out))))


bounds = {}
for name, (trained, _) in fitted.items():
    log_w = held_out_log_weights(trained, jax.random.key(2))
    bounds[name] = {
        k: np.asarray(IWAE(k).terms(log_w.reshape(len(held_out), -1, k)).mean(1)) for k in (1, 10, 100, 1000)
    }
    row = "  ".join(f"K={k}: {b.mean():8.2f} ± {b.std() / np.sqrt(len(b)):.2f}" for k, b in bounds[name].items())
    print(f"{name:<29}{row}")

# %%
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
for name, values in bounds.items():
    ax.plot(list(values), [b.mean() for b in values.values()], "o-", label=name)
ax.set(xscale="log", xlabel="draws K", ylabel="bound of held-out log evidence")
ax.legend()
# %% [markdown]
# The images are the same for all, so that differences between two ways have a much smaller error than each bound.

# %%
best = "IWAE, doubly reparameterised"
for name in ways:
    if name != best:
        gain = bounds[best][1000] - bounds[name][1000]
        print(f"{best} − {name}: {gain.mean():.2f} ± {gain.std() / np.sqrt(len(gain)):.2f} nats per image")

# %% [markdown]
# ## Reconstructions, and images from the prior

# %%
trained, _ = fitted[best]
loc = jax.vmap(trained["encoder"])(jnp.asarray(held_out[:10]) / 8 - 1)[:, :LATENT]
prior = jax.random.normal(jax.random.key(3), (10, LATENT))
rows = [held_out[:10], *(16 * jax.nn.sigmoid(jax.vmap(trained["decoder"])(u)) for u in (loc, prior))]
fig, axes = plt.subplots(3, 10, figsize=(7, 2.2), layout="constrained")
for row, label, line in zip(rows, ("held out", "decoded", "prior"), axes, strict=True):
    for image, ax in zip(row, line, strict=True):
        ax.imshow(np.asarray(image).reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(label)
