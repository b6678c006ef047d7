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
from ...errors import InvalidArgument, NotAvailable
from ...run.precision import precision
from ...target import Target
from . import families
from .families import Flow
from .picture import draw_curve

UNRELIABLE, DOUBTFUL = 0.1, 1e-3
"""Nats by which log densities at given points may be off: above the first they mean nothing, below the second fine."""
CHECKED, QUANTILE = 16, 0.9
"""Draws whose orbits are run there and back, and the quantile of their errors that counts."""


class Inversion(NamedTuple):
    """What orbits lose when they are run back: each the 90 % quantile over draws.

    Parameters
    ----------
    distance
        From a start to where N − 1 maps and their inverses lead: of x in units of the map's scale, of the momentum, or
        of the uniform auxiliary variables around their circle, whichever is largest.
    nats
        Between the log density that is read off a draw's own orbit and that at the same point by inverse maps.
    """

    distance: float
    nats: float


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
    skew
        Skewness of the trajectories' bounds: below −1 the standard error is too small, since rare trajectories with a
        very low bound are missing among few.
    paired
        Standard error of the difference from the bound at the length of the flow, over the same trajectories.
    """

    lengths: Int[Array, " g"]
    elbo: Float[Array, " g"]
    se: Float[Array, " g"]
    lost: Int[Array, " g"]
    filled: Int[Array, ""]
    skew: Float[Array, " g"]
    paired: Float[Array, " g"]


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
            f"u, n) for an estimate with its standard error, or approximation.augmented_log_prob, which is exact."
        )

    def augmented_log_prob(self, u: Float[Array, " d"], auxiliary: dict[str, Array]) -> Float[Array, ""]:
        """The density log q_N of u and the auxiliary variables by name, by inverse maps; exact up to rounding.

        Raises
        ------
        InvalidArgument
            An auxiliary variable is missing or of another shape.
        """
        self._check_auxiliary(u, auxiliary)
        state = self.flow.flow_map.state(self.flow.reference.to_y(u), auxiliary, self.log_density)
        return self._log_density_at(state) + self.flow.flow_map.log_auxiliary(state)

    def _check_auxiliary(self, u: Float[Array, " d"], auxiliary: dict[str, Array]) -> None:
        flow_map, key = self.flow.flow_map, jax.random.key(0)
        start = lambda: flow_map.auxiliary(flow_map.start(key, self.flow.reference.to_y(u), self.log_density))  # noqa: E731
        wanted = {name: x.shape for name, x in jax.eval_shape(start).items()}
        given = {name: jnp.shape(x) for name, x in auxiliary.items()}
        if given != wanted:
            raise InvalidArgument(
                f"auxiliary must have, for each u, arrays of the shapes {wanted}, got {given}; give what "
                f"sample(n, augmented=True) returns."
            )

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

    def pictures(self) -> list[tuple[str, str, Callable[[Any], Any]]]:
        """See `Approximation.pictures`: the bound by length."""
        text = (
            "Evidence bound by length N of the flow, all from the same orbits: mean over trajectories and two standard "
            "errors. The vertical line is the length of the flow; at N = 1 it is the reference."
        )
        return [("Evidence bound", text, lambda plt: draw_curve(plt, self.curve, int(self.length)))]

    def inversion(self, key: PRNGKeyArray | None = None) -> Inversion:
        """How far orbits that are run there and back end from their start, and what that does to densities."""
        with precision(8 * self.flow.reference.loc.dtype.itemsize):
            errors = round_trip(self, jax.random.key(0) if key is None else key, num_points=CHECKED)
            return Inversion(*(float(np.quantile(np.asarray(x), QUANTILE, method="higher")) for x in errors))

    def check_densities(self) -> None:
        """Whether densities at given points mean anything: they must be those that draws read off their own orbits.

        Raises
        ------
        NotAvailable
            Log densities are off by more than 0.1 nats, with the number.

        Warns
        -----
        RuntimeWarning
            They are off by more than 0.001 nats.
        """
        error, bits = self.inversion(), 8 * self.flow.reference.loc.dtype.itemsize
        found = (
            f"at one draw in ten they are off by {error.nats:.2g} nats or more, as orbits of length "
            f"{int(self.length):,} run there and back miss their start by {error.distance:.2g} in {bits} bits"
        )
        if not error.nats <= UNRELIABLE:
            more = ", or precision=64" if bits < 64 else ""
            raise NotAvailable(
                f"Densities at given points mean nothing here: {found}, and at most {UNRELIABLE:g} is allowed. Use the "
                f"densities of draws (log_weights, elbo), or a smaller length={more}."
            )
        if error.nats > DOUBTFUL:
            warnings.warn(f"Densities at given points have lost digits: {found}.", RuntimeWarning, stacklevel=3)


@partial(jax.jit, static_argnames=("num_points",))
def round_trip(
    approximation: MixFlowApproximation, key: PRNGKeyArray, *, num_points: int
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Distance and nats of an `Inversion`, for each of some draws of the reference and of the mixture."""
    flow, log_density, length = approximation.flow, approximation.log_density, approximation.length
    flow_map, steps = flow.flow_map, approximation.length - 1

    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        at = families.begin_walk(families.begin_draw(key, flow, log_density)[0], flow)
        there = families.walk(at, steps, flow, log_density, lambda j: j, ahead=True)
        back = families.walk(there, steps, flow, log_density, lambda j: steps + 1 - j, ahead=False)
        drawn = families.sample(key, flow, log_density, length)
        again = flow_map.state(drawn.state.at.x, flow_map.auxiliary(drawn.state), log_density)
        nats = jnp.abs(families.log_density_at(again, flow, log_density, length) - drawn.log_q)
        return _apart(flow_map, at.state, back.state), jnp.where(jnp.isnan(nats), jnp.inf, nats)

    return jax.vmap(one)(jax.random.split(key, num_points))


def _apart(flow_map: Any, state: Any, other: Any) -> Float[Array, ""]:
    """The largest distance between the parts of two states."""
    here, there = flow_map.auxiliary(state), flow_map.auxiliary(other)
    parts = {name: jnp.abs(there[name] - here[name]) for name in here}
    circles = [jnp.minimum(gap, 1.0 - gap) for name, gap in parts.items() if name != "momentum"]
    gaps = [(other.at.x - state.at.x) / flow_map.scale, parts["momentum"], *circles]
    return jnp.max(jnp.stack([jnp.linalg.norm(jnp.ravel(gap)) for gap in gaps]))
