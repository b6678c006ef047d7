"""A run on disk: what a checkpoint holds, and how a run is rebuilt from it.

A checkpoint has the iteration and the states of every group of chains, and the draws that wait for slower chains.
Every iteration is a pure function of (key, stage, chain, t), so that this is enough for the same bits.
"""

import importlib.metadata
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import StoreError
from ..method import AbstractMethod
from ..target import Target
from .chunk import Origin, init_states
from .driver import BROKEN_OFF, Run
from .plan import Plan
from .precision import precision
from .prepared import decode, encode

STATE = "state"
WAITING = "waiting"
PREPARED = "prepared-"


@lru_cache
def _version(name: str) -> str:
    return importlib.metadata.version(name)


def versions() -> dict[str, str]:
    """Versions of what decides the bits of a run."""
    return {name: _version(name) for name in ("pushforward", "jax", "jaxlib", "blackjax", "numpyro")}


def write_checkpoint(store: Any, run: Run) -> None:
    """Make all draws so far visible, then save the run atomically; once a stage, the method prepared for it."""
    store.flush()
    for stage, method in run.methods.items():
        own, name = run.stages[stage].method, f"{PREPARED}{stage}"
        if _prepares(own) and name not in store.kept:
            store.keep(name, *encode(method, own))
    arrays: dict[str, np.ndarray] = {}
    meta = {
        "stage": run.stage_index,
        "begun": run.stage_begun,
        "plan": run.plan.record(),
        "evaluations": run.evaluations,
        "totals": run.totals,
        "seconds": run.seconds,
        "kept": run.kept,
        "looked": run.looked,
        "moved": run.moved,
        "stopped": run.stopped,
        "groups": [],
    }
    for group in run.groups:
        t, states = group.snapshot or (group.t, jax.device_get(group.states))
        meta["groups"].append({"t": t, "finished": group.finished})
        for i, leaf in enumerate(jax.tree.leaves(states)):
            arrays[f"{STATE}/{group.index}/{i}"] = np.asarray(leaf)
        for name, block in run.columns.arrays(group.index).items():
            for site, values in block.items():
                arrays[f"{WAITING}/{group.index}/{name}/{site}"] = values
    store.checkpoint(meta, arrays)


def read_checkpoint(run: Run, path: Any, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Put a run, made from the same target, method and plan, where the checkpoint of a store was taken."""
    run.stage_index, run.stage_begun = meta["stage"], meta["begun"]
    run.evaluations, run.totals = meta["evaluations"], meta["totals"]
    run.seconds_before, run.kept, run.looked = meta["seconds"], meta["kept"], meta["looked"]
    run.moved = meta["moved"]
    # What was broken off goes on; what a stopping rule has ended stays ended.
    run.stopped = None if meta["stopped"] in BROKEN_OFF else meta["stopped"]
    with precision(run.plan.precision):
        methods = prepared_methods(run, path)
        run.methods = dict(enumerate(methods))
        run.prepared = methods[-1] if methods else run.method
        for group, saved in zip(run.groups, meta["groups"], strict=True):
            like = _states_like(run, methods, group)
            leaves = [arrays[f"{STATE}/{group.index}/{i}"] for i in range(len(jax.tree.leaves(like)))]
            _check_shapes(like, leaves)
            group.states = jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(leaf) for leaf in leaves])
            group.t, group.finished = saved["t"], saved["finished"]
            group.snapshot = (group.t, jax.device_get(group.states))
            prefix = f"{WAITING}/{group.index}/"
            waiting: dict[str, dict[str, np.ndarray]] = {"posterior": {}, "sample_stats": {}}
            for path, values in arrays.items():
                if path.startswith(prefix):
                    name, site = path.removeprefix(prefix).split("/", 1)
                    waiting[name][site] = values
            if waiting["sample_stats"]:
                run.columns.add(group.index, waiting)


def prepared_methods(run: Run, path: Any) -> list[AbstractMethod]:
    """The methods of the stages that have begun, as they were prepared."""
    from ..store import read_kept

    own = [stage.method for stage in run.stages[: run.stage_index + run.stage_begun]]
    return [decode(*read_kept(path, f"{PREPARED}{i}"), m) if _prepares(m) else m for i, m in enumerate(own)]


def _prepares(method: AbstractMethod) -> bool:
    return type(method).prepare is not AbstractMethod.prepare


def _states_like(run: Run, methods: list[AbstractMethod], group: Any) -> Any:
    """Shapes of a group's states, by tracing what made them."""
    single = group.single
    start = jnp.zeros((run.target.dim,)) if single else jnp.zeros((len(group.chains), run.target.dim))
    chain = np.asarray(group.chains, np.uint32)
    origin = Origin(run.plan.root(), np.uint32(0), chain[0] if single else chain)
    states = start
    for method in methods:
        states = jax.eval_shape(
            lambda states, method=method: init_states(method, run.arranged, origin, states, single=single), states
        )
    return states


def _check_shapes(like: Any, leaves: list[np.ndarray]) -> None:
    for expected, found in zip(jax.tree.leaves(like), leaves, strict=True):
        if expected.shape != found.shape or expected.dtype != found.dtype:
            raise StoreError(
                f"The checkpoint holds a state of shape {found.shape} and dtype {found.dtype} where this method and "
                f"target have {expected.shape} and {expected.dtype}; resume it with those it was made with."
            )


def check_origin(attrs: dict[str, Any], target: Target, path: Any) -> None:
    """Raise `StoreError` unless the store was written by this version of the package for this target."""
    found = attrs["versions"]["pushforward"]
    if found != versions()["pushforward"]:
        raise StoreError(
            f"{path} was written by pushforward {found}; this is {versions()['pushforward']}, whose draws may differ: "
            f"resume it with that version, or fit anew. Its draws open with xarray as they are."
        )
    if attrs["fingerprint"] != target.fingerprint():
        sites = ", ".join(attrs.get("sites", [])) or "unknown sites"
        raise StoreError(
            f"{path} holds a run of another target (its sites: {sites}; the model or its data differ from the target "
            f"given here): pass the target that it was made with."
        )


def rebuild_run(store: Any, attrs: dict[str, Any], target: Target, method: AbstractMethod, **options: Any) -> Run:
    """The run that a store holds, at its last checkpoint; draws written after it are dropped, to be drawn again.

    Raises
    ------
    StoreError
        There is no checkpoint and the run had a start of the user's, so that it cannot begin again.
    """
    from ..store import has_checkpoint

    if not has_checkpoint(store.path):
        if attrs["started"]:
            raise StoreError(
                f"{store.path} has no checkpoint and its chains began at points given by the user: fit it again."
            )
        run = Run(target, method, Plan.from_record(attrs["plan"]), **options)
        run.start()
        for name in run.streams.values():
            store.truncate(name, 0)
        return run
    meta, arrays = store.load_checkpoint()
    plan = Plan.from_record(meta["plan"])
    if plan.devices not in (0, jax.device_count()):
        raise StoreError(
            f"{store.path} holds a run that was spread over {plan.devices} devices, on which its bits depend, and here "
            f"are {jax.device_count()}: go on with as many, in any number of processes, or fit anew."
        )
    run = Run(target, method, plan, **options)
    read_checkpoint(run, store.path, meta, arrays)
    for name in run.streams.values():
        store.truncate(name, run.kept)
    return run
