"""`Kernel`: a BlackJAX sampling algorithm of the user's own, driven, stored and diagnosed like every other method."""

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ..infer.errors import InvalidArgument
from ..infer.method import AbstractMethod, Budget, Stage
from ..infer.run.start import Warm
from ..infer.target import Target

# BlackJAX's names of what its infos hold → ArviZ's.
NAMES = {
    "acceptance_rate": "acceptance_rate",
    "is_accepted": "accepted",
    "is_divergent": "diverging",
    "energy": "energy",
    "energy_change": "energy_error",
    "num_integration_steps": "n_steps",
    "num_trajectory_expansions": "tree_depth",
    "logdensity": "lp",
    "subiter": "n_steps",
}


def position_of(state: Any) -> Any:
    """The field ``position`` that states of BlackJAX's kernels have."""
    return state.position


class Kernel(AbstractMethod):
    """A user's own BlackJAX ``SamplingAlgorithm`` as a method.

    Its position is the flat unconstrained vector u, so that it should be built on ``target.log_density``::

        algorithm = blackjax.nuts(target.log_density, step_size=0.1, inverse_mass_matrix=np.ones(target.dim))
        posterior = pf.fit(target, pf.Kernel(algorithm))

    It is run as it is: warm-up iterations are only dropped. What the algorithm closes over (the target's data too) is
    constant in the compiled program: another algorithm compiles anew.

    Parameters
    ----------
    algorithm
        An object with ``init(position[, key])`` and ``step(key, state) -> (state, info)``.
    position
        Function from the algorithm's state to u, shape (d,); default ``state.position``.
    info
        Function from the algorithm's info to a dict of scalars, kept as sample_stats; by default the known ones among
        its fields: acceptance_rate, is_divergent (as diverging), energy, num_integration_steps (as n_steps), ….

    Raises
    ------
    InvalidArgument
        ``algorithm`` lacks ``init`` or ``step``, or the position is not a vector of the target's dimension.
    """

    algorithm: Any = eqx.field(static=True)
    position: Callable = eqx.field(static=True, default=position_of)
    info: Callable | None = eqx.field(static=True, default=None)

    kind: ClassVar = "chains"
    gradients: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    source: ClassVar[str] = "the user's; BlackJAX"
    warning: ClassVar[str] = "The kernel is the user's own: that it leaves the target invariant has not been checked."

    def __check_init__(self) -> None:
        for name in ("init", "step"):
            if not callable(getattr(self.algorithm, name, None)):
                raise InvalidArgument(
                    f"algorithm must be a BlackJAX SamplingAlgorithm with init and step, got {self.algorithm!r}, which "
                    f"has no {name}; build one, e.g. blackjax.nuts(target.log_density, step_size, inverse_mass_matrix)."
                )

        try:
            taken = inspect.signature(self.algorithm.step)
        except ValueError:
            return  # of compiled code, which tells nothing
        try:
            taken.bind(None, None)
        except TypeError as error:
            raise InvalidArgument(
                f"algorithm has a step of {', '.join(taken.parameters)}, and Kernel calls step(key, state): "
                f"{error}; bind the other arguments, or use SGLD or SGHMC for mini-batches."
            ) from None

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Iterations that are dropped, and those that are kept."""
        sample = Stage("sample", self, budget.num_samples * budget.thin)
        if budget.num_warmup == 0:
            return (sample,)
        return (Stage("warm-up", self, budget.num_warmup, keep=False), sample)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> Any:
        """The algorithm's state at the start."""
        if isinstance(start, AlgorithmState):
            return start
        u = start.u if isinstance(start, Warm) else start
        wants_key = len(inspect.signature(self.algorithm.init).parameters) > 1
        state = self.algorithm.init(u, key) if wants_key else self.algorithm.init(u)
        try:
            found = jnp.shape(self.position(state))
        except AttributeError as error:
            raise InvalidArgument(
                f"position does not find u in the algorithm's state, a {type(state).__name__}: {error}; pass "
                f"position=, a function from that state to u."
            ) from error
        if found != (target.dim,):
            raise InvalidArgument(
                f"position gives an array of shape {found}; the kernel runs on u of shape ({target.dim},)."
            )
        return AlgorithmState(state)

    def step(self, key: PRNGKeyArray, state: Any, target: Target, t: Array) -> tuple[Any, Any]:
        """One step of the algorithm."""
        del target, t
        new, info = self.algorithm.step(key, state.state)
        # An algorithm built in 32 bits may run in 64: its state keeps the types it began with.
        new = jax.tree.map(lambda fresh, old: jnp.asarray(fresh, jnp.result_type(old)), new, state.state)
        found = self.info(info) if self.info is not None else known_scalars(info)
        found = {name: jnp.asarray(value) for name, value in found.items()}
        if "num_evaluations" not in found:
            found["num_evaluations"] = jnp.asarray(found.get("n_steps", 1), int)
        return AlgorithmState(new), info_type(tuple(found))(**found)

    def draw(self, state: Any) -> Array:
        """The chain's position."""
        return self.position(state.state)

    def merit(self, infos: Any) -> dict[str, Array]:
        """Mean acceptance and number of divergences, where the algorithm tells them."""
        out = {}
        if hasattr(infos, "acceptance_rate"):
            out["acceptance"] = infos.acceptance_rate.mean()
        if hasattr(infos, "diverging"):
            out["divergences"] = infos.diverging.sum()
        return out


class AlgorithmState(eqx.Module):
    """The algorithm's own state, wrapped so that it is not taken for a point."""

    state: Any


def known_scalars(info: Any) -> dict[str, Any]:
    """The scalars of an info that ArviZ knows, under its names."""
    out: dict[str, Any] = {}
    for theirs, ours in NAMES.items():
        value = getattr(info, theirs, None)
        if value is not None and jnp.shape(value) == ():
            out.setdefault(ours, value)
    return out


@lru_cache
def info_type(names: tuple[str, ...]) -> Any:
    """The NamedTuple with these fields; one class per set of names, since JAX tells trees apart by class."""
    return NamedTuple("KernelInfo", [(name, Any) for name in names])
