"""Runs that a stopping rule has ended, and what goes on from them."""

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.run import driver
from tests.run.models import gaussian

GOAL = {"key": 0, "num_warmup": 200, "target_ess": 800, "chunk_length": 20, "progress": False}


@pytest.fixture(scope="module")
def long():
    return pf.fit(gaussian(), key=0, num_warmup=200, num_samples=700, progress=False).draws()["x"]


def test_a_goal_reached_stays_reached_and_can_be_extended(long, tmp_path):
    reached = pf.fit(gaussian(), **GOAL, store=tmp_path / "run")
    n = reached.draws()["x"].shape[1]
    assert n in range(100, 600, 100)
    again = pf.resume(tmp_path / "run", gaussian(), progress=False)
    assert again.draws()["x"].shape[1] == n
    assert again.record["stopped"] == "bulk ESS 800 reached"
    assert repr(again).endswith("draws; bulk ESS 800 reached")
    assert again.diagnose()["goal"].level == "ok"
    np.testing.assert_array_equal(again.extend(50, progress=False).draws()["x"], long[:, : n + 50])
    np.testing.assert_array_equal(pf.fit(gaussian(), **GOAL).extend(50, progress=False).draws()["x"], long[:, : n + 50])


def test_a_run_killed_at_a_look_still_takes_it(tmp_path, monkeypatch):
    """The checkpoint is written, the goal not yet looked at: resuming ends at the same draw."""
    expected = pf.fit(gaussian(), **GOAL).draws()["x"]
    looks = []

    def killed(run):
        looks.append(run.kept)
        if len(looks) == expected.shape[1] // 100:
            raise SystemExit  # no later checkpoint
        return goal_reached(run)

    goal_reached = driver.Run._goal_reached
    monkeypatch.setattr(driver.Run, "_goal_reached", killed)
    with pytest.raises(SystemExit):
        pf.fit(gaussian(), **GOAL, store=tmp_path / "run", checkpoint_every=0)
    monkeypatch.undo()
    np.testing.assert_array_equal(pf.resume(tmp_path / "run", gaussian(), progress=False).draws()["x"], expected)


def test_a_spent_budget_does_not_count_for_draws_asked_for_later(long):
    short = pf.fit(gaussian(), key=0, num_warmup=200, max_evaluations=6000, chunk_length=20, progress=False)
    n = short.draws()["x"].shape[1]
    assert 0 < n < 600
    longer = short.extend(60, progress=False)
    assert longer.record["stopped"] is None
    np.testing.assert_array_equal(longer.draws()["x"], long[:, : n + 60])


def test_a_run_whose_time_was_up_goes_on_for_more(tmp_path, long):
    options = {"key": 0, "num_warmup": 200, "num_samples": 700, "chunk_length": 20, "progress": False}
    with pytest.raises(pf.InvalidArgument, match="no draws: the budget of 1e-09 seconds is spent"):
        pf.fit(gaussian(), max_seconds=1e-9, store=tmp_path / "run", **options)
    with pytest.raises(pf.InvalidArgument, match="max_seconds must be a finite number > 0, got -1"):
        pf.resume(tmp_path / "run", gaussian(), max_seconds=-1, progress=False)
    with pytest.raises(pf.InvalidArgument, match=r"no draws: the budget of .* seconds is spent"):
        pf.resume(tmp_path / "run", gaussian(), max_seconds=1e-9, progress=False)
    whole = pf.resume(tmp_path / "run", gaussian(), max_seconds=1e6, progress=False)
    assert whole.record["stopped"] is None
    np.testing.assert_array_equal(whole.draws()["x"], long)


def test_a_budget_spent_before_the_first_draw(tmp_path, long):
    with pytest.raises(pf.InvalidArgument, match=r"no draws: the budget of 10 evaluations is spent, in stage 'settle'"):
        pf.fit(gaussian(), key=0, num_warmup=200, max_evaluations=10, progress=False, store=tmp_path / "run")
    with pytest.raises(pf.StoreError, match="has no draws yet"):
        pf.load(tmp_path / "run").summary()
    went_on = pf.resume(tmp_path / "run", gaussian(), num_samples=40, progress=False)
    np.testing.assert_array_equal(went_on.draws()["x"], long[:, :40])


def test_warm_up_is_counted_whole_where_draws_are_thinned():
    """Warm-up has a slot per iteration, whatever the thinning of the draws."""
    options = {"key": 0, "num_chains": 1, "num_warmup": 3000, "chunk_length": 3000, "progress": False}
    thinned = pf.fit(gaussian(), num_samples=5, thin=10, **options)
    plain = pf.fit(gaussian(), num_samples=50, **options)
    assert thinned.record["totals"] == plain.record["totals"]
    np.testing.assert_array_equal(thinned.draws()["x"], plain.draws()["x"][:, 9::10])


def test_extending_leaves_the_posterior_as_it_is(long, tmp_path):
    short = pf.fit(gaussian(), key=0, num_warmup=200, num_samples=50, progress=False)
    for _ in range(2):
        np.testing.assert_array_equal(short.extend(30, progress=False).draws()["x"], long[:, :80])
    short.save(tmp_path / "saved")
    loaded = pf.load(tmp_path / "saved", gaussian())
    np.testing.assert_array_equal(loaded.extend(10, progress=False).draws()["x"], long[:, :60])
