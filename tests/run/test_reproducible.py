"""The same key gives the same bits, however the run is cut up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import pushforward as pf
from tests.run.models import schools

ROOT = Path(__file__).resolve().parents[2]


def same(a, b):
    a, b = a.draws(), b.draws()
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


def run(**options):
    return pf.fit(
        schools(), pf.NUTS(), **{"key": 3, "num_samples": 120, "num_warmup": 150, "progress": False} | options
    )


@pytest.fixture(scope="module")
def plain():
    return run()


@pytest.mark.parametrize("length", [1, 7, 64])
def test_chunk_length_changes_no_bit(plain, length):
    assert same(plain, run(chunk_length=length))


def test_another_key_gives_other_draws(plain):
    assert not same(plain, run(key=4))


def test_int_and_jax_key_agree(plain):
    assert same(plain, run(key=jax.random.key(3)))
    assert same(plain, run(key=jax.random.PRNGKey(3)))
    assert plain.record["plan"]["key"] == [0, 3]


def test_store_holds_the_same_draws(plain, tmp_path):
    assert same(plain, run(store=tmp_path / "run"))


def test_thinning_keeps_every_kth(plain):
    thinned = run(num_samples=40, thin=3).draws()
    for name, draws in plain.draws().items():
        np.testing.assert_array_equal(thinned[name], draws[:, 2::3])


def test_thinned_stats_add_up(plain):
    thinned = run(num_samples=40, thin=3).data["sample_stats"]
    stats = plain.data["sample_stats"]
    for name in ("n_steps", "num_evaluations"):
        np.testing.assert_array_equal(thinned[name], stats[name].values.reshape(4, 40, 3).sum(-1))
    np.testing.assert_array_equal(thinned["tree_depth"], stats["tree_depth"].values.reshape(4, 40, 3).max(-1))
    np.testing.assert_array_equal(thinned["lp"], stats["lp"].values[:, 2::3])


def test_sites_kept(plain):
    kept = run(sites=["theta", "mu"])
    assert set(kept.draws()) == {"theta", "mu"}
    np.testing.assert_array_equal(kept.draws()["theta"], plain.draws()["theta"])


@pytest.mark.parametrize("stored", [False, True])
def test_extend_is_a_longer_run(plain, stored, tmp_path):
    short = run(num_samples=50, **({"store": tmp_path / "run"} if stored else {}))
    longer = short.extend(70, progress=False)
    assert same(longer, plain)


def test_saved_and_loaded(plain, tmp_path):
    run(num_samples=50).save(tmp_path / "saved")
    loaded = pf.load(tmp_path / "saved", schools())
    assert same(loaded, run(num_samples=50))
    assert same(loaded.extend(70, progress=False), plain)


def test_groups_of_two_share_a_program():
    together = run(chains_per_program=2)
    assert together.record["plan"]["chains_per_program"] == 2
    assert same(together, run(chains_per_program=2, chunk_length=11))


def test_devices_change_no_bit(plain):
    """Four devices in a child process, one program per chain, against threads on one device here."""
    code = (
        "import json, jax, numpy as np\n"
        "from tests.run.test_reproducible import run\n"
        "assert jax.local_device_count() == 4\n"
        "print(json.dumps({k: v.tolist() for k, v in run().draws().items()}))\n"
    )
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    elsewhere = json.loads(out.stdout)
    for name, draws in plain.draws().items():
        np.testing.assert_array_equal(draws, elsewhere[name])
