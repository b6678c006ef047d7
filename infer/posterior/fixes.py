"""What to run next when a diagnosis warns: a `Fix` for each finding that has one.

A finding says in words what may help; the fix is one of these things as a call that runs. Which one: where the step
size was never adapted, a warm-up; where a site's scale is itself unknown, as in a hierarchy, that site non-centred
(Papaspiliopoulos, Roberts and Sköld 2007); else more of what was short (acceptance, depth, draws, particles), another
sampler for several modes, and NUTS from where an approximation falls short. It may not be the last one needed: the new
posterior has a diagnosis of its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..diagnostics.findings import Diagnosis, Finding
from ..run.precision import precision
from ..target.numpyro_model import NumPyroTarget

if TYPE_CHECKING:
    from ..method import AbstractMethod
    from ..target import Target
    from .posterior import Posterior

GEOMETRY = ("divergences", "BFMI", "tree depth", "stuck chain", "R-hat", "ESS", "precision")
"""Findings on chains that a hierarchy with its sites centred has."""
APART = ("chain apart", "stuck chain", "modes")
SHORT = ("ESS", "R-hat", "precision", "length", "nonsmooth term", "acceptance", "BFMI")
MORE = ("ESS", "precision", "length", "nonsmooth term")
"""Findings that more draws of the same chains mend."""
FEW_WARMUP = 300
MOST_TIMES = 20
"""A posterior is asked for at most so many times the draws that it has."""


@dataclasses.dataclass(frozen=True)
class Fix:
    """A next step that runs: ``str(fix)`` is its code, of ``target`` and ``posterior``; `apply` does it.

    Parameters
    ----------
    words
        What it does.
    non_centre
        Sites whose prior is to have location 0 and scale 1.
    method
        The method of the new fit; None where the chains are only made longer.
    options
        Of the new fit, or ``{"num_samples": n}`` for chains n draws longer.
    from_posterior
        Whether the new fit starts from the posterior.
    """

    words: str
    non_centre: tuple[str, ...] = ()
    method: "AbstractMethod | None" = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    from_posterior: bool = False

    def apply(self, posterior: "Posterior", **options: Any) -> "Posterior":
        """The posterior that comes of it; ``options`` go to `pushforward.fit`."""
        if self.method is None:
            return posterior.extend(self.options["num_samples"], **options)
        from ..run.fit import fit

        start = {"start": posterior} if self.from_posterior else {}
        return fit(self.target(posterior), self.method, **{**self.options, **start, **options})

    def target(self, posterior: "Posterior") -> "Target":
        """The target of the new fit."""
        target = posterior._need_target("a fix")
        if not self.non_centre:
            return target
        from numpyro.infer.reparam import LocScaleReparam

        return target.replace(reparam={name: LocScaleReparam(0) for name in self.non_centre})

    def __str__(self) -> str:
        if self.method is None:
            return f"posterior = posterior.extend({self.options['num_samples']})"
        lines = []
        if self.non_centre:
            sites = ", ".join(f"{name!r}: LocScaleReparam(0)" for name in self.non_centre)
            lines += ["from numpyro.infer.reparam import LocScaleReparam"]
            lines += [f"target = target.replace(reparam={{{sites}}})"]
        given = [f"{name}={value!r}" for name, value in self.options.items()]
        given += ["start=posterior"] if self.from_posterior else []
        lines.append(f"posterior = pf.fit({', '.join(['target', expression(self.method), *given])})")
        return "\n".join(lines)


def with_fixes(diagnosis: Diagnosis, posterior: "Posterior") -> Diagnosis:
    """The diagnosis with a fix for each warning, as far as there is a target to fit anew."""
    if posterior.target is None or not diagnosis.flagged:
        return diagnosis
    situation = _Situation(posterior)
    found = [
        dataclasses.replace(finding, fix=situation.fix(finding)) if finding.level == "warning" else finding
        for finding in diagnosis.findings
    ]
    return dataclasses.replace(diagnosis, findings=tuple(found))


def expression(method: "AbstractMethod") -> str:
    """Python that makes the method; of settings that are no plain data an ellipsis, to be filled in."""
    given = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if value is field.default or (np.isscalar(value) and value == field.default):
            continue
        plain = value is None or isinstance(value, bool | int | float | str)
        given.append(f"{field.name}={value!r}" if plain else f"{field.name}=...")
    return f"pf.{type(method).__name__}({', '.join(given)})"


def centred_sites(target: "Target", points: Sequence[dict[str, np.ndarray]]) -> tuple[str, ...]:
    """Latent sites on the whole line with a location, and a scale that differs between two points by site."""
    from numpyro import handlers
    from numpyro.distributions import constraints

    if not isinstance(target, NumPyroTarget):
        return ()
    latent = {site.name for site in target.sites if site.kind == "latent"}
    if not latent <= points[0].keys():
        return ()
    args, kwargs = target.model_args
    scales: list[dict[str, np.ndarray]] = []
    for values in points:
        with precision(64):
            model = handlers.substitute(handlers.seed(target.model, 0), data={name: values[name] for name in latent})
            trace = handlers.trace(model).get_trace(*args, **kwargs)
        scales.append({})
        for name in latent & trace.keys():
            distribution: Any = trace[name].get("fn")
            while hasattr(distribution, "base_dist"):
                distribution = distribution.base_dist
            real = getattr(distribution, "support", None) is constraints.real
            if real and {"loc", "scale"} <= set(getattr(distribution, "arg_constraints", ())):
                scales[-1][name] = np.asarray(distribution.scale)
    order = [site.name for site in target.sites]
    moved = [name for name in scales[0] if not np.array_equal(scales[0][name], scales[1].get(name))]
    return tuple(sorted(moved, key=order.index))


class _Situation:
    """A posterior that is not to be relied on, and what may be done about it."""

    def __init__(self, posterior: "Posterior") -> None:
        import pushforward as pf

        self.posterior, self.target = posterior, posterior._need_target("a fix")
        self.method = None if posterior._run is None else posterior._run.method
        self.plan = posterior.record.get("plan", {})
        self.nuts = pf.NUTS()
        self.centred = centred_sites(self.target, _two_draws(posterior)) if posterior.kind == "chains" else ()

    def fix(self, finding: Finding) -> Fix | None:
        """Of one warning; None where no call helps."""
        if self.posterior.kind == "chains":
            return self._of_chains(finding)
        if self.posterior.kind == "approximation":
            return self._from_here(finding)
        return self._more_particles(finding)

    def _of_chains(self, finding: Finding) -> Fix | None:
        name, warmup = finding.name, int(self.plan.get("num_warmup", 0))
        method = self.method or self.nuts
        if name in ("non-finite draws", "constant draws"):
            return None
        if self.method is not None and self._adapts(method) and warmup < FEW_WARMUP:
            learned = dataclasses.replace(method, step_size=None)
            more = {"num_samples": self._total(finding)} if name in MORE else {}
            return self._anew("warm up, which finds a step size", learned, num_warmup=1000, **more)
        if name in GEOMETRY and self.centred:
            words = f"non-centre {', '.join(self.centred)}"
            return Fix(words, non_centre=self.centred, method=method, options=self._sizes())
        rate, depth = getattr(method, "target_acceptance", None), getattr(method, "max_tree_depth", None)
        if name == "divergences" and rate is not None:
            closer = dataclasses.replace(method, target_acceptance=0.99 if rate >= 0.95 else 0.95)
            return self._anew("smaller steps", closer)
        if name == "tree depth" and depth is not None:
            return self._anew("longer trajectories", dataclasses.replace(method, max_tree_depth=depth + 2))
        if name in APART and self.target.has("proper_prior"):
            import pushforward as pf

            return Fix("temper from the prior, which finds several modes", method=pf.SMC())
        return self._longer(finding, method) if name in (*SHORT, *APART) else None

    def _longer(self, finding: Finding, method: "AbstractMethod") -> Fix:
        """More draws; a longer warm-up too, where chains have not come together."""
        draws, total = self.posterior._sizes()["draw"], self._total(finding)
        if finding.name in MORE and self.method is not None:
            return Fix("draw more", options={"num_samples": total - draws})
        warmup = 2 * max(int(self.plan.get("num_warmup", 0)), 1000)
        return self._anew("run longer", method, num_warmup=warmup, num_samples=total)

    def _total(self, finding: Finding) -> int:
        """Draws per chain that should be enough."""
        draws, times = self.posterior._sizes()["draw"], 2.0
        if finding.value and finding.threshold and finding.name in ("ESS", "length", "nonsmooth term"):
            times = min(MOST_TIMES, max(2.0, 1.5 * finding.threshold / max(finding.value, 1.0)))
        return max(round(times * draws), 1000)

    def _from_here(self, finding: Finding) -> Fix | None:
        """NUTS from the approximation, where the target is one for it."""
        ours = any(self.target.has(structure) for structure in ("last_layer", "latent_gp"))
        if ours or finding.name not in ("k-hat", "shift"):
            return None
        return Fix("sample by NUTS from here", method=self.nuts, from_posterior=True)

    def _more_particles(self, finding: Finding) -> Fix | None:
        count = getattr(self.method, "num_particles", None)
        if self.method is None or count is None or finding.name not in ("weights", "collapse"):
            return None
        return Fix("more particles", method=dataclasses.replace(self.method, num_particles=4 * count))

    def _anew(self, words: str, method: "AbstractMethod", **options: Any) -> Fix:
        return Fix(words, method=method, options=self._sizes() | options)

    def _sizes(self) -> dict[str, Any]:
        """Draws, warm-up, chains, thinning and sites as they were, those that are not the defaults."""
        usual = {"num_samples": 1000, "num_warmup": 1000, "num_chains": 4, "thin": 1, "sites": None}
        kept = {name: self.plan[name] for name, value in usual.items() if self.plan.get(name, value) != value}
        return {name: list(value) if name == "sites" else value for name, value in kept.items()}

    @staticmethod
    def _adapts(method: "AbstractMethod") -> bool:
        return hasattr(method, "step_size") and hasattr(method, "target_acceptance")


def _two_draws(posterior: "Posterior") -> list[dict[str, np.ndarray]]:
    """The first draw of the first chain and the last of the last, by site; no more is read of a store."""
    if posterior._path is None:
        draws = posterior.draws()
        return [{name: value[at, at] for name, value in draws.items()} for at in (0, -1)]
    group = posterior.data["posterior"]
    return [
        {str(name): group[name].isel(chain=at, draw=at).values for name in group.data_vars} for at in (0, -1)
    ]  # fmt: skip
