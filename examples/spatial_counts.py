# %% [markdown]
# # A map of counts, and when a low-rank process will do
#
# Counts at scattered places, whose logarithm of the rate is a Gaussian process. `DoubleKL` learns the hyper-parameters
# and gives the map with its uncertainty. Then the same inference by inducing inputs (`SVGP`) and with an independent q
# (`mean_field=True`), for a rough process and for a smooth one.

# %%
import matplotlib.pyplot as plt
import numpy as np

import pushforward as pf
from pushforward.models import LatentGP
from pushforward.models.gaussian_process import kernels, likelihoods, means

rng = np.random.default_rng(0)


def simulate(places, scale):
    """A Matérn-3/2 process of variance 1 at places."""
    r = np.sqrt(3) * np.linalg.norm(places[:, None] - places, axis=2) / scale
    return np.linalg.cholesky((1 + r) * np.exp(-r) + 1e-6 * np.eye(len(r))) @ rng.normal(size=len(r))


# %% [markdown]
# ## The map
#
# 800 places in the unit square; where there are none, in a disk, the map must say that it does not know.

# %%
side = 30
grid = (np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) + 0.5) / side
places = rng.uniform(size=(1400, 2))
places = places[np.linalg.norm(places - [0.65, 0.35], axis=1) > 0.2][:800]
f = 1 + simulate(np.vstack([places, grid]), 0.25)
counts = rng.poisson(np.exp(f[:800]))

kernel = kernels.Matern32(lengthscale=0.5, variance=0.5)
gp = LatentGP(kernel, likelihoods.Poisson(), places, counts, mean=means.Constant(0.5))
posterior = pf.fit(gp, pf.DoubleKL(rho=3.0), num_samples=50, progress=False)
print({name: round(float(value), 2) for name, value in posterior.target.parameters().items()})
found = posterior.approximation.predict(grid)
inside = np.abs(f[800:] - found.mean) < 1.645 * np.sqrt(found.variance)
print(f"{inside.mean():.2f} of the true map lies within its 90 % bands")

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), constrained_layout=True)
pictures = [
    ("truth", f[800:], "viridis", (-2.2, 2.2)),
    ("mean", found.mean, "viridis", (-2.2, 2.2)),
    ("standard deviation", np.sqrt(found.variance), "magma", (0, None)),
]
for axis, (title, values, colours, limits) in zip(axes, pictures, strict=True):
    shown = axis.imshow(
        values.reshape(side, side), origin="lower", extent=(0, 1, 0, 1), cmap=colours, vmin=limits[0], vmax=limits[1]
    )
    figure.colorbar(shown, ax=axis, shrink=0.85)
    axis.set(title=title, xticks=[0, 1], yticks=[0, 1])
axes[2].plot(*places.T, ".", color="white", markersize=1.5)
plt.show()

# %% [markdown]
# ## Rough and smooth
#
# 1,000 observations with noise as large as the signal, hyper-parameters known. For a short length scale 100 inducing
# inputs cannot follow the process; for a long one they lose nothing. An independent q has the right means and is
# too sure of itself in both.

# %%
rows = {}
for scale in (0.05, 0.5):
    x = rng.uniform(size=(1400, 2))
    truth = simulate(x, scale)
    y = truth[:1000] + rng.normal(size=1000)
    target = LatentGP(kernels.Matern32(scale), likelihoods.Gaussian(1.0), x[:1000], y)
    methods = {
        "dense": pf.DenseGP(learn=False),
        "double KL": pf.DoubleKL(rho=3.0, learn=False),
        "independent q": pf.DoubleKL(rho=3.0, learn=False, mean_field=True),
        "100 inducing": pf.SVGP(100, learn=False),
    }
    for name, method in methods.items():
        q = pf.fit(target, method, num_samples=2, progress=False).approximation
        error = truth[:1000] - np.asarray(q.loc)
        z = error / np.sqrt(np.asarray(q.variance))
        out = q.predict(x[1000:])
        rows[name, scale] = (
            np.sqrt(np.mean(error**2)),
            0.5 * np.mean(np.log(q.variance) + z**2),
            np.sqrt(np.mean((truth[1000:] - out.mean) ** 2)),
            z.std(),
        )
print(f"{'':16s}{'scale':>8s}{'RMSE':>8s}{'NLL':>8s}{'new':>8s}{'sd of z':>9s}")
for (name, scale), row in rows.items():
    print(f"{name:16s}{scale:8.2f}" + "".join(f"{value:8.3f}" for value in row))

# %%
names = list(methods)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
for axis, scale in zip(axes, (0.05, 0.5), strict=True):
    axis.barh(names[::-1], [rows[name, scale][3] for name in names[::-1]], color="steelblue")
    axis.axvline(1, color="black", linewidth=1)
    axis.set(title=f"length scale {scale}", xlabel="sd of errors over their stated sd")
plt.show()
