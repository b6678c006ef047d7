"""Continuous flow: x(1) of ẋ = v(x, t) from x(0) = z (Chen et al. 2018, arXiv:1806.07366; Grathwohl et al. 2019).

log q(x(1)) = log q₀(z) − ∫ div v dt, with the exact divergence: a random trace would make log q random, and with it
importance weights and evidence biased. It costs d forward derivatives of the network per evaluation; beyond some 30
dimensions take a coupling family. Solved by diffrax (Tsit5, adaptive), backwards by its checkpointed adjoint.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .. import score_recursion as recursion
from .bijection import Bijection, Structure
from .networks import Network

MAX_STEPS = 512
FIRST_STEP = 0.1


class Continuous(Bijection):
    """The flow of a network's vector field over unit time.

    Parameters
    ----------
    network
        v, from (d + 1,), time last, to (d,).
    tolerance
        Relative and absolute tolerance of the solver.
    """

    network: Network
    dim: int = eqx.field(static=True)
    tolerance: float = eqx.field(static=True, default=1e-5)
    structure: ClassVar[Structure] = "continuous"

    @classmethod
    def make(
        cls, key: PRNGKeyArray, dim: int, hidden: tuple[int, ...], activation: str, tolerance: float
    ) -> "Continuous":
        """The identity: a field of zero."""
        return cls(Network.make(key, (dim + 1, *hidden, dim), activation), dim, tolerance)

    def field_and_divergence(self, t: Array, x: Array) -> tuple[Array, Array]:
        """v(x, t) and div v(x, t)."""

        def v(x: Array) -> Array:
            return self.network(jnp.append(x, t))

        value, push = jax.linearize(v, x)
        return value, jnp.trace(jax.vmap(push)(jnp.eye(self.dim, dtype=x.dtype)))

    def transform_and_log_det(self, x: Array, condition: Any = None) -> tuple[Array, Array]:
        """Forward in time."""
        del condition
        return self._solve(x, 0.0, 1.0)[0]

    def inverse_and_log_det(self, y: Array, condition: Any = None) -> tuple[Array, Array]:
        """Backward in time."""
        del condition
        return self._solve(y, 1.0, 0.0)[0]

    def push_score(self, x: Array, g: Array) -> tuple[Array, Array, Array]:
        """dG/dt = −G ∂v/∂x − ∂ div v/∂x, solved with x."""
        fixed, at = recursion.held(self), jax.lax.stop_gradient(x)
        field = recursion.score_field(
            lambda t, x: fixed.field_and_divergence(t, x)[0], lambda t, x: fixed.field_and_divergence(t, x)[1]
        )
        (_, log_det, pushed), _ = _integrate(
            field, (at, jnp.zeros((), x.dtype), jax.lax.stop_gradient(g)), (0.0, 1.0), self.tolerance
        )
        y, _ = _integrate(lambda t, x: self.network(jnp.append(x, t)), x, (0.0, 1.0), self.tolerance)
        return y, jax.lax.stop_gradient(log_det), jax.lax.stop_gradient(pushed)

    def num_steps(self, x: Array) -> Array:
        """Steps that the solver takes from ``x``, of `MAX_STEPS`; each evaluates the field six times."""
        return self._solve(x, 0.0, 1.0)[1]

    def _solve(self, x: Array, t0: float, t1: float) -> tuple[tuple[Array, Array], Array]:
        def field(t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            return self.field_and_divergence(t, state[0])

        return _integrate(field, (x, jnp.zeros((), x.dtype)), (t0, t1), self.tolerance)


def _integrate(field: Callable, start: Any, span: tuple[float, float], tolerance: float) -> tuple[Any, Array]:
    """The state at the end of the span, NaN where the solver gave up, and the number of steps."""
    import diffrax

    t0, t1 = span
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: field(t, y)),
        diffrax.Tsit5(),
        t0,
        t1,
        FIRST_STEP * (t1 - t0),
        start,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=MAX_STEPS,
        throw=False,  # a field too stiff for the steps gives a non-finite draw, which the optimiser counts
    )
    good = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda leaf: jnp.where(good, leaf[-1], jnp.nan), solution.ys), solution.stats["num_steps"]
