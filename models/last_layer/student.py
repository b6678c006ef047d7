"""`StudentTSoftmaxHead`: classification with logits whose noise precision is inferred for each class.

z_k = w_kᵀφ + ε_k, ε_k ~ N(0, Σ_k), 1/Σ_k = τ_k ~ Gamma(a₀, b₀), w_k | τ_k ~ N(0, s I/τ_k); q(τ_k) = Gamma(a_k, b_k) and
q(w_k | τ_k) = N(w̄_k, S_k/τ_k), as in `StudentTHead`. Given τ the logits have means m_k = w̄_kᵀφ and variances Σ_k c_k,
c_k = φᵀS_kφ + 1; in the bound of Knowles & Minka (see `classification`) with a_k = ½ − α/Σ_k the variances leave the
log-sum-exp, so that the expectation over τ is a closed form ([1]_):

    E log softmax(z)_y ≥ m_y − LSE_k(m_k + α c_k) − ½ Σ_k c_k (E[Σ_k]/4 + α² E[1/Σ_k] − α)

for any α > 0, with E[Σ_k] = b_k/(a_k − 1) and E[1/Σ_k] = a_k/b_k. The released code has e b_k/a_k for E[Σ_k], with
which it need not be a bound. a_k > 1 by its parameterisation.

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2025). Heteroscedastic variational Bayesian last layers. AABI.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.validate import check_count
from .classification import ROWS, check_labels, entropy, normal_points
from .covariance import check_form, first_weights
from .discriminative import NOISE_POINTS
from .head import AbstractHead, as_setting, check_scale, normal_log_prior, per_feature
from .regression import gamma_log_prob

POINTS = 256
FIRST_ALPHA = 0.1


class StudentTSoftmaxHead(AbstractHead):
    """Classification by Bayesian logits with noise of unknown precision.

    Parameters
    ----------
    covariance, rank, shared
        Form of S_k, as in `NormalHead`; default ``"diagonal"``.
    num_classes
        K; default the largest label plus one.
    prior_scale
        s; default 2/(D E₀[Σ]), E₀[Σ] = b₀/(a₀ − 1).
    shape, rate
        a₀ > 1 and b₀ of the prior of the precisions.

    Raises
    ------
    InvalidArgument
        A setting is out of range: with a₀ ≤ 1 the noise would have no mean variance.
    """

    covariance: str = eqx.field(static=True, default="diagonal")
    rank: int | None = eqx.field(static=True, default=None)
    shared: bool = eqx.field(static=True, default=False)
    num_classes: int | None = eqx.field(static=True, default=None)
    prior_scale: Any = eqx.field(static=True, default=None, converter=as_setting)
    shape: float = eqx.field(static=True, default=2.0)
    rate: float = eqx.field(static=True, default=1.0)
    weights: Any = None
    raw_shape: Any = None
    log_rate: Any = None
    log_alpha: Any = None

    task: ClassVar[str] = "classification"
    trained: ClassVar[tuple[str, ...]] = ("weights", "raw_shape", "log_rate", "log_alpha")

    def __check_init__(self) -> None:
        check_form(self.covariance, self.rank, self.shared)
        if self.num_classes is not None:
            check_count("num_classes", self.num_classes, 2)
        for name in ("prior_scale", "shape", "rate"):
            check_scale(name, getattr(self, name))
        if not self.shape > 1:
            raise InvalidArgument(f"shape must be > 1, so that the noise has a mean variance, got {self.shape!r}.")

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "StudentTSoftmaxHead":
        """See `AbstractHead.build`; q(τ) begins as the prior, α at 0.1."""
        del unit
        k = self.num_classes
        if k is None or not isinstance(y, jax.core.Tracer):
            _, k = check_labels(y, k)
        form: dict[str, Any] = {"rank": self.rank, "shared": self.shared}
        weights = first_weights(key, self.covariance, k, num_features, **form, log_scale=-float(np.log(num_features)))
        fields = {
            "raw_shape": jnp.full((k,), np.log(np.expm1(self.shape - 1)), float),
            "log_rate": jnp.full((k,), np.log(self.rate), float),
            "log_alpha": jnp.asarray(np.log(FIRST_ALPHA), float),
        }
        return dataclasses.replace(self, weights=weights, **fields)

    @property
    def gamma(self) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """a_k > 1 and b_k."""
        return 1 + jax.nn.softplus(self.raw_shape), jnp.exp(self.log_rate)

    @property
    def prior(self) -> Float[Array, " d"]:
        """S for each feature."""
        d = self.num_features
        return per_feature(self.prior_scale, d, 2 * (self.shape - 1) / (self.rate * d))

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """The bound of each row."""
        del key
        a, b = self.gamma
        m, c, alpha = self.weights.means(phi), self.weights.quadratic(phi) + 1, jnp.exp(self.log_alpha)
        penalty = 0.5 * jnp.sum(c * (b / (a - 1) / 4 + alpha**2 * a / b - alpha), -1)
        return m[jnp.arange(len(m)), y] - logsumexp(m + alpha * c, axis=-1) - penalty

    def divergence(self) -> Float[Array, ""]:
        """E_q(τ) KL(q(w | τ) ‖ p(w | τ)) + KL(q(τ) ‖ p(τ)), summed over classes."""
        a, b = self.gamma
        a0, b0 = self.shape, self.rate
        gamma = (a - a0) * digamma(a) - gammaln(a) + gammaln(a0) + a0 * (self.log_rate - np.log(b0)) + a * (b0 - b) / b
        return jnp.sum(self.weights.divergences(self.prior, a / b) + gamma)

    def probabilities(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
        """E softmax(z) and E H(softmax(z)) under q, by 256 points: quasi-random normals, fixed draws of τ."""
        a, b = self.gamma
        m, c = self.weights.means(phi), self.weights.quadratic(phi) + 1
        tau = jax.random.gamma(jax.random.key(0), a, (POINTS, len(a)), m.dtype) / b
        points = jnp.asarray(normal_points(POINTS, len(a)), m.dtype) / jnp.sqrt(tau)

        def one(row: tuple[Array, Array]) -> tuple[Array, Array]:
            logs = jax.nn.log_softmax(row[0] + jnp.sqrt(row[1]) * points)
            shares = jnp.exp(logs)
            return jnp.mean(shares, 0), -jnp.mean(jnp.sum(shares * logs, -1))

        return jax.lax.map(one, (m, c), batch_size=min(ROWS, max(1, 2**24 // (POINTS * len(a)))))

    def moments(self, phi: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """Mean probabilities (n, K); mutual information of label and logits, and mean entropy (both (n,), in nats)."""
        mean, aleatoric = self.probabilities(phi)
        return mean, entropy(mean) - aleatoric, aleatoric

    def predict(self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False) -> Any:
        """Categorical with E softmax(z).

        Raises
        ------
        InvalidArgument
            ``joint``: labels of several rows have no closed form together.
        """
        import numpyro.distributions as dist

        del loc, scale
        if joint:
            raise InvalidArgument(f"joint={joint} has no closed form for labels; use posterior.predict(x).")
        return dist.Categorical(probs=self.probabilities(phi)[0])

    def ood_score(self, phi: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The largest predictive probability."""
        return jnp.max(self.probabilities(phi)[0], -1)

    def latents(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The weights and the precisions of the logits' noise."""
        from numpyro.distributions import constraints

        return {"w": (self.weights.mean.shape, None), "tau": (self.log_rate.shape, constraints.positive)}

    def log_prior(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log N(w; 0, s I/τ) + log Gamma(τ; a₀, b₀)."""
        of_tau = gamma_log_prob(values["tau"], self.shape, self.rate)
        return jnp.sum(normal_log_prior(values["w"], self.prior, values["tau"]) + of_tau)

    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Log E softmax(wᵀφ + ε)_y over the logits' noise, by 64 quasi-random points."""
        z, rows = phi @ values["w"].T, jnp.arange(len(phi))
        points = jnp.asarray(normal_points(NOISE_POINTS, z.shape[1]), z.dtype) / jnp.sqrt(values["tau"])
        logs = jax.lax.map(lambda e: jax.nn.log_softmax(z + e)[rows, y], points)
        return logsumexp(logs, axis=0) - np.log(NOISE_POINTS)

    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """A label, of logits with noise."""
        key_noise, key_label = jax.random.split(key)
        z = phi @ values["w"].T
        z = z + jax.random.normal(key_noise, z.shape, z.dtype) / jnp.sqrt(values["tau"])
        return jax.random.categorical(key_label, z)

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Gamma, then N(0, s I/τ)."""
        key_tau, key_w = jax.random.split(key)
        w = self.weights.mean
        tau = jax.random.gamma(key_tau, self.shape, (w.shape[0],), w.dtype) / self.rate
        z = jax.random.normal(key_w, w.shape, w.dtype)
        return {"w": jnp.sqrt(self.prior) * z / jnp.sqrt(tau)[:, None], "tau": tau}

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
