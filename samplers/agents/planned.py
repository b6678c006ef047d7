"""Samplers that work out before a run what to expect of it, and choose by that what was left open.

At the mode the shares are replaced by quadratics with their Hessians; the law of the sampler's own update on these is
exact (`law`), and tells bias and mixing time of the average and of every agent. Where there are too many agents times
dimensions for that, the law along the directions in which shares differ most stands in, and a sampler's closed form for
equal curvatures.
"""

import abc
import dataclasses
import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...infer.distributed.mesh import alone
from ...infer.errors import InvalidArgument
from ...infer.run.precision import precision
from ...infer.target.shards import ShardedTarget
from ...infer.validate import check_choice, check_fraction, check_positive
from .common import OWN, AbstractAgents
from .law import Affine, Law, QuadraticShares, affine, average_map, contrasted, growth, mixed, mixing_time, stationary
from .tuning import AroundMode, Curvature, eigenvalues, mode_curvature, whitening

EXACT_LAW = 120
"""Agents times dimensions up to which a forecast is the exact law of the linearised chain."""
MOST_AGENTS, DIRECTIONS = 250, 2
"""Agents up to which shares are looked at along the directions in which they differ most, and how many of those."""
LARGE_BIAS = 0.2
ENOUGH, TRIES, BOLDEST = 1.2, 6, 0.25
"""A chosen setting may miss the tolerance by this factor; how often a smaller aim is tried, and how much smaller."""
GROWS = 1.001
"""A factor per iteration, found by power iteration, above which a sampler is unstable."""
TINY = np.finfo(float).tiny


class Forecast(NamedTuple):
    """What is to be expected of a run, from the curvature of the shares at the mode.

    Errors of a mean are in posterior standard deviations, those of a variance relative to it, of the worst direction;
    NaN where there are too many agents to work it out.

    Parameters
    ----------
    settings
        What the sampler runs with, by name: step size, ρ, ….
    temperature
        T: draws are of π^{1/T}.
    mean, variance
        Errors of the average of the agents.
    agent_mean, agent_variance
        Errors of the agent that is worst.
    mixing_time
        Iterations in which the slowest mode forgets 63 % of where it was.
    """

    settings: dict[str, float]
    temperature: float
    mean: float
    variance: float
    agent_mean: float
    agent_variance: float
    mixing_time: float


class AbstractPlanned(AbstractAgents):
    """Hyper-parameters and functions that all have; see the concrete classes."""

    tolerance: Any = eqx.field(default=0.02, kw_only=True)
    plan: bool = eqx.field(static=True, default=True, kw_only=True)
    forecast: Forecast | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self) -> None:
        check_fraction("tolerance", self.tolerance)
        for name in self.tunable():
            value = getattr(self, name)
            if isinstance(value, str):
                check_choice(name, value, (OWN,))
            else:
                check_positive(name, value)
            if not self.plan and isinstance(value, str):
                raise InvalidArgument(f"plan=False needs a number for {name}, got {name}={OWN!r}, chosen by planning.")

    # -- what a sampler writes ----------------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def tunable(cls) -> tuple[str, ...]:
        """Names of the hyper-parameters that may be ``"auto"``."""

    @abc.abstractmethod
    def choose(self, values: np.ndarray, num_agents: int, aim: float) -> Self:
        """With numbers for what is ``"auto"``: such that for equal shares the average's variance is ``aim`` off.

        ``values`` are the eigenvalues h of the average Hessian of the shares.
        """

    @abc.abstractmethod
    def closed_form(self, values: np.ndarray, num_agents: int) -> tuple[float, float]:
        """Relative error of a variance of the average, and mixing time, for shares of equal curvatures ``values``."""

    def temperature(self) -> float:
        """T."""
        return 1.0

    def untempered(self) -> Self:
        """What settings are chosen for: itself, or the same at temperature 1, which they cannot bring about."""
        return self

    def bounded(self, found: Curvature) -> Self:
        """With chosen settings within what the single shares allow; default: as they are."""
        del found
        return self

    # -- before a run -------------------------------------------------------------------------------------------------

    def default_start(self) -> Any:
        """Around the mode, if that is looked for anyway."""
        looked_for = isinstance(self.precondition, str) and any(
            isinstance(getattr(self, name), str) for name in self.tunable()
        )
        return AroundMode() if looked_for else super().default_start()

    def tune(self, key: Any, target: ShardedTarget, start: Array) -> Self:
        """Coordinates, what was left open, and what to expect of them."""
        given, left_open = self.precondition, any(isinstance(getattr(self, name), str) for name in self.tunable())
        if isinstance(given, str):
            given = whitening(type(self).__name__, target, start) if left_open else None
        method = dataclasses.replace(self.placed(target.num_agents), precondition=None, coordinates=given)
        if not self.plan:
            return method
        found = mode_curvature(method, target, start)
        if found is None and left_open:
            names = ", ".join(self.tunable())
            raise InvalidArgument(
                f"{type(self).__name__} cannot choose {names}: from the start {np.asarray(start).tolist()} no mode "
                f"with a convex −log density was found; give numbers, or another start."
            )
        if found is None:
            return method
        # Invariants are told from what grows by eigenvalues 1e-9 apart, whatever the precision of the run.
        with alone(), precision(64):
            chosen = method._aimed(in_doubles(found), left_open)
        chosen.warn()
        return chosen

    def _aimed(self, found: Curvature, left_open: bool) -> Self:
        """With settings for which the predicted error, unequal shares included, is about the tolerance."""
        aim = self.tolerance
        given = {name: value for name in self.tunable() if not isinstance(value := getattr(self, name), str)}
        for _ in range(TRIES):
            chosen = self.choose(eigenvalues(found.hessians), found.hessians.shape[0], aim)
            chosen = dataclasses.replace(chosen.bounded(found), **given) if left_open else chosen
            judged = chosen.untempered() if left_open else chosen
            forecast = judged.foresee(found)
            if not left_open or forecast.variance <= ENOUGH * self.tolerance:
                break
            aim = aim * max(self.tolerance / forecast.variance, BOLDEST)
        forecast = forecast if judged is chosen else chosen.foresee(found)
        return dataclasses.replace(chosen, forecast=forecast)

    def tuned(self) -> tuple:
        """Settings, coordinates, forecast."""
        settings = {name: jnp.asarray(getattr(self, name), float) for name in self.tunable()}
        return settings, self.coordinates, jax.tree.map(lambda x: jnp.asarray(x, float), self.forecast)

    def retuned(self, tuned: tuple) -> Self:
        """With settings and coordinates of an earlier stage."""
        settings, coordinates, forecast = tuned
        return dataclasses.replace(self, coordinates=coordinates, forecast=forecast, precondition=None, **settings)

    def predict(self, target: Any, start: Any = None) -> Forecast:
        """What to expect of a run on ``target``, before it.

        Parameters
        ----------
        target
            Sharded, or with at least as many observations as there are agents.
        start
            Where to look for the mode, unconstrained, shape (d,); 0 by default.

        Raises
        ------
        InvalidArgument
            No mode was found, or the settings are unstable.
        """
        with jax.enable_x64(True), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            arranged: Any = self.arrange(target)
            point = jnp.zeros(arranged.dim) if start is None else jnp.asarray(start, float)
            mesh = getattr(arranged, "mesh", None)  # of agents that live on several devices
            with nullcontext() if mesh is None else jax.set_mesh(mesh):
                found = self.tune(jax.random.key(0), arranged, point).forecast
        if found is None:
            raise InvalidArgument(
                f"{type(self).__name__}: no mode was found from start={point.tolist()}, so that nothing can be "
                f"predicted (or plan=False); give another start."
            )
        return jax.tree.map(float, found)

    def foresee(self, found: Curvature) -> Forecast:
        """From the exact law of quadratic shares with this curvature: all of it, or where they differ most.

        A ring of agents with equal shares and one with unequal ones can be biased in opposite ways. Where the law of
        everything is too large, the worse of two stands in: the law along some directions in which shares differ, and
        the closed form for shares that do not. Beyond `MOST_AGENTS` the closed form is all there is.
        """
        n, d, _ = found.hessians.shape
        settings = {name: float(getattr(self, name)) for name in self.tunable()}
        shares: Any = QuadraticShares(found.hessians, found.linear)
        if n * d <= EXACT_LAW:
            return Forecast(settings, self.temperature(), *self._law(shares, found))
        error, time = self.closed_form(np.maximum(eigenvalues(found.hessians), TINY), n)
        # The closed form knows the average of the shares only; one of them may be enough to make it unstable.
        if self.may_grow() and growth(self._bare().fix(shares), shares) > GROWS:
            time = np.inf
        time = self.stable(time, found)
        if n > MOST_AGENTS:
            unknown = float("nan")
            return Forecast(settings, self.temperature(), unknown, error, unknown, unknown, time)
        mean, variance, *agents, slowest = self._law(contrasted(shares, DIRECTIONS), found)
        worse = max(error, variance), *agents, max(time, slowest)
        return Forecast(settings, self.temperature(), mean, *worse)

    def _law(self, shares: Any, found: Curvature) -> tuple[float, float, float, float, float]:
        """Errors of mean and variance of the average and of the worst agent, and the mixing time, on such shares."""
        cases = self._bare().fix(shares).cases(shares)
        step = average_map(cases)
        time = self.stable(mixing_time(step), found)
        size = step.transition.shape[0]
        still = Law(np.zeros(size), np.zeros((size, size)))
        law = stationary(step, still) if len(cases) == 1 else mixed(cases, step)
        agents = [errors_of(*law.of(rows), shares) for rows in step.iterates]
        average = errors_of(*law.of(step.average), shares)
        return *average, max(m for m, _ in agents), max(v for _, v in agents), time

    def cases(self, shares: Any) -> list[tuple[float, Affine]]:
        """The affine maps that an iteration of the prepared method on these shares can be, with probabilities."""
        return [(1.0, affine(self, shares))]

    def may_grow(self) -> bool:
        """Whether there are settings with which it is unstable on quadratic shares."""
        return True

    def _bare(self) -> Self:
        return dataclasses.replace(self, coordinates=None)

    def stable(self, time: float, found: Curvature) -> float:
        """The mixing time, unless it says that a mode grows."""
        if np.isfinite(time):
            return float(time)
        largest = float(jnp.linalg.eigvalsh(found.hessians).max())
        shown = ", ".join(f"{name}={float(getattr(self, name)):.3g}" for name in self.tunable())
        raise InvalidArgument(
            f"{type(self).__name__} with {shown} is unstable: the largest curvature of an agent's share is "
            f"{largest:.3g}, and some mode grows at every iteration; {self.remedy()}."
        )

    def remedy(self) -> str:
        """What to do about an unstable step."""
        return "lower step_size"

    def warn(self) -> None:
        """Say what is wrong with the settings, once, before the run."""
        found = self.forecast
        assert found is not None
        if found.variance > LARGE_BIAS:
            warnings.warn(
                f"{self._said()} is predicted to be off by {100 * found.variance:.0f} % in a variance of the average, "
                f"with a mixing time of {found.mixing_time:.3g} iterations; {self.remedy()}, or leave it 'auto'.",
                stacklevel=2,
            )
        self.warn_of_mixing()

    def warn_of_mixing(self) -> None:
        """Say that the run is too short, if it is."""
        found = self.forecast
        assert found is not None
        if self.planned is not None and found.mixing_time > self.planned / 2:
            warnings.warn(
                f"{self._said()} is predicted to mix in {found.mixing_time:.3g} iterations, and the run has "
                f"{self.planned}; raise num_samples and num_warmup, or leave it 'auto'.",
                stacklevel=2,
            )

    def outlook(self) -> str | None:
        """Bias and mixing time that are predicted."""
        return None if self.forecast is None else f"{type(self).__name__}: {self._predicted()}"

    def _said(self) -> str:
        assert self.forecast is not None
        return f"{type(self).__name__}({', '.join(f'{k}={v:.3g}' for k, v in self.forecast.settings.items())})"

    # -- after a run --------------------------------------------------------------------------------------------------

    def remarks(self, state: Any, target: Any, result: Any) -> list[dict[str, Any]]:
        """Disagreement as measured; bias and mixing time as predicted."""
        said = super().remarks(state, target, result)
        if self.forecast is None:
            return said
        found, text = self._numbers(), self._predicted()
        level = "warning" if found.variance > LARGE_BIAS else "note"
        return [*said, {"level": level, "name": "predicted bias", "message": text, "value": found.variance}]

    def _numbers(self) -> Forecast:
        return jax.tree.map(lambda x: float(np.ravel(x)[0]), self.forecast)

    def _predicted(self) -> str:
        """The forecast in words."""
        found = self._numbers()
        shown = ", ".join(f"{name} = {value:.3g}" for name, value in found.settings.items())
        text = (
            f"{shown}: from the curvature at the mode, a variance of the average is predicted to be off by "
            f"{100 * found.variance:.2g} %, with a mixing time of {found.mixing_time:.3g} iterations"
        )
        tempered = abs(found.temperature - 1) > 0.1
        return f"{text}, at temperature {found.temperature:.3g}." if tempered else f"{text}."


def in_doubles(found: Curvature) -> Curvature:
    """On the host, in 64 bits."""
    return Curvature(np.asarray(found.hessians, float), np.asarray(found.linear, float), np.asarray(found.quadratic))


def errors_of(mean: np.ndarray, covariance: np.ndarray, shares: Any) -> tuple[float, float]:
    """Error of a mean in posterior standard deviations, and of a variance relative to it, of the worst direction."""
    precision = np.asarray(jnp.sum(shares.hessians, axis=0))
    factor = np.linalg.cholesky(precision)
    exact = np.linalg.solve(precision, np.asarray(jnp.sum(shares.linear, axis=0)))
    ratios = np.linalg.eigvalsh(factor.T @ covariance @ factor)
    return float(np.linalg.norm(factor.T @ (mean - exact))), float(np.abs(ratios - 1).max())
