"""The Laplace approximation: a normal at a mode, with the inverse Hessian of −log π as covariance.

The mode is that of u, the unconstrained coordinates, found by L-BFGS and polished by Newton steps (`mode`). Cheap, and
wrong by the posterior's skewness: compare its k-hat with that of `FBGVI`.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ...errors import NonFinite
from ...linalg import Diagonal, Spectral
from ...method import AbstractMethod, Budget, Stage
from ...run.start import Warm
from ...target import Target
from ...validate import check_choice, check_count
from ..mode import find_mode
from .approximation import GaussianApproximation
from .family import check_size

FLAT = 1e-10


class LaplaceState(eqx.Module):
    """A mode: point, log density, gradient, eigenvalues and eigenvectors of the Hessian of −log π."""

    point: Float[Array, " d"]
    value: Float[Array, ""]
    gradient: Float[Array, " d"]
    values: Float[Array, " d"]
    vectors: Float[Array, "d d"]
    diagonal: Float[Array, " d"]


class LaplaceInfo(NamedTuple):
    """What is known of the search; the ELBO is not, the log evidence at the mode is."""

    lp: Array
    gradient_norm: Array
    log_evidence: Array
    num_evaluations: Array


class Laplace(AbstractMethod):
    """The Laplace approximation at the best mode found from the starts.

    Parameters
    ----------
    max_iterations
        L-BFGS iterations.
    num_newton
        Newton steps after them.
    covariance
        ``"full"``, or ``"diagonal"``: the inverse of the Hessian's diagonal.

    Raises
    ------
    NonFinite
        At no mode found is the Hessian of −log π positive definite.

    References
    ----------
    Tierney & Kadane (1986), JASA 81.
    """

    max_iterations: int = eqx.field(static=True, default=200)
    num_newton: int = eqx.field(static=True, default=10)
    covariance: str = eqx.field(static=True, default="full")

    kind: ClassVar = "approximation"
    exact: ClassVar[bool] = False
    evidence: ClassVar[bool] = True
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 4
    source: ClassVar[str] = "Tierney & Kadane 1986"

    def __check_init__(self) -> None:
        check_count("max_iterations", self.max_iterations)
        check_count("num_newton", self.num_newton, 0)
        check_choice("covariance", self.covariance, ("full", "diagonal"))

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """One iteration: the whole search."""
        del budget
        return (Stage("mode", self, 1),)

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "Laplace":
        """Refuse dimensions whose Hessian is out of reach."""
        del key, start
        check_size("Laplace", "full", target.dim)
        return self

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> LaplaceState:
        """The start, not a mode yet."""
        del key
        u = start.u if isinstance(start, Warm) else start
        nothing = jnp.full((), -jnp.inf, u.dtype)
        return LaplaceState(u, nothing, jnp.zeros_like(u), -jnp.ones_like(u), jnp.eye(target.dim, dtype=u.dtype), u)

    def step(
        self, key: PRNGKeyArray, state: LaplaceState, target: Target, t: Array
    ) -> tuple[LaplaceState, LaplaceInfo]:
        """Climb to a mode; curvature there."""
        del key, t
        mode = find_mode(
            target.log_density, state.point, max_iterations=self.max_iterations, num_newton=self.num_newton
        )
        values, vectors = jnp.linalg.eigh(0.5 * (mode.hessian + mode.hessian.T))
        new = LaplaceState(mode.point, mode.value, mode.gradient, values, vectors, jnp.diagonal(mode.hessian))
        norm = jnp.linalg.norm(mode.gradient)
        return new, LaplaceInfo(mode.value, norm, _evidence(new), mode.num_evaluations)

    def result(self, state: LaplaceState, target: Target) -> GaussianApproximation:
        """The normal at the mode of largest evidence, log π + ½ log det(2π H⁻¹)."""
        del target
        state = jax.tree.map(jnp.asarray, state)
        evidence = np.nan_to_num(np.asarray(jax.vmap(_evidence)(state)), nan=-np.inf)
        if not np.isfinite(evidence).any():
            values = np.asarray(state.values)
            raise NonFinite(
                f"Laplace: at none of the {evidence.size} points found is -log density convex (least and largest "
                f"eigenvalue of its Hessian {values.min():.3g}, {values.max():.3g}); raise max_iterations, give other "
                f"starts, or check that the posterior is proper."
            )
        best = jax.tree.map(lambda x: x[int(np.argmax(evidence))], state)
        if self.covariance == "diagonal":
            return GaussianApproximation(best.point, Diagonal(1 / jnp.sqrt(best.diagonal)))
        return GaussianApproximation(best.point, Spectral(best.vectors, 1 / jnp.sqrt(best.values)))

    def merit(self, infos: LaplaceInfo) -> dict[str, Array]:
        """The best log evidence."""
        return {"log evidence": infos.log_evidence.max()}

    def remarks(self, state: LaplaceState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Whether a mode was reached, and whether restarts found several."""
        del target, result
        state = jax.tree.map(jnp.asarray, state)
        evidence = np.nan_to_num(np.asarray(jax.vmap(_evidence)(state)), nan=-np.inf)
        best = int(np.argmax(evidence))
        # The Newton decrement: the step that is left, in standard deviations of the approximation.
        left = np.asarray(state.vectors[best].T @ state.gradient[best]) / np.sqrt(np.asarray(state.values[best]))
        decrement = float(np.linalg.norm(left))
        found = [
            {
                "level": "ok" if decrement < 0.01 else "warning",
                "name": "mode",
                "message": f"The point found is {decrement:.2g} sd from a mode (threshold 0.01)."
                + ("" if decrement < 0.01 else " Raise max_iterations or num_newton."),
                "value": decrement,
                "threshold": 0.01,
            }
        ]
        apart = np.asarray(state.point) - np.asarray(state.point[best])
        far = np.abs(apart @ np.asarray(state.vectors[best]) * np.sqrt(np.asarray(state.values[best]))).max(1)
        other = int(((far > 0.1) & np.isfinite(evidence)).sum())
        if other:
            least = evidence[np.isfinite(evidence)].min()
            text = (
                f"{other} of {evidence.size} starts ended at other modes; their log evidences are {least:.2f} to "
                f"{evidence[best]:.2f}. The result describes one of them: compare with SMC."
            )
            found.append({"level": "warning", "name": "restarts", "message": text, "value": other, "threshold": 0})
        return found


def _evidence(state: LaplaceState) -> Float[Array, ""]:
    """Log π + ½ log det(2π H⁻¹); NaN unless H is positive definite."""
    d = state.values.shape[0]
    fine = (state.values[0] > FLAT * state.values[-1]) & (state.values[0] > 0)
    safe = jnp.where(fine, state.values, 1.0)
    evidence = state.value + 0.5 * d * jnp.log(2 * jnp.pi) - 0.5 * jnp.sum(jnp.log(safe))
    return jnp.where(fine, evidence, jnp.nan)
