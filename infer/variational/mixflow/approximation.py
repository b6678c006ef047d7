"""`MixFlowApproximation`: i.i.d. draws of a MixFlow with their densities, its bound, and averages over trajectories."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...approximation import Approximation
from ...errors import NotAvailable
from ...target import Target
from . import orbit
from .maps import AbstractMap


class Curve(NamedTuple):
    """The evidence bound by length of the flow.

    Parameters
    ----------
    lengths
        N, shape (g,); only the first ``filled`` were reached.
    elbo, se
        Mean over trajectories, and its standard error.
    filled
        How many.
    """

    lengths: Int[Array, " g"]
    elbo: Float[Array, " g"]
    se: Float[Array, " g"]
    filled: Int[Array, ""]


class MixFlowApproximation(Approximation):
    """q_N = (1/N) Σ_{n<N} Tⁿ# q₀ on the augmented space.

    Densities are log q_N(s) − log aux(s): the auxiliary variables' own density is divided out, so that importance
    weights have mean Z. The density of u alone is an integral over the auxiliary variables without a closed form.

    Parameters
    ----------
    flow_map, reference, length
        T, q₀ and N.
    target
        What the map is made for.
    curve
        The bound by length, from the orbits of the fit.
    """

    flow_map: AbstractMap
    reference: orbit.Reference
    length: Int[Array, ""]
    target: Target
    curve: Curve

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws of u, each with the density read off its own orbit."""
        states, log_q = self.sample_augmented(key, n)
        return states.at.x, log_q

    def sample_augmented(self, key: PRNGKeyArray, n: int) -> tuple[Any, Float[Array, " n"]]:
        """``n`` independent draws of the augmented state, and log q_N(s) − log aux(s)."""
        one = lambda key: orbit.draw(key, self.flow_map, self.reference, self.target.log_density, self.length)  # noqa: E731
        return jax.vmap(one)(jax.random.split(key, n))

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Not available: it is an integral; see `marginal_log_prob` and `augmented_log_prob`."""
        raise NotAvailable(
            f"A MixFlow has no closed-form density at a u of shape {u.shape}; use approximation.marginal_log_prob(key, "
            f"u) for an estimate with its standard error, or approximation.augmented_log_prob(state), which is exact."
        )

    def augmented_log_prob(self, state: Any) -> Float[Array, ""]:
        """The density log q_N(s) − log aux(s) of an augmented state, by N − 1 inverse maps; exact up to rounding."""
        return orbit.log_density_at(state, self.flow_map, self.reference, self.target.log_density, self.length)

    def marginal_log_prob(
        self, key: PRNGKeyArray, u: Float[Array, " d"], num_draws: int = 100
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """An importance estimate of log q_N(u), biased downwards, and its standard error (delta method).

        q_N(u) = E_aux[q_N(u, aux) / aux], over ``num_draws`` draws of the auxiliary variables.
        """

        def one(key: PRNGKeyArray) -> Array:
            return self.augmented_log_prob(self.flow_map.start(key, u, self.target.log_density))

        values = jax.vmap(one)(jax.random.split(key, num_draws))
        total = jax.nn.logsumexp(values) - jnp.log(num_draws)
        return total, jnp.std(jnp.exp(values - total)) / jnp.sqrt(num_draws)

    def expect(
        self, key: PRNGKeyArray, f: Callable[[Float[Array, " d"]], Any], num_trajectories: int = 64
    ) -> tuple[Any, Any]:
        """E_{q_N} f(u) by averages along trajectories, and its standard error over them.

        Every point of a trajectory counts, so that a map costs as much as a draw.

        Parameters
        ----------
        f
            A function of u with an array or a pytree of arrays as its value.
        """
        log_density = self.target.log_density

        def one(key: PRNGKeyArray) -> Any:
            first, second = jax.random.split(key)
            state = self.flow_map.start(second, self.reference.sample(first), log_density)

            def move(_: Array, carry: tuple) -> tuple:
                state, total = carry
                state = self.flow_map.forward(state, log_density)[0]
                return state, jax.tree.map(jnp.add, total, f(state.at.x))

            _, total = jax.lax.fori_loop(0, self.length - 1, move, (state, f(state.at.x)))
            return jax.tree.map(lambda x: x / self.length, total)

        means = jax.vmap(one)(jax.random.split(key, num_trajectories))
        error = lambda x: jnp.std(x, axis=0, ddof=1) / jnp.sqrt(num_trajectories)  # noqa: E731
        return jax.tree.map(lambda x: x.mean(0), means), jax.tree.map(error, means)


@partial(jax.jit, static_argnames=("num_points",))
def round_trip(approximation: MixFlowApproximation, key: PRNGKeyArray, *, num_points: int = 32) -> Float[Array, " n"]:
    """Distances |T^{−(N−1)} T^{N−1} s − s| over x, in units of the map's scale, from draws of the reference."""
    flow_map, log_density = approximation.flow_map, approximation.target.log_density

    def one(key: PRNGKeyArray) -> Array:
        first, second = jax.random.split(key)
        start = flow_map.start(second, approximation.reference.sample(first), log_density)
        steps = approximation.length - 1
        there = jax.lax.fori_loop(0, steps, lambda _, s: flow_map.forward(s, log_density)[0], start)
        back = jax.lax.fori_loop(0, steps, lambda _, s: flow_map.inverse(s, log_density)[0], there)
        return jnp.linalg.norm((back.at.x - start.at.x) / flow_map.scale)

    return eqx.filter_vmap(one)(jax.random.split(key, num_points))
