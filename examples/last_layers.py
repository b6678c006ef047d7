# %% [markdown]
# # A Bayesian last layer: bands, and images of another kind
#
# A network of which only the last layer is Bayesian costs about as much as one without, and says how sure it is:
# `VBLL` learns features and a normal posterior of the last layer's weights together, by a bound in closed form
# (Harrison, Willes & Snoek 2024).

# %%
import equinox as eqx
import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import pushforward as pf
from pushforward.models import LastLayer
from pushforward.models.last_layer import NormalHead, RandomFeatures, SoftmaxHead, SpectralMLP

# %% [markdown]
# ## Regression with bands
#
# Two clumps of data, and a gap between them. The network is any function of one `x` that returns features.

# %%
rng = np.random.default_rng(2)
x = 5 * np.sign(rng.normal(size=(160, 1))) + np.clip(rng.normal(size=(160, 1)), -2, 2)
y = np.cos(1.3 * x[:, 0]) + 0.3 * x[:, 0] + 0.15 * rng.normal(size=160)

keys = jax.random.split(jax.random.key(0), 3)
mlp = eqx.nn.MLP(1, 64, 64, 2, jax.nn.elu, jax.nn.elu, key=keys[0])
distant = eqx.nn.Sequential(
    [SpectralMLP(keys[1], 1, 32, 2, bound=0.5), RandomFeatures(keys[2], 32, 256, frequency=3.0)]
)

method = pf.VBLL(num_steps=3000, learning_rate=3e-3)
fits = {
    "ELU network": pf.fit(LastLayer(mlp, NormalHead(), x, y), method),
    "bounded slopes, random features": pf.fit(LastLayer(distant, NormalHead(), x, y), method),
}
print(fits["ELU network"].diagnose())

# %% [markdown]
# The inner band is epistemic, what more data would remove; the outer one adds the noise. The ELU network is as sure
# within the gap as at its ends: it has features for the data, and none that tell the gap from them. Layers of bounded
# slope cannot fold the gap away, and random Fourier features on top of them go back to the prior away from the data, as
# a Gaussian process does.

# %%
at = np.linspace(-12, 12, 300)[:, None]
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
for axis, (name, posterior) in zip(axes, fits.items(), strict=True):
    mean, epistemic, aleatoric = posterior.approximation.uncertainty(at)
    for variance in (epistemic, epistemic + aleatoric):
        axis.fill_between(at[:, 0], mean - 2 * np.sqrt(variance), mean + 2 * np.sqrt(variance), color="C0", alpha=0.2)
    axis.plot(at[:, 0], mean)
    axis.plot(x[:, 0], y, "k.", ms=3)
    axis.set(title=name, ylim=(-8, 8))
plt.show()

# %% [markdown]
# Whether intervals hold is seen on the rows held out (a fifth, by default). The picture is in `posterior.report()` too.

# %%
fits["ELU network"].approximation.plot_calibration()
plt.show()

# %% [markdown]
# ## Images of another kind
#
# The network learns the digits 0 to 5. What does it say of a 7?

# %%
images, labels = load_digits(return_X_y=True)
images, known = images / 16, labels < 6
order = rng.permutation(np.flatnonzero(known))
train, test = order[:800], order[800:]
net = eqx.nn.MLP(64, 64, 64, 1, jax.nn.elu, jax.nn.elu, key=jax.random.key(1))
target = LastLayer(net, SoftmaxHead(), images[train], labels[train], standardise=False)
digits = pf.fit(target, pf.VBLL(num_steps=2500, learning_rate=3e-3))

q = digits.approximation
probabilities = q.predict(images[test]).probs
print(f"right: {np.mean(probabilities.argmax(1) == labels[test]):.1%} of {len(test)} digits that it has not seen")
print(f"calibration error: {q.calibration(images[test], labels[test]).error:.3f}")
q.plot_ood(**{"digits 0 to 5, not seen": images[test], "digits 6 to 9": images[~known]})
plt.show()

# %% [markdown]
# The score is the largest predictive probability. The entropy of the prediction has two parts: what the weights do not
# know (mutual information of label and logits), and what the logits leave open.

# %%
every = np.concatenate([test, np.flatnonzero(~known)])
parts = q.uncertainty(images[every])
fig, axes = plt.subplots(2, 8, figsize=(10, 2.9), layout="constrained")
for row, (name, values) in zip(axes, {"most": parts.epistemic, "least": -parts.epistemic}.items(), strict=True):
    for axis, i in zip(row, np.argsort(-values), strict=False):
        axis.imshow(images[every[i]].reshape(8, 8), cmap="gray_r")
        axis.set(xticks=[], yticks=[], title=f"a {labels[every[i]]}, says {parts.mean[i].argmax()}")
    row[0].set_ylabel(f"{name} epistemic")
plt.show()
