"""Targets whose rows stay on disk: what is read and in what order, the same bits after a stop, memory, bad input."""

import itertools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.errors import InvalidArgument, NonFinite, UnsupportedTarget
from pushforward.infer.method import Budget
from pushforward.infer.target import Target
from pushforward.infer.target.reader import Reader

N, D = 1003, 2
RNG = np.random.default_rng(0)
X, NOISE = RNG.normal(size=(N, D)), 0.5
Y = X @ np.array([1.0, -0.5]) + NOISE * RNG.normal(size=N)
COVARIANCE = np.linalg.inv(X.T @ X / NOISE**2 + np.eye(D) / 4)
MEAN = COVARIANCE @ X.T @ Y / NOISE**2


def log_prior(p):
    return -0.5 * jnp.sum(p**2) / 4


def log_likelihood(p, row):
    return -0.5 * (row["y"] - row["x"] @ p) ** 2 / NOISE**2


@pytest.fixture
def maps(tmp_path):
    found = {}
    for name, value in (("x", X), ("y", Y)):
        np.save(tmp_path / f"{name}.npy", value)
        found[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    return found


def stream(source, **options):
    options = {"block_rows": 160} | options
    return Target.from_stream(log_prior, log_likelihood, source, np.zeros(D), **options)


def blocks():
    """An iterator over blocks of rows of uneven sizes."""
    for part in np.array_split(np.arange(N), 37):
        yield {"x": X[part], "y": Y[part]}


# -- what is read -----------------------------------------------------------------------------------------------------


def test_each_pass_reads_each_row_once_in_a_new_order():
    reader = Reader(np.arange(N), None, 160, seed=1)
    order = np.concatenate([reader.block(0, k) for k in range(3 * N // 160 + 1)])
    # In-block shuffling mixes the two passes in the block where one ends; whole blocks of a pass are compared.
    first, second = order[: 6 * 160], order[7 * 160 : 12 * 160]
    assert len(set(first)) == len(first)
    assert len(set(second)) == len(second)
    counts = np.bincount(order[: 3 * N], minlength=N)
    assert counts.min() >= 2
    assert counts.max() <= 4
    assert np.abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.15, "neighbours on disk are neighbours in a block"
    again = Reader(np.arange(N), None, 160, seed=1)
    np.testing.assert_array_equal(again.block(0, 5), order[5 * 160 : 6 * 160])
    assert np.any(again.block(1, 0) != order[:160]), "another stage"
    assert np.any(Reader(np.arange(N), None, 160, seed=2).block(0, 0) != order[:160]), "another seed"


def test_an_iterator_gives_the_same_blocks_in_any_order_of_asking():
    def source():
        return iter(np.array_split(np.arange(100), 7))

    reader = Reader(source, 100, 30, seed=0)
    found = {k: reader.block(0, k) for k in (0, 1, 2, 3, 4, 1, 7)}
    fresh = Reader(source, 100, 30, seed=0)
    for k in (7, 1, 0):
        np.testing.assert_array_equal(fresh.block(0, k), found[k])
    assert sorted(found[0]) == list(range(30))
    assert sorted(found[3]) == [*range(20), *range(90, 100)]


def test_passes_cover_all_rows(maps):
    for source in (maps, blocks):
        total, count = 0.0, 0.0
        for rows, weights in stream(source, num_rows=N).passes():
            total, count = total + weights @ rows["y"], count + weights.sum()
            assert len(rows["y"]) == 160
        assert count == N
        np.testing.assert_allclose(total, Y.sum(), rtol=1e-12)


def test_zarr_arrays_and_groups(tmp_path):
    import zarr

    group = zarr.open_group(tmp_path / "data.zarr", mode="w")
    group.create_array("x", data=X, chunks=(40, D))
    group.create_array("y", data=Y, chunks=(40,))
    target = stream(zarr.open_group(tmp_path / "data.zarr", mode="r"))
    assert target.num_factors == N
    assert target.reader.piece == 40
    assert set(target.rows) == {"x", "y"}
    assert {float(y) for y in target.rows["y"]} <= set(Y.tolist())


def test_the_log_density_is_an_unbiased_estimate(maps):
    target = stream(maps)
    whole = Target.from_factors(log_prior, log_likelihood, {"x": X, "y": Y}, np.zeros(D))
    with jax.enable_x64(True):
        u = jnp.asarray(MEAN)
        values = [float(target.with_block((0, k)).log_density(u)) for k in range(60)]
        exact = float(whole.log_density(u))
    assert abs(np.mean(values) - exact) < 4 * np.std(values) / np.sqrt(60)
    assert np.std(values) > 0


# -- runs -------------------------------------------------------------------------------------------------------------


def run(target, method=None, **options):
    method = pf.SGLD(batch_size=16) if method is None else method
    defaults = {"key": 1, "num_samples": 60, "num_warmup": 40, "num_chains": 2, "progress": False}
    return pf.fit(target, method, **defaults | options)


def test_moments_are_those_of_all_data(maps):
    posterior = run(stream(maps), num_samples=8000, num_warmup=300, num_chains=8, chains_per_program=8)
    z = (posterior.draws()["x"].reshape(-1, D) - MEAN) / np.sqrt(np.diagonal(COVARIANCE))
    # Chains share their mini-batches, whose noise is a small part of theirs.
    np.testing.assert_allclose(z.mean(0), 0, atol=0.12)
    np.testing.assert_allclose(z.std(0), 1, atol=0.08)


@pytest.mark.parametrize("kind", ["maps", "blocks"])
def test_bits_do_not_depend_on_chunks_nor_on_a_stop(kind, maps, tmp_path):
    def target():
        return stream(maps) if kind == "maps" else stream(blocks, num_rows=N)

    whole = run(target()).draws()["x"]
    chunked = run(target(), chunk_length=7).draws()["x"]
    np.testing.assert_array_equal(whole, chunked)
    part = run(target(), store=tmp_path / "run", max_evaluations=440, chunk_length=7)
    assert 0 < part.draws()["x"].shape[1] < 60
    resumed = pf.resume(tmp_path / "run", target(), num_samples=60, progress=False)
    np.testing.assert_array_equal(whole, resumed.draws()["x"])


def test_thinning_reads_the_same_rows_whatever_the_chunks(maps):
    whole = run(stream(maps), thin=3).draws()["x"]
    np.testing.assert_array_equal(whole, run(stream(maps), thin=3, chunk_length=5).draws()["x"])


@pytest.mark.slow
def test_hamiltonian_trajectories_use_as_many_rows_as_they_need(maps):
    method = pf.SGHMC(batch_size=16, num_integration_steps=5)
    posterior = run(stream(maps), method, num_samples=400, num_warmup=200)
    assert posterior._run.arranged.pace == 80
    assert posterior._run.arranged.iterations_per_block == 2
    z = (posterior.draws()["x"].reshape(-1, D) - MEAN) / np.sqrt(np.diagonal(COVARIANCE))
    np.testing.assert_allclose(z.std(0), 1, atol=0.2)


CHILD = """
import re, sys
import jax.numpy as jnp
import numpy as np
import pushforward as pf

rows, width = int(sys.argv[2]), 512
data = np.memmap(sys.argv[1], np.float64, mode="r", shape=(rows, width))
block = int(sys.argv[3])
target = pf.Target.from_stream(
    lambda p: -0.5 * jnp.sum(p**2), lambda p, row: -0.5 * (row[0] - p @ row[1:3]) ** 2, data, np.zeros(2),
    block_rows=block,
)
pf.fit(target, pf.SGLD(batch_size=32), num_samples=rows // 32, num_warmup=0, num_chains=1, progress=False)
# Not ru_maxrss, which a child begins with its parent's.
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_stays_far_below_the_data(tmp_path):
    """A pass over 384 MB of rows against 24 MB, in blocks of 2 MB: the peak of the process grows by less than 200 MB.

    Compiling and the allocator alone make peaks differ by up to a hundred.
    """
    peaks = []
    for name, rows in (("small", 6144), ("large", 98304)):
        path = tmp_path / name
        np.memmap(path, np.float64, mode="w+", shape=(rows, 512)).flush()  # zeros, which take no room on the disk
        out = subprocess.run(
            [sys.executable, "-c", CHILD, str(path), str(rows), "512"], capture_output=True, text=True, check=True
        )
        peaks.append(int(out.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 200, peaks


# -- bad input --------------------------------------------------------------------------------------------------------


def test_methods_that_need_all_rows_are_refused(maps):
    target = stream(maps)
    with pytest.raises(
        UnsupportedTarget, match=r"NUTS evaluates the density of all data.* 1003 rows 160 are in memory"
    ):
        pf.fit(target, pf.NUTS(), progress=False)
    with pytest.raises(UnsupportedTarget, match=r"sharded\(3\) needs the rows in memory"):
        target.sharded(3)
    with pytest.raises(InvalidArgument, match="an iteration uses 500 rows, and 160 are in memory; lower batch_size"):
        run(target, pf.SGLD(batch_size=500))


def test_lengths_and_kinds_of_source():
    with pytest.raises(InvalidArgument, match=r"one length above 0 along axis 0, got source\['x'\]: 1003, .*: 1002"):
        stream({"x": X, "y": Y[:-1]})
    with pytest.raises(InvalidArgument, match=r"source\['y'\] must be an array with one entry per row.*got float"):
        stream({"x": X, "y": 1.0})
    with pytest.raises(InvalidArgument, match="num_rows must be given for a source that is a function, got None"):
        stream(blocks)
    with pytest.raises(InvalidArgument, match="num_rows is 5, and the arrays of source have 1003 rows"):
        stream({"x": X, "y": Y}, num_rows=5)


def test_an_iterator_that_ends_early_or_changes_shape():
    def short():
        return itertools.islice(blocks(), 12)

    with pytest.raises(
        InvalidArgument, match=r"source ended after 328 rows, and num_rows is 1003; it must give as many"
    ):
        run(stream(short, num_rows=N))

    def ragged():
        yield {"x": X[:50], "y": Y[:50]}
        yield {"x": X[50:, :1], "y": Y[50:]}

    with pytest.raises(
        InvalidArgument, match=r"gave rows of shapes \[\(1,\), \(\)\] after rows of shapes \[\(2,\), \(\)\]"
    ):
        stream(ragged, num_rows=N)

    def uneven():
        yield {"x": X[:50], "y": Y[:49]}

    with pytest.raises(InvalidArgument, match=r"arrays of lengths \[49, 50\]"):
        stream(uneven, num_rows=N)


def test_rows_with_nan_are_named():
    bad = Y.copy()
    bad[777] = np.nan
    with pytest.raises(NonFinite, match=r"source\['y'\] has 1 rows with NaN .* the first of them row 777; drop or"):
        run(stream({"x": X, "y": bad}))


# -- the twin that tells the bias, and what chains have in common -----------------------------------------------------


@pytest.mark.parametrize("block_rows", [64, 160])
def test_the_twin_of_a_stream_has_rows_of_its_own(block_rows):
    """While it runs every row of a block is used once: two mini-batches for each pair of half steps."""
    target = stream({"x": X, "y": Y}, block_rows=block_rows)
    method = pf.SGHMC(batch_size=16, num_integration_steps=2)
    arranged = method.arrange(target)
    warmup, pairing, sample = method.stages(Budget(40, 60, 1, False))
    for stage, rows in ((warmup, 32), (pairing, 64), (sample, 32)):
        entered = stage.method.enters(arranged)
        assert entered.pace == rows
        index = np.concatenate([entered.minibatch(jax.random.key(0), t, rows) for t in range(entered.block_ends(0))])
        assert len(set(index.tolist())) == len(index) == block_rows // rows * rows
    with pytest.raises(InvalidArgument, match=r"uses 64 rows while the bias is estimated, and 63 are .*bias_check"):
        method.arrange(stream({"x": X, "y": Y}, block_rows=63))


def test_what_chains_of_a_stream_share_is_said(monkeypatch):
    """Without control variates chains move together; R-hat, which does not see it, is no word of comfort then."""
    asked, block = [], Reader.block
    monkeypatch.setattr(Reader, "block", lambda self, *which: asked.append(which) or block(self, *which))
    method = pf.SGLD(step_size=0.05, batch_size=8, control_variates=False)
    posterior = run(stream({"x": X, "y": Y}), method, num_samples=200, chains_per_program=2)
    # 20 iterations of the twin use 320 rows, 200 of sampling 1,600, in blocks of 160.
    assert [max(k for stage, k in asked if stage == i) for i in (1, 2)] == [1, 9]
    x = posterior.draws()["x"]
    assert np.mean([np.corrcoef(x[0, :, i], x[1, :, i])[0, 1] for i in range(D)]) > 0.5
    said = {f.name: f for f in posterior.diagnose().findings}["common noise"]
    assert said.level == "warning"
    assert (
        "R-hat, ESS and the ± of the bias, which take them for independent, do not see it; compare fits" in said.message
    )
    # Variance (1 + hB/2) / (1 − h/2), of which hB/2 comes from the batches.
    noise = 2 / 0.05 * said.value / (1 - said.value)
    root = np.linalg.cholesky(COVARIANCE)
    gradients = X * (Y - X @ MEAN)[:, None] / NOISE**2
    expected = N**2 / 8 * np.linalg.eigvalsh(root.T @ np.cov(gradients.T, bias=True) @ root).max()
    assert noise == pytest.approx(expected, rel=0.25)  # of 1,024 rows, some of them twice
