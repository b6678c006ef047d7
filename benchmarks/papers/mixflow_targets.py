"""Targets of the MixFlow papers, as in the authors' code, with the references and bounds stored in their files.

All synthetic targets are normalised; the code of the warped normal adds log r by mistake, which is left out here, so
that log Z = 0 everywhere. Stored bounds are of the first paper's map (Laplace momentum, stream shifts).

The densities of the regressions are those of the authors' code, with its constants, since the stored bounds are of
them: one π too many in the Cauchy prior of ``crime``, 100 rows in the normaliser of the 50 of ``superconductivity``,
constants left out of ``airports``, ``bank`` and ``creatinine``. Data are read from a clone of the authors' code,
``git clone https://github.com/zuhengxu/Ergodic-variational-flow-code``; nothing of it is here.
"""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

LOG_2PI, LOG_2, LOG_PI = (float(np.log(x)) for x in (2 * np.pi, 2.0, np.pi))


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


def student(z, data):
    """Coefficients z ~ Cauchy(0, 1), residuals ~ t₅, whose constants are left out."""
    x, y = data
    return -jnp.sum(jnp.log1p(z**2)) - z.size * LOG_PI - 3.0 * jnp.sum(jnp.log(5.0 + (y - x @ z) ** 2))


def heavy(z, data):
    """Log variance s ~ N(0, 1), coefficients ~ Cauchy(0, 1), y ~ N(X β, e^s)."""
    x, y = data
    s, beta = z[0], z[1:]
    prior = normal(s, 0.0, 1.0) - jnp.sum(jnp.log1p(beta**2)) - z.size * LOG_PI
    return prior + jnp.sum(normal(y, x @ beta, jnp.exp(0.5 * s)))


def sparse(z, data):
    """Log variance s ~ N(0, 1), coefficients ~ ½ N(0, 0.1²) + ½ N(0, 10²), y ~ N(X β, e^s); normalised for n rows."""
    x, y, n = data
    s, beta = z[0], z[1:]
    prior = normal(s, 0.0, 1.0) + jnp.sum(jnp.logaddexp(normal(beta, 0.0, 0.1), normal(beta, 0.0, 10.0)) - LOG_2)
    return prior - 0.5 * jnp.exp(-s) * jnp.sum((y - x @ beta) ** 2) - 0.5 * n * (LOG_2PI + s)


def logistic(z, data):
    """Log precision τ of a Gamma(1, 0.01), weights ~ N(0, e^−τ), of which constants are left out."""
    x, y = data
    tau, w = z[0], z[1:]
    prior = tau - 0.01 * jnp.exp(tau) + 0.5 * w.size * tau - 0.5 * jnp.exp(tau) * jnp.sum(w**2)
    return prior + jnp.sum(y * (x @ w) - jax.nn.softplus(x @ w))


def poisson(z, data):
    """Coefficients z ~ N(0, I), rates log(1 + e^{X z}), without the log y! of the likelihood."""
    x, y = data
    rate = jax.nn.softplus(x @ z)
    return jnp.sum(normal(z, 0.0, 1.0)) + jnp.sum(y * jnp.log(rate) - rate)


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


def standardised(x):
    return (x - x.mean(0)) / x.std(0, ddof=1)


def with_intercept(x):
    return np.column_stack([np.ones(len(x)), x])


def creatinine(folder):
    """28 patients: clearance by the logarithms of weight, serum creatinine and 140 less age."""
    table = np.loadtxt(folder / "heavy_reg" / "data" / "creatinine.csv", delimiter=",", skiprows=1)
    table[:, 2] = 140.0 - table[:, 2]
    return with_intercept(standardised(np.log(table[:, :-1]))), standardised(table[:, -1])


def prostate(folder):
    """97 patients: log PSA, as it is, by eight covariates."""
    with open(folder / "sparse_regression" / "data" / "pros_dat.txt", encoding="utf-8") as file:
        table = np.array([line.split()[1:] for line in file.readlines()[1:] if line.strip()], float)
    return with_intercept(standardised(table[:, :-1])), table[:, -1], float(len(table))


def bank(folder):
    """200 rows of each answer by eight covariates, standardised again as the authors do."""
    path = folder / "logistic_reg" / "data" / "final_dat.csv"
    table = np.loadtxt(path, delimiter=",", skiprows=1, quotechar='"')[:, 1:]
    return standardised(table[:, :-1]), table[:, -1]


def airports(folder):
    """500 counts by fifteen covariates, whitened without being centred."""
    stored = np.load(folder / "poiss" / "data" / "airportdelays.npz")
    x = np.asarray(stored["X"], float)[:, :-1]
    factor = np.linalg.cholesky(np.cov(x, rowvar=False) + 1e-8 * np.eye(x.shape[1]))
    return with_intercept(np.linalg.solve(factor, x.T).T), np.asarray(stored["y"], float)


def crime(folder):
    """319 communities by fifty principal components."""
    table = np.loadtxt(folder / "lin_reg_heavy" / "data" / "communities_pca.csv", delimiter=",")
    return with_intercept(table[:, :-1]), table[:, -1]


def superconductivity(folder):
    """50 rows of 81 covariates; the normaliser has the 100 of the file."""
    table = np.loadtxt(folder / "sp_reg_big" / "data" / "super_st.csv", delimiter=",")
    return with_intercept(table[:50, :-1]), table[:50, -1], float(len(table))


# Density, reader of the folder ``example`` of the clone, dimension; the paper's (L, step size, N) and stored bounds.
REGRESSIONS = {
    "creatinine": {
        "density": (student, creatinine, 4),
        "paper": (80, 8e-4, 2000),
        "stored": {"mean field": -145.54, "MixFlow": -145.410, "RealNVP": -145.52},
    },
    "prostate": {
        "density": (sparse, prostate, 10),
        "paper": (30, 1.1e-3, 600),
        "stored": {"mean field": -126.73, "MixFlow": -125.88, "RealNVP": -126.33},
    },
    "bank": {
        "density": (logistic, bank, 9),
        "paper": (50, 2e-3, 200),
        "stored": {"mean field": -251.19, "MixFlow": -250.44, "RealNVP": -250.76},
    },
    "airports": {
        "density": (poisson, airports, 16),
        "paper": (50, 8e-5, 2000),
        "stored": {"mean field": 82571.3, "MixFlow": 82576.4, "RealNVP": 82580.8},
    },
    "crime": {
        "density": (heavy, crime, 52),
        "paper": (50, 2.5e-5, 2500),
        "stored": {"mean field": 111.8, "MixFlow": 117.16, "RealNVP": 116.47},
    },
    "superconductivity": {
        "density": (sparse, superconductivity, 83),
        "paper": (50, 1.2e-3, 2000),
        "stored": {"mean field": -544.8, "MixFlow": -537.8, "RealNVP": -531.7},
    },
}
