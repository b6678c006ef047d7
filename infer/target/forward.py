"""Running a NumPyro model forward: prior and posterior predictive draws, and what it observes."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..errors import NonFinite
from .arguments import count_nan
from .discover import is_factor, mask_of, unvalidated, zeros_where_latent
from .refuse import check_support

if TYPE_CHECKING:
    from .numpyro_model import NumPyroTarget


@unvalidated
def simulate(
    key: PRNGKeyArray, model: Callable, args: tuple, kwargs: Mapping[str, Any], given: Mapping[str, Array]
) -> dict[str, Array]:
    """All sites of one forward run: observed ones are drawn, latents in ``given`` are set where their shape fits.

    Of a site inside a scan the given steps are set, and steps beyond them drawn: a forecast.
    """
    from numpyro import handlers

    def known(site: dict[str, Any]) -> Any:
        if site["type"] != "sample" or site["name"] not in given:
            return None
        value = given[site["name"]]
        shape = tuple(site["kwargs"].get("sample_shape", ())) + tuple(site["fn"].shape())
        fits = np.shape(value)[1:] if "_scan_current_index" in site["infer"] else np.shape(value)
        return value if fits == shape else None

    seeded = handlers.seed(handlers.substitute(_uncondition(model), substitute_fn=known), key)
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    return {
        name: jnp.asarray(site["value"])
        for name, site in trace.items()
        if site["type"] == "deterministic" or (site["type"] == "sample" and not is_factor(site))
    }


def check_nan(target: "NumPyroTarget", masks: Mapping[str, Any]) -> None:
    """Raise if an observed value that no mask covers is NaN. Computes only where some datum is NaN at all.

    Parameters
    ----------
    masks
        Name of an observed site → its mask, None for no mask; without those that depend on data.

    Raises
    ------
    NonFinite
        The message names the site and says how many.
    """
    values = _seen(target)
    for name, value in values.items():
        if name in masks and masks[name] is None and count_nan(value):
            _refuse_nan(name, count_nan(value), np.size(value))
    if not any(map(count_nan, [*target.data, *values.values()])):
        return
    with jax.enable_x64(True):
        counts = jax.device_get(_unmasked_nans(target))
    for name, shape in target.plan.observed:
        if counts[name]:
            _refuse_nan(name, int(counts[name]), int(np.prod(shape)))


def check_supports(target: "NumPyroTarget", supports: Mapping[str, tuple[str, Any]]) -> None:
    """Raise if an observed value is impossible, as far as that is known without running the model.

    Parameters
    ----------
    supports
        Name of an observed site → name of its distribution, and its support.
    """
    for name, value in _seen(target).items():
        if name in supports:
            check_support(name, *supports[name], value)


def _seen(target: "NumPyroTarget") -> dict[str, Any]:
    return {name: target.data[v] if isinstance(v, int) else v.value for name, v in target.seen}


@jax.jit
def observed_values(target: "NumPyroTarget") -> dict[str, Array]:
    """Values of the observed sites, as the model computes them from its arguments."""
    return {name: jnp.asarray(site["value"]) for name, site in _observed_sites(target).items()}


@jax.jit
def _unmasked_nans(target: "NumPyroTarget") -> dict[str, Array]:
    counts = {}
    for name, site in _observed_sites(target).items():
        bad = jnp.isnan(jnp.asarray(site["value"], dtype=float))
        mask = mask_of(site["fn"])
        if mask is not None:
            mask = jnp.asarray(mask)
            bad = bad & mask.reshape(mask.shape + (1,) * (site["fn"].event_dim if mask.ndim else 0))
        counts[name] = bad.sum()
    return counts


@unvalidated
def _observed_sites(target: "NumPyroTarget") -> dict[str, Any]:
    from numpyro import handlers

    model, args, kwargs = target.ready(enum=False)
    seeded = handlers.seed(handlers.substitute(model, substitute_fn=zeros_where_latent), 0)
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    return {name: trace[name] for name, _ in target.plan.observed}


def _refuse_nan(name: str, count: int, size: int) -> None:
    raise NonFinite(
        f"the observed site {name!r} has {count} NaN among its {size} values, which the model neither masks nor "
        f"imputes; drop them, mask them with numpyro.handlers.mask, or sample them as latents."
    )


def _uncondition(model: Callable) -> Callable:
    """Draw observed sites instead of reading them, inside of scans too; `numpyro.factor` terms stay."""
    from numpyro.primitives import Messenger

    class Uncondition(Messenger):
        def process_message(self, msg: dict[str, Any]) -> None:
            if msg["type"] == "control_flow":
                msg["args"] = tuple(Uncondition(arg) if callable(arg) else arg for arg in msg["args"])
            elif msg["type"] == "sample" and msg["is_observed"] and not is_factor(msg):
                # the value is asked for again, and the key comes from the seed handler around this one
                msg["is_observed"], msg["value"] = False, None

    return Uncondition(model)
