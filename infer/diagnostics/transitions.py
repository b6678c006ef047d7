"""What the transitions of a Markov chain tell: energies, divergences and where they concentrate, chains that are stuck.

Names of `sample_stats` are ArviZ's, as are those that BlackJAX, NumPyro and CmdStan write after conversion.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .draws import blocks

TAILS = (0.05, 0.1, 0.2)
"""Shares of the draws, at either end of a scalar, in which divergences are counted."""

ALIASES = {
    "diverging": ("diverging", "is_divergent", "divergent"),
    "energy": ("energy",),
    "lp": ("lp", "logdensity", "log_density"),
    "acceptance_rate": ("acceptance_rate", "accept_prob", "acceptance_probability"),
    "tree_depth": ("tree_depth", "num_trajectory_expansions"),
    "reached_max_tree_depth": ("reached_max_tree_depth", "reached_max_treedepth"),
}


class Concentration(NamedTuple):
    """Where divergences lie.

    Parameters
    ----------
    label
        The scalar.
    count, total
        ``count`` of ``total`` divergences lie in this tail.
    share
        The share of all draws in it.
    side
        ``"lowest"`` or ``"highest"``.
    """

    label: str
    count: int
    total: int
    share: float
    side: str

    def __str__(self) -> str:
        return f"{self.count} of {self.total} lie in the {self.side} {100 * self.share:.2g} % of {self.label}"


def sample_stat(tree: Any, name: str) -> np.ndarray | None:
    """The statistic ``name`` of the kept transitions, shape (chain, draw), or None where the sampler has none."""
    if "sample_stats" not in tree.children:
        return None
    group = tree["sample_stats"]
    for alias in ALIASES.get(name, (name,)):
        if alias in group.data_vars and {"chain", "draw"} == set(group[alias].dims):
            return np.asarray(group[alias].transpose("chain", "draw").values)
    return None


def bfmi(energy: np.ndarray) -> np.ndarray:
    """Estimated Bayesian fraction of missing information of each chain, shape (chain,).

    E[(E_t − E_{t−1})²] / Var[E] (Betancourt, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte
    Carlo", 2016, eq. 12).
    """
    energy = np.asarray(energy, dtype=float)
    with np.errstate(all="ignore"):  # energies of diverged chains overflow
        return np.square(np.diff(energy, axis=-1)).mean(axis=-1) / energy.var(axis=-1, ddof=1)


def divergence_sites(tree: Any, diverging: np.ndarray, most: int = 3) -> list[Concentration]:
    """The scalars in whose tails divergences concentrate, worst first.

    For every scalar and both tails, the share of divergent draws is compared with the share of all draws by Chernoff's
    bound, P(K ≥ k) ≤ exp(−D KL(k/D ‖ p)), at a level of 0.001 shared among all tests. Ranks do not depend on the
    scale, so constrained values serve as well as unconstrained ones. Divergences of one chain less than six
    iterations apart count as one in D, since neighbouring draws are not independent.

    Parameters
    ----------
    tree
        DataTree with a group ``posterior``.
    diverging
        Bool array of shape (chain, draw).
    most
        How many to return.
    """
    where = np.flatnonzero(diverging.ravel())
    if where.size < 2:
        return []
    runs = _runs(diverging)
    found: list[tuple[float, Concentration]] = []
    tests = 0
    for block in blocks(tree["posterior"]):
        flat = block.values.reshape(len(block.labels), -1)
        at = flat[:, where]
        for sign, side in ((1.0, "lowest"), (-1.0, "highest")):
            bounds = np.quantile(sign * flat, TAILS, axis=-1)
            tests += bounds.size
            for bound in bounds:
                share = (sign * flat <= bound[:, None]).mean(axis=-1)
                count = (sign * at <= bound[:, None]).sum(axis=-1)
                evidence = runs * _relative_entropy(count / where.size, share)
                for i in np.flatnonzero((count > 2 * share * where.size) & (evidence > math.log(1000.0))):
                    place = Concentration(block.labels[i], int(count[i]), int(where.size), float(share[i]), side)
                    found.append((float(evidence[i]), place))
    best: dict[str, tuple[float, Concentration]] = {}
    for evidence, place in found:
        if evidence > math.log(1000.0 * tests) and evidence > best.get(place.label, (0.0,))[0]:
            best[place.label] = (evidence, place)
    return [place for _, place in sorted(best.values(), key=lambda item: -item[0])[:most]]


def still_chains(moves: np.ndarray, sd: np.ndarray, acceptance: np.ndarray | None) -> dict[int, str]:
    """Chains that do not move, by index, with what shows it.

    Parameters
    ----------
    moves
        Share of draws that differ from the one before, shape (scalar, chain), constants left out.
    sd
        Standard deviation within each chain, shape (scalar, chain).
    acceptance
        Acceptance rates, shape (chain, draw), or None.
    """
    found: dict[int, str] = {}
    chains = moves.shape[1] if moves.size else (0 if acceptance is None else len(acceptance))
    for c in range(chains):
        moved = float(moves[:, c].max()) if moves.size else 1.0
        if moved < 0.02:
            found[c] = f"{100 * moved:.2g} % of its draws differ from the one before (threshold 2 %)"
        elif acceptance is not None and np.nanmean(acceptance[c]) < 0.02:
            found[c] = f"its mean acceptance is {np.nanmean(acceptance[c]):.2g} (threshold 0.02)"
        elif chains > 1 and sd.size:
            others = np.median(np.delete(sd, c, axis=1), axis=1)
            ratio = float(np.median(sd[:, c] / np.where(others > 0, others, np.nan)))
            if ratio < 0.05:
                found[c] = f"its standard deviation is {ratio:.2g} times that of the others (threshold 0.05)"
    return found


def odd_chains(score: np.ndarray, labels: list[str]) -> dict[int, list[str]]:
    """Chains that alone sit apart from the others, which agree; by index, with the scalars that show it, worst first.

    Parameters
    ----------
    score
        Mean normal score of each chain, shape (scalar, chain), for scalars whose R-hat is bad.
    labels
        Names of these scalars.
    """
    found: dict[int, list[tuple[float, str]]] = {}
    if score.shape[1] < 3:
        return {}
    for row, label in zip(score, labels, strict=True):
        gap = np.abs(row - np.median(row))
        c = int(gap.argmax())
        others = np.delete(row, c)
        distance = float(np.abs(row[c] - others).min())
        if distance > 0.5 and distance > 3 * (others.max() - others.min()):
            found.setdefault(c, []).append((distance, label))
    return {c: [label for _, label in sorted(items, reverse=True)] for c, items in found.items()}


def _runs(diverging: np.ndarray, apart: int = 6) -> int:
    """Number of groups of divergences that lie at least ``apart`` iterations from the one before in their chain."""
    return sum(1 + int((np.diff(at) >= apart).sum()) for at in map(np.flatnonzero, diverging) if at.size)


def _relative_entropy(k: np.ndarray, p: np.ndarray) -> np.ndarray:
    """KL(Bernoulli(k) ‖ Bernoulli(p)), 0 where p is 0 or 1 already."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(k > 0, k * np.log(k / p), 0.0) + np.where(k < 1, (1 - k) * np.log((1 - k) / (1 - p)), 0.0)
    return np.where((p > 0) & (p < 1), value, 0.0)
