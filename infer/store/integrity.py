"""What of a store is intact: reading its metadata, checking its chunks, repairing what others have damaged.

Kills and full disks leave nothing to repair (`layout.Disk`); this is for lost or overwritten files.
"""

import itertools
import json
import math
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .layout import FORMAT, MARKER, Disk, chunk_bytes, chunk_name, chunk_shape, dump, group_node, intact
from .lock import Lock

_CONTENT_CHECK_BYTES = 1 << 30  # up to this size checksums too are compared on opening (1 s); beyond, on reading

Nodes = dict[str, dict[str, Any]]


def read_root(path: Path) -> tuple[dict[str, Any], Nodes]:
    """Attributes of the root group, and the metadata of everything below it by relative path.

    Raises
    ------
    StoreError
        If there is no store, or one of another format, or its ``zarr.json`` is damaged; then it says what is intact.
    """
    if not path.exists():
        raise StoreError(f"{path} does not exist; give the directory of a stored run.")
    if not path.is_dir():
        raise StoreError(f"{path} is a file, not the directory of a stored run.")
    try:
        root = json.loads((path / "zarr.json").read_bytes())
        attributes, nodes = root["attributes"], root["consolidated_metadata"]["metadata"]
    except FileNotFoundError:
        if not (path / "layout.json").exists():
            raise StoreError(f"{path} is not a stored run: it has no zarr.json; give the directory of one.") from None
        raise StoreError(f"{path} has lost its zarr.json; {_salvage(path)}") from None
    except (ValueError, KeyError, TypeError) as error:
        if not (path / "layout.json").exists():
            raise StoreError(f"{path} is a zarr group that pushforward did not write; open it with xarray.") from None
        raise StoreError(f"{path}/zarr.json is damaged ({error!r}); {_salvage(path)}") from error
    if MARKER not in attributes:
        raise StoreError(f"{path} is a zarr group that pushforward did not write; open it with xarray.")
    if (found := attributes[MARKER].get("format")) != FORMAT:
        raise StoreError(
            f"{path} has store format {found}, this version of pushforward reads format {FORMAT}; use the version that "
            f"wrote it."
        )
    return attributes, nodes


def damage(path: Path, nodes: Nodes) -> tuple[dict[str, str], dict[str, int]]:
    """Chunks that are missing, truncated or altered, and for each group with draws the number of intact ones.

    Returns
    -------
    findings
        Name of a damaged array → what is wrong, in words.
    draws
        Name of a group → number of draws before the first damage.
    """
    arrays = {name: node for name, node in nodes.items() if node["node_type"] == "array"}
    contents = sum(chunk_bytes(node) * math.prod(_grid(node)) for node in arrays.values()) <= _CONTENT_CHECK_BYTES
    findings, draws = {}, {}
    for name, node in arrays.items():
        group, _, variable = name.rpartition("/")
        bad = next(_bad_chunks(path / name, node, contents), None)
        if bad is not None:
            findings[name] = f"{name}/{chunk_name(bad[0])} is {bad[1]}"
        if variable != "draw" and (axis := _draw_axis(node)) is not None:
            whole = node["shape"][axis] if bad is None else bad[0][axis] * chunk_shape(node)[axis]
            draws[group] = min(whole, draws.get(group, whole))
    return findings, draws


def check(path: Path, nodes: Nodes, expendable: dict[str, int] | None = None) -> dict[str, int]:
    """Numbers of intact draws by group; `StoreError` if anything is damaged that is not expendable.

    Parameters
    ----------
    expendable
        Name of a group → number of draws that must be intact; those behind it may be lost (a power failure can take
        what was written after the last checkpoint, which is drawn again).
    """
    findings, draws = damage(path, nodes)
    needed = expendable or {}
    serious = []
    for name, finding in findings.items():
        group = name.rpartition("/")[0]
        if _draw_axis(nodes[name]) is None or draws.get(group, 0) < needed.get(group, math.inf):
            serious.append(finding)
    if serious:
        raise StoreError(f"{path}: {_first(serious)}; {describe(nodes, draws)} are intact. {_advice(path)}")
    return draws


def describe(nodes: Nodes, draws: dict[str, int]) -> str:
    """The draws there are, in words: ``"draws 0–1,499 of 4 chains (posterior)"``."""
    words = []
    for group, n in draws.items():
        chains = next((_size(node, "chain") for name, node in nodes.items() if name.startswith(f"{group}/")), None)
        of = f" of {chains} chain{'s' * (chains != 1)}" if chains else ""
        words.append(f"draws 0–{n - 1:,}{of} ({group})" if n else f"no draws ({group})")
    return ", ".join(words) or "no draws"


def repair(path: str | Path) -> str:
    """Make a damaged store readable again: keep the draws before the first damage, drop other damaged arrays.

    The metadata is rebuilt from the arrays' own where the store's is lost; no chunk is deleted.

    Returns
    -------
    str
        What there is now, in words.

    Raises
    ------
    StoreError
        If ``path`` is no store of ours, or being written by another process.
    """
    path = Path(path)
    if not (path / "layout.json").exists():
        read_root(path)  # says what is wrong
        raise StoreError(f"{path} has no layout.json, and is opened as it is; there is nothing to repair.")
    lock = Lock(path)
    try:
        try:
            attributes, nodes = read_root(path)
        except StoreError:
            attributes, nodes = _rebuild(path)
        findings, draws = damage(path, nodes)
        kept = {}
        for name, node in nodes.items():
            axis = _draw_axis(node)
            if axis is not None and name.rpartition("/")[0] in draws:
                node["shape"][axis] = draws[name.rpartition("/")[0]]
            if name not in findings or (axis is not None and not name.endswith("/draw")):
                kept[name] = node
        Disk(path).write("zarr.json", dump(group_node(attributes, kept)), durable=True)
        dropped = sorted(findings.keys() - kept.keys())
        return f"{path}: {describe(kept, draws)} are readable" + (
            f"; dropped {', '.join(dropped)}." if dropped else "."
        )
    finally:
        lock.release()


def _rebuild(path: Path) -> tuple[dict[str, Any], Nodes]:
    """Root attributes and metadata from the files of the groups and arrays, unreadable ones left out."""
    nodes: Nodes = {}
    for file in sorted(path.glob("*/**/zarr.json")):
        try:
            node = json.loads(file.read_bytes())
            name = file.parent.relative_to(path).as_posix()
            members = node.pop("consolidated_metadata", {}).get("metadata", {})
            # A group knows the lengths of its arrays at the last flush, their own files those at the last checkpoint.
            nodes = {name: {"node_type": node["node_type"], **node}, **nodes}
            nodes |= {f"{name}/{member}": entry for member, entry in members.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    lengths: dict[str, int] = {}  # a kill between two files leaves some lengths shorter than others
    for name, node in nodes.items():
        if (axis := _draw_axis(node)) is not None:
            group = name.rpartition("/")[0]
            lengths[group] = min(node["shape"][axis], lengths.get(group, node["shape"][axis]))
    for name, node in nodes.items():
        if (axis := _draw_axis(node)) is not None:
            node["shape"][axis] = lengths[name.rpartition("/")[0]]
    try:
        layout = json.loads((path / "layout.json").read_bytes())
        attributes = dict(layout["attributes"])
    except (ValueError, KeyError, TypeError):
        attributes = {}
    streams = {
        group: [n.rpartition("/")[2] for n in nodes if n.startswith(f"{group}/") and _is_stream(nodes[n])]
        for group in lengths
    }
    attributes[MARKER] = {"format": FORMAT, "streams": {g: names for g, names in streams.items() if names}}
    return attributes, nodes


def _salvage(path: Path) -> str:
    _, nodes = _rebuild(path)
    return f"{describe(nodes, damage(path, nodes)[1])} are intact. {_advice(path)}"


def _advice(path: Path) -> str:
    return f"pushforward.infer.store.repair({str(path)!r}) keeps what is intact."


def _first(findings: list[str]) -> str:
    more = f" (and {len(findings) - 1} more arrays are damaged)" if len(findings) > 1 else ""
    return findings[0] + more


def _bad_chunks(folder: Path, node: dict[str, Any], contents: bool) -> Any:
    """(index, what is wrong) of each damaged chunk, in the order of the grid."""
    expected = chunk_bytes(node)
    for index in itertools.product(*map(range, _grid(node))):
        file = folder / chunk_name(index)
        try:
            size = file.stat().st_size
            if size != expected:
                yield index, f"truncated ({size:,} of {expected:,} bytes)" if size < expected else "overlong"
            elif contents and not intact(file.read_bytes()):
                yield index, "altered (its checksum is wrong)"
        except FileNotFoundError:
            yield index, "missing"


def _grid(node: dict[str, Any]) -> list[int]:
    return [-(-n // c) for n, c in zip(node["shape"], chunk_shape(node))]


def _draw_axis(node: dict[str, Any]) -> int | None:
    dims = node.get("dimension_names") or []
    return dims.index("draw") if "draw" in dims else None


def _size(node: dict[str, Any], dim: str) -> int | None:
    dims = node.get("dimension_names") or []
    return node["shape"][dims.index(dim)] if dim in dims else None


def _is_stream(node: dict[str, Any]) -> bool:
    return (node.get("dimension_names") or [])[:2] == ["chain", "draw"]
