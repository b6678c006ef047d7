"""A NumPyro model with other observed values, or with some of them left out, at the shapes of the one given.

What changes is in leaves of the target, so that all data sets of a calibration, and all folds of a cross-validation,
share one compiled program.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..errors import InvalidArgument, NotAvailable, UnsupportedTarget
from .arguments import Layout
from .discover import is_factor
from .numpyro_model import NumPyroTarget, _build
from .static import ByContent, Labels

OBSERVED, KEPT = "observed", "kept"


def with_observed(target: NumPyroTarget, values: Mapping[str, Any]) -> NumPyroTarget:
    """The target of the same model where the observed sites have these values, whatever its arguments say.

    Parameters
    ----------
    target
        Made with `Target.from_numpyro`.
    values
        Name of each observed site → its values, in the shape of the site; other names are ignored.

    Raises
    ------
    UnsupportedTarget
        The model is no NumPyro model, or observes inside a scan.
    InvalidArgument
        A site is missing, or has another shape.
    """
    shapes = _observed_shapes("with_observed", target)
    given = {}
    for name, shape in shapes.items():
        if name not in values or np.shape(values[name]) != shape:
            found = f"shape {np.shape(values[name])}" if name in values else f"only {', '.join(values) or 'nothing'}"
            raise InvalidArgument(f"values must have the observed site {name!r} with shape {shape}, got {found}.")
        given[name] = np.asarray(values[name])
    changed = _altered(target, OBSERVED, given)
    seen = dict(changed.seen)
    missed = [name for index, name in enumerate(sorted(given)) if seen.get(name) != index]
    if missed:
        raise UnsupportedTarget(
            f"the observed site {missed[0]!r} cannot be given other values from outside of the model, as it is in a "
            f"scan; give calibrate its simulate=, a function that makes parameters and the target of simulated data."
        )
    return changed


def with_kept(target: NumPyroTarget, kept: Mapping[str, Any]) -> NumPyroTarget:
    """The target without the log likelihood of some of the observed values: of those that ``kept`` has as False.

    Parameters
    ----------
    target
        Made with `Target.from_numpyro`.
    kept
        Name of an observed site → boolean array of the shape of its pointwise log likelihood. Sites that are not named
        are kept whole.

    Raises
    ------
    UnsupportedTarget
        The target has no NumPyro model.
    InvalidArgument
        A name that is no observed site.
    """
    shapes = _observed_shapes("with_kept", target)
    for name in kept:
        if name not in shapes:
            raise InvalidArgument(f"kept names {name!r}; the observed sites are {', '.join(shapes)}.")
    return _altered(target, KEPT, {name: np.asarray(value, bool) for name, value in kept.items()})


def with_changes(altered: NumPyroTarget, values: Mapping[str, Any]) -> NumPyroTarget:
    """What `with_observed` or `with_kept` returned, with other values of the same shapes; nothing is traced."""
    names = sorted(values)
    data = [*(np.asarray(values[name]) for name in names), *altered.data[len(names) :]]
    for name, new, old in zip(names, data, altered.data, strict=False):
        if new.shape != np.shape(old) or new.dtype != np.asarray(old).dtype:
            raise InvalidArgument(
                f"values of {name!r} are {new.dtype}{list(new.shape)}, and were {np.asarray(old).dtype}"
                f"{list(np.shape(old))}; they must be alike."
            )
    return dataclasses.replace(altered, data=data)


def apply_altered(changes: dict[str, Any], model: Any, /, *args: Any, **kwargs: Any) -> Any:
    """The model with its changes; a function of a module, so that equal models share their programs."""
    with _messenger(changes):
        return model(*args, **kwargs)


def _altered(target: NumPyroTarget, what: str, values: dict[str, Any]) -> NumPyroTarget:
    model, args, kwargs = target.layout.join(target.data)
    tree = (apply_altered, ({what: values}, model, *args), kwargs)
    # The leaves of the model and of its arguments come in the order they had.
    rest = (ByContent(apply_altered), *(None for _ in values), *target.layout.rest)
    layout = Layout(jax.tree.structure(tree), rest)
    data = [*(values[name] for name in sorted(values)), *target.data]
    return _build(layout, data, target.reparam, Labels(target.labels.dims, target.labels.coords))


def _observed_shapes(what: str, target: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(target, NumPyroTarget):
        raise UnsupportedTarget(
            f"{what} needs a target made with Target.from_numpyro, and this is a {type(target).__name__}."
        )
    if not target.plan.observed:
        raise NotAvailable(f"{what} needs observed sites, and the model {target.name!r} has none.")
    return dict(target.plan.observed)


def _messenger(changes: dict[str, Any]) -> Any:
    from numpyro.primitives import Messenger

    class Altered(Messenger):
        def process_message(self, msg: dict[str, Any]) -> None:
            if msg["type"] != "sample" or not msg["is_observed"] or is_factor(msg):
                return
            # Of a scan this is the message after the fact; its steps have seen the old values.
            if msg["name"] in changes.get(OBSERVED, {}) and "_scan_current_index" not in msg["infer"]:
                msg["value"] = changes[OBSERVED][msg["name"]]
            if msg["name"] in changes.get(KEPT, {}):
                msg["fn"] = msg["fn"].mask(changes[KEPT][msg["name"]])

    return Altered()
