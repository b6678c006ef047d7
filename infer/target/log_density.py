"""`LogDensityTarget`: a plain log density over any pytree, with supports mapped to the real line by NumPyro."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..errors import InvalidArgument, UnsupportedTarget
from .arguments import Layout, as_array, first_line, first_that_traces, name_of, short_name
from .base import Site
from .labelled import LabelledTarget, check_inside, check_values, pack, unpack
from .names import dotted
from .static import ByContent, Labels
from .words import describe


class Coordinates(eqx.Module):
    """The leaves of a pytree as named sites with supports, and the bijection from the flat ``u``; wholly static.

    Parameters
    ----------
    sites
        One per parameter leaf, in the order of the pytree.
    unconstrained
        Name and unconstrained shape per site.
    supports
        NumPyro constraint per site.
    layout
        Puts the pytree together from the parameters; leaves that are no numbers (functions, strings) are kept.
    """

    sites: tuple[Site, ...] = eqx.field(static=True)
    unconstrained: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)
    supports: tuple[ByContent, ...] = eqx.field(static=True)
    layout: Layout

    def constrain(self, u: Float[Array, " d"]) -> tuple[dict[str, Array], Array]:
        """Values by site, and the log-Jacobian of the map from u: Σ log |det dx/du|."""
        from numpyro.distributions import biject_to

        u = jnp.asarray(u)  # a NumPy array keeps its 64 bits, which JAX may not have
        values, log_det = {}, jnp.zeros((), u.dtype)
        for support, (name, free) in zip(self.supports, unpack(u, self.unconstrained).items(), strict=True):
            if describe(support.value) == "real":
                values[name] = free
                continue
            transform = biject_to(support.value)
            values[name] = transform(free)
            log_det = log_det + jnp.sum(transform.log_abs_det_jacobian(free, values[name]))
        return values, log_det

    def unconstrain(self, values: Mapping[str, Any]) -> Float[Array, " d"]:
        """The inverse of `constrain`."""
        from numpyro.distributions import biject_to

        values = check_values(values, {site.name: site.shape for site in self.sites})
        free = {}
        for support, (name, shape) in zip(self.supports, self.unconstrained, strict=True):
            free[name] = jnp.reshape(biject_to(support.value)._inverse(values[name]), shape)
        check_inside(free, {site.name: site.support for site in self.sites})
        return pack(free, self.unconstrained)

    def by_site(self) -> dict[str, ByContent]:
        """The support of each site."""
        return {site.name: support for site, support in zip(self.sites, self.supports, strict=True)}

    def assemble(self, values: Mapping[str, Array]) -> Any:
        """The pytree that the user's function takes."""
        return self.layout.join([values[site.name] for site in self.sites])


def coordinates(example: Any, support: Any) -> Coordinates:
    """`Coordinates` of a pytree with the structure of ``example``; see `Target.from_log_density`.

    Raises
    ------
    InvalidArgument
        No parameter in ``example``, or ``support`` does not match it.
    UnsupportedTarget
        A support without a bijection from the real line.
    """
    from numpyro.distributions import constraints

    with_path, treedef = jax.tree_util.tree_flatten_with_path(example)
    named = {_name(path): leaf for path, leaf in with_path}
    shapes = {name: np.shape(leaf) for name, leaf in named.items() if _is_parameter(leaf)}
    if not shapes:
        raise InvalidArgument(f"example must be a pytree with real arrays in it, got {example!r}.")
    rest = tuple(None if name in shapes else ByContent(leaf) for name, leaf in named.items())
    given = _supports(example, support, shapes)
    sites, unconstrained, supports = [], [], []
    for name, shape in shapes.items():
        constraint = given.get(name)
        constraint = constraints.real if constraint is None else constraint
        free = _free_shape(name, shape, constraint)
        sites.append(Site(name, shape, "float64", describe(constraint), "latent", int(np.prod(free))))
        unconstrained.append((name, free))
        supports.append(ByContent(constraint))
    return Coordinates(tuple(sites), tuple(unconstrained), tuple(supports), Layout(treedef, rest))


class LogDensityTarget(LabelledTarget):
    """A target with a given log density. Make one with `Target.from_log_density`."""

    data: list[Any]
    layout: Layout
    coordinates: Coordinates
    labels: Labels = eqx.field(static=True)
    includes_jacobian: bool = eqx.field(static=True, default=False)

    @property
    def sites(self) -> tuple[Site, ...]:
        """One site per leaf of the example, in its order."""
        return self.coordinates.sites

    @property
    def name(self) -> str:
        """Of the function."""
        return short_name(self.layout.join(self.data)[0])

    def log_density(self, u: Float[Array, " d"]) -> Float[Array, ""]:
        """The given log density at the constrained values, plus the log-Jacobian, unless that is in it."""
        values, log_det = self.coordinates.constrain(u)
        given = self._given(values)
        return given if self.includes_jacobian else given + log_det

    def structure(self) -> frozenset[str]:
        """See `Target.structure`."""
        return frozenset({"support"})

    def supports(self) -> dict[str, Any]:
        """NumPyro constraint of each site."""
        return self.coordinates.by_site()

    def log_density_at(self, values: dict[str, Array]) -> Float[Array, ""]:
        """The given log density, less a log-Jacobian that is in it."""
        given = self._given(values)
        if not self.includes_jacobian:
            return given
        return given - self.coordinates.constrain(self.coordinates.unconstrain(values))[1]

    def _given(self, values: dict[str, Array]) -> Float[Array, ""]:
        fn, data = self.layout.join([as_array(leaf) for leaf in self.data])
        return _call(fn, self.coordinates.assemble(values), data)

    def constrain(self, u: Float[Array, " d"]) -> dict[str, Array]:
        """Values of the leaves by their names."""
        return self.coordinates.constrain(u)[0]

    def unconstrain(self, values: dict[str, Any]) -> Float[Array, " d"]:
        """The ``u`` at which the sites have these values; entries of other names are ignored."""
        return self.coordinates.unconstrain(values)

    def params(self, values: dict[str, Array]) -> Any:
        """The pytree of the example's structure with these values."""
        return self.coordinates.assemble(values)

    def replace(self, **options: Any) -> Self:
        """The same target with other ``coords``, ``dims`` or ``data``.

        ``includes_jacobian=True`` says that the given function has the log-Jacobian of the supports' bijections in it,
        as a density of u does: it is then not added a second time.
        """
        self._check_options(options, ("coords", "data", "dims", "includes_jacobian"))
        target, included = self, options.pop("includes_jacobian", self.includes_jacobian)
        if not isinstance(included, bool):
            raise InvalidArgument(f"includes_jacobian must be True or False, got {included!r}.")
        if "data" in options:
            fn, _ = self.layout.join(self.data)
            target = _build(fn, options.pop("data"), self.coordinates, self.labels)
        if included != target.includes_jacobian:
            target = dataclasses.replace(target, includes_jacobian=included)
        return target._relabel(options) if options else target

    def _identity(self) -> list[Any]:
        fn, _ = self.layout.join(self.data)
        supports = [support.digest.hex() for support in self.coordinates.supports]
        included = ["includes_jacobian"] if self.includes_jacobian else []
        return [name_of(fn), supports, *self.data, *self.layout.fixed(), *included]


def from_log_density(fn: Callable, example: Any, support: Any = None, *, data: Any = None) -> LogDensityTarget:
    """See `Target.from_log_density`."""
    if not callable(fn):
        raise InvalidArgument(f"fn must be a function of the parameters, got {fn!r}.")
    return _build(fn, data, coordinates(example, support), Labels())


def check_scalar(name: str, fn: Callable, *args: Any) -> None:
    """Trace ``fn`` abstractly in 64-bit mode; raise unless it returns one real number."""
    with jax.enable_x64(True):
        out = jax.eval_shape(fn, *args)
    leaves = jax.tree.leaves(out)
    if len(leaves) != 1 or leaves[0].shape != () or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
        found = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves) or "nothing"
        raise InvalidArgument(f"{name} must return one real number, got {found}; sum over all terms.")


def _build(fn: Callable, data: Any, where: Coordinates, labels: Labels) -> LogDensityTarget:
    def build(layout: Layout, arrays: list[Any]) -> LogDensityTarget:
        def at(u: Array, arrays: list[Any]) -> Array:
            fn, data = layout.join(arrays)
            return _call(fn, where.assemble(where.constrain(u)[0]), data)

        dim = sum(site.size for site in where.sites)
        check_scalar("fn", at, jax.ShapeDtypeStruct((dim,), np.float64), arrays)
        return LogDensityTarget(arrays, layout, where, labels)

    def explain(error: Exception) -> str:
        shapes = ", ".join(f"{site.name}{list(site.shape)}" for site in where.sites)
        return (
            f"fn ({name_of(fn)}) does not run on parameters of the example's shapes ({shapes}): {first_line(error)}; "
            f"write it with jax.numpy for such a pytree."
        )

    return first_that_traces((fn, data), build, explain)


def _call(fn: Callable, params: Any, data: Any) -> Any:
    return fn(params) if data is None else fn(params, data)


def _name(path: tuple) -> str:
    parts = []
    for key in path:
        parts.append(str(next(getattr(key, k) for k in ("key", "name", "idx") if hasattr(key, k))))
    return dotted(".".join(parts)) or "x"


def _is_parameter(leaf: Any) -> bool:
    if isinstance(leaf, bool | np.bool_) or not isinstance(leaf, int | float | np.ndarray | np.number | jax.Array):
        return isinstance(leaf, jax.ShapeDtypeStruct)
    return jnp.issubdtype(jnp.result_type(leaf), np.floating) or jnp.issubdtype(jnp.result_type(leaf), np.integer)


def _supports(example: Any, support: Any, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Constraint (or None) by site."""
    from numpyro.distributions import constraints

    if support is None:
        return {}
    is_leaf = lambda c: c is None or isinstance(c, constraints.Constraint)  # noqa: E731
    given = {_name(path): c for path, c in jax.tree_util.tree_leaves_with_path(support, is_leaf=is_leaf)}
    for name, constraint in given.items():
        if constraint is not None and not isinstance(constraint, constraints.Constraint):
            if name in shapes or type(support) is not type(example):
                raise InvalidArgument(
                    f"support of {name!r} must be a NumPyro constraint or None, got {constraint!r}; see "
                    f"numpyro.distributions.constraints."
                )
            given[name] = None
        elif name not in shapes and constraint is not None:
            raise InvalidArgument(
                f"support names {name!r}, which example lacks (it has {', '.join(map(repr, shapes))}); give support "
                f"the structure of example."
            )
    missing = [name for name in shapes if name not in given]
    if missing and not isinstance(support, Mapping):
        raise InvalidArgument(f"support has no entry for {missing[0]!r}; give it the structure of example.")
    return given


def _free_shape(name: str, shape: tuple[int, ...], constraint: Any) -> tuple[int, ...]:
    from numpyro.distributions import biject_to

    if constraint.is_discrete:
        raise UnsupportedTarget(f"the support of {name!r} is {describe(constraint)}, which is discrete; sum it out.")
    try:
        transform = biject_to(constraint)
    except NotImplementedError:
        raise UnsupportedTarget(
            f"the support of {name!r} is {describe(constraint)}, which has no bijection from the real line; "
            f"write the density in other coordinates."
        ) from None
    if len(shape) < constraint.event_dim:
        raise InvalidArgument(
            f"the support of {name!r} is {describe(constraint)}, of arrays with at least {constraint.event_dim} axes, "
            f"but its example has shape {shape}."
        )
    return tuple(int(n) for n in transform.inverse_shape(shape))
