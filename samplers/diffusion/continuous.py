"""Densities of the continuous ODE, with adaptive steps: the reference, and for densities at given points.

With u = log ρ the ODE is dy/du = y − D, and along it d log p/du = −div(y − D): log q at the end is log q at the
beginning less ∫ div(y − D) du. The divergence is exact, by d forward derivatives, or Hutchinson's estimate, vᵀ J v with
random signs v, which is good for a mean log density and for nothing that takes its exponential.

References
----------
.. [1] Y. Song et al. (2021). Score-based generative modeling through stochastic differential equations, section 4.3.
   arXiv:2011.13456.
.. [2] M. Hutchinson (1990). A stochastic estimator of the trace of the influence matrix. Communications in Statistics
   19(2).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.validate import check_choice
from .density import log_normal
from .scores import AbstractScore
from .solvers import Point

TRACES = ("exact", "hutchinson")
MAX_STEPS = 4096


class Flowed(NamedTuple):
    """The end of the continuous ODE.

    Parameters
    ----------
    y
        The point there, NaN where the solver gave up, shape (d,).
    change
        ∫ div(y − D) du from beginning to end: log q(end) = log q(begin) − this.
    num_steps
        Of the adaptive solver.
    """

    y: Point
    change: Float[Array, ""]
    num_steps: Int[Array, ""]


def flow(
    score: AbstractScore,
    y: Point,
    rho: Any,
    rho_end: Any,
    *,
    trace: Literal["exact", "hutchinson"] | None = "exact",
    key: PRNGKeyArray | None = None,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    max_steps: int = MAX_STEPS,
) -> Flowed:
    """The ODE dy/du = y − D, u = log ρ, from one level to another, up or down, by Tsit5 with adaptive steps.

    Parameters
    ----------
    y
        The point at ρ, shape (d,).
    rho, rho_end
        Levels above 0.
    trace
        Of the divergence: exact by d forward derivatives, Hutchinson's estimate with one Rademacher probe of ``key``,
        or None for the path alone. The log-density is part of the solver's error norm.

    Raises
    ------
    InvalidArgument
        Hutchinson's estimate was asked for without a key.
    """
    import diffrax

    if trace is not None:
        check_choice("trace", trace, TRACES)
    if trace == "hutchinson" and key is None:
        raise InvalidArgument(f"trace={trace!r} draws a probe, but key is {key}; give a key.")
    probe = None if key is None else jax.random.rademacher(key, y.shape, y.dtype)

    def field(u: Array, state: tuple[Point, Array], _: Any) -> tuple[Point, Array]:
        velocity = lambda y: y - score.denoise(y, jnp.exp(u))  # noqa: E731
        if trace is None:
            return velocity(state[0]), jnp.zeros_like(state[1])
        if trace == "hutchinson":
            value, along = jax.jvp(velocity, (state[0],), (probe,))
            return value, probe @ along
        value, push = jax.linearize(velocity, state[0])
        return value, jnp.trace(jax.vmap(push)(jnp.eye(len(value), dtype=value.dtype)))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        jnp.log(jnp.asarray(rho, y.dtype)),
        jnp.log(jnp.asarray(rho_end, y.dtype)),
        None,
        (y, jnp.zeros((), y.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
        adjoint=diffrax.ForwardMode(),
        throw=False,
    )
    good = solution.result == diffrax.RESULTS.successful
    end, change = jax.tree.map(lambda leaf: jnp.where(good, leaf[-1], jnp.nan), solution.ys)
    return Flowed(end, change, solution.stats["num_steps"])


def continuous_log_prob(
    score: AbstractScore, y: Point, rho_min: Any, rho_max: Any, base_scale: Any, **options: Any
) -> tuple[Float[Array, ""], Flowed]:
    """The log density at y of the flow that takes N(0, s² I) at ρ_max to ρ_min; the options are those of `flow`."""
    there = flow(score, y, rho_min, rho_max, **options)
    return log_normal(there.y, jnp.asarray(base_scale, y.dtype)) + there.change, there
