"""`MixFlow`: a mixture of the orbit of one map, fitted by growing orbits until the evidence bound stops to rise.

Xu, Chen & Campbell (2023), arXiv:2205.07475; Xu & Campbell (2025), arXiv:2506.02162 (the measure-preserving map).

Stages: a Gaussian, which is the reference q₀ and whose covariance sets the coordinates of the map, in which q₀ is a
product; then, once the step size is chosen on a grid by common random numbers, a batch of two-sided orbits that grow
block by block. The bound of every length is read off the same orbits (`orbit`). An iteration costs 2 × batch × block
maps. Flows of random maps have no such orbits: lengths are doubled, and the bound of each is that of draws from the
same starts.
"""

import dataclasses
import warnings
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from ...approximation import Approximation
from ...errors import NonFinite
from ...linalg import Triangular
from ...method import AbstractMethod, Budget, Stage
from ...run.start import Warm
from ...target import Target
from ..gaussian.advi import ADVI
from ..gaussian.approximation import GaussianApproximation
from ..gaussian.state import FINITE, GaussianState, to_u
from . import families, findings, orbit, settings, trajectories
from .approximation import Curve, MixFlowApproximation
from .families import Flow
from .hamiltonian import HamiltonianMap
from .involutive import InvolutiveMap
from .maps import AbstractMap
from .trajectories import MixFlowInfo, MixFlowState, largest_gain, lower_limit, mean_over_trajectories
from .tuning import check_starts, tune

FIRST_LOOK = 4
"""Lengths seen before orbits may stop growing."""


class MixFlow(AbstractMethod):
    """A mixed variational flow: draws, densities and an evidence bound without training a network.

    Parameters
    ----------
    kernel
        ``"hmc"``, ``"mala"`` or ``"rwmh"``: involutive maps that preserve the target exactly; ``"hamiltonian"``: the
        uncorrected map of the first paper, whose bound falls again beyond some length.
    num_leapfrog
        Leapfrog steps per map, for ``"hmc"`` and ``"hamiltonian"``; None: 20.
    step_size
        In units of the reference's standard deviations, a number or one per coordinate (of the whitened ones, for a
        full ``covariance``); None: the one of ``grid`` with the largest bound, less two standard errors.
    grid
        Step sizes that are tried; None: seven from 0.01 to 0.5, and up to three more beyond an end that is best.
    search_lengths
        N on which all of them are compared, and a longer one for the best three, if the bound still rises; one number
        for no second look; None: 50 and 200.
    max_length
        N, at most; orbits stop growing once the bound no longer rises by ``tolerance``.
    length
        N, to which orbits grow then, whatever the bound; None: where the bound less two standard errors is largest.
    num_trajectories
        Orbits that the bound is an average over.
    tolerance
        Gain of the bound, in nats, from half the length to the whole, below which orbits stop growing.
    reference
        An `Approximation` or posterior with a mean and a covariance; None: a normal fitted by `ADVI` from a Laplace
        approximation.
    covariance
        ``"full"``: the map runs in coordinates in which the reference's covariance is the identity; ``"diagonal"``: in
        units of the standard deviations of the mean-field normal nearest to it, whose draws are the reference then.
    overdispersion
        Factor on the reference's standard deviations.
    reference_steps
        Steps of its fit; 0: the reference is N(start, 1); None: 3,000.
    momentum
        For ``"hamiltonian"``: ``"gaussian"``, or ``"laplace"``, whose orbits invert with fewer lost digits; None:
        ``"gaussian"``.
    shift
        Of the refreshment: ``"stream"`` (for ``"hamiltonian"`` alone) or an irrational number in (0, 1); for involutive
        maps also a pair, θ_w of the momenta and θ_a of the acceptance. None: ``"stream"``, or π / 8 and π / 7 for
        involutive maps. Random maps draw their own.
    family
        ``"homogeneous"``: one map; random maps: ``"backward_irf"`` (density by N − 1 maps), ``"forward_irf"`` (by
        N² / 2, for short flows) or ``"ensemble"`` (the ends of ``num_members`` sequences, by M N).
    burn_in
        First component of the mixture, which has N − ``burn_in`` of them.
    num_members
        M, for ``"ensemble"``; None: 10.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or has no effect beside the others; ``reference`` has no mean and covariance, or
        another dimension.
    NonFinite
        The log density or its gradient is not finite at draws of the reference; or no step size of the grid, or no
        length, gave a finite bound.

    References
    ----------
    Xu, Chen & Campbell (2023), MixFlows, ICML; Xu & Campbell (2025), Asymptotically exact variational flows via
    involutive MCMC kernels.
    """

    kernel: str = eqx.field(static=True, default="hmc")
    num_leapfrog: int | None = eqx.field(static=True, default=None)
    step_size: Any = None
    grid: Any = eqx.field(default=None, converter=settings.as_grid)
    search_lengths: Any = eqx.field(static=True, default=None, converter=settings.as_numbers)
    max_length: int = eqx.field(static=True, default=1000)
    length: int | None = eqx.field(static=True, default=None)
    num_trajectories: int = eqx.field(static=True, default=64)
    tolerance: float = 0.01
    reference: Any = eqx.field(default=None, converter=settings.as_reference)
    covariance: str = eqx.field(static=True, default="full")
    overdispersion: float = 1.0
    reference_steps: int | None = None
    momentum: str | None = eqx.field(static=True, default=None)
    shift: Any = eqx.field(static=True, default=None, converter=settings.as_numbers)
    family: str = eqx.field(static=True, default="homogeneous")
    burn_in: int = eqx.field(static=True, default=0)
    num_members: int | None = eqx.field(static=True, default=None)
    tuned: Any = None

    kind: ClassVar = "approximation"
    exact: ClassVar = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = False  # of draws alone; of u by an estimate, see MixFlowApproximation
    default_chains: ClassVar[int] = 1
    source: ClassVar[str] = "Xu, Chen & Campbell 2023; Xu & Campbell 2025"

    def __check_init__(self) -> None:
        settings.check(self)

    @property
    def lengths(self) -> np.ndarray:
        """The lengths N at which the bound is looked at, from one component to ``length`` or ``max_length``."""
        return trajectories.lengths_to_see(self.family, self.burn_in + 1, self._longest)

    @property
    def _longest(self) -> int:
        return self.max_length if self.length is None else int(self.length)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """The reference, then the orbits."""
        del budget
        orbits = Stage("orbits", self, len(self.lengths))
        steps = settings.usual(self, "reference_steps")
        if self.reference is not None or steps == 0:
            return (orbits,)
        return (Stage("reference", ADVI(num_steps=steps, covariance="full", whiten="auto"), steps, keep=False), orbits)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "MixFlow":
        """Look at the reference of the first chain's start, and choose the step size for it, on the host."""
        groups = start if isinstance(start, list | tuple) else [start]
        first = groups[0]
        if isinstance(first, GaussianState) and np.any(np.asarray(first.failure) != FINITE):
            warnings.warn(
                f"MixFlow: the fit of its reference broke off at step {np.max(np.asarray(first.failed_at))} of "
                f"{settings.usual(self, 'reference_steps'):,}, and the last good one is used; look at the model with "
                f"target.check(), or give a reference=.",
                RuntimeWarning,
                stacklevel=2,
            )
        if jax.tree.leaves(first)[0].ndim > 1 and isinstance(first, GaussianState):
            first = jax.tree.map(lambda x: x[0], first)
        reference = first_reference(self, first)
        settings.check_dimension(self, reference, target.dim)
        check_starts(key, target, reference)
        tuned, chains = tune(self, key, target, reference), sum(map(num_chains, groups))
        shared = dataclasses.replace(tuned, num_evaluations=-(-tuned.num_evaluations // chains))
        return dataclasses.replace(self, tuned=shared)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> MixFlowState:
        """Orbits of length one."""
        key_orbits, key_shifts, key_places = jax.random.split(key, 3)
        reference = first_reference(self, start)
        flow_map = self.map(reference, self.tuned.step_size.astype(reference.loc.dtype))
        members, shifts = settings.usual(self, "num_members") if self.family == "ensemble" else 1, None
        if self.family != "homogeneous":
            shifts = families.random_shifts(key_shifts, reference, members, self._longest)
        flow = Flow(flow_map, reference, shifts, self.family, self.burn_in, members)
        room = self._longest if self.family == "homogeneous" else 1
        log_density = reference.density(target.log_density)
        orbits = orbit.begin(key_orbits, flow_map, reference, log_density, self.num_trajectories, room)
        place = jax.random.uniform(key_places, (self.num_trajectories,), reference.loc.dtype)
        empty = jnp.full((self.num_trajectories, len(self.lengths)), jnp.nan, reference.loc.dtype)
        return MixFlowState(flow, orbits, place, empty, jnp.zeros((), jnp.int32))

    def step(
        self, key: PRNGKeyArray, state: MixFlowState, target: Target, t: Array
    ) -> tuple[MixFlowState, MixFlowInfo]:
        """The bound at the next length: orbits grow by a block, or draws of that length are made."""
        del key
        length = jnp.asarray(self.lengths, jnp.int32)[t]
        advance = trajectories.grow if self.family == "homogeneous" else trajectories.draw
        orbits, reached, maps = advance(state, target, length)
        bounds = state.bounds.at[:, t].set(reached)
        new = MixFlowState(state.flow, orbits, state.place, bounds, (t + 1).astype(jnp.int32))
        elbo, se, _ = mean_over_trajectories(bounds)
        best = jnp.argmax(lower_limit(elbo, se))
        return new, MixFlowInfo(
            elbo=elbo[best],
            elbo_se=se[best],
            length=length,
            lost=jnp.sum(~jnp.isfinite(reached)),
            divergences=jnp.sum(orbits.tally.divergences),
            num_evaluations=self.num_trajectories * maps * state.flow.flow_map.gradients
            + jnp.where(t == 0, self.num_trajectories + self.tuned.num_evaluations, 0),
        )

    def done(self, state: MixFlowState) -> Bool[Array, ""] | bool:
        """Whether the bound rose by less than ``tolerance`` from half the length, two paired standard errors added.

        Where the length is given, orbits grow up to it.
        """
        now = jnp.maximum(state.filled - 1, 0)
        lengths = jnp.asarray(self.lengths, jnp.int32)
        half = trajectories.half_of(lengths, now)
        gone = (state.filled > 0) & ~jnp.isfinite(state.bounds[:, now]).any()
        flat = (now >= FIRST_LOOK) & (largest_gain(state.bounds[:, half], state.bounds[:, now]) < self.tolerance)
        return gone | flat if self.length is None else gone

    def result(self, state: MixFlowState, target: Target) -> Approximation:
        """The flow of the best restart, of the length with the largest lower limit of its bound."""
        found = [self._flow(jax.tree.map(lambda x, i=i: x[i], state), target) for i in range(len(state.bounds))]
        values = [float(lower_limit(flow.curve.elbo, flow.curve.se).max()) for flow in found]
        if not np.isfinite(max(values)):
            raise NonFinite(
                f"MixFlow: the bound is {max(values)} at every length up to {self.max_length}; give a step_size "
                f"smaller than {np.min(self.tuned.step_size):.3g}, or a reference= nearer to the target."
            )
        return found[int(np.argmax(values))]

    def _flow(self, state: MixFlowState, target: Target) -> MixFlowApproximation:
        lengths = jnp.asarray(self.lengths, jnp.int32)
        elbo, se, lost = mean_over_trajectories(state.bounds)
        skew = trajectories.skewness(state.bounds)
        # A bound without the trajectories that got lost is too high: lengths that lost none come first.
        value = lower_limit(elbo, se)
        whole = jnp.where(lost == 0, value, -jnp.inf)
        best = jnp.where(jnp.isfinite(whole).any(), jnp.argmax(whole), jnp.argmax(value))
        length = lengths[best] if self.length is None else jnp.asarray(self.length, jnp.int32)
        own = best if self.length is None else jnp.asarray(state.filled) - 1
        paired = trajectories.paired_errors(state.bounds, own)
        curve = Curve(lengths, elbo, se, lost, state.filled, skew, paired)
        return MixFlowApproximation(state.flow, length, target, curve)

    def remarks(self, state: MixFlowState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Step size and length chosen, a falling bound, lost trajectories, energy errors, digits lost by inversion."""
        del target
        return findings.remarks(self, state, result)

    def merit(self, infos: MixFlowInfo) -> dict[str, Array]:
        """The bound, and the length reached."""
        return {"elbo": infos.elbo[..., -1].max(), "length": infos.length[..., -1].max()}

    def map(self, reference: orbit.Reference, step_size: Any) -> AbstractMap:
        """The map in units of the reference's standard deviations (without its overdispersion)."""
        scale, leapfrogs = reference.scale / self.overdispersion, settings.usual(self, "num_leapfrog")
        if self.kernel == "hamiltonian":
            shift = "stream" if self.shift is None else self.shift
            return HamiltonianMap(step_size, scale, leapfrogs, settings.usual(self, "momentum"), shift)
        shifts = settings.both_shifts(self.shift)
        return InvolutiveMap(step_size, scale, self.kernel, leapfrogs, *shifts)


def num_chains(start: Any) -> int:
    """Of a group: its states have a leading axis, or are those of a single one."""
    here = start.mean if isinstance(start, GaussianState) else jax.tree.leaves(start)[0]
    return len(here) if jnp.ndim(here) > 1 else 1


def first_reference(method: MixFlow, start: Any) -> orbit.Reference:
    """q₀: the user's, the Gaussian of the stage before, or one of unit scale around the start."""
    if method.reference is None and not isinstance(start, GaussianState):
        loc = start.u if isinstance(start, Warm) else jnp.asarray(start)
        return orbit.Reference(loc, jnp.full_like(loc, method.overdispersion))
    q = to_u(start) if method.reference is None else method.reference
    if method.covariance == "diagonal":
        loc, scale = mean_field(q)
        return orbit.Reference(loc, method.overdispersion * scale)
    if not isinstance(q, GaussianApproximation):  # whose factor would lose digits in a product with itself
        q = GaussianApproximation(q.mean(), Triangular(jnp.linalg.cholesky(q.covariance())))
    return orbit.Reference(jnp.zeros_like(q.loc), jnp.full_like(q.loc, method.overdispersion), q)


def mean_field(q: Approximation) -> tuple[Array, Array]:
    """Mean and standard deviations of the mean-field normal nearest to N(m, Σ) by the bound: diag(Σ⁻¹)^−½."""
    covariance = q.covariance()
    root = jnp.linalg.cholesky(covariance)
    inverse = jax.scipy.linalg.solve_triangular(root, jnp.eye(len(root), dtype=root.dtype), lower=True)
    return q.mean(), jnp.sum(inverse**2, axis=0) ** -0.5
