"""A trained posterior given an event, and the event's probability: `condition`.

The flow of the posterior is led into {C > 0} by the score of `events`, at no new training. What arrives has an exact
density q_E of its own, so that draws are weighted by 1{C > 0} π/q_E, and

    P(C > 0 | data) = (mean of 1{C > 0} π/q_E) / (mean of π/q)

has a standard error, however rare the event. Plain Monte Carlo needs some 100/P draws for an error of a tenth.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer import evaluate
from ...infer.diagnostics.bridge import evidence_from_weights
from ...infer.diagnostics.psis import psis
from ...infer.errors import InvalidArgument, NonFinite
from ...infer.run.plan import read_key
from ...infer.run.precision import precision
from ...infer.target import Target
from ...infer.validate import check_count, check_nonnegative
from .approximation import DiffusionApproximation
from .density import DiscreteFlow
from .events import REGULARISATION, EventScore


class SiteEvent(eqx.Module):
    """C of the parameters by name, as a function of a flow's whitened coordinates.

    Parameters
    ----------
    event
        From a dict of constrained values to a number.
    target
        Which constrains.
    loc, scale
        Whitening, u = m + L y.
    """

    event: Callable[[dict[str, Array]], Array] = eqx.field(static=True)
    target: Target
    loc: Float[Array, " d"]
    scale: Float[Array, "d d"]

    def __call__(self, y: Float[Array, " d"]) -> Float[Array, ""]:
        """C(y)."""
        return jnp.reshape(self.event(self.target.constrain(self.loc + self.scale @ y)), ())


class GivenEvent(NamedTuple):
    """A posterior given an event.

    Parameters
    ----------
    probability, error
        Of the event under the posterior, and its standard error.
    draws
        By site, with a leading axis (n,); all of them, in the event or not.
    log_weights
        Of the draws, −∞ outside of the event, shape (n,).
    inside
        Share of the draws in the event.
    k_hat
        Of the weights of the draws in the event; above 0.7 probability and error are not to be trusted.
    approximation
        q_E, with `sample_and_log_prob` and `log_prob` in unconstrained coordinates.
    """

    probability: float
    error: float
    draws: dict[str, np.ndarray]
    log_weights: np.ndarray
    inside: float
    k_hat: float
    approximation: DiffusionApproximation


def condition(
    posterior: Any,
    event: Callable[[dict[str, Array]], Array],
    num_samples: int = 1000,
    *,
    solver_steps: int | None = None,
    regularisation: float = REGULARISATION,
    key: Any = 6,
) -> GivenEvent:
    """The posterior of a `ProbabilityFlow` given that ``event`` is positive.

    Parameters
    ----------
    posterior
        A `Posterior` of ProbabilityFlow, with densities.
    event
        C, a differentiable function of the parameters: a dict by site, as in a draw, to a number.
    num_samples
        Draws.
    solver_steps
        Steps of the solver; by default twice those of the posterior.
    regularisation
        r of `EventScore`.
    key
        Of the draws.

    Raises
    ------
    InvalidArgument
        The posterior is of another method, or ``event`` does not return a number.
    NonFinite
        Steps fold the map, or no draw is in the event.
    """
    q, target = getattr(posterior, "approximation", None), getattr(posterior, "target", None)
    if not isinstance(q, DiffusionApproximation) or target is None:
        found = type(q).__name__ if q is not None else type(posterior).__name__
        raise InvalidArgument(
            f"posterior must be one of ProbabilityFlow with its target and densities, got {found}; fit one, e.g. with "
            f"ProbabilityFlow(from_draws=posterior)."
        )
    num_samples = check_count("num_samples", num_samples, 2)
    check_nonnegative("regularisation", regularisation)
    with precision(posterior._bits):
        where = SiteEvent(event, target, q.loc, q.scale)
        shape = jax.eval_shape(lambda u: event(target.constrain(u)), q.loc)
        if np.size(shape) != 1 or np.prod(getattr(shape, "shape", (2,))) != 1:
            raise InvalidArgument(f"event must return one real number, positive inside of the event, got {shape}.")
        steps = 2 * (len(q.flow.grid) - 1) if solver_steps is None else check_count("solver_steps", solver_steps)
        words, generator = read_key(key)
        start = jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)
        given = led(q, EventScore(q.flow.score, where, regularisation), steps)
        u, log_q, inside, folds = (np.asarray(x) for x in _draw(start, given, where, num_samples))
        if folds.any() or not np.isfinite(log_q).all():
            raise NonFinite(
                f"{int((folds > 0).sum())} of {num_samples} draws given the event go through steps that fold the map: "
                f"raise solver_steps={steps}, or regularisation={regularisation:g}."
            )
        if not inside.any():
            raise NonFinite(f"none of {num_samples} draws is in the event; raise solver_steps={steps}, or look at it.")
        log_pi = evaluate.over_draws(evaluate.log_density_at, target, u)
        draws = evaluate.over_draws(evaluate.constrain_draw, target, u)
    log_w = np.where(inside, log_pi - log_q, -np.inf)
    ours, whole = evidence_from_weights(log_w), posterior.evidence()
    probability = float(np.exp(ours.log_evidence - whole.log_evidence))
    error = probability * float(np.hypot(ours.se, whole.se))
    return GivenEvent(probability, error, draws, log_w, float(inside.mean()), _k_hat(log_w[inside]), given)


def led(q: DiffusionApproximation, score: EventScore, steps: int) -> DiffusionApproximation:
    """The flow with another score, and its levels refined to so many steps, evenly by index."""
    grid = q.flow.grid
    place = jnp.linspace(0, len(grid) - 1, steps + 1)
    below = jnp.where(grid > 0, grid, 1)
    finer = jnp.exp(jnp.interp(place, jnp.arange(len(grid), dtype=grid.dtype), jnp.log(below)))
    finer = finer.at[-1].set(grid[-1])
    flow = DiscreteFlow(score, finer, q.flow.solver, q.flow.base_scale)
    return DiffusionApproximation(flow, q.loc, q.scale, q.noise)


@eqx.filter_jit
def _draw(key: PRNGKeyArray, given: DiffusionApproximation, where: SiteEvent, n: int) -> tuple[Array, ...]:
    """Draws u with log densities, whether they are in the event, and folded steps."""

    def one(z: Array) -> tuple[Array, ...]:
        y, log_q, folds = given.flow.transform(z, given.noise)
        return given.loc + given.scale @ y, log_q - given.log_det, where(y) > 0, folds

    return jax.lax.map(one, jax.random.normal(key, (n, len(given.loc)), given.loc.dtype), batch_size=min(n, 256))


def _k_hat(log_weights: np.ndarray) -> float:
    """Of the draws in the event; infinite where there are too few for a tail."""
    return float(psis(log_weights).k_hat) if len(log_weights) >= 25 else np.inf
