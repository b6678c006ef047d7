"""`Run`: drives a method on a target stage by stage, chunk by chunk, and can be stopped, resumed and extended.

Chains are split into groups. A group is one call of a compiled program at a time; groups run side by side on threads
(the compiled code holds no lock), on one device or on several, and the one that is furthest behind goes next. No group
waits for another, but for a stage to end. Where a run is in several processes, each runs its groups up to a common
iteration, at which all tell all: see `together`.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from ..distributed.mesh import DATA, PARTICLES, data_mesh, everywhere, particle_mesh, place
from ..errors import DistributedError, InvalidArgument, NonFinite
from ..method import AbstractMethod, Budget, Stage
from ..target import Target
from ..target.spread import spread_rows
from .chunk import Chunk, Origin, init_states, run_chunk
from .columns import Columns, MemorySink, Sink
from .finite import check_draws, check_loss
from .group import Group, num_slots
from .observe import Progress, Seen, Stopping, next_look
from .plan import START_STAGE, Plan
from .precision import precision
from .signals import Signals
from .start import starting_points
from .together import Together

CHUNK_SECONDS = 0.3
ROUND_SECONDS = 1.0
FIRST_CHUNK = 10
GROWTH = 100
FLUSH_SECONDS = 2.0
COMPILE_SECONDS = 0.5
CHECKPOINT_SECONDS = 30.0
BROKEN_OFF = frozenset({"interrupted", "terminated"})


class Run:
    """A run of a method on a target; `go` runs it to its end."""

    def __init__(
        self,
        target: Target,
        method: AbstractMethod,
        plan: Plan,
        *,
        sink: Sink | None = None,
        checkpoint: Callable[["Run"], None] | None = None,
        progress: bool | None = None,
        when_compiling: Callable[[], None] | None = None,
        chunk_length: int | None = None,
        checkpoint_every: float = CHECKPOINT_SECONDS,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.target, self.method, self.plan = target, method, plan
        self.arranged = method.arrange(target)  # what its functions see
        self.sink: Sink = MemorySink() if sink is None else sink
        self.checkpoint, self.when_compiling = checkpoint, when_compiling
        self.chunk_length, self.checkpoint_every = chunk_length, checkpoint_every
        self.wants_progress = progress
        self.stage_index, self.stage_begun = 0, False
        self.prepared: AbstractMethod = method
        self.methods: dict[int, AbstractMethod] = {}  # as prepared for each stage so far
        self.evaluations = 0
        self.totals: dict[str, dict[str, float]] = {}
        self.seconds_before = 0.0
        self.kept = self.looked = 0
        self.moved: dict[str, int] = {}
        self.stopped: str | None = None
        self._begun = self._saved = self._flushed = time.monotonic()
        self._signals = Signals()
        self._stages: tuple[Stage, ...] | None = None
        size = plan.chains_per_program
        starts = range(0, plan.num_chains, size)
        self.groups = [Group(i, range(a, min(a + size, plan.num_chains)), None) for i, a in enumerate(starts)]
        self._lay_out(list(jax.devices() if devices is None else devices))
        for group in self.groups:
            group.length = chunk_length or FIRST_CHUNK
        self.columns = Columns(len(self.groups))
        self._placed: dict[Any, tuple] = {}

    def _lay_out(self, devices: list[Any]) -> None:
        """Give each group its device, or the only group all of them."""
        kind, self._mesh = self.plan.mesh, None
        self.together = Together.of_this_job()
        local = [device for device in devices if device.process_index == jax.process_index()]
        spreads = self.method.spreads if kind is None else kind in (PARTICLES, DATA)
        if spreads and len(devices) > 1 and len(self.groups) == 1:
            self._mesh = data_mesh(devices) if kind == DATA else particle_mesh(devices)
            self.groups[0].device = everywhere(self._mesh)
            if kind == DATA:
                with precision(self.plan.precision):
                    self.arranged = spread_rows(self.arranged, self._mesh)
        else:
            for i, group in enumerate(self.own):
                group.device = local[i % len(local)]
        self.workers = len(local) if len(local) > 1 or local[0].platform != "cpu" else _num_cores()
        self._one_device = len(devices) == 1

    @property
    def own(self) -> list[Group]:
        """The groups that this process runs."""
        alone = self.together is None or self._mesh is not None
        return self.groups if alone else self.together.share_of(self.groups)  # type: ignore[union-attr]

    # -- the whole run ------------------------------------------------------------------------------------------------

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The method's stages for this budget."""
        if self._stages is None:
            plan = self.plan
            self._stages = self.method.stages(Budget(plan.num_warmup, plan.num_samples, plan.thin, plan.warm))
        return self._stages

    @property
    def streams(self) -> dict[str, str]:
        """What chunks give → the group it is appended to; without draws by chain, infos are those of iterations."""
        if self.method.kind == "chains":
            return {"posterior": "posterior", "sample_stats": "sample_stats"}
        return {"sample_stats": "iterations"}

    @property
    def seconds(self) -> float:
        """Wall time spent so far, before a resume included."""
        return self.seconds_before + time.monotonic() - self._begun

    @property
    def complete(self) -> bool:
        """Whether every stage has run to its end (or its stopping rule)."""
        return self.stage_index == len(self.stages)

    @property
    def asked(self) -> int:
        """Draws per chain that the run ends with: those there are, where a stopping rule has ended it."""
        return self.plan.num_samples if self.stopped in {None, *BROKEN_OFF} else self.kept

    def start(self, start: Any = None) -> None:
        """Find where the chains begin, and their first states."""
        with precision(self.plan.precision), self._rows_in_force():
            points = starting_points(self.target, self.plan.root(), start, self.plan.num_chains)
            for group in self.groups:
                mine = [points[chain] for chain in group.chains]
                group.states = mine[0] if group.single else jax.tree.map(lambda *x: np.stack(x), *mine)
            if self.together is not None:
                self.together.check_same("where chains begin", [group.states for group in self.groups])

    def go(self) -> None:
        """Run what is left of the stages; on Ctrl-C, keep what there is and say so in ``stopped``."""
        self._begun = self._saved = self._flushed = time.monotonic()
        progress, self._signals = Progress(self.wants_progress), Signals()
        try:
            with (
                self._scope(),
                self._signals.caught(terminate=self.checkpoint is not None),
                self._pool() as pool,
            ):
                while not self.complete and self.stopped is None:
                    self._run_stage(self.stages[self.stage_index], pool, progress)
                    if self.stopped is None:
                        self.stage_index, self.stage_begun = self.stage_index + 1, False
        finally:
            progress.close()
        self._save(force=True)
        self.seconds_before, self._begun = self.seconds, time.monotonic()
        if self._signals.terminated or self.stopped == "terminated":
            raise SystemExit(128 + signal.SIGTERM)
        if self.stopped is not None and self.kept == 0 and self.method.kind == "chains":
            if self.stopped == "interrupted":
                raise KeyboardInterrupt
            raise InvalidArgument(
                f"The run has no draws: {self.stopped}, in stage {self.stages[self.stage_index].name!r}; raise "
                f"max_seconds or max_evaluations, or lower num_warmup={self.plan.num_warmup}."
            )

    def extend(self, num_samples: int) -> None:
        """Ask for ``num_samples`` more draws per chain, whatever the stopping rules say; `go` then runs them."""
        import dataclasses

        self.plan = dataclasses.replace(self.plan, num_samples=self.asked + num_samples, stopping=Stopping())
        self._stages, self.stopped = None, None
        self.stage_index, self.stage_begun = min(self.stage_index, len(self.stages) - 1), True
        for group in self.groups:
            group.finished = False

    def fork(self) -> "Run":
        """A copy that can go on in memory while this run, and the posterior made of it, stay what they are."""
        import copy

        twin = copy.copy(self)
        twin.groups = [copy.copy(group) for group in self.groups]
        for group in twin.groups:
            group.states = jax.device_get(group.states)  # those on the device are given away to the next chunk
        twin.columns, twin.sink = self.columns.copy(), self.sink.copy()  # type: ignore[attr-defined]
        twin.totals, twin.moved, twin._placed = copy.deepcopy(self.totals), dict(self.moved), {}
        return twin

    def final_states(self) -> Any:
        """States of all chains, stacked on a leading axis, on the host's default device."""
        with precision(self.plan.precision):
            parts = [jax.device_get(g.states) for g in self.groups]
            parts = [
                jax.tree.map(lambda x: np.asarray(x)[None], p) if g.single else p
                for p, g in zip(parts, self.groups, strict=True)
            ]
            return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    # -- one stage ----------------------------------------------------------------------------------------------------

    def _run_stage(self, stage: Stage, pool: ThreadPoolExecutor, progress: Progress) -> None:
        self._enter(stage)
        self._stage_from = (time.monotonic(), self._done(stage))
        if self.together is not None:
            self._run_rounds(stage, pool, progress)
        else:
            self._run_freely(stage, pool, progress)
        if stage.keep and self.stopped is None:
            self._keep()
        self._show(stage, progress, force=True)

    def _run_freely(self, stage: Stage, pool: ThreadPoolExecutor, progress: Progress) -> None:
        """Groups go on as their devices allow."""
        running: dict[Future, tuple[Group, float]] = {}
        look = self._next_look(stage)
        while True:
            try:
                self.stopped = self._signals.reason or self.stopped
                if self.stopped is None:
                    self._dispatch(stage, pool, running, self._horizon(look))
                if not running:
                    if self.stopped is None and look is not None and any(not g.finished for g in self.groups):
                        self.stopped, self.looked = self._goal_reached(), look
                        look = self._next_look(stage)
                        continue
                    break
                ready, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                done = [(*running.pop(future), future.result()) for future in ready]
                for group, begun, chunk in done:
                    self._take(stage, group, chunk, time.monotonic() - begun)
                if self._goes_on():  # the next chunks run while the host looks at these
                    self._dispatch(stage, pool, running, self._horizon(look))
                for group, _, chunk in done:
                    self._collect(stage, group, *self._unpack(stage, group, chunk))
                if ready:
                    self._after_chunk(stage, progress)
            except KeyboardInterrupt:
                self.stopped = "interrupted"

    def _run_rounds(self, stage: Stage, pool: ThreadPoolExecutor, progress: Progress) -> None:
        """All groups go up to a common iteration, wherever they are; then all processes know all and decide alike."""
        together, look, error = self.together, self._next_look(stage), None
        assert together is not None
        length = self.chunk_length or FIRST_CHUNK
        while error is not None or (self.stopped is None and any(not group.finished for group in self.groups)):
            begun, blocks = time.monotonic(), []
            if error is None:
                try:
                    blocks = self._go_up_to(stage, pool, length, look)
                except Exception as raised:  # told to the others before it ends this process
                    error = raised
            iterations = max((group.t - begin for group, begin, _ in blocks), default=0)
            clock = (self.seconds, time.monotonic() - begun, iterations)
            # What runs on all devices is known everywhere already.
            news = (self.own, blocks) if self._mesh is None else ([], [])
            told = together.meet(*news, self._signals.reason, error, clock)
            self.stopped = told.signal
            if self._mesh is None:
                together.take_over(self.groups, told)
                blocks = [(self.groups[i], begin, block) for i, begin, block in told.blocks]
            try:
                for group, begin, block in blocks:
                    self._collect(stage, group, begin, block)
                self._after_chunk(stage, progress)
                waits = look is not None and self._done(stage) >= look * self.plan.thin
                if waits and self.stopped is None and any(not group.finished for group in self.groups):
                    self.stopped, self.looked = together.agree(self._goal_reached), look
                    look = self._next_look(stage)
            except DistributedError:
                raise
            except Exception as raised:
                error = raised
            if self.chunk_length is None and told.iterations:
                length = int(min(max(told.iterations * ROUND_SECONDS / max(told.round, 1e-6), 1), GROWTH * length))

    def _go_up_to(self, stage: Stage, pool: ThreadPoolExecutor, length: int, look: int | None) -> list[tuple]:
        """Run this process's groups for ``length`` more iterations, or to the next look; what came of it."""
        thin = self.plan.thin if stage.keep else 1
        last = self._done(stage) + max(length // thin, 1) * thin
        last = last if look is None else min(last, look * self.plan.thin)
        running: dict[Future, tuple[Group, float]] = {}
        blocks = []
        for group in self.own:
            group.length = length
        while True:
            self._dispatch(stage, pool, running, last)
            if not running:
                return sorted(blocks, key=lambda block: (block[0].index, block[1]))
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                group, begun = running.pop(future)
                chunk = future.result()
                self._take(stage, group, chunk, time.monotonic() - begun)
                group.length = length
                blocks.append((group, *self._unpack(stage, group, chunk)))

    def _enter(self, stage: Stage) -> None:
        """Host work before the stage: prepare the method, make the states, compile the chunk."""
        root = self.plan.root()
        if not self.stage_begun:
            self.prepared = stage.method
            if type(stage.method).prepare is not AbstractMethod.prepare:
                key = jax.random.fold_in(jax.random.fold_in(root, self.stage_index), START_STAGE)
                self.prepared = self._prepare(stage, key)
            self.methods = self.methods | {self.stage_index: self.prepared}
            self._relocate()
        self._placed = {}
        for group in self.own:
            chain = np.asarray(group.chains, np.uint32)
            origin = Origin(root, np.uint32(self.stage_index), chain[0] if group.single else chain)
            group.origin = self._place(origin, group.device)
            if not self.stage_begun:
                states = self._place(group.states, group.device)
                method, target = self._on(group.device)
                group.states = init_states(method, target, group.origin, states, single=group.single)
                group.t, group.finished = 0, False
                self._snapshot(group)
            elif self._mesh is not None:  # from a checkpoint
                group.states = self._place(group.states, group.device)
        if self.together is not None and not self.stage_begun and self._mesh is None:
            self._share_states()
        self.slots = num_slots(self.prepared, self.arranged, self.groups[0])
        if not self.stage_begun:
            self.stage_begun = True
            self._save(force=True)
        if stage.keep:
            self.sink.expect(stage.num_steps // self.plan.thin)
        self._compile(stage)

    def _prepare(self, stage: Stage, key: Any) -> AbstractMethod:
        """The method as prepared; in several processes by each of them, from the same numbers."""
        states = [group.states for group in self.groups]
        if self.together is None:
            return stage.method.prepare(key, self.arranged, states)
        prepared = stage.method.prepare(key, self.arranged, [jax.device_get(state) for state in states])
        self.together.check_same("what was prepared", prepared)
        return prepared

    def _share_states(self) -> None:
        """Let all processes know the first states of all groups."""
        assert self.together is not None
        for group in self.groups:
            if group not in self.own:
                chain = np.asarray(group.chains, np.uint32)
                origin = Origin(self.plan.root(), np.uint32(self.stage_index), chain[0] if group.single else chain)
                like = jax.eval_shape(
                    lambda group=group, origin=origin: init_states(
                        self.prepared, self.arranged, origin, group.states, single=group.single
                    )
                )
                group.states, group.t, group.finished = like, 0, False
        told = self.together.meet(self.own, [], None, None, (self.seconds, 0.0, 0))
        self.together.take_over(self.groups, told)

    def _relocate(self) -> None:
        """Let chains go on from others' states where the method asks for it, and keep a record of it."""
        if self.stage_index == 0 or type(self.prepared).relocate is AbstractMethod.relocate:
            return
        states = self.final_states()
        source = self.prepared.relocate(states)
        if source is None:
            return
        self.moved |= {str(chain): int(to) for chain, to in enumerate(source) if to != chain}
        for group in self.groups:
            rows = source[group.chains[0]] if group.single else source[np.asarray(group.chains)]
            group.states = jax.tree.map(lambda x, rows=rows: x[rows], states)

    def _compile(self, stage: Stage) -> None:
        """Compile before any thread starts, so that it happens once for each device and shape of group."""
        for key in {(g.device, len(g.chains)): g for g in reversed(self.own)}.values():
            lowered = run_chunk.lower(*self._arguments(stage, key, 0), **self._static(key))
            # A program that comes out of the persistent cache is there before the timer fires.
            meanwhile = threading.Timer(COMPILE_SECONDS, self.when_compiling or (lambda: None))
            meanwhile.daemon, self.when_compiling = True, None
            meanwhile.start()
            lowered.compile()
            meanwhile.cancel()
            # JAX fills its cache of calls at the first one. A crash was seen once where two threads may have made it
            # together (the cause is not established), so it is made here; without iterations it returns the states.
            key.states = run_chunk(*self._arguments(stage, key, 0), **self._static(key)).states

    def _horizon(self, look: int | None) -> int | None:
        """The iteration at which all groups wait for each other."""
        return None if look is None else look * self.plan.thin

    def _dispatch(self, stage: Stage, pool: ThreadPoolExecutor, running: dict, horizon: int | None) -> None:
        """Give the free workers the groups that are furthest behind."""
        busy = {group.index for group, _ in running.values()}
        thin, last = self.plan.thin if stage.keep else 1, stage.num_steps
        if horizon is not None:
            last = min(last, horizon)
        for group in sorted(self.own, key=lambda g: g.t):
            if len(running) >= self.workers:
                return
            if group.index in busy or group.finished or group.t >= last:
                continue
            # Whole slots only, so that the draws that share a slot never straddle two chunks.
            length = max(group.length // thin, 1) * thin
            length = min(length, self.slots * thin, last - group.t)
            ends = self.arranged.block_ends(group.t)
            if ends is not None:  # there other rows of the data come in
                length = min(length, -(-(ends - group.t) // thin) * thin)
            running[pool.submit(self._call, stage, group, length)] = (group, time.monotonic())

    def _call(self, stage: Stage, group: Group, length: int) -> Chunk:
        with self._scope():  # which belongs to a thread
            chunk = run_chunk(*self._arguments(stage, group, length), **self._static(group))
            return jax.block_until_ready(chunk)

    def _arguments(self, stage: Stage, group: Group, length: int) -> tuple:
        method, target = self._on(group.device, group.t)
        scalars = (np.int32(group.t), np.int32(length), np.int32(self.plan.thin if stage.keep else 1))
        return (method, target, group.states, group.origin, *scalars, np.bool_(stage.keep))

    def _static(self, group: Group) -> dict[str, Any]:
        thinned = self.plan.thin > 1
        return {"slots": self.slots, "sites": self.plan.sites, "single": group.single, "thinned": thinned}

    def _goes_on(self) -> bool:
        spent = self._spent()
        return not (self._signals.reason or self.stopped or spent)

    def _take(self, stage: Stage, group: Group, chunk: Chunk, seconds: float) -> None:
        """Take over the states of a chunk; the group can then go on."""
        iterations = int(chunk.iterations)
        group.states = chunk.states
        group.t += iterations
        group.finished = group.t >= stage.num_steps or iterations == 0 or self._all_done(group)
        if self.chunk_length is None:
            ideal = iterations * CHUNK_SECONDS / max(seconds, 1e-6)
            group.length = int(min(max(ideal, 1), GROWTH * group.length))
        else:
            group.length = self.chunk_length
        self._snapshot(group)

    def _unpack(self, stage: Stage, group: Group, chunk: Chunk) -> tuple[int, dict[str, Any]]:
        """What was drawn and seen in the last chunk taken, and its first iteration."""
        iterations = int(chunk.iterations)
        slots = -(-iterations // (self.plan.thin if stage.keep else 1))
        block = {
            "posterior": chunk.draws.unpack(slots, single=group.single) if stage.keep else {},
            "sample_stats": chunk.infos.unpack(slots, single=group.single),
        }
        return group.t - iterations, block

    def _collect(self, stage: Stage, group: Group, begin: int, block: dict[str, Any]) -> None:
        """Look at the draws and infos of a chunk that began at iteration ``begin``, and keep them."""
        alarm = self.prepared.alarm(_Infos(block["sample_stats"]))
        if alarm is not None:
            raise NonFinite(f"{alarm} It was in iterations {begin} to {group.t - 1} of stage {stage.name!r}.")
        check_draws(self.target, block["posterior"], group.chains, begin, self.plan.thin, stage.name)
        loss = block["sample_stats"].get("loss")
        check_loss(type(self.method).__name__, loss, group.chains, begin, stage.name)
        self._count(stage, block["sample_stats"])
        if stage.keep and next(iter(block["sample_stats"].values())).shape[1]:
            self.columns.add(group.index, block)

    def _after_chunk(self, stage: Stage, progress: Progress) -> None:
        if stage.keep:
            self._keep()
        self._flush()
        self._save()
        self._show(stage, progress)
        self.stopped = self.stopped or self._spent()

    def _spent(self) -> str | None:
        seconds = self.seconds if self.together is None else self.together.seconds
        return self.plan.stopping.budget_spent(seconds, self.evaluations)

    def _keep(self) -> None:
        blocks = self.columns.pop()
        if blocks is not None:
            self.kept += next(iter(blocks["sample_stats"].values())).shape[1]
            for name, block in blocks.items():
                if block:
                    self.sink.append(self.streams[name], block)

    # -- small parts --------------------------------------------------------------------------------------------------

    def _all_done(self, group: Group) -> bool:
        if type(self.prepared).done is AbstractMethod.done:
            return False
        done = self.prepared.done if group.single else jax.vmap(self.prepared.done)
        return bool(np.all(np.asarray(done(group.states))))

    def _next_look(self, stage: Stage) -> int | None:
        if not (stage.keep and self.plan.stopping.looks_at_draws and self.method.kind == "chains"):
            return None
        return next_look(self.looked)

    def _goal_reached(self) -> str | None:
        self._keep()
        arrays = self.sink.arrays("posterior")  # type: ignore[attr-defined]
        return self.plan.stopping.reached(arrays)

    def _count(self, stage: Stage, infos: dict[str, np.ndarray]) -> None:
        total = self.totals.setdefault(stage.name, {})
        for name in ("num_evaluations", "diverging"):
            if name in infos:
                total[name] = total.get(name, 0) + int(infos[name].sum())
        self.evaluations += int(infos["num_evaluations"].sum()) if "num_evaluations" in infos else 0
        self._latest = infos

    def _show(self, stage: Stage, progress: Progress, *, force: bool = False) -> None:
        if progress.silent:
            return
        infos = getattr(self, "_latest", None)
        if infos is None:
            return
        merit = self.prepared.merit(_Infos(infos))
        merit = {name: float(value) for name, value in merit.items()}
        if "divergences" in merit:
            merit["divergences"] = self.totals.get(stage.name, {}).get("diverging", 0)
        done, (since, first) = self._done(stage), self._stage_from
        rate = (done - first) / max(time.monotonic() - since, 1e-9)
        progress.show(Seen(stage.name, done, stage.num_steps, rate, merit), force=force)

    def _done(self, stage: Stage) -> int:
        return min(stage.num_steps if g.finished else g.t for g in self.groups)

    def _snapshot(self, group: Group) -> None:
        # States are donated to the next chunk, so that a checkpoint in mid-flight needs a copy on the host.
        if self.checkpoint is not None:
            group.snapshot = (group.t, jax.device_get(group.states))

    def _flush(self) -> None:
        """Let readers of a store see the draws so far, every few seconds."""
        if self.checkpoint is not None and time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.sink.flush()
            self._flushed = time.monotonic()

    def _save(self, *, force: bool = False) -> None:
        if self.checkpoint is None:
            return
        if force or time.monotonic() - self._saved >= self.checkpoint_every:
            self.checkpoint(self)
            self._saved = time.monotonic()

    def _on(self, device: Any, t: int = 0) -> tuple[AbstractMethod, Target]:
        block = self.arranged.block_at(self.stage_index, t)
        found = self._placed.get((device, block))
        if found is None:
            found = self._place((self.prepared, self.arranged.with_block(block)), device)
            if block is not None:  # groups are at most in two blocks at a time
                self._placed = dict(list(self._placed.items())[-1:])
            self._placed[device, block] = found
        return found

    def _place(self, tree: Any, device: Any) -> Any:
        # Python numbers stay what they are; on the only device nothing is committed to it.
        if self._one_device:
            put = jax.device_put
        elif isinstance(device, NamedSharding):
            put = lambda x: place(x, device)  # noqa: E731
        else:
            put = lambda x: jax.device_put(x, device)  # noqa: E731
        return jax.tree.map(lambda x: put(x) if isinstance(x, np.ndarray | np.generic | jax.Array) else x, tree)

    def _rows_in_force(self) -> Any:
        return jax.set_mesh(self._mesh) if self._mesh is not None and self.plan.mesh else nullcontext()

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Precision and mesh of everything that is compiled or called."""
        with precision(self.plan.precision), nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            yield

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="pushforward")
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _Infos:
    """Infos by attribute, as NumPy arrays of shape (chain, step)."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.__dict__.update(arrays)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
