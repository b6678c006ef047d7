"""`Flow`: the density that a bijection pushes a standard normal forward to; `flow_transform`: its map, for samplers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...approximation import Approximation
from ...errors import NotAvailable
from .bijection import Bijection

ITERATES = ("last", "average", "best")


class Training(eqx.Module):
    """How a flow was found.

    Parameters
    ----------
    values
        Objective of each restart at the end (of the ELBO by fresh draws; of the forward KL, the mean log density of the
        draws held out), shape (r,).
    means
        Mean of u of each restart, shape (r, d); None for a single one.
    skipped
        Steps of each restart that were not finite and were skipped, shape (r,).
    chosen, parameters
        The restart that was kept, and which of its parameters, see `iterate`; numbers in arrays, since a result that
        differed from another in a static field would be drawn from by another program.
    """

    values: Float[Array, " r"]
    means: Float[Array, "r d"] | None
    skipped: Any
    chosen: Int[Array, ""]
    parameters: Int[Array, ""]

    @property
    def iterate(self) -> str:
        """``"last"``, ``"average"`` or ``"best"``."""
        return ITERATES[int(self.parameters)]


class Flow(Approximation):
    """q = T # N(0, I): u = T(z), log q(u) = log N(z) − log|det ∂T/∂z|.

    Parameters
    ----------
    bijection
        T; its inexact arrays are the parameters.
    training
        What is known of its training, a `Training`, or None.
    """

    bijection: Bijection
    training: Any = None

    @property
    def dim(self) -> int:
        """Dimension of u."""
        return self.bijection.dim

    @property
    def base(self) -> "StandardNormal":
        """N(0, I), as flowjax's distributions have one."""
        return StandardNormal(self.dim)

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws and their log densities, without an inverse."""
        return self.push(self.sample_base(key, n))

    def sample_and_score(
        self, key: PRNGKeyArray, n: int
    ) -> tuple[Float[Array, "n d"], Float[Array, " n"], Float[Array, "n d"]]:
        """Draws, their log densities, and ∇_u log q there without an inverse; only the draws carry gradients."""

        def one(z: Array) -> tuple[Array, Array, Array]:
            u, log_det, score = self.bijection.push_score(z, -z)
            return u, jax.lax.stop_gradient(standard_normal(z) - log_det), jax.lax.stop_gradient(score)

        return jax.vmap(one)(self.sample_base(key, n))

    def sample_base(self, key: PRNGKeyArray, n: int) -> Float[Array, "n d"]:
        """``n`` draws z of the base."""
        return jax.random.normal(key, (n, self.dim), self.dtype)

    def push(self, z: Float[Array, "n d"]) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """T(z) and log q(T(z)) of each row."""
        u, log_det = jax.vmap(self.bijection.transform_and_log_det)(z)
        return u, standard_normal(z) - log_det

    def transport(self, z: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """U = T(z) and log|det ∂T/∂z|."""
        return self.bijection.transform_and_log_det(z)

    def pull(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """Z = T⁻¹(u); `NotAvailable` where T has no inverse (planar, bnaf)."""
        return self.bijection.inverse_and_log_det(u)[0]

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at any ``u``; `NotAvailable` where T has no inverse (planar, bnaf)."""
        z, log_det = self.bijection.inverse_and_log_det(u)
        return standard_normal(z) + log_det

    @property
    def dtype(self) -> Any:
        """That of the parameters."""
        return jnp.result_type(*(x.dtype for x in jax.tree.leaves(self.bijection) if eqx.is_inexact_array(x)))


class StandardNormal(eqx.Module):
    """N(0, I) in d dimensions."""

    dim: int = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int]:
        """(d,)."""
        return (self.dim,)

    def sample(self, key: PRNGKeyArray, shape: tuple[int, ...] = ()) -> Float[Array, "*shape d"]:
        """Independent draws."""
        return jax.random.normal(key, (*shape, self.dim))

    def log_prob(self, z: Float[Array, "... d"]) -> Float[Array, "..."]:
        """Log density."""
        return standard_normal(z)


def standard_normal(z: Float[Array, "... d"]) -> Float[Array, "..."]:
    """Log density of N(0, I)."""
    return -0.5 * jnp.sum(z**2, axis=-1) - 0.5 * z.shape[-1] * jnp.log(2 * jnp.pi)


def flow_transform(approximation: Any) -> Callable[[Float[Array, " d"]], tuple[Array, Array]]:
    """The map z ↦ (u, log|det ∂u/∂z|) under which ``approximation`` is a standard normal.

    A sampler in z of log π(u) + log|det| samples π in u (Hoffman et al. 2019, NeuTra-lizing bad geometry,
    arXiv:1903.03704): mind the plus.

    Parameters
    ----------
    approximation
        A `Flow`, or a `Posterior` whose ``approximation`` is one.

    Raises
    ------
    NotAvailable
        It is no flow.
    """
    found = getattr(approximation, "approximation", approximation)
    if not isinstance(found, Flow):
        raise NotAvailable(
            f"A transform needs the result of a normalizing flow, got {type(found).__name__}; fit "
            f"pushforward.NormalizingFlow() first."
        )
    return found.transport
