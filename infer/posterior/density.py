"""Fresh draws, log densities and expectations of a posterior, by its approximation or from its kept draws."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import evaluate
from ..approximation import Augmented
from ..diagnostics.psis import Estimate
from ..errors import InvalidArgument, NotAvailable
from ..run.plan import jax_key
from ..run.precision import precision
from ..validate import check_count
from .derived import flatten

if TYPE_CHECKING:
    from .posterior import Posterior

TRAJECTORIES = 64


def sample(posterior: "Posterior", num_samples: int | None, augmented: bool, key: Any) -> dict[str, Any]:
    """See `Posterior.sample`."""
    pooled = {name: flatten(value, len(posterior.sample_dims)) for name, value in posterior.draws().items()}
    available = next(iter(pooled.values())).shape[0]
    n = available if num_samples is None else check_count("num_samples", num_samples)
    with precision(posterior._bits):
        key = jax_key(key)
        if augmented:
            u, auxiliary, _ = evaluate.draw_augmented(_augmented(posterior, "sample"), key, n=n)
            target = posterior._need_target("sample")
            values = evaluate.over_draws(evaluate.constrain_draw, target, np.asarray(u), key=key)
            return values | {"auxiliary": jax.tree.map(np.asarray, auxiliary)}
        if posterior.approximation is not None and posterior.target is not None:
            u = evaluate.draw_points(posterior.approximation, key, n=n)
            return evaluate.over_draws(evaluate.constrain_draw, posterior.target, np.asarray(u), key=key)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    weights = posterior._weights()
    chosen = rng.choice(available, n, replace=weights is not None or n > available, p=weights)
    return {name: value[chosen] for name, value in pooled.items()}


def log_prob(posterior: "Posterior", values: Any, augmented: bool, num_draws: int, key: Any) -> Any:
    """See `Posterior.log_prob`."""
    approximation = posterior.approximation
    if approximation is None:
        if posterior.kind == "approximation":
            posterior._need_target("log_prob")
        raise NotAvailable(
            f"log_prob needs a method with a density, and {posterior._method_name} gives {posterior.kind}; use "
            f"target.log_density(u) for the unnormalised log posterior."
        )
    with precision(posterior._bits):
        u = _to_u(posterior, values) if isinstance(values, dict) else jnp.asarray(values, float)
        dim = u.shape[-1] if posterior.target is None else posterior.target.dim
        if u.shape not in ((dim,), (len(u), dim)):
            raise InvalidArgument(f"log_prob got u of shape {u.shape}; it must be ({dim},) or (n, {dim}).")
        if augmented:
            return _augmented_log_prob(posterior, u, values)
        if not isinstance(approximation, Augmented):
            return np.asarray(evaluate.approximation_log_prob(approximation, u))
        approximation.check_densities()
        points, n = u.reshape(-1, dim), check_count("num_draws", num_draws, 2)
        found = evaluate.estimate_log_prob(approximation, jax_key(key), points, n=n)
        return Estimate(*(np.asarray(x).reshape(u.shape[:-1])[()] for x in found))


def expect(posterior: "Posterior", f: Any, num_samples: int | None, key: Any) -> Estimate:
    """See `Posterior.expect`."""
    approximation = posterior.approximation
    if approximation is not None:
        target = posterior._need_target("expect")
        kept = next(iter(posterior.draws().values())).shape[1]
        default = TRAJECTORIES if isinstance(approximation, Augmented) else kept
        n = check_count("num_samples", default if num_samples is None else num_samples, 2)
        with precision(posterior._bits):
            found = evaluate.expectation(approximation, target, jax_key(key), f=f, n=n)
            return Estimate(*jax.tree.map(np.asarray, found))
    if num_samples is not None:
        raise InvalidArgument(
            f"num_samples={num_samples} is for approximations, and this is one of {posterior.kind}; leave it out."
        )
    from ..diagnostics.expectation import expectation

    draws, lead = posterior.draws(), len(posterior.sample_dims)
    flat = {name: flatten(value, lead) for name, value in draws.items()}
    with precision(posterior._bits):
        values = evaluate.over_draws(evaluate.value_at, posterior.target, flat, f)
    shape = next(iter(draws.values())).shape[:lead]
    values = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), values)
    return expectation(values, posterior.kind, posterior.log_weights())


def _augmented_log_prob(posterior: "Posterior", u: Any, values: Any) -> np.ndarray:
    approximation = _augmented(posterior, "log_prob")
    if not isinstance(values, dict) or "auxiliary" not in values:
        raise InvalidArgument(
            f"log_prob with augmented=True needs the auxiliary variables, and got {type(values).__name__} without "
            f"'auxiliary'; give what sample(n, augmented=True) returns."
        )
    auxiliary = {name: jnp.asarray(x, float) for name, x in values["auxiliary"].items()}
    approximation.check_densities()
    if u.ndim == 1:
        return np.asarray(approximation.augmented_log_prob(u, auxiliary))
    return np.asarray(evaluate.augmented_log_prob(approximation, u, auxiliary))


def _augmented(posterior: "Posterior", what: str) -> Augmented:
    if not isinstance(posterior.approximation, Augmented):
        raise NotAvailable(
            f"{what} with augmented=True needs a method with auxiliary variables, and {posterior._method_name} has "
            f"none; leave it out."
        )
    return posterior.approximation


def _to_u(posterior: "Posterior", values: Mapping[str, Any]) -> Any:
    """Values by site as u; or n of each, as `Posterior.sample` gives them, as (n, d)."""
    target = posterior._need_target("log_prob")
    sites = {site.name: site for site in target.sites if site.kind == "latent"}
    given = {name: np.asarray(value) for name, value in values.items() if name in sites}
    stacked = all(value.ndim and value.shape[1:] == sites[name].shape for name, value in given.items())
    if stacked and given.keys() == sites.keys() and len({len(value) for value in given.values()}) == 1:
        return jnp.asarray(evaluate.over_draws(evaluate.unconstrain_draw, target, given))
    return target.unconstrain(values)
