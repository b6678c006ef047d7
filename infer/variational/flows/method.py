"""`NormalizingFlow`: variational inference with a flow (Rezende & Mohamed 2015), trained by stochastic gradients.

Each step draws z ~ N(0, I), pushes it to u = T_φ(z) and moves φ up an objective of the log weights log π(u) − log q(u):
by default the ELBO, with path gradients, whose noise vanishes as q approaches the posterior (Roeder et al. 2017; Vaitl
et al. 2024). A step costs ``num_draws`` gradients of log π and as many passes forward and back through the flow; none
of the draws is kept.

A flow begins as the normal of Pathfinder paths: its layers are the identity, its last map whitens. In the first part
of a run log π is multiplied by a temperature that rises to 1, so that q covers what is far apart before it settles.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from ...distributed.rows import after
from ...errors import InvalidArgument
from ...method import AbstractMethod, Budget, Stage
from ...run.fit import HINTS
from ...run.start import Warm
from ...target import Target
from ...target.on_batch import on_batch
from ...train import Trainer
from ...validate import check_choice, check_count, check_fraction, check_nonnegative, check_positive
from ..curvature import check_curvature
from ..estimators import DReG, Estimator, FastPath, FixedDraws, StickingTheLanding, check, split
from ..mode import anchor_near
from ..objectives import ELBO, ForwardKL, Objective, as_objective
from .bijection import Chain
from .draws import given_draws, held_out, whitening_of
from .families import NO_INVERSE, SEQUENTIAL_INVERSE, Shape, build, check_dim, check_family
from .findings import remarks
from .flow import Flow
from .foreign import Foreign
from .judge import best_flow, broken_draw, seen_gap
from .start import WHITENINGS, first_width, whitening
from .state import BLOCKS, FlowInfo, FlowState, block_sums

FIRST_TEMPERATURE = 0.05


class NormalizingFlow(AbstractMethod):
    """A normalizing flow fitted to the posterior; each chain is a restart, of which the one of largest ELBO is kept.

    Parameters
    ----------
    family
        ``"spline-coupling"``, ``"realnvp"``, ``"nice"``, ``"iaf"``, ``"spline-iaf"``, ``"maf"``, ``"spline-maf"``,
        ``"planar"``, ``"radial"``, ``"bnaf"``, ``"continuous"`` or ``"spline"`` (each coordinate by itself).
    bijection
        A bijection of flowjax, or of its interface, from z to u, in place of a family.
    num_layers, hidden, activation, num_bins, bound, scale_limit, mixing, tolerance
        Shape of the family, see `families.Shape`. None: chosen from family and dimension.
    objective
        An `Objective`, or a function of log weights, that is maximised; default the ELBO with ``num_draws`` draws.
    estimator
        Of its gradient; default `FastPath` (path gradients without an inverse) for the ELBO, else what suits.
        `StickingTheLanding` is the same gradient by a second pass through the inverse; where that goes coordinate by
        coordinate (``"iaf"``, ``"spline-iaf"``) it is computed as `FastPath` computes it.
    draws
        Draws of the posterior, in unconstrained coordinates and of shape (n, d), or a `Posterior`, to which the flow is
        fitted by forward KL: gives draws made by MCMC a density and an evidence. A tenth is held out to choose the
        iterate that is returned. Stands in place of ``objective``.
    num_draws
        Draws per step.
    num_steps
        Steps, at most: training ends where a further quarter of them would gain less than ``plateau`` nats.
    learning_rate
        Of Adam; falls along a cosine to 2 %. Planar and radial layers, which have no networks, take 0.01 to 0.02.
    anneal
        Share of the steps in which the temperature rises from 0.05 to 1; 0 for none.
    clip
        Longest gradient.
    plateau
        In nats; None: never stop early.
    whiten
        ``"pathfinder"``, ``"laplace"`` or None (unit scale at the start).
    width
        How many times as wide as that normal the flow begins (in short runs less). About 3 for curved posteriors, which
        reach much further than the normal at a mode; it takes more steps elsewhere.
    optimizer
        An optax optimiser in place of Adam. Reuse the same object: a new one compiles anew.
    batch_size, control_variates
        Mini-batches of so many observations per step, as in `FBGVI`.

    Raises
    ------
    InvalidArgument
        A setting is out of range, the objective and the estimator do not fit, or d = 1 for a coupling family.
    NonFinite
        The objective was not finite for many steps in a row.

    References
    ----------
    Rezende & Mohamed (2015), Variational inference with normalizing flows; Vaitl, Winkler, Richter & Kessel (2024),
    Fast and unified path gradient estimators for normalizing flows.
    """

    family: str = eqx.field(static=True, default="spline-coupling")
    bijection: Any = eqx.field(default=None, converter=lambda b: None if b is None else Foreign.wrap(b))
    num_layers: int | None = eqx.field(static=True, default=None)
    hidden: Any = eqx.field(static=True, default=None, converter=lambda sizes: None if sizes is None else tuple(sizes))
    activation: str = eqx.field(static=True, default="silu")
    num_bins: int = eqx.field(static=True, default=8)
    bound: float = eqx.field(static=True, default=5.0)
    scale_limit: float = eqx.field(static=True, default=3.0)
    mixing: str | None = eqx.field(static=True, default=None)
    tolerance: float = eqx.field(static=True, default=1e-5)
    objective: Any = eqx.field(default=None, converter=lambda given: None if given is None else as_objective(given))
    estimator: Any = None
    draws: Any = eqx.field(default=None, converter=lambda given: given_draws(given))
    num_draws: int = eqx.field(static=True, default=64)
    num_steps: Any = 4000
    learning_rate: Any = 2e-3
    anneal: Any = 0.25
    clip: Any = 10.0
    plateau: Any = 0.01
    whiten: str | None = eqx.field(static=True, default="pathfinder")
    width: Any = 1.0
    optimizer: Any = eqx.field(static=True, default=None)
    batch_size: int | None = eqx.field(static=True, default=None)
    control_variates: bool = eqx.field(static=True, default=True)

    kind: ClassVar = "approximation"
    exact: ClassVar = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    source: ClassVar[str] = "Rezende & Mohamed 2015; Durkan et al. 2019; Vaitl et al. 2024"

    def __check_init__(self) -> None:
        check_family(self.family, self._shape())
        check_count("num_draws", self.num_draws, 2)
        check_count("num_steps", self.num_steps)
        check_positive("learning_rate", self.learning_rate)
        check_nonnegative("anneal", self.anneal)
        if self.anneal:
            check_fraction("anneal", self.anneal)
        if self.whiten is not None:
            check_choice("whiten", self.whiten, WHITENINGS)
        check_positive("width", self.width)
        if self.estimator is not None and not isinstance(self.estimator, Estimator):
            raise InvalidArgument(f"estimator must be one of infer.variational.estimators, got {self.estimator!r}.")
        if self.objective is not None and self.draws is not None:
            raise InvalidArgument(
                f"draws are for the forward KL and objective is {self.objective!r}; give one of the two."
            )
        if self.draws is not None and self.bijection is None and self.family in NO_INVERSE:
            raise InvalidArgument(
                f"family={self.family!r} has no inverse, so that no density can be fitted to draws; use a coupling, "
                f"autoregressive or spline family."
            )
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        if self.batch_size is not None and self.draws is not None:
            raise InvalidArgument(
                f"batch_size={self.batch_size} is of the observations, which a fit to draws does not look at; leave it "
                f"out."
            )
        self._trainer()
        check(self._objective(), self._estimator())

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One: the optimisation."""
        del budget
        return (Stage("optimise", self, self.num_steps),)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "NormalizingFlow":
        """Checks of family, draws and target against each other; the whitening is of each restart its own.

        Raises
        ------
        InvalidArgument
            They do not fit, or the log density curves upwards wherever it was tried, as one of flipped sign does.
        """
        if self.batch_size is not None:
            target.require(f"{type(self).__name__}(batch_size={self.batch_size})", ("factors",), HINTS)
        if self.bijection is None:
            check_dim(self.family, target.dim)
        if self.draws is not None and self.draws.shape[1] != target.dim:
            raise InvalidArgument(
                f"draws have shape {self.draws.shape}, and the target has dimension {target.dim}; give them in "
                f"unconstrained coordinates, shape (n, {target.dim})."
            )
        if self.draws is None:
            check_curvature(key, target, start, np.ones(target.dim))
        return self

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> FlowState:
        """Layers near the identity, whitened by the normal of a path from the start."""
        key_layers, key_path = jax.random.split(key)
        u = start.u if isinstance(start, Warm) else start
        family = self.family if self.bijection is None else self.bijection
        flow = build(key_layers, family, target.dim, self._shape())
        if self.draws is None:
            wider = first_width(self.width, self.num_steps, self.learning_rate)
            last = whitening(key_path, target, u, self.whiten, wider)
        else:
            last = whitening_of(self.draws)
        params, rest = split(Flow(Chain((*flow.bijections, last))))
        anchor = None
        if self.batch_size is not None and self.control_variates:
            anchor = anchor_near(target, after(u, last.standard_deviations()))
        return FlowState(self._trainer().init(params), rest, anchor)

    def step(self, key: PRNGKeyArray, state: FlowState, target: Target, t: Array) -> tuple[FlowState, FlowInfo]:
        """One step of the optimiser."""
        q, trainer, objective = eqx.combine(state.train.params, state.rest), self._trainer(), self._objective()
        temperature, annealing = self._temperature(t)

        seen = on_batch(target, key, t, self.batch_size, state.anchor)

        def log_density(u: Array) -> Array:
            return temperature * seen.log_density(u)

        value, log_w, grads, variances = self._gradient(objective, q, log_density, key)
        train, info = trainer.update(state.train, value, grads, t)
        # While the temperature rises the objective changes under the trace: what it says of progress is forgotten.
        fresh = trainer.init(train.params)
        forget = lambda s: (s.average, s.best_value, s.window_sum, s.window_count, s.plateau)  # noqa: E731
        reset = jax.tree.map(lambda new, old: jnp.where(annealing, new, old), forget(fresh), forget(train))
        train = eqx.tree_at(forget, train, reset)
        spread = jnp.std(log_w) / jnp.sqrt(log_w.size)
        # Of a skipped step the record has what its finite draws say, until too many were skipped in a row.
        finite = jnp.isfinite(log_w)
        of_finite = jnp.sum(jnp.where(finite, log_w, 0)) / jnp.maximum(finite.sum(), 1)
        broken = ~jnp.isfinite(value) & (train.bad < trainer.max_bad)
        return FlowState(train, state.rest, state.anchor), FlowInfo(
            loss=-jnp.where(broken, of_finite, value),
            elbo=jnp.mean(log_w),
            elbo_error=spread,
            temperature=jnp.asarray(temperature, value.dtype),
            grad_norm=info.grad_norm,
            **variances,
            rate=info.rate,
            skipped=info.skipped,
            num_evaluations=jnp.asarray(log_w.size, int),
        )

    def done(self, state: FlowState) -> Bool[Array, ""] | bool:
        """Whether the objective has stopped to improve."""
        return self._trainer().done(state.train)

    def broken(self, state: FlowState, target: Target) -> str:
        """A draw at which the log density is not finite."""
        return broken_draw(eqx.combine(state.train.params, state.rest), target) if self.draws is None else ""

    def remarks(self, state: FlowState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Whether training had ended, what was skipped, and whether the restarts agree."""
        gain = float(state.train.plateau.gain[int(result.training.chosen)])
        gap = seen_gap(result, target) if self.draws is None else np.inf
        return remarks(result, gain, gap, self.plateau, int(self.num_steps))

    def result(self, state: FlowState, target: Target) -> Flow:
        """The best restart, at the best of its last, averaged and best parameters, by fresh draws."""
        held = None if self.draws is None else self.draws[: held_out(len(self.draws))]
        return best_flow(state, target, held)

    def merit(self, infos: FlowInfo) -> dict[str, Array]:
        """The objective."""
        return {"elbo" if self.draws is None else "log_q": -infos.loss.mean()}

    # -- parts --------------------------------------------------------------------------------------------------------

    def _shape(self) -> Shape:
        return Shape(*(getattr(self, name) for name in Shape._fields))

    def _trainer(self) -> Trainer:
        return Trainer(
            learning_rate=self.learning_rate, num_steps=self.num_steps, clip=self.clip, tolerance=self.plateau,
            optimizer=self.optimizer,
        )  # fmt: skip

    def _objective(self) -> Objective:
        if self.draws is not None:
            return ForwardKL(self.draws[held_out(len(self.draws)) :], num_draws=self.num_draws)
        return ELBO(num_draws=self.num_draws) if self.objective is None else self.objective

    def _estimator(self) -> Estimator:
        if isinstance(self.estimator, StickingTheLanding) and self.family in SEQUENTIAL_INVERSE and not self.bijection:
            return FastPath()
        if self.estimator is not None:
            return self.estimator
        objective = self._objective()
        if objective.sampling in ("given", "fixed"):
            return FixedDraws()
        return FastPath() if objective.linear else DReG()

    def _gradient(self, objective: Objective, q: Flow, log_density: Any, key: PRNGKeyArray) -> tuple:
        """Value, log weights, gradient, and its variance by block: from two halves of the draws where they can be."""
        estimator, (m, _) = self._estimator(), objective.shape
        if m % 2:
            value, log_w, grads = estimator.value_and_grad(objective, q, log_density, key)
            nothing = jnp.full((), jnp.nan, value.dtype)
            return value, log_w, grads, {f"variance_{name}": nothing for name in BLOCKS}
        value, log_w, halves = jax.vmap(
            lambda k: tuple(estimator.value_and_grad(objective, q, log_density, k, m // 2))
        )(jax.random.split(key))
        grads = jax.tree.map(lambda g: jnp.mean(g, axis=0), halves)
        # Var of the mean of two is a quarter of the squared difference, in expectation.
        square = jax.tree.map(lambda g: jnp.sum((g[0] - g[1]) ** 2) / 4, halves)
        return jnp.mean(value), log_w, grads, block_sums(square, value.dtype)

    def _temperature(self, t: Array) -> tuple[Any, Any]:
        """The temperature of step ``t``, and whether it still rises."""
        if self.draws is not None:
            return 1.0, False
        progress = t / jnp.maximum(self.anneal * self.num_steps, 1e-9)
        rising = FIRST_TEMPERATURE + (1 - FIRST_TEMPERATURE) * progress
        annealing = (progress < 1) & (jnp.asarray(self.anneal) > 0)
        return jnp.where(annealing, rising, 1.0), annealing
