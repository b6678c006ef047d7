# %% [markdown]
# # Probability flows: densities and evidence from draws
#
# The probability-flow ODE of a diffusion carries a normal to the posterior. Its denoiser is learned from draws, and the
# solver's steps have a Jacobian, so that each new draw comes with its exact density: weights, evidence, k-hat. First
# draws whose modes have the wrong shares; then two models, compared by evidence, beside sequential Monte Carlo.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import pushforward as pf

centres = np.array([[-2.0, 0.0], [1.5, 1.5], [1.5, -1.5]])
shares = np.array([0.2, 0.5, 0.3])


def three_modes(u):
    each = -0.5 * jnp.sum((u - centres) ** 2, 1) / 0.3**2 - jnp.log(2 * jnp.pi * 0.3**2)
    return jax.nn.logsumexp(jnp.log(shares) + each)


target = pf.Target.from_log_density(three_modes, np.zeros(2))

# %% [markdown]
# ## Wrong shares of the modes, put right
#
# Chains that cross between modes too seldom have each mode right and its share wrong. Here the three modes were drawn
# equally often; in truth they have 0.2, 0.5 and 0.3. The density is normalised, so that the log evidence is 0.

# %%
rng = np.random.default_rng(0)
draws = centres[rng.integers(3, size=2000)] + 0.3 * rng.normal(size=(2000, 2))
method = pf.ProbabilityFlow(from_draws=draws, hidden=(64, 64, 64), num_steps=2500)
posterior = pf.fit(target, method, key=0, num_samples=4000)
print(posterior.diagnose())

# %%
points = posterior.draws()["x"][0]
nearest = np.argmin(((points[:, None] - centres) ** 2).sum(-1), axis=1)
weights = np.exp(posterior.log_weights())
weights /= weights.sum()
for k in range(3):
    print(f"mode {k}: drawn {np.mean(nearest == k):.3f}, weighted {weights[nearest == k].sum():.3f}, true {shares[k]}")
print(posterior.evidence())

# %% [markdown]
# ## Paths and density
#
# Paths of the ODE in the plane never cross (in one coordinate they seem to); where basins of attraction meet they part.
# On the right log q on a grid, by inverting the steps, with some of the draws.

# %%
approximation = posterior.approximation
with jax.enable_x64(True):
    from pushforward.samplers.diffusion.solvers import trajectory

    flow = approximation.flow
    z = jax.random.normal(jax.random.key(1), (60, 2)) * flow.base_scale
    paths = jax.vmap(lambda y: trajectory(flow.score, flow.solver, flow.grid, y))(z)
    levels = np.sqrt(1 + np.asarray(flow.grid) ** 2)
    scaled = np.asarray(paths) / levels[None, :, None]  # x = α y, of unit size at all levels

grid = np.linspace(-3.5, 3.5, 61)
corners = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
log_q = posterior.log_prob(corners.reshape(-1, 2)).reshape(61, 61)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for path in scaled:
    left.plot(np.asarray(flow.grid), path[:, 0], color="0.5", lw=0.6)
left.set(xscale="log", xlabel="noise level ρ", ylabel="first whitened coordinate, scaled", title="paths of the ODE")
left.invert_xaxis()
right.contourf(grid, grid, log_q.T, levels=np.linspace(-12, 0, 13), cmap="Blues", extend="min")
right.plot(*points[:300].T, ".", ms=2, color="C1")
right.set(xlabel="x₁", ylabel="x₂", title="log q, and draws", aspect="equal")
plt.show()

# %% [markdown]
# ## Which of two models?
#
# Counts that may or may not be more spread than Poisson's. Each model is sampled by NUTS (the default warm-up), its
# probability flow gives the evidence, and sequential Monte Carlo gives it by another way: a check that no mode was
# missed.

# %%
counts = np.random.default_rng(3).negative_binomial(4, 4 / (4 + 6.0), size=40)


def poisson(y):
    rate = numpyro.sample("rate", dist.LogNormal(1.5, 1.0))
    numpyro.sample("y", dist.Poisson(rate).expand([len(y)]).to_event(1), obs=y)


def overdispersed(y):
    rate = numpyro.sample("rate", dist.LogNormal(1.5, 1.0))
    concentration = numpyro.sample("concentration", dist.LogNormal(1.0, 1.0))
    numpyro.sample("y", dist.NegativeBinomial2(rate, concentration).expand([len(y)]).to_event(1), obs=y)


evidence = {}
for model in (poisson, overdispersed):
    given = pf.Target.from_numpyro(model, counts)
    by_flow = pf.fit(given, pf.ProbabilityFlow(num_draws=250, hidden=(32, 32), num_steps=1000), key=0)
    by_smc = pf.fit(given, pf.SMC(), num_chains=4, key=0)
    evidence[model.__name__] = by_flow.evidence().log_evidence
    print(f"{model.__name__:14} flow: {by_flow.evidence()}   SMC: {by_smc.evidence()}")
print(f"log Bayes factor for overdispersion {evidence['overdispersed'] - evidence['poisson']:.2f}")
