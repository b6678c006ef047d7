"""Bayesian last layers on five UCI tables, ten fixed splits each, beside what else one would try.

    python -m benchmarks.papers.last_layer_uci [--uci ../shared/uci] [--sets yacht housing energy concrete wine]

The rows of Harrison, Willes & Snoek (2024), table 1, whose own splits and networks are not given. ``--uci`` is a folder
of the UCI sets with one ``data.csv.gz`` (the target last; of ``wine`` that is the alcohol, not the quality) and one
``test_mask.csv.gz`` (one column per split, true of test rows) each. Network, training and priors are those of
`benchmarks.papers.last_layer`, 300 epochs (wine 150); a fifth of the rows that are not tested on decides which state is
kept. x and y are standardised; NLL and RMSE are in units of y, means and standard errors over the ten splits.

- MAP: the same network with a linear output under squared error; its variance is that of the validation errors.
- ensemble: five such networks, as a mixture of normals.
- exact: the conjugate posterior of the last layer on MAP's features, prior and noise variance by evidence.
- GP: one length scale, amplitude and noise by marginal likelihood; it has the rows that decide too.
- linear: conjugate linear regression, both variances by evidence.

Writes ``results/last_layer_uci.json`` after each split of each method of each set, (NLL, RMSE) of each split as
``scores``, and goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from benchmarks.papers.last_layer import BATCH, HEADS, evidence_regression, last_layer, linear, map_network, rmse
from benchmarks.papers.where import RESULTS

FILE = RESULTS / "last_layer_uci.json"
EPOCHS = {"yacht": 300, "housing": 300, "energy": 300, "concrete": 300, "wine": 150}
MEMBERS = 5


def splits(folder):
    """Rows to learn from, to decide with, and to test on, of each split."""
    data = np.loadtxt(folder / "data.csv.gz", delimiter=",")
    mask = np.loadtxt(folder / "test_mask.csv.gz", delimiter=",", dtype=str)
    found = []
    for i in range(mask.shape[1]):
        test = np.isin(mask[:, i], ("True", "true", "1", "1.0"))
        order = np.random.RandomState(i).permutation(np.flatnonzero(~test))
        held = round(0.2 * len(order))
        rows = order[held:], order[:held], np.flatnonzero(test)
        found.append([(data[r, :-1], data[r, -1]) for r in rows])
    return found


def normal(mean, variance, y):
    """NLL and RMSE of a normal predictive."""
    error = mean - y
    return float(np.mean(0.5 * np.log(2 * np.pi * variance) + 0.5 * error**2 / variance)), rmse(error)


def ensemble(split, seed, epochs):
    """NLL and RMSE of a mixture of MAP networks."""
    found = [map_network(split, 100 * seed + k, epochs) for k in range(MEMBERS)]
    y = split[2][1]
    logs = [-0.5 * np.log(2 * np.pi * v) - 0.5 * (mean - y) ** 2 / v for mean, v, *_ in found]
    nll = -np.mean(np.logaddexp.reduce(logs, 0) - np.log(MEMBERS))
    return float(nll), rmse(np.mean([mean for mean, *_ in found], 0) - y)


def exact(split, seed, epochs):
    """NLL and RMSE of conjugate regression on MAP's features."""
    (_, y), _, (_, yt) = split
    *_, phi, phi_test = map_network(split, seed, epochs)
    return evidence_regression(phi, y, phi_test, yt)


def gp(split):
    """NLL and RMSE of a Gaussian process with an isotropic kernel."""
    from scipy.linalg import cho_factor, cho_solve
    from scipy.optimize import minimize
    from scipy.spatial.distance import cdist

    x, y = (np.concatenate([split[0][i], split[1][i]]) for i in (0, 1))
    xt, yt = split[2]
    loc, scale, mean, sd = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0), y.mean(), y.std()
    x, xt, target = (x - loc) / scale, (xt - loc) / scale, (y - mean) / sd
    squares = cdist(x, x, "sqeuclidean")
    diagonal = np.arange(len(y))

    def minus_evidence(logs):
        length, amplitude, noise = np.exp(2 * logs)
        kernel = amplitude * np.exp(-0.5 * squares / length)
        slope = kernel * squares / length  # by log length
        matrix = kernel.copy()
        matrix[diagonal, diagonal] += noise + 1e-8
        factor = cho_factor(matrix, lower=True)
        weights, inverse = cho_solve(factor, target), cho_solve(factor, np.eye(len(y)))
        outer = inverse - np.outer(weights, weights)
        gradient = [0.5 * np.sum(outer * slope), np.sum(outer * kernel), noise * np.trace(outer)]
        return (
            0.5 * target @ weights + np.sum(np.log(np.diag(factor[0]))) + 0.5 * len(y) * np.log(2 * np.pi),
            np.array(gradient),
        )

    start = np.array([0.5 * np.log(x.shape[1]), 0.0, np.log(0.3)])
    bounds = [(-3, 5), (-3, 5), (-6, 1)]
    best = minimize(minus_evidence, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50}).x
    length, amplitude, noise = np.exp(2 * best)
    kernel = amplitude * np.exp(-0.5 * squares / length)
    kernel[diagonal, diagonal] += noise + 1e-8
    factor = cho_factor(kernel, lower=True)
    cross = amplitude * np.exp(-0.5 * cdist(xt, x, "sqeuclidean") / length)
    variance = amplitude + noise - np.sum(cross * cho_solve(factor, cross.T).T, 1)
    return normal(mean + sd * cross @ cho_solve(factor, target), sd**2 * variance, yt)


def alone(split, seed, epochs):
    """NLL and RMSE of one MAP network."""
    mean, variance, *_ = map_network(split, seed, epochs)
    return normal(mean, variance, split[2][1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uci", default="../shared/uci")
    parser.add_argument("--sets", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    given = parser.parse_args()
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in given.sets:
        rows, epochs = splits(Path(given.uci) / name), EPOCHS[name]
        assert len(rows[0][0][1]) >= BATCH
        runs = {
            **{k: lambda s, i, h=h, n=epochs: last_layer(h, s, i, n) for k, h in HEADS.items()},
            "MAP": lambda s, i, n=epochs: alone(s, i, n),
            "ensemble of 5": lambda s, i, n=epochs: ensemble(s, i, n),
            "exact last layer": lambda s, i, n=epochs: exact(s, i, n),
            "GP": lambda s, i: gp(s),
            "linear": lambda s, i: linear(s),
        }
        for method, run in runs.items():
            row = found.setdefault(name, {}).setdefault(method, {"scores": []})
            for seed in range(len(row["scores"]), len(rows)):
                row["scores"].append(run(rows[seed], seed))
                for k, values in zip(("nll", "rmse"), np.transpose(row["scores"]), strict=True):
                    error = np.std(values, ddof=1) / np.sqrt(len(values)) if seed else np.nan
                    row[k] = [float(np.mean(values)), float(error)]
                if seed:
                    FILE.write_text(json.dumps(found, indent=1) + "\n")
            print(name, method, {k: row[k] for k in ("nll", "rmse")}, flush=True)
        jax.clear_caches()


if __name__ == "__main__":
    main()
