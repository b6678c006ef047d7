"""`SitesPosterior`: what `DenseGP`, `StateSpaceGP` and `SVGP` find, a Gaussian given by its sites."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.run.precision import precision
from ...infer.validate import check_count
from .dense import with_slopes
from .latent import LatentGP, check_new
from .posterior import LatentPosterior, Prediction, with_observations
from .sites import AbstractForm, Round, Sites, condition, draw, nuggets, of_smooth, settle, site_at


class SitesPosterior(LatentPosterior):
    """q(f) ∝ p(f) ∏ t_i(f_i) at the data, in the order of the data.

    With inducing inputs, what these leave open of f is independent from point to point here: marginals are those of the
    variational posterior, and joint draws at the data lack correlations over distances that the inducing inputs do not
    resolve; `sample_jointly` has them.

    Parameters
    ----------
    gp
        The process at its learned hyper-parameters.
    form
        Of the prior.
    sites
        Of the likelihood.
    loc, variance
        Marginal means and variances of f at the data, shape (n,).
    elbo
        Of log p(y); equal to it where the likelihood is Gaussian and the prior's form exact.
    """

    gp: LatentGP
    form: AbstractForm
    sites: Sites
    loc: Float[Array, " n"]
    variance: Float[Array, " n"]
    elbo: Float[Array, ""]

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "k n"], Float[Array, " k"]]:
        """``n`` independent draws of f at the data and their log densities."""
        draws = self.sample_points(key, n)
        return draws, jax.vmap(self.log_prob)(draws)

    def sample_points(self, key: PRNGKeyArray, n: int) -> Float[Array, "k n"]:
        """``n`` independent draws of f at the data."""
        return draw(self.gp, self.form, self.sites, key, n)

    def log_prob(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        """Log density at ``u``."""
        return self.form.log_density(self.gp, self.sites, u)

    @eqx.filter_jit
    def _covariance(self) -> Float[Array, "n n"]:
        """Columns are the means that sites of one each would have, in a process of mean 0."""
        found = condition(self.gp, self.form, self.sites)
        eye = jnp.eye(self.gp.dim)
        explained = jax.vmap(lambda r: condition(self.gp, self.form, Sites(r, self.sites.precision)).mean)(eye)
        return explained + jnp.diag(found.residual)

    def predict(self, X: Any, *, gradients: bool = False) -> Prediction:
        """See `LatentPosterior.predict`."""
        with precision(64):
            x = jnp.asarray(check_new(self.gp, X))
            mean, variance, *slopes = map(np.asarray, _predict(self, x, gradients=gradients))
            return Prediction(mean, variance, self.gp.likelihood, *slopes)

    def sample_jointly(self, X: Any, key: Any = 0, num_samples: int = 1000) -> np.ndarray:
        """See `LatentPosterior.sample_jointly`."""
        from ...infer.run.plan import jax_key

        check_count("num_samples", num_samples)
        with precision(64):
            x = jnp.asarray(check_new(self.gp, X))
            return np.asarray(_jointly(self, x, jax_key(key), num_samples=num_samples))

    def condition(self, X: Any, y: Any, *, tolerance: float = 1e-6, max_iterations: int = 100) -> "SitesPosterior":
        """See `LatentPosterior.condition`; inducing inputs stay where they are."""
        with precision(64):
            new, gp = with_observations(self.gp, X, y)
            there = self.predict(new)
            found = _settle(gp, self.form, self.sites, there.mean, there.variance, tolerance, max_iterations)
            return SitesPosterior(gp, self.form, found.sites, found.mean, found.variance, found.elbo)


@eqx.filter_jit
def _predict(q: SitesPosterior, x: Array, *, gradients: bool) -> tuple[Array, ...]:
    """Moments of f: those of g, the mean function and the nugget."""

    def other(x: Array) -> tuple[Array, Array]:
        return q.gp.mean.at(x), nuggets(q.gp, x)

    found = q.form.predict(q.gp, of_smooth(q.gp, q.sites), x, gradients=gradients)
    return tuple(a + b for a, b in zip(found, with_slopes(other, x, gradients=gradients), strict=True))


@eqx.filter_jit
def _jointly(q: SitesPosterior, x: Array, key: Array, *, num_samples: int) -> Array:
    key_g, key_e = jax.random.split(key)
    g = q.form.draw_at(q.gp, of_smooth(q.gp, q.sites), x, key_g, num_samples)
    return q.gp.mean.at(x) + g + jnp.sqrt(nuggets(q.gp, x)) * jax.random.normal(key_e, g.shape, g.dtype)


@eqx.filter_jit
def _settle(
    gp: LatentGP, form: AbstractForm, old: Sites, mean: Array, variance: Array, tolerance: float, max_iterations: int
) -> Round:
    """From the old sites, and those that fit what is predicted at the new inputs."""
    k = len(mean)
    mu, y = gp.mean.at(jnp.asarray(gp.X)[-k:]), jnp.asarray(gp.y)[-k:]
    new = site_at(gp, jnp.asarray(mean), jnp.asarray(variance), mu, y)
    both = Sites(*(jnp.concatenate(parts) for parts in zip(old, new, strict=True)))
    return settle(gp, form, both, tolerance, max_iterations)
