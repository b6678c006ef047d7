"""`SoftmaxHead`: classification with softmax of Bayesian logits z_k = w_kᵀφ + ε_k, ε_k ~ N(0, σ_k²) (D-VBLL).

Under q the logits are normal, m_k = w̄_kᵀφ and v_k = φᵀS_kφ + σ_k²; the bounds of E log softmax are in
`classification`. The bound is no predictive density: `predict` averages softmax over the logits.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.validate import check_choice, check_count
from .classification import check_labels, entropy, jensen, knowles_minka, mean_probabilities, monte_carlo, normal_points
from .covariance import check_form, first_weights
from .head import AbstractHead, as_setting, check_scale, normal_log_prior, per_feature

BOUNDS = ("knowles-minka", "jensen", "monte-carlo")
FIRST_LOG_NOISE = -1.0
NOISE_POINTS = 64


class SoftmaxHead(AbstractHead):
    """Classification by Bayesian logits.

    Parameters
    ----------
    covariance, rank, shared
        Form of S_k, as in `NormalHead`; default ``"diagonal"``.
    bound
        ``"knowles-minka"``, ``"jensen"`` (looser) or ``"monte-carlo"`` (unbiased, with noise).
    num_classes
        K; default the largest label plus one.
    prior_scale
        s, the prior *variance* of a weight; default 2/D.
    noise
        Standard deviation of the logits' noise; None: estimated for each class; 0: softmax regression.
    dof, scale
        ν and ψ of the prior W⁻¹(ν, ψ I) of its variances.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or a low rank without ``rank``.
    """

    covariance: str = eqx.field(static=True, default="diagonal")
    rank: int | None = eqx.field(static=True, default=None)
    shared: bool = eqx.field(static=True, default=False)
    bound: str = eqx.field(static=True, default="knowles-minka")
    num_classes: int | None = eqx.field(static=True, default=None)
    prior_scale: Any = eqx.field(static=True, default=None, converter=as_setting)
    noise: Any = eqx.field(static=True, default=None)
    dof: float = eqx.field(static=True, default=1.0)
    scale: float = eqx.field(static=True, default=1.0)
    weights: Any = None
    log_noise: Any = None

    task: ClassVar[str] = "classification"
    trained: ClassVar[tuple[str, ...]] = ("weights", "log_noise")

    def __check_init__(self) -> None:
        check_form(self.covariance, self.rank, self.shared)
        check_choice("bound", self.bound, BOUNDS)
        if self.num_classes is not None:
            check_count("num_classes", self.num_classes, 2)
        if self.noise != 0:
            check_scale("noise", self.noise)
        for name in ("prior_scale", "dof", "scale"):
            check_scale(name, getattr(self, name))

    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> "SoftmaxHead":
        """See `AbstractHead.build`; all classes begin with the same noise."""
        del unit
        import dataclasses

        k = self.num_classes
        if k is None or not isinstance(y, jax.core.Tracer):
            _, k = check_labels(y, k)
        form: dict[str, Any] = {"rank": self.rank, "shared": self.shared}
        first = -float(np.log(num_features))
        weights = first_weights(key, self.covariance, k, num_features, **form, log_scale=first)
        noise = jnp.full((k,), FIRST_LOG_NOISE, float) if self.noise is None else None
        return dataclasses.replace(self, weights=weights, log_noise=noise)

    @property
    def noise_variance(self) -> Any:
        """σ_k² of each class, or one for all."""
        return jnp.exp(2 * self.log_noise) if self.noise is None else self.noise**2

    @property
    def prior(self) -> Float[Array, " d"]:
        """S for each feature."""
        return per_feature(self.prior_scale, self.num_features, 2 / self.num_features)

    def logits(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "n k"]]:
        """Means m and variances v of the logits under q."""
        return self.weights.means(phi), self.weights.quadratic(phi) + self.noise_variance

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """The bound of each row; ``bound="monte-carlo"`` needs a key."""
        m, v = self.logits(phi)
        if self.bound != "monte-carlo":
            return jax.vmap(knowles_minka if self.bound == "knowles-minka" else jensen)(m, v, y)
        if key is None:
            raise InvalidArgument(f"bound={self.bound!r} draws, got key={key}; give a key.")
        return jax.vmap(monte_carlo)(m, v, y, jax.random.split(key, len(m)))

    def divergence(self) -> Float[Array, ""]:
        """Σ_k KL(q(w_k) ‖ N(0, s I))."""
        return jnp.sum(self.weights.divergences(self.prior))

    def log_hyperprior(self) -> Float[Array, ""]:
        """−(ν + K + 1)/2 log|Σ| − ψ/2 tr Σ⁻¹; 0 of noise that is known."""
        if self.log_noise is None:
            return jnp.zeros(())
        log_det, trace = 2 * jnp.sum(self.log_noise), jnp.sum(jnp.exp(-2 * self.log_noise))
        return -0.5 * (self.dof + self.num_outputs + 1) * log_det - 0.5 * self.scale * trace

    def probabilities(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
        """E softmax(z), and E H(softmax(z))."""
        return mean_probabilities(*self.logits(phi))

    def moments(self, phi: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """Mean probabilities (n, K); mutual information of label and logits, and mean entropy (both (n,), in nats)."""
        mean, aleatoric = self.probabilities(phi)
        return mean, entropy(mean) - aleatoric, aleatoric

    def predict(self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False) -> Any:
        """Categorical with E softmax(z), by 256 quasi-random points.

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
        """The weights."""
        return {"w": (self.weights.mean.shape, None)}

    def log_prior(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log N(w; 0, s I)."""
        return jnp.sum(normal_log_prior(values["w"], self.prior))

    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Log E softmax(wᵀφ + ε)_y over the logits' noise, by 64 quasi-random points; exact where there is none."""
        z = phi @ values["w"].T
        rows = jnp.arange(len(z))
        if self.noise == 0:
            return jax.nn.log_softmax(z)[rows, y]
        points = jnp.asarray(normal_points(NOISE_POINTS, z.shape[1]), z.dtype) * jnp.sqrt(self.noise_variance)
        logs = jax.lax.map(lambda e: jax.nn.log_softmax(z + e)[rows, y], points)
        return logsumexp(logs, axis=0) - np.log(NOISE_POINTS)

    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """A label, of logits with noise."""
        key_noise, key_label = jax.random.split(key)
        z = phi @ values["w"].T
        z = z + jnp.sqrt(self.noise_variance) * jax.random.normal(key_noise, z.shape, z.dtype)
        return jax.random.categorical(key_label, z)

    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """N(0, s I)."""
        w = self.weights.mean
        return {"w": jnp.sqrt(self.prior) * jax.random.normal(key, w.shape, w.dtype)}

    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """N(w̄_k, S_k)."""
        return {"w": self.weights.mean + self.weights.offsets(key)}

    def log_q(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Σ_k log N(w_k; w̄_k, S_k)."""
        return jnp.sum(self.weights.offset_log_prob(values["w"] - self.weights.mean))
