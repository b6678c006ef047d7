"""What only the host can see before and after a run of a Langevin sampler."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...infer.errors import InvalidArgument, NotAvailable
from ...infer.geometry import Affine, Euclidean, HyperbolicEntropy
from ...infer.geometry.envelope import Envelope
from ...infer.geometry.mirror import AbstractMirror
from ...infer.geometry.prox import UserTerm
from ...infer.geometry.term import AbstractTerm
from ...infer.run.start import Warm
from ...infer.target.mirrors import elementary
from ...infer.target.primal import Block, Primal
from ..mirrors import shorten
from .curvature import curvature

LARGE_KAPPA = 0.3
EDGES = (
    "positive", "nonnegative", "softplus_positive", "greater_than", "greater_than_eq", "less_than", "less_than_eq",
    "unit_interval", "interval", "open_interval", "simplex",
)  # fmt: skip
STEEP = -0.05
"""Exponent of a density at an edge below which it grows without bound."""


def starting_points(start: Any) -> list[Array]:
    """The points u among the starts of a first stage; none later."""
    starts = [s.u if isinstance(s, Warm) else s for s in start if isinstance(s, Warm) or np.ndim(s)]
    return [u for s in starts for u in np.reshape(np.asarray(s), (-1, np.shape(s)[-1]))]


def check_euclidean_step(method: Any, target: Primal, x: Any, envelope: Any = 0.0, metric: Any = None) -> None:
    """Raise where an unadjusted Euclidean step, given by the user, is one at which the recursion is not stable.

    Parameters
    ----------
    envelope
        1/λ, a number or shape (d,); 0 without an envelope.
    metric
        Of the step, shape (d,) or (d, d); default: the squares of the user's scale.
    """
    mirror = getattr(method, "mirror", Euclidean())
    mirror = getattr(mirror, "mirror", mirror)
    fixed = not method.adjusted and isinstance(method.step_size, int | float)
    if not (fixed and isinstance(mirror, Euclidean) and target.coordinates.real):
        return
    if metric is None:
        metric = np.ones(x.shape) * (1.0 if method.scale is None else np.asarray(method.scale)) ** 2
    diagonal = metric if np.ndim(metric) == 1 else np.diag(metric)
    largest = float(curvature(target, x, jnp.asarray(metric, x.dtype))) + float(np.max(diagonal * envelope))
    if method.step_size * largest >= 2:
        bound = "2/(L + 1/λ)" if np.any(envelope) else "2/L"
        raise InvalidArgument(
            f"step_size={method.step_size:g} must be below {bound} = {2 / largest:.3g}, L the curvature of the smooth "
            f"part at a random start, in the metric of the step: above it the unadjusted recursion is not stable."
        )


def check_envelope_domain(mirror: AbstractMirror, target: Primal, x: Any) -> None:
    """Raise where the mirror of an envelope does not cover all of the sites' supports, seen at random points of them.

    Raises
    ------
    InvalidArgument
        A point of the supports is outside of the mirror's domain, where the envelope is not defined.
    """
    mirror.check(x.shape[0])
    for key in jax.random.split(jax.random.key(0), 8):
        point = target.coordinates.to_x(2.0 * jax.random.normal(key, (target.target.dim,)))
        if not bool(mirror.contains(point)):
            raise InvalidArgument(
                f"envelope={type(mirror).__name__} covers a part of the supports only: a point of the latter, "
                f"{shorten(point)}, is not in its domain; use envelope=None, or 'hyperbolic'."
            )


def check_domain(mirror: AbstractMirror, target: Primal, key: Any) -> None:
    """Raise where a mirror's domain is not that of the sites' supports, seen at random points of both.

    Raises
    ------
    InvalidArgument
        A dual leads out of a support, or a point of the supports has no dual.
    """
    for k in jax.random.split(key, 8):
        x = target.coordinates.to_x(2.0 * jax.random.normal(k, (target.target.dim,)))
        if not bool(mirror.contains(x)):
            raise InvalidArgument(
                f"mirror={type(mirror).__name__} covers a part of the supports only: a point of the latter, "
                f"{shorten(x)}, is not in its domain; give the smaller support to the target."
            )
        if not (mirror.invertible and mirror.full_dual):
            continue
        there = mirror.from_dual(mirror.at(x).y + 2.0 * jax.random.normal(k, x.shape)).x
        for block, at in target.coordinates.slices:
            if not np.all(np.asarray(block.support.value(block.value(there[at])))):
                raise InvalidArgument(
                    f"the mirror of the site {block.name!r} leads out of its support, {block.kind}, to "
                    f"{shorten(there[at])}; leave it out, or take one of that domain."
                )


def describe_overshoot(mirror: AbstractMirror, y: Array, drifts: Array) -> list[dict[str, Any]]:
    """A finding on drifts that lead past 0 in the dual of the hyperbolic entropy, where ∇f grows faster than y does.

    Parameters
    ----------
    mirror
        Of a chain.
    y, drifts
        Duals and γG(x) of all chains where they ended, shape (chain, d).
    """
    scale = 1.0
    if isinstance(mirror, Affine):
        mirror, scale = mirror.mirror, np.abs(np.asarray(mirror.scale))
    if not isinstance(mirror, HyperbolicEntropy):
        return []
    far = np.abs(np.asarray(y)) * scale > np.arcsinh(1.0)  # |x| > β; nearer to 0 any kink leads past it
    share = float(np.mean((far & (np.abs(np.asarray(drifts)) > np.abs(np.asarray(y)))).any(1)))
    if share == 0:
        return []
    message = (
        f"In {100 * share:.0f} % of the chains (threshold 0) the drift γ|∇U| exceeds asinh(|x|/β) at the end: the step "
        f"goes past 0 in the dual, and beyond twice that the unadjusted recursion explodes; lower step_size, or use "
        f"adjusted=True."
    )
    return [{"level": "warning", "name": "long steps", "message": message, "value": share, "threshold": 0.0}]


def describe_edges(target: Primal, x: Array) -> list[dict[str, Any]]:
    """A finding on a density that grows without bound towards an edge of a support, like |x − edge|^(a − 1), a < 1."""
    name, power = steepest_edge(target, x)
    if not name:
        return []
    message = (
        f"Towards its edge the density of {name!r} grows without bound, like the distance to the power "
        f"{power:.2f}. In the geometry of a mirror steps there are small, and chains stay there for long: look at "
        f"R-hat and ESS of that site, and use NUTS() if they are poor."
    )
    return [{"level": "note", "name": "edge", "message": message, "value": power, "threshold": 0.0}]


def steepest_edge(target: Primal, x: Array) -> tuple[str, float]:
    """The site whose density grows fastest towards an edge, and its exponent; no site where none grows."""
    names, near = edge_exponents(target, x)
    steep = (near[:, 0] < STEEP) & (np.abs(near[:, 0] - near[:, 1]) < 0.02)
    if not steep.any():
        return "", 0.0
    worst = int(np.argmin(np.where(steep, near[:, 0], np.inf)))
    return names[worst], float(near[worst, 0])


def edge_exponents(target: Primal, x: Array) -> tuple[list[str], np.ndarray]:
    """Exponents of the density towards edges of supports: b where it goes like |x − edge|^b along one coordinate.

    Parameters
    ----------
    target, x
        A point inside, shape (d,).

    Returns
    -------
    names, exponents
        Of each edge its site, and the exponent at 1e-6 and at 1e-8 of the distance of ``x`` from it, shape (n, 2). A
        coordinate has a lower and an upper edge where its support has, a simplex one of each probability; the first
        200 edges are looked at, none of balls and polytopes.
    """
    names: list[str] = []
    found: list[tuple[int, float, float]] = []
    for block, where in target.coordinates.slices:
        if block.kind not in EDGES:
            continue
        at = np.asarray(x[where])
        for edge, side in ((lower_edges(block), 1.0), (upper_edges(block, at), -1.0)):
            for i in np.flatnonzero(np.isfinite(edge)):
                found.append((where.start + int(i), float(edge[i]), side))
                names.append(block.name)
    found = found[:200]
    if not found:
        return [], np.zeros((0, 2))
    index, edge, side = (jnp.asarray(np.array(v)) for v in zip(*found, strict=True))
    return names[:200], np.asarray(_exponents(target, jnp.asarray(x), index, edge.astype(x.dtype), side))


@jax.jit
def _exponents(target: Primal, x: Array, index: Array, edge: Array, side: Array) -> Array:
    slope = jax.grad(target.log_density)

    def one(at: tuple[Array, Array, Array]) -> Array:
        i, edge, side = at

        def exponent(share: float) -> Array:
            away = share * (x[i] - edge)
            return side * jnp.abs(away) * slope(x.at[i].set(edge + away))[i]

        return jnp.stack([exponent(1e-6), exponent(1e-8)])

    return jax.lax.map(one, (index, edge, side))


def lower_edges(block: Block) -> np.ndarray:
    """Those of the coordinates of a site, −inf where there is none."""
    if block.kind in ("less_than", "less_than_eq"):
        return np.full(block.size, -np.inf)
    support = elementary(block.support.value, block.shape)
    return np.broadcast_to(np.asarray(getattr(support, "lower_bound", 0.0), float), (block.size,))


def upper_edges(block: Block, x: np.ndarray) -> np.ndarray:
    """Those of a site's coordinates, inf where there is none; of a simplex that of the first, where Σ x is 1."""
    if block.kind == "simplex":
        x = x.reshape(block.free)
        edges = np.full(block.free, np.inf)
        edges[..., 0] = x[..., 0] + 1.0 - x.sum(-1)
        return edges.reshape(-1)
    support = elementary(block.support.value, block.shape)
    none = 1.0 if block.kind == "unit_interval" else np.inf
    return np.broadcast_to(np.asarray(getattr(support, "upper_bound", none), float), (block.size,))


def describe_tails(envelope: Envelope) -> list[dict[str, Any]]:
    """A finding on an envelope whose tails are flatter than those of the term."""
    weights = getattr(envelope.term, "weights", None)
    if weights is None or isinstance(envelope.mirror, Euclidean):
        return []
    kappa = float(np.max(np.asarray(envelope.smoothing) * np.asarray(weights)))
    if kappa <= LARGE_KAPPA:
        return []
    try:
        slope = float(np.min(np.asarray(envelope.tail_slope())))
    except NotAvailable:  # a bounded domain has no tails
        return []
    if slope > 0.99:
        return []
    return [
        {
            "level": "warning",
            "name": "envelope",
            "message": f"Far out the envelope has {100 * slope:.0f} % of the slope of the nonsmooth term (λα = "
            f"{kappa:.2g}, threshold {LARGE_KAPPA}), so that the draws have heavier tails than the target; lower "
            f"smoothing, or use adjusted=True.",
            "value": kappa,
            "threshold": LARGE_KAPPA,
        }
    ]


def describe_convexity(term: Any, x: Any) -> list[dict[str, Any]]:
    """A finding on a term whose proximal operator is not that of a convex one: it must be firmly non-expansive."""
    if isinstance(term, AbstractTerm) and not isinstance(term, UserTerm):
        return []
    keys = jax.random.split(jax.random.key(1), 16)
    pairs = jax.vmap(lambda key: jax.random.normal(key, (2, *x.shape)))(keys) * (1 + np.abs(np.asarray(x)).max())
    prox = jax.vmap(jax.vmap(lambda v: term.prox(v, 0.5)))(pairs)
    apart, moved = (np.asarray(v[:, 0] - v[:, 1]) for v in (pairs, prox))
    excess = (moved**2).sum(-1) - (moved * apart).sum(-1)
    if not np.any(excess > 1e-3 * (apart**2).sum(-1)):
        return []
    message = (
        f"The proximal operator of {type(term).__name__} is not firmly non-expansive, so its term is not convex: its "
        f"envelope has kinks of its own, and no theory covers the unadjusted samplers."
    )
    return [{"level": "warning", "name": "convexity", "message": message}]
