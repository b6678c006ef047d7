"""Heads for regression, whose bounds and predictives are closed forms.

Here y_k = w_kᵀφ + ε_k for outputs k = 1 … K, with w_k ~ N(0, s I), and

- `NormalHead`: ε_k ~ N(0, σ_k²), σ_k known or estimated at the mode under Σ = diag(σ²) ~ W⁻¹(ν, ψ I) ([1]_, thm 1);
- `StudentTHead`: the precision τ_k of ε_k is inferred too, w_k | τ_k ~ N(0, s I / τ_k), τ_k ~ Gamma ([2]_).

Both contain the exact posterior given φ (with a dense S): their bound is then the log evidence. The released code of
[1]_ averages over outputs and multiplies each output's φᵀSφ by the sum of all precisions; here the likelihood of K
outputs is the sum of those of one.

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2024). Variational Bayesian last layers. ICLR. arXiv:2404.11599.
.. [2] J. Harrison, J. Willes, J. Snoek (2025). Heteroscedastic variational Bayesian last layers. AABI.
"""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from .head import AbstractHead, per_feature
from .posteriors import AbstractNormal, AbstractNormalGamma

LOG_2PI = math.log(2 * math.pi)


class AbstractRegression(AbstractHead):
    """A head whose y are real."""

    task: ClassVar[str] = "regression"

    @abc.abstractmethod
    def moments(self, phi: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """Mean, epistemic and aleatoric variance of y, each of shape (n, K)."""

    def ood_score(self, phi: Float[Array, "n d"]) -> Float[Array, " n"]:
        """−Σ_k of epistemic variance over that of the noise."""
        _, epistemic, aleatoric = self.moments(phi)
        return -jnp.sum(epistemic / aleatoric, -1)


class NormalHead(AbstractNormal, AbstractRegression):
    """Regression with normal noise, known or estimated.

    Parameters
    ----------
    covariance
        Form of S_k: ``"dense"``, ``"dense_precision"``, ``"diagonal"`` or ``"low_rank"`` (with ``rank``).
    shared
        Whether all outputs share one S.
    prior_scale
        s, the prior *variance* of a weight; a number, or one for each feature. Not divided by D. Default 1.
    noise
        Standard deviation of the noise, a number or one for each output, in units of y; None: estimated.
    dof, scale
        ν and ψ of the prior of the noise variances (in standardised units, where `LastLayer` standardises y).

    Raises
    ------
    InvalidArgument
        A setting is out of range, or a low rank without ``rank``.
    """

    known: Any = None

    trained: ClassVar[tuple[str, ...]] = ("weights", "log_noise")
    positive: ClassVar[tuple[str, ...]] = ("prior_scale", "noise", "dof", "scale")

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "NormalHead":
        """See `AbstractHead.build`; estimated noise begins at the standard deviation of y."""
        k = num_outputs(y)
        weights = self.first_weights(key, k, num_features)
        if self.noise is None:
            first = _log_deviation(y)
            return dataclasses.replace(self, weights=weights, log_noise=first, known=None)
        noise = jnp.asarray(_one_each("noise", self.noise, k), float) / jnp.asarray(unit, float)
        return dataclasses.replace(self, weights=weights, log_noise=None, known=jnp.broadcast_to(jnp.log(noise), (k,)))

    @property
    def log_sd(self) -> Float[Array, " k"]:
        """Log σ_k."""
        return self.known if self.log_noise is None else self.log_noise

    @property
    def prior(self) -> Float[Array, " d"]:
        """Prior variance of the weights of each feature."""
        return per_feature(self.prior_scale, self.num_features, 1.0)

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """Σ_k log N(y_k; w̄_kᵀφ, σ_k²) − φᵀS_kφ / (2σ_k²), exact."""
        del key
        square = (y - self.weights.means(phi)) ** 2 + self.weights.quadratic(phi)
        return -0.5 * jnp.sum(LOG_2PI + 2 * self.log_sd + square * jnp.exp(-2 * self.log_sd), -1)

    def moments(self, phi: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """Mean, epistemic and aleatoric variance of y, each of shape (n, K)."""
        mean = self.weights.means(phi)
        return mean, self.weights.quadratic(phi), jnp.broadcast_to(jnp.exp(2 * self.log_sd), mean.shape)

    def predict(
        self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False, single: bool = False
    ) -> Any:
        """N(w̄_kᵀφ, φᵀS_kφ + σ_k²) of shape (n, K); ``joint``: over the rows, for each output, with φᵀS_kφ′."""
        import numpyro.distributions as dist

        mean, epistemic, aleatoric = self.moments(phi)
        scales = jnp.broadcast_to(jnp.asarray(scale, float), mean.shape[1:])
        if not joint:
            found = loc + scales * mean, scales * jnp.sqrt(epistemic + aleatoric)
            return dist.Normal(*(x[:, 0] if single else x for x in found))
        covariance = self.weights.cross(phi, phi) + jax.vmap(jnp.diag)(aleatoric.T)
        found = (loc + scales * mean).T, scales[:, None, None] ** 2 * covariance
        return dist.MultivariateNormal(*(x[0] if single else x for x in found))

    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Σ_k log N(y_k; w_kᵀφ, σ_k²)."""
        z = (y - phi @ values["w"].T) * jnp.exp(-self.log_sd)
        return -0.5 * jnp.sum(LOG_2PI + 2 * self.log_sd + z**2, -1)

    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """w_kᵀφ + σ_k ε."""
        mean = phi @ values["w"].T
        return mean + jnp.exp(self.log_sd) * jax.random.normal(key, mean.shape, mean.dtype)


class StudentTHead(AbstractNormalGamma, AbstractRegression):
    """Regression with normal noise of unknown precision, which is inferred: a Student-t predictive.

    τ_k ~ Gamma(a₀, b₀), w_k | τ_k ~ N(0, s I/τ_k); q(τ_k) = Gamma(a_k, b_k), q(w_k | τ_k) = N(w̄_k, S_k/τ_k).

    Parameters
    ----------
    covariance, rank, shared, prior_scale
        As in `NormalHead`.
    shape, rate
        a₀ and b₀ of the prior of the noise precision (in standardised units, where `LastLayer` standardises y).

    Raises
    ------
    InvalidArgument
        A setting is out of range, or a low rank without ``rank``.
    """

    log_shape: Any = None
    log_rate: Any = None

    trained: ClassVar[tuple[str, ...]] = ("weights", "log_shape", "log_rate")
    positive: ClassVar[tuple[str, ...]] = ("prior_scale", "shape", "rate")

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "StudentTHead":
        """See `AbstractHead.build`; q(τ) begins as the prior."""
        del unit
        k = num_outputs(y)
        weights = self.first_weights(key, k, num_features)
        shape, rate = (jnp.full((k,), math.log(value), float) for value in (self.shape, self.rate))
        return dataclasses.replace(self, weights=weights, log_shape=shape, log_rate=rate)

    @property
    def gamma(self) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """a_k and b_k."""
        return jnp.exp(self.log_shape), jnp.exp(self.log_rate)

    @property
    def prior(self) -> Float[Array, " d"]:
        """S for each feature."""
        return per_feature(self.prior_scale, self.num_features, 1.0)

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """Σ_k ½[ψ(a) − log b − log 2π] − ½[(a/b)(y − w̄ᵀφ)² + φᵀSφ], exact; ψ the digamma function."""
        del key
        a, b = self.gamma
        square = (a / b) * (y - self.weights.means(phi)) ** 2 + self.weights.quadratic(phi)
        return 0.5 * jnp.sum(digamma(a) - self.log_rate - LOG_2PI - square, -1)

    def moments(self, phi: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """Mean, epistemic and aleatoric variance of y, each of shape (n, K); variances are infinite where a ≤ 1."""
        a, b = self.gamma
        mean = self.weights.means(phi)
        noise = jnp.where(a > 1, b / jnp.where(a > 1, a - 1, 1.0), jnp.inf)
        return mean, noise * self.weights.quadratic(phi), jnp.broadcast_to(noise, mean.shape)

    def predict(
        self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False, single: bool = False
    ) -> Any:
        """Student t of 2a degrees of freedom, scale² = (1 + φᵀSφ) b/a, of shape (n, K); ``joint`` over the rows."""
        import numpyro.distributions as dist

        a, b = self.gamma
        mean = self.weights.means(phi)
        scales = jnp.broadcast_to(jnp.asarray(scale, float), mean.shape[1:])
        if not joint:
            spread = jnp.sqrt((1 + self.weights.quadratic(phi)) * b / a)
            found = jnp.broadcast_to(2 * a, mean.shape), loc + scales * mean, scales * spread
            return dist.StudentT(*(x[:, 0] if single else x for x in found))
        matrix = self.weights.cross(phi, phi) + jnp.eye(len(phi), dtype=mean.dtype)
        factor = jnp.linalg.cholesky(matrix) * (scales * jnp.sqrt(b / a))[:, None, None]
        found = 2 * a, (loc + scales * mean).T, factor
        return dist.MultivariateStudentT(*(x[0] if single else x for x in found))

    def ood_score(self, phi: Float[Array, "n d"]) -> Float[Array, " n"]:
        """−Σ_k φᵀS_kφ: epistemic variance in units of the noise."""
        return -jnp.sum(self.weights.quadratic(phi), -1)

    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Σ_k log N(y_k; w_kᵀφ, 1/τ_k)."""
        tau = values["tau"]
        return 0.5 * jnp.sum(jnp.log(tau) - LOG_2PI - tau * (y - phi @ values["w"].T) ** 2, -1)

    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """w_kᵀφ + ε / √τ_k."""
        mean = phi @ values["w"].T
        return mean + jax.random.normal(key, mean.shape, mean.dtype) / jnp.sqrt(values["tau"])


def num_outputs(y: Any) -> int:
    """K of targets (n, K) or (n,)."""
    shape = np.shape(y)
    if len(shape) not in (1, 2):
        raise InvalidArgument(f"y must have shape (n,) or (n, K), got {shape}.")
    return 1 if len(shape) == 1 else shape[1]


def _log_deviation(y: Any) -> Float[Array, " k"]:
    y = jnp.asarray(y, float).reshape(len(y), -1)
    return jnp.log(jnp.maximum(jnp.std(y, axis=0), 1e-6))


def _one_each(name: str, value: Any, k: int) -> Any:
    if np.ndim(value) and len(value) != k:
        raise InvalidArgument(f"{name} must be a number or one for each of {k} outputs, got {len(value)} numbers.")
    return value
