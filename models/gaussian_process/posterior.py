"""`LatentPosterior`, what all posteriors of a latent process share, and `Prediction`."""

import abc
import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...infer.approximation import Approximation
from ...infer.errors import InvalidArgument, NotAvailable
from ...infer.run.precision import precision
from ...infer.target import Target
from ...infer.target.static import Labels
from .latent import LatentGP, check_new

COVARIANCE = 5000


class Prediction(NamedTuple):
    """Marginals at new inputs, NumPy arrays of shape (k,).

    Parameters
    ----------
    mean, variance
        Of f.
    likelihood
        Of y given f.
    mean_gradient, variance_gradient
        Derivatives by the inputs, shape (k, d), where they were asked for.
    """

    mean: np.ndarray
    variance: np.ndarray
    likelihood: Any
    mean_gradient: np.ndarray | None = None
    variance_gradient: np.ndarray | None = None

    def sample(self, key: Any = 0, num_samples: int = 1000) -> np.ndarray:
        """Draws of y, each input by itself, shape (num_samples, k)."""
        from ...infer.run.plan import jax_key

        with precision(64):
            key_f, key_y = jax.random.split(jax_key(key))
            f = self.mean + np.sqrt(self.variance) * jax.random.normal(key_f, (num_samples, len(self.mean)))
            return np.asarray(self.likelihood.distribution(f).sample(key_y))

    def observed(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of y, by quadrature over f."""
        with precision(64):
            f, weight = self.likelihood.rule(jnp.asarray(self.mean), jnp.asarray(self.variance))
            given = self.likelihood.distribution(f)
            mean = given.mean @ weight
            return np.asarray(mean), np.asarray((given.variance + (given.mean - mean[:, None]) ** 2) @ weight)

    def log_prob(self, y: Any) -> np.ndarray:
        """Log predictive density of observations at the inputs, by quadrature over f."""
        with precision(64):
            f, weight = self.likelihood.rule(jnp.asarray(self.mean), jnp.asarray(self.variance))
            each = jax.vmap(jax.vmap(self.likelihood.log_prob, (0, None)))(f, jnp.asarray(y, float))
            return np.asarray(jax.scipy.special.logsumexp(each, axis=1, b=weight))


class LatentPosterior(Approximation):
    """A Gaussian q of the latent process at the data, in the order of the data.

    Attributes
    ----------
    gp
        The process at its learned hyper-parameters.
    loc, variance
        Marginal means and variances of f at the data, shape (n,).
    elbo
        What the fit of q has reached: a bound of the log evidence, or an approximation of it; see the class.
    """

    gp: eqx.AbstractVar[LatentGP]
    loc: eqx.AbstractVar[Float[Array, " n"]]
    variance: eqx.AbstractVar[Float[Array, " n"]]
    elbo: eqx.AbstractVar[Float[Array, ""]]

    def fitted_target(self, target: Target) -> LatentGP:
        """The process at the hyper-parameters learned, with the prior that the fit has used where it is not dense."""
        del target
        return self.gp

    def mean(self) -> Float[Array, " n"]:
        """ν."""
        return self.loc

    def covariance(self) -> Float[Array, "n n"]:
        """Dense; for at most 5,000 observations."""
        n = self.loc.shape[0]
        if n > COVARIANCE:
            raise NotAvailable(f"covariance of {n:,} values is dense; use `variance`, or draws.")
        return self._covariance()

    @abc.abstractmethod
    def _covariance(self) -> Float[Array, "n n"]:
        """As `covariance`."""

    @abc.abstractmethod
    def predict(self, X: Any, *, gradients: bool = False) -> Prediction:
        """Marginals of f at new inputs.

        Parameters
        ----------
        X
            Shape (k, d), or (k,) of one input.
        gradients
            Whether derivatives of mean and variance by the inputs are wanted too.
        """

    @abc.abstractmethod
    def sample_jointly(self, X: Any, key: Any = 0, num_samples: int = 1000) -> np.ndarray:
        """Draws of f at new inputs that are coherent over them, shape (num_samples, k).

        Parameters
        ----------
        X
            Shape (k, d), or (k,) of one input.
        key
            Integer or JAX key.
        num_samples
            Number of draws.
        """

    @abc.abstractmethod
    def condition(self, X: Any, y: Any, *, tolerance: float, max_iterations: int) -> "LatentPosterior":
        """The posterior with more observations, at the same hyper-parameters, from where this one stands.

        Parameters
        ----------
        X, y
            New inputs, shape (k, d) or (k,), and the observations there, (k,); they count after those that there are.
        tolerance, max_iterations
            As of the method.

        Raises
        ------
        InvalidArgument
            As of `LatentGP`; inputs that are in the data already among them.
        """


def with_observations(gp: LatentGP, X: Any, y: Any) -> tuple[np.ndarray, LatentGP]:
    """The new inputs, and the process with these observations behind those it has, with a dense prior."""
    new = check_new(gp, X)
    y = np.atleast_1d(np.asarray(y, np.float64))
    if y.shape != new.shape[:1]:
        raise InvalidArgument(f"y has shape {y.shape}; it must have one entry for each of the {len(new)} inputs.")
    both = (np.concatenate([gp.X, new]), np.concatenate([gp.y, y]))
    return new, dataclasses.replace(gp, X=both[0], y=both[1], factors_of=None, labels=Labels())
