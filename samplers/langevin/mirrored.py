"""The mirror Langevin proposal and its Metropolis ratio, for every sampler whose Gaussian step is taken in the dual.

Proposal and test cost one evaluation of log density and drift at the new point, and O(d) for mirrors that are diagonal
or diagonal plus rank one.

References
----------
.. [1] K. S. Zhang, G. Peyré, J. Fadili, M. Pereyra (2020). Wasserstein control of mirror Langevin Monte Carlo. COLT.
.. [2] V. Srinivasan, A. Wibisono, A. Wilson (2024). Fast sampling from constrained spaces using the Metropolis-adjusted
   Mirror Langevin algorithm. COLT. arXiv:2312.08823.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...infer.geometry.mirror import AbstractMirror, Point
from .common import Local, Noise, Proposal, finite


def mirror_proposal(
    locate: Callable[[Point], Local], mirror: AbstractMirror, noise: Noise, local: Local, step: Array
) -> Proposal:
    """Y' = y − γ G(x) + √(2γ) ξ with ξ ~ N(0, ∇²φ(x)), z = ∇φ*(y') ([1]_, equation 9), and its ratio.

    That of a y' which is no dual, where the mirror has such, is −∞.
    """
    x = local.point
    proposed = mirror.from_dual(x.y - step * local.drift + jnp.sqrt(2 * step) * noise(x))
    if mirror.full_dual:
        new = locate(proposed)
        return Proposal(new, mirror_log_ratio(mirror, local, new, step), finite(new))
    inside = mirror.contains(proposed.x)
    new = locate(jax.tree.map(lambda there, here: jnp.where(inside, there, here), proposed, x))
    ratio = jnp.where(inside, mirror_log_ratio(mirror, local, new, step), -jnp.inf)
    return Proposal(new, ratio, finite(new))


def mirror_log_ratio(mirror: AbstractMirror, old: Local, new: Local, step: Array) -> Float[Array, ""]:
    """Log π(z) q(x | z) − log π(x) q(z | x), see [2]_, section 3.1.

    q(z | x) = N(∇φ(z); y − γG(x), 2γ H(x)) det H(z): the normal's own determinant gives ½ log det H(x) − ½ log det H(z)
    and the push-forward log det H(x) − log det H(z), together 3/2 of it.
    """

    def energy(start: Local, end: Local) -> Array:
        residual = end.point.y - start.point.y + step * start.drift
        return mirror.inv_hess_quadratic(start.point, residual) / (4 * step)

    log_det = mirror.log_det_hess(old.point) - mirror.log_det_hess(new.point)
    return new.log_density - old.log_density + 1.5 * log_det - energy(new, old) + energy(old, new)
