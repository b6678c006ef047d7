# %% [markdown]
# # Choosing a method
#
# Three questions decide: how is the target made, what may it cost, and what is the result for? Here is what the
# package chooses when it is left to, how the families compare on one hierarchy of real data, and how to tell from a
# result that it was the wrong choice.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import pushforward as pf
from pushforward.infer.geometry import L1

# %% [markdown]
# ## Leave it to `fit`
#
# Without a method `fit` goes by the structure of the target and the budget, and says why. `seeds` are germination
# counts of 21 plates (a logistic regression with a random effect per plate); the second target is a lasso, whose
# prior has kinks.

# %%
seeds = pf.models.get("seeds").target()
rng = np.random.default_rng(0)
x = rng.normal(size=(60, 8))
y = x @ np.array([2.0, -1.0, 0, 0, 0, 0, 0, 0]) + 0.5 * rng.normal(size=60)
smooth = pf.Target.from_log_density(lambda b: -0.5 * jnp.sum((y - x @ b) ** 2) / 0.25, np.zeros(8))
lasso = pf.Target.composite(smooth, L1(5.0))

for name, target, options in (
    ("seeds", seeds, {}),
    ("seeds, 2,000 gradients", seeds, {"max_evaluations": 2000}),
    ("lasso", lasso, {}),
):
    posterior = pf.fit(target, progress=False, **options)
    print(f"{name}\n  {posterior.record['chosen']}\n  {posterior.diagnose().headline}")

# %% [markdown]
# Where the diagnosis warns, a fix that it names is run once. With a small budget nothing is left for that, and the
# warning stands.
#
# ## One posterior, six ways
#
# The reference is a long run of NUTS. For each method: gradients, the largest error of a mean, in posterior standard
# deviations, and the verdict of its own diagnosis, which does not know the reference.

# %%
reference = pf.fit(seeds, pf.NUTS(), num_samples=5000, key=1, progress=False)


def moments(posterior):
    """Mean and standard deviation of each scalar, over chains and draws, or over particles."""
    group = posterior.data["posterior"].dataset
    over = [dim for dim in ("chain", "draw", "particle") if dim in group.dims]
    return group.mean(over), group.std(over)


def error(posterior):
    """Largest error of a mean, in standard deviations of the reference."""
    mean, sd = moments(reference)
    return float(np.abs((moments(posterior)[0] - mean) / sd).to_array().max())


methods = {
    "NUTS": pf.NUTS(),
    "MCLMC": pf.MCLMC(),
    "SMC": pf.SMC(num_particles=2000),
    "Pathfinder": pf.Pathfinder(),
    "FBGVI": pf.FBGVI(),
    "NormalizingFlow": pf.NormalizingFlow(),
}
fits = {}
for name, method in methods.items():
    fits[name] = pf.fit(seeds, method, progress=False)
    spent = fits[name].record["evaluations"]
    found = fits[name].diagnose()
    wrong = ", ".join(f.name for f in found.findings if f.level == "warning") or "nothing"
    print(f"{name:16} {spent:>9,} gradients  error of means {error(fits[name]):.2f} sd  warns of {wrong}")

# %%
site = "tau"  # spread of the random effects
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
bins = np.linspace(0, 1, 50)
ax.hist(np.ravel(reference.draws()[site]), bins=bins, density=True, color="0.85", label="reference")
for name, posterior in fits.items():
    ax.hist(np.ravel(posterior.draws()[site]), bins=bins, density=True, histtype="step", label=name)
ax.set(xlabel=site, ylabel="density")
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# A normal cannot follow the spread of the random effects towards zero, and k-hat says so; a flow can. NUTS and SMC are
# right to their Monte-Carlo error. MCLMC is cheap, and its default run too short here: R-hat says so.
#
# ## From one method to the next
#
# An approximation is a cheap first look, and its result a start: NUTS takes over place and metric, and needs a shorter
# warm-up.

# %%
exact = pf.fit(seeds, pf.NUTS(), start=fits["FBGVI"], num_warmup=200, progress=False)
print(exact.diagnose().headline, f"error of means {error(exact):.2f} sd")

# %% [markdown]
# What a diagnosis cannot see is a mode that no chain has found. Where a second one is possible, use `pf.SMC()`, which
# begins at the prior, or chains from overdispersed starts; `bad_posteriors.ipynb` has examples. And whether one method
# is better than another *for your model* is a question for a study: `studies.ipynb`.
