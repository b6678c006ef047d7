"""`Check`: what `Target.check` shows, as a table in text and HTML."""

import dataclasses
import html
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

from ..validate import check_count
from .base import Site, Target
from .labelled import unpack


@dataclasses.dataclass(frozen=True, repr=False)
class Check:
    """Sites of a target, and its log density and gradient at several random starts.

    Attributes
    ----------
    sites : tuple of Site
    log_density : float64 array of shape (starts,)
    parts : dict
        Name of a site → its share of the log density, shape (starts,); empty where it cannot be told apart.
    gradient : dict
        Name of a latent site → largest absolute derivative, shape (starts,).
    """

    sites: tuple[Site, ...]
    log_density: np.ndarray
    parts: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]

    @property
    def ok(self) -> bool:
        """Whether log density and gradient are finite at all starts."""
        return all(np.all(np.isfinite(v)) for v in (self.log_density, *self.gradient.values()))

    def rows(self) -> list[list[str]]:
        """One row per site, then one for each further part of the log density, and the total."""
        starts = len(self.log_density)
        head = ["site", "kind", "shape", "support", "size"]
        table = [[*head, *(f"log density {i}" for i in range(starts)), *(f"max |grad| {i}" for i in range(starts))]]
        sites = {site.name: site for site in self.sites}
        for name in [*sites, *(name for name in self.parts if name not in sites)]:
            site = sites.get(name)
            facts = [site.kind, str(site.shape), site.support, str(site.size)] if site else ["observed", "", "", ""]
            table.append(
                [name, *facts, *_cells(self.parts.get(name), starts), *_cells(self.gradient.get(name), starts)]
            )
        steepest = np.max(np.stack(list(self.gradient.values())), axis=0)
        size = str(sum(site.size for site in self.sites))
        table.append(["all", "", "", "", size, *_cells(self.log_density, starts), *_cells(steepest, starts)])
        return table

    def __repr__(self) -> str:
        table = self.rows()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([*lines, self._verdict()])

    def _repr_html_(self) -> str:
        head, *body = ([html.escape(cell) for cell in row] for row in self.rows())
        cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in body)
        columns = "".join(f"<th>{cell}</th>" for cell in head)
        verdict = html.escape(self._verdict())
        return f"<table><thead><tr>{columns}</tr></thead><tbody>{cells}</tbody></table><p>{verdict}</p>"

    def _verdict(self) -> str:
        starts = len(self.log_density)
        if self.ok:
            return f"Log density and gradient are finite at all {starts} starts."
        bad = [name for name, v in (self.parts | self.gradient).items() if not np.all(np.isfinite(v))]
        finite = int(np.isfinite(self.log_density).sum())
        return f"Log density finite at {finite} of {starts} starts; look at {', '.join(bad) or 'the log density'}."


def check(target: Target, num_starts: int = 3, key: int = 0) -> Check:
    """See `Target.check`."""
    num_starts = check_count("num_starts", num_starts)
    shapes = tuple((site.name, (site.size,)) for site in target.sites if site.kind == "latent")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(key), num_starts)
        value, gradient, parts = jax.tree.map(np.asarray, _evaluate(target, keys))
    by_site = [jax.tree.map(np.asarray, unpack(g, shapes)) for g in gradient]
    steepest = {name: np.array([np.max(np.abs(g[name]), initial=0.0) for g in by_site]) for name, _ in shapes}
    return Check(target.sites, value, parts, steepest)


@jax.jit
def _evaluate(target: Target, keys: Key[Array, " starts"]) -> tuple[Array, Array, dict[str, Array]]:
    def at(key: PRNGKeyArray) -> Any:
        u = target.initial(key)
        value, gradient = jax.value_and_grad(target.log_density)(u)
        return value, gradient, {k: jnp.asarray(v) for k, v in target.log_densities(u).items()}

    return jax.vmap(at)(keys)


def _cells(values: np.ndarray | None, starts: int) -> list[str]:
    return [""] * starts if values is None else [f"{float(v):.4g}" for v in values]
