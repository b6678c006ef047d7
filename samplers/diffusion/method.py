"""`ProbabilityFlow`: the posterior as the end of a diffusion's probability-flow ODE, with exact densities and evidence.

In whitened coordinates the ODE dy/dρ = (y − D(y, ρ))/ρ leads from N(0, (1 + ρ²) I) at a high noise level to the
posterior at a low one ([1]_; see `scores`). Its denoiser D is

- learned from draws (``"amortised"``): of a posterior given, or of a short NUTS run; a network by denoising score
  matching, with the gradient of the log density blended in (`training`);
- computed by importance sampling at each step, without training (``"snis"``, up to 20 dimensions);
- or known: any `AbstractScore` in unconstrained coordinates.

With ``"reflected"`` the noise is folded back at the faces of a cube in place of whitened coordinates (`reflected`).

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
from ...infer.errors import InvalidArgument
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.target import Target
from ...infer.train import Trainer
from ...infer.validate import check_choice, check_count, check_fraction, check_nonnegative, check_positive
from . import findings, frame
from .density import check_grid
from .origins import ORIGINS, AbstractOrigin, Amortised, Denoising, Given, Known
from .schedules import edm_grid, log_grid
from .scores import AbstractScore
from .solvers import SOLVERS, AbstractSolver
from .training import Levels, ScoreState

GRIDS = {"edm": edm_grid, "log": log_grid}
CHECK_EVERY = 100
"""Steps between looks at the loss held out."""


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
        ``"amortised"`` (learned from draws), ``"snis"`` (importance sampling), ``"dds"`` (learned from the density) or
        ``"reflected"`` (learned from draws on the cube, for sites between two bounds whose density does not fall off
        there).
    denoiser
        A score that is known, in unconstrained coordinates (`GaussianScore`, `MixtureScore`), in place of all this.
    warmup
        The method that makes the draws; default `NUTS`. `SMC` finds separate modes where the prior covers them.
    num_draws
        Draws of each chain, or of all where ``warmup`` gives particles their own number.
    blend
        How the gradient of the log density enters what is learned: ``"auto"`` (the blend of least variance),
        a length in whitened units (0.2 means local scales of a fifth), or None: from draws alone, as ``"reflected"``
        always is.
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
        Highest and lowest noise level, in whitened units; ``rho_min=None``: 0.03 times the smallest local scale. On
        the cube at most 2, where densities are uniform, and 0.01.
    grid
        ``"edm"``, ``"log"``, or falling noise levels.
    solver
        A name of `solvers.SOLVERS` or a solver; ``"rk4"`` is best for densities.
    solver_steps
        Steps of the solver; None: doubled from 12 until log q of no draw changes by ``tolerance``, and 16 for
        ``"snis"``.
    tolerance
        In nats.
    overdispersion
        Factor on the standard deviation of what the ODE begins with, 1 + 0.04 / √d by default where the score is
        learned from draws: a network's tails are as often too light as too heavy, and weights have a tail where they
        are too light. It costs about 0.3 % of the effective draws. Not for ``dynamics="sde"`` nor ``"reflected"``.
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
    overdispersion: Any = None
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
        check_choice("score", self.score, tuple(ORIGINS))
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
        for name in ("patience", "rho_min", "overdispersion"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        check_fraction("held_out", self.held_out)
        if self.solver_steps is not None:
            check_count("solver_steps", self.solver_steps)
        check_choice("dynamics", self.dynamics, ("ode", "sde"))
        if self.dynamics == "sde" and self.score == "reflected":
            raise InvalidArgument(
                f"dynamics={self.dynamics!r} has no paths on the cube; use it with score='amortised'."
            )
        if self.overdispersion is not None and (self.dynamics == "sde" or self.score == "reflected"):
            raise InvalidArgument(
                f"overdispersion={self.overdispersion} has no effect with score={self.score!r} and "
                f"dynamics={self.dynamics!r}; leave it out."
            )
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
        draws = self.from_draws
        if draws is not None and draws.shape[1] != target.dim:
            raise InvalidArgument(
                f"from_draws have shape {draws.shape}, and the target has dimension {target.dim}; give them in "
                f"unconstrained coordinates, shape (n, {target.dim})."
            )
        self._origin.check(self, target)
        spent, quality = 0, (np.nan, 0)
        if draws is None and self._origin.of_draws:
            draws, spent, quality = frame.make_draws(key_draws, target, self._warmup(), self.num_draws)
        given = Given(target, start, draws, spent, quality, key_draws, key_check, key_paths)
        prepared = self._origin.prepare(self, given)
        return dataclasses.replace(self, prepared=jax.tree.map(jnp.asarray, prepared))

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> Any:
        """Networks that are zero: the denoiser of N(0, I), or no drift."""
        del start
        if not self._trained:
            return NoTraining(jnp.zeros((), jnp.int32))
        params, rest = eqx.partition(self._origin.network(self, key, target.dim), eqx.is_inexact_array)
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
            return -self._origin.loss(self, key, eqx.combine(params, state.rest), target)

        value, grads = jax.value_and_grad(objective)(state.train.params)
        trainer = self._trainer()
        train, info = trainer.update(state.train, value, grads, t)
        state = eqx.tree_at(lambda s: (s.train, s.count), state, (train, (t + 1).astype(jnp.int32)))
        origin = self._origin
        if isinstance(origin, Amortised):
            look = (t + 1) % CHECK_EVERY == 0
            state = jax.lax.cond(look, lambda state: origin.looked(self, state), lambda state: state, state)
        else:
            spent = spent + self.batch_size * (self.num_levels + 1)
        shown = -trainer.reported(train, value)
        held_out = jnp.where(jnp.isfinite(state.held_loss), state.held_loss, 0)
        return state, ScoreInfo(shown, held_out, info.grad_norm, info.rate, info.skipped, spent)

    def done(self, state: Any) -> Bool[Array, ""] | bool:
        """Whether the loss held out has not fallen for long; of a DDS, whether its bound has stopped to rise."""
        if not self._trained:
            return state.steps > 0
        if self._stochastic:
            return self._trainer().done(state.train)
        return False if self.patience is None else state.count - state.best_at > self.patience

    def merit(self, infos: ScoreInfo) -> dict[str, Array]:
        """The loss, and the one held out; of a DDS the bound."""
        if self._stochastic:
            return {"elbo": -infos.loss.mean()}
        return {"loss": infos.loss.mean(), "held out": infos.held_out[..., -1].mean()}

    def result(self, state: Any, target: Target) -> Approximation:
        """The best restart, with as many solver steps as its densities need.

        Raises
        ------
        NonFinite
            Steps fold the map, however many there are, or no parameters had a finite loss.
        """
        return self._origin.result(self, state, target)

    def remarks(self, state: Any, target: Target, result: Any) -> list[dict[str, Any]]:
        """Of the draws, the training, the solver's steps, the effective draws of a Monte Carlo score."""
        del target
        return findings.remarks(self, state, result)

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def _origin(self) -> AbstractOrigin:
        """Where the score comes from."""
        return ORIGINS[self.score] if self.denoiser is None else Known()

    @property
    def _trained(self) -> bool:
        return self._origin.trained

    @property
    def _stochastic(self) -> bool:
        """Whether there is a bound to raise, and no draw to hold out."""
        return isinstance(self._origin, Denoising)

    def _trainer(self) -> Trainer:
        tolerance = 0.01 if self._stochastic else None
        return Trainer(learning_rate=self.learning_rate, num_steps=self.num_steps, clip=self.clip, tolerance=tolerance)

    def _warmup(self) -> AbstractMethod:
        if self.warmup is not None:
            return self.warmup
        from ..hmc import NUTS

        return NUTS()

    def grid_of(self, levels: Levels, steps: int) -> np.ndarray:
        """Falling noise levels of so many steps, or those that were given."""
        if not isinstance(self.grid, str):
            return np.asarray(self.grid, float)
        return GRIDS[self.grid](float(levels.highest), float(levels.lowest), steps)

    def solver_of(self) -> AbstractSolver:
        """The solver, by name or as it was given."""
        return SOLVERS[self.solver]() if isinstance(self.solver, str) else self.solver


def _levels_or_name(grid: Any) -> Any:
    """Levels as a tuple, which can be compared."""
    return grid if isinstance(grid, str) else tuple(float(rho) for rho in np.ravel(np.asarray(grid)))
