"""How processes meet before JAX starts: who is there, with which versions, and who is missing.

Process 0 listens on the coordinator's port, the others come and say their number; when all have come, it tells them to
go on, and the port is JAX's. JAX itself ends a process that has waited in vain, without saying for whom.
"""

import contextlib
import errno
import json
import socket
import time
from typing import Any, NamedTuple

from ..errors import DistributedError

GREETING = "pushforward"
RETRY_SECONDS = 0.1


class Member(NamedTuple):
    """What a process says of itself.

    Parameters
    ----------
    index, count
        Its number, and that of all.
    versions
        What must be the same everywhere.
    """

    index: int
    count: int
    versions: dict[str, str]


def meet(host: str, port: int, me: Member, timeout: float) -> None:
    """Return when all processes are there.

    Raises
    ------
    DistributedError
        The port is in use, process 0 does not answer, somebody is missing after ``timeout`` seconds, there twice, or of
        another version.
    """
    end = time.monotonic() + timeout
    if me.index == 0:
        _receive(host, port, me, timeout, end)
    else:
        _come(host, port, me, timeout, end)


def _receive(host: str, port: int, me: Member, timeout: float, end: float) -> None:
    """Process 0: listen until all have come, then tell them the verdict."""
    guests: dict[int, socket.socket] = {}
    came: list[socket.socket] = []
    verdict = ""
    bind = host if host in ("127.0.0.1", "localhost") else ""
    with _listening(bind, port) as door, contextlib.ExitStack() as stack:
        while len(guests) < me.count - 1 and not verdict:
            door.settimeout(max(end - time.monotonic(), 0.01))
            try:
                guest, address = door.accept()
            except TimeoutError:
                absent = [str(i) for i in range(1, me.count) if i not in guests]
                verdict = (
                    f"after {timeout:g} seconds {len(guests) + 1} of {me.count} processes are there; missing: process "
                    f"{', '.join(absent)}. Start them with the same coordinator address, or look at their logs"
                )
                break
            stack.enter_context(guest)
            guest.settimeout(5.0)
            try:
                other = Member(**_read(guest)[GREETING])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # somebody else knocked
            came.append(guest)
            verdict = _objection(me, other, other.index in guests, address[0])
            guests[other.index] = guest
        for guest in came:
            with contextlib.suppress(OSError):
                guest.sendall(json.dumps({"verdict": verdict}).encode() + b"\n")
        for guest in came:  # who closes first keeps the port busy, and it is needed here
            with contextlib.suppress(OSError):
                guest.recv(1)
    if verdict:
        raise DistributedError(f"The processes at {host}:{port} do not come together: {verdict}.")


def _objection(me: Member, other: Member, twice: bool, address: str) -> str:
    if twice or not 0 < other.index < me.count:
        return f"a process {other.index} of {me.count} came{' for the second time' if twice else ''} ({address})"
    if other.count != me.count:
        return f"process {other.index} expects {other.count} processes, process 0 expects {me.count}"
    for name in me.versions:
        if other.versions.get(name) != me.versions[name]:
            return (
                f"process {other.index} ({address}) has {name} {other.versions.get(name)}, process 0 has "
                f"{me.versions[name]}; install the same versions everywhere"
            )
    return ""


def _come(host: str, port: int, me: Member, timeout: float, end: float) -> None:
    """The others: knock until process 0 opens, then wait for its verdict."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.01)) as talk:
                talk.sendall(json.dumps({GREETING: me._asdict()}).encode() + b"\n")
                # Process 0 has its own clock, which may have begun later.
                talk.settimeout(timeout + 5.0)
                verdict = _read(talk)["verdict"]
            break
        except (OSError, ValueError, KeyError, TypeError) as error:
            if time.monotonic() >= end:
                raise DistributedError(
                    f"Process {me.index} found no process 0 at {host}:{port} within {timeout:g} seconds "
                    f"({error}); is it running, is the address right, and is the port open?"
                ) from error
            time.sleep(RETRY_SECONDS)
    if verdict:
        raise DistributedError(f"The processes at {host}:{port} do not come together: {verdict}.")


def _listening(host: str, port: int) -> socket.socket:
    door = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
        door.listen(128)
    except OSError as error:
        door.close()
        what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise DistributedError(
            f"Port {port} of {host or 'this host'}, where process 0 is to be found, {what}; choose another port."
        ) from error
    return door


def _read(talk: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        more = talk.recv(4096)
        if not more:
            raise ConnectionError(f"the line ended after {len(data)} bytes")
        data += more
    return json.loads(data)
