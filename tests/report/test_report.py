"""The HTML report: complete in itself, right for its kind, and without side effects."""

import re

import numpy as np
import pytest

from pushforward.infer.diagnostics.diagnose import diagnose
from pushforward.infer.diagnostics.summary import summary
from pushforward.infer.errors import InvalidArgument, StoreError
from pushforward.infer.report import figures, selection, write_report

RECORD = {
    "method": {"name": "NUTS", "target_acceptance": 0.8},
    "plan": {"key": 7, "num_warmup": 1000, "precision": 64},
    "versions": {"pushforward": "0.1.0"},
    "seconds": 3.25,
    "evaluations": 123456,
    "stopped": None,
    "note": "<script>alert(1)</script>",
}


def tree(groups, dims=("chain", "draw")):
    import xarray

    def dataset(name, values):
        lead = () if name == "observed_data" else dims
        return xarray.Dataset({
            k: ((*lead, *(f"{k}_{i}" for i in range(v.ndim - len(lead)))), v) for k, v in values.items()
        })  # fmt: skip

    return xarray.DataTree.from_dict({name: dataset(name, values) for name, values in groups.items()})


def write(path, data, kind, log_weights=None, title="A fit", record=None):
    diagnosis = diagnose(data, kind, log_weights=log_weights)
    table = summary(data, kind, log_weights=log_weights)
    out = write_report(
        path,
        tree=data,
        kind=kind,
        summary=table,
        diagnosis=diagnosis,
        record=RECORD if record is None else record,
        title=title,
    )
    return out, out.read_text(encoding="utf-8")


def titles(page):
    return re.findall(r"<figcaption><h3>([^<]*)</h3>", page)


def check_page(page):
    """Nothing is loaded, nothing but the page's own script runs, and every figure was drawn."""
    assert page.startswith("<!doctype html>")
    assert page.count("<script") == 1
    assert "default-src 'none'" in page
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith("data:"), source
    assert "@import" not in page
    assert "url(" not in page
    assert "could not be drawn" not in page
    assert page.count("<figure>") == page.count('src="data:image/png;base64,')
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


@pytest.fixture(scope="module")
def chains():
    """Eight-schools-like draws with everything that a report can show."""
    rng = np.random.default_rng(0)
    shape = (4, 300)
    tau = np.exp(rng.normal(size=shape))
    theta = tau[..., None] * rng.normal(size=(*shape, 8))
    y = rng.normal(size=8)
    diverging = (tau < np.quantile(tau, 0.05)) & (rng.random(shape) < 0.5)
    return tree({
        "posterior": {"tau": tau, "theta": theta, "one": np.ones(shape)},
        "sample_stats": {"diverging": diverging, "energy": rng.normal(size=shape), "lp": rng.normal(size=shape)},
        "posterior_predictive": {"y": theta + rng.normal(size=theta.shape)},
        "observed_data": {"y": y},
        "log_likelihood": {"y": -0.5 * (y - theta) ** 2 / 25},
    })  # fmt: skip


def test_chains(chains, tmp_path):
    import matplotlib
    import matplotlib.pyplot as plt

    backend, mine = matplotlib.get_backend(), plt.figure()
    before = matplotlib.rcParams.copy()
    path, page = write(tmp_path / "new" / "fit.html", chains, "chains", title="Schools & <friends>")
    assert path == tmp_path / "new" / "fit.html"
    check_page(page)
    assert titles(page) == [
        "Intervals", "Traces", "Ranks", "Effective sample size", "Energy", "Pairs", "Posterior predictive check",
        "Leave-one-out: y",
    ]  # fmt: skip
    assert "<h1>Schools &amp; &lt;friends&gt;</h1>" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "lie in the lowest 5 % of tau" in page
    assert "Shown are 6 of 9 scalars, the worst by ESS" in page
    assert "<th>theta[7]</th>" in page
    assert "Scatter of tau" in page
    assert "r_hat" in page
    assert "method.target_acceptance" in page
    assert 'download="summary.csv"' in page
    # Neither settings nor other people's figures are touched.
    assert plt.get_fignums() == [mine.number]
    assert matplotlib.rcParams == before
    assert matplotlib.get_backend() == backend
    plt.close(mine)


def test_approximation(tmp_path):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(1, 1000, 3))
    log_weights = 0.3 * rng.normal(size=1000)
    data = tree({"posterior": {"x": x}, "sample_stats": {"log_weight": log_weights[None]}})
    _, page = write(tmp_path / "fit.html", data, "approximation", log_weights)
    check_page(page)
    assert titles(page) == ["Intervals", "Marginals", "Importance weights", "Pairs"]
    assert "psis_mean" in page
    assert "r_hat" not in page
    assert "Traces" not in page


def test_particles(tmp_path):
    rng = np.random.default_rng(2)
    log_weights = rng.normal(size=400)
    data = tree(
        {"posterior": {"x": rng.normal(size=(400, 2))}, "sample_stats": {"log_weight": log_weights}}, ("particle",)
    )
    _, page = write(tmp_path / "fit.html", data, "particles", log_weights)
    check_page(page)
    assert titles(page) == ["Intervals", "Marginals", "Weights", "Pairs"]
    assert "r_hat" not in page
    assert "ess_bulk" not in page


def test_many_scalars_long_chains_and_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "MAX_DRAWS", 100)
    data = tree({"posterior": {"x": np.random.default_rng(3).normal(size=(2, 250, 500))}})
    _, page = write(tmp_path / "fit.html", data, "chains", record={})
    check_page(page)
    assert "Shown are the first 200 of 500 scalars." in page
    assert "Shown are 30 of 500 scalars, the first." in page
    assert "Every 3th draw" not in page
    assert "Every third draw is plotted" in page
    assert "Effective sample size" not in titles(page)
    assert "without a record" in page
    assert len(page) < 5e6


def test_constant_draws_and_failing_plots(tmp_path, monkeypatch):
    _, page = write(tmp_path / "fit.html", tree({"posterior": {"x": np.ones((4, 50))}}), "chains")
    assert "No scalar varies" in page
    monkeypatch.setattr(figures, "_arviz", lambda *_, **__: 1 / 0)
    data = tree({"posterior": {"x": np.random.default_rng(4).normal(size=(4, 50))}})
    _, page = write(tmp_path / "fit.html", data, "chains")
    assert "This figure could not be drawn (ZeroDivisionError: division by zero)." in page
    assert "<h2>Summary</h2>" in page


def test_partial_run_is_marked(tmp_path):
    data = tree({"posterior": {"x": np.ones((4, 50))}})
    _, page = write(tmp_path / "fit.html", data, "chains", record=RECORD | {"stopped": "interrupted"})
    assert "PARTIAL: interrupted" in page


def test_bad_paths(tmp_path):
    data = tree({"posterior": {"x": np.ones((4, 50))}})
    with pytest.raises(InvalidArgument, match="path is the folder"):
        write(tmp_path, data, "chains")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="The report cannot be written to"):
        write(tmp_path / "file" / "fit.html", data, "chains")


def test_resampling_is_systematic():
    at = selection.resample(np.log([0.5, 0.25, 0.25]), 8)
    assert at.tolist() == [0, 0, 0, 0, 1, 1, 2, 2]


def test_worst_first(chains):
    table = summary(chains, "chains")
    order = selection.worst_first(table, "chains")
    assert "one" not in order
    size = table.loc[order, ["ess_bulk", "ess_tail"]].min(axis=1)
    assert size.is_monotonic_increasing
    picked = selection.scalar_tree(chains, ["theta[3]", "tau"])["posterior"]
    np.testing.assert_array_equal(picked["theta[3]"], chains["posterior"]["theta"][..., 3])
    assert list(picked.data_vars) == ["theta[3]", "tau"]
