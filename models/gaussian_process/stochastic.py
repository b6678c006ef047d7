"""`StochasticDoubleKL`: double KL as in its paper, Adam on (ν, V) and hyper-parameters from mini-batches of columns.

The ELBO is a sum over columns, each of which needs its own rows of the prior's factor and a solve on its reduced
ancestors (`fixed_point`). A batch B of b columns estimates it by (n / b) Σ_{i ∈ B}, without bias ([1]_; the released
code leaves the factor out). V_ii = exp(r_i), all other entries of V and ν are free. Each stage begins at Laplace's
approximation with V = IC(0) under the order of the length scales reached.

Differs from the released code: the factor n / b, quadrature instead of 5,000 draws, V_ii without a floor.

A step costs b (m³ + a²) FLOPs for columns of m entries and a ancestors, and O(n m) for Adam's moments.

References
----------
.. [1] J. Cao et al. (2023). ICML. arXiv:2301.13303.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import NotAvailable
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.target import Target
from ...infer.validate import check_count, check_positive
from ...infer.variational.sparse_cholesky.factor import Structure, prior_columns
from .climb import Climb
from .fixed_point import all_marginals, elbo_terms, settle, some_terms
from .latent import LatentGP
from .learning import process_reached, unbounded
from .pattern import Extent, build_pattern, make_problem
from .sparse import CAUSE, SPARSE
from .sparse_posterior import SparsePosterior

FIRST, LOOSE = 20, 1e-4
"""Newton steps of the start at most, and the move of a mean, in sd, at which they end."""
FALLS_AT, FALL = 5 / 7, 0.1
SHORTER = 6


class Variables(NamedTuple):
    """What Adam moves: hyper-parameters (`LatentGP.free`), ν, and V with the logarithm of its diagonal."""

    free: Float[Array, " p"]
    mean: Float[Array, " n"]
    values: Float[Array, "n m"]

    def factor(self) -> Float[Array, "n m"]:
        """V."""
        return self.values.at[:, -1].set(jnp.exp(self.values[:, -1]))


class StochasticState(eqx.Module):
    """State of a run, in maximin order.

    Parameters
    ----------
    climb
        Where hyper-parameters stand, for the next stage.
    variables
        What is optimised.
    moments
        Adam's.
    elbo
        Of the last batch, times n / b.
    num_steps
        Steps of this stage.
    """

    climb: Climb
    variables: Variables
    moments: Any
    elbo: Float[Array, ""]
    num_steps: Int[Array, ""]


class StochasticInfo(NamedTuple):
    """What is known of a step."""

    elbo: Array
    num_evaluations: Array


class StochasticDoubleKL(AbstractMethod):
    """`DoubleKL` by Adam on mini-batches, for a `pushforward.models.LatentGP`.

    Slower than `DoubleKL`'s fixed point, which needs no step size; it is here for the factor V, which it brings to its
    optimum where the fixed point takes an incomplete factorisation, and for steps whose cost hardly grows with n.

    Parameters
    ----------
    rho, neighbors
        The pattern, as of `DoubleKL`.
    batch_size
        Columns of a step.
    num_steps
        Of the second stage, under the order of the length scales that the first, of a sixth as many, has found.
    learning_rate
        Of Adam; a tenth from five sevenths of a stage on.
    learn
        Whether hyper-parameters are learned; else the second stage is the only one.
    allow_float32
        Whether a run in 32 bits is let through.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or the run is in 32 bits.
    NonFinite
        The ELBO is not finite.

    References
    ----------
    Cao, Kang, Jimenez, Sang, Schäfer & Katzfuss (2023), ICML, arXiv:2301.13303.
    """

    rho: float | Literal["auto"] | None = eqx.field(static=True, default=None)
    neighbors: int | None = eqx.field(static=True, default=None)
    batch_size: int = eqx.field(static=True, default=128)
    num_steps: int = eqx.field(static=True, default=3000)
    learning_rate: float = 0.01
    learn: bool = eqx.field(static=True, default=True)
    allow_float32: bool = eqx.field(static=True, default=False)
    pattern: Structure | None = None

    kind: ClassVar = "approximation"
    requires: ClassVar[tuple[str, ...]] = ("latent_gp",)
    needs_start: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    warning: ClassVar[str] = SPARSE
    source: ClassVar[str] = "Cao et al. 2023"

    def __check_init__(self) -> None:
        self.extent().check()
        check_count("batch_size", self.batch_size)
        check_count("num_steps", self.num_steps)
        check_positive("learning_rate", self.learning_rate)

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """A short one for the length scales, and the one that counts."""
        del budget
        last = Stage("order 2" if self.learn else "posterior", self, self.num_steps)
        short = dataclasses.replace(self, num_steps=-(-self.num_steps // SHORTER))
        return (Stage("order 1", short, short.num_steps, keep=False), last) if self.learn else (last,)

    def extent(self) -> Extent:
        """How the pattern is chosen."""
        return Extent(self.rho, self.neighbors)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "StochasticDoubleKL":
        """Order and pattern for the length scales reached."""
        del key
        structure = build_pattern(process_reached(self, target, start), self.extent())
        return eqx.tree_at(lambda m: m.pattern, self, structure, is_leaf=lambda x: x is None)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> StochasticState:
        """Laplace's approximation at the hyper-parameters reached."""
        del key
        gp, s = cast("LatentGP", target), self._structure()
        free = start.climb.point if isinstance(start, StochasticState) else gp.free()
        gp = gp.with_free(free)
        y = jnp.asarray(gp.y, float)
        problem = make_problem(gp, s, gp.columns(s), "laplace")
        found = settle(problem, gp.likelihood.start(y)[s.order], jnp.ones_like(y), LOOSE, FIRST, "laplace")
        values = found.values.at[:, -1].set(jnp.log(found.values[:, -1]))
        variables = Variables(free, found.mean, values)
        zero = jnp.zeros((), y.dtype)
        return StochasticState(Climb.at(free), variables, self._adam().init(variables), zero, jnp.zeros((), jnp.int32))

    def step(
        self, key: PRNGKeyArray, state: StochasticState, target: Target, t: Array
    ) -> tuple[StochasticState, StochasticInfo]:
        """One step of Adam on the estimate of a batch."""
        del t
        import optax

        gp, s = cast("LatentGP", target), self._structure()
        rows = jax.random.choice(key, gp.dim, (min(self.batch_size, gp.dim),), replace=False)
        value, slope = jax.value_and_grad(lambda v: -estimate(gp, s, v, rows))(state.variables)
        slope = slope._replace(free=slope.free * jnp.asarray(gp.learned(), slope.free.dtype) * self.learn)
        change, moments = self._adam().update(slope, state.moments)
        variables = cast("Variables", optax.apply_updates(state.variables, change))
        climb = Climb.at(variables.free)
        return StochasticState(climb, variables, moments, -value, state.num_steps + 1), StochasticInfo(
            -value, jnp.ones((), jnp.int32)
        )

    def result(self, state: StochasticState, target: Target) -> SparsePosterior:
        """Q, the learned hyper-parameters, and the ELBO of all columns."""
        variables = jax.tree.map(lambda x: jnp.asarray(x[0]), state.variables)
        s, gp = self._structure(), cast("LatentGP", target).with_free(variables.free)
        value, variance = _whole(gp, s, variables)
        back = lambda z: jnp.zeros_like(z).at[s.order].set(z)  # noqa: E731
        gp = gp.with_structure(s)
        return SparsePosterior(gp, back(variables.mean), variables.factor(), back(variance), value, *self.extent())

    def merit(self, infos: StochasticInfo) -> dict[str, Array]:
        """The mean of the last estimates of the ELBO."""
        return {"elbo": jnp.asarray(infos.elbo).mean(-1).max()}

    def alarm(self, infos: StochasticInfo) -> str | None:
        """What to say where the ELBO is not finite."""
        return unbounded(self, infos, CAUSE)

    def _adam(self) -> Any:
        import optax

        falls = int(FALLS_AT * self.num_steps)
        return optax.adam(lambda k: jnp.where(k < falls, self.learning_rate, FALL * self.learning_rate))

    def _structure(self) -> Structure:
        if self.pattern is None:
            raise NotAvailable(f"{type(self).__name__} has no pattern yet ({self.pattern}); run it with fit.")
        return self.pattern


def estimate(
    gp: LatentGP, s: Structure, variables: Variables, rows: Int[Array, " b"]
) -> Float[Array, ""]:  # fmt: skip
    """(n / b) Σ over these columns of the ELBO's terms."""
    here, n = gp.with_free(variables.free), gp.dim
    u = prior_columns(here.covariance, jnp.asarray(gp.X)[s.order], s.columns[rows])
    terms = some_terms(make_problem(here, s, u), variables.factor(), variables.mean, rows)
    return n / rows.shape[0] * jnp.sum(terms)


@eqx.filter_jit
def _whole(gp: LatentGP, s: Structure, variables: Variables) -> tuple[Array, Array]:
    v, u = variables.factor(), gp.columns(s)
    variance, inner = all_marginals(s, v, u)
    return jnp.sum(elbo_terms(make_problem(gp, s, u), v, variables.mean, variance, inner)), variance
