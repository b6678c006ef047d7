"""Independent jobs: results in order, failures as outcomes, deaths tried again."""

import os

import pytest

import pushforward as pf
from tests.distributed.sweep_jobs import gone, square, unlucky


def test_results_in_order_and_an_error_in_its_place():
    seen = []
    found = pf.distributed.sweep(square, range(5), num_workers=2, done=lambda number, outcome: seen.append(number))
    assert [one.setting for one in found] == [0, 1, 2, 3, 4]
    assert [one.result and one.result["square"] for one in found] == [0, 1, 4, None, 16]
    assert "ValueError: three is not for squaring (" in found[3].error
    assert "sweep_jobs.py:" in found[3].error
    assert [one.attempts for one in found] == [1] * 5
    assert sorted(seen) == [0, 1, 2, 3, 4]
    pids = {one.result["pid"] for one in found if one.result}
    assert len(pids) <= 2
    assert os.getpid() not in pids


def test_deaths_are_tried_again_and_the_late_are_ended(tmp_path):
    names = ["good", "once", "never"]
    found = pf.distributed.sweep(unlucky, [(str(tmp_path), name) for name in names], num_workers=2)
    assert [one.result for one in found] == ["good", "once", None]
    assert [one.attempts for one in found] == [1, 2, 2]
    assert found[2].error == "its process died"
    (late,) = pf.distributed.sweep(unlucky, [(str(tmp_path), "slow")], attempts=1, timeout=4)
    assert late.error == "it did not end within 4 seconds, and its process was ended"


def test_a_result_that_does_not_pickle_is_an_error():
    assert "its result cannot be sent: " in pf.distributed.sweep(gone, [1])[0].error


def test_nothing_to_do_and_bad_arguments():
    assert pf.distributed.sweep(square, []) == []
    with pytest.raises(pf.InvalidArgument, match="engine must be one of 'processes', 'ray', got 'threads'"):
        pf.distributed.sweep(square, [1], engine="threads")
    with pytest.raises(pf.InvalidArgument, match="attempts"):
        pf.distributed.sweep(square, [1], attempts=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_same_as_ray_tasks(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = pf.distributed.sweep(square, range(5), engine="ray", num_workers=2)
    assert [one.result and one.result["square"] for one in found] == [0, 1, 4, None, 16]
    assert "three is not for squaring" in found[3].error
    jobs = [(str(tmp_path), name) for name in ("good", "once", "never")]
    found = pf.distributed.sweep(unlucky, jobs, engine="ray")
    assert [one.result for one in found] == ["good", "once", None]
    assert found[2].error.startswith("its process died (")
