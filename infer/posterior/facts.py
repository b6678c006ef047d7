"""What the diagnosis should know of a posterior besides its draws."""

from typing import TYPE_CHECKING, Any

from ..run.precision import precision

if TYPE_CHECKING:
    from .posterior import Posterior


def facts(posterior: "Posterior") -> dict[str, Any]:
    """By name: method, its settings and warnings, how the run ended, log weights."""
    recorded = posterior.record.get("method", {})  # a store opened without its target has no run, but this
    settings = recorded.get("settings", {})
    return {
        "method": posterior._method_name,
        "stopped": posterior.record.get("stopped"),
        "warning": _said(posterior, "warning"),
        "divergence": _said(posterior, "divergence"),
        "log_weights": posterior.log_weights(),
        "asked": posterior.record.get("plan", {}).get("num_samples"),
        "moved": posterior.record.get("moved"),
        "remarks": _remarks(posterior),
        "max_tree_depth": settings.get("max_tree_depth"),
        "target_acceptance": settings.get("target_acceptance"),
    }


def _said(posterior: "Posterior", what: str) -> str:
    """What a method's class says of its draws; the class of a stored run is looked up by its public name."""
    import pushforward

    name, run = posterior.record.get("method", {}).get("name"), posterior._run
    found = type(run.method) if run is not None else getattr(pushforward, name or "", None)
    return getattr(found, what, "")


def _remarks(posterior: "Posterior") -> list[dict[str, Any]]:
    """What the method says of its run; nothing where the run's states are not at hand. Or what was recorded."""
    run = posterior._run
    if run is None or not run.complete:
        return list(posterior.record.get("remarks", []))
    result = posterior.particles if posterior.approximation is None else posterior.approximation
    with precision(posterior._bits):
        return run.prepared.remarks(run.final_states(), run.arranged, result)
