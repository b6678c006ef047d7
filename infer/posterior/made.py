"""What a posterior is made from: a run that is over, a store, or draws made elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import evaluate
from ..approximation import Approximation
from ..errors import InvalidArgument
from ..run.precision import precision

if TYPE_CHECKING:
    from ..run.driver import Run
    from ..target import Target
    from .posterior import Posterior


STAN = {
    "lp__": "lp",
    "accept_stat__": "acceptance_rate",
    "stepsize__": "step_size",
    "treedepth__": "tree_depth",
    "n_leapfrog__": "n_steps",
    "divergent__": "diverging",
    "energy__": "energy",
}
"""Statistics among the columns of Stan's output, and ArviZ's names for them."""


def of_run(cls: "type[Posterior]", run: "Run", store: Any = None) -> "Posterior":
    """The posterior of a run that is over; what is not yet in its store, if it has one, is written there."""
    from ..run.fit import origin

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
        groups, extra = _of_result(run.prepared.result(run.final_states(), run.arranged), run)
    groups = _with_observed(groups, run.target)
    posterior = cls(groups, **made, **extra)
    if store is not None:
        for name, arrays in groups.items():
            sample_dims = () if name == "observed_data" else posterior.sample_dims
            store.write_group(name, arrays, sample_dims=sample_dims)
        store.update_attrs(_outcome(run))
    return posterior


def of_store(
    cls: "type[Posterior]", path: Path, attrs: dict[str, Any], target: "Target | None", run: "Run | None"
) -> "Posterior":
    """The posterior in a store; draws are read when they are needed."""
    kind = attrs.get("kind", "chains")
    extra: dict[str, Any] = {}
    if run is not None and kind != "chains":
        with precision(run.plan.precision):
            result = run.prepared.result(run.final_states(), run.arranged)
        extra = {"approximation" if isinstance(result, Approximation) else "particles": result}
    return cls({}, kind=kind, target=target, record=attrs, run=run, path=path, **extra)


def groups_of_draws(
    draws: Mapping[str, Any], sample_stats: Mapping[str, Any] | None, target: "Target | None"
) -> dict[str, dict[str, np.ndarray]]:
    """Groups from a dict of draws made elsewhere; raise `InvalidArgument` where they do not agree."""
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": {}, "sample_stats": {}}
    for name, value in draws.items():
        group, known = ("sample_stats", STAN[name]) if name in STAN else ("posterior", name)
        groups[group][known] = _array(name, value)
    groups["sample_stats"] |= {name: _array(name, value) for name, value in (sample_stats or {}).items()}
    if "diverging" in groups["sample_stats"]:
        groups["sample_stats"]["diverging"] = groups["sample_stats"]["diverging"].astype(bool)  # Stan writes numbers
    if not groups["sample_stats"]:
        del groups["sample_stats"]
    _check_leading(groups)
    return _with_observed(groups, target)


def foreign_tree(source: Any) -> Any:
    """A DataTree from a fitted object of another package, or a copy of one."""
    import xarray

    module = type(source).__module__.split(".")[0]
    if isinstance(source, xarray.DataTree):
        return source.copy()
    if module in ("numpyro", "cmdstanpy"):
        import arviz_base

        return {"numpyro": arviz_base.from_numpyro, "cmdstanpy": arviz_base.from_cmdstanpy}[module](source).copy()
    raise InvalidArgument(
        f"draws must be a dict of arrays (chain, draw, …), a DataTree, or a fitted NumPyro or CmdStan object, "
        f"got {type(source).__name__}."
    )


def _outcome(run: "Run") -> dict[str, Any]:
    return {
        "stopped": run.stopped,
        "seconds": run.seconds,
        "evaluations": run.evaluations,
        "totals": run.totals,
        "moved": run.moved,
    }


def _of_result(result: Any, run: "Run") -> tuple[dict, dict]:
    """Groups of draws, and the density or the cloud, of a method's result."""
    if isinstance(result, Approximation):
        key = jax.random.fold_in(run.plan.root(), 1)
        u, log_q = evaluate.draw_approximation(result, key, n=run.plan.num_samples)
        target = result.fitted_target(run.target)
        log_p = evaluate.over_draws(evaluate.log_density_at, target, np.asarray(u))
        draws = evaluate.over_draws(evaluate.constrain_draw, target, np.asarray(u), key=key)
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


def _array(name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str):
        raise InvalidArgument(f"draws has the key {name!r}; give arrays (chain, draw, …) by the names of the sites.")
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of unequal lengths
        raise InvalidArgument(
            f"draws[{name!r}] is no array: {str(error).split('.')[0]}; give an array (chain, draw, …)."
        ) from None


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
