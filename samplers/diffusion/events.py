"""A distribution given an event {C(x) > 0}, from its score, and the probability of the event.

Given y, x₀ has mean x̂ = D(y, ρ) and covariance ρ² ∂D/∂y. To first order C(x₀) is then normal with mean C(x̂) and
variance s² = ρ² (∇C(x̂) · ∇_y C(D(y)) + r |∇C(x̂)|²), so that

    ∇ log p̃_ρ(y | C > 0) ≈ ∇ log p̃_ρ(y) + ∇_y log Φ(C(x̂)/s)                                        ([1]_, section 4)

It is exact for a linear C of a Gaussian (with r = 0), and otherwise an approximation with a density of its own, so that
`event_probability` is unbiased by weights. Released code has a logistic function in place of Φ, whose slope in the tail
is half of what it should be.

References
----------
.. [1] M. Finzi et al. (2023). User-defined event sampling and uncertainty quantification in diffusion models for
   physical dynamical systems. arXiv:2306.07526.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .scores import AbstractScore, Level

REGULARISATION = 1e-3


class Fixed(eqx.Module):
    """A function that is no pytree, as one: a part of the program."""

    function: Callable = eqx.field(static=True)

    def __call__(self, x: Array) -> Array:
        """Its value."""
        return self.function(x)


def _as_module(event: Callable) -> Callable:
    return event if isinstance(event, eqx.Module) else Fixed(event)


class EventScore(AbstractScore):
    """The score given C(x) > 0.

    Parameters
    ----------
    base
        Of the distribution.
    event
        C, a differentiable function (d,) → (); an `equinox.Module` if it holds arrays.
    regularisation
        r, keeps the variance above 0 where a learned denoiser's Jacobian is not positive.
    """

    base: AbstractScore
    event: Callable = eqx.field(converter=_as_module)
    regularisation: float = REGULARISATION

    def log_probability(self, y: Float[Array, " d"], rho: Level) -> Float[Array, ""]:
        """The log probability of the event given y, log Φ(C(x̂)/s)."""
        value, pulled = jax.value_and_grad(lambda y: self.event(self.base.denoise(y, rho)))(y)
        gradient = jax.grad(self.event)(self.base.denoise(y, rho))
        spread = jnp.maximum(gradient @ pulled, 0) + self.regularisation * (gradient @ gradient)
        return log_ndtr(value / (rho * jnp.sqrt(spread)))

    def denoise(self, y: Float[Array, " d"], rho: Level) -> Float[Array, " d"]:
        """E[x₀ | y, C > 0], to first order."""
        return self.base.denoise(y, rho) + rho**2 * jax.grad(self.log_probability)(y, rho)

    def refresh(self, key: PRNGKeyArray) -> "EventScore":
        """The same event of a score with other randomness."""
        return EventScore(self.base.refresh(key), self.event, self.regularisation)


class EventProbability(NamedTuple):
    """The probability of an event, in two ways.

    Parameters
    ----------
    log_probability
        log of the mean of 1{C > 0} p/q over draws of q: unbiased in P.
    standard_error
        Of it, relative: that of P over P.
    mean_log_ratio
        Mean of log p − log q over the draws in the event, log P where q is p given the event, which is what [1]_
        reports; the difference to ``log_probability`` tells how far q is from that.
    inside
        Share of the draws in the event.
    """

    log_probability: Float[Array, ""]
    standard_error: Float[Array, ""]
    mean_log_ratio: Float[Array, ""]
    inside: Float[Array, ""]


@eqx.filter_jit
def event_probability(
    log_p: Float[Array, " n"], log_q: Float[Array, " n"], inside: Bool[Array, " n"]
) -> EventProbability:
    """The probability of an event under p from draws of q, the flow given the event.

    Parameters
    ----------
    log_p
        Normalised log density of p at the draws: of the flow without the event, or log π − log Z.
    log_q
        Log density with which they were drawn.
    inside
        Whether C > 0.
    """
    log_ratio = jnp.where(inside, log_p - log_q, -jnp.inf)
    log_probability = jax.nn.logsumexp(log_ratio) - jnp.log(len(log_ratio))
    relative = jnp.exp(log_ratio - log_probability)
    error = jnp.std(relative, ddof=1) / jnp.sqrt(len(relative))
    mean_log = jnp.mean(log_p - log_q, where=inside)
    return EventProbability(log_probability, error, mean_log, jnp.mean(inside.astype(log_p.dtype)))
