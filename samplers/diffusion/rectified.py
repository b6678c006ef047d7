"""A student that makes in one to four steps what a solver makes in many: rectified flow on a flow's own pairs.

Straight lines x_t = (1 − t) x + t z between the standard normal starts z of a flow and their ends x seldom cross, so
that they are nearly the paths of an ODE, dx_t/dt = z − x, that one Euler step solves. A network v(x_t, t) is regressed
on z − x with the loss (√(‖r‖² + c²) − c)/d, c = 0.00054 d, and times dense at both ends, p(t) ∝ cosh(a (t − ½)).

The student is a map of its own: its density is that of its own steps, by their log-determinants.

References
----------
.. [1] X. Liu, C. Gong, Q. Liu (2023). Flow straight and fast: learning to generate and transfer data with rectified
   flow. arXiv:2209.03003.
.. [2] S. Lee, Z. Lin, G. Fanti (2024). Improving the training of rectified flows. arXiv:2405.20320, sections 4.1, 4.2.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.validate import check_count
from ...infer.variational.flows.networks import Network
from .density import log_normal
from .solvers import Point

SHARPNESS = 4.0
"""a of the times."""
HUBER = 0.00054
DECAY = 0.999


class Student(eqx.Module):
    """The map x = z − Σ v(x_t, t)/n, n Euler steps from t = 1 to 0.

    Parameters
    ----------
    net
        A perceptron of d + 4 inputs and d outputs.
    num_steps
        n.
    """

    net: Network
    num_steps: int = eqx.field(static=True, default=1)

    def velocity(self, x: Point, t: Any) -> Point:
        """The velocity v(x, t); zero before training, when the student is the identity."""
        t = jnp.asarray(t, x.dtype)
        features = jnp.stack([t, t**2, jnp.sin(jnp.pi * t), jnp.cos(jnp.pi * t)])
        return self.net(jnp.concatenate([x, features]))

    def __call__(self, z: Point) -> Point:
        """The end from z."""
        for k in range(self.num_steps):
            z = self._step(z, 1 - k / self.num_steps)
        return z

    def transform(self, z: Point) -> tuple[Point, Float[Array, ""], Int[Array, ""]]:
        """The draw that a standard normal z becomes, its log density, and the number of folded steps."""
        log_q, folds = log_normal(z, jnp.ones((), z.dtype)), jnp.zeros((), jnp.int32)
        for k in range(self.num_steps):
            t = 1 - k / self.num_steps
            sign, log_det = jnp.linalg.slogdet(jax.jacfwd(self._step)(z, t))
            z, log_q, folds = self._step(z, t), log_q - log_det, folds + ~(sign > 0)
        return z, log_q, folds

    def _step(self, x: Point, t: float) -> Point:
        return x - self.velocity(x, t) / self.num_steps


def draw_times(key: PRNGKeyArray, n: int, dtype: Any) -> Float[Array, " n"]:
    """Stratified times in [0, 1] of density ∝ cosh(a (t − ½)), by its inverse distribution function."""
    share = (jnp.arange(n) + jax.random.uniform(key, (n,), dtype)) / n
    half = 0.5 * SHARPNESS
    return 0.5 + jnp.arcsinh((2 * share - 1) * jnp.sinh(jnp.asarray(half, dtype))) / SHARPNESS


def rectified_loss(student: Student, z: Float[Array, "n d"], x: Float[Array, "n d"], key: PRNGKeyArray) -> Array:
    """The pseudo-Huber loss of z − x at points between."""
    dim = z.shape[1]
    c = HUBER * dim

    def one(z: Point, x: Point, t: Array) -> Array:
        residual = student.velocity((1 - t) * x + t * z, t) - (z - x)
        return (jnp.sqrt(jnp.sum(residual**2) + c**2) - c) / dim

    return jnp.mean(jax.vmap(one)(z, x, draw_times(key, len(z), z.dtype)))


def distil(
    key: PRNGKeyArray,
    z: Float[Array, "..."],
    x: Float[Array, "..."],
    *,
    num_steps: int = 1,
    hidden: tuple[int, ...] = (128, 128, 128),
    training_steps: int = 4000,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
) -> tuple[Student, Float[Array, " steps"]]:
    """A student of pairs, and the trace of its loss.

    Parameters
    ----------
    z, x
        Standard normal starts of a flow, and the ends that they became, shape (n, d).
    num_steps
        Euler steps of the student.
    hidden, training_steps, batch_size, learning_rate
        Of the network and Adam, its rate falling along a cosine; averaged parameters are returned.
    """
    import optax

    if z.shape != x.shape or z.ndim != 2:
        raise InvalidArgument(f"z and x must be pairs of points of the same shape (n, d), got {z.shape} and {x.shape}.")
    check_count("num_steps", num_steps)
    check_count("training_steps", training_steps)
    key_net, key_train = jax.random.split(key)
    dim = z.shape[1]
    net = Network.make(key_net, (dim + 4, *hidden, dim), "silu")
    student = Student(jax.tree.map(lambda w: w.astype(z.dtype), net), num_steps)
    optimiser = optax.adam(optax.cosine_decay_schedule(learning_rate, training_steps))
    return _train(key_train, student, z, x, optimiser, training_steps, batch_size)


@eqx.filter_jit
def _train(
    key: PRNGKeyArray, student: Student, z: Array, x: Array, optimiser: Any, training_steps: int, batch_size: int
) -> tuple[Student, Float[Array, " steps"]]:
    def one(state: tuple, t: Array) -> tuple[tuple, Array]:
        student, average, moments = state
        key_rows, key_times = jax.random.split(jax.random.fold_in(key, t))
        rows = jax.random.randint(key_rows, (batch_size,), 0, len(z))
        loss, grads = jax.value_and_grad(rectified_loss)(student, z[rows], x[rows], key_times)
        updates, moments = optimiser.update(grads, moments)
        student = eqx.apply_updates(student, updates)
        decay = jnp.minimum(DECAY, (1 + t) / (10 + t))
        average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, student)
        return (student, average, moments), loss

    begin = (student, student, optimiser.init(student))
    (_, average, _), losses = jax.lax.scan(one, begin, jnp.arange(training_steps))
    return average, losses
