"""Nonsmooth terms g with their proximal operators: prox(x, s) = argmin_z g(z) + ‖z − x‖² / (2 s).

References
----------
.. [1] N. Parikh, S. Boyd (2014). Proximal algorithms. Foundations and Trends in Optimization 1(3), §6.5.2.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument


class L1(eqx.Module):
    """The weighted ℓ₁ term g(x) = Σᵢ wᵢ |xᵢ − lᵢ|, of which a Laplace(l, 1/w) prior is the exponential.

    Parameters
    ----------
    weights
        Weights w ≥ 0: a number, an array of shape (d,), or a dict of a target's sites → number or array of the site's
        shape (sites without an entry weigh 0). A dict is resolved by `bind`.
    loc
        Where the term is 0, in one of the same forms.
    """

    weights: Any
    loc: Any = 0.0

    def __check_init__(self) -> None:
        values = self.weights.values() if isinstance(self.weights, Mapping) else [self.weights]
        for value in values:
            if isinstance(value, int | float | np.ndarray) and not np.all(np.asarray(value) >= 0):
                raise InvalidArgument(f"weights must be >= 0, got {np.min(np.asarray(value)):g}; a norm is convex.")

    def bind(self, target: Any) -> "L1":
        """The same term over the flat ``u`` of a target, weights and locations as arrays of shape (d,).

        Raises
        ------
        InvalidArgument
            A dict names an unknown site or one that is not real (there u is not the site's value), or an array has
            another size than the site.
        """
        return L1(_flat("weights", self.weights, target), _flat("loc", self.loc, target))

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x)."""
        return jnp.sum(self.weights * jnp.abs(x - self.loc))

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """Soft thresholding: l + sign(x − l) · max(|x − l| − s w, 0), see [1]_, equation 6.9."""
        away = x - self.loc
        return self.loc + jnp.sign(away) * jnp.maximum(jnp.abs(away) - step * self.weights, 0.0)


def _flat(what: str, given: Any, target: Any) -> np.ndarray:
    """One entry of ``given`` per coordinate of u."""
    if not isinstance(given, Mapping):
        if np.shape(given) not in ((), (target.dim,)):
            raise InvalidArgument(
                f"{what} has shape {np.shape(given)}; give a number, a dict by site, or shape ({target.dim},)."
            )
        return np.broadcast_to(np.asarray(given, dtype=float), (target.dim,)).copy()
    sites = {site.name: site for site in target.sites if site.kind == "latent"}
    for name, value in given.items():
        if name not in sites:
            raise InvalidArgument(f"{what} names the site {name!r}; the latent sites are {', '.join(sites)}.")
        if sites[name].support != "real":
            raise InvalidArgument(
                f"{what} names the site {name!r} of support {sites[name].support}; a term is possible at real sites."
            )
        if np.shape(value) not in ((), sites[name].shape):
            raise InvalidArgument(
                f"{what}[{name!r}] has shape {np.shape(value)}, but the site has {sites[name].shape}."
            )
    parts = [
        np.broadcast_to(np.asarray(given.get(s.name, 0.0), float), s.shape if s.name in given else (s.size,))
        for s in sites.values()
    ]
    return np.concatenate([part.reshape(-1) for part in parts])
