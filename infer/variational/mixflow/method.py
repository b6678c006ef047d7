"""`MixFlow`: a mixture of the orbit of one map, fitted by growing orbits until the evidence bound stops to rise.

Xu, Chen & Campbell (2023), arXiv:2205.07475; Xu & Campbell (2025), arXiv:2506.02162 (the measure-preserving map).

Stages: a mean-field Gaussian (the reference q₀), whose standard deviations set the scales of the map; then, once the
step size is chosen on a grid by common random numbers, a batch of two-sided orbits that grow block by block. The bound
of every length is read off the same orbits (`orbit`). An iteration costs 2 × batch × block maps.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...approximation import Approximation, as_approximation
from ...errors import InvalidArgument, NonFinite
from ...method import AbstractMethod, Budget, Stage
from ...run.start import Warm
from ...target import Target
from ...validate import check_choice, check_count, check_fraction, check_nonnegative, check_positive
from ..gaussian.advi import ADVI
from ..gaussian.common import GaussianState, to_u
from . import findings, orbit
from .approximation import Curve, MixFlowApproximation
from .maps import AbstractMap, HamiltonianMap, InvolutiveMap
from .tuning import tune

KERNELS = ("hmc", "mala", "rwmh", "hamiltonian")
MOMENTA = ("gaussian", "laplace")
BLOCKS = 25
"""Iterations in which orbits reach ``max_length``."""
FIRST_LOOK = 4
"""Blocks before orbits may stop growing."""


class MixFlowState(eqx.Module):
    """The map and its reference, orbits so far, and each one's bound by length, NaN where not reached."""

    flow_map: AbstractMap
    reference: orbit.Reference
    orbits: orbit.Orbits
    bounds: Float[Array, "batch g"]


class MixFlowInfo(NamedTuple):
    """Best bound so far, its standard error, its length, trajectories that left the finite numbers, gradients."""

    elbo: Array
    elbo_se: Array
    length: Array
    divergent: Array
    num_evaluations: Array


class MixFlow(AbstractMethod):
    """A mixed variational flow: draws, densities and an evidence bound without training a network.

    Parameters
    ----------
    kernel
        ``"hmc"``, ``"mala"`` or ``"rwmh"``: involutive maps that preserve the target exactly; ``"hamiltonian"``: the
        uncorrected map of the first paper, whose bound falls again beyond some length.
    num_leapfrog
        Leapfrog steps per map, for ``"hmc"`` and ``"hamiltonian"``.
    step_size
        In units of the reference's standard deviations; None: the one of ``grid`` with the largest bound.
    grid
        Step sizes that are tried.
    max_length
        N, at most; orbits stop growing once the bound no longer rises by ``tolerance``.
    length
        N; None: where the bound is largest.
    num_trajectories
        Orbits that the bound is an average over.
    tolerance
        Gain of the bound, in nats, from half the length to the whole, below which orbits stop growing.
    reference
        An `Approximation` or posterior with a mean and a covariance, whose diagonal counts; None: a mean-field fit.
    overdispersion
        Factor on the reference's standard deviations.
    reference_steps
        Steps of the mean-field fit; 0: the reference is N(start, 1).
    momentum
        For ``"hamiltonian"``: ``"gaussian"``, or ``"laplace"``, whose orbits invert with fewer lost digits.
    shift
        For ``"hamiltonian"``: ``"stream"``, or a number in (0, 1).

    Raises
    ------
    InvalidArgument
        A setting is out of range, or ``reference`` has no density.
    NonFinite
        No step size of the grid, or no length, gave a finite bound.

    References
    ----------
    Xu, Chen & Campbell (2023), MixFlows, ICML; Xu & Campbell (2025), Asymptotically exact variational flows via
    involutive MCMC kernels.
    """

    kernel: str = eqx.field(static=True, default="hmc")
    num_leapfrog: int = eqx.field(static=True, default=20)
    step_size: Any = None
    grid: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
    max_length: int = eqx.field(static=True, default=1000)
    length: Any = None
    num_trajectories: int = eqx.field(static=True, default=64)
    tolerance: float = 0.01
    reference: Any = eqx.field(default=None, converter=lambda given: as_approximation("reference", given))
    overdispersion: float = 1.0
    reference_steps: int = 3000
    momentum: str = eqx.field(static=True, default="gaussian")
    shift: Any = eqx.field(static=True, default="stream")
    tuned: Any = None

    kind: ClassVar = "approximation"
    exact: ClassVar = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = False  # of draws alone; of u by an estimate, see MixFlowApproximation
    default_chains: ClassVar[int] = 1
    source: ClassVar[str] = "Xu, Chen & Campbell 2023; Xu & Campbell 2025"

    def __check_init__(self) -> None:
        check_choice("kernel", self.kernel, KERNELS)
        check_choice("momentum", self.momentum, MOMENTA)
        if self.shift != "stream":
            check_fraction("shift", self.shift)
            if abs(self.shift * 64 - round(self.shift * 64)) < 1e-9:
                raise InvalidArgument(
                    f"shift must be irrational, or orbits are periodic, got {self.shift}; use pi / 16."
                )
        for name in ("num_leapfrog", "max_length"):
            check_count(name, getattr(self, name))
        check_count("num_trajectories", self.num_trajectories, 2)
        check_count("reference_steps", self.reference_steps, 0)
        check_positive("overdispersion", self.overdispersion)
        check_nonnegative("tolerance", self.tolerance)
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        if not self.grid:
            raise InvalidArgument(f"grid must hold a step size to choose from, got {self.grid!r}; or give step_size=.")
        for value in self.grid:
            check_positive("grid", value)
        if self.length is not None and check_count("length", self.length) > self.max_length:
            raise InvalidArgument(f"length must be at most max_length={self.max_length}, got {self.length}.")

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """The reference, then the orbits."""
        del budget
        orbits = Stage("orbits", self, max(1, -(-(self.max_length - 1) // self._block())))
        if self.reference is not None or self.reference_steps == 0:
            return (orbits,)
        reference = ADVI(num_steps=self.reference_steps, covariance="diagonal")
        return (Stage("reference", reference, self.reference_steps, keep=False), orbits)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "MixFlow":
        """Choose the step size, on the host, for the reference of the first chain's start."""
        first = start[0] if isinstance(start, list | tuple) else start
        if jax.tree.leaves(first)[0].ndim > 1 and isinstance(first, GaussianState):
            first = jax.tree.map(lambda x: x[0], first)
        return dataclasses.replace(self, tuned=tune(self, key, target, first_reference(self, first)))

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> MixFlowState:
        """Orbits of length one."""
        reference = first_reference(self, start)
        flow_map = self.map(reference, self.tuned.step_size.astype(reference.loc.dtype))
        orbits = orbit.begin(key, flow_map, reference, target.log_density, self.num_trajectories, self.max_length)
        empty = jnp.full((self.num_trajectories, BLOCKS), jnp.nan, reference.loc.dtype)
        return MixFlowState(flow_map, reference, orbits, empty)

    def step(
        self, key: PRNGKeyArray, state: MixFlowState, target: Target, t: Array
    ) -> tuple[MixFlowState, MixFlowInfo]:
        """Another block of maps on either side of every orbit, and the bound at the length reached."""
        del key
        wanted = jnp.minimum((t + 1) * self._block() + 1, self.max_length)
        more = (wanted - state.orbits.length).astype(jnp.int32)
        orbits = orbit.grow(state.orbits, state.flow_map, state.reference, target.log_density, more)
        reached = orbit.bounds(orbits, orbits.length[None])[:, 0]
        bounds = state.bounds.at[:, t].set(reached)
        elbo, se = mean_over_trajectories(bounds)
        best = jnp.argmax(jnp.nan_to_num(elbo, nan=-jnp.inf))
        return MixFlowState(state.flow_map, state.reference, orbits, bounds), MixFlowInfo(
            elbo=elbo[best],
            elbo_se=se[best],
            length=orbits.length,
            divergent=jnp.sum(~jnp.isfinite(reached)),
            num_evaluations=2 * self.num_trajectories * more * state.flow_map.gradients,
        )

    def done(self, state: MixFlowState) -> Bool[Array, ""] | bool:
        """Whether the bound rose by less than ``tolerance`` from half the length, by its paired standard error."""
        now = (state.orbits.length - 2) // self._block()
        gain = state.bounds[:, now] - state.bounds[:, jnp.maximum(now // 2, 0)]
        mean, se = mean_over_trajectories(gain[:, None])
        return (now >= FIRST_LOOK) & (mean[0] + se[0] < self.tolerance)

    def result(self, state: MixFlowState, target: Target) -> Approximation:
        """The flow of the best restart, of the length with the largest bound."""
        found = [self._flow(jax.tree.map(lambda x, i=i: x[i], state), target) for i in range(len(state.bounds))]
        values = [float(np.nanmax(np.asarray(flow.curve.elbo), initial=-np.inf)) for flow in found]
        if not np.isfinite(max(values)):
            raise NonFinite(
                f"MixFlow: the bound is {max(values)} at every length up to {self.max_length}; give a step_size "
                f"smaller than {float(self.tuned.step_size):.3g}, or a reference= nearer to the target."
            )
        return found[int(np.argmax(values))]

    def _flow(self, state: MixFlowState, target: Target) -> MixFlowApproximation:
        elbo, se = mean_over_trajectories(state.bounds)
        filled = (state.orbits.length - 2) // self._block() + 1
        lengths = jnp.minimum((jnp.arange(BLOCKS) + 1) * self._block() + 1, self.max_length)
        best = lengths[jnp.argmax(jnp.nan_to_num(elbo, nan=-jnp.inf))]
        length = best if self.length is None else jnp.asarray(self.length)
        return MixFlowApproximation(
            state.flow_map, state.reference, length.astype(jnp.int32), target, Curve(lengths, elbo, se, filled)
        )

    def remarks(self, state: MixFlowState, target: Target) -> list[dict[str, Any]]:
        """Step size and length chosen, a falling bound, lost trajectories, digits lost by inversion."""
        return findings.remarks(self, state, self.result(state, target))

    def merit(self, infos: MixFlowInfo) -> dict[str, Array]:
        """The bound, and the length reached."""
        return {"elbo": infos.elbo[..., -1].max(), "length": infos.length[..., -1].max()}

    def map(self, reference: orbit.Reference, step_size: Any) -> AbstractMap:
        """The map in units of the reference's standard deviations (without its overdispersion)."""
        scale = reference.scale / self.overdispersion
        if self.kernel == "hamiltonian":
            return HamiltonianMap(step_size, scale, self.num_leapfrog, self.momentum, self.shift)
        return InvolutiveMap(step_size, scale, self.kernel, self.num_leapfrog)

    def _block(self) -> int:
        return max(1, -(-(self.max_length - 1) // BLOCKS))


def mean_over_trajectories(bounds: Float[Array, "batch g"]) -> tuple[Float[Array, " g"], Float[Array, " g"]]:
    """Mean and standard error of the finite ones; NaN where there is none."""
    finite = jnp.isfinite(bounds)
    count = jnp.maximum(finite.sum(0), 1)
    mean = jnp.where(finite.any(0), jnp.where(finite, bounds, 0.0).sum(0) / count, jnp.nan)
    square = jnp.where(finite, (bounds - mean) ** 2, 0.0).sum(0) / jnp.maximum(count - 1, 1)
    return mean, jnp.sqrt(square / count)


def first_reference(method: MixFlow, start: Any) -> orbit.Reference:
    """q₀: the user's, the Gaussian of the stage before, or one of unit scale around the start."""
    if method.reference is not None:
        loc, scale = method.reference.mean(), jnp.sqrt(jnp.diagonal(method.reference.covariance()))
    elif isinstance(start, GaussianState):
        fitted = to_u(start)
        loc, scale = fitted.mean(), jnp.sqrt(jnp.diagonal(fitted.covariance()))
    else:
        loc = start.u if isinstance(start, Warm) else jnp.asarray(start)
        scale = jnp.ones_like(loc)
    return orbit.Reference(loc, method.overdispersion * scale)
