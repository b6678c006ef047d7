"""Deciding with Bayesian last layers: the wheel bandit, and the minimisation of three functions.

    python -m benchmarks.papers.last_layer_decisions [wheel] [optimise] [--seeds 5] [--rounds 1000] …

* ``wheel`` (Riquelme, Tucker & Snoek 2018): a context uniform in the unit disc, five actions, of which one pays 50
  outside of radius δ. Thompson sampling with last layers of which features and layer are learned together (VBLL,
  t-VBLL), with the exact last layer on features learned by squared error (NeuralLinear), and ε-greedy on the same
  features. The network's input is context and action; every reward is one rank-one update, and features are learned
  anew after 10, 60, 160, 300, 500 and 750 rounds. Cumulative regret in units of the uniform policy's. Priors are in
  units of reward; with ``--standardise`` those of the heads by default, in units of the spread of the first ten
  rewards, which are all about 1: these leave a reward of 50 out.
* ``optimise``: Branin (d = 2), Ackley (d = 5) and Hartmann (d = 6) on the unit cube, 2 d + 6 points to begin with, 30
  to choose, by log expected improvement and by Thompson sampling, features learned anew after every tenth (with
  ``--every 3`` after every third, in rows of their own); beside a Gaussian process (Matérn 5/2, ARD, all
  hyper-parameters at the mode, under weak normal priors of their logs, before each choice, tinygp) with log expected
  improvement, and points at random. All choose the best of 512 quasi-random points and of 16 around the best so far,
  moved up the slope. Simple regret.

Writes ``results/last_layer_decisions.json`` after each run, and goes on where it was stopped.
"""

import argparse
import json
import warnings
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from paramax import non_trainable
from scipy.stats import qmc

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.models import LastLayer
from pushforward.models.last_layer import NormalHead, StudentTHead, log_expected_improvement

FILE = RESULTS / "last_layer_decisions.json"
RADII = (0.5, 0.7, 0.9, 0.95)
RELEARNED = (10, 60, 160, 300, 500, 750)
WIDTH, STEPS = 64, 1500
CHOSEN, EVERY = 30, 10
EPSILON = 0.05


class Features(eqx.Module):
    """A network whose parameters are held, for a last layer on features that are known."""

    net: eqx.nn.MLP

    def __call__(self, x):
        return self.net(x)


def network(size, seed):
    """Two hidden layers of tanh, and as many features."""
    return eqx.nn.MLP(size, WIDTH, WIDTH, 2, jax.nn.tanh, jax.nn.tanh, key=jax.random.key(seed))


def learn(x, y, seed, head, *, squares=False, standardise=True):
    """Features and last layer together, or features by squared error; then the exact posterior of the last layer."""
    net, steps = network(x.shape[1], seed), STEPS
    if squares:
        net, steps = Features(non_trainable(by_squares(net, x, y, seed, standardise))), 1
    target = LastLayer(net, head, x, y, validation=None, standardise=standardise)
    method = pf.VBLL(num_steps=steps, learning_rate=3e-3, weight_decay=1e-4)
    return pf.fit(target, method, key=seed, num_samples=2, progress=False).approximation.refit("dense_precision")


def by_squares(net, x, y, seed, standardise):
    """The network trained with a linear output under squared error of standardised y."""
    whole = eqx.nn.Sequential([net, eqx.nn.Linear(WIDTH, 1, key=jax.random.key(1000 + seed))])
    params, rest = eqx.partition(whole, eqx.is_inexact_array)
    if standardise:
        x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
    rows = jnp.asarray(x, jnp.float32), jnp.asarray((y - y.mean()) / y.std(), jnp.float32)
    return eqx.combine(_descend(params, rest, *rows, jax.random.key(seed)), rest).layers[0]


@eqx.filter_jit
def _descend(params, rest, x, y, key):
    import optax

    optimiser = optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS), weight_decay=1e-4)
    error = lambda p, x, y: jnp.mean((jax.vmap(eqx.combine(p, rest))(x)[:, 0] - y) ** 2)  # noqa: E731

    def step(carry, t):
        params, state = carry
        rows = jax.random.randint(jax.random.fold_in(key, t), (min(len(x), 64),), 0, len(x))
        updates, state = optimiser.update(jax.grad(error)(params, x[rows], y[rows]), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimiser.init(params)), jnp.arange(STEPS))
    return params


# -- the wheel --------------------------------------------------------------------------------------------------------

# As in the reference's NeuralLinear, in units of reward: the noise's variance is inverse gamma (6, 6), and the weights'
# prior precision a quarter of the noise's; of VBLL, whose noise is at its mode, the weights' prior variance is 4.
WHEEL_HEADS = {
    "VBLL": NormalHead(prior_scale=4.0, dof=12.0, scale=12.0),
    "t-VBLL": StudentTHead(prior_scale=4.0, shape=6.0, rate=6.0),
    "NeuralLinear": StudentTHead(prior_scale=4.0, shape=6.0, rate=6.0),
}
STANDARDISED_HEADS = {"VBLL": NormalHead(), "t-VBLL": StudentTHead(), "NeuralLinear": StudentTHead()}
evaluate = jax.jit(lambda path, x: path(x)[0])


def wheel(rng, radius):
    """A context, and the mean reward of each action."""
    context = rng.normal(size=2)
    context *= np.sqrt(rng.uniform()) / np.linalg.norm(context)
    means = np.array([1.0, 1.0, 1.0, 1.0, 1.2])
    if np.linalg.norm(context) > radius:
        means[2 * (context[0] < 0) + (context[1] < 0)] = 50.0
    return context, means


def play(policy, radius, rounds, seed, standardise=False):
    """Regret over the rounds, in units of that of actions at random."""
    rng, regret, x, y = np.random.default_rng([seed, round(100 * radius)]), np.zeros(2), [], []
    name = "NeuralLinear" if policy == "epsilon-greedy" else policy
    head = (STANDARDISED_HEADS if standardise else WHEEL_HEADS)[name]
    for t in range(rounds):
        context, means = wheel(rng, radius)
        rows = np.hstack([np.tile(context, (5, 1)), np.eye(5)])
        if t < 10:
            action = t % 5
        else:
            if t in RELEARNED:
                options = {"squares": name == "NeuralLinear", "standardise": standardise}
                q = learn(np.array(x), np.array(y), 1000 * seed + t, head, **options)
            if policy == "epsilon-greedy":
                values = rng.uniform(size=5) if rng.uniform() < EPSILON else q.uncertainty(rows).mean
            else:
                with jax.enable_x64(True):
                    values = np.asarray(evaluate(q.paths(1, key=t), rows))
            action = int(np.argmax(values))
        reward = means[action] + (0.01 if means[action] == 50 else 0.05) * rng.normal()
        x.append(rows[action])
        y.append(reward)
        if t >= 10:
            q = q.condition(rows[action][None], np.array([reward]))
        regret += (means.max() - means[action], means.max() - means.mean())
    return float(regret[0] / regret[1])


# -- minimisation -----------------------------------------------------------------------------------------------------


def branin(u):
    """Three minima of 0.397887."""
    a, b = 15 * u[..., 0] - 5, 15 * u[..., 1]
    bowl = (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10


def ackley(u):
    """Least, 0, at 0.4 in each coordinate: on [−5, 10]^d the origin is at a third, here moved a little."""
    x = 15 * (u - 0.4)
    wide = -20 * np.exp(-0.2 * np.sqrt(np.mean(x**2, -1)))
    return wide - np.exp(np.mean(np.cos(2 * np.pi * x), -1)) + 20 + np.e


def hartmann(u):
    """Of six dimensions; least −3.32237."""
    weights = np.array([1.0, 1.2, 3.0, 3.2])
    slopes = np.array([
        [10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14],
    ])  # fmt: skip
    centres = 1e-4 * np.array([
        [1312, 1696, 5569, 124, 8283, 5886], [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650], [4047, 8828, 8732, 5743, 1091, 381],
    ])  # fmt: skip
    return -np.sum(weights * np.exp(-np.sum(slopes * (u[..., None, :] - centres) ** 2, -1)), -1)


FUNCTIONS = {"branin": (branin, 2, 0.397887), "ackley": (ackley, 5, 0.0), "hartmann": (hartmann, 6, -3.32237)}


def climb(value, grid):
    """The best of some points, moved up the slope within the cube."""

    def step(i, x):
        slope = jax.grad(lambda x: jnp.sum(value(x)))(x)
        length = jnp.linalg.norm(slope, axis=-1, keepdims=True)
        return jnp.clip(x + 0.03 * 0.9**i * slope / jnp.maximum(length, 1e-12), 0, 1)

    x = grid[jnp.argsort(-value(grid))[:8]]
    x = jax.lax.fori_loop(0, 40, step, x)
    return x[jnp.argmax(value(x))]


@jax.jit
def by_improvement(target, best, grid):
    """Where log expected improvement is largest."""

    def value(x):
        predictive = target.predict(x)
        return log_expected_improvement(-predictive.loc, predictive.scale, -best)

    return climb(value, grid)


@jax.jit
def by_draw(path, grid):
    """Where a draw is least."""
    return climb(lambda x: -path(x)[0], grid)


def process(logs, x, spare):
    """The Gaussian process with these log length scales, log amplitude, log noise; spare rows count for nothing."""
    from tinygp import GaussianProcess, kernels, transforms

    d = x.shape[1]
    kernel = jnp.exp(2 * logs[d]) * transforms.Linear(
        jnp.exp(-logs[:d]), kernels.Matern52(distance=kernels.distance.L2Distance())
    )
    return GaussianProcess(kernel, x, diag=jnp.exp(2 * logs[d + 1]) + 1e-8 + 1e10 * spare)


@jax.jit
@jax.value_and_grad
def minus_evidence(logs, x, y, spare):
    """With weak normal priors of the logs, that keep length scales within the cube's size."""
    d = x.shape[1]
    prior = jnp.sum((logs[:d] - np.log(0.5)) ** 2) / 2 + logs[d] ** 2 / 2 + (logs[d + 1] + 4) ** 2 / 8
    return prior - process(logs, x, spare).log_probability(y)


@jax.jit
def by_process(logs, x, y, spare, grid):
    """Where a Gaussian process has the largest log expected improvement."""

    def value(at):
        found = process(logs, x, spare).condition(y, at).gp
        return log_expected_improvement(-found.mean, jnp.sqrt(jnp.maximum(found.variance, 1e-12)), -jnp.min(y))

    return climb(value, grid)


def choose_by_process(x, y, grid):
    """Hyper-parameters by marginal likelihood from two starts, then the point."""
    from scipy.optimize import minimize

    n, d = x.shape
    room = 2 * d + 6 + CHOSEN  # one shape for all choices, so that one program serves them
    with jax.enable_x64(True):
        spare = np.arange(room) >= n
        rows = np.pad(x, ((0, room - n), (0, 0))), np.pad((y - y.mean()) / y.std(), (0, room - n)), spare
        fun = lambda logs: tuple(np.asarray(a, float) for a in minus_evidence(jnp.asarray(logs), *rows))  # noqa: E731
        starts = [np.append(np.full(d, np.log(length)), [0.0, -4.0]) for length in (0.3, 1.0)]
        found = min((minimize(fun, start, jac=True, method="L-BFGS-B") for start in starts), key=lambda f: f.fun)
        return np.asarray(by_process(jnp.asarray(found.x), *rows, grid))


def minimise(function, policy, seed, every=EVERY):
    """Simple regret after the first points, and after half and all of those chosen."""
    f, d, least = FUNCTIONS[function]
    rng, first = np.random.default_rng(seed), 2 * d + 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numbers of Sobol points that are no power of 2
        x, grid = qmc.Sobol(d, seed=seed).random(first), qmc.Sobol(d, seed=100 + seed).random(512)
    y, q = f(x), None
    for i in range(CHOSEN):
        points = np.vstack([grid, np.clip(x[np.argmin(y)] + 0.02 * rng.normal(size=(16, d)), 0, 1)])
        if policy == "random":
            new = rng.uniform(size=d)
        elif policy == "GP, logEI":
            new = choose_by_process(x, y, points)
        else:
            if i % every == 0:
                unit = y.std()  # so that the noise is the same number each time, with which the program is compiled
                q = learn(x, y / unit, 1000 * seed + i, NormalHead(noise=0.02))
            else:
                q = q.condition(x[-1:], y[-1:] / unit)
            with jax.enable_x64(True):
                if policy == "VBLL, logEI":
                    new = np.asarray(by_improvement(q.without_rows, y.min() / unit, points))
                else:
                    new = np.asarray(by_draw(q.paths(1, key=i), points))
        if np.min(np.linalg.norm(x - new, axis=1)) < 1e-3:  # not the same point again
            new = rng.uniform(size=d)
        x, y = np.vstack([x, new]), np.append(y, f(new))
    return [float(y[:n].min() - least) for n in (first, first + CHOSEN // 2, first + CHOSEN)]


def main():
    """Run what is asked for and is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=["wheel", "optimise", []], default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument(
        "--standardise", action="store_true", help="rewards of the wheel, and the heads' default priors"
    )
    parser.add_argument("--every", type=int, default=EVERY)
    asked = parser.parse_args()
    parts = asked.parts or ["wheel", "optimise"]
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    jobs = []
    if "wheel" in parts:
        policies = ("VBLL", "t-VBLL", "NeuralLinear", "epsilon-greedy")
        which = f"{asked.rounds} rounds" + asked.standardise * ", standardised"
        jobs += [(f"wheel {r}, {which}", p, seed, partial(play, p, r, asked.rounds, seed, asked.standardise))
                 for seed in range(asked.seeds) for r in RADII for p in policies]  # fmt: skip
    if "optimise" in parts:
        names = {p: p for p in ("VBLL, logEI", "VBLL, Thompson", "GP, logEI", "random")}
        if asked.every != EVERY:
            names = {f"{p}, every {asked.every}": p for p in names if p.startswith("VBLL")}
        jobs += [(what, name, seed, partial(minimise, what, p, seed, asked.every))
                 for seed in range(asked.seeds) for what in FUNCTIONS for name, p in names.items()]  # fmt: skip
    for what, policy, seed, run in jobs:
        rows = found.setdefault(what, {}).setdefault(policy, {})
        if str(seed) not in rows:
            rows[str(seed)] = run()
            FILE.write_text(json.dumps(found, indent=1) + "\n")
            print(what, policy, seed, rows[str(seed)], flush=True)
    for what, rows in found.items():
        for policy, values in rows.items():
            a = np.array(list(values.values()))
            print(
                f"{what:>16} {policy:>23}: {np.round(np.median(a, 0), 4)} (mean {np.round(a.mean(0), 4)}, n = {len(a)})"
            )


if __name__ == "__main__":
    main()
