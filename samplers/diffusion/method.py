"""`ProbabilityFlow`: the posterior as the end of a diffusion's probability-flow ODE, with exact densities and evidence.

In whitened coordinates the ODE dy/dρ = (y − D(y, ρ))/ρ leads from N(0, (1 + ρ²) I) at a high noise level to the
posterior at a low one ([1]_; see `scores`). Its denoiser D is

- learned from draws (``"amortised"``): of a posterior given, or of a short NUTS run; a network by denoising score
  matching, with the gradient of the log density blended in (`training`);
- computed by importance sampling at each step, without training (``"snis"``, up to 20 dimensions);
- or known: any `AbstractScore` in unconstrained coordinates.

With ``"dds"`` a stochastic diffusion is learned from the density alone (`denoising`), whose paths carry weights.

The solver's n steps are a map with a Jacobian, whatever the score: draws come with their exact log density, so that
their weights give evidence and k-hat, and put right what the score has wrong, as long as no mode is missed.

References
----------
.. [1] Y. Song et al. (2021). Score-based generative modeling through stochastic differential equations.
   arXiv:2011.13456.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from ...infer.approximation import Approximation
from ...infer.errors import InvalidArgument, NonFinite
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.run.start import Warm
from ...infer.target import Target
from ...infer.train import Trainer
from ...infer.validate import check_choice, check_count, check_fraction, check_nonnegative, check_positive
from . import findings, frame
from .approximation import DiffusionApproximation, Learned, PathApproximation, probe
from .denoising import DenoisingSampler, Drift, cosine_steps
from .density import DiscreteFlow, check_grid
from .frame import Prepared
from .network import NetScore
from .schedules import edm_grid, log_grid
from .scores import AbstractScore
from .snis import DEGENERATE, FEWEST, LARGEST_DIM, SNISScore, ess_by_level
from .solvers import SOLVERS, AbstractSolver
from .training import ScoreState, held_out_loss, split_draws, training_loss

SCORES = ("amortised", "snis", "dds")
GRIDS = {"edm": edm_grid, "log": log_grid}
CHECK_EVERY = 100
"""Steps between looks at the loss held out."""
FIRST_STEPS, MOST_STEPS = 12, 192
"""Of the solver, when they are chosen."""
NOISY_STEPS = 16
"""Of the solver with a Monte Carlo score, whose densities are of its noise: other steps have another."""
TUNING_DRAWS = 64
MOVES = 20
FINAL_PATHS = 1000


class ScoreInfo(NamedTuple):
    """What is known of a training step: its loss, and the last one at the draws held out."""

    loss: Array
    held_out: Array
    grad_norm: Array
    rate: Array
    skipped: Array
    num_evaluations: Array


class NoTraining(eqx.Module):
    """State of a score that is not trained."""

    steps: Array


class ProbabilityFlow(AbstractMethod):
    """The probability-flow ODE of a diffusion: independent draws with densities, from a score learned or computed.

    Each chain is a restart of the training, of which the one with the least loss held out is kept.

    Parameters
    ----------
    from_draws
        Draws of the posterior to learn from: a `Posterior`, or unconstrained points (n, d). None: ``num_draws`` draws
        of each of four chains of ``warmup`` are made first.
    score
        ``"amortised"`` (learned from draws), ``"snis"`` (importance sampling) or ``"dds"`` (learned from the density).
    denoiser
        A score that is known, in unconstrained coordinates (`GaussianScore`, `MixtureScore`), in place of all this.
    warmup
        The method that makes the draws; default `NUTS`. `SMC` finds separate modes where the prior covers them.
    num_draws
        Draws of each chain, or of all where ``warmup`` gives particles their own number.
    blend
        How the gradient of the log density enters what is learned: ``"auto"`` (the blend of least variance),
        a length in whitened units (0.2 means local scales of a fifth), or None: from draws alone.
    hidden
        Units of each hidden layer.
    num_steps, batch_size, learning_rate, clip
        Of the training.
    held_out
        Share of the draws that is held out to choose the parameters.
    patience
        Training steps without a lower loss held out after which training ends; None: never.
    whiten
        Whether draws are whitened by their mean and covariance.
    rho_max, rho_min
        Highest and lowest noise level, in whitened units; ``rho_min=None``: 0.03 times the smallest local scale.
    grid
        ``"edm"``, ``"log"``, or falling noise levels.
    solver
        A name of `solvers.SOLVERS` or a solver; ``"rk4"`` is best for densities.
    solver_steps
        Steps of the solver; None: doubled from 12 until log q of no draw changes by ``tolerance``, and 16 for
        ``"snis"``.
    tolerance
        In nats.
    dynamics
        ``"ode"``: draws with exact densities, by d forward derivatives of each step; ``"sde"``: draws of the stochastic
        partner with weights on path space, which need no derivative, for hundreds of dimensions and ``num_levels`` of
        about 200.
    num_particles, spread, num_moves, force
        Of ``"snis"``: draws of the reference at each call, its standard deviation in whitened units, steps of a
        Langevin chain in place of the weights (None: 20 where these degenerate, else 0; with ``dynamics="sde"`` alone,
        since chains have no derivative), and whether more than 20 dimensions are allowed.
    num_levels
        Steps of ``"dds"`` and of ``dynamics="sde"``.
    sigma
        Of ``"dds"``: standard deviation of where paths begin, in whitened units.

    Raises
    ------
    InvalidArgument
        A setting is out of range, the draws are of another dimension, more than 20 dimensions or too few effective
        draws for ``"snis"``.
    NonFinite
        The log density is not finite around the posterior, as where a support is missing; or the steps fold the map.

    References
    ----------
    Song et al. (2021), Score-based generative modeling through SDEs; Karras et al. (2022), Elucidating the design
    space; De Bortoli et al. (2024), Target score matching; Vargas et al. (2023), Denoising diffusion samplers.
    """

    from_draws: Any = eqx.field(default=None, converter=lambda given: frame.given_draws(given))
    score: str = eqx.field(static=True, default="amortised")
    denoiser: Any = None
    warmup: Any = None
    num_draws: int = eqx.field(static=True, default=1000)
    blend: Any = eqx.field(static=True, default="auto")
    hidden: tuple[int, ...] = eqx.field(static=True, default=(96, 96, 96), converter=lambda sizes: tuple(sizes))
    num_steps: Any = 4000
    batch_size: int = eqx.field(static=True, default=256)
    learning_rate: Any = 2e-3
    clip: Any = 10.0
    held_out: float = eqx.field(static=True, default=0.1)
    patience: Any = 2000
    whiten: bool = eqx.field(static=True, default=True)
    rho_max: float = 40.0
    rho_min: Any = None
    grid: Any = eqx.field(static=True, default="edm", converter=lambda grid: _levels_or_name(grid))
    solver: Any = eqx.field(static=True, default="rk4")
    solver_steps: int | None = eqx.field(static=True, default=None)
    tolerance: float = 0.02
    dynamics: str = eqx.field(static=True, default="ode")
    num_particles: int = eqx.field(static=True, default=256)
    spread: float = 1.5
    num_moves: int | None = eqx.field(static=True, default=None)
    force: bool = eqx.field(static=True, default=False)
    num_levels: int = eqx.field(static=True, default=64)
    sigma: float = 1.0
    prepared: Any = None

    kind: ClassVar = "approximation"
    exact: ClassVar = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    source: ClassVar[str] = "Song et al. 2021; Karras et al. 2022"

    def __check_init__(self) -> None:
        check_choice("score", self.score, SCORES)
        if self.denoiser is not None and not isinstance(self.denoiser, AbstractScore):
            raise InvalidArgument(f"denoiser must be an AbstractScore, got {self.denoiser!r}; see samplers.diffusion.")
        if self.from_draws is not None and self.warmup is not None:
            raise InvalidArgument(
                f"from_draws are given, of shape {np.shape(self.from_draws)}, and warmup={self.warmup!r} would make "
                f"others; give one of the two."
            )
        if self.warmup is not None and not isinstance(self.warmup, AbstractMethod):
            raise InvalidArgument(f"warmup must be a method that draws, as pushforward.NUTS(), got {self.warmup!r}.")
        if self.warmup is not None and self.warmup.kind == "approximation":
            raise InvalidArgument(
                f"warmup must be a sampler, got {type(self.warmup).__name__}; give a posterior of it as from_draws."
            )
        for name in ("num_draws", "num_steps", "batch_size", "num_particles", "num_levels"):
            check_count(name, getattr(self, name), 2)
        if self.blend is not None and self.blend != "auto":
            check_positive("blend", self.blend)
        for name in ("learning_rate", "clip", "rho_max", "tolerance", "spread", "sigma"):
            check_positive(name, getattr(self, name))
        for name in ("patience", "rho_min"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        check_fraction("held_out", self.held_out)
        if self.solver_steps is not None:
            check_count("solver_steps", self.solver_steps)
        check_choice("dynamics", self.dynamics, ("ode", "sde"))
        if self.num_moves is not None:
            check_nonnegative("num_moves", self.num_moves)
            if self.num_moves and self.dynamics == "ode":
                raise InvalidArgument(
                    f"num_moves={self.num_moves} with dynamics='ode': steps of a Metropolis chain have no derivative, "
                    f"and the draws would have no density; use dynamics='sde'."
                )
        if isinstance(self.grid, str):
            check_choice("grid", self.grid, tuple(GRIDS))
        else:
            check_grid(self.grid)
        if not isinstance(self.solver, AbstractSolver):
            check_choice("solver", self.solver, tuple(SOLVERS))
        self._trainer()

    # -- the run ------------------------------------------------------------------------------------------------------

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One: the training; a single empty step where there is nothing to train."""
        del budget
        return (Stage("train", self, self.num_steps if self._trained else 1),)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "ProbabilityFlow":
        """Make draws where none are given, whiten them, and look at the density around them."""
        key_draws, key_check, key_paths = jax.random.split(key, 3)
        facts: dict[str, Any] = {"num_evaluations": 0}
        draws = self.from_draws
        if draws is not None and draws.shape[1] != target.dim:
            raise InvalidArgument(
                f"from_draws have shape {draws.shape}, and the target has dimension {target.dim}; give them in "
                f"unconstrained coordinates, shape (n, {target.dim})."
            )
        if self._how == "snis" and target.dim > LARGEST_DIM and not self.force:
            raise InvalidArgument(
                f"score='snis' is for up to {LARGEST_DIM} dimensions, and the target has {target.dim}: the effective "
                f"draws vanish as their number grows. Use score='amortised', or force=True."
            )
        if draws is None and self._how == "amortised":
            draws, facts = frame.make_draws(key_draws, target, self._warmup(), self.num_draws)
        if self._how == "known":
            loc, scale = np.zeros(target.dim), np.eye(target.dim)
        elif draws is None:
            loc, scale = _found_frame(key_draws, target, start)
        else:
            loc, scale = frame.whitening(draws, self.whiten)
        if self._how != "known":
            frame.check_density(key_check, target, loc, scale)
        prepared = self._learnable(target, loc, scale, draws, facts)
        if self._how == "snis":
            prepared = self._look_at_weights(key_paths, target, prepared)
        return dataclasses.replace(self, prepared=jax.tree.map(jnp.asarray, prepared))

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> Any:
        """Networks that are zero: the denoiser of N(0, I), or no drift."""
        del start
        if not self._trained:
            return NoTraining(jnp.zeros((), jnp.int32))
        make = Drift.make if self._how == "dds" else NetScore.make
        params, rest = eqx.partition(make(key, target.dim, self.hidden), eqx.is_inexact_array)
        worst = jnp.asarray(jnp.inf, jax.tree.leaves(params)[0].dtype)
        zero = jnp.zeros((), jnp.int32)
        return ScoreState(self._trainer().init(params), rest, params, worst, zero, zero, worst)

    def step(self, key: PRNGKeyArray, state: Any, target: Target, t: Array) -> tuple[Any, ScoreInfo]:
        """One step of the optimiser, and now and then a look at the loss held out."""
        spent = jnp.where(t == 0, self.prepared.num_evaluations, 0).astype(int)
        if not self._trained:
            nothing = jnp.zeros(())
            info = ScoreInfo(nothing, nothing, nothing, nothing, jnp.zeros((), bool), spent)
            return NoTraining(state.steps + 1), info

        def objective(params: Any) -> Array:
            return self._objective(key, eqx.combine(params, state.rest), target)

        value, grads = jax.value_and_grad(objective)(state.train.params)
        trainer = self._trainer()
        train, info = trainer.update(state.train, value, grads, t)
        state = eqx.tree_at(lambda s: (s.train, s.count), state, (train, (t + 1).astype(jnp.int32)))
        if self._how == "dds":
            spent = spent + self.batch_size * (self.num_levels + 1)
        else:
            state = jax.lax.cond(
                (t + 1) % CHECK_EVERY == 0, lambda state: self._look(state), lambda state: state, state
            )
        shown = -trainer.reported(train, value)
        held_out = jnp.where(jnp.isfinite(state.held_loss), state.held_loss, 0)
        return state, ScoreInfo(shown, held_out, info.grad_norm, info.rate, info.skipped, spent)

    def done(self, state: Any) -> Bool[Array, ""] | bool:
        """Whether the loss held out has not fallen for long; of a DDS, whether its bound has stopped to rise."""
        if not self._trained:
            return state.steps > 0
        if self._how == "dds":
            return self._trainer().done(state.train)
        return False if self.patience is None else state.count - state.best_at > self.patience

    def merit(self, infos: ScoreInfo) -> dict[str, Array]:
        """The loss, and the one held out; of a DDS the bound."""
        if self._how == "dds":
            return {"elbo": -infos.loss.mean()}
        return {"loss": infos.loss.mean(), "held out": infos.held_out[..., -1].mean()}

    def result(self, state: Any, target: Target) -> Approximation:
        """The best restart, with as many solver steps as its densities need.

        Raises
        ------
        NonFinite
            Steps fold the map, however many there are, or no parameters had a finite loss.
        """
        if self._how == "dds":
            return self._sampler(state, target)
        score, learned = self._score_of(state, target)
        loc, scale = (jnp.asarray(x, float) for x in (self.prepared.loc, self.prepared.scale))
        if self.dynamics == "sde":
            local = jnp.clip(self.prepared.levels.lowest / frame.LOWEST, frame.SMALLEST, 1.0)
            grid = jnp.asarray(self._grid(self.num_levels, self.prepared), float)
            return PathApproximation(score, grid, loc, scale, local, learned)
        noisy = isinstance(score, SNISScore)
        noise, steps = (jax.random.key(0), NOISY_STEPS) if noisy else (None, FIRST_STEPS)
        return self._tuned(DiffusionApproximation(self._flow(score, steps), loc, scale, noise, learned))

    def remarks(self, state: Any, target: Target, result: Any) -> list[dict[str, Any]]:
        """Of the draws, the training, the solver's steps, the effective draws of a Monte Carlo score."""
        del target
        return findings.remarks(self, state, result)

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def _how(self) -> str:
        """Where the score comes from."""
        return self.score if self.denoiser is None else "known"

    @property
    def _trained(self) -> bool:
        return self._how in ("amortised", "dds")

    def _trainer(self) -> Trainer:
        tolerance = 0.01 if self._how == "dds" else None
        return Trainer(learning_rate=self.learning_rate, num_steps=self.num_steps, clip=self.clip, tolerance=tolerance)

    def _warmup(self) -> AbstractMethod:
        if self.warmup is not None:
            return self.warmup
        from ..hmc import NUTS

        return NUTS()

    def _learnable(self, target: Target, loc: Any, scale: Any, draws: Any, facts: dict[str, Any]) -> Prepared:
        """Whitened draws with their gradients, and the interval of levels."""
        learnable, fisher, spent = None, None, facts["num_evaluations"] + frame.PROBES
        if self._how == "amortised":
            points = np.linalg.solve(scale, (draws - loc).T).T
            found = None if self.blend is None else frame.gradients(target, loc, scale, draws)
            learnable = split_draws(points, found, self.blend, self.held_out, 0)
            if found is not None:
                fisher, spent = np.linalg.eigvalsh(found.T @ found / len(found)), spent + len(found)
        levels = frame.levels(self.rho_max, self.rho_min, fisher)
        quality = facts.get("r_hat", np.nan), facts.get("divergences", 0)
        return Prepared(loc, scale, levels, learnable, spent, *quality)

    def _look_at_weights(self, key: PRNGKeyArray, target: Target, prepared: Prepared) -> Prepared:
        """Median of the effective draws at each level; an error where there are next to none."""
        grid = self._grid(FIRST_STEPS, prepared)
        score = self._snis(target, prepared, 0)
        ess, _ = ess_by_level(score, key, jnp.asarray(grid, float))
        median = np.median(np.asarray(ess), axis=1)
        if not median.min() >= FEWEST:
            worst = int(np.argmin(median))
            raise InvalidArgument(
                f"score='snis' has a median of {median[worst]:.2g} effective draws of {self.num_particles} at the "
                f"noise level rho={grid[worst]:.3g}, fewer than {FEWEST:g}; raise num_particles or "
                f"spread={self.spread}, or use score='amortised'."
            )
        spent = prepared.num_evaluations + ess.size * 2 * self.num_particles
        return eqx.tree_at(lambda p: (p.ess, p.num_evaluations), prepared, (median, spent), is_leaf=lambda x: x is None)

    def _objective(self, key: PRNGKeyArray, net: Any, target: Target) -> Array:
        if self._how == "dds":
            return self._dds(net, target).bound(key, self.batch_size)
        return -training_loss(net, self.prepared.draws, self.prepared.levels, key, self.batch_size)

    def _look(self, state: ScoreState) -> ScoreState:
        """Keep the averaged parameters if their loss held out is the least so far."""
        average = state.train.average
        loss = held_out_loss(eqx.combine(average, state.rest), self.prepared.draws.held, self.prepared.levels)
        loss = loss.astype(state.best_loss.dtype)
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

    def _score_of(self, state: Any, target: Target) -> tuple[AbstractScore, Learned | None]:
        """The score in whitened coordinates, and what is known of its training."""
        if self._how == "known":
            return self.denoiser, None
        if self._how == "snis":
            return self._snis(target, self.prepared, self._moves()), None
        state = _looked_at(self, state)
        losses = np.asarray(state.best_loss)
        if not np.isfinite(losses).any():
            raise NonFinite(
                f"ProbabilityFlow: the losses held out are {losses}; lower learning_rate={self.learning_rate}."
            )
        chosen = int(np.nanargmin(losses))
        params = jax.tree.map(lambda x: jnp.asarray(x)[chosen].astype(float), state.best)
        score = eqx.combine(params, jax.tree.map(lambda x: x[chosen], state.rest))
        draws = self.prepared.draws
        seen = held_out_loss(score, draws.points[: len(draws.held)], self.prepared.levels)
        learned = Learned(
            jnp.asarray(losses, float), jnp.asarray(seen, float), jnp.asarray(state.best_at),
            jnp.asarray(state.train.skipped), jnp.asarray(chosen), jnp.asarray(jnp.nan, float),
        )  # fmt: skip
        return score, learned

    def _snis(self, target: Target, prepared: Prepared, moves: int) -> SNISScore:
        loc, scale = (jnp.asarray(x, float) for x in (prepared.loc, prepared.scale))
        return SNISScore(target, loc, scale, jax.random.key(0), self.spread, self.num_particles, False, moves)

    def _moves(self) -> int:
        """Steps of the Langevin chains; none for the ODE."""
        if self.num_moves is not None or self.dynamics == "ode":
            return self.num_moves or 0
        return MOVES if np.min(np.asarray(self.prepared.ess)) < DEGENERATE * self.num_particles else 0

    def _sampler(self, state: ScoreState, target: Target) -> DenoisingSampler:
        """The restart with the largest bound, at its averaged parameters."""
        key, found = jax.random.key(0), []
        for i in range(len(state.train.skipped)):
            params = jax.tree.map(lambda x, i=i: jnp.asarray(x)[i], state.train.average)
            sampler = self._dds(eqx.combine(params, jax.tree.map(lambda x, i=i: x[i], state.rest)), target)
            found.append((float(_bound(sampler, key)), sampler))
        return max(found, key=lambda pair: pair[0])[1]

    def _dds(self, drift: Drift, target: Target) -> DenoisingSampler:
        loc, scale = (jnp.asarray(x, float) for x in (self.prepared.loc, self.prepared.scale))
        drift = jax.tree.map(lambda x: x.astype(float), drift)
        return DenoisingSampler(
            drift, target, loc, scale, jnp.asarray(cosine_steps(self.num_levels)), jnp.asarray(self.sigma, float)
        )

    def _grid(self, steps: int, prepared: Prepared) -> np.ndarray:
        if not isinstance(self.grid, str):
            return np.asarray(self.grid, float)
        lowest, highest = float(prepared.levels.lowest), float(prepared.levels.highest)
        return GRIDS[self.grid](highest, lowest, steps)

    def _flow(self, score: AbstractScore, steps: int) -> DiscreteFlow:
        solver = SOLVERS[self.solver]() if isinstance(self.solver, str) else self.solver
        flow = DiscreteFlow.make(score, self._grid(self.solver_steps or steps, self.prepared), solver)
        return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, flow)

    def _tuned(self, q: DiffusionApproximation) -> DiffusionApproximation:
        """With the fewest steps whose densities do not change when there are twice as many; folds are refused."""
        z = jax.random.normal(jax.random.key(1), (TUNING_DRAWS, len(q.loc)))
        fixed = self.solver_steps is not None or not isinstance(self.grid, str) or q.noise is not None
        steps, (log_q, folds) = FIRST_STEPS, probe(q, z)
        change = np.nan
        while not fixed and steps < MOST_STEPS:
            finer = eqx.tree_at(lambda q: q.flow, q, self._flow(q.flow.score, 2 * steps))
            more_log_q, more_folds = probe(finer, z)
            change = float(jnp.max(jnp.abs(log_q - more_log_q)))
            if change < self.tolerance and not folds:
                break
            q, steps, log_q, folds = finer, 2 * steps, more_log_q, more_folds
        if folds or not bool(jnp.all(jnp.isfinite(log_q))):
            bad = f"{int(folds)} steps of {TUNING_DRAWS} draws fold the map" if folds else "a density is not finite"
            raise NonFinite(
                f"ProbabilityFlow: with {len(q.flow.grid) - 1} steps of {type(q.flow.solver).__name__} {bad}, so that "
                f"there is no density: too few steps; raise solver_steps, or "
                f"rho_min={float(self.prepared.levels.lowest):.2g}."
            )
        if q.learned is None:
            return q
        return eqx.tree_at(lambda q: q.learned.tuning, q, jnp.asarray(change))


def _levels_or_name(grid: Any) -> Any:
    """Levels as a tuple, which can be compared."""
    return grid if isinstance(grid, str) else tuple(float(rho) for rho in np.ravel(np.asarray(grid)))


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


def _looked_at(method: ProbabilityFlow, state: ScoreState) -> ScoreState:
    """With a look at the last parameters too, which may have had none."""
    return jax.vmap(lambda state: method._look(state))(jax.tree.map(jnp.asarray, state))
