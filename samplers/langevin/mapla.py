"""MAPLA: the Metropolis-adjusted preconditioned Langevin algorithm, a mirror's metric without its inverse.

    z ~ N(x − γ H(x)⁻¹ G(x), 2γ H(x)⁻¹),   H = ∇²φ,

rejected outside of the constraint. One step costs an evaluation at the new point and, for a polytope of m facets, a
Cholesky factorisation of AᵀD²A, O(m d² + d³).

References
----------
.. [1] V. Srinivasan, A. Wibisono, A. Wilson (2024). High-accuracy sampling from constrained spaces with the
   Metropolis-adjusted preconditioned Langevin algorithm. arXiv:2412.18701.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from ...infer.errors import InvalidArgument
from ...infer.geometry.mirror import AbstractMirror, Point
from ...infer.target.primal import Primal
from ..mirrors import as_mirror, resolve_mirror
from .common import AbstractLangevin, Local, Noise, Proposal, finite, log_probs, value_and_drift, value_of_term


class MAPLA(AbstractLangevin):
    """The Metropolis-adjusted preconditioned Langevin algorithm, for polytopes and other constraints.

    Parameters
    ----------
    step_size, target_acceptance, scale, mirror
        As in `BregmanProximalLangevin`; of the mirror only its Hessian is used.

    Raises
    ------
    UnsupportedTarget
        The supports of the target are not known.

    References
    ----------
    Srinivasan, Wibisono & Wilson (2024), High-accuracy sampling from constrained spaces with the Metropolis-adjusted
    preconditioned Langevin algorithm, arXiv:2412.18701.
    """

    mirror: Any = eqx.field(default=None, converter=as_mirror)

    source: ClassVar[str] = "Srinivasan et al. 2024"

    def __check_init__(self) -> None:
        if not self.adjusted:
            raise InvalidArgument(
                f"adjusted must be True, got {self.adjusted!r}: proposals of MAPLA leave the constraint, and the test "
                f"rejects them; use MirrorLangevin(adjusted=False)."
            )

    def mirror_for(self, target: Primal, scale: Array) -> AbstractMirror:
        """The mirror whose Hessian is the metric."""
        return resolve_mirror(self.mirror, target, scale)

    def noise(self, key: Array, mirror: AbstractMirror, point: Point) -> Array:
        """A draw of N(0, H⁻¹)."""
        return mirror.inv_noise(key, point)

    def locate(self, target: Primal, mirror: AbstractMirror, point: Point) -> Local:
        """Log π and minus its gradient."""
        value, drift = value_and_drift(target.log_density, point.x, log_probs(target, mirror, point))
        return Local(point, value, drift, value_of_term(target, point.x))

    def propose(self, target: Primal, mirror: AbstractMirror, noise: Noise, local: Local, step: Array) -> Proposal:
        """The Gaussian step in the primal; the ratio of one outside of the constraint is −∞ ([1]_, algorithm 1)."""
        x = local.point
        z = x.x - step * mirror.inv_hess_mv(x, local.drift) + jnp.sqrt(2 * step) * noise(x)
        inside = mirror.contains(z)
        new = self.locate(target, mirror, mirror.at(jnp.where(inside, z, x.x)))
        ratio = jnp.where(inside, log_ratio(mirror, local, new, step), -jnp.inf)
        return Proposal(new, ratio, finite(new))


def log_ratio(mirror: AbstractMirror, old: Local, new: Local, step: Array) -> Array:
    """Log π(z) q(x | z) − log π(x) q(z | x) with q(z | x) = N(z; x − γP(x)G(x), 2γP(x)), P = H⁻¹."""

    def energy(start: Local, end: Local) -> Array:
        residual = end.point.x - start.point.x + step * mirror.inv_hess_mv(start.point, start.drift)
        return jnp.sum(residual * mirror.hess_mv(start.point, residual)) / (4 * step)

    log_det = 0.5 * (mirror.log_det_hess(new.point) - mirror.log_det_hess(old.point))
    return new.log_density - old.log_density + log_det - energy(new, old) + energy(old, new)
