"""`NormalizingFlow`: variational inference with a flow (Rezende & Mohamed 2015), trained by stochastic gradients.

Each step draws z ~ N(0, I), pushes it to u = T_φ(z) and moves φ up an objective of the log weights log π(u) − log q(u):
by default the ELBO, with path gradients, whose noise vanishes as q approaches the posterior (Roeder et al. 2017; Vaitl
et al. 2024). A step costs ``num_draws`` gradients of log π and as many passes forward and back through the flow; none
of the draws is kept.

A flow begins as the normal of a Pathfinder path: its layers are the identity, its last map whitens. In the first part
of a run log π is multiplied by a temperature that rises to 1, so that q covers what is far apart before it settles.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from ...errors import InvalidArgument
from ...method import AbstractMethod, Budget, Stage
from ...run.start import Warm
from ...target import Target
from ...train import Trainer, TrainState, choose
from ...validate import check_choice, check_count, check_fraction, check_nonnegative, check_positive
from ..estimators import DReG, Estimator, FastPath, FixedDraws, check, split
from ..gaussian.findings import check_curvature
from ..objectives import ELBO, ForwardKL, Objective, as_objective
from .bijection import Chain, Foreign
from .families import NO_INVERSE, Shape, build, check_dim, check_family
from .findings import remarks
from .flow import ITERATES, Flow, Training
from .start import WHITENINGS, whitening

FINAL_DRAWS = 2000
FIRST_TEMPERATURE = 0.05
HELD_OUT = 0.1
MAX_BROKEN = 0.01


class FlowState(eqx.Module):
    """State of the training of a flow.

    Parameters
    ----------
    train
        Parameters, optimiser, averages.
    rest
        What of the flow is not trained: permutations and the whitening.
    """

    train: TrainState
    rest: Any


class FlowInfo(NamedTuple):
    """What is known of a step; the loss is minus the objective.

    ``elbo`` and ``elbo_error`` are the mean of the log weights and its standard error (at the present temperature);
    ``variance_…`` the trace of the gradient's covariance, by block of parameters, from the two halves of the draws.
    """

    loss: Array
    elbo: Array
    elbo_error: Array
    temperature: Array
    grad_norm: Array
    variance_location: Array
    variance_scale: Array
    variance_layers: Array
    rate: Array
    skipped: Array
    num_evaluations: Array


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
    draws
        Draws of the posterior, in unconstrained coordinates and of shape (n, d), or a `Posterior`, to which the flow is
        fitted by forward KL: gives draws made by MCMC a density and an evidence. A tenth is held out to choose the
        iterate that is returned. Stands in place of ``objective``.
    num_draws
        Draws per step.
    num_steps
        Steps, at most: training ends where a further quarter of them would gain less than ``plateau`` nats.
    learning_rate
        Of Adam; falls along a cosine to 2 %.
    anneal
        Share of the steps in which the temperature rises from 0.05 to 1; 0 for none.
    clip
        Longest gradient.
    plateau
        In nats; None: never stop early.
    whiten
        ``"pathfinder"``, ``"laplace"`` or None (unit scale at the start).
    optimizer
        An optax optimiser in place of Adam. Reuse the same object: a new one compiles anew.

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
    optimizer: Any = eqx.field(static=True, default=None)

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
        last = self._from_draws() if self.draws is not None else whitening(key_path, target, u, self.whiten)
        params, rest = split(Flow(Chain((*flow.bijections, last))))
        return FlowState(self._trainer().init(params), rest)

    def step(self, key: PRNGKeyArray, state: FlowState, target: Target, t: Array) -> tuple[FlowState, FlowInfo]:
        """One step of the optimiser."""
        q, trainer, objective = eqx.combine(state.train.params, state.rest), self._trainer(), self._objective()
        temperature, annealing = self._temperature(t)

        def log_density(u: Array) -> Array:
            return temperature * target.log_density(u)

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
        return FlowState(train, state.rest), FlowInfo(
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

    def remarks(self, state: FlowState, target: Target) -> list[dict[str, Any]]:
        """Whether training had ended, what was skipped, and whether the restarts agree."""
        q = self.result(state, target)
        best = int(q.training.chosen)
        last = jax.tree.map(lambda x: jnp.asarray(x[best]), state.rest).bijection.bijections[-1]
        _, scale = last._fixed()
        return remarks(
            q.training,
            _final_draws(q)[0],
            scale if scale.ndim == 1 else jnp.sqrt(jnp.sum(scale**2, axis=1)),
            float(state.train.plateau.gain[best]),
            self.plateau,
            int(self.num_steps),
        )

    def result(self, state: FlowState, target: Target) -> Flow:
        """The best restart, at the best of its last, averaged and best parameters, by fresh draws."""
        state = jax.tree.map(jnp.asarray, state)
        num_restarts = state.train.skipped.shape[0]
        flows, names, values = [], [], []
        for i in range(num_restarts):
            one = jax.tree.map(lambda x, i=i: x[i], state)
            params, name, value = choose(one.train, lambda p, rest=one.rest: self._judge(eqx.combine(p, rest), target))
            flows.append(eqx.combine(params, one.rest))
            names.append(name)
            values.append(value)
        best = int(np.argmax(values))
        moments = [jnp.mean(_final_draws(flow)[0], axis=0) for flow in flows] if num_restarts > 1 else []
        training = Training(
            values=jnp.asarray(values), means=jnp.stack(moments) if moments else None, skipped=state.train.skipped,
            chosen=jnp.asarray(best), parameters=jnp.asarray(ITERATES.index(names[best])),
        )  # fmt: skip
        return Flow(flows[best].bijection, training)

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
        if self.estimator is not None:
            return self.estimator
        objective = self._objective()
        if objective.sampling == "given":
            return FixedDraws()
        if objective.sampling == "fixed":
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

    def _judge(self, q: Flow, target: Target) -> Array:
        """What decides between iterates: the ELBO by fresh draws, or the likelihood of the draws held out."""
        if self.draws is not None:
            return _mean_log_prob(q, jnp.asarray(self.draws[: held_out(len(self.draws))], float))
        u, log_q = _final_draws(q)
        return _mean_of_finite(_log_densities(target, u) - log_q)

    def _from_draws(self) -> Any:
        """Whitening by the moments of the draws."""
        from .linear import Whitening

        draws = jnp.asarray(self.draws, float)
        dim = draws.shape[1]
        covariance = jnp.atleast_2d(jnp.cov(draws, rowvar=False))
        small = 1e-6 * jnp.diag(jnp.diag(covariance))  # where there are fewer draws than dimensions
        return Whitening.make(draws.mean(0), jnp.linalg.cholesky(covariance * (1 - 1e-6) + small).reshape(dim, dim))


BLOCKS = ("location", "scale", "layers")


def block_sums(tree: Any, dtype: Any) -> dict[str, Array]:
    """Sums of a flow's leaves by block: location and scale of the affine map, everything else."""
    chain = tree.bijection.bijections
    *layers, affine, _ = chain
    scale = [affine.diagonal] + ([] if affine.lower is None else [affine.lower])
    total = lambda leaves: sum(jax.tree.leaves(leaves), jnp.zeros((), dtype))  # noqa: E731
    sums = (total(affine.loc), total(scale), total(layers))
    return {f"variance_{name}": value for name, value in zip(BLOCKS, sums, strict=True)}


def given_draws(given: Any) -> Any:
    """Draws as an array (n, d), from an array or a `Posterior`."""
    if given is None:
        return None
    if hasattr(given, "unconstrained"):
        given = given.unconstrained()
        given = given.reshape(-1, given.shape[-1])
    draws = np.asarray(given)
    if draws.ndim != 2 or len(draws) < 20:
        raise InvalidArgument(
            f"draws must be a Posterior or an array of shape (n, d) with n >= 20, got shape {draws.shape}."
        )
    if not np.isfinite(draws).all():
        raise InvalidArgument(f"draws has {int((~np.isfinite(draws)).sum())} values that are not finite.")
    # In an order of its own, so that what is held out is from all chains and times.
    return draws[np.random.default_rng(0).permutation(len(draws))]


def held_out(n: int) -> int:
    """How many of ``n`` draws are held out."""
    return max(1, round(HELD_OUT * n))


@jax.jit
def _final_draws(q: Flow) -> tuple[Array, Array]:
    return q.sample_and_log_prob(jax.random.key(0), FINAL_DRAWS)


@jax.jit
def _mean_of_finite(log_w: Array) -> Array:
    """Their mean, as long as no more than a hundredth is not finite; else NaN."""
    finite = jnp.isfinite(log_w)
    mean = jnp.sum(jnp.where(finite, log_w, 0)) / jnp.maximum(finite.sum(), 1)
    return jnp.where(jnp.mean(finite) >= 1 - MAX_BROKEN, mean, jnp.nan)


@jax.jit
def _log_densities(target: Target, u: Array) -> Array:
    return jax.vmap(target.log_density)(u)


@jax.jit
def _mean_log_prob(q: Flow, u: Array) -> Array:
    return jnp.mean(jax.vmap(q.log_prob)(u))
