"""`SparsePosterior`: what `DoubleKL` and `VecchiaLaplace` find, a Gaussian whose precision has a sparse factor."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.run.precision import precision
from ...infer.validate import check_count
from ...infer.variational.sparse_cholesky.factor import (
    Structure,
    ancestor_solve,
    forward,
    prior_columns,
    times_transpose,
)
from ...infer.variational.sparse_cholesky.ordering import nearest_pattern
from .fixed_point import Iteration, Rule, settle
from .latent import NEIGHBORS, LatentGP, check_new, conditional_at, nearest
from .pattern import Extent, build_pattern, make_problem
from .posterior import LatentPosterior, Prediction, with_observations

SOLVE_BYTES = 64 * 2**20
DRAW_BYTES = 128 * 2**20


class SparsePosterior(LatentPosterior):
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
    rho, neighbors
        How the pattern was chosen, see `DoubleKL`.
    rule
        How q was, see `fixed_point`. With "laplace" `elbo` is Laplace's approximation of log p̂(y), not a bound.
    """

    gp: LatentGP
    loc: Float[Array, " n"]
    values: Float[Array, "n m"]
    variance: Float[Array, " n"]
    elbo: Float[Array, ""]
    rho: float | Literal["auto"] | None = eqx.field(static=True, default=None)
    neighbors: int | None = eqx.field(static=True, default=None)
    rule: Rule = eqx.field(static=True, default="kl")

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

    def _covariance(self) -> Float[Array, "n n"]:
        """(V Vᵀ)⁻¹."""
        root = jax.vmap(lambda z: self.transport(z)[0] - self.loc)(jnp.eye(len(self.loc), dtype=self.loc.dtype))
        return root.T @ root

    # -- elsewhere ----------------------------------------------------------------------------------------------------

    def predict(self, X: Any, *, gradients: bool = False, num_neighbors: int = NEIGHBORS) -> Prediction:
        """Marginals of f at new inputs, each from its nearest rows of the data.

        f_* given f at the nearest rows s is normal with weights b on them, so that its mean is μ_* + bᵀ (ν_s − μ_s) and
        its variance that of the condition plus |V⁻¹ b|², solved on the ancestors of s.

        Parameters
        ----------
        X
            Shape (k, d), or (k,) of one input.
        gradients
            Whether derivatives of mean and variance by the inputs are wanted too. They are those at fixed neighbours:
            where the nearest rows change, mean and variance jump a little.
        num_neighbors
            Of the data, for each new input; does not depend on the pattern.
        """
        check_count("num_neighbors", num_neighbors)
        with precision(64):
            x = check_new(self.gp, X)
            data = np.asarray(self.gp.X)
            near = nearest(self.gp.kernel.scales(data.shape[1]), data, x, num_neighbors)
            table, index = self._unions(near)
            width = table.shape[1]
            batch = max(1, min(len(x), SOLVE_BYTES // (8 * width * (width + 4 * num_neighbors))))
            found = _predict(self, *map(jnp.asarray, (x, near, table, index)), batch=batch, gradients=gradients)
            mean, variance, *slopes = map(np.asarray, found)
            return Prediction(mean, variance, self.gp.likelihood, *slopes)

    def sample_jointly(
        self, X: Any, key: Any = 0, num_samples: int = 1000, *, num_neighbors: int = NEIGHBORS
    ) -> np.ndarray:
        """Draws of f at new inputs that are coherent over them, shape (num_samples, k).

        New inputs come one after the other, in random order, each given its nearest rows of the data and its nearest
        new inputs before it, as many of each.

        Parameters
        ----------
        X
            Shape (k, d), or (k,) of one input.
        key
            Integer or JAX key.
        num_samples
            Number of draws.
        num_neighbors
            Rows of the data, and new inputs, that each new input is drawn given.
        """
        from ...infer.run.plan import jax_key

        check_count("num_neighbors", num_neighbors)
        check_count("num_samples", num_samples)
        with precision(64):
            x = check_new(self.gp, X)
            data, k = np.asarray(self.gp.X), len(x)
            order = np.random.default_rng(0).permutation(k)
            scale = np.asarray(self.gp.kernel.scales(data.shape[1]))
            near = nearest(scale, data, x[order], num_neighbors)
            before = nearest_pattern(x[order] / scale, min(num_neighbors, max(k - 1, 1)))[0].padded()
            total = len(data) + k
            columns = np.concatenate([near, np.where(before < 0, total, before + len(data))], 1).astype(np.int32)
            draws = _jointly(self, jax_key(key), jnp.asarray(x[order]), jnp.asarray(columns), num_samples=num_samples)
            back = np.empty((num_samples, k))
            back[:, order] = np.asarray(draws)
            return back

    def condition(self, X: Any, y: Any, *, tolerance: float = 1e-4, max_iterations: int = 50) -> "SparsePosterior":
        """See `LatentPosterior.condition`.

        Order, pattern and factors are those of all rows; means and variances begin with what is predicted here.
        """
        with precision(64):
            new, gp = with_observations(self.gp, X, y)
            there = self.predict(new)
            s = build_pattern(gp, Extent(self.rho, self.neighbors), nearer=self.rule == "laplace")
            order = np.asarray(s.order)
            mean = np.concatenate([self.loc, there.mean])[order]
            variance = np.concatenate([self.variance, there.variance])[order]
            found = _settle(gp, s, jnp.asarray(mean), jnp.asarray(variance), tolerance, max_iterations, self.rule)
            back = lambda z: jnp.zeros_like(z).at[s.order].set(z)  # noqa: E731
            return SparsePosterior(
                gp.with_structure(s), back(found.mean), found.values, back(found.variance), found.elbo, self.rho,
                self.neighbors, self.rule,
            )  # fmt: skip

    def _unions(self, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each list of rows of the data, the union of reduced ancestors, padded with −1, and places in the order."""
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
        return table, index


@eqx.filter_jit
def _predict(
    q: SparsePosterior, x: Array, near: Array, table: Array, index: Array, *, batch: int, gradients: bool
) -> tuple[Array, ...]:
    """Mean and variance at new inputs, and their derivatives if wanted; |V⁻¹ b|² over the union of ancestors."""
    gp, width = q.gp, table.shape[1]
    above = q.loc - gp.mean.at(jnp.asarray(gp.X))

    def moments(new: Array, rows: Array, union: Array, index: Array) -> Array:
        weight, own = conditional_at(gp, new, rows)
        b = jnp.zeros(width, weight.dtype).at[jnp.searchsorted(union, index)].add(weight)
        spread = jnp.sum(ancestor_solve(q._structure, q.values, union, b[:, None]) ** 2)
        return jnp.stack([gp.mean.at(new[None])[0] + weight @ above[rows], own + spread])

    def one(at: tuple) -> tuple[Array, ...]:
        value = moments(*at)
        return (*value, *jax.jacrev(moments)(*at)) if gradients else tuple(value)

    return jax.lax.map(one, (x, near, table, index), batch_size=batch)


@eqx.filter_jit
def _jointly(q: SparsePosterior, key: Array, x: Array, columns: Array, *, num_samples: int) -> Array:
    """Draws at ordered new inputs, the rows of ``columns`` given which each is drawn in all but its last slot."""
    gp, (n, k) = q.gp, (q.loc.shape[0], x.shape[0])
    inputs = jnp.concatenate([jnp.asarray(gp.X), x])
    u = prior_columns(gp.covariance, inputs, columns)
    weight, sd = -u[:, :-1] / u[:, -1:], 1 / u[:, -1]
    mu = gp.mean.at(inputs)

    def one(key: Array) -> Array:
        key_data, key_new = jax.random.split(key)
        f, _ = q.transport(jax.random.normal(key_data, (n,)))
        start = jnp.concatenate([f - mu[:n], jnp.zeros(k)])

        def step(f: Array, at: tuple) -> tuple[Array, None]:
            i, rows, weight, shift = at
            return f.at[n + i].set(weight @ f.at[rows].get(mode="fill", fill_value=0.0) + shift), None

        shift = sd * jax.random.normal(key_new, (k,))
        f, _ = jax.lax.scan(step, start, (jnp.arange(k), columns[:, :-1], weight, shift))
        return f[n:] + mu[n:]

    return jax.lax.map(one, jax.random.split(key, num_samples), batch_size=max(1, DRAW_BYTES // (16 * (n + k))))


@eqx.filter_jit
def _settle(
    gp: LatentGP, s: Structure, mean: Array, variance: Array, tolerance: float, max_iterations: int, rule: Rule
) -> Iteration:
    return settle(make_problem(gp, s, gp.columns(s), rule), mean, variance, tolerance, max_iterations, rule)
