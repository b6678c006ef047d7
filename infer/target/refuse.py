"""What a NumPyro model must not contain, one check and one sentence each."""

import importlib.util
from typing import Any

import jax
import jax.core
import numpy as np

from ..errors import InvalidArgument, UnsupportedTarget
from .words import describe, innermost

DISCRETE_INSTALL = 'pip install "pushforward[discrete]"'


def is_discrete(site: dict[str, Any]) -> bool:
    """Whether a site takes discrete values; raise where its support is not known."""
    support = site["fn"].support
    try:
        return bool(support.is_discrete)
    except (AttributeError, NotImplementedError):
        raise UnsupportedTarget(
            f"the latent site {site['name']!r} has the distribution {type(site['fn']).__name__}, whose support "
            f"{support!r} is not known; give it a distribution with a support."
        ) from None


def refuse_delta(site: dict[str, Any]) -> None:
    """A latent with a point mass leaves nothing to infer."""
    from numpyro.distributions import Delta

    if isinstance(innermost(site["fn"]), Delta):
        raise InvalidArgument(
            f"the latent site {site['name']!r} has a Delta distribution, which leaves nothing to infer; write "
            f"numpyro.deterministic({site['name']!r}, value) instead."
        )


def check_enumerable(site: dict[str, Any]) -> None:
    """A discrete latent must have finite support, and funsor be installed."""
    name, fn = site["name"], type(site["fn"]).__name__
    if not site["fn"].has_enumerate_support:
        raise UnsupportedTarget(
            f"the discrete latent site {name!r} has the distribution {fn}, which cannot be enumerated; write a "
            f"distribution with finite support, or sum the site out in the model."
        )
    if importlib.util.find_spec("funsor") is None:
        raise UnsupportedTarget(
            f"the latent site {name!r} is discrete ({fn}) and is summed out by enumeration, which needs funsor: "
            f"{DISCRETE_INSTALL}."
        )


def refuse_subsample(site: dict[str, Any]) -> None:
    """A plate must not draw a random part of the data."""
    size, subsample_size = site["args"]
    if subsample_size is not None and subsample_size != size and site["kwargs"].get("rng_key") is not None:
        raise UnsupportedTarget(
            f"the plate {site['name']!r} draws a random subsample ({subsample_size} of {size}), so the log density is "
            f"not a function of the latents; drop subsample_size, or use Target.from_factors, which makes mini-batches."
        )


def check_arguments(site: dict[str, Any]) -> None:
    """The numbers written in the model must be valid arguments; arrays are left to the check of the start."""
    from numpyro.distributions import constraints

    fn = innermost(site["fn"])
    for name, value in fn.get_args().items():
        constraint = fn.arg_constraints[name]
        number = isinstance(value, int | float | np.number) and not constraints.is_dependent(constraint)
        if number and not np.all(constraint(np.asarray(value))):
            raise InvalidArgument(
                f"the site {site['name']!r} has {name}={value!r} in its {type(fn).__name__} distribution; it must "
                f"be {describe(constraint)}."
            )


def known_support(fn: Any) -> Any:
    """The support of a distribution over numbers, where the model's numbers alone decide it; else None.

    Supports that depend on latents or on traced data are left to the check of the start, and of circular ones any
    number is a point.
    """
    from numpyro.distributions import constraints

    try:
        support = fn.support
    except (AttributeError, NotImplementedError):
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    of_numbers = (
        type(constraints.real),
        type(constraints.boolean),
        type(constraints.nonnegative_integer),
        constraints.integer_interval,
        constraints.integer_greater_than,
        constraints.greater_than,
        constraints.greater_than_eq,
        constraints.less_than,
        constraints.interval,
    )
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(support))
    return None if traced or not isinstance(support, of_numbers) or support is constraints.circular else support


def check_support(name: str, distribution: str, support: Any, value: Any) -> None:
    """Observed numbers must be possible; the edge of an open interval is, as data rounded to 0 are, infinity is not.

    Raises
    ------
    InvalidArgument
        The message names the site, the first such value, where it is, and the support.
    """
    value = np.asarray(value)
    if value.dtype.kind not in "biuf":
        return
    inside = np.asarray(support(value)) | np.isnan(value)
    for bound in ("lower_bound", "upper_bound"):
        if hasattr(support, bound):
            inside = inside | (value == np.asarray(getattr(support, bound)))
    inside = inside & ~np.isinf(value)
    if inside.shape != value.shape or inside.all():
        return
    at = tuple(int(i) for i in np.argwhere(~inside)[0])
    where = f"at index {at[0] if len(at) == 1 else at} " if at else ""
    raise InvalidArgument(
        f"the observed site {name!r} has {int((~inside).sum())} of {value.size} values outside the support of its "
        f"distribution {distribution} (the first is {value[at]} {where}and must be {describe(support)}); correct the "
        f"data or choose another distribution, or mask what is missing with numpyro.handlers.mask."
    )


def check_observed(site: dict[str, Any], shape: tuple[int, ...]) -> None:
    """The data must broadcast with the distribution, make no outer product with it, and each count once.

    A number stands for as many as there are; an array may be repeated over plates that it has no axis of.
    """
    if "_scan_current_index" in site["infer"]:
        return  # the steps of a scan are stacked, each was broadcast by itself
    expected = tuple(site["fn"].shape())
    plates = ", ".join(f"{frame.name} of size {frame.size}" for frame in site["cond_indep_stack"])
    inside = f", in plate {plates}" if plates else ""
    try:
        both = np.broadcast_shapes(shape, expected)
    except ValueError:
        both = None
    got = f"the observed site {site['name']!r} got data of shape {shape}, but its distribution"
    has = f"{type(site['fn']).__name__} has shape {expected}{inside}"
    if both is None or (both not in (shape, expected)):
        raise InvalidArgument(f"{got} {has}; give data and model the same shape.")
    plated = {frame.dim - site["fn"].event_dim for frame in site["cond_indep_stack"] if frame.dim is not None}
    own = dict(zip(range(-len(shape), 0), shape, strict=True))
    repeated = [
        axis for axis in range(-len(both), 0) if own.get(axis, 1) != both[axis] and (axis in own or axis not in plated)
    ]
    if shape and repeated:
        raise InvalidArgument(
            f"{got} {has}, so that each datum would count more than once; give data and model the same shape, or "
            f"repeat the data with jnp.broadcast_to where this is meant."
        )
