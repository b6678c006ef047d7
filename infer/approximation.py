"""What results with a density share: `Approximation`; a weighted cloud: `Particles`."""

import abc
from typing import Any

import equinox as eqx
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

    def mean(self) -> Float[Array, " d"]:
        """Exact mean of u; raises `NotAvailable` where there is no closed form."""
        raise NotAvailable(f"{type(self).__name__} has no closed-form mean; average draws of sample_and_log_prob.")

    def covariance(self) -> Float[Array, "d d"]:
        """Exact covariance of u; raises `NotAvailable` where there is no closed form."""
        raise NotAvailable(f"{type(self).__name__} has no closed-form covariance; use draws of sample_and_log_prob.")


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
