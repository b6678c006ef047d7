"""`DoubleKL` on simulated latent processes: accuracy with true and with learned hyper-parameters, and seconds.

The first setting of Cao et al. (2023): inputs uniform on [0, 1]^5, Matérn-3/2 with length scales .25 (.25) 1.25,
variance 1, nugget 1e-4; responses normal with variance .01, or binary through the logistic function. Scores are those
of f without noise, as in the paper: RMSE, and NLL without ½ log 2π, at the data and at new inputs (32 neighbours).

``python -m benchmarks.gaussian_process [--n 2000] [--new 500] [--seeds 1] [--rho 1.5 2] [--learn]`` prints a line of
JSON per run. Seconds are those of the whole fit: ordering, compilation and all.
"""

import argparse
import json
import time

import numpy as np

import pushforward as pf
from pushforward.models.gaussian_process import kernels, likelihoods

SCALES = 0.25 * np.arange(1, 6)
NOISE = 0.01


def simulate(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Inputs, the process, and the responses by name."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, 5))
    z = x / SCALES
    square = (z**2).sum(1)
    r = np.sqrt(3 * np.maximum(square[:, None] + square - 2 * z @ z.T, 0.0))
    f = np.linalg.cholesky((1 + r) * np.exp(-r) + 1e-4 * np.eye(n)) @ rng.normal(size=n)
    binary = (rng.uniform(size=n) < 1 / (1 + np.exp(-f))).astype(float)
    return x, f, {"gaussian": f + np.sqrt(NOISE) * rng.normal(size=n), "logit": binary}


def score(mean: np.ndarray, variance: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """RMSE, and NLL without ½ log 2π."""
    error = (mean - truth) ** 2
    nll = 0.5 * np.mean(np.log(variance) + error / variance)
    return round(float(np.sqrt(error.mean())), 4), round(float(nll), 4)


def one(n: int, new: int, seed: int, rho: float, response: str, *, learn: bool) -> dict:
    """A fit and its scores."""
    x, f, responses = simulate(n + new, seed)
    y = responses[response][:n]
    if learn:
        kernel, noise = kernels.Matern32(np.full(5, 0.25), 0.5), likelihoods.Gaussian(0.25)
    else:
        kernel, noise = kernels.Matern32(SCALES, 1.0), likelihoods.Gaussian(NOISE)
    likelihood = noise if response == "gaussian" else likelihoods.BernoulliLogit()
    gp = pf.models.LatentGP(kernel, likelihood, x[:n], y, nugget=1e-4)
    begun = time.perf_counter()
    posterior = pf.fit(gp, pf.DoubleKL(rho=rho, learn=learn), key=seed, num_samples=10, progress=False)
    seconds = time.perf_counter() - begun
    q = posterior.approximation
    begun = time.perf_counter()
    found = q.predict(x[n:])
    return {
        "n": n, "seed": seed, "rho": rho, "response": response, "learned": learn,
        "in_rmse_nll": score(np.asarray(q.loc), np.asarray(q.variance), f[:n]),
        "out_rmse_nll": score(found.mean, found.variance, f[n:]),
        "elbo": round(float(q.elbo), 2), "fit_seconds": round(seconds, 1),
        "predict_seconds": round(time.perf_counter() - begun, 1),
        "parameters": {k: np.round(np.asarray(v), 4).tolist() for k, v in q.gp.parameters().items()},
    }  # fmt: skip


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--new", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rho", type=float, nargs="+", default=[1.5, 2.0])
    parser.add_argument("--response", nargs="+", default=["gaussian", "logit"])
    parser.add_argument("--learn", action="store_true")
    asked = parser.parse_args()
    for seed in range(asked.seeds):
        for rho in asked.rho:
            for response in asked.response:
                print(json.dumps(one(asked.n, asked.new, seed, rho, response, learn=asked.learn)), flush=True)


if __name__ == "__main__":
    main()
