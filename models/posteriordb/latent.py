"""NumPyro models of posteriordb with latent structure: Gaussian processes and a mixture.

Eight schools, the hierarchical one, is shipped with its data: see `pushforward.models.classics`.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


class Restricted(dist.Distribution):
    """A distribution of vectors restricted to a subset of its support, unnormalised, as in Stan.

    Its log density on the subset is that of ``base``: the constant log P(subset) is left out, which no posterior
    notices (an evidence is off by it). Sampling rejects until a draw falls into the subset.

    Parameters
    ----------
    base
        Distribution over vectors (event dimension 1).
    support
        NumPyro constraint on vectors that has a bijection, e.g. ``constraints.ordered_vector``.
    """

    pytree_data_fields = ("base",)
    pytree_aux_fields = ("_support",)

    def __init__(self, base, support, *, validate_args=None):
        self.base, self._support = base, support
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self):
        """The subset."""
        return self._support

    def log_prob(self, value):
        """Log density of ``base`` at ``value``."""
        return self.base.log_prob(value)

    def sample(self, key, sample_shape=()):
        """Draws of shape ``sample_shape + batch_shape + event_shape``, by rejection."""

        def again(carry):
            key, value = carry
            key, now = jax.random.split(key)
            new = self.base.sample(now, sample_shape)
            return key, jnp.where(self.support(value)[..., None], value, new)

        start = key, jnp.full(sample_shape + self.base.batch_shape + self.base.event_shape, jnp.nan)
        return jax.lax.while_loop(lambda carry: ~jnp.all(self.support(carry[1])), again, start)[1]


def squared_exponential(x, alpha, rho):
    """K_ij = alpha² exp(-(x_i - x_j)² / (2 rho²)), of shape (N, N)."""
    x = jnp.asarray(x)
    return alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x[None, :]) / rho) ** 2)


def jitter(dtype, alpha):
    """Stan's 1e-10 in 64 bits; in 32 bits, where it would be lost in rounding, as much of alpha² as is not."""
    eps = float(jnp.finfo(dtype).eps)
    return 1e-10 if eps < 1e-12 else 100.0 * eps * alpha**2


def gp_regr(x, y=None):
    """Gaussian process with a squared exponential kernel; sigma is added to its diagonal as a *variance*."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    covariance = squared_exponential(x, alpha, rho) + sigma * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(0.0, covariance_matrix=covariance), obs=y)


def gp_pois_regr(x, k=None):
    """Poisson counts with a Gaussian process as log rate, non-centred: f = L z, L = chol(K + 1e-10 I)."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([x.shape[0]]).to_event(1))
    covariance = squared_exponential(x, alpha, rho)
    root = jnp.linalg.cholesky(covariance + jitter(covariance.dtype, alpha) * jnp.eye(x.shape[0]))
    f = numpyro.deterministic("f", root @ z)
    with numpyro.plate("observation", x.shape[0]):
        numpyro.sample("k", dist.Poisson(jnp.exp(f)), obs=k)


def low_dim_gauss_mix(y=None, N=1000):
    """Mixture of two Gaussians with ordered means: ``y ~ theta N(mu1, sigma1) + (1 - theta) N(mu2, sigma2)``."""
    mu = numpyro.sample("mu", Restricted(dist.Normal(0.0, 2.0).expand([2]).to_event(1), constraints.ordered_vector))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1.0 - theta]))
    with numpyro.plate("observation", N if y is None else y.shape[0]):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)
