"""What heads for classification share: `AbstractClassifier`, and `AbstractSoftmax` of those with noisy logits.

Of the latter the logits are z_k = w_kᵀφ + ε_k with normal noise, and all that is not a closed form is a mean over
points which are always the same, so that predictions are functions of x.
"""

import abc
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
from .classification import check_labels, entropy, knowles_minka, normal_points, tilted
from .head import AbstractHead, AbstractLinear

NOISE_POINTS = 64
FIRST_TILT = 0.4


class AbstractClassifier(AbstractHead):
    """A head whose y are labels 0 … K − 1."""

    num_classes: eqx.AbstractVar[int | None]

    task: ClassVar[str] = "classification"

    @abc.abstractmethod
    def probabilities(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, " n"]]:
        """Predictive probabilities, and the mean under q of the entropy of a label given the latents."""

    def moments(self, phi: Float[Array, "n d"]) -> tuple[Array, Array, Array]:
        """Probabilities (n, K); mutual information of label and latents, and mean entropy (both (n,), in nats)."""
        mean, aleatoric = self.probabilities(phi)
        return mean, entropy(mean) - aleatoric, aleatoric

    def __check_init__(self) -> None:
        if self.num_classes is not None:
            check_count("num_classes", self.num_classes, 2)

    def classes_of(self, y: Any) -> int:
        """K, from what was given or from labels; labels that are being traced are not looked at."""
        if self.num_classes is not None and isinstance(y, jax.core.Tracer):
            return self.num_classes
        return check_labels(y, self.num_classes)[1]


class AbstractSoftmax(AbstractLinear, AbstractClassifier):
    """Softmax of noisy logits.

    Parameters
    ----------
    bound
        ``"knowles-minka"``: with the best tilt of each row; ``"reduced"``: with one for all, `tilt`, which is learned.
    num_classes
        K; default the largest label plus one.

    Attributes
    ----------
    bounds
        What ``bound`` may be.
    """

    bound: str = eqx.field(static=True, default="knowles-minka")
    num_classes: int | None = eqx.field(static=True, default=None)
    tilt: Any = None

    bounds: ClassVar[tuple[str, ...]] = ("knowles-minka", "reduced")

    def __check_init__(self) -> None:
        check_choice("bound", self.bound, self.bounds)

    @abc.abstractmethod
    def spread(self, phi: Float[Array, "n d"]) -> tuple[Float[Array, "n k"], Float[Array, "n k"], Float[Array, "n k"]]:
        """Means m of the logits, r ≤ 1/E[1/v] and E v of their variances v; r is v where that is certain."""

    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """The bound of each row; see `classification`."""
        del key
        m, low, mean = self.spread(phi)
        if self.bound == "reduced":
            found = jax.vmap(tilted, in_axes=(0, 0, 0, None))(m, low, y, jnp.broadcast_to(self.tilt, m.shape[1:]))
        else:
            found = jax.vmap(knowles_minka)(m, low, y)
        return found - jnp.sum(mean - low, -1) / 8

    def first_tilt(self) -> Any:
        """Where the tilt begins; None where it is not learned."""
        return jnp.asarray(FIRST_TILT, float) if self.bound == "reduced" else None

    @abc.abstractmethod
    def noise_deviations(self, phi: Float[Array, "n d"], values: dict[str, Array]) -> Any:
        """Standard deviations of the logits' noise given the latents, of shape (n, K) or one that becomes it."""

    def predict(self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False) -> Any:
        """Categorical with E softmax(z).

        Raises
        ------
        InvalidArgument
            ``joint``: labels of several rows have no closed form together.
        """
        del loc, scale
        return labels(joint, probs=self.probabilities(phi)[0])

    def ood_score(self, phi: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The largest predictive probability."""
        return jnp.max(self.probabilities(phi)[0], -1)

    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Log E softmax(wᵀφ + ε)_y over the logits' noise, by 64 quasi-random points; exact where there is none."""
        z, rows = phi @ values["w"].T, jnp.arange(len(phi))
        spread = self.noise_deviations(phi, values)
        if isinstance(spread, float) and spread == 0:
            return jax.nn.log_softmax(z)[rows, y]
        points = jnp.asarray(normal_points(NOISE_POINTS, z.shape[1]), z.dtype)
        logs = jax.lax.map(lambda e: jax.nn.log_softmax(z + spread * e)[rows, y], points)
        return logsumexp(logs, axis=0) - np.log(NOISE_POINTS)

    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """A label, of logits with noise."""
        key_noise, key_label = jax.random.split(key)
        z = phi @ values["w"].T
        z = z + self.noise_deviations(phi, values) * jax.random.normal(key_noise, z.shape, z.dtype)
        return jax.random.categorical(key_label, z)


def labels(joint: bool, **given: Array) -> Any:
    """The predictive of a label, categorical; a joint one of several rows is refused."""
    import numpyro.distributions as dist

    if joint:
        raise InvalidArgument(f"joint={joint} has no closed form for labels; use posterior.predict(x).")
    return dist.Categorical(**given)
