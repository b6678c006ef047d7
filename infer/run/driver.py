"""`Run`: drives a method on a target stage by stage, chunk by chunk, and can be stopped, resumed and extended.

Chains are split into groups. A group is one call of a compiled program at a time; groups run side by side on threads
(the compiled code holds no lock), on one device or on several, and the one that is furthest behind goes next. No group
waits for another, but for a stage to end.

What is done before a stage is in `enter`, the calls of the compiled program in `calls`, where groups and arrays lie in
`layout`. Where a run is in several processes, each runs its groups up to a common iteration, at which all tell all:
`rounds` and `together`.
"""

import copy
import dataclasses
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from ..errors import InvalidArgument, NonFinite
from ..method import AbstractMethod, Budget, Stage
from ..target import Target
from .calls import dispatch, take, unpack
from .columns import Columns, MemorySink, Sink
from .enter import enter
from .finite import check_draws, check_loss
from .group import FIRST_CHUNK, Group, alone
from .layout import Layout, Placed
from .observe import Progress, Seen, Stopping, next_look
from .plan import Plan
from .precision import precision
from .rounds import run_rounds
from .signals import Signals
from .start import starting_points
from .together import Together

FLUSH_SECONDS = 2.0
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
        self.signals = Signals()
        self._stages: tuple[Stage, ...] | None = None
        size = plan.chains_per_program
        starts = range(0, plan.num_chains, size)
        self.groups = [Group(i, range(a, min(a + size, plan.num_chains)), None) for i, a in enumerate(starts)]
        self.layout = Layout(plan, method, self.groups, list(jax.devices() if devices is None else devices))
        self.arranged = self.layout.arrange(method.arrange(target))  # what the method's functions see
        self.placed: Placed | None = None  # of the stage that runs
        self.slots = 0
        for group in self.groups:
            group.length = chunk_length or FIRST_CHUNK
        self.columns = Columns(len(self.groups))

    @property
    def own(self) -> list[Group]:
        """The groups that this process runs."""
        return self.layout.own(self.groups)

    @property
    def together(self) -> Together | None:
        """The process among those of the run; None where it is the only one."""
        return self.layout.together

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
        with precision(self.plan.precision), self.layout.data_in_force():
            if start is None and not self.method.needs_start:
                points = [np.zeros(self.target.dim)] * self.plan.num_chains
            else:
                points = starting_points(self.target, self.plan.root(), start, self.plan.num_chains)
            for group in self.groups:
                mine = [points[chain] for chain in group.chains]
                group.states = mine[0] if group.single else jax.tree.map(lambda *x: np.stack(x), *mine)
            if self.together is not None:
                self.together.check_same("where chains begin", [group.states for group in self.groups])

    def go(self) -> None:
        """Run what is left of the stages; on Ctrl-C, keep what there is and say so in ``stopped``."""
        self._begun = self._saved = self._flushed = time.monotonic()
        progress, self.signals = Progress(self.wants_progress), Signals()
        try:
            with (
                self.layout.scope(),
                self.signals.caught(terminate=self.checkpoint is not None),
                self.layout.threads() as pool,
            ):
                while not self.complete and self.stopped is None:
                    self._run_stage(self.stages[self.stage_index], pool, progress)
                    if self.stopped is None:
                        self.stage_index, self.stage_begun = self.stage_index + 1, False
        finally:
            progress.close()
        self.save(force=True)
        self.seconds_before, self._begun = self.seconds, time.monotonic()
        if self.signals.terminated or self.stopped == "terminated":
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
        self.plan = dataclasses.replace(self.plan, num_samples=self.asked + num_samples, stopping=Stopping())
        self._stages, self.stopped = None, None
        if self.complete:  # else it is in an earlier stage, or, killed before its first checkpoint, in none
            self.stage_index, self.stage_begun = len(self.stages) - 1, True
        for group in self.groups:
            group.finished = False

    def allow(self, seconds: float) -> None:
        """Let `go` take so many seconds from now, also where the time given before is up."""
        stopping = self.plan.stopping
        if stopping.max_seconds is not None and self.stopped == stopping.time_is_up:
            self.stopped = None
        self.plan = dataclasses.replace(
            self.plan, stopping=stopping._replace(max_seconds=self.seconds_before + seconds)
        )

    def fork(self) -> "Run":
        """A copy that can go on in memory while this run, and the posterior made of it, stay what they are."""
        twin = copy.copy(self)
        twin.groups = [copy.copy(group) for group in self.groups]
        for group in twin.groups:
            group.states = jax.device_get(group.states)  # those on the device are given away to the next chunk
        twin.columns, twin.sink = self.columns.copy(), self.sink.copy()  # type: ignore[attr-defined]
        twin.totals, twin.moved, twin.placed = copy.deepcopy(self.totals), dict(self.moved), None
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
        enter(self, stage)
        if self.stage_index == 0:
            progress.say(self.prepared.outlook())
        self._stage_from = (time.monotonic(), self.done(stage))
        if self.together is not None:
            run_rounds(self, stage, pool, progress)
        else:
            self._run_freely(stage, pool, progress)
        if stage.keep and self.stopped is None:
            self._keep()
        self._show(stage, progress, force=True)

    def _run_freely(self, stage: Stage, pool: ThreadPoolExecutor, progress: Progress) -> None:
        """Groups go on as their devices allow."""
        running: dict[Future, tuple[Group, float]] = {}
        look = self.next_look(stage)
        while True:
            try:
                self.stopped = self.signals.reason or self.stopped
                if self.stopped is None:
                    dispatch(self, stage, pool, running, self._horizon(look))
                if not running:
                    if self.stopped is None and look is not None and any(not g.finished for g in self.groups):
                        self.stopped, self.looked = self._goal_reached(), look
                        look = self.next_look(stage)
                        continue
                    break
                ready, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                done = [(*running.pop(future), future.result()) for future in ready]
                for group, begun, chunk in done:
                    take(self, stage, group, chunk, time.monotonic() - begun)
                if self._goes_on():  # the next chunks run while the host looks at these
                    dispatch(self, stage, pool, running, self._horizon(look))
                for group, _, chunk in done:
                    self.collect(stage, group, *unpack(self, stage, group, chunk))
                if ready:
                    self._after_chunk(stage, progress)
            except KeyboardInterrupt:
                self.stopped = "interrupted"

    def _horizon(self, look: int | None) -> int | None:
        """The iteration at which all groups wait for each other."""
        return None if look is None else look * self.plan.thin

    def _goes_on(self) -> bool:
        spent = self._spent()
        return not (self.signals.reason or self.stopped or spent)

    def collect(self, stage: Stage, group: Group, begin: int, block: dict[str, Any]) -> None:
        """Look at the draws and infos of a chunk that began at iteration ``begin``, and keep them."""
        alarm = self.prepared.alarm(_Infos(block["sample_stats"]))
        if alarm is not None:
            raise NonFinite(f"{alarm} It was in iterations {begin} to {group.t - 1} of stage {stage.name!r}.")
        check_draws(self.target, block["posterior"], group.chains, begin, self.plan.thin, stage.name)
        loss = block["sample_stats"].get("loss")
        where = lambda chain: self.prepared.broken(alone(group, chain), self.target)  # noqa: E731
        check_loss(type(self.method).__name__, loss, group.chains, begin, stage.name, where)
        self._count(stage, block["sample_stats"])
        if stage.keep and next(iter(block["sample_stats"].values())).shape[1]:
            self.columns.add(group.index, block)

    def _after_chunk(self, stage: Stage, progress: Progress) -> None:
        if stage.keep:
            self._keep()
        self._flush()
        self.save()
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

    def next_look(self, stage: Stage) -> int | None:
        """The number of draws at which a goal is looked at next; None without a goal."""
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
        done, (since, first) = self.done(stage), self._stage_from
        rate = (done - first) / max(time.monotonic() - since, 1e-9)
        progress.show(Seen(stage.name, done, stage.num_steps, rate, merit), force=force)

    def done(self, stage: Stage) -> int:
        """Iterations that all groups have done."""
        return min(stage.num_steps if g.finished else g.t for g in self.groups)

    def snapshot(self, group: Group) -> None:
        """Copy a group's states to the host for a checkpoint: they are donated to the next chunk."""
        if self.checkpoint is not None:
            group.snapshot = (group.t, jax.device_get(group.states))

    def _flush(self) -> None:
        """Let readers of a store see the draws so far, every few seconds."""
        if self.checkpoint is not None and time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.sink.flush()
            self._flushed = time.monotonic()

    def save(self, *, force: bool = False) -> None:
        """Write a checkpoint if it is time, or at once."""
        if self.checkpoint is None:
            return
        if force or time.monotonic() - self._saved >= self.checkpoint_every:
            self.checkpoint(self)
            self._saved = time.monotonic()


class _Infos:
    """Infos by attribute, as NumPy arrays of shape (chain, step)."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.__dict__.update(arrays)
