"""Pathfinder: normal approximations along L-BFGS paths towards the modes, the best of each path, mixed.

Zhang, Carpenter, Gelman & Vehtari (2022), Pathfinder: parallel quasi-Newton variational inference, JMLR 23. A chain is
a path: from its start L-BFGS climbs log π; at each of its points the inverse-Hessian estimate gives a normal

    N(μ, Σ),   Σ = diag(α) + β γ βᵀ,   μ = u + Σ ∇log π(u)                                    (algorithm 4)

and the one with the largest ELBO is the path's (algorithm 1). The path and its inverse Hessians are BlackJAX's.

We differ from the paper's multi-path algorithm 2, which resamples pooled draws: the result is the mixture of the paths'
normals with weights ∝ exp(ELBO) (or equal ones), whose density at any u is exact, so that importance weights, k-hat and
the evidence are those of one proper density. A path costs its line searches, (iterations + 1) × draws densities for the
ELBOs, and O(d J) per draw with J = 2 × history.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from ..approximation import Approximation
from ..errors import NonFinite, NotAvailable
from ..method import AbstractMethod, Budget, Stage
from ..run.start import Warm
from ..target import Target
from ..validate import check_choice, check_count


class PathState(eqx.Module):
    """The best normal of a path, in L-BFGS's factors; or one normal for each point of it, on a leading axis.

    Parameters
    ----------
    elbo
        Its ELBO; -inf before the path, and where no normal of the path has a finite one.
    position, gradient
        The point of the path, and the gradient of log π there, shape (d,).
    alpha, beta, gamma
        Inverse-Hessian estimate diag(α) + β γ βᵀ, shapes (d,), (d, 2J), (2J, 2J).
    """

    elbo: Float[Array, "*points"]
    position: Float[Array, "*points d"]
    gradient: Float[Array, "*points d"]
    alpha: Float[Array, "*points d"]
    beta: Float[Array, "*points d j"]
    gamma: Float[Array, "*points j j"]


class PathInfo(NamedTuple):
    """What is known of a path."""

    elbo: Array
    num_evaluations: Array


class Pathfinder(AbstractMethod):
    """Multi-path Pathfinder: a mixture of normals, found by quasi-Newton optimisation, in seconds.

    Each chain is a path from its own start; more paths find more modes.

    Parameters
    ----------
    max_iterations
        Most L-BFGS iterations of a path.
    history
        Corrections that L-BFGS keeps, J; the normals' covariance is diagonal plus rank 2J.
    num_elbo_draws
        Draws per normal, by which the best of a path is chosen.
    weights
        ``"elbo"``: paths weigh as exp(ELBO), an estimate of the mass near each; ``"equal"``.

    Raises
    ------
    NonFinite
        No path has a normal with a finite ELBO.

    References
    ----------
    Zhang, Carpenter, Gelman & Vehtari (2022), JMLR 23.
    """

    max_iterations: int = eqx.field(static=True, default=100)
    history: int = eqx.field(static=True, default=6)
    num_elbo_draws: int = eqx.field(static=True, default=50)
    weights: str = eqx.field(static=True, default="elbo")

    kind: ClassVar = "approximation"
    exact: ClassVar = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 8
    source: ClassVar[str] = "Zhang et al. 2022; BlackJAX"

    def __check_init__(self) -> None:
        for name in ("max_iterations", "history", "num_elbo_draws"):
            check_count(name, getattr(self, name))
        check_choice("weights", self.weights, ("elbo", "equal"))

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One iteration: the whole path."""
        del budget
        return (Stage("paths", self, 1),)

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> PathState:
        """The start, with no normal yet."""
        del key
        u = start.u if isinstance(start, Warm) else start
        dim, rank = target.dim, 2 * self.history
        return PathState(
            elbo=jnp.asarray(-jnp.inf, u.dtype),
            position=u,
            gradient=jnp.zeros_like(u),
            alpha=jnp.ones_like(u),
            beta=jnp.zeros((dim, rank), u.dtype),
            gamma=jnp.zeros((rank, rank), u.dtype),
        )

    def step(self, key: PRNGKeyArray, state: PathState, target: Target, t: Array) -> tuple[PathState, PathInfo]:
        """The path from the state's position, and its best normal."""
        from blackjax.vi.pathfinder import approximate

        del t
        # One draw for BlackJAX's own ELBOs, which are not used.
        _, info = approximate(
            key, target.log_density, state.position, 1, maxiter=self.max_iterations, maxcor=self.history, ftol=1e-8
        )
        path = info.path
        # Along the path BlackJAX keeps the gradients of what is minimised, -∇log π, and its own normals add Σ times
        # them; the paper's μ = u + Σ ∇log π is on the other side, so that the ELBOs are computed here.
        path = PathState(path.elbo, path.position, -path.grad_position, path.alpha, path.beta, path.gamma)
        moved = jnp.any(path.position[1:] != path.position[:-1], axis=1)
        moved = jnp.concatenate([jnp.ones(1, bool), moved])
        z = jax.random.normal(jax.random.fold_in(key, 1), (self.num_elbo_draws, target.dim))

        def elbo(args: tuple[PathState, Array]) -> Array:
            point, moved = args
            return jax.lax.cond(
                moved, lambda p: path_elbo(p, target, z), lambda p: jnp.full_like(p.elbo, -jnp.inf), point
            )

        elbos = jax.lax.map(elbo, (path, moved))
        best = jax.tree.map(lambda x: x[jnp.argmax(elbos)], eqx.tree_at(lambda p: p.elbo, path, elbos))
        evaluations = moved.sum() * (self.num_elbo_draws + 1) + self.max_iterations + 1
        return best, PathInfo(best.elbo, jnp.asarray(evaluations, int))

    def result(self, state: PathState, target: Target) -> "NormalMixture":
        """The mixture of the paths' normals."""
        del target
        state = jax.tree.map(jnp.asarray, state)
        mean, scale, basis, factor = jax.vmap(normal_of_path)(state)
        ok = jnp.isfinite(state.elbo) & jnp.all(jnp.isfinite(mean), 1) & jnp.all(jnp.isfinite(factor), (1, 2))
        if not bool(ok.any()):
            raise NonFinite(
                f"Pathfinder: none of {ok.size} paths has a normal with a finite ELBO (found "
                f"{np.unique(np.asarray(state.elbo))}); give other starts with start=, or more paths with num_chains."
            )
        keep = np.flatnonzero(np.asarray(ok))
        log_weights = state.elbo if self.weights == "elbo" else jnp.zeros_like(state.elbo)
        log_weights = jax.nn.log_softmax(log_weights[keep])
        return NormalMixture(log_weights, mean[keep], scale[keep], basis[keep], factor[keep])

    def merit(self, infos: PathInfo) -> dict[str, Array]:
        """The best ELBO of the paths."""
        return {"elbo": infos.elbo.max()}


def path_elbo(state: PathState, target: Target, z: Float[Array, "n d"]) -> Float[Array, ""]:
    """Mean of log π − log q over the draws that standard normals ``z`` become; -inf where it is not finite."""
    mean, scale, basis, factor = normal_of_path(state)
    inner = z @ basis
    u = mean + scale * (z + (inner @ factor.T - inner) @ basis.T)
    log_det = jnp.sum(jnp.log(scale)) + jnp.sum(jnp.log(jnp.diagonal(factor)))
    log_q = -0.5 * jnp.sum(z**2, 1) - log_det - 0.5 * z.shape[1] * jnp.log(2 * jnp.pi)
    elbo = jnp.mean(jax.vmap(target.log_density)(u) - log_q)
    return jnp.where(jnp.isfinite(elbo), elbo, -jnp.inf)


def normal_of_path(state: PathState) -> tuple[Array, Array, Array, Array]:
    """Mean μ, and s, Q, L of the factor A = diag(s) (I + Q (L − I) Qᵀ) of Σ = A Aᵀ.

    With s = sqrt(α) and the thin QR decomposition of diag(1/s) β = Q R, Σ = diag(s) (I + Q R γ Rᵀ Qᵀ) diag(s), and
    L is the Cholesky factor of I + R γ Rᵀ (Zhang et al. 2022, algorithm 4).
    """
    scale = jnp.sqrt(state.alpha)
    basis, r = jnp.linalg.qr(state.beta / scale[:, None], mode="reduced")
    factor = jnp.linalg.cholesky(jnp.eye(r.shape[0]) + r @ state.gamma @ r.T)
    step = state.alpha * state.gradient + state.beta @ (state.gamma @ (state.beta.T @ state.gradient))
    return state.position + step, scale, basis, factor


class NormalMixture(Approximation):
    """A mixture of normals with covariances A Aᵀ, A = diag(s) (I + Q (L − I) Qᵀ), Q with orthonormal columns.

    Parameters
    ----------
    log_weights
        Normalised, shape (k,).
    means, scales
        μ and s, shape (k, d).
    bases, factors
        Q and the lower triangular L, shapes (k, d, r) and (k, r, r).
    """

    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    scales: Float[Array, "k d"]
    bases: Float[Array, "k d r"]
    factors: Float[Array, "k r r"]

    def sample_and_log_prob(self, key: PRNGKeyArray, n: int) -> tuple[Float[Array, "n d"], Float[Array, " n"]]:
        """``n`` independent draws, with the mixture's log density."""
        key_component, key_normal = jax.random.split(key)
        chosen = jax.random.categorical(key_component, self.log_weights, shape=(n,))
        z = jax.random.normal(key_normal, (n, self.means.shape[1]), self.means.dtype)

        u = jax.vmap(self._push)(chosen, z)
        return u, jax.vmap(self.log_prob)(u)

    def log_prob(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """Log density at ``u``: O(k d r)."""

        def one(k: Array) -> Array:
            return -0.5 * jnp.sum(self._pull(k, u) ** 2) - self._log_det(k) - 0.5 * u.shape[0] * jnp.log(2 * jnp.pi)

        return logsumexp(self.log_weights + jax.vmap(one)(jnp.arange(self.log_weights.shape[0])))

    def transport(self, z: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The point u = μ + A z and log det A of a single normal; `NotAvailable` for several."""
        self._check_single()
        return self._push(0, z), self._log_det(0)

    def pull(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """The draw z = A⁻¹ (u − μ) behind a point, of a single normal; `NotAvailable` for several."""
        self._check_single()
        return self._pull(0, u)

    def coordinates(self) -> "NormalMixture":
        """The heaviest normal alone."""
        if self.log_weights.shape[0] == 1:
            return self
        # On the host, whatever precision is in force there.
        weights, *parts = map(np.asarray, (self.log_weights, self.means, self.scales, self.bases, self.factors))
        k = [int(np.argmax(weights))]
        return NormalMixture(np.zeros_like(weights[k]), *(part[k] for part in parts))

    def mean(self) -> Float[Array, " d"]:
        """Exact mean."""
        return jnp.exp(self.log_weights) @ self.means

    def covariance(self) -> Float[Array, "d d"]:
        """Exact covariance: that within the components plus that between their means."""
        dim = self.means.shape[1]

        def one(mean: Array, scale: Array, basis: Array, factor: Array) -> Array:
            a = scale[:, None] * (jnp.eye(dim) + basis @ (factor - jnp.eye(factor.shape[0])) @ basis.T)
            return a @ a.T + jnp.outer(mean - self.mean(), mean - self.mean())

        parts = jax.vmap(one)(self.means, self.scales, self.bases, self.factors)
        return jnp.tensordot(jnp.exp(self.log_weights), parts, 1)

    def _part(self, k: Any) -> tuple[Array, Array, Array, Array]:
        """Mean, scale, basis and factor of a normal."""
        mean, scale, basis, factor = (jnp.asarray(x)[k] for x in (self.means, self.scales, self.bases, self.factors))
        return mean, scale, basis, factor

    def _push(self, k: Any, z: Float[Array, " d"]) -> Float[Array, " d"]:
        mean, scale, basis, factor = self._part(k)
        inner = basis.T @ z
        return mean + scale * (z + basis @ (factor @ inner - inner))

    def _pull(self, k: Any, u: Float[Array, " d"]) -> Float[Array, " d"]:
        mean, scale, basis, factor = self._part(k)
        x = (u - mean) / scale
        inner = basis.T @ x
        return x + basis @ (solve_triangular(factor, inner, lower=True) - inner)

    def _log_det(self, k: Any) -> Float[Array, ""]:
        _, scale, _, factor = self._part(k)
        return jnp.sum(jnp.log(scale)) + jnp.sum(jnp.log(jnp.diagonal(factor)))

    def _check_single(self) -> None:
        count = self.log_weights.shape[0]
        if count > 1:
            raise NotAvailable(
                f"A mixture of {count} normals is not a map of N(0, I); use its coordinates(), the heaviest of them."
            )
