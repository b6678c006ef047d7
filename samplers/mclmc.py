"""Microcanonical Langevin Monte Carlo, unadjusted, on BlackJAX's kernel, with its tuning as a stepwise warm-up.

The dynamics keep |p| = 1 and move u with a velocity that the gradient turns and that partly refreshes over a length L
(Robnik & Seljak 2023, equations 5 and 10). There is no Metropolis test: the stationary law differs from the target by
an amount that the step size ε sets, through the variance of the energy error per dimension, Var[ΔE]/d, which scales as
ε⁶ (section 4.2). Warm-up drives it to ``desired_energy_variance``.

Tuning follows Robnik, De Luca, Silverstein & Seljak (2023), section 4, as BlackJAX's ``mclmc_find_L_and_step_size``
does, but one iteration at a time, so that it streams, stops and resumes like everything else:

1. ε alone: each step predicts the ε at which Var[ΔE]/d would be the desired one, as a weighted running mean;
2. the same, and a running mean of u and u² gives the diagonal metric; then L = sqrt(d), and ε is found anew;
3. ε frozen; L = 0.4 ε τ with τ the integrated autocorrelation time of u, from the last draws (at most 500 of them,
   where BlackJAX keeps all: memory does not grow with the warm-up).

One step costs two gradients (the McLachlan integrator) and O(d).
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..infer.errors import InvalidArgument, UnsupportedTarget
from ..infer.method import AbstractMethod, Budget, Stage
from ..infer.run.start import Warm
from ..infer.target import Target
from ..infer.validate import check_positive
from .metric import variances

BUFFER = 500
EFFECTIVE_DRAWS = 150.0
TRUST = 1.5
L_FACTOR = 0.4
GRADIENTS_PER_STEP = 2


class TuningSchedule(NamedTuple):
    """When what is tuned: iterations at which the three phases, and the search for ε between them, end."""

    first: Any
    second: Any
    again: Any
    third: Any


def tuning_schedule(num_warmup: int, *, warm: bool = False) -> TuningSchedule:
    """30 % of the warm-up for each phase and 10 % for ε after the metric; all for ε where the metric is known."""
    if warm:
        return _schedule(0, 0, num_warmup, num_warmup)
    return _schedule(*(round(share * num_warmup) for share in (0.3, 0.6, 0.7, 1.0)))


def _schedule(*ends: int) -> TuningSchedule:
    return TuningSchedule(*map(np.int32, ends))


class StepSizeSearch(eqx.Module):
    """Running weighted mean of Var[ΔE]/(d σ² ε⁶), and the least ε that failed.

    Parameters
    ----------
    weight, mean
        Decayed sums of the weights and of the weighted terms.
    largest
        ε may not exceed it.
    """

    weight: Float[Array, ""]
    mean: Float[Array, ""]
    largest: Float[Array, ""]


class MCLMCState(eqx.Module):
    """State of a chain, and what its warm-up has learned.

    Parameters
    ----------
    point
        BlackJAX's (position, momentum, log density, gradient).
    step_size, length, inverse_mass_matrix
        ε, L and the diagonal metric, shape (d,).
    search
        Of the step size.
    seen
        Weight of the running means of u and u², and these means, shape (2, d).
    buffer, count
        The last draws of phase 3, shape (BUFFER, d), a ring; how many have been written.
    """

    point: Any
    step_size: Float[Array, ""]
    length: Float[Array, ""]
    inverse_mass_matrix: Float[Array, " d"]
    search: StepSizeSearch
    seen: tuple[Float[Array, ""], Float[Array, "2 d"]]
    buffer: Float[Array, "b d"]
    count: Int[Array, ""]


class MCLMCInfo(NamedTuple):
    """sample_stats of one step."""

    lp: Array
    energy_error: Array
    energy_variance: Array
    diverging: Array
    step_size: Array
    length: Array
    num_evaluations: Array


class MCLMC(AbstractMethod):
    """Unadjusted microcanonical Langevin Monte Carlo (MCLMC).

    Very cheap per step and scaling well with the dimension, but not exact: there is no Metropolis test, so that draws
    have a bias, small against the posterior's standard deviations, which a smaller ``desired_energy_variance`` reduces.

    Parameters
    ----------
    step_size
        First step size ε of the warm-up, or the one used where there is no warm-up; default sqrt(d)/4.
    length
        Momentum decoherence length L: first, or used, as ``step_size``; default sqrt(d).
    inverse_mass_matrix
        First diagonal metric, float array of shape (d,), an estimate of the posterior variances of u; default ones.
    desired_energy_variance
        Variance of the energy error per dimension that warm-up drives ε to. It controls the bias.

    Raises
    ------
    UnsupportedTarget
        The target has one dimension: a unit vector in it cannot turn.

    References
    ----------
    Robnik, De Luca, Silverstein & Seljak (2023), Microcanonical Hamiltonian Monte Carlo, JMLR 24; Robnik & Seljak
    (2023), Microcanonical Langevin Monte Carlo, arXiv:2303.18221.
    """

    step_size: Any = None
    length: Any = None
    inverse_mass_matrix: Any = None
    desired_energy_variance: Any = 5e-4
    schedule: Any = None

    kind: ClassVar = "chains"
    exact: ClassVar = False
    source: ClassVar[str] = "Robnik et al. 2023; BlackJAX"
    warning: ClassVar[str] = (
        "MCLMC is not Metropolis-adjusted: its draws have a bias that the step size sets. Lower "
        "desired_energy_variance and fit again to see whether it matters."
    )

    def __check_init__(self) -> None:
        for name in ("step_size", "length"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        check_positive("desired_energy_variance", self.desired_energy_variance)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Tuning, whose draws are dropped, and sampling with all of it frozen."""
        sample = Stage("sample", self._with(_schedule(0, 0, 0, 0)), budget.num_samples * budget.thin)
        if budget.num_warmup == 0:
            return (sample,)
        schedule = tuning_schedule(budget.num_warmup, warm=budget.warm)
        return (Stage("warm-up", self._with(schedule), budget.num_warmup, keep=False), sample)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> MCLMCState:
        """A random direction at the start; ε, L and metric from ``start``, from the user, or the defaults."""
        import blackjax.mcmc.mclmc

        if isinstance(start, MCLMCState):
            return start
        u, learned = (start.u, start.learned) if isinstance(start, Warm) else (start, {})
        dim = u.shape[0]
        if dim < 2:
            raise UnsupportedTarget(f"MCLMC needs a target of at least 2 dimensions, got {dim}; use NUTS().")
        metric = self.inverse_mass_matrix
        metric = variances(learned.get("inverse_mass_matrix", jnp.ones(dim))) if metric is None else metric
        metric = jnp.asarray(metric, float)
        if metric.shape != (dim,):
            raise InvalidArgument(f"inverse_mass_matrix has shape {metric.shape}; MCLMC takes variances, ({dim},).")
        # Another method's step size is of another kind: only one that came with a length is this method's.
        step_size = learned["step_size"] if "length" in learned else 0.25 * dim**0.5
        return MCLMCState(
            point=blackjax.mcmc.mclmc.init(u, target.log_density, key),
            step_size=jnp.asarray(_or(self.step_size, step_size), float),
            length=jnp.asarray(_or(self.length, learned.get("length", dim**0.5)), float),
            inverse_mass_matrix=metric,
            search=_new_search(),
            seen=(jnp.zeros(()), jnp.zeros((2, dim))),
            buffer=jnp.zeros((BUFFER, dim)),
            count=jnp.zeros((), jnp.int32),
        )

    def step(self, key: PRNGKeyArray, state: MCLMCState, target: Target, t: Array) -> tuple[MCLMCState, MCLMCInfo]:
        """One step of the dynamics, then, during warm-up, one update of what is tuned."""
        import blackjax.mcmc.mclmc

        kernel = blackjax.mcmc.mclmc.build_kernel()
        point, info = kernel(
            key, state.point, target.log_density, state.inverse_mass_matrix, state.length, state.step_size
        )
        schedule = _schedule(0, 0, 0, 0) if self.schedule is None else self.schedule
        moved = eqx.tree_at(lambda s: s.point, state, point)
        tuned = _tune(moved, schedule, t, info.energy_change, info.nonans, self.desired_energy_variance)
        return tuned, MCLMCInfo(
            lp=point.logdensity,
            energy_error=info.energy_change,
            energy_variance=info.energy_change**2 / target.dim,
            diverging=~info.nonans,
            step_size=state.step_size,
            length=state.length,
            num_evaluations=jnp.asarray(GRADIENTS_PER_STEP, int),
        )

    def draw(self, state: MCLMCState) -> Array:
        """The chain's position."""
        return state.point.position

    def learned(self, state: MCLMCState) -> dict[str, Any]:
        """Step size, decoherence length and diagonal metric after warm-up."""
        return {
            "step_size": state.step_size,
            "length": state.length,
            "inverse_mass_matrix": state.inverse_mass_matrix,
        }

    def merit(self, infos: MCLMCInfo) -> dict[str, Array]:
        """Variance of the energy error per dimension, and the step size."""
        return {"energy_variance": infos.energy_variance.mean(), "step_size": infos.step_size.mean()}

    def _with(self, schedule: TuningSchedule) -> "MCLMC":
        return dataclasses.replace(self, schedule=schedule)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _new_search() -> StepSizeSearch:
    return StepSizeSearch(jnp.zeros(()), jnp.zeros(()), jnp.asarray(jnp.inf))


def _tune(
    state: MCLMCState, schedule: TuningSchedule, t: Array, energy_change: Array, ok: Bool[Array, ""], desired: Any
) -> MCLMCState:
    """One iteration of the warm-up; nothing where ``t`` lies beyond the schedule."""

    def find_step_size(state: MCLMCState) -> MCLMCState:
        before = state.step_size
        search, step_size = search_step_size(state.search, before, energy_change, ok, state.buffer.shape[1], desired)
        weight = jnp.where(ok & (t >= schedule.first) & (t < schedule.second), step_size, 0.0)
        seen = _running_mean(*state.seen, state.point.position, weight)
        state = dataclasses.replace(state, search=search, step_size=step_size, seen=seen)
        return jax.lax.cond(t == schedule.second - 1, set_metric, lambda s: s, state)

    def set_metric(state: MCLMCState) -> MCLMCState:
        mean, square = state.seen[1]
        variances = square - mean**2
        variances = jnp.where(variances > 0, variances, state.inverse_mass_matrix)
        length = jnp.full_like(state.length, variances.shape[0] ** 0.5)
        return dataclasses.replace(state, inverse_mass_matrix=variances, length=length, search=_new_search())

    def find_length(state: MCLMCState) -> MCLMCState:
        draws = state.buffer.at[state.count % BUFFER].set(state.point.position)
        state = dataclasses.replace(state, buffer=draws, count=state.count + 1)
        return jax.lax.cond(t == schedule.third - 1, set_length, lambda s: s, state)

    def set_length(state: MCLMCState) -> MCLMCState:
        ordered = jnp.roll(state.buffer, -(state.count % BUFFER) * (state.count > BUFFER), axis=0)
        tau = autocorrelation_time(ordered, jnp.minimum(state.count, BUFFER)).mean()
        length = jnp.where(jnp.isfinite(tau) & (tau > 0), L_FACTOR * state.step_size * tau, state.length)
        return dataclasses.replace(state, length=length)

    def tune(state: MCLMCState) -> MCLMCState:
        return jax.lax.cond(t < schedule.again, find_step_size, find_length, state)

    return jax.lax.cond(t < schedule.third, tune, lambda s: s, state)


def search_step_size(
    search: StepSizeSearch, step_size: Array, energy_change: Array, ok: Array, dim: int, desired: Any
) -> tuple[StepSizeSearch, Array]:
    """The step size at which Var[ΔE]/d would be ``desired``, from one more energy error at ``step_size``.

    With ξ = ΔE²/(d σ²) at step size ε, ξ/ε⁶ estimates a constant; its mean over steps, with weights that forget old
    steps and distrust those far from ξ = 1, gives ε* = (mean ξ/ε⁶)^(-1/6) (Robnik et al. 2023, section 4.2).
    """
    decay = (EFFECTIVE_DRAWS - 1) / (EFFECTIVE_DRAWS + 1)
    xi = energy_change**2 / (dim * desired) + 1e-8
    trust = jnp.exp(-0.5 * (jnp.log(xi) / (6 * TRUST)) ** 2)
    weight = decay * search.weight + trust
    mean = decay * search.mean + trust * xi / step_size**6
    largest = jnp.where(ok, search.largest, 0.8 * step_size)
    return StepSizeSearch(weight, mean, largest), jnp.minimum((mean / weight) ** (-1 / 6), largest)


def _running_mean(total: Array, mean: Array, u: Array, weight: Array) -> tuple[Array, Array]:
    total = total + weight
    share = jnp.where(weight > 0, weight / jnp.where(total > 0, total, 1.0), 0.0)
    return total, mean + share * (jnp.stack([u, u**2]) - mean)


def autocorrelation_time(draws: Float[Array, "b d"], count: Int[Array, ""]) -> Float[Array, " d"]:
    """Integrated autocorrelation time of each coordinate, 1 + 2 Σ ρ_k, over the first ``count`` draws of a chain.

    The sum ends at the first pair ρ_2k + ρ_2k+1 that is not positive, and pairs are made non-increasing (Geyer 1992,
    initial monotone sequence). NaN where a coordinate does not move. O(b log b) per coordinate, by FFT.
    """
    size = draws.shape[0]
    inside = (jnp.arange(size) < count)[:, None]
    centred = jnp.where(inside, draws - jnp.sum(draws, axis=0, where=inside) / count, 0.0)
    spectrum = jnp.abs(jnp.fft.rfft(centred, 2 * size, axis=0)) ** 2
    covariance = jnp.fft.irfft(spectrum, 2 * size, axis=0)[:size]
    rho = covariance / covariance[0]
    pairs = rho[: size // 2 * 2].reshape(size // 2, 2, -1).sum(1)
    positive = jnp.cumprod(pairs > 0, axis=0)
    monotone = jax.lax.cummin(jnp.where(positive, pairs, jnp.inf), axis=0)
    return 2 * jnp.sum(jnp.where(positive, monotone, 0.0), axis=0) - 1
