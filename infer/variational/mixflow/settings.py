"""Checks of what `MixFlow` is given."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import numpy as np

from ...approximation import Approximation
from ...errors import InvalidArgument, NotAvailable
from ...validate import check_choice, check_count, check_fraction, check_nonnegative, check_positive
from .families import FAMILIES
from .orbit import Reference

if TYPE_CHECKING:
    from .method import MixFlow

KERNELS = ("hmc", "mala", "rwmh", "hamiltonian")
MOMENTA = ("gaussian", "laplace")
COVARIANCES = ("full", "diagonal")
DENOMINATOR = 1000
"""Largest denominator of a shift that counts as rational."""
USUAL = {"num_leapfrog": 20, "momentum": "gaussian", "reference_steps": 3000, "num_members": 10}
"""What None stands for, in settings that only some maps, families or references have."""
USUAL_SEARCH = (50, 200)
"""Lengths of the orbits on which all step sizes are compared, and the best of them."""


def usual(method: "MixFlow", name: str) -> Any:
    """A setting, or what None stands for."""
    given = getattr(method, name)
    return USUAL[name] if given is None else given


def check(method: "MixFlow") -> None:
    """Raise `InvalidArgument` for a setting out of its range, or without effect beside the others."""
    check_choice("kernel", method.kernel, KERNELS)
    check_choice("momentum", usual(method, "momentum"), MOMENTA)
    check_choice("family", method.family, FAMILIES)
    check_choice("covariance", method.covariance, COVARIANCES)
    check_count("max_length", method.max_length)
    check_count("num_trajectories", method.num_trajectories, 2)
    for name, least in (("num_leapfrog", 1), ("reference_steps", 0), ("num_members", 1)):
        check_count(name, usual(method, name), least)
    check_positive("overdispersion", method.overdispersion)
    check_nonnegative("tolerance", method.tolerance)
    _check_shift(method)
    _check_step_sizes(method)
    _check_lengths(method)
    _check_effects(method)


def _check_effects(method: "MixFlow") -> None:
    """Raise for a setting that does nothing beside the others: of another map or family, or of a step left out."""
    kernel, family = f"kernel={method.kernel!r}", f"family={method.family!r}"
    refused = (
        ("momentum", method.kernel != "hamiltonian", f"{kernel}, whose momenta are normal", "kernel='hamiltonian'"),
        ("num_leapfrog", method.kernel in ("mala", "rwmh"), f"{kernel}, of one step a map", "kernel='hmc'"),
        ("shift", method.family != "homogeneous", f"{family}, whose maps draw their own", "family='homogeneous'"),
        ("num_members", method.family != "ensemble", f"{family}, which has no members", "family='ensemble'"),
        ("grid", method.step_size is not None, "a step_size, which is not searched for then", "no step_size"),
        ("search_lengths", method.step_size is not None, "a step_size, which is not searched for then", "no step_size"),
        ("reference_steps", method.reference is not None, "a reference, which is not fitted then", "no reference"),
    )
    for name, idle, beside, instead in refused:
        if idle and getattr(method, name) is not None:
            raise InvalidArgument(
                f"{name} has no effect with {beside}, got {getattr(method, name)!r}; leave it out, or give {instead}."
            )
    if method.burn_in and method.family == "ensemble":
        raise InvalidArgument(
            f"burn_in has no effect with family='ensemble', which mixes ends of sequences alone, got {method.burn_in}; "
            f"leave it out, or give another family."
        )
    if method.covariance == "diagonal" and method.reference_steps == 0:
        raise InvalidArgument(
            f"covariance has no effect with reference_steps=0, where the reference is N(start, 1), got "
            f"{method.covariance!r}; leave it out, or let a reference be fitted."
        )


def _check_shift(method: "MixFlow") -> None:
    shift, hamiltonian = method.shift, method.kernel == "hamiltonian"
    if shift is None or (shift == "stream" and hamiltonian):
        return
    if isinstance(shift, str):
        choices = "'stream', a number in (0, 1) or None" if hamiltonian else "one or two numbers in (0, 1) or None"
        raise InvalidArgument(f"shift must be {choices} for kernel={method.kernel!r}, got {shift!r}.")
    given = shift if isinstance(shift, tuple) else (shift,)
    if len(given) not in ((1,) if hamiltonian else (1, 2)) or not all(isinstance(x, float) for x in given):
        many = "one number" if hamiltonian else "one number, or two,"
        raise InvalidArgument(f"shift must be {many} in (0, 1), got {shift!r}.")
    for value in given:
        check_fraction("shift", value)
        near = Fraction(value).limit_denominator(DENOMINATOR)
        if abs(float(near) - value) < 1e-9:
            raise InvalidArgument(
                f"shift must be irrational, or orbits are periodic and miss most of the space, got {value} = {near}; "
                f"use pi / 16."
            )


def both_shifts(given: Any) -> tuple[float, ...]:
    """θ_w and θ_a of an involutive map, or θ_w alone."""
    if given is None:
        return ()
    return given if isinstance(given, tuple) else (given,)


def as_reference(given: Any) -> Any:
    """The approximation of a posterior, which must have a mean and a covariance; None as it is.

    Raises
    ------
    InvalidArgument
        It is neither an approximation nor a posterior with one, or an approximation without them.
    """
    if given is None:
        return None
    found, fix = getattr(given, "approximation", given), "give what ADVI, FBGVI or Laplace found"
    if not isinstance(found, Approximation):
        raise InvalidArgument(
            f"reference must be an approximation with a mean and a covariance, or a posterior with one, got a "
            f"{type(given).__name__} without; {fix}."
        )
    try:
        with jax.enable_x64(True):
            jax.eval_shape(lambda q: (q.mean(), q.covariance()), found)
    except NotAvailable:
        raise InvalidArgument(
            f"reference must have a mean and a covariance in closed form, got a {type(found).__name__}, which has "
            f"none; {fix}."
        ) from None
    return found


def as_grid(given: Any) -> Any:
    """Step sizes as a tuple of numbers; words as they are, to be refused by `check`."""
    if given is None or isinstance(given, str):
        return given
    return tuple(map(as_number, given if np.ndim(given) else [given]))


def as_numbers(given: Any) -> Any:
    """One number, or several as a tuple; anything else as it is, to be refused by `check`."""
    if isinstance(given, list | tuple | np.ndarray) and np.size(given) != 1:
        return tuple(map(as_number, given))
    return as_number(given)


def as_number(given: Any) -> Any:
    """A scalar array as a number."""
    known = isinstance(given, np.generic | np.ndarray | jax.Array) and not isinstance(given, jax.core.Tracer)
    return given.item() if known and np.size(given) == 1 else given


def _check_step_sizes(method: "MixFlow") -> None:
    if method.step_size is not None and not isinstance(method.step_size, jax.core.Tracer):
        values = [method.step_size] if isinstance(method.step_size, str) else np.ravel(method.step_size)
        for value in values:
            check_positive("step_size", as_number(value))
    if method.search_lengths is not None:
        search_lengths(method)
    if method.grid is None:
        return
    if isinstance(method.grid, str) or not method.grid:
        raise InvalidArgument(f"grid must hold a step size to choose from, got {method.grid!r}; or give step_size=.")
    for value in method.grid:
        check_positive("grid", value)


def search_lengths(method: "MixFlow") -> tuple[int, int]:
    """The lengths on which all step sizes are compared, and the best of them; equal for no second look."""
    if method.search_lengths is None:
        return USUAL_SEARCH
    given = method.search_lengths if isinstance(method.search_lengths, tuple) else (method.search_lengths,) * 2
    if len(given) != 2 or check_count("search_lengths", given[0]) > check_count("search_lengths", given[1]):
        raise InvalidArgument(
            f"search_lengths must be a length, or a short one and a longer one, got {method.search_lengths!r}."
        )
    return given


def _check_lengths(method: "MixFlow") -> None:
    if method.length is not None and check_count("length", method.length) > method.max_length:
        raise InvalidArgument(f"length must be at most max_length={method.max_length}, got {method.length}.")
    shortest = method.max_length if method.length is None else method.length
    if check_count("burn_in", method.burn_in, 0) >= shortest:
        raise InvalidArgument(f"burn_in must be below the length of the flow, {shortest}, got {method.burn_in}.")


def check_dimension(method: "MixFlow", reference: Reference, dim: int) -> None:
    """Raise unless reference and step sizes fit a target of this dimension, and the reference's scales are positive."""
    loc, scale, whole = np.asarray(reference.loc), np.asarray(reference.scale), reference.coordinates
    if whole is not None:
        loc, scale = np.asarray(whole.loc), np.sqrt(np.diagonal(whole.covariance()))
    if loc.shape != (dim,):
        raise InvalidArgument(f"reference has dimension {loc.size}, the target {dim}; fit it to the same target.")
    bad = ~(np.isfinite(scale) & (scale > 0) & np.isfinite(loc))
    if bad.any():
        i = int(np.argmax(bad))
        raise InvalidArgument(
            f"reference must have finite means and positive standard deviations, got {loc[i]} and {scale[i]} for "
            f"coordinate {i}; give another reference=."
        )
    if np.shape(method.step_size) not in ((), (dim,)):
        raise InvalidArgument(
            f"step_size must be a number or one per coordinate, ({dim},), got shape {np.shape(method.step_size)}."
        )
