"""What looks at a run between chunks, on the host: progress and stopping rules."""

import sys
import time
import warnings
from typing import Any, NamedTuple, Protocol

from ..errors import InvalidArgument
from ..validate import check_count, check_positive

REFRESH_SECONDS = 0.1
LOG_SECONDS = 10.0


class Seen(NamedTuple):
    """What an observer is shown after each chunk.

    Parameters
    ----------
    stage, done, total
        Name of the stage, iterations finished by the slowest chain, and iterations asked for.
    rate
        Iterations per second of the slowest chain, since the stage began or was resumed.
    merit
        The method's figures of merit for the latest chunk, by name; counts (``divergences``) are totals of the stage.
    """

    stage: str
    done: int
    total: int
    rate: float
    merit: dict[str, float]


class Display(Protocol):
    """A renderer of progress; one that raises is dropped with one warning."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def show(self, seen: Seen) -> None:
        """Show the state of the run."""

    def close(self) -> None:
        """Leave the last state where it is."""


class Progress:
    """Shows a run on a terminal or in a notebook as a bar, elsewhere as a plain line every ten seconds."""

    def __init__(self, wanted: bool | None = None) -> None:
        self._display: Display | None = None
        self._last = 0.0
        if wanted is not False:
            try:
                self._display = _display(sys.stderr)
            except Exception as error:
                _drop(error)

    @property
    def silent(self) -> bool:
        """Whether nothing is shown, so that nothing needs to be worked out for it."""
        return self._display is None

    def say(self, text: str | None) -> None:
        """Show a line that stays, if there is one to show."""
        if text is not None:
            self._guard("say", text)

    def show(self, seen: Seen, *, force: bool = False) -> None:
        """Show ``seen``, at most ten times a second unless forced."""
        now = time.monotonic()
        if self._display is None or (not force and now - self._last < REFRESH_SECONDS):
            return
        self._last = now
        self._guard("show", seen)

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._guard("close")

    def _guard(self, what: str, *args: Any) -> None:
        if self._display is None:
            return
        try:
            getattr(self._display, what)(*args)
        except Exception as error:
            self._display = None
            _drop(error)


def _drop(error: Exception) -> None:
    warnings.warn(f"The progress display failed and is switched off: {error!r}", RuntimeWarning, stacklevel=5)


def _display(stream: Any) -> Display:
    if "ipykernel" in sys.modules:
        return _NotebookBar()
    return _TerminalBar(stream) if stream.isatty() else _Lines(stream)


def describe(seen: Seen) -> str:
    """One line: stage, iterations, rate, time left, merit."""
    left = _clock((seen.total - seen.done) / seen.rate) if seen.rate > 0 else "?"
    merit = "  ".join(f"{name} {_short(value)}" for name, value in seen.merit.items())
    rate = f"{seen.rate:.0f}" if seen.rate >= 100 else f"{seen.rate:.3g}"
    return f"{seen.stage} {seen.done}/{seen.total}  {rate}/s  {left} left  {merit}".rstrip()


def _short(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class _TerminalBar:
    """A rich progress bar, one line per stage."""

    def __init__(self, stream: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        console = Console(file=stream)
        # A narrow terminal cuts the end of the text, never the name of the stage.
        self._bar = Progress(
            TextColumn("{task.fields[stage]:>8}", table_column=Column(no_wrap=True, min_width=8)),
            BarColumn(bar_width=30 if console.width >= 110 else 8),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
            console=console,
            auto_refresh=False,
        )
        self._tasks: dict[str, Any] = {}
        self._bar.start()

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def show(self, seen: Seen) -> None:
        if seen.stage not in self._tasks:
            self._tasks[seen.stage] = self._bar.add_task("", total=seen.total, stage=seen.stage, text="")
        text = describe(seen).removeprefix(seen.stage).strip()
        self._bar.update(self._tasks[seen.stage], completed=seen.done, text=text, refresh=True)

    def close(self) -> None:
        self._bar.stop()


class _NotebookBar:
    """An HTML progress element that is updated in place; needs no widgets."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._lines: dict[str, str] = {}
        self._handle: Any = display(HTML(""), display_id=True)

    def say(self, text: str) -> None:
        from html import escape

        self._lines[text] = f"<div>{escape(text)}</div>"
        self._handle.update(self._html("".join(self._lines.values())))

    def show(self, seen: Seen) -> None:
        bar = f'<progress value="{seen.done}" max="{seen.total}"></progress>'
        self._lines[seen.stage] = f"<div>{bar} <code>{describe(seen)}</code></div>"
        self._handle.update(self._html("".join(self._lines.values())))

    def close(self) -> None:
        pass


class _Lines:
    """Plain lines for log files: one every ten seconds, and one where a stage ends or the run stops."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._last = stream, time.monotonic()
        self._ended: str | None = None
        self._unsaid: Seen | None = None

    def say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def show(self, seen: Seen) -> None:
        now, ends = time.monotonic(), seen.done == seen.total
        if ends and self._ended == seen.stage:
            return  # the last chunk and the end of the stage are both shown
        self._ended, self._unsaid = seen.stage if ends else None, seen
        if ends or now - self._last >= LOG_SECONDS:
            self._last, self._unsaid = now, None
            print(describe(seen), file=self._stream, flush=True)

    def close(self) -> None:
        if self._unsaid is not None:
            print(describe(self._unsaid), file=self._stream, flush=True)


class Stopping(NamedTuple):
    """When to stop before ``num_samples`` draws per chain; None switches a rule off.

    Parameters
    ----------
    max_seconds, max_evaluations
        Budgets of wall time and of log-density and gradient evaluations, warm-up included. The run stops after the
        chunk in which one is spent.
    target_ess, target_rhat
        Stop once every kept scalar has this bulk ESS (all chains together) and this rank-normalised split R-hat. They
        are looked at after fixed numbers of draws, so that where a run stops depends on its key alone.
    """

    max_seconds: float | None = None
    max_evaluations: int | None = None
    target_ess: float | None = None
    target_rhat: float | None = None

    def check(self) -> None:
        """Raise `InvalidArgument` where a rule is out of range."""
        for name in ("max_seconds", "target_ess"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if self.max_evaluations is not None:
            check_count("max_evaluations", self.max_evaluations)
        if self.target_rhat is not None:
            check_positive("target_rhat", self.target_rhat)
            if self.target_rhat <= 1:
                raise InvalidArgument(f"target_rhat must be > 1, got {self.target_rhat!r}; a usual goal is 1.01.")

    @property
    def looks_at_draws(self) -> bool:
        """Whether a rule needs the draws so far."""
        return self.target_ess is not None or self.target_rhat is not None

    def budget_spent(self, seconds: float, evaluations: int) -> str | None:
        """The reason to stop now, if any."""
        if self.max_seconds is not None and seconds >= self.max_seconds:
            return self.time_is_up
        if self.max_evaluations is not None and evaluations >= self.max_evaluations:
            return f"the budget of {self.max_evaluations} evaluations is spent"
        return None

    @property
    def time_is_up(self) -> str:
        """The reason to stop once ``max_seconds`` are spent."""
        return f"the budget of {self.max_seconds:g} seconds is spent"

    def reached(self, draws: Any) -> str | None:
        """The reason to stop, given draws by site of shape (chain, draw, …), if every goal is reached."""
        from ..diagnostics.chains import worst_ess, worst_rhat

        if self.target_ess is not None and worst_ess(draws) < self.target_ess:
            return None
        if self.target_rhat is not None and worst_rhat(draws) > self.target_rhat:
            return None
        goals = {"bulk ESS": self.target_ess, "R-hat": self.target_rhat}
        return " and ".join(f"{k} {v:g}" for k, v in goals.items() if v is not None) + " reached"


def next_look(num_draws: int) -> int:
    """Number of draws per chain after which the draws are next looked at: every hundred, later every fifth more."""
    return num_draws + max(100, 100 * (num_draws // 500))
