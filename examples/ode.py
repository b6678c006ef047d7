# %% [markdown]
# # A model with an ODE
#
# Pelts of hares and lynx that the Hudson's Bay Company bought, in thousands, 1900 to 1920 (Hewitt 1921), and the
# equations of Lotka and Volterra. The solver is a function like any other: NUTS differentiates through it.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist

import pushforward as pf

years = np.arange(1900, 1921)
hares = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6, 52.3, 19.5, 11.2, 7.6]
lynx = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5, 45.7, 51.1, 29.7, 15.8]
pelts = np.array([[*hares, 14.6, 16.2, 24.7], [*lynx, 9.7, 10.1, 8.6]]).T


# %% [markdown]
# ## The solver
#
# The equations are not stiff, so classical Runge–Kutta steps of a twentieth of a year do. A `lax.scan` compiles one
# step and keeps what the gradient needs. Stiff equations want an implicit solver with adaptive steps: diffrax's solvers
# go in the same place.


# %%
def change(state, rates):
    u, v = state
    a, b, c, d = rates
    return jnp.stack([(a - b * v) * u, (d * u - c) * v])


def solve(start, rates, num_years, per_year=20):
    """States (num_years + 1, 2) at the ends of the years."""
    h = 1.0 / per_year

    def step(state, _):
        k1 = change(state, rates)
        k2 = change(state + 0.5 * h * k1, rates)
        k3 = change(state + 0.5 * h * k2, rates)
        k4 = change(state + h * k3, rates)
        return state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    def year(state, _):
        state, _ = jax.lax.scan(step, state, length=per_year)
        return state, state

    return jnp.concatenate([start[None], jax.lax.scan(year, start, length=num_years)[1]])


exact = solve(jnp.array([30.0, 4.0]), jnp.array([0.55, 0.028, 0.8, 0.024]), 20, per_year=200)
found = solve(jnp.array([30.0, 4.0]), jnp.array([0.55, 0.028, 0.8, 0.024]), 20)
print(f"largest relative error of the steps: {np.max(np.abs(found / exact - 1)):.1e}")

# %% [markdown]
# ## The model
#
# Everything is positive, so that priors and noise are on the log scale. A run into infinity, which early warm-up tries,
# is a rejected step and no error.


# %%
def cycle(pelts=None, num_years=20):
    log_rates = jnp.log(jnp.array([0.5, 0.03, 0.8, 0.03]))
    rates = numpyro.sample("rates", dist.LogNormal(log_rates, 0.5).to_event(1))
    start = numpyro.sample("start", dist.LogNormal(jnp.log(jnp.array([20.0, 10.0])), 1.0).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 0.7).expand([2]).to_event(1))
    state = numpyro.deterministic("state", solve(start, rates, num_years))
    numpyro.sample("pelts", dist.LogNormal(jnp.log(jnp.maximum(state, 1e-6)), noise).to_event(2), obs=pelts)


target = pf.Target.from_numpyro(cycle, pelts)
posterior = pf.fit(target, pf.NUTS(), num_samples=500, num_warmup=500)
print(posterior.diagnose().headline)
posterior.summary(["rates", "start", "noise"], round_to="auto")

# %% [markdown]
# ## Does it fit, and what comes next?
#
# The model run ten years further by the same draws: `predict` takes the model's own arguments.

# %%
ahead = posterior.predict(None, num_years=30)
future = np.asarray(ahead["pelts"]).reshape(-1, 31, 2)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), sharex=True, layout="constrained")
for ax, species, name in zip(axes, range(2), ("hares", "lynx")):
    low, middle, high = np.quantile(future[..., species], (0.05, 0.5, 0.95), axis=0)
    at = 1900 + np.arange(31)
    ax.fill_between(at, low, high, alpha=0.25)
    ax.plot(at, middle)
    ax.plot(years, pelts[:, species], "k.", ms=5)
    ax.set(title=name, xlabel="year", ylim=(0, 150))
axes[0].set_ylabel("pelts, thousands")
plt.show()

# %% [markdown]
# Points are the data, bands hold 90 % of new data under the model, with what is not known of rates and start in them.
# After two cycles the phase is known so well that the third, of which there are no data, is hardly wider.
