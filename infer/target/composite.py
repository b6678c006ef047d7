"""`CompositeTarget`: log π = f − g, f smooth and g nonsmooth with a proximal operator, in unconstrained coordinates."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import InvalidArgument, UnsupportedTarget
from ..geometry.prox import L1
from .base import Target
from .discover import unvalidated
from .wrapped import WrappedTarget


class CompositeTarget(WrappedTarget):
    """A smooth target with a nonsmooth term. Make one with `Target.composite` or `Target.split`.

    Attributes
    ----------
    target
        The target that knows sites and data.
    nonsmooth
        Object with ``value(u) -> scalar`` and ``prox(u, step) -> u``, over the flat u.
    included
        Whether the log density of ``target`` contains −g already (a split prior) or not (a term added).
    """

    target: Target
    nonsmooth: Any
    included: bool = eqx.field(static=True)

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """f(u) − g(u)."""
        value = self.target.log_density(u)
        return value if self.included else value - self.nonsmooth.value(u)

    def smooth_log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """f(u).

        Of a split prior it is the log density with g added back; the derivatives of the two cancel, to rounding, on
        both sides of a kink and, as both are taken as 0 there, on it.
        """
        value = self.target.log_density(u)
        return value + self.nonsmooth.value(u) if self.included else value

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Value of f at the latent sites, minus g where it was added; sites that g acts on are real."""
        value = self.target.log_density_at(values)
        return value if self.included else value - self.nonsmooth.value(self._flat(values))

    def smooth_log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Value of f at the latent sites; see `smooth_log_density`."""
        value = self.target.log_density_at(values)
        return value + self.nonsmooth.value(self._flat(values)) if self.included else value

    def _flat(self, values: dict[str, Array]) -> Float[Array, " d"]:
        """The vector u where sites are real; other coordinates, on which g does not act, are 0."""
        parts = [
            jnp.reshape(values[site.name], (-1,)) if site.support == "real" else jnp.zeros(site.size)
            for site in self.sites
            if site.kind == "latent"
        ]
        return jnp.concatenate(parts)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """A random start; where the term is w|u − l|, about l and as narrow as 1/w, but no wider than elsewhere."""
        u = Target.initial(self, key)
        weights, loc = (getattr(self.nonsmooth, name, None) for name in ("weights", "loc"))
        if np.shape(weights) != u.shape or np.shape(loc) != u.shape:
            return u
        weights, loc = jnp.asarray(weights, u.dtype), jnp.asarray(loc, u.dtype)
        return jnp.where(weights > 0, loc + u / jnp.maximum(weights, 1.0), u)

    def structure(self) -> frozenset[str]:
        """What the smooth part has, without factors, and ``"composite"``; a term that was added leaves no prior."""
        lost = {"factors"} if self.included else {"factors", "proper_prior", "numpyro"}
        return frozenset((self.target.structure() - lost) | {"composite"})

    def has(self, name: str) -> bool:
        """See `Target.has`."""
        if name in ("factors", "composite") or (name in ("proper_prior", "numpyro") and not self.included):
            return name == "composite"
        return self.target.has(name)

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density of ``u``; a term that was added counts as prior."""
        value = self.target.log_prior(u)
        return value if self.included else value - self.nonsmooth.value(u)

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Parts of the log density by site, and ``"nonsmooth"`` for a term that was added."""
        parts = dict(self.target.log_densities(u))
        return parts if self.included or not parts else parts | {"nonsmooth": -self.nonsmooth.value(u)}

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log prior density of each latent site, where the nonsmooth term is part of it."""
        return self.target.prior_densities(values) if self.included else Target.prior_densities(self, values)

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """One draw of all sites from the prior, where the nonsmooth term is part of it."""
        return self.target.sample_prior(key) if self.included else Target.sample_prior(self, key)

    def _identity(self) -> list[Any]:
        name = f"{type(self.nonsmooth).__module__}.{type(self.nonsmooth).__qualname__}"
        return [self.target.fingerprint(), name, self.included, _facts(self.nonsmooth)]


def _facts(term: Any) -> Any:
    """The fields of a term and of its parts, static ones (shape, functions) too, which are no leaves."""
    if dataclasses.is_dataclass(term) and not isinstance(term, type):
        return [type(term).__qualname__, {f.name: _facts(getattr(term, f.name)) for f in dataclasses.fields(term)}]
    return [_facts(part) for part in term] if isinstance(term, tuple | list) else term


def composite(smooth: Any, nonsmooth: Any, example: Any = None, support: Any = None) -> CompositeTarget:
    """See `Target.composite`."""
    if not isinstance(smooth, Target):
        if example is None:
            raise InvalidArgument(f"smooth is a function ({smooth!r}), so example must be given too; got None.")
        smooth = Target.from_log_density(smooth, example, support)
    for name in ("value", "prox"):
        if not callable(getattr(nonsmooth, name, None)):
            raise InvalidArgument(
                f"nonsmooth must have the methods value(u) and prox(u, step); {nonsmooth!r} lacks {name}."
            )
    if hasattr(nonsmooth, "bind"):
        nonsmooth = nonsmooth.bind(smooth)
    return CompositeTarget(smooth, nonsmooth, False)


def split(target: Any, name: str) -> CompositeTarget:
    """Make the Laplace prior of a site of a NumPyro target the nonsmooth part; see `Target.split`."""
    latent = {site.name: site for site in target.sites if site.kind == "latent"}
    if name not in latent:
        raise InvalidArgument(f"split names the site {name!r}; the latent sites are {', '.join(latent)}.")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 2)
        first, second = (
            jax.tree.map(np.asarray, jax.jit(_laplace, static_argnums=1)(target, name, target.initial(key)))
            for key in keys
        )
    if any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True)):
        raise UnsupportedTarget(
            f"split needs a Laplace prior with constant location and scale, but those of {name!r} depend on other "
            f"latent sites, so that the term has no proximal operator of its own; fix them, or use the target unsplit."
        )
    loc, weight = (np.broadcast_to(value, latent[name].shape) for value in first)
    return CompositeTarget(target, L1({name: weight}, {name: loc}).bind(target), True)


@unvalidated
def _laplace(target: Any, name: str, u: Array) -> tuple[Array, Array]:
    """Location and weight of the Laplace prior of a site at ``u``."""
    from numpyro import distributions as dist
    from numpyro import handlers

    model, args, kwargs = target.ready(enum=False)
    values = target.constrain(u)
    trace = handlers.trace(handlers.seed(handlers.substitute(model, values), 0)).get_trace(*args, **kwargs)
    fn, scale = trace[name]["fn"], trace[name]["scale"]
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    if not isinstance(fn, dist.Laplace):
        raise UnsupportedTarget(
            f"split needs a site with a Laplace prior; {name!r} has {type(fn).__name__}. Add another nonsmooth term "
            f"with Target.composite(target, nonsmooth)."
        )
    return fn.loc, (1.0 if scale is None else scale) / fn.scale
