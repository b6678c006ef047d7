"""Federated rounds: a server, silos that keep their data, and what happens when a silo does not answer.

A round: the server sends something to each silo, each answers with a message, the server goes on with the messages. A
silo's step is a pure function ``step(state, round, silo, seed) -> message`` of what it is sent (its data aside, which
it loads where it runs and which never travel). So it may be asked twice, by a new process after the old one has died,
and gives the same bits: back ends deliver at least once, and the chain is the same as if nothing had happened.

What travels are dicts of arrays by name: states, what is sent, and messages. What a silo must remember (its local
iterate, its auxiliary variable) is therefore part of its message and of the server's state, which `send` gives back.
"""

import hashlib
import os
import traceback
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import DistributedError, InvalidArgument
from ..validate import check_choice, check_count, check_positive

Arrays = Mapping[str, Any]
Step = Callable[[Any, int, int, int], dict[str, Any]]
MakeStep = Callable[[int], Step]

POLICIES = ("wait", "keep", "stop")


class Server(Protocol):
    """The part of a federated method that sees no data."""

    def init(self, seed: int) -> dict[str, Any]:
        """The state before the first round."""
        ...

    def send(self, state: dict[str, Any], silo: int) -> dict[str, Any]:
        """What a silo is sent at the beginning of a round."""
        ...

    def receive(
        self, state: dict[str, Any], round: int, seed: int, messages: dict[int, dict[str, Any]]
    ) -> dict[str, Any]:
        """The state after a round, a pure function of its arguments; one message of each silo, in their order."""
        ...

    def draw(self, state: dict[str, Any]) -> dict[str, Any]:
        """What is kept of the state after a round."""
        ...


class SiloRunner(Protocol):
    """Where silos run: `InProcess`, `ProcessPool` or `RayActors`."""

    num_silos: int

    def ask(
        self, sent: dict[int, Any], round: int, seed: int, timeout: float
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """Messages of those silos in ``sent`` that answer in time, and for each of the others why it did not.

        A silo that has died is started anew, at the latest by the next call. An exception in a step is no absence: it
        would come again, and ends the run as `DistributedError`.
        """
        ...

    def close(self) -> None:
        """Let the silos go."""
        ...


class Federated(NamedTuple):
    """What `federate` returns.

    Parameters
    ----------
    draws
        What the server's `draw` gave, stacked over rounds.
    state
        The server's state after the last round.
    rounds
        Number of rounds done.
    missed
        Every (round, silo) in which the silo's last message stood in for a new one; empty but for ``missing="keep"``.
    bytes_sent, bytes_received
        Of the arrays that went to and came from all silos, repeats after a death included.
    """

    draws: dict[str, np.ndarray]
    state: dict[str, Any]
    rounds: int
    missed: list[tuple[int, int]]
    bytes_sent: int
    bytes_received: int


class InProcess:
    """All silos one after the other in this process.

    Parameters
    ----------
    make_step
        ``make_step(silo)`` loads the silo's data and returns its step.
    num_silos
        Silos 0, 1, …
    """

    def __init__(self, make_step: MakeStep, num_silos: int) -> None:
        self.num_silos = check_count("num_silos", num_silos)
        self._steps = [make_step(silo) for silo in range(num_silos)]

    def ask(
        self, sent: dict[int, Any], round: int, seed: int, timeout: float
    ) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """See `SiloRunner.ask`; all answer."""
        del timeout
        messages = {}
        for silo, state in sent.items():
            try:
                message = self._steps[silo](state, round, silo, seed)
            except Exception as error:
                raise DistributedError(f"The step of silo {silo} failed in round {round}: {told(error)}") from error
            messages[silo] = to_host(message)
        return messages, {}

    def close(self) -> None:
        """Nothing to let go."""


def federate(
    server: Server,
    runner: SiloRunner,
    *,
    num_rounds: int,
    seed: int = 0,
    missing: str = "wait",
    timeout: float = 60.0,
    attempts: int = 3,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: int = 100,
) -> Federated:
    """Run rounds of a federated method.

    Parameters
    ----------
    server, runner
        The method's server part, and where its silos run.
    num_rounds
        Rounds in all, those of a checkpoint included.
    seed
        Everything random is a function of (seed, round, silo).
    missing
        What to do about a silo that gives no answer. ``"wait"``: ask it again, ``attempts`` times in all, then stop.
        ``"keep"``: its last message counts once more, and the round is noted in ``missed`` (for a Gibbs sampler over
        auxiliary variables a valid partial scan, provided that whether a silo is away does not depend on the state).
        ``"stop"``: end at once. A silo is never left out of an average: that would sample another target.
    timeout
        Seconds that a silo has for an answer.
    checkpoint
        A file (npz) written every ``checkpoint_every`` rounds and at the end or the stop; where it exists, the run
        goes on from it, bit for bit.

    Raises
    ------
    DistributedError
        A silo is missing for good, or its step raised; what was done is in the ``checkpoint``.
    InvalidArgument
        An option is out of range, or the checkpoint is of another seed, number of silos or server (its class, and its
        attributes that are numbers, texts or arrays).
    """
    check_choice("missing", missing, POLICIES)
    check_positive("timeout", timeout)
    num_rounds, attempts = check_count("num_rounds", num_rounds), check_count("attempts", attempts)
    check_count("checkpoint_every", checkpoint_every)
    rounds = _Rounds(server, runner, seed)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        rounds.load(path)
    try:
        while rounds.done < num_rounds:
            rounds.go(missing, timeout, attempts)
            if path is not None and rounds.done % checkpoint_every == 0:
                rounds.save(path)
    finally:
        if path is not None:
            rounds.save(path)
    return rounds.result()


class _Rounds:
    """The state of a federated run between two rounds."""

    def __init__(self, server: Server, runner: SiloRunner, seed: int) -> None:
        self.server, self.runner, self.seed = server, runner, seed
        self.settings = settings_of(server)
        self.state = to_host(server.init(seed))
        self.done, self.missed = 0, []
        self.last: dict[int, dict[str, np.ndarray]] = {}
        self.draws: dict[str, list[np.ndarray]] = {}
        self.bytes_sent = self.bytes_received = 0

    def go(self, missing: str, timeout: float, attempts: int) -> None:
        """One round; nothing has changed where it raises."""
        messages: dict[int, dict[str, np.ndarray]] = {}
        wanted = range(self.runner.num_silos)
        for attempt in range(attempts):
            sent = {silo: to_host(self.server.send(self.state, silo)) for silo in wanted}
            answers, reasons = self.runner.ask(sent, self.done, self.seed, timeout)
            self.bytes_sent += sum(map(_size, sent.values()))
            self.bytes_received += sum(map(_size, answers.values()))
            messages |= answers
            if missing == "keep":
                for silo in [silo for silo in reasons if silo in self.last]:
                    messages[silo] = self.last[silo]
                    self.missed.append((self.done, silo))
            wanted = [silo for silo in wanted if silo not in messages]
            if not wanted:
                break
            if missing == "stop" or attempt == attempts - 1:
                silo = wanted[0]
                raise DistributedError(
                    f"Silo {silo} gave no answer in round {self.done} after {attempt + 1} of {attempts} attempts: "
                    f"{reasons[silo]}; missing is {missing!r}. Bring it back and call federate again: with a "
                    f"checkpoint= it goes on from the last round."
                )
        messages = {silo: messages[silo] for silo in sorted(messages)}
        self.state = to_host(self.server.receive(self.state, self.done, self.seed, messages))
        self.last, self.done = messages, self.done + 1
        for name, value in to_host(self.server.draw(self.state)).items():
            self.draws.setdefault(name, []).append(value)

    def result(self) -> Federated:
        """What there is so far."""
        draws = {name: np.stack(values) for name, values in self.draws.items()}
        return Federated(draws, self.state, self.done, self.missed, self.bytes_sent, self.bytes_received)

    def save(self, path: Path) -> None:
        """Write a checkpoint: the file is whole at any moment."""
        arrays = {f"state/{name}": value for name, value in self.state.items()}
        arrays |= {f"draws/{name}": np.stack(values) for name, values in self.draws.items()}
        arrays |= {f"last/{silo}/{k}": v for silo, message in self.last.items() for k, v in message.items()}
        arrays["server"] = np.array(self.settings)
        arrays["missed"] = np.array(self.missed, np.int64).reshape(-1, 2)
        arrays["about"] = np.array([self.seed, self.runner.num_silos, self.done, self.bytes_sent, self.bytes_received])
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = dict(file)
            seed, num_silos, self.done, self.bytes_sent, self.bytes_received = arrays.pop("about").tolist()
            settings = str(arrays.pop("server"))
            self.missed = [(int(r), int(s)) for r, s in arrays.pop("missed")]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InvalidArgument(f"checkpoint {path} is no checkpoint of federated rounds: {error}.") from error
        if (seed, num_silos) != (self.seed, self.runner.num_silos):
            raise InvalidArgument(
                f"checkpoint {path} is of seed {seed} and {num_silos} silos, not of seed {self.seed} and "
                f"{self.runner.num_silos}; go on with those, or give another file."
            )
        if settings != self.settings:
            raise InvalidArgument(
                f"checkpoint {path} is of the server {settings}, not of {self.settings}; go on with that one, or give "
                f"another file."
            )
        self.state = {}
        for name, value in arrays.items():
            what, _, rest = name.partition("/")
            if what == "state":
                self.state[rest] = value
            elif what == "draws":
                self.draws[rest] = list(value)
            else:
                silo, _, field = rest.partition("/")
                self.last.setdefault(int(silo), {})[field] = value


def to_host(arrays: Arrays) -> dict[str, np.ndarray]:
    """A dict of arrays, as NumPy arrays: what travels."""
    if not isinstance(arrays, Mapping):
        raise InvalidArgument(
            f"what goes between server and silos must be a dict of arrays by name, got {type(arrays).__name__}."
        )
    return {str(name): np.asarray(value) for name, value in arrays.items()}


def told(error: Exception) -> str:
    """An error in a line: kind, message, and where it was raised, if that is known."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error}" + (f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else "")


def settings_of(server: Any) -> str:
    """Class and settings of a server in a line: its attributes that are numbers, texts or arrays, these by digest."""
    shown = []
    for name, value in sorted(getattr(server, "__dict__", {}).items()):
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, int | float | str | None):
            shown.append(f"{name}={value!r}")
        elif isinstance(value, np.ndarray) and value.dtype != object:
            digest = hashlib.sha256(f"{value.dtype} {value.shape}".encode() + value.tobytes()).hexdigest()[:12]
            shown.append(f"{name}=array {digest}")
    return f"{type(server).__name__}({', '.join(shown)})"


def _size(arrays: dict[str, np.ndarray]) -> int:
    return sum(value.nbytes for value in arrays.values())
