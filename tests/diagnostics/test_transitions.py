"""BFMI, divergences that concentrate, chains that are stuck or apart."""

import numpy as np
import pytest

from pushforward.infer.diagnostics.transitions import bfmi, divergence_sites, odd_chains, sample_stat, still_chains


def tree(posterior, **sample_stats):
    import arviz_base

    groups = {"posterior": posterior}
    if sample_stats:
        groups["sample_stats"] = sample_stats
    return arviz_base.from_dict(groups)


def test_bfmi_by_hand():
    energy = np.array([[1.0, 2.0, 4.0, 3.0], [0.0, 1.0, 0.0, 1.0]])
    steps = [(1 + 4 + 1) / 3, 1.0]
    np.testing.assert_allclose(bfmi(energy), [steps[0] / np.var(energy[0], ddof=1), steps[1] / (1 / 3)], rtol=1e-14)


def test_bfmi_of_known_chains():
    """E[(ΔE)²]/Var[E] = 2(1 − ρ) for AR(1) energies; and as ArviZ has it."""
    from arviz_stats.base import array_stats

    rng = np.random.default_rng(0)
    energy = rng.normal(size=(4, 20_000))
    np.testing.assert_allclose(bfmi(energy), 2.0, atol=0.1)
    slow = energy.copy()
    for t in range(1, slow.shape[1]):
        slow[:, t] = 0.9 * slow[:, t - 1] + np.sqrt(1 - 0.81) * slow[:, t]
    np.testing.assert_allclose(bfmi(slow), 0.2, atol=0.02)
    np.testing.assert_allclose(bfmi(slow), array_stats.bfmi(slow), rtol=1e-12)


def test_divergences_at_low_tau_are_located():
    rng = np.random.default_rng(1)
    tau = np.exp(rng.normal(size=(4, 1000)))
    theta = tau[..., None] * rng.normal(size=(4, 1000, 8))
    mu = rng.normal(size=(4, 1000))
    low = np.flatnonzero(tau.ravel() < np.quantile(tau, 0.05))
    diverging = np.zeros(4000, bool)
    diverging[rng.choice(low, 23, replace=False)] = True
    diverging[rng.choice(4000, 8, replace=False)] = True
    diverging = diverging.reshape(4, 1000)
    found = divergence_sites(tree({"mu": mu, "theta": theta, "tau": tau}), diverging)
    assert found[0].label == "tau"
    assert found[0].side == "lowest"
    assert found[0].total == diverging.sum()
    assert found[0].count >= 23
    assert found[0].share == pytest.approx(0.05)
    assert f"{found[0].count} of {found[0].total} lie in the lowest 5 % of tau" == str(found[0])
    assert all(place.label == "tau" for place in found)


def test_divergences_at_a_high_value_of_an_element_are_located():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 500, 3))
    diverging = (x[..., 1] > np.quantile(x[..., 1], 0.9)) & (rng.random((4, 500)) < 0.1)
    found = divergence_sites(tree({"x": x}), diverging)
    assert [(p.label, p.side) for p in found] == [("x[1]", "highest")]


def test_scattered_divergences_concentrate_nowhere():
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(40):
        x = rng.normal(size=(4, 1000, 50))
        diverging = rng.random((4, 1000)) < 0.005
        wrong += bool(divergence_sites(tree({"x": x}), diverging))
    assert wrong <= 1


def test_a_run_of_divergences_is_one_event():
    """Twenty divergent transitions in a row lie close together whatever the reason; they are no evidence."""
    rng = np.random.default_rng(4)
    x = np.cumsum(rng.normal(size=(4, 1000)), axis=-1)
    diverging = np.zeros((4, 1000), bool)
    diverging[2, 500:520] = True
    assert divergence_sites(tree({"x": x}), diverging) == []


def test_still_chains():
    rng = np.random.default_rng(5)
    moves, sd = np.ones((3, 4)), rng.uniform(0.9, 1.1, size=(3, 4))
    assert still_chains(moves, sd, np.full((4, 100), 0.8)) == {}
    moves[:, 2] = 0.01
    assert list(still_chains(moves, sd, None)) == [2]
    acceptance = np.full((4, 100), 0.8)
    acceptance[1] = 0.001
    assert list(still_chains(np.ones((3, 4)), sd, acceptance)) == [1]
    sd[:, 3] = 0.01
    assert list(still_chains(np.ones((3, 4)), sd, None)) == [3]


def test_odd_chains():
    assert odd_chains(np.array([[0.1, -0.1, 0.0, 1.2]]), ["x"]) == {3: ["x"]}
    assert odd_chains(np.array([[0.9, -0.9, 0.9, -0.9]]), ["x"]) == {}  # two and two: no chain is alone
    assert odd_chains(np.array([[0.9, -0.9]]), ["x"]) == {}
    both = odd_chains(np.array([[0.0, 0.0, 0.0, 0.8], [0.0, 0.1, 0.0, 1.4]]), ["x", "y"])
    assert both == {3: ["y", "x"]}


def test_names_of_other_samplers():
    x = np.zeros((2, 5))
    assert sample_stat(tree({"x": x}), "diverging") is None
    other = tree({"x": x}, accept_prob=x + 0.5, reached_max_treedepth=x > 0)
    assert sample_stat(other, "acceptance_rate").shape == (2, 5)
    assert not sample_stat(other, "reached_max_tree_depth").any()
