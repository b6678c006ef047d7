"""Decentralised Langevin samplers: agents average with their neighbours, and follow the gradient of their own share.

W are Metropolis weights, L the Laplacian of the graph, ξ_i the agents' own standard normals; all agents at once:

===========  ==============================================================================================  =====
D-SGLD       x_i⁺ = Σ_j W_ij x_j − η∇f_i(x_i) + √(2η) ξ_i                                                    [1]_
D-SGHMC      v_i⁺ = v_i − η(γ v_i + ∇f_i(x_i)) + √(2γη) ξ_i,  x_i⁺ = Σ_j W_ij x_j + η v_i⁺                   [1]_
D-ULA        x_i⁺ = x_i − β_k Σ_{j∈N_i}(x_i − x_j) − n α_k∇f_i(x_i) + √(2nα_k) ξ_i,                          [2]_
             α_k = α₀/(1 + k/b)^δ₂, β_k = β₀/(1 + k/b)^δ₁
===========  ==============================================================================================  =====

Where shares differ, agents settle around different means, as no dual removes the pull of each one's own data; gradients
are of all of an agent's data. One evaluation and one exchange with the neighbours per iteration.

References
----------
.. [1] M. Gürbüzbalaban, X. Gao, Y. Hu, L. Zhu (2021). Decentralized stochastic gradient Langevin dynamics and
   Hamiltonian Monte Carlo. JMLR 22.
.. [2] A. Parayil, H. Bai, J. George, P. Gurram (2020). A decentralized approach to Bayesian learning. arXiv:2007.06799.
"""

import abc
import dataclasses
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...infer.target.shards import ShardedTarget
from ...infer.validate import check_nonnegative, check_positive
from .common import OWN, Advanced, agent_normals
from .on_graph import AbstractOnGraph
from .planned import TINY
from .tuning import Curvature, sharpest

MARGIN = 0.5
"""Share of the largest curvature for which a step is stable that a chosen step uses."""


class AbstractDecentralised(AbstractOnGraph):
    """A graph and a step size; see the concrete classes."""

    step_size: Any = OWN

    @classmethod
    def tunable(cls) -> tuple[str, ...]:
        """The step size."""
        return ("step_size",)

    def normals(self, key: PRNGKeyArray, shape: tuple[int, int], dtype: Any) -> Float[Array, "n d"]:
        """The agents' own."""
        return agent_normals(key, shape, dtype)

    def bounded(self, found: Curvature) -> Self:
        """With a step of at most what half the stable force of the most curved share allows: it takes it alone."""
        largest = self.largest_step(max(sharpest(found), TINY) / MARGIN, found.hessians.shape[0])
        return dataclasses.replace(self, step_size=min(float(self.step_size), largest))

    @abc.abstractmethod
    def largest_step(self, curvature: float, num_agents: int) -> float:
        """The step up to which it is stable where no share is more curved than this."""

    def _with(self, **chosen: float) -> Self:
        """With these numbers for what is ``"auto"``."""
        return dataclasses.replace(self, **{k: v for k, v in chosen.items() if isinstance(getattr(self, k), str)})


class DSGLD(AbstractDecentralised):
    """Decentralised Langevin dynamics: mix with the neighbours, then a Langevin step on one's own share. Approximate.

    Parameters
    ----------
    graph
        As in `DistributedADMM`.
    step_size
        η > 0, or ``"auto"``: such that the variance of the average is predicted to be ``tolerance`` too large.
    tolerance, precondition, plan, keep, scatter
        As in `DistributedADMM`.

    Raises
    ------
    InvalidArgument
        η is unstable: ηh > 1 + λ_min(W) for a curvature h of a share.

    References
    ----------
    Gürbüzbalaban, Gao, Hu & Zhu (2021), JMLR 22.
    """

    source: ClassVar[str] = "Gürbüzbalaban et al. 2021"
    warning: ClassVar[str] = (
        "DSGLD is approximate: there is no Metropolis test, and agents with different data settle around different "
        "means."
    )

    def advance(self, x: Float[Array, "n d"], memory: Any, normals: Any, target: ShardedTarget, t: Array) -> Advanced:
        """One iteration of all agents."""
        eta = self.step_size

        def step(gradient: Array, mixed: Array, xi: Array) -> Array:
            return mixed - eta * gradient + jnp.sqrt(2 * eta) * xi

        return Advanced(self.moved(step, target, x, self.links.mix(x), normals), memory)

    def largest_step(self, curvature: float, num_agents: int) -> float:
        """ηh = 1 + λ_min(W)."""
        return (1 + self.links.least_weight()) / curvature

    def choose(self, values: np.ndarray, num_agents: int, aim: float) -> "DSGLD":
        """1/(1 − ηh/2) = 1 + ε."""
        return self._with(step_size=2 * aim / (1 + aim) / max(float(values[-1]), TINY))

    def closed_form(self, values: np.ndarray, num_agents: int) -> tuple[float, float]:
        """Variance 1/(1 − ηh/2), contraction 1 − ηh."""
        return langevin(float(self.step_size) * values)


class DSGHMC(AbstractDecentralised):
    """Decentralised underdamped Langevin dynamics. Approximate.

    Parameters
    ----------
    graph
        As in `DistributedADMM`.
    step_size, friction
        η and γ, or ``"auto"``: γ = 2√h for the smallest curvature h, and η such that the variance of the average is
        predicted to be ``tolerance`` off.
    tolerance, precondition, plan, keep, scatter
        As in `DistributedADMM`.

    Raises
    ------
    InvalidArgument
        The settings are unstable.

    References
    ----------
    Gürbüzbalaban, Gao, Hu & Zhu (2021), JMLR 22.
    """

    friction: Any = OWN

    source: ClassVar[str] = "Gürbüzbalaban et al. 2021"
    warning: ClassVar[str] = (
        "DSGHMC is approximate: there is no Metropolis test, and agents with different data settle around different "
        "means."
    )

    @classmethod
    def tunable(cls) -> tuple[str, ...]:
        """Step size and friction."""
        return ("step_size", "friction")

    def first_memory(self, key: PRNGKeyArray, x: Float[Array, "n d"]) -> Array:
        """Momenta, standard normal."""
        return agent_normals(key, x.shape, x.dtype)

    def advance(self, x: Float[Array, "n d"], memory: Any, normals: Any, target: ShardedTarget, t: Array) -> Advanced:
        """One iteration of all agents."""
        eta, gamma = self.step_size, self.friction

        def kick(gradient: Array, v: Array, xi: Array) -> Array:
            return v - eta * (gamma * v + gradient) + jnp.sqrt(2 * gamma * eta) * xi

        velocity = self.moved(kick, target, x, memory, normals)
        return Advanced(self.links.mix(x) + eta * velocity, velocity)

    def largest_step(self, curvature: float, num_agents: int) -> float:
        """η²h = (1 + λ_min(W))(2 − ηγ): an eigenvector x of an iteration, of the eigenvalue λ, solves the quadratic

        λ² − λ(w + 1 − ηγ − η²h) + (1 − ηγ)w = 0 of w = xᵀWx and h = xᵀHx, whose roots are beyond −1 only above this.
        """
        slack, gamma = 1 + self.links.least_weight(), float(self.friction)
        return float(np.sqrt((slack * gamma) ** 2 + 8 * curvature * slack) - slack * gamma) / (2 * curvature)

    def choose(self, values: np.ndarray, num_agents: int, aim: float) -> "DSGHMC":
        """By bisection on the closed form."""
        values = np.maximum(values, TINY)
        method = self._with(friction=2 * float(np.sqrt(values[0])))
        low, high = 0.0, 1 / float(np.sqrt(values[-1]) + method.friction)
        for _ in range(60):
            middle = (low + high) / 2
            error, _ = _underdamped(middle, float(method.friction), values)
            low, high = (middle, high) if error < aim else (low, middle)
        return method._with(step_size=low)

    def closed_form(self, values: np.ndarray, num_agents: int) -> tuple[float, float]:
        """The law of the average, two numbers for each curvature."""
        return _underdamped(float(self.step_size), float(self.friction), values)


class DULA(AbstractDecentralised):
    """Decentralised unadjusted Langevin with a coupling of its own, both of which may decay. Approximate.

    Parameters
    ----------
    graph
        As in `DistributedADMM`.
    step_size, coupling
        α₀ and β₀, or ``"auto"``: α₀ such that the variance of the average is predicted to be ``tolerance`` too large,
        β₀ half of what is stable.
    step_decay, coupling_decay, horizon
        δ₂, δ₁ and b; exponents of 0 (default) keep α and β where they are, and with them the law that is predicted.
        α₀/(b₁ + k)^δ of the paper is ``step_size`` α₀/b₁^δ here.
    tolerance, precondition, plan, keep, scatter
        As in `DistributedADMM`.

    Raises
    ------
    InvalidArgument
        The first step is unstable: βℓ + nαh > 2 for an eigenvalue ℓ of the Laplacian and a curvature h of a share.

    References
    ----------
    Parayil, Bai, George & Gurram (2020), arXiv:2007.06799.
    """

    coupling: Any = OWN
    step_decay: Any = 0.0
    coupling_decay: Any = 0.0
    horizon: Any = 230.0

    source: ClassVar[str] = "Parayil et al. 2020"
    warning: ClassVar[str] = (
        "DULA is approximate: there is no Metropolis test, and agents with different data settle around different "
        "means."
    )

    def __check_init__(self) -> None:
        check_nonnegative("step_decay", self.step_decay)
        check_nonnegative("coupling_decay", self.coupling_decay)
        check_positive("horizon", self.horizon)

    @classmethod
    def tunable(cls) -> tuple[str, ...]:
        """Step size and coupling."""
        return ("step_size", "coupling")

    def advance(self, x: Float[Array, "n d"], memory: Any, normals: Any, target: ShardedTarget, t: Array) -> Advanced:
        """One iteration of all agents; ``t`` counts from 0."""
        later = 1 + t / self.horizon
        alpha = x.shape[0] * self.step_size / later**self.step_decay
        beta = self.coupling / later**self.coupling_decay
        apart = jnp.asarray(self.links.degrees)[:, None].astype(x.dtype) * x - self.links.neighbour_sum(x)

        def step(gradient: Array, coupled: Array, xi: Array) -> Array:
            return coupled - alpha * gradient + jnp.sqrt(2 * alpha) * xi

        return Advanced(self.moved(step, target, x, x - beta * apart, normals), memory)

    def largest_step(self, curvature: float, num_agents: int) -> float:
        """βℓ_max + nαh = 2; any where the coupling alone is unstable, which is then told of it."""
        left = 2 - float(self.coupling) * self.links.largest_eigenvalue()
        return left / (num_agents * curvature) if left > 0 else np.inf

    def choose(self, values: np.ndarray, num_agents: int, aim: float) -> "DULA":
        """1/(1 − nαh/2) = 1 + ε, and βℓ_max = 1."""
        step = 2 * aim / (1 + aim) / max(float(values[-1]), TINY) / num_agents
        return self._with(step_size=step, coupling=1 / self.links.largest_eigenvalue())

    def closed_form(self, values: np.ndarray, num_agents: int) -> tuple[float, float]:
        """Variance 1/(1 − nαh/2), contraction 1 − nαh; of the mode ℓ, 1 − βℓ − nαh."""
        moved = num_agents * float(self.step_size) * values
        pulled = float(self.coupling) * self.links.largest_eigenvalue()
        return (np.inf, np.inf) if pulled + moved.max() > 2 else langevin(moved)


def langevin(moved: np.ndarray) -> tuple[float, float]:
    """Relative error of a variance and mixing time of x⁺ = (1 − m) x + √(2m) ξ."""
    if np.any(moved >= 2):
        return np.inf, np.inf
    slowest = float(np.abs(1 - moved).max())
    return float(np.abs(1 / (1 - moved / 2) - 1).max()), -1 / np.log(slowest) if slowest > 0 else 0.0


def _underdamped(eta: float, gamma: float, values: np.ndarray) -> tuple[float, float]:
    """Relative error of the variance of x, and mixing time, of the average's scheme with curvatures ``values``."""
    worst, slowest = 0.0, 0.0
    for h in values:
        f = np.array([[1 - eta**2 * h, eta * (1 - eta * gamma)], [-eta * h, 1 - eta * gamma]])
        noise = np.sqrt(2 * gamma * eta) * np.array([eta, 1.0])
        radius = float(np.abs(np.linalg.eigvals(f)).max())
        if radius >= 1:
            return np.inf, np.inf
        covariance = np.linalg.solve(np.eye(4) - np.kron(f, f), np.outer(noise, noise).ravel())
        worst, slowest = max(worst, abs(h * covariance[0] - 1)), max(slowest, radius)
    return worst, -1 / np.log(slowest) if slowest > 0 else 0.0
