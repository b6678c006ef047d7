# %% [markdown]
# # Particles: mirrored Stein samplers
#
# A Stein sampler moves a cloud of particles until they lie like draws of the posterior. It takes one gradient per
# particle and iteration, and mirror maps keep the particles inside of simplices and other bounded sets. Three examples
# on real data: weights on a simplex, a model with constrained sites, and intervals that are honest about a selection.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_diabetes

import pushforward as pf
from pushforward.models.selective import randomized_lasso

# %% [markdown]
# ## Weights on a simplex
#
# Three simple predictions of the progression of diabetes, from body mass, blood sugar and age, are
# to be mixed. The weights are positive and sum to one, and a sparse Dirichlet prior, whose density is infinite at the
# edges, prefers to leave predictions out.

# %%
data = load_diabetes()
columns = [data.feature_names.index(name) for name in ("bmi", "s6", "age")]
x, y = data.data[:100], data.target[:100]
features = (x[:, columns] - x[:, columns].mean(0)) / x[:, columns].std(0)
y = (y - y.mean()) / y.std()
predictions = 2.0 * features * (features * y[:, None]).mean(0)  # of each regression, twice its size


def mixture(predictions, y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(predictions.shape[1], 0.3)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(predictions @ weights, sigma), obs=y)


target = pf.Target.from_numpyro(mixture, predictions, y)
exact = pf.fit(target, pf.NUTS(target_acceptance=0.95))
cloud = pf.fit(target, pf.MirroredSVGD(num_particles=100))
print(cloud.diagnose())

# %% [markdown]
# The way of the particles: all start spread out, and the same run stopped earlier shows where they were. Grey points
# are draws of NUTS.

# %%
corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
start = {
    "weights": np.random.default_rng(0).dirichlet(np.ones(3), 100),
    "sigma": np.random.default_rng(1).uniform(0.5, 1.5, 100),
}
fig, axes = plt.subplots(1, 5, figsize=(11, 2.3), layout="constrained")
draws = exact.draws()["weights"].reshape(-1, 3)[::4] @ corners
for ax, steps in zip(axes, (1, 20, 60, 200, 1000), strict=True):
    run = pf.MirroredSVGD(num_particles=100, num_steps=steps, initial=start, learning_rate=0.05)
    there = pf.fit(target, run, progress=False).draws()["weights"] @ corners
    ax.plot(*corners[[0, 1, 2, 0]].T, color="0.6", lw=0.8)
    ax.plot(*draws.T, ".", color="0.85", ms=2)
    ax.plot(*there.T, "o", color="C0", ms=2.5)
    ax.set(title=f"{steps} iteration{'s' * (steps > 1)}", aspect="equal", xlim=(-0.1, 1.1))
    ax.axis("off")
    for corner, name in zip(corners, ("bmi", "s6", "age"), strict=True):
        ax.annotate(name, corner, textcoords="offset points", xytext=(-6, 4 if corner[1] else -9), fontsize=7)
plt.show()

# %% [markdown]
# ## A model with constrained sites, against NUTS
#
# Growth of sea cows (dugongs): two positive coefficients, a rate between 0.5 and 1, a precision. The model is taken as
# it is; each site has the mirror of its support.

# %%
growth = pf.models.get("dugongs").target()
fits = {
    "NUTS": pf.fit(growth, pf.NUTS()),
    "MirroredSVGD": pf.fit(growth, pf.MirroredSVGD(num_particles=100)),
    "SVGD, whitened": pf.fit(growth, pf.SVGD(num_particles=100, precondition=pf.fit(growth, pf.Laplace()))),
}
print(
    f"{'':16s}" + "".join(f"{site.name:>22s}" for site in growth.sites if site.kind == "latent") + f"{'gradients':>12s}"
)
for name, posterior in fits.items():
    found = posterior.draws()
    cells = [f"{found[s.name].mean():10.3f} ± {found[s.name].std():7.3f}" for s in growth.sites if s.kind == "latent"]
    print(f"{name:16s}" + "".join(f"{cell:>22s}" for cell in cells) + f"{posterior.record['evaluations']:12,d}")

# %% [markdown]
# What the diagnosis says of them matters: a cloud that has not come together in some direction is told by Stein's
# identity, also where the velocity has become small.

# %%
for name in ("MirroredSVGD", "SVGD, whitened"):
    print(name, fits[name].diagnose(), sep="\n")

# %% [markdown]
# ## Intervals after a selection
#
# A Lasso picks the columns, of 65, that matter for the progression of diabetes. Usual intervals forget that they have
# been picked because they looked large; those from the selective density do not. Its target is a truncated normal on
# the positive orthant, which particles sample.

# %%
x, y = load_diabetes(return_X_y=True)
i, j = np.triu_indices(10)
x = np.column_stack([x, x[:, i] * x[:, j]])
x = (x - x.mean(0)) / (x.std(0) * np.sqrt(len(x)))
y = y - y.mean()
names = data.feature_names + [f"{data.feature_names[a]}·{data.feature_names[b]}" for a, b in zip(i, j, strict=True)]

selection = randomized_lasso(x, y, penalty=2.5 * y.std(), key=1)
magnitudes = pf.fit(selection.target(), pf.MirroredSVGD(num_particles=50), num_chains=40).draws()["x"]
honest, naive = selection.intervals(magnitudes, 0.9), selection.naive_intervals(0.9)
plt.figure(figsize=(6, 3), layout="constrained")
for shift, color, label, intervals in ((-0.12, "C7", "naive", naive), (0.12, "C0", "after selection", honest)):
    for row, found in enumerate(intervals):
        plt.plot([found.lower, found.upper], [row + shift] * 2, color=color, lw=2, label=label if row == 0 else None)
        plt.plot(found.estimate, row + shift, "o", color=color, ms=3)
plt.axvline(0.0, color="0.6", lw=0.8)
plt.yticks(range(len(honest)), [names[found.column] for found in honest])
plt.xlabel("coefficient in the selected model, 90 % interval")
plt.legend()
plt.show()
print("effective draws at the ends:", [round(found.ess) for found in honest])

# %% [markdown]
# ## When to use which
#
# NUTS is better wherever exact moments are wanted and gradients of all data are affordable. Particles are for few,
# well spread points of a posterior (each of which may start an expensive computation), for mini-batches, for densities
# that are infinite at the edge of a simplex, and for a batch of points that moves as one program on an accelerator.
