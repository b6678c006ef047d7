# %% [markdown]
# # Eight schools: from model to report
#
# Eight schools tried coaching for a scholastic test. For each there is an estimated effect and its standard error
# (Rubin 1981). How much of the difference between the schools is real? The data ship with the package.

# %%
import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import pushforward as pf

schools = pf.models.get("eight_schools")
y, sigma = schools.data["y"], schools.data["sigma"]
print(schools.about)
for name, effect, error in zip(schools.coords["school"], y, sigma):
    print(f"{name}: {effect:5.1f} ± {error:.0f}")

# %% [markdown]
# ## A first model
#
# The true effects come from one population, with mean $\mu$ and spread $\tau$: $\theta_j \sim N(\mu, \tau)$, and each
# estimate scatters about its own, $y_j \sim N(\theta_j, \sigma_j)$.


# %%
def centred(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", sigma.shape[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


target = pf.Target.from_numpyro(centred, sigma, y).replace(coords=schools.coords)
target.check()

# %%
first = pf.fit(target, pf.NUTS(), key=0)
first.summary(round_to="auto")

# %% [markdown]
# The means look plausible. The diagnosis says not to rely on them:

# %%
print(first.diagnose())

# %% [markdown]
# Where $\tau$ is small, the $\theta_j$ must huddle together: the posterior is a funnel, and the step size of NUTS, the
# same everywhere, is too long for its neck. The sampler turns back there, at times with a divergence, and changes its
# energy too slowly to come from one end of the funnel to the other.

# %%
draws = first.draws()
diverging = first.data["sample_stats"]["diverging"].values
fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
ax.scatter(draws["theta"][..., 0], np.log(draws["tau"]), s=2, alpha=0.3, label="draws")
ax.scatter(draws["theta"][diverging][:, 0], np.log(draws["tau"][diverging]), s=8, color="C1", label="diverged")
ax.set(xlabel="theta[A]", ylabel="log tau", ylim=(-4, 4))
ax.legend()
plt.show()

# %% [markdown]
# ## The same model, another way to write it
#
# The remedy for a funnel is to sample what is left when it is taken out: $z_j \sim N(0, 1)$ with
# $\theta_j = \mu + \tau z_j$. NumPyro calls that a reparameterisation, and a target takes it as an option; the model
# stays as it is.

# %%
from numpyro.infer.reparam import LocScaleReparam

better = target.replace(reparam={"theta": LocScaleReparam(0.0)})
second = pf.fit(better, pf.NUTS(target_acceptance=0.95), key=0)
print(second.diagnose())

# %%
second.summary(var_names=["mu", "tau", "theta"], round_to="auto")

# %% [markdown]
# How far off was the first fit? Compared with the second, most in the spread $\tau$, whose small values it missed:

# %%
for name, posterior in (("centred", first), ("non-centred", second)):
    tau = posterior.draws()["tau"]
    print(f"{name:12} P(tau < 1) = {np.mean(tau < 1):.3f}   median of tau = {np.median(tau):.2f}")

# %% [markdown]
# ## Is the model any good?
#
# Data that the model predicts, next to those there are:

# %%
predicted = second.predict(key=1)["y"].values.reshape(-1, y.size)
low, high = np.quantile(predicted, [0.05, 0.95], axis=0)
fig, ax = plt.subplots(figsize=(5, 2.8), layout="constrained")
ax.vlines(np.arange(y.size), low, high, lw=6, alpha=0.3, label="90 % of predictions")
ax.plot(y, "k.", label="observed")
ax.set_xticks(range(y.size), schools.coords["school"])
ax.legend()
plt.show()

# %% [markdown]
# Against a model in which all schools are alike ($\tau = 0$), by leave-one-out cross-validation. ArviZ takes the
# posterior's data as they are.


# %%
def alike(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    with numpyro.plate("school", sigma.shape[0]):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


pooled = pf.fit(pf.Target.from_numpyro(alike, sigma, y).replace(coords=schools.coords), key=0)
second.log_likelihood()
pooled.log_likelihood()
az.compare({"partial pooling": second.data, "all alike": pooled.data})[["rank", "elpd", "p", "elpd_diff", "weight"]]

# %% [markdown]
# The evidence, by bridge sampling, says the same: the data cannot tell the two models apart.

# %%
print("partial pooling:", second.evidence())
print("all alike:      ", pooled.evidence())

# %% [markdown]
# ## The report
#
# Diagnosis, summary and plots in one file, to send to someone.

# %%
path = second.report("eight_schools.html", title="Eight schools")
print(f"{path.stat().st_size / 1e3:.0f} kB in {path.name}")
