# %% [markdown]
# # Kinks and constraints: Langevin samplers
#
# A Laplace prior has a kink at 0, a simplex has edges, and the total variation of an image has a kink wherever two
# neighbours agree. The samplers here take one gradient, and one proximal operator or mirror map, a step. Three
# examples: a sparse regression, proportions, and a blurred image.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from sklearn.datasets import load_diabetes, load_digits, load_sample_image

import pushforward as pf
from pushforward.infer.geometry import TotalVariation

# %% [markdown]
# ## A sparse regression
#
# Progression of diabetes after one year on ten measurements, their squares and products: 65 columns, most of which
# should not matter. `split` takes the Laplace prior apart from the smooth rest. Chains begin at 0: random starts would
# be tens of prior standard deviations away, far for small steps.

# %%
x, y = load_diabetes(return_X_y=True)
i, j = np.triu_indices(10)
x = np.column_stack([x, x[:, i] * x[:, j]])
x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def regression(x, y):
    b = numpyro.sample("b", dist.Laplace(0.0, 0.03).expand([x.shape[1]]).to_event(1))
    log_noise = numpyro.sample("log_noise", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x @ b, jnp.exp(log_noise)), obs=y)


target = pf.Target.from_numpyro(regression, x, y).split("b")
start = {"b": np.zeros(65), "log_noise": np.zeros(())}
sparse = pf.fit(target, pf.BregmanProximalLangevin(), start=start, num_samples=3000, thin=10, num_warmup=4000)
print(sparse.diagnose())

# %% [markdown]
# It is Metropolis-adjusted, so that it samples the posterior itself: NUTS finds the same. `ProximalLangevin` is not
# adjusted, but its draws lie on the kinks: a share of them is exactly 0, which says how often a column is left out at
# its step size, not a posterior probability (under a Laplace prior that is 0).

# %%
nuts = pf.fit(target, pf.NUTS(), start=start)
rough = pf.fit(target, pf.ProximalLangevin(), start=start, num_samples=3000, thin=10, num_warmup=2000)
draws = {name: p.draws()["b"] for name, p in (("Bregman", sparse), ("NUTS", nuts), ("proximal", rough))}
order = np.argsort(-np.abs(draws["NUTS"].mean((0, 1))))[:25]
plt.figure(figsize=(8, 3.2), layout="constrained")
for shift, (name, b) in zip((-0.25, 0.0, 0.25), draws.items(), strict=True):
    low, mid, high = np.quantile(b[..., order], [0.05, 0.5, 0.95], axis=(0, 1))
    plt.errorbar(np.arange(25) + shift, mid, [mid - low, high - mid], fmt="o", ms=3, lw=1, label=name)
plt.axhline(0.0, color="0.7", lw=0.8)
plt.xlabel("coefficient, by size")
plt.ylabel("median and 90 %")
plt.legend()
plt.show()
print(f"draws that are exactly 0: {100 * (draws['proximal'] == 0).mean():.1f} %")
for name, posterior in (("Bregman", sparse), ("NUTS", nuts)):
    ess = posterior.summary(round_to=None)["ess_bulk"].astype(float).min()
    print(f"{name}: {posterior.record['evaluations'] / ess:.0f} gradients per effective draw, warm-up included")

# %% [markdown]
# ## Proportions
#
# Of 300 handwritten digits only the labels are known that a poor classifier gave, and how often it errs (its confusion
# matrix, from other digits). What are the proportions of the ten digits? The posterior lives on a simplex, and the true
# proportions are near its edges.

# %%
pixels, labels = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
truth = np.array([0.3, 0.0, 0.2, 0.05, 0.0, 0.15, 0.0, 0.25, 0.0, 0.05])
shuffled = rng.permutation(len(labels))
train, held = shuffled[:200], shuffled[200:1000]
rest = shuffled[1000:]
blurry = pixels + 6 * rng.normal(size=pixels.shape)
centroids = np.stack([blurry[train][labels[train] == k].mean(0) for k in range(10)])
given = np.argmin(((blurry[:, None] - centroids) ** 2).sum(-1), 1)
confusion = np.stack([np.bincount(given[held][labels[held] == k], minlength=10) + 0.1 for k in range(10)], 1)
confusion = confusion / confusion.sum(0)
chosen = np.concatenate([rng.choice(rest[labels[rest] == k], int(300 * truth[k])) for k in range(10)])
counts = np.bincount(given[chosen], minlength=10)


def log_density(p):
    return counts @ jnp.log(confusion @ p)


target = pf.Target.from_log_density(log_density, np.full(10, 0.1), constraints.simplex)
posterior = pf.fit(target, pf.MirrorLangevin(), num_samples=12_000, num_warmup=2000)
print(posterior.diagnose())
p = posterior.draws()["x"]
low, mid, high = np.quantile(p, [0.05, 0.5, 0.95], axis=(0, 1))
plt.figure(figsize=(6, 3), layout="constrained")
plt.bar(np.arange(10) - 0.2, counts / counts.sum(), 0.3, color="0.8", label="as classified")
plt.errorbar(np.arange(10) + 0.15, mid, [mid - low, high - mid], fmt="o", ms=4, label="median and 90 %")
plt.plot(np.arange(10) + 0.15, truth, "kx", label="true")
plt.xlabel("digit")
plt.ylabel("proportion")
plt.legend(loc="upper center")
plt.show()

# %% [markdown]
# ## An image with its uncertainty
#
# A picture of 96 × 96 pixels, blurred by 5 × 5 and with noise, under a total variation prior. `PrimalDualLangevin`
# needs differences and, as the blur is periodic, two Fourier transforms a step; the mean and the standard deviation of
# every pixel come from its draws. It is approximate, and says so.

# %%
picture = load_sample_image("china.jpg").mean(-1)[140:332:2, 300:492:2]
kernel = np.zeros(picture.shape)
kernel[:5, :5] = 1 / 25
response = np.fft.rfft2(np.roll(kernel, (-2, -2), (0, 1)))
noise = 2.0
blurred = np.fft.irfft2(np.fft.rfft2(picture) * response, picture.shape)
data = blurred + noise * rng.normal(size=picture.shape)
power, back = np.abs(response) ** 2, np.conj(response) * np.fft.rfft2(data)


def log_likelihood(x):
    image = x.reshape(picture.shape)
    return -0.5 * jnp.sum((jnp.fft.irfft2(jnp.fft.rfft2(image) * response, picture.shape) - data) ** 2) / noise**2


def smooth_prox(v, step):
    """The minimiser of the squared misfit plus ‖x − v‖²/(2 step), in closed form."""
    share = step / noise**2
    spectrum = (jnp.fft.rfft2(v.reshape(picture.shape)) + share * back) / (1 + share * power)
    return jnp.fft.irfft2(spectrum, picture.shape).ravel()


target = pf.Target.composite(log_likelihood, TotalVariation(0.3, picture.shape), data.ravel())
method = pf.PrimalDualLangevin(step_size=0.1, smooth_prox=smooth_prox)
image = pf.fit(
    target, method, start={"x": data.ravel()}, num_chains=2, num_samples=300, thin=40, num_warmup=2000, precision=32
)
draws = image.draws()["x"].reshape(2, -1, *picture.shape)
mean, sd = draws.mean((0, 1)), draws.std((0, 1))


def snr(estimate):
    return 20 * np.log10(np.linalg.norm(picture) / np.linalg.norm(estimate - picture))


shown = {
    "picture": picture,
    f"data, SNR {snr(data):.1f} dB": data,
    f"posterior mean, {snr(mean):.1f} dB": mean,
    "posterior sd": sd,
}
fig, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
for axis, (title, values) in zip(axes, shown.items(), strict=True):
    drawn = axis.imshow(values, cmap="gray" if values is not sd else "magma")
    axis.set(title=title, xticks=[], yticks=[])
fig.colorbar(drawn, ax=axes[-1])
plt.show()
print(next(f.message for f in image.diagnose().findings if f.name == "bias"))

# %% [markdown]
# The standard deviation is largest along edges, whose place the blur hides. What is printed last is the largest of
# 9,216 pixels, and so of their Monte-Carlo errors too. The scheme has another bias, which no step size tells: it is
# small where the ratio of the dual to the primal step is large (Burger et al. 2024); here it is 12.
