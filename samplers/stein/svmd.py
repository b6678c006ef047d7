"""Stein variational mirror descent: the mirror's metric in the kernel, from the velocity of mirrored SVGD.

With the Gram matrix K = U Λ Uᵀ of the kernel on the particles and M^{±½} = U Λ^{±½} Uᵀ the update of Shi, Liu & Mackey
(2022, section 4) is

    φ^SVMD = M½ [ H(x_m) (M₋½ φ^MSVGD)_m ]_m,   H = ∇²φ,

which equals the authors' sums over pairs of eigenfunctions without their n × r × d and n × d × d arrays. Its stationary
points are those of mirrored SVGD, unless the spectrum is truncated; with a Euclidean mirror it is SVGD. One step costs
about 10 n³ operations of the eigendecomposition, 6 n² d of products, and holds n × n matrices.
"""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument
from ...infer.kernels.radial import gradient_weight, kernel_value, squared_distances
from ...infer.kernels.velocity import velocity
from ...infer.target import Target
from ...infer.target.primal import primal
from ...infer.validate import check_fraction, check_nonnegative
from . import findings
from .common import SteinState
from .spaces import Cloud
from .svgd import AbstractMirrored

MOST_PARTICLES = 4000


class Roots(NamedTuple):
    """M½, M₋½ and the eigenvalues kept (0 for those dropped), largest last."""

    half: Array
    inverse: Array
    eigenvalues: Array


def gram_roots(
    kernel: str, x: Float[Array, "n d"], bandwidth: Array, spectrum: Any, jitter: Any
) -> tuple[Roots, Float[Array, "n n"]]:
    """Roots of the Gram matrix with ``jitter`` added to its diagonal (whose entries are 1), and the Gram matrix.

    Of the eigenpairs, largest first, those are kept whose predecessors sum to less than the share ``spectrum``.
    """
    x = x - jnp.mean(x, axis=0)
    norm = jnp.sum(x**2, axis=1)
    squared = squared_distances(x, x, norm, norm)
    gram = kernel_value(kernel, jnp.where(jnp.eye(x.shape[0], dtype=bool), 0, squared), bandwidth)
    values, vectors = jnp.linalg.eigh(gram + jitter * jnp.eye(x.shape[0], dtype=x.dtype))
    values = jnp.maximum(values, jnp.finfo(x.dtype).eps)  # rounding may leave none of a positive one
    before = jnp.cumsum(values[::-1])[::-1] - values
    kept = jnp.where(before < spectrum * jnp.sum(values), values, 0)
    root = jnp.sqrt(kept)
    half = (vectors * root) @ vectors.T
    inverse = (vectors * jnp.where(kept > 0, 1 / jnp.where(kept > 0, root, 1), 0)) @ vectors.T
    return Roots(half, inverse, kept), gram


def check_gram(method: Any) -> None:
    """Raise where the Gram matrix would be too large, or its treatment makes no sense.

    Raises
    ------
    InvalidArgument
        A number is out of range.
    """
    check_nonnegative("jitter", method.jitter)
    if method.spectrum != 1:
        check_fraction("spectrum", method.spectrum)
    if method.num_particles > MOST_PARTICLES:
        raise InvalidArgument(
            f"num_particles must be at most {MOST_PARTICLES} for {type(method).__name__}, whose steps take an n × n "
            f"eigendecomposition, got {method.num_particles}; use MirroredSVGD() or SVGD()."
        )


def untruncated(method: Any, state: SteinState, target: Target) -> list[dict[str, Any]]:
    """A finding on the velocity φ of all equations, where a truncated spectrum has enforced fewer of them."""
    if method.spectrum == 1:
        return []
    worst, kept = 0.0, method.num_particles
    for y, h in zip(np.asarray(state.y), np.asarray(state.bandwidth), strict=True):
        cloud, h = method.locate(target, jnp.asarray(y), None), jnp.asarray(h)
        phi = np.asarray(velocity(method.kernel, cloud.x, cloud.drift, h, cloud.metric, tile=method.tile))
        size = float(np.sqrt(np.mean(np.asarray(cloud.drift) ** 2)))
        roots, _ = gram_roots(method.kernel, cloud.x, h, method.spectrum, method.jitter)
        worst = max(worst, float(np.sqrt(np.mean(phi**2))) / max(size, 1e-300))
        kept = min(kept, int(np.sum(np.asarray(roots.eigenvalues) > 0)))
    return [findings.truncated(method.spectrum, kept, method.num_particles, worst)]


class SVMD(AbstractMirrored):
    """Stein variational mirror descent: mirrored SVGD with the geometry of the mirror in its kernel.

    On the densities of the simplex and the orthant that are steepest at the boundary it needs fewer iterations than
    `MirroredSVGD`, and each costs an eigendecomposition. Dual velocities are large near a boundary, where only an
    adaptive optimiser such as RMSprop is stable.

    Parameters
    ----------
    num_particles, num_steps, kernel, bandwidth, rule, learning_rate, optimizer, tolerance, patience, batch_size,
    initial, tile, backend
        As in `SVGD`; at most 4,000 particles.
    mirror
        As in `MirroredSVGD`.
    spectrum
        Share of the trace of the Gram matrix kept, τ in (0, 1]. Below 1 fewer equations are enforced than there are
        particles, and where the cloud ends depends on where it began.
    jitter
        Added to the diagonal of the Gram matrix, whose entries are 1.
    correction
        Take the change of the metric with the particle into account, so that one particle follows mirror descent to
        the mode of the density in x; the authors do not.

    References
    ----------
    Shi, Liu & Mackey (2022), Sampling with mirrored Stein operators, ICLR, arXiv:2106.12506.
    """

    spectrum: Any = 1.0
    jitter: Any = 1e-6
    correction: bool = eqx.field(static=True, default=False)

    source: ClassVar[str] = "Shi et al. 2022"

    def __check_init__(self) -> None:
        check_gram(self)

    def remarks(self, state: SteinState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Those of all; the velocity that a truncated spectrum leaves."""
        return [*super().remarks(state, target, result), *untruncated(self, state, target)]

    def turn(self, target: Target, cloud: Cloud, bandwidth: Array, phi: Array) -> Array:
        """M½ H M₋½ φ, and the correction."""
        assert cloud.points is not None
        mirror = self.mirror_for(primal(target))
        roots, gram = gram_roots(self.kernel, cloud.x, bandwidth, self.spectrum, self.jitter)
        turned = roots.half @ jax.vmap(mirror.hess_mv)(cloud.points, roots.inverse @ phi)
        if not self.correction:
            return turned
        drift = jax.vmap(lambda p: mirror.hess_mv(p, mirror.div_inv_hess(p)))(cloud.points)
        return turned + _correction(self.kernel, cloud.x, bandwidth, roots, gram, drift) / phi.shape[0]


def _correction(kernel: str, x: Array, bandwidth: Array, roots: Roots, gram: Array, drift: Array) -> Array:
    """Σ_l of M½_ll Σ_r M₋½_kr ∇₁k(x_l, x_r) + M½_kl Σ_r M₋½_lr ∇₁k(x_l, x_r) − M½_kl M½_ll H_l (∇·P)_l, for each k."""
    weight = gradient_weight(kernel, gram, bandwidth)
    diagonal = jnp.diagonal(roots.half)[:, None]
    first = (weight @ diagonal) * x - weight @ (diagonal * x)
    mixed = roots.inverse * weight
    second = mixed @ x - jnp.sum(mixed, axis=1, keepdims=True) * x
    return roots.inverse @ first + roots.half @ (second - diagonal * drift)
