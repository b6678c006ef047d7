"""Several real processes on this machine: the same bits in all layouts, deaths, and runs that go on after them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.child import some_chains

ROOT = Path(__file__).resolve().parents[2]
CHILD = ROOT / "tests" / "distributed" / "child.py"


def launch(processes, devices, *arguments, status=0, **options):
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [
        "launch",
        "-n",
        processes,
        "--devices-per-process",
        devices,
        "--timeout=240",
        "--heartbeat=240",
        *flags,
        CHILD,
        *arguments,
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pushforward", *map(str, command)], cwd=ROOT, capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done.stderr


def draws(folder, rank=0):
    with np.load(folder / f"draws-{rank}.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes have found."""
    folder = tmp_path_factory.mktemp("two")
    launch(2, 1, "chains", folder)
    return [draws(folder, rank) for rank in range(2)]


def test_chains_dealt_out_are_those_of_one_process(two):
    expected = some_chains().draws()["x"]
    for found in two:
        np.testing.assert_array_equal(found["chains"], expected)


def test_processes_that_differ_are_named(two):
    for found in two:
        assert "differ in what they fit: fingerprint is" in str(found["rows"])
        assert "plan.num_samples is 41 in process 1 and 40 in process 0" in str(found["same"])


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(4, 2), (8, 2), (8, 4)])
def test_processes_and_devices_change_no_bit(devices, processes, tmp_path):
    for count in (1, processes):
        (tmp_path / str(count)).mkdir()
        launch(count, devices // count, "layouts", tmp_path / str(count))
    expected, found = draws(tmp_path / "1"), draws(tmp_path / str(processes), processes - 1)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    # Rows given by process are the rows given together.
    np.testing.assert_array_equal(expected["rows"], expected["data"])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["restart", "restart_agents"])
def test_a_killed_process_ends_the_job_and_a_restart_goes_on(what, tmp_path):
    """And so does a resume in another number of processes; the draws are those of a run never interrupted."""
    for name in ("whole", "restarted", "resumed"):
        (tmp_path / name).mkdir()
    (tmp_path / "whole" / "killed").touch()
    launch(1, 2, what, tmp_path / "whole")
    said = launch(2, 1, what, tmp_path / "restarted", restarts=1)
    assert "process 1 of 2 was ended by SIGKILL" in said
    assert "starting all 2 processes again (1 of 1)" in said
    launch(2, 1, what, tmp_path / "resumed", status=137)
    launch(1, 2, what, tmp_path / "resumed")
    expected = draws(tmp_path / "whole")["x"]
    for name in ("restarted", "resumed"):
        np.testing.assert_array_equal(draws(tmp_path / name)["x"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_without_the_launcher_the_others_end_within_the_heartbeat_and_five_seconds(fate, tmp_path):
    heartbeat = 20
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "signal").write_text(str(int(fate)))
    common = {"COORDINATOR": coordinator, "NUM_PROCESSES": 2, "TIMEOUT": 240, "HEARTBEAT": heartbeat}
    started = []
    for index in range(2):
        given = {f"PUSHFORWARD_{name}": str(value) for name, value in (common | {"PROCESS_ID": index}).items()}
        command = [sys.executable, CHILD, "falls_silent", tmp_path]
        with (tmp_path / f"said-{index}").open("w") as said:
            env = os.environ | given | {"PYTHONPATH": str(ROOT)}
            started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, env=env))
    try:
        while not (tmp_path / "silent").exists():
            assert all(one.poll() is None for one in started), (tmp_path / "said-0").read_text()
            time.sleep(0.1)
        begun = time.monotonic()
        started[0].wait(timeout=3 * heartbeat)
        assert time.monotonic() - begun < heartbeat + 5
        assert started[0].returncode != 0
        assert (tmp_path / "said-0").read_text()
    finally:
        for one in started:
            one.kill()
            one.wait()
