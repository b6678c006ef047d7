"""One small target per way in: what the laws run over. Each builder takes a seed of its data; shapes never change."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from pushforward.infer.geometry import L1
from pushforward.infer.target import Target


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def _schools(num, sigma, y=None):
    import numpyro
    from numpyro import distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", num):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools(seed: int = 0) -> Target:
    return Target.from_numpyro(_schools, 8, 1.0 + np.abs(_normal(seed, 8)), y=_normal(seed + 1, 8))


def _crossed(x, y=None):
    """Two nested plates, a vector in a plate, and arguments in a dict."""
    import numpyro
    from numpyro import distributions as dist

    groups, members = x["cov"].shape[:2]
    with numpyro.plate("group", groups, dim=-2):
        a = numpyro.sample("a", dist.Normal(0, 1))
        b = numpyro.sample("b", dist.Normal(0, 1).expand([3]).to_event(1))
        with numpyro.plate("member", members, dim=-1):
            s = numpyro.sample("s", dist.Gamma(2, 1))
            mean = a + (x["cov"] * b).sum(-1)
            numpyro.sample("y", dist.Normal(mean, s), obs=y)


def crossed(seed: int = 0) -> Target:
    return Target.from_numpyro(_crossed, {"cov": _normal(seed, 2, 4, 3)}, y=_normal(seed + 1, 2, 4))


def _supports(y):
    import numpyro
    from numpyro import distributions as dist
    from numpyro.distributions import constraints

    w = numpyro.sample("w", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    cuts = numpyro.sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    p = numpyro.sample("p", dist.Beta(2, 3))
    chol = numpyro.sample("chol", dist.LKJCholesky(3, 2.0))
    numpyro.sample("y", dist.Normal(cuts * w + p * chol[2], 1.0), obs=y)


def supports(seed: int = 0) -> Target:
    return Target.from_numpyro(_supports, _normal(seed, 3))


def _dynamic(y):
    """Each support depends on an earlier latent, the last one improper."""
    import numpyro
    from numpyro import distributions as dist
    from numpyro.distributions import constraints

    low = numpyro.sample("low", dist.Normal(0, 1))
    high = numpyro.sample("high", dist.ImproperUniform(constraints.greater_than(low), (), ()))
    with numpyro.plate("n", y.shape[0]):
        x = numpyro.sample("x", dist.Uniform(low, high))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)


def dynamic(seed: int = 0) -> Target:
    return Target.from_numpyro(_dynamic, _normal(seed, 4))


def _mixture(y, components):
    import numpyro
    from numpyro import distributions as dist

    w = numpyro.sample("w", dist.Dirichlet(jnp.ones(components)))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([components]).to_event(1))
    with numpyro.plate("n", y.shape[0]):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.deterministic("mean", mu[z])
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def mixture(seed: int = 0) -> Target:
    return Target.from_numpyro(_mixture, 2 * _normal(seed, 6), components=2)


def _factor(y):
    import numpyro
    from numpyro import distributions as dist

    x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.factor("evidence", -jnp.sum((y - x) ** 4))


def factor(seed: int = 0) -> Target:
    return Target.from_numpyro(_factor, _normal(seed, 2))


def reparameterised(seed: int = 0) -> Target:
    from numpyro.infer.reparam import LocScaleReparam

    return Target.from_numpyro(_centred, _normal(seed, 5)).replace(reparam={"theta": LocScaleReparam(0)})


def _centred(y):
    import numpyro
    from numpyro import distributions as dist

    tau = numpyro.sample("tau", dist.HalfNormal(1))
    with numpyro.plate("n", 5):
        theta = numpyro.sample("theta", dist.Normal(0, tau))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)


def _regression(x, y):
    import numpyro
    from numpyro import distributions as dist

    beta = numpyro.sample("beta", dist.Laplace(0.5, jnp.array([0.1, 1.0, 2.0])).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def split(seed: int = 0) -> Target:
    return Target.from_numpyro(_regression, _normal(seed, 6, 3), _normal(seed + 1, 6)).split("beta")


def _bowl(params, data):
    return (
        -jnp.sum((params["a"]["rows"] - data) ** 2)
        + jnp.sum(jnp.log(params["w"]))
        + 2 * jnp.log(params["a"]["scale"])
        - params["a"]["scale"]
    )


def log_density(seed: int = 0) -> Target:
    from numpyro.distributions import constraints

    example = {"a": {"rows": np.zeros((2, 3)), "scale": 1.0}, "w": np.full(3, 1 / 3)}
    support = {"a": {"rows": None, "scale": constraints.interval(0.0, 5.0)}, "w": constraints.simplex}
    return Target.from_log_density(_bowl, example, support, data=_normal(seed, 2, 3))


def _cross(x):
    return -((x[0] ** 2 + x[1] - 11) ** 2) - (x[0] + x[1] ** 2 - 7) ** 2


def bare(seed: int = 0) -> Target:
    return Target.from_log_density(_cross, np.zeros(2))


def _factor_prior(params):
    return -0.5 * jnp.sum(params["beta"] ** 2) - params["sigma"]


def _factor_likelihood(params, datum):
    return -0.5 * ((datum["y"] - datum["x"] @ params["beta"]) / params["sigma"]) ** 2 - jnp.log(params["sigma"])


def factors(seed: int = 0) -> Target:
    from numpyro.distributions import constraints

    data = {"x": _normal(seed, 7, 2), "y": _normal(seed + 1, 7)}
    example = {"beta": np.zeros(2), "sigma": 1.0}
    return Target.from_factors(
        _factor_prior, _factor_likelihood, data, example, {"beta": None, "sigma": constraints.positive}
    )


def composite(seed: int = 0) -> Target:
    return Target.composite(factors(seed), L1({"beta": np.array([1.0, 2.0])}))


class Entry(NamedTuple):
    """A builder, and whether its data change with the seed."""

    build: Callable[..., Target]
    has_data: bool = True


TARGETS: dict[str, Entry] = {
    "numpyro: plate and deterministic": Entry(schools),
    "numpyro: nested plates": Entry(crossed),
    "numpyro: simplex, ordered, unit interval, Cholesky factor": Entry(supports),
    "numpyro: dynamic supports": Entry(dynamic),
    "numpyro: discrete": Entry(mixture),
    "numpyro: factor": Entry(factor),
    "numpyro: reparameterised": Entry(reparameterised),
    "numpyro: split": Entry(split),
    "log density": Entry(log_density),
    "log density: bare array": Entry(bare, has_data=False),
    "factors": Entry(factors),
    "composite": Entry(composite),
}
