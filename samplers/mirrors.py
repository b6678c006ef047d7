"""The ``mirror`` argument of the samplers that take one: what it may be, and the mirror over x that it stands for."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array

from ..infer.errors import InvalidArgument
from ..infer.geometry import Affine, Euclidean, HyperbolicEntropy
from ..infer.geometry.mirror import AbstractMirror
from ..infer.target.mirrors import product_mirror
from ..infer.target.primal import Block, Primal


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


def resolve_mirror(given: Any, target: Primal, scale: Array, *, barrier: bool = False) -> AbstractMirror:
    """The mirror over the flat x.

    Parameters
    ----------
    given
        A `Relative` mirror for real sites (others have the mirror of their support), a mirror over all of x, or a dict
        of some sites → mirrors (other real sites are Euclidean).
    scale
        Array (d,): real sites' mirrors act on x / scale.
    barrier
        Whether the mirror of a support is its barrier, for samplers that test no step (`default_mirror`).

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

    def of_site(block: Block, at: slice) -> AbstractMirror | None:
        if block.name in own:
            return own[block.name]
        return Affine(real, 0.0, scale[at]) if block.is_real else None

    return product_mirror(target.coordinates, of_site, barrier=barrier)


def check_inside(mirror: AbstractMirror, target: Primal, x: Array) -> None:
    """Raise `InvalidArgument` where a start lies outside of the mirror's domain.

    Raises
    ------
    InvalidArgument
        The message names the site, and where coordinates have bounds of their own, the first one outside of them.
    """
    if bool(mirror.contains(x)):
        return
    lower, upper = getattr(mirror, "bounds", (-np.inf, np.inf))
    outside = np.flatnonzero(~((np.asarray(x) > lower) & (np.asarray(x) < upper)))
    at = int(outside[0]) if outside.size else 0
    site = next(block.name for block, where in target.coordinates.slices if at < where.stop)
    what = f"coordinate {at} (site {site!r}) is {float(x[at]):.4g}" if outside.size else f"x is {shorten(x)}"
    raise InvalidArgument(
        f"the start lies outside of the domain of {type(mirror).__name__}: {what}; give start= with a point inside, or "
        f"the support of the site to Target.from_log_density."
    )


def shorten(x: Any) -> str:
    """The first few numbers of a vector."""
    x = np.asarray(x)
    return str(x[:4].round(4).tolist()) + (" …" if x.size > 4 else "")
