"""New data: exact posteriors given features and noise, in closed form, and their updates of one rank per row.

With features and noise fixed the best dense q is Bayesian linear regression ([1]_, section 3; [2]_),

    P = diag(1/s) + Σ φφᵀ/σ²,    h = Σ φ y/σ²,    w̄ = P⁻¹ h,

and a new row adds φφᵀ/σ² to P: the Cholesky factor of P is updated in O(D²), and w̄ by the gain

    g = P⁻¹φ/σ² (after the update),    w̄ ← w̄ + g (y − w̄ᵀφ).

With the noise's precision inferred P ← P + φφᵀ, a ← a + ½ and b ← b + ½ (y − w̄ᵀφ)²/(1 + φᵀP⁻¹φ) (before the update).

References
----------
.. [1] J. Harrison, J. Willes, J. Snoek (2024). Variational Bayesian last layers. ICLR. arXiv:2404.11599.
.. [2] P. Brunzema et al. (2025). Bayesian optimization via continual variational last layer training. ICLR.
   arXiv:2412.09477.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument
from .covariance import DensePrecision, from_precision
from .regression import NormalHead, StudentTHead


def conjugate(head: Any, phi: Float[Array, "n d"], y: Float[Array, "n k"]) -> Any:
    """The head with the best q of its form given features, targets and noise (`StudentTHead`: its Gamma too).

    Raises
    ------
    InvalidArgument
        The head is of another kind, or of low rank.
    """
    _check(head)
    student = isinstance(head, StudentTHead)
    k = y.shape[1]
    weight = jnp.ones(k) if student else jnp.exp(-2 * head.log_sd)
    precision = jnp.diag(1 / head.prior) + weight[:, None, None] * (phi.T @ phi)
    moment = weight[:, None] * (y.T @ phi)
    mean = jax.vmap(lambda p, h: cho_solve((jnp.linalg.cholesky(p), True), h))(precision, moment)
    if head.shared:
        if not student:
            raise InvalidArgument(
                f"shared={head.shared} with noise of each output has no closed form; use shared=False."
            )
        precision = precision[:1]
    new = dataclasses.replace(head, weights=from_precision(head.covariance, mean, precision))
    if not student:
        return new
    # b₀ + ½ (Σ y² − w̄ᵀP w̄), written as a sum of squares.
    rest = jnp.sum((y - phi @ mean.T) ** 2, 0) + jnp.sum(mean**2 / head.prior, -1)
    shape = jnp.full((k,), head.shape + 0.5 * len(phi), phi.dtype)
    return dataclasses.replace(new, log_shape=jnp.log(shape), log_rate=jnp.log(head.rate + 0.5 * rest))


def rank_one(factor: Float[Array, "d d"], image: Float[Array, " d"]) -> Float[Array, "d d"]:
    """The lower Cholesky factor of L Lᵀ + x xᵀ from L and p = L⁻¹x, in O(D²) and without a loop.

    It is L K with K the factor of I + p pᵀ: with t_j = 1 + Σ_{l ≤ j} p_l², K_jj = √(t_j/t_{j−1}) and, below the
    diagonal, K_ij = p_i p_j/√(t_j t_{j−1}), so that a row of L K needs sums of L_ik p_k over k > j alone.
    """
    after = 1 + jnp.cumsum(image**2)
    before = jnp.concatenate([jnp.ones(1, after.dtype), after[:-1]])
    terms = factor * image
    beyond = jnp.cumsum(terms[:, ::-1], axis=1)[:, ::-1] - terms  # over k > j
    return jnp.tril(factor * jnp.sqrt(after / before) + beyond * (image / jnp.sqrt(after * before)))


def condition(head: Any, phi: Float[Array, "n d"], y: Float[Array, "n k"]) -> Any:
    """The head given new rows, one at a time in a scan; features and noise stay.

    Raises
    ------
    InvalidArgument
        The head is not a `NormalHead` or a `StudentTHead` with ``covariance="dense_precision"``.
    """
    _check(head)
    if not isinstance(head.weights, DensePrecision):
        raise InvalidArgument(
            f"new data update a factor of the precision, got covariance={head.covariance!r}; use "
            f"covariance='dense_precision'."
        )
    if head.shared:
        raise InvalidArgument(f"new data update each output's own S, got shared={head.shared}; use shared=False.")
    student = isinstance(head, StudentTHead)
    deviation = jnp.ones(y.shape[1]) if student else jnp.exp(head.log_sd)

    def one(carry: tuple[Array, Array, Array], row: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], None]:
        factor, mean, rate = carry
        phi, y = row

        def output(factor: Array, mean: Array, sd: Array, y: Array) -> tuple[Array, Array, Array]:
            residual = y - mean @ phi
            image = solve_triangular(factor, phi / sd, lower=True)
            wider = 1 + jnp.sum(image**2)
            gain = solve_triangular(factor, image, lower=True, trans=1) / (sd * wider)  # of P after the update
            return rank_one(factor, image), mean + gain * residual, 0.5 * residual**2 / wider

        factor, mean, gain = jax.vmap(output)(factor, mean, deviation, y)
        return (factor, mean, rate + gain), None

    start = (head.weights.factor(), head.weights.mean, jnp.zeros(y.shape[1], y.dtype))
    (factor, mean, gain), _ = jax.lax.scan(one, start, (phi, y))
    diagonal = jnp.log(jax.vmap(jnp.diag)(factor))
    new = dataclasses.replace(head, weights=DensePrecision(mean, diagonal, jnp.tril(factor, -1)))
    if not student:
        return new
    shape, rate = head.gamma
    return dataclasses.replace(new, log_shape=jnp.log(shape + 0.5 * len(y)), log_rate=jnp.log(rate + gain))


def _check(head: Any) -> None:
    if not isinstance(head, NormalHead | StudentTHead):
        raise InvalidArgument(
            f"new data have a closed form with a NormalHead or a StudentTHead, got {type(head).__name__}; train it "
            f"anew with VBLL(warm=True)."
        )
