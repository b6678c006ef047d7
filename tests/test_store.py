"""The store: what is appended is what is read, at any moment, after any kill, and damage is said, not returned."""

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
import warnings

import ml_dtypes
import numpy as np
import pytest
import xarray as xr

from pushforward.infer.errors import InvalidArgument, StoreError
from pushforward.infer.store import (
    RunStore,
    checkpoint,
    latest_checkpoint,
    open_attrs,
    open_datatree,
    repair,
    save_datatree,
)
from pushforward.infer.store.layout import MARKER

CHAINS = 4


def draws(start, stop, shape=(), scale=1.0):
    """Draws whose value tells chain, draw and element: a swapped axis or a shifted block shows."""
    chain = np.arange(CHAINS).reshape(-1, 1, *[1] * len(shape))
    draw = np.arange(start, stop).reshape(1, -1, *[1] * len(shape))
    inner = np.arange(int(np.prod(shape))).reshape(1, 1, *shape)
    return scale * (chain * 1e7 + draw * 10.0 + inner)


def block(start, stop):
    return {"theta": draws(start, stop, (3,)), "mu": draws(start, stop, scale=-1.0)}


def check_tree(tree, n):
    posterior = tree["posterior"]
    assert posterior.sizes["draw"] == n
    for name, value in block(0, n).items():
        np.testing.assert_array_equal(posterior[name].values, value)
    np.testing.assert_array_equal(posterior["draw"].values, np.arange(n))
    np.testing.assert_array_equal(posterior["chain"].values, np.arange(CHAINS))


def script(template, **names):
    """A program with the helpers above in it (importing this module would cost each process seconds)."""
    helpers = "".join(inspect.getsource(helper) for helper in (draws, block, check_tree))
    return f"import numpy as np\nCHAINS = {CHAINS}\n{helpers}\n{textwrap.dedent(template).format(**names)}"


@pytest.fixture
def filled(tmp_path):
    """A closed store with 2,500 draws in three blocks, and a checkpoint at 2,200."""
    path = tmp_path / "run"
    with RunStore.create(path, dims={"theta": ("school",)}, coords={"school": ["a", "bé", "c"]}) as store:
        store.append("posterior", block(0, 2200))
        store.checkpoint({"n": 2200}, {"x": np.arange(3.0)})
        store.append("posterior", block(2200, 2500))
    return path


# -- what goes in comes out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 999, 1000, 1001, 2500])
@pytest.mark.parametrize("flush", [False, True])
def test_draws_come_back_whatever_the_pieces(tmp_path, step, flush):
    with RunStore.create(tmp_path / "run") as store:
        for start in range(0, 2500, step):
            store.append("posterior", block(start, min(2500, start + step)))
            if flush and start % 5 == 0:
                store.flush()
        assert store.num_draws("posterior") == 2500
        check_tree(store.datatree(), 2500)
    check_tree(open_datatree(tmp_path / "run"), 2500)
    check_tree(xr.open_datatree(tmp_path / "run", engine="zarr", chunks=None), 2500)
    check_tree(xr.open_datatree(tmp_path / "run", engine="zarr", chunks=None).load(), 2500)


@pytest.mark.filterwarnings("ignore:Object at")  # zarr lists the directory and does not know our other files
def test_readers_without_consolidated_metadata_and_of_one_group(filled):
    check_tree(xr.open_datatree(filled, engine="zarr", chunks=None, consolidated=False), 2500)
    dataset = xr.open_dataset(filled, group="posterior", engine="zarr", chunks=None)
    np.testing.assert_array_equal(dataset["theta"].values, draws(0, 2500, (3,)))


def test_dims_coords_and_default_names(tmp_path):
    days = np.array(["2020-02-29", "2021-01-01"], "datetime64[D]")
    coords = {"school": ["a", "bé", "Ω"], "day": days, "level": [0.5, np.inf], "unused": [1]}
    with RunStore.create(tmp_path / "run", coords=coords, dims={"x": ["school", "day"], "z": ["level"]}) as store:
        store.append("posterior", {"x": np.zeros((2, 5, 3, 2)), "y": np.ones((2, 5, 4)), "z": np.ones((2, 5, 2))})
        store.append("sample_stats", {"diverging": np.eye(2, 5, dtype=bool), "steps": np.ones((2, 5), np.int32)})
        store.write_group("observed_data", {"x": np.ones((3, 2)), "n": np.float32(3)})
        store.write_group("log_likelihood", {"x": np.ones((2, 5, 3, 2))}, sample_dims=("chain", "draw"))
    tree = open_datatree(tmp_path / "run")
    assert tree["posterior/x"].dims == ("chain", "draw", "school", "day")
    assert tree["posterior/y"].dims == ("chain", "draw", "y_dim_0")
    assert list(tree["posterior/school"].values) == coords["school"]
    np.testing.assert_array_equal(tree["posterior/day"].values.astype("datetime64[D]"), days)
    np.testing.assert_array_equal(tree["posterior/level"].values, [0.5, np.inf])
    np.testing.assert_array_equal(tree["posterior/y_dim_0"].values, np.arange(4))
    assert "unused" not in tree["posterior"].coords
    assert tree["sample_stats/diverging"].dtype == bool
    np.testing.assert_array_equal(tree["sample_stats/diverging"].values, np.eye(2, 5, dtype=bool))
    assert tree["sample_stats/steps"].dtype == np.int32
    assert tree["observed_data/n"].values == np.float32(3)
    assert tree["observed_data/n"].shape == ()
    assert tree["log_likelihood/x"].dims == ("chain", "draw", "school", "day")


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int64", "uint32", "float16", "float32", "float64", "complex64", "bfloat16"]
)
def test_dtypes_of_draws(tmp_path, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    value = (np.arange(2 * 6).reshape(2, 6) % 5).astype(dtype)
    with RunStore.create(tmp_path / "run") as store:
        store.append("posterior", {"x": value[:, :4]})
        store.append("posterior", {"x": value[:, 4:]})
    read = open_datatree(tmp_path / "run")["posterior/x"].values
    assert read.dtype == (np.float32 if dtype == ml_dtypes.bfloat16 else dtype)
    np.testing.assert_array_equal(read, value.astype(read.dtype))


def test_non_finite_draws_and_empty_variables(tmp_path):
    value = np.array([[np.nan, np.inf, -np.inf, -0.0]])
    with RunStore.create(tmp_path / "run") as store:
        store.append("posterior", {"x": value, "none": np.ones((1, 4, 0))})
        store.flush()
        store.append("posterior", {"x": value, "none": np.ones((1, 4, 0))})
    with RunStore.open(tmp_path / "run") as store:
        store.append("posterior", {"x": value, "none": np.ones((1, 4, 0))})
    tree = open_datatree(tmp_path / "run")
    np.testing.assert_array_equal(tree["posterior/x"].values, np.tile(value, 3))
    assert np.signbit(tree["posterior/x"].values[0, 3])
    assert tree["posterior/none"].shape == (1, 12, 0)


def test_large_draws_go_one_to_a_block(tmp_path):
    value = np.random.default_rng(0).normal(size=(2, 5, 300, 300))
    with RunStore.create(tmp_path / "run") as store:
        store.append("posterior", {"x": value})
    np.testing.assert_array_equal(open_datatree(tmp_path / "run")["posterior/x"].values, value)


def test_reading_beside_a_writer(tmp_path):
    with RunStore.create(tmp_path / "run", attrs={"key": 3, "x": np.inf}) as store:
        assert latest_checkpoint(tmp_path / "run") is None
        store.checkpoint({"t": 1}, {"a": np.arange(2)})
        meta, arrays = latest_checkpoint(tmp_path / "run")
        assert meta == {"t": 1}
        assert arrays["a"].tolist() == [0, 1]
        assert open_attrs(tmp_path / "run") == {"key": 3, "x": np.inf}


def test_attrs_round_trip(tmp_path):
    attrs = {
        "key": 3,
        "nan": float("nan"),
        "inf": [float("inf"), -float("inf")],
        "none": None,
        "nested": {"a": [1, "b"]},
    }
    with RunStore.create(tmp_path / "run", attrs={**attrs, "step": np.float32(0.5), "shape": (1, 2)}) as store:
        store.update_attrs({"outcome": "complete"})
    for read in (open_datatree(tmp_path / "run").attrs, RunStore.open(tmp_path / "run").attrs):
        assert np.isnan(read.pop("nan"))
        assert read == {k: v for k, v in attrs.items() if k != "nan"} | {
            "step": 0.5,
            "shape": [1, 2],
            "outcome": "complete",
        }
    assert b"NaN" not in (tmp_path / "run" / "zarr.json").read_bytes()


def test_arviz_takes_the_tree(tmp_path):
    import arviz as az

    rng = np.random.default_rng(1)
    with RunStore.create(tmp_path / "run", coords={"school": list("abc")}, dims={"theta": ("school",)}) as store:
        store.append("posterior", {"theta": rng.normal(size=(4, 500, 3)), "mu": rng.normal(size=(4, 500))})
        store.write_group("log_likelihood", {"y": rng.normal(size=(4, 500, 3))}, sample_dims=("chain", "draw"))
        tree = store.datatree()
    assert list(az.summary(tree).index) == ["theta[a]", "theta[b]", "theta[c]", "mu"]
    assert np.isfinite(az.loo(tree).elpd)
    assert az.extract(tree).sizes["sample"] == 2000


def test_opening_loads_no_draws(filled, monkeypatch):
    import zarr

    read = []
    get = zarr.storage.LocalStore.get
    monkeypatch.setattr(
        zarr.storage.LocalStore, "get", lambda self, key, *a, **k: (read.append(key), get(self, key, *a, **k))[1]
    )
    tree = open_datatree(filled)
    assert not [key for key in read if "theta/c" in key or "mu/c" in key]
    tree["posterior/theta"].isel(draw=slice(2100, 2200)).to_numpy()
    assert {key for key in read if "theta/c" in key} == {"posterior/theta/c.0.2.0"}


def test_memory_does_not_grow(tmp_path):
    piece = {"x": np.ones((4, 500, 8)), "y": np.ones((4, 500))}
    with RunStore.create(tmp_path / "run") as store:
        store.append("posterior", piece)
        store.checkpoint({}, {})
        tracemalloc.start()
        peaks = []
        for _ in range(2):
            for _ in range(100):
                store.append("posterior", piece)
            store.checkpoint({}, {})
            peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert store.num_draws("posterior") == 100_500
    assert peaks[1] < 1.05 * peaks[0] < 4e6  # the draws are 29 MB


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_append_refuses_what_does_not_fit(tmp_path):
    with RunStore.create(tmp_path / "run", dims={"z": ("a", "b")}, coords={"q": [1, 2]}) as store:
        store.append("posterior", {"x": np.ones((2, 3, 2))})
        for arrays, message in [
            ({"y": np.ones((2, 3))}, r"variables \['y'\], but its first draws had \['x'\]"),
            ({"x": np.ones((3, 3, 2))}, r"shape \(3, 3, 2\)"),
            ({"x": np.ones((2, 3, 2), complex)}, "dtype complex128"),
            ({"x": np.ones(3)}, r"shape \(3,\)"),
            ({}, "no variables"),
        ]:
            with pytest.raises(InvalidArgument, match=message):
                store.append("posterior", arrays)
        for name in ("a/b", ".hidden", ""):
            with pytest.raises(InvalidArgument, match="cannot be stored"):
                store.append("g", {name: np.ones((2, 3))})
        with pytest.raises(InvalidArgument, match=r"dims of 'z' are \('a', 'b'\), but its shape is \(2,\)"):
            store.append("g", {"z": np.ones((2, 3, 2))})
        with pytest.raises(InvalidArgument, match="2 labels, but 'w' has 3"):
            store.write_group("g", {"w": np.ones(3)}, {"w": ("q",)})
        with pytest.raises(InvalidArgument, match="from its name"):
            store.write_group("g", {"w": np.ones(3)}, {"w": ("w",)})
        with pytest.raises(InvalidArgument, match="which is appended to"):
            store.write_group("posterior", {"w": np.ones(3)})
        with pytest.raises(InvalidArgument, match="it has 3"):
            store.truncate("posterior", 4)
        with pytest.raises(InvalidArgument, match="group 'other'"):
            store.truncate("other", 4)
        store.append("posterior", {"x": np.full((2, 1, 2), 2.0)})  # a refusal leaves the store as it was
        assert store.num_draws("posterior") == 4
    assert open_datatree(tmp_path / "run")["posterior/x"].values[0, :, 0].tolist() == [1, 1, 1, 2]
    with pytest.raises(StoreError, match="is closed"):
        store.append("posterior", {"x": np.ones((2, 3, 2))})
    with pytest.raises(InvalidArgument, match="type object"):
        RunStore.create(tmp_path / "other", attrs={"x": object()})
    with pytest.raises(InvalidArgument, match="the key 1"):
        RunStore.create(tmp_path / "other", attrs={1: 2})
    with pytest.raises(InvalidArgument, match="Python objects"):
        RunStore.create(tmp_path / "other", coords={"x": [object()]})
    assert not (tmp_path / "other").exists()


def test_create_and_overwrite(filled, tmp_path):
    with pytest.raises(StoreError, match="exists and is not empty"):
        RunStore.create(filled)
    with RunStore.create(filled, overwrite=True) as store:
        assert store.groups == ()
    assert not open_datatree(filled).children
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("…")
    with pytest.raises(StoreError, match="is not a stored run and is not overwritten"):
        RunStore.create(mine, overwrite=True)
    assert (mine / "thesis.tex").exists()
    with pytest.raises(StoreError, match="is a file"):
        RunStore.create(mine / "thesis.tex")
    with pytest.raises(StoreError, match="cannot be written"):
        RunStore.create(mine / "thesis.tex" / "run")


@pytest.mark.parametrize("opener", [open_datatree, RunStore.open, repair])
def test_what_is_no_store(tmp_path, opener):
    with pytest.raises(StoreError, match="does not exist"):
        opener(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        opener(tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StoreError, match=r"is not a stored run: it has no zarr\.json"):
        opener(empty)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        xr.Dataset({"x": ("a", [1.0])}).to_zarr(tmp_path / "foreign", consolidated=True, zarr_format=3)
    with pytest.raises(StoreError, match="pushforward did not write"):
        opener(tmp_path / "foreign")
    assert list(empty.iterdir()) == []


def test_another_format_is_named(filled):
    root = json.loads((filled / "zarr.json").read_text())
    root["attributes"][MARKER]["format"] = 7
    (filled / "zarr.json").write_text(json.dumps(root))
    for opener in (open_datatree, RunStore.open):
        with pytest.raises(StoreError, match=r"format 7, .* reads format 1"):
            opener(filled)


def test_one_writer(filled):
    first = RunStore.open(filled)
    with pytest.raises(StoreError, match=f"written by the process {os.getpid()}"):
        RunStore.open(filled)
    with pytest.raises(StoreError, match="is being written"):
        RunStore.create(filled, overwrite=True)
    check_tree(open_datatree(filled), 2500)
    first.close()
    RunStore.open(filled).close()


# -- checkpoints, and going on ----------------------------------------------------------------------------------------


def test_checkpoint_round_trip(tmp_path):
    arrays = {
        "bool": np.array(True),
        "int": np.array(-3, np.int8),
        "f32": np.float32(0.1) * np.ones((2, 0, 3), np.float32),
        "f64": np.asfortranarray(np.random.default_rng(0).normal(size=(3, 4))),
        "bf16": np.array(1.5, ml_dtypes.bfloat16),
        "bf16/matrix": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
        "f8": np.arange(4, dtype=ml_dtypes.float8_e4m3fn),
        "key": np.array([[0, 2**32 - 1]], np.uint32),
        "text": np.array(["a", "Ω"]),
        "file": np.array([np.nan, np.inf]),
        "strided": np.arange(10)[::3],
        "index": np.arange(2),
    }
    meta = {"t": 12, "loss": float("nan"), "history": [1.0, float("inf")], "none": None}
    with RunStore.create(tmp_path / "run") as store:
        store.checkpoint({"t": 0}, {})
        store.checkpoint(meta, arrays)
        read_meta, read = store.load_checkpoint()
    assert np.isnan(read_meta.pop("loss"))
    assert read_meta == {"t": 12, "history": [1.0, float("inf")], "none": None}
    assert list(read) == list(arrays)
    for name, value in arrays.items():
        assert read[name].dtype == value.dtype, name
        assert read[name].shape == value.shape, name
        assert read[name].tobytes() == value.tobytes(), name
    with pytest.raises(InvalidArgument, match="objects cannot be stored"):
        checkpoint.write(tmp_path, {}, {"x": np.array([object()])})


def test_two_checkpoints_are_kept_and_damage_falls_back(tmp_path):
    folder = tmp_path / "run" / "checkpoint"
    with RunStore.create(tmp_path / "run") as store:
        with pytest.raises(StoreError, match="has no checkpoint; no draws are readable"):
            store.load_checkpoint()
        store.append("posterior", block(0, 1500))
        for t in range(5):
            store.checkpoint({"t": t}, {"x": np.full(1000, t)})
        assert len(checkpoint.files(folder)) == 2
        last, previous = checkpoint.files(folder)
        whole = last.read_bytes()
        for bad in (b"", b"garbage", whole[:-5], whole[: len(whole) // 2]):
            last.write_bytes(bad)
            with pytest.warns(UserWarning, match=f"{last.name} is damaged .* going on from {previous.name}"):
                assert store.load_checkpoint()[0] == {"t": 3}
        last.write_bytes(whole)
        assert store.load_checkpoint()[0] == {"t": 4}
        previous.write_bytes(b"x")
        last.write_bytes(b"x")
        with pytest.raises(
            StoreError, match=r"no intact checkpoint.*draws 0–1,499 of 4 chains \(posterior\) are readab"
        ):
            store.load_checkpoint()


def test_every_altered_byte_of_a_checkpoint_is_noticed_or_harmless(tmp_path):
    file = checkpoint.write(tmp_path, {"t": 1}, {"x": np.arange(20.0), "y": np.arange(3, dtype=ml_dtypes.bfloat16)})
    whole = file.read_bytes()
    rng = random.Random(0)
    noticed = 0
    for _ in range(300):
        at = rng.randrange(len(whole))
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        try:
            meta, arrays = checkpoint.read(file)
        except ValueError:
            noticed += 1
        else:  # a time stamp of the archive, say
            assert meta == {"t": 1}
            np.testing.assert_array_equal(arrays["x"], np.arange(20.0))
    assert noticed > 150


def test_checkpoints_run_no_code(tmp_path):
    (tmp_path / "00000000.npz").write_bytes(b"")
    np.savez(tmp_path / "00000001.npz", index=np.array([{"a": print}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        checkpoint.read(tmp_path / "00000001.npz")


@pytest.mark.parametrize("n", [0, 1, 999, 1000, 1001, 2000, 2499, 2500])
@pytest.mark.parametrize("reopen", [False, True])
def test_truncate_and_go_on(filled, n, reopen):
    before = open_datatree(filled)
    store = RunStore.open(filled)
    assert store.num_draws("posterior") == 2500
    store.truncate("posterior", n)
    assert store.num_draws("posterior") == n
    store.flush()
    check_tree(open_datatree(filled), n)
    if reopen:
        store.close()
        store = RunStore.open(filled)
    store.append("posterior", block(n, n + 3))
    store.flush()
    check_tree(open_datatree(filled), n + 3)
    check_tree(before, 2500)  # a reader that opened it earlier sees old draws, never padding
    store.append("posterior", block(n + 3, 2600))
    store.close()
    tree = open_datatree(filled)
    check_tree(tree, 2600)
    assert list(tree["posterior/school"].values) == ["a", "bé", "c"]


def test_groups_begun_after_reopening_have_dims(filled):
    with RunStore.open(filled) as store:
        store.write_group("posterior_predictive", {"theta": np.ones((4, 2, 3))}, sample_dims=("chain", "draw"))
        store.write_group("posterior_predictive", {"theta": np.zeros((4, 2, 3))}, sample_dims=("chain", "draw"))
        store.truncate("never_begun", 0)
    tree = open_datatree(filled)
    assert list(tree["posterior_predictive/school"].values) == ["a", "bé", "c"]
    assert not tree["posterior_predictive/theta"].values.any()


def test_an_interrupted_append_appends_nothing(tmp_path, monkeypatch):
    store = RunStore.create(tmp_path / "run")
    store.append("posterior", block(0, 990))
    stream = store._streams["posterior"]
    write = type(stream)._write

    def interrupted(self, name, index, values):
        write(self, name, index, values)
        if name == "theta":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(stream), "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.append("posterior", block(990, 1400))
    assert store.num_draws("posterior") == 990
    check_tree(store.datatree(), 990)
    store.append("posterior", block(990, 1100))
    check_tree(store.datatree(), 1100)
    store.close()


# -- damage -----------------------------------------------------------------------------------------------------------


def alter(file):
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:1000]),
    "overlong": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "altered": alter,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_chunk(filled, kind):
    DAMAGE[kind](filled / "posterior/theta/c.0.1.0")
    for opener in (open_datatree, RunStore.open):
        with pytest.raises(
            StoreError, match=rf"theta/c\.0\.1\.0 is {kind}.*draws 0–999 of 4 chains \(posterior\) are in"
        ):
            opener(filled)
    assert "draws 0–999 of 4 chains (posterior) are readable" in repair(filled)
    check_tree(open_datatree(filled), 1000)
    with RunStore.open(filled) as store:
        store.append("posterior", block(1000, 1200))
    check_tree(open_datatree(filled), 1200)


def test_damage_behind_the_checkpoint_costs_nothing(filled, tmp_path):
    with RunStore.open(filled) as store:
        store.append("posterior", block(2500, 3300))
    (filled / "posterior/mu/c.0.3").write_bytes(b"\0" * 10)  # draws 3,000 to 3,299; the checkpoint is at 2,200
    with pytest.raises(StoreError, match="draws 0–2,999"):
        open_datatree(filled)
    with RunStore.open(filled) as store:
        assert store.num_draws("posterior") == 3000
        store.truncate("posterior", store.load_checkpoint()[0]["n"])
        store.append("posterior", block(2200, 2300))
    check_tree(open_datatree(filled), 2300)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"attributes": {}}', b"\xff\x00garbage"])
def test_damaged_metadata(filled, content):
    if content is None:
        (filled / "zarr.json").unlink()
    else:
        (filled / "zarr.json").write_bytes(content)
    for opener in (open_datatree, RunStore.open):
        with pytest.raises(StoreError, match=r"zarr\.json.*draws 0–2,499 of 4 chains \(posterior\) are intact"):
            opener(filled)
    repair(filled)
    check_tree(open_datatree(filled), 2500)
    with RunStore.open(filled) as store:
        store.append("posterior", block(2500, 2600))
    check_tree(open_datatree(filled), 2600)


def test_damaged_labels_are_dropped(filled):
    (filled / "posterior/school/c.0").unlink()
    with pytest.raises(StoreError, match=r"school/c\.0 is missing; draws 0–2,499"):
        open_datatree(filled)
    assert "dropped posterior/school" in repair(filled)
    check_tree(open_datatree(filled), 2500)


def test_damaged_layout(filled):
    (filled / "layout.json").write_text("{")
    with pytest.raises(StoreError, match=r"layout.json is damaged"):
        RunStore.open(filled)
    check_tree(open_datatree(filled), 2500)


# -- a full disk ------------------------------------------------------------------------------------------------------

FULL_DISK = """
    import resource, sys
    import numpy as np
    from pushforward.infer.errors import StoreError
    from pushforward.infer.store import RunStore

    store = RunStore.create({path!r})
    store.append("posterior", block(0, 1500))
    store.checkpoint({{"n": 1500}}, {{"x": np.ones(3)}})
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    try:
        for start in range(1500, 9000, 250):
            store.append("posterior", block(start, start + 250))
            store.{action}
    except StoreError as error:
        print(error)
    try:
        store.flush()
    except StoreError as error:
        print(error)
    store.close()
"""


@pytest.mark.parametrize("limit", [100, 50_000])
@pytest.mark.parametrize("action", ["flush()", "num_draws('posterior')", "checkpoint({}, {'x': np.ones(20_000)})"])
def test_full_disk_leaves_what_was_written(tmp_path, limit, action):
    path = str(tmp_path / "run")
    code = script(FULL_DISK, path=path, limit=limit, action=action)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == second
    assert path in first
    assert "File too large" in first
    tree = open_datatree(path)
    n = tree["posterior"].sizes["draw"]
    assert n >= 1500
    assert f"draws 0–{n - 1:,} of 4 chains (posterior) remain readable" in first
    check_tree(tree, n)
    with RunStore.open(path) as store:
        assert store.load_checkpoint()[0] == {"n": 1500}
        store.truncate("posterior", 1500)
        store.append("posterior", block(1500, 2000))
    check_tree(open_datatree(path), 2000)


# -- kills ------------------------------------------------------------------------------------------------------------

WRITER = """
    import sys
    import numpy as np
    from pushforward.infer.store import RunStore
    from pathlib import Path

    path = Path({path!r})
    if path.exists():
        store = RunStore.open(path)
        meta, arrays = store.load_checkpoint()
        n = meta["n"]
        assert (arrays["x"] == n).all()
        for group in ("posterior", "sample_stats"):
            store.truncate(group, n)
    else:
        store, n = RunStore.create(path), 0
        store.checkpoint({{"n": 0}}, {{"x": np.zeros(2000)}})
    print("ready", n, flush=True)
    step = 0
    while True:
        store.append("posterior", block(n, n + 7))
        store.append("sample_stats", {{"lp": draws(n, n + 7)}})
        n, step = n + 7, step + 1
        if step % 3 == 0:
            store.flush()
        if step % 5 == 0:
            store.checkpoint({{"n": n}}, {{"x": np.full(2000, n)}})
"""

READER = """
    import sys, pathlib
    import numpy as np, xarray as xr

    stop = pathlib.Path({stop!r})
    opened = seen = 0
    while not stop.exists():
        tree = xr.open_datatree({path!r}, engine="zarr", chunks=None)
        if "posterior" not in tree.children:
            continue
        n = tree["posterior"].sizes["draw"]
        check_tree(tree, n)
        m = tree["sample_stats"].sizes["draw"]
        np.testing.assert_array_equal(tree["sample_stats/lp"].values, draws(0, m))
        assert n == m, (n, m)
        opened, seen = opened + 1, max(seen, n)
    print(opened, seen)
"""


class Killed(BaseException):
    pass


def scenario(path):
    """A run that flushes, checkpoints, begins a group late, is cut short and goes on."""
    with RunStore.create(path) as store:
        store.append("posterior", block(0, 990))
        store.checkpoint({"n": 990}, {})
        store.append("posterior", block(990, 1200))
        store.append("late", {"lp": draws(0, 20)})
        store.flush()
        store.truncate("posterior", 990)
        store.append("posterior", block(990, 1010))
        store.checkpoint({"n": 1010}, {})
        store.write_group("observed_data", {"y": np.ones(3)})


def test_a_kill_before_every_single_write(tmp_path, monkeypatch):
    """Exhaustive where the random kills are lucky: whatever the last file written, what is seen is whole."""
    from pushforward.infer.store import layout

    write = layout.Disk.write
    seen, at = set(), 0
    while True:
        path, left = tmp_path / str(at), [at]

        def killed(self, *args, left=left, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            write(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(layout.Disk, "write", killed)
            try:
                scenario(path)
                break
            except Killed:
                pass
        at += 1
        if not (path / "zarr.json").exists():
            continue
        tree = open_datatree(path)
        n = tree["posterior"].sizes["draw"] if "posterior" in tree.children else 0
        seen.add(n)
        if n:
            check_tree(tree, n)
        if "late" in tree.children:
            np.testing.assert_array_equal(tree["late/lp"].values, draws(0, 20))
        with RunStore.open(path) as store:
            kept = store.load_checkpoint()[0]["n"] if checkpoint.files(path / "checkpoint") else 0
            assert kept <= n
            store.truncate("posterior", kept)
            store.append("posterior", block(kept, 1300))
        check_tree(open_datatree(path), 1300)
    assert seen == {0, 990, 1200, 1010}
    assert at > 25


def test_kills_at_random_moments_under_a_concurrent_reader(tmp_path):
    path, stop = tmp_path / "run", tmp_path / "stop"
    writer, reader = script(WRITER, path=str(path)), None
    rng = random.Random(0)
    starts = []
    try:
        for _ in range(8):
            process = subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE, text=True)
            ready = process.stdout.readline().split()
            assert ready[:1] == ["ready"]
            starts.append(int(ready[1]))
            if reader is None:
                code = script(READER, path=str(path), stop=str(stop))
                reader = subprocess.Popen(
                    [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            with pytest.raises(StoreError, match=f"written by the process {process.pid}"):
                RunStore.open(path)
            time.sleep(0.2 + 0.8 * rng.random())
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            tree = open_datatree(path)
            check_tree(tree, tree["posterior"].sizes["draw"])
    finally:
        stop.touch()
    out, errors = reader.communicate(timeout=60)
    assert reader.returncode == 0, errors
    opened, seen = map(int, out.split())
    assert opened >= 3
    assert seen > 0
    assert starts == sorted(starts)
    assert starts[-1] > 0
    with RunStore.open(path) as store:
        meta, arrays = store.load_checkpoint()
        assert (arrays["x"] == meta["n"]).all()
        assert store.num_draws("posterior") >= meta["n"] >= starts[-1]
        store.truncate("posterior", meta["n"])
    check_tree(open_datatree(path), meta["n"])


# -- results saved and loaded -----------------------------------------------------------------------------------------


def a_tree():
    rng = np.random.default_rng(0)
    posterior = xr.Dataset(
        {"x": (("chain", "draw", "s"), rng.normal(size=(2, 7, 3)), {"unit": "m"}), "y": (("draw",), np.arange(7))},
        coords={"chain": [0, 2], "draw": np.arange(0, 14, 2), "s": ["a", "b", "cc"], "label": ("s", ["p", "q", "r"])},
        attrs={"sampler": "NUTS", "inf": np.inf},
    )
    data = xr.Dataset(
        {"when": ("t", np.array(["2020-01-01", "2020-01-03"], "datetime64[ns]")), "ok": True, "e": ("z", [])}
    )
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"top": 1}), "posterior": posterior, "constant_data": data})


def test_save_and_open_any_tree(tmp_path):
    tree = a_tree()
    save_datatree(tmp_path / "deep" / "saved", tree, {"key": 0, "nan": float("nan")})
    read = open_datatree(tmp_path / "deep" / "saved")
    assert read.attrs["top"] == 1
    assert np.isnan(read.attrs["nan"])
    for group in ("posterior", "constant_data"):
        xr.testing.assert_identical(read[group].to_dataset().load(), tree[group].to_dataset())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["saved"]
    with pytest.raises(StoreError, match="exists and is not empty"):
        save_datatree(tmp_path / "deep" / "saved", tree)


def test_save_onto_itself_and_failing_saves(filled, monkeypatch):
    tree = open_datatree(filled)
    save_datatree(filled, tree, overwrite=True)
    check_tree(open_datatree(filled), 2500)
    check_tree(tree, 2500)

    from pushforward.infer.store import layout

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(layout.Disk, "write", full)
        with pytest.raises(StoreError, match=r"was not written.*No space left"):
            save_datatree(filled, tree, overwrite=True)
    check_tree(open_datatree(filled), 2500)
    assert [p.name for p in filled.parent.iterdir()] == [filled.name]


def test_saved_tree_with_objects_is_refused(tmp_path):
    tree = xr.DataTree.from_dict({"g": xr.Dataset({"x": ("a", np.array([object()], dtype=object))})})
    with pytest.raises(InvalidArgument, match="Python objects"):
        save_datatree(tmp_path / "saved", tree)
    assert not list(tmp_path.iterdir())
