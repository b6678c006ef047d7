"""Which arguments of a NumPyro model have one entry per observation, so that it can be run on some of them.

A model is run on one row by giving it arrays of length 1 where it has arrays of length n, and the number 1 where it
has the Python number n. That this gives the log likelihood of the row is not read off the model but checked: the log
likelihoods of the n rows must sum to that of all data, at random points. A model whose rows depend on one another (a
time series, covariates standardised inside, a latent for each row) fails, and the reason is kept for who asks.
"""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .arguments import as_array, first_line
from .discover import is_factor, run_at_zeros, unvalidated
from .refuse import is_discrete
from .static import ByContent

if TYPE_CHECKING:
    from .numpyro_model import NumPyroTarget

POINTS = 2
TRIES = 8
MAX_LAYOUTS = 12
TOLERANCE = 1e-6
BLOCK = 4096
REMEMBERED = 256


class Rows(NamedTuple):
    """How the rows lie in the arguments of a model; hashable.

    Parameters
    ----------
    length
        Number of rows, n.
    axes
        For each array among the arguments its axis of rows, None where it has none.
    counts
        Positions, among the leaves that are no arrays, of Python numbers that count the rows.
    """

    length: int
    axes: tuple[int | None, ...]
    counts: tuple[int, ...]

    def cut(self, target: "NumPyroTarget") -> tuple[Array, ...]:
        """The arrays that have rows, with these on the leading axis."""
        pairs = zip(self.axes, target.data, strict=True)
        return tuple(_move(leaf, axis, 0) for axis, leaf in pairs if axis is not None)

    def restrict(self, target: "NumPyroTarget", rows: tuple[Any, ...]) -> "NumPyroTarget":
        """The target of some rows, given as `cut` has them."""
        given = iter(rows)
        data = [
            leaf if axis is None else _move(next(given), 0, axis)
            for axis, leaf in zip(self.axes, target.data, strict=True)
        ]
        size = ByContent(rows[0].shape[0])
        rest = tuple(size if i in self.counts else leaf for i, leaf in enumerate(target.layout.rest))
        layout = dataclasses.replace(target.layout, rest=rest)
        return dataclasses.replace(target, data=data, layout=layout)


def _move(leaf: Any, source: int, destination: int) -> Any:
    if source == destination:
        return leaf
    return (np if isinstance(leaf, np.ndarray) else jnp).moveaxis(leaf, source, destination)


_found: OrderedDict[Any, Rows | str] = OrderedDict()


def find_rows(target: "NumPyroTarget") -> Rows | str:
    """How the rows lie, or a sentence that says why the target has none.

    Looked for once for arguments of the same shapes: what was found for one data set holds for the next.
    """
    key = (
        target.layout,
        target.reparam,
        target.plan,
        tuple((leaf.shape, np.dtype(leaf.dtype)) if hasattr(leaf, "shape") else None for leaf in target.data),
    )
    if key in _found:
        _found.move_to_end(key)
        return _found[key]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in target.data):
        return "its rows were not looked for before it was compiled: call target.structure() first"
    found = _search(target)
    _found[key] = found
    while len(_found) > REMEMBERED:
        _found.popitem(last=False)
    return found


def row_likelihoods(target: "NumPyroTarget", found: Rows, u: Float[Array, " d"], rows: Any) -> Float[Array, " b"]:
    """Log likelihood of each of some rows: the model runs on one of them, under `jax.vmap`."""

    def one(row: tuple[Array, ...]) -> Float[Array, ""]:
        block = found.restrict(target, tuple(x[None] for x in row))
        return jnp.sum(jnp.stack([jnp.sum(part) for part in block.likelihood_parts(u).values()]))

    return jax.vmap(one)(tuple(rows))


# -- the search -------------------------------------------------------------------------------------------------------


class _Site(NamedTuple):
    """What the search reads of a site: value's shape, its plates (name → size), role."""

    shape: tuple[int, ...]
    plates: dict[str, int]
    role: str


def _search(target: "NumPyroTarget") -> Rows | str:
    if not (target.plan.observed or target.plan.factors):
        return "the model observes nothing"
    if not target.data:
        return "the model has no array among its arguments; pass the data to Target.from_numpyro, not by a closure"
    whole = _sites(target)
    lengths = _lengths(target, whole)
    if not lengths:
        shapes = ", ".join(f"{k} {list(s.shape)}" for k, s in whole.items() if s.role in ("observed", "factor"))
        given = ", ".join(str(list(np.shape(leaf))) for leaf in target.data)
        return f"no axis of the arguments (shapes {given}) is shared by all that is observed ({shapes})"
    reason = ""
    for length in lengths[:3]:
        for rows in itertools.islice(_layouts(target, length), MAX_LAYOUTS):
            why = _refuse_shapes(target, rows, whole) or _refuse_values(target, rows)
            if not why:
                return rows
            reason = reason or why
    return reason


def _sites(target: "NumPyroTarget") -> dict[str, _Site]:
    """The sites of a model that was run on shapes alone."""
    found: dict[str, _Site] = {}

    @unvalidated
    def run(data: list[Any]) -> None:
        model, args, kwargs = dataclasses.replace(target, data=data).ready(enum=False)
        for name, site in run_at_zeros(model, args, kwargs).items():
            if site["type"] != "sample":
                continue
            role = "discrete" if not site["is_observed"] and is_discrete(site) else "latent"
            if site["is_observed"]:
                role = "factor" if is_factor(site) else "observed"
            shape = tuple(np.shape(site["fn"].log_prob(site["value"]) if role == "factor" else site["value"]))
            found[name] = _Site(shape, {f.name: f.size for f in site["cond_indep_stack"]}, role)

    with jax.enable_x64(True):
        jax.eval_shape(run, [as_array(leaf) for leaf in target.data])
    return found


def _lengths(target: "NumPyroTarget", sites: dict[str, _Site]) -> list[int]:
    """Numbers of rows that are possible: plates around all that is observed first, then leading axes, then others."""
    seen = [site for site in sites.values() if site.role in ("observed", "factor") and (site.shape or site.plates)]
    has = {length for leaf in target.data for length in np.shape(leaf)}
    if not seen:
        leading = [np.shape(leaf)[0] for leaf in target.data if np.ndim(leaf)]
        shared = [n for n in dict.fromkeys(leading) if leading.count(n) == len(leading)]
        return [n for n in shared if n > 1]
    plates = set.intersection(*(set(site.plates.items()) for site in seen))
    axes = set.intersection(*({*site.shape} | {*site.plates.values()} for site in seen))
    ordered = sorted((size for _, size in plates), reverse=True)
    ordered += [site.shape[0] for site in seen if site.shape] + sorted(axes, reverse=True)
    return [n for n in dict.fromkeys(ordered) if n > 1 and n in has and n in axes]


def _layouts(target: "NumPyroTarget", length: int) -> Iterator[Rows]:
    """Which axis of which array, from "the first axis of this length of each" to rarer ones."""
    options: list[list[int | None]] = []
    for leaf in target.data:
        axes: list[int | None] = [i for i, n in enumerate(np.shape(leaf)) if n == length]
        options.append([*axes, None] if axes else [None])
    # NumPy's integers are no arrays here: they count rows like Python's.
    rest = [None if leaf is None else leaf.value for leaf in target.layout.rest]
    numbers = tuple(i for i, x in enumerate(rest) if _is_count(x) and int(x) == length)
    for chosen in itertools.product(*options):
        if any(axis is not None for axis in chosen):
            yield from (Rows(length, chosen, counts) for counts in dict.fromkeys((numbers, ())))


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _refuse_shapes(target: "NumPyroTarget", rows: Rows, whole: dict[str, _Site]) -> str:
    """Why the model of one row is not that of all with fewer data; empty where it is."""
    try:
        one = _sites(rows.restrict(target, tuple(x[:1] for x in rows.cut(target))))
    except Exception as error:
        return f"the model does not run on one row of its {rows.length} ({first_line(error)})"
    for name, site in whole.items():
        other = one.get(name)
        if other is None:
            return f"the site {name!r} is missing where the model runs on one row"
        fixed = [p for p, n in site.plates.items() if n == rows.length and other.plates.get(p) == n]
        if fixed and site.role in ("observed", "factor"):
            return (
                f"the plate {fixed[0]!r} has {rows.length} rows whatever the data; write its size as that of an array, "
                f"or pass it as an argument of the model"
            )
        if site.role == "latent" and site.shape != other.shape:
            return (
                f"the latent site {name!r} has a value of its own for each row (shape {site.shape}, and {other.shape} "
                f"for one row)"
            )
    return ""


def _refuse_values(target: "NumPyroTarget", rows: Rows) -> str:
    """Why the log likelihoods of the rows are not those of the whole; empty where they are."""
    checked = 0
    with jax.enable_x64(True):
        for i in range(TRIES):
            u = target.initial(jax.random.fold_in(jax.random.key(17), i))
            try:
                whole, apart, size = jax.device_get(_compare(target, u, rows))
            except Exception as error:
                return f"the model does not run on one row of its {rows.length} ({first_line(error)})"
            for name in whole:
                if not np.isfinite(whole[name]):
                    continue
                gap = abs(whole[name] - apart[name])
                if not gap <= TOLERANCE * max(size[name], 1e-300):
                    site = f"of the site {name!r}" if name else "of the data"
                    return (
                        f"the log likelihood {site} is {whole[name]:.6g} at a random point, and those of its "
                        f"{rows.length} rows, taken one by one, sum to {apart[name]:.6g}: rows depend on one another, "
                        f"or something is observed besides them"
                    )
            checked += all(np.isfinite(value) for value in whole.values())
            if checked == POINTS:
                return ""
    return "" if checked else f"its log likelihood was not finite at {TRIES} random points"


@jax.jit
def _total(target: "NumPyroTarget", u: Array) -> dict[str, Array]:
    return target.likelihood_parts(u)


def _compare(target: "NumPyroTarget", u: Array, rows: Rows) -> tuple[dict, dict, dict]:
    """Log likelihood by site, of all data; summed over rows; and sum of their sizes."""
    whole = _total(target, u)
    cut = tuple(np.asarray(x) for x in rows.cut(target))
    apart = dict.fromkeys(whole, 0.0)
    size = dict.fromkeys(whole, 0.0)
    block = min(BLOCK, rows.length)
    for a in range(0, rows.length, block):
        # The last block begins earlier instead of being shorter, so that one program serves all.
        begin = min(a, rows.length - block)
        parts = _apart(target, u, tuple(x[begin : begin + block] for x in cut), rows=rows)
        for name, values in parts.items():
            values = np.asarray(values)[a - begin :]
            apart[name] += values.sum()
            size[name] += np.abs(values).sum()
    return whole, apart, size


@partial(jax.jit, static_argnames="rows")
def _apart(target: "NumPyroTarget", u: Array, given: tuple[Array, ...], *, rows: Rows) -> dict[str, Array]:
    def one(row: tuple[Array, ...]) -> dict[str, Array]:
        return rows.restrict(target, tuple(x[None] for x in row)).likelihood_parts(u)

    return jax.vmap(one)(given)
