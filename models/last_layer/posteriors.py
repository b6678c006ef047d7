"""What the heads infer: normal weights, weights and noise precisions, or weights of mean and of log variance.

Each class has the KL divergence of q, and the densities and draws of prior and of q; the heads add the likelihood.
"""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float, PRNGKeyArray

from .covariance import AbstractWeights
from .head import AbstractLinear, as_setting


class AbstractNormal(AbstractLinear):
    """Weights w_k ~ N(0, diag(prior)), q(w_k) = N(w̄_k, S_k), and noise that is known or estimated at its mode.

    Parameters
    ----------
    noise
        Standard deviation, if it is known.
    dof, scale
        ν and ψ of the prior W⁻¹(ν, ψ I) of the estimated variances.
    """

    noise: Any = eqx.field(static=True, default=None, converter=as_setting)
    dof: float = eqx.field(static=True, default=1.0)
    scale: float = eqx.field(static=True, default=1.0)
    log_noise: Any = None

    @property
    @abc.abstractmethod
    def prior(self) -> Float[Array, " d"]:
        """Prior variance of the weights of each feature."""

    def log_hyperprior(self) -> Float[Array, ""]:
        """−(ν + K + 1)/2 log|Σ| − ψ/2 tr Σ⁻¹; 0 of noise that is known."""
        if self.log_noise is None:
            return jnp.zeros(())
        return inverse_wishart_log_prior(self.log_noise, self.dof, self.scale)

    def divergence(self) -> Float[Array, ""]:
        """Σ_k KL(q(w_k) ‖ N(0, s I))."""
        return jnp.sum(self.weights.divergences(self.prior))

    def latents(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The weights."""
        return {"w": (self.weights.mean.shape, None)}

    def log_prior(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log N(w; 0, s I)."""
        return jnp.sum(normal_log_prior(values["w"], self.prior))

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """N(0, s I)."""
        return {"w": normal_prior_draw(key, self.weights, self.prior)}

    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """N(w̄_k, S_k)."""
        return {"w": self.weights.mean + self.weights.offsets(key)}

    def log_q(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Σ_k log N(w_k; w̄_k, S_k)."""
        return jnp.sum(self.weights.offset_log_prob(values["w"] - self.weights.mean))


class AbstractNormalGamma(AbstractLinear):
    """Noise precisions τ_k ~ Gamma(a₀, b₀) and weights w_k | τ_k ~ N(0, diag(prior)/τ_k).

    q(τ_k) = Gamma(a_k, b_k) and q(w_k | τ_k) = N(w̄_k, S_k/τ_k).

    Parameters
    ----------
    shape, rate
        a₀ and b₀.
    """

    shape: float = eqx.field(static=True, default=0.5)
    rate: float = eqx.field(static=True, default=0.5)

    @property
    @abc.abstractmethod
    def prior(self) -> Float[Array, " d"]:
        """Prior variance of the weights of each feature."""

    @property
    @abc.abstractmethod
    def gamma(self) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """a_k and b_k."""

    def divergence(self) -> Float[Array, ""]:
        """E_q(τ) KL(q(w | τ) ‖ p(w | τ)) + KL(q(τ) ‖ p(τ)), summed over outputs."""
        a, b = self.gamma
        return jnp.sum(self.weights.divergences(self.prior, a / b) + gamma_divergence(a, b, self.shape, self.rate))

    def latents(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The weights and the precisions of the noise."""
        from numpyro.distributions import constraints

        return {"w": (self.weights.mean.shape, None), "tau": (self.weights.mean.shape[:1], constraints.positive)}

    def log_prior(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log N(w; 0, s I/τ) + log Gamma(τ; a₀, b₀)."""
        tau = values["tau"]
        of_tau = gamma_log_prob(tau, self.shape, self.rate)
        return jnp.sum(normal_log_prior(values["w"], self.prior, tau) + of_tau)

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Gamma, then N(0, s I/τ)."""
        key_tau, key_w = jax.random.split(key)
        w = self.weights.mean
        tau = jax.random.gamma(key_tau, self.shape, w.shape[:1], w.dtype) / self.rate
        return {"w": normal_prior_draw(key_w, self.weights, self.prior) / jnp.sqrt(tau)[:, None], "tau": tau}

    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Gamma(a, b), then N(w̄, S/τ)."""
        key_tau, key_w = jax.random.split(key)
        a, b = self.gamma
        tau = jax.random.gamma(key_tau, a) / b
        return {"w": self.weights.mean + self.weights.offsets(key_w) / jnp.sqrt(tau)[:, None], "tau": tau}

    def log_q(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log Gamma(τ; a, b) + log N(w; w̄, S/τ)."""
        tau = values["tau"]
        x = (values["w"] - self.weights.mean) * jnp.sqrt(tau)[:, None]
        of_w = self.weights.offset_log_prob(x) + 0.5 * self.num_features * jnp.log(tau)
        return jnp.sum(of_w + gamma_log_prob(tau, *self.gamma))


class AbstractTwoNormals(AbstractLinear):
    """Weights w of the mean and m of the log variance of the noise: normal, of prior and of q, independent.

    Parameters
    ----------
    noise_prior_scale
        Prior variance of the entries of m; default 1/D.
    """

    noise_prior_scale: Any = eqx.field(static=True, default=None, converter=as_setting)
    noise_weights: Any = None

    positive: ClassVar[tuple[str, ...]] = ("prior_scale", "noise_prior_scale")

    @property
    @abc.abstractmethod
    def priors(self) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """Prior variances of w and of m, for each feature."""

    def divergence(self) -> Float[Array, ""]:
        """Those of w and of m."""
        return jnp.sum(sum(q.divergences(prior) for q, prior in zip(self._both, self.priors, strict=True)))

    def latents(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The weights of mean and of log variance."""
        return {"w": (self.weights.mean.shape, None), "m": (self.weights.mean.shape, None)}

    def log_prior(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Two normals."""
        of_w, of_m = self.priors
        return jnp.sum(normal_log_prior(values["w"], of_w) + normal_log_prior(values["m"], of_m))

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Two normals."""
        parts = zip(("w", "m"), jax.random.split(key), self._both, self.priors, strict=True)
        return {name: normal_prior_draw(key, q, prior) for name, key, q, prior in parts}

    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Two normals."""
        parts = zip(("w", "m"), jax.random.split(key), self._both, strict=True)
        return {name: q.mean + q.offsets(key) for name, key, q in parts}

    def log_q(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Two normals."""
        parts = zip(("w", "m"), self._both, strict=True)
        return jnp.sum(sum(q.offset_log_prob(values[name] - q.mean) for name, q in parts))

    def first_of_both(self, key: PRNGKeyArray, k: int, d: int, *, log_scale: float | None) -> tuple[Any, Any]:
        """Where training of w and of m begins; m at 0."""
        key_w, key_m = jax.random.split(key)
        weights = self.first_weights(key_w, k, d, log_scale=log_scale)
        return weights, self.first_weights(key_m, k, d, mean_scale=0.0, log_scale=-math.log(d))

    @property
    def _both(self) -> tuple[AbstractWeights, AbstractWeights]:
        return self.weights, self.noise_weights


def normal_log_prior(w: Float[Array, "k d"], variance: Float[Array, " d"], precision: Any = 1.0) -> Float[Array, " k"]:
    """Log N(w_k; 0, diag(variance) / precision_k) for each k."""
    d = variance.shape[0]
    logs = jnp.sum(jnp.log(2 * jnp.pi * variance)) - d * jnp.log(precision)
    return -0.5 * (precision * jnp.sum(w**2 / variance, -1) + logs)


def normal_prior_draw(key: PRNGKeyArray, like: AbstractWeights, variance: Float[Array, " d"]) -> Float[Array, "k d"]:
    """A draw of N(0, diag(variance)) for each k."""
    return jnp.sqrt(variance) * jax.random.normal(key, like.mean.shape, like.mean.dtype)


def inverse_wishart_log_prior(log_sd: Float[Array, " k"], dof: float, scale: float) -> Float[Array, ""]:
    """Log W⁻¹(ν, ψ I) of Σ = diag(σ²), −(ν + K + 1)/2 log|Σ| − ψ/2 tr Σ⁻¹, up to a constant."""
    return -(dof + len(log_sd) + 1) * jnp.sum(log_sd) - 0.5 * scale * jnp.sum(jnp.exp(-2 * log_sd))


def gamma_log_prob(tau: Array, a: Any, b: Any) -> Array:
    """Log Gamma(τ; a, b), b the rate."""
    return a * jnp.log(b) - gammaln(a) + (a - 1) * jnp.log(tau) - b * tau


def gamma_divergence(a: Array, b: Array, a0: float, b0: float) -> Array:
    """KL(Gamma(a, b) ‖ Gamma(a₀, b₀)), rates b."""
    return (a - a0) * digamma(a) - gammaln(a) + gammaln(a0) + a0 * (jnp.log(b) - jnp.log(b0)) + a * (b0 - b) / b
