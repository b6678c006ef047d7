"""What samplers on agents say of themselves: before a run, when it cannot go on, and in `diagnose`."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .common import AbstractAgents, Seen

APART = 0.1
ACCEPTED = 0.2
PATIENCE = 20


def fault(method: str, faults: np.ndarray) -> str:
    """Of the first iteration that failed; ``faults`` (chain, step) as in `AgentInfo`, one of them not 0."""
    step = int(np.argmax(faults.any(axis=0)))
    chain = int(np.argmax(faults[:, step] != 0))
    agent = abs(int(faults[chain, step])) - 1
    if faults[chain, step] < 0:
        return (
            f"{method}: the iterate of agent {agent} became infinite or NaN in chain {chain}; give a smaller "
            f"step size (a larger rho), or look at the model with target.check()."
        )
    return (
        f"{method}: the share of agent {agent} is not convex at its iterate, more so than the penalty can make up "
        f"for (its Hessian plus 2ρ·degree is indefinite); raise rho, or use NUTS on the whole target."
    )


def unsolved(method: str, residual: np.ndarray, slowest: np.ndarray) -> str | None:
    """Of proximal problems that were not solved in ``PATIENCE`` iterations on end; arrays (chain, step)."""
    run = np.zeros(residual.shape[0], int)
    for step in range(residual.shape[1]):
        run = np.where(residual[:, step] > 1, run + 1, 0)
        if run.max(initial=0) >= PATIENCE:
            chain = int(np.argmax(run))
            return (
                f"{method}: the proximal step of agent {int(slowest[chain, step])} was not solved in {PATIENCE} "
                f"iterations on end (residual {residual[chain, step]:.3g} times what is tolerated); raise rho, or look "
                f"at the model with target.check()."
            )
    return None


def disagreement(method: "AbstractAgents", seen: "Seen") -> list[dict[str, Any]]:
    """How far agents are from their average, against the spread of the average itself."""
    count = np.asarray(seen.count)
    if np.any(count < 2):
        return []
    variance = float(np.mean(np.asarray(seen.square) / (count - 1)[:, None], axis=0).sum())
    ratio = float(np.mean(np.asarray(seen.gap))) / max(variance, np.finfo(float).tiny)
    text = (
        f"The agents' iterates are apart from their average by {100 * ratio:.2g} % of its variance "
        f"(threshold {100 * APART:.0f} %)"
    )
    far = ratio > APART and method.keep != "average"
    if ratio > APART:
        text += "; the average is what to use"
        text += ", not agent " + str(method.keep) if far else ""
        text += ", or noise='shared'" if getattr(method, "noise", "shared") != "shared" else ""
    level = "warning" if far else "note" if ratio > APART else "ok"
    entry = {"level": level, "name": "disagreement", "message": text + ".", "value": ratio, "threshold": APART}
    return [entry]


def acceptance(method: str, seen: "Seen") -> list[dict[str, Any]]:
    """Whether the agents' own Metropolis steps are accepted, if they take any."""
    share = float(np.mean(np.asarray(seen.acceptance)))
    if not np.isfinite(share) or not np.all(np.asarray(seen.count)):
        return []
    text = f"{method}: agents accept {100 * share:.3g} % of their own proposals (threshold {100 * ACCEPTED:.0f} %)"
    low = share < ACCEPTED
    text += "; a start nearer to the mode, or a smaller rho, raises it" if low else ""
    level = "warning" if low else "ok"
    return [{"level": level, "name": "acceptance", "message": text + ".", "value": share, "threshold": ACCEPTED}]
