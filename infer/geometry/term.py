"""`AbstractTerm`: a nonsmooth convex term g as a value, over the flat vector of a target."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from ..errors import InvalidArgument


class AbstractTerm(eqx.Module):
    """A convex term g: R^d → (−∞, ∞] with its proximal operator.

    Attributes
    ----------
    separable
        Whether g(x) = Σᵢ gᵢ(xᵢ). Then the step of `prox` may be an array of shape (d,), one per coordinate.
    by_site
        Parameters that may be given as a dict of a target's sites → number or array of the site's shape, and what a
        site without an entry has.
    """

    separable: ClassVar[bool] = False
    by_site: ClassVar[dict[str, float]] = {}

    @abc.abstractmethod
    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x), infinite outside the domain of g."""

    @abc.abstractmethod
    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """argmin_z g(z) + ‖z − x‖² / (2 step), of the dtype of ``x``."""

    # -- g(x) = h(K x), for primal–dual algorithms, which need no prox of g; by default K is the identity ----------

    def forward(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """K x."""
        return x

    def adjoint(self, u: Float[Array, "..."]) -> Float[Array, " d"]:
        """Kᵀ u."""
        return u

    @property
    def squared_norm(self) -> float:
        """A bound of ‖K‖²."""
        return 1.0

    def dual_prox(self, v: Float[Array, "..."], step: Any) -> Float[Array, "..."]:
        """The proximal operator of the conjugate, prox_{s h*}(v) = v − s prox_{h/s}(v/s) (Moreau's identity)."""
        return v - step * self.prox(v / step, 1 / step)

    def __check_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise `InvalidArgument` where a parameter is outside its range; called when made and when bound."""

    @property
    def size(self) -> int | None:
        """The dimension that the term is made for; None if it takes any."""
        return None

    def acts_on(self, dim: int) -> np.ndarray:
        """Which of the ``dim`` coordinates g depends on, booleans of shape (dim,); default: all."""
        return np.ones(dim, bool)

    def bind(self, target: Any) -> "AbstractTerm":
        """The same term over the flat ``u`` of a target, parameters by site as arrays of shape (d,).

        Raises
        ------
        InvalidArgument
            A dict names an unknown site or one that is not real (there u is not the site's value), an array has another
            size than the site, or the term is made for another dimension.
        """
        fields = list(self.by_site)
        given = [flat(name, getattr(self, name), target, self.by_site[name]) for name in fields]
        bound = eqx.tree_at(lambda term: [getattr(term, name) for name in fields], self, given) if fields else self
        bound.check()
        if bound.size not in (None, target.dim):
            raise InvalidArgument(
                f"{type(self).__name__} is made for {bound.size} coordinates, but the target has {target.dim}; use "
                f"Blocks to apply a term to one site."
            )
        return bound


def flat(what: str, given: Any, target: Any, default: float = 0.0) -> np.ndarray:
    """One entry of ``given`` per coordinate of u; ``default`` at sites without an entry."""
    if not isinstance(given, Mapping):
        if np.shape(given) not in ((), (target.dim,)):
            raise InvalidArgument(
                f"{what} has shape {np.shape(given)}; give a number, a dict by site, or shape ({target.dim},)."
            )
        return np.broadcast_to(np.asarray(given, dtype=type(default)), (target.dim,)).copy()
    sites = real_sites(what, given, target)
    for name, value in given.items():
        if np.shape(value) not in ((), sites[name].shape):
            raise InvalidArgument(
                f"{what}[{name!r}] has shape {np.shape(value)}, but the site has {sites[name].shape}."
            )
    parts = []
    for name, site in sites.items():
        value = np.asarray(given.get(name, default), dtype=type(default))
        parts.append(np.broadcast_to(value, site.shape if name in given else (site.size,)).reshape(-1))
    return np.concatenate(parts)


def real_sites(what: str, given: Mapping[str, Any], target: Any) -> dict[str, Any]:
    """The latent sites of ``target`` by name; raise unless ``given`` names real ones of them."""
    sites = {site.name: site for site in target.sites if site.kind == "latent"}
    for name in given:
        if name not in sites:
            raise InvalidArgument(f"{what} names the site {name!r}; the latent sites are {', '.join(sites)}.")
        if sites[name].support != "real":
            raise InvalidArgument(
                f"{what} names the site {name!r} of support {sites[name].support}; a term is possible at real sites."
            )
    return sites


def check_entries(name: str, given: Any, ok: Callable[[np.ndarray], Any], rule: str, why: str) -> None:
    """Raise unless all entries of a number, an array or a dict of these satisfy ``ok``; traced values pass."""
    for value in given.values() if isinstance(given, Mapping) else [given]:
        if isinstance(value, jax.core.Tracer):
            continue
        try:
            entries = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise InvalidArgument(f"{name} must be a number or an array of numbers, got {value!r}; {why}.") from None
        wrong = entries[~np.asarray(ok(entries), dtype=bool)]
        if wrong.size:
            raise InvalidArgument(f"{name} must be {rule}, got {wrong.min():g}; {why}.")


def like(given: Any, x: Array) -> Array:
    """A parameter in the dtype of ``x``, so that the dtype of results follows the input's."""
    return jnp.asarray(given, dtype_of(x))


def dtype_of(x: Array) -> DTypeLike:
    """The dtype in which JAX holds ``x``: a NumPy array of 64 bits has 32 in it unless more are switched on."""
    return jnp.result_type(x)
