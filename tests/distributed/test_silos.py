"""Federated rounds: the closed form, the same bits wherever silos run, deaths, absences, checkpoints."""

from functools import partial

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.distributed.pool import ProcessPool
from pushforward.infer.distributed.silos import InProcess, federate
from tests.distributed.silo_steps import (
    Server,
    dying_step,
    exact,
    failing_step,
    late_step,
    make_step,
)

ROUNDS = 12


class Absent(InProcess):
    """Silo 1 is away in rounds 4 and 5, however often it is asked."""

    away = (4, 5)

    def ask(self, sent, round, seed, timeout):
        answers, missing = super().ask(sent, round, seed, timeout)
        if round in self.away and 1 in answers:
            del answers[1]
            missing[1] = "it is away"
        return answers, missing


class Weighted(Server):
    """One with a setting."""

    def __init__(self, weight):
        self.weight = weight


@pytest.fixture(scope="module")
def alone():
    return federate(Server(), InProcess(make_step, 3), num_rounds=ROUNDS, seed=3).draws["x"]


def test_closed_form():
    """Mean and variance of split Gibbs within three Monte Carlo errors, and bytes counted."""
    run = federate(Server(), InProcess(make_step, 3), num_rounds=20_000)
    x = run.draws["x"][100:].reshape(100, -1)
    mean, variance = exact()
    error = x.mean(1).std() / 10
    assert abs(x.mean() - mean) < 3.5 * error
    assert x.var() == pytest.approx(variance, rel=0.05)
    assert (run.bytes_sent, run.bytes_received, run.missed) == (20_000 * 3 * 8, 20_000 * 3 * 8, [])


def test_processes_die_and_the_chain_is_the_same(alone, tmp_path):
    with ProcessPool(partial(dying_step, str(tmp_path)), 3, num_workers=2) as pool:
        run = federate(Server(), pool, num_rounds=ROUNDS, seed=3)
        assert pool.restarts == 1
    assert (tmp_path / "died").exists()
    np.testing.assert_array_equal(run.draws["x"], alone)


def test_late_silo_is_kept_by_its_last_message():
    with ProcessPool(late_step, 3, num_workers=3) as pool:
        federate(Server(), pool, num_rounds=1)  # the start is no lateness
        run = federate(Server(), pool, num_rounds=9, missing="keep", timeout=1.0)
    assert run.missed == [(7, 1)]
    with (
        ProcessPool(late_step, 3) as pool,
        pytest.raises(pf.DistributedError, match="Silo 1 gave no answer in round 7"),
    ):
        federate(Server(), pool, num_rounds=9, missing="stop", timeout=3.0)


def test_a_step_that_raises_is_named():
    with pytest.raises(
        pf.DistributedError, match=r"silo 2 failed in round 3: ZeroDivisionError: no rows .*py"
    ) as raised:
        federate(Server(), InProcess(failing_step, 3), num_rounds=ROUNDS)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with (
        ProcessPool(failing_step, 3, num_workers=1) as pool,
        pytest.raises(pf.DistributedError, match=r"silo 2 failed in round 3: ZeroDivisionError: no rows"),
    ):
        federate(Server(), pool, num_rounds=ROUNDS)


def test_missing_silos_are_waited_for_kept_or_end_the_run(alone, tmp_path):
    with pytest.raises(pf.DistributedError, match=r"Silo 1 .* round 4 after 3 of 3 attempts: it is away"):
        federate(Server(), Absent(make_step, 3), num_rounds=ROUNDS, seed=3, checkpoint=tmp_path / "run.npz")
    with pytest.raises(pf.DistributedError, match=r"after 1 of 3 attempts"):
        federate(Server(), Absent(make_step, 3), num_rounds=ROUNDS, missing="stop")
    kept = federate(Server(), Absent(make_step, 3), num_rounds=ROUNDS, seed=3, missing="keep")
    assert kept.missed == [(4, 1), (5, 1)]
    np.testing.assert_array_equal(kept.draws["x"][:4], alone[:4])
    assert kept.draws["x"][4] != alone[4]
    back = federate(Server(), InProcess(make_step, 3), num_rounds=ROUNDS, seed=3, checkpoint=tmp_path / "run.npz")
    np.testing.assert_array_equal(back.draws["x"], alone)


def test_a_silo_never_seen_cannot_be_kept():
    runner = Absent(make_step, 3)
    runner.away = (0,)
    with pytest.raises(pf.DistributedError, match="Silo 1 gave no answer in round 0"):
        federate(Server(), runner, num_rounds=ROUNDS, missing="keep")


def test_checkpoints_go_on_with_the_same_bits(alone, tmp_path):
    path = tmp_path / "deep" / "run.npz"
    half = federate(Server(), InProcess(make_step, 3), num_rounds=5, seed=3, checkpoint=path, checkpoint_every=2)
    assert half.rounds == 5
    whole = federate(Server(), InProcess(make_step, 3), num_rounds=ROUNDS, seed=3, checkpoint=path)
    np.testing.assert_array_equal(whole.draws["x"], alone)
    assert whole.bytes_sent == ROUNDS * 3 * 8
    with pytest.raises(pf.InvalidArgument, match="seed 3 and 3 silos, not of seed 4"):
        federate(Server(), InProcess(make_step, 3), num_rounds=ROUNDS, seed=4, checkpoint=path)
    for other, said in ((Weighted(2.0), r"Weighted\(weight=2.0\)"), (Weighted(np.ones(2)), r"Weighted\(weight=array")):
        with pytest.raises(pf.InvalidArgument, match=rf"is of the server Server\(\), not of {said}"):
            federate(other, InProcess(make_step, 3), num_rounds=ROUNDS, seed=3, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(pf.InvalidArgument, match="no checkpoint of federated rounds"):
        federate(Server(), InProcess(make_step, 3), num_rounds=ROUNDS, seed=3, checkpoint=path)


def test_bad_arguments():
    runner = InProcess(make_step, 3)
    with pytest.raises(pf.InvalidArgument, match="missing must be one of"):
        federate(Server(), runner, num_rounds=1, missing="average")
    with pytest.raises(pf.InvalidArgument, match="num_rounds"):
        federate(Server(), runner, num_rounds=0)
    with pytest.raises(pf.InvalidArgument, match="dict of arrays by name, got float"):
        federate(Server(), InProcess(lambda silo: lambda *a: 1.0, 3), num_rounds=1)
