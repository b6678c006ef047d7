# %% [markdown]
# # Deciding with a Bayesian last layer: optimisation and a bandit
#
# Given features, a new observation updates the last layer exactly, in $O(D^2)$: `condition`. Now and then the features
# are learned anew. Decisions need either the predictive (expected improvement) or one draw of the whole function
# (Thompson sampling), which for a last layer is a draw of its weights.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import qmc

import pushforward as pf
from pushforward.models import LastLayer
from pushforward.models.last_layer import NormalHead, log_expected_improvement


def learn(x, y, key, noise=None, num_steps=1500):
    """Features and last layer, then the last layer's exact posterior, to which rows can be added."""
    net = eqx.nn.MLP(x.shape[1], 64, 64, 2, jax.nn.tanh, jax.nn.tanh, key=jax.random.key(key))
    target = LastLayer(net, NormalHead(noise=noise), x, y, validation=None)
    method = pf.VBLL(num_steps=num_steps, learning_rate=3e-3, weight_decay=1e-4)
    return pf.fit(target, method, key=key, num_samples=2, progress=False).approximation.refit("dense_precision")


# %% [markdown]
# ## The minimum of Branin's function
#
# Three minima of 0.398 in the unit square. Ten points to begin with, thirty to choose; features are learned anew every
# ten points.


# %%
def branin(u):
    a, b = 15 * u[..., 0] - 5, 15 * u[..., 1]
    bowl = (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10


def climb(value, grid):
    """The best of a grid, moved up the slope within the square."""

    def step(i, x):
        slope = jax.grad(lambda x: jnp.sum(value(x)))(x)
        length = jnp.linalg.norm(slope, axis=-1, keepdims=True)
        return jnp.clip(x + 0.03 * 0.9**i * slope / jnp.maximum(length, 1e-12), 0, 1)

    x = grid[jnp.argsort(-value(grid))[:8]]
    x = jax.lax.fori_loop(0, 40, step, x)
    return x[jnp.argmax(value(x))]


@jax.jit
def by_improvement(target, best, grid):
    def value(x):
        predictive = target.predict(x)
        return log_expected_improvement(-predictive.loc, predictive.scale, -best)

    return climb(value, grid)


@jax.jit
def by_draw(path, grid):
    return climb(lambda x: -path(x)[0], grid)


grid = qmc.Sobol(2, seed=0).random(512)


def minimise(choose, seed):
    x = qmc.Sobol(2, seed=seed).random(10)
    y, q = branin(x), None
    for i in range(30):
        q = learn(x, y, 100 * seed + i, noise=0.2) if i % 10 == 0 else q.condition(x[-1:], y[-1:])
        new = np.asarray(choose(q, y.min(), i))
        new = rng.uniform(size=2) if np.min(np.linalg.norm(x - new, axis=1)) < 1e-3 else new  # not the same point again
        x, y = np.vstack([x, new]), np.append(y, branin(new))
    return x, y


def improvement(q, best, i):
    with jax.enable_x64(True):
        return by_improvement(q.without_rows, best, grid)


def thompson(q, best, i):
    with jax.enable_x64(True):
        return by_draw(q.paths(1, key=i), grid)


rng = np.random.default_rng(0)
runs = {
    "expected improvement": minimise(improvement, 1),
    "Thompson": minimise(thompson, 1),
    "uniform": (None, branin(np.vstack([qmc.Sobol(2, seed=1).random(10), rng.uniform(size=(30, 2))]))),
}
for name, (_, y) in runs.items():
    print(f"{name:>20}: {y.min():.3f} after 40 evaluations, {y[:20].min():.3f} after 20 (least: 0.398)")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, (_, y) in runs.items():
    axes[0].semilogy(np.minimum.accumulate(y) - 0.3978, label=name)
axes[0].set(xlabel="evaluations", ylabel="best value so far, above the least")
axes[0].legend(frameon=False)
side = np.linspace(0, 1, 80)
square = np.stack(np.meshgrid(side, side), -1)
axes[1].contourf(side, side, np.log(branin(square)), 20, cmap="Greys")
points = runs["expected improvement"][0]
axes[1].plot(*points[:10].T, "C0o", ms=4, label="first ten")
axes[1].plot(*points[10:].T, "C1.", label="chosen by expected improvement")
axes[1].legend(loc="upper right")
plt.show()

# %% [markdown]
# ## A bandit
#
# The wheel of Riquelme, Tucker & Snoek (2018): a context uniform in the unit disc, five actions. The first four pay
# about 1, the last about 1.2, but outside of radius 0.7 one of the four, which one depends on the quadrant, pays 50.
# Whoever does not explore never learns of it. The network's input is context and action; a draw of the last layer
# decides, every reward is one rank-one update, and features are learned anew now and then.


# %%
def wheel(rng, radius=0.7):
    """A context, and the mean reward of each action."""
    context = rng.normal(size=2)
    context *= np.sqrt(rng.uniform()) / np.linalg.norm(context)
    means = np.array([1.0, 1.0, 1.0, 1.0, 1.2])
    if np.linalg.norm(context) > radius:
        means[2 * (context[0] < 0) + (context[1] < 0)] = 50.0
    return context, means


def rows(context):
    return np.hstack([np.tile(context, (5, 1)), np.eye(5)])


evaluate = jax.jit(lambda path, x: path(x)[0])


def play(explore, rounds=500, seed=3):
    """Regret of each round, and that of an action at random."""
    rng, regret, x, y = np.random.default_rng(seed), [], [], []
    for t in range(rounds):
        context, means = wheel(rng)
        if t < 10:
            action = t % 5
        else:
            if t in (10, 60, 160, 300):
                q = learn(np.array(x), np.array(y), t, num_steps=2000)
            with jax.enable_x64(True):
                drawn = evaluate(q.paths(1, key=t), rows(context)) if explore else None
            values = drawn if explore else q.uncertainty(rows(context)).mean
            action = int(np.argmax(values))
        reward = means[action] + (0.01 if means[action] == 50 else 0.05) * rng.normal()
        x.append(rows(context)[action])
        y.append(reward)
        if t >= 10:
            q = q.condition(x[-1][None], np.array([reward]))
        regret.append((means.max() - means[action], means.max() - means.mean()))
    return np.cumsum(regret, axis=0)


sampled, greedy = play(True), play(False)
fig, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
for name, regret in {"Thompson": sampled[:, 0], "greedy": greedy[:, 0], "uniform": sampled[:, 1]}.items():
    axis.plot(regret, label=f"{name}: {100 * regret[-1] / sampled[-1, 1]:.0f} % of uniform")
axis.set(xlabel="rounds", ylabel="regret so far")
axis.legend(frameon=False)
plt.show()
