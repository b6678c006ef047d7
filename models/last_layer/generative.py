"""`GenerativeHead`: classification by normals of the features of each class (G-VBLL).

φ | y = k ~ N(μ_k, Σ) with a diagonal Σ estimated at its mode, μ_k ~ N(0, s I) with q(μ_k) = N(μ̄_k, S_k), S_k diagonal,
and class probabilities ρ ~ Dir(α₀). What is bounded is the *conditional* likelihood p(y | φ, μ, ρ): by Jensen's
inequality for the normaliser,

    E log p(y | φ) ≥ log N(φ; μ̄_y, Σ) − ½ tr(Σ⁻¹ S_y) + ψ(α_y) − ψ(α_*)
                     − LSE_k[log N(φ; μ̄_k, Σ + S_k) + log α_k − log α_*]

with ψ the digamma function ([1]_). q(ρ) = Dir(α₀ + class counts), the conjugate posterior of the labels alone, stays as
it is. The bound is not comparable between models of other features.

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2024). Variational Bayesian last layers. ICLR. arXiv:2404.11599.
"""

import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from .classification import entropy
from .classifier import AbstractClassifier, labels
from .covariance import first_weights
from .head import as_setting, per_feature
from .posteriors import inverse_wishart_log_prior, normal_log_prior, normal_prior_draw

LOG_2PI = math.log(2 * math.pi)
FIRST_SPREAD = 0.1


class GenerativeHead(AbstractClassifier):
    """Classification by normals of the features of each class.

    Parameters
    ----------
    num_classes
        K; default the largest label plus one.
    prior_scale
        s, the prior *variance* of the means; default 1.
    concentration
        α₀ of each class.
    dof, scale
        ν and ψ of the prior W⁻¹(ν, ψ I) of Σ.

    Raises
    ------
    InvalidArgument
        A setting is out of range.
    """

    num_classes: int | None = eqx.field(static=True, default=None)
    prior_scale: Any = eqx.field(static=True, default=None, converter=as_setting)
    concentration: float = eqx.field(static=True, default=1.0)
    dof: float = eqx.field(static=True, default=1.0)
    scale: float = eqx.field(static=True, default=1.0)
    weights: Any = None
    log_noise: Any = None
    counts: Any = None

    trained: ClassVar[tuple[str, ...]] = ("weights", "log_noise")
    positive: ClassVar[tuple[str, ...]] = ("prior_scale", "concentration", "dof", "scale")

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "GenerativeHead":
        """See `AbstractHead.build`; α₀ + class counts are those of y."""
        del unit
        k = self.classes_of(y)
        weights = first_weights(key, "diagonal", k, num_features, mean_scale=FIRST_SPREAD)
        counts = self.concentration + jnp.zeros(k, float).at[jnp.asarray(y)].add(1.0)
        return dataclasses.replace(self, weights=weights, log_noise=jnp.zeros(num_features, float), counts=counts)

    @property
    def prior(self) -> Float[Array, " d"]:
        """S for each feature."""
        return per_feature(self.prior_scale, self.num_features, 1.0)

    def joint_logs(self, phi: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Log N(φ; μ̄_k, Σ + S_k) + log α_k − log α_* of each row."""
        variance = jnp.exp(2 * self.log_noise) + self.weights.variances()
        square = (phi**2) @ (1 / variance).T - 2 * phi @ (self.weights.mean / variance).T
        square = square + jnp.sum(self.weights.mean**2 / variance, -1)
        logs = jnp.sum(jnp.log(variance), -1) + self.num_features * LOG_2PI
        return -0.5 * (square + logs) + jnp.log(self.counts) - jnp.log(jnp.sum(self.counts))

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """The bound of each row."""
        del key
        noise = jnp.exp(2 * self.log_noise)
        square = jnp.sum((phi - self.weights.mean[y]) ** 2 / noise, -1)
        logs = 2 * jnp.sum(self.log_noise) + self.num_features * LOG_2PI
        trace = jnp.sum(self.weights.variances() / noise, -1)[y]
        shares = digamma(self.counts)[y] - digamma(jnp.sum(self.counts))
        return -0.5 * (square + logs + trace) + shares - logsumexp(self.joint_logs(phi), axis=-1)

    def divergence(self) -> Float[Array, ""]:
        """Σ_k KL(q(μ_k) ‖ N(0, s I)) + KL(q(ρ) ‖ p(ρ))."""
        return jnp.sum(self.weights.divergences(self.prior)) + _dirichlet_kl(self.counts, self.concentration)

    def log_hyperprior(self) -> Float[Array, ""]:
        """−(ν + D + 1)/2 log|Σ| − ψ/2 tr Σ⁻¹."""
        return inverse_wishart_log_prior(self.log_noise, self.dof, self.scale)

    def probabilities(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
        """Softmax of `joint_logs`, and its entropy: the means' uncertainty is in the probabilities."""
        p = jax.nn.softmax(self.joint_logs(phi))
        return p, entropy(p)

    def predict(self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False) -> Any:
        """Categorical with softmax_k of `joint_logs`.

        Raises
        ------
        InvalidArgument
            ``joint``: labels of several rows have no closed form together.
        """
        del loc, scale
        return labels(joint, logits=jax.nn.log_softmax(self.joint_logs(phi)))

    def ood_score(self, phi: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The log density of the features; the largest probability is in `predict`."""
        return logsumexp(self.joint_logs(phi), axis=-1)

    def latents(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The means of the classes, and their probabilities."""
        from numpyro.distributions import constraints

        return {"w": (self.weights.mean.shape, None), "rho": (self.counts.shape, constraints.simplex)}

    def log_prior(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log N(μ; 0, s I) + log Dir(ρ; α₀)."""
        of_rho = _dirichlet_log_prob(values["rho"], jnp.full_like(self.counts, self.concentration))
        return jnp.sum(normal_log_prior(values["w"], self.prior)) + of_rho

    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Log softmax_k(log N(φ; μ_k, Σ) + log ρ_k)_y."""
        return jax.nn.log_softmax(self._logits(phi, values))[jnp.arange(len(phi)), y]

    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """A label given φ."""
        return jax.random.categorical(key, self._logits(phi, values))

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """A normal and a Dirichlet."""
        key_w, key_rho = jax.random.split(key)
        rho = jax.random.dirichlet(key_rho, jnp.full_like(self.counts, self.concentration))
        return {"w": normal_prior_draw(key_w, self.weights, self.prior), "rho": rho}

    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """A normal and a Dirichlet."""
        key_w, key_rho = jax.random.split(key)
        rho = jax.random.dirichlet(key_rho, self.counts)
        return {"w": self.weights.mean + self.weights.offsets(key_w), "rho": rho}

    def log_q(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Σ_k log N(μ_k; μ̄_k, S_k) + log Dir(ρ; α)."""
        of_w = jnp.sum(self.weights.offset_log_prob(values["w"] - self.weights.mean))
        return of_w + _dirichlet_log_prob(values["rho"], self.counts)

    def _logits(self, phi: Array, values: dict[str, Array]) -> Float[Array, "n k"]:
        precision = jnp.exp(-2 * self.log_noise)
        w = values["w"]
        square = -2 * (phi * precision) @ w.T + jnp.sum(w**2 * precision, -1)
        return -0.5 * square + jnp.log(values["rho"])


def _dirichlet_log_prob(rho: Array, alpha: Array) -> Float[Array, ""]:
    return jnp.sum((alpha - 1) * jnp.log(rho) - gammaln(alpha)) + gammaln(jnp.sum(alpha))


def _dirichlet_kl(alpha: Array, alpha0: float) -> Float[Array, ""]:
    """KL(Dir(α) ‖ Dir(α₀, …, α₀))."""
    total, k = jnp.sum(alpha), alpha.shape[0]
    constant = gammaln(total) - jnp.sum(gammaln(alpha)) - gammaln(k * alpha0) + k * gammaln(alpha0)
    return constant + jnp.sum((alpha - alpha0) * (digamma(alpha) - digamma(total)))
