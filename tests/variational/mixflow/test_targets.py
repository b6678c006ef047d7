"""The targets of the benchmark of MixFlows: normalised, and those of the authors' code."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

PAPERS = Path(__file__).resolve().parents[3] / "benchmarks" / "papers"


@pytest.fixture(scope="module")
def targets():
    spec = importlib.util.spec_from_file_location("mixflow_targets", PAPERS / "mixflow_targets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [
        ("cross", (-9, -9), (9, 9)),
        ("banana", (-60, -16), (60, 350)),
        ("warped", (-6, -6), (6, 6)),
        ("mixture", -15, 15),
    ],
)
def test_synthetic_targets_are_normalised(targets, name, lower, upper):
    density, data, dim = targets.SYNTHETIC[name]["density"]
    lower, upper = (np.broadcast_to(np.asarray(x, float), (dim,)) for x in (lower, upper))
    count = 600 if dim == 2 else 4000
    axes = [np.linspace(a, b, count) for a, b in zip(lower, upper, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, dim)
    with jax.enable_x64(True):
        values = jax.jit(jax.vmap(lambda x: jnp.exp(density(x, data))))(grid)
        total = float(values.sum()) * float(np.prod((upper - lower) / (count - 1)))
    assert total == pytest.approx(1.0, abs=1e-3)


def tables(folder):
    """Small files as the authors' code has them: a column of the response last."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 3)), random.integers(0, 2, 12).astype(float)
    wide = np.column_stack([x, y])
    for name in ("heavy_reg", "sparse_regression", "logistic_reg", "poiss", "lin_reg_heavy", "sp_reg_big"):
        (folder / name / "data").mkdir(parents=True)
    positive = np.column_stack([np.exp(x[:, :2]), 20.0 + x[:, 2], y])
    np.savetxt(folder / "heavy_reg/data/creatinine.csv", positive, delimiter=",", header="a,b,c,d", comments="")
    numbered = np.column_stack([np.arange(12) + 1, wide])
    np.savetxt(folder / "sparse_regression/data/pros_dat.txt", numbered, header="a b c d", comments="")
    quoted = "\n".join(f'"{i + 1}",{",".join(map(str, row[:3]))},"{row[3]:.0f}"' for i, row in enumerate(wide))
    (folder / "logistic_reg/data/final_dat.csv").write_text('"","a","b","c","y"\n' + quoted + "\n")
    np.savez(folder / "poiss/data/airportdelays.npz", X=np.column_stack([x, np.ones(12)]), y=y)
    for name in ("lin_reg_heavy/data/communities_pca.csv", "sp_reg_big/data/super_st.csv"):
        np.savetxt(folder / name, wide, delimiter=",")
    return x, y


def scaled(x):
    return (x - x.mean(0)) / x.std(0, ddof=1)


def test_regressions_are_read_and_have_the_densities_of_their_models(targets, tmp_path):
    """By SciPy's distributions, but for the constants that the authors' code leaves out, or has too many of."""
    x, y = tables(tmp_path)
    z = np.array([-0.3, 0.4, 0.2, -0.5, 0.7])
    found = {}
    with jax.enable_x64(True):
        for name, problem in targets.REGRESSIONS.items():
            density, load, _ = problem["density"]
            at = z[1:] if name in ("creatinine", "bank", "airports") else z
            found[name] = float(density(at, load(tmp_path)))
    one, b, s = np.ones((12, 1)), z[1:], z[0]
    logs = np.column_stack([x[:, :2], np.log(120.0 - x[:, 2])])
    residuals = scaled(y) - np.hstack([one, scaled(logs)]) @ b
    t_constant = st.t.logpdf(0.0, 5) + 3 * np.log(5.0)
    expected = {"creatinine": st.cauchy.logpdf(b).sum() + (st.t.logpdf(residuals, 5) - t_constant).sum()}
    noise, mixture = np.exp(0.5 * s), np.log(0.5 * st.norm.pdf(b, 0, 0.1) + 0.5 * st.norm.pdf(b, 0, 10)).sum()
    raw, known = np.hstack([one, x]), st.norm.logpdf(s)
    expected["prostate"] = known + mixture + st.norm.logpdf(y, np.hstack([one, scaled(x)]) @ b, noise).sum()
    expected["superconductivity"] = known + mixture + st.norm.logpdf(y, raw @ b, noise).sum()
    expected["crime"] = known + st.cauchy.logpdf(b).sum() - np.log(np.pi) + st.norm.logpdf(y, raw @ b, noise).sum()
    score, tau, w = scaled(x) @ b[1:], b[0], b[1:]
    gamma = st.gamma.logpdf(np.exp(tau), 1.0, scale=100.0) + tau - np.log(0.01)
    weights = st.norm.logpdf(w, 0, np.exp(-0.5 * tau)).sum() + 1.5 * np.log(2 * np.pi)
    expected["bank"] = gamma + weights + st.bernoulli.logpmf(y.astype(int), 1 / (1 + np.exp(-score))).sum()
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(x.T) + 1e-8 * np.eye(3)), x.T).T
    rate = np.log1p(np.exp(np.hstack([one, whitened]) @ b))
    expected["airports"] = st.norm.logpdf(b).sum() + st.poisson.logpmf(y, rate).sum()  # log y! = 0 here
    assert found == pytest.approx(expected, abs=1e-8)
