"""The tables of the documentation, made from the classes; MkDocs runs this as a hook.

``python docs/tables.py`` prints the table of methods, with ``--write`` it goes into the README.
"""

import dataclasses
import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- methods: made by docs/tables.py -->", "<!-- end -->"


def methods_table() -> str:
    """All public methods as a Markdown table."""
    import pushforward as pf

    lines = ["| method | gives | needs | exact | source |", "|---|---|---|---|---|"]
    for about in pf.methods():
        gives = [{"chains": "chains", "particles": "particles", "approximation": "independent draws"}[about.kind]]
        gives += [name for name in ("density", "evidence") if getattr(about, name)]
        needs = [*(["gradients"] if about.gradients else []), *(need.replace("_", " ") for need in about.needs)]
        exact = "yes" if about.exact else "no"
        lines.append(
            f"| `{about.method}` | {', '.join(gives)} | {', '.join(needs) or '–'} | {exact} | {about.source} |"
        )
    return "\n".join(lines)


def method_pages() -> str:
    """One section per method: the first sentence of its class, its hyper-parameters and their defaults."""
    import pushforward as pf
    from pushforward.cli.settings import hyperparameters

    parts = []
    for about in pf.methods():
        cls = getattr(pf, about.method)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        parts.append(f"### {about.method}\n\n{_first_paragraph(cls)}\n")
        settings = [f"`{name}`{_default(fields[name])}" for name in hyperparameters(cls)]
        parts.append(f"Hyper-parameters: {', '.join(settings)}.\n" if settings else "")
        if cls.warning:
            parts.append(f"!!! warning\n    {cls.warning}\n")
        parts.append(f"[All of its documentation](reference.md#pushforward.{about.method})\n")
    return "\n".join(parts)


def reference() -> str:
    """Directives that let mkdocstrings document every public name."""
    import pushforward as pf

    skip = ("infer", "models", "samplers")
    names = [name for name in sorted(pf.__all__, key=str.lower) if name not in skip]
    return "\n\n".join(f'<a id="pushforward.{name}"></a>\n\n::: {_home(getattr(pf, name))}' for name in names)


def command_line() -> str:
    """The help texts of all commands."""
    from click.testing import CliRunner

    from pushforward.cli import cli

    parts = []
    for name in cli.commands:
        text = CliRunner().invoke(cli, [name, "--help"], prog_name="pushforward", terminal_width=100).output
        parts.append(f"## {name}\n\n```text\n{text.strip()}\n```")
    return "\n\n".join(parts)


def on_startup(**_: Any) -> None:
    """MkDocs' hook: show mkdocstrings the package as it is imported, with the folders where setuptools puts them."""
    package = ROOT / "build" / "package" / "pushforward"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for path in [*(ROOT / "pushforward").iterdir(), *(ROOT / name for name in ("infer", "models", "samplers"))]:
        (package / path.name).symlink_to(path)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs' hook: put what is generated in place of its marker."""
    made = {
        "methods": methods_table,
        "method_pages": method_pages,
        "reference": reference,
        "command_line": command_line,
    }
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: made[match[1]](), markdown)


def with_table(readme: str) -> str:
    """The README's text with the table of methods as it is now."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{methods_table()}\n{END}{tail}"


def _first_paragraph(cls: type) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def _default(field: Any) -> str:
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def _home(thing: Any) -> str:
    return thing.__name__ if inspect.ismodule(thing) else f"{thing.__module__}.{thing.__qualname__}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(methods_table())
