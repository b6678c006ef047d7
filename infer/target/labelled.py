"""What all targets made from a model share: labels, the packing of sites into the flat vector, the fingerprint."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument
from .base import Target
from .static import Labels, check_labels


class LabelledTarget(Target):
    """A target whose dims and coords are labels that compile nothing anew, set by `replace`."""

    labels: eqx.AbstractVar[Labels]

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Name of a site → names of its dimensions."""
        return dict(self.labels.dims)

    @property
    def coords(self) -> dict[str, Any]:
        """Name of a dimension → its labels."""
        return dict(self.labels.coords)

    def replace(self, **options: Any) -> Self:
        """The same target with other ``dims`` or ``coords``; what is given is added to what there is."""
        self._check_options(options, ("coords", "dims"))
        return self._relabel(options)

    def _check_options(self, options: Mapping[str, Any], settable: tuple[str, ...]) -> None:
        for name, value in options.items():
            if name not in settable:
                raise InvalidArgument(f"replace got the unknown option {name!r}; it takes {', '.join(settable)}.")
            if name in ("coords", "dims") and not isinstance(value, Mapping):
                raise InvalidArgument(f"{name} must be a dict, got {value!r}; see Target.replace.")

    def _relabel(self, options: Mapping[str, Any]) -> Self:
        dims = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in options.get("dims", {}).items()}
        dims = self.labels.dims | dims
        coords = self.labels.coords | dict(options.get("coords", {}))
        check_labels(self._shapes(), dims, coords)
        return dataclasses.replace(self, labels=Labels(dims, coords))

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all sites that may have dims: those of u, and the observed ones."""
        return {site.name: site.shape for site in self.sites} | {k: np.shape(v) for k, v in self.observed.items()}


def unpack(u: Float[Array, " d"], shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Array]:
    """Cut the flat vector into named arrays of these shapes, in their order."""
    values, at = {}, 0
    for name, shape in shapes:
        size = int(np.prod(shape))
        values[name] = jax.lax.slice_in_dim(u, at, at + size).reshape(shape)
        at += size
    return values


def pack(values: Mapping[str, Array], shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> Float[Array, " d"]:
    """The inverse of `unpack`."""
    return jnp.concatenate([jnp.reshape(values[name], (-1,)) for name, _ in shapes])


def check_values(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The entries of ``values`` for these sites, as float arrays.

    Raises
    ------
    InvalidArgument
        A site is missing or has another shape.
    """
    for name, shape in shapes.items():
        if name not in values:
            raise InvalidArgument(
                f"unconstrain got no value for the site {name!r} (of shape {shape}); it needs every one of: "
                f"{', '.join(map(repr, shapes))}."
            )
        if np.shape(values[name]) != shape:
            raise InvalidArgument(
                f"unconstrain got a value of shape {np.shape(values[name])} for the site {name!r}, which has {shape}."
            )
    return {name: jnp.asarray(values[name], dtype=float) for name in shapes}


def check_inside(u: Mapping[str, Array], supports: Mapping[str, str]) -> None:
    """Raise if a value that is not traced lies outside its support (its unconstrained image is not finite)."""
    for name, value in u.items():
        if isinstance(value, jax.core.Tracer):
            continue
        wrong = np.argwhere(~np.isfinite(np.asarray(value)))
        if len(wrong):
            where = f", first at its unconstrained coordinate {tuple(map(int, wrong[0]))}" if wrong.size else ""
            raise InvalidArgument(
                f"unconstrain got a value of the site {name!r} outside its support or on its edge; "
                f"the support is {supports[name]}{where}."
            )
