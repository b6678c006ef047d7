"""`Posterior`: what every fit returns.

The work is done beside it, in `made`, `density`, `derived`, `again` and `facts`, and in `diagnostics`, `report` and
`store`.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import evaluate
from ..approximation import Approximation, Particles
from ..diagnostics.findings import cut_short
from ..diagnostics.psis import Estimate
from ..errors import NotAvailable, StoreError
from ..run.plan import jax_key
from ..run.precision import precision
from . import again, density, derived, made
from .facts import facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..method import AbstractMethod, Kind
    from ..run.driver import Run
    from ..target import Target

SAMPLE_DIMS = {"chains": ("chain", "draw"), "approximation": ("chain", "draw"), "particles": ("particle",)}


class Posterior:
    """Named draws with what is known of their quality, and for some methods a density.

    Made by `fit`, `resume`, `load` and `Posterior.from_draws`.

    Attributes
    ----------
    kind : str
        ``"chains"``, ``"particles"`` or ``"approximation"``; decides dimensions, diagnostics and report.
    target : Target or None
    record : dict
        Key, versions, method, settings, seconds, evaluations, and why the run stopped, if it stopped early.
    approximation : Approximation or None
        The density of u, for kind ``"approximation"``.
    """

    def __init__(
        self,
        groups: "Mapping[str, Mapping[str, np.ndarray]]",
        *,
        kind: "Kind",
        target: "Target | None" = None,
        record: dict[str, Any] | None = None,
        approximation: Approximation | None = None,
        particles: Particles | None = None,
        run: "Run | None" = None,
        path: Path | None = None,
        dims: "Mapping[str, Sequence[str]] | None" = None,
        coords: "Mapping[str, Any] | None" = None,
    ) -> None:
        if approximation is not None and target is not None:
            target = approximation.fitted_target(target)
        self.kind, self.target, self.record = kind, target, record or {}
        self.approximation, self.particles = approximation, particles
        self._run, self._path, self._groups = run, path, dict(groups)
        self._dims = dict(dims if dims is not None else (target.dims if target is not None else {}))
        self._coords = dict(coords if coords is not None else (target.coords if target is not None else {}))
        self._tree: Any = None
        self._summary: dict[Any, Any] = {}
        self._statistics: dict[Any, Any] = {}

    # -- how one is made ----------------------------------------------------------------------------------------------

    @classmethod
    def from_run(cls, run: "Run", store: Any = None) -> "Posterior":
        """The posterior of a run that is over."""
        return made.of_run(cls, run, store)

    @classmethod
    def from_store(cls, path: Path, attrs: dict[str, Any], target: "Target | None", run: "Run | None") -> "Posterior":
        """The posterior in a store; draws are read when they are needed."""
        return made.of_store(cls, path, attrs, target, run)

    @classmethod
    def from_draws(
        cls,
        draws: Any,
        *,
        target: "Target | None" = None,
        sample_stats: "Mapping[str, Any] | None" = None,
        dims: "Mapping[str, Sequence[str]] | None" = None,
        coords: "Mapping[str, Any] | None" = None,
    ) -> "Posterior":
        """Wrap draws made elsewhere, to diagnose and report them.

        Parameters
        ----------
        draws
            A dict of arrays (chain, draw, …) by site, where Stan's columns (``lp__``, ``divergent__``, …) are
            statistics; or what made them: a fitted ``numpyro.infer.MCMC``, a ``CmdStanMCMC``, a PyMC or ArviZ DataTree.
        target
            The target that was sampled, for densities, prediction and evidence.
        sample_stats
            With a dict of draws: arrays (chain, draw) by ArviZ's names (``diverging``, ``energy``, …).

        Raises
        ------
        InvalidArgument
            The arrays do not agree on chains and draws, or the object is of no known kind.
        """
        record = {"made": "elsewhere"}
        if not isinstance(draws, dict):
            self = cls({}, kind="chains", target=target, record=record)
            self._tree = made.foreign_tree(draws)
            return self
        groups = made.groups_of_draws(draws, sample_stats, target)
        return cls(groups, kind="chains", target=target, record=record, dims=dims, coords=coords)

    # -- draws --------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """ArviZ's DataTree: groups ``posterior``, ``sample_stats``, and those asked for; opened lazily if stored."""
        if self._tree is None:
            if self._path is None:
                self._tree = self._build()
            else:
                from ..store import open_datatree

                tree = open_datatree(self._path)
                if "posterior" not in tree.children:
                    raise StoreError(
                        f"{self._path} has no draws yet: its run is in warm-up, has not reached the first checkpoint "
                        f"with draws, or was killed before it; wait, or go on with resume."
                    )
                self._tree = tree
        return self._tree

    @property
    def sample_dims(self) -> tuple[str, ...]:
        """Dimensions that count draws: (chain, draw) or (particle,)."""
        return SAMPLE_DIMS[self.kind]

    def draws(self) -> dict[str, np.ndarray]:
        """All kept draws by site, NumPy arrays of shape (chain, draw, …), or (particle, …)."""
        if self._tree is None and "posterior" in self._groups:
            return dict(self._groups["posterior"])
        dataset = self.data["posterior"].to_dataset()
        return {name: dataset[name].transpose(*self.sample_dims, ...).values for name in dataset.data_vars}

    def sample(self, num_samples: int | None = None, *, augmented: bool = False, key: Any = 1) -> dict[str, Any]:
        """Draws by site, of shape (num_samples, …).

        Fresh and independent where there is an approximation; otherwise taken at random (by weight, if there are
        weights) from the draws kept, without replacement where there are enough of equal weight.

        Parameters
        ----------
        num_samples
            Default: as many as are kept.
        augmented
            Whether the auxiliary variables of a `MixFlow` are wanted too: a dict by name at ``"auxiliary"``.
        """
        return density.sample(self, num_samples, augmented, key)

    def log_prob(self, values: Any, *, augmented: bool = False, num_draws: int = 100, key: Any = 5) -> Any:
        """Log density of the approximation at ``values``: a dict by site (in constrained coordinates), or u.

        One value of each site, or n of each as `sample` gives them; u of shape (d,) or (n, d).

        For a dict the density is that of the constrained values of a u of the same dimension, the log-Jacobian of the
        transformation left in u: comparable with ``target.log_density(target.unconstrain(values))``.

        The density of a `MixFlow` in u alone has no closed form: what comes back is an importance *estimate*, biased
        downwards, as a pair (value, error).

        Parameters
        ----------
        augmented
            The exact joint density of u and auxiliary variables instead, at what ``sample(n, augmented=True)`` gives.
        num_draws, key
            Draws of the auxiliary variables per point, for an estimate.

        Raises
        ------
        NotAvailable
            The method has no density; evaluate ``target.log_density`` for the posterior's own, up to a constant. Or
            rounding has left nothing of it, with the number.
        """
        return density.log_prob(self, values, augmented, num_draws, key)

    def expect(self, f: Any, *, num_samples: int | None = None, key: Any = 4) -> Estimate:
        """The mean of a function over the posterior, and its Monte-Carlo standard error.

        Chains: over the kept draws, the error by their effective number. Particles: by weight. Approximations: over
        draws of the approximation (not reweighted), or over whole trajectories of a `MixFlow`, all of whose points
        count.

        Parameters
        ----------
        f
            A JAX function of the values by site, one draw's, whose value is an array or a pytree of arrays.
        num_samples
            Draws, or trajectories, of an approximation; default: as many draws as are kept, 64 trajectories.

        Returns
        -------
        A pair (value, error) of what f returns.
        """
        return density.expect(self, f, num_samples, key)

    @property
    def iterations(self) -> dict[str, np.ndarray]:
        """What was recorded at each iteration of a method that is no sampler (its ELBO, step size, …), by name.

        Arrays of shape (restart, iteration); of runs into a store and after `load` too.

        Raises
        ------
        NotAvailable
            Chains keep such records for each draw, in ``data["sample_stats"]``; or the run is not at hand.
        """
        if self.kind == "chains":
            raise NotAvailable(f"iterations of {self._method_name} are its draws; see data['sample_stats'].")
        if self._path is not None and "iterations" in self.data.children:
            dataset = self.data["iterations"].to_dataset()
            return {str(k): v.transpose("chain", "draw").values for k, v in dataset.data_vars.items()}
        arrays = self._iterations()
        if not arrays:
            raise NotAvailable(f"The iterations of {self._method_name} were not kept; fit it anew.")
        return arrays

    def _iterations(self) -> dict[str, np.ndarray]:
        """Those of a run in memory; empty where there is none."""
        arrays = getattr(getattr(self._run, "sink", None), "arrays", None)
        return {} if arrays is None or self.kind == "chains" else dict(arrays("iterations"))

    # -- what it says -------------------------------------------------------------------------------------------------

    def summary(self, var_names: Sequence[str] | None = None, **options: Any) -> Any:
        """A row per scalar: mean, sd, interval, and for chains ESS, R-hat and MCSE; a pandas DataFrame."""
        from ..diagnostics.summary import summary

        at = (None if var_names is None else tuple(var_names), tuple(sorted(options.items())))
        if at not in self._summary:
            stats = self.statistics(var_names) if "ci_prob" not in options else None
            self._summary[at] = summary(
                self._view(), self.kind, var_names=var_names, log_weights=self.log_weights(), stats=stats, **options
            )
        return self._summary[at]

    def statistics(self, var_names: Sequence[str] | None = None) -> Any:
        """What `summary` and `diagnose` say, as NumPy arrays; see `infer.diagnostics.summary.Statistics`."""
        from ..diagnostics.summary import statistics

        at = None if var_names is None else tuple(var_names)
        if at not in self._statistics:
            self._statistics[at] = statistics(
                self._view(), self.kind, var_names=var_names, log_weights=self.log_weights()
            )
        return self._statistics[at]

    def diagnose(self) -> Any:
        """Findings in words: what was found, the threshold, and what to do next; warnings with a fix that runs."""
        from ..diagnostics.diagnose import diagnose
        from .fixes import with_fixes

        known = facts(self)
        stats = self.statistics() if known["log_weights"] is None else None
        return with_fixes(diagnose(self._view(), self.kind, extra=known, stats=stats), self)

    def report(self, path: str | os.PathLike = "report.html", *, title: str | None = None) -> Path:
        """Write a self-contained HTML report with diagnosis, summary and pictures; return its path."""
        from ..report import write_report

        return write_report(
            path, tree=self.data, kind=self.kind, summary=self.summary(), diagnosis=self.diagnose(),
            record=self.record, title=title or self._title(),
            pictures=[] if self.approximation is None else self.approximation.pictures(),
        )  # fmt: skip

    def _title(self) -> str:
        model = self.record.get("model")
        return f"{model}: posterior by {self._method_name}" if model else f"Posterior by {self._method_name}"

    def log_weights(self) -> np.ndarray | None:
        """Log importance weights of the draws (log target density minus log density of the method), or None."""
        stats = self._groups.get("sample_stats", {})
        if self._path is not None and self.kind != "chains":
            stats = {k: v.values for k, v in self.data["sample_stats"].to_dataset().data_vars.items()}
        if "log_weight" in stats:
            return np.asarray(stats["log_weight"]).ravel()
        return None

    def elbo(self) -> tuple[float, float]:
        """Evidence lower bound and its standard error, from the kept draws of the approximation."""
        if self.approximation is None:
            raise NotAvailable(f"elbo needs a method with a density, and {self._method_name} has none; see evidence().")
        weights = self._need_weights("elbo")
        return float(weights.mean()), float(weights.std(ddof=1) / np.sqrt(weights.size))

    def evidence(self, *, key: Any = 2) -> Any:
        """Log evidence with its standard error: by bridge sampling, importance weights, or the sampler itself.

        Under an improper prior it is the log normaliser of the unnormalised density, and means no more than that.
        """
        from ..diagnostics.bridge import bridge_sampling, evidence_from_runs, evidence_from_weights

        if self.particles is not None and self.particles.log_evidence is not None:
            return evidence_from_runs(np.asarray(self.particles.log_evidence))
        if self.approximation is not None:
            return evidence_from_weights(self._need_weights("evidence"))
        target = self._need_target("evidence")
        with precision(self._bits):
            u = self.unconstrained()

            def log_density(points: np.ndarray) -> np.ndarray:
                return evaluate.over_draws(evaluate.log_density_at, target, points)

            return bridge_sampling(np.asarray(jax.random.key_data(jax_key(key))), u, log_density)

    # -- what is computed from draws and model ------------------------------------------------------------------------

    def unconstrained(self) -> np.ndarray:
        """The kept draws as u: array of shape (chain, draw, d) or (particle, d)."""
        return derived.unconstrained(self)

    def log_likelihood(self, *, batch: int | None = None) -> Any:
        """Pointwise log likelihood of every draw, kept as group ``log_likelihood``, for `arviz.loo`; a Dataset."""
        return derived.evaluated(self, "log_likelihood", evaluate.log_likelihood_of, batch=batch)

    def log_prior(self, *, batch: int | None = None) -> Any:
        """Log prior of every draw, by site, kept as group ``log_prior``, for `arviz.psense_summary`; a Dataset."""
        return derived.evaluated(self, "log_prior", evaluate.prior_densities_of, batch=batch)

    def predict(self, *args: Any, key: Any = 1, batch: int | None = None, **kwargs: Any) -> Any:
        """Draws of the observed sites, one for each kept draw; a Dataset.

        Without arguments the model's own covariates are used, and the result kept as group ``posterior_predictive``;
        otherwise ``args`` and ``kwargs`` are given to the model in place of its own (leave the observations out), and
        the result is kept as group ``predictions``.

        Parameters
        ----------
        key
            An int or a JAX key.
        batch
            Draws per compiled call; chosen to keep memory bounded.
        """
        group = "predictions" if args or kwargs else "posterior_predictive"
        return derived.evaluated(self, group, evaluate.predict_draw, args, kwargs, key=key, batch=batch)

    def prior(self, num_samples: int = 1000, *, key: Any = 3) -> Any:
        """Draws of all sites from the prior, kept as groups ``prior`` and ``prior_predictive``; a Dataset."""
        return derived.prior(self, num_samples, key)

    # -- going on -----------------------------------------------------------------------------------------------------

    def extend(self, num_samples: int, *, progress: bool | None = None) -> "Posterior":
        """The posterior with ``num_samples`` more draws per chain: bit for bit those of one longer run.

        Rules that may have ended the run early (a goal, a budget) do not count for the draws asked for here.
        """
        return again.extend(self, num_samples, progress)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write draws, record, and the states of the run (zarr and JSON), to be opened by `load`; return the path."""
        return again.save(self, Path(path), overwrite)

    def start_for(self, target: "Target", key: Any, num_chains: int) -> tuple[Any, Any]:
        """Points (num_chains, d) at which chains on ``target`` may begin, and what was learned, per chain or None."""
        return again.start_for(self, target, key, num_chains)

    def teaches(self, method: "AbstractMethod") -> bool:
        """Whether this run's step size and metric are of the kind that ``method`` uses."""
        return self._run is not None and method.reuses(self._run.method) and bool(self._learned())

    # -- inside -------------------------------------------------------------------------------------------------------

    def _learned(self) -> dict[str, Any]:
        if self._run is None:
            return {}
        with precision(self._bits):
            return jax.vmap(self._run.prepared.learned)(self._run.final_states())

    @property
    def _bits(self) -> int:
        return int(self.record.get("plan", {}).get("precision", 64))

    @property
    def _method_name(self) -> str:
        return self.record.get("method", {}).get("name", "draws made elsewhere")

    def _view(self) -> Any:
        """What diagnostics read: `data`, or, until it is asked for, the draws in memory in the same form."""
        if self._tree is not None or self._path is not None:
            return self.data
        from ..diagnostics.arrays import ArrayTree

        groups = {name: self._groups[name] for name in ("posterior", "sample_stats") if name in self._groups}
        return ArrayTree(groups, self.sample_dims, self._dims, self._coords)

    def _weights(self) -> np.ndarray | None:
        log_weights = self.log_weights() if self.kind == "particles" else None
        if log_weights is None:
            return None
        weights = np.exp(log_weights - log_weights.max())
        return weights / weights.sum()

    def _need_weights(self, what: str) -> np.ndarray:
        """Log weights of an approximation; of one learned from simulations there are none."""
        weights = self.log_weights()
        if weights is None:
            raise NotAvailable(
                f"{what} needs the likelihood, and this posterior by {self._method_name} was made without; write the "
                f"model as a Target for it."
            )
        return weights

    def _need_target(self, what: str) -> "Target":
        if self.target is None:
            raise NotAvailable(f"{what} needs the target; give it to load(path, target) or from_draws(..., target=).")
        return self.target

    def _need_run(self, what: str) -> "Run":
        if self._run is None:
            raise NotAvailable(
                f"{what} needs the states of the run, and this posterior has none; fit it anew, or load it with its "
                f"target."
            )
        return self._run

    def _build(self) -> Any:
        import arviz_base

        tree = arviz_base.from_dict(
            self._groups, sample_dims=list(self.sample_dims), dims=self._dims_of(self._groups), coords=self._coords,
            check_conventions=False,
        )  # fmt: skip
        tree.attrs = {"pushforward": json.dumps(self.record, default=str), "kind": self.kind}
        return tree

    def _set_group(self, name: str, arrays: "Mapping[str, np.ndarray]") -> Any:
        """Add or replace a group of the DataTree; return it as a Dataset."""
        import arviz_base

        tree = self.data
        coords, dims = self._coords, self._dims_of({name: arrays})
        if name in ("predictions", "log_prior"):  # sized by the new covariates; summed over each site
            dims = {}
        sample = ["chain", "draw"] if name.startswith("prior") else list(self.sample_dims)
        tree[name] = arviz_base.dict_to_dataset(
            dict(arrays), sample_dims=[] if name.endswith("data") else sample, dims=dims, coords=coords,
            skip_event_dims=name == "log_likelihood", check_conventions=False,
        )  # fmt: skip
        return tree[name].to_dataset()

    def _dims_of(self, groups: Any) -> dict[str, list[str]]:
        names = {name for arrays in groups.values() for name in arrays}
        return {name: list(dims) for name, dims in self._dims.items() if name in names}

    def __repr__(self) -> str:
        sizes = ", ".join(f"{size} {name}{'s' * (size != 1)}" for name, size in self._sizes().items())
        stopped = self.record.get("stopped")
        how = f"; {'PARTIAL: ' if cut_short(stopped) else ''}{stopped}" if stopped else ""
        return f"Posterior by {self._method_name}: {sizes}{how}"

    def _sizes(self) -> dict[str, int]:
        shape = next(iter(self.draws().values())).shape if self._path is None else None
        if shape is None:
            return {name: int(self.data["posterior"].sizes[name]) for name in self.sample_dims}
        return dict(zip(self.sample_dims, shape, strict=False))

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.diagnose()._repr_html_()}{self.summary().to_html()}"
