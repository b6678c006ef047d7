"""Guides that are functions of the observation, trained with their model; and the noise of a gradient, by block."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .estimators import Estimate, Estimator, ScoreFunction
from .objectives import Objective
from .surrogates import split


def amortised(
    estimator: Estimator,
    objective: Objective,
    trained: Any,
    build: Callable[[Any, Any], tuple[Any, Callable]],
    data: Any,
    key: PRNGKeyArray,
) -> Estimate:
    """Mean over observations of an objective whose guide (and model) are functions of the observation.

    Parameters
    ----------
    trained
        Pytree of what is trained, e.g. an encoder and a decoder.
    build
        (trained, datum) ↦ (q, log_density) of that datum's latent u.
    data
        Pytree of arrays with a leading axis of B observations, e.g. a mini-batch.

    Returns
    -------
    Estimate
        Mean value, log weights (B, M, K), gradient in ``trained``; multiply by n / B for the sum over n observations.
    """
    params, static = split(trained)
    size = jax.tree.leaves(data)[0].shape[0]

    def loss(params: Any) -> Any:
        def one(datum: Any, key: PRNGKeyArray) -> Any:
            q, log_density = build(eqx.combine(params, static), datum)
            return estimator.surrogate(objective, q, log_density, key)

        totals, (values, log_w) = jax.vmap(one)(data, jax.random.split(key, size))
        return jnp.mean(totals), (jnp.mean(values), log_w)

    (_, (value, log_w)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return Estimate(value, log_w, grads)


def gradient_noise(
    estimator: Estimator, objective: Objective, q: Any, log_density: Any, key: PRNGKeyArray, num_probes: int = 16
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Squared length of the mean gradient and trace of its covariance, for each block of parameters of q.

    A block is a field of q (or of its bijection, where q is a flow); both are from ``num_probes`` independent gradients
    of one term each (M = 1), and the first is corrected for its own noise, so that it may come out negative.

    Returns
    -------
    dict
        Name of the block → (‖E g‖², tr Var g), scalars.
    """
    least = 2 if isinstance(estimator, ScoreFunction) and objective.num_samples == 1 else 1
    one = lambda key: estimator.value_and_grad(objective, q, log_density, key, num_draws=least).grads  # noqa: E731
    grads = jax.lax.map(one, jax.random.split(key, num_probes))
    blocks: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path[: 3 if hasattr(q, "bijection") else 1]).lstrip(".")
        blocks.setdefault(name, []).append(leaf.reshape(num_probes, -1))
    found = {}
    for name, leaves in blocks.items():
        g = jnp.concatenate(leaves, 1)
        noise = jnp.sum(jnp.var(g, axis=0, ddof=1))
        found[name] = (jnp.sum(jnp.mean(g, 0) ** 2) - noise / num_probes, noise)
    return found
