"""Regression with a Bayesian last layer on small tables, against the same network without one, and a linear model.

    python -m benchmarks.papers.last_layer [--uci ../shared/uci] [--seeds 20] [--sets boston wine diabetes digits …]

After Harrison, Willes & Snoek (2024), section 5, with the protocol of a reimplementation: of a permutation
(``RandomState(seed)``) the first 10 % are tested on, the next 18 % decide which state is kept, the rest is learned
from; x and y standardised; a network d–50–50 with leaky ReLU; prior variance 1, ν = ψ = 1 (Gamma(½, ½) where the noise
is inferred), Adam 1e-3, weight decay 1e-4 of the features, gradients clipped at 1, batches of 32, 300 epochs (wine
150, diabetes 200).
NLL and RMSE in units of y; means and standard errors over seeds. MAP is the same network with a linear output under
squared error, its variance that of the validation errors. The linear model is conjugate, its two variances by evidence.

``--uci`` is a folder of the UCI sets with one ``data.csv.gz`` each: Boston and Concrete, whose targets are centred
there (neither NLL nor RMSE sees it), and red wine, of which the quality is learned. Diabetes is scikit-learn's. Writes
``results/last_layer.json``.

``digits``: scikit-learn's digits 0–5 (60 % to learn from, 15 % to decide, 25 % to test; 10 seeds), a network 64–64–64
with ELU, Adam 3e-3, 100 epochs: accuracy, NLL, calibration error in 15 bins, and the area under the ROC curve of the
largest probability, and of the head's own score, for telling test digits from the digits 6–9.
"""

import argparse
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.models import LastLayer
from pushforward.models.last_layer import GenerativeHead, NormalHead, SoftmaxHead, StudentTHead

FILE = RESULTS / "last_layer.json"
EPOCHS = {"boston": 300, "concrete": 300, "wine": 150, "diabetes": 200}
FOLDERS = {"boston": "housing", "concrete": "concrete", "wine": "wine"}
HEADS = {
    "VBLL dense": NormalHead("dense"),
    "VBLL diagonal": NormalHead("diagonal"),
    "t-VBLL dense": StudentTHead("dense"),
}
RATE, DECAY, BATCH = 1e-3, 1e-4, 32
CLASSIFIERS = {
    "Knowles-Minka": SoftmaxHead(num_classes=6),
    "Jensen": SoftmaxHead(bound="jensen", num_classes=6),
    "generative": GenerativeHead(num_classes=6),
}
DIGITS_RATE, DIGITS_EPOCHS, DIGITS_SEEDS = 3e-3, 100, 10


def table(name, uci):
    """x and y."""
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        return load_diabetes(return_X_y=True)
    data = np.loadtxt(Path(uci) / FOLDERS[name] / "data.csv.gz", delimiter=",")
    if name == "wine":  # the last column there is the alcohol; the quality, in steps of one, is the one before
        quality = data[:, -2] / np.diff(np.unique(data[:, -2])).min()
        return np.delete(data, -2, 1), quality
    return data[:, :-1], data[:, -1]


def parts(x, y, seed):
    """Rows to learn from, to decide with, and to test on."""
    order = np.random.RandomState(seed).permutation(len(y))
    a, b = round(0.1 * len(y)), round(0.28 * len(y))
    return [(x[rows], y[rows]) for rows in (order[b:], order[a:b], order[:a])]


def leaky(x):
    return jax.nn.leaky_relu(x, 0.01)


def network(key, size):
    return eqx.nn.MLP(size, 50, 50, 1, activation=leaky, final_activation=leaky, key=key)


def last_layer(head, split, seed, epochs):
    """NLL and RMSE of a last layer."""
    train, held, test = split
    target = LastLayer(network(jax.random.key(seed), train[0].shape[1]), head, *train, validation=held)
    method = pf.VBLL(num_steps=epochs * (len(train[1]) // BATCH), batch_size=BATCH, learning_rate=RATE, patience=None)
    q = pf.fit(target, method, key=seed, num_samples=2, precision=32, progress=False).approximation
    error = q.uncertainty(test[0]).mean - test[1]
    return -float(q.log_score(*test).mean()), float(np.sqrt(np.mean(error**2)))


def square(out, y):
    return jnp.mean((out[:, 0] - y) ** 2)


def cross_entropy(out, y):
    return -jnp.mean(jax.nn.log_softmax(out)[jnp.arange(len(y)), y])


@eqx.filter_jit
def train_map(net, x, y, held, key, steps, loss=square, rate=RATE):
    """The network with the least validation error, and that error."""
    import optax

    per, params = len(y) // BATCH, eqx.filter(net, eqx.is_inexact_array)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=DECAY))
    error = lambda p, x, y: loss(jax.vmap(eqx.combine(p, net))(x), y)  # noqa: E731

    def step(t, carry):
        params, state, order, best, least = carry
        at = t % per
        order = jax.lax.cond(at == 0, lambda: jax.random.permutation(jax.random.fold_in(key, t), order), lambda: order)
        rows = jax.lax.dynamic_slice_in_dim(order, at * BATCH, BATCH)
        updates, state = optimiser.update(jax.grad(error)(params, x[rows], y[rows]), state, params)
        params = optax.apply_updates(params, updates)
        now = jnp.where(at == per - 1, error(params, *held), jnp.inf)
        best = jax.tree.map(lambda new, old: jnp.where(now < least, new, old), params, best)
        return params, state, order, best, jnp.minimum(now, least)

    start = (params, optimiser.init(params), jnp.arange(len(y)), params, jnp.inf)
    *_, best, least = jax.lax.fori_loop(0, steps, step, start)
    return eqx.combine(best, net), least


def map_network(split, seed, epochs):
    """Of the same network with a linear output: means at the test rows and the variance, features of both."""
    (x, y), held, test = split
    loc, scale, mean, sd = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0), y.mean(), y.std()
    scaled = [(jnp.asarray((a - loc) / scale, jnp.float32), jnp.asarray((b - mean) / sd, jnp.float32))
              for a, b in ((x, y), held, test)]  # fmt: skip
    net = eqx.nn.Sequential([
        network(jax.random.key(seed), x.shape[1]), eqx.nn.Linear(50, 1, key=jax.random.key(1000 + seed))
    ])  # fmt: skip
    steps = jnp.asarray(epochs * (len(y) // BATCH))
    net, variance = train_map(net, *scaled[0], scaled[1], jax.random.key(seed), steps)
    found = np.asarray(jax.vmap(net)(scaled[2][0])[:, 0], float)
    features = [np.asarray(jax.vmap(net.layers[0])(scaled[k][0]), float) for k in (0, 2)]
    return mean + sd * found, sd**2 * float(variance), *features


def plain(split, seed, epochs):
    """NLL and RMSE of the same network with a linear output."""
    mean, variance, *_ = map_network(split, seed, epochs)
    error = mean - split[2][1]
    return float(np.mean(0.5 * np.log(2 * np.pi * variance) + 0.5 * error**2 / variance)), rmse(error)


def rmse(error):
    return float(np.sqrt(np.mean(error**2)))


def linear(split):
    """NLL and RMSE of Bayesian linear regression, prior and noise variance by evidence."""
    (x, y), _, (xt, yt) = split
    loc, scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0)
    return evidence_regression((x - loc) / scale, y, (xt - loc) / scale, yt)


def evidence_regression(x, y, xt, yt):
    """NLL and RMSE of conjugate regression on the columns of x and a constant, variances by evidence."""
    from scipy.optimize import minimize

    mean, sd = y.mean(), y.std()
    phi, target = np.c_[x, np.ones(len(x))], (y - mean) / sd
    values, basis = np.linalg.eigh(phi.T @ phi)
    values = np.maximum(values, 0)
    image = basis.T @ phi.T @ target

    def minus_evidence(logs):
        s, noise = np.exp(logs)
        p = 1 / s + values / noise
        square = target @ target / noise - image**2 / noise**2 @ (1 / p)
        return 0.5 * (len(y) * np.log(2 * np.pi * noise) + np.sum(np.log(p * s)) + square)

    s, noise = np.exp(minimize(minus_evidence, np.log([0.1, 0.5]), method="Nelder-Mead").x)
    p = 1 / s + values / noise
    at = np.c_[xt, np.ones(len(xt))] @ basis
    error = mean + sd * at @ (image / noise / p) - yt
    variance = sd**2 * (at**2 @ (1 / p) + noise)
    return float(np.mean(0.5 * np.log(2 * np.pi * variance) + 0.5 * error**2 / variance)), rmse(error)


def digits():
    """For each classifier, accuracy, NLL, calibration error and areas under the ROC curve of each seed."""
    from sklearn.datasets import load_digits
    from sklearn.metrics import roc_auc_score

    x, y = load_digits(return_X_y=True)
    x, other = (x / 16)[y < 6], (x / 16)[y >= 6]
    y = y[y < 6]
    found = {name: [] for name in ("MAP", *CLASSIFIERS)}
    for seed in range(DIGITS_SEEDS):
        order = np.random.RandomState(seed).permutation(len(y))
        a, b = round(0.6 * len(y)), round(0.75 * len(y))
        train, held, test = ((x[rows], y[rows]) for rows in (order[:a], order[a:b], order[b:]))
        body = eqx.nn.MLP(64, 64, 64, 1, jax.nn.elu, jax.nn.elu, key=jax.random.key(seed))
        steps = DIGITS_EPOCHS * (len(train[1]) // BATCH)
        for name in found:
            if name == "MAP":
                net = eqx.nn.Sequential([body, eqx.nn.Linear(64, 6, key=jax.random.key(1000 + seed))])
                scaled = [(jnp.asarray(u, jnp.float32), jnp.asarray(v)) for u, v in (train, held)]
                key = jax.random.key(seed)
                net, _ = train_map(net, *scaled[0], scaled[1], key, jnp.asarray(steps), cross_entropy, DIGITS_RATE)
                inside, outside = (np.asarray(jax.nn.softmax(jax.vmap(net)(jnp.asarray(u)))) for u in (test[0], other))
                scores = inside.max(1), outside.max(1)
            else:
                target = LastLayer(body, CLASSIFIERS[name], *train, validation=held, standardise=False)
                method = pf.VBLL(num_steps=steps, batch_size=BATCH, learning_rate=DIGITS_RATE, patience=None)
                q = pf.fit(target, method, key=seed, num_samples=2, precision=32, progress=False).approximation
                inside, outside = (np.asarray(q.predict(u).probs) for u in (test[0], other))
                scores = q.ood_score(test[0]), q.ood_score(other)
            right = inside.argmax(1) == test[1]
            bins = np.minimum((inside.max(1) * 15).astype(int), 14)
            gaps = [abs(np.mean(right[bins == k]) - inside.max(1)[bins == k].mean()) * np.mean(bins == k)
                    for k in range(15) if np.any(bins == k)]  # fmt: skip
            labels = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
            areas = [roc_auc_score(labels, np.r_[p, q]) for p, q in ((inside.max(1), outside.max(1)), scores)]
            nll = -np.mean(np.log(inside[np.arange(len(right)), test[1]]))
            found[name].append([100 * right.mean(), nll, sum(gaps), *areas])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uci", default="../shared/uci")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sets", nargs="+", default=[*EPOCHS, "digits"], choices=[*EPOCHS, "digits"])
    parser.add_argument("--methods", nargs="+", help="only these rows of the tables of regression")
    given = parser.parse_args()
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in given.sets:
        if name == "digits":
            for method, scores in digits().items():
                mean, error = np.mean(scores, 0), np.std(scores, 0, ddof=1) / np.sqrt(len(scores))
                names = ("accuracy", "nll", "calibration", "area", "own area")
                found.setdefault(name, {})[method] = {
                    k: [float(m), float(e)] for k, m, e in zip(names, mean, error, strict=True)
                }
                print(name, method, found[name][method], flush=True)
            FILE.write_text(json.dumps(found, indent=1) + "\n")
            continue
        x, y = table(name, given.uci)
        splits = [parts(x, y, seed) for seed in range(given.seeds)]
        runs = {
            **{k: lambda s, i, h=h, n=EPOCHS[name]: last_layer(h, s, i, n) for k, h in HEADS.items()},
            "MAP": lambda s, i, n=EPOCHS[name]: plain(s, i, n),
            "linear": lambda s, i: linear(s),
        }
        for method, run in runs.items():
            if given.methods and method not in given.methods:
                continue
            begun = time.perf_counter()
            scores = np.array([run(split, seed) for seed, split in enumerate(splits)])
            errors = scores.std(0, ddof=1) / np.sqrt(len(scores))
            found.setdefault(name, {})[method] = {
                "nll": [float(scores[:, 0].mean()), float(errors[0])],
                "rmse": [float(scores[:, 1].mean()), float(errors[1])],
                "seeds": len(scores),
                "seconds": time.perf_counter() - begun,
            }
            print(name, method, found[name][method], flush=True)
            FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
