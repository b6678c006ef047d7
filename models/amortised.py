"""`Amortised`: a posterior learned from simulations, for any data; its training and its calibration."""

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
from ..samplers.diffusion.density import DiscreteFlow
from ..samplers.diffusion.network import NetScore
from ..samplers.diffusion.schedules import edm_grid
from ..samplers.diffusion.scores import AbstractScore
from ..samplers.diffusion.solvers import RK4, DPMpp2M, solve
from ..samplers.diffusion.training import Draws, Levels, held_out_loss, training_loss

CHUNK = 200
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

    def __init__(self, simulator: Any, score: NetScore, frames: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        self.simulator, self._score, self._frames, self._facts = simulator, score, frames, facts
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
        loc, scale = (jnp.asarray(self._frames[name], float) for name in ("loc", "scale"))
        lowest, highest = self._facts["levels"]
        grid = jnp.asarray(edm_grid(highest, lowest, DENSITY_STEPS), float)
        which: AbstractScore = score.given(contexts[0])
        if len(contexts) > 1:
            which = self._composed(score, contexts)
        return DiffusionApproximation(DiscreteFlow(which, grid, RK4(), jnp.sqrt(1 + grid[0] ** 2)), loc, scale)

    def calibrate(self, num_simulations: int = 200, *, num_draws: int = 100, key: Any = 1) -> Calibration:
        """Ranks of true parameters among posterior draws, on new simulations (simulation-based calibration)."""
        from scipy.stats import kstest

        made = self.simulator.draw(check_count("num_simulations", num_simulations, 20), key=key)
        contexts = np.concatenate([self._standardised(made.x), np.ones((len(made.x), 1))], 1)
        with precision(64):
            score = jax.tree.map(lambda x: x.astype(float), self._score)
            lowest, highest = self._facts["levels"]
            grid = jnp.asarray(edm_grid(highest, lowest, PLAIN_STEPS), float)
            keys = jax.random.split(jax.random.key(7), len(contexts))
            y = np.asarray(_plain_draws(score, jnp.asarray(contexts), grid, keys, num_draws))
        u = self._frames["loc"] + y @ self._frames["scale"].T
        ranks = np.mean(u < made.u[:, None], axis=1)
        # A rank among m draws is one of m + 1 numbers: spread evenly between its neighbours.
        spread = np.random.default_rng(0).uniform(size=ranks.shape)
        ranks = (ranks * num_draws + spread) / (num_draws + 1)
        return Calibration(ranks, np.array([kstest(column, "uniform").pvalue for column in ranks.T]))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _standardised(self, x: np.ndarray) -> np.ndarray:
        return np.clip((x - self._frames["x_mean"]) / self._frames["x_sd"], -WIDEST, WIDEST)

    def _contexts(self, data: Any, several: bool) -> Array:
        rows = [self.simulator.condition(x) for x in (_rows(data) if several else [data])]
        size = len(self._frames["x_mean"])
        for row in rows:
            if len(row) != size:
                raise InvalidArgument(
                    f"data have {len(row)} numbers, and those simulated have {size}; give several=True for several "
                    f"observations with a leading axis."
                )
        return jnp.asarray(np.concatenate([self._standardised(np.stack(rows)), np.ones((len(rows), 1))], 1))

    def _composed(self, score: NetScore, contexts: Array) -> ComposedScore:
        lowest, highest = self._facts["levels"]
        grid = jnp.asarray(edm_grid(highest, lowest, PLAIN_STEPS), float)
        keys = jax.random.split(jax.random.key(11), len(contexts))
        y = np.asarray(_plain_draws(score, contexts, grid, keys, MOMENT_DRAWS))
        dim = y.shape[-1]
        found = [precision_of(np.cov(each, rowvar=False).reshape(dim, dim)) for each in y]
        return ComposedScore(score, contexts, jnp.asarray(np.stack(found)))

    def _remarks(self, data: Any, several: bool) -> list[dict[str, Any]]:
        found = []
        if self.failed:
            share = self.failed / (self.failed + self.num_simulations)
            text = f"{self.failed:,} simulations ({share:.1%}) failed and were left out."
            level = "warning" if share > 0.1 else "note"
            found.append({"level": level, "name": "failed simulations", "message": text, "value": float(self.failed)})
        rows = [self.simulator.condition(x) for x in (_rows(data) if several else [data])]
        far = np.max(np.abs((np.stack(rows) - self._frames["x_mean"]) / self._frames["x_sd"]))
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
    x_mean, x_sd = made.x.mean(0), np.maximum(made.x.std(0), 1e-12)
    frames = {"loc": loc, "scale": scale, "x_mean": x_mean, "x_sd": x_sd}
    points = np.linalg.solve(scale, (made.u - loc).T).T.astype(np.float32)
    standard = np.clip((made.x - x_mean) / x_sd, -WIDEST, WIDEST)
    contexts = np.concatenate([standard, np.ones((len(points), 1))], 1).astype(np.float32)
    held = min(max(20, round(held_out * len(points))), len(points) // 2)
    draws = Draws(points[held:], None, None, None, points[:held][:1000], contexts[held:], contexts[:held][:1000])
    with precision(32):
        root = jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)
        key_net, key_steps = jax.random.split(root)
        draws = jax.tree.map(jnp.asarray, draws)
        score = NetScore.make(key_net, points.shape[1], hidden, contexts.shape[1])
        score, loss = _optimise(
            score, draws, Levels(*(jnp.asarray(x, jnp.float32) for x in levels)), key_steps,
            Trainer(learning_rate=learning_rate, num_steps=num_steps, tolerance=None), num_steps, batch_size,
        )  # fmt: skip
    facts = {"num_simulations": len(made.u), "failed": made.failed, "loss": loss, "levels": levels}
    return Amortised(simulator, jax.device_get(score), frames, facts)


def _optimise(
    score: NetScore, draws: Draws, levels: Levels, key: PRNGKeyArray, trainer: Trainer, num_steps: int, batch: int
) -> tuple[NetScore, float]:
    """The averaged parameters with the least loss held out, and that loss."""
    params, rest = eqx.partition(score, eqx.is_inexact_array)
    state, best = trainer.init(params), (np.inf, params)
    for begin in range(0, num_steps, CHUNK):
        last = jnp.asarray(min(CHUNK, num_steps - begin))
        state, loss = _chunk(trainer, state, rest, draws, levels, key, jnp.asarray(begin), last, batch=batch)
        if float(loss) < best[0]:
            best = (float(loss), state.average)
    if not np.isfinite(best[0]):
        raise NonFinite(f"the loss held out is {float(loss)} after {num_steps} steps; lower learning_rate.")
    return eqx.combine(best[1], rest), best[0]


@partial(jax.jit, static_argnames=("batch",))
def _chunk(
    trainer: Trainer, state: Any, rest: Any, draws: Draws, levels: Levels, key: PRNGKeyArray, begin: Array, n: Array,
    *, batch: int,
) -> tuple[Any, Array]:  # fmt: skip
    """Some steps of the optimiser, and the loss held out of the averaged parameters after them."""

    def step(i: Array, state: Any) -> Any:
        t = begin + i

        def objective(params: Any) -> Array:
            return -training_loss(eqx.combine(params, rest), draws, levels, jax.random.fold_in(key, t), batch)

        return trainer.update(state, *jax.value_and_grad(objective)(state.params), t)[0]

    state = jax.lax.fori_loop(0, n, step, state)
    score = eqx.combine(state.average, rest)
    return state, held_out_loss(score, draws.held, levels, draws.held_contexts)


@partial(jax.jit, static_argnames=("n",))
def _plain_draws(score: NetScore, contexts: Array, grid: Array, keys: Any, n: int) -> Array:
    """``n`` draws for each condition, without densities, shape (conditions, n, d)."""
    dim = score.net.biases[-1].shape[0]

    def one(both: tuple) -> Array:
        context, key = both
        z = jax.random.normal(key, (n, dim), grid.dtype) * jnp.sqrt(1 + grid[0] ** 2)
        return jax.vmap(lambda y: solve(score.given(context), DPMpp2M(), grid, y))(z)

    return jax.lax.map(one, (contexts, keys))


def _rows(data: Any) -> list[Any]:
    """Observations of a pytree with a leading axis."""
    size = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(size) != 1 or size == {()}:
        raise InvalidArgument(f"several=True needs data with one leading axis of observations, got {sorted(size)}.")
    return [jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], data) for i in range(next(iter(size))[0])]
