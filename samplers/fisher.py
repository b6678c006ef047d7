"""A dense metric from draws and their gradients: the one of least Fisher divergence.

Whitened by u = F w, a Gaussian posterior is standard, and so are its scores. The metric M = F Fᵀ for which draws and
scores are as near to that as can be is the geometric mean of the draws' covariance C and the inverse of the scores'
covariance S (Seyboldt, Carlson & Carpenter 2024, Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
divergence),

    M = C # S⁻¹ = L (Lᵀ S L)^{-1/2} Lᵀ,    C = L Lᵀ.

For a Gaussian S = Σ⁻¹ C Σ⁻¹ in every sample, so that M = Σ from d + 1 draws on, without sampling error. An iteration
costs O(d²) for two second moments, which take the place of buffers of draws; the end of a window O(d³).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .metric import Factor

PRIOR_DRAWS = 5.0


class FisherState(NamedTuple):
    """Moments of the window's draws and scores, and the metric in force.

    Parameters
    ----------
    inverse_mass_matrix
        `Factor` of the metric.
    count
        Number of draws, as a float.
    mean
        Means of draws and of scores, shape (2, d).
    moment
        Sums of the outer products of their deviations, shape (2, d, d).
    """

    inverse_mass_matrix: Factor
    count: Float[Array, ""]
    mean: Float[Array, "2 d"]
    moment: Float[Array, "2 d d"]


def init(dim: int) -> FisherState:
    """Nothing seen; the metric is the identity."""
    return FisherState(Factor(jnp.eye(dim), jnp.eye(dim)), jnp.zeros(()), jnp.zeros((2, dim)), jnp.zeros((2, dim, dim)))


def update(state: FisherState, draw: Array, score: Array, good: Array) -> FisherState:
    """See one more draw and its score, if it is a good one (Welford's update, forgetting all where the count is 0)."""
    count = state.count + good
    seen = jnp.where(good, jnp.stack([draw, score]), state.mean)
    delta = seen - jnp.where(state.count > 0, state.mean, 0.0)
    mean = seen - delta * (state.count / jnp.maximum(count, 1.0))
    outer = delta[:, :, None] * delta[:, None, :] * (state.count / jnp.maximum(count, 1.0))
    moment = jnp.where(state.count > 0, state.moment, 0.0) + outer
    return FisherState(state.inverse_mass_matrix, count, mean, moment)


def final(state: FisherState, age: Array) -> FisherState:
    """End of a window: the metric of its draws, diagonal in the first one (``age`` 0)."""
    draws, scores = state.moment / jnp.maximum(state.count - 1.0, 1.0)
    metric = jax.lax.cond(age > 0, refined, scales, state.inverse_mass_matrix, draws, scores, state.count)
    # A count of 0 makes the next update forget the moments, which need not be written here.
    return state._replace(inverse_mass_matrix=metric, count=0.0 * state.count)


def scales(present: Factor, draws: Array, scores: Array, count: Array) -> Factor:
    """The diagonal metric sd(draws) / sd(scores)."""
    del present, count
    scale = (jnp.diagonal(draws) / jnp.diagonal(scores)) ** 0.25
    return Factor(jnp.diag(scale), jnp.diag(1.0 / scale))


def refined(present: Factor, draws: Array, scores: Array, count: Array) -> Factor:
    """The metric C # S⁻¹, in whose estimate the present one weighs as much as `PRIOR_DRAWS` draws.

    In coordinates whitened by the present metric, and scaled, both covariances are shrunk towards the identity: where
    draws are too few to tell, what is known stays, and a present metric that is far off gives way within some windows.
    """
    root, inverse = present
    draws, scores = inverse @ draws @ inverse.T, root.T @ scores @ root
    scale = (jnp.diagonal(draws) / jnp.diagonal(scores)) ** 0.25
    root, inverse = root * scale, inverse / scale[:, None]
    eye = jnp.eye(len(draws))
    draws = (count * draws / (scale[:, None] * scale) + PRIOR_DRAWS * eye) / (count + PRIOR_DRAWS)
    scores = (count * scores * (scale[:, None] * scale) + PRIOR_DRAWS * eye) / (count + PRIOR_DRAWS)
    # C # S⁻¹ = H Hᵀ with H = L (Lᵀ S L)^{-1/4}, C = L Lᵀ; the second decomposition makes its inverse a transpose.
    lower = jnp.linalg.cholesky(draws)
    values, vectors = jnp.linalg.eigh(lower.T @ scores @ lower)
    half = lower @ (vectors * values**-0.25)
    variances, axes = jnp.linalg.eigh(half @ half.T)
    stretch = jnp.sqrt(variances)
    return Factor(root @ (axes * stretch), (axes / stretch).T @ inverse)
