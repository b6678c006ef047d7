"""`Hierarchical`: a mixture over an auxiliary variable v, q(u) = ∫ q(v) q(u | v) dv, whose density needs no integral.

With v₀ ~ q(v), u ~ q(u | v₀) and K more draws v_k ~ r(v | u) of a reverse model,

    log q̂(u) = log 1/(K + 1) Σ_k q(v_k) q(u | v_k) / r(v_k | u)                           (Sobolev & Vetrov 2019, eq. 5)

overestimates log q(u) in expectation, so that the ELBO with q̂ is a lower bound of the ELBO with q: for K = 0 that of
the joint density ("hierarchical variational models", Ranganath, Tran & Blei 2016), and it rises to the ELBO with q as K
grows. Semi-implicit inference (Yin & Zhou 2018) is r(v | u) = q(v).

Exchanging v₀ with any v_k shows that E[π(u) / q̂(u)] = Z for every K and every r: evidence, importance weights and all
objectives of log weights keep their meaning, with log q̂ in place of log q. Costs K + 1 densities q(u | v) a draw.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from ..approximation import Approximation
from ..validate import check_count


class Hierarchical(Approximation):
    """A family of u with an auxiliary variable v; its log density is estimated with K draws of a reverse model.

    Parameters
    ----------
    prior
        q(v), an `Approximation` with `log_prob`.
    conditional
        v ↦ q(u | v), an `Approximation` with `log_prob`; a pytree that can be called (or a function).
    reverse
        u ↦ r(v | u), likewise; None: r = q(v).
    num_auxiliary
        K.

    References
    ----------
    Ranganath, Tran & Blei (2016), Hierarchical variational models; Sobolev & Vetrov (2019), Importance weighted
    hierarchical variational inference.
    """

    prior: Approximation
    conditional: Callable[[Any], Approximation]
    reverse: Callable[[Any], Approximation] | None = None
    num_auxiliary: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        check_count("num_auxiliary", self.num_auxiliary, minimum=0)

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` draws of u, and log q̂ at each."""
        return jax.vmap(self._one)(jax.random.split(key, n))

    def _one(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        key_v, key_u, key_reverse = jax.random.split(key, 3)
        v, _ = self.prior.sample_and_log_prob(key_v, 1)
        u = self.conditional(v[0]).sample_and_log_prob(key_u, 1)[0][0]
        reverse = self.prior if self.reverse is None else self.reverse(u)
        if self.num_auxiliary:
            v = jnp.concatenate([v, reverse.sample_and_log_prob(key_reverse, self.num_auxiliary)[0]])

        def log_weight(v: Array) -> Array:
            return self.prior.log_prob(v) + self.conditional(v).log_prob(u) - reverse.log_prob(v)

        return u, logsumexp(jax.vmap(log_weight)(v)) - jnp.log(self.num_auxiliary + 1)
