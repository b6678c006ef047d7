"""What is done on the host before a stage: prepare its method, make its states, compile its program."""

import threading
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ..method import AbstractMethod, Stage
from .calls import arguments, static
from .chunk import Origin, init_states, run_chunk
from .group import Group, num_slots
from .layout import Placed
from .plan import START_STAGE

if TYPE_CHECKING:
    from .driver import Run

COMPILE_SECONDS = 0.5


def enter(run: "Run", stage: Stage) -> None:
    """Bring a run to the first iteration of a stage, or, after a checkpoint, to where it was in it."""
    begins = not run.stage_begun
    run.arranged = stage.method.enters(run.arranged)
    if begins:
        run.prepared = prepared_for(run, stage)
        run.methods = run.methods | {run.stage_index: run.prepared}
        relocate(run)
    run.prepared = run.methods[run.stage_index].settle(run.arranged)
    run.placed = Placed(run.layout, run.stage_index, run.prepared, run.arranged)
    for group in run.own:
        group.origin = run.layout.place(_origin(run, group), group.device)
        if begins:
            states = run.layout.place(group.states, group.device)
            method, target = run.placed.on(group.device)
            group.states = init_states(method, target, group.origin, states, single=group.single)
            group.t, group.finished = 0, False
            run.snapshot(group)
        elif run.layout.mesh is not None:  # from a checkpoint
            group.states = run.layout.place(group.states, group.device)
    if begins and run.together is not None and run.layout.mesh is None:
        _share_states(run)
    run.slots = num_slots(run.prepared, run.arranged, run.groups[0])
    if begins:
        run.stage_begun = True
        run.save(force=True)
    if stage.keep:
        run.sink.expect(stage.num_steps // run.plan.thin)
    compile_program(run, stage)


def prepared_for(run: "Run", stage: Stage) -> AbstractMethod:
    """The method as prepared for a stage; in several processes by each of them, from the same numbers."""
    if type(stage.method).prepare is AbstractMethod.prepare:
        return stage.method
    key = jax.random.fold_in(jax.random.fold_in(run.plan.root(), run.stage_index), START_STAGE)
    states = [group.states for group in run.groups]
    if run.together is None:
        return stage.method.prepare(key, run.arranged, states)
    prepared = stage.method.prepare(key, run.arranged, [jax.device_get(state) for state in states])
    run.together.check_same("what was prepared", prepared)
    return prepared


def relocate(run: "Run") -> None:
    """Let chains go on from others' states where the method asks for it, and keep a record of it."""
    if run.stage_index == 0 or type(run.prepared).relocate is AbstractMethod.relocate:
        return
    states = run.final_states()
    source = run.prepared.relocate(states)
    if source is None:
        return
    run.moved |= {str(chain): int(to) for chain, to in enumerate(source) if to != chain}
    for group in run.groups:
        rows = source[group.chains[0]] if group.single else source[np.asarray(group.chains)]
        group.states = jax.tree.map(lambda x, rows=rows: x[rows], states)


def compile_program(run: "Run", stage: Stage) -> None:
    """Compile before any thread starts, so that it happens once for each device and shape of group."""
    for group in {(g.device, len(g.chains)): g for g in reversed(run.own)}.values():
        lowered = run_chunk.lower(*arguments(run, stage, group, 0), **static(run, group))
        # A program that comes out of the persistent cache is there before the timer fires.
        meanwhile = threading.Timer(COMPILE_SECONDS, run.when_compiling or (lambda: None))
        meanwhile.daemon, run.when_compiling = True, None
        meanwhile.start()
        lowered.compile()
        meanwhile.cancel()
        # JAX fills its cache of calls at the first one. A crash was seen once where two threads may have made it
        # together (the cause is not established), so it is made here; without iterations it returns the states.
        group.states = run_chunk(*arguments(run, stage, group, 0), **static(run, group)).states


def _origin(run: "Run", group: Group) -> Origin:
    chain = np.asarray(group.chains, np.uint32)
    return Origin(run.plan.root(), np.uint32(run.stage_index), chain[0] if group.single else chain)


def _share_states(run: "Run") -> None:
    """Let all processes know the first states of all groups."""
    assert run.together is not None
    for group in run.groups:
        if group not in run.own:
            group.states, group.t, group.finished = _shapes_of_states(run, group), 0, False
    told = run.together.meet(run.own, [], None, None, (run.seconds, 0.0, 0))
    run.together.take_over(run.groups, told)


def _shapes_of_states(run: "Run", group: Group) -> Any:
    origin = _origin(run, group)
    return jax.eval_shape(lambda: init_states(run.prepared, run.arranged, origin, group.states, single=group.single))
