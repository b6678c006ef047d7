"""`FullGP`: hyper-parameters of a latent process with priors, as a target for `pushforward.NUTS`.

Where the likelihood is Gaussian the process is integrated out (`evidence`). For each draw of θ the process at the data
is drawn afterwards from N(ν, P⁻¹), P = U Uᵀ + I / σ², under the sparse prior of the process itself:
f = μ + P⁻¹ ((y − μ) / σ² + U ε₁ + ε₂ / σ), by conjugate gradients.

Else u holds θ and w ~ N(0, I), and f = μ + U(θ)⁻ᵀ w: whitened by the sparse prior.
"""

from collections.abc import Mapping
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.run.precision import precision
from ...infer.target.base import Site
from ...infer.target.labelled import LabelledTarget
from ...infer.target.log_density import Coordinates, coordinates
from ...infer.target.static import Labels
from ...infer.variational.sparse_cholesky.factor import (
    Structure,
    backward,
    conjugate_gradients,
    forward,
    incomplete_cholesky,
    precision_on_pattern,
    times,
    times_transpose,
)
from .evidence import log_evidence
from .latent import LatentGP
from .likelihoods import Gaussian
from .pattern import Extent, build_pattern

SPREAD = 0.1
"""Of random starts about the hyper-parameters of the process given, in unconstrained coordinates."""


class FullGP(LabelledTarget):
    """A latent process whose hyper-parameters have priors. Make one with `LatentGP.with_priors`.

    Parameters
    ----------
    gp
        The process; hyper-parameters without a prior stay at its values.
    pattern
        Order and pattern of the factors, which stay the same.
    priors
        NumPyro distribution by name of hyper-parameter.
    coordinates
        Of what u holds: the hyper-parameters with a prior, and w unless the process is integrated out.
    """

    gp: LatentGP
    pattern: Structure
    priors: dict[str, Any]
    coordinates: Coordinates
    labels: Labels = eqx.field(static=True, default=Labels())

    @property
    def marginal(self) -> bool:
        """Whether the process is integrated out."""
        return isinstance(self.gp.likelihood, Gaussian)

    @property
    def white(self) -> str:
        """Name of w."""
        return f"{self.gp.site}_white"

    @property
    def sites(self) -> tuple[Site, ...]:
        """Hyper-parameters, w unless the process is integrated out, and the process at the data."""
        kind = "discrete" if self.marginal else "deterministic"
        return (*self.coordinates.sites, Site(self.gp.site, (self.gp.dim,), support="real", kind=kind))

    @property
    def name(self) -> str:
        """That of the process."""
        return f"{self.gp.name}, full Bayes"

    @property
    def observed(self) -> dict[str, Any]:
        """``y``."""
        return self.gp.observed

    def structure(self) -> frozenset[str]:
        """See `Target.structure`."""
        return frozenset({"prior", "likelihood", "predictive"})

    def initial(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """The hyper-parameters of the process given, moved a little at random; w at random."""
        values = {
            name: jnp.asarray(value, float) for name, value in self.gp.parameters().items() if name in self.priors
        }
        if not self.marginal:
            values[self.white] = jnp.zeros(self.gp.dim)
        u = self.coordinates.unconstrain(values)
        return u + SPREAD * jax.random.normal(key, u.shape, u.dtype)

    # -- densities ----------------------------------------------------------------------------------------------------

    def at(self, values: Mapping[str, Array]) -> LatentGP:
        """The process at these hyper-parameters."""
        return self.gp.with_parameters({name: values[name] for name in self.priors})

    def log_prior(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Of hyper-parameters and w, log-Jacobian included."""
        values, log_det = self.coordinates.constrain(u)
        return log_det + sum(self.prior_densities(values).values())

    def prior_densities(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log prior density of each hyper-parameter, and of w."""
        each = {name: jnp.sum(prior.log_prob(values[name])) for name, prior in self.priors.items()}
        if not self.marginal:
            w = values[self.white]
            each[self.white] = -0.5 * jnp.sum(w**2 + jnp.log(2 * jnp.pi))
        return each

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log prior plus log p̂(y | θ), or plus Σ log p(y_i | f_i, θ)."""
        values = self.coordinates.constrain(u)[0]
        gp = self.at(values)
        if not self.marginal:
            f = self._process(gp, values[self.white])
            return self.log_prior(u) + jnp.sum(jax.vmap(gp.likelihood.log_prob)(f, jnp.asarray(self.gp.y, u.dtype)))
        return self.log_prior(u) + log_evidence(gp, self._pattern())

    def _process(self, gp: LatentGP, w: Float[Array, " n"]) -> Float[Array, " n"]:
        """μ + U⁻ᵀ w, in the order of the data."""
        s = self._pattern()
        return gp.mean.at(jnp.asarray(gp.X)).at[s.order].add(forward(s, gp.columns(s), w))

    def _pattern(self) -> Structure:
        return jax.tree.map(jnp.asarray, self.pattern)

    # -- values -------------------------------------------------------------------------------------------------------

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Hyper-parameters by name, and, unless it is integrated out, w and the process."""
        values = self.coordinates.constrain(u)[0]
        if not self.marginal:
            values[self.gp.site] = self._process(self.at(values), values[self.white])
        return values

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The u of hyper-parameters (and w)."""
        return self.coordinates.unconstrain(values)

    def draw(self, key: PRNGKeyArray, u: Float[Array, " d"]) -> dict[str, Array]:
        """`constrain`, and a draw of the process given hyper-parameters and observations if it is integrated out."""
        values = self.constrain(u)
        if not self.marginal:
            return values
        gp, s = self.at(values), self._pattern()
        x, share = jnp.asarray(gp.X), 1 / cast("Gaussian", gp.likelihood).variance
        factor, mu = gp.columns(s), gp.mean.at(x)
        entries = precision_on_pattern(s, factor).at[:, -1].add(share)
        v, _ = incomplete_cholesky(s, entries)
        one, two = jax.random.normal(key, (2, gp.dim), u.dtype)
        residual = (jnp.asarray(gp.y, u.dtype) - mu)[s.order]
        shift, _ = conjugate_gradients(
            lambda b: times(s, factor, times_transpose(s, factor, b)) + share * b,
            lambda b: forward(s, v, backward(s, v, b)),
            share * residual + times(s, factor, one) + jnp.sqrt(share) * two,
            jnp.zeros_like(residual),
        )
        return values | {self.gp.site: mu.at[s.order].add(shift)}

    def log_likelihood(self, values: dict[str, Array]) -> dict[str, Array]:
        """Log p(y_i | f_i, θ) of each observation."""
        return self.at(values).log_likelihood(values)

    def predictive(self, key: PRNGKeyArray, values: dict[str, Array], *args: Any, **kwargs: Any) -> dict[str, Array]:
        """As `LatentGP.predictive`, at the draw's hyper-parameters."""
        return self.at(values).predictive(key, values, *args, **kwargs)

    def _identity(self) -> list[Any]:
        named = [part for name in sorted(self.priors) for part in (name, type(self.priors[name]).__name__)]
        return [self.name, *named, *jax.tree.leaves((self.gp, self.pattern, self.priors))]


def full(gp: LatentGP, priors: Mapping[str, Any], extent: Extent) -> FullGP:
    """See `LatentGP.with_priors`."""
    from numpyro.distributions import Distribution

    named = gp.parameters()
    if not isinstance(priors, Mapping) or not priors:
        raise InvalidArgument(f"priors must be a dict from names to NumPyro distributions, got {priors!r}.")
    for name, prior in priors.items():
        if name not in named:
            raise InvalidArgument(f"priors names {name!r}; the hyper-parameters are {', '.join(named) or 'none'}.")
        if not isinstance(prior, Distribution):
            raise InvalidArgument(f"priors[{name!r}] must be a NumPyro distribution, got {prior!r}.")
        if prior.event_shape or prior.batch_shape not in ((), np.shape(named[name])):
            raise InvalidArgument(
                f"priors[{name!r}] is of shape {prior.batch_shape + prior.event_shape}; give one of independent values "
                f"of shape {np.shape(named[name])}, or of one number."
            )
    example = {name: np.asarray(named[name], np.float64) for name in priors}
    support = {name: prior.support for name, prior in priors.items()}
    if not isinstance(gp.likelihood, Gaussian):
        example[f"{gp.site}_white"] = np.zeros(gp.dim)
    with precision(64):
        pattern = build_pattern(gp, extent)
        return FullGP(gp, jax.tree.map(np.asarray, pattern), dict(priors), coordinates(example, support))
