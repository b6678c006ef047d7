"""Functions of a target evaluated over many draws, in compiled batches of bounded memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .target import Target
from .validate import check_count

BATCH_BYTES = 64 * 2**20
BATCH = 1000
POINTS = 32
"""At which a density is estimated at once."""


def over_draws(
    f: Callable, target: Target, values: Any, *extra: Any, key: PRNGKeyArray | None = None, batch: int | None = None
) -> Any:
    """Evaluate ``f(key, target, value, *extra)`` at every draw, on the host's side of the batches as NumPy arrays.

    Parameters
    ----------
    f
        A module-level function (its identity is what the compiled program is cached by) of one draw.
    values
        Pytree of arrays with a leading axis of draws, n.
    extra
        The same for all draws; arrays in it are traced, everything else is static.
    key
        Split by the index of the draw, so that no result depends on ``batch``.
    batch
        Draws per compiled call; by default as many as keep the result of a call within 64 MB, at most 1,000.

    Returns
    -------
    The pytree that ``f`` returns, with a leading axis n.
    """
    if batch is not None:
        check_count("batch", batch)
    # Draws in 32 bits may meet a 64-bit scope, where JAX could take the program that 32 bits compiled for its own.
    values = jax.tree.map(_as_scoped, values)
    n = jax.tree.leaves(values)[0].shape[0]
    key = jax.random.key(0) if key is None else key
    dynamic, static = eqx.partition(extra, lambda x: isinstance(x, np.ndarray | jax.Array))
    static = _Static(static)
    if batch is None:
        first = jax.tree.map(lambda x: np.asarray(x)[0], values)
        like = _single.eval_shape(target, key, first, dynamic, f=f, static=static)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
        batch = int(np.clip(BATCH_BYTES // max(size, 1), 1, BATCH))
    batch = min(batch, n)
    parts = []
    for a in range(0, n, batch):
        # The last batch begins earlier instead of being shorter, so that one program serves all.
        begin = min(a, n - batch)
        chosen = jax.tree.map(lambda x, begin=begin: np.asarray(x[begin : begin + batch]), values)
        out = _batch(target, key, np.arange(begin, begin + batch), chosen, dynamic, f=f, static=static)
        parts.append(jax.tree.map(lambda x, skip=a - begin: np.asarray(x)[skip:], out))
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _as_scoped(x: Any) -> np.ndarray:
    """Floating-point draws in the precision of the scope; others as they are."""
    x = np.asarray(x)
    return x.astype(jax.dtypes.canonicalize_dtype(float), copy=False) if x.dtype.kind == "f" else x


@partial(jax.jit, static_argnames=("f", "static"))
def _batch(target: Target, key: Any, index: Any, values: Any, dynamic: Any, *, f: Callable, static: "_Static") -> Any:
    def one(i: Any, value: Any) -> Any:
        return f(jax.random.fold_in(key, i), target, value, *eqx.combine(dynamic, static.value))

    return jax.vmap(one)(jnp.asarray(index), values)


@partial(jax.jit, static_argnames=("f", "static"))
def _single(target: Target, key: Any, value: Any, dynamic: Any, *, f: Callable, static: "_Static") -> Any:
    """One draw's worth, for its shapes; at module level, so that a second call finds them."""
    return f(key, target, value, *eqx.combine(dynamic, static.value))


class _Static:
    """A pytree without arrays, hashable by its leaves' values."""

    def __init__(self, value: Any) -> None:
        self.value = value
        leaves, treedef = jax.tree.flatten(value)
        self._key = (treedef, tuple((type(leaf), leaf) for leaf in leaves))  # True == 1 == 1.0

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and self._key == other._key


@partial(jax.jit, static_argnames=("n",))
def draw_approximation(approximation: Any, key: PRNGKeyArray, *, n: int) -> tuple[Any, Any]:
    """`Approximation.sample_and_log_prob`, compiled; a second approximation of the same form finds the program."""
    return approximation.sample_and_log_prob(key, n)


@partial(jax.jit, static_argnames=("n",))
def draw_points(approximation: Any, key: PRNGKeyArray, *, n: int) -> Any:
    """`Approximation.sample_points`, compiled."""
    return approximation.sample_points(key, n)


@jax.jit
def approximation_log_prob(approximation: Any, u: Any) -> Any:
    """`Approximation.log_prob` at one u, or at each of a stack of them, compiled."""
    return jax.vmap(approximation.log_prob)(u) if u.ndim > 1 else approximation.log_prob(u)


@jax.jit
def augmented_log_prob(approximation: Any, u: Any, auxiliary: Any) -> Any:
    """`Augmented.augmented_log_prob` at each of a stack of u with their auxiliary variables, compiled."""
    return jax.vmap(approximation.augmented_log_prob)(u, auxiliary)


@partial(jax.jit, static_argnames=("n",))
def estimate_log_prob(approximation: Any, key: PRNGKeyArray, u: Any, *, n: int) -> tuple[Any, Any]:
    """`Augmented.estimate_log_prob` at each of a stack of u, compiled; some at a time, to bound memory."""
    keys = jax.random.split(key, len(u))
    return jax.lax.map(lambda both: approximation.estimate_log_prob(*both, n), (keys, u), batch_size=POINTS)


@partial(jax.jit, static_argnames=("n",))
def draw_augmented(approximation: Any, key: PRNGKeyArray, *, n: int) -> tuple[Any, Any, Any]:
    """`Augmented.sample_augmented`, compiled."""
    return approximation.sample_augmented(key, n)


@partial(jax.jit, static_argnames=("f", "n"))
def expectation(approximation: Any, target: Target, key: PRNGKeyArray, *, f: Callable, n: int) -> tuple[Any, Any]:
    """`Approximation.expect` of a function of the values by site, compiled."""
    return approximation.expect(key, lambda u: f(target.constrain(u)), n)


def value_at(key: PRNGKeyArray, target: Target, values: dict, f: Any) -> Any:
    """A user's function of the values by site, for `over_draws`."""
    del key, target
    return f(values)


def constrain_draw(key: PRNGKeyArray, target: Target, u: Any) -> dict:
    """`Target.draw`, for `over_draws`."""
    return target.draw(key, u)


def unconstrain_draw(key: PRNGKeyArray, target: Target, values: dict) -> Any:
    """`Target.unconstrain`, for `over_draws`."""
    del key
    return target.unconstrain(values)


def log_density_at(key: PRNGKeyArray, target: Target, u: Any) -> Any:
    """`Target.log_density`, for `over_draws`."""
    del key
    return target.log_density(u)


def log_likelihood_of(key: PRNGKeyArray, target: Target, values: dict) -> dict:
    """`Target.log_likelihood`, for `over_draws`."""
    del key
    return target.log_likelihood(values)


def prior_densities_of(key: PRNGKeyArray, target: Target, values: dict) -> dict:
    """`Target.prior_densities`, for `over_draws`."""
    del key
    return target.prior_densities(values)


def predict_draw(key: PRNGKeyArray, target: Target, values: dict, args: tuple, kwargs: dict) -> dict:
    """`Target.predictive`, for `over_draws`."""
    return target.predictive(key, values, *args, **kwargs)


def prior_draw(key: PRNGKeyArray, target: Target, nothing: Any) -> dict:
    """`Target.sample_prior`, for `over_draws`."""
    del nothing
    return target.sample_prior(key)
