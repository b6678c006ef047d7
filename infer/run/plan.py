"""What a run was asked for, as plain data: recorded with the result and enough, with target and method, to redo it."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..errors import InvalidArgument, StoreError
from ..method import AbstractMethod
from ..validate import check_count
from .observe import Stopping

MANY_CHAINS = 16
START_STAGE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides the bits of a run besides target and method.

    Parameters
    ----------
    key
        Words of the root key (`jax.random.key_data`) and the name of its generator.
    num_samples, num_warmup, num_chains, thin
        Draws kept per chain, warm-up iterations, chains, iterations per kept draw.
    chains_per_program
        Chains that share one compiled program; XLA rounds other batch sizes differently.
    precision
        64 or 32.
    sites
        Names of the sites to keep, or None for all.
    stopping
        Rules that may end the run earlier.
    warm
        Whether the start brings a step size, so that warm-up leaves the metric as it is.
    mesh, devices
        What is shared out over devices (None: what the method spreads, or chains), and over how many, where the bits
        depend on it; 0 where they do not.
    """

    key: tuple[int, ...]
    generator: str
    num_samples: int
    num_warmup: int
    num_chains: int
    thin: int
    chains_per_program: int
    precision: int
    sites: tuple[str, ...] | None
    stopping: Stopping
    warm: bool = False
    mesh: str | None = None
    devices: int = 0

    def root(self) -> PRNGKeyArray:
        """The root key, rebuilt."""
        return jax.random.wrap_key_data(np.asarray(self.key, np.uint32), impl=self.generator)

    def record(self) -> dict[str, Any]:
        """The plan as JSON-able data."""
        out = dataclasses.asdict(self) | {"stopping": self.stopping._asdict()}
        return out | {"key": list(self.key), "sites": None if self.sites is None else list(self.sites)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Plan":
        """The plan that `record` was made from."""
        sites = record["sites"]
        return cls(
            **record
            | {
                "key": tuple(record["key"]),
                "sites": None if sites is None else tuple(sites),
                "stopping": Stopping(**record["stopping"]),
            }
        )


def read_key(key: Any) -> tuple[tuple[int, ...], str]:
    """Words and generator of a key given as an int, a typed JAX key, or raw uint32 words."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not -(2**63) <= key < 2**64:
            raise InvalidArgument(f"key must be an int of at most 64 bits, got {key}.")
        if jax.config.jax_default_prng_impl == "threefry2x32":
            # `jax.random.key`'s own words, without the small programs it compiles; and all 64 bits count.
            return (int(key) >> 32 & 0xFFFFFFFF, int(key) & 0xFFFFFFFF), "threefry2x32"
        key = jax.random.key(int(key))
    elif isinstance(key, jax.Array | np.ndarray) and not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        words = np.shape(jax.random.key_data(jax.random.key(0)))
        if key.dtype != np.uint32 or key.shape != words:
            raise InvalidArgument(
                f"key must be an int or a JAX key, got an array of shape {key.shape} and dtype {key.dtype}; the words "
                f"of a key are uint32 of shape {words}."
            )
        key = jax.random.wrap_key_data(key)
    elif not isinstance(key, jax.Array) or key.ndim:
        raise InvalidArgument(f"key must be an int or one JAX key, got {key!r}.")
    words = np.asarray(jax.random.key_data(key)).reshape(-1)
    return tuple(int(word) for word in words), str(jax.random.key_impl(key))


def jax_key(key: Any) -> PRNGKeyArray:
    """A JAX key from what `read_key` takes."""
    words, generator = read_key(key)
    return jax.random.wrap_key_data(np.asarray(words, np.uint32), impl=generator)


def default_chains_per_program(num_chains: int, backend: str, num_devices: int) -> int:
    """One on the CPU, where chains run side by side on threads and none waits for the longest tree of another.

    Many short chains vectorise better: above 16 chains they go eight programs wide, on any number of cores. An
    accelerator runs all the chains of a device in one program.
    """
    if backend != "cpu":
        return -(-num_chains // num_devices)
    return 1 if num_chains <= MANY_CHAINS else -(-num_chains // 8)


def check_plan(plan: Plan) -> None:
    """Raise `InvalidArgument` where a number is out of range."""
    for name in ("num_samples", "num_chains", "thin", "chains_per_program"):
        check_count(name, getattr(plan, name))
    check_count("num_warmup", plan.num_warmup, 0)
    plan.stopping.check()


def record_method(method: AbstractMethod) -> dict[str, Any]:
    """A method as JSON-able data: its name and its hyper-parameters."""
    return {"name": type(method).__name__, "settings": {k: _jsonable(v) for k, v in method.settings().items()}}


def rebuild_method(record: dict[str, Any], given: AbstractMethod | None, path: Any) -> AbstractMethod:
    """The method of a stored run, from its record, or ``given`` if it matches the record.

    Raises
    ------
    StoreError
        ``given`` is another method, or the record holds something that is not plain data (an optimiser, a kernel).
    """
    if given is not None:
        if record_method(given) != record:
            raise StoreError(f"{path} was run with {_differing(record, record_method(given))}; resume it with that.")
        return given
    import pushforward

    cls = getattr(pushforward, record["name"], None)
    usual = _usual(cls)
    settings = {k: v for k, v in record["settings"].items() if k not in usual or v != usual[k]}
    opaque = [k for k, v in settings.items() if isinstance(v, dict) and "repr" in v]
    if opaque or cls is None:
        raise StoreError(
            f"{path} was run with {record['name']}, whose {', '.join(opaque) or 'class'} cannot be rebuilt from the "
            f"store; pass it as method=."
        )
    return cls(**{k: _unjson(v) for k, v in settings.items()})


def _usual(cls: Any) -> dict[str, Any]:
    """The record of a method's defaults, which needs no rebuilding (a mirror, say); empty where some have none."""
    try:
        return record_method(cls())["settings"]
    except TypeError:
        return {}


def _differing(ran: dict[str, Any], given: dict[str, Any]) -> str:
    """In which way a method is not the one that ran: its class, or the first settings that differ."""
    if ran["name"] != given["name"]:
        return f"{ran['name']}, not with {given['name']}"
    missing = object()
    names = [k for k, v in given["settings"].items() if v != ran["settings"].get(k, missing)] or ["other settings"]
    then = ", ".join(f"{k}={_shown(ran['settings'].get(k))}" for k in names)
    now = ", ".join(f"{k}={_shown(given['settings'].get(k))}" for k in names)
    return f"{ran['name']}({then}), not with {now}"


def _shown(setting: Any) -> str:
    """A recorded setting, shortly."""
    if isinstance(setting, dict):
        text = setting.get("repr") or f"array of {len(setting['array']) if np.ndim(setting['array']) else 1}"
    else:
        text = repr(setting)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | jax.Array | np.generic):
        return {"array": np.asarray(value).tolist(), "dtype": str(value.dtype)}
    if isinstance(value, tuple | list) and all(isinstance(v, bool | int | float | str) for v in value):
        return list(value)
    return {"repr": re.sub(r" at 0x[0-9a-f]+", "", repr(value))}  # addresses differ between processes


def _unjson(value: Any) -> Any:
    if isinstance(value, dict) and "array" in value:
        return np.asarray(value["array"], value["dtype"])
    return tuple(value) if isinstance(value, list) else value
