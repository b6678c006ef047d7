"""The Gaussian q(f) of a latent process by natural gradients, on a sparse prior and a sparse posterior factor.

q = N(ν, (V Vᵀ)⁻¹). At an optimum of the ELBO its precision is that of the prior plus one site per observation,
P = U Uᵀ + diag(λ), λ_i = E_q[−∂² log p(y_i | f_i)], and U Uᵀ (ν − μ) = E_q[∂ log p] ([1]_, [2]_). One iteration:

1. λ from the last ν and marginal variances v;  V = IC(0) of P on the pattern
2. v_i = |V_AA⁻¹ e_i|² over the reduced ancestors A of i ([1]_); or, while hyper-parameters still move, from draws
3. ν ← ν + β P⁻¹ (E_q[∂ log p] − U Uᵀ (ν − μ)), P⁻¹ by conjugate gradients with V Vᵀ as preconditioner, β halved until
   Σ E log p − ½ |Uᵀ (ν − μ)|² does not fall

so that ν is the exact maximiser for its v, however coarse V is. Where the likelihood is Gaussian one iteration is all.

Two other rules, which differ in one place each: "mean_field" has the diagonal V of P's diagonal, the best among
independent q (V = IC(0) still preconditions, so that ν is the same); "laplace" has all expectations taken at ν, which
is the mode then, and Laplace's approximation of the evidence, the terms below without − ½ |V_AA⁻¹ U_i|² + ½ ([3]_).

ELBO = Σ_i { E log p(y_i | f_i) − ½ (U_iᵀ(ν − μ))² − ½ |V_AA⁻¹ U_i|² + log U_ii − log V_ii + ½ }, of log p̂(y), the
evidence under the sparse prior.

References
----------
.. [1] J. Cao et al. (2023). Variational sparse inverse Cholesky approximation for latent Gaussian processes via double
   Kullback-Leibler minimization. ICML. arXiv:2301.13303.
.. [2] M. E. Khan, W. Lin (2017). Conjugate-computation variational inference. AISTATS. arXiv:1703.04265.
.. [3] D. Zilber, M. Katzfuss (2021). Vecchia-Laplace approximations of generalized Gaussian processes for big
   non-Gaussian spatial data. Computational Statistics & Data Analysis 153.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...infer.variational.sparse_cholesky.factor import (
    Structure,
    ancestor_solve,
    backward,
    conjugate_gradients,
    forward,
    incomplete_cholesky,
    precision_on_pattern,
    times,
    times_transpose,
)
from .likelihoods import Expected, Gaussian, Likelihood

Rule = Literal["kl", "mean_field", "laplace"]
"""How q is chosen."""
LEAST_CURVATURE = 1e-8
HALVINGS = 12
SOLVE_BYTES = 32 * 2**20


class Problem(NamedTuple):
    """What q is sought for, everything in maximin order: pattern, prior factor, prior mean, likelihood, data."""

    structure: Structure
    u: Float[Array, "n m"]
    mu: Float[Array, " n"]
    likelihood: Likelihood
    y: Float[Array, " n"]

    def prior_precision(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """U Uᵀ x."""
        return times(self.structure, self.u, times_transpose(self.structure, self.u, x))


class Iteration(NamedTuple):
    """What an iteration of the fixed point finds: q, its ELBO, and the largest change of a mean in sd.

    ``mean`` and ``variance`` are (n,), ``values`` is V and ``precision`` the sites' λ that it has; β of the move of the
    mean and the shift that V took.
    """

    mean: Float[Array, " n"]
    variance: Float[Array, " n"]
    values: Float[Array, "n m"]
    precision: Float[Array, " n"]
    elbo: Float[Array, ""]
    change: Float[Array, ""]
    step_size: Float[Array, ""]
    shift: Float[Array, ""]


def iterate(
    problem: Problem, mean: Float[Array, " n"], variance: Float[Array, " n"], rule: Rule = "kl"
) -> Iteration:  # fmt: skip
    """One iteration of the fixed point, with exact variances over the reduced ancestors."""
    precision = sites(problem.likelihood.expected(mean, variance, problem.y))
    p = posterior_precision(problem, precision)
    full, shift = incomplete_cholesky(problem.structure, p)
    v = diagonal_factor(p) if rule == "mean_field" else full
    variance, inner = all_marginals(problem.structure, v, problem.u)
    moved, beta = move_mean(problem, full, precision, mean, variance, 1e-10)
    change = jnp.max(jnp.abs(moved - mean) / jnp.sqrt(variance))
    if isinstance(problem.likelihood, Gaussian):
        change = jnp.zeros_like(change)  # one iteration is exact
    elbo = jnp.sum(elbo_terms(problem, v, moved, variance, inner, rule))
    return Iteration(moved, variance, v, precision, elbo, change, beta, shift)


def settle(
    problem: Problem,
    mean: Float[Array, " n"],
    variance: Float[Array, " n"],
    tolerance: float,
    max_iterations: int,
    rule: Rule = "kl",
) -> Iteration:
    """Iterations until no mean moves by more than ``tolerance`` sd."""
    n, m = problem.u.shape
    zero = jnp.zeros((), mean.dtype)
    begin = Iteration(
        mean, variance, jnp.zeros((n, m), mean.dtype), jnp.zeros_like(mean), zero, zero + jnp.inf, zero, zero
    )

    def going(carry: tuple) -> Array:
        k, last = carry
        return (last.change > tolerance) & (k < max_iterations)

    return jax.lax.while_loop(
        going, lambda c: (c[0] + 1, iterate(problem, c[1].mean, c[1].variance, rule)), (jnp.zeros((), jnp.int32), begin)
    )[1]


def sites(expected: Expected) -> Float[Array, " n"]:
    """λ; curvatures below 0, of likelihoods that are not log-concave, are cut off."""
    return jnp.maximum(expected.curvature, LEAST_CURVATURE)


def posterior_precision(problem: Problem, precision: Float[Array, " n"]) -> Float[Array, "n m"]:
    """The entries of P = U Uᵀ + diag(λ) that are in the pattern."""
    return precision_on_pattern(problem.structure, problem.u).at[:, -1].add(precision)


def posterior_factor(problem: Problem, precision: Float[Array, " n"]) -> tuple[Float[Array, "n m"], Float[Array, ""]]:
    """V = IC(0) of P, and the shift that it took."""
    return incomplete_cholesky(problem.structure, posterior_precision(problem, precision))


def diagonal_factor(p: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """The V of independent variables with the precisions on P's diagonal: of these q the one nearest in KL(q ‖ ·)."""
    return jnp.zeros_like(p).at[:, -1].set(jnp.sqrt(p[:, -1]))


def move_mean(
    problem: Problem,
    v: Float[Array, "n m"],
    precision: Float[Array, " n"],
    mean: Float[Array, " n"],
    variance: Float[Array, " n"],
    tolerance: float,
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """The next ν, and the β that it took."""
    s = problem.structure
    expected = problem.likelihood.expected(mean, variance, problem.y)
    residual = expected.gradient - problem.prior_precision(mean - problem.mu)
    shift, _ = conjugate_gradients(
        lambda x: problem.prior_precision(x) + precision * x,
        lambda x: forward(s, v, backward(s, v, x)),
        residual,
        jnp.zeros_like(mean),
        tolerance=tolerance,
    )
    if isinstance(problem.likelihood, Gaussian):
        return mean + shift, jnp.ones((), mean.dtype)

    def objective(at: Array) -> Array:
        fit = jnp.sum(problem.likelihood.expected(at, variance, problem.y).value)
        return fit - 0.5 * jnp.sum(times_transpose(s, problem.u, at - problem.mu) ** 2)

    before = objective(mean)
    enough = before - 1e-10 * (1 + jnp.abs(before))

    def falls(carry: tuple) -> Array:
        k, beta = carry
        return ~(objective(mean + beta * shift) >= enough) & (k < HALVINGS)

    _, beta = jax.lax.while_loop(falls, lambda c: (c[0] + 1, 0.5 * c[1]), (0, jnp.ones((), mean.dtype)))
    # Where no step raises it, rounding is all that is left of the step.
    beta = jnp.where(objective(mean + beta * shift) >= enough, beta, 0.0)
    return mean + beta * shift, beta


def marginals(
    s: Structure, v: Float[Array, "n m"], u: Float[Array, "b m"], rows: Int[Array, " b"]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """v_i = |V_AA⁻¹ e_i|² and |V_AA⁻¹ U_i|² of some columns, ``u`` theirs, over their reduced ancestors."""
    a = s.ancestors.shape[1]

    def one(at: tuple[Array, Array]) -> tuple[Array, Array]:
        i, entries = at
        ancestors = s.ancestors[i]
        place = jnp.searchsorted(ancestors, s.columns[i])
        column = jnp.zeros(a, v.dtype).at[jnp.where(s.columns[i] < v.shape[0], place, a)].set(entries, mode="drop")
        own = jnp.zeros(a, v.dtype).at[-1].set(1.0)
        solved = ancestor_solve(s, v, ancestors, jnp.stack([own, column], 1))
        variance, inner = jnp.sum(solved**2, 0)
        return variance, inner

    return jax.lax.map(one, (rows, u), batch_size=max(1, min(rows.shape[0], SOLVE_BYTES // (8 * a * a))))


def all_marginals(
    s: Structure, v: Float[Array, "n m"], u: Float[Array, "n m"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """`marginals` of all columns."""
    return marginals(s, v, u, jnp.arange(v.shape[0]))


def elbo_terms(
    problem: Problem,
    v: Float[Array, "n m"],
    mean: Float[Array, " n"],
    variance: Float[Array, " n"],
    inner: Float[Array, " n"],
    rule: Rule = "kl",
) -> Float[Array, " n"]:
    """The ELBO's term of each column, or that of Laplace's approximation."""
    white = times_transpose(problem.structure, problem.u, mean - problem.mu)
    log_ratio = jnp.log(problem.u[:, -1]) - jnp.log(v[:, -1])
    fit = problem.likelihood.expected(mean, variance, problem.y).value
    return fit - 0.5 * white**2 + log_ratio + (0.0 if rule == "laplace" else 0.5 * (1 - inner))


def some_terms(
    problem: Problem, v: Float[Array, "n m"], mean: Float[Array, " n"], rows: Int[Array, " b"]
) -> Float[Array, " b"]:
    """The ELBO's terms of some columns; the problem's ``u`` has these columns only, shape (b, m)."""
    s = problem.structure
    variance, inner = marginals(s, v, problem.u, rows)
    there = s.columns[rows]
    above = (mean - problem.mu).at[there].get(mode="fill", fill_value=0.0)
    white = jnp.sum(problem.u * above, 1)
    log_ratio = jnp.log(problem.u[:, -1]) - jnp.log(v[rows, -1])
    fit = problem.likelihood.expected(mean[rows], variance, problem.y[rows]).value
    return fit - 0.5 * white**2 + log_ratio + 0.5 * (1 - inner)
