"""Bregman–Moreau envelopes: smooth stand-ins for a nonsmooth term, whose gradient is a proximal step.

    left   env(x) = min_u g(u) + D_φ(u, x)/λ,   ∇env(x) = ∇²φ(x)(x − P(x))/λ
    right  env(x) = min_u g(u) + D_φ(x, u)/λ,   ∇env(x) = (∇φ(x) − ∇φ(P(x)))/λ   (see [1]_)

env ≤ g, and env ↑ g as λ ↓ 0. With the Euclidean mirror both are the Moreau envelope. It keeps the slope of the term
far out, which the others do not (`tail_slope`), so that their λ must be small against the scale of the term. Where D_φ
is not jointly convex the left envelope of a convex term need not be convex. Samplers that use them: [2]_.

References
----------
.. [1] H. H. Bauschke, M. N. Dao, S. B. Lindstrom (2018). Regularizing with Bregman–Moreau envelopes. SIAM J. Optim.
   28(4).
.. [2] T. T.-K. Lau, H. Liu (2022). Bregman proximal Langevin Monte Carlo via Bregman–Moreau envelopes. ICML.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument, NotAvailable
from ..validate import check_choice
from .bregman import Side, left_prox, right_prox, supports_left, supports_right
from .mirror import AbstractMirror, Point
from .product import Affine, Product
from .separable import AbstractSeparable, BoltzmannShannon, Burg, Euclidean, HyperbolicEntropy, PowerMirror
from .term import check_entries, like


class Envelope(eqx.Module):
    """The envelope of a term. Points are those of its own mirror: make them with `at`.

    Parameters
    ----------
    term
        The term g.
    smoothing
        λ > 0: a number, or an array of shape (d,) with a separable term and a mirror that acts on each coordinate.
    mirror
        The mirror φ.
    side
        ``"left"`` or ``"right"``: on which side of the divergence the minimum is taken.

    Raises
    ------
    InvalidArgument
        λ ≤ 0, one λ per coordinate where term or mirror are not separable, or another side.
    NotAvailable
        This pair of term and mirror has no such proximal operator.
    """

    term: Any
    smoothing: Any
    mirror: AbstractMirror = eqx.field(default_factory=Euclidean)
    side: Side = eqx.field(static=True, default="left")

    def __check_init__(self) -> None:
        check_choice("side", self.side, ("left", "right"))
        check_entries("smoothing", self.smoothing, lambda v: (v > 0) & np.isfinite(v), "finite and > 0", "λ is a scale")
        if not (supports_left if self.side == "left" else supports_right)(self.term, self.mirror):
            raise NotAvailable(
                f"{type(self.term).__name__} has no {self.side} envelope in the geometry of "
                f"{type(self.mirror).__name__}; use mirror=Euclidean()."
            )
        separable = getattr(self.term, "separable", False) and self.mirror.structure in ("identity", "diagonal")
        if np.shape(self.smoothing) != () and not separable:
            raise InvalidArgument(
                f"smoothing has shape {np.shape(self.smoothing)}, but {type(self.term).__name__} with "
                f"{type(self.mirror).__name__} is not separable; give one number."
            )

    def bind(self, target: Any) -> "Envelope":
        """The same envelope over the flat ``u`` of a target, see `AbstractTerm.bind`."""
        if np.shape(self.smoothing) not in ((), (target.dim,)):
            raise InvalidArgument(
                f"smoothing has shape {np.shape(self.smoothing)}; give a number or shape ({target.dim},)."
            )
        self.mirror.check(target.dim)
        term = self.term.bind(target) if hasattr(self.term, "bind") else self.term
        return Envelope(term, self.smoothing, self.mirror, self.side)

    def at(self, x: Float[Array, " d"]) -> Point:
        """The point of the envelope's mirror with primal coordinates x."""
        return self.mirror.at(x)

    def prox(self, p: Point) -> Point:
        """The minimiser P(x)."""
        prox = left_prox if self.side == "left" else right_prox
        return prox(self.term, self.mirror, p, self.smoothing)

    def value(self, p: Point) -> Float[Array, ""]:
        """env(x)."""
        q = self.prox(p)
        apart = divergences(self.mirror, q, p) if self.side == "left" else divergences(self.mirror, p, q)
        return self.term.value(q.x) + jnp.sum(apart / like(self.smoothing, p.x))

    def grad(self, p: Point) -> Float[Array, " d"]:
        """∇env(x); where the minimiser is not unique, that of one of the branches."""
        q = self.prox(p)
        if self.side == "right":
            return (p.y - q.y) / like(self.smoothing, p.x)
        return _pull(self.mirror, p, q) / like(self.smoothing, p.x)

    def tail_slope(self) -> Float[Array, "..."]:
        """How much of the slope w of an ℓ₁ term is left far out, see `tail_slope`; at κ = λ w, per coordinate."""
        weights = getattr(self.term, "weights", None)
        if weights is None:
            raise NotAvailable(f"tail_slope is that of an l1 term; {type(self.term).__name__} has no weights.")
        return tail_slope(self.mirror, self.side, jnp.asarray(self.smoothing) * jnp.asarray(weights))


def tail_slope(mirror: AbstractMirror, side: Side, kappa: Any) -> Float[Array, "..."]:
    """Slope of the envelope of α|x| as |x| → ∞, divided by α, at κ = λα.

    It is 1 for `Euclidean` and `PowerMirror`, (1 − e⁻ᵏ)/κ (left) or log(1 + κ)/κ (right) for `HyperbolicEntropy` and
    `BoltzmannShannon`, and 0 for `Burg`: a smoothed Laplace prior has heavier tails than the prior, by this factor in
    the exponent.

    Raises
    ------
    NotAvailable
        The domain is bounded, so there is no tail, or the mirror does not act on each coordinate alike.
    """
    check_choice("side", side, ("left", "right"))
    kappa = jnp.asarray(kappa, float)
    if isinstance(mirror, Affine):
        return tail_slope(mirror.mirror, side, kappa * jnp.abs(like(mirror.scale, kappa)))
    if isinstance(mirror, Euclidean | PowerMirror):
        return jnp.ones_like(kappa)
    if isinstance(mirror, HyperbolicEntropy | BoltzmannShannon):
        some = jnp.where(kappa > 0, kappa, 1)
        return jnp.where(kappa > 0, (-jnp.expm1(-some) if side == "left" else jnp.log1p(some)) / some, 1)
    if isinstance(mirror, Burg):
        return jnp.where(kappa > 0, jnp.zeros_like(kappa), 1)
    raise NotAvailable(f"{type(mirror).__name__} has no tail slope: its domain is bounded, or it mixes coordinates.")


def divergences(mirror: AbstractMirror, u: Point, v: Point) -> Array:
    """D_φ(u, v) ≥ 0 by coordinate, of shape (d,), where the mirror allows it; else their sum, of shape ()."""
    if isinstance(mirror, Euclidean):
        return 0.5 * (u.x - v.x) ** 2
    if isinstance(mirror, Affine):
        return divergences(mirror.mirror, u.extra, v.extra)
    if isinstance(mirror, Product):
        parts = zip(mirror.parts, u.extra, v.extra, strict=True)
        return jnp.concatenate([jnp.atleast_1d(divergences(*part)) for part in parts])
    if isinstance(mirror, AbstractSeparable):
        return jnp.maximum(mirror.phi(u.x) - mirror.phi(v.x) - v.y * (u.x - v.x), 0)
    return jnp.maximum(mirror.divergence(u, v), 0)


def _pull(mirror: AbstractMirror, p: Point, q: Point) -> Float[Array, " d"]:
    """∇²φ(x)(x − u), from the duals where primals overflow or cancel."""
    if isinstance(mirror, Affine):
        return _pull(mirror.mirror, p.extra, q.extra) / like(mirror.scale, p.x)
    if isinstance(mirror, Product):
        return jnp.concatenate([_pull(*part) for part in zip(mirror.parts, p.extra, q.extra, strict=True)])
    if isinstance(mirror, HyperbolicEntropy):
        # (sinh y − sinh y')/cosh y with a = |y|, b = ±y': each exponential is at most 1 wherever b ≥ −a
        sign, a = jnp.where(p.y < 0, -1, 1).astype(p.y.dtype), jnp.abs(p.y)
        step = sign * q.y - a
        return sign * (-jnp.expm1(step) + jnp.exp(-2 * a) * jnp.expm1(-step)) / (1 + jnp.exp(-2 * a))
    if isinstance(mirror, BoltzmannShannon):
        return -jnp.expm1(q.y - p.y)
    return mirror.hess_mv(p, p.x - q.x)
