"""A latent process whose likelihood is replaced by one Gaussian factor per observation: the sites.

t_i(f_i) = exp(r_i (f_i − μ_i) − ½ λ_i (f_i − μ_i)²), q(f) ∝ p(f) ∏ t_i(f_i). Where p is Gaussian everything follows
from one pass through the form that the prior has (`AbstractForm`: dense, a Markov chain, low rank). The ELBO is

Σ_i E log p(y_i | f_i) − Σ_i E log t_i(f_i) + log ∫ p(f) ∏ t_i(f_i) df

and at its maximum over q the sites are r_i = E ∂ log p + λ_i (m_i − μ_i), λ_i = −E ∂² log p ([1]_): setting them so is
a natural-gradient step of length one, exact where the likelihood is Gaussian. Since the maximum is stationary, the
ELBO's gradient by hyper-parameters is that with the sites held fixed ([2]_).

A likelihood that is not log-concave may ask for λ_i < 0, which is cut off (`fixed_point.sites`). The fixed point is no
maximum then: the best sites may lower the ELBO. What a step toward them always raises is the part that the mean has in
it, E log p − ½ (m − μ)ᵀ K⁻¹ (m − μ) with variances as they are, K⁻¹ (m − μ) = r − λ (m − μ); it is what
bounds steps of such likelihoods.

The process is f = g + e, g of the kernel and e its nugget, independent from point to point with variance t_i. Sites of
f are sites of g of r_i / (1 + λ_i t_i) and λ_i / (1 + λ_i t_i), so that a form never sees the nugget.

References
----------
.. [1] M. E. Khan, W. Lin (2017). Conjugate-computation variational inference. AISTATS. arXiv:1703.04265.
.. [2] V. Adam, P. E. Chang, M. E. Khan, A. Solin (2021). Dual parameterization of sparse variational Gaussian
   processes. NeurIPS. arXiv:2111.03412.
"""

import abc
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .fixed_point import HALVINGS, sites
from .likelihoods import Gaussian

if TYPE_CHECKING:
    from .latent import LatentGP

SLACK = 1e-10
"""Of an ELBO, relative: what rounding may take from it."""


class Sites(NamedTuple):
    """r and λ of each observation, in the order of the data."""

    linear: Float[Array, " n"]
    precision: Float[Array, " n"]

    def __add__(self, other: "Sites") -> "Sites":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Sites(self.linear + other.linear, self.precision + other.precision)

    def scaled(self, by: Float[Array, "..."]) -> "Sites":
        """Both times a number."""
        return Sites(by * self.linear, by * self.precision)


class Conditioned(NamedTuple):
    """What a form finds of its variables at the data given sites: deviations from the prior mean.

    Parameters
    ----------
    mean
        Of f − μ, or g − μ.
    explained
        Variance of the part that the sites see.
    residual
        Variance of what they do not see, by which f varies besides; 0 unless the form is of low rank.
    evidence
        log ∫ p ∏ t_i.
    """

    mean: Float[Array, " n"]
    explained: Float[Array, " n"]
    residual: Float[Array, " n"]
    evidence: Float[Array, ""]


class AbstractForm(eqx.Module):
    """A form of the prior of g, in which conditioning on sites is cheap; sites here are those of g."""

    @abc.abstractmethod
    def condition(self, gp: "LatentGP", sites: Sites) -> Conditioned:
        """Of g at the data."""

    @abc.abstractmethod
    def draw(self, gp: "LatentGP", sites: Sites, key: PRNGKeyArray, n: int) -> Float[Array, "k n"]:
        """Draws of the part of g − μ at the data that the sites see."""

    @abc.abstractmethod
    def predict(
        self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], *, gradients: bool
    ) -> tuple[Float[Array, "..."], ...]:
        """Mean and variance of g − μ at new inputs, and their derivatives by the inputs if wanted."""

    @abc.abstractmethod
    def draw_at(
        self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], key: PRNGKeyArray, n: int
    ) -> Float[Array, "s k"]:
        """Coherent draws of g − μ at new inputs."""

    @abc.abstractmethod
    def log_density(self, gp: "LatentGP", given: Sites, f: Float[Array, " n"]) -> Float[Array, ""]:
        """Log density of q at f, for sites of f."""


def nuggets(gp: "LatentGP", x: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Variance of e at inputs."""
    return gp.tau2() * gp.kernel.diagonal(x)


def of_smooth(gp: "LatentGP", given: Sites) -> Sites:
    """The sites of g that sites of f = g + e are."""
    return given.scaled(1 / (1 + given.precision * nuggets(gp, jnp.asarray(gp.X))))


def condition(gp: "LatentGP", form: AbstractForm, given: Sites) -> Conditioned:
    """F given sites of its own."""
    t = nuggets(gp, jnp.asarray(gp.X))
    shrink = 1 / (1 + given.precision * t)
    g = form.condition(gp, of_smooth(gp, given))
    evidence = g.evidence + 0.5 * jnp.sum(t * shrink * given.linear**2 + jnp.log(shrink))
    return Conditioned(
        shrink * (g.mean + t * given.linear), shrink**2 * g.explained + shrink * t, g.residual, evidence
    )  # fmt: skip


def draw(gp: "LatentGP", form: AbstractForm, given: Sites, key: PRNGKeyArray, n: int) -> Float[Array, "k n"]:
    """Draws of f at the data; what the sites do not see is drawn for each point by itself."""
    key_g, key_e = jax.random.split(key)
    x = jnp.asarray(gp.X)
    t = nuggets(gp, x)
    shrink = 1 / (1 + given.precision * t)
    g = form.draw(gp, of_smooth(gp, given), key_g, n)
    residual = form.condition(gp, of_smooth(gp, given)).residual
    noise = jnp.sqrt(shrink * t + residual) * jax.random.normal(key_e, g.shape, g.dtype)
    return gp.mean.at(x) + shrink * (g + t * given.linear) + noise


def posterior_density(
    gp: "LatentGP", form: AbstractForm, given: Sites, f: Float[Array, " n"], log_prior: Float[Array, ""]
) -> Float[Array, ""]:
    """Log q(f) of a form that is the prior's own: log p(f) + Σ log t_i(f_i) − log ∫ p ∏ t_i."""
    return log_prior + log_sites(given, f - gp.mean.at(jnp.asarray(gp.X))) - condition(gp, form, given).evidence


def log_sites(given: Sites, above: Float[Array, " n"]) -> Float[Array, ""]:
    """Σ log t_i at f − μ."""
    return jnp.sum(given.linear * above - 0.5 * given.precision * above**2)


def elbo(gp: "LatentGP", form: AbstractForm, given: Sites) -> tuple[Float[Array, ""], Conditioned]:
    """The ELBO of q with these sites, and its moments."""
    found = condition(gp, form, given)
    mean = gp.mean.at(jnp.asarray(gp.X)) + found.mean
    fit = jnp.sum(gp.likelihood.expected(mean, found.explained + found.residual, jnp.asarray(gp.y)).value)
    return fit - log_sites(given, found.mean) + 0.5 * jnp.vdot(given.precision, found.explained) + found.evidence, found


def part_of_mean(gp: "LatentGP", given: Sites, above: Float[Array, " n"], variance: Float[Array, " n"]) -> Array:
    """The ELBO's part that depends on the mean m − μ of q with these sites, at given variances; see the module."""
    mean = gp.mean.at(jnp.asarray(gp.X)) + above
    fit = jnp.sum(gp.likelihood.expected(mean, variance, jnp.asarray(gp.y)).value)
    return fit - 0.5 * jnp.vdot(above, given.linear - given.precision * above)


def site_at(
    gp: "LatentGP",
    mean: Float[Array, " n"],
    variance: Float[Array, " n"],
    mu: Float[Array, " n"],
    y: Float[Array, " n"],
) -> Sites:
    """The sites that are best for these moments of f."""
    expected = gp.likelihood.expected(mean, variance, y)
    precision = sites(expected)
    return Sites(expected.gradient + precision * (mean - mu), precision)


def first_sites(gp: "LatentGP") -> Sites:
    """Those at the likelihood's start, without spread: of a Laplace approximation's first step."""
    y, mu = jnp.asarray(gp.y, float), gp.mean.at(jnp.asarray(gp.X))
    at = gp.likelihood.start(y)
    return site_at(gp, at, jnp.zeros_like(at), mu, y)


class Round(NamedTuple):
    """What an iteration of the fixed point ends with; ``change`` is the largest move of a mean in sd."""

    sites: Sites
    mean: Float[Array, " n"]
    variance: Float[Array, " n"]
    elbo: Float[Array, ""]
    change: Float[Array, ""]
    step_size: Float[Array, ""]


def iterate(gp: "LatentGP", form: AbstractForm, given: Sites) -> Round:
    """A natural-gradient step, halved until the ELBO, or its part of the mean, does not fall; see the module."""
    x, y = jnp.asarray(gp.X), jnp.asarray(gp.y, float)
    mu = gp.mean.at(x)
    before, old = elbo(gp, form, given)
    spread = old.explained + old.residual
    best = site_at(gp, mu + old.mean, spread, mu, y)
    if isinstance(gp.likelihood, Gaussian):
        value, new = elbo(gp, form, best)
        change, beta = jnp.zeros_like(value), jnp.ones_like(value)
    else:
        mix = lambda beta: given.scaled(1 - beta) + best.scaled(beta)  # noqa: E731

        def merit(at: Sites, value: Array, found: Conditioned) -> Array:
            if gp.likelihood.log_concave:
                return value
            return jnp.where(jnp.isfinite(value), part_of_mean(gp, at, found.mean, spread), value)

        start = merit(given, before, old)
        enough = start - SLACK * (1 + jnp.abs(start))

        def falls(carry: tuple) -> Array:
            k, beta, value, found = carry
            return (k == 0) | (~(merit(mix(beta), value, found) >= enough) & (k < HALVINGS))

        def again(carry: tuple) -> tuple:
            k, beta, _, _ = carry
            beta = jnp.where(k == 0, 1.0, 0.5 * beta)
            return k + 1, beta, *elbo(gp, form, mix(beta))

        _, beta, value, new = jax.lax.while_loop(falls, again, (0, jnp.ones_like(before), before, old))
        # Where no step raises it, rounding is all that is left of the step.
        fine = merit(mix(beta), value, new) >= enough
        beta = jnp.where(fine, beta, 0.0)
        value, new = jax.tree.map(lambda a, b: jnp.where(fine, a, b), (value, new), (before, old))
        best = mix(beta)
        change = jnp.max(jnp.abs(new.mean - old.mean) / jnp.sqrt(new.explained + new.residual))
    return Round(best, mu + new.mean, new.explained + new.residual, value, change, beta)


def settle(
    gp: "LatentGP", form: AbstractForm, given: Sites, tolerance: Float[Array, ""] | float, max_iterations: int
) -> Round:
    """Iterations until no mean moves by more than ``tolerance`` sd."""
    n, zero = gp.y.shape[0], jnp.zeros(())
    begin = Round(given, jnp.zeros(n), jnp.ones(n), zero, zero + jnp.inf, zero)
    return jax.lax.while_loop(
        lambda c: (c[1].change > tolerance) & (c[0] < max_iterations),
        lambda c: (c[0] + 1, iterate(gp, form, c[1].sites)),
        (jnp.zeros((), jnp.int32), begin),
    )[1]
