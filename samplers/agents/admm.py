"""Distributed MCMC by noisy consensus ADMM: agents on a graph exchange their iterates with neighbours, nothing else.

Agent i has the share f_i of −log π, d_i neighbours N_i and a dual p_i with Σp_i = 0. All agents at once:

    x_i⁺ = argmin_x f_i(x) + p_iᵀx + ρ Σ_{j∈N_i} ‖x − (x_i + x_j)/2 + w_i‖²        w_i noise, one draw per agent
    p_i⁺ = p_i + ρ Σ_{j∈N_i} (x_i⁺ − x_j⁺)

that is x_i⁺ = prox of f_i/κ_i at (x_i + S_i/d_i)/2 − w_i − p_i/κ_i, with κ_i = 2ρ d_i and S_i = Σ_{j∈N_i} x_j, the one
quantity that is exchanged. The degree-weighted average is an implicit Euler scheme for Langevin diffusion with step
1/(2ρΣd): ρ is step and coupling at once. Its temperature is 1 if Var(Σ d_i w_i) = Σ d_i/ρ, whatever the graph.

=============  =====================================================  ==================================================
noise          w_i                                                    temperature
=============  =====================================================  ==================================================
``shared``     ξ_0 / √(ρ Σd), the same for all agents                 1; no noise between the agents
``langevin``   ξ_i / √(ρ d_i)                                         1; the agents differ by their own noise
τ in [0, 1]    √(τ/(ρΣd)) ξ_0 + √((1−τ)/(ρ d_i)) ξ_i                  1
``paper``      (√2/(2ρ)) ξ_i [1]_                                     Σd²/(2ρΣd)
``none``       0                                                      0: consensus ADMM, which ends at the mode
=============  =====================================================  ==================================================

Means are exact for Gaussian posteriors, whatever ρ, graph and noise; the variance of the average is too small by a
factor 1/(1 + n h/(4ρΣd)) for equal curvature h of the shares. The shared noise, the rule of temperature 1 on irregular
graphs and the choice of ρ are not from the paper.

References
----------
.. [1] A. Tzikas, L. Romao, M. Pilanci, A. Abate, M. J. Kochenderfer (2024). Distributed Markov chain Monte Carlo
   sampling based on the alternating direction method of multipliers. arXiv:2401.15838.
"""

import dataclasses
import warnings
from numbers import Real
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.distributed.rows import vmap_rows
from ...infer.errors import InvalidArgument
from ...infer.target.shards import ShardedTarget
from ...infer.validate import check_choice
from .common import OWN, Advanced, agent_normals, shared_normals
from .on_graph import AbstractOnGraph
from .planned import TINY
from .prox import Quadratic, Solved, prox_chord, prox_newton, prox_quadratic
from .tuning import factorised

NOISES = ("shared", "langevin", "paper", "none")
PROXES = ("exact", "linearised")
SOLVED = 0.01
TEMPERATURE = 0.1


class DistributedADMM(AbstractOnGraph):
    """Noisy consensus ADMM on any connected graph of agents, each of which holds its data. Approximate.

    Parameters
    ----------
    graph
        ``"ring"``, ``"torus"``, ``"complete"``, ``"star"``, ``"path"``, ``"random"``; an adjacency matrix, dense or
        sparse; an array of edges, shape (m, 2); a NetworkX graph. One agent per shard of the target (`Target.sharded`);
        a target that is not sharded is dealt out evenly.
    rho
        ρ > 0, or ``"auto"``: such that the variance of the average is predicted to be ``tolerance`` too small; of
        ``"paper"`` that of the law at its temperature, of ``"none"``, which has no variance, as with ``"shared"``.
    noise
        ``"shared"``, ``"langevin"``, ``"paper"``, ``"none"`` or a number τ in [0, 1]; see the module. With
        ``"shared"`` agents draw from a common stream and so know each other's noise, but not each other's data.
    prox
        ``"exact"``: solved by a factorisation made once where a share is quadratic, else to a tolerance, by steps with
        the curvature of one point or damped Newton steps;
        ``"linearised"``: one gradient step in its place, stable for ρ large against the curvature only.
    tolerance
        Relative error of a variance that ``rho="auto"`` aims at; iterations to mix go as 1/tolerance.
    precondition
        Coordinates of the iterates: None, those of the target; an affine `Approximation` or a `Posterior` with one;
        ``"auto"``: those of a Laplace approximation if ``rho="auto"``, else None. In them the posterior is about
        N(0, I), so that every direction mixes alike.
    plan
        Whether to work out before the run what to expect of it. This and the two ``"auto"`` find a mode, for which
        gradients and Hessians of the shares are brought together; the iterations need neither.
    keep
        ``"average"`` (degree-weighted) or the number of the agent whose iterates are the draws. Agents are not chains.
    scatter
        Standard deviation by which agents are apart at the start.

    Raises
    ------
    InvalidArgument
        The graph is disconnected, directed, has loops or another number of agents; ρ ≤ 0; the linearised step is
        unstable.
    NonFinite
        A share is not convex enough for its proximal step.

    References
    ----------
    Tzikas, Romao, Pilanci, Abate & Kochenderfer (2024), arXiv:2401.15838.
    """

    rho: Any = OWN
    noise: Any = eqx.field(static=True, default="shared")
    prox: str = eqx.field(static=True, default="exact")
    solvers: Quadratic | None = eqx.field(default=None, kw_only=True)

    source: ClassVar[str] = "Tzikas et al. 2024"
    warning: ClassVar[str] = (
        "DistributedADMM is approximate: there is no Metropolis test, and its variances have a bias of order 1/ρ."
    )

    def __check_init__(self) -> None:
        check_choice("prox", self.prox, PROXES)
        if isinstance(self.noise, str):
            check_choice("noise", self.noise, NOISES)
        elif not isinstance(self.noise, Real) or isinstance(self.noise, bool) or not 0 <= self.noise <= 1:
            raise InvalidArgument(f"noise must be a rule or a share τ in [0, 1] of common noise, got {self.noise!r}.")

    # -- the update ---------------------------------------------------------------------------------------------------

    def advance(self, x: Float[Array, "n d"], memory: Any, normals: Any, target: ShardedTarget, t: Array) -> Advanced:
        """One iteration of all agents, in the notation of the module."""
        dual, neighbours = memory
        degrees = self._degrees(x)[:, None]
        kappa = 2 * self.rho * degrees
        centre = (x + neighbours / degrees) / 2 - self.disturbance(normals, x.dtype) - dual / kappa
        solved = self.solve(x, centre, kappa[:, 0], target)
        neighbours = self.links.neighbour_sum(solved.x)
        dual = dual + self.rho * (degrees * solved.x - neighbours)
        tolerated = self._tolerated(kappa[:, 0], x)
        residual = jnp.nan_to_num(solved.residual / tolerated)
        fault = jnp.where(solved.indefinite.any(), jnp.argmax(solved.indefinite) + 1, 0)
        evaluations = jnp.max(solved.num_evaluations)
        return Advanced(solved.x, (dual, neighbours), jnp.max(residual), jnp.argmax(residual), fault, evaluations)

    def disturbance(self, normals: Any, dtype: Any) -> Float[Array, "#n d"]:
        """w_i of all agents, from standard normals."""
        own, common = self.noise_scales(jnp.asarray(self.links.degrees).astype(dtype))
        drawn, shared = normals
        parts = [] if drawn is None else [own[:, None] * drawn]
        parts += [] if shared is None else [(common * shared)[None, :]]
        return sum(parts) if parts else jnp.zeros((1, 1), dtype)

    def noise_scales(self, degrees: Float[Array, " n"]) -> tuple[Any, Any]:
        """Standard deviations of the agents' own noise and of the shared one."""
        if self.noise == "none":
            return jnp.zeros_like(degrees), 0.0
        if self.noise == "paper":
            return jnp.full_like(degrees, 2**-0.5) / self.rho, 0.0
        share = {"shared": 1.0, "langevin": 0.0}.get(self.noise, self.noise)
        return jnp.sqrt((1 - share) / (self.rho * degrees)), jnp.sqrt(share / (self.rho * jnp.sum(degrees)))

    def solve(self, x: Array, centre: Array, kappa: Array, target: ShardedTarget) -> Solved:
        """The proximal steps of all agents, or what stands for them."""
        if self.prox == "linearised":
            nothing = jnp.zeros(x.shape[0], x.dtype)
            moved = self.moved(lambda gradient, centre, kappa: centre - gradient / kappa, target, x, centre, kappa)
            return Solved(moved, nothing, jnp.ones(x.shape[0], int), nothing > 0)
        if self.solvers is not None and self.solvers.linear is not None:
            return vmap_rows(prox_quadratic, centre, kappa, held=(self.solvers.inverse, self.solvers.linear))
        tolerated = self._tolerated(kappa, x)

        def one(shard: Any, inverse: Any, *given: Array) -> Solved:
            f = lambda z: self.potential(target, z, shard)  # noqa: E731
            return prox_newton(f, *given) if inverse is None else prox_chord(f, inverse, *given)

        inverses = None if self.solvers is None else self.solvers.inverse
        return vmap_rows(one, x, centre, kappa, tolerated, held=(target.shards, inverses))

    def centre(self, x: Float[Array, "n d"], memory: Any) -> Float[Array, " d"]:
        """The degree-weighted average Σ d_i x_i / Σ d_i, which is the Langevin chain."""
        del memory
        degrees = self._degrees(x)
        return degrees @ x / jnp.sum(degrees)

    def normals(self, key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> tuple[Any, Any]:
        """Draws of the agents' own noise and of the shared one; None of what the rule does not use."""
        own = None if self.noise in ("shared", "none", 1) else agent_normals(key, shape, dtype)
        shared = None if self.noise in ("langevin", "paper", "none", 0) else shared_normals(key, shape, dtype)
        return own, shared

    def first_memory(self, key: PRNGKeyArray, x: Float[Array, "n d"]) -> tuple[Array, Array]:
        """Duals of 0, and what the neighbours send at the start."""
        return jnp.zeros_like(x), self.links.neighbour_sum(x)

    # -- before a run -------------------------------------------------------------------------------------------------

    def fix(self, target: ShardedTarget) -> "DistributedADMM":
        """Factorise the shares' curvature."""
        method = super().fix(target)
        if self.prox == "linearised":
            return method
        kappa = 2 * jnp.asarray(method.rho) * jnp.asarray(method.links.degrees)
        return dataclasses.replace(method, solvers=factorised(method, target, kappa))

    @classmethod
    def tunable(cls) -> tuple[str, ...]:
        """ρ."""
        return ("rho",)

    def choose(self, values: np.ndarray, num_agents: int, aim: float) -> "DistributedADMM":
        """With ρ such that n h_max/(4ρΣd) is the tolerance."""
        if not isinstance(self.rho, str):
            return self
        ends = float(np.sum(np.asarray(self.links.degrees)))
        rho = max(float(values[-1]), TINY) * num_agents / (4 * ends * aim)
        return dataclasses.replace(self, rho=rho)

    def closed_form(self, values: np.ndarray, num_agents: int) -> tuple[float, float]:
        """Variance T/(1 ± n h/(4ρΣd)); the implicit Euler step 1/(2ρΣd) of the average."""
        rho, ends = float(self.rho), float(np.sum(np.asarray(self.links.degrees)))
        sign = -1.0 if self.prox == "linearised" else 1.0
        ratio = self.temperature() / (1 + sign * num_agents * values / (4 * rho * ends))
        if sign < 0 and np.any(4 * rho * ends / num_agents <= values):
            return np.inf, np.inf
        return float(np.abs(ratio - 1).max()), float(1 / np.log1p(num_agents * values[0] / (2 * rho * ends)))

    def temperature(self) -> float:
        """T = ρ Var(Σ d_i w_i) / Σ d_i."""
        degrees = np.asarray(self.links.degrees, float)
        own, common = (np.asarray(x) for x in self.noise_scales(jnp.asarray(degrees)))
        total = np.sum(degrees**2 * own**2) + degrees.sum() ** 2 * common**2
        return float(self.rho) * float(total) / degrees.sum()

    def untempered(self) -> "DistributedADMM":
        """With noise of temperature 1: ρ is chosen for what is wrong besides the temperature, which it cannot mend."""
        if self.noise not in ("paper", "none"):
            return self
        return dataclasses.replace(self, noise="langevin" if self.noise == "paper" else "shared")

    def may_grow(self) -> bool:
        """Exact proximal steps are stable for every ρ > 0."""
        return self.prox == "linearised"

    def remedy(self) -> str:
        """What to do about an unstable or inexact step."""
        return "raise rho, or use prox='exact'" if self.prox == "linearised" else "raise rho"

    def warn(self) -> None:
        """Say what is wrong with the settings, once, before the run."""
        found: Any = self.forecast
        if self.noise == "none":
            warnings.warn(f"noise={self.noise!r}: the run ends at the mode, and its draws are no sample.", stacklevel=2)
            self.warn_of_mixing()
        elif abs(found.temperature - 1) > TEMPERATURE:
            warnings.warn(
                f"DistributedADMM(rho={self.rho:.3g}, noise={self.noise!r}) samples at temperature "
                f"{found.temperature:.3g}: its draws are from the posterior raised to 1/{found.temperature:.3g}; use "
                f"noise='shared' or 'langevin'.",
                stacklevel=2,
            )
            self.warn_of_mixing()
        else:
            super().warn()

    def _degrees(self, x: Array) -> Float[Array, " n"]:
        return jnp.asarray(self.links.degrees).astype(x.dtype)

    def _tolerated(self, kappa: Float[Array, " n"], x: Array) -> Float[Array, " n"]:
        """Gradient residuals that move an iterate by a hundredth of the noise, or by rounding where there is none."""
        own, common = self.noise_scales(self._degrees(x))
        rounding = jnp.finfo(x.dtype).eps ** 0.75
        return SOLVED * kappa * jnp.maximum(jnp.sqrt(own**2 + common**2), rounding)
