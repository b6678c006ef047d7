"""Going on from a posterior: more draws, a store, the start of another fit."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import InvalidArgument, NotAvailable
from ..validate import check_count

if TYPE_CHECKING:
    from ..target import Target
    from .posterior import Posterior


def extend(posterior: "Posterior", num_samples: int, progress: bool | None) -> "Posterior":
    """See `Posterior.extend`."""
    check_count("num_samples", num_samples)
    if posterior.kind != "chains":
        raise NotAvailable(f"extend needs chains, and {posterior._method_name} gives {posterior.kind}; use sample(n).")
    run = posterior._need_run("extend")
    if posterior._path is not None:
        from ..run.fit import resume

        total = run.asked + num_samples
        return resume(posterior._path, run.target, method=run.method, num_samples=total, progress=progress)
    run = run.fork()
    run.wants_progress = progress
    run.extend(num_samples)
    run.go()
    return type(posterior).from_run(run)


def save(posterior: "Posterior", path: Path, overwrite: bool) -> Path:
    """See `Posterior.save`."""
    from ..run.checkpoint import write_checkpoint
    from ..store import RunStore

    attrs = posterior.record | {"kind": posterior.kind, "started": False}
    coords, dims = posterior._coords, posterior._dims
    with RunStore.create(path, coords=coords, dims=dims, attrs=attrs, overwrite=overwrite) as store:
        for name in posterior.data.children:
            arrays, sample_dims, named = _arrays(posterior, name)
            if posterior._run is not None and posterior.kind == "chains" and name in ("posterior", "sample_stats"):
                store.append(name, arrays)
            else:
                store.write_group(name, arrays, named, sample_dims=sample_dims)
        if posterior._path is None and (iterations := posterior._iterations()):
            store.write_group("iterations", iterations, sample_dims=("chain", "draw"))
        if posterior._run is not None:
            write_checkpoint(store, posterior._run)
    return path


def start_for(posterior: "Posterior", target: "Target", key: Any, num_chains: int) -> tuple[Any, Any]:
    """See `Posterior.start_for`."""
    if posterior.approximation is not None:
        from ..run.start import from_approximation

        return from_approximation(posterior.approximation, key, num_chains)
    u = posterior.unconstrained()
    if u.shape[-1] != target.dim:
        raise InvalidArgument(
            f"start is a posterior of dimension {u.shape[-1]}, the target has dimension {target.dim}; start from a "
            f"posterior of a model with the same latent sites."
        )
    if posterior.kind == "particles":
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        return jnp.asarray(u[rng.choice(len(u), num_chains, p=posterior._weights())]), None
    chains = np.arange(num_chains) % u.shape[0]
    # Chains that share an ancestor begin at different draws of it.
    back = 1 + (np.arange(num_chains) // u.shape[0]) * max(1, u.shape[1] // (1 + num_chains // u.shape[0]))
    points = jnp.asarray(u[chains, -np.minimum(back, u.shape[1])])
    learned = posterior._learned()
    if not learned:
        return points, None
    return points, [jax.tree.map(lambda x, c=c: jnp.asarray(x[c]), learned) for c in chains]


def _arrays(
    posterior: "Posterior", group: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Variables of a group as NumPy arrays, the dimensions that count draws in front; these; and the others."""
    dataset = posterior.data[group].to_dataset()
    lead = tuple(dim for dim in ("chain", "draw", "particle") if dim in dataset.dims)
    ordered = {str(k): v.transpose(*lead, ...) for k, v in dataset.data_vars.items()}
    return {k: v.values for k, v in ordered.items()}, lead, {k: v.dims[len(lead) :] for k, v in ordered.items()}
