"""Reading a NumPyro model: one abstract trace, which computes nothing, finds its sites, supports and plates."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ..errors import InvalidArgument, UnsupportedTarget
from .base import Site
from .refuse import (
    check_arguments,
    check_enumerable,
    check_observed,
    is_discrete,
    known_support,
    refuse_delta,
    refuse_subsample,
)
from .static import ByContent
from .words import describe, innermost


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a model before it runs; hashable, and equal for data of the same shapes.

    Parameters
    ----------
    sites
        Latent, deterministic, discrete ones.
    unconstrained
        Name and unconstrained shape of each latent site, in the order of ``u``.
    observed
        Names of the observed sites, shapes of their values.
    factors
        Names of the sites made by ``numpyro.factor``.
    improper
        Names of latent sites without a normalised prior.
    enum_dim
        First tensor dimension free for enumeration, or None without discrete latents.
    local
        Discrete sites inside a plate: they belong to data, and new data have their own.
    dims
        Name of a site → the names of its axes, from the plates.
    downstream
        Deterministic sites after a discrete one.
    scanned
        Whether discrete sites are inside ``numpyro.contrib.control_flow.scan``.
    hidden
        Whether discrete sites are summed out but not drawn back.
    supports
        NumPyro constraint of each latent site; None where it depends on data or other sites.
    """

    sites: tuple[Site, ...]
    unconstrained: tuple[tuple[str, tuple[int, ...]], ...]
    observed: tuple[tuple[str, tuple[int, ...]], ...]
    factors: tuple[str, ...]
    improper: tuple[str, ...]
    enum_dim: int | None
    local: tuple[str, ...]
    dims: tuple[tuple[str, tuple[str, ...]], ...]
    downstream: tuple[str, ...] = ()
    scanned: bool = False
    hidden: bool = False
    supports: tuple[ByContent | None, ...] = ()

    @property
    def enumerated(self) -> bool:
        """Whether discrete latents are summed out."""
        return self.enum_dim is not None

    def without_discrete(self) -> "Plan":
        """The plan of a target that sums discrete sites out and does not draw them back."""
        sites = tuple(s for s in self.sites if s.kind != "discrete" and s.name not in self.downstream)
        return dataclasses.replace(self, sites=sites, hidden=True)


@dataclasses.dataclass
class Discovery:
    """A `Plan`, and what of the observed values was seen: the array given by the user, or a concrete value.

    ``supports`` has the name of the distribution and its support, where that is known and nothing masks.
    """

    plan: Plan
    seen: dict[str, Any]
    masks: dict[str, Any]
    supports: dict[str, tuple[str, Any]]


def unvalidated[**P, R](fn: Callable[P, R]) -> Callable[P, R]:
    """Run without NumPyro's checks of arguments and values: traced anew each time, they double the time to trace."""

    @functools.wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        from numpyro import validation_enabled

        with validation_enabled(False):
            return fn(*args, **kwargs)

    return run


@unvalidated
def discover(call: Callable[[list[Any]], tuple[Callable, tuple, dict]], leaves: list[Any]) -> Discovery:
    """Trace a model once, abstractly, in 64-bit mode.

    Parameters
    ----------
    call
        Makes (model, args, kwargs) from the leaves.
    leaves
        The arrays to be traced; the model sees only their shapes and dtypes.

    Raises
    ------
    InvalidArgument
        Shapes that do not fit, no latent site, a Delta site.
    UnsupportedTarget
        A latent that cannot be mapped to the real line nor enumerated, or a random subsample.
    """
    found: list[Discovery] = []

    def run(leaves: list[Any]) -> None:
        found.append(_read(run_at_zeros(*call(leaves)), leaves))

    with jax.enable_x64(True):
        jax.eval_shape(run, leaves)
    return found[0]


def zeros_where_latent(site: dict[str, Any]) -> Any:
    """A value inside the support, for every continuous latent: the image of 0."""
    from numpyro.distributions import biject_to

    if site["type"] != "sample" or site["is_observed"] or is_discrete(site):
        return None
    shape = tuple(site["kwargs"].get("sample_shape", ())) + tuple(site["fn"].shape())
    try:
        transform = biject_to(site["fn"].support)
    except NotImplementedError:
        raise UnsupportedTarget(
            f"the latent site {site['name']!r} has the support {describe(site['fn'].support)}, which has no bijection "
            f"from the real line; reparameterise the site with target.replace(reparam=...) or in the model."
        ) from None
    return transform(jnp.zeros(transform.inverse_shape(shape)))


def run_at_zeros(model: Callable, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The sites of a model, with continuous latents at the image of 0."""
    from numpyro import handlers

    with handlers.trace() as trace, handlers.seed(rng_seed=0), handlers.substitute(substitute_fn=zeros_where_latent):
        model(*args, **kwargs)
    return trace


def _read(trace: dict[str, Any], leaves: list[Any]) -> Discovery:
    latent, deterministic, after, discrete = [], [], [], []
    unconstrained, observed, factors, improper, local = [], [], [], [], []
    dims, seen, masks, supports = {}, {}, {}, {}
    latent_supports = []
    depth, scanned = 0, False
    for name, site in trace.items():
        if site["type"] == "plate":
            refuse_subsample(site)
            continue
        if site["type"] not in ("sample", "deterministic"):
            continue
        value = site["value"]
        shape = tuple(np.shape(value))
        dtype = np.dtype(jnp.result_type(value)).name
        event_dim = site["fn"].event_dim if site["type"] == "sample" else 0
        named = _dims(name, shape, event_dim, site["cond_indep_stack"])
        if site["type"] == "sample":
            check_arguments(site)
        if site["type"] == "deterministic":
            (after if discrete else deterministic).append(Site(name, shape, dtype, "", "deterministic"))
        elif site["is_observed"]:
            if is_factor(site):
                factors.append(name)
                continue
            check_observed(site, shape)
            observed.append((name, shape))
            seen[name] = value
            masks[name] = mask_of(site["fn"])
            support = known_support(site["fn"])
            if support is not None and masks[name] is None:
                supports[name] = (type(innermost(site["fn"])).__name__, support)
        elif is_discrete(site):
            check_enumerable(site)
            discrete.append(Site(name, shape, dtype, describe(site["fn"].support), "discrete"))
            scanned = scanned or "_scan_current_index" in site["infer"]
            if site["cond_indep_stack"]:
                local.append(name)
        else:
            refuse_delta(site)
            inner = _unconstrained_shape(site, shape)
            unconstrained.append((name, inner))
            latent.append(Site(name, shape, dtype, describe(site["fn"].support), "latent", int(np.prod(inner))))
            latent_supports.append(_constant(site["fn"].support))
            if _is_improper(site["fn"]):
                improper.append(name)
        depth = max([depth, *(-frame.dim for frame in site["cond_indep_stack"] if frame.dim is not None)])
        if named:
            dims[name] = named
    if not latent:
        raise InvalidArgument(
            f"the model has no continuous latent site (its sites: {', '.join(map(repr, trace)) or 'none'}), so "
            f"there is nothing to infer; check that it samples parameters with numpyro.sample and without obs=."
        )
    plan = Plan(
        sites=(*latent, *deterministic, *after, *discrete),
        unconstrained=tuple(unconstrained),
        observed=tuple(observed),
        factors=tuple(factors),
        improper=tuple(improper),
        enum_dim=-depth - 1 if discrete else None,
        local=tuple(local),
        dims=tuple(dims.items()),
        downstream=tuple(site.name for site in after),
        scanned=scanned,
        supports=tuple(latent_supports),
    )
    return Discovery(plan, *_concrete(seen, masks, leaves), supports)


def _concrete(seen: dict, masks: dict, leaves: list[Any]) -> tuple[dict, dict]:
    """Keep what outlives the trace: the position of a leaf in place of its tracer, and concrete values."""
    position = {id(leaf): i for i, leaf in enumerate(leaves)}
    kept = {}
    for name, value in seen.items():
        if isinstance(value, jax.core.Tracer):
            if id(value) in position:
                kept[name] = position[id(value)]
        else:
            kept[name] = np.asarray(value)
    return kept, {k: m for k, m in masks.items() if not isinstance(m, jax.core.Tracer)}


def _dims(name: str, shape: tuple[int, ...], event_dim: int, frames: Any) -> tuple[str, ...]:
    """Names of the axes: those of the plates around the site, ArviZ's default names for the others."""
    by_axis = {frame.dim - event_dim: frame for frame in frames if frame.dim is not None}
    names, known = [], False
    for axis, length in enumerate(shape):
        frame = by_axis.get(axis - len(shape))
        if frame is not None and frame.size == length:
            names.append(frame.name)
            known = True
        else:
            names.append(f"{name}_dim_{axis}")
    return tuple(names) if known and len(set(names)) == len(names) else ()


def _unconstrained_shape(site: dict[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    from numpyro.distributions import biject_to

    return tuple(int(n) for n in biject_to(site["fn"].support).inverse_shape(shape))


def is_factor(site: dict[str, Any]) -> bool:
    """Whether a site was made by ``numpyro.factor``."""
    from numpyro.distributions import Unit

    return isinstance(innermost(site["fn"]), Unit)


def _constant(support: Any) -> ByContent | None:
    """A support whose bounds are known before the model runs; else None."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(support)):
        return None
    return ByContent(support)


def _is_improper(fn: Any) -> bool:
    from numpyro.distributions import ImproperUniform

    return isinstance(innermost(fn), ImproperUniform)


def mask_of(fn: Any) -> Any:
    """The mask of an observed site's distribution, or None."""
    from numpyro.distributions import MaskedDistribution

    while not isinstance(fn, MaskedDistribution):
        if not hasattr(fn, "base_dist"):
            return None
        fn = fn.base_dist
    return fn._mask
