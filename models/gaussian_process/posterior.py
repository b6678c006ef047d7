"""`LatentPosterior`: a Gaussian of the latent process at the data, and what it says elsewhere."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.approximation import Approximation
from ...infer.errors import NotAvailable
from ...infer.run.precision import precision
from ...infer.target import Target
from ...infer.validate import check_count
from ...infer.variational.sparse_cholesky.factor import ancestor_solve, forward, times_transpose
from .fixed_point import Problem, posterior_factor
from .latent import NEIGHBORS, LatentGP, check_new, conditional, nearest

COVARIANCE = 5000
SOLVE_BYTES = 64 * 2**20


class Prediction(NamedTuple):
    """Marginals at new inputs, NumPy arrays of shape (k,).

    Parameters
    ----------
    mean, variance
        Of f.
    likelihood
        Of y given f.
    """

    mean: np.ndarray
    variance: np.ndarray
    likelihood: Any

    def sample(self, key: Any = 0, num_samples: int = 1000) -> np.ndarray:
        """Draws of y, each input by itself, shape (num_samples, k)."""
        from ...infer.run.plan import jax_key

        with precision(64):
            key_f, key_y = jax.random.split(jax_key(key))
            f = self.mean + np.sqrt(self.variance) * jax.random.normal(key_f, (num_samples, len(self.mean)))
            return np.asarray(self.likelihood.distribution(f).sample(key_y))

    def observed(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of y, by quadrature over f."""
        with precision(64):
            f, weight = self.likelihood.rule(jnp.asarray(self.mean), jnp.asarray(self.variance))
            given = self.likelihood.distribution(f)
            mean = given.mean @ weight
            return np.asarray(mean), np.asarray((given.variance + (given.mean - mean[:, None]) ** 2) @ weight)

    def log_prob(self, y: Any) -> np.ndarray:
        """Log predictive density of observations at the inputs, by quadrature over f."""
        with precision(64):
            f, weight = self.likelihood.rule(jnp.asarray(self.mean), jnp.asarray(self.variance))
            each = jax.vmap(jax.vmap(self.likelihood.log_prob, (0, None)))(f, jnp.asarray(y, float))
            return np.asarray(jax.scipy.special.logsumexp(each, axis=1, b=weight))


class LatentPosterior(Approximation):
    """N(ν, (V Vᵀ)⁻¹) of f at the data, in the order of the data.

    Parameters
    ----------
    gp
        The process at its learned hyper-parameters, with the sparse prior.
    loc
        ν, shape (n,).
    values
        V in maximin order, shape (n, m).
    variance
        Marginal variances of f at the data, shape (n,).
    elbo
        Of log p̂(y), the evidence under the sparse prior: not comparable between orders, patterns and nuggets.
    """

    gp: LatentGP
    loc: Float[Array, " n"]
    values: Float[Array, "n m"]
    variance: Float[Array, " n"]
    elbo: Float[Array, ""]

    @classmethod
    def at_sites(cls, gp: LatentGP, mean: Array, variance: Array, site: Array, elbo: Array) -> "LatentPosterior":
        """From the means and the sites' precisions, in the order of the data."""
        return cls(gp, mean, _factor(gp, site), variance, elbo)

    def fitted_target(self, target: Target) -> LatentGP:
        """The process at the hyper-parameters learned, with the sparse prior."""
        del target
        return self.gp

    # -- a density ----------------------------------------------------------------------------------------------------

    @property
    def _order(self) -> Int[Array, " n"]:
        return self._structure.order

    @property
    def _structure(self) -> Any:
        return self.gp.factors_of

    def transport(self, z: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """ν + V⁻ᵀ z, and −Σ log V_ii."""
        shift = forward(self._structure, self.values, z)
        return self.loc.at[self._order].add(shift), -jnp.sum(jnp.log(self.values[:, -1]))

    def pull(self, u: Float[Array, " n"]) -> Float[Array, " n"]:
        """Vᵀ (f − ν)."""
        return times_transpose(self._structure, self.values, (u - self.loc)[self._order])

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "k n"], Float[Array, " k"]]:
        """``n`` independent draws of f at the data and their log densities."""
        z = jax.random.normal(key, (n, self.loc.shape[0]), self.loc.dtype)
        draws, log_det = jax.vmap(self.transport)(z)
        return draws, -0.5 * jnp.sum(z**2 + jnp.log(2 * jnp.pi), axis=1) - log_det

    def log_prob(self, u: Float[Array, " n"]) -> Float[Array, ""]:
        """Log density at ``u``."""
        z = self.pull(u)
        return -0.5 * jnp.sum(z**2 + jnp.log(2 * jnp.pi)) + jnp.sum(jnp.log(self.values[:, -1]))

    def mean(self) -> Float[Array, " n"]:
        """ν."""
        return self.loc

    def covariance(self) -> Float[Array, "n n"]:
        """(V Vᵀ)⁻¹, dense; for at most 5,000 observations."""
        n = self.loc.shape[0]
        if n > COVARIANCE:
            raise NotAvailable(f"covariance of {n:,} values is dense; use `variance`, or draws.")
        root = jax.vmap(lambda z: self.transport(z)[0] - self.loc)(jnp.eye(n, dtype=self.loc.dtype))
        return root.T @ root

    # -- elsewhere ----------------------------------------------------------------------------------------------------

    def predict(self, X: Any, *, num_neighbors: int = NEIGHBORS) -> Prediction:
        """Marginals of f at new inputs, each from its nearest rows of the data.

        f_* given f at the nearest rows s is normal with weights b on them, so that its mean is μ_* + bᵀ (ν_s − μ_s) and
        its variance that of the condition plus |V⁻¹ b|², solved on the ancestors of s.

        Parameters
        ----------
        X
            Shape (k, d), or (k,) of one input.
        num_neighbors
            Of the data, for each new input; does not depend on the pattern.
        """
        check_count("num_neighbors", num_neighbors)
        with precision(64):
            x = check_new(self.gp, X)
            data = np.asarray(self.gp.X)
            near = nearest(self.gp.kernel.scales(data.shape[1]), data, x, num_neighbors)
            weight, prior, own = _conditional(self.gp, x, near)
            mu = self.gp.mean.at(jnp.asarray(data))
            mean = prior + jnp.sum(weight * (self.loc - mu)[near], 1)
            spread = self._spread(near, np.asarray(weight))
            return Prediction(np.asarray(mean), np.asarray(own) + spread, self.gp.likelihood)

    def _spread(self, near: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """|V⁻¹ b|² of weights b on rows of the data, over the union of their reduced ancestors."""
        n, order = len(self.loc), np.asarray(self._order)
        place = np.empty(n, np.int64)
        place[order] = np.arange(n)
        ancestors = np.asarray(self._structure.ancestors)
        index = place[near]
        unions = []
        for row in index:
            union = np.unique(ancestors[row])
            unions.append(union[union >= 0])
        width = -(-max(map(len, unions)) // 64) * 64
        table = np.full((len(near), width), -1, np.int32)
        for row, union in zip(table, unions, strict=True):
            row[width - len(union) :] = union
        batch = max(1, min(len(near), SOLVE_BYTES // (8 * width * width)))
        return np.asarray(_spread(self, jnp.asarray(table), jnp.asarray(index), jnp.asarray(weight), batch=batch))


@jax.jit
def _conditional(gp: LatentGP, x: Array, near: Array) -> tuple[Array, Array, Array]:
    return conditional(gp, jnp.asarray(x), near)


@eqx.filter_jit
def _factor(gp: LatentGP, site: Array) -> Array:
    s = gp.factors_of
    assert s is not None
    mu, y = jnp.zeros(gp.dim), jnp.asarray(gp.y, float)
    return posterior_factor(Problem(s, gp.columns(s), mu, gp.likelihood, y), site[s.order])[0]


@eqx.filter_jit
def _spread(q: LatentPosterior, table: Array, index: Array, weight: Array, *, batch: int) -> Array:
    width = table.shape[1]

    def one(at: tuple) -> Array:
        union, index, weight = at
        b = jnp.zeros(width, weight.dtype).at[jnp.searchsorted(union, index)].add(weight)
        return jnp.sum(ancestor_solve(q._structure, q.values, union, b[:, None]) ** 2)

    return jax.lax.map(one, (table, index, weight), batch_size=batch)
