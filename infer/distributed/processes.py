"""Several processes that run one program: how they find each other, and how they agree.

A thin layer over `jax.distributed`: what is checked here ends in a sentence, while JAX aborts a process that waits in
vain for another. Every process calls the same functions in the same order; what depends on clocks, signals or files is
`exchange`-d before anything is decided by it.
"""

import hashlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from ..errors import DistributedError, InvalidArgument
from ..validate import check_count, check_positive
from .meeting import Member, meet

SHORT = 4096  # bytes that one collective always has room for
TIMEOUT = 60.0
HEARTBEAT = 60.0
COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    f"PUSHFORWARD_{name}" for name in ("COORDINATOR", "NUM_PROCESSES", "PROCESS_ID")
)
PARTS = ("pushforward", "pushforward.infer", "pushforward.models", "pushforward.samplers")
HEARTBEAT_VARIABLE, TIMEOUT_VARIABLE = "PUSHFORWARD_HEARTBEAT", "PUSHFORWARD_TIMEOUT"


class Processes(NamedTuple):
    """The processes of a job, as one of them sees them.

    Parameters
    ----------
    index, count
        Number of this process, and of all.
    devices
        Of all processes.
    """

    index: int
    count: int
    devices: int


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float | None = None,
    heartbeat: float | None = None,
    local_device_ids: list[int] | None = None,
) -> Processes:
    """Join the other processes of a job; call it before anything else that uses JAX, in each of them.

    Without arguments they come from ``pushforward launch``, or from SLURM, Open MPI or Kubernetes as JAX finds them; a
    script started by none of these runs alone. `fit` then uses the devices of all processes.

    Parameters
    ----------
    coordinator
        ``"host:port"`` of process 0, which all can reach. Traffic is not encrypted: use a network that you trust.
    num_processes, process_id
        How many there are, and which one this is: 0, 1, ….
    timeout
        Seconds to wait for the others, 60 by default.
    heartbeat
        Seconds of silence after which a process counts as dead, which ends the others; 60 by default. On a machine
        with far more to do than it has cores a process that lives may be silent for long.
    local_device_ids
        Accelerators of this host that belong to this process.

    Raises
    ------
    DistributedError
        The port is in use, process 0 does not answer, or some process did not come in time: the message names them.
        Or JAX has been used before.
    InvalidArgument
        Some of the arguments are missing, or contradict each other; an environment variable is no number.
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    num_processes = _given(num_processes, NUM_PROCESSES)
    process_id = _given(process_id, PROCESS_ID)
    timeout = _given(timeout, TIMEOUT_VARIABLE, TIMEOUT)
    heartbeat = _given(heartbeat, HEARTBEAT_VARIABLE, HEARTBEAT)
    check_positive("timeout", timeout)
    check_positive("heartbeat", heartbeat)
    if jax.distributed.is_initialized():
        raise DistributedError(f"initialize was called before, as process {jax.process_index()}; call it once.")
    found = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    options: dict[str, Any] = {
        "local_device_ids": local_device_ids,
        "initialization_timeout": max(round(timeout), 1),
        "heartbeat_timeout_seconds": max(round(heartbeat), 1),
    }
    if all(value is None for value in found.values()):
        return _detected(options)
    for name, value in found.items():
        if value is None:
            raise InvalidArgument(
                f"initialize needs coordinator, num_processes and process_id together, and {name} is missing from "
                f"{found}; give all three, or start the script with `pushforward launch`."
            )
    assert coordinator is not None and num_processes is not None and process_id is not None  # noqa: PT018
    num_processes, process_id = check_count("num_processes", num_processes), check_count("process_id", process_id, 0)
    if process_id >= num_processes:
        raise InvalidArgument(f"process_id must be below num_processes={num_processes}, got {process_id}.")
    host, port = _address(coordinator)
    if num_processes > 1:
        meet(host, port, Member(process_id, num_processes, versions()), timeout)
        own = {"coordinator_bind_address": f"{host}:{port}"} if host in ("127.0.0.1", "localhost") else {}
        _start(coordinator, num_processes, process_id, cluster_detection_method="deactivate", **own, **options)
        self_test()
    return here()


def here() -> Processes:
    """Which process this is."""
    return Processes(jax.process_index(), jax.process_count(), jax.device_count())


def versions() -> dict[str, str]:
    """What must be the same in all processes: versions, and the texts of this package and of the script."""
    from importlib.metadata import version

    script = getattr(sys.modules["__main__"], "__file__", None)
    found = {name: version(name) for name in ("jax", "jaxlib", "numpyro", "blackjax")}
    found["pushforward"] = f"{version('pushforward')} ({_digest(package_files())})"
    return found | {"script": _digest([Path(script)] if script and Path(script).is_file() else [])}


def package_files() -> list[Path]:
    """The Python files of this package, its parts one after the other, wherever each of them is installed."""
    roots = [
        Path(found) for name in PARTS for found in getattr(find_spec(name), "submodule_search_locations", None) or ()
    ]
    files: dict[Path, None] = {}  # in order, each once: parts may lie within the first one
    for root in reversed(roots):
        files |= dict.fromkeys(sorted(file.resolve() for file in root.rglob("*.py")))
    return list(files)


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def warn_of_copies() -> None:
    """Warn where this script was started as one of several processes and has not joined the others."""
    count = os.environ.get(NUM_PROCESSES, "")
    if not count.isdigit() or int(count) < 2 or jax.distributed.is_initialized() or parent_process() is not None:
        return
    warnings.warn(
        f"This is process {os.environ.get(PROCESS_ID, '?')} of {count} ({NUM_PROCESSES}), and "
        f"pushforward.distributed.initialize() was not called: each of the {count} runs the whole fit by itself, as if "
        f"it were alone. Call initialize() first in the script, before anything uses JAX; or, if copies are what is "
        f"wanted, unset {NUM_PROCESSES}.",
        RuntimeWarning,
        stacklevel=3,
    )


def num_processes() -> int:
    """Processes of this job, 1 where `initialize` was not called; starts no backend then."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is process 0, which writes and shows things."""
    return num_processes() == 1 or jax.process_index() == 0


def exchange(value: Any, arrays: dict[str, np.ndarray] | None = None) -> list[tuple[Any, dict[str, np.ndarray]]]:
    """What each process gives, in all of them, by number of process: JSON-able data and arrays by name.

    One collective if it is short, two otherwise. All processes must call it.
    """
    data = _pack(value, arrays or {})
    if num_processes() == 1:
        return [_unpack(data)]
    from jax.experimental.multihost_utils import process_allgather

    try:
        # Short ones in one go; few different lengths of the others, since each is a program of its own.
        first = process_allgather(_padded(np.frombuffer(np.int64(data.size).tobytes() + data.tobytes(), np.uint8)))
        sizes = [int(row[:8].view(np.int64)[0]) for row in np.ascontiguousarray(first)]
        rest = max(sizes) + 8 - SHORT
        more = process_allgather(_padded(data[SHORT - 8 :], rest)) if rest > 0 else np.zeros((len(sizes), 0), np.uint8)
    except Exception as error:
        raise DistributedError(
            f"Process {jax.process_index()} of {jax.process_count()} has lost the others ({first_line(error)}): one of "
            f"them has ended; its log says why. Start all again: resume goes on from the last checkpoint."
        ) from error
    rows = [np.concatenate([head[8:], tail]) for head, tail in zip(first, more, strict=True)]
    return [_unpack(row[:size]) for row, size in zip(rows, sizes, strict=True)]


def first(make: Callable[[], Any]) -> Any:
    """What ``make`` returns in process 0, which alone calls it; None in the others. If it raises, all do."""
    if num_processes() == 1:
        return make()
    made, error = None, None
    if jax.process_index() == 0:
        try:
            made = make()
        except Exception as raised:
            error = raised
    ((text, _), *_) = exchange(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if text is not None:
        raise DistributedError(f"Process 0 stopped with {text}")
    return made


def check_same(what: str, value: dict[str, Any]) -> None:
    """Raise `DistributedError`, in all processes, unless all give the same ``value``, a dict of JSON-able entries."""
    theirs = [other for other, _ in exchange(value)]
    mine = theirs[0]
    for rank, other in enumerate(theirs):
        for name in sorted({*mine, *other}):
            if mine.get(name) != other.get(name):
                raise DistributedError(
                    f"Processes differ in {what}: {name} is {_short(other.get(name))} in process {rank} and "
                    f"{_short(mine.get(name))} in process 0; start all with the same code, data and arguments, on "
                    f"processors of one kind."
                )


def barrier() -> None:
    """Wait for all processes."""
    if num_processes() > 1:
        exchange(None)


def self_test() -> None:
    """Sums, shifts and gathers over all devices, compared with what they must give.

    Raises
    ------
    DistributedError
        A process has seen a wrong number; the message names it.
    """
    devices = np.array(jax.devices())
    n = len(devices)
    mesh = Mesh(devices, ("all",), axis_types=(AxisType.Auto,))
    cut = PartitionSpec("all")

    def talk(x: jax.Array) -> jax.Array:
        total = jax.lax.psum(x, "all")
        shifted = jax.lax.ppermute(x, "all", [(i, (i + 1) % n) for i in range(n)])
        everyone = jax.lax.all_gather(x, "all", tiled=True)
        return jax.numpy.concatenate([total, shifted, everyone])[None]

    rows = jax.sharding.NamedSharding(mesh, cut)
    x = jax.make_array_from_callback((n,), rows, lambda at: np.arange(n, dtype=np.float32)[at])
    found = jax.jit(jax.shard_map(talk, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False))(x)
    wrong = ""
    for shard in found.addressable_shards:
        i = shard.index[0].start or 0
        expected = np.concatenate([[n * (n - 1) / 2, (i - 1) % n], np.arange(n)]).astype(np.float32)
        got = np.asarray(shard.data)[0]
        if not np.array_equal(got, expected):
            wrong = f"device {i} got {got.tolist()} instead of {expected.tolist()}"
    for rank, (other, _) in enumerate(exchange(wrong)):
        if other:
            raise DistributedError(f"The self-test of sums, shifts and gathers failed in process {rank}: {other}.")


def _given(value: Any, variable: str, default: float | None = None) -> Any:
    """The argument, else the number that an environment variable has, else the default."""
    if value is not None or variable not in os.environ:
        return default if value is None else value
    kind, read = ("a whole number", int) if default is None else ("a number", float)
    try:
        return read(os.environ[variable])
    except ValueError:
        raise InvalidArgument(
            f"the environment variable {variable} must be {kind}, got {os.environ[variable]!r}; set it right, or unset "
            f"it."
        ) from None


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"coordinator must be host:port, got {coordinator!r}; e.g. 10.0.0.1:1234.")
    return host, int(port)


def _detected(options: dict[str, Any]) -> Processes:
    """Join what JAX detects: SLURM, Open MPI, Kubernetes; alone where it detects nothing."""
    from jax._src.clusters import ClusterEnv

    if not any(env.is_env_present() for env in ClusterEnv._cluster_types if not env.opt_in_only_method):
        return Processes(0, 1, jax.device_count())
    _start(None, None, None, **options)
    check_same("versions", versions())
    self_test()
    return here()


def _start(*args: Any, **options: Any) -> None:
    seconds = options["initialization_timeout"]
    text = (
        f"pushforward: process {args[2] if args[2] is not None else '?'} has waited {seconds - 1} seconds for the "
        f"others at {args[0] or 'the coordinator that JAX detected'}; JAX now ends it. Were all of them started?"
    )
    watchdog = threading.Timer(max(seconds - 1, 0.5), os.write, (2, f"{text}\n".encode()))
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(*args, **options)
    except RuntimeError as error:
        if "before any JAX" in str(error) or "must be called before" in str(error):
            raise DistributedError(
                f"initialize was called after JAX had been used ({error}); call it first in the script."
            ) from error
        raise DistributedError(f"The processes did not come together at {args[0]}: {error}") from error
    finally:
        watchdog.cancel()


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
    arrays = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    head = json.dumps([value, [[name, x.dtype.str, x.shape] for name, x in arrays.items()]]).encode()
    parts = [np.array([len(head)], np.int64).tobytes(), head, *(x.tobytes() for x in arrays.values())]
    return np.frombuffer(b"".join(parts), np.uint8)


def _unpack(data: np.ndarray) -> tuple[Any, dict[str, np.ndarray]]:
    data = np.ascontiguousarray(data)
    size = int(data[:8].view(np.int64)[0])
    value, fields = json.loads(data[8 : 8 + size].tobytes())
    arrays, at = {}, 8 + size
    for name, dtype, shape in fields:
        end = at + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(data[at:end].tobytes(), dtype).reshape(shape)
        at = end
    return value, arrays


def _padded(data: np.ndarray, room: int = 0) -> np.ndarray:
    """At least ``SHORT`` bytes, a power of two: the data, cut or filled up with zeros."""
    size = max(SHORT, 1 << (room - 1).bit_length()) if room else SHORT
    padded = np.zeros(size, np.uint8)
    padded[: len(data[:size])] = data[:size]
    return padded


def first_line(error: Exception) -> str:
    """The beginning of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
