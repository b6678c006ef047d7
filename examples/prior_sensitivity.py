# %% [markdown]
# # How much of this is the prior?
#
# Eight schools again: eight numbers, and a spread between the schools of which they tell little. Two ways to see what
# the prior has to do with the answer: other priors, fitted; and one fit, with its prior and its likelihood raised to
# powers near one by importance weights (Kallioinen, Paananen, Bürkner and Vehtari 2024).

# %%
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.reparam import LocScaleReparam

import pushforward as pf

schools = pf.models.get("eight_schools")
y, sigma = schools.data["y"], schools.data["sigma"]


def model(sigma, scale, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(scale))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


# %% [markdown]
# ## Other priors
#
# The scale of the prior of tau is an argument of the model, and so a leaf of the target: all fits share one compiled
# program.

# %%
fits = {}
for scale in (1.0, 5.0, 25.0):
    target = pf.Target.from_numpyro(model, sigma, scale, y).replace(reparam={"theta": LocScaleReparam(0)})
    fits[scale] = pf.fit(target, pf.NUTS(), num_samples=2000)
    draws = fits[scale].draws()
    print(
        f"tau ~ HalfNormal({scale:g}): tau {draws['tau'].mean():.1f}, "
        f"best school {draws['theta'][..., 0].mean():.1f} ± {draws['theta'][..., 0].std():.1f}, "
        f"log evidence {fits[scale].evidence().log_evidence:.2f}"
    )

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for scale, posterior in fits.items():
    for ax, values in zip(axes, (posterior.draws()["tau"], posterior.draws()["theta"][..., 0])):
        ax.hist(values.ravel(), bins=80, range=(-10, 40), density=True, histtype="step", label=f"scale {scale:g}")
axes[0].set(xlabel="tau", xlim=(0, 40), ylabel="density")
axes[1].set(xlabel="theta of school A")
axes[0].legend()
plt.show()

# %% [markdown]
# The spread follows its prior, the evidence hardly tells the three apart, and the effect of the best school goes with
# the spread. Whoever reports it should say so.
#
# ## One fit, its prior raised to powers
#
# `log_prior` and `log_likelihood` add the two groups that ArviZ reads.

# %%
posterior = fits[5.0]
posterior.log_likelihood()
posterior.log_prior()
az.psense_summary(posterior.data, var_names=["mu", "tau"], round_to=3)

# %% [markdown]
# The numbers are how far a posterior moves per doubling of the power of the prior, and of the likelihood; above 0.05
# is worth a look. Where both are large, prior and data pull in different directions: mu is expected near 0, and the
# schools' mean is 8. Where only that of the prior is, the data say little: for tau the three fits have shown it.

# %%
prior = posterior.prior(2000)
spread = np.asarray(prior["tau"]).std(), posterior.draws()["tau"].std()
print(f"sd of tau: {spread[0]:.1f} in the prior, {spread[1]:.1f} in the posterior")
