# %% [markdown]
# # A normalizing flow on the growth of dugongs
#
# Lengths of 27 dugongs against their ages (Ratkowsky 1983; BUGS example): they grow towards a limit, along a curve
# whose parameters are neither normal nor independent. A flow is a density that can be drawn from.

# %%
import matplotlib.pyplot as plt

import pushforward as pf

dugongs = pf.models.get("dugongs")
print(dugongs.about)
target = dugongs.target()

# %% [markdown]
# ## The fit, and whether to believe it
#
# The flow begins as the normal that Pathfinder finds. Its layers are splines of one half of the coordinates, given the
# other half.

# %%
flow = pf.fit(target, pf.NormalizingFlow(num_layers=4, num_steps=1500), key=0, num_samples=4000)
print(flow.diagnose())
flow.summary(round_to=3)

# %% [markdown]
# The trace of the ELBO: in the first quarter the log density is flattened by a temperature. The noise of the gradient
# falls as the flow nears the posterior, since its path gradient is zero where they are equal.

# %%
trace = flow.iterations
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(trace["elbo"][0], lw=0.5)
left.set(xlabel="step", ylabel="ELBO (at its temperature)")
for block in ("location", "scale", "layers"):
    right.semilogy(trace[f"variance_{block}"][0], lw=0.5, label=block)
right.set(xlabel="step", ylabel="variance of the gradient")
right.legend()
plt.show()

# %% [markdown]
# ## Against NUTS, and against Pathfinder's normal
#
# Draws in unconstrained coordinates, where the normal lives. The flow bends where the posterior does.

# %%
nuts = pf.fit(target, pf.NUTS(), key=1)
normal = pf.fit(target, pf.Pathfinder(), key=0, num_samples=4000)
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), sharex=True, sharey=True, layout="constrained")
for axis, (name, posterior) in zip(axes, {"NUTS": nuts, "flow": flow, "Pathfinder": normal}.items(), strict=True):
    u = posterior.unconstrained().reshape(-1, target.dim)
    axis.scatter(u[:, 0], u[:, 2], s=2, alpha=0.3)
    axis.set(title=name, xlabel="u[0]")
axes[0].set_ylabel("u[2]")
plt.show()

# %% [markdown]
# ## Evidence from both sides
#
# Weights of the flow's draws give the evidence, but know nothing of what the flow has left out. Draws of the posterior
# do. Here the two agree.

# %%
both = pf.two_sided_evidence(target, flow, nuts)
print(f"by the flow's draws {both.from_approximation:.3f}, by NUTS's {both.from_posterior:.3f}")
print(f"bounds {both.lower:.3f} to {both.upper:.3f}; k-hat {both.k_hat:.2f} and {both.k_hat_posterior:.2f}")
print("reliable" if both.reliable else "not reliable")
