"""`fit` without a method: which one, and why, in a line; and a look at what came of it, with one more try.

What decides, in this order:

1. structure for which there is a method of its own: a Bayesian last layer, a latent Gaussian process, shards of agents,
   rows that do not fit in memory, a nonsmooth part with a proximal operator;
2. a budget of evaluations too small for the warm-up of NUTS, which grows with the dimension: Pathfinder;
3. everything else has a gradient: NUTS.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .infer.method import AbstractMethod
from .infer.target import Target

if TYPE_CHECKING:
    from .infer.posterior import Posterior

LOGGER = logging.getLogger("pushforward")
CHAINS, ITERATIONS, LEAPFROGS, AT_DIMENSION = 4, 500, 8, 10
"""NUTS needs so many iterations per chain before its draws are of use, of so many steps each in ten dimensions."""
MOST_NUMBERS = 20_000_000
"""Of draws that are looked at without being asked."""


class Choice(NamedTuple):
    """A method, and why it was taken."""

    method: AbstractMethod
    reason: str


def choose_method(
    target: Target, *, max_evaluations: int | None = None, num_warmup: int | None = None
) -> Choice:  # fmt: skip
    """The method for a target and a budget.

    Parameters
    ----------
    target
        What is inferred.
    max_evaluations
        The budget, as given to `fit`.
    num_warmup
        As given to `fit`: who says it wants a sampler with a warm-up.
    """
    import pushforward as pf

    if target.has("last_layer"):
        return Choice(pf.VBLL(), "VBLL: the target is a network with a Bayesian last layer")
    if target.has("latent_gp"):
        return Choice(pf.DoubleKL(), "DoubleKL: the target is a latent Gaussian process")
    if target.has("shards"):
        return Choice(pf.DistributedADMM(), "DistributedADMM: the target's rows are dealt out to agents")
    if target.has("stream"):
        return Choice(pf.SGLD(), "SGLD: the target's rows are read in blocks, so that only mini-batches are at hand")
    if target.has("composite"):
        return Choice(
            pf.BregmanProximalLangevin(),
            "BregmanProximalLangevin: the target has a nonsmooth part, which gradients alone do not see",
        )
    needed = nuts_evaluations(target.dim)
    if max_evaluations is not None and num_warmup is None and max_evaluations < needed:
        return Choice(
            pf.Pathfinder(),
            f"Pathfinder: max_evaluations={max_evaluations:,} is below the {needed:,} that NUTS needs for "
            f"{target.dim} coordinates to begin",
        )
    return Choice(pf.NUTS(), f"NUTS: exact for a density with a gradient, here of {target.dim} coordinates")


def nuts_evaluations(dim: int) -> int:
    """About how many gradients NUTS needs before its draws are of use: its trajectories grow as dim^(1/4).

    Beskos, Pillai, Roberts, Sanz-Serna and Stuart (2013), "Optimal tuning of the hybrid Monte Carlo algorithm",
    Bernoulli 19, for the exponent.
    """
    return round(CHAINS * ITERATIONS * LEAPFROGS * max(1.0, dim / AT_DIMENSION) ** 0.25)


def settle(posterior: "Posterior", choice: Choice, *, retry: Mapping[str, Any] | None = None) -> "Posterior":
    """Keep the reason with a posterior and look at it; where its diagnosis warns, fall back or advise.

    Draws in a store, and very many of them, are not looked at without being asked.

    Parameters
    ----------
    retry
        Options of `pushforward.fit` for one more fit, by the first fix that the diagnosis names; it counts if it leaves
        fewer warnings. None where time, draws or a store were given: then the fix is advice in the log.
    """
    posterior.record["chosen"] = choice.reason
    LOGGER.info(choice.reason)
    if posterior._path is not None or sum(value.size for value in posterior.draws().values()) > MOST_NUMBERS:
        return posterior
    diagnosis = posterior.diagnose()
    if not diagnosis.flagged:
        return posterior
    fix = diagnosis.fix
    if retry is not None and fix is not None:
        LOGGER.warning("%s. Trying again: %s", diagnosis.headline, fix.words)
        second = fix.apply(posterior, **(retry if fix.method is not None else {"progress": retry["progress"]}))
        found = second.diagnose()
        if len(found.warnings) < len(diagnosis.warnings):
            names = ", ".join(dict.fromkeys(finding.name for finding in diagnosis.warnings))
            second.record["chosen"] = f"{choice.reason}; then, as its diagnosis warned of {names}: {fix.words}"
            posterior, diagnosis = second, found
    if diagnosis.flagged:
        advice = "" if diagnosis.fix is None else f" Next: {diagnosis.fix}"
        LOGGER.warning("%s. %s%s", diagnosis.headline, diagnosis.warnings[0].message, advice)
    return posterior
