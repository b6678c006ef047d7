"""`VariationalFeatures`: a network whose parameters have a normal posterior too (collapsed variational inference).

q(θ) = N(m, diag(s²)) of the network's parameters θ, with prior N(0, prior_scale² I). A step of `pushforward.VBLL` draws
one θ, by m + s ε, and takes the last layer's bound at it in closed form, less KL(q(θ) ‖ p(θ))/N ([1]_, section 3):
only features are drawn. Predictions are means over `num_draws` fixed draws. What is asked of one network (`freeze`, the
target's density, `refit`, leverage) is answered of the network at the means m.

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2024). Variational Bayesian last layers. ICLR. arXiv:2404.11599.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.validate import check_count, check_positive
from ...infer.variational.surrogates import split


class VariationalFeatures(eqx.Module):
    """A network with independent normal parameters.

    Parameters
    ----------
    net
        The network, a function of one x; its present parameters are the first means. Arrays wrapped in
        ``paramax.non_trainable`` stay as they are.
    prior_scale
        Prior standard deviation of a parameter.
    first_scale
        Standard deviation of q(θ) at the start.
    num_draws
        Draws of θ over which predictions are averaged.

    Raises
    ------
    InvalidArgument
        A setting is out of range.
    """

    net: Any
    log_sd: Any
    prior_scale: float = eqx.field(static=True)
    num_draws: int = eqx.field(static=True)

    def __init__(self, net: Any, *, prior_scale: float = 1.0, first_scale: float = 1e-2, num_draws: int = 16) -> None:
        for name, value in (("prior_scale", prior_scale), ("first_scale", first_scale)):
            check_positive(name, value)
        check_count("num_draws", num_draws)
        self.net = net
        self.log_sd = jax.tree.map(lambda x: jnp.full(jnp.shape(x), math.log(first_scale), float), split(net)[0])
        self.prior_scale, self.num_draws = prior_scale, num_draws

    def __call__(self, x: Any) -> Array:
        """φ of one x at the means."""
        return self.net(x)

    def draw(self, key: PRNGKeyArray) -> Any:
        """A network: m + s ε."""
        means, fixed = split(self.net)
        leaves, treedef = jax.tree.flatten(means)
        parts = zip(leaves, jax.tree.leaves(self.log_sd), jax.random.split(key, max(1, len(leaves))), strict=False)
        drawn = [m + jnp.exp(s) * jax.random.normal(k, m.shape, m.dtype) for m, s, k in parts]
        return eqx.combine(jax.tree.unflatten(treedef, drawn), fixed)

    def over_draws(self, phi: Callable[[Any], Float[Array, "n d"]]) -> Float[Array, "s n d"]:
        """``phi(network)`` of the networks of predictions."""
        return jax.vmap(lambda key: phi(self.draw(key)))(jax.random.split(jax.random.key(0), self.num_draws))

    def divergence(self) -> Float[Array, ""]:
        """KL(q(θ) ‖ N(0, prior_scale² I))."""
        pairs = zip(jax.tree.leaves(split(self.net)[0]), jax.tree.leaves(self.log_sd), strict=True)
        of = lambda m, s: jnp.sum(jnp.exp(2 * s) + m**2) / self.prior_scale**2 - jnp.sum(2 * s) - m.size  # noqa: E731
        total = sum(of(m, s) for m, s in pairs) + 0.0
        return 0.5 * total + sum(jnp.size(s) for s in jax.tree.leaves(self.log_sd)) * math.log(self.prior_scale)


def mixed(predictive: Any, num_draws: int) -> Any:
    """The mixture over draws of a predictive whose rows are those of one draw after another."""
    import numpyro.distributions as dist

    def over(x: Array) -> Array:
        """Shape (draws · n, …) → (n, …, draws)."""
        return jnp.moveaxis(jnp.reshape(x, (num_draws, -1, *x.shape[1:])), 0, -1)

    if isinstance(predictive, dist.CategoricalProbs | dist.CategoricalLogits):
        return dist.Categorical(probs=jnp.mean(over(predictive.probs), -1))
    if isinstance(predictive, dist.MixtureSameFamily):
        inner: Any = predictive.component_distribution
        weights, loc, scale = (over(x) for x in (predictive.mixing_distribution.probs, inner.loc, inner.scale))
        weights, loc, scale = (jnp.reshape(x, (*x.shape[:-2], -1)) for x in (weights / num_draws, loc, scale))
        return dist.MixtureSameFamily(dist.Categorical(probs=weights), dist.Normal(loc, scale))
    names = ("df", "loc", "scale") if isinstance(predictive, dist.StudentT) else ("loc", "scale")
    parts = [over(jnp.broadcast_to(getattr(predictive, name), predictive.batch_shape)) for name in names]
    shares = dist.Categorical(probs=jnp.full_like(parts[0], 1 / num_draws))
    return dist.MixtureSameFamily(shares, type(predictive)(*parts))
