"""Targets of the MixFlow papers, as in the authors' code, with the references and bounds stored in their files.

All synthetic targets are normalised; the code of the warped normal adds log r by mistake, which is left out here, so
that log Z = 0 everywhere. Stored bounds are of the first paper's map (Laplace momentum, stream shifts).
"""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

LOG_2PI = float(np.log(2 * np.pi))


def normal(x, mean, sd):
    """Log density of N(mean, sd²), elementwise."""
    return -0.5 * ((x - mean) / sd) ** 2 - jnp.log(sd) - 0.5 * LOG_2PI


def cross(x, data):
    means, sds = data
    return jax.nn.logsumexp(jnp.sum(normal(x, means, sds), -1)) - jnp.log(4.0)


def banana(x, data):
    return normal(x[0], 0.0, 10.0) + normal(x[1] + 10.0, 0.1 * x[0] ** 2, 1.0)


def funnel(x, data):
    """x₁ ~ N(9, 36), x_j | x₁ ~ N(0, exp(x₁ / 2))."""
    return normal(x[0], 9.0, 6.0) + jnp.sum(normal(x[1:], 0.0, jnp.exp(0.25 * x[0])))


def warped(x, data):
    r2 = jnp.sum(x**2) + 1e-30
    turned = jnp.arctan2(x[1], x[0]) + 0.5 * jnp.sqrt(r2)
    r = jnp.sqrt(r2)
    return normal(r * jnp.cos(turned), 0.0, 1.0) + normal(r * jnp.sin(turned), 0.0, 0.12)


def wide(x, data):
    return normal(x[0], 2.0, 2.0)


def mixture(x, data):
    weights, means, sds = data
    return jax.nn.logsumexp(jnp.log(weights) + normal(x[0], means, sds))


def cauchy(x, data):
    return -jnp.log(jnp.pi) - jnp.log1p(x[0] ** 2)


def linear_regression(z, data):
    """Coefficients and log variance z ~ N(0, I), y ~ N(X β, e^s), an intercept among the columns of X."""
    x, y = data
    beta, s = z[:-1], z[-1]
    return jnp.sum(normal(z, 0.0, 1.0)) + jnp.sum(normal(y, x @ beta, jnp.exp(0.5 * s)))


CROSS = (
    np.array([[0.0, 2.0], [-2.0, 0.0], [2.0, 0.0], [0.0, -2.0]]),
    np.array([[0.15, 1.0], [1.0, 0.15], [1.0, 0.15], [0.15, 1.0]]),
)
MIXTURE = (np.array([0.3, 0.5, 0.2]), np.array([0.0, -3.0, 3.0]), np.array([0.8, 1.5, 0.8]))
UNIT = ([0.0], [1.0])

# Density, data, dimension; stored reference (mean, sd; None: fitted here); the paper's (L, step size); stored bounds by
# length (None: none that is consistent); and the largest stored one, with its length and L.
SYNTHETIC = {
    "cross": {
        "density": (cross, CROSS, 2),
        "reference": ([0.014, -0.032], [0.161, 1.991]),
        "paper": (60, 0.0035),
        "stored": {100: -0.512, 200: -0.422, 500: -0.279, 1000: -0.192, 1500: -0.156, 2000: -0.148},
        "best": (-0.148, 2000, 60),
    },
    "banana": {
        "density": (banana, None, 2),
        "reference": ([-0.006, -9.533], [2.208, 1.003]),
        "paper": (50, 0.013),
        "stored": {100: -0.871, 200: -0.715, 500: -0.525, 1000: -0.431, 1500: -0.379, 2000: -0.343},
        "best": (-0.343, 2000, 50),
    },
    "funnel 2": {
        "density": (funnel, None, 2),
        "reference": ([8.351, -0.053], [2.623, 5.138]),
        "paper": (80, 0.01),
        "stored": {100: -0.575, 200: -0.491, 500: -0.420, 1000: -0.309, 1500: -0.382, 2000: -0.463},
        "best": (-0.309, 1000, 80),
    },
    "funnel 5": {
        "density": (funnel, None, 5),
        "reference": None,
        "paper": (80, 0.009),
        "stored": {1000: -0.87},
        "best": (-0.87, 1000, 80),
    },
    "funnel 20": {
        "density": (funnel, None, 20),
        "reference": None,
        "paper": (100, 0.01),
        "stored": {100: -1.68},
        "best": (-1.66, 1000, 100),
    },
    "warped": {
        "density": (warped, None, 2),
        "reference": ([-1.066, 1.095], [0.096, 0.369]),
        "paper": (80, 0.0023),
        "stored": None,
        "best": None,
    },
    "normal": {"density": (wide, None, 1), "reference": UNIT, "paper": (50, 0.05), "stored": None, "best": None},
    "mixture": {"density": (mixture, MIXTURE, 1), "reference": UNIT, "paper": (50, 0.05), "stored": None, "best": None},
    "cauchy": {"density": (cauchy, None, 1), "reference": UNIT, "paper": (50, 0.05), "stored": None, "best": None},
}

# The paper's (L, step size) and stored bound, mean field and MixFlow.
BOSTON = {"paper": (30, 5e-4, 1500), "stored": {"mean field": -434.1, "MixFlow": -429.91, "RealNVP": -429.43}}


def boston(folder: str | Path):
    """Columns and response, standardised, with an intercept; ``folder`` has ``housing/data.csv.gz``."""
    with gzip.open(Path(folder) / "housing" / "data.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    table = (table - table.mean(0)) / table.std(0, ddof=1)
    return np.column_stack([np.ones(len(table)), table[:, :-1]]), table[:, -1]
