"""Small targets that the tests of the driver share; importable by child processes."""

import numpy as np
import numpyro
import numpyro.distributions as dist

import pushforward as pf

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools(y=Y):
    return pf.Target.from_numpyro(eight_schools, SIGMA, y=y)


COVARIANCE = np.array([[4.0, 1.5, 0.0], [1.5, 1.0, 0.2], [0.0, 0.2, 0.25]])
MEAN = np.array([1.0, -2.0, 0.5])


def gaussian_log_density(x, data):
    import jax.numpy as jnp
    from jax.scipy.linalg import solve_triangular

    mean, factor = data
    return -0.5 * jnp.sum(solve_triangular(factor, x - mean, lower=True) ** 2)


def gaussian():
    return pf.Target.from_log_density(gaussian_log_density, np.zeros(3), data=(MEAN, np.linalg.cholesky(COVARIANCE)))
