"""NumPyro models of the small data sets that are shipped in `pushforward.models.data`."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist


def eight_schools(sigma, y=None):
    """Eight schools, non-centred: theta = mu + tau z, z ~ N(0, 1); mu ~ N(0, 5), tau ~ Cauchy(0, 5) on tau > 0.

    Parameters
    ----------
    sigma
        Float array of shape (J,): standard errors of the estimates.
    y
        Float array of shape (J,): estimated effects, or None to sample them.
    """
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", jnp.shape(sigma)[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centered(sigma, y=None):
    """Eight schools, centred, theta ~ N(mu, tau): a funnel that NUTS does not sample well. Else as `eight_schools`."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", jnp.shape(sigma)[0]):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def seeds(total, variety, cucumber, germinated=None):
    """Germination of seeds: a logistic regression with an effect of each plate, non-centred.

    logit p_i = alpha0 + alpha1 variety_i + alpha2 cucumber_i + alpha12 variety_i cucumber_i + tau z_i, with
    alpha ~ N(0, 2), tau ~ N(0, 1) on tau > 0, z ~ N(0, 1).

    Parameters
    ----------
    total
        Integer array of shape (I,): seeds on each plate.
    variety
        Array of shape (I,): 0 for Orobanche aegyptiaca 75, 1 for O. aegyptiaca 73.
    cucumber
        Array of shape (I,): 1 with an extract of cucumber root, 0 with one of bean root.
    germinated
        Integer array of shape (I,), or None to sample it.
    """
    names = ("alpha0", "alpha1", "alpha2", "alpha12")
    a0, a1, a2, a12 = (numpyro.sample(name, dist.Normal(0.0, 2.0)) for name in names)
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("plate", jnp.shape(total)[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        logits = a0 + a1 * variety + a2 * cucumber + a12 * variety * cucumber + tau * z
        numpyro.sample("germinated", dist.BinomialLogits(logits, total), obs=germinated)


def challenger(temperature, distress=None):
    """Thermal distress of a field O-ring against the temperature at launch: a logistic regression.

    logit p_i = alpha + beta (temperature_i - 70) / 10 with alpha ~ N(0, 5) and beta ~ N(0, 5).

    Parameters
    ----------
    temperature
        Float array of shape (N,): degrees Fahrenheit at launch.
    distress
        Array of 0 and 1, shape (N,), or None to sample it.
    """
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 5.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 5.0))
    logits = alpha + beta * (jnp.asarray(temperature) - 70.0) / 10.0
    with numpyro.plate("launch", logits.shape[0]):
        numpyro.sample("distress", dist.BernoulliLogits(logits), obs=distress)


def dugongs(age, length=None):
    """Growth of dugongs: ``length ~ N(alpha - beta gamma^age, sigma)``.

    alpha, beta ~ N(0, 5) on the positive half, gamma ~ Uniform(0.5, 1), sigma ~ N(0, 1) on the positive half.

    Parameters
    ----------
    age
        Float array of shape (N,): years.
    length
        Float array of shape (N,): metres, or None to sample it.
    """
    alpha = numpyro.sample("alpha", dist.HalfNormal(5.0))
    beta = numpyro.sample("beta", dist.HalfNormal(5.0))
    gamma = numpyro.sample("gamma", dist.Uniform(0.5, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    mean = alpha - beta * gamma ** jnp.asarray(age)
    with numpyro.plate("animal", mean.shape[0]):
        numpyro.sample("length", dist.Normal(mean, sigma), obs=length)
