"""Terms made of terms: different ones on consecutive slices of x, and a separable one within a box."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument
from ..validate import check_count
from .indicators import AbstractBox
from .term import AbstractTerm, dtype_of, like, real_sites


class Sum(AbstractTerm):
    """A separable term and a box, g(x) = term(x) + box(x).

    In one dimension the minimiser of a convex function over an interval is the projection of its free minimiser, so
    that prox = clip ∘ prox_term.

    Parameters
    ----------
    term
        `L1`, `ElasticNet` or another separable term.
    box
        `BoxIndicator` or `NonNegative`.
    """

    term: AbstractTerm
    box: AbstractBox

    separable: ClassVar[bool] = True

    def check(self) -> None:
        """Raise unless the parts are of the kinds that go together."""
        if not getattr(self.term, "separable", False):
            raise InvalidArgument(
                f"term must be separable over the coordinates, got {type(self.term).__name__}; the prox of another sum "
                f"is not that of its parts, give it as UserTerm."
            )
        if not isinstance(self.box, AbstractBox):
            raise InvalidArgument(f"box must be BoxIndicator or NonNegative, got {type(self.box).__name__}.")

    def bind(self, target: Any) -> "Sum":
        """Both parts over the flat ``u`` of a target."""
        return Sum(self.term.bind(target), self.box.bind(target))

    def acts_on(self, dim: int) -> np.ndarray:
        """Where one of the two does."""
        return self.term.acts_on(dim) | self.box.acts_on(dim)

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x)."""
        return self.term.value(x) + self.box.value(x)

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """The operator of ``term``, projected on the box."""
        return self.box.prox(self.term.prox(x, step), step)


class Blocks(AbstractTerm):
    """Different terms on consecutive slices of x, g(x) = Σ_k g_k(x_k).

    Parameters
    ----------
    parts
        The terms in order, None for a slice that has none; or a dict of a target's sites → term over the site's
        flattened value, resolved by `bind`.
    sizes
        Lengths of the slices; not needed with a dict.
    """

    parts: Any
    sizes: tuple[int, ...] = eqx.field(static=True, default=())

    def __init__(self, parts: Sequence[Any] | Mapping[str, Any], sizes: Sequence[int] = ()) -> None:
        self.parts = dict(parts) if isinstance(parts, Mapping) else tuple(parts)
        self.sizes = tuple(check_count("sizes", size) for size in sizes)
        if isinstance(parts, Mapping):
            return
        if len(self.parts) != len(self.sizes):
            raise InvalidArgument(
                f"parts and sizes must have the same length, got {len(self.parts)} and {len(self.sizes)}."
            )
        for part, size in zip(self.parts, self.sizes, strict=True):
            if part is not None and getattr(part, "size", None) not in (None, size):
                raise InvalidArgument(
                    f"sizes has {size} for {type(part).__name__}, which is made for {part.size} coordinates; make them "
                    f"equal."
                )

    @property
    def size(self) -> int | None:
        """Sum of the lengths."""
        return None if isinstance(self.parts, Mapping) else sum(self.sizes)

    def bind(self, target: Any) -> "Blocks":
        """Slices for the latent sites of a target, in their order."""
        if not isinstance(self.parts, Mapping):
            return super().bind(target)
        sites = real_sites("parts", self.parts, target)
        parts = [self.parts.get(name) for name in sites]
        bound = [
            part if part is None else part.bind(_Slice(site.size))
            for part, site in zip(parts, sites.values(), strict=True)
        ]
        return Blocks(bound, [site.size for site in sites.values()])

    def acts_on(self, dim: int) -> np.ndarray:
        """The coordinates of the parts that are there."""
        del dim
        parts = zip(self.parts, self.sizes, strict=True)
        return np.concatenate([np.zeros(size, bool) if part is None else part.acts_on(size) for part, size in parts])

    def value(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """g(x)."""
        values = [part.value(piece) for part, piece in self._pieces(x) if part is not None]
        return sum(values, jnp.zeros((), dtype_of(x)))

    def prox(self, x: Float[Array, " d"], step: Any) -> Float[Array, " d"]:
        """The operators of the parts, side by side; ``step`` is one number."""
        step = like(step, x)
        return jnp.concatenate([piece if part is None else part.prox(piece, step) for part, piece in self._pieces(x)])

    def _pieces(self, x: Float[Array, " d"]) -> list[tuple[Any, Array]]:
        starts = [sum(self.sizes[:k]) for k in range(1, len(self.sizes))]
        return list(zip(self.parts, jnp.split(x, starts), strict=True))


class _Slice(NamedTuple):
    """What a part of `Blocks` sees of a target: its own length."""

    dim: int
    sites: tuple[()] = ()
