# %% [markdown]
# # Missing data
#
# What was not measured is one more unknown: give it a site, and its posterior comes with the others. Here a covariate
# is missing in a third of the rows, mostly where the response is large. Leaving these rows out then biases the slope,
# which imputation does not.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import pushforward as pf

rng = np.random.default_rng(0)
x = rng.normal(2.0, 1.0, 400)
y = 1.0 + 2.0 * x + rng.normal(0.0, 1.5, 400)
seen = rng.random(400) > 1 / (1 + np.exp(-(y - 6.0)))  # the larger y, the rarer is x
print(f"{np.sum(~seen)} of {len(x)} values of x are missing")

# %% [markdown]
# ## The rows that are complete


# %%
def line(x, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 5.0))
    noise = numpyro.sample("noise", dist.HalfNormal(3.0))
    numpyro.sample("y", dist.Normal(intercept + slope * x, noise), obs=y)


complete = pf.fit(pf.Target.from_numpyro(line, x[seen], y[seen]), pf.NUTS())
complete.summary(round_to="auto")

# %% [markdown]
# The slope was 2, and is missed: rows with large y, which would pull the line up, have gone.
#
# ## All rows, with the missing values as unknowns
#
# `x` gets a distribution of its own, of which the values that were seen are data. Whether a value is missing depends on
# `y`, which is in the model, so that the mechanism itself may be left out (Rubin 1976).


# %%
def imputed(x, seen, y=None):
    mean = numpyro.sample("mean_x", dist.Normal(0.0, 5.0))
    sd = numpyro.sample("sd_x", dist.HalfNormal(3.0))
    numpyro.sample("x_seen", dist.Normal(mean, sd), obs=x[seen])
    missing = numpyro.sample("x_missing", dist.Normal(mean, sd).expand([int((~seen).sum())]).to_event(1))
    line(jnp.zeros(len(seen)).at[np.flatnonzero(seen)].set(x[seen]).at[np.flatnonzero(~seen)].set(missing), y)


# `seen` decides shapes, so that it is an array of NumPy in the model's keywords, not one of JAX.
target = pf.Target.from_numpyro(imputed, x, seen, y)
whole = pf.fit(target, pf.NUTS())
print(whole.diagnose().headline)
whole.summary(["intercept", "slope", "noise", "mean_x"], round_to="auto")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for posterior, label in ((complete, "complete rows"), (whole, "all rows")):
    axes[0].hist(posterior.draws()["slope"].ravel(), bins=50, density=True, histtype="step", label=label)
axes[0].axvline(2.0, color="k", lw=0.8)
axes[0].set(xlabel="slope", ylabel="density")
axes[0].legend()
draws = whole.draws()["x_missing"]
centre, sd = draws.mean((0, 1)), draws.std((0, 1))
axes[1].errorbar(x[~seen], centre, yerr=2 * sd, fmt=".", lw=0.6)
axes[1].plot([0, 5], [0, 5], "k", lw=0.8)
axes[1].set(xlabel="the missing values", ylabel="their posteriors, ± 2 sd")
plt.show()
inside = np.mean(np.abs(x[~seen] - centre) < 2 * sd)
print(f"{inside:.0%} of the missing values lie within two standard deviations")

# %% [markdown]
# A missing *response* needs nothing: a row without it says nothing of the line, and `posterior.predict(...)` draws it.
# Values that are missing for a reason which is not in the data need a model of that reason as well.
