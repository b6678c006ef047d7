"""Hamiltonian Monte Carlo: NUTS, HMC and MALA on BlackJAX's kernels, with one warm-up.

One iteration costs the gradients of its trajectory plus, per leapfrog step, O(d) (diagonal metric), O(d²) (Fisher,
dense), or O(d rank) (low-rank). Fisher's and the low-rank metric are the identity in coordinates of their own, in which
the trajectory runs (`metric.whiten`). The stages (settle, warm-up, sample) differ by data only (`schedule`), so that
they are one compiled program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..infer.approximation import as_approximation
from ..infer.errors import InvalidArgument
from ..infer.method import AbstractMethod, Budget, Stage
from ..infer.run.start import Warm
from ..infer.target import Target
from ..infer.validate import check_choice, check_count, check_fraction, check_positive
from .adaptation import (
    METRICS,
    Adaptation,
    Settings,
    hopeless,
    start_adaptation,
    update_adaptation,
)
from .metric import Factor, is_whitened, log_volume, whiten
from .schedule import Schedule, frozen, growing_schedule, split_schedule, step_size_schedule, window_schedule

BASE = "base_"
SETTLED = 0.2
MARGIN = 20.0


class HMCState(eqx.Module):
    """State of a chain: BlackJAX's (position, log density, gradient), and what warm-up learned."""

    point: Any
    adaptation: Adaptation


class HMCInfo(NamedTuple):
    """ArviZ's sample_stats of one transition."""

    acceptance_rate: Array
    diverging: Array
    energy: Array
    lp: Array
    n_steps: Array
    tree_depth: Array
    reached_max_tree_depth: Array
    step_size: Array
    num_evaluations: Array


class AbstractHMC(AbstractMethod):
    """What NUTS, HMC and MALA share: hyper-parameters, warm-up, the state, and the bookkeeping of a transition."""

    step_size: Any = None
    target_acceptance: Any = 0.8
    metric: str = eqx.field(static=True, default="fisher")
    inverse_mass_matrix: Any = None
    max_rank: int = eqx.field(static=True, default=10)
    divergence_threshold: float = 1000.0
    precondition: Any = eqx.field(default=None, converter=lambda given: _coordinates(given))
    schedule: Any = None

    kind: ClassVar = "chains"

    def __check_init__(self) -> None:
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        check_fraction("target_acceptance", self.target_acceptance)
        check_choice("metric", self.metric, METRICS)
        check_count("max_rank", self.max_rank)
        check_positive("divergence_threshold", self.divergence_threshold)
        if isinstance(self.inverse_mass_matrix, np.ndarray | list | tuple):
            _check_positive_definite(np.asarray(self.inverse_mass_matrix, float))

    def transition(self, key: PRNGKeyArray, point: Any, log_density: Any, step_size: Array, metric: Any) -> tuple:
        """BlackJAX's kernel: the next point, its info, and its tree depth (0 where there is no tree)."""
        raise NotImplementedError

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Warm-up in two parts, whose draws are dropped, and sampling with step size and metric frozen.

        Chains may be relocated between the parts; the first ends with a window of the metric, in the first fifth. A
        warm-up without such a window (a short one, one of the step size alone) is one part.
        """
        if budget.num_warmup == 0:
            return (Stage("sample", self._with(frozen()), budget.num_samples * budget.thin),)
        # Gradients tell enough for windows of ten draws; variances and covariances need Stan's longer ones.
        make = window_schedule if self.metric in ("diagonal_welford", "dense") else growing_schedule
        schedule = step_size_schedule(budget.num_warmup) if budget.warm else make(budget.num_warmup)
        sample = Stage("sample", self._with(frozen()), budget.num_samples * budget.thin)
        settle = max((int(end) + 1 for end in schedule.ends if end < SETTLED * budget.num_warmup), default=0)
        if settle == 0:
            return (Stage("warm-up", self._with(schedule), budget.num_warmup, keep=False), sample)
        first, rest = split_schedule(schedule, settle)
        return (
            Stage("settle", self._with(first), settle, keep=False),
            Stage("warm-up", self._with(rest), budget.num_warmup - settle, keep=False),
            sample,
        )

    def default_start(self) -> Any:
        """Draws of the approximation that preconditions, if there is one."""
        return self.precondition

    def reuses(self, other: AbstractMethod) -> bool:
        """Whether step size and metric are those of the same coordinates."""
        return isinstance(other, type(self)) and self.precondition is other.precondition

    def log_density(self, target: Target) -> Callable[[Array], Array]:
        """The log density in the sampler's coordinates, with the log-Jacobian of the preconditioner (mind the plus)."""
        if self.precondition is None:
            return finite_density(target.log_density)

        def of_base(z: Array) -> Array:
            u, log_det = self.precondition.transport(z)
            return target.log_density(u) + log_det

        return finite_density(of_base)

    def relocate(self, states: HMCState) -> Any:
        """After the first windows, chains that settled where next to no mass is go on from one that did not."""
        if not self.schedule.adapting:
            return None
        level, volume = np.asarray(states.adaptation.level), log_volume(states.adaptation.metric)
        return hopeless(level, volume, states.point.position.shape[-1], MARGIN)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> HMCState:
        """Log density and gradient at the start; step size and metric from it, from ``start``, or from the user."""
        import blackjax.mcmc.hmc

        del key
        if isinstance(start, HMCState):
            return start
        u, learned = (start.u, start.learned) if isinstance(start, Warm) else (start, {})
        if self.precondition is not None:
            u, learned = (
                self.precondition.pull(u),
                {name.removeprefix(BASE): learned[name] for name in learned if name.startswith(BASE)},
            )
        point = blackjax.mcmc.hmc.init(u, self.log_density(target))
        step_size = learned.get("step_size", 1.0) if self.step_size is None else self.step_size
        metric = learned.get("inverse_mass_matrix")
        if self.inverse_mass_matrix is not None:
            metric = _check_metric(self.inverse_mass_matrix, u.shape[0], self.metric)
        adaptation = start_adaptation(self._settings(), step_size, point.logdensity, point.logdensity_grad, metric)
        return HMCState(point, adaptation)

    def step(self, key: PRNGKeyArray, state: HMCState, target: Target, t: Array) -> tuple[HMCState, HMCInfo]:
        """One transition, then, during warm-up, one update of step size and metric."""
        schedule = frozen() if self.schedule is None else self.schedule
        step_size = state.adaptation.step_size(schedule.adapting)
        point, log_density, metric = state.point, self.log_density(target), state.adaptation.metric
        back = None
        if is_whitened(metric):
            point, log_density, metric, back = whiten(metric, point, log_density)
        point, info, depth, saturated = self.transition(key, point, log_density, step_size, metric)
        point = point if back is None else back(point)
        adaptation = update_adaptation(
            self._settings(), state.adaptation, schedule, t, point, info.acceptance_rate, info.is_divergent
        )
        return HMCState(point, adaptation), HMCInfo(
            acceptance_rate=info.acceptance_rate,
            diverging=info.is_divergent,
            energy=info.energy,
            lp=point.logdensity,
            n_steps=jnp.asarray(info.num_integration_steps, int),
            tree_depth=jnp.asarray(depth, int),
            reached_max_tree_depth=jnp.asarray(saturated, bool),
            step_size=step_size,
            num_evaluations=jnp.asarray(info.num_integration_steps, int),
        )

    def draw(self, state: HMCState) -> Array:
        """The chain's position, in u."""
        position = state.point.position
        return position if self.precondition is None else self.precondition.transport(position)[0]

    def learned(self, state: HMCState) -> dict[str, Any]:
        """Step size and inverse mass matrix after warm-up; of the base space, and named so, where preconditioned."""
        metric = state.adaptation.metric
        metric = metric.matrix() if isinstance(metric, Factor) else metric
        prefix = "" if self.precondition is None else BASE
        return {f"{prefix}step_size": state.adaptation.step_size(False), f"{prefix}inverse_mass_matrix": metric}

    def merit(self, infos: HMCInfo) -> dict[str, Array]:
        """Mean acceptance statistic, number of divergences, mean number of leapfrog steps."""
        return {
            "acceptance": infos.acceptance_rate.mean(),
            "divergences": infos.diverging.sum(),
            "leapfrogs": infos.n_steps.mean(),
        }

    def _settings(self) -> Settings:
        return Settings(self.metric, self.target_acceptance, self.max_rank)

    def _with(self, schedule: Schedule) -> "AbstractHMC":
        return dataclasses.replace(self, schedule=schedule)


def finite_density(log_density: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A log density that is -inf where it is not finite or so low that the squares of momenta there overflow.

    BlackJAX's low-rank kinetic energy is a difference, which an overflow can make -inf: such a point would always be
    accepted, and never be left.
    """

    def finite(u: Array) -> Array:
        value = log_density(u)
        lowest = -1e-4 * float(jnp.finfo(value.dtype).max) ** 0.5
        return jnp.where((value > lowest) & (value < jnp.inf), value, -jnp.inf)

    return finite


def _coordinates(given: Any) -> Any:
    """The approximation in whose coordinates chains run, or None."""
    found = as_approximation("precondition", given)
    return None if found is None else found.coordinates()


def _check_metric(given: Any, dim: int, form: str) -> Array:
    """A user's metric, variances or a matrix."""
    given = jnp.asarray(given, float)
    if given.shape not in ((dim,), (dim, dim)):
        raise InvalidArgument(
            f"inverse_mass_matrix has shape {given.shape}; on a target of dimension {dim} it must be "
            f"({dim},) or ({dim}, {dim})."
        )
    if given.ndim == 2 and form.startswith("diagonal"):
        raise InvalidArgument(f"inverse_mass_matrix is a matrix, but metric={form!r}; use metric='dense'.")
    return given


def _check_positive_definite(given: np.ndarray) -> None:
    """What can be said of a metric without a target."""
    if given.ndim == 1 and not ((given > 0) & (given < np.inf)).all():
        raise InvalidArgument(
            f"inverse_mass_matrix has {given[~((given > 0) & (given < np.inf))][0]} among its variances, which must be "
            f"positive and finite."
        )
    if given.ndim == 2 and given.shape[0] == given.shape[1]:
        smallest = np.linalg.eigvalsh(given).min() if np.isfinite(given).all() else np.nan
        if not (smallest > 0 and np.allclose(given, given.T)):
            raise InvalidArgument(
                f"inverse_mass_matrix must be symmetric and positive definite; its least eigenvalue is {smallest:.3g} "
                f"and its largest asymmetry {np.abs(given - given.T).max():.3g}."
            )


class NUTS(AbstractHMC):
    """The No-U-Turn sampler with multinomial sampling from trajectories, on BlackJAX's iterative kernel.

    Parameters
    ----------
    step_size
        First leapfrog step size of the warm-up, or the one used where there is no warm-up; default 1.
    target_acceptance
        Mean acceptance statistic that warm-up drives the step size to, in (0, 1). Raise it against divergences.
    metric
        ``"fisher"`` (a matrix, from draws and gradients; above 50 dimensions ``"low_rank"``), ``"low_rank"`` (diagonal
        plus at most ``max_rank`` directions, likewise, as nutpie's option), ``"diagonal"`` (without the directions),
        ``"diagonal_welford"`` (variances, as Stan) or ``"dense"`` (covariance, as Stan).
    inverse_mass_matrix
        First inverse mass matrix, float array of shape (d,) or (d, d), an estimate of the posterior covariance of u.
    max_tree_depth
        Trajectories have at most ``2**max_tree_depth - 1`` leapfrog steps.
    max_rank
        Directions of the low-rank metric.
    divergence_threshold
        Energy error above which a transition is called divergent.
    precondition
        A posterior (or `Approximation`) of a flow, a Gaussian method or Pathfinder (of several paths the heaviest
        normal counts): chains run in the coordinates z in which it is N(0, I), begin at its draws, and step size and
        metric are those of z (NeuTra).

    References
    ----------
    Hoffman & Gelman (2014), JMLR 15; Betancourt (2017), arXiv:1701.02434; Phan, Pradhan & Jankowiak (2019),
    arXiv:1912.11554 (iterative doubling); Seyboldt, Carlson & Carpenter (2026), Preconditioning
    Hamiltonian Monte Carlo by minimizing Fisher divergence (metric); Hoffman, Sountsov, Dillon, Langmore, Tran &
    Vasudevan (2019), arXiv:1903.03704 (precondition).
    """

    max_tree_depth: int = eqx.field(static=True, default=10)

    source: ClassVar[str] = "Hoffman & Gelman 2014; BlackJAX"

    def __check_init__(self) -> None:
        check_count("max_tree_depth", self.max_tree_depth)

    def transition(self, key: PRNGKeyArray, point: Any, log_density: Any, step_size: Array, metric: Any) -> tuple:
        """A trajectory that doubles until it turns back, and a multinomial draw from it."""
        import blackjax.mcmc.nuts

        kernel = blackjax.mcmc.nuts.build_kernel(divergence_threshold=self.divergence_threshold)
        point, info = kernel(key, point, log_density, step_size, metric, self.max_tree_depth)
        depth = info.num_trajectory_expansions
        # A trajectory that stopped at the limit neither turned nor diverged.
        saturated = (depth >= self.max_tree_depth) & ~info.is_turning & ~info.is_divergent
        return point, info, depth, saturated


class HMC(AbstractHMC):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps, on BlackJAX's kernel.

    Parameters
    ----------
    num_leapfrog
        Leapfrog steps per transition.
    step_size, target_acceptance, metric, inverse_mass_matrix, max_rank, divergence_threshold, precondition
        As in `NUTS`.

    References
    ----------
    Duane, Kennedy, Pendleton & Roweth (1987); Neal (2011), Handbook of MCMC, chapter 5.
    """

    num_leapfrog: int = eqx.field(static=True, default=20)

    source: ClassVar[str] = "Duane et al. 1987; BlackJAX"

    def __check_init__(self) -> None:
        check_count("num_leapfrog", self.num_leapfrog)

    def transition(self, key: PRNGKeyArray, point: Any, log_density: Any, step_size: Array, metric: Any) -> tuple:
        """A leapfrog trajectory and its Metropolis test."""
        return _hmc_transition(self, key, point, log_density, step_size, metric, self.num_leapfrog)


class MALA(AbstractHMC):
    """The Metropolis-adjusted Langevin algorithm, preconditioned by the metric.

    A MALA step of size h preconditioned by M⁻¹ is an HMC step of one leapfrog with step size ε = sqrt(2 h): it is run
    as such on BlackJAX's HMC kernel, so that it has the same warm-up.

    Parameters
    ----------
    step_size
        The leapfrog step ε; the Langevin step is ε²/2.
    target_acceptance
        0.574 is optimal as d grows (Roberts & Rosenthal 1998).
    metric, inverse_mass_matrix, max_rank, divergence_threshold, precondition
        As in `NUTS`.

    References
    ----------
    Roberts & Tweedie (1996), Bernoulli 2; Roberts & Rosenthal (1998), JRSS-B 60.
    """

    target_acceptance: Any = 0.574

    source: ClassVar[str] = "Roberts & Tweedie 1996; BlackJAX"

    def transition(self, key: PRNGKeyArray, point: Any, log_density: Any, step_size: Array, metric: Any) -> tuple:
        """One leapfrog step and its Metropolis test."""
        return _hmc_transition(self, key, point, log_density, step_size, metric, 1)


def _hmc_transition(
    method: AbstractHMC, key: PRNGKeyArray, point: Any, log_density: Any, step_size: Array, metric: Any, leapfrogs: int
) -> tuple:
    import blackjax.mcmc.hmc

    kernel = blackjax.mcmc.hmc.build_kernel(divergence_threshold=method.divergence_threshold)
    point, info = kernel(key, point, log_density, step_size, metric, leapfrogs)
    return point, info, 0, False
