"""Laws of every method: compiled once, bits decided by the key alone, resumable, true to their kind, right moments."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.approximation import Augmented

from .methods import METHODS, TRACES, concrete_methods, first_run, method_of, moments, run, target_of

SIBLINGS = {
    "SVRGVI", "SqrtNGVI", "MirroredSVGD", "PrimalDualLangevin", "DSGHMC", "DULA", "VecchiaLaplace", "StateSpaceGP",
    "SVGP", "StochasticDoubleKL",
}  # fmt: skip
"""Methods that share all of what the laws are about with another; their own updates have tests of their own."""


def kind(name: str) -> str:
    return type(method_of(name)).kind


def of_kind(*kinds: str) -> list:
    found = [name for name in METHODS if not kinds or kind(name) in kinds]
    return [pytest.param(name, marks=pytest.mark.slow) if name in SIBLINGS else name for name in found]


names = pytest.mark.parametrize("name", of_kind())


def assert_same(a: pf.Posterior, b: pf.Posterior) -> None:
    for site, values in a.draws().items():
        np.testing.assert_array_equal(values, b.draws()[site], err_msg=site)


def test_every_method_has_an_entry() -> None:
    assert concrete_methods() == set(METHODS)


def test_the_catalogue_lists_every_method_and_its_facts() -> None:
    listed = pf.methods()
    assert {record.method for record in listed} == set(METHODS)
    for record in listed:
        cls = getattr(pf, record.method)
        assert (record.kind, record.needs, record.exact) == (cls.kind, cls.requires, cls.exact)
        assert record.source, f"{record.method} names no source"
        assert record.exact or record.kind == "approximation" or cls.warning, f"{record.method} is silent on its error"
        assert record.method in repr(listed)
        assert f"<td>{record.method}</td>" in listed._repr_html_()
    assert listed["SMC"].needs == ("proper_prior",)
    with pytest.raises(KeyError, match="no method is called 'Gibbs'"):
        listed["Gibbs"]


@names
def test_compiles_once(name: str) -> None:
    """Another key, a longer run, new data of the same shape and another hyper-parameter, all at once, trace nothing."""
    first_run(name)
    entry, changed = METHODS[name], {"key": 1}
    if kind(name) == "chains":
        changed |= {"num_samples": 1003, "num_warmup": 150}
    if not entry.owns_density:
        target_of(name, 1)
        changed |= {"seed": 1}
    if entry.nudge is not None:
        changed |= {"method": entry.nudge(method_of(name))}
    before = TRACES["gaussian"]
    run(name, **changed)
    assert TRACES["gaussian"] == before, changed


@names
def test_a_key_gives_the_same_bits_whatever_the_chunks(name: str) -> None:
    first = first_run(name)
    assert_same(first, run(name, chunk_length=7))  # that of the first run follows the clock
    other = run(name, key=1).draws()
    assert all(np.any(values != other[site]) for site, values in first.draws().items())


@pytest.mark.parametrize("name", of_kind("chains"))
def test_extending_is_running_longer(name: str) -> None:
    extended = run(name, num_samples=400).extend(600, progress=False)
    assert_same(first_run(name), extended)


@pytest.mark.parametrize("name", of_kind("particles", "approximation"))
def test_what_cannot_be_extended_says_so(name: str) -> None:
    with pytest.raises(pf.NotAvailable, match="extend needs chains"):
        first_run(name).extend(10)


@names
def test_save_and_load(name: str, tmp_path: Path) -> None:
    first = first_run(name)
    first.save(tmp_path / "saved")
    loaded = pf.load(tmp_path / "saved", target_of(name), method=method_of(name))
    assert loaded.kind == first.kind
    assert_same(first, loaded)
    for site, values in first.sample(200, key=4).items():
        np.testing.assert_array_equal(values, loaded.sample(200, key=4)[site])
    if method_of(name).density:
        u = np.zeros(3)
        assert loaded.log_prob(u) == first.log_prob(u)
    elif kind(name) == "approximation" and not isinstance(first.approximation, Augmented):
        with pytest.raises(pf.NotAvailable):
            first.log_prob(np.zeros(3))
    if kind(name) == "chains":
        assert_same(run(name, num_samples=1010), loaded.extend(10, progress=False))


@names
def test_a_run_into_a_store_is_the_same_run(name: str, tmp_path: Path) -> None:
    stored = run(name, store=tmp_path / "run")
    assert_same(first_run(name), stored)
    assert_same(stored, pf.load(tmp_path / "run"))
    resumed = pf.resume(tmp_path / "run", target_of(name), method=method_of(name), progress=False)
    assert_same(stored, resumed)


@names
def test_dimensions_summary_and_diagnosis_are_those_of_its_kind(name: str) -> None:
    first = first_run(name)
    dims = {"chains": ("chain", "draw"), "particles": ("particle",), "approximation": ("chain", "draw")}[kind(name)]
    assert first.sample_dims == dims
    assert first.data["posterior"]["b"].dims[: len(dims)] == dims
    summary = first.summary()
    assert len(summary) == 3
    assert np.isfinite(summary["mean"]).all()
    assert ("r_hat" in summary.columns) == (kind(name) == "chains")
    diagnosis = str(first.diagnose())
    assert diagnosis.startswith("Diagnosis")
    assert type(method_of(name)).warning.split(":")[0] in diagnosis
    assert first.record["evaluations"] > 0
    assert name in repr(first)


@names
def test_what_it_needs_of_a_target_is_enforced(name: str) -> None:
    bare = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(3))
    missing = [need for need in type(method_of(name)).requires if need not in bare.structure()]
    if not missing:
        assert set(type(method_of(name)).requires) <= bare.structure()
        return
    with pytest.raises(pf.UnsupportedTarget, match=f"{name} needs a target with {missing[0]}; this one has none: "):
        pf.fit(bare, method_of(name))


@names
def test_64_bits_stay_64_bits(name: str) -> None:
    first = first_run(name)
    assert first.draws()["b"].dtype == np.float64
    drawn = first.sample(200, key=3)["b"]
    assert drawn.dtype == np.float64
    assert np.any(drawn != drawn.astype(np.float32)), "cut to 32 bits on the way"
    if method_of(name).density:
        value = first.log_prob(np.full(3, 0.1))
        assert value.dtype == np.float64
        assert value != np.float32(value)


@names
def test_moments_of_a_correlated_normal(name: str) -> None:
    from pushforward.infer.diagnostics.chains import effective_sample_size

    first, (mean, covariance) = first_run(name), moments()
    z = np.linalg.solve(np.linalg.cholesky(covariance), (first.draws()["b"] - mean)[..., None])[..., 0]
    pairs = [(i, j) for i in range(3) for j in range(i + 1)]
    products = np.stack([z[..., i] * z[..., j] for i, j in pairs], -1)
    values = np.concatenate([z, products], -1)
    truth = np.array([0.0] * 3 + [float(i == j) for i, j in pairs])
    weights = None
    if kind(name) == "particles":
        weights, values = first._weights(), values[None]
        ess = np.full(9, values.shape[1] / 4)  # particles share ancestors
    else:
        ess = effective_sample_size(np.moveaxis(values, -1, 0))
    flat = values.reshape(-1, 9)
    error = np.abs(np.average(flat, axis=0, weights=weights) - truth)
    mcse = flat.std(0) / np.sqrt(ess)
    assert np.all(error < 4.5 * mcse + METHODS[name].bias), dict(zip(range(9), error.round(3), strict=True))
    assert np.all(mcse < 0.2), "else the test could not see an error"
