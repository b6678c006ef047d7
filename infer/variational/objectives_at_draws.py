"""Objectives at draws that do not move with q: held fixed, or given draws of the posterior."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float, PRNGKeyArray

from ..errors import InvalidArgument
from ..validate import check_count
from .log_weights import Objective, Sampling, power_mean


class LogVariance(Objective):
    """−½ Var(log w) of K draws that are held fixed; zero only where q = π, with or without Z.

    Its gradient in log q at draws of q is the leave-one-out score-function gradient of the ELBO (VarGrad).

    Parameters
    ----------
    num_samples, num_draws
        K, at least 2, and M.

    References
    ----------
    Richter et al. (2020), VarGrad: a low-variance gradient estimator for variational inference.
    """

    num_samples: int = eqx.field(static=True, default=16)
    num_draws: int = eqx.field(static=True, default=1)
    sampling: ClassVar[Sampling] = "fixed"
    bound: ClassVar[str | None] = None

    def __check_init__(self) -> None:
        check_count("num_samples", self.num_samples, minimum=2)

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """Minus half the unbiased variances of the rows."""
        return -0.5 * jnp.var(log_w, axis=-1, ddof=1)


class ForwardKL(Objective):
    """−KL(π‖q) from given draws of π: maximum likelihood of the draws under q.

    Its value is the mean of log q − log π at the draws, −KL(π‖q) − log Z; of log q alone where there is no log density.

    Parameters
    ----------
    draws
        Unconstrained draws of the posterior, shape (n, d); each step takes M of them, with replacement.
    num_draws
        M.

    Raises
    ------
    InvalidArgument
        ``draws`` is not an array of shape (n, d).
    """

    draws: Any
    num_draws: int = eqx.field(static=True, default=64)
    num_samples: int = eqx.field(static=True, default=1)
    sampling: ClassVar[Sampling] = "given"
    bound: ClassVar[str | None] = None

    def __check_init__(self) -> None:
        if np.ndim(self.draws) != 2:
            raise InvalidArgument(f"draws must be an array of shape (n, d), got shape {np.shape(self.draws)}.")

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """Means of −log w."""
        return -jnp.mean(log_w, -1)

    def take(self, key: PRNGKeyArray, shape: tuple[int, int]) -> Float[Array, "m k d"]:
        """The draws of a step."""
        draws = jnp.asarray(self.draws)
        return draws[jax.random.randint(key, shape, 0, draws.shape[0])]


class WakeKL(Objective):
    """−KL(π‖q) with the self-normalised weights of draws of q, held fixed ("wake"); blind where q has no mass.

    Parameters
    ----------
    num_samples, num_draws
        K, whose weights are normalised together (at least 2), and M.

    References
    ----------
    Bornschein & Bengio (2015), Reweighted wake-sleep.
    """

    num_samples: int = eqx.field(static=True, default=32)
    num_draws: int = eqx.field(static=True, default=1)
    sampling: ClassVar[Sampling] = "fixed"
    bound: ClassVar[str | None] = None

    def __check_init__(self) -> None:
        check_count("num_samples", self.num_samples, minimum=2)

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """The estimate of log Z minus the weighted means of log w; the weights are held fixed."""
        weights = stop_gradient(jax.nn.softmax(log_w, -1))
        return stop_gradient(power_mean(log_w, 1.0)) - jnp.sum(weights * log_w, -1)
