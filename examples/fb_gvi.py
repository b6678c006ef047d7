# %% [markdown]
# # A Gaussian for a posterior: forward–backward variational inference
#
# The Challenger data: on 23 launches before the accident, was an O-ring damaged, and how warm was it? A logistic
# regression with two coefficients, whose posterior is skewed enough to tell a good Gaussian from a bad one.

# %%
import warnings

import jax
import matplotlib.pyplot as plt
import numpy as np

import pushforward as pf

challenger = pf.models.get("challenger")
target = challenger.target()
print(challenger.about)

# %% [markdown]
# `FBGVI` alternates a gradient step on $E_q[-\log \pi]$ with the proximal step of the entropy, which keeps every
# variance above the step size. It needs no learning rate: the step follows the curvature. Unless told otherwise it
# works in coordinates that are scaled by the Hessian at the mode. Two restarts.

# %%
posterior = pf.fit(target, pf.FBGVI(num_steps=400), num_chains=2, num_samples=4000, key=0)
print(posterior.diagnose())

# %%
posterior.summary(round_to="auto")

# %% [markdown]
# ## What was recorded
#
# The ELBO with its standard error, and the variance of the two parts of the gradient, in each step. Near the optimum
# the control variate takes most of the noise away; what is left is the posterior's own skewness, and the step size
# falls once the ELBO stalls.

# %%
trace = {name: values[0] for name, values in posterior.iterations.items()}
step = np.arange(trace["elbo"].size)
fig, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].fill_between(step, trace["elbo"] - trace["elbo_se"], trace["elbo"] + trace["elbo_se"], alpha=0.4)
axes[0].plot(step, trace["elbo"], lw=0.8)
axes[0].set(xlabel="step", ylabel="ELBO", xlim=(0, 150))
axes[1].semilogy(step, trace["variance_mean"], lw=0.8, label="variance, mean")
axes[1].semilogy(step, trace["variance_scale"], lw=0.8, label="variance, covariance")
axes[1].semilogy(step, trace["step_times_curvature"], lw=0.8, label="step × curvature")
axes[1].set(xlabel="step")
axes[1].legend(fontsize=7)
plt.show()

# %% [markdown]
# ## Next to other Gaussians, and to NUTS
#
# The Laplace approximation sits at the mode, mean field ignores the correlation. The ELBO orders them; NUTS says what
# they are to approximate.

# %%
nuts = pf.fit(target, pf.NUTS(), key=1)
fits = {
    "FBGVI": posterior,
    "natural gradient": pf.fit(target, pf.NGVI(num_steps=400), num_samples=4000, key=0),
    "mean field": pf.fit(target, pf.FBGVI(covariance="diagonal", num_steps=2000), num_samples=4000, key=0),
    "Laplace": pf.fit(target, pf.Laplace(), num_samples=4000, key=0),
}
for name, fit in fits.items():
    draws, (elbo, error) = fit.draws(), fit.elbo()
    print(
        f"{name:17} ELBO {elbo:7.3f} ± {error:.3f}   k-hat {fit.diagnose()['k-hat'].value:5.2f}   "
        f"alpha {draws['alpha'].mean():6.2f} ± {draws['alpha'].std():.2f}   "
        f"beta {draws['beta'].mean():6.2f} ± {draws['beta'].std():.2f}"
    )
draws = nuts.draws()
print(
    f"{'NUTS':17} {'log evidence':12} {nuts.evidence().log_evidence:.3f}{'':13}"
    f"alpha {draws['alpha'].mean():6.2f} ± {draws['alpha'].std():.2f}   "
    f"beta {draws['beta'].mean():6.2f} ± {draws['beta'].std():.2f}"
)

# %%
fig, ax = plt.subplots(figsize=(4.5, 3.5), layout="constrained")
ax.scatter(draws["alpha"], draws["beta"], s=1, alpha=0.3, color="0.6", label="NUTS")
angle = np.linspace(0, 2 * np.pi, 200)
with jax.enable_x64(True):
    for name, colour in (("FBGVI", "C0"), ("mean field", "C1"), ("Laplace", "C2")):
        q = fits[name].approximation
        ring = np.asarray(q.mean()) + 2 * np.stack([np.cos(angle), np.sin(angle)], 1) @ np.asarray(q.factor.dense()).T
        ax.plot(*ring.T, color=colour, label=f"{name}, 2 sd")
ax.set(xlabel="alpha", ylabel="beta")
ax.legend(fontsize=7)
plt.show()

# %% [markdown]
# No Gaussian has the posterior's long tail towards strong effects: k-hat says so for the two that are nearest in KL,
# and asks for more than reweighting. The evidence by importance sampling from the Gaussian agrees with bridge sampling
# on the draws of NUTS all the same:

# %%
print("Gaussian:", posterior.evidence())
print("NUTS:    ", nuts.evidence())

# %% [markdown]
# ## All of the family
#
# The baselines of the papers are methods like the others, so that they can be set side by side: without the proximal
# step (`BWSGD`), with the control variate of the gradient alone (`SVRGVI`), natural gradients of the precision and of a
# factor (`NGVI`, `SqrtNGVI`), Adam on a Cholesky factor or on standard deviations (`ADVI`). The last column is what
# each diagnosis warns of: the first two take one draw a step, of constant length, as in the papers, and never settle.

# %%
family = {
    "BWSGD": pf.BWSGD(num_steps=2000),
    "SVRGVI": pf.SVRGVI(num_steps=2000),
    "NGVI": pf.NGVI(num_steps=400),
    "SqrtNGVI": pf.SqrtNGVI(num_steps=400),
    "ADVI, full rank": pf.ADVI(),
    "ADVI, mean field": pf.ADVI(covariance="diagonal"),
}
for name, method in family.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the diagnosis has them
        fit = pf.fit(target, method, num_samples=4000, key=0)
    (elbo, error), diagnosis = fit.elbo(), fit.diagnose()
    print(
        f"{name:17} ELBO {elbo:7.3f} ± {error:.3f}   k-hat {diagnosis['k-hat'].value:5.2f}   "
        f"{', '.join(finding.name for finding in diagnosis.warnings) or 'no warning'}"
    )

# %% [markdown]
# ## Without any noise
#
# For a generalised linear model all expectations under a Gaussian are one-dimensional integrals. `glm_target` says so
# to the method, which then converges to rounding error.

# %%
temperature, distress = challenger.data["temperature"], challenger.data["distress"]
design = np.stack([np.ones(temperature.size), (temperature - 70.0) / 10.0], axis=1)
glm = pf.glm_target(design, distress, "bernoulli", prior_precision=1 / 25)
exact = pf.fit(glm, pf.NGVI(expectation="gauss_hermite", num_steps=200), num_samples=4000, key=0)
print("largest squared gradient in the last step:", exact.iterations["gradient_norm"].max(axis=0)[-1])
with jax.enable_x64(True):
    print("mean by quadrature:", np.asarray(exact.approximation.mean()).round(3))
    print("mean by draws:     ", np.asarray(posterior.approximation.mean()).round(3))

# %% [markdown]
# ## A step that is too long
#
# Above 1 / curvature the iteration stays stable and converges, to a wrong covariance. Nothing in the ELBO's trace
# tells, so that it is said:

# %%
step_size = 1.5 / float(exact.iterations["curvature"][0, -1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    method = pf.FBGVI(expectation="gauss_hermite", step_size=step_size, schedule="constant", num_steps=1000)
    wrong = pf.fit(glm, method, num_samples=4000, key=0)
print(caught[-1].message)
with jax.enable_x64(True):
    ratio = np.linalg.eigvals(np.linalg.solve(exact.approximation.covariance(), wrong.approximation.covariance()))
print("its variances are these times the best ones:", np.sort(ratio.real).round(2))
