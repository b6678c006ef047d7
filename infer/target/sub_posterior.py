"""`SubPosterior`: what one agent can infer alone, for methods that bring the agents' draws together once."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import NotAvailable
from .base import Target
from .minibatch import FactoredTarget
from .wrapped import WrappedTarget

FAR = (1e6, 1e8)
"""Distances between which the tail of a prior is measured."""
MOST_COORDINATES = 200


class SubPosterior(WrappedTarget):
    """prior(u)^a · likelihood(u; own rows)^b. Make one with `ShardedTarget.sub_posterior`.

    Powers are those of the prior density of u, log-Jacobian included, so that the product over agents is the posterior
    of u.

    Attributes
    ----------
    target
        The posterior of the agent's rows under the whole prior.
    prior_power, likelihood_power
        a and b.
    agent, num_agents
        Which agent, of how many.
    """

    target: Target
    prior_power: Any
    likelihood_power: Any
    agent: int = eqx.field(static=True)
    num_agents: int = eqx.field(static=True)

    @property
    def inflated(self) -> bool:
        """Whether the likelihood, and not the prior, has a power."""
        return self.num_agents > 1 and self.likelihood_power != 1

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """The sum a log prior + b log likelihood."""
        a, b = self.prior_power, self.likelihood_power
        return b * self.target.log_density(u) + (a - b) * self.target.log_prior(u)

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """The power a of the prior, in logs."""
        return self.prior_power * self.target.log_prior(u)

    def structure(self) -> frozenset[str]:
        """A prior; powers have no sampler, and the density in constrained coordinates is not that of u."""
        return frozenset({"prior"})

    def has(self, name: str) -> bool:
        """See `Target.has`."""
        return name in self.structure()

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """The prior and the likelihood, each to its power."""
        prior = self.log_prior(u)
        return {"prior": prior, "likelihood": self.log_density(u) - prior}

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Not known: see `structure`."""
        del values
        raise NotAvailable(self._lacks("log_density_at", "support"))

    def _identity(self) -> list[Any]:
        powers = [float(self.prior_power), float(self.likelihood_power)]
        return [self.target.fingerprint(), powers, self.agent, self.num_agents]


def sub_posterior(whole: FactoredTarget, rows: Any, agent: int, num_agents: int, *, inflated: bool) -> SubPosterior:
    """See `ShardedTarget.sub_posterior`."""
    alone = whole.restricted(rows)
    if inflated:
        return SubPosterior(alone, 1.0, float(num_agents), agent, num_agents)
    site = improper_site(whole, num_agents)
    if site is not None:
        warnings.warn(
            f"The prior to the power 1/{num_agents} is not integrable along the site {site!r}, whose prior has a heavy "
            f"tail: the sub-posterior of agent {agent} is proper only if its data are informative; use fewer shards, "
            f"or inflated=True with combine(how='swiss').",
            RuntimeWarning,
            stacklevel=3,
        )
    return SubPosterior(alone, 1.0 / num_agents, 1.0, agent, num_agents)


def improper_site(target: Target, num_agents: int) -> str | None:
    """A site along one of whose coordinates log prior falls like −k log|u|, 1 < k ≤ n; None if there is none.

    Such a prior is proper and its power 1/n is not. The first 200 coordinates are looked at.
    """
    with jax.enable_x64(True):
        d = min(target.dim, MOST_COORDINATES)
        at = jnp.asarray([sign * r for sign in (1, -1) for r in FAR])
        points = at[:, None, None] * jnp.eye(target.dim)[:d]
        values = np.asarray(_priors(target, points.reshape(-1, target.dim))).reshape(2, len(FAR), d)
    with np.errstate(all="ignore"):
        slopes = (values[:, 1] - values[:, 0]) / np.log(FAR[1] / FAR[0])
    heavy = np.isfinite(slopes) & (slopes < -1.01) & (slopes >= -num_agents - 0.01)
    if not heavy.any():
        return None
    names = [site.name for site in target.sites for _ in range(site.size)]
    return names[int(np.flatnonzero(heavy.any(0))[0])]


@jax.jit
def _priors(target: Target, points: Array) -> Array:
    return jax.lax.map(target.log_prior, points)
