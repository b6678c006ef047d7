"""Proximal operators in the geometry of a mirror: the squared distance becomes the Bregman divergence D_φ.

    left   argmin_u g(u) + D_φ(u, x)/λ,    0 ∈ λ ∂g(u) + ∇φ(u) − ∇φ(x)
    right  argmin_u g(u) + D_φ(x, u)/λ,    0 ∈ λ ∂g(u) + ∇²φ(u)(u − x)   (see [1]_)

Both exist for

- any term with `Euclidean`, where they are ``term.prox``;
- `L1`, `ElasticNet`, boxes and their `Sum` with every mirror that acts coordinate by coordinate, its affine images and
  products of them (the right operator of a `Sum` with jointly convex divergences only);
- `SimplexIndicator` with `BoltzmannShannon`, where both are x/Σx; `Blocks` with a `Product` of the same sizes.

One coordinate is solved in `coordinate`.

References
----------
.. [1] H. H. Bauschke, M. N. Dao, S. B. Lindstrom (2018). Regularizing with Bregman–Moreau envelopes. SIAM J. Optim.
   28(4).
"""

from itertools import accumulate
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from ..errors import NotAvailable
from . import coordinate
from .compose import Blocks, Sum
from .indicators import AbstractBox, BoxIndicator, SimplexIndicator
from .mirror import AbstractMirror, Point
from .product import Affine, Product
from .prox import L1, ElasticNet
from .separable import AbstractSeparable, BoltzmannShannon, Euclidean
from .term import like

Side = Literal["left", "right"]


class Scalars(NamedTuple):
    """A separable term, coordinate by coordinate: w|u − l| + (v/2)(u − l)², and a box (None: no such part)."""

    weights: Array | None
    ridge: Array | None
    loc: Array | None
    box: tuple[Array, Array] | None


def left_prox(term: Any, mirror: AbstractMirror, p: Point, step: Any) -> Point:
    """argmin_u g(u) + D_φ(u, x)/λ.

    Parameters
    ----------
    term
        The term g.
    mirror
        The mirror φ.
    p
        The point x of ``mirror``.
    step
        λ > 0: a number, or an array of shape (d,) where term and mirror act coordinate by coordinate.

    Raises
    ------
    NotAvailable
        There is no such operator for this pair, see `supports_left`.
    """
    return _prox("left", term, mirror, p, step)


def right_prox(term: Any, mirror: AbstractMirror, p: Point, step: Any) -> Point:
    """argmin_u g(u) + D_φ(x, u)/λ, the global one; parameters and errors as in `left_prox`."""
    return _prox("right", term, mirror, p, step)


def supports_left(term: Any, mirror: AbstractMirror) -> bool:
    """Whether `left_prox` exists for this pair."""
    return _supports("left", term, mirror)


def supports_right(term: Any, mirror: AbstractMirror) -> bool:
    """Whether `right_prox` exists for this pair."""
    return _supports("right", term, mirror)


# -- which operator ---------------------------------------------------------------------------------------------------


def _supports(side: Side, term: Any, mirror: AbstractMirror) -> bool:
    if term is None or isinstance(mirror, Euclidean):
        return True
    if isinstance(mirror, Affine):
        return _known(term) and _supports(side, term, mirror.mirror)
    if isinstance(mirror, Product):
        if isinstance(term, Blocks):
            return term.sizes == mirror.sizes and all(
                _supports(side, *pair) for pair in zip(term.parts, mirror.parts, strict=True)
            )
        return _known(term) and all(_supports(side, term, part) for part in mirror.parts)
    if isinstance(term, SimplexIndicator):
        return term.full and isinstance(mirror, BoltzmannShannon)
    if not isinstance(mirror, AbstractSeparable) or not _known(term):
        return False
    return side == "left" or not isinstance(term, Sum) or mirror.jointly_convex


def _known(term: Any) -> bool:
    if isinstance(term, Sum):
        return _known(term.term)
    return isinstance(term, L1 | ElasticNet | AbstractBox)


def _prox(side: Side, term: Any, mirror: AbstractMirror, p: Point, step: Any) -> Point:
    if not _supports(side, term, mirror):
        raise NotAvailable(
            f"{type(term).__name__} has no {side} proximal operator in the geometry of {type(mirror).__name__}; take "
            f"mirror=Euclidean() for it, or a mirror that acts on each coordinate with a separable term."
        )
    if term is None:
        return p
    if isinstance(mirror, Euclidean):
        return mirror.at(term.prox(p.x, step))
    if isinstance(mirror, Affine):
        loc, scale = like(mirror.loc, p.x), like(mirror.scale, p.x)
        inner = _prox(side, _pulled_back(term, loc, scale), mirror.mirror, p.extra, step)
        x = loc + scale * inner.x
        box = term.box if isinstance(term, Sum) else term
        # rounding must not lead out of a box, where the value is infinite
        return Point(box.prox(x, step) if isinstance(box, AbstractBox) else x, inner.y / scale, inner)
    if isinstance(mirror, Product):
        return _blockwise(side, term, mirror, p, step)
    if isinstance(term, SimplexIndicator):
        y = p.y - logsumexp(p.y)
        return Point(jnp.exp(y), y)
    scalars = _scalars(term, p.x)
    q = _free(side, scalars, mirror, p, like(step, p.x))
    return q if scalars.box is None else _clipped(mirror, q, *scalars.box)


def _free(side: Side, g: Scalars, mirror: Any, p: Point, step: Array) -> Point:
    """The operator of a term without its box."""
    if g.weights is None or g.loc is None:
        return p
    kappa, loc = jnp.broadcast_to(step * g.weights, p.x.shape), jnp.broadcast_to(g.loc, p.x.shape)
    rho = None if g.ridge is None else jnp.broadcast_to(step * g.ridge, p.x.shape)
    lower, upper = mirror.bounds
    inside = (loc > lower) & (loc < upper)
    dual_loc = jnp.where(inside, mirror.dphi(jnp.where(inside, loc, p.x)), jnp.where(loc <= lower, -jnp.inf, jnp.inf))
    kink = coordinate.Kink(loc, dual_loc, inside, kappa, rho)
    return coordinate.left(mirror, p, kink) if side == "left" else coordinate.right(mirror, p, kink)


def _blockwise(side: Side, term: Any, mirror: Product, p: Point, step: Any) -> Point:
    sizes, dim = mirror.sizes, sum(mirror.sizes)
    points = []
    for k, (part, size, stop) in enumerate(zip(mirror.parts, sizes, accumulate(sizes), strict=True)):
        cut = slice(stop - size, stop)

        def piece(leaf: Any, cut: slice = cut) -> Any:
            return leaf[cut] if np.shape(leaf) == (dim,) else leaf

        own = term.parts[k] if isinstance(term, Blocks) else jax.tree.map(piece, term)
        points.append(_prox(side, own, part, p.extra[k], piece(step)))
    x, y = (jnp.concatenate([getattr(point, name) for point in points]) for name in ("x", "y"))
    return Point(x, y, tuple(points))


def _scalars(term: Any, x: Array) -> Scalars:
    if isinstance(term, Sum):
        return _scalars(term.term, x)._replace(box=term.box.bounds(x))
    if isinstance(term, AbstractBox):
        return Scalars(None, None, None, term.bounds(x))
    ridge = like(term.ridge, x) if isinstance(term, ElasticNet) else None
    return Scalars(like(term.weights, x), ridge, like(term.loc, x), None)


def _pulled_back(term: Any, loc: Array, scale: Array) -> Any:
    """The term as a function of t, x = loc + scale · t."""

    def inner(x: Any) -> Array:
        return (like(x, loc) - loc) / scale

    if isinstance(term, Sum):
        return Sum(_pulled_back(term.term, loc, scale), _pulled_back(term.box, loc, scale))
    if isinstance(term, AbstractBox):
        ends = [inner(end) for end in term.bounds(loc)]
        return BoxIndicator(jnp.minimum(*ends), jnp.maximum(*ends))
    weights = like(term.weights, loc) * jnp.abs(scale)
    if isinstance(term, ElasticNet):
        return ElasticNet(weights, like(term.ridge, loc) * scale**2, inner(term.loc))
    return L1(weights, inner(term.loc))


def _clipped(mirror: Any, q: Point, lower: Array, upper: Array) -> Point:
    """Both divergences grow on either side of their minimum, so that a box cuts their minimiser off."""
    outside = (q.x < lower) | (q.x > upper)
    x = jnp.clip(q.x, lower, upper)
    return Point(x, jnp.where(outside, mirror.dphi(x), q.y))
