"""`Primal`: a target in the constrained coordinates of its sites, for samplers that know the geometry of a support.

The flat x lays the sites' values end to end; of a simplex all but the last entry, which the others fix. So x has as
many coordinates as u, its density is taken with respect to Lebesgue measure in them, and no log-Jacobian enters.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import UnsupportedTarget
from .base import Target
from .composite import CompositeTarget
from .static import ByContent
from .words import describe


class Block(eqx.Module):
    """One latent site in x; wholly static.

    Parameters
    ----------
    name
        Of the site.
    shape
        Of its value.
    free
        Of its part of u.
    support
        Its NumPyro constraint.
    """

    name: str = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    free: tuple[int, ...] = eqx.field(static=True)
    support: ByContent = eqx.field(static=True)

    @property
    def kind(self) -> str:
        """Of the support, in a word."""
        return describe(self.support.value).partition("(")[0]

    @property
    def is_real(self) -> bool:
        """Whether x is u."""
        return self.kind == "real"

    @property
    def size(self) -> int:
        """Number of coordinates in x, and in u."""
        return int(np.prod(self.free))

    def cut(self, value: Array) -> Array:
        """The part of x at a value of the site."""
        return jnp.reshape(value[..., :-1] if self.kind == "simplex" else value, (-1,))

    def value(self, x: Array, log_probs: Array | None = None) -> Array:
        """The value of the site at its part of x; of a simplex the last probability is 1 − Σ x.

        Parameters
        ----------
        x
            Of shape (size,).
        log_probs
            Logarithms of all probabilities of a simplex, where they are known better than x tells them: they give the
            last one, whose derivative with respect to x is −1 still.
        """
        if self.kind != "simplex":
            return jnp.reshape(x, self.shape)
        x = jnp.reshape(x, self.free)
        total = jnp.sum(x, -1, keepdims=True)
        if log_probs is None:
            rest = jnp.maximum(1.0 - total, jnp.finfo(x.dtype).eps / 4)  # what rounding may have lost
        else:
            rest = jnp.maximum(jnp.exp(log_probs[..., -1:]), jnp.finfo(x.dtype).tiny)
            rest = jax.lax.stop_gradient(rest) - (total - jax.lax.stop_gradient(total))
        return jnp.concatenate([x, rest], -1)


class PrimalCoordinates(eqx.Module):
    """The coordinates x and the bijection between u and x; wholly static, and equal for equal supports."""

    blocks: tuple[Block, ...] = eqx.field(static=True)

    @property
    def real(self) -> bool:
        """Whether x is u."""
        return all(block.is_real for block in self.blocks)

    @property
    def slices(self) -> tuple[tuple[Block, slice], ...]:
        """Each block with its place in x, and in u."""
        ends = np.cumsum([block.size for block in self.blocks])
        return tuple((b, slice(int(end) - b.size, int(end))) for b, end in zip(self.blocks, ends, strict=True))

    def to_x(self, u: Float[Array, " d"]) -> Float[Array, " d"]:
        """The x at u."""
        from numpyro.distributions import biject_to

        parts = []
        for block, at in self.slices:
            part = u[at]
            if not block.is_real:
                part = block.cut(biject_to(block.support.value)(jnp.reshape(part, block.free)))
            parts.append(part)
        return jnp.concatenate(parts)

    def to_u(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """The u at x."""
        from numpyro.distributions import biject_to

        parts = []
        for block, at in self.slices:
            part = x[at]
            if not block.is_real:
                part = jnp.reshape(biject_to(block.support.value)._inverse(block.value(part)), (-1,))
            parts.append(part)
        return jnp.concatenate(parts)

    def values(self, x: Float[Array, " d"], log_probs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Values of the latent sites at x; ``log_probs`` by site as in `Block.value`."""
        known = log_probs or {}
        return {block.name: block.value(x[at], known.get(block.name)) for block, at in self.slices}


class Primal(eqx.Module):
    """A target's log density as a function of x.

    Attributes
    ----------
    target
        The target; a composite one has a nonsmooth part.
    coordinates
        Of x.
    """

    target: Target
    coordinates: PrimalCoordinates

    @property
    def nonsmooth(self) -> Any:
        """The nonsmooth term g, or None."""
        return self.target.nonsmooth if isinstance(self.target, CompositeTarget) else None

    def log_density(self, x: Float[Array, " d"], log_probs: Mapping[str, Array] | None = None) -> Float[Array, ""]:
        """Log π(x), without a log-Jacobian, up to a constant; ``log_probs`` by site as in `Block.value`."""
        return self.target.log_density_at(self.coordinates.values(x, log_probs))

    def smooth_log_density(
        self, x: Float[Array, " d"], log_probs: Mapping[str, Array] | None = None
    ) -> Float[Array, ""]:
        """−f(x), log π(x) without the nonsmooth term."""
        if isinstance(self.target, CompositeTarget):
            return self.target.smooth_log_density_at(self.coordinates.values(x, log_probs))
        return self.log_density(x, log_probs)


def primal(target: Target) -> Primal:
    """The target in constrained coordinates.

    Raises
    ------
    UnsupportedTarget
        A support is not known before the model runs (its bounds depend on data or on other sites), or the nonsmooth
        term acts on coordinates of u that are not those of x.
    """
    inner = target.target if isinstance(target, CompositeTarget) else target
    if not inner.has("support"):
        raise UnsupportedTarget(
            f"{type(inner).__name__} does not tell the supports of its sites; build the target with "
            f"Target.from_numpyro or Target.from_log_density."
        )
    supports: Mapping[str, Any] = inner.supports()
    blocks = []
    for site in target.sites:
        if site.kind != "latent":
            continue
        support = supports.get(site.name)
        if support is None:
            raise UnsupportedTarget(
                f"the support of the site {site.name!r} ({site.support}) is not known: it depends on data or on other "
                f"sites, or PyMC has another bijection for it; give its bounds as Python numbers or NumPy arrays, or "
                f"use a sampler in unconstrained coordinates, e.g. NUTS()."
            )
        free = (*site.shape[:-1], site.shape[-1] - 1) if describe(support.value) == "simplex" else site.shape
        if int(np.prod(free)) != site.size:
            raise UnsupportedTarget(
                f"the site {site.name!r} has {int(np.prod(site.shape))} values but {site.size} degrees of freedom "
                f"(its support is {site.support}); its density has no coordinates of its own; use NUTS()."
            )
        blocks.append(Block(site.name, site.shape, free, support))
    found = Primal(target, PrimalCoordinates(tuple(blocks)))
    if found.nonsmooth is not None:
        _check_nonsmooth(found)
    return found


def _check_nonsmooth(found: Primal) -> None:
    """A term over u is one over x where the two agree, or where it does not act."""
    leaves = jax.tree.leaves(found.nonsmooth)
    if found.coordinates.real or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return  # what is traced was looked at before
    acts_on = getattr(found.nonsmooth, "acts_on", lambda dim: np.ones(dim, bool))(found.target.dim)
    for block, at in found.coordinates.slices:
        if not block.is_real and acts_on[at].any():
            raise UnsupportedTarget(
                f"the nonsmooth term acts on the site {block.name!r} of support {describe(block.support.value)}, whose "
                f"unconstrained coordinates it is a term of; restrict it to real sites, e.g. L1({{'site': weight}})."
            )
