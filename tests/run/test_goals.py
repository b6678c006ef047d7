"""A run that ends once its draws are good enough, in memory and in a store."""

import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.diagnostics.chains import chain_statistics, worst_ess, worst_rhat


def normal(u):
    return -0.5 * (u**2).sum()


@pytest.mark.parametrize("stored", [False, True])
def test_ends_at_the_goal(stored, tmp_path):
    target = pf.Target.from_log_density(normal, np.zeros(2))
    store = tmp_path / "run" if stored else None
    posterior = pf.fit(target, key=0, num_warmup=200, target_ess=800, target_rhat=1.02, store=store, progress=False)
    draws = posterior.draws()["x"]
    assert posterior.record["stopped"] == "bulk ESS 800 and R-hat 1.02 reached"
    assert draws.shape[1] in (200, 300, 400, 500)
    assert worst_ess({"x": draws}) >= 800
    assert worst_rhat({"x": draws}) <= 1.02
    # It was not reached at the look before.
    before = {"x": draws[:, :-100]}
    assert worst_ess(before) < 800 or worst_rhat(before) > 1.02


def test_worst_are_those_of_the_worst_scalar():
    rng = np.random.default_rng(0)
    good = rng.normal(size=(4, 500, 3))
    stuck = rng.normal(size=(4, 500)) + np.arange(4)[:, None]
    draws = {"good": good, "stuck": stuck}
    expected = chain_statistics(stuck[None])
    assert worst_ess(draws) == expected["ess_bulk"][0]
    assert worst_rhat(draws) == expected["r_hat"][0]
    assert worst_rhat({"constant": np.ones((4, 500)), "good": good}) < 1.02
    assert worst_rhat({"x": np.full((4, 500), np.nan)}) == np.inf
    assert worst_ess({"x": np.full((4, 500), np.nan)}) == 0
