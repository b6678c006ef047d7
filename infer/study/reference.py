"""`Truth`: reference draws of a target, in the standardised coordinates in which methods are compared with them."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import evaluate
from ..diagnostics.discrepancies import median_bandwidth
from ..errors import InvalidArgument
from ..run.precision import precision

if TYPE_CHECKING:
    from ..target import Target

MOST_COMPARED = 1000
"""Reference draws that a sample is compared with, and as many that say what an ideal one would attain."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of a posterior.

    Parameters
    ----------
    labels
        Names of the scalars, d of them.
    mean, sd
        Arrays of shape (d,), of all reference draws. Standardised values are (x − mean) / sd.
    draws
        Standardised reference draws that samples are compared with, shape (m, d).
    spare
        As many others, from which the floor of independent draws is worked out.
    bandwidth
        Of the KSD: of the reference in unconstrained coordinates; None where the reference lacks a latent site.
    log_evidence
        None where it is not known.
    """

    labels: tuple[str, ...]
    mean: np.ndarray
    sd: np.ndarray
    draws: np.ndarray
    spare: np.ndarray
    bandwidth: float | None
    log_evidence: float | None

    @property
    def sites(self) -> list[str]:
        """Names of the sites that the scalars belong to."""
        return list(dict.fromkeys(label.partition("[")[0] for label in self.labels))

    def standardised(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Draws by site (n, …) as standardised scalars (n, d), in the order of `labels`."""
        columns, labels = _columns({name: np.asarray(values[name]) for name in self.sites})
        where = {label: column for column, label in enumerate(labels)}
        kept = [where[label] for label in self.labels]  # those that never vary have no standardised value
        return (columns[:, kept] - self.mean) / self.sd


def make_truth(name: str, target: "Target", reference: Any) -> Truth:
    """Read what the user gives as a reference.

    Parameters
    ----------
    name
        Of the target, for messages.
    reference
        A `Posterior`; a posteriordb reference; or a dict of draws by site, (n, …) or (chain, draw, …), in which
        ``"log_evidence"`` may be a number.

    Raises
    ------
    InvalidArgument
        A site is not one of the target's, or has another shape; or there are too few draws.
    """
    log_evidence = None
    if getattr(reference, "kind", "") == "particles":
        draws = reference.sample()  # by weight
    elif hasattr(reference, "draws"):
        found = reference.draws
        draws = dict(found() if callable(found) else found)
    elif isinstance(reference, Mapping):
        draws = {site: value for site, value in reference.items() if site != "log_evidence"}
        log_evidence = reference.get("log_evidence")
    else:
        raise InvalidArgument(
            f"reference of {name!r} must be a Posterior, a reference of posteriordb or a dict of draws, got "
            f"{type(reference).__name__}."
        )
    flat = _checked(name, target, draws)
    columns, labels = _columns(flat)
    sd = columns.std(axis=0, ddof=1)
    varies = np.isfinite(sd) & (sd > 0)
    columns, sd = columns[:, varies], sd[varies]
    if len(columns) < 20 or not columns.shape[1]:
        raise InvalidArgument(
            f"reference of {name!r} has {len(columns)} draws of {columns.shape[1]} scalars that vary; it needs 20."
        )
    mean = columns.mean(axis=0)
    order = np.random.default_rng(0).permutation(len(columns))
    half = min(MOST_COMPARED, len(columns) // 2)
    whitened = (columns - mean) / sd
    return Truth(
        labels=tuple(label for label, keep in zip(labels, varies, strict=True) if keep), mean=mean, sd=sd,
        draws=whitened[order[:half]], spare=whitened[order[half : 2 * half]],
        bandwidth=_bandwidth(target, flat, order[:half]),
        log_evidence=None if log_evidence is None else float(log_evidence),
    )  # fmt: skip


def _checked(name: str, target: "Target", draws: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Draws by site with one leading axis, of sites that the target has in that shape."""
    shapes = {site.name: site.shape for site in target.sites}
    flat = {}
    for site, value in draws.items():
        value = np.asarray(value, float)
        if site not in shapes:
            raise InvalidArgument(
                f"reference of {name!r} has draws of {site!r}, which the target lacks; its sites are "
                f"{', '.join(shapes)}."
            )
        lead = value.ndim - len(shapes[site])
        if lead not in (1, 2) or value.shape[lead:] != shapes[site]:
            raise InvalidArgument(
                f"reference of {name!r} has {site!r} with shape {value.shape}; the target's has {shapes[site]}, after "
                f"one or two axes of draws."
            )
        flat[site] = value.reshape(-1, *shapes[site])
    if len({len(value) for value in flat.values()}) != 1:
        lengths = {site: len(value) for site, value in flat.items()}
        raise InvalidArgument(f"reference of {name!r} has draws of lengths {lengths}; they must be equal, and some.")
    return flat


def _columns(flat: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """Scalars as columns (n, d), and their names."""
    columns, labels = [], []
    for name, value in flat.items():
        columns.append(value.reshape(len(value), -1).astype(float))
        indices = np.ndindex(value.shape[1:])
        labels += [f"{name}[{', '.join(map(str, index))}]" if index else name for index in indices]
    return np.concatenate(columns, axis=1), labels


def _bandwidth(target: "Target", flat: Mapping[str, np.ndarray], chosen: np.ndarray) -> float | None:
    latent = [site.name for site in target.sites if site.kind == "latent"]
    if any(name not in flat for name in latent):
        return None
    values = {name: flat[name][chosen] for name in latent}
    with precision(64):
        u = evaluate.over_draws(evaluate.unconstrain_draw, target, values)
    return float(median_bandwidth(u))
