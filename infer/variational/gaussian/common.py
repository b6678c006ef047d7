"""`AbstractGaussianVI`: what all iterations on one Gaussian share: hyper-parameters, step size, refusals, result.

A concrete method says how (mean, factor) moves for given expectations and step size (`move`); the expectations are of
`oracle`, the covariance structures of `family` and `pushforward.infer.linalg`, states and records of `state`.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...distributed.rows import after
from ...linalg import AbstractFactor
from ...method import AbstractMethod, Budget, Stage
from ...run.start import Warm
from ...target import Target
from ...target.on_batch import Anchor, on_batch
from ..mode import anchor_near
from ..whitening import Frame, whitened
from . import findings
from .approximation import GaussianApproximation
from .checks import CONTROLS, check_fit, check_settings
from .family import COVARIANCES, first_factor, site_blocks
from .oracle import EXPECTATIONS, Moments, Settings, moments, power_iteration
from .state import (
    DIVERGED,
    FINITE,
    LOST,
    MEMORY,
    NOT_FINITE,
    GaussianInfo,
    GaussianState,
    explain,
    final_elbos,
    in_u,
    to_u,
    tracked,
)

PATIENCE = 50
"""Steps in a row with step × curvature above 2 after which a run counts as diverging."""
DECAY = 0.1
"""Part of the steps in which the step size halves, once it decays from the middle of the run."""
NOISE_STEPS = 40
"""Steps before a run may be found to have stalled."""
LONG_MEMORY = 0.02
"""Weight of the newest estimate in the slower of the two running ELBOs."""
NOISE_RATES = 4.0
"""In how many times 1 / (step size × curvature) the step size halves, once it decays since the ELBO has stalled."""


class AbstractGaussianVI(AbstractMethod):
    """Iterations on one Gaussian N(m, C Cᵀ), and the hyper-parameters that they share; `FBGVI` documents them.

    The record of a run (``posterior.iterations``) holds for each step the ELBO and its standard error, the squared
    norm of the Bures–Wasserstein gradient of KL (``gradient_norm``: |g|² + tr[(S − Σ⁻¹) Σ (S − Σ⁻¹)], with its noise),
    the variances of the estimates of g and of S C, step size, curvature λ_max(S) and their product, draws skipped,
    Hessian–vector products, and evaluations (a gradient and a Hessian–vector product count one each).
    """

    num_steps: int = 2000
    step_size: Any = None
    expectation: str = eqx.field(static=True, default="price")
    covariance: str = eqx.field(static=True, default="full")
    num_draws: Any = eqx.field(static=True, default=None)
    control: str = eqx.field(static=True, default="full")
    coefficient: float = 1.0
    antithetic: bool = eqx.field(static=True, default=True)
    schedule: str = eqx.field(static=True, default="auto")
    initial_covariance: Any = None
    whiten: Any = eqx.field(static=True, default=None)
    skip_nonfinite: bool = eqx.field(static=True, default=False)
    batch_size: int | None = eqx.field(static=True, default=None)
    control_variates: bool = eqx.field(static=True, default=True)

    kind: ClassVar = "approximation"
    exact: ClassVar[bool] = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    triangular: ClassVar[bool] = False
    expectations: ClassVar[tuple[str, ...]] = EXPECTATIONS
    structures: ClassVar[tuple[str, ...]] = COVARIANCES
    controls: ClassVar[tuple[str, ...]] = CONTROLS
    curvature_decides: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_settings(self)

    # -- what a method says -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def move(
        self, state: GaussianState, estimate: Moments, size: Float[Array, ""], t: Array
    ) -> tuple[Float[Array, " d"], AbstractFactor, Any]:
        """New mean, factor and extra state."""

    def first_size(self, curvature: Float[Array, ""], dim: int) -> Float[Array, ""]:
        """Step size where the user gives none: half the largest that is safe, 1/λ_max.

        With gradients alone S C is so noisy far from the optimum that it must be about 1 + d/n times smaller.
        """
        noise = 1.0 + dim / self._draws(dim) if self.expectation == "stein" else 1.0
        return 0.5 / (noise * jnp.maximum(curvature, 10 * jnp.finfo(curvature.dtype).tiny))

    def first_extra(self, mean: Float[Array, " d"], factor: AbstractFactor) -> Any:
        """State that the method adds; default: none."""
        del mean, factor

    def pace(self, state: GaussianState) -> Float[Array, ""]:
        """Part of the way to the optimum that a step makes, in the direction that is fastest."""
        return state.size * state.curvature

    def decay(self, state: GaussianState) -> Array | float:
        """Factor of the step size: 1, and k₀/(k₀ + k) once it decays."""
        if self._constant:
            return 1.0
        slow = jnp.where(self._by_noise(state), NOISE_RATES / self.pace(state), DECAY * self.num_steps)
        return slow / (slow + state.late)

    def _later(self, state: GaussianState, t: Array) -> Int[Array, ""]:
        """Steps since the decay began: in the middle, or once the ELBO rises by less than its mean's noise."""
        short, long, variance = state.trend
        stalled = (t >= NOISE_STEPS) & (short - long < jnp.sqrt(0.5 * LONG_MEMORY * variance))
        begun = (state.late > 0) | (t >= 0.5 * self.num_steps) | (stalled & self._by_noise(state))
        return state.late + begun

    @property
    def _constant(self) -> bool:
        """Whether the step size never decays; ``"auto"``: where there is no noise."""
        return self.schedule == "constant" or (self.schedule == "auto" and self.expectation == "gauss_hermite")

    def _by_noise(self, state: GaussianState) -> Array | bool:
        """Whether noise decides when the decay begins; ``"auto"``: at a mode's curvature, where no direction is slow.

        A path of Pathfinder may have ended before its curvature was known in all directions.
        """
        if self.schedule != "auto":
            return self.schedule == "noise"
        if state.frame is not None and self._whiten == "laplace":
            return state.frame.fits
        return not self.curvature_decides and self.covariance == "full"

    @property
    def _whiten(self) -> str | None:
        """``"auto"`` resolved: Laplace's, unless a covariance or a step size, both in coordinates of u, is given."""
        if self.whiten != "auto":
            return self.whiten
        free = self.covariance == "full" and self.initial_covariance is None and self.step_size is None
        return "laplace" if free else None

    # -- the driver's functions -------------------------------------------------------------------------------------

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One: the iteration."""
        del budget
        return (Stage("optimise", self, self.num_steps),)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "AbstractGaussianVI":
        """Refuse what cannot work, before anything is compiled."""
        check_fit(self, key, target, start)
        return self

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> GaussianState:
        """The Gaussian around the start, and its curvature."""
        u = start.u if isinstance(start, Warm) else start
        dim = target.dim
        key_frame, key_factor, key_power = jax.random.split(key, 3)
        frame = None if self._whiten is None else whitened(key_frame, target, u, self._whiten)
        mean = u if frame is None else jnp.zeros_like(u)
        covariance = jnp.asarray(self._first_covariance(start, dim), u.dtype)
        factor = first_factor(
            key_factor, covariance, dim, self.covariance, triangular=self._triangular, blocks=self._blocks(target),
            rank=self._rank,
        )  # fmt: skip
        curvature, direction = power_iteration(key_power, target, frame, mean, factor, self.settings_of(dim))
        size = self.first_size(curvature, dim) if self.step_size is None else jnp.asarray(self.step_size, u.dtype)
        none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), u.dtype)
        anchor = self._anchor(target, u, frame, curvature)
        first = target.log_density(after(u, curvature if anchor is None else anchor.value))
        return GaussianState(
            mean=mean, factor=factor, frame=frame, direction=direction, curvature=curvature, size=size,
            elbo=first, failure=none, failed_at=none, failed_draw=jnp.zeros_like(u),
            above=none, worst=zero, hot=none, num_steps=none, skipped=none, trend=jnp.zeros(3, u.dtype), late=none,
            halfway=jnp.zeros(2, u.dtype), extra=self.first_extra(mean, factor),
            anchor=anchor,
        )  # fmt: skip

    def step(
        self, key: PRNGKeyArray, state: GaussianState, target: Target, t: Array
    ) -> tuple[GaussianState, GaussianInfo]:
        """Estimate the expectations, move, and keep the records."""
        settings = self.settings_of(target.dim)
        target = on_batch(target, key, t, self.batch_size, state.anchor)
        estimate = moments(key, target, state.frame, state.mean, state.factor, state.direction, settings)
        curvature, direction = tracked(state, estimate.image)
        size = state.size
        if self.step_size is None:
            suited = self.first_size(curvature, target.dim)
            size = jnp.where(t < 0.5 * self.num_steps, suited, jnp.minimum(size, suited))
        used = size * self.decay(state)
        if self.step_size is None:
            used = jnp.minimum(used, _largest(state.factor, estimate.push))
        mean, factor, extra = self.move(state, estimate, used, t)

        push = jax.tree.map(jnp.subtract, estimate.push, state.factor.push_inverse())
        norm = jnp.sum(estimate.gradient**2) + sum(jnp.sum(a**2) for a in jax.tree.leaves(push))
        newest = jnp.stack([estimate.elbo, estimate.elbo, estimate.elbo_se**2])
        memory = jnp.asarray([MEMORY, LONG_MEMORY, LONG_MEMORY], newest.dtype)
        trend = state.trend + jnp.where(t == 0, 1.0, memory) * (newest - state.trend)
        product = used * curvature
        hot = jnp.where(product > 2, state.hot + 1, 0)
        lost = ~_all_finite((mean, factor))
        failure = jnp.where(lost, LOST, jnp.where(self.curvature_decides & (hot >= PATIENCE), DIVERGED, FINITE))
        failure = jnp.where(estimate.finite, failure, NOT_FINITE).astype(state.failure.dtype)
        fine = failure == FINITE
        middle = t == jnp.asarray(self.num_steps // 2, t.dtype)
        sizes = jnp.stack([jnp.linalg.norm(state.mean), state.factor.trace()])
        elbo = state.elbo + jnp.where(t == 0, 1.0, MEMORY) * (estimate.elbo - state.elbo)
        new = GaussianState(
            mean=mean, factor=factor, frame=state.frame, direction=direction, curvature=curvature, size=size,
            elbo=elbo, failure=failure, failed_at=state.failed_at, failed_draw=state.failed_draw,
            above=state.above + (product > 1), worst=jnp.maximum(state.worst, product), hot=hot,
            num_steps=state.num_steps + 1, skipped=state.skipped + estimate.skipped.astype(state.skipped.dtype),
            trend=trend, late=self._later(state, t), halfway=jnp.where(middle, sizes, state.halfway), extra=extra,
            anchor=state.anchor,
        )  # fmt: skip
        old = eqx.tree_at(
            lambda s: (s.failure, s.failed_at, s.failed_draw),
            state,
            (failure, t.astype(state.failed_at.dtype), in_u(state, estimate.bad)),
        )
        new = jax.tree.map(lambda good, kept: jnp.where(fine, good, kept), new, old)
        return new, GaussianInfo(
            elbo=estimate.elbo, elbo_se=estimate.elbo_se, gradient_norm=norm, variance_mean=estimate.variance_mean,
            variance_scale=estimate.variance_push, step_size=used, curvature=curvature, step_times_curvature=product,
            skipped=estimate.skipped, num_hvps=estimate.num_hvps, num_evaluations=estimate.num_evaluations,
        )  # fmt: skip

    def done(self, state: GaussianState) -> Bool[Array, ""] | bool:
        """Whether the run has failed."""
        return state.failure != FINITE

    def result(self, state: GaussianState, target: Target) -> GaussianApproximation:
        """The Gaussian of the restart with the largest ELBO."""
        ok = np.asarray(state.failure) == FINITE
        if not ok.any():
            explain(type(self).__name__, jax.tree.map(lambda x: x[0], state), target)
        if self.curvature_decides:
            findings.warn_of_large_steps(type(self).__name__, state)
        elbos = np.where(ok, final_elbos(state, target)[0], -np.inf)
        return to_u(jax.tree.map(lambda x: jnp.asarray(x[int(np.argmax(elbos))]), state))

    def remarks(self, state: GaussianState, target: Target, result: Any) -> list[dict[str, Any]]:
        """What the diagnosis says beyond the draws: step size, convergence, restarts."""
        del result
        return findings.remarks(self, state, target)

    def merit(self, infos: GaussianInfo) -> dict[str, Array]:
        """ELBO, and step × curvature."""
        return {"elbo": infos.elbo.mean(), "step × curvature": infos.step_times_curvature.max()}

    def learned(self, state: GaussianState) -> dict[str, Array]:
        """Step size, curvature, and their product."""
        return {
            "step_size": state.size,
            "curvature": state.curvature,
            "step_times_curvature": state.size * state.curvature,
        }

    # -- small parts ------------------------------------------------------------------------------------------------

    def settings_of(self, dim: int) -> Settings:
        """How expectations are estimated."""
        return Settings(
            expectation=self.expectation, num_draws=self._draws(dim), antithetic=self.antithetic,
            control=self.control, coefficient=self.coefficient, skip_nonfinite=self.skip_nonfinite,
        )  # fmt: skip

    def _draws(self, dim: int) -> int:
        del dim
        return int(self.num_draws) if self.num_draws is not None else {"price": 8, "stein": 16}.get(self.expectation, 8)

    def _anchor(self, target: Target, u: Array, frame: Frame | None, curvature: Array) -> Anchor | None:
        """Of the control variates of mini-batches: the mode near the start."""
        if self.batch_size is None or not self.control_variates:
            return None
        return anchor_near(target, after(u if frame is None else frame.shift, curvature))

    def _first_covariance(self, start: Any, dim: int) -> Any:
        if self.initial_covariance is not None:
            return self.initial_covariance
        learned = start.learned.get("inverse_mass_matrix") if isinstance(start, Warm) else None
        usable = learned is not None and np.shape(learned) == (dim,) and self._whiten is None
        return learned if usable else 1.0

    def _blocks(self, target: Target) -> tuple[tuple[int, ...], ...]:
        if self.covariance != "block":
            return ()
        given = getattr(self, "blocks", None)
        return site_blocks(target) if given is None else tuple(tuple(int(i) for i in block) for block in given)

    @property
    def _rank(self) -> int:
        return int(getattr(self, "rank", 1))

    @property
    def _triangular(self) -> bool:
        return self.triangular or getattr(self, "geometry", "bures") == "cholesky"


def _largest(factor: AbstractFactor, push: Any) -> Float[Array, ""]:
    """The step size at which η S C is as large as C.

    Steps suit the mean curvature; draws far out, where it grows without bounds (as exp(2 log τ) in a hierarchy), would
    otherwise throw the covariance farther out in one step than the next draws can bring it back.
    """
    norm = jnp.sqrt(sum(jnp.sum(a**2) for a in jax.tree.leaves(push)))
    return jnp.sqrt(factor.trace()) / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)


def _all_finite(tree: Any) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if x.dtype.kind == "f"]))
