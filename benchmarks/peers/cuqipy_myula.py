"""CUQIpy's MYULA on a sparse logistic regression; run with the Python of an environment that has ``cuqipy`` (1.5).

``python cuqipy_myula.py DATA.npz OUT.npz``; the data have ``x``, ``y``, ``weight``, ``draws``, ``warmup``, ``chains``.
λ = 1/L with L the curvature of the smooth part, γ = 1/(2 (L + 1/λ)), within the range that its authors advise; its
``scale`` is 2γ.
"""

import sys
import time

import numpy as np
from cuqi.distribution import Posterior
from cuqi.geometry import Continuous1D
from cuqi.implicitprior import RestorationPrior
from cuqi.likelihood import UserDefinedLikelihood
from cuqi.sampler import MYULA


def main(given: str, written: str) -> None:
    data = np.load(given)
    x, y, weight = data["x"], data["y"], float(data["weight"])
    d = x.shape[1]

    def log_likelihood(b):
        z = x @ b
        return float(y @ z - np.logaddexp(0.0, z).sum())

    def gradient(b):
        return x.T @ (y - 1 / (1 + np.exp(-(x @ b))))

    def prox(b, restoration_strength):
        return np.sign(b) * np.maximum(np.abs(b) - weight * restoration_strength, 0.0), None

    curvature = 0.25 * np.linalg.norm(x, 2) ** 2
    smoothing = 1 / curvature
    step = 0.5 / (curvature + 1 / smoothing)
    draws, seconds = [], 0.0
    for chain in range(int(data["chains"])):
        np.random.seed(chain)  # noqa: NPY002  CUQIpy draws from it
        likelihood = UserDefinedLikelihood(d, log_likelihood, gradient, geometry=Continuous1D(d), name="b")
        posterior = Posterior(likelihood, RestorationPrior(prox, geometry=Continuous1D(d), name="b"))
        sampler = MYULA(posterior, scale=2 * step, smoothing_strength=smoothing, initial_point=np.zeros(d))
        begun = time.process_time()
        sampler.sample(int(data["warmup"]) + int(data["draws"]))
        seconds += time.process_time() - begun
        draws.append(sampler.get_samples().samples.T[-int(data["draws"]) :])
    np.savez(written, draws=np.stack(draws), seconds=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
