"""How processes find each other, or say why they do not; without JAX's own runtime."""

import os
import socket
import sys
import threading
import time
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import pushforward as pf
from pushforward.cli import cli
from pushforward.cli.supervise import Job, free_port, supervise
from pushforward.infer.distributed import processes
from pushforward.infer.distributed.meeting import Member, meet

SAME = {"pushforward": "1", "jax": "2"}


def together(*members, timeout=10.0):
    """What each member, in a thread of its own, was told: "" or the error."""
    port, said = free_port(), [""] * len(members)

    def one(i, member):
        try:
            meet("127.0.0.1", port, member, timeout)
        except pf.DistributedError as error:
            said[i] = str(error)

    threads = [threading.Thread(target=one, args=(i, member)) for i, member in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_all_come():
    assert together(*(Member(i, 4, SAME) for i in range(4))) == [""] * 4


def test_the_missing_are_named_to_all():
    began = time.monotonic()
    said = together(Member(0, 4, SAME), Member(2, 4, SAME), timeout=1.0)
    assert time.monotonic() - began < 8
    assert all("after 1 seconds 2 of 4 processes are there; missing: process 1, 3" in text for text in said)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (Member(1, 2, SAME | {"jax": "3"}), "process 1 (127.0.0.1) has jax 3, process 0 has 2"),
        (Member(1, 3, SAME), "process 1 expects 3 processes, process 0 expects 2"),
        (Member(5, 2, SAME), "a process 5 of 2 came"),
    ],
)
def test_those_started_differently_are_told(other, match):
    assert all(match in text for text in together(Member(0, 2, SAME), other))


def test_nobody_at_the_coordinators_address():
    began = time.monotonic()
    with pytest.raises(pf.DistributedError, match=r"Process 1 found no process 0 at 127.0.0.1:\d+ within 0.5 seconds"):
        meet("127.0.0.1", free_port(), Member(1, 2, SAME), 0.5)
    assert time.monotonic() - began < 5


def test_a_port_in_use_is_named():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        port = door.getsockname()[1]
        with pytest.raises(pf.DistributedError, match=rf"Port {port} of 127.0.0.1, .* is in use"):
            meet("127.0.0.1", port, Member(0, 2, SAME), 1.0)


def test_strangers_at_the_door_are_ignored():
    port = free_port()

    def stranger():
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as talk:
                    talk.sendall(b"GET / HTTP/1.1\n")
                return
            except OSError:
                time.sleep(0.02)

    thread = threading.Thread(target=stranger)
    thread.start()
    with pytest.raises(pf.DistributedError, match="1 of 2 processes"):
        meet("127.0.0.1", port, Member(0, 2, SAME), 1.0)
    thread.join()


def test_bad_arguments(monkeypatch):
    for name in (processes.COORDINATOR, processes.NUM_PROCESSES, processes.PROCESS_ID):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(pf.InvalidArgument, match="num_processes is missing"):
        pf.distributed.initialize("127.0.0.1:1234", process_id=0)
    with pytest.raises(pf.InvalidArgument, match="host:port, got 'here'"):
        pf.distributed.initialize("here", 2, 0)
    with pytest.raises(pf.InvalidArgument, match="below num_processes=2, got 2"):
        pf.distributed.initialize("127.0.0.1:1234", 2, 2)
    with pytest.raises(pf.InvalidArgument, match="timeout"):
        pf.distributed.initialize(timeout=-1.0)
    assert pf.distributed.initialize() == (0, 1, 1)  # nobody started it as one of several


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        (processes.NUM_PROCESSES, "two", "a whole number"),
        (processes.PROCESS_ID, "0.5", "a whole number"),
        (processes.TIMEOUT_VARIABLE, "soon", "a number"),
        (processes.HEARTBEAT_VARIABLE, "", "a number"),
    ],
)
def test_variables_that_are_no_numbers_are_named(name, value, kind, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(pf.InvalidArgument, match=f"variable {name} must be {kind}, got '{value}'; set it right"):
        pf.distributed.initialize()


def test_a_script_that_has_not_joined_the_others_is_told(monkeypatch):
    """At its fit, in which otherwise each process does all the work by itself, in silence."""
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(1))
    short = {"num_samples": 2, "num_warmup": 2, "num_chains": 1, "progress": False}
    monkeypatch.setenv(processes.NUM_PROCESSES, "3")
    monkeypatch.setenv(processes.PROCESS_ID, "1")
    with pytest.warns(RuntimeWarning, match=r"process 1 of 3 .*initialize\(\) was not called: each of the 3 runs"):
        pf.fit(target, pf.NUTS(), **short)
    for name, value in ((processes.NUM_PROCESSES, "1"), ("SOMETHING", "else")):
        monkeypatch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            processes.warn_of_copies()
    monkeypatch.setenv(processes.NUM_PROCESSES, "3")
    monkeypatch.setattr(processes, "parent_process", lambda: "the launched script")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processes.warn_of_copies()  # a worker of a pool works alone


def test_versions_tell_any_file_of_the_package(tmp_path, monkeypatch):
    files = {file.as_posix() for file in processes.package_files()}
    for part in ("pushforward/choose.py", "samplers/combine.py", "models/classics.py", "infer/distributed/silos.py"):
        assert sum(file.endswith(part) for file in files) == 1, part
    assert not [file for file in files if "/tests/" in file or "/benchmarks/" in file]
    before = processes.versions()["pushforward"]
    other = tmp_path / "combine.py"
    other.write_text("changed = True")
    changed = [other if file.name == "combine.py" else file for file in processes.package_files()]
    monkeypatch.setattr(processes, "package_files", lambda: changed)
    assert processes.versions()["pushforward"] != before


def test_what_is_exchanged_comes_back():
    arrays = {"a": np.arange(6.0).reshape(2, 3)[:, ::-1], "b/c": np.array(True), "none": np.zeros((0, 2), np.uint32)}
    ((value, back),) = pf.distributed.exchange({"x": [1, None, "π"]}, arrays)
    assert value == {"x": [1, None, "π"]}
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)


def test_who_differs_is_named(monkeypatch):
    told = [({"rows": 5}, {}), ({"rows": 5}, {}), ({"rows": 4}, {})]
    monkeypatch.setattr(processes, "exchange", lambda value, arrays=None: told)
    with pytest.raises(pf.DistributedError, match="differ in the data: rows is 4 in process 2 and 5 in process 0"):
        pf.distributed.check_same("the data", {"rows": 5})


def test_the_self_test_passes_here():
    pf.distributed.self_test()


# -- the launcher -----------------------------------------------------------------------------------------------------

WHO = "import os, sys, time, pathlib; rank = os.environ['PUSHFORWARD_PROCESS_ID']\n"


def launched(code, said, **options):
    return supervise(Job((sys.executable, "-c", WHO + code), **{"processes": 3} | options), said.append)


def test_all_end_well(tmp_path):
    said = []
    code = "print(os.environ['PUSHFORWARD_NUM_PROCESSES'], os.environ['JAX_NUM_CPU_DEVICES'])"
    assert launched(code, said, devices_per_process=2, logs=tmp_path) == 0
    assert not said
    assert (tmp_path / "process-2.log").read_text() == "3 2\n"


def test_the_first_failure_ends_the_others():
    said = []
    began = time.monotonic()
    assert launched("print('no rows') or sys.exit(7) if rank == '1' else time.sleep(60)", said) == 7
    assert time.monotonic() - began < 20
    assert said == ["process 1 of 3 ended with status 7; the others are ended", "[1] no rows"]


def test_a_killed_process_is_named():
    said = []
    assert launched("os.kill(os.getpid(), 9) if rank == '2' else time.sleep(60)", said) == 137
    assert said == ["process 2 of 3 was ended by SIGKILL; the others are ended"]


def test_restarts(tmp_path):
    said = []
    code = f"mark = pathlib.Path({str(tmp_path)!r}) / rank\n"
    code += "if rank == '0' and not mark.exists(): mark.touch(); sys.exit(3)"
    assert launched(code, said, restarts=2) == 0
    assert said[-1] == "starting all 3 processes again (1 of 2)"
    assert launched("sys.exit(4)", said, restarts=1) == 4


def test_ctrl_c_ends_all_of_them():
    said = []
    timer = threading.Timer(1.0, os.kill, (os.getpid(), 2))
    timer.start()
    assert launched("time.sleep(60)", said) == 130
    assert "SIGINT" in said[0]


def test_a_script_that_is_not_there():
    result = CliRunner().invoke(cli, ["launch", "-n", "2", "nowhere.py"])
    assert isinstance(result.exception, pf.InvalidArgument)
    assert "nowhere.py, which is not a file" in str(result.exception)
