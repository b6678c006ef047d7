"""`Finding` and `Diagnosis`: what a diagnosis says, in words and as data."""

import dataclasses
import html
import textwrap
from typing import Any, Literal

Level = Literal["ok", "note", "warning"]


def cut_short(stopped: str | None) -> bool:
    """Whether a run with this reason to stop ended before it was done; one whose goal is reached did not."""
    return stopped is not None and not stopped.endswith(" reached")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    level
        ``"ok"``, ``"note"`` (good to know, no reason for doubt) or ``"warning"`` (do not rely on the result as it is).
    name
        What was looked at, e.g. ``"divergences"``.
    message
        In plain words: the number, the threshold, and what to do next.
    value, threshold
        The number and the threshold, where there is one of each.
    sites
        Names of the scalars, or of the chains, that are concerned, worst first.
    fix
        What to run next, where a posterior knows its target: ``str(fix)`` is the code, ``fix.apply(posterior)`` runs
        it.
    """

    level: Level
    name: str
    message: str
    value: float | None = None
    threshold: float | None = None
    sites: tuple[str, ...] = ()
    fix: Any = None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What tells whether to believe a posterior.

    Parameters
    ----------
    kind
        Kind of the posterior.
    findings
        Warnings first, then notes, then what is in order.
    size
        Size of what was diagnosed, in words.
    """

    kind: str
    findings: tuple[Finding, ...]
    size: str = ""

    def __post_init__(self) -> None:
        rank = {"warning": 0, "note": 1, "ok": 2}
        object.__setattr__(self, "findings", tuple(sorted(self.findings, key=lambda f: rank[f.level])))

    @property
    def flagged(self) -> bool:
        """Whether anything is a reason not to rely on the result."""
        return bool(self.warnings)

    @property
    def ok(self) -> bool:
        """The opposite of `flagged`."""
        return not self.flagged

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings of level ``"warning"``."""
        return tuple(f for f in self.findings if f.level == "warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings of level ``"note"``."""
        return tuple(f for f in self.findings if f.level == "note")

    @property
    def headline(self) -> str:
        """The diagnosis in one line."""
        count = len(self.warnings)
        if not count:
            said = "no warnings"
        else:
            said = f"{count} warning{'s' if count > 1 else ''}: {', '.join(f.name for f in self.warnings)}"
        return f"Diagnosis: {said}" + (f" ({self.size})" if self.size else "")

    def __getitem__(self, name: str) -> Finding:
        """The first finding of this name."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"the diagnosis has no finding {name!r}; it has {', '.join(f.name for f in self.findings)}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data."""
        findings = [
            {field.name: getattr(f, field.name) for field in dataclasses.fields(f)}
            | {"fix": None if f.fix is None else str(f.fix)}
            for f in self.findings
        ]
        return {"kind": self.kind, "flagged": self.flagged, "findings": findings}

    @property
    def fix(self) -> Any:
        """Of the first warning that has one; None where none has."""
        return next((f.fix for f in self.warnings if f.fix is not None), None)

    def __str__(self) -> str:
        mark = {"warning": "WARNING", "note": "note", "ok": "ok"}
        lines = [self.headline]
        for f in self.findings:
            head = f"  {mark[f.level]:<8}{f.name}: "
            lines += textwrap.wrap(f.message, 110, initial_indent=head, subsequent_indent=" " * 10)
            if f.fix is not None:
                lines += [f"{'':10}>>> {line}" for line in str(f.fix).splitlines()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour = {"warning": "#c0392b", "note": "#b7791f", "ok": "#2e7d4f"}
        rows = "".join(
            f'<tr><td style="color:{colour[f.level]};font-weight:600;text-align:left;vertical-align:top">{f.level}</td>'
            f'<td style="text-align:left;vertical-align:top">{html.escape(f.name)}</td>'
            f'<td style="text-align:left">{html.escape(f.message)}{_code(f)}</td></tr>'
            for f in self.findings
        )
        return f"<div><p><b>{html.escape(self.headline)}</b></p><table>{rows}</table></div>"


def _code(finding: Finding) -> str:
    """The fix of a finding as HTML."""
    return "" if finding.fix is None else f"<pre>{html.escape(str(finding.fix))}</pre>"
