"""`AbstractHead`: a Bayesian last layer, as a function of features φ: its bound, its predictive, its model.

A head is made without sizes (``NormalHead(covariance="diagonal")``) and gets its arrays from `build`. What stands in
its static fields is fixed; what stands in the fields named by `trained` is learned together with the features. All of
its functions take rows of features, shape (n, D); `models.last_layer.LastLayer` applies them to a network of x.
"""

import abc
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.validate import check_positive
from .covariance import AbstractWeights, check_form, first_weights


class AbstractHead(eqx.Module):
    """A last layer with a variational posterior; see the module.

    Attributes
    ----------
    task
        ``"regression"`` (y real, shape (n, K)) or ``"classification"`` (y whole numbers, shape (n,)).
    trained
        Fields whose arrays are learned.
    positive
        Settings that must be positive numbers, one for all or one each, or None.
    """

    task: eqx.AbstractClassVar[str]
    trained: eqx.AbstractClassVar[tuple[str, ...]]
    positive: eqx.AbstractClassVar[tuple[str, ...]]

    def __check_init__(self) -> None:
        for name in self.positive:
            check_scale(name, getattr(self, name))

    # -- made of sizes ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def build(self, key: PRNGKeyArray, num_features: int, y: Any, *, unit: Any = 1.0) -> Self:
        """The head with arrays for ``num_features`` features and targets like ``y``, as it begins.

        ``unit`` is what one unit of y is in units of the user: a known noise is divided by it.
        """

    @property
    def built(self) -> bool:
        """Whether `build` has given it arrays."""
        return getattr(self, self.trained[0]) is not None

    def partition(self) -> tuple[Self, Self]:
        """What is learned, and the rest; `equinox.combine` joins them."""
        spec = jax.tree.map(lambda _: False, self)
        names = [name for name in self.trained if getattr(self, name) is not None]
        every = [jax.tree.map(eqx.is_inexact_array, getattr(self, name)) for name in names]
        spec = eqx.tree_at(lambda head: [getattr(head, name) for name in names], spec, every)
        return eqx.partition(self, spec)

    # -- the bound ----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def expected_log_likelihood(
        self, phi: Float[Array, "n d"], y: Array, key: PRNGKeyArray | None = None
    ) -> Float[Array, " n"]:
        """E_q log p(y | φ, w) of each row, or a lower bound of it."""

    @abc.abstractmethod
    def divergence(self) -> Float[Array, ""]:
        """KL(q ‖ prior) of all that is inferred."""

    def log_hyperprior(self) -> Float[Array, ""]:
        """Log prior density of what is estimated at its mode (noise variances), up to a constant."""
        return jnp.zeros(())

    def loss(
        self,
        phi: Float[Array, "n d"],
        y: Any,
        num_data: Any,
        *,
        key: PRNGKeyArray | None = None,
        kl_weight: Any = 1.0,
    ) -> Float[Array, ""]:
        """Minus the bound per row: −mean E_q log p(y | φ, w) + (KL − log hyper-prior) / N.

        Over batches drawn at random its mean is minus the bound of all N rows, divided by N.

        Parameters
        ----------
        phi, y
            A batch: features (n, D), and targets (n, K) or labels (n,).
        num_data
            N, the number of rows of the whole training set, not of the batch.
        key
            For bounds that draw.
        kl_weight
            Above 1 for wider epistemic bands; then no longer a bound that is tight.

        Raises
        ------
        InvalidArgument
            ``num_data`` is smaller than the batch, or the shapes of features and targets do not fit.
        """
        if isinstance(num_data, int | float) and num_data < phi.shape[0]:
            raise InvalidArgument(
                f"num_data must be the number of rows of the whole training set, at least the {phi.shape[0]} of this "
                f"batch, got {num_data!r}."
            )
        y = self.targets(phi, y)
        fit = jnp.mean(self.expected_log_likelihood(phi, y, key))
        return -fit + (kl_weight * self.divergence() - self.log_hyperprior()) / num_data

    # -- predictions --------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def predict(self, phi: Float[Array, "n d"], *, loc: Any = 0.0, scale: Any = 1.0, joint: bool = False) -> Any:
        """The predictive of each row, a NumPyro distribution; in units in which y is ``loc + scale · y``."""

    @abc.abstractmethod
    def ood_score(self, phi: Float[Array, "n d"]) -> Float[Array, " n"]:
        """How much a row looks like those learned from: high for them, low out of distribution."""

    # -- the model ----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def latents(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Name → (shape, NumPyro support or None for real) of what is inferred; leading axis K."""

    @abc.abstractmethod
    def log_prior(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log prior density of the latents, normalised."""

    @abc.abstractmethod
    def log_likelihood(self, phi: Float[Array, "n d"], y: Array, values: dict[str, Array]) -> Float[Array, " n"]:
        """Log p(y | φ, latents) of each row."""

    @abc.abstractmethod
    def simulate(self, key: PRNGKeyArray, phi: Float[Array, "n d"], values: dict[str, Array]) -> Array:
        """A draw of y given the latents."""

    @abc.abstractmethod
    def sample_prior(self, key: PRNGKeyArray) -> dict[str, Array]:
        """A draw of the latents from their prior."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> dict[str, Array]:
        """A draw of the latents from q."""

    @abc.abstractmethod
    def log_q(self, values: dict[str, Array]) -> Float[Array, ""]:
        """Log density of q at values of the latents."""

    # -- checks -------------------------------------------------------------------------------------------------------

    def targets(self, phi: Any, y: Any) -> Array:
        """Targets in the shape that the head works with.

        Raises
        ------
        InvalidArgument
            The head has no sizes yet, or shapes do not fit: (n,) against (n, K) would broadcast to n × n.
        """
        if not self.built:
            raise InvalidArgument(
                f"{type(self).__name__} has no arrays yet, got covariance={getattr(self, 'covariance', None)!r} alone; "
                f"call build(key, num_features, y), or give it to LastLayer."
            )
        wanted = (phi.shape[0],) if self.task == "classification" else (phi.shape[0], self.num_outputs)
        shape = jnp.shape(y)
        if self.task == "regression" and self.num_outputs == 1 and shape == wanted[:1]:
            return jnp.reshape(y, wanted)
        if shape != wanted:
            raise InvalidArgument(
                f"y has shape {shape} and features have shape {phi.shape}; for {self.num_outputs} outputs y must have "
                f"shape {wanted}."
            )
        return jnp.asarray(y)

    @property
    def num_outputs(self) -> int:
        """K, outputs or classes."""
        return getattr(self, self.trained[0]).mean.shape[0]

    @property
    def num_features(self) -> int:
        """D."""
        return getattr(self, self.trained[0]).mean.shape[1]


def check_scale(name: str, value: Any) -> None:
    """Raise unless ``value`` is None, a positive number, or a tuple of them."""
    for one in value if isinstance(value, tuple) else (value,):
        if one is not None:
            check_positive(name, one)


def as_setting(value: Any) -> Any:
    """Numbers as they are, scalar arrays as numbers and sequences as tuples, so that settings can be compared."""
    if np.ndim(value):
        return tuple(float(v) for v in np.ravel(value))
    return value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value


def per_feature(value: Any, num_features: int, default: float) -> Float[Array, " d"]:
    """A prior variance for each feature.

    Raises
    ------
    InvalidArgument
        There are several, and not one for each feature.
    """
    value = default if value is None else value
    if np.ndim(value) and len(value) != num_features:
        raise InvalidArgument(
            f"prior_scale must be a number or one for each of {num_features} features, got {len(value)} numbers."
        )
    return jnp.broadcast_to(jnp.asarray(value, float), (num_features,))


class AbstractLinear(AbstractHead):
    """A head of w_kᵀφ, with weights of which every k has a normal posterior N(w̄_k, S_k) or one scaled like it.

    Parameters
    ----------
    covariance, rank, shared
        Form of S_k; see `regression.NormalHead`.
    prior_scale
        Prior variance of a weight, or one for each feature.
    """

    covariance: str = eqx.field(static=True, default="dense")
    rank: int | None = eqx.field(static=True, default=None)
    shared: bool = eqx.field(static=True, default=False)
    prior_scale: Any = eqx.field(static=True, default=None, converter=as_setting)
    weights: Any = None

    def __check_init__(self) -> None:
        check_form(self.covariance, self.rank, self.shared)

    def first_weights(self, key: PRNGKeyArray, num_outputs: int, num_features: int, **begun: Any) -> AbstractWeights:
        """Weights as training begins; ``begun`` as in `covariance.first_weights`."""
        return first_weights(
            key, self.covariance, num_outputs, num_features, rank=self.rank, shared=self.shared, **begun
        )
