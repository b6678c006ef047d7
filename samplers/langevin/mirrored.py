"""The mirror Langevin proposal and its Metropolis ratio, for every sampler whose Gaussian step is taken in the dual.

Proposal and test cost one evaluation of log density and drift at the new point, and O(d) for mirrors that are diagonal
or diagonal plus rank one.

References
----------
.. [1] K. S. Zhang, G. Peyré, J. Fadili, M. Pereyra (2020). Wasserstein control of mirror Langevin Monte Carlo. COLT.
.. [2] V. Srinivasan, A. Wibisono, A. Wilson (2024). Fast sampling from constrained spaces using the Metropolis-adjusted
   Mirror Langevin algorithm. COLT. arXiv:2312.08823.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument
from ...infer.geometry import Affine, Euclidean, HyperbolicEntropy, Product
from ...infer.geometry.mirror import AbstractMirror, Point
from ...infer.geometry.supports import default_mirror
from ...infer.target.primal import Primal
from .common import Local, Noise, Proposal, finite


def mirror_proposal(
    locate: Callable[[Point], Local], mirror: AbstractMirror, noise: Noise, local: Local, step: Array
) -> Proposal:
    """Y' = y − γ G(x) + √(2γ) ξ with ξ ~ N(0, ∇²φ(x)), z = ∇φ*(y') ([1]_, equation 9), and its ratio."""
    x = local.point
    proposed = mirror.from_dual(x.y - step * local.drift + jnp.sqrt(2 * step) * noise(x))
    new = locate(proposed)
    return Proposal(new, mirror_log_ratio(mirror, local, new, step), finite(new))


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


class Relative(eqx.Module):
    """A mirror in units of a scale, learned or known from the term: what ``"hyperbolic"`` and None stand for."""

    mirror: AbstractMirror


def as_mirror(given: Any) -> Any:
    """A sampler's ``mirror`` as it keeps it.

    Raises
    ------
    InvalidArgument
        It is of no form that `resolve_mirror` takes.
    """
    if given is None:
        return Relative(Euclidean())
    if isinstance(given, str) and given == "hyperbolic":
        return Relative(HyperbolicEntropy(1.0))
    if isinstance(given, AbstractMirror | Relative | Mapping):
        return given
    raise InvalidArgument(
        f"mirror must be None, 'hyperbolic', a mirror map such as SimplexBarrier(), or a dict of sites to mirror maps, "
        f"got {given!r}."
    )


def resolve_mirror(given: Any, target: Primal, scale: Array) -> AbstractMirror:
    """The mirror over the flat x.

    Parameters
    ----------
    given
        A `Relative` mirror for real sites (others have the mirror of their support), a mirror over all of x, or a dict
        of some sites → mirrors (other real sites are Euclidean).
    scale
        Array (d,): real sites' mirrors act on x / scale.

    Raises
    ------
    InvalidArgument
        A site that is not known.
    """
    if isinstance(given, AbstractMirror):
        return given
    real = given.mirror if isinstance(given, Relative) else Euclidean()
    if target.coordinates.real and not isinstance(given, Mapping):
        return Affine(real, 0.0, scale)
    own = given if isinstance(given, Mapping) else {}
    names = [block.name for block in target.coordinates.blocks]
    for name in own:
        if name not in names:
            raise InvalidArgument(f"mirror names the site {name!r}; the latent sites are {', '.join(names)}.")
    parts: list[AbstractMirror] = []
    sizes: list[int] = []
    for block, at in target.coordinates.slices:
        support = elementary(block.support.value, block.shape)
        event = len(block.shape) - support.event_dim if support.event_dim else 0
        size = math.prod(block.free[event:])  # of a batch, one mirror per simplex, ball, …
        for begin in range(at.start, at.stop, size):
            if block.name in own:
                mirror = own[block.name]
            elif block.is_real:
                mirror = Affine(real, 0.0, scale[begin : begin + size])
            else:
                mirror = default_mirror(support, math.prod(block.shape[event:]))
            parts.append(mirror)
            sizes.append(size)
    return parts[0] if len(parts) == 1 else Product(tuple(parts), tuple(sizes))


def elementary(support: Any, shape: tuple[int, ...]) -> Any:
    """A constraint without `independent` around it, the bounds of one that acts on each value as flat arrays."""
    from numpyro.distributions import constraints

    while isinstance(support, constraints.independent):
        support = support.base_constraint
    names = [name for name in ("lower_bound", "upper_bound") if np.ndim(getattr(support, name, 0.0))]
    if support.event_dim or not names:
        return support
    flat = {
        name: np.broadcast_to(getattr(support, name), shape).reshape(-1)
        for name in ("lower_bound", "upper_bound")
        if hasattr(support, name)
    }
    return type(support)(**flat)
