"""Draws and losses that are not finite end a run in a sentence with the site and the iteration."""

from collections.abc import Callable

import numpy as np

from ..errors import NonFinite
from ..target import Target


def check_draws(target: Target, draws: dict[str, np.ndarray], chains: range, begin: int, thin: int, stage: str) -> None:
    """Refuse draws (chain, draw, …) of a latent site that are not finite.

    Parameters
    ----------
    chains
        The chains that the leading axis stands for.
    begin, thin
        Iteration of the stage at which the chunk began, and iterations per draw.

    Raises
    ------
    NonFinite
        The message names the site, the value, the chain and the iteration.
    """
    latent = {site.name for site in target.sites if site.kind == "latent"}
    for name in latent & draws.keys():
        finite = np.isfinite(draws[name])
        if not finite.all():
            chain, draw = np.argwhere(~finite)[0][:2]
            raise NonFinite(
                f"Site {name!r} became {draws[name][~finite].flat[0]} in chain {chains[chain]} at iteration "
                f"{begin + (draw + 1) * thin - 1} of stage {stage!r}; try a smaller step size, or look at the model "
                f"with target.check()."
            )


def check_loss(
    method: str, loss: np.ndarray | None, chains: range, begin: int, stage: str, where: Callable[[int], str]
) -> None:
    """Refuse a loss (chain, step) that is not finite; a method that minimises something says so by this info.

    Parameters
    ----------
    where
        What the method says of a chain (counted from 0 in this group): at which draw the log density is not finite.

    Raises
    ------
    NonFinite
        The message names the method, the value, the chain, the iteration, and such a draw if there is one.
    """
    if loss is None or np.isfinite(loss).all():
        return
    chain, step = np.argwhere(~np.isfinite(loss))[0][:2]
    said = where(int(chain)) or (
        " Lower the learning rate, give another start=, or look at the model with target.check()."
    )
    raise NonFinite(
        f"The loss of {method} became {loss[chain, step]} in chain {chains[chain]} at iteration {begin + step} of "
        f"stage {stage!r}.{said}"
    )
