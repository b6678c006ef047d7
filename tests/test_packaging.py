"""What holds the package together: its wheel, its imports, its messages, and the paths that its checks are told."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"pushforward": "pushforward", "infer": "pushforward.infer"}
FOLDERS |= {name: f"pushforward.{name}" for name in ("models", "samplers")}
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Imports point down this list (docs/architecture.md): a module imports from its own layer and from those above it here.
LAYERS = [
    "infer.errors infer.validate",
    "infer.linalg infer.geometry infer.kernels infer.distributed",
    "infer.target infer.method infer.approximation infer.store",
    "infer.diagnostics infer.report infer.posterior infer.evaluate infer.run infer.study",
    "infer.train",
    "infer.variational samplers models",
]
RANK = {f"pushforward.{name}": rank for rank, names in enumerate(LAYERS) for name in names.split()}
RANK["pushforward"] = len(LAYERS)
# Beginnings of sentences that have no value to show.
BARE: tuple[str, ...] = ()


def modules() -> dict[str, Path]:
    """All modules of the package by import name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def in_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# -- the wheel --------------------------------------------------------------------------------------------------------


def test_packages_are_those_of_the_tree():
    listed = CONFIG["tool"]["setuptools"]["packages"]
    tree = [name for name, path in modules().items() if path.name == "__init__.py"]
    assert sorted(listed) == sorted(tree)
    unlisted = {path.parent for path in modules().values()} - {
        path.parent for path in modules().values() if path.name == "__init__.py"
    }
    assert not unlisted, f"folders with modules but without __init__.py: {unlisted}"


def test_wheel_has_all_files(tmp_path):
    """All tracked files of the package folders, data and stubs included, are in the wheel."""
    build_meta = pytest.importorskip("setuptools.build_meta")

    here = os.getcwd()
    copy = tmp_path / "copy"
    for path in tracked():
        if path.parts[len(ROOT.parts)] in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    try:
        os.chdir(copy)
        wheel = build_meta.build_wheel(str(tmp_path))
    finally:
        os.chdir(here)
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        names = set(archive.namelist())
    for folder, package in FOLDERS.items():
        for path in tracked():
            if path.is_relative_to(ROOT / folder):
                expected = f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
                assert expected in names
    assert {"pushforward/py.typed", "pushforward/__init__.pyi", "pushforward/models/data/eight_schools.json"} <= names
    assert not {name.split("/")[0] for name in names} & {"infer", "models", "samplers", "tests"}


# -- imports ----------------------------------------------------------------------------------------------------------


def test_import_is_lazy():
    heavy = "{'jax', 'numpy', 'blackjax', 'numpyro', 'arviz', 'arviz_base', 'xarray', 'zarr', 'matplotlib', 'pandas'}"
    assert in_process(f"import sys, pushforward; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_no_backend_is_started():
    """So that `jax.distributed.initialize` works after the import, and after the methods and targets are looked up."""
    code = (
        "import pushforward as pf\n"
        "for name in pf.__all__: getattr(pf, name)\n"
        "pf.NUTS(), pf.methods()\n"
        "from jax._src import xla_bridge\n"
        "print(xla_bridge.backends_are_initialized())\n"
    )
    assert in_process(code) == "False"


def test_public_names_resolve():
    import pushforward as pf

    stub = (ROOT / "pushforward" / "__init__.pyi").read_text(encoding="utf-8")
    names = {
        alias.asname for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert names == set(pf.__all__)
    for name in names:
        assert getattr(pf, name) is not None


def module_imports(name: str, path: Path) -> list[str]:
    """What a module imports when it is imported: not in functions, nor for type checkers only."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []

    def visit(body):
        for node in body:
            if isinstance(node, ast.Import):
                found.extend(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                origin = ".".join([*base, *([node.module] if node.module else [])])
                found.extend(f"{origin}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "orelse", "handlers", "finalbody"):
                    visit(getattr(node, field, []))

    visit(parse(path).body)
    return found


def rank(name: str) -> int | None:
    """Layer of a module of this package; None for a name that no layer has, such as a package's own folder."""
    while name:
        if name in RANK:
            return RANK[name]
        name = name.rpartition(".")[0]
    return None


def test_imports_point_one_way():
    wrong = []
    for name, path in modules().items():
        if name in ("pushforward.infer", "pushforward.infer.validate"):
            continue
        for imported in module_imports(name, path):
            if imported.startswith("pushforward.") and rank(imported) > rank(name):
                wrong.append(f"{name} imports {imported}")
    assert not wrong


def test_heavy_libraries_are_imported_in_functions():
    """BlackJAX starts a backend when imported; the others would make every start slow."""
    late = {"blackjax", "numpyro", "xarray", "zarr", "matplotlib", "pandas", "flowjax", "diffrax", "optax"}
    late |= {"arviz", "arviz_base", "arviz_stats", "arviz_plots"}
    models = {
        f"pushforward.models.{name}"
        for name in ("classics", "posteriordb.dynamics", "posteriordb.latent", "posteriordb.regression")
    }
    wrong = [
        f"{name} imports {imported}"
        for name, path in modules().items()
        if name not in models
        for imported in module_imports(name, path)
        if imported.split(".")[0] in late
    ]
    assert not wrong


# -- messages ---------------------------------------------------------------------------------------------------------


def test_every_error_shows_what_was_found():
    """Each message of the package's errors interpolates a value, or is built by a function that does."""
    ours = {"InvalidArgument", "UnsupportedTarget", "NonFinite", "StoreError", "NotAvailable"}
    wrong = []
    for name, path in modules().items():
        for node in ast.walk(parse(path)):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in ours:
                literal = all(isinstance(arg, ast.Constant) for arg in call.args)
                if literal and not any(str(arg.value).startswith(BARE) for arg in call.args):
                    wrong.append(f"{name}:{node.lineno} {ast.unparse(call)[:100]}")
    assert not wrong


# -- the checks themselves --------------------------------------------------------------------------------------------


def test_paths_in_the_configuration_exist():
    tool = CONFIG["tool"]
    patterns = [*tool["pytest"]["ini_options"]["testpaths"], *tool["ruff"]["lint"]["per-file-ignores"]]
    patterns += tool["setuptools"]["package-dir"].values()
    for package, globs in tool["setuptools"]["package-data"].items():
        folder = next(path.parent for name, path in modules().items() if name == package)
        patterns += [f"{folder.relative_to(ROOT).as_posix()}/{glob}" for glob in globs]
    for pattern in patterns:
        matches = [ROOT / pattern] if not re.search(r"[*?]", pattern) else list(ROOT.glob(pattern))
        assert any(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in matches), pattern


def test_ci_runs_the_readme_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "python3 -m pip install uv && python3 -m uv run pytest" in readme
    assert re.search(r'"\$\{uv\[@\]\}" run .*pytest', script)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_versions_agree():
    import pushforward as pf

    assert CONFIG["project"]["version"] == pf.__version__
    assert f"version: {pf.__version__}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^## \[(Unreleased|0\.1\.0)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_pins_are_inside_the_ranges():
    from packaging.requirements import Requirement

    pins = {r.name.lower(): str(r.specifier) for r in map(Requirement, CONFIG["tool"]["uv"]["constraint-dependencies"])}
    for requirement in map(Requirement, CONFIG["project"]["dependencies"]):
        pin = pins[requirement.name.lower()]
        assert requirement.specifier.contains(pin.removeprefix("==")), f"{requirement} and {pin}"


def test_no_file_names_a_machine():
    """No absolute path of a developer's machine, no package index, in what is shared."""
    machine = re.compile(r"(?<![\w.~-])/(work|root|home)/|pypi\.org|files\.pythonhosted|index-url|localhost:\d{4}")
    wrong = []
    for path in tracked():
        if path == Path(__file__).resolve() or path.suffix in (".png", ".npz", ".parquet"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if machine.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not wrong
