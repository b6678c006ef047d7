"""`RunStore`: the directory that a run writes and that can be read while it does."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidArgument, StoreError
from . import checkpoint as checkpoints
from .catalog import Catalog
from .guards import check_free, check_name, clear
from .integrity import check, describe, read_root
from .labels import Labels
from .layout import MARKER, Disk, dump, from_json, storable, to_json
from .lock import Lock
from .read import latest_checkpoint
from .static import write_static
from .stream import SAMPLE_DIMS, Stream


class RunStore:
    """A run on disk: a zarr v3 directory with draws that grow, checkpoints, and whole groups written at the end.

    Any process may read it at any time, ``xarray.open_datatree(path, engine="zarr")``, and sees the draws up to the
    last `flush`, all variables of a group equally long: values are written first, and then one file that says how many
    there are. A kill at any moment leaves that file whole. Make one with `RunStore.create` or `RunStore.open`; it is a
    context manager that closes itself.

    Attributes
    ----------
    path : Path
        The directory.
    attrs : dict
        What was given as ``attrs`` (the record of the run).
    kept : set
        Names that `keep` has written since the store was opened.
    """

    def __init__(self, path: Path, lock: Lock, attrs: dict[str, Any], labels: Labels):
        self.path, self.attrs = path, attrs
        self._lock, self._disk, self._labels = lock, Disk(path), labels
        self._catalog = Catalog(self._disk)
        self._streams: dict[str, Stream] = {}
        self.kept: set[str] = set()
        self._failure = ""
        self._closed = False

    # -- opening ------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        *,
        coords: Mapping[str, Any] | None = None,
        dims: Mapping[str, Iterable[str]] | None = None,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> "RunStore":
        """Make a new, empty store.

        Parameters
        ----------
        path
            A directory; made with its parents if there is none.
        coords
            Name of a dimension → its labels: numbers, strings or dates.
        dims
            Name of a variable → names of its dimensions behind (chain, draw). A variable without an entry gets
            ``name_dim_0``, ``name_dim_1``, …, as in ArviZ.
        attrs
            Anything that JSON can hold, NaN and infinities included; read back as `attrs`.
        overwrite
            Whether a store at ``path`` may be deleted. Nothing but a store ever is.

        Raises
        ------
        StoreError
            If ``path`` exists and is not empty, or cannot be written.
        """
        path = Path(path)
        labels = Labels(dims or {}, coords or {})
        attributes = to_json(dict(attrs or {}))
        check_free(path, overwrite)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = Lock(path)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{path} cannot be written ({error.strerror}); choose another path.") from error
        store = cls(path, lock, from_json(attributes), labels)
        try:
            with store._writing():
                clear(path)
                store._disk.write("layout.json", dump({"attributes": attributes, **labels.to_json()}))
                store._publish([])
        except BaseException:
            lock.release()
            raise
        return store

    @classmethod
    def open(cls, path: str | os.PathLike) -> "RunStore":
        """Open a store to go on writing, normally after a kill: `load_checkpoint`, then `truncate`, then `append`.

        Raises
        ------
        StoreError
            If ``path`` is no store, of another format, being written by another process, or damaged; the message says
            which draws are intact. Draws behind the last checkpoint may be damaged (a power failure can do that): they
            are dropped, since they will be drawn again.
        """
        path = Path(path)
        read_root(path)  # before the lock, which would put a file into any directory
        lock = Lock(path)
        try:
            attributes, nodes = read_root(path)
            draws = check(path, nodes, _checkpointed_draws(path))
            streams = attributes.pop(MARKER)["streams"]
            store = cls(path, lock, from_json(attributes), Labels.read(path))
            store._catalog.nodes = nodes
            for group, names in streams.items():
                own = {name: nodes[f"{group}/{name}"] for name in names}
                store._streams[group] = Stream(store._disk, group, own, draws[group])
            with store._writing():
                if shorter := [g for g, stream in store._streams.items() if stream.count < store._visible(g)]:
                    store._publish(shorter)
        except BaseException:
            lock.release()
            raise
        return store

    # -- writing ------------------------------------------------------------------------------------------------------

    def expect(self, num_draws: int) -> None:
        """Nothing to do: files grow."""

    def append(self, group: str, arrays: Mapping[str, Any]) -> None:
        """Append n draws for all chains to each variable of ``group``; they are seen by readers after `flush`.

        Memory does not grow with the number of draws: full blocks of up to 1,000 go to the disk at once.

        Parameters
        ----------
        group
            ``"posterior"``, ``"sample_stats"``, …; made by its first draws, whose variables all later ones must have.
        arrays
            Name → array of shape (chain, n, …).

        Raises
        ------
        InvalidArgument
            If variables, shapes or dtypes differ from those of the first draws.
        StoreError
            If the disk is full: the draws of the last `flush` remain readable.
        """
        values = {name: _as_draws(group, name, array) for name, array in arrays.items()}
        if not values:
            raise InvalidArgument(f"append to {group!r} got no variables; give at least one.")
        if any(stream.count < self._visible(name) for name, stream in self._streams.items()):
            self.flush()  # what was truncated must be out of sight before it is written over
        with self._writing():
            stream = self._streams.get(group)
            if stream is None:
                stream = self._start(group, values)
            stream.append(values)

    def flush(self) -> None:
        """Make all draws visible to readers."""
        with self._writing():
            grown = [group for group, stream in self._streams.items() if self._visible(group) != stream.count]
            for group in grown:
                self._streams[group].flush()
            if grown:
                self._publish(grown)

    def checkpoint(self, meta: Any, arrays: Mapping[str, Any]) -> None:
        """Flush, then write a checkpoint that survives even a power failure; the one before it is kept.

        Parameters
        ----------
        meta
            Anything that JSON can hold.
        arrays
            Name → array (any shape and dtype but object; typed PRNG keys as their key data).
        """
        self.flush()
        with self._writing():
            self._catalog.publish_arrays(self._streams)
            self._disk.sync()
            draws = {group: stream.count for group, stream in self._streams.items()}
            checkpoints.write(self.path / "checkpoint", {"draws": draws, "meta": meta}, dict(arrays))

    def keep(self, name: str, meta: Any, arrays: Mapping[str, Any]) -> None:
        """Write what checkpoints go back to but do not repeat, as durable as they are; `read_kept` reads it.

        Parameters
        ----------
        name
            A word; what was kept under it before is replaced.
        """
        check_name("kept", name)
        with self._writing():
            (self.path / "checkpoint").mkdir(exist_ok=True)
            checkpoints.save(self.path / "checkpoint" / f"{name}.npz", meta, dict(arrays))
        self.kept.add(name)

    def truncate(self, group: str, n: int) -> None:
        """Keep the first ``n`` draws of ``group``: drop what was written after the last checkpoint.

        Readers see it at the next `append` or `flush`, for all groups at once.
        """
        if group not in self._streams:
            if n:
                raise InvalidArgument(f"truncate got the group {group!r}; there are {sorted(self._streams)}.")
            return  # the kill came before the first draws were visible
        if not 0 <= n <= self.num_draws(group):
            raise InvalidArgument(
                f"truncate to {n:,} draws of {group!r} is not possible, it has {self.num_draws(group):,}."
            )
        if n < self.num_draws(group):
            with self._writing():
                self._streams[group].flush()
                self._streams[group].seek(n)

    def write_group(
        self,
        group: str,
        arrays: Mapping[str, Any],
        dims: Mapping[str, Iterable[str]] | None = None,
        *,
        sample_dims: tuple[str, ...] = (),
    ) -> None:
        """Write a whole group at once, visible at once: observed data, log likelihoods that fit in memory, ….

        Parameters
        ----------
        arrays
            Name → array whose leading dimensions are ``sample_dims``.
        dims
            Name → names of the dimensions behind ``sample_dims``; by default those given to `create`.
        sample_dims
            ``("chain", "draw")`` for what is kept per draw, ``()`` for data.
        """
        check_name("group", group)
        if group in self._streams:
            raise InvalidArgument(f"write_group got {group!r}, which is appended to; choose another name.")
        nodes = {}
        with self._writing():
            sizes: dict[str, int] = {}
            for name, values in arrays.items():
                check_name("variable", name)
                array, decoding = storable(name, values)
                names = self._labels.dims(name, array.shape, sample_dims, dims or {})
                sizes |= zip(names, array.shape)
                nodes[name] = write_static(self._disk, f"{group}/{name}", array, names, decoding)
            nodes |= self._labels.write(self._disk, group, sizes)
            self._catalog.put(group, nodes)
            self._publish([group])

    def update_attrs(self, attrs: Mapping[str, Any]) -> None:
        """Add to `attrs` or replace entries: what is known at the end only, such as the outcome."""
        attributes = to_json(dict(attrs))
        with self._writing():
            self.attrs |= from_json(attributes)
            self._publish([])

    def close(self) -> None:
        """Flush and let other processes write. Closing twice, or after a failure, is fine."""
        if self._closed:
            return
        try:
            if not self._failure:
                self.flush()
                with self._writing():
                    self._catalog.publish_arrays(self._streams)
        finally:
            self._closed = True
            self._lock.release()

    def __enter__(self) -> "RunStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that are appended to."""
        return tuple(self._streams)

    def num_draws(self, group: str) -> int:
        """Number of draws appended to ``group`` per chain, visible or not; 0 if there is no such group yet."""
        return self._streams[group].count if group in self._streams else 0

    def load_checkpoint(self) -> tuple[Any, dict[str, np.ndarray]]:
        """Meta and arrays of the last intact checkpoint.

        Raises
        ------
        StoreError
            If there is none, saying which draws are readable. If only the last one is damaged, a ``UserWarning`` says
            so and the one before it is returned.
        """
        try:
            found = latest_checkpoint(self.path)
            why = "no checkpoint"
        except ValueError as error:
            found, why = None, f"no intact checkpoint: {error}"
        if found is None:
            raise StoreError(f"{self.path} has {why}; {self._readable()} are readable, but the run cannot go on.")
        return found

    def datatree(self) -> Any:
        """The store as a lazily opened ``xarray.DataTree``: nothing but coordinates is loaded, or kept once read."""
        from .tree import lazy_tree

        if not self._closed and not self._failure:
            self.flush()
        return lazy_tree(self.path)

    def arrays(self, group: str) -> dict[str, np.ndarray]:
        """All draws of ``group`` so far: variable → array (chain, draw, …), read into memory."""
        dataset = self.datatree()[group].to_dataset()
        return {str(name): variable.values for name, variable in dataset.data_vars.items()}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _start(self, group: str, values: dict[str, np.ndarray]) -> Stream:
        """Make a group from its first draws."""
        check_name("group", group)
        nodes, sizes = {}, {}
        for name, array in values.items():
            check_name("variable", name)
            names = self._labels.dims(name, array.shape, SAMPLE_DIMS, {})
            sizes |= zip(names, array.shape)
            nodes[name] = Stream.node(array, names)
        del sizes["draw"]
        coords = self._labels.write(self._disk, group, sizes)
        self._catalog.put(group, coords)
        self._streams[group] = Stream(self._disk, group, nodes)
        return self._streams[group]

    def _publish(self, groups: Iterable[str]) -> None:
        self._catalog.publish(self._streams, groups, self.attrs)

    def _visible(self, group: str) -> int:
        return self._catalog.visible(group)

    def _readable(self) -> str:
        return describe(self._catalog.nodes, {g: max(0, self._visible(g)) for g in self._streams})

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failing disk into one `StoreError`, and refuse to write after it: blocks may be incomplete."""
        if self._closed:
            raise StoreError(f"{self.path} is closed; open it again to write.")
        if self._failure:
            raise StoreError(self._failure)
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            self._failure = (
                f"{self.path} could not be written ({error.strerror or error}); {self._readable()} remain readable. "
                f"Free some space and resume."
            )
            raise StoreError(self._failure) from error


def _as_draws(group: str, name: str, values: Any) -> np.ndarray:
    array, decoding = storable(name, values)
    if array.ndim < 2 or array.shape[0] < 1 or decoding:
        raise InvalidArgument(
            f"append to {group!r} got {name!r} of shape {array.shape} and dtype {np.asarray(values).dtype}; draws are "
            f"numbers of shape (chain, n, ...)."
        )
    return array


def _checkpointed_draws(path: Path) -> dict[str, int]:
    for file in checkpoints.files(path / "checkpoint"):
        with contextlib.suppress(ValueError):
            return checkpoints.read(file)[0]["draws"]
    return {}
