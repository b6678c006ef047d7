"""Objectives: functions of the log weights log w = log π(u) − log q(u) of draws u, to be maximised.

An objective says what is optimised; how its gradient is estimated is the business of `estimators`. It maps K log
weights on the last axis to one number, and the M rows before it are averaged:

    ELBO        mean of log w                                                          (Jordan et al. 1999)
    IWAE        log (1/K) Σ w                                                          (Burda et al. 2016)
    MIWAE       the mean of M such terms: `IWAE` with num_draws = M                    (Rainforth et al. 2018, eq. 9)
    CIWAE       b ELBO + (1 − b) IWAE, of the same draws                               (eq. 10)
    PIWAE       for the model IWAE of all M K draws, for the guide MIWAE               (eq. 11, 12)
    Rényi       1/(1 − α) log (1/K) Σ w^(1 − α)                                        (Li & Turner 2016, eq. 7)
    CUBO        minus 1/n log (1/K) Σ w^n, an upper bound                              (Dieng et al. 2017, eq. 4)
    log-variance  −½ Var(log w) at draws that are held fixed                           (Richter et al. 2020)
    forward KL  −KL(π‖q) from draws of π, or by self-normalised weights (wake)         (Bornschein & Bengio 2015)

Only functionals that are linear in expectations have unbiased estimates: IWAE with K > 1, Rényi and CUBO are bounds
whose estimates at finite K are biased, and are reported as such (`bound`). Those whose draws do not move with q are in
`objectives_at_draws`.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument
from ..validate import check_positive
from .log_weights import Objective as Objective
from .log_weights import power_coefficients, power_mean
from .objectives_at_draws import ForwardKL as ForwardKL
from .objectives_at_draws import LogVariance as LogVariance
from .objectives_at_draws import WakeKL as WakeKL


class ELBO(Objective):
    """Evidence lower bound: E_q[log π − log q] = log Z − KL(q‖π).

    Parameters
    ----------
    num_draws
        Draws of q per step, M.
    """

    num_draws: int = eqx.field(static=True, default=16)
    num_samples: int = eqx.field(static=True, default=1)
    linear: ClassVar[bool] = True

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """Means of the rows."""
        return jnp.mean(log_w, -1)

    def coefficients(self, log_w: Float[Array, "*m k"]) -> tuple[Float[Array, "*m k"], Float[Array, "*m k"]]:
        """Both 1 / (M K)."""
        even = jnp.full_like(log_w, 1 / log_w.size)
        return even, even


class Renyi(Objective):
    """Rényi bound of order α: 1/(1 − α) log (1/K) Σ w^(1 − α). α = 0 is IWAE, α → 1 the ELBO.

    Parameters
    ----------
    alpha
        Order; below 1 the estimates are lower bounds in expectation for α ≥ 0, above 1 they weigh low log weights.
    num_samples
        K, at least 2 for a bound other than the ELBO.
    num_draws
        M, terms that are averaged.

    References
    ----------
    Li & Turner (2016), Rényi divergence variational inference, eq. 7.
    """

    alpha: float = 0.5
    num_samples: int = eqx.field(static=True, default=8)
    num_draws: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if isinstance(self.alpha, int | float) and (not np.isfinite(self.alpha) or self.alpha == 1):
            raise InvalidArgument(f"alpha must be a finite number other than 1, got {self.alpha!r}; for 1 use ELBO.")

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """Power means of the rows."""
        return power_mean(log_w, 1 - self.alpha)

    def coefficients(self, log_w: Float[Array, "*m k"]) -> tuple[Float[Array, "*m k"], Float[Array, "*m k"]]:
        """w̃ and α w̃ + (1 − α) w̃², over M, with w̃ ∝ w^(1 − α)."""
        return power_coefficients(log_w, 1 - self.alpha)


class IWAE(Objective):
    """Importance-weighted bound log (1/K) Σ w: nondecreasing in K, at most log Z. With ``num_draws`` M > 1 it is MIWAE.

    Parameters
    ----------
    num_samples, num_draws
        K and M.

    References
    ----------
    Burda, Grosse & Salakhutdinov (2016); Rainforth et al. (2018), Tighter variational bounds are not necessarily
    better: the signal-to-noise ratio of the guide's gradient falls as sqrt(M / K), unless it is doubly reparameterised.
    """

    num_samples: int = eqx.field(static=True, default=8)
    num_draws: int = eqx.field(static=True, default=1)

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """Log mean weights of the rows."""
        return power_mean(log_w, 1.0)

    def coefficients(self, log_w: Float[Array, "*m k"]) -> tuple[Float[Array, "*m k"], Float[Array, "*m k"]]:
        """w̃ and w̃², over M."""
        return power_coefficients(log_w, 1.0)


class CIWAE(Objective):
    """Convex combination b ELBO + (1 − b) IWAE of the same K draws.

    Parameters
    ----------
    weight
        b, between 0 (IWAE) and 1 (ELBO).
    num_samples, num_draws
        K and M.

    References
    ----------
    Rainforth et al. (2018), eq. 10.
    """

    weight: float = 0.5
    num_samples: int = eqx.field(static=True, default=8)
    num_draws: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if isinstance(self.weight, int | float) and not 0 <= self.weight <= 1:
            raise InvalidArgument(f"weight must lie between 0 (IWAE) and 1 (ELBO), got {self.weight!r}.")

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """The combination, row by row."""
        return self.weight * jnp.mean(log_w, -1) + (1 - self.weight) * power_mean(log_w, 1.0)

    def coefficients(self, log_w: Float[Array, "*m k"]) -> tuple[Float[Array, "*m k"], Float[Array, "*m k"]]:
        """The same combination of the ELBO's and IWAE's."""
        g, c = power_coefficients(log_w, 1.0)
        even = self.weight / log_w.size
        return even + (1 - self.weight) * g, even + (1 - self.weight) * c


class PIWAE(Objective):
    """The model is moved by IWAE of all M K draws, the guide by the mean of M IWAE terms of K draws.

    Parameters
    ----------
    num_samples, num_draws
        K and M.

    References
    ----------
    Rainforth et al. (2018), eq. 11 and 12.
    """

    num_samples: int = eqx.field(static=True, default=8)
    num_draws: int = eqx.field(static=True, default=8)

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """IWAE terms of the rows, for the guide."""
        return power_mean(log_w, 1.0)

    def model(self, log_w: Float[Array, "*m k"]) -> Float[Array, ""]:
        """IWAE of all draws."""
        return power_mean(jnp.ravel(log_w), 1.0)

    def coefficients(self, log_w: Float[Array, "*m k"]) -> tuple[Float[Array, "*m k"], Float[Array, "*m k"]]:
        """MIWAE's."""
        return power_coefficients(log_w, 1.0)


class CUBO(Objective):
    """χ upper bound: its value is minus 1/n log (1/K) Σ wⁿ, so that raising it lowers the bound of log Z.

    Parameters
    ----------
    order
        n, at least 1; 2 minimises the χ² divergence, which governs the variance of importance weights.
    num_samples, num_draws
        K and M. The estimate of the bound is biased low at finite K.

    References
    ----------
    Dieng et al. (2017), Variational inference via χ upper bound minimization, eq. 4.
    """

    order: float = 2.0
    num_samples: int = eqx.field(static=True, default=32)
    num_draws: int = eqx.field(static=True, default=1)
    bound: ClassVar[str | None] = "upper"

    def __check_init__(self) -> None:
        check_positive("order", self.order)
        if isinstance(self.order, int | float) and self.order < 1:
            raise InvalidArgument(f"order must be at least 1, got {self.order!r}; below that use Renyi.")

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """Minus the power means of the rows."""
        return -power_mean(log_w, self.order)

    def coefficients(self, log_w: Float[Array, "*m k"]) -> tuple[Float[Array, "*m k"], Float[Array, "*m k"]]:
        """−w̃ and −((1 − n) w̃ + n w̃²), over M, with w̃ ∝ wⁿ."""
        g, c = power_coefficients(log_w, self.order)
        return -g, -c


class FunctionObjective(Objective):
    """A user's function of K log weights, to be maximised.

    Parameters
    ----------
    function
        Of an array of shape (K,), made of `jax.numpy` operations, to a scalar. Use the same object again: another one,
        even of the same code, compiles anew.
    num_samples, num_draws
        K, and M terms that are averaged.
    """

    function: Any = eqx.field(static=True)
    num_samples: int = eqx.field(static=True, default=8)
    num_draws: int = eqx.field(static=True, default=8)
    bound: ClassVar[str | None] = None

    def __check_init__(self) -> None:
        if not callable(self.function):
            raise InvalidArgument(
                f"objective must be an Objective or a function of log weights, got {self.function!r}."
            )
        like = jax.ShapeDtypeStruct((self.num_samples,), np.float32)
        out = jax.eval_shape(self.function, like)
        if getattr(out, "shape", None) != ():
            raise InvalidArgument(
                f"objective must map {self.num_samples} log weights to one number, got {out}; reduce over all of them."
            )

    def terms(self, log_w: Float[Array, "*m k"]) -> Float[Array, "*m"]:
        """The function of each row."""
        return jnp.vectorize(self.function, signature="(k)->()")(log_w)


def as_objective(given: Any, **options: Any) -> Objective:
    """An `Objective` from one, or from a function of K log weights (with ``num_samples``, ``num_draws``)."""
    return given if isinstance(given, Objective) else FunctionObjective(given, **options)
