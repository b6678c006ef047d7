"""What is computed from kept draws and the model: predictions, densities of draws, draws of the prior."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import evaluate
from ..errors import NotAvailable
from ..run.plan import jax_key
from ..run.precision import precision
from ..validate import check_count

if TYPE_CHECKING:
    from ..target import Target
    from .posterior import Posterior


def evaluated(posterior: "Posterior", group: str, f: Any, *extra: Any, key: Any = 0, batch: int | None = None) -> Any:
    """A function of `evaluate` at every kept draw, kept as a group; a Dataset."""
    target = posterior._need_target(group)
    lead = len(posterior.sample_dims)
    draws = posterior.draws()
    latent_names(target, draws)
    flat = {name: flatten(value, lead) for name, value in draws.items()}
    with precision(posterior._bits):
        out = evaluate.over_draws(f, target, flat, *extra, key=jax_key(key), batch=batch)
    shape = next(iter(draws.values())).shape[:lead]
    return posterior._set_group(group, {name: x.reshape(*shape, *x.shape[1:]) for name, x in out.items()})


def prior(posterior: "Posterior", num_samples: int, key: Any) -> Any:
    """See `Posterior.prior`."""
    target = posterior._need_target("prior")
    with precision(posterior._bits):
        counted = np.zeros(check_count("num_samples", num_samples))
        out = evaluate.over_draws(evaluate.prior_draw, target, counted, key=jax_key(key))
    observed = set(target.observed)
    shaped = {name: value[None] for name, value in out.items()}
    if observed & shaped.keys():
        posterior._set_group("prior_predictive", {k: v for k, v in shaped.items() if k in observed})
    return posterior._set_group("prior", {k: v for k, v in shaped.items() if k not in observed})


def unconstrained(posterior: "Posterior") -> np.ndarray:
    """See `Posterior.unconstrained`."""
    target = posterior._need_target("unconstrained")
    draws = posterior.draws()
    names = latent_names(target, draws)
    lead = len(posterior.sample_dims)
    flat = {name: flatten(draws[name], lead) for name in names}
    with precision(posterior._bits):
        u = evaluate.over_draws(evaluate.unconstrain_draw, target, flat)
    return u.reshape(*next(iter(draws.values())).shape[:lead], -1)


def latent_names(target: "Target", draws: Mapping[str, Any]) -> list[str]:
    """Names of the latent sites, all of which were kept: one left out would be drawn anew from its prior."""
    names = [site.name for site in target.sites if site.kind == "latent"]
    missing = [name for name in names if name not in draws]
    if missing:
        raise NotAvailable(f"The draws lack the latent sites {', '.join(missing)}; fit with sites=None.")
    return names


def flatten(x: np.ndarray, lead: int) -> np.ndarray:
    """The array with its ``lead`` leading dimensions made one."""
    return x.reshape(-1, *x.shape[lead:])
