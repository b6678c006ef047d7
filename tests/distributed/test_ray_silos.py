"""Silos as Ray actors; skipped where Ray is not installed."""

import os
from functools import partial

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.distributed.silos import InProcess, federate
from tests.distributed.silo_steps import Server, dying_step, failing_step, make_step

pytest.importorskip("ray")
from pushforward.infer.distributed.ray_silos import RayActors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
LOCAL = {"num_cpus": 2, "object_store_memory": 200 * 2**20}
ROUNDS = 12


@pytest.fixture(scope="module", autouse=True)
def ray_here():
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(include_dashboard=False, log_to_driver=False, **LOCAL)
    yield
    ray.shutdown()


def test_a_killed_silo_comes_back_and_the_chain_is_the_same(tmp_path):
    alone = federate(Server(), InProcess(make_step, 3), num_rounds=ROUNDS, seed=3)
    with RayActors(partial(dying_step, str(tmp_path)), 3) as silos:
        run = federate(Server(), silos, num_rounds=ROUNDS, seed=3, attempts=10)
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(run.draws["x"], alone.draws["x"])
    assert not run.missed


def test_a_step_that_raises_is_named():
    with RayActors(failing_step, 3) as silos, pytest.raises(pf.DistributedError, match="silo 2 failed in round 3"):
        federate(Server(), silos, num_rounds=ROUNDS)
