"""Discrete latents given the continuous ones: drawn from their exact conditional by NumPyro's enumeration (funsor)."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .labelled import unpack

if TYPE_CHECKING:
    from .numpyro_model import NumPyroTarget


def draw_discrete(target: "NumPyroTarget", key: PRNGKeyArray, u: Float[Array, " d"]) -> dict[str, Array]:
    """Values of all sites at ``u``, discrete ones drawn from p(discrete | u, data).

    Forward filtering, backward sampling over the enumerated sites; deterministic sites are computed from the draw.
    """
    from numpyro import handlers
    from numpyro.contrib.funsor import config_enumerate, infer_discrete
    from numpyro.infer.util import constrain_fn

    model, args, kwargs = target._ready(enum=False)
    inner = unpack(u, target.plan.unconstrained)
    values = constrain_fn(handlers.seed(model, 0), args, kwargs, inner)
    key_discrete, key_rest = jax.random.split(key)

    def continuous(site: dict[str, Any]) -> Any:
        return values.get(site["name"]) if site["type"] == "sample" else None

    given = handlers.substitute(model, substitute_fn=continuous)
    # without first_available_dim NumPyro looks for it, and then also finds the shapes that scanned sites need
    drawn = infer_discrete(config_enumerate(given), temperature=1, rng_key=key_discrete)
    trace = handlers.trace(handlers.seed(drawn, key_rest)).get_trace(*args, **kwargs)
    return {site.name: jnp.asarray(trace[site.name]["value"]) for site in target.sites}
