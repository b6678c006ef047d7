"""Normal posteriors of the last layer's weights: q(w_k) = N(w̄_k, S_k) for outputs k = 1 … K, in four forms of S.

========================  ==================  =======================  =======================
form                      parameters          S                        cost of φᵀSφ
========================  ==================  =======================  =======================
``"dense"``               ℓ, strict lower U   L Lᵀ                     D², a product
``"dense_precision"``     ℓ, strict lower U   (L Lᵀ)⁻¹                 D², a triangular solve
``"diagonal"``            ℓ                   diag(e^{2ℓ})             D
``"low_rank"``            ℓ, U of r columns   diag(e^{2ℓ}) + U Uᵀ      D r
========================  ==================  =======================  =======================

L = diag(e^ℓ) + strict lower part of U. ℓ is the log of a *standard deviation* in all forms but the precision's, where
it is that of its inverse; it is held within [−20, 20] when used, so that no variance overflows in 32 bits. With
``shared`` one S serves all outputs (the leading axis of ℓ and U is 1 in place of K): a matrix-normal posterior.

Nothing here inverts a matrix or forms one of B × D × D.
"""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.errors import InvalidArgument
from ...infer.validate import check_choice, check_count

FORMS = ("dense", "dense_precision", "diagonal", "low_rank")
MOST_NUMBERS = 2**28
LARGEST = 20.0


class AbstractWeights(eqx.Module):
    """q(w_k) = N(mean_k, S_k), independent over outputs.

    Attributes
    ----------
    mean
        w̄, shape (K, D).
    log_scale
        ℓ, shape (K, D), or (1, D) where S is shared.
    """

    mean: eqx.AbstractVar[Float[Array, "k d"]]
    log_scale: eqx.AbstractVar[Float[Array, "c d"]]

    @abc.abstractmethod
    def quadratic(self, phi: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """φᵀ S_k φ of each row φ."""

    @abc.abstractmethod
    def cross(self, phi: Float[Array, "n d"], other: Float[Array, "m d"]) -> Float[Array, "k n m"]:
        """φᵀ S_k φ′ of all pairs of rows."""

    @abc.abstractmethod
    def log_dets(self) -> Float[Array, " k"]:
        """Log |S_k|."""

    @abc.abstractmethod
    def variances(self) -> Float[Array, "k d"]:
        """Diagonals of S_k."""

    @abc.abstractmethod
    def offsets(self, key: PRNGKeyArray) -> Float[Array, "k d"]:
        """One draw of N(0, S_k) for each k."""

    @abc.abstractmethod
    def mahalanobis(self, x: Float[Array, "k d"]) -> Float[Array, " k"]:
        """x_kᵀ S_k⁻¹ x_k."""

    def means(self, phi: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """w̄_kᵀ φ of each row φ."""
        return phi @ self.mean.T

    def offset_log_prob(self, x: Float[Array, "k d"]) -> Float[Array, " k"]:
        """Log N(x_k; 0, S_k)."""
        d = self.mean.shape[1]
        return -0.5 * (self.mahalanobis(x) + self.log_dets() + d * math.log(2 * math.pi))

    def divergences(self, prior: Float[Array, " d"], second: Any = 1.0) -> Float[Array, " k"]:
        """KL(N(w̄_k, S_k) ‖ N(0, diag(prior))) for each k, with its −D/2.

        ``second``, of shape (K,), multiplies the squared mean: E τ_k, where q and prior are both scaled by 1/τ_k.
        """
        trace = jnp.sum(self.variances() / prior, -1)
        square = second * jnp.sum(self.mean**2 / prior, -1)
        return 0.5 * (square + trace - prior.shape[0] + jnp.sum(jnp.log(prior)) - self.log_dets())

    def covariances(self) -> Float[Array, "k d d"]:
        """S_k as matrices."""
        eye = jnp.eye(self.mean.shape[1], dtype=self.mean.dtype)
        return self.cross(eye, eye)

    def _scale(self) -> Float[Array, "c d"]:
        return jnp.exp(jnp.clip(self.log_scale, -LARGEST, LARGEST))

    def _over(self, x: Array, axis: int) -> Array:
        """With its axis of length 1 or K made K."""
        return jnp.repeat(x, self.mean.shape[0], axis) if x.shape[axis] != self.mean.shape[0] else x


class AbstractTriangular(AbstractWeights):
    """Both dense forms: a triangular factor L."""

    lower: eqx.AbstractVar[Float[Array, "c d d"]]

    def factor(self) -> Float[Array, "c d d"]:
        """L, of shape (K, D, D), or (1, D, D) where S is shared."""
        return jnp.tril(self.lower, -1) + jax.vmap(jnp.diag)(self._scale())


class Dense(AbstractTriangular):
    """S = L Lᵀ."""

    mean: Float[Array, "k d"]
    log_scale: Float[Array, "c d"]
    lower: Float[Array, "c d d"]

    def quadratic(self, phi: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """‖Lᵀφ‖²."""
        one = lambda lower, scale: jnp.sum((phi @ jnp.tril(lower, -1) + phi * scale) ** 2, -1)  # noqa: E731
        if len(self.lower) == 1:  # a product with a batch of one is slower than a plain one
            return self._over(one(self.lower[0], self._scale()[0])[:, None], 1)
        return self._over(jax.vmap(one, out_axes=1)(self.lower, self._scale()), 1)

    def cross(self, phi: Float[Array, "n d"], other: Float[Array, "m d"]) -> Float[Array, "k n m"]:
        """φᵀ L Lᵀ φ′."""
        return self._over(jax.vmap(lambda factor: (phi @ factor) @ (other @ factor).T)(self.factor()), 0)

    def log_dets(self) -> Float[Array, " k"]:
        """2 Σ ℓ."""
        return self._over(2 * jnp.sum(jnp.log(self._scale()), -1), 0)

    def variances(self) -> Float[Array, "k d"]:
        """Squared lengths of the rows of L."""
        return self._over(jnp.sum(self.factor() ** 2, -1), 0)

    def offsets(self, key: PRNGKeyArray) -> Float[Array, "k d"]:
        """L z."""
        z = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return jnp.einsum("kij,kj->ki", self._over(self.factor(), 0), z)

    def mahalanobis(self, x: Float[Array, "k d"]) -> Float[Array, " k"]:
        """‖L⁻¹x‖²."""
        solve = jax.vmap(lambda factor, x: solve_triangular(factor, x, lower=True))
        return jnp.sum(solve(self._over(self.factor(), 0), x) ** 2, -1)


class DensePrecision(AbstractTriangular):
    """S = (L Lᵀ)⁻¹: what data add to L is one rank each, see `online`."""

    mean: Float[Array, "k d"]
    log_scale: Float[Array, "c d"]
    lower: Float[Array, "c d d"]

    def quadratic(self, phi: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """‖L⁻¹φ‖²."""
        return self._over(jnp.sum(self._solved(phi) ** 2, 1).T, 1)

    def cross(self, phi: Float[Array, "n d"], other: Float[Array, "m d"]) -> Float[Array, "k n m"]:
        """(L⁻¹φ)ᵀ L⁻¹φ′."""
        return self._over(jnp.einsum("cdn,cdm->cnm", self._solved(phi), self._solved(other)), 0)

    def log_dets(self) -> Float[Array, " k"]:
        """−2 Σ ℓ."""
        return self._over(-2 * jnp.sum(jnp.log(self._scale()), -1), 0)

    def variances(self) -> Float[Array, "k d"]:
        """Squared lengths of the columns of L⁻¹."""
        eye = jnp.eye(self.mean.shape[1], dtype=self.mean.dtype)
        return self._over(jnp.sum(self._solved(eye) ** 2, 1), 0)

    def offsets(self, key: PRNGKeyArray) -> Float[Array, "k d"]:
        """L⁻ᵀ z."""
        z = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        solve = jax.vmap(lambda factor, z: solve_triangular(factor, z, lower=True, trans=1))
        return solve(self._over(self.factor(), 0), z)

    def mahalanobis(self, x: Float[Array, "k d"]) -> Float[Array, " k"]:
        """‖Lᵀx‖²."""
        return jnp.sum(jnp.einsum("kij,ki->kj", self._over(self.factor(), 0), x) ** 2, -1)

    def _solved(self, phi: Array) -> Float[Array, "c d n"]:
        return jax.vmap(lambda factor: solve_triangular(factor, phi.T, lower=True))(self.factor())


class Diagonal(AbstractWeights):
    """S = diag(e^{2ℓ})."""

    mean: Float[Array, "k d"]
    log_scale: Float[Array, "c d"]

    def quadratic(self, phi: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Σ e^{2ℓ} φ²."""
        return self._over(phi**2 @ (self._scale() ** 2).T, 1)

    def cross(self, phi: Float[Array, "n d"], other: Float[Array, "m d"]) -> Float[Array, "k n m"]:
        """Σ e^{2ℓ} φ φ′."""
        return self._over(jax.vmap(lambda variance: (phi * variance) @ other.T)(self._scale() ** 2), 0)

    def log_dets(self) -> Float[Array, " k"]:
        """2 Σ ℓ."""
        return self._over(2 * jnp.sum(jnp.log(self._scale()), -1), 0)

    def variances(self) -> Float[Array, "k d"]:
        """e^{2ℓ}."""
        return self._over(self._scale() ** 2, 0)

    def offsets(self, key: PRNGKeyArray) -> Float[Array, "k d"]:
        """e^ℓ z."""
        return self._scale() * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def mahalanobis(self, x: Float[Array, "k d"]) -> Float[Array, " k"]:
        """Σ x² e^{−2ℓ}."""
        return jnp.sum((x / self._scale()) ** 2, -1)


class LowRank(AbstractWeights):
    """S = diag(e^{2ℓ}) + U Uᵀ."""

    mean: Float[Array, "k d"]
    log_scale: Float[Array, "c d"]
    factors: Float[Array, "c d r"]

    def quadratic(self, phi: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Σ e^{2ℓ} φ² + ‖Uᵀφ‖²."""
        spread = jnp.sum(jnp.einsum("nd,cdr->ncr", phi, self.factors) ** 2, -1)
        return self._over(phi**2 @ (self._scale() ** 2).T + spread, 1)

    def cross(self, phi: Float[Array, "n d"], other: Float[Array, "m d"]) -> Float[Array, "k n m"]:
        """Σ e^{2ℓ} φ φ′ + (Uᵀφ)ᵀ Uᵀφ′."""
        one = lambda variance, u: (phi * variance) @ other.T + (phi @ u) @ (other @ u).T  # noqa: E731
        return self._over(jax.vmap(one)(self._scale() ** 2, self.factors), 0)

    def log_dets(self) -> Float[Array, " k"]:
        """2 Σ ℓ + log |I + Uᵀ diag(e^{−2ℓ}) U|, by the Cholesky factor of an r × r matrix."""
        inner = jnp.diagonal(self._inner(), axis1=-2, axis2=-1)
        return self._over(2 * jnp.sum(jnp.log(self._scale()), -1) + 2 * jnp.sum(jnp.log(inner), -1), 0)

    def variances(self) -> Float[Array, "k d"]:
        """e^{2ℓ} + Σ U²."""
        return self._over(self._scale() ** 2 + jnp.sum(self.factors**2, -1), 0)

    def offsets(self, key: PRNGKeyArray) -> Float[Array, "k d"]:
        """e^ℓ z + U z′."""
        key_diagonal, key_factors = jax.random.split(key)
        z = jax.random.normal(key_diagonal, self.mean.shape, self.mean.dtype)
        other = jax.random.normal(key_factors, (self.mean.shape[0], self.factors.shape[-1]), self.mean.dtype)
        return self._scale() * z + jnp.einsum("kdr,kr->kd", self._over(self.factors, 0), other)

    def mahalanobis(self, x: Float[Array, "k d"]) -> Float[Array, " k"]:
        """By Woodbury's identity."""
        scaled = x / self._scale() ** 2
        image = jnp.einsum("kdr,kd->kr", self._over(self.factors, 0), scaled)
        solve = jax.vmap(lambda factor, z: solve_triangular(factor, z, lower=True))
        return jnp.sum(x * scaled, -1) - jnp.sum(solve(self._over(self._inner(), 0), image) ** 2, -1)

    def _inner(self) -> Float[Array, "c r r"]:
        """Cholesky factor of I + Uᵀ diag(e^{−2ℓ}) U."""
        scaled = self.factors / self._scale()[..., None]
        eye = jnp.eye(self.factors.shape[-1], dtype=self.mean.dtype)
        return jnp.linalg.cholesky(eye + jnp.einsum("cdr,cds->crs", scaled, scaled))


def check_form(form: str, rank: int | None, shared: Any = False) -> None:
    """Raise `InvalidArgument` unless the form is known and has a rank where it needs one."""
    check_choice("covariance", form, FORMS)
    if not isinstance(shared, bool):
        raise InvalidArgument(f"shared must be True (one S for all outputs) or False (one each), got {shared!r}.")
    if form == "low_rank":
        if rank is None:
            raise InvalidArgument(f"covariance='low_rank' needs a rank, got rank={rank}; try rank=4.")
        check_count("rank", rank)
    elif rank is not None:
        raise InvalidArgument(f"rank={rank} is for covariance='low_rank', got covariance={form!r}; leave it out.")


def check_size(form: str, num_outputs: int, num_features: int, shared: bool) -> None:
    """Raise `InvalidArgument` where a dense form would need more than 2²⁸ numbers."""
    copies = 1 if shared else num_outputs
    numbers = copies * num_features**2
    if form.startswith("dense") and numbers > MOST_NUMBERS:
        raise InvalidArgument(
            f"covariance={form!r} of {copies} outputs and {num_features} features has {numbers:,} numbers, more than "
            f"{MOST_NUMBERS:,}; use covariance='diagonal' or covariance='low_rank' with a rank."
        )


def first_weights(
    key: PRNGKeyArray,
    form: str,
    num_outputs: int,
    num_features: int,
    *,
    rank: int | None = None,
    shared: bool = False,
    log_scale: float | None = None,
    mean_scale: float | None = None,
) -> Any:
    """Where training begins: w̄ ~ N(0, 2/D), S = e^{2ℓ} I with ℓ = −½ log D unless given.

    The columns of a low rank start at N(0, 1)/D: at zero their gradient would vanish for ever.
    """
    check_form(form, rank, shared)
    check_size(form, num_outputs, num_features, shared)
    k, d, c = num_outputs, num_features, 1 if shared else num_outputs
    spread = math.sqrt(2 / d) if mean_scale is None else mean_scale
    scale = -0.5 * math.log(d) if log_scale is None else log_scale
    key_mean, key_factors = jax.random.split(key)
    mean = spread * jax.random.normal(key_mean, (k, d), float)
    first = jnp.full((c, d), -scale if form == "dense_precision" else scale, float)
    if form == "diagonal":
        return Diagonal(mean, first)
    if form == "low_rank":
        return LowRank(mean, first, jax.random.normal(key_factors, (c, d, rank or 1), float) / d)
    return (Dense if form == "dense" else DensePrecision)(mean, first, jnp.zeros((c, d, d), float))


def from_precision(form: str, mean: Float[Array, "k d"], precision: Float[Array, "c d d"]) -> Any:
    """The best q of a form, in KL(q ‖ p), for the normal posterior with these means and precisions.

    Dense forms are exact; the diagonal is S_dd = 1/P_dd. A low rank has no closed form.

    Raises
    ------
    InvalidArgument
        ``form`` is ``"low_rank"``.
    """
    if form == "low_rank":
        raise InvalidArgument(f"covariance={form!r} has no closed form; use a dense or the diagonal one.")
    if form == "diagonal":
        return Diagonal(mean, -0.5 * jnp.log(jax.vmap(jnp.diagonal)(precision)))
    factor = jnp.linalg.cholesky(precision)
    if form == "dense":  # P = L Lᵀ, S = L⁻ᵀ L⁻¹: its own lower factor is that of the inverse
        eye = jnp.eye(mean.shape[1], dtype=mean.dtype)
        inverse = jax.vmap(lambda lower: solve_triangular(lower, eye, lower=True))(factor)
        factor = jnp.linalg.cholesky(jnp.einsum("cdi,cdj->cij", inverse, inverse))
        return Dense(mean, _log_diagonal(factor), jnp.tril(factor, -1))
    return DensePrecision(mean, _log_diagonal(factor), jnp.tril(factor, -1))


def _log_diagonal(factor: Float[Array, "c d d"]) -> Float[Array, "c d"]:
    return jnp.log(jax.vmap(jnp.diagonal)(factor))
