"""Likelihoods of one observation given the latent value at its input, and their expectations under a normal.

E log p(y | f), its derivative and curvature for f ~ N(m, v) are Gauss–Hermite sums of 20 nodes (32 for Student-t),
closed forms for Gaussian and Poisson. All parameters are positive.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, log_ndtr
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument


class Expected(NamedTuple):
    """E log p, E ∂ log p / ∂f, and −E ∂² log p / ∂f² under f ~ N(m, v)."""

    value: Array
    gradient: Array
    curvature: Array


class Likelihood(eqx.Module):
    """log p(y | f) of one observation.

    Attributes
    ----------
    log_concave
        In f: then all curvatures are at least 0, and Newton steps are not damped.
    nodes
        Of the Gauss–Hermite rule.
    """

    log_concave: ClassVar[bool] = True
    nodes: ClassVar[int] = 20

    @abc.abstractmethod
    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""

    @abc.abstractmethod
    def distribution(self, f: Float[Array, "..."]) -> Any:
        """NumPyro distribution of y given f."""

    def start(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """Latent values near which the mode may be looked for."""
        return jnp.zeros_like(y)

    def check(self, y: np.ndarray) -> None:
        """Raise `InvalidArgument` where an observation is impossible; on the host."""

    def expected(self, mean: Float[Array, " n"], variance: Float[Array, " n"], y: Float[Array, " n"]) -> Expected:
        """Expectations under f ~ N(mean, variance), each of shape (n,)."""
        f, weight = self.rule(mean, variance)
        first = jax.grad(self.log_prob)
        over = lambda g: jax.vmap(jax.vmap(g, (0, None)))(f, y) @ weight  # noqa: E731
        return Expected(over(self.log_prob), over(first), -over(jax.grad(first)))

    def rule(
        self, mean: Float[Array, " n"], variance: Float[Array, " n"]
    ) -> tuple[Float[Array, "n k"], Float[Array, " k"]]:
        """Gauss–Hermite nodes under N(mean, variance), and weights that sum to one."""
        node, weight = np.polynomial.hermite_e.hermegauss(self.nodes)
        at = mean[:, None] + jnp.sqrt(variance)[:, None] * jnp.asarray(node, mean.dtype)
        return at, jnp.asarray(weight / weight.sum(), mean.dtype)


class Gaussian(Likelihood):
    """y ~ N(f, variance)."""

    variance: Any = 1.0

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        return -0.5 * jnp.log(2 * jnp.pi * self.variance) - 0.5 * (y - f) ** 2 / self.variance

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        import numpyro.distributions as dist

        return dist.Normal(f, jnp.sqrt(self.variance))

    def start(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """The observations."""
        return y

    def expected(self, mean: Float[Array, " n"], variance: Float[Array, " n"], y: Float[Array, " n"]) -> Expected:
        """Log N(y; m, σ²) − v / (2 σ²), (y − m) / σ², 1 / σ²."""
        value = jax.vmap(self.log_prob)(mean, y) - 0.5 * variance / self.variance
        return Expected(value, (y - mean) / self.variance, jnp.full_like(mean, 1.0) / self.variance)


class StudentT(Likelihood):
    """y ~ f + scale × t(df); not log-concave."""

    scale: Any = 1.0
    df: Any = 4.0
    log_concave: ClassVar[bool] = False
    nodes: ClassVar[int] = 32

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        df = jnp.asarray(self.df, float)
        norm = gammaln(0.5 * (df + 1)) - gammaln(0.5 * df) - 0.5 * jnp.log(jnp.pi * df) - jnp.log(self.scale)
        return norm - 0.5 * (df + 1) * jnp.log1p(((y - f) / self.scale) ** 2 / df)

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        import numpyro.distributions as dist

        return dist.StudentT(self.df, f, self.scale)

    def start(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """The observations."""
        return y


class AbstractBinary(Likelihood):
    """Of y in {0, 1}."""

    def check(self, y: np.ndarray) -> None:
        """Labels are 0 and 1."""
        _check_all(y, (y == 0) | (y == 1), "0 or 1")


class BernoulliLogit(AbstractBinary):
    """p(y = 1 | f) = 1 / (1 + exp(−f))."""

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        return y * f - jax.nn.softplus(f)

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        import numpyro.distributions as dist

        return dist.Bernoulli(logits=f)


class BernoulliProbit(AbstractBinary):
    """p(y = 1 | f) = Φ(f)."""

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        return log_ndtr((2 * y - 1) * f)

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        import numpyro.distributions as dist

        return dist.Bernoulli(probs=jax.scipy.special.ndtr(f))


class AbstractCount(Likelihood):
    """Of y in {0, 1, 2, …} with mean exp(f)."""

    def check(self, y: np.ndarray) -> None:
        """Counts are whole numbers, at least 0."""
        _check_all(y, (y >= 0) & (y == np.floor(y)), "whole numbers, at least 0")

    def start(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """The logarithm of the counts, and of half for none."""
        return jnp.log(y + 0.5)


class Poisson(AbstractCount):
    """y ~ Poisson(exp(f))."""

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        return y * f - jnp.exp(f) - gammaln(y + 1)

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        import numpyro.distributions as dist

        return dist.Poisson(jnp.exp(f))

    def expected(self, mean: Float[Array, " n"], variance: Float[Array, " n"], y: Float[Array, " n"]) -> Expected:
        """Y m − exp(m + v / 2) − log y!, and its derivatives."""
        rate = jnp.exp(mean + 0.5 * variance)
        return Expected(y * mean - rate - gammaln(y + 1), y - rate, rate)


class NegativeBinomial(AbstractCount):
    """Mean exp(f), variance exp(f) + exp(2 f) / concentration."""

    concentration: Any = 1.0

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        r = jnp.asarray(self.concentration, float)
        total = jnp.logaddexp(f, jnp.log(r))
        norm = gammaln(y + r) - gammaln(r) - gammaln(y + 1)
        return norm + r * (jnp.log(r) - total) + y * (f - total)

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        import numpyro.distributions as dist

        return dist.NegativeBinomial2(jnp.exp(f), self.concentration)


class FromDistribution(Likelihood):
    """Any likelihood: a function from f to a NumPyro distribution of y, twice differentiable in f.

    Expectations are by quadrature; curvatures below 0, where it is not log-concave, are cut off.
    """

    make: Callable = eqx.field(static=True)
    log_concave: ClassVar[bool] = False
    nodes: ClassVar[int] = 32

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        return self.make(f).log_prob(y)

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        return self.make(f)


class AtMean(Likelihood):
    """Another likelihood whose expectations are its values at the mean, as Laplace's approximation has them."""

    likelihood: Likelihood

    def log_prob(self, f: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
        """Log p(y | f)."""
        return self.likelihood.log_prob(f, y)

    def distribution(self, f: Float[Array, "..."]) -> Any:
        """See `Likelihood.distribution`."""
        return self.likelihood.distribution(f)

    def expected(self, mean: Float[Array, " n"], variance: Float[Array, " n"], y: Float[Array, " n"]) -> Expected:
        """Log p, its derivative and curvature at the mean."""
        del variance
        first = jax.grad(self.log_prob)
        return Expected(
            *(jax.vmap(part)(mean, y) for part in (self.log_prob, first, lambda f, y: -jax.grad(first)(f, y)))
        )


def _check_all(y: np.ndarray, fine: np.ndarray, rule: str) -> None:
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise InvalidArgument(f"y[{row}] is {y[row]:g}; with this likelihood observations must be {rule}.")
