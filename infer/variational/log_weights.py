"""`Objective`: what the objectives share; and power means of weights, in log space."""

import abc
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import NotAvailable
from ..validate import check_count

Sampling = Literal["reparameterised", "fixed", "given"]


class Objective(eqx.Module):
    """A function of log weights, to be maximised.

    Attributes
    ----------
    num_draws, num_samples
        M independent terms that are averaged, of K draws each.
    sampling
        ``"reparameterised"``: an expectation over draws of q, whose dependence on q counts. ``"fixed"``: draws of q
        held fixed, only log q at them depends on q. ``"given"``: draws of the posterior, see `ForwardKL`.
    linear
        Whether it is the mean of the log weights (so that the score term has mean zero and may be dropped).
    bound
        Which bound of log Z its estimates have in expectation: ``"lower"``, ``"upper"`` (of minus its value) or None.
    """

    num_draws: eqx.AbstractVar[int]
    num_samples: eqx.AbstractVar[int]
    sampling: ClassVar[Sampling] = "reparameterised"
    linear: ClassVar[bool] = False
    bound: ClassVar[str | None] = "lower"

    def __check_init__(self) -> None:
        check_count("num_draws", self.num_draws)
        check_count("num_samples", self.num_samples)

    @property
    def shape(self) -> tuple[int, int]:
        """Draws per step, (M, K)."""
        return self.num_draws, self.num_samples

    def take(self, key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "m k d"]:
        """The draws of a step, where they are given."""
        raise NotAvailable(f"{type(self).__name__} has no draws of its own; those of q are its {self.sampling!r} ones.")

    @abc.abstractmethod
    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """One term for each row of K log weights."""

    def __call__(self, log_w: Float[Array, "*m k"]) -> Float[Array, ""]:
        """The estimate from all rows, by whose gradient the guide is moved."""
        return jnp.mean(self.terms(log_w))

    def model(self, log_w: Float[Array, "*m k"]) -> Float[Array, ""]:
        """The estimate by whose gradient parameters of the model are moved; the same unless an objective says so."""
        return self(log_w)

    def coefficients(self, log_w: Float[Array, "*m k"]) -> tuple[Float[Array, "*m k"], Float[Array, "*m k"]]:
        """Derivatives g = ∂L/∂log w, and g − ∂²L/∂(log w)², the weights of doubly reparameterised draws.

        E[g ∇_φ log q] = E[∂g/∂log w · ∂log w/∂u · ∂u/∂φ], by reparameterising a second time (Tucker et al. 2019,
        eq. 7), so that the whole gradient is the sum of (g − ∂g/∂log w) ∂log w/∂u ∂u/∂φ; for IWAE these weights are w̃².
        Here by differentiation, O(M K) evaluations; objectives with a closed form override it.
        """
        flat = jnp.ravel(log_w)
        first = jax.grad(lambda x: self(x.reshape(log_w.shape)))

        def second(i: Array) -> Array:
            direction = (jnp.arange(flat.size) == i).astype(flat.dtype)
            return jax.jvp(first, (flat,), (direction,))[1][i]

        g, h = first(flat), jax.lax.map(second, jnp.arange(flat.size), batch_size=min(flat.size, 64))
        return g.reshape(log_w.shape), (g - h).reshape(log_w.shape)


def power_mean(log_w: Float[Array, "*m k"], power: Any) -> Float[Array, "*m"]:
    """1/p log (1/K) Σ w^p over the last axis, in log space."""
    return (logsumexp(power * log_w, axis=-1) - np.log(log_w.shape[-1])) / power


def power_coefficients(log_w: Float[Array, "*m k"], power: Any) -> tuple[Array, Array]:
    """Weights g = w̃ and g − ∂g/∂log w = (1 − p) w̃ + p w̃² of power means with w̃ ∝ w^p, divided by the number of rows."""
    rows = log_w.size // log_w.shape[-1]
    w = jax.nn.softmax(power * log_w, -1)
    return w / rows, ((1 - power) * w + power * w**2) / rows
