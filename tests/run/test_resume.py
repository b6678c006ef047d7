"""Runs that are killed, interrupted or stopped, and what is wrong with a store."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import pushforward as pf
from tests.run.models import SIGMA, Y, eight_schools, gaussian, schools

ROOT = Path(__file__).resolve().parents[2]
DRAWS = 1500


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """Starts `tests.run.child`; what the first one compiles, the others load."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def start(*args):
        command = [sys.executable, "-m", "tests.run.child", *map(str, args)]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache)

    return start


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the child made no progress"
        if process.poll() is not None:
            return
        time.sleep(0.005)


def checkpoint_time(path):
    files = list((path / "checkpoint").glob("*")) if (path / "checkpoint").exists() else []
    return max((f.stat().st_mtime_ns for f in files if f.exists()), default=0)


@pytest.fixture(scope="module")
def uninterrupted():
    return pf.fit(schools(), pf.NUTS(), key=5, num_samples=DRAWS, num_warmup=300, progress=False).draws()


def test_sigkill_at_any_moment_loses_nothing(child, uninterrupted, tmp_path):
    """Killed before the first checkpoint, in warm-up, and twice while sampling: bit for bit the same draws."""
    path = tmp_path / "run"
    process = child("new", path, DRAWS)
    wait_for(lambda: checkpoint_time(path), process)
    process.kill()
    process.wait()
    rng = np.random.default_rng(0)
    for _ in range(3):
        before = checkpoint_time(path)
        process = child("resume", path)
        wait_for(lambda before=before: checkpoint_time(path) > before, process)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.wait()
    draws = pf.resume(path, schools(), progress=False).draws()
    for name, expected in uninterrupted.items():
        np.testing.assert_array_equal(draws[name], expected)


def test_sigterm_saves_and_exits(child, uninterrupted, tmp_path):
    path = tmp_path / "run"
    process = child("new", path, DRAWS)
    wait_for(lambda: checkpoint_time(path), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, 143)  # 0: it was over before the signal came
    draws = pf.resume(path, schools(), progress=False).draws()
    for name, expected in uninterrupted.items():
        np.testing.assert_array_equal(draws[name], expected)


def interrupt_after(monkeypatch, calls):
    """Ctrl-C in the driver when the progress has been shown ``calls`` times."""
    from pushforward.infer.run import driver

    shown = 0

    def after_chunk(self, stage, progress, original=driver.Run._after_chunk):
        nonlocal shown
        original(self, stage, progress)
        if stage.keep:
            shown += 1
            if shown == calls:
                raise KeyboardInterrupt

    monkeypatch.setattr(driver.Run, "_after_chunk", after_chunk)


def test_ctrl_c_returns_what_there_is(monkeypatch):
    interrupt_after(monkeypatch, 8)
    partial = pf.fit(schools(), key=5, num_samples=DRAWS, num_warmup=300, chunk_length=20, progress=False)
    monkeypatch.undo()
    n = partial.draws()["mu"].shape[1]
    assert 0 < n < DRAWS
    assert partial.record["stopped"] == "interrupted"
    assert "PARTIAL" in repr(partial)
    assert "interrupted" in str(partial.diagnose())


def test_an_interrupted_run_goes_on(monkeypatch, uninterrupted):
    interrupt_after(monkeypatch, 8)
    partial = pf.fit(schools(), key=5, num_samples=DRAWS, num_warmup=300, chunk_length=20, progress=False)
    monkeypatch.undo()
    # What it was asked for is still what is missing, plus one draw more.
    longer = partial.extend(1, progress=False)
    np.testing.assert_array_equal(longer.draws()["mu"][:, :DRAWS], uninterrupted["mu"])


@pytest.fixture
def stored(tmp_path):
    pf.fit(schools(), key=5, num_samples=30, num_warmup=30, store=tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_resuming_a_finished_run_returns_it(stored):
    assert pf.resume(stored, schools(), progress=False).draws()["mu"].shape == (4, 30)
    longer = pf.resume(stored, schools(), num_samples=50, progress=False).draws()
    whole = pf.fit(schools(), key=5, num_samples=50, num_warmup=30, progress=False).draws()
    np.testing.assert_array_equal(longer["theta"], whole["theta"])


def test_a_run_killed_before_its_first_checkpoint_is_resumed_for_longer(stored):
    shutil.rmtree(stored / "checkpoint")
    longer = pf.resume(stored, schools(), num_samples=50, progress=False).draws()
    whole = pf.fit(schools(), key=5, num_samples=50, num_warmup=30, progress=False).draws()
    np.testing.assert_array_equal(longer["theta"], whole["theta"])


def test_another_target_is_refused(stored):
    with pytest.raises(pf.StoreError, match=r"holds a run of another target .*mu, tau, z"):
        pf.resume(stored, gaussian())
    with pytest.raises(pf.StoreError, match="the model or its data differ"):
        pf.resume(stored, pf.Target.from_numpyro(eight_schools, SIGMA, y=Y + 1))


def test_another_method_is_refused(stored):
    with pytest.raises(pf.StoreError, match="was run with NUTS, not with HMC"):
        pf.resume(stored, schools(), method=pf.HMC())
    with pytest.raises(pf.StoreError, match=r"NUTS\(target_acceptance=0\.8\), not with target_acceptance=0\.9;"):
        pf.resume(stored, schools(), method=pf.NUTS(target_acceptance=0.9))


def test_another_version_is_refused(stored, monkeypatch):
    from pushforward.infer.run import checkpoint

    monkeypatch.setattr(checkpoint, "versions", lambda: {"pushforward": "9.9"})
    with pytest.raises(pf.StoreError, match=r"written by pushforward 0\..*; this is 9\.9"):
        pf.resume(stored, schools())


def test_a_missing_store_is_one_sentence(tmp_path):
    with pytest.raises(pf.StoreError, match="nowhere"):
        pf.resume(tmp_path / "nowhere", schools())
    with pytest.raises(pf.StoreError, match="nowhere"):
        pf.load(tmp_path / "nowhere")


def test_damaged_checkpoints_are_named(stored):
    for file in (stored / "checkpoint").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(pf.StoreError, match=r"checkpoint.*draws"):
        pf.resume(stored, schools())
    assert pf.load(stored).draws()["mu"].shape == (4, 30)


def test_store_is_not_overwritten_unasked(stored):
    with pytest.raises(pf.StoreError, match="overwrite"):
        pf.fit(schools(), num_samples=5, num_warmup=5, store=stored, progress=False)
    pf.fit(schools(), num_samples=5, num_warmup=5, store=stored, overwrite=True, progress=False)
    assert pf.load(stored).draws()["mu"].shape == (4, 5)


def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    """The disk takes two megabytes and no more."""
    from pushforward.infer.store.layout import Disk

    written = 0

    def write(self, name, data, *args, original=Disk.write, **kwargs):
        nonlocal written
        written += len(data)
        if written > 2_000_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, name, data, *args, **kwargs)

    monkeypatch.setattr(Disk, "write", write)
    path = tmp_path / "run"
    with pytest.raises(pf.StoreError, match=r"No space left on device.*readable"):
        pf.fit(
            schools(), num_samples=5000, num_warmup=50, store=path, chunk_length=100, checkpoint_every=0, progress=False
        )
    monkeypatch.undo()
    kept = pf.load(path).draws()["mu"]
    assert 0 < kept.shape[1] < 5000
    whole = pf.fit(schools(), num_samples=5000, num_warmup=50, progress=False).draws()["mu"]
    np.testing.assert_array_equal(kept, whole[:, : kept.shape[1]])
    resumed = pf.resume(path, schools(), progress=False).draws()["mu"]
    np.testing.assert_array_equal(resumed, whole)


def test_one_ctrl_c_ends_the_run_after_its_chunks():
    """A real SIGINT in a child process: the posterior comes back, partial, and extending it completes the draws."""
    code = (
        "import os, signal, threading\n"
        "import pushforward as pf\n"
        "from pushforward.infer.run import driver\n"
        "from tests.run.models import schools\n"
        "target = schools()\n"
        "original = driver.Run._after_chunk\n"
        "def after_chunk(self, stage, progress):\n"
        "    original(self, stage, progress)\n"
        "    if stage.keep and self.kept == 100:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "driver.Run._after_chunk = after_chunk\n"
        "posterior = pf.fit(target, num_samples=2000, num_warmup=50, chunk_length=50, progress=False)\n"
        "assert posterior.record['stopped'] == 'interrupted', posterior\n"
        "assert 100 <= posterior.draws()['mu'].shape[1] < 400, posterior\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_draws_are_seen_between_checkpoints(tmp_path, monkeypatch):
    from pushforward.infer.run import driver

    monkeypatch.setattr(driver, "FLUSH_SECONDS", 0.0)
    seen = []

    def after_chunk(self, stage, progress, original=driver.Run._after_chunk):
        original(self, stage, progress)
        if stage.keep and self.kept:
            seen.append((self.kept, pf.load(tmp_path / "run").draws()["mu"].shape[1]))

    monkeypatch.setattr(driver.Run, "_after_chunk", after_chunk)
    pf.fit(schools(), num_samples=300, num_warmup=30, chunk_length=50, store=tmp_path / "run", progress=False)
    assert len(seen) > 3
    assert all(kept == visible for kept, visible in seen)


def test_a_method_is_rebuilt_from_its_record_unless_it_was_given_objects():
    """The mirror that MirroredSVGD takes by default is no plain data, and needs not be."""
    from pushforward.infer.geometry import SimplexBarrier
    from pushforward.infer.run.plan import rebuild_method, record_method

    for method in (pf.MirroredSVGD(num_particles=7), pf.SVMD(spectrum=0.9), pf.MirrorLangevin(), pf.NUTS()):
        found = rebuild_method(record_method(method), None, "store")
        assert record_method(found) == record_method(method)
    with pytest.raises(pf.StoreError, match=r"MirroredSVGD, whose mirror cannot be rebuilt .* pass it as method="):
        rebuild_method(record_method(pf.MirroredSVGD(mirror={"p": SimplexBarrier()})), None, "store")
