"""NumPyro models of posteriordb's linear regressions.

Where Stan's models have a ``transformed data`` block, the transformation is made once, on the host, by the functions of
`catalogue`; the models take its result. A single matrix-vector product gives the mean of the larger ones: 2 N K
multiply-adds for a gradient (forward and transposed), and one pass over N for the density.
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints


def flat(name, support=constraints.real, shape=()):
    """Sample site with a density of 1 on ``support``: a scalar, or a vector of ``shape`` (real or positive)."""
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def observe(name, mean, sigma, obs):
    """Observed site ``obs ~ N(mean, sigma)``, in a plate ``observation``."""
    with numpyro.plate("observation", mean.shape[0]):
        numpyro.sample(name, dist.Normal(mean, sigma), obs=obs)


def kidscore_momiq(mom_iq, kid_score=None):
    """``kid_score ~ N(beta1 + beta2 mom_iq, sigma)``, beta flat, sigma ~ Cauchy(0, 2.5) on the positive half."""
    beta = flat("beta", shape=(2,))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    observe("kid_score", beta[0] + beta[1] * mom_iq, sigma, kid_score)


def kidscore_momhs(mom_hs, kid_score=None):
    """``kid_score ~ N(beta1 + beta2 mom_hs, sigma)``, beta flat, sigma ~ Cauchy(0, 2.5) on the positive half."""
    beta = flat("beta", shape=(2,))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    observe("kid_score", beta[0] + beta[1] * mom_hs, sigma, kid_score)


def kidscore_momhsiq(mom_hs, mom_iq, kid_score=None):
    """``kid_score ~ N(beta1 + beta2 mom_hs + beta3 mom_iq, sigma)``, priors as in `kidscore_momiq`."""
    beta = flat("beta", shape=(3,))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    observe("kid_score", beta[0] + beta[1] * mom_hs + beta[2] * mom_iq, sigma, kid_score)


def logearn_height(height, log_earn=None):
    """``log(earn) ~ N(beta1 + beta2 height, sigma)``, all flat."""
    beta = flat("beta", shape=(2,))
    sigma = flat("sigma", constraints.positive)
    observe("log_earn", beta[0] + beta[1] * height, sigma, log_earn)


def logearn_height_male(height, male, log_earn=None):
    """``log(earn) ~ N(beta1 + beta2 height + beta3 male, sigma)``, all flat."""
    beta = flat("beta", shape=(3,))
    sigma = flat("sigma", constraints.positive)
    observe("log_earn", beta[0] + beta[1] * height + beta[2] * male, sigma, log_earn)


def logearn_interaction(height, male, log_earn=None):
    """`logearn_height_male` with ``beta4 height male``: badly scaled and strongly correlated, as published."""
    beta = flat("beta", shape=(4,))
    sigma = flat("sigma", constraints.positive)
    mean = beta[0] + beta[1] * height + beta[2] * male + beta[3] * (height * male)
    observe("log_earn", mean, sigma, log_earn)


def flat_regression(X, y=None):
    """``y ~ N(X beta, sigma)`` with a flat prior on beta and on sigma > 0; X is (N, D), its intercept included."""
    beta = flat("beta", shape=(X.shape[1],))
    sigma = flat("sigma", constraints.positive)
    observe("y", jnp.asarray(X) @ beta, sigma, y)


def blr(X, y=None):
    """``y ~ N(X beta, sigma)``, beta ~ N(0, 10), sigma ~ N(0, 10) on the positive half; X is (N, D)."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    observe("y", jnp.asarray(X) @ beta, sigma, y)


def kilpisjarvi(x, pmualpha, psalpha, pmubeta, psbeta, y=None):
    """``y ~ N(alpha + beta x, sigma)`` with x in calendar years: alpha and beta correlate at about -1; sigma flat."""
    alpha = numpyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = numpyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = flat("sigma", constraints.positive)
    observe("y", alpha + beta * x, sigma, y)


def diamonds(Xc, X_mean, Y=None):
    """Log price of diamonds on 24 correlated covariates.

    Parameters
    ----------
    Xc
        Float array of shape (N, K - 1): the design matrix without its intercept, each column centred.
    X_mean
        Float array of shape (K - 1,): the means subtracted, for the derived ``b_Intercept``.
    Y
        Float array of shape (N,), or None to sample it.
    """
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([Xc.shape[1]]).to_event(1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    observe("Y", intercept + jnp.asarray(Xc) @ b, sigma, Y)
    numpyro.deterministic("b_Intercept", intercept - jnp.dot(X_mean, b))
