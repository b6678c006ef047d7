"""What the Stein samplers share: the state of a cloud, its step, its bandwidth, its optimiser, its end.

A sampler says what a velocity needs of the particles (`locate`) and may change the velocity afterwards (`turn`). One
step evaluates the score of each particle once and sums over all pairs, see `infer.kernels.velocity`.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...infer.approximation import Particles
from ...infer.distributed.mesh import gathered, spread
from ...infer.distributed.rows import after, gathered_rows
from ...infer.errors import InvalidArgument, NonFinite
from ...infer.kernels.bandwidth import RULES, choose_bandwidth
from ...infer.kernels.radial import KERNELS
from ...infer.kernels.velocity import BACKENDS, velocity
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.run.fit import HINTS
from ...infer.run.start import Warm
from ...infer.target import Target
from ...infer.validate import check_choice, check_count, check_nonnegative, check_positive
from . import findings
from .initial import initial_cloud
from .spaces import Cloud
from .watch import LOOK, Watch, pilot

REFRESH = 10
"""Iterations between two choices of the bandwidth."""
CONSTANT = 0.7
"""Share of the iterations at the full learning rate; then a cosine leads to a thousandth of it."""
LAST = 1e-3
SETTLED = 1.02
"""Largest ratio of variances, by Stein's identity, at which a run may end early."""
TRIES = 4


class SteinState(eqx.Module):
    """A cloud, or the clouds of all runs on a leading axis.

    Parameters
    ----------
    y
        Where the steps are taken: dual, or unconstrained, coordinates.
    optimiser
        State of the optax optimiser.
    bandwidth
        h.
    first, speed
        Root mean square of the velocity at the first iteration, and at the last.
    spread
        −E b_a (y_a − E y_a) by coordinate, b the score: 1 for draws of the target, by Stein's identity.
    watch
        What was seen of the KSD; None where nobody looks.
    memory
        What a sampler carries along besides, see `AbstractStein.remember`.
    """

    y: Float[Array, "*runs n d"]
    optimiser: Any
    bandwidth: Float[Array, "*runs"]
    first: Float[Array, "*runs"]
    speed: Float[Array, "*runs"]
    spread: Float[Array, "*runs d"]
    watch: Watch | None = None
    memory: Any = None


class SteinInfo(NamedTuple):
    """Record of one iteration."""

    velocity: Array
    bandwidth: Array
    rate: Array
    ksd: Array
    num_evaluations: Array


class AbstractStein(AbstractMethod):
    """Hyper-parameters and functions that all have; see the concrete classes."""

    num_particles: int = eqx.field(static=True, default=100)
    num_steps: int = 1000
    kernel: str = eqx.field(static=True, default="imq")
    bandwidth: Any = None
    rule: str = eqx.field(static=True, default="median")
    learning_rate: Any = 0.1
    optimizer: Any = eqx.field(static=True, default=None)
    tolerance: Any = 1e-3
    patience: int | None = eqx.field(static=True, default=None)
    batch_size: int | None = eqx.field(static=True, default=None)
    initial: Any = None
    tile: int | None = eqx.field(static=True, default=None)
    backend: str = eqx.field(static=True, default="auto")

    kind: ClassVar = "particles"
    exact: ClassVar[bool] = False
    default_chains: ClassVar[int] = 1
    rates: ClassVar[tuple[float, ...]] = (0.3, 0.1, 0.03, 0.01)
    spreads: ClassVar[bool] = True
    warning: ClassVar[str] = (
        "Stein particles are approximate: a finite cloud, placed by an optimiser, has smaller variances than the "
        "target, the more so the more dimensions there are; more particles bring it nearer."
    )

    def __check_init__(self) -> None:
        check_count("num_particles", self.num_particles)
        check_count("num_steps", self.num_steps)
        check_choice("kernel", self.kernel, KERNELS)
        check_choice("rule", self.rule, RULES)
        check_choice("backend", self.backend, BACKENDS)
        if self.bandwidth is not None:
            check_positive("bandwidth", self.bandwidth)
        if isinstance(self.learning_rate, str):
            self._check_pilot()
        else:
            check_positive("learning_rate", self.learning_rate)
        check_nonnegative("tolerance", self.tolerance)
        for name in ("patience", "batch_size", "tile"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.optimizer is not None and not (hasattr(self.optimizer, "init") and hasattr(self.optimizer, "update")):
            raise InvalidArgument(f"optimizer must be an optax GradientTransformation, got {self.optimizer!r}.")

    # -- what a sampler writes ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def locate(self, target: Target, y: Float[Array, "n d"], batch: Array | None, memory: Any = None) -> Cloud:
        """Coordinates of the kernel, scores and matrices at the particles."""

    @abc.abstractmethod
    def positions(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The coordinates of the kernel alone."""

    def remember(self, target: Target, y: Float[Array, "n d"]) -> Any:
        """What `locate` is given at the first iteration, and gives back for the next one; default: None."""
        del target, y

    def step_scores(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """∇ log density of the coordinates in which steps are taken, of all data."""
        return self.locate(target, y, None).drift

    def turn(self, target: Target, cloud: Cloud, bandwidth: Array, phi: Array) -> Array:
        """The velocity that is handed to the optimiser; default: φ itself."""
        del target, cloud, bandwidth
        return phi

    def to_steps(self, target: Target, u: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The coordinates in which steps are taken, from the unconstrained ones."""
        del target
        return u

    def to_unconstrained(self, target: Target, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """The unconstrained coordinates of the particles."""
        del target
        return y

    def moved(self, target: Target, y: Array, step: Array) -> Array:
        """The particles after a step."""
        del target
        return y + step

    def random_cloud(self, key: PRNGKeyArray, target: Target, start: Float[Array, " d"]) -> Float[Array, "n d"]:
        """Particles u to begin with where none are given: the chain's start, and random ones."""
        u = jax.vmap(lambda k: _finite_start(k, target))(jax.random.split(key, self.num_particles))
        return u.at[0].set(start)

    def check_target(self, target: Target, u: Float[Array, "n d"] | None) -> None:
        """Refuse, on the host, a target or given particles that do not suit."""

    # -- the method -----------------------------------------------------------------------------------------------

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One, of ``num_steps`` iterations."""
        del budget
        return (Stage("particles", self, self.num_steps),)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "AbstractStein":
        """The user's particles as unconstrained coordinates, checked; the learning rate of the pilot runs."""
        if self.batch_size is not None:
            target.require(f"{type(self).__name__}(batch_size={self.batch_size})", ("factors",), HINTS)
        u = initial_cloud(self.initial, key, target, self.num_particles, type(self).__name__)
        self.check_target(target, u)
        prepared = self if u is None else dataclasses.replace(self, initial=u)
        if not isinstance(self.learning_rate, str):
            return prepared
        first = start[0].u if isinstance(start[0], Warm) else start[0]
        rate = pilot(prepared, key, target, jnp.reshape(first, (-1, target.dim))[0], self.rates)
        return dataclasses.replace(prepared, learning_rate=rate)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> SteinState:
        """The user's particles; or random ones, the chain's start among them."""
        if self.initial is None:
            u = self.random_cloud(key, target, start.u if isinstance(start, Warm) else start)
        else:
            u = jnp.asarray(self.initial, float)
        y = self.to_steps(target, jnp.asarray(u, float))
        watch = None if self.patience is None else Watch.start()
        one = jnp.ones(())
        memory = self.remember(target, y)
        return SteinState(y, self._optimizer().init(y), one, 0 * one, one, jnp.ones(y.shape[1]), watch, memory)

    def step(self, key: PRNGKeyArray, state: SteinState, target: Target, t: Array) -> tuple[SteinState, SteinInfo]:
        """One velocity, one step of the optimiser."""
        key_batch, key_bandwidth = jax.random.split(key)
        batch = None if self.batch_size is None else target.minibatch(key_batch, t, self.batch_size)  # type: ignore
        # Particles are shared out where each is by itself; what sums over them is the same on any devices.
        state = dataclasses.replace(state, y=gathered(state.y))
        cloud = gathered_rows(self.locate(target, spread(state.y), batch, state.memory), state.y.shape[0])
        h = self._bandwidth(key_bandwidth, cloud.x, state.bandwidth, t)
        phi = velocity(self.kernel, cloud.x, cloud.drift, h, cloud.metric, tile=self.tile, backend=self.backend)
        phi = self.turn(target, cloud, h, phi)

        score = cloud.drift if cloud.score is None else cloud.score
        speed = jnp.sqrt(jnp.mean(phi**2))
        rate = self._rate(t)
        update, optimiser = self._optimizer().update(-phi, state.optimiser, state.y)
        y = self.moved(target, state.y, update * rate)
        usable = jnp.isfinite(speed) & jnp.all(jnp.isfinite(y))
        new = SteinState(
            y=jnp.where(usable, y, state.y),
            optimiser=optimiser,
            bandwidth=h,
            first=jnp.where(t == 0, speed, state.first),
            speed=jnp.where(usable, speed, jnp.nan),
            spread=-jnp.mean(score * (state.y - jnp.mean(state.y, axis=0)), axis=0),
            watch=self._watched(target, state, key_bandwidth, t, phi),
            memory=cloud.memory,
        )
        seen = jnp.nan if new.watch is None else new.watch.ksd
        return new, SteinInfo(speed, h, rate, jnp.asarray(seen, speed.dtype), jnp.asarray(self.num_particles))

    def done(self, state: SteinState) -> Bool[Array, ""]:
        """Velocity below the tolerance, relative to the first one, of a cloud not too wide; a stale KSD; not finite.

        The first velocity is large where particles start far out, so that a small share of it alone means little: the
        widths by Stein's identity must be right as well. Not with mini-batches.
        """
        slow = (state.speed <= self.tolerance * state.first) & (jnp.max(state.spread) <= SETTLED)
        stale = False if state.watch is None else state.watch.stale >= self.patience
        return (slow & (self.batch_size is None)) | stale | ~jnp.isfinite(state.speed)

    def result(self, state: SteinState, target: Target) -> Particles:
        """All clouds together.

        Raises
        ------
        NonFinite
            A score was not finite.
        """
        y = np.asarray(state.y)
        if not np.isfinite(np.asarray(state.speed)).all():
            self._explain(target, y)
        u = jax.vmap(lambda y: self.to_unconstrained(target, y))(jnp.asarray(y))
        return Particles(np.asarray(u).reshape(-1, u.shape[-1]))

    def merit(self, infos: SteinInfo) -> dict[str, Array]:
        """Speed and bandwidth."""
        return {"velocity": infos.velocity[..., -1].max(), "bandwidth": infos.bandwidth[..., -1].mean()}

    def learned(self, state: SteinState) -> dict[str, Array]:
        """The bandwidth."""
        return {"bandwidth": state.bandwidth}

    def remarks(self, state: SteinState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Speed, width, KSD, gaps, effective rank, size against dimension, floor."""
        del result
        y = [jnp.asarray(one) for one in np.asarray(state.y)]
        clouds = [np.asarray(self.positions(target, one)) for one in y]
        u = [np.asarray(self.to_unconstrained(target, one)) for one in y]
        found = findings.remarks(self, state, clouds, u)
        few = y[0][: findings.LOOKED_AT]
        if few.shape[0] == 1:
            return found
        h = choose_bandwidth("median", jax.random.key(0), few)
        return [*found, findings.discrepancy(few, self.step_scores(target, few), h)]

    def _watched(self, target: Target, state: SteinState, key: PRNGKeyArray, t: Array, phi: Array) -> Watch | None:
        """A look at the cloud, every fiftieth iteration, once the velocity is known."""
        if state.watch is None:
            return None
        watch, y = state.watch, after(state.y, phi)
        return jax.lax.cond(
            t % LOOK == LOOK - 1, lambda: watch.look(y, self.step_scores(target, y), key), lambda: watch
        )

    def _check_pilot(self) -> None:
        if self.learning_rate != "pilot":
            raise InvalidArgument(f"learning_rate must be a number or 'pilot', got {self.learning_rate!r}.")
        if self.optimizer is not None:
            raise InvalidArgument(
                f"learning_rate='pilot' chooses the rate of the built-in optimiser, and optimizer is "
                f"{self.optimizer!r}, which has its own."
            )

    def _bandwidth(self, key: PRNGKeyArray, x: Array, now: Array, t: Array) -> Array:
        """The user's, or the rule's, every tenth iteration."""
        if self.bandwidth is not None:
            return jnp.asarray(self.bandwidth, x.dtype)
        return jax.lax.cond(t % REFRESH == 0, lambda: choose_bandwidth(self.rule, key, x), lambda: now)

    def _optimizer(self) -> Any:
        return self._default_optimizer() if self.optimizer is None else self.optimizer

    def _default_optimizer(self) -> Any:
        """RMSprop as in Keras, whose rate is `_rate`."""
        import optax

        return optax.rmsprop(1.0, decay=0.9, eps=1e-7, eps_in_sqrt=False, initial_scale=0.0)

    def _rate(self, t: Array) -> Array:
        """Of the built-in optimiser: constant, then a cosine; the user's has its own."""
        if self.optimizer is not None:
            return jnp.ones(())
        begin = CONSTANT * jnp.asarray(self.num_steps, float)
        way = jnp.clip((t - begin) / (self.num_steps - begin), 0, 1)
        return self.learning_rate * (LAST + (1 - LAST) * 0.5 * (1 + jnp.cos(jnp.pi * way)))

    def _explain(self, target: Target, y: np.ndarray) -> None:
        for cloud in y:
            drift = np.asarray(self.locate(target, jnp.asarray(cloud), None).drift)
            bad = ~np.isfinite(drift).all(axis=1)
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                u = self.to_unconstrained(target, jnp.asarray(cloud))[first]
                values = {k: np.asarray(v) for k, v in target.constrain(u).items()}
                shown = ", ".join(f"{k}={np.array2string(v, precision=4, threshold=6)}" for k, v in values.items())
                raise NonFinite(
                    f"The score of {int(bad.sum())} of {len(bad)} particles is not finite, first that of particle "
                    f"{first} ({shown}); give initial= inside of the support, or look at the model with target.check()."
                )
        raise NonFinite(
            f"A step of the particles left the finite numbers, with learning_rate={self.learning_rate}; lower it, or "
            f"clip the updates of the optimizer."
        )


def _finite_start(key: PRNGKeyArray, target: Target) -> Array:
    """A random start whose log density is finite, if there is one in a few tries."""
    tries = jax.vmap(target.initial)(jax.random.split(key, TRIES))
    finite = jax.vmap(lambda u: jnp.isfinite(target.log_density(u)))(tries)
    return tries[jnp.argmax(finite)]
