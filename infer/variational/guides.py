"""What a trained NumPyro guide is: a density of u that can be drawn from, and the Laplace approximation."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from ..approximation import Approximation
from ..errors import NonFinite, NotAvailable
from ..linalg import Triangular
from ..target import Target
from .gaussian.approximation import GaussianApproximation


def flat_model(target: Target | None, dim: int) -> Any:
    """A NumPyro model with the one latent site ``u`` and the target's log density (none: an improper constant)."""
    import numpyro
    from numpyro import handlers
    from numpyro.distributions import ImproperUniform, constraints

    def model() -> None:
        u = numpyro.sample("u", ImproperUniform(constraints.real_vector, (), (dim,)))
        if target is not None:
            with handlers.block():  # the sites of the target's own model are not this model's
                log_density = target.log_density(u)
            numpyro.factor("log_density", log_density)

    return model


class GuideApproximation(Approximation):
    """A trained NumPyro guide.

    Parameters
    ----------
    params
        Its parameters by name, as NumPyro's ``svi.get_params`` gives them.
    target
        Kept for guides that look at the density (AutoDAIS), else None.
    method, dim
        How the guide is rebuilt, and the dimension d.
    """

    params: dict[str, Any]
    target: Any
    method: Any
    dim: int = eqx.field(static=True)

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` draws and their log densities; those of the auxiliary variables included, where a guide has some."""

        def one(key: PRNGKeyArray) -> tuple[Array, Array]:
            trace = self._trace(key)
            sites = [site for site in trace.values() if site["type"] == "sample"]
            return trace["u"]["value"], sum(_log_prob(site) for site in sites)

        return jax.vmap(one)(jax.random.split(key, n))

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``; `NotAvailable` for guides that cannot be inverted (AutoBNAFNormal, AutoDAIS)."""
        try:
            return jnp.sum(self._distribution("log_prob").log_prob(u))
        except NotImplementedError as error:
            raise self._lacks("log_prob", "a flow that cannot be inverted; use sample_and_log_prob") from error

    def mean(self) -> Float[Array, " d"]:
        """Exact mean, of normal guides."""
        return self._normal("mean").mean

    def covariance(self) -> Float[Array, "d d"]:
        """Exact covariance, of normal guides."""
        normal = self._normal("covariance")
        return normal.covariance_matrix if hasattr(normal, "covariance_matrix") else jnp.diag(normal.variance)

    def _trace(self, key: PRNGKeyArray) -> dict[str, Any]:
        from numpyro import handlers

        guide = self.method.build(flat_model(self.target, self.dim), jnp.zeros(self.dim))
        return handlers.trace(handlers.seed(handlers.substitute(guide, self.params), key)).get_trace()

    def _distribution(self, what: str) -> Any:
        """The guide's one distribution of u."""
        from numpyro.distributions import Delta

        trace = self._trace(jax.random.key(0))
        found = [s["fn"] for s in trace.values() if s["type"] == "sample" and not isinstance(s["fn"], Delta)]
        if len(found) != 1 or found[0].shape() != (self.dim,):
            raise self._lacks(what, "auxiliary variables; use sample_and_log_prob")
        return found[0]

    def _normal(self, what: str) -> Any:
        from numpyro.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal

        q = self._distribution(what)
        base = q.base_dist if isinstance(q, Independent) else q
        if isinstance(base, Normal | MultivariateNormal | LowRankMultivariateNormal):
            return q
        raise self._lacks(what, "no closed-form moments; average draws of sample_and_log_prob")

    def _lacks(self, what: str, why: str) -> NotAvailable:
        name = self.method.guide if isinstance(self.method.guide, str) else self.method.guide.__name__
        return NotAvailable(f"{what} of {name} is not available: it has {why}.")


def laplace(target: Target, mode: Float[Array, " d"]) -> GaussianApproximation:
    """The Laplace approximation at a mode; raises `NonFinite` where the negative Hessian is not positive definite."""
    scale_tril = _laplace_scale(target, mode)
    if not bool(jnp.all(jnp.isfinite(scale_tril))):
        raise NonFinite(
            f"AutoLaplaceApproximation: the Hessian at the mode found ({np.asarray(mode)[:4]}…) is not negative "
            f"definite; raise num_steps, or use 'AutoNormal'."
        )
    return GaussianApproximation(mode, Triangular(scale_tril))


@jax.jit
def _laplace_scale(target: Target, mode: Array) -> Array:
    # With H = R Rᵀ (lower R), H⁻¹ = R⁻ᵀ R⁻¹; its lower factor comes from a Cholesky decomposition in reversed order.
    hessian = -jax.hessian(target.log_density)(mode)
    reverse = jnp.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]  # upper, H = U Uᵀ
    return solve_triangular(reverse, jnp.eye(mode.shape[0]), lower=False).T


def _log_prob(site: dict[str, Any]) -> Array:
    # Summed: some guides leave the coordinates of u as a batch of independent normals.
    if site["intermediates"]:
        return jnp.sum(site["fn"].log_prob(site["value"], site["intermediates"]))
    return jnp.sum(site["fn"].log_prob(site["value"]))
