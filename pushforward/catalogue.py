"""`methods`: what there is to choose from, as a table made from the classes themselves."""

import html
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .infer.method import Needs

HEADER = ("method", "kind", "needs", "gradients", "draws", "density", "evidence", "exact", "source")


class Methods:
    """Records of methods; prints as a table, iterates over `Needs`, and is indexed by position or by name."""

    def __init__(self, records: "tuple[Needs, ...]") -> None:
        self._records = records

    def __iter__(self) -> "Iterator[Needs]":
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, name: object) -> bool:
        return any(record.method == name for record in self._records)

    def __getitem__(self, at: "int | str") -> "Needs":
        if isinstance(at, str):
            for record in self._records:
                if record.method == at:
                    return record
            raise KeyError(f"no method is called {at!r}; there are {', '.join(r.method for r in self._records)}")
        return self._records[at]

    def __repr__(self) -> str:
        rows = [HEADER, *map(_cells, self._records)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        lines.insert(1, "  ".join("─" * width for width in widths))
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HEADER)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(record)) + "</tr>"
            for record in self._records
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def methods() -> Methods:
    """Every public method: its kind, what it needs of a target, and what it gives.

    The columns: ``kind`` of the posterior (chains, particles, approximation); ``needs``, structure that the target must
    have; whether it uses ``gradients``; what its ``draws`` are; whether it gives a ``density`` and an ``evidence``;
    whether it is ``exact`` in the limit of many draws; its ``source``.
    """
    import pushforward

    from .infer.method import AbstractMethod

    found = (getattr(pushforward, name) for name in sorted(pushforward.__all__))
    classes = (c for c in found if inspect.isclass(c) and issubclass(c, AbstractMethod) and not inspect.isabstract(c))
    return Methods(tuple(sorted((c.about() for c in classes if c.public), key=lambda r: (_order(r.kind), r.method))))


def _order(kind: str) -> int:
    return ("chains", "particles", "approximation").index(kind)


def _cells(record: "Needs") -> tuple[str, ...]:
    return tuple(_cell(getattr(record, name)) for name in HEADER)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) or "–") if isinstance(value, tuple) else value
