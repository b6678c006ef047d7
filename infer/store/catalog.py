"""What readers of a store can see."""

from collections.abc import Iterable, Mapping
from typing import Any

from .layout import FORMAT, MARKER, Disk, dump, group_node, to_json
from .stream import Stream


class Catalog:
    """The metadata of a store as readers have it, and how it is replaced.

    The root's zarr.json, replaced in one step, decides what readers of the whole see, and a group's does for readers of
    one group. The arrays' own files, for readers without consolidated metadata, would be most of the cost of a flush
    and can wait (`publish_arrays`).

    Attributes
    ----------
    nodes : dict
        Relative path of a group or array → its zarr.json.
    """

    def __init__(self, disk: Disk):
        self.nodes: dict[str, dict[str, Any]] = {}
        self._disk = disk
        self._listed: dict[str, int] = {}  # group → number of draws in its arrays' own zarr.json

    def put(self, group: str, members: Mapping[str, dict[str, Any]]) -> None:
        """Replace what is in a group; seen once the group is published."""
        kept = {name: node for name, node in self.nodes.items() if not name.startswith(f"{group}/")}
        self.nodes = kept | {group: group_node({})} | {f"{group}/{name}": node for name, node in members.items()}

    def visible(self, group: str) -> int:
        """Number of draws of a group that readers see; -1 if they do not see the group."""
        node = self.nodes.get(f"{group}/draw")
        return node["shape"][0] if node else -1

    def publish(self, streams: Mapping[str, Stream], groups: Iterable[str], attrs: Mapping[str, Any]) -> None:
        """Show the present lengths of ``groups``, and ``attrs``; the values must be on the disk."""
        nodes = dict(self.nodes)
        for group in groups:
            if group in streams:
                nodes |= {f"{group}/{name}": node for name, node in streams[group].nodes().items()}
            prefix = f"{group}/"
            members = {name.removeprefix(prefix): node for name, node in nodes.items() if name.startswith(prefix)}
            self._disk.write(f"{group}/zarr.json", dump(group_node(nodes[group]["attributes"], members)))
        begun = {group: stream.names for group, stream in streams.items() if f"{group}/draw" in nodes}
        waiting = tuple(f"{group}/" for group in streams.keys() - begun)  # until their first draws are flushed
        seen = {name: node for name, node in nodes.items() if not f"{name}/".startswith(waiting)}
        root = group_node({**to_json(dict(attrs)), MARKER: {"format": FORMAT, "streams": begun}}, seen)
        self._disk.write("zarr.json", dump(root), durable=True)
        self.nodes = nodes  # last: after a failure above, what readers see and what messages say is as it was

    def publish_arrays(self, streams: Mapping[str, Stream]) -> None:
        """Bring the zarr.json of every array that grows up to date."""
        for group, stream in streams.items():
            if self.visible(group) != self._listed.get(group):
                for name in [*stream.names, "draw"]:
                    self._disk.write(f"{group}/{name}/zarr.json", dump(self.nodes[f"{group}/{name}"]))
                self._listed[group] = self.visible(group)
