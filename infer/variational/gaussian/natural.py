"""Natural-gradient Gaussian variational inference, on the precision and on a square root of the covariance.

Both are written on a lower triangular C with Σ = C Cᵀ, P = Σ⁻¹, and need the push S C alone: with D = P − S,
Cᵀ D C = I − CᵀSC.

* `NGVI` (Khan & Rue 2023, arXiv:2107.04562; the positive definite form of Lin, Schmidt & Khan 2020, arXiv:2002.10060):
  P⁺ = P − ηD + ½ η² D P⁻¹ D = C⁻ᵀ K C⁻¹, K = I − η D̃ + ½ η² D̃², D̃ = I − CᵀSC;  m⁺ = m − η P⁺⁻¹ g
* `SqrtNGVI` (Tan 2025, arXiv:2109.00375; Lin et al. 2024, arXiv:2402.03496):
  C⁺ = C − η C tril½(CᵀSC − I);  m⁺ = m − η C Cᵀ g

tril½ keeps the lower triangle and halves the diagonal. Where η |CᵀSC − I| is above 1, the step of `SqrtNGVI` could make
the diagonal negative; η is divided by it there, which is ours. Both are invariant to affine changes of coordinates, so
that η in (0, 1] does not depend on the curvature; a noisy S limits it. Per step O(d³).
"""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from ...errors import InvalidArgument
from ...linalg import AbstractFactor, Diagonal, Triangular
from .common import AbstractGaussianVI
from .oracle import Moments
from .state import GaussianState


class AbstractNatural(AbstractGaussianVI):
    """What the natural-gradient methods share."""

    num_steps: int = 1000

    structures: ClassVar[tuple[str, ...]] = ("full", "diagonal")
    triangular: ClassVar[bool] = True
    curvature_decides: ClassVar[bool] = False

    def __check_init__(self) -> None:
        if isinstance(self.step_size, int | float) and self.step_size > 1:
            raise InvalidArgument(f"step_size of a natural gradient must be in (0, 1], got {self.step_size!r}.")

    def first_size(self, curvature: Float[Array, ""], dim: int) -> Float[Array, ""]:
        """0.1, whatever the curvature; smaller where gradients alone must do."""
        noise = 1.0 + dim / self._draws(dim) if self.expectation == "stein" else 1.0
        return jnp.full_like(curvature, 0.1 / noise)

    def pace(self, state: GaussianState) -> Float[Array, ""]:
        """η, in every direction."""
        return state.size


class NGVI(AbstractNatural):
    """Natural-gradient variational inference with a positive definite precision step.

    Parameters
    ----------
    num_steps, expectation, num_draws, control, coefficient, antithetic, schedule, initial_covariance, whiten,
    skip_nonfinite
        As in `FBGVI`, without whitening by default: affine changes of coordinates change nothing.
    step_size
        η in (0, 1]; None: 0.1 (less where gradients alone must do).
    covariance
        ``"full"`` or ``"diagonal"``.

    References
    ----------
    Khan & Rue (2023), JMLR 24; Lin, Schmidt & Khan (2020), ICML, arXiv:2002.10060.
    """

    source: ClassVar[str] = "Khan & Rue 2023"

    def move(
        self, state: GaussianState, estimate: Moments, size: Float[Array, ""], t: Array
    ) -> tuple[Float[Array, " d"], AbstractFactor, Any]:
        """P⁺ = C⁻ᵀ K C⁻¹ with K = I − η D̃ + ½ η² D̃²; m⁺ = m − η Σ⁺ g."""
        del t
        gap = -_whitened_gap(state.factor, estimate.push)  # D̃ = I − CᵀSC
        if isinstance(state.factor, Diagonal):
            k = 1 - size * gap + 0.5 * size**2 * gap**2
            factor: AbstractFactor = Diagonal(state.factor.scale / jnp.sqrt(k))
        else:
            k = jnp.eye(gap.shape[0]) - size * gap + 0.5 * size**2 * gap @ gap
            # K = R Rᵀ with R upper triangular (a Cholesky decomposition in reversed order), Σ⁺ = C R⁻ᵀ R⁻¹ Cᵀ.
            upper = jnp.linalg.cholesky(k[::-1, ::-1])[::-1, ::-1]
            factor = Triangular(solve_triangular(upper, state.factor.dense().T, lower=False).T)
        return state.mean - size * _covariance_times(factor, estimate.gradient), factor, state.extra


class SqrtNGVI(AbstractNatural):
    """Natural-gradient variational inference on a triangular square root of the covariance.

    Parameters
    ----------
    num_steps, expectation, num_draws, control, coefficient, antithetic, schedule, initial_covariance, whiten,
    skip_nonfinite
        As in `FBGVI`, without whitening by default: affine changes of coordinates change nothing.
    step_size
        η in (0, 1]; None: 0.1 (less where gradients alone must do).
    covariance
        ``"full"`` or ``"diagonal"``.

    References
    ----------
    Lin, Dangel, Eschenhagen, Bae, Turner & Makhzani (2024), ICML, arXiv:2402.03496; Tan (2025), arXiv:2109.00375.
    """

    source: ClassVar[str] = "Tan 2025"

    def move(
        self, state: GaussianState, estimate: Moments, size: Float[Array, ""], t: Array
    ) -> tuple[Float[Array, " d"], AbstractFactor, Any]:
        """C⁺ = C − η C tril½(CᵀSC − I); m⁺ = m − η Σ g."""
        del t
        gap = _whitened_gap(state.factor, estimate.push)
        size = size / jnp.maximum(1.0, size * jnp.sqrt(jnp.sum(gap**2)))
        mean = state.mean - size * _covariance_times(state.factor, estimate.gradient)
        if isinstance(state.factor, Diagonal):
            return mean, Diagonal(state.factor.scale * (1 - 0.5 * size * gap)), state.extra
        half = jnp.tril(gap, -1) + 0.5 * jnp.diag(jnp.diagonal(gap))
        tril = state.factor.dense() - size * state.factor.dense() @ half
        return mean, Triangular(tril), state.extra


def _whitened_gap(factor: AbstractFactor, push: Array) -> Array:
    """CᵀSC − I, symmetrised: the estimate by gradients is not symmetric."""
    if isinstance(factor, Diagonal):
        return factor.scale * push - 1
    matrix = factor.dense().T @ push
    return 0.5 * (matrix + matrix.T) - jnp.eye(matrix.shape[0], dtype=matrix.dtype)


def _covariance_times(factor: AbstractFactor, x: Float[Array, " d"]) -> Float[Array, " d"]:
    """Σ x."""
    if isinstance(factor, Diagonal):
        return factor.scale**2 * x
    c = factor.dense()
    return c @ (c.T @ x)
