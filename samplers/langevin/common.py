"""What the Langevin samplers of this folder share: the state, the warm-up, the Metropolis test, the bias estimate.

A sampler says how to look at a point (`locate`: log density and drift) and how to propose the next one (`propose`,
with the log of the Metropolis ratio). All run in the constrained coordinates x of the target (`Target.log_density_at`).

Conventions: a step γ has drift γ∇U and noise √(2γ), U = −log π.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.geometry.mirror import AbstractMirror, Point
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.run.start import Warm
from ...infer.target import Target
from ...infer.target.mirrors import log_probabilities
from ...infer.target.primal import Primal, PrimalCoordinates, primal
from ...infer.validate import check_fraction, check_positive
from ..adaptation import Adaptation, Settings, start_adaptation, update_adaptation
from ..metric import variances
from ..mirrors import check_inside
from ..schedule import Schedule, frozen, step_size_schedule, window_schedule
from .checks import check_domain, describe_edges, describe_overshoot, starting_points, steepest_edge

FIRST_STEP = 0.1
ACCEPTANCE_REAL, ACCEPTANCE, ACCEPTANCE_STEEP = 0.574, 0.5, 0.4
"""Of MALA; where a constraint makes the metric vary from place to place, so that 1 − acceptance falls as √γ, and 0.5
is never far from the best by measurement, while 0.4 and 0.6 may be (`benchmarks/papers/langevin_edges.py`); and where a
density is infinite at an edge, from which only long steps lead away."""
SHRINK = 0.02
"""A window makes no variance smaller than by this factor: a chain that hardly moved tells little."""
UNADJUSTED = 0.1
"""An unadjusted sampler's share of the step size at which the Metropolis test would accept as often as it should."""
EDGE = 0.02
"""Its largest step where a site is constrained: in the metric 1/x² of a barrier √(2γ) is relative to the distance from
the edge, and five standard deviations are needed for a step across all of the dual."""
Noise = Callable[[Point], Array]


class Local(NamedTuple):
    """A point and what was evaluated there.

    Parameters
    ----------
    point
        Primal and dual coordinates.
    log_density
        Log π(x), its nonsmooth part included.
    drift
        G(x), the gradient of the (smoothed) potential that the proposal follows, shape (d,).
    term
        g(x), the nonsmooth part; an empty tuple where the target has none.
    """

    point: Point
    log_density: Array
    drift: Array
    term: Any = ()


class Proposal(NamedTuple):
    """A proposed point, the log of the Metropolis ratio (NaN where it has none), and whether all is finite."""

    local: Local
    log_ratio: Array
    finite: Array


class Pair(NamedTuple):
    """Running moments of the chain at step γ and of its twin, two steps of γ/2 driven by the same noise.

    Parameters
    ----------
    twin
        Where the twin is.
    count
        Iterations in the means.
    means
        Of x and x², of the chain and of the twin, shape (2, 2, d).
    """

    twin: Local
    count: Array
    means: Float[Array, "2 2 d"]


class LangevinState(eqx.Module):
    """State of a chain: where it is, what warm-up learned, and the pair that tells the bias of an unadjusted one."""

    local: Local
    adaptation: Adaptation
    pair: Pair | None
    coordinates: PrimalCoordinates


class LangevinInfo(NamedTuple):
    """sample_stats of one iteration."""

    acceptance_rate: Array
    diverging: Array
    lp: Array
    step_size: Array
    num_evaluations: Array


class CompositeInfo(NamedTuple):
    """That of a target with a nonsmooth part g, and g(x), whose R-hat and ESS `diagnose` looks at."""

    acceptance_rate: Array
    diverging: Array
    lp: Array
    step_size: Array
    num_evaluations: Array
    nonsmooth: Array


class Seen(NamedTuple):
    """What the warm-up reads of a point."""

    position: Array
    logdensity: Array
    logdensity_grad: Array


class AbstractLangevin(AbstractMethod):
    """Hyper-parameters and functions that all have; see the concrete classes."""

    step_size: Any = None
    adjusted: bool = eqx.field(static=True, default=True)
    target_acceptance: Any = None
    scale: Any = None
    bias_check: bool = eqx.field(static=True, default=True)
    schedule: Any = None
    pair_from: Any = None

    kind: ClassVar = "chains"
    requires: ClassVar = ("support",)
    has_ratio: ClassVar[bool] = True
    evaluations: ClassVar[int] = 1
    divergence: ClassVar[str] = (
        "Here that is a proposal at which the density, its gradient, the dual or the Metropolis ratio is not finite; "
        "it was rejected, and the chain stayed where it was. Look for overflow or NaN of the model there; a smaller "
        "step_size, or a larger target_acceptance, leads there less often."
    )

    def __check_init__(self) -> None:
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        if self.target_acceptance is not None:
            check_fraction("target_acceptance", self.target_acceptance)
        mirror = getattr(self, "mirror", None)
        if self.scale is not None and isinstance(mirror, AbstractMirror):
            raise InvalidArgument(
                f"scale={self.scale!r} has no use with a mirror of one's own, {type(mirror).__name__}; write "
                f"mirror=Affine(mirror, 0.0, scale)."
            )
        if self.scale is not None and not np.all(np.asarray(self.scale) > 0):
            raise InvalidArgument(f"scale must be positive in every coordinate, got {self.scale!r}.")

    # -- what a sampler writes ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def mirror_for(self, target: Primal, scale: Array) -> AbstractMirror:
        """The mirror map, with ``scale`` (d,) where it is one that scales."""

    @abc.abstractmethod
    def locate(self, target: Primal, mirror: AbstractMirror, point: Point) -> Local:
        """Log density and drift at a point."""

    @abc.abstractmethod
    def propose(self, target: Primal, mirror: AbstractMirror, noise: Noise, local: Local, step: Array) -> Proposal:
        """The next point, and the log of the ratio π(z)q(x|z) / π(x)q(z|x)."""

    def noise(self, key: PRNGKeyArray, mirror: AbstractMirror, point: Point) -> Array:
        """The Gaussian that a proposal from ``point`` needs; linear in standard normals that ``key`` decides."""
        return mirror.noise(key, point)

    def scales(self, target: Primal) -> bool:
        """Whether warm-up learns the scale of real sites."""
        own = isinstance(getattr(self, "mirror", None), AbstractMirror)
        some = any(block.is_real for block in target.coordinates.blocks)
        return self.scale is None and some and not (own or self._fixed)

    def first_step(self, target: Primal, mirror: AbstractMirror, local: Local) -> Any:
        """The step size where the user gives none: where warm-up begins, or, without a ratio, the one used."""
        del target, mirror, local
        return FIRST_STEP

    # -- the method -------------------------------------------------------------------------------------------------

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Warm-up; for an unadjusted sampler a stage that estimates its bias; sampling.

        Warm-up learns step size and scale with the Metropolis test, of an unadjusted sampler too, unless it has no
        ratio, or the user gave its step size.
        """
        sample = Stage("sample", self._with(frozen()), budget.num_samples * budget.thin)
        if budget.num_warmup == 0:
            return (sample,)
        schedule = (step_size_schedule if budget.warm else window_schedule)(budget.num_warmup)
        warmup = Stage("warm-up", self._with(schedule), budget.num_warmup, keep=False)
        length = budget.num_warmup // 2
        if not self._paired or length == 0:
            return (warmup, sample)
        pairing = dataclasses.replace(self._with(frozen()), pair_from=np.int32(length // 4))
        return (warmup, Stage("bias", pairing, length, keep=False), sample)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "AbstractLangevin":
        """Refuse what only the host can see: a target without constrained coordinates, starts outside of the mirror's
        domain, a step size at which the recursion explodes. The acceptance to be reached is lower where a density grows
        without bound towards an edge.
        """
        found = primal(target)
        x = found.coordinates.to_x(target.initial(key))
        mirror = self.mirror_for(found, jnp.ones_like(x))
        mirror.check(x.shape[0])
        points = [found.coordinates.to_x(u) for u in starting_points(start)]
        for point in points:
            check_inside(mirror, found, point)
        check_domain(mirror, found, key)
        self.check_step(found, points[0] if points else x)
        own = self.target_acceptance is not None or found.coordinates.real or not self._learns
        if own or not points or not steepest_edge(found, points[0])[0]:
            return self
        return dataclasses.replace(self, target_acceptance=ACCEPTANCE_STEEP)

    def check_step(self, target: Primal, x: Array) -> None:
        """Raise where the user's step size is too large for the curvature at ``x``; default: any will do."""

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> LangevinState:
        """Log density and drift at the start; step size and scale from ``start``, from the user, or the defaults."""
        del key
        if isinstance(start, LangevinState):
            return start
        u, learned = (start.u, start.learned) if isinstance(start, Warm) else (start, {})
        found = primal(target)
        x = found.coordinates.to_x(u)
        d = x.shape[0]
        scale = _learned_scale(learned) if self.scale is None and found.coordinates.real else self.scale
        if scale is not None and np.shape(scale) not in ((), (d,)):
            raise InvalidArgument(f"scale has shape {np.shape(scale)}; the target has {d} coordinates: give ({d},).")
        metric = None if scale is None and self.scales(found) else jnp.ones(d) * (1.0 if scale is None else scale) ** 2
        gradient = jax.grad(found.log_density)(x)
        adaptation = start_adaptation(self._settings(found), 1.0, jnp.zeros(()), gradient, metric)
        mirror = self.mirror_for(found, jnp.sqrt(adaptation.metric))
        mirror.check(d)
        local = self.locate(found, mirror, mirror.at(x))
        step_size = self.step_size
        if step_size is None and self.has_ratio and "scale" in learned:  # another sampler's step is of another kind
            step_size = learned["step_size"]
        step_size = self.first_step(found, mirror, local) if step_size is None else step_size
        adaptation = start_adaptation(self._settings(found), step_size, local.log_density, gradient, adaptation.metric)
        pair = Pair(local, jnp.zeros(()), jnp.zeros((2, 2, d))) if self._paired else None
        return LangevinState(local, adaptation, pair, found.coordinates)

    def step(
        self, key: PRNGKeyArray, state: LangevinState, target: Target, t: Array
    ) -> tuple[LangevinState, LangevinInfo | CompositeInfo]:
        """One proposal and its test; during warm-up, one update of step size and scale."""
        found, schedule = primal(target), frozen() if self.schedule is None else self.schedule
        adapting = schedule.adapting & self._learns
        step_size = self.step_in_force(found, state.adaptation, adapting)
        mirror = self.mirror_for(found, jnp.sqrt(state.adaptation.metric))
        keys = jax.random.split(key, 3)
        noises = [lambda p, k=k: self.noise(k, mirror, p) for k in keys[:2]]
        coarse = (lambda p: (noises[0](p) + noises[1](p)) / np.sqrt(2.0)) if self.pair_from is not None else noises[0]

        proposal = self.propose(found, mirror, coarse, state.local, step_size)
        acceptance = jnp.where(proposal.finite, jnp.exp(jnp.minimum(proposal.log_ratio, 0.0)), 0.0)
        acceptance = jnp.nan_to_num(acceptance, nan=0.0)
        passed = jnp.log(jax.random.uniform(keys[2])) < proposal.log_ratio
        taken = proposal.finite & (passed | ~(adapting | self.adjusted))
        local = _where(taken, proposal.local, state.local)
        pair = state.pair
        if self.pair_from is not None and pair is not None:
            half = self.propose(found, mirror, noises[0], pair.twin, step_size / 2)
            twin = _where(half.finite, half.local, pair.twin)
            half = self.propose(found, mirror, noises[1], twin, step_size / 2)
            twin = _where(half.finite, half.local, twin)
            pair = _update(pair, local, _where(t == 0, local, twin), t >= self.pair_from)

        # Variances are learned in units of those in force, towards which the estimator shrinks then.
        seen = Seen(local.point.x / jnp.sqrt(state.adaptation.metric), local.log_density, -local.drift)
        # A proposal outside of the constraint has the ratio −∞ and stays where it is: an expected rejection.
        diverging = ~proposal.finite
        if self.has_ratio:
            diverging |= jnp.isnan(proposal.log_ratio) & (self.adjusted | adapting)
        adaptation = state.adaptation
        if self._learns:
            adaptation = update_adaptation(self._settings(found), adaptation, schedule, t, seen, acceptance, diverging)
            changed = adapting & jnp.any(t == schedule.ends) & self.scales(found)
            metric = state.adaptation.metric * jnp.where(changed, jnp.maximum(adaptation.metric, SHRINK), 1.0)
            estimator = adaptation.estimator._replace(inverse_mass_matrix=metric)
            adaptation = Adaptation(adaptation.dual_averaging, estimator, adaptation.level)
            local = self._rescaled(found, local, adaptation, changed)
        new = LangevinState(local, adaptation, pair, state.coordinates)
        info = LangevinInfo(
            acceptance_rate=acceptance if self.has_ratio else jnp.asarray(taken, acceptance.dtype),
            diverging=diverging,
            lp=local.log_density,
            step_size=step_size,
            num_evaluations=jnp.asarray(self.evaluations * (1 if self.pair_from is None else 3), int),
        )
        return new, info if found.nonsmooth is None else CompositeInfo(*info, nonsmooth=local.term)

    def step_in_force(self, target: Primal, adaptation: Adaptation, adapting: Any) -> Array:
        """The user's γ, or the learned one, of which an unadjusted sampler takes a part once warm-up is over."""
        step_size = adaptation.step_size(adapting)
        if self._fixed:
            return jnp.asarray(self.step_size, step_size.dtype)
        if self.adjusted or not self._learns:
            return step_size
        largest = jnp.inf if target.coordinates.real else EDGE
        return jnp.where(adapting, step_size, jnp.minimum(UNADJUSTED * step_size, largest))

    def draw(self, state: LangevinState) -> Array:
        """The chain's position, in u."""
        return state.coordinates.to_u(state.local.point.x)

    def learned(self, state: LangevinState) -> dict[str, Any]:
        """Step size and scale per coordinate."""
        return {
            "step_size": state.adaptation.step_size(False),
            "scale": jnp.sqrt(state.adaptation.metric),
        }

    def merit(self, infos: LangevinInfo) -> dict[str, Array]:
        """Mean acceptance statistic and number of proposals that were not finite."""
        return {"acceptance": infos.acceptance_rate.mean(), "divergences": infos.diverging.sum()}

    def remarks(self, state: LangevinState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Densities without bound at an edge; of an unadjusted sampler its bias, and steps that are too long."""
        from .bias import describe_bias

        del result
        found = primal(target)
        edges = describe_edges(found, state.local.point.x[0])
        if self.adjusted:
            return edges
        steps = jax.vmap(lambda adaptation: self.step_in_force(found, adaptation, False))(state.adaptation)
        mirror = self.mirror_for(found, jnp.sqrt(state.adaptation.metric[0]))
        long = describe_overshoot(mirror, state.local.point.y, steps[:, None] * state.local.drift)
        return [*describe_bias(type(self).__name__, state.pair), *edges, *long]

    @property
    def _fixed(self) -> bool:
        """Whether the step size is the user's, to be used as it is."""
        return not self.adjusted and self.step_size is not None

    @property
    def _learns(self) -> bool:
        """Whether warm-up learns step size and scale."""
        return self.has_ratio and not self._fixed

    @property
    def _paired(self) -> bool:
        return not self.adjusted and self.bias_check

    def _settings(self, target: Primal) -> Settings:
        default = ACCEPTANCE_REAL if target.coordinates.real else ACCEPTANCE
        return Settings("diagonal_welford", default if self.target_acceptance is None else self.target_acceptance, 1)

    def _rescaled(self, target: Primal, local: Local, adaptation: Adaptation, changed: Array) -> Local:
        """The same point under the mirror of the new scale; only the duals of real sites change.

        Others keep theirs, from which their x follows, and not the other way round: x may be rounded to an edge.
        """
        mirror = self.mirror_for(target, jnp.sqrt(adaptation.metric))
        real = np.concatenate([np.full(block.size, block.is_real) for block in target.coordinates.blocks])

        def moved(point: Point) -> Point:
            found = mirror.at(point.x)
            return found if real.all() or not mirror.invertible else mirror.from_dual(jnp.where(real, found.y, point.y))

        return local._replace(point=jax.lax.cond(changed, moved, lambda point: point, local.point))

    def _with(self, schedule: Schedule) -> "AbstractLangevin":
        return dataclasses.replace(self, schedule=schedule)


def value_of_term(target: Primal, x: Array) -> Any:
    """The nonsmooth part at ``x``, or an empty tuple."""
    return () if target.nonsmooth is None else target.nonsmooth.value(x)


def finite(local: Local) -> Array:
    """Whether a point and what was evaluated there are finite, its log density at least below infinity."""
    leaves = [*jax.tree.leaves(local.point), local.drift]
    ok = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()
    return ok & (local.log_density < jnp.inf)


def value_and_drift(log_density: Callable[..., Array], x: Array, *known: Any) -> tuple[Array, Array]:
    """A log density and minus its gradient with respect to x."""
    value, gradient = jax.value_and_grad(log_density)(x, *known)
    return value, -gradient


def log_probs(target: Primal, mirror: AbstractMirror, point: Point) -> dict[str, Array]:
    """The probabilities of simplex sites as the mirror's point knows them, also where 1 − Σ x has no digits left."""
    return log_probabilities(target.coordinates, mirror, point)


def _learned_scale(learned: dict[str, Any]) -> Any:
    """Scales that another run has learned, in coordinates which are u: its own, or the root of a metric's diagonal."""
    if "scale" in learned:
        return learned["scale"]
    metric = learned.get("inverse_mass_matrix")
    return None if metric is None else jnp.sqrt(variances(metric))


def _where(choice: Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(choice, a, b), one, other)


def _update(pair: Pair, local: Local, twin: Local, counts: Array) -> Pair:
    """Running means of x and x² of both."""
    moments = jnp.stack([jnp.stack([p.x, p.x**2]) for p in (local.point, twin.point)])
    count = pair.count + counts
    share = jnp.where(counts, 1.0 / jnp.maximum(count, 1.0), 0.0)
    return Pair(twin, count, pair.means + share * (moments - pair.means))
