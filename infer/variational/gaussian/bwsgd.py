"""Bures–Wasserstein stochastic gradient descent: the forward Euler step on all of KL, a baseline for `FBGVI`.

    m⁺ = m − η ĝ,   Σ⁺ = M Σ M,  M = I − η (Ŝ − Σ⁻¹)

Lambert, Chewi, Bach, Bonnabel & Rigollet (2022), arXiv:2205.15902, algorithm 1; on a factor C⁺ = C − η (Ŝ C − C⁻ᵀ). The
eigenvalues of Σ⁺ may be clipped from above, as in their analysis. Nothing bounds them from below: the covariance may
degenerate or explode, which is why the entropy deserves its proximal step.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...linalg import AbstractFactor, Diagonal, Spectral, left_singular
from ...validate import check_positive
from .common import AbstractGaussianVI
from .oracle import Moments
from .state import GaussianState


class BWSGD(AbstractGaussianVI):
    """Stochastic gradient descent on KL in Bures–Wasserstein space: a baseline without a proximal step.

    Parameters
    ----------
    num_steps, step_size, expectation, covariance, num_draws, control, coefficient, antithetic, schedule,
    initial_covariance, whiten, skip_nonfinite
        As in `FBGVI`, but one independent draw, without control variate, a constant step size and no whitening by
        default; ``"full"`` or ``"diagonal"``.
    max_variance
        Clips the eigenvalues of Σ from above (1/α in the paper); None: no clipping.

    References
    ----------
    Lambert, Chewi, Bach, Bonnabel & Rigollet (2022), NeurIPS, arXiv:2205.15902.
    """

    num_draws: Any = eqx.field(static=True, default=1)
    control: str = eqx.field(static=True, default="none")
    antithetic: bool = eqx.field(static=True, default=False)
    schedule: str = eqx.field(static=True, default="constant")
    max_variance: Any = None

    source: ClassVar[str] = "Lambert et al. 2022"
    structures: ClassVar[tuple[str, ...]] = ("full", "diagonal")

    def __check_init__(self) -> None:
        if self.max_variance is not None:
            check_positive("max_variance", self.max_variance)

    def move(
        self, state: GaussianState, estimate: Moments, size: Float[Array, ""], t: Array
    ) -> tuple[Float[Array, " d"], AbstractFactor, Any]:
        """m⁺ = m − η g; C⁺ = C − η (S C − C⁻ᵀ), eigenvalues clipped."""
        del t
        mean = state.mean - size * estimate.gradient
        most = jnp.inf if self.max_variance is None else jnp.sqrt(self.max_variance)
        gradient = jax.tree.map(jnp.subtract, estimate.push, state.factor.push_inverse())
        if isinstance(state.factor, Diagonal):
            return mean, state.factor.step(gradient, size, lambda s: jnp.minimum(s, most)), state.extra
        # Small singular values count here: no proximal step lifts them afterwards.
        basis, scale = left_singular(state.factor.dense() - size * gradient, exact=True)
        return mean, Spectral(basis, jnp.minimum(scale, most)), state.extra
