"""Forward–backward Gaussian variational inference in Bures–Wasserstein space, and its control-variate variant.

F(m, Σ) = E V + E log q = KL − log Z over N(m, Σ) splits into a smooth part, E V, and the entropy, whose Wasserstein
proximal map is in closed form. One step with g = E∇V and S = E∇²V (Diao, Balasubramanian, Chewi & Salim 2023,
arXiv:2304.05398, algorithm 1):

    m⁺ = m − η g,   Σ½ = (I − ηS) Σ (I − ηS),   Σ⁺ = ½ (Σ½ + 2ηI + [Σ½ (Σ½ + 4ηI)]^½)

Written on a factor Σ = C Cᵀ, which needs no Hessian but the push S C (Price), or E[∇V uᵀ] (Stein):

    C½ = C − η S C = U diag(s) Wᵀ,   C⁺ = U diag(s⁺),   s⁺ = (s + √(s² + 4η)) / 2

which is the same to rounding and keeps Σ ≽ ηI. η ≤ 1/λ_max(S) is needed: above, a Gaussian target's fixed point has
variance η/(2 − ηλ) instead of 1/λ, and from ηλ = 2 the iteration diverges.

symbol → name: η ``step_size``, c ``coefficient``, n ``num_draws``; U, s `linalg.Spectral`; V −log π.

We differ from the authors' code by the factor form, the control variate (Luu et al. 2025, arXiv:2410.02490, for the
mean; on the matrix part too for Stein), antithetic draws and a step size from the curvature. Their theory has one draw.

Per step, d × d: n draws 2nd², the push 2nd² + n gradients (Stein) or n·d Hessian–vector products (Price), C Cᵀ 2d³,
eigenvectors 9d³; memory about 4d² numbers.
"""

from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from ...errors import InvalidArgument
from ...linalg import AbstractFactor, entropy_prox
from ...validate import check_choice, check_count
from .common import AbstractGaussianVI
from .family import GEOMETRIES
from .oracle import Moments
from .state import GaussianState


class FBGVI(AbstractGaussianVI):
    """Forward–backward Gaussian variational inference: a Gaussian of full covariance without learning rates.

    Parameters
    ----------
    num_steps
        Steps.
    step_size
        η. None: half of 1/λ_max of the mean curvature, followed along the run, in its second half downwards only; at
        most what changes the factor C by its own size, which draws far out would exceed.
    expectation
        ``"price"`` (Hessian–vector products), ``"stein"`` (gradients alone), or ``"gauss_hermite"`` (no noise, for
        targets of `glm_target`).
    covariance
        ``"full"``, ``"block"`` (see ``blocks``), ``"diagonal"``, or ``"low_rank"`` (rank ``rank`` plus a multiple of
        the identity; unlike the others not from a paper).
    num_draws
        Draws per step, n; None: 8 for Price, 16 for Stein.
    control
        Control variate: ``"full"`` (on the mean, for Stein on the matrix part too), ``"mean"``, ``"none"``.
    coefficient
        c of the control variate.
    antithetic
        Draws in pairs (u, −u).
    schedule
        When the step size begins to fall by 1/k: ``"decay"``, in the middle; ``"noise"``, once the ELBO rises by less
        than its own noise; ``"constant"``, never. ``"auto"``: never without noise (Gauss–Hermite), by noise where
        Laplace whitens, else in the middle, since noise in one direction may hide slow progress in another.
    initial_covariance
        Number, diagonal or matrix, in unconstrained coordinates; None: that of ``start=`` if it brings one, else 1.
    whiten
        Run in coordinates that a Gaussian whitens: ``"laplace"``, ``"pathfinder"``, or None, those of u. ``"auto"``:
        Laplace for a full covariance, unless ``initial_covariance`` or ``step_size``, which are in coordinates of u,
        are given.
    skip_nonfinite
        Leave out (and count) draws whose log density or derivatives are not finite, instead of stopping.
    batch_size
        Observations per step, drawn with replacement; the draws of a step share them. None: all.
    control_variates
        With mini-batches: expand them to first order around the mode nearest to the start, found with all data, so that
        their noise does not grow with the data (`infer.target.on_batch`).
    geometry
        ``"bures"``, or ``"cholesky"``: a triangular factor whose diagonal alone takes the proximal step, cheaper in
        high dimension, with the same fixed points.
    blocks
        For ``covariance="block"``: tuples of coordinates of u; None: a block for each site.
    rank
        For ``covariance="low_rank"``.

    Raises
    ------
    InvalidArgument
        −log π curves downwards everywhere (a flipped sign), or an argument does not suit the target.
    NonFinite
        A draw without finite derivatives, or divergence (step × curvature above 2).

    References
    ----------
    Diao, Balasubramanian, Chewi & Salim (2023), ICML, arXiv:2304.05398.
    """

    whiten: Any = eqx.field(static=True, default="auto")
    geometry: str = eqx.field(static=True, default="bures")
    blocks: Any = eqx.field(static=True, default=None, converter=lambda given: _tuples(given))
    rank: int = eqx.field(static=True, default=10)

    source: ClassVar[str] = "Diao et al. 2023"

    def __check_init__(self) -> None:
        check_choice("geometry", self.geometry, GEOMETRIES)
        check_count("rank", self.rank)
        if self.geometry == "cholesky" and self.covariance == "low_rank":
            raise InvalidArgument(
                f"geometry='cholesky' needs a triangular factor, which covariance={self.covariance!r} has not; use "
                f"geometry='bures'."
            )
        if self.blocks is not None and self.covariance != "block":
            raise InvalidArgument(f"blocks needs covariance='block', got covariance={self.covariance!r}.")

    def move(
        self, state: GaussianState, estimate: Moments, size: Float[Array, ""], t: Array
    ) -> tuple[Float[Array, " d"], AbstractFactor, Any]:
        """m⁺ = m − η g; C½ = C − η S C; s⁺ = (s + √(s² + 4η)) / 2."""
        del t
        mean = state.mean - size * estimate.gradient
        return mean, state.factor.step(estimate.push, size, entropy_prox(size)), state.extra


class SVRGVI(AbstractGaussianVI):
    """Forward–backward Gaussian variational inference with a control variate on the mean, as its authors run it.

    One draw a step, ĝ = ∇V(x) − c Σ⁻¹(x − m), Ŝ = ∇²V(x). It is not SVRG: there are no snapshots. The control helps
    as long as 0 < c < 2 tr S / tr Σ⁻¹ (Luu et al. 2025, theorem 1).

    Parameters
    ----------
    num_steps, step_size, expectation, covariance, num_draws, coefficient, antithetic, schedule, initial_covariance,
    whiten, skip_nonfinite
        As in `FBGVI`, but one independent draw, c = 0.9, a constant step size and no whitening by default;
        ``"price"`` or ``"stein"``, ``"full"`` or ``"diagonal"``.
    control
        ``"mean"``, or ``"adaptive"``: c = tr Ŝ / tr Σ⁻¹ in place of the coefficient, for Price.

    References
    ----------
    Luu, Yu, Williams, Hartmann & Klami (2025), ICLR, arXiv:2410.02490.
    """

    num_draws: Any = eqx.field(static=True, default=1)
    control: str = eqx.field(static=True, default="mean")
    coefficient: float = 0.9
    antithetic: bool = eqx.field(static=True, default=False)
    schedule: str = eqx.field(static=True, default="constant")

    source: ClassVar[str] = "Luu et al. 2025"
    expectations: ClassVar[tuple[str, ...]] = ("price", "stein")
    structures: ClassVar[tuple[str, ...]] = ("full", "diagonal")
    controls: ClassVar[tuple[str, ...]] = ("mean", "adaptive")

    def __check_init__(self) -> None:
        if self.control == "adaptive" and self.expectation != "price":
            raise InvalidArgument(
                f"control='adaptive' needs expectation='price', got {self.expectation!r}; use control='mean'."
            )

    def move(
        self, state: GaussianState, estimate: Moments, size: Float[Array, ""], t: Array
    ) -> tuple[Float[Array, " d"], AbstractFactor, Any]:
        """The step of `FBGVI`."""
        del t
        mean = state.mean - size * estimate.gradient
        return mean, state.factor.step(estimate.push, size, entropy_prox(size)), state.extra


def _tuples(given: Any) -> Any:
    return None if given is None else tuple(tuple(int(i) for i in block) for block in given)
