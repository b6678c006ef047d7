"""Loader of posteriordb and comparison with its draws."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pushforward.infer.errors import InvalidArgument, NotAvailable, StoreError
from pushforward.models import posteriordb

DATABASE = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
needs_database = pytest.mark.skipif(not DATABASE.is_dir(), reason="needs a posteriordb beside the repository")


@pytest.fixture
def clone(tmp_path):
    """A tiny database: one posterior of a known model, plain and zipped files, and one of an unknown model."""
    root = tmp_path / "posterior_database"
    for folder in ("data/data", "posteriors", "reference_posteriors/draws/draws", "reference_posteriors/draws/info"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(1)
    labels = ("beta[1]", "beta[2]", "sigma", "L[1,1]", "L[2,1]", "L[2,2]")
    chains = [{label: rng.standard_normal(50).tolist() for label in labels} for _ in range(3)]
    data = {"N": 3, "kid_score": [90, 100, 110], "mom_iq": [95.5, 100.0, 120.25], "mom_hs": [1, 0, 1]}
    (root / "data/data/kids.json").write_text(json.dumps(data))
    with zipfile.ZipFile(root / "reference_posteriors/draws/draws/kids-ref.json.zip", "w") as archive:
        archive.writestr("kids-ref.json", json.dumps(chains))
    known = {"name": "kids-kidscore_momiq", "model_name": "kidscore_momiq", "data_name": "kids"}
    known |= {"reference_posterior_name": "kids-ref"}
    other = {"name": "kids-other", "model_name": "other", "data_name": "kids", "reference_posterior_name": None}
    for info in (known, other):
        (root / f"posteriors/{info['name']}.json").write_text(json.dumps(info))
    return tmp_path, chains


def test_loads_plain_and_zipped_files_from_the_clone_or_its_database(clone, monkeypatch):
    path, chains = clone
    reference = posteriordb.load("kids-kidscore_momiq", path)
    np.testing.assert_array_equal(reference.data["kid_score"], [90, 100, 110])
    assert reference.data["N"].item() == 3
    assert reference.parameters == {"beta": (2,), "sigma": (), "L": (2, 2)}
    assert reference.draws["beta"].shape == (3, 50, 2)
    assert reference.draws["beta"].dtype == np.float64
    np.testing.assert_array_equal(reference.draws["beta"][1, :, 0], chains[1]["beta[1]"])
    np.testing.assert_array_equal(reference.draws["L"][2, :, 1, 0], chains[2]["L[2,1]"])
    assert np.isnan(reference.draws["L"][:, :, 0, 1]).all()  # left out by the reference
    assert set(reference.kwargs) == {"kid_score", "mom_iq"}
    assert "3 x 50 reference draws of beta[2], sigma" in repr(reference)
    again = posteriordb.load("kids-kidscore_momiq", path / "posterior_database")
    np.testing.assert_array_equal(again.draws["sigma"], reference.draws["sigma"])
    monkeypatch.setenv("POSTERIORDB", str(path))
    assert posteriordb.load("kids-kidscore_momiq").name == "kids-kidscore_momiq"


def test_a_model_of_the_users_own(clone):
    path, _ = clone

    def model(N, kid_score, mom_iq, mom_hs):
        return N

    reference = posteriordb.load("kids-other", path, model=model)
    assert reference.model is model
    assert reference.kwargs["N"] == 3
    assert isinstance(reference.kwargs["N"], int)
    assert reference.draws == {}
    assert "no reference draws" in repr(reference)
    assert posteriordb.load("kids-other", path, model=model, kwargs={"a": 1}).kwargs == {"a": 1}
    assert posteriordb.load("kids-kidscore_momiq", path, model=model).model is model
    with pytest.raises(NotAvailable, match="kids-other has no reference draws"):
        posteriordb.compare({}, reference)


def test_what_is_missing_is_named(clone, monkeypatch, tmp_path):
    path, _ = clone
    monkeypatch.delenv("POSTERIORDB", raising=False)
    with pytest.raises(StoreError, match=r"POSTERIORDB is None: pass path= or set POSTERIORDB"):
        posteriordb.load("kids-other")
    with pytest.raises(StoreError, match=r"nowhere is no posteriordb: neither it nor"):
        posteriordb.load("kids-other", tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"no posterior 'kid'; it has kids-kidscore_momiq, kids-other"):
        posteriordb.load("kid", path)
    with pytest.raises(
        NotAvailable, match=r"no NumPyro model 'other', the model of kids-other; it has arK, .* model=\.\.\."
    ):
        posteriordb.load("kids-other", path)
    with pytest.raises(InvalidArgument, match=r"kwargs \(a\) go to a model of yours"):
        posteriordb.load("kids-other", path, kwargs={"a": 1})
    file = path / "posterior_database/data/data/kids.json"
    file.write_text('{"kid_score": [1')
    with pytest.raises(StoreError, match=r"kids\.json cannot be read \(.+\); fetch it again"):
        posteriordb.load("kids-kidscore_momiq", path)
    file.write_text('{"kid_score": [1, 2]}')
    with pytest.raises(
        InvalidArgument, match="the data of kidscore_momiq lack the field 'mom_iq'; they have kid_score"
    ):
        _ = posteriordb.load("kids-kidscore_momiq", path).kwargs
    file.unlink()
    with pytest.raises(StoreError, match=r"has neither kids\.json nor kids\.json\.zip, the data_name of"):
        posteriordb.load("kids-kidscore_momiq", path)
    archive = path / "posterior_database/reference_posteriors/draws/draws/kids-ref.json.zip"
    file.write_text('{"kid_score": [1, 2], "mom_iq": [1, 2]}')
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(StoreError, match=r"kids-ref\.json\.zip cannot be read"):
        posteriordb.load("kids-kidscore_momiq", path)


def test_an_unreadable_parameter_name():
    from pushforward.models.posteriordb.reference import to_arrays

    with pytest.raises(StoreError, match=r"a parameter 'theta\[a\]'; names are like theta or theta\[1,2\]"):
        to_arrays([{"theta[a]": [0.0]}])


@needs_database
@pytest.mark.parametrize("name", posteriordb.names())
def test_each_posterior_loads_with_its_draws(name):
    reference = posteriordb.load(name, DATABASE)
    size = sum(int(np.prod(shape)) for shape in reference.parameters.values())
    listed = reference.info["dimensions"]
    assert all(value.shape[:2] == (10, 1000) for value in reference.draws.values())
    assert all(np.isfinite(value).all() for value in reference.draws.values())
    assert size == sum(listed[parameter] for parameter in reference.parameters if parameter in listed)
    assert reference.info["reference"]["diagnostics"]["ndraws"] == 10_000


@needs_database
def test_the_two_eight_schools_share_their_draws():
    centred, other = (
        posteriordb.load(f"eight_schools-eight_schools_{name}", DATABASE) for name in ("centered", "noncentered")
    )
    np.testing.assert_array_equal(centred.draws["theta"], other.draws["theta"])
    assert centred.model.__name__ == "eight_schools_centered"
    assert other.model.__name__ == "eight_schools"


@needs_database
def test_a_database_of_the_posteriordb_package():
    package = pytest.importorskip("posteriordb")
    database = package.PosteriorDatabase(str(DATABASE / "posterior_database"))
    ours = posteriordb.load("gp_pois_regr-gp_regr", database)
    theirs = database.posterior("gp_pois_regr-gp_regr")
    np.testing.assert_array_equal(ours.data["y"], theirs.data.values()["y"])
    np.testing.assert_array_equal(ours.draws["rho"][3], theirs.reference_draws()[3]["rho"])


def test_importing_it_imports_no_backend():
    code = "import sys, pushforward.models, pushforward.models.posteriordb as p; p.names(); pushforward.models.names();"
    code += "print([m for m in ('jax', 'numpyro', 'pandas', 'xarray', 'scipy', 'arviz_stats') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.strip() == "[]"


# -- compare ---------------------------------------------------------------------------------------------------------


def normal_draws(seed, shape=(4, 1000, 3), mean=0.0, sd=1.0):
    return mean + sd * np.random.default_rng(seed).standard_normal(shape)


def test_errors_have_their_definitions():
    ours, theirs = normal_draws(0, mean=1.0, sd=1.1), normal_draws(1, (10, 1000, 3), mean=0.5, sd=2.0)
    table = posteriordb.compare({"x": ours, "extra": ours}, {"x": theirs}).table
    assert list(table.index) == ["x[0]", "x[1]", "x[2]"]
    a, b = ours[..., 1], theirs[..., 1]
    row = table.loc["x[1]"]
    assert row["mean_error"] == pytest.approx((a.mean() - b.mean()) / b.std(ddof=1))
    assert row["sd_ratio"] == pytest.approx(a.std(ddof=1) / b.std(ddof=1))
    # independent normal draws: sd / sqrt(n) for a mean, sd / sqrt(2 n) for an sd; the ESS is estimated to some percent
    assert row["mcse_mean"] == pytest.approx(1.1 / np.sqrt(4000), rel=0.1)
    assert row["ref_mcse_mean"] == pytest.approx(2.0 / np.sqrt(10_000), rel=0.1)
    assert row["mcse_sd"] == pytest.approx(1.1 / np.sqrt(2 * 4000), rel=0.1)
    assert row["ref_mcse_sd"] == pytest.approx(2.0 / np.sqrt(2 * 10_000), rel=0.1)
    expected = (a.mean() - b.mean()) / np.hypot(row["mcse_mean"], row["ref_mcse_mean"])
    assert row["z_mean"] == pytest.approx(expected)


def test_the_verdict_keeps_its_rate_and_sees_small_errors():
    fails = 0
    for seed in range(200):
        found = posteriordb.compare(
            {"x": normal_draws((seed, 0), (2, 200, 5))}, {"x": normal_draws((seed, 1), (4, 250, 5))}, rate=0.2
        )
        fails += not found.within_mc_error
    assert 10 < fails < 65  # binomial with 200 tries, 0.2 each at most (z values share draws): mean 40, sd 6
    truth = {"x": normal_draws(3, (10, 1000, 3))}
    shifted = posteriordb.compare({"x": normal_draws(4, mean=np.array([0.0, 0.0, 0.15]))}, truth)
    assert shifted.table["within"].tolist() == [True, True, False]
    assert shifted.max_mean_error == pytest.approx(0.15, abs=0.06)
    assert not shifted.within_tolerance()
    assert shifted.within_tolerance(mean=0.3)
    assert "does not explain 1 of them" in repr(shifted)
    wide = posteriordb.compare({"x": normal_draws(5) * [1.0, 1.2, 1.0]}, truth)
    assert wide.table["within"].tolist() == [True, False, True]
    assert wide.max_sd_error == pytest.approx(0.2, abs=0.06)
    assert not wide.within_tolerance()
    right = posteriordb.compare({"x": normal_draws(6)}, truth)
    assert right.within_mc_error
    assert right.within_tolerance()
    assert "3 parameters" in repr(right)
    assert "explains all of it" in repr(right)


def test_sticky_draws_get_a_larger_error():
    rng, n = np.random.default_rng(9), 4000
    chain = np.zeros((4, n))
    for t in range(1, n):  # AR(1) with coefficient 0.9: (1 + 0.9) / (1 - 0.9) = 19 draws for one
        chain[:, t] = 0.9 * chain[:, t - 1] + np.sqrt(1 - 0.81) * rng.standard_normal(4)
    row = posteriordb.compare({"x": chain}, {"x": normal_draws(2, (10, 1000))}).table.loc["x"]
    assert row["mcse_mean"] == pytest.approx(np.sqrt(19 / (4 * n)), rel=0.2)


def test_constants_and_entries_left_out():
    corner = np.broadcast_to(np.eye(2), (4, 100, 2, 2)).copy()
    corner[..., 1, 0] = normal_draws(0, (4, 100))
    corner[..., 0, 1] = np.nan
    same = posteriordb.compare({"L": np.nan_to_num(corner)}, {"L": corner})
    assert list(same.table.index) == ["L[0, 0]", "L[1, 0]", "L[1, 1]"]
    assert same.within_mc_error
    assert same.max_mean_error == 0.0
    wrong = np.nan_to_num(corner)
    wrong[..., 0, 0] = 1.1
    assert not posteriordb.compare({"L": wrong}, {"L": corner}).within_mc_error


def test_draws_come_as_datasets_trees_and_posteriors():
    import xarray

    ours, truth = normal_draws(0), {"x": normal_draws(1, (10, 1000, 3))}
    expected = posteriordb.compare({"x": ours}, truth).table
    dataset = xarray.Dataset({"x": (("chain", "draw", "k"), ours)})
    tree = xarray.DataTree.from_dict({"posterior": dataset, "sample_stats": xarray.Dataset()})

    class Holder:
        data = tree

    turned = dataset.transpose("k", "draw", "chain")
    for given in (dataset, tree, Holder(), turned):
        assert posteriordb.compare(given, truth).table.equals(expected)
    cloud = xarray.Dataset({"x": (("particle", "k"), ours.reshape(-1, 3))})
    assert posteriordb.compare(cloud, truth).max_mean_error == pytest.approx(abs(expected["mean_error"]).max())


def test_bad_draws_are_named():
    truth = {"x": normal_draws(1)}
    with pytest.raises(InvalidArgument, match="no draws of 'x', a parameter of the reference; it has y"):
        posteriordb.compare({"y": normal_draws(0)}, truth)
    with pytest.raises(InvalidArgument, match=r"'x' has shape \(4, 1000\); \(chain, draw, \*\(3,\)\) is needed"):
        posteriordb.compare({"x": normal_draws(0, (4, 1000))}, truth)
    with pytest.raises(InvalidArgument, match="3 draws a chain; 4 is the least"):
        posteriordb.compare({"x": normal_draws(0, (4, 3, 3))}, truth)
    with pytest.raises(InvalidArgument, match="got int"):
        posteriordb.compare(3, truth)
    with pytest.raises(InvalidArgument, match="rate must be a finite number strictly between 0 and 1, got 2"):
        posteriordb.compare({"x": normal_draws(0)}, truth, rate=2)
    nan = normal_draws(0)
    nan[0, 0, 0] = np.nan
    found = posteriordb.compare({"x": nan}, truth)
    assert not found.within_mc_error
    assert not found.within_tolerance()


@needs_database
def test_halves_of_a_reference_agree():
    reference = posteriordb.load("eight_schools-eight_schools_noncentered", DATABASE)
    half = {name: value[:5] for name, value in reference.draws.items()}
    rest = {name: value[5:] for name, value in reference.draws.items()}
    found = posteriordb.compare(half, rest)
    assert found.within_mc_error
    assert found.within_tolerance(0.1, 0.1)
    scale = posteriordb.compare({**half, "tau": half["tau"] ** 0.9}, rest)
    assert not scale.within_mc_error


@needs_database
def test_the_target_of_a_reference():
    import jax

    reference = posteriordb.load("eight_schools-eight_schools_noncentered", DATABASE)
    target = reference.target()
    with jax.enable_x64(True):
        assert target.dim == 10
        assert np.isfinite(target.log_density(np.zeros(10)))
