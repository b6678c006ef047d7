"""`Amortised`: a posterior learned from simulations, for any data; its training and its calibration."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..infer import evaluate
from ..infer.errors import InvalidArgument, NonFinite
from ..infer.posterior import Posterior
from ..infer.run.plan import read_key
from ..infer.run.precision import precision
from ..infer.train import Trainer
from ..infer.validate import check_count
from ..samplers.diffusion import frame
from ..samplers.diffusion.approximation import DiffusionApproximation
from ..samplers.diffusion.composed import ComposedScore, precision_of
from ..samplers.diffusion.conditional import (
    Condition,
    ConditionalScore,
    NormalRegression,
    Pairs,
    conditions,
    denoising_loss,
    held_out_loss,
    regression_loss,
)
from ..samplers.diffusion.density import DiscreteFlow
from ..samplers.diffusion.schedules import edm_grid
from ..samplers.diffusion.scores import AbstractScore
from ..samplers.diffusion.solvers import RK4, DPMpp2M, solve
from ..samplers.diffusion.training import Levels

CHUNK = 200
MOST_HELD = 1000
CONDITION_BYTES = 2**30
"""For d × d axes of all simulations at once; above, they are found again for each batch."""
REGRESSION_SHARE = 3
"""The normal regression has a third of the steps."""
PLAIN_STEPS, DENSITY_STEPS = 25, 24
MOMENT_DRAWS = 500
WIDEST = 6.0
"""Standardised data are held within; those farther from all simulations than this are said to be so."""


class Calibration(NamedTuple):
    """Ranks of the true parameters among draws of their posteriors.

    Parameters
    ----------
    ranks
        Fractions between 0 and 1, shape (simulations, d); uniform where posteriors are right.
    p_values
        Of Kolmogorov and Smirnov's test of that, for each unconstrained coordinate, shape (d,).
    """

    ranks: np.ndarray
    p_values: np.ndarray


class Scaling(NamedTuple):
    """Data of unit size for a network: arsinh of deviations from the median, standardised.

    Counts, populations and prices have tails over several orders of magnitude, in which a standard deviation says
    nothing of where most data lie; arsinh is linear in the middle and a logarithm in the tails.

    Parameters
    ----------
    mean, sd
        Of the simulated data, shape (k,).
    median, spread
        Their median, and the median of the distance from it, or the standard deviation where that is 0.
    loc, scale
        Mean and standard deviation of the arsinh.
    """

    mean: np.ndarray
    sd: np.ndarray
    median: np.ndarray
    spread: np.ndarray
    loc: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray) -> "Scaling":
        """Of simulated data (n, k)."""
        sd, median = np.maximum(x.std(0), 1e-12), np.median(x, 0)
        spread = np.median(np.abs(x - median), 0)
        spread = np.where(spread > 0, spread, sd)
        bent = np.arcsinh((x - median) / spread)
        return cls(x.mean(0), sd, median, spread, bent.mean(0), np.maximum(bent.std(0), 1e-12))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Scaled data, within `WIDEST`."""
        bent = np.arcsinh((x - self.median) / self.spread)
        return np.clip((bent - self.loc) / self.scale, -WIDEST, WIDEST)

    def distance(self, x: np.ndarray) -> float:
        """The largest distance from the simulated mean, in standard deviations."""
        return float(np.max(np.abs(x - self.mean) / self.sd))


class Amortised:
    """A posterior for any data; made by `Simulator.learn`.

    Attributes
    ----------
    simulator : Simulator
    num_simulations, failed : int
        Simulations that were learned from, and those that failed and were left out.
    loss : float
        Denoising loss held out.
    """

    def __init__(self, simulator: Any, score: ConditionalScore, scaling: Scaling, facts: dict[str, Any]) -> None:
        self.simulator, self._score, self._scaling, self._facts = simulator, score, scaling, facts
        self.num_simulations, self.failed, self.loss = facts["num_simulations"], facts["failed"], facts["loss"]

    def __repr__(self) -> str:
        return f"Amortised({self.num_simulations:,} simulations, {self.failed:,} failed, loss held out {self.loss:.4g})"

    def posterior(
        self, data: Any, *, several: bool = False, num_samples: int = 1000, key: Any = 0, precision_bits: int = 64
    ) -> Posterior:
        """The posterior given data, without refitting.

        Parameters
        ----------
        data
            As ``simulate`` returns them; with ``several`` with a leading axis of independent observations.
        num_samples
            Draws.

        Returns
        -------
        Posterior
            Of kind ``"approximation"``, with draws and `log_prob`, and without evidence or weights.

        Raises
        ------
        InvalidArgument
            The data have another size than those simulated.
        NonFinite
            They, or the densities of draws, are not finite.
        """
        check_count("num_samples", num_samples)
        target, words = self.simulator.target, read_key(key)
        with precision(precision_bits):
            root = jax.random.wrap_key_data(np.asarray(words[0], np.uint32), impl=words[1])
            q = self.approximation(data, several=several)
            u, log_q = evaluate.draw_approximation(q, root, n=num_samples)
            if not np.isfinite(np.asarray(log_q)).all():
                bad = int((~np.isfinite(np.asarray(log_q))).sum())
                raise NonFinite(f"{bad} of {num_samples} draws have no finite density; learn with more simulations.")
            draws = evaluate.over_draws(evaluate.constrain_draw, target, np.asarray(u), key=root)
            log_prior = evaluate.over_draws(evaluate.log_density_at, target, np.asarray(u))
        groups = {
            "posterior": {name: value[None] for name, value in draws.items()},
            "sample_stats": {"log_q": np.asarray(log_q)[None], "log_prior": log_prior[None]},
        }
        record = {
            "method": {"name": "Simulator", "settings": {}},
            "made": "simulations",
            "plan": {"precision": precision_bits, "num_samples": num_samples},
            "remarks": self._remarks(data, several),
            **{name: self._facts[name] for name in ("num_simulations", "failed")},
        }
        return Posterior(groups, kind="approximation", target=target, record=record, approximation=q)

    def approximation(self, data: Any, *, several: bool = False) -> DiffusionApproximation:
        """The density of u given data, see `posterior`."""
        contexts = self._contexts(data, several)
        score = jax.tree.map(lambda x: x.astype(float), self._score)
        loc, scale = (jnp.asarray(self._facts[name], float) for name in ("loc", "scale"))
        known = conditions(score, contexts)
        grid = jnp.asarray(self._grids(known, DENSITY_STEPS)).min(0)
        which: AbstractScore = score.given(contexts[0])
        if len(contexts) > 1:
            which = self._composed(score, known)
        return DiffusionApproximation(DiscreteFlow(which, grid, RK4(), jnp.sqrt(1 + grid[0] ** 2)), loc, scale)

    def calibrate(self, num_simulations: int = 200, *, num_draws: int = 100, key: Any = 1) -> Calibration:
        """Ranks of true parameters among posterior draws, on new simulations (simulation-based calibration)."""
        from scipy.stats import kstest

        made = self.simulator.draw(check_count("num_simulations", num_simulations, 20), key=key)
        contexts = np.concatenate([self._scaling(made.x), np.ones((len(made.x), 1))], 1)
        with precision(64):
            score = jax.tree.map(lambda x: x.astype(float), self._score)
            known = conditions(score, jnp.asarray(contexts))
            keys = jax.random.split(jax.random.key(7), len(contexts))
            y = np.asarray(_plain_draws(score, known, self._grids(known, PLAIN_STEPS), keys, num_draws))
        u = self._facts["loc"] + y @ self._facts["scale"].T
        ranks = np.mean(u < made.u[:, None], axis=1)
        # A rank among m draws is one of m + 1 numbers: spread evenly between its neighbours.
        spread = np.random.default_rng(0).uniform(size=ranks.shape)
        ranks = (ranks * num_draws + spread) / (num_draws + 1)
        return Calibration(ranks, np.array([kstest(column, "uniform").pvalue for column in ranks.T]))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _contexts(self, data: Any, several: bool) -> Array:
        rows = [self.simulator.condition(x) for x in (_rows(data) if several else [data])]
        size = len(self._scaling.mean)
        for row in rows:
            if len(row) != size:
                raise InvalidArgument(
                    f"data have {len(row)} numbers, and those simulated have {size}; give several=True for several "
                    f"observations with a leading axis."
                )
        return jnp.asarray(np.concatenate([self._scaling(np.stack(rows)), np.ones((len(rows), 1))], 1))

    def _grids(self, known: Condition, num_steps: int) -> np.ndarray:
        """The levels that suit each condition, shape (conditions, num_steps + 1)."""
        lowest, highest = self._facts["levels"]
        least = lowest * np.sqrt(np.asarray(known.variances).min(1))
        return np.stack([edm_grid(highest, float(low), num_steps) for low in least])

    def _composed(self, score: ConditionalScore, known: Condition) -> ComposedScore:
        keys = jax.random.split(jax.random.key(11), len(known.context))
        y = np.asarray(_plain_draws(score, known, self._grids(known, PLAIN_STEPS), keys, MOMENT_DRAWS))
        dim = y.shape[-1]
        found = [precision_of(np.cov(each, rowvar=False).reshape(dim, dim)) for each in y]
        prior = score.condition(jnp.zeros_like(known.context[0]))
        return ComposedScore(score, prior, known, jnp.asarray(np.stack(found)))

    def _remarks(self, data: Any, several: bool) -> list[dict[str, Any]]:
        found = []
        if self.failed:
            share = self.failed / (self.failed + self.num_simulations)
            text = f"{self.failed:,} simulations ({share:.1%}) failed and were left out."
            level = "warning" if share > 0.1 else "note"
            found.append({"level": level, "name": "failed simulations", "message": text, "value": float(self.failed)})
        rows = [self.simulator.condition(x) for x in (_rows(data) if several else [data])]
        far = self._scaling.distance(np.stack(rows))
        if far > WIDEST:
            text = (
                f"The data lie up to {far:.3g} standard deviations from the simulated ones (threshold {WIDEST:g}): the "
                "posterior is extrapolated. Look at the prior, or give a summary."
            )
            found.append({"level": "warning", "name": "data", "message": text, "value": float(far)})
        return found


def train(
    simulator: Any,
    made: Any,
    key: Any,
    hidden: tuple[int, ...],
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    held_out: float,
    levels: tuple[float, float],
) -> Amortised:
    """See `Simulator.learn`."""
    words, generator = read_key(key)
    loc, scale = frame.whitening(made.u, True)
    scaling = Scaling.of(made.x)
    points = np.linalg.solve(scale, (made.u - loc).T).T.astype(np.float32)
    contexts = np.concatenate([scaling(made.x), np.ones((len(points), 1))], 1).astype(np.float32)
    held = min(max(20, round(held_out * len(points))), len(points) // 2)
    kept = min(held, MOST_HELD)
    pairs = Pairs(points[held:], contexts[held:], points[:kept], contexts[:kept])
    trainer = Trainer(learning_rate=learning_rate, num_steps=num_steps, tolerance=None)
    with precision(32):
        root = jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)
        key_regression, key_net, key_one, key_two = jax.random.split(root, 4)
        pairs, width = jax.tree.map(jnp.asarray, pairs), contexts.shape[1]
        regression = NormalRegression.make(key_regression, points[held:], contexts[held:], hidden, jnp.float32)
        first = dataclasses.replace(trainer, num_steps=-(-num_steps // REGRESSION_SHARE))
        regression, _ = _optimise(_Regressed(pairs, batch_size), regression, key_one, first)
        score = ConditionalScore.make(key_net, regression, hidden, width, jnp.float32)
        span = Levels(*(jnp.asarray(x, jnp.float32) for x in levels))
        few = 4 * points.size * points.shape[1] <= CONDITION_BYTES
        known = jax.jit(conditions)(score, pairs.contexts) if few else None
        held_known = jax.jit(conditions)(score, pairs.held_contexts)
        objective = _Denoised(pairs, regression, known, held_known, span, batch_size)
        net, loss = _optimise(objective, score.net, key_two, trainer)
    score = ConditionalScore(net, regression)
    facts = {"num_simulations": len(made.u), "failed": made.failed, "loss": loss, "levels": levels}
    return Amortised(simulator, jax.device_get(score), scaling, facts | {"loc": loc, "scale": scale})


class _Regressed(eqx.Module):
    """The objective of the regression."""

    pairs: Pairs
    batch: int = eqx.field(static=True)

    def loss(self, regression: NormalRegression, key: PRNGKeyArray) -> Array:
        """Of a batch."""
        return regression_loss(regression, self.pairs, key, self.batch)

    def held_out(self, regression: NormalRegression) -> Array:
        """Of the pairs held out."""
        return jnp.mean(jax.vmap(regression.loss)(self.pairs.held, self.pairs.held_contexts))


class _Denoised(eqx.Module):
    """The objective of the denoiser's network, with the regression done."""

    pairs: Pairs
    regression: NormalRegression
    known: Condition | None
    held_known: Condition
    levels: Levels
    batch: int = eqx.field(static=True)

    def loss(self, net: Any, key: PRNGKeyArray) -> Array:
        """Of a batch."""
        score = ConditionalScore(net, self.regression)
        return denoising_loss(score, self.pairs, self.known, self.levels, key, self.batch)

    def held_out(self, net: Any) -> Array:
        """Of the pairs held out."""
        return held_out_loss(ConditionalScore(net, self.regression), self.pairs, self.held_known, self.levels)


def _optimise(objective: Any, module: Any, key: PRNGKeyArray, trainer: Trainer) -> tuple[Any, float]:
    """The averaged parameters with the least loss held out, and that loss; those before training among them."""
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    state, best = trainer.init(params), (float(_held_out(objective, module)), params)
    for begin in range(0, trainer.num_steps, CHUNK):
        last = jnp.asarray(min(CHUNK, trainer.num_steps - begin))
        state, loss = _chunk(trainer, state, rest, objective, key, jnp.asarray(begin), last)
        if float(loss) < best[0]:
            best = (float(loss), state.average)
    if not np.isfinite(float(loss)):
        raise NonFinite(f"the loss held out is {float(loss)} after {trainer.num_steps} steps; lower learning_rate.")
    return eqx.combine(best[1], rest), best[0]


@eqx.filter_jit
def _held_out(objective: Any, module: Any) -> Array:
    return objective.held_out(module)


@eqx.filter_jit
def _chunk(
    trainer: Trainer, state: Any, rest: Any, objective: Any, key: PRNGKeyArray, begin: Array, n: Array
) -> tuple[Any, Array]:
    """Some steps of the optimiser, and the loss held out of the averaged parameters after them."""

    def step(i: Array, state: Any) -> Any:
        t = begin + i
        value = lambda params: -objective.loss(eqx.combine(params, rest), jax.random.fold_in(key, t))  # noqa: E731
        return trainer.update(state, *jax.value_and_grad(value)(state.params), t)[0]

    state = jax.lax.fori_loop(0, n, step, state)
    return state, objective.held_out(eqx.combine(state.average, rest))


@partial(jax.jit, static_argnames=("n",))
def _plain_draws(score: ConditionalScore, known: Condition, grids: Array, keys: Any, n: int) -> Array:
    """``n`` draws under each condition, without densities, shape (conditions, n, d)."""
    dim = known.mean.shape[1]

    def one(each: tuple) -> Array:
        condition, grid, key = each
        z = jax.random.normal(key, (n, dim), grid.dtype) * jnp.sqrt(1 + grid[0] ** 2)
        return jax.vmap(lambda y: solve(score.under(condition), DPMpp2M(), grid, y))(z)

    return jax.lax.map(one, (known, grids, keys))


def _rows(data: Any) -> list[Any]:
    """Observations of a pytree with a leading axis."""
    size = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(size) != 1 or size == {()}:
        raise InvalidArgument(f"several=True needs data with one leading axis of observations, got {sorted(size)}.")
    return [jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], data) for i in range(next(iter(size))[0])]
