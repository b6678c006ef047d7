"""`MixFlowApproximation`: i.i.d. draws of a MixFlow with their densities, its bound, and averages over trajectories."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...approximation import Augmented
from ...errors import NotAvailable
from ...target import Target
from . import families
from .families import Flow

UNRELIABLE = 1e-3
"""Median round-trip error, in units of the map's scale, above which densities at given points mean nothing."""
DOUBTFUL = 1e-6
CHECKED = 32
"""Draws whose orbits are run there and back."""


class Curve(NamedTuple):
    """The evidence bound by length of the flow.

    Parameters
    ----------
    lengths
        N, shape (g,); only the first ``filled`` were reached.
    elbo, se
        Mean over trajectories, and its standard error.
    lost
        Trajectories that had left the finite numbers, and are not in the mean.
    filled
        How many.
    """

    lengths: Int[Array, " g"]
    elbo: Float[Array, " g"]
    se: Float[Array, " g"]
    lost: Int[Array, " g"]
    filled: Int[Array, ""]


class MixFlowApproximation(Augmented):
    """The mixture q_N of a `Flow`, of length N.

    Densities are log q_N(s) − log aux(s): the auxiliary variables' own density is divided out, so that importance
    weights have mean Z. The density of u alone is an integral over the auxiliary variables without a closed form.

    Parameters
    ----------
    flow, length
        Maps with their mixture, and N.
    target
        What the map is made for.
    curve
        The bound by length, from the orbits of the fit.
    """

    flow: Flow
    length: Int[Array, ""]
    target: Target
    curve: Curve

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws of u, each with the density read off its own orbit."""
        drawn = self._draws(key, n)
        return jax.vmap(self.flow.reference.to_u)(drawn.state.at.x), drawn.log_q - self.flow.reference.log_volume

    def sample_augmented(
        self, key: PRNGKeyArray, n: int
    ) -> tuple[Float[Array, "n d"], dict[str, Array], Float[Array, " n"]]:
        """``n`` independent draws of u, of the auxiliary variables by name, and log q_N of both."""
        drawn, flow_map = self._draws(key, n), self.flow.flow_map
        log_q = drawn.log_q - self.flow.reference.log_volume + jax.vmap(flow_map.log_auxiliary)(drawn.state)
        return jax.vmap(self.flow.reference.to_u)(drawn.state.at.x), jax.vmap(flow_map.auxiliary)(drawn.state), log_q

    def _draws(self, key: PRNGKeyArray, n: int) -> families.Draw:
        one = lambda key: families.sample(key, self.flow, self.log_density, self.length)  # noqa: E731
        return jax.vmap(one)(jax.random.split(key, n))

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Not available: it is an integral; see `estimate_log_prob` and `augmented_log_prob`."""
        raise NotAvailable(
            f"A MixFlow has no closed-form density at a u of shape {u.shape}; use approximation.estimate_log_prob(key, "
            f"u) for an estimate with its standard error, or approximation.augmented_log_prob, which is exact."
        )

    def augmented_log_prob(self, u: Float[Array, " d"], auxiliary: dict[str, Array]) -> Float[Array, ""]:
        """The density log q_N of u and the auxiliary variables by name, by inverse maps; exact up to rounding."""
        state = self.flow.flow_map.state(self.flow.reference.to_y(u), auxiliary, self.log_density)
        return self._log_density_at(state) + self.flow.flow_map.log_auxiliary(state)

    def estimate_log_prob(
        self, key: PRNGKeyArray, u: Float[Array, " d"], n: int
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """An importance estimate of log q_N(u), biased downwards, and its standard error (delta method).

        q_N(u) = E_aux[q_N(u, aux) / aux], over ``n`` draws of the auxiliary variables from their own density.
        """

        def one(key: PRNGKeyArray) -> Array:
            return self._log_density_at(self.flow.flow_map.start(key, self.flow.reference.to_y(u), self.log_density))

        values = jax.vmap(one)(jax.random.split(key, n))
        total = jax.nn.logsumexp(values) - jnp.log(n)
        return total, jnp.std(jnp.exp(values - total), ddof=1) / jnp.sqrt(n)

    def _log_density_at(self, state: Any) -> Float[Array, ""]:
        return families.log_density_at(state, self.flow, self.log_density, self.length) - self.flow.reference.log_volume

    @property
    def log_density(self) -> Any:
        """The target's log density in the coordinates that the map acts in."""
        return self.flow.reference.density(self.target.log_density)

    def expect(self, key: PRNGKeyArray, f: Callable[[Float[Array, " d"]], Any], n: int) -> tuple[Any, Any]:
        """E_{q_N} f(u) by averages along ``n`` trajectories, and its standard error over them.

        Every point of a trajectory counts, so that a map costs as much as a draw. Backward and ensemble flows, whose
        trajectories end in one component, take one draw of each.
        """
        g = lambda y: f(self.flow.reference.to_u(y))  # noqa: E731
        one = lambda key: families.average(key, g, self.flow, self.log_density, self.length)  # noqa: E731
        means = jax.vmap(one)(jax.random.split(key, n))
        error = lambda x: jnp.std(x, axis=0, ddof=1) / jnp.sqrt(n)  # noqa: E731
        return jax.tree.map(lambda x: x.mean(0), means), jax.tree.map(error, means)

    def round_trip_error(self, key: PRNGKeyArray | None = None) -> float:
        """Median over draws of the reference of |T^{−(N−1)} T^{N−1} s − s|, over x in units of the map's scale."""
        key = jax.random.key(0) if key is None else key
        return float(np.median(np.asarray(round_trip(self, key, num_points=CHECKED))))

    def check_densities(self) -> None:
        """Whether densities at given points mean anything: an orbit run there and back must end where it began.

        Raises
        ------
        NotAvailable
            The round-trip error is above 1e-3, with the number.

        Warns
        -----
        RuntimeWarning
            It is above 1e-6, or the fit is in 32 bits.
        """
        error, bits = self.round_trip_error(), 8 * self.flow.reference.loc.dtype.itemsize
        found = (
            f"orbits of length {int(self.length):,} run there and back miss their start by {error:.2g} in {bits} bits"
        )
        if not error <= UNRELIABLE:
            raise NotAvailable(
                f"Densities at given points mean nothing here: {found}, and at most {UNRELIABLE:g} is allowed. Use the "
                f"densities of draws (log_weights, elbo), a smaller length=, or kernel='hamiltonian' with "
                f"momentum='laplace', whose orbits lose fewer digits."
            )
        if error > DOUBTFUL or bits < 64:
            warnings.warn(f"Densities at given points have lost digits: {found}.", RuntimeWarning, stacklevel=3)


@partial(jax.jit, static_argnames=("num_points",))
def round_trip(approximation: MixFlowApproximation, key: PRNGKeyArray, *, num_points: int) -> Float[Array, " n"]:
    """Distances between x and where it comes to lie after N − 1 maps and their inverses."""
    flow, log_density, steps = approximation.flow, approximation.log_density, approximation.length - 1

    def one(key: PRNGKeyArray) -> Array:
        at = families.begin_walk(families.begin_draw(key, flow, log_density)[0], flow)
        there = families.walk(at, steps, flow, log_density, lambda j: j, ahead=True)
        back = families.walk(there, steps, flow, log_density, lambda j: steps + 1 - j, ahead=False)
        return jnp.linalg.norm((back.state.at.x - at.state.at.x) / flow.flow_map.scale)

    return jax.vmap(one)(jax.random.split(key, num_points))
