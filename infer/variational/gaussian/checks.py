"""Refusals of Gaussian methods: settings out of range, and settings that do not fit the target."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import PRNGKeyArray

from ...errors import InvalidArgument
from ...run.fit import HINTS
from ...target import Target
from ...validate import check_choice, check_count, check_nonnegative, check_positive
from ..curvature import check_curvature
from ..whitening import WHITENINGS
from .family import check_blocks, check_covariance, check_size

if TYPE_CHECKING:
    from .common import AbstractGaussianVI

CONTROLS = ("full", "mean", "none")
SCHEDULES = ("auto", "decay", "noise", "constant")


def check_settings(method: "AbstractGaussianVI") -> None:
    """Refuse hyper-parameters that no target suits."""
    check_count("num_steps", method.num_steps)
    if method.step_size is not None:
        check_positive("step_size", method.step_size)
    check_choice("expectation", method.expectation, method.expectations)
    check_choice("covariance", method.covariance, method.structures)
    check_choice("control", method.control, method.controls)
    check_choice("schedule", method.schedule, SCHEDULES)
    check_nonnegative("coefficient", method.coefficient)
    if method.batch_size is not None:
        check_count("batch_size", method.batch_size)
        if method.expectation == "gauss_hermite":
            raise InvalidArgument(
                f"expectation='gauss_hermite' takes all data at each step, and batch_size is {method.batch_size}; use "
                f"expectation='price' or 'stein', or leave out batch_size."
            )
    if method.num_draws is not None:
        check_count("num_draws", method.num_draws)
    if method.initial_covariance is not None:
        check_covariance("initial_covariance", method.initial_covariance)
    if method.whiten is not None:
        check_choice("whiten", method.whiten, (*WHITENINGS, "auto"))
    if method.whiten in WHITENINGS:
        if method.covariance != "full":
            raise InvalidArgument(
                f"whiten={method.whiten!r} mixes the coordinates, so that covariance={method.covariance!r} would lose "
                f"its meaning; use covariance='full', or whiten=None."
            )
        if method.initial_covariance is not None:
            raise InvalidArgument(
                f"whiten={method.whiten!r} brings its own covariance; leave out initial_covariance (of shape "
                f"{np.shape(method.initial_covariance)})."
            )


def check_fit(method: "AbstractGaussianVI", key: PRNGKeyArray, target: Target, start: Any) -> None:
    """Refuse what cannot work with this target, before anything is compiled; warn of too few gradients a step."""
    name, dim = type(method).__name__, target.dim
    if method.batch_size is not None:
        target.require(f"{name}(batch_size={method.batch_size})", ("factors",), HINTS)
    check_size(name, method.covariance, dim)
    if method.expectation == "gauss_hermite" and "gaussian_expectations" not in target.structure():
        raise InvalidArgument(
            f"expectation='gauss_hermite' needs a target made with glm_target(design, response, ...), got a "
            f"{type(target).__name__}; use expectation='price' or 'stein'."
        )
    shape = np.shape(method.initial_covariance) if method.initial_covariance is not None else ()
    if shape and shape[0] != dim:
        raise InvalidArgument(f"initial_covariance has shape {shape}; the target has dimension {dim}.")
    if method.covariance == "low_rank" and method._rank >= dim:
        raise InvalidArgument(f"rank must be below the dimension {dim}, got {method._rank}; use covariance='full'.")
    if method.covariance == "block":
        check_blocks(method._blocks(target), dim)
    settings = method.settings_of(dim)
    if method.expectation == "stein" and settings.control != "full" and settings.num_draws < dim / 4:
        warnings.warn(
            f"{name}: {settings.num_draws} gradients a step without the control variate of the matrix part are "
            f"few in dimension {dim}; use control='full', or num_draws of at least {-(-dim // 4)}.",
            RuntimeWarning,
            stacklevel=3,
        )
    if method.expectation != "gauss_hermite" and method.whiten not in WHITENINGS:
        check_curvature(key, target, start, method._first_covariance(None, dim))
