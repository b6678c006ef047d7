"""Summary tables: against ArviZ, in bounded memory, for every kind."""

import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from pushforward.infer.diagnostics import draws
from pushforward.infer.diagnostics.summary import format_summary, statistics, summary, table
from pushforward.infer.errors import InvalidArgument


def chain_tree(rng=None, draw=200):
    import arviz_base

    rng = rng or np.random.default_rng(0)
    values = {
        "a": rng.normal(size=(4, draw)),
        "b": rng.normal(size=(4, draw, 2, 3)),
        "theta": rng.normal(3, 2, size=(4, draw, 2)),
        "k": rng.poisson(3, size=(4, draw)),
    }
    return arviz_base.from_dict(
        {"posterior": values}, dims={"theta": ["school"]}, coords={"school": ["Choate", "Deer"]}
    )


def cloud(values, dims=("particle",)):
    import xarray

    return xarray.DataTree.from_dict({"posterior": xarray.Dataset(
        {name: ((*dims, *(f"{name}_{i}" for i in range(v.ndim - len(dims)))), v) for name, v in values.items()}
    )})  # fmt: skip


def test_equal_to_arviz():
    import arviz_stats

    tree = chain_tree()
    ours, reference = summary(tree, "chains"), arviz_stats.summary(tree, round_to="none")
    assert list(ours.index) == list(reference.index)
    assert list(ours.columns) == list(reference.columns)
    assert "theta[Choate]" in ours.index
    for name in ours.columns.drop("ess_tail"):  # ArviZ's table takes the tails of its interval, the paper 5 % and 95 %
        np.testing.assert_allclose(ours[name].astype(float), reference[name].astype(float), rtol=1e-10, err_msg=name)


def test_choice_of_variables_interval_and_rounding():
    tree = chain_tree()
    few = summary(tree, "chains", var_names=["theta", "a"], ci_prob=0.5, round_to=2)
    assert list(few.index) == ["theta[Choate]", "theta[Deer]", "a"]
    assert few.columns[2:4].tolist() == ["eti50_lb", "eti50_ub"]
    assert few.loc["a", "mean"] == round(float(tree["posterior"]["a"].mean()), 2)
    low, high = np.quantile(tree["posterior"]["a"], [0.25, 0.75])
    np.testing.assert_allclose(summary(tree, "chains", ci_prob=0.5).loc["a"].iloc[2:4], [low, high])
    stats = statistics(tree, "chains")
    assert summary(tree, "chains", stats=stats).equals(summary(tree, "chains"))
    assert list(table(stats)) == list(summary(tree, "chains").columns)


def test_text_has_the_digits_that_the_error_supports():
    text = format_summary(summary(chain_tree(), "chains"))
    assert text.loc["a", "ess_bulk"].isdigit()
    assert len(text.loc["a", "r_hat"].split(".")[1]) == 3
    assert len(text.loc["a", "mean"].split(".")[1]) == 3  # mcse 1/sqrt(800) = 0.035
    assert summary(chain_tree(), "chains", round_to="auto").equals(text)


@pytest.mark.parametrize(
    ("read", "block"), [(1, 1), (4 * 50 * 8 * 3, 4 * 50 * 8 * 2), (10**9, 4 * 50 * 8 * 5), (10**9, 10**9)]
)
def test_blocks_give_every_scalar_once_and_in_order(monkeypatch, read, block):
    monkeypatch.setattr(draws, "READ_BYTES", read)
    monkeypatch.setattr(draws, "BLOCK_BYTES", block)
    rng = np.random.default_rng(1)
    values = {"a": rng.normal(size=(4, 50)), "b": rng.normal(size=(4, 50, 3, 2, 2)), "c": rng.normal(size=(4, 50, 7)),
              "none": np.zeros((4, 50, 0)), "n": rng.integers(0, 9, size=(4, 50, 2))}  # fmt: skip
    tree = cloud(values, ("chain", "draw"))
    found = list(draws.blocks(tree["posterior"]))
    got = np.concatenate([b.values for b in found])
    want = np.concatenate([np.moveaxis(v.reshape(4, 50, -1), -1, 0) for v in values.values()])
    np.testing.assert_array_equal(got, want)
    labels = [label for b in found for label in b.labels]
    assert labels[:4] == ["a", "b[0, 0, 0]", "b[0, 0, 1]", "b[0, 1, 0]"]
    assert len(labels) == len(set(labels)) == len(want)
    assert all(len(b.labels) == len(b.sites) == len(b.values) == len(b.resolution) for b in found)


def test_memory_stays_flat_for_a_stored_run(tmp_path):
    """A hundred thousand draws of four chains: the peak is that of one scalar's work, however many there are."""
    import xarray

    rng, path = np.random.default_rng(2), tmp_path / "run.zarr"
    values = rng.normal(size=(4, 100_000, 12))
    xarray.DataTree.from_dict({"posterior": xarray.Dataset({"x": (("chain", "draw", "i"), values)})}).to_zarr(
        path, encoding={"/posterior": {"x": {"chunks": (4, 5000, 12)}}}, consolidated=False
    )
    first = summary(cloud({"x": values[..., :1]}, ("chain", "draw")), "chains")
    del values
    tree = xarray.open_datatree(path, engine="zarr", chunks=None, consolidated=False)
    tracemalloc.start()
    stored = summary(tree, "chains")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tree.close()
    assert peak < 64 * 2**20  # of 37 MiB stored
    np.testing.assert_array_equal(stored.iloc[0], first.iloc[0])


def test_fast():
    """A hundred scalars of 4 × 1,000 draws in well below 0.2 s (a loaded machine gets three times that)."""
    tree = cloud({"x": np.random.default_rng(3).normal(size=(4, 1000, 100))}, ("chain", "draw"))
    summary(tree, "chains")
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        statistics(tree, "chains")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.6


def test_imports_are_light():
    """The statistics need NumPy only; pandas comes with the table, ArviZ and SciPy never."""
    code = (
        "import sys, pushforward.infer.diagnostics.summary, pushforward.infer.diagnostics.diagnose\n"
        "heavy = {'scipy', 'pandas', 'xarray', 'arviz_stats', 'arviz_base', 'matplotlib', 'zarr'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weighted_particles_by_hand():
    rng = np.random.default_rng(4)
    x, log_weights = rng.normal(size=(500, 2)), rng.normal(size=500) + 100.0
    out = summary(cloud({"x": x}), "particles", log_weights=log_weights)
    w = np.exp(log_weights - 100.0)
    w /= w.sum()
    mean = w @ x
    np.testing.assert_allclose(out["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(out["sd"], np.sqrt(w @ (x - mean) ** 2 / (1 - w @ w)), rtol=1e-12)
    np.testing.assert_allclose(out["mcse_mean"], out["sd"] * np.sqrt(w @ w), rtol=1e-12)
    assert list(out.columns) == ["mean", "sd", "eti89_lb", "eti89_ub", "mcse_mean"]
    inside = [w[(x[:, i] >= out["eti89_lb"].iloc[i]) & (x[:, i] <= out["eti89_ub"].iloc[i])].sum() for i in range(2)]
    np.testing.assert_allclose(inside, 0.89, atol=0.01)


def test_particles_without_weights_have_no_monte_carlo_error():
    x = np.random.default_rng(5).normal(size=(300, 1))
    out = summary(cloud({"x": x}), "particles")
    assert list(out.columns) == ["mean", "sd", "eti89_lb", "eti89_ub"]
    np.testing.assert_allclose(out.iloc[0], [x.mean(), x.std(ddof=1), *np.quantile(x, [0.055, 0.945])], rtol=1e-12)


def test_approximation_is_reweighted_beside_its_own_moments():
    """q = N(0, 1.2²), π = N(0.3, 1)."""
    x = 1.2 * np.random.default_rng(6).normal(size=(1, 20_000))
    log_weights = -0.5 * (x - 0.3) ** 2 + 0.5 * (x / 1.2) ** 2
    out = summary(cloud({"x": x}, ("chain", "draw")), "approximation", log_weights=log_weights).loc["x"]
    assert out["mean"] == pytest.approx(0.0, abs=4 * out["mcse_mean"])
    assert out["mcse_mean"] == pytest.approx(1.2 / np.sqrt(20_000), rel=0.02)
    assert out["psis_mean"] == pytest.approx(0.3, abs=4 * out["psis_mcse_mean"])
    assert out["psis_sd"] == pytest.approx(1.0, abs=0.03)
    assert out["psis_mcse_mean"] < 0.02


def test_bad_input():
    tree = chain_tree()
    with pytest.raises(InvalidArgument, match="var_names has 'beta'; the posterior has a, b, theta, k"):
        summary(tree, "chains", var_names="beta")
    with pytest.raises(InvalidArgument, match="kind must be one of 'chains', 'particles', 'approximation', got 'mcmc'"):
        summary(tree, "mcmc")
    with pytest.raises(InvalidArgument, match="log_weights has 3 values for 800 draws"):
        summary(tree, "approximation", log_weights=np.zeros(3))
    with pytest.raises(InvalidArgument, match="ci_prob must be a finite number strictly between 0 and 1, got 89"):
        summary(tree, "chains", ci_prob=89)
    with pytest.raises(InvalidArgument, match="it needs chain and draw, or particle"):
        summary(cloud({"x": np.zeros(3)}, ("sample",)), "chains")
    with pytest.raises(InvalidArgument, match="at least one draw"):
        summary(cloud({"x": np.zeros((4, 0))}, ("chain", "draw")), "chains")
    with pytest.raises(InvalidArgument, match="none of them is numeric"):
        summary(cloud({"x": np.full((4, 9), "text")}, ("chain", "draw")), "chains")
