"""Where chains begin: random points, the user's values, an approximation, or another posterior."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..approximation import Approximation
from ..errors import InvalidArgument, NonFinite
from ..target import Target
from .chunk import Origin, find_start
from .plan import START_STAGE

TRIES = 100
CANDIDATES = 4


class Warm(NamedTuple):
    """A start that knows more than a point: the unconstrained ``u`` (d,) and what an earlier run learned, by name."""

    u: Array
    learned: dict[str, Any]


def starting_points(target: Target, root: PRNGKeyArray, start: Any, num_chains: int) -> list[Any]:
    """One start per chain, each a point or a `Warm`, at all of which log density and gradient are finite.

    Parameters
    ----------
    root
        Key of the run; a chain's tries come from ``fold_in(fold_in(root, START_STAGE), chain)``.
    start
        None (random points), a dict of values by site (one value for all chains, or one per chain on a leading axis;
        other sites stay random), an unconstrained array of shape (d,) or (num_chains, d), an `Approximation`, or a
        `Posterior`.

    Raises
    ------
    NonFinite
        No finite log density and gradient was found; the message names the chain, the site and the value.
    """
    given, learned = None, None
    if start is not None:
        given, learned = _given(target, jax.random.fold_in(root, START_STAGE), start, num_chains)
    points = []
    for chain in range(num_chains):
        point = None if given is None else given[chain]
        origin = Origin(root, np.uint32(START_STAGE), np.uint32(chain))
        u, value, found = find_start(target, origin, point, tries=TRIES, candidates=CANDIDATES)
        if not found:
            raise NonFinite(_explain(target, chain, np.asarray(u), float(value), point is not None))
        points.append(u if learned is None else Warm(u, learned[chain]))
    return points


def _given(target: Target, key: PRNGKeyArray, start: Any, num_chains: int) -> tuple[Any, Any]:
    """Points per chain, and what is known of the posterior's shape per chain or None."""
    if isinstance(start, dict):
        return _from_values(target, key, start, num_chains), None
    if isinstance(start, Approximation):
        return from_approximation(start, key, num_chains)
    if hasattr(start, "start_for"):  # a Posterior
        return start.start_for(target, key, num_chains)
    u = _numbers("start", start, "; give values by site, an array, an Approximation or a Posterior")
    if u.shape not in ((target.dim,), (num_chains, target.dim)):
        raise InvalidArgument(
            f"start has shape {u.shape}; for {num_chains} chains on a target of dimension {target.dim} it must have "
            f"shape ({target.dim},) or ({num_chains}, {target.dim})."
        )
    return jnp.broadcast_to(u, (num_chains, target.dim)), None


def from_approximation(approximation: Approximation, key: PRNGKeyArray, num_chains: int) -> tuple[Array, list[dict]]:
    """Draws of an approximation, one per chain, and its variances as a first metric."""
    draws, _ = approximation.sample_and_log_prob(key, max(num_chains, 1000))
    return draws[:num_chains], [{"inverse_mass_matrix": jnp.var(draws, axis=0)}] * num_chains


def _from_values(target: Target, key: PRNGKeyArray, values: dict, num_chains: int) -> list[Array]:
    latent = {site.name: site.shape for site in target.sites if site.kind == "latent"}
    for name, value in values.items():
        if name not in latent:
            raise InvalidArgument(f"start names the site {name!r}; the target's latent sites are {', '.join(latent)}.")
        _numbers(f"start[{name!r}]", value)
        if np.shape(value) not in (latent[name], (num_chains, *latent[name])):
            raise InvalidArgument(
                f"start[{name!r}] has shape {np.shape(value)}; give shape {latent[name]} for all chains, or "
                f"{(num_chains, *latent[name])} for one value per chain."
            )
    points = []
    for chain in range(num_chains):
        other = target.constrain(target.initial(jax.random.fold_in(key, chain)))
        mine = {k: v if np.shape(v) == latent[k] else np.asarray(v)[chain] for k, v in values.items()}
        points.append(target.unconstrain({k: jnp.asarray(mine.get(k, other[k]), float) for k in latent}))
    return points


def _numbers(name: str, value: Any, remedy: str = "") -> Array:
    try:
        return jnp.asarray(value, float)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} must hold numbers, got {value!r}{remedy}.") from None


def _explain(target: Target, chain: int, u: np.ndarray, value: float, given: bool) -> str:
    """One sentence on where the log density fails."""
    where = "the start given" if given else f"each of the {TRIES} random starts tried"
    culprit = ""
    if not np.isfinite(value):
        parts = {k: np.asarray(v) for k, v in target.log_densities(jnp.asarray(u)).items()}
        bad = [name for name, part in parts.items() if not np.isfinite(part)]
        if bad:
            culprit = f"; the last one failed at site {bad[0]!r}, whose log density is {float(parts[bad[0]])}"
        what = f"the log density is {value}"
    else:
        what = f"the log density is {value:.6g} but its gradient is not finite"
        values = {k: np.asarray(v) for k, v in target.constrain(jnp.asarray(u)).items()}
        shown = ", ".join(f"{k}={np.array2string(v, precision=3, threshold=4)}" for k, v in list(values.items())[:4])
        culprit = f" ({shown})"
    return (
        f"Chain {chain} has no valid start: {what} at {where}{culprit}. Check data and supports with target.check(), "
        f"or pass start= with values by site."
    )
