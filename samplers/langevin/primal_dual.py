"""The unadjusted Langevin primal–dual algorithm (ULPDA), for π ∝ exp(−f(x) − g(Kx)) in imaging dimensions.

    x⁺ = prox_{τf}(x − τ Kᵀu) + √(2τ) ξ,   u⁺ = prox_{σg*}(u + σ K(2x⁺ − x)),   τσ‖K‖² < 1     ([1]_, algorithm 1)

One step costs one K, one Kᵀ and the proximal operator of f: here a Newton step solved by conjugate gradients, exact for
a quadratic f, or the user's own. Memory is one image and one dual field.

The law of x is not π even as τ → 0 ([2]_): for f = x²/2, g = z²/2, K = 1 its variance tends to (2 + s)/(2 + 2s) with
s = σ/τ, against ½; large σ/τ are near.

References
----------
.. [1] D. Narnhofer, A. Habring, M. Holler, T. Pock (2022). Posterior-variance-based error quantification for inverse
   problems in imaging. arXiv:2212.12499.
.. [2] M. Burger, M. J. Ehrhardt, L. Kuger, L. Weigand (2024). Analysis of primal-dual Langevin algorithms.
   arXiv:2405.18098.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...infer.errors import InvalidArgument
from ...infer.geometry.mirror import AbstractMirror, Point
from ...infer.geometry.prox import prox_conjugate
from ...infer.geometry.term import AbstractTerm
from ...infer.target import Target
from ...infer.target.primal import Primal, primal
from ...infer.validate import check_count, check_positive
from .common import LangevinState, Local, Noise, Proposal, finite
from .curvature import curvature
from .slope import term_step
from .unadjusted import AbstractUnadjusted

MARGIN = 0.95


class PrimalDualLangevin(AbstractUnadjusted):
    """The unadjusted Langevin primal–dual algorithm, for total variation and other terms g(Kx). Approximate.

    Parameters
    ----------
    step_size
        τ. Default: 1/(5 L), and at most 0.1/α² for a term of slope α; L the curvature of f at the start.
    ratio
        σ/τ, the dual step over the primal one, with τσ‖K‖² < 1. Default: the largest possible. Small ratios have a bias
        that no step size removes.
    smooth_prox
        ``smooth_prox(v, step) -> x``, the proximal operator of f over the flat x, where the user has a fast one (by
        FFT, say). Default: one Newton step, by conjugate gradients.
    num_solve
        Iterations of the conjugate gradients.
    bias_check
        As in `BregmanProximalLangevin`.

    Raises
    ------
    UnsupportedTarget
        The target has no nonsmooth part, or a site is not real.
    InvalidArgument
        τσ‖K‖² ≥ 1.

    References
    ----------
    Narnhofer, Habring, Holler & Pock (2022), arXiv:2212.12499; Burger, Ehrhardt, Kuger & Weigand (2024),
    arXiv:2405.18098 (its stationary law).
    """

    ratio: Any = None
    smooth_prox: Callable | None = eqx.field(static=True, default=None)
    num_solve: int = eqx.field(static=True, default=20)

    source: ClassVar[str] = "Narnhofer et al. 2022"
    warning: ClassVar[str] = (
        "PrimalDualLangevin is approximate: its law is not the target even for small steps, the less so the smaller "
        "ratio (σ/τ) is."
    )

    def __check_init__(self) -> None:
        check_count("num_solve", self.num_solve)
        if self.ratio is not None:
            check_positive("ratio", self.ratio)
        self._check_steps(1.0)

    def mirror_for(self, target: Primal, scale: Array) -> AbstractMirror:
        """Euclidean; steps that are too large for the target's K are refused."""
        self._check_steps(split(target.nonsmooth).squared_norm)
        return super().mirror_for(target, scale)

    def first_step(self, target: Primal, mirror: AbstractMirror, local: Local) -> Any:
        """1/(5 L), or as much of it as the given ratio allows."""
        step = jnp.minimum(0.2 / curvature(target, local.point.x, None), term_step(target.nonsmooth))
        if self.ratio is None:
            return step
        return jnp.minimum(step, MARGIN / jnp.sqrt(self.ratio * split(target.nonsmooth).squared_norm))

    def locate(self, target: Primal, mirror: AbstractMirror, point: Point) -> Local:
        """Log π; the dual field of a point that has none yet is 0."""
        dual = point.extra
        if isinstance(dual, tuple):
            dual = jnp.zeros_like(split(target.nonsmooth).forward(point.x))
        term = target.nonsmooth.value(point.x)
        smooth = target.smooth_log_density(point.x)
        return Local(point._replace(extra=dual), smooth - term, jnp.zeros_like(point.x), term)

    def propose(self, target: Primal, mirror: AbstractMirror, noise: Noise, local: Local, step: Array) -> Proposal:
        """One iteration, [1]_, algorithm 1, with extrapolation θ = 1."""
        term, x, u = split(target.nonsmooth), local.point.x, local.point.extra
        dual_step = self.dual_step(step, term)
        prox = self.prox_smooth(target, x - step * term.adjoint(u), step)
        new_x = prox + jnp.sqrt(2 * step) * noise(local.point)
        new_u = term.dual_prox(u + dual_step * term.forward(2 * new_x - x), dual_step)
        new = self.locate(target, mirror, mirror.at(new_x)._replace(extra=new_u))
        return Proposal(new, jnp.asarray(jnp.nan), finite(new))

    def remarks(self, state: LangevinState, target: Target, result: Any) -> list[dict[str, Any]]:
        """The bias of the step, and σ/τ, which sets the bias that remains."""
        step = np.asarray(jax.vmap(lambda s: s.adaptation.step_size(False))(state))
        ratio = float(np.min(np.asarray(self.dual_step(step, split(primal(target).nonsmooth))) / step))
        message = (
            f"The dual step is {ratio:.3g} times the primal one (σ/τ); the larger, the nearer the law is to the target."
        )
        note = {"level": "note", "name": "σ/τ", "message": message, "value": ratio}
        return [*super().remarks(state, target, result), note]

    def dual_step(self, step: Array, term: Any) -> Array:
        """σ."""
        return MARGIN / (step * term.squared_norm) if self.ratio is None else self.ratio * step

    def prox_smooth(self, target: Primal, v: Array, step: Array) -> Array:
        """argmin_z f(z) + ‖z − v‖²/(2τ): z = v − τ (I + τ∇²f(v))⁻¹ ∇f(v)."""
        if self.smooth_prox is not None:
            return self.smooth_prox(v, step)
        gradient = jax.grad(lambda z: -target.smooth_log_density(z))

        def system(w: Array) -> Array:
            return w + step * jax.jvp(gradient, (v,), (w,))[1]

        return v - step * jax.scipy.sparse.linalg.cg(system, gradient(v), maxiter=self.num_solve)[0]

    def _check_steps(self, norm: float) -> None:
        """Raise where both steps are the user's and their product with ‖K‖² is too large."""
        if not (isinstance(self.step_size, int | float) and isinstance(self.ratio, int | float)):
            return
        product = self.step_size**2 * self.ratio * norm
        if product >= 1:
            raise InvalidArgument(
                f"step_size={self.step_size:g} and ratio={self.ratio:g} give τσ‖K‖² = {product:.3g}, which must be "
                f"below 1; lower one of them."
            )


class Plain(NamedTuple):
    """A user's object with ``value`` and ``prox`` alone, as the `AbstractTerm` with K = I that it is here."""

    term: Any
    squared_norm: float = 1.0

    def forward(self, x: Array) -> Array:
        """X."""
        return x

    def adjoint(self, u: Array) -> Array:
        """U."""
        return u

    def dual_prox(self, v: Array, step: Array) -> Array:
        """By Moreau's identity."""
        return prox_conjugate(self.term, v, step)


def split(term: Any) -> Any:
    """A term as h(K x)."""
    return term if isinstance(term, AbstractTerm) else Plain(term)
