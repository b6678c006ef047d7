"""Execute the ``# %%`` scripts of this folder and write them as notebooks with their output.

``python examples/build.py [SCRIPT]...`` (default: all of them).
"""

import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

HERE = Path(__file__).resolve().parent


def cells(script: str) -> list:
    """Cells of a ``# %%`` script: Markdown where the line says so, else code."""
    found = []
    for chunk in script.split("# %%")[1:]:
        head, _, body = chunk.partition("\n")
        if "[markdown]" in head:
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            found.append(nbformat.v4.new_markdown_cell("\n".join(lines)))
        else:
            found.append(nbformat.v4.new_code_cell(body.strip()))
    for number, cell in enumerate(found):
        cell["id"] = f"cell-{number}"
    return found


def build(path: Path) -> Path:
    """The executed notebook of a script, beside it; progress bars and what has addresses or times are left out."""
    setup = nbformat.v4.new_code_cell("%config InlineBackend.figure_formats = ['png']\n%config InlineBackend.rc = {}")
    notebook = nbformat.v4.new_notebook(cells=[setup, *cells(path.read_text(encoding="utf-8"))])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    with tempfile.TemporaryDirectory() as folder:  # what the script writes is not kept
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    notebook.cells.pop(0)
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _passing(out)]
    written = path.with_suffix(".ipynb")
    nbformat.write(notebook, written)
    return written


def _passing(output: dict) -> bool:
    """Whether an output is a progress bar."""
    return output.get("name") == "stderr" or "<progress" in str(output.get("data", {}).get("text/html", ""))


if __name__ == "__main__":
    scripts = [Path(name).resolve() for name in sys.argv[1:]] or sorted(HERE.glob("*.py"))
    for script in scripts:
        if script.name != Path(__file__).name:
            print(build(script))
