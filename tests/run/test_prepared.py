"""What `prepare` builds is in the store once a stage, and comes back bit for bit."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.approximation import Particles
from pushforward.infer.method import AbstractMethod, Stage
from pushforward.infer.run import driver
from pushforward.infer.run.prepared import decode, encode
from tests.run.models import gaussian


class WalkState(NamedTuple):
    u: Any
    log_density: Any
    whitened: Any


class WalkInfo(NamedTuple):
    num_evaluations: Any


class PooledWalk(AbstractMethod):
    """A random walk whose scales are those of all chains' states at the start of the stage."""

    scale: float = 0.7
    factor: Any = None
    cloud: Any = None
    rank: int = eqx.field(static=True, default=0)

    kind: ClassVar = "chains"
    public: ClassVar[bool] = False

    def stages(self, budget):
        return (
            Stage("pilot", self, budget.num_warmup, keep=False),
            Stage("sample", self, budget.num_samples * budget.thin),
        )

    def prepare(self, key, target, start):
        points = np.stack([np.asarray(getattr(state, "u", state)) for state in start])
        noise = np.asarray(jax.random.normal(key, (target.dim,)))
        factor = np.linalg.cholesky(np.cov(points.T) + np.diag(1 + noise**2))
        return PooledWalk(self.scale, jnp.asarray(factor), (Particles(points), {"key": key, "none": None}), target.dim)

    def init(self, key, target, start):
        u = getattr(start, "u", start)
        return WalkState(u, target.log_density(u), jnp.linalg.solve(self.factor, u)[: self.rank])

    def step(self, key, state, target, t):
        centre = self.cloud[0].u.mean(0)
        z = jax.random.normal(key, (target.dim,))
        u = state.u + self.scale * self.factor @ z
        log_density = target.log_density(u)
        accept = jnp.log(jax.random.uniform(self.cloud[1]["key"])) < 0  # always true: the key is in use
        accept &= jnp.log(jax.random.uniform(jax.random.fold_in(key, 1))) < log_density - state.log_density
        new = WalkState(u, log_density, jnp.linalg.solve(self.factor, u - centre))
        return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, state), WalkInfo(jnp.asarray(1))

    def draw(self, state):
        return state.u


class Killed(BaseException):
    pass


def kill_at(monkeypatch, stage_name, chunks):
    """The process is gone in mid stage: nothing is saved that was not."""

    def after_chunk(self, stage, progress, original=driver.Run._after_chunk):
        original(self, stage, progress)
        after_chunk.seen += stage.name == stage_name
        if after_chunk.seen == chunks:
            raise Killed

    after_chunk.seen = 0
    monkeypatch.setattr(driver.Run, "_after_chunk", after_chunk)


OPTIONS = {"key": 3, "num_warmup": 60, "num_samples": 90, "chunk_length": 20, "progress": False}


@pytest.fixture(scope="module")
def uninterrupted():
    return pf.fit(gaussian(), PooledWalk(), **OPTIONS).draws()["x"]


@pytest.mark.parametrize(("stage", "chunks"), [("pilot", 4), ("sample", 6)])
def test_a_killed_run_goes_on_with_what_was_prepared(monkeypatch, tmp_path, uninterrupted, stage, chunks):
    kill_at(monkeypatch, stage, chunks)
    with pytest.raises(Killed):
        pf.fit(gaussian(), PooledWalk(), store=tmp_path / "run", checkpoint_every=0, **OPTIONS)
    monkeypatch.undo()
    prepared = []

    def prepare(self, key, target, start, original=PooledWalk.prepare):
        prepared.append(start)
        return original(self, key, target, start)

    monkeypatch.setattr(PooledWalk, "prepare", prepare)
    resumed = pf.resume(tmp_path / "run", gaussian(), method=PooledWalk(), progress=False)
    np.testing.assert_array_equal(resumed.draws()["x"], uninterrupted)
    assert len(prepared) == (1 if stage == "pilot" else 0)  # never for a stage that had begun
    kept = sorted(file.name for file in (tmp_path / "run" / "checkpoint").glob("prepared-*"))
    assert kept == ["prepared-0.npz", "prepared-1.npz"]


def test_a_saved_result_goes_on_with_what_was_prepared(tmp_path, uninterrupted):
    whole = pf.fit(gaussian(), PooledWalk(), **OPTIONS | {"num_samples": 120}).draws()["x"]
    pf.fit(gaussian(), PooledWalk(), **OPTIONS).save(tmp_path / "saved")
    loaded = pf.load(tmp_path / "saved", gaussian(), method=PooledWalk())
    np.testing.assert_array_equal(loaded.draws()["x"], uninterrupted)
    np.testing.assert_array_equal(loaded.extend(30, progress=False).draws()["x"], whole)


def test_a_damaged_preparation_is_one_sentence(monkeypatch, tmp_path):
    kill_at(monkeypatch, "sample", 2)
    with pytest.raises(Killed):
        pf.fit(gaussian(), PooledWalk(), store=tmp_path / "run", checkpoint_every=0, **OPTIONS)
    monkeypatch.undo()
    (tmp_path / "run" / "checkpoint" / "prepared-1.npz").unlink()
    with pytest.raises(pf.StoreError, match=r"cannot be resumed: .*'prepared-1'.*draws are readable"):
        pf.resume(tmp_path / "run", gaussian(), method=PooledWalk(), progress=False)


def test_every_kind_of_field_comes_back():
    own = PooledWalk()
    with jax.enable_x64(True):
        made = PooledWalk(
            factor=[jnp.arange(3, dtype=jnp.int8), np.float32(0.1), jax.random.key(4, impl="rbg"), np.zeros((0, 2))],
            cloud={"a": (Particles(jnp.full((2, 1), np.pi), None, np.array([np.nan])), "text", True, 1e300)},
            rank=7,
        )
        back = decode(*encode(made, own), own)
        assert jax.tree.structure(back) == jax.tree.structure(made)
        for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(back), strict=True):
            assert type(a) is type(b) or isinstance(a, np.generic)
            if hasattr(a, "dtype") and jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            np.testing.assert_array_equal(a, b)
            assert np.asarray(a).dtype == np.asarray(b).dtype


def test_what_cannot_be_stored_is_named():
    own = PooledWalk()
    record = encode(PooledWalk(cloud=(1, {2, 3})), own)
    with pytest.raises(
        pf.StoreError, match=r"lacks PooledWalk\.cloud\[1\] of the prepared PooledWalk: it was a builtins\.set"
    ):
        decode(*record, own)


def test_only_classes_of_the_package_are_looked_up():
    own = PooledWalk()
    record = {"class": "own", "fields": {"cloud": {"class": "subprocess:Popen", "fields": {"args": {"plain": "true"}}}}}
    with pytest.raises(pf.StoreError, match=r"names the class 'subprocess:Popen'"):
        decode(record, {}, own)
    record["fields"]["cloud"]["class"] = "pushforward.infer.run.prepared:importlib"
    with pytest.raises(pf.StoreError, match="which pushforward does not have"):
        decode(record, {}, own)
