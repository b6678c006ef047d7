"""`Posterior`: what every fit returns. Its work is done in `evaluate`, `diagnostics`, `report` and `store`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from . import evaluate
from .approximation import Approximation, Augmented, Particles
from .diagnostics.findings import cut_short
from .diagnostics.psis import Estimate
from .errors import InvalidArgument, NotAvailable, StoreError
from .run.plan import read_key
from .run.precision import precision
from .validate import check_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .method import AbstractMethod, Kind
    from .run.driver import Run
    from .target import Target

TRAJECTORIES = 64
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
        from .run.fit import origin

        record = origin(run.target, run.method, run.plan, started=False) | _outcome(run)
        made: dict[str, Any] = {"kind": run.method.kind, "target": run.target, "record": record, "run": run}
        if run.method.kind == "chains":
            if store is not None:
                store.update_attrs(_outcome(run))
                if run.target.observed:
                    store.write_group("observed_data", dict(run.target.observed))
                return cls({}, path=store.path, **made)
            groups = {name: run.sink.arrays(name) for name in ("posterior", "sample_stats")}  # type: ignore[attr-defined]
            return cls(_with_observed(groups, run.target), **made)
        with precision(run.plan.precision):
            result = run.prepared.result(run.final_states(), run.arranged)
            groups, extra = _from_result(result, run)
        self = cls(_with_observed(groups, run.target), **made, **extra)
        if store is not None:
            for name, arrays in self._groups.items():
                sample_dims = () if name == "observed_data" else self.sample_dims
                store.write_group(name, arrays, sample_dims=sample_dims)
            store.update_attrs(_outcome(run))
        return self

    @classmethod
    def from_store(cls, path: Path, attrs: dict[str, Any], target: "Target | None", run: "Run | None") -> "Posterior":
        """The posterior in a store; draws are read when they are needed."""
        kind = attrs.get("kind", "chains")
        extra: dict[str, Any] = {}
        if run is not None and kind != "chains":
            with precision(run.plan.precision):
                result = run.prepared.result(run.final_states(), run.arranged)
            extra = {"approximation" if isinstance(result, Approximation) else "particles": result}
        return cls({}, kind=kind, target=target, record=attrs, run=run, path=path, **extra)

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
            A dict of arrays (chain, draw, …) by site; or what made them: a fitted ``numpyro.infer.MCMC``, a
            ``CmdStanMCMC``, a PyMC or ArviZ DataTree.
        target
            The target that was sampled, for densities, prediction and evidence.
        sample_stats
            With a dict of draws: arrays (chain, draw) by ArviZ's names (``diverging``, ``energy``, …).

        Raises
        ------
        InvalidArgument
            The arrays do not agree on chains and draws, or the object is of no known kind.
        """
        if not isinstance(draws, dict):
            return cls._from_foreign(draws, target)
        groups = {"posterior": {name: np.asarray(value) for name, value in draws.items()}}
        if sample_stats:
            groups["sample_stats"] = {name: np.asarray(value) for name, value in sample_stats.items()}
        _check_leading(groups)
        return cls(
            _with_observed(groups, target), kind="chains", target=target, record={"made": "elsewhere"}, dims=dims,
            coords=coords,
        )  # fmt: skip

    @classmethod
    def _from_foreign(cls, source: Any, target: "Target | None") -> "Posterior":
        import xarray

        module = type(source).__module__.split(".")[0]
        if isinstance(source, xarray.DataTree):
            tree = source
        elif module in ("numpyro", "cmdstanpy"):
            import arviz_base

            tree = {"numpyro": arviz_base.from_numpyro, "cmdstanpy": arviz_base.from_cmdstanpy}[module](source)
        else:
            raise InvalidArgument(
                f"draws must be a dict of arrays (chain, draw, …), a DataTree, or a fitted NumPyro or CmdStan object, "
                f"got {type(source).__name__}."
            )
        self = cls({}, kind="chains", target=target, record={"made": "elsewhere"})
        self._tree = tree.copy()
        return self

    # -- draws --------------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Any:
        """ArviZ's DataTree: groups ``posterior``, ``sample_stats``, and those asked for; opened lazily if stored."""
        if self._tree is None:
            if self._path is None:
                self._tree = self._build()
            else:
                from .store import open_datatree

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
        pooled = self._pooled()
        available = next(iter(pooled.values())).shape[0]
        n = available if num_samples is None else check_count("num_samples", num_samples)
        with precision(self._bits):
            key = _key(key)
            if augmented:
                u, auxiliary, _ = evaluate.draw_augmented(self._augmented("sample"), key, n=n)
                target = self._need_target("sample")
                values = evaluate.over_draws(evaluate.constrain_draw, target, np.asarray(u), key=key)
                return values | {"auxiliary": jax.tree.map(np.asarray, auxiliary)}
            if self.approximation is not None and self.target is not None:
                u, _ = evaluate.draw_approximation(self.approximation, key, n=n)
                return evaluate.over_draws(evaluate.constrain_draw, self.target, np.asarray(u), key=key)
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        weights = self._weights()
        chosen = rng.choice(available, n, replace=weights is not None or n > available, p=weights)
        return {name: value[chosen] for name, value in pooled.items()}

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
        if self.approximation is None:
            if self.kind == "approximation":
                self._need_target("log_prob")
            raise NotAvailable(
                f"log_prob needs a method with a density, and {self._method_name} gives {self.kind}; use "
                f"target.log_density(u) for the unnormalised log posterior."
            )
        with precision(self._bits):
            u = self._to_u(values) if isinstance(values, dict) else jnp.asarray(values, float)
            dim = u.shape[-1] if self.target is None else self.target.dim
            if u.shape not in ((dim,), (len(u), dim)):
                raise InvalidArgument(f"log_prob got u of shape {u.shape}; it must be ({dim},) or (n, {dim}).")
            if augmented:
                return self._augmented_log_prob(u, values)
            if not isinstance(self.approximation, Augmented):
                return np.asarray(evaluate.approximation_log_prob(self.approximation, u))
            self.approximation.check_densities()
            points, n = u.reshape(-1, dim), check_count("num_draws", num_draws, 2)
            found = evaluate.estimate_log_prob(self.approximation, _key(key), points, n=n)
            return Estimate(*(np.asarray(x).reshape(u.shape[:-1])[()] for x in found))

    def _augmented_log_prob(self, u: Any, values: Any) -> np.ndarray:
        approximation = self._augmented("log_prob")
        if not isinstance(values, dict) or "auxiliary" not in values:
            raise InvalidArgument(
                f"log_prob with augmented=True needs the auxiliary variables, and got {type(values).__name__} without "
                f"'auxiliary'; give what sample(n, augmented=True) returns."
            )
        auxiliary = {name: jnp.asarray(x, float) for name, x in values["auxiliary"].items()}
        approximation.check_densities()
        if u.ndim == 1:
            return np.asarray(approximation.augmented_log_prob(u, auxiliary))
        return np.asarray(evaluate.augmented_log_prob(approximation, u, auxiliary))

    def _augmented(self, what: str) -> Augmented:
        if not isinstance(self.approximation, Augmented):
            raise NotAvailable(
                f"{what} with augmented=True needs a method with auxiliary variables, and {self._method_name} has "
                f"none; leave it out."
            )
        return self.approximation

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
        if self.approximation is not None:
            target = self._need_target("expect")
            kept = next(iter(self.draws().values())).shape[1]
            default = TRAJECTORIES if isinstance(self.approximation, Augmented) else kept
            n = check_count("num_samples", default if num_samples is None else num_samples, 2)
            with precision(self._bits):
                found = evaluate.expectation(self.approximation, target, _key(key), f=f, n=n)
                return Estimate(*jax.tree.map(np.asarray, found))
        if num_samples is not None:
            raise InvalidArgument(f"num_samples is for approximations, and this is one of {self.kind}; leave it out.")
        from .diagnostics.expectation import expectation

        draws, lead = self.draws(), len(self.sample_dims)
        flat = {name: _flatten(value, lead) for name, value in draws.items()}
        with precision(self._bits):
            values = evaluate.over_draws(evaluate.value_at, self.target, flat, f)
        shape = next(iter(draws.values())).shape[:lead]
        values = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), values)
        return expectation(values, self.kind, self.log_weights())

    def _to_u(self, values: "Mapping[str, Any]") -> Any:
        """Values by site as u; or n of each, as `sample` gives them, as (n, d)."""
        target = self._need_target("log_prob")
        sites = {site.name: site for site in target.sites if site.kind == "latent"}
        given = {name: np.asarray(value) for name, value in values.items() if name in sites}
        stacked = all(value.ndim and value.shape[1:] == sites[name].shape for name, value in given.items())
        if stacked and given.keys() == sites.keys() and len({len(value) for value in given.values()}) == 1:
            return jnp.asarray(evaluate.over_draws(evaluate.unconstrain_draw, target, given))
        return target.unconstrain(values)

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
        from .diagnostics.summary import summary

        at = (None if var_names is None else tuple(var_names), tuple(sorted(options.items())))
        if at not in self._summary:
            stats = self.statistics(var_names) if "ci_prob" not in options else None
            self._summary[at] = summary(
                self._view(), self.kind, var_names=var_names, log_weights=self.log_weights(), stats=stats, **options
            )
        return self._summary[at]

    def statistics(self, var_names: Sequence[str] | None = None) -> Any:
        """What `summary` and `diagnose` say, as NumPy arrays; see `infer.diagnostics.summary.Statistics`."""
        from .diagnostics.summary import statistics

        at = None if var_names is None else tuple(var_names)
        if at not in self._statistics:
            self._statistics[at] = statistics(
                self._view(), self.kind, var_names=var_names, log_weights=self.log_weights()
            )
        return self._statistics[at]

    def diagnose(self) -> Any:
        """Findings in words: what was found, the threshold, and what to do next."""
        from .diagnostics.diagnose import diagnose

        facts = self._facts()
        stats = self.statistics() if facts["log_weights"] is None else None
        return diagnose(self._view(), self.kind, extra=facts, stats=stats)

    def report(self, path: str | os.PathLike = "report.html", *, title: str | None = None) -> Path:
        """Write a self-contained HTML report with diagnosis, summary and pictures; return its path."""
        from .report import write_report

        return write_report(
            path, tree=self.data, kind=self.kind, summary=self.summary(), diagnosis=self.diagnose(),
            record=self.record, title=title or self._title(),
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
        from .diagnostics.bridge import bridge_sampling, evidence_from_runs, evidence_from_weights

        if self.particles is not None and self.particles.log_evidence is not None:
            return evidence_from_runs(np.asarray(self.particles.log_evidence))
        if self.approximation is not None:
            return evidence_from_weights(self._need_weights("evidence"))
        target = self._need_target("evidence")
        with precision(self._bits):
            u = self.unconstrained()

            def log_density(points: np.ndarray) -> np.ndarray:
                return evaluate.over_draws(evaluate.log_density_at, target, points)

            return bridge_sampling(np.asarray(jax.random.key_data(_key(key))), u, log_density)

    # -- what is computed from draws and model ------------------------------------------------------------------------

    def unconstrained(self) -> np.ndarray:
        """The kept draws as u: array of shape (chain, draw, d) or (particle, d)."""
        target = self._need_target("unconstrained")
        draws = self.draws()
        names = self._need_latents(target, draws)
        lead = len(self.sample_dims)
        flat = {name: _flatten(draws[name], lead) for name in names}
        with precision(self._bits):
            u = evaluate.over_draws(evaluate.unconstrain_draw, target, flat)
        return u.reshape(*next(iter(draws.values())).shape[:lead], -1)

    def log_likelihood(self, *, batch: int | None = None) -> Any:
        """Pointwise log likelihood of every draw, kept as group ``log_likelihood``, for `arviz.loo`; a Dataset."""
        return self._evaluate("log_likelihood", evaluate.log_likelihood_of, batch=batch)

    def log_prior(self, *, batch: int | None = None) -> Any:
        """Log prior of every draw, by site, kept as group ``log_prior``, for `arviz.psense_summary`; a Dataset."""
        return self._evaluate("log_prior", evaluate.prior_densities_of, batch=batch)

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
        return self._evaluate(group, evaluate.predict_draw, args, kwargs, key=key, batch=batch)

    def prior(self, num_samples: int = 1000, *, key: Any = 3) -> Any:
        """Draws of all sites from the prior, kept as groups ``prior`` and ``prior_predictive``; a Dataset."""
        target = self._need_target("prior")
        with precision(self._bits):
            out = evaluate.over_draws(
                evaluate.prior_draw, target, np.zeros(check_count("num_samples", num_samples)), key=_key(key)
            )
        observed = set(target.observed)
        shaped = {name: value[None] for name, value in out.items()}
        if observed & shaped.keys():
            self._set_group("prior_predictive", {k: v for k, v in shaped.items() if k in observed})
        return self._set_group("prior", {k: v for k, v in shaped.items() if k not in observed})

    # -- going on -----------------------------------------------------------------------------------------------------

    def extend(self, num_samples: int, *, progress: bool | None = None) -> "Posterior":
        """The posterior with ``num_samples`` more draws per chain: bit for bit those of one longer run.

        Rules that may have ended the run early (a goal, a budget) do not count for the draws asked for here.
        """
        check_count("num_samples", num_samples)
        if self.kind != "chains":
            raise NotAvailable(f"extend needs chains, and {self._method_name} gives {self.kind}; use sample(n).")
        run = self._need_run("extend")
        if self._path is not None:
            from .run.fit import resume

            total = run.asked + num_samples
            return resume(self._path, run.target, method=run.method, num_samples=total, progress=progress)
        run = run.fork()
        run.wants_progress = progress
        run.extend(num_samples)
        run.go()
        return Posterior.from_run(run)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write draws, record, and the states of the run (zarr and JSON), to be opened by `load`; return the path."""
        from .run.checkpoint import write_checkpoint
        from .store import RunStore

        path = Path(path)
        attrs = self.record | {"kind": self.kind, "started": False}
        with RunStore.create(path, coords=self._coords, dims=self._dims, attrs=attrs, overwrite=overwrite) as store:
            for name in self.data.children:
                arrays, sample_dims, dims = self._arrays(name)
                if self._run is not None and self.kind == "chains" and name in ("posterior", "sample_stats"):
                    store.append(name, arrays)
                else:
                    store.write_group(name, arrays, dims, sample_dims=sample_dims)
            if self._path is None and (iterations := self._iterations()):
                store.write_group("iterations", iterations, sample_dims=("chain", "draw"))
            if self._run is not None:
                write_checkpoint(store, self._run)
        return path

    def _arrays(self, group: str) -> tuple[dict[str, np.ndarray], tuple[str, ...], dict[str, tuple[str, ...]]]:
        """Variables of a group as NumPy arrays, the dimensions that count draws in front; these; and the others."""
        dataset = self.data[group].to_dataset()
        lead = tuple(dim for dim in ("chain", "draw", "particle") if dim in dataset.dims)
        ordered = {str(k): v.transpose(*lead, ...) for k, v in dataset.data_vars.items()}
        return {k: v.values for k, v in ordered.items()}, lead, {k: v.dims[len(lead) :] for k, v in ordered.items()}

    def start_for(self, target: "Target", key: Any, num_chains: int) -> tuple[Any, Any]:
        """Points (num_chains, d) at which chains on ``target`` may begin, and what was learned, per chain or None."""
        if self.approximation is not None:
            from .run.start import from_approximation

            return from_approximation(self.approximation, key, num_chains)
        u = self.unconstrained()
        if u.shape[-1] != target.dim:
            raise InvalidArgument(
                f"start is a posterior of dimension {u.shape[-1]}, the target has dimension {target.dim}; start from a "
                f"posterior of a model with the same latent sites."
            )
        if self.kind == "particles":
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
            return jnp.asarray(u[rng.choice(len(u), num_chains, p=self._weights())]), None
        chains = np.arange(num_chains) % u.shape[0]
        # Chains that share an ancestor begin at different draws of it.
        back = 1 + (np.arange(num_chains) // u.shape[0]) * max(1, u.shape[1] // (1 + num_chains // u.shape[0]))
        points = jnp.asarray(u[chains, -np.minimum(back, u.shape[1])])
        learned = self._learned()
        if not learned:
            return points, None
        return points, [jax.tree.map(lambda x, c=c: jnp.asarray(x[c]), learned) for c in chains]

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
        from .diagnostics.arrays import ArrayTree

        groups = {name: self._groups[name] for name in ("posterior", "sample_stats") if name in self._groups}
        return ArrayTree(groups, self.sample_dims, self._dims, self._coords)

    def _facts(self) -> dict[str, Any]:
        """What the diagnosis should know besides the draws."""
        recorded = self.record.get("method", {})  # a store opened without its target has no run, but this
        settings = recorded.get("settings", {})
        return {
            "method": self._method_name,
            "stopped": self.record.get("stopped"),
            "warning": self._said("warning"),
            "divergence": self._said("divergence"),
            "log_weights": self.log_weights(),
            "asked": self.record.get("plan", {}).get("num_samples"),
            "moved": self.record.get("moved"),
            "remarks": self._remarks(),
            "max_tree_depth": settings.get("max_tree_depth"),
            "target_acceptance": settings.get("target_acceptance"),
        }

    def _said(self, what: str) -> str:
        """What a method's class says of its draws; the class of a stored run is looked up by its public name."""
        import pushforward

        name = self.record.get("method", {}).get("name")
        found = type(self._run.method) if self._run is not None else getattr(pushforward, name or "", None)
        return getattr(found, what, "")

    def _remarks(self) -> list[dict[str, Any]]:
        """What the method says of its run; nothing where the run's states are not at hand. Or what was recorded."""
        if self._run is None or not self._run.complete:
            return list(self.record.get("remarks", []))
        result = self.particles if self.approximation is None else self.approximation
        with precision(self._bits):
            return self._run.prepared.remarks(self._run.final_states(), self._run.arranged, result)

    def _pooled(self) -> dict[str, np.ndarray]:
        return {name: _flatten(value, len(self.sample_dims)) for name, value in self.draws().items()}

    def _weights(self) -> np.ndarray | None:
        log_weights = self.log_weights() if self.kind == "particles" else None
        if log_weights is None:
            return None
        weights = np.exp(log_weights - log_weights.max())
        return weights / weights.sum()

    def _evaluate(self, group: str, f: Any, *extra: Any, key: Any = 0, batch: int | None = None) -> Any:
        target = self._need_target(group)
        lead = len(self.sample_dims)
        draws = self.draws()
        self._need_latents(target, draws)
        flat = {name: _flatten(value, lead) for name, value in draws.items()}
        with precision(self._bits):
            out = evaluate.over_draws(f, target, flat, *extra, key=_key(key), batch=batch)
        return self._set_group(group, _unflatten(out, next(iter(draws.values())).shape[:lead]))

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

    def _need_latents(self, target: "Target", draws: "Mapping[str, Any]") -> list[str]:
        """Names of the latent sites, all of which were kept: one left out would be drawn anew from its prior."""
        names = [site.name for site in target.sites if site.kind == "latent"]
        missing = [name for name in names if name not in draws]
        if missing:
            raise NotAvailable(f"The draws lack the latent sites {', '.join(missing)}; fit with sites=None.")
        return names

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
        tree.attrs = {"pushforward": _text(self.record), "kind": self.kind}
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


def _outcome(run: "Run") -> dict[str, Any]:
    return {
        "stopped": run.stopped,
        "seconds": run.seconds,
        "evaluations": run.evaluations,
        "totals": run.totals,
        "moved": run.moved,
    }


def _from_result(result: Any, run: "Run") -> tuple[dict, dict]:
    """Groups of draws, and the density or the cloud, of a method's result."""
    if isinstance(result, Approximation):
        key = jax.random.fold_in(run.plan.root(), 1)
        u, log_q = evaluate.draw_approximation(result, key, n=run.plan.num_samples)
        log_p = evaluate.over_draws(evaluate.log_density_at, run.target, np.asarray(u))
        draws = evaluate.over_draws(evaluate.constrain_draw, run.target, np.asarray(u), key=key)
        stats = {"lp": log_p, "log_q": np.asarray(log_q), "log_weight": log_p - np.asarray(log_q)}
        groups = {
            "posterior": {k: v[None] for k, v in draws.items()},
            "sample_stats": {k: v[None] for k, v in stats.items()},
        }
        return _keep_sites(groups, run), {"approximation": result}
    u = np.asarray(result.u)
    draws = evaluate.over_draws(evaluate.constrain_draw, run.target, u, key=run.plan.root())
    stats = {"lp": evaluate.over_draws(evaluate.log_density_at, run.target, u)}
    if result.log_weights is not None:
        stats["log_weight"] = np.asarray(result.log_weights)
    return _keep_sites({"posterior": draws, "sample_stats": stats}, run), {"particles": result}


def _keep_sites(groups: dict, run: "Run") -> dict:
    if run.plan.sites is not None:
        groups["posterior"] = {name: groups["posterior"][name] for name in run.plan.sites}
    return groups


def _with_observed(groups: dict, target: "Target | None") -> dict:
    observed = {} if target is None else dict(target.observed)
    return groups | ({"observed_data": {k: np.asarray(v) for k, v in observed.items()}} if observed else {})


def _check_leading(groups: dict) -> None:
    if not groups["posterior"]:
        raise InvalidArgument(
            f"draws is the empty dict {groups['posterior']}; give arrays (chain, draw, …) by the names of the sites."
        )
    shapes = {name: value.shape[:2] for arrays in groups.values() for name, value in arrays.items()}
    if any(len(shape) < 2 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise InvalidArgument(
            f"draws must be arrays (chain, draw, …) that agree on both, got leading shapes {shapes}; add an axis of "
            f"length 1 to the draws of a single chain."
        )


def _flatten(x: np.ndarray, lead: int) -> np.ndarray:
    return x.reshape(-1, *x.shape[lead:])


def _unflatten(tree: Any, lead: tuple[int, ...]) -> Any:
    return {name: value.reshape(*lead, *value.shape[1:]) for name, value in tree.items()}


def _key(key: Any) -> Any:
    words, generator = read_key(key)
    return jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)


def _text(record: dict[str, Any]) -> str:
    import json

    return json.dumps(record, default=str)
