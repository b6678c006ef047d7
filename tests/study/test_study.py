"""Studies: metrics with known values, equal budgets, stores that survive a kill."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.stats import norm

import pushforward as pf
from pushforward.cli import run as command
from pushforward.infer.study import study as module
from pushforward.infer.study.ledger import Ledger
from pushforward.infer.study.metrics import METRICS, Sample, floor
from pushforward.infer.study.reference import make_truth
from pushforward.infer.study.results import Results
from tests.study import jobs

COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])
MEAN = np.array([3.0, -1.0])
PRECISION = np.linalg.inv(COVARIANCE)
LOG_EVIDENCE = float(np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(COVARIANCE)[1])


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """No command writes into the user's cache, and none leaves its settings behind."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def density(x, p):
    return -0.5 * (x - MEAN) @ p @ (x - MEAN)


def draws(n, seed=0):
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, size=n)


@pytest.fixture(scope="module")
def target():
    return pf.Target.from_log_density(density, np.zeros(2), data=PRECISION)


@pytest.fixture(scope="module")
def truth(target):
    return make_truth("gauss", target, {"x": draws(20_000), "log_evidence": LOG_EVIDENCE})


def sample(truth, scalars, weights=None, **options):
    base = {
        "chains": 0,
        "u": lambda index: None,
        "evidence": lambda: LOG_EVIDENCE + 0.3,
        "evaluations": 50,
        "seconds": 2.0,
        "truth": truth,
        "target": None,
    }
    return Sample(scalars, weights, **(base | options))


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_moment_errors_are_in_sds(truth):
    x = truth.standardised({"x": draws(20_000) + 0.5 * np.sqrt(np.diag(COVARIANCE))})
    assert METRICS["mean"].function(sample(truth, x)) == pytest.approx(0.5, abs=1e-3)
    x = truth.standardised({"x": MEAN + 0.7 + 1.2 * (draws(20_000) - MEAN)})  # wherever their mean is
    assert METRICS["sd"].function(sample(truth, x)) == pytest.approx(0.2, abs=1e-3)
    two = np.array([[1.0, 2.0], [-1.0, 0.0]])
    found = METRICS["mean"].function(sample(truth, two, np.array([0.75, 0.25])))
    assert found == pytest.approx(np.sqrt((0.5**2 + 1.5**2) / 2))


def test_coverage_is_that_of_the_normal(truth):
    narrow = truth.standardised({"x": MEAN + 0.7 * (draws(20_000, 1) - MEAN)})
    half_width = 0.7 * norm.ppf(0.95)
    expected = np.mean(np.abs((np.abs(truth.draws) < half_width).mean(0) - 0.9))
    assert expected == pytest.approx(0.9 - (2 * norm.cdf(half_width) - 1), abs=0.03)  # of a thousand draws
    found = METRICS["coverage"].function(sample(truth, narrow))
    assert found == pytest.approx(expected, abs=0.01)
    half = np.full(len(narrow), 1.0 / len(narrow))
    assert METRICS["coverage"].function(sample(truth, narrow, half)) == pytest.approx(found, abs=1e-3)


def test_distances_do_not_depend_on_how_few_draws_are_padded(truth):
    """Fewer draws than are compared: the same as the discrepancy of those alone."""
    from pushforward.infer.diagnostics.discrepancies import energy_distance, gaussian_wasserstein, sliced_wasserstein

    x = truth.standardised({"x": draws(40, 2)})
    assert METRICS["energy"].function(sample(truth, x)) == pytest.approx(
        np.sqrt(energy_distance(x, truth.draws).squared), rel=1e-6
    )
    assert METRICS["sliced_w2"].function(sample(truth, x)) == pytest.approx(
        sliced_wasserstein(x, truth.draws).distance, rel=1e-6
    )
    whole = gaussian_wasserstein(
        x.mean(0), np.cov(x.T, ddof=0), truth.draws.mean(0), np.cov(truth.draws.T, ddof=0)
    )  # fmt: skip
    assert METRICS["gaussian_w2"].function(sample(truth, x)) == pytest.approx(whole, rel=1e-6)


def test_ess_and_costs(truth):
    rng = np.random.default_rng(0)
    x = np.zeros((4, 2000, 2))
    for t in range(1, 2000):  # autocorrelation 0.8: a ninth of the draws
        x[:, t] = 0.8 * x[:, t - 1] + 0.6 * rng.normal(size=(4, 2))
    one = sample(truth, x.reshape(-1, 2), chains=4)
    found = METRICS["ess"].function(one)
    assert found == pytest.approx(8000 / 9, rel=0.2)
    assert METRICS["ess_per_evaluation"].function(one) == pytest.approx(found / 50)
    assert METRICS["ess_per_second"].function(one) == pytest.approx(found / 2)
    assert np.isnan(METRICS["ess"].function(sample(truth, x[0])))
    assert METRICS["evidence"].function(one) == pytest.approx(0.3)


def test_the_floor_is_that_of_independent_draws(truth):
    """Root mean square of two means of 500 draws: each has a standard error of 500^-1/2."""
    assert floor("mean", truth) == pytest.approx(np.sqrt(1 / 500), rel=0.35)
    assert floor("sd", truth) == pytest.approx(np.sqrt(1 / 1000), rel=0.35)
    assert np.isnan(floor("ess", truth))


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(target):
    methods = {"nuts": (pf.NUTS(), {"num_chains": 2, "num_warmup": 100}), "laplace": pf.Laplace()}
    reference = {"gauss": {"x": draws(4000), "log_evidence": LOG_EVIDENCE}}
    metrics = ["mean", "energy", "ksd", "evidence", "ess_per_evaluation"]
    return pf.Study({"gauss": target}, methods, [3, 4], 4000, metrics, reference, checkpoints=3)


@pytest.fixture(scope="module")
def results(study, tmp_path_factory):
    return study.run(tmp_path_factory.mktemp("study") / "s", progress=False)


def test_budgets_are_equal_and_kept(results):
    assert not results.failed
    spent = results.data["evaluations"].sel({"target": "gauss", "method": "nuts"})
    for at, budget in enumerate((1000, 2000, 4000)):
        assert ((spent.values[:, at] <= budget) | np.isnan(spent.values[:, at])).all()
    assert (spent.values[:, -1] > 3950).all()
    assert results.data.sizes == {"target": 1, "method": 2, "seed": 2, "checkpoint": 3}


def test_values_are_those_of_good_methods(results):
    last = results.data.isel(checkpoint=-1, target=0)
    assert (last["mean"] < 0.15).all()
    assert (last["energy"] < 3 * results.data["floor_energy"].values[0]).all()
    assert (last["evidence"] < 0.05).all()
    assert last["ess_per_evaluation"].sel({"method": "nuts"}).min() > 0.02
    assert np.isnan(last["ess_per_evaluation"].sel({"method": "laplace"})).all()


def test_tables_pictures_and_page(results, tmp_path):
    winners = results.winners()
    assert set(winners["best"]) <= {"nuts", "laplace"}
    efficient = winners.set_index("metric").loc["ess_per_evaluation"]
    assert efficient["best"] == "nuts"
    assert efficient["value"] == results.medians("ess_per_evaluation").loc["gauss", "nuts"] > 0
    assert ((winners["sure"].dropna() >= 0) & (winners["sure"].dropna() <= 1)).all()
    assert "iid floor" in results.medians("mean").columns
    assert len(results.tidy()) == 12
    page = results.report(tmp_path / "r.html").read_text()
    assert page.count("<img") == 5
    assert "http" not in page.split("</style>")[1]
    with pytest.raises(pf.NotAvailable, match="no metric 'zz'; it has mean, energy"):
        results.plot("zz")
    with pytest.raises(pf.InvalidArgument, match="got 'hours'"):
        results.plot("mean", "hours")


def test_notebooks_show_pictures_without_pyplot(results):
    from IPython.core.formatters import DisplayFormatter

    shown, _ = DisplayFormatter().format(results.plot("mean"))
    assert shown["image/png"].startswith(b"\x89PNG")


def test_a_metric_without_values_has_an_empty_picture(results, tmp_path):
    """Approximations have no ESS; nor may a page of them alone end in matplotlib's error."""
    laplace = Results(results.data.sel({"method": ["laplace"]}))
    assert laplace.report(tmp_path / "r.html").read_text().count("<img") == 5
    figure = laplace.plot("ess_per_evaluation")
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == ["no positive values"]


def test_nothing_is_run_twice_and_more_is_added(study, results, target, tmp_path_factory, monkeypatch):
    store = next(tmp_path_factory.getbasetemp().glob("study*/s"))
    lines = (store / "jobs.jsonl").read_text().splitlines()
    again = study.run(store, progress=False)
    assert again.data.identical(results.data)
    assert Results.load(store).data.identical(results.data)
    assert (store / "jobs.jsonl").read_text().splitlines() == lines
    more = pf.Study(
        {"gauss": target}, {"laplace": pf.Laplace()}, [3, 4, 5], 4000, study.metrics, study.reference, checkpoints=3
    ).run(store, progress=False)
    assert len((store / "jobs.jsonl").read_text().splitlines()) == len(lines) + 1
    np.testing.assert_array_equal(more.data["mean"].sel(seed=3).values, results.data["mean"].sel(seed=3).values[:, 1:])
    with pytest.raises(pf.StoreError, match=r'budget = {"unit": "evaluations", "amount": 4000.0'):
        pf.Study({"gauss": target}, {"laplace": pf.Laplace()}, 1, 10, study.metrics, study.reference).run(store)


def test_the_winner_is_as_sure_as_the_bootstrap_says():
    import xarray

    values = np.array([[1.0, 2.0, 3.0], [2.5, 2.5, 2.5]])  # a wins where the median of three draws of 1, 2, 3 is < 2.5
    data = xarray.Dataset(
        {"mean": (("target", "method", "seed", "checkpoint"), values[None, :, :, None])},
        coords={"target": ["t"], "method": ["a", "b"], "seed": [0, 1, 2], "checkpoint": [1.0]},
        attrs={"metrics": json.dumps(["mean"])},
    )
    found = Results(data).winners().iloc[0]
    assert (found["best"], found["value"], found["next"]) == ("a", 2.0, "b")
    assert found["sure"] == pytest.approx(20 / 27, abs=0.03)


def test_workers_that_die_are_named(target, tmp_path, monkeypatch):
    reference = {"gauss": {"x": draws(4000)}}
    methods = {"good": pf.Laplace(), "bad": pf.ADVI()}
    study = pf.Study({"gauss": target}, methods, 3, 100, ["mean"], reference, checkpoints=2)
    monkeypatch.setattr(module, "do_seeds", jobs.canned)
    monkeypatch.setattr(
        module, "_pickled", lambda target, method, work: pickle.dumps("dies" if method == "bad" else "")
    )
    found = study.run(tmp_path / "s", num_workers=2, progress=False)
    assert found.failed["gauss/bad/0"] == "its process died"
    assert found.failed["gauss/good/2"] == "ValueError: no luck"
    assert len(found.failed) == 4
    np.testing.assert_array_equal(found.data["mean"].sel({"method": "good"}).values[0, :2], [[0.5, 0.25]] * 2)


@pytest.mark.slow
def test_workers_give_what_one_process_gives(study, results, tmp_path):
    found = study.run(tmp_path / "s", num_workers=2, progress=False)
    assert not found.failed
    np.testing.assert_array_equal(found.data["mean"].values, results.data["mean"].values)


# -- the command line -------------------------------------------------------------------------------------------------

TOML = """
seeds = 4
budget = 300
checkpoints = 1
metrics = ["mean", "energy"]

[targets.schools]
model = "eight_schools"
reference = "draws.npz"

[methods.laplace]
"""


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "draws.npz", mu=rng.normal(4, 3, 500), tau=rng.gamma(2, 2, 500))
    (tmp_path / "study.toml").write_text(TOML)
    return tmp_path / "study.toml"


def test_a_study_goes_on_after_sigkill(file, tmp_path):
    """The runs made before the kill are kept as they are; at the end all is as if nothing had happened."""
    code = "import sys; from pushforward.cli import run; sys.exit(run(sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, "study", str(file), "--out", str(tmp_path / "out"), "--quiet"]
    process = subprocess.Popen(arguments, start_new_session=True)
    path, begun = tmp_path / "out" / "jobs.jsonl", time.monotonic()
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2) and time.monotonic() - begun < 300:
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = path.read_bytes()
    with open(path, "ab") as torn:
        torn.write(b'{"name": "schools/lap')
    assert command(["study", str(file), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    after = path.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert after.count(b"\n") == 5  # four runs and the floors
    assert command(["study", str(file), "--out", str(tmp_path / "whole"), "--quiet"]) == 0
    one, other = (Results.load(tmp_path / name).data for name in ("out", "whole"))
    for name in ("mean", "energy", "evaluations"):
        np.testing.assert_array_equal(one[name].values, other[name].values)
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metrics = ", "metrix = ", "unknown name 'metrix'; did you mean 'metrics'?"),
        ('"energy"', '"enrgy"', "metrics has the unknown name 'enrgy'; did you mean 'energy'?"),
        ("[methods.laplace]", "[methods.laplac]", "unknown name 'laplac'; did you mean 'Laplace'?"),
        ("[methods.laplace]", "[methods.NUTS]\ntarget_aceptance = 0.9", "did you mean 'target_acceptance'?"),
        ("[methods.laplace]", "[methods.laplace]\nfit = {num_chain = 2}", "did you mean 'num_chains'?"),
        ('"eight_schools"', '"eight_school"', "neither a shipped model"),
        ("reference =", "referense =", "did you mean 'reference'?"),
        ('"draws.npz"', '"none.npz"', "not an NPZ file"),
        ("budget = 300", "budget = {hours = 3}", "budget must have one entry"),
        ("seeds = 4", "seeds = [1, 1]", "seeds must be different"),
        ("[targets.schools]", "[targets.schools", "is not a TOML file"),
        ("[methods.laplace]", "methods = 3", "is not a TOML file|must have tables"),
    ],
)
def test_bad_files_are_told(file, old, new, message, capsys):
    file.write_text(TOML.replace(old, new))
    assert command(["study", str(file), "--quiet"]) == 1
    import re

    assert re.search(message, capsys.readouterr().err)


def test_bad_input_is_told(target, tmp_path):
    good = {"x": draws(100)}
    laplace = {"laplace": pf.Laplace()}

    def make(reference=good, methods=laplace, targets=None, **options):
        return pf.Study(
            {"gauss": target} if targets is None else targets,
            methods,
            1,
            100,
            ["mean"],
            {"gauss": reference},
            **options,
        )

    for call, error, message in (
        (lambda: make({"y": draws(100)}), pf.InvalidArgument, "draws of 'y', which the target lacks; its sites are x"),
        (
            lambda: make({"x": draws(100)[:, :1]}),
            pf.InvalidArgument,
            r"'x' with shape \(100, 1\); the target's has \(2,\)",
        ),
        (lambda: make({"x": draws(10)}), pf.InvalidArgument, "10 draws of 2 scalars that vary; it needs 20"),
        (lambda: make(3), pf.InvalidArgument, "reference of 'gauss' must be .* got int"),
        (lambda: make(methods={}), pf.InvalidArgument, "methods must be a dict"),
        (lambda: make(methods={"a/b": pf.NUTS()}), pf.InvalidArgument, "'a/b'; names are words"),
        (lambda: make(methods={"a": 3}), pf.InvalidArgument, r"methods\['a'\] must be a method"),
        (lambda: make(methods={"a": (pf.NUTS(), {"num_chainz": 3})}), pf.InvalidArgument, "did you mean 'num_chains'"),
        (lambda: make(methods={"a": pf.VBLL()}), pf.UnsupportedTarget, "VBLL needs a target with last_layer"),
        (lambda: make(targets={"gauss": 3}), pf.InvalidArgument, r"targets\['gauss'\] must be a Target, got int"),
        (
            lambda: pf.Study({"g": target}, laplace, reference={"gg": good}),
            pf.InvalidArgument,
            "'gg'; did you mean 'g'?",
        ),
        (lambda: pf.Study({"g": target}, laplace, budget=-3), pf.InvalidArgument, "budget .* got -3"),
        (lambda: pf.Study({"g": target}, laplace, budget="3"), pf.InvalidArgument, "budget must be a number"),
        (lambda: Results.load(tmp_path), pf.StoreError, "has no results.zarr"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_stores_of_others_are_refused(target, tmp_path):
    study = pf.Study({"g": target}, {"laplace": pf.Laplace()}, 1, 100, ["mean"], {"g": {"x": draws(100)}})
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("")
    with pytest.raises(pf.StoreError, match="other things in it"):
        study.run(tmp_path / "folder")
    with Ledger(tmp_path / "c", "calibration", {}), pytest.raises(pf.StoreError, match="is being written by"):
        study.run(tmp_path / "c")
    with pytest.raises(pf.StoreError, match="holds a calibration, not a study"):
        study.run(tmp_path / "c")
    header = json.loads((tmp_path / "c" / "header.json").read_text())
    (tmp_path / "c" / "header.json").write_text(json.dumps(header | {"format": 0}))
    with pytest.raises(pf.StoreError, match="has the format 0, and this version of pushforward writes 1"):
        study.run(tmp_path / "c")
