# %% [markdown]
# # Bad posteriors, and what to do about them
#
# Four posteriors that go wrong, each in its own way: a funnel, modes far apart, data that separate, labels that switch.
# `diagnose()` says in words what it has found, and where it can, names a fix that runs. The last section does the same
# for draws from Stan or PyMC.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints, transforms

import pushforward as pf


def look(posterior):
    """The warnings of a posterior, the sites that they are about, and what to run next."""
    diagnosis = posterior.diagnose()
    print(diagnosis.headline)
    for finding in diagnosis.warnings:
        print(f"- {finding.name}: {finding.message}")
    print("\nNext:\n" + str(diagnosis.fix) if diagnosis.fix else "")


# %% [markdown]
# ## A funnel
#
# Twelve groups with a mean each, two observations per group, and a spread between the groups that is to be learned.
# Where that spread is small, all means must lie close together: the density is a funnel, and no step size suits both
# its mouth and its neck.

# %%
rng = np.random.default_rng(3)
groups = np.repeat(np.arange(12), 2)
values = rng.normal(0.3 * rng.normal(size=12)[groups], 1.5)


def means(group, y=None):
    centre = numpyro.sample("centre", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(2.0))
    with numpyro.plate("groups", 12):
        mean = numpyro.sample("mean", dist.Normal(centre, spread))
    numpyro.sample("y", dist.Normal(mean[group], 1.5), obs=y)


target = pf.Target.from_numpyro(means, groups, values)
funnel = pf.fit(target, pf.NUTS(), key=0)
look(funnel)

# %% [markdown]
# The fix takes the funnel out: the means become centre + spread · z with z ~ N(0, 1), and NUTS samples z. `apply` runs
# what is printed.

# %%
fixed = funnel.diagnose().fix.apply(funnel)
look(fixed)

fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True, sharey=True, layout="constrained")
for ax, posterior, title in zip(axes, (funnel, fixed), ("as written", "non-centred")):
    draws, diverged = posterior.draws(), posterior.data["sample_stats"]["diverging"].values
    ax.scatter(draws["mean"][..., 0], np.log(draws["spread"]), s=2, alpha=0.3)
    ax.scatter(draws["mean"][diverged][:, 0], np.log(draws["spread"][diverged]), s=10, color="C3", label="diverged")
    ax.set(title=title, xlabel="mean[0]", ylim=(-6, 2))
axes[0].set_ylabel("log spread")
axes[0].legend()
plt.show()

# %% [markdown]
# The mean of log spread tells what the first run has missed: the neck.

# %%
for posterior in (funnel, fixed):
    print(f"{np.log(posterior.draws()['spread']).mean():.2f}")

# %% [markdown]
# ## Modes far apart
#
# Only the size of a signal is measured, not its sign. Chains find one of two modes and stay.


# %%
def size_of(signal, y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 10.0))
    numpyro.sample("y", dist.Normal(jnp.abs(x) * signal, 0.5), obs=y)


target = pf.Target.from_numpyro(size_of, np.ones(5), np.array([4.1, 3.7, 4.6, 4.2, 3.9]))
apart = pf.fit(target, pf.NUTS(), start={"x": np.array([4.0, 4.0, 4.0, -4.0])})
look(apart)

# %% [markdown]
# Three chains of four were in the mode on the right: by these draws it has 3/4 of the mass, for no reason but where
# they began. Tempering from the prior to the posterior, by SMC, has particles in both from the start and weighs them.

# %%
tempered = apart.diagnose().fix.apply(apart)
for name, draws in (("chains", apart.draws()), ("SMC", tempered.sample(4000))):
    print(f"share of x > 0, {name}: {np.mean(draws['x'] > 0):.2f}")

# %% [markdown]
# ## Data that separate
#
# A logistic regression on ten rows that a line separates, with a flat prior. The likelihood grows for ever as the slope
# does: there is no posterior. Chains walk away, which no sampler and no longer run can mend. The diagnosis sees chains
# that disagree, and can only name a longer run; where that makes the draws larger still, look at the model.

# %%
x = np.linspace(-1.0, 1.0, 10)
passed = (x > 0.1).astype(int)


def logistic(x, y=None, scale=None):
    prior = dist.ImproperUniform(constraints.real, (), ()) if scale is None else dist.Normal(0.0, scale)
    slope = numpyro.sample("slope", prior)
    numpyro.sample("y", dist.Bernoulli(logits=slope * (x - 0.1)), obs=y)


flat = pf.fit(pf.Target.from_numpyro(logistic, x, passed), pf.NUTS())
look(flat)
print(f"largest slope {flat.draws()['slope'].max():.3g}")

# %% [markdown]
# The remedy is a prior. With N(0, 5²) the posterior exists, and how far it reaches is the prior's word, as it should be
# said: twice the scale gives another answer.

# %%
fig, ax = plt.subplots(figsize=(5, 3), layout="constrained")
for scale in (2.5, 5.0, 10.0):
    posterior = pf.fit(pf.Target.from_numpyro(logistic, x, passed, scale=scale), pf.NUTS())
    ax.hist(posterior.draws()["slope"].ravel(), bins=60, density=True, histtype="step", label=f"N(0, {scale}²)")
    print(scale, posterior.diagnose().headline)
ax.set(xlabel="slope", ylabel="density")
ax.legend(title="prior")
plt.show()

# %% [markdown]
# ## Labels that switch
#
# A mixture of two normals whose components have the same prior: exchanging them changes nothing, so that there are two
# modes, the same but for names. The chains may be right about the density and wrong about "the first component".

# %%
sample = np.concatenate([rng.normal(-1.5, 0.6, 60), rng.normal(1.5, 0.6, 60)])


def mixture(y=None, ordered=False):
    prior = dist.Normal(0.0, 3.0).expand([2]).to_event(1)
    if ordered:
        prior = dist.TransformedDistribution(prior, transforms.OrderedTransform())
    centre = numpyro.sample("centre", prior)
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    parts = dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(centre, width))
    numpyro.sample("y", parts, obs=y)


switched = pf.fit(pf.Target.from_numpyro(mixture, sample), pf.NUTS(), key=1)
look(switched)

# %% [markdown]
# The symmetry is the model's, so the model must break it: centres in ascending order. (A prediction does not need that;
# it is the same for either naming.)

# %%
ordered = pf.fit(pf.Target.from_numpyro(mixture, sample, ordered=True), pf.NUTS(), key=1)
look(ordered)

fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for ax, posterior, title in zip(axes, (switched, ordered), ("exchangeable", "ordered")):
    for chain in posterior.draws()["centre"][..., 0]:
        ax.plot(chain, lw=0.5)
    ax.set(title=title, xlabel="draw")
axes[0].set_ylabel("centre[0], four chains")
plt.show()

# %% [markdown]
# ## Draws from Stan or PyMC
#
# A DataTree as PyMC and ArviZ write it, a fitted CmdStan object, or a dict of arrays (chain, draw, …) is diagnosed in
# the same way. Here the draws of the funnel stand in for those of another program. Without a model there are words;
# with one, a fix.

# %%
tree = funnel.data
foreign = pf.Posterior.from_draws(tree)
print(foreign.diagnose().headline)
print(foreign.diagnose().fix)

known = pf.Posterior.from_draws(tree, target=pf.Target.from_numpyro(means, groups, values))
print(known.diagnose().fix)
