"""Where the score of a `ProbabilityFlow` comes from, and what is made of it.

Each origin prepares before the steps, has a network and a loss if it is trained, and a result. They are stateless:
hyper-parameters and what was prepared are the method's.
"""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.approximation import Approximation
from ...infer.errors import InvalidArgument, NonFinite
from ...infer.run.start import Warm
from ...infer.target import Target
from . import frame
from .approximation import DiffusionApproximation, Learned, PathApproximation, probe
from .denoising import DenoisingSampler, Drift, cosine_steps
from .density import DiscreteFlow
from .frame import Prepared
from .network import NetScore
from .reflected import LARGEST, SMALLEST, CubeApproximation, CubeScore, ReflectedFlow, check_intervals, reflected_loss
from .scores import AbstractScore
from .snis import DEGENERATE, FEWEST, LARGEST_DIM, SNISScore, ess_by_level
from .training import Levels, ScoreState, held_out_loss, split_draws, training_loss

if TYPE_CHECKING:
    from .method import ProbabilityFlow

FIRST_STEPS, MOST_STEPS = 12, 192
"""Of the solver, when they are chosen."""
NOISY_STEPS = 16
"""Of the solver with a Monte Carlo score, whose densities are of its noise: other steps have another."""
OVERDISPERSION = 0.04
"""Of what flows begin with, times √d: an ESS share of about 1 − 2 · 0.04² in all dimensions."""
TUNING_DRAWS = 64
MOVES = 20
FINAL_PATHS = 1000


class Given(NamedTuple):
    """What an origin prepares from.

    Parameters
    ----------
    target, start
        As `AbstractMethod.prepare` gets them.
    draws
        Unconstrained, shape (n, d), made or given; None where there are none.
    num_evaluations
        Spent on them.
    quality
        Their R-hat and divergences, NaN and 0 of draws that were given.
    key_frame, key_check, key_paths
        Of the coordinates, of the points at which the density is looked at, and of paths.
    """

    target: Target
    start: Any
    draws: Any
    num_evaluations: int
    quality: tuple[float, int]
    key_frame: PRNGKeyArray
    key_check: PRNGKeyArray
    key_paths: PRNGKeyArray


class AbstractOrigin(abc.ABC):
    """Where a score comes from; see the concrete classes.

    Attributes
    ----------
    trained
        Whether there is a network to train.
    of_draws
        Whether it is learned from draws of the posterior.
    """

    trained: ClassVar[bool] = False
    of_draws: ClassVar[bool] = False

    def check(self, method: "ProbabilityFlow", target: Target) -> None:
        """Raise where the target is not one for this origin; default: never."""
        del method, target

    @abc.abstractmethod
    def prepare(self, method: "ProbabilityFlow", given: Given) -> Prepared:
        """The coordinates, the levels, and what there is to learn from."""

    def network(self, method: "ProbabilityFlow", key: PRNGKeyArray, dim: int) -> Any:
        """The network before training."""
        raise NotImplementedError(f"{type(self).__name__} is not trained: its method is {method!r}.")

    def loss(self, method: "ProbabilityFlow", key: PRNGKeyArray, net: Any, target: Target) -> Float[Array, ""]:
        """What the training lowers."""
        raise NotImplementedError(f"{type(self).__name__} is not trained: its method is {method!r}.")

    @abc.abstractmethod
    def result(self, method: "ProbabilityFlow", state: Any, target: Target) -> Approximation:
        """The approximation, with as many solver steps as its densities need."""


class Known(AbstractOrigin):
    """A score that is given, in unconstrained coordinates."""

    def prepare(self, method: "ProbabilityFlow", given: Given) -> Prepared:
        """Coordinates as they are."""
        levels = frame.levels(method.rho_max, method.rho_min, None)
        return Prepared(np.zeros(given.target.dim), np.eye(given.target.dim), levels, None, 0)

    def result(self, method: "ProbabilityFlow", state: Any, target: Target) -> Approximation:
        """The given score's flow."""
        del state, target
        return end_of(method, method.denoiser, None)


class Importance(AbstractOrigin):
    """Importance sampling at each step, without training."""

    def check(self, method: "ProbabilityFlow", target: Target) -> None:
        """Up to 20 dimensions."""
        if target.dim > LARGEST_DIM and not method.force:
            raise InvalidArgument(
                f"score='snis' is for up to {LARGEST_DIM} dimensions, and the target has {target.dim}: the effective "
                f"draws vanish as their number grows. Use score='amortised', or force=True."
            )

    def prepare(self, method: "ProbabilityFlow", given: Given) -> Prepared:
        """Whitened; an error where there are next to no effective draws at some level."""
        loc, scale = framed(method, given)
        levels = frame.levels(method.rho_max, method.rho_min, None)
        grid = method.grid_of(levels, FIRST_STEPS)
        score = self._score(method, given.target, loc, scale, 0)
        ess, _ = ess_by_level(score, given.key_paths, jnp.asarray(grid, float))
        median = np.median(np.asarray(ess), axis=1)
        if not median.min() >= FEWEST:
            worst = int(np.argmin(median))
            raise InvalidArgument(
                f"score='snis' has a median of {median[worst]:.2g} effective draws of {method.num_particles} at the "
                f"noise level rho={grid[worst]:.3g}, fewer than {FEWEST:g}; raise num_particles or "
                f"spread={method.spread}, or use score='amortised'."
            )
        spent = given.num_evaluations + frame.PROBES + ess.size * 2 * method.num_particles
        return Prepared(loc, scale, levels, None, spent, ess=median)

    def result(self, method: "ProbabilityFlow", state: Any, target: Target) -> Approximation:
        """The same particles at all points, so that the map has a density."""
        del state
        found = method.prepared
        score = self._score(method, target, found.loc, found.scale, self._moves(method))
        return end_of(method, score, None, noise=jax.random.key(0))

    def _score(self, method: "ProbabilityFlow", target: Target, loc: Any, scale: Any, moves: int) -> SNISScore:
        loc, scale = jnp.asarray(loc, float), jnp.asarray(scale, float)
        return SNISScore(target, loc, scale, jax.random.key(0), method.spread, method.num_particles, False, moves)

    def _moves(self, method: "ProbabilityFlow") -> int:
        """Steps of the Langevin chains; none for the ODE."""
        if method.num_moves is not None or method.dynamics == "ode":
            return method.num_moves or 0
        return MOVES if np.min(np.asarray(method.prepared.ess)) < DEGENERATE * method.num_particles else 0


class Denoising(AbstractOrigin):
    """A stochastic diffusion learned from the density alone."""

    trained: ClassVar[bool] = True

    def prepare(self, method: "ProbabilityFlow", given: Given) -> Prepared:
        """Whitened."""
        loc, scale = framed(method, given)
        levels = frame.levels(method.rho_max, method.rho_min, None)
        return Prepared(loc, scale, levels, None, given.num_evaluations + frame.PROBES)

    def network(self, method: "ProbabilityFlow", key: PRNGKeyArray, dim: int) -> Drift:
        """No drift."""
        return Drift.make(key, dim, method.hidden)

    def loss(self, method: "ProbabilityFlow", key: PRNGKeyArray, net: Any, target: Target) -> Float[Array, ""]:
        """Minus the bound of log Z."""
        return -self._sampler(method, net, target).bound(key, method.batch_size)

    def result(self, method: "ProbabilityFlow", state: Any, target: Target) -> Approximation:
        """The restart with the largest bound, at its averaged parameters."""
        key, found = jax.random.key(0), []
        for i in range(len(state.train.skipped)):
            params = jax.tree.map(lambda x, i=i: jnp.asarray(x)[i], state.train.average)
            drift = eqx.combine(params, jax.tree.map(lambda x, i=i: x[i], state.rest))
            sampler = self._sampler(method, drift, target)
            found.append((float(_bound(sampler, key)), sampler))
        return max(found, key=lambda pair: pair[0])[1]

    def _sampler(self, method: "ProbabilityFlow", drift: Drift, target: Target) -> DenoisingSampler:
        loc, scale = (jnp.asarray(x, float) for x in (method.prepared.loc, method.prepared.scale))
        drift = jax.tree.map(lambda x: x.astype(float), drift)
        steps = jnp.asarray(cosine_steps(method.num_levels))
        return DenoisingSampler(drift, target, loc, scale, steps, jnp.asarray(method.sigma, float))


class Amortised(AbstractOrigin):
    """A network learned from draws by denoising score matching."""

    trained: ClassVar[bool] = True
    of_draws: ClassVar[bool] = True

    def prepare(self, method: "ProbabilityFlow", given: Given) -> Prepared:
        """Whitened draws with their gradients, some held out."""
        loc, scale = framed(method, given)
        points = np.linalg.solve(scale, (given.draws - loc).T).T
        spent, fisher = given.num_evaluations + frame.PROBES, None
        found = None if method.blend is None else frame.gradients(given.target, loc, scale, given.draws)
        if found is not None:
            fisher, spent = np.linalg.eigvalsh(found.T @ found / len(found)), spent + len(found)
        learnable = split_draws(points, found, method.blend, method.held_out, 0)
        levels = frame.levels(method.rho_max, method.rho_min, fisher)
        return Prepared(loc, scale, levels, learnable, spent, *given.quality)

    def network(self, method: "ProbabilityFlow", key: PRNGKeyArray, dim: int) -> AbstractScore:
        """The score of N(0, I)."""
        return NetScore.make(key, dim, method.hidden)

    def loss(self, method: "ProbabilityFlow", key: PRNGKeyArray, net: Any, target: Target) -> Float[Array, ""]:
        """Of a random batch."""
        del target
        return training_loss(net, method.prepared.draws, method.prepared.levels, key, method.batch_size)

    def held_out(self, net: Any, points: Float[Array, "m d"], levels: Levels) -> Float[Array, ""]:
        """The loss at some draws, with noise that stays the same."""
        return held_out_loss(net, points, levels)

    def result(self, method: "ProbabilityFlow", state: Any, target: Target) -> Approximation:
        """The restart with the least loss held out, where that was least."""
        del target
        return self.end(method, *self.learned(method, state))

    def end(self, method: "ProbabilityFlow", score: Any, learned: Learned) -> Approximation:
        """What the learned score leads to."""
        return end_of(method, score, learned)

    def looked(self, method: "ProbabilityFlow", state: ScoreState) -> ScoreState:
        """Keep the averaged parameters if their loss held out is the least so far."""
        average = state.train.average
        net = eqx.combine(average, state.rest)
        loss = self.held_out(net, method.prepared.draws.held, method.prepared.levels).astype(state.best_loss.dtype)
        better = loss < state.best_loss
        keep = lambda new, old: jnp.where(better, new, old)  # noqa: E731
        return ScoreState(
            train=state.train,
            rest=state.rest,
            best=jax.tree.map(keep, average, state.best),
            best_loss=keep(loss, state.best_loss),
            best_at=keep(state.count, state.best_at),
            count=state.count,
            held_loss=loss,
        )

    def learned(self, method: "ProbabilityFlow", state: ScoreState) -> tuple[Any, Learned]:
        """The best restart's score, and what is known of its training."""
        # The last parameters may not have been looked at.
        state = jax.vmap(lambda state: self.looked(method, state))(jax.tree.map(jnp.asarray, state))
        losses = np.asarray(state.best_loss)
        if not np.isfinite(losses).any():
            raise NonFinite(
                f"ProbabilityFlow: the losses held out are {losses}; lower learning_rate={method.learning_rate}."
            )
        chosen = int(np.nanargmin(losses))
        params = jax.tree.map(lambda x: jnp.asarray(x)[chosen].astype(float), state.best)
        score = eqx.combine(params, jax.tree.map(lambda x: x[chosen], state.rest))
        draws = method.prepared.draws
        seen = self.held_out(score, draws.points[: len(draws.held)], method.prepared.levels)
        return score, Learned(
            jnp.asarray(losses, float), jnp.asarray(seen, float), jnp.asarray(state.best_at),
            jnp.asarray(state.train.skipped), jnp.asarray(chosen), jnp.asarray(jnp.nan, float),
        )  # fmt: skip


class Reflected(Amortised):
    """A network of the diffusion reflected at the faces of a cube, learned from draws."""

    def check(self, method: "ProbabilityFlow", target: Target) -> None:
        """All supports are intervals."""
        del method
        check_intervals(target)

    def prepare(self, method: "ProbabilityFlow", given: Given) -> Prepared:
        """Draws on the cube, some held out; at the highest level the density is uniform."""
        framed(method, given)
        points = np.asarray(jax.nn.sigmoid(jnp.asarray(given.draws)))
        learnable = split_draws(points, None, None, method.held_out, 0)
        lowest = SMALLEST if method.rho_min is None else method.rho_min
        levels = Levels(jnp.asarray(lowest, float), jnp.asarray(min(float(method.rho_max), LARGEST), float))
        zero, one, spent = np.zeros(given.target.dim), np.eye(given.target.dim), given.num_evaluations + frame.PROBES
        return Prepared(zero, one, levels, learnable, spent, *given.quality)

    def network(self, method: "ProbabilityFlow", key: PRNGKeyArray, dim: int) -> AbstractScore:
        """That of the uniform density."""
        return CubeScore.make(key, dim, method.hidden, jnp.float32)

    def loss(self, method: "ProbabilityFlow", key: PRNGKeyArray, net: Any, target: Target) -> Float[Array, ""]:
        """Of a random batch."""
        del target
        key_rows, key_loss = jax.random.split(key)
        points = method.prepared.draws.points
        rows = jax.random.randint(key_rows, (method.batch_size,), 0, len(points))
        return reflected_loss(net, points[rows], key_loss, method.prepared.levels)

    def held_out(self, net: Any, points: Float[Array, "m d"], levels: Levels) -> Float[Array, ""]:
        """With noise that stays the same."""
        return reflected_loss(net, points, jax.random.key(0), levels)

    def end(self, method: "ProbabilityFlow", score: Any, learned: Learned) -> Approximation:
        """A flow of the cube."""

        def make(steps: int) -> CubeApproximation:
            grid = jnp.asarray(method.grid_of(method.prepared.levels, steps), float)
            flow = ReflectedFlow(score, grid, method.solver_of(), len(method.prepared.loc))
            return CubeApproximation(flow, learned)

        return fewest_steps(method, make)


ORIGINS: dict[str, AbstractOrigin] = {
    "amortised": Amortised(),
    "snis": Importance(),
    "dds": Denoising(),
    "reflected": Reflected(),
}


def framed(method: "ProbabilityFlow", given: Given) -> tuple[np.ndarray, np.ndarray]:
    """Whitening by the draws, or without draws by Pathfinder; the density must be finite around it."""
    if given.draws is None:
        loc, scale = _found_frame(given.key_frame, given.target, given.start)
    else:
        loc, scale = frame.whitening(given.draws, method.whiten)
    frame.check_density(given.key_check, given.target, loc, scale)
    return loc, scale


def end_of(
    method: "ProbabilityFlow", score: AbstractScore, learned: Learned | None, noise: PRNGKeyArray | None = None
) -> Approximation:
    """Of a score in whitened coordinates: the SDE's paths, or the ODE's end with as few steps as its densities need."""
    found = method.prepared
    loc, scale = (jnp.asarray(x, float) for x in (found.loc, found.scale))
    if method.dynamics == "sde":
        local = jnp.clip(found.levels.lowest / frame.LOWEST, frame.SMALLEST, 1.0)
        grid = jnp.asarray(method.grid_of(found.levels, method.num_levels), float)
        return PathApproximation(score, grid, loc, scale, local, learned)

    usual = 1.0 if learned is None else 1 + OVERDISPERSION / len(loc) ** 0.5
    wider = usual if method.overdispersion is None else method.overdispersion

    def make(steps: int) -> DiffusionApproximation:
        flow = DiscreteFlow.make(score, method.grid_of(found.levels, steps), method.solver_of())
        flow = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, flow)
        flow = eqx.tree_at(lambda flow: flow.base_scale, flow, flow.base_scale * wider)
        return DiffusionApproximation(flow, loc, scale, noise, learned)

    return fewest_steps(method, make, None if noise is None else NOISY_STEPS)


def fewest_steps(method: "ProbabilityFlow", make: Callable[[int], Any], fixed: int | None = None) -> Any:
    """With the fewest steps whose densities do not change when there are twice as many; folds are refused."""
    fixed = method.solver_steps or fixed
    given = fixed is not None or not isinstance(method.grid, str)
    steps = fixed or FIRST_STEPS
    q = make(steps)
    z = jax.random.normal(jax.random.key(1), (TUNING_DRAWS, len(method.prepared.loc)))
    (log_q, folds), change = probe(q, z), np.nan
    while not given and steps < MOST_STEPS:
        finer = make(2 * steps)
        more_log_q, more_folds = probe(finer, z)
        change = float(jnp.max(jnp.abs(log_q - more_log_q)))
        if change < method.tolerance and not folds:
            break
        q, steps, log_q, folds = finer, 2 * steps, more_log_q, more_folds
    if folds or not bool(jnp.all(jnp.isfinite(log_q))):
        bad = f"{int(folds)} steps of {TUNING_DRAWS} draws fold the map" if folds else "a density is not finite"
        raise NonFinite(
            f"ProbabilityFlow: with {len(q.flow.grid) - 1} steps of {type(q.flow.solver).__name__} {bad}, so that "
            f"there is no density: too few steps; raise solver_steps, or "
            f"rho_min={float(method.prepared.levels.lowest):.2g}."
        )
    if q.learned is None:
        return q
    return eqx.tree_at(lambda q: q.learned.tuning, q, jnp.asarray(change))


def _found_frame(key: PRNGKeyArray, target: Target, start: Any) -> tuple[np.ndarray, np.ndarray]:
    """Whitening without draws: the mean and covariance of several Pathfinder paths' normals together."""
    from ...infer.variational.flows.start import whitening

    first = start[0] if isinstance(start, list | tuple) else start
    u = first.u if isinstance(first, Warm) else first
    u = jnp.asarray(u).reshape(-1, target.dim)[0]
    z = jnp.concatenate([jnp.zeros((1, target.dim)), jnp.eye(target.dim)])
    points = np.asarray(_affine_at(key, target, u, z, whitening))
    return points[0], np.tril((points[1:] - points[0]).T)


@eqx.filter_jit
def _affine_at(key: PRNGKeyArray, target: Target, u: Array, z: Array, whitening: Any) -> Array:
    """The whitening map at some points."""
    found = whitening(key, target, u, "pathfinder")
    return jax.vmap(lambda z: found.transform_and_log_det(z)[0])(z)


@eqx.filter_jit
def _bound(sampler: DenoisingSampler, key: PRNGKeyArray) -> Array:
    return sampler.bound(key, FINAL_PATHS)
