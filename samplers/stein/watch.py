"""How far a cloud is from its target while it moves: the KSD, for the choice of a learning rate and for an early end.

The kernel Stein discrepancy is taken in the coordinates of the steps, where all of R^d is the domain and the score is
that of the dual density: there a small value means a close law (Shi, Liu & Mackey 2022). Its bandwidth is fixed, or
values could not be compared.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.diagnostics.discrepancies.stein import squared_ksd
from ...infer.kernels.bandwidth import choose_bandwidth

if TYPE_CHECKING:
    from .common import AbstractStein

LOOK = 50
"""Iterations between two looks."""
FALL = 0.98
"""A KSD² above this share of the least one so far has not fallen."""
PILOT = 150


class Watch(eqx.Module):
    """What is remembered of the looks at a cloud.

    Parameters
    ----------
    bandwidth
        h of the KSD, from the cloud at the first look.
    ksd, least
        Squared, at the last look, and the least of all.
    stale
        Looks since the least one.
    """

    bandwidth: Float[Array, "*runs"]
    ksd: Float[Array, "*runs"]
    least: Float[Array, "*runs"]
    stale: Int[Array, "*runs"]

    @classmethod
    def start(cls) -> "Watch":
        """Before the first look."""
        return cls(jnp.zeros(()), jnp.full((), jnp.inf), jnp.full((), jnp.inf), jnp.zeros((), int))

    def look(self, y: Array, score: Array, key: PRNGKeyArray) -> "Watch":
        """The KSD of these particles."""
        h = jnp.where(self.bandwidth > 0, self.bandwidth, choose_bandwidth("median", key, y))
        ksd = squared_ksd(y, score, h)
        fallen = ksd < FALL * self.least
        return Watch(h, ksd, jnp.minimum(ksd, self.least), jnp.where(fallen, 0, self.stale + 1))


def pilot(method: "AbstractStein", key: PRNGKeyArray, target: Any, start: Any, rates: tuple[float, ...]) -> float:
    """The rate that leads to the least KSD in 150 iterations from the same particles."""
    key_init, key_steps, key_width = jax.random.split(key, 3)
    state = method.init(key_init, target, start)
    steady = dataclasses.replace(method, num_steps=10 * PILOT)  # far from the end of its schedule

    @jax.jit
    def ends(method: Any, target: Any, state: Any, rates: Array) -> Array:
        def cloud(rate: Array) -> Array:
            moving = eqx.tree_at(lambda m: m.learning_rate, method, rate)
            body = lambda t, state: moving.step(jax.random.fold_in(key_steps, t), state, target, t)[0]  # noqa: E731
            return jax.lax.fori_loop(0, PILOT, body, state).y

        clouds = jax.lax.map(cloud, rates)
        h = choose_bandwidth("median", key_width, state.y)
        return jax.lax.map(lambda y: squared_ksd(y, method.step_scores(target, y), h), clouds)

    found = ends(dataclasses.replace(steady, learning_rate=1.0), target, state, jnp.asarray(rates, state.y.dtype))
    return rates[int(jnp.nanargmin(jnp.where(jnp.isfinite(found), found, jnp.inf)))]
