"""What results with a density share: `Approximation`; a weighted cloud: `Particles`."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .errors import InvalidArgument, NotAvailable


class Approximation(eqx.Module):
    """An approximation q of the posterior of the unconstrained u, as a pytree.

    Its one required function is `sample_and_log_prob`: ELBO, evidence, PSIS and resampling need nothing else. The law
    that every one keeps: E_q[exp(log π(u) − log q(u))] = Z.
    """

    @abc.abstractmethod
    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """Draw ``n`` independent u and return them with their log densities."""

    def sample_points(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """The draws of `sample_and_log_prob` alone, for less where densities are most of the cost."""
        return self.sample_and_log_prob(key, n)[0]

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at any ``u``; raises `NotAvailable` where it cannot be computed."""
        raise NotAvailable(f"{type(self).__name__} has no density at given points; use sample_and_log_prob.")

    def transport(self, z: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The map under which q is N(0, I): u = T(z), and log|det ∂T/∂z|; raises `NotAvailable` without such a map."""
        del z
        raise NotAvailable(
            f"{type(self).__name__} is not a map of N(0, I); use the result of a normalizing flow or a Gaussian one."
        )

    def pull(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """The inverse of `transport`, z = T⁻¹(u); raises `NotAvailable` without one."""
        del u
        raise NotAvailable(f"{type(self).__name__} has no inverse map to N(0, I); use a flow that has one.")

    def coordinates(self) -> "Approximation":
        """The approximation whose `transport` gives a sampler its coordinates: itself, unless it is a mixture."""
        return self

    def expect(self, key: PRNGKeyArray, f: Callable[[Float[Array, " d"]], Any], n: int) -> tuple[Any, Any]:
        """E_q f(u), for an f whose value is a pytree of arrays, from ``n`` draws; and its standard error."""
        values = jax.vmap(f)(self.sample_points(key, n))
        error = lambda x: jnp.std(x, axis=0, ddof=1) / jnp.sqrt(n)  # noqa: E731
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), values), jax.tree.map(error, values)

    def pictures(self) -> list[tuple[str, str, Callable[[Any], Any]]]:
        """Title, caption and ``make(pyplot) -> figure`` of pictures of its own in a report."""
        return []

    def fitted_target(self, target: Any) -> Any:
        """The target whose posterior q approximates: the one that was fitted, unless a part of it was learned too."""
        return target

    def mean(self) -> Float[Array, " d"]:
        """Exact mean of u; raises `NotAvailable` where there is no closed form."""
        raise NotAvailable(f"{type(self).__name__} has no closed-form mean; average draws of sample_and_log_prob.")

    def covariance(self) -> Float[Array, "d d"]:
        """Exact covariance of u; raises `NotAvailable` where there is no closed form."""
        raise NotAvailable(f"{type(self).__name__} has no closed-form covariance; use draws of sample_and_log_prob.")


class Augmented(Approximation):
    """An approximation of u together with auxiliary variables, whose density in u alone has no closed form."""

    @abc.abstractmethod
    def sample_augmented(
        self, key: PRNGKeyArray, n: int
    ) -> tuple[Float[Array, "n d"], dict[str, Array], Float[Array, " n"]]:
        """``n`` draws of u, of the auxiliary variables by name, and the log density of both together."""

    @abc.abstractmethod
    def augmented_log_prob(self, u: Float[Array, " d"], auxiliary: dict[str, Array]) -> Float[Array, ""]:
        """Log density at any u and auxiliary variables."""

    @abc.abstractmethod
    def estimate_log_prob(
        self, key: PRNGKeyArray, u: Float[Array, " d"], n: int
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """An importance estimate of the log density of u alone, and its standard error."""

    @abc.abstractmethod
    def check_densities(self) -> None:
        """Raise `NotAvailable` where densities at given points mean nothing; on the host, before they are computed."""


def as_approximation(name: str, given: Any) -> Any:
    """The approximation of a `Posterior`; an `Approximation`, or None, as it is.

    Raises
    ------
    InvalidArgument
        Argument ``name`` is neither, or a posterior without a density.
    """
    found = getattr(given, "approximation", given)
    if given is not None and not isinstance(found, Approximation):
        raise InvalidArgument(
            f"{name} must be an Approximation or a posterior with one (of a flow, FBGVI, …), got {given!r}."
        )
    return found


class Particles(eqx.Module):
    """A cloud of points u with log weights (normalised to sum to one), and the log evidence where it is known.

    Parameters
    ----------
    u
        Float array of shape (n, d), unconstrained.
    log_weights
        Float array of shape (n,), or None where all weigh the same.
    log_evidence
        One estimate per independent run, shape (runs,), or None.
    """

    u: Float[Array, "n d"]
    log_weights: Any = None
    log_evidence: Any = None
