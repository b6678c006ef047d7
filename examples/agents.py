# %% [markdown]
# # Hospitals: one posterior from data that stay where they are
#
# Eight hospitals of different sizes and with different patients fit one logistic regression, and none gives its data
# away. They are agents on a graph, and send their current parameters to their neighbours. What does it cost, and how
# wrong is it? The data are the tumours that ship with scikit-learn, so that the right answer is known: NUTS on all of
# them together.

# %%
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_breast_cancer

import pushforward as pf

data = load_breast_cancer()
names = ["mean texture", "mean smoothness", "mean symmetry", "texture error", "smoothness error"]
x = data.data[:, [list(data.feature_names).index(name) for name in names]]
x, y = (x - x.mean(0)) / x.std(0), 1.0 - data.target

# Patients are not dealt out at random: hospitals differ in texture, and in size.
share = np.array([0.5, 1, 1.5, 2, 0.7, 1, 1.3, 1])
ends = np.round(np.cumsum(share) / share.sum() * len(y)).astype(int)
hospital = np.empty(len(y), int)
hospital[np.argsort(x[:, 0] + 0.3 * x[:, 1])] = np.searchsorted(ends, np.arange(len(y)), side="right")
print("patients:", np.bincount(hospital), " malignant:", np.round([y[hospital == i].mean() for i in range(8)], 2))

# %% [markdown]
# A model is written as for one machine. `sharded` deals its observations out, and splits the prior.


# %%
def model(x, y):
    b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    a = numpyro.sample("a", dist.Normal(0.0, 2.0))
    numpyro.sample("y", dist.BernoulliLogits(a + x @ b), obs=y)


target = pf.Target.from_numpyro(model, x, y)
shared = target.sharded(hospital)
gold = pf.fit(target, pf.NUTS(), num_samples=4000, progress=False)
truth = np.concatenate([gold.draws()["b"], gold.draws()["a"][..., None]], -1).reshape(-1, 6)

# %% [markdown]
# ## What to expect
#
# Before a run, `predict` works out the law of the sampler for the curvature of the shares at the mode: how far off the
# variance of the agents' average and of the worst agent will be, and how many rounds it takes to forget the start.

# %%
for noise in ("shared", "langevin"):
    print(noise, pf.DistributedADMM("ring", noise=noise).predict(shared))

# %% [markdown]
# ## What happens
#
# Everything by default, 1,250 rounds of communication after 300; consensus Monte Carlo, with one round, and split
# Gibbs, with a server, beside it.

# %%
methods = {
    "ADMM, ring": pf.DistributedADMM("ring"),
    "ADMM, own noise": pf.DistributedADMM("ring", noise="langevin"),
    "split Gibbs": pf.SplitGibbs(),
    "FALD": pf.FALD(),
    "D-SGLD": pf.DSGLD("ring"),
}
draws = {}
for name, method in methods.items():
    fit = pf.fit(shared, method, num_chains=16, num_samples=250, num_warmup=300, thin=5, progress=False)
    draws[name] = np.concatenate([fit.draws()["b"], fit.draws()["a"][..., None]], -1)
    if name in ("ADMM, ring", "D-SGLD"):
        print(name, fit.diagnose(), "", sep="\n")

parts = [
    pf.fit(shared.sub_posterior(i), pf.NUTS(), num_chains=2, num_samples=500, num_warmup=400, key=i, progress=False)
    for i in range(8)
]
combined = pf.combine(parts, how="consensus").draws()
draws["consensus"] = np.concatenate([np.reshape(combined["b"], (1, -1, 5)), np.reshape(combined["a"], (1, -1, 1))], -1)

# %%
rounds = dict.fromkeys(methods, 1550.0) | {"FALD": 0.2 * 1550, "consensus": 1.0}
vectors = {name: 2 * rounds[name] for name in methods} | {"consensus": 1000.0}  # to two neighbours, or there and back
mean, sd = truth.mean(0), truth.std(0)
print(f"{'':16}{'rounds':>8}{'kB sent by an agent':>21}{'mean, in sd':>13}{'sd, ratio':>11}")
for name, z in draws.items():
    off, ratio, sent = np.abs(z.mean((0, 1)) - mean) / sd, z.std((0, 1)) / sd, 8 * 6 * vectors[name] / 1e3
    print(f"{name:16}{rounds[name]:8.0f}{sent:21.0f}{off.max():13.3f}{ratio.min():7.2f}–{ratio.max():.2f}")

# %%
labels = [name.replace("mean ", "") for name in names] + ["intercept"]
plt.figure(figsize=(8, 3.6), layout="constrained")
for k, (name, z) in enumerate(draws.items()):
    flat = z.reshape(-1, 6)
    low, mid, high = ((np.quantile(flat, q, axis=0) - mean) / sd for q in (0.05, 0.5, 0.95))
    at = np.arange(6) + 0.12 * (k - 2.5)
    plt.errorbar(at, mid, [mid - low, high - mid], fmt="o", ms=3, lw=1.2, label=name)
low, high = ((np.quantile(truth, q, axis=0) - mean) / sd for q in (0.05, 0.95))
for i in range(6):
    plt.fill_between([i - 0.45, i + 0.45], low[i], high[i], color="0.9", zorder=0)
plt.axhline(0.0, color="0.6", lw=0.8)
plt.xticks(range(6), labels, fontsize=8)
plt.ylabel("posterior, in sd of NUTS")
plt.legend(fontsize=7, ncols=4, loc="upper center")
plt.ylim(-3, 4)
plt.show()

# %% [markdown]
# Grey is NUTS, from the 5 % to the 95 % quantile. The dual variables of ADMM remove the pull of each hospital's own
# data; shared noise keeps the agents together. With noise of their own, agents are far apart, and as the shares are not
# quadratic, the average is pulled off: the more, the fewer neighbours.

# %% [markdown]
# ## One hospital's own view
#
# `keep=` keeps the iterates of one agent. With shared noise they are draws of the posterior as good as the average;
# with noise of its own they are not, and `diagnose` says so.

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained", sharey=True)
for ax, noise in zip(axes, ("shared", "langevin"), strict=True):
    own = pf.DistributedADMM("ring", noise=noise, keep=0)
    fit = pf.fit(shared, own, num_chains=16, num_samples=250, num_warmup=300, thin=5, progress=False)
    b = np.asarray(fit.draws()["b"]).reshape(-1, 5)
    ax.hist(truth[:, 0], 60, density=True, color="0.85", label="NUTS")
    ax.hist(b[:, 0], 60, density=True, histtype="step", label=f"hospital 0, noise={noise!r}")
    ax.set_xlabel("coefficient of texture")
    ax.legend(fontsize=7)
    print(noise, [finding.message for finding in fit.diagnose().findings if finding.name == "disagreement"])
plt.show()
