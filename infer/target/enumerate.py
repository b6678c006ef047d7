"""Discrete latents given the continuous ones: drawn from their exact conditional by NumPyro's enumeration (funsor).

NumPyro draws enumerated sites outside of ``scan``. Inside of it this module does, by forward filtering and backward
sampling over the factors that NumPyro enumerates: O(T K²) for T steps and K joint states.

References
----------
.. [1] S. L. Scott (2002). Bayesian methods for hidden Markov models. Journal of the American Statistical Association
   97(457), §2.1.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .discover import unvalidated
from .labelled import unpack

if TYPE_CHECKING:
    from .numpyro_model import NumPyroTarget

PREVIOUS, TIME = "_PREV_", "_time_"


class NotDrawable(Exception):
    """The structure of the discrete sites is beyond what can be drawn back."""


@unvalidated
def draw_discrete(target: "NumPyroTarget", key: PRNGKeyArray, u: Float[Array, " d"]) -> dict[str, Array]:
    """Values of all sites at ``u``, discrete ones drawn from p(discrete | u, data).

    Deterministic sites are computed from the draw.

    Raises
    ------
    NotDrawable
        Discrete sites both in and outside of a scan, a scan with a longer history, or in reverse.
    """
    from numpyro import handlers
    from numpyro.infer.util import constrain_fn

    model, args, kwargs = target.ready(enum=False)
    values = constrain_fn(handlers.seed(model, 0), args, kwargs, unpack(u, target.plan.unconstrained))
    key_discrete, key_rest = jax.random.split(key)

    def continuous(site: dict[str, Any]) -> Any:
        return values.get(site["name"]) if site["type"] == "sample" else None

    given = handlers.substitute(model, substitute_fn=continuous)
    if target.plan.scanned:
        drawn = _draw_scanned(key_discrete, given, args, kwargs, target.plan.enum_dim)
        if set(drawn) != {site.name for site in target.sites if site.kind == "discrete"}:
            raise NotDrawable(f"of the discrete sites only {sorted(drawn)} are in a scan")
        full = handlers.substitute(given, data=drawn)
    else:
        from numpyro.contrib.funsor import config_enumerate, infer_discrete

        full = infer_discrete(config_enumerate(given), temperature=1, rng_key=key_discrete)
    trace = handlers.trace(handlers.seed(full, key_rest)).get_trace(*args, **kwargs)
    return {site.name: jnp.asarray(trace[site.name]["value"]) for site in target.sites}


def _draw_scanned(key: PRNGKeyArray, model: Any, args: tuple, kwargs: dict, enum_dim: int) -> dict[str, Array]:
    """Joint draws of the discrete sites of each scan, shape (T, *plates)."""
    groups: dict[str, list[dict[str, Any]]] = {}
    first: list[dict[str, Any]] = []
    for site in _factors(model, args, kwargs, enum_dim):
        time = next((name for name in site["names"].values() if name.startswith(TIME)), None)
        if time is not None:
            groups.setdefault(time, []).append(site)
        elif any(name.startswith(PREVIOUS) for name in site["names"].values()):
            first.append(site)
    drawn: dict[str, Array] = {}
    for i, (time, sites) in enumerate(groups.items()):
        drawn |= _draw_group(jax.random.fold_in(key, i), time, sites, first)
    return drawn


def _draw_group(key: PRNGKeyArray, time: str, sites: list[dict], first: list[dict]) -> dict[str, Array]:
    """Sum up the factors of one scan over (time, plates, previous states, states), and sample its chain."""
    discrete = {site["name"]: site for site in sites if site["enumerated"]}
    plates = {site["plates"] for site in discrete.values()}
    if len(plates) != 1:
        raise NotDrawable(f"the discrete sites {sorted(discrete)} lie in different plates: {plates}")
    shared = next(iter(plates))
    before = [PREVIOUS + name for name in discrete]
    states = [site["states"] for site in discrete.values()]
    num = int(np.prod([len(s) for s in states]))
    chain = _total(sites, [time, *shared, *before, *discrete])
    start = _total([s for s in first if set(s["names"].values()) & set(before)], [*shared, *before])
    lengths = chain.shape[: 1 + len(shared)]
    start = jnp.broadcast_to(start, (*lengths[1:], *map(len, states))).reshape(*lengths[1:], num)
    chain = jnp.broadcast_to(chain, (*lengths, *map(len, states), *map(len, states))).reshape(*lengths, num, num)
    path = sample_chain(key, start, chain)
    index = jnp.unravel_index(path, tuple(map(len, states)))
    return {name: values[i] for name, values, i in zip(discrete, states, index, strict=True)}


def sample_chain(
    key: PRNGKeyArray, start: Float[Array, "*batch k"], steps: Float[Array, "t *batch k k"]
) -> Int[Array, "t+1 *batch"]:
    """Draw x₀, …, x_T from p(x) ∝ exp(start[x₀] + Σₜ steps[t, xₜ, xₜ₊₁]).

    Forward filtering: αₜ₊₁(j) = log Σᵢ exp(αₜ(i) + stepsₜ(i, j)); backward sampling: x_T ~ α_T, then
    xₜ ~ αₜ(·) + stepsₜ(·, xₜ₊₁), see Scott (2002), equations 4 and 5.
    """

    def forward(alpha: Array, step: Array) -> tuple[Array, Array]:
        return jax.nn.logsumexp(alpha[..., :, None] + step, axis=-2), alpha

    last, alphas = jax.lax.scan(forward, start, steps)
    keys = jax.random.split(key, steps.shape[0] + 1)
    end = jax.random.categorical(keys[0], last)

    def backward(after: Array, inputs: tuple) -> tuple[Array, Array]:
        key, alpha, step = inputs
        into = jnp.take_along_axis(step, after[..., None, None], axis=-1)[..., 0]
        now = jax.random.categorical(key, alpha + into)
        return now, now

    _, path = jax.lax.scan(backward, end, (keys[1:], alphas, steps), reverse=True)
    return jnp.concatenate([path, end[None]])


def _factors(model: Any, args: tuple, kwargs: dict, enum_dim: int) -> list[dict[str, Any]]:
    """Log density of each site of the enumerated model, with the names of its axes."""
    from numpyro.contrib.funsor import config_enumerate
    from numpyro.contrib.funsor import enum as enumerated
    from numpyro.contrib.funsor.enum_messenger import trace as packed_trace
    from numpyro.contrib.funsor.infer_util import plate_to_enum_plate
    from numpyro.primitives import Messenger

    class Watch(Messenger):
        def process_message(self, msg: dict[str, Any]) -> None:
            if msg["type"] == "control_flow" and (msg["args"][-1] is True or msg["kwargs"].get("history", 1) != 1):
                raise NotDrawable(f"scan with history {msg['kwargs'].get('history')}, reverse {msg['args'][-1]}")

    with plate_to_enum_plate():
        trace = packed_trace(enumerated(config_enumerate(Watch(model)), enum_dim)).get_trace(*args, **kwargs)
    found = []
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        log_prob = site["fn"].log_prob(site["value"])
        if site["scale"] is not None:
            log_prob = site["scale"] * log_prob
        is_enumerated = not site["is_observed"] and site["infer"].get("enumerate") == "parallel"
        found.append(
            {
                "name": name,
                "names": dict(site["infer"]["dim_to_name"]),
                "log_prob": log_prob,
                "enumerated": is_enumerated,
                "plates": tuple(frame.name for frame in site["cond_indep_stack"] if frame.dim is not None),
                "states": site["fn"].enumerate_support(expand=False).reshape(-1) if is_enumerated else None,
            }
        )
    return found


def _total(sites: list[dict[str, Any]], axes: list[str]) -> Array:
    """Sum of the sites' log densities over these named axes; plates that are not among them are summed over."""
    total = jnp.zeros((1,) * len(axes))
    for site in sites:
        log_prob, names = site["log_prob"], site["names"]
        at = {name: log_prob.ndim + dim for dim, name in names.items() if log_prob.ndim + dim >= 0}
        extra = [name for name in at if name not in axes]
        if set(extra) - set(site["plates"]):
            raise NotDrawable(f"the site {site['name']!r} depends on {sorted(set(extra) - set(site['plates']))}")
        log_prob = log_prob.sum(tuple(at[name] for name in extra), keepdims=True)
        present = [name for name in axes if name in at]
        rest = [axis for axis in range(log_prob.ndim) if axis not in [at[name] for name in present]]
        shape = [log_prob.shape[at[name]] if name in at else 1 for name in axes]
        total = total + log_prob.transpose(*rest, *(at[name] for name in present)).reshape(shape)
    return total
