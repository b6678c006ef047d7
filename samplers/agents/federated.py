"""Samplers of agents around a server: split Gibbs, and federated averaging Langevin.

Split Gibbs [1]_ gives every agent a parameter z_i of its own, tied to the server's θ by ‖z_i − θ‖²/(2ρ²), and
alternates

    z_i | θ ∝ exp(−f_i(z_i) − ‖z_i − θ‖²/(2ρ²)),        θ | z ~ N(z̄, ρ²/n I).

It is exact for this augmented target; the law of θ has its variance too large by a factor 1 + ρ²h for shares of
curvature h, and contracts by 1/(1 + ρ²h). Draws of z_i are exact where shares are quadratic, and else some steps of
MALA, which leave the conditional law as it is.

Federated averaging Langevin [2]_ has local steps, and now and then an average that all clients go on from:

    x_i⁺ = x_i − γ(∇f_i(x_i) + c_i) + √(2γ)(√(τ/n) ξ_0 + √(1−τ) ξ_i),   then with probability p: x_i⁺ = Σ_j x_j⁺/n

with control variates c_i = n⁻¹Σ_j∇f_j(y) − ∇f_i(y) at a reference y, which is refreshed with probability q [3]_. With
p = 1 it is Langevin on F with step γ/n.

References
----------
.. [1] M. Vono, N. Dobigeon, P. Chainais (2019). Split-and-augmented Gibbs sampler. IEEE Transactions on Signal
   Processing 67.
.. [2] W. Deng, Q. Zhang, Y. Ma, Z. Song, G. Lin (2021). On convergence of federated averaging Langevin dynamics.
   arXiv:2112.05120.
.. [3] V. Plassier, A. Durmus, E. Moulines (2023). Federated averaging Langevin dynamics: toward a unified theory and
   new algorithms. AISTATS.
"""

import dataclasses
from itertools import product
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.distributed.rows import vmap_rows
from ...infer.errors import InvalidArgument, UnsupportedTarget
from ...infer.target.shards import ShardedTarget
from ...infer.validate import check_count, check_nonnegative
from .common import OWN, Advanced, agent_normals, shared_normals
from .decentralised import langevin
from .law import Affine, affine
from .planned import TINY, AbstractPlanned, Forecast
from .prox import Quadratic
from .tuning import MAX_ENTRIES, factorised, sharpest

LENGTH, LONGEST_RUN = 100, 20_000
"""Mixing times of chains that tell what to expect, and iterations of them at most."""
MALA_STEP = 1.3
"""Step of MALA in units of d^(−1/6), in coordinates in which the conditional law is about standard normal."""


class AbstractFederated(AbstractPlanned):
    """Agents around a server; see the concrete classes."""

    num_agents: int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self) -> None:
        if self.num_agents is not None:
            check_count("num_agents", self.num_agents, 2)

    def agents(self) -> int | None:
        """As given."""
        return self.num_agents


class SplitGibbs(AbstractFederated):
    """Split Gibbs on a star: agents sample near the server's parameter, the server samples near their average.

    Approximate: exact for a target in which agents' parameters are tied to the server's by springs of width ρ.

    Parameters
    ----------
    rho
        ρ > 0, a standard deviation, or ``"auto"``: such that the variance of θ is predicted to be ``tolerance`` too
        large.
    num_inner
        Steps of MALA for the draw of z_i where a share is not quadratic.
    num_agents
        Number of agents, for a target that is not sharded.
    tolerance, precondition, plan, keep, scatter
        As in `DistributedADMM`; the average that is kept is θ.

    References
    ----------
    Vono, Dobigeon & Chainais (2019), IEEE TSP 67.
    """

    rho: Any = OWN
    num_inner: int = eqx.field(static=True, default=5)
    conditional: Quadratic | None = eqx.field(default=None, kw_only=True)

    source: ClassVar[str] = "Vono, Dobigeon & Chainais 2019"
    warning: ClassVar[str] = (
        "SplitGibbs is approximate: its parameter is tied to the agents' own by springs, and its variances have a bias "
        "of order ρ²."
    )

    def __check_init__(self) -> None:
        check_count("num_inner", self.num_inner)

    @classmethod
    def tunable(cls) -> tuple[str, ...]:
        """The width ρ."""
        return ("rho",)

    def first_memory(self, key: PRNGKeyArray, x: Float[Array, "n d"]) -> Array:
        """The server's parameter: the average of the agents'."""
        return jnp.mean(x, axis=0)

    def normals(self, key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> tuple:
        """The agents' (for MALA one more axis, and uniforms), and the server's."""
        assert self.conditional is not None
        server = shared_normals(key, shape, dtype)
        if self.conditional.linear is not None:
            return agent_normals(key, shape, dtype), server
        keys = jax.vmap(lambda agent: jax.random.fold_in(key, agent))(jnp.arange(shape[0]))

        def one(key: PRNGKeyArray) -> tuple[Array, Array]:
            moves, tests = jax.random.split(key)
            steps = self.num_inner
            return jax.random.normal(moves, (steps, shape[1]), dtype), jax.random.uniform(tests, (steps,), dtype)

        return jax.vmap(one)(keys), server

    def advance(self, x: Float[Array, "n d"], memory: Any, normals: Any, target: ShardedTarget, t: Array) -> Advanced:
        """Agents, all at once; then the server."""
        assert self.conditional is not None
        drawn, server = normals
        tie = 1 / self.rho**2
        if self.conditional.linear is not None:

            def exact(factor: Array, inverse: Array, linear: Array, xi: Array) -> Array:
                return inverse @ (linear + tie * memory) + _spread(factor, xi)

            given = self.conditional
            x = vmap_rows(exact, drawn, held=(given.factor, given.inverse, given.linear))
            accepted, spent = jnp.nan, 1
        else:

            def moves(shard: Any, factor: Array, z: Array, xi: Array, tests: Array) -> tuple[Array, Array]:
                f = lambda z: self.potential(target, z, shard) + 0.5 * tie * jnp.sum((z - memory) ** 2)  # noqa: E731
                return mala(f, z, factor, xi, tests)

            x, shares = vmap_rows(moves, x, *drawn, held=(target.shards, self.conditional.factor))
            accepted, spent = jnp.mean(shares), self.num_inner + 1
        server = jnp.mean(x, axis=0) + self.rho / jnp.sqrt(x.shape[0]) * server
        return Advanced(x, server, num_evaluations=spent, acceptance=accepted)

    def centre(self, x: Float[Array, "n d"], memory: Any) -> Float[Array, " d"]:
        """The server's parameter θ."""
        return memory

    def fix(self, target: ShardedTarget) -> "SplitGibbs":
        """Factorise H_i + I/ρ²: for exact draws where shares are quadratic, else as MALA's metric."""
        method = super().fix(target)
        kappa = jnp.full(target.num_agents, 1 / jnp.asarray(method.rho) ** 2)
        conditional = factorised(method, target, kappa)
        if conditional is None:
            raise UnsupportedTarget(
                f"SplitGibbs needs the Hessian of each share, and {target.num_agents} of them in dimension "
                f"{target.dim} are more than {MAX_ENTRIES:,} numbers; use DistributedADMM or FALD."
            )
        return dataclasses.replace(method, conditional=conditional)

    def choose(self, values: np.ndarray, num_agents: int, aim: float) -> "SplitGibbs":
        """ρ²h_max = ε."""
        if not isinstance(self.rho, str):
            return self
        return dataclasses.replace(self, rho=float(np.sqrt(aim / max(float(values[-1]), TINY))))

    def closed_form(self, values: np.ndarray, num_agents: int) -> tuple[float, float]:
        """Variance 1 + ρ²h, contraction 1/(1 + ρ²h)."""
        tied = float(self.rho) ** 2 * values
        return float(tied.max()), float(1 / np.log1p(tied.min()))

    def may_grow(self) -> bool:
        """Stable for every ρ."""
        return False

    def remedy(self) -> str:
        """What to do about a bias."""
        return "lower rho"


class FALD(AbstractFederated):
    """Federated averaging Langevin dynamics: local Langevin steps, averaged by a server now and then. Approximate.

    Parameters
    ----------
    step_size
        γ > 0 of a local step, or ``"auto"``: such that the variance is predicted to be ``tolerance`` too large if every
        step is averaged.
    communication
        p, probability that a step is followed by an average. Below 1 iterates drift apart towards each agent's own data
        in between.
    common
        τ in [0, 1], share of the noise that all agents draw alike.
    control_variates
        Whether to correct each agent's gradient by what it differs by from the average one at a reference point.
    refresh
        q, probability that the reference is moved to the current average.
    num_agents
        Number of agents, for a target that is not sharded.
    tolerance, precondition, plan, keep, scatter
        As in `DistributedADMM`.

    References
    ----------
    Deng et al. (2021), arXiv:2112.05120; Plassier, Durmus & Moulines (2023), AISTATS.
    """

    step_size: Any = OWN
    communication: Any = 0.2
    common: Any = 1.0
    control_variates: bool = eqx.field(static=True, default=True)
    refresh: Any = 0.05

    source: ClassVar[str] = "Deng et al. 2021"
    warning: ClassVar[str] = (
        "FALD is approximate: there is no Metropolis test, and between two averages agents drift towards their own "
        "data."
    )

    def __check_init__(self) -> None:
        for name in ("communication", "common", "refresh"):
            value = getattr(self, name)
            check_nonnegative(name, value)
            if isinstance(value, int | float) and (value > 1 or (value == 0 and name != "common")):
                raise InvalidArgument(f"{name} must be a share of at most 1 (above 0, but for common), got {value!r}.")

    @classmethod
    def tunable(cls) -> tuple[str, ...]:
        """The step size."""
        return ("step_size",)

    def first_memory(self, key: PRNGKeyArray, x: Float[Array, "n d"]) -> Any:
        """Reference point, to be set at the first iteration, and the corrections there."""
        return (jnp.mean(x, axis=0), jnp.zeros_like(x)) if self.control_variates else ()

    def normals(self, key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> tuple:
        """The agents', the server's, and uniforms that decide on an average and on a new reference."""
        coins = jax.random.uniform(jax.random.fold_in(key, shape[0] + 1), (2,), dtype)
        return agent_normals(key, shape, dtype), shared_normals(key, shape, dtype), coins

    def advance(self, x: Float[Array, "n d"], memory: Any, normals: Any, target: ShardedTarget, t: Array) -> Advanced:
        """A local step of all agents; perhaps an average; perhaps a new reference."""
        own, shared, (average, renew) = normals
        n, gamma, tau = x.shape[0], self.step_size, self.common
        if self.control_variates:
            # The first iteration sets the reference.
            memory = jax.lax.cond((renew < self.refresh) | (t == 0), lambda: self._reference(x, target), lambda: memory)
        correction = memory[1] if self.control_variates else jnp.zeros_like(x)
        noise = jnp.sqrt(tau / n) * shared + jnp.sqrt(1 - tau) * own

        def step(gradient: Array, x: Array, correction: Array, xi: Array) -> Array:
            return x - gamma * (gradient + correction) + jnp.sqrt(2 * gamma) * xi

        x = self.moved(step, target, x, x, correction, noise)
        x = jnp.where(average < self.communication, jnp.broadcast_to(jnp.mean(x, axis=0), x.shape), x)
        return Advanced(x, memory, num_evaluations=2 if self.control_variates else 1)

    def _reference(self, x: Float[Array, "n d"], target: ShardedTarget) -> tuple[Array, Array]:
        """The average, and n⁻¹Σ_j∇f_j − ∇f_i there."""
        y = jnp.mean(x, axis=0)
        gradients = self.moved(lambda gradient: gradient, target, jnp.broadcast_to(y, x.shape))
        return y, jnp.mean(gradients, axis=0) - gradients

    def choose(self, values: np.ndarray, num_agents: int, aim: float) -> Self:
        """1/(1 − γh/2) = 1 + ε."""
        if not isinstance(self.step_size, str):
            return self
        step = 2 * aim / (1 + aim) / max(float(values[-1]), TINY)
        return dataclasses.replace(self, step_size=step)

    def bounded(self, found: Any) -> Self:
        """γ at most 1/h of the most curved share, whose agent takes its steps alone."""
        return dataclasses.replace(self, step_size=min(float(self.step_size), 1 / max(sharpest(found), TINY)))

    def closed_form(self, values: np.ndarray, num_agents: int) -> tuple[float, float]:
        """Variance 1/(1 − γh/2), contraction 1 − γh, as if every step were averaged."""
        return langevin(float(self.step_size) * values)

    def cases(self, shares: Any) -> list[tuple[float, Affine]]:
        """Averaged or not, with a new reference or the old one; not the first iteration, which always takes one."""
        p, q = float(self.communication), float(self.refresh) if self.control_variates else 0.0
        falls = [((0.0, p), (1.0, 1 - p)), ((0.0, q), (1.0, 1 - q))]  # uniform draws: of 0 it happens, of 1 it does not
        cases = [
            (of_average * of_renew, jnp.asarray([average, renew]))
            for (average, of_average), (renew, of_renew) in product(*falls)
        ]
        return [(share, affine(self, shares, 1, coins)) for share, coins in cases if share]

    def may_grow(self) -> bool:
        """Looked at in `foresee`."""
        return False

    def foresee(self, found: Any) -> Forecast:
        """As others, if variances are finite: between two averages an agent's mode is multiplied by 1 − γh a step."""
        alone = (1 - float(self.communication)) * (1 - float(self.step_size) * sharpest(found)) ** 2
        if alone >= 1:
            self.stable(np.inf, found)
        return super().foresee(found)


def _spread(factor: Float[Array, "d d"], xi: Float[Array, " d"]) -> Float[Array, " d"]:
    """A draw of N(0, (C Cᵀ)⁻¹) from a standard normal one."""
    return solve_triangular(factor, xi, lower=True, trans=1)


def mala(f: Any, z: Array, factor: Array, normals: Array, uniforms: Array) -> tuple[Array, Array]:
    """Steps of MALA on exp(−f) from ``z``, preconditioned by the precision C Cᵀ; and the share that was accepted."""
    half = 0.5 * (MALA_STEP / z.shape[0] ** (1 / 6)) ** 2
    value_and_grad = jax.value_and_grad(f)

    def towards(z: Array, gradient: Array) -> Array:
        return z - half * cho_solve((factor, True), gradient)

    def one(carry: tuple, draws: tuple) -> tuple:
        z, value, gradient = carry
        xi, uniform = draws
        new = towards(z, gradient) + jnp.sqrt(2 * half) * _spread(factor, xi)
        new_value, new_gradient = value_and_grad(new)
        back = factor.T @ (z - towards(new, new_gradient))
        ratio = value - new_value + 0.5 * jnp.sum(xi**2) - 0.25 / half * jnp.sum(back**2)
        accept = jnp.log(uniform) < ratio
        moved = (new, new_value, new_gradient)
        return jax.tree.map(lambda a, b: jnp.where(accept, a, b), moved, carry), accept

    (z, _, _), accepted = jax.lax.scan(one, (z, *value_and_grad(z)), (normals, uniforms))
    return z, jnp.mean(accepted, dtype=z.dtype)
