"""Automatic differentiation variational inference: Adam on the mean and a triangular factor, a baseline for `FBGVI`.

Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), JMLR 18. With x = m + C u the gradient of KL is E∇V for the mean and
tril(S C − C⁻ᵀ) for the factor; its diagonal is kept positive by its logarithm. Price's and Stein's estimates, and the
control variates ("sticking the landing"), are those of `FBGVI`: what differs is the geometry and the optimiser.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...errors import InvalidArgument
from ...linalg import AbstractFactor, Diagonal, Triangular
from .common import AbstractGaussianVI
from .oracle import Moments
from .state import GaussianState


class ADVI(AbstractGaussianVI):
    """Full-rank or mean-field ADVI: stochastic gradients of the ELBO in parameter space.

    Parameters
    ----------
    num_steps, expectation, num_draws, control, coefficient, antithetic, schedule, initial_covariance, whiten,
    skip_nonfinite
        As in `FBGVI`, but gradients alone (``"stein"``), a step size that decays from the middle and no whitening by
        default.
    step_size
        Learning rate of Adam; None: 0.02.
    covariance
        ``"full"`` (a Cholesky factor) or ``"diagonal"`` (mean field).
    optimizer
        Any optax optimiser in place of Adam; reuse the same object, a new one compiles anew.

    References
    ----------
    Kucukelbir, Tran, Ranganath, Gelman & Blei (2017), JMLR 18; Roeder, Wu & Duvenaud (2017), arXiv:1703.09194.
    """

    num_steps: int = 5000
    expectation: str = eqx.field(static=True, default="stein")
    schedule: str = eqx.field(static=True, default="decay")
    optimizer: Any = eqx.field(static=True, default=None)

    source: ClassVar[str] = "Kucukelbir et al. 2017"
    structures: ClassVar[tuple[str, ...]] = ("full", "diagonal")
    triangular: ClassVar[bool] = True
    curvature_decides: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise InvalidArgument(f"optimizer must be an optax GradientTransformation, got {self.optimizer!r}.")

    def first_size(self, curvature: Float[Array, ""], dim: int) -> Float[Array, ""]:
        """0.02."""
        del dim
        return jnp.full_like(curvature, 0.02)

    def pace(self, state: GaussianState) -> Float[Array, ""]:
        """The learning rate: steps of Adam are about as long, in any direction."""
        return state.size

    def first_extra(self, mean: Float[Array, " d"], factor: AbstractFactor) -> Any:
        """Moments of the optimiser."""
        return self._solver().init(_parameters(mean, factor))

    def move(
        self, state: GaussianState, estimate: Moments, size: Float[Array, ""], t: Array
    ) -> tuple[Float[Array, " d"], AbstractFactor, Any]:
        """One step of the optimiser on (m, C), the diagonal of C by its logarithm."""
        del t
        parameters = _parameters(state.mean, state.factor)
        matrix = estimate.push - state.factor.push_inverse()
        scales = jnp.exp(parameters["log_scale"])
        gradient = {"mean": estimate.gradient}
        if isinstance(state.factor, Diagonal):
            gradient["log_scale"] = scales * matrix
        else:
            gradient |= {"log_scale": scales * jnp.diagonal(matrix), "lower": jnp.tril(matrix, -1)}
        updates, extra = self._solver().update(gradient, state.extra, parameters)
        # Adam without a learning rate: the step size, which may decay, comes last.
        moved = jax.tree.map(lambda p, step: p + size * step, parameters, updates)
        scales = jnp.exp(moved["log_scale"])
        factor = Diagonal(scales) if "lower" not in moved else Triangular(moved["lower"] + jnp.diag(scales))
        return moved["mean"], factor, extra

    def _solver(self) -> Any:
        import optax

        return optax.chain(optax.scale_by_adam(), optax.scale(-1.0)) if self.optimizer is None else self.optimizer


def _parameters(mean: Float[Array, " d"], factor: AbstractFactor) -> dict[str, Array]:
    if isinstance(factor, Diagonal):
        return {"mean": mean, "log_scale": jnp.log(factor.scale)}
    c = factor.dense()
    return {"mean": mean, "log_scale": jnp.log(jnp.diagonal(c)), "lower": jnp.tril(c, -1)}
