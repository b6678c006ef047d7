"""`WrappedTarget`: what targets made from another target take over from it unchanged."""

import dataclasses
from typing import Any, Self

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import InvalidArgument
from .base import Site, Target


class WrappedTarget(Target):
    """A target around another: same sites, same coordinates, and, unless it says otherwise, the same densities.

    Attributes
    ----------
    target
        The target that knows sites and data.
    """

    target: eqx.AbstractVar[Target]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Those of the target within."""
        return self.target.sites

    @property
    def name(self) -> str:
        """Of the target within."""
        return self.target.name

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Those of the target within."""
        return self.target.dims

    @property
    def coords(self) -> dict[str, Any]:
        """Those of the target within."""
        return self.target.coords

    @property
    def observed(self) -> dict[str, Any]:
        """Those of the target within."""
        return self.target.observed

    def structure(self) -> frozenset[str]:
        """That of the target within."""
        return self.target.structure()

    def supports(self) -> dict[str, Any]:
        """Those of the target within."""
        return self.target.supports()

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Named values of the latent and the deterministic sites."""
        return self.target.constrain(u)

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The ``u`` at which the latent sites have these values."""
        return self.target.unconstrain(values)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """A random start of the target within."""
        return self.target.initial(key)

    def draw(self, key: PRNGKeyArray, u: Float[Array, " d"]) -> dict[str, Array]:
        """What is kept of ``u``."""
        return self.target.draw(key, u)

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior density of ``u``."""
        return self.target.log_prior(u)

    def log_densities(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Parts of the log density by site."""
        return self.target.log_densities(u)

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log prior density of each latent site."""
        return self.target.prior_densities(values)

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Pointwise log likelihood of each observed site."""
        return self.target.log_likelihood(values)

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """One draw of all sites from the prior."""
        return self.target.sample_prior(key)

    def predictive(self, key: PRNGKeyArray, values: dict[str, Array], *args: Any, **kwargs: Any) -> dict[str, Array]:
        """One draw of the observed sites given one draw of the latents."""
        return self.target.predictive(key, values, *args, **kwargs)

    def replace(self, **options: Any) -> Self:
        """The same target with other ``coords`` or ``dims``."""
        for name in options:
            if name not in ("coords", "dims"):
                raise InvalidArgument(f"replace got the unknown option {name!r}; it takes coords, dims.")
        return dataclasses.replace(self, target=self.target.replace(**options))
