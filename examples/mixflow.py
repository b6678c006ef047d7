# %% [markdown]
# # MixFlows: MCMC with a density
#
# A MixFlow mixes a simple normal with its images under an MCMC map, applied again and again. No network is trained;
# the result has independent draws, weights, and a lower bound on the evidence. First a funnel, whose evidence is known;
# then a regression, against NUTS.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import pushforward as pf


def funnel(x):
    scale = jnp.exp(0.5 * x[0])
    return jax.scipy.stats.norm.logpdf(x[0], 0.0, 2.0) + jax.scipy.stats.norm.logpdf(x[1], 0.0, scale)


target = pf.Target.from_log_density(funnel, np.zeros(2))
flow = pf.fit(target, pf.MixFlow(num_leapfrog=10, max_length=500), key=0, num_samples=2000)
print(flow.diagnose())

# %% [markdown]
# ## The bound for every length, from one batch of orbits
#
# At N = 1 the flow is its reference, a normal fit. The density is normalised, so that the bound can reach 0.

# %%
curve = flow.approximation.curve
filled = int(curve.filled)
lengths, bound, error = (np.asarray(x)[:filled] for x in (curve.lengths, curve.elbo, curve.se))
plt.figure(figsize=(5, 3), layout="constrained")
plt.errorbar(lengths, bound, 2 * error, fmt="o-", ms=3)
plt.axvline(int(flow.approximation.length), color="0.7", lw=0.8)
plt.axhline(0.0, color="0.7", lw=0.8)
plt.xscale("log")
plt.xlabel("length N")
plt.ylabel("evidence bound")
plt.show()

# %% [markdown]
# ## Draws, and the density
#
# The density of the two parameters alone is an integral over the map's auxiliary variables: `log_prob` estimates it,
# with a standard error. It needs orbits that can be run backwards; with Laplace momenta and few maps they can. Long
# orbits of the default map cannot, and `log_prob` says so instead of giving a number.

# %%
try:
    flow.log_prob(np.zeros(2))
except pf.NotAvailable as refusal:
    print(refusal)

# %%
laplace = pf.MixFlow(
    kernel="hamiltonian", momentum="laplace", num_leapfrog=10, grid=(0.02, 0.05, 0.1, 0.2), max_length=60
)
short = pf.fit(target, laplace, key=0, num_samples=2000)
print(short.diagnose()["inversion"].message)
side = np.linspace(-6.0, 6.0, 40)
grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
density = short.log_prob(grid, num_draws=30)
print(f"median standard error of log q: {np.median(density.error):.3f}")
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), sharex=True, sharey=True, layout="constrained")
truth = np.exp([float(funnel(x)) for x in grid]).reshape(40, 40)
for axis, values, title in ((left, truth, "target"), (right, np.exp(density.value).reshape(40, 40), "MixFlow, N ≤ 60")):
    axis.contourf(side, side, np.sqrt(values.T), levels=12)
    axis.set(title=title, xlabel="x[0]")
drawn = flow.draws()["x"][0]
right.plot(*drawn[:400].T, "w.", ms=1.5)
right.set(xlim=(-6, 6), ylim=(-6, 6))
left.set_ylabel("x[1]")
plt.show()

# %% [markdown]
# ## A regression
#
# Thermal distress of O-rings on 23 flights of the space shuttle, against temperature: a logistic regression. The
# evidence by importance weights of the flow, and by bridge sampling of NUTS draws.

# %%
shuttle = pf.models.get("challenger").target()
mixed = pf.fit(shuttle, pf.MixFlow(num_leapfrog=10, max_length=300), key=0, num_samples=1000)
nuts = pf.fit(shuttle, pf.NUTS(), key=1)
print(mixed.diagnose())
bound, error = mixed.elbo()
print(f"bound    {bound:.3f} ± {error:.3f}")
print("MixFlow ", mixed.evidence())
print("NUTS    ", nuts.evidence())

# %% [markdown]
# Its density over the two coefficients, with draws of NUTS on it. This flow is short and its orbits hardly diverge, so
# that densities at given points mean something.

# %%
near = {name: np.asarray(mixed.draws()[name]).ravel() for name in ("alpha", "beta")}
alpha, beta = (np.linspace(*np.quantile(x, [0.001, 0.999]), 30) for x in near.values())
points = dict(zip(("alpha", "beta"), (x.ravel() for x in np.meshgrid(alpha, beta, indexing="ij")), strict=True))
found = mixed.log_prob(points, num_draws=20)
print(mixed.diagnose()["inversion"].message)
print(f"median standard error of log q: {np.median(found.error):.3f}")
plt.figure(figsize=(4.4, 3.4), layout="constrained")
plt.contourf(alpha, beta, np.exp(found.value).reshape(30, 30).T, levels=12)
plt.plot(*(np.asarray(nuts.draws()[name]).ravel()[::10] for name in near), "w.", ms=1.5)
plt.gca().set(title="MixFlow's density, draws of NUTS", xlabel="alpha", ylabel="beta")
plt.show()

# %% [markdown]
# ## When NUTS is better
#
# Almost always, if draws are all that is wanted: gradients per effective draw.

# %%
ess = nuts.summary(round_to=None)["ess_bulk"].astype(float).min()
maps = int(mixed.approximation.length) - 1
print(f"NUTS:    {nuts.record['evaluations'] / ess:.0f} gradients per effective draw, warm-up included")
print(f"MixFlow: {maps * 10} per independent draw with its density, after {mixed.record['evaluations']:,} for the fit")
value, error = mixed.expect(lambda site: jnp.stack(jax.tree.leaves(site)[:2]), num_samples=64)
print(f"averages along 64 trajectories: {value.round(3)} ± {error.round(3)}")

# %% [markdown]
# A MixFlow is for what NUTS does not give: a density with independent draws, weights whose k-hat tells how far to trust
# them, and a bound on the evidence that no choice of network or optimiser stands behind.
