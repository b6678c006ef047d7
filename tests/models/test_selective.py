"""Inference after selection: against quadrature for one column, coverage with exact draws, and what is refused."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import kstest, norm

import pushforward as pf
from pushforward.models.selective import randomized_lasso


def data(seed: int, n: int = 100, p: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Correlated standardised columns and pure noise."""
    rng = np.random.default_rng(seed)
    X = np.sqrt(0.7) * rng.standard_normal((n, p)) + np.sqrt(0.3) * rng.standard_normal((n, 1))
    X -= X.mean(0)
    return X / (X.std(0, ddof=1) * np.sqrt(n)), rng.standard_normal(n)


def exact_draws(selection, n: int, seed: int = 0) -> np.ndarray:
    """Of the selective density, by Gibbs steps of truncated normals."""
    rng = np.random.default_rng(seed)
    precision = selection.design.T @ selection.design / selection.scale**2
    pull = -selection.design.T @ selection.offset / selection.scale**2
    o, out = selection.magnitudes.copy(), np.empty((n, selection.magnitudes.size))
    for k in range(-100, n):
        for j in range(o.size):
            sd = precision[j, j] ** -0.5
            mean = (pull[j] - precision[j] @ o + precision[j, j] * o[j]) * sd**2
            # By the upper tail, which keeps its digits.
            o[j] = mean - sd * ndtri(rng.uniform() * ndtr(mean / sd))
        if k >= 0:
            out[k] = o
    return out


def test_the_conditions_of_the_optimum_hold_and_the_reconstruction_is_right():
    X, y = data(1)
    selection = randomized_lasso(X, y, 1.2, key=3)
    omega = selection.design @ selection.magnitudes + selection.offset
    expected = selection.scale * np.random.default_rng(3).standard_normal(X.shape[1])
    np.testing.assert_allclose(omega, expected, atol=1e-9)


def test_one_column_by_quadrature():
    """Given its sign, the pivot of one column is a ratio of one-dimensional integrals."""
    X, y = data(0, p=1)
    y = y + 2.5 * X[:, 0]
    s = randomized_lasso(X, y, 1.0, noise_scale=1.0, key=0)
    (b,), (slope,), c, tau = s.design[0], s.slopes[0], s.offset[0], s.scale
    sd, estimate = s.covariance[0, 0] ** 0.5, s.coefficients[0]
    grid = np.linspace(estimate - 12 * sd, estimate + 12 * sd, 200_001)
    # ∫_{o>0} exp(−(B o + c + ℓ(t − β̄))²/(2τ²)) do
    log_selected = norm.logsf((c + slope * (grid - estimate)) * np.sign(b) / tau)
    draws = exact_draws(s, 50_000)
    for value in (-1.0, 2.0, 4.0):
        weight = np.exp(norm.logpdf(grid, value, sd) + log_selected)
        exact = weight[grid <= estimate].sum() / weight.sum()
        assert s.pivot(draws, 0, value) == pytest.approx(exact, abs=0.01)
    (interval,) = s.intervals(draws, 0.9)
    for end, level in ((interval.lower, 0.95), (interval.upper, 0.05)):
        weight = np.exp(norm.logpdf(grid, end, sd) + log_selected)
        assert weight[grid <= estimate].sum() / weight.sum() == pytest.approx(level, abs=0.012)


def test_pivots_are_uniform_and_naive_intervals_cover_too_seldom():
    pivots, naive, selective = [], [], []
    for seed in range(50):
        X, y = data(seed)
        try:
            s = randomized_lasso(X, y, 1.1, key=1000 + seed)
        except pf.InvalidArgument:
            continue
        draws = exact_draws(s, 800, seed)
        pivots.append(s.pivot(draws, 0, 0.0))
        naive += [i.lower < 0 < i.upper for i in s.naive_intervals(0.9)]
        selective += [i.lower < 0 < i.upper for i in s.intervals(draws, 0.9)]
    assert len(pivots) > 40
    assert kstest(pivots, "uniform").pvalue > 0.01
    # Within one selection intervals are dependent; three binomial standard errors of independent ones.
    assert np.mean(selective) > 0.9 - 3 * np.sqrt(0.09 / len(pivots))
    assert np.mean(naive) < 0.7


def test_any_method_samples_the_selective_density():
    X, y = data(1)
    s = randomized_lasso(X, y, 1.2, key=3)
    exact = exact_draws(s, 20_000)
    found = pf.fit(s.target(), pf.MirroredSVGD(num_particles=100), progress=False).draws()["x"]
    np.testing.assert_allclose(found.mean(0), exact.mean(0), atol=0.15 * exact.std(0).min())
    np.testing.assert_allclose(found.std(0), exact.std(0), rtol=0.15)


def test_what_is_refused(monkeypatch):
    X, y = data(0)
    with pytest.raises(pf.InvalidArgument, match="nothing is selected at penalty=100"):
        randomized_lasso(X, y, 100.0)
    with pytest.raises(pf.InvalidArgument, match=r"X has shape \(100, 20\) and y \(5,\)"):
        randomized_lasso(X, y[:5], 1.0)
    with pytest.raises(pf.NonFinite, match="y must be finite, got nan"):
        randomized_lasso(X, np.where(np.arange(100) == 3, np.nan, y), 1.0)
    double = np.column_stack([X[:, 0] + 0.01 * y, X[:, 0] + 0.01 * y])
    with pytest.raises(pf.InvalidArgument, match=r"the 2 selected columns \[0, 1\] are collinear"):
        randomized_lasso(double, y, 1e-3)
    monkeypatch.setattr("pushforward.models.selective.SWEEPS", 1)
    with pytest.raises(pf.NonFinite, match=r"the Lasso was not solved: its optimality conditions are off by"):
        randomized_lasso(X, y, 0.1)
    monkeypatch.undo()
    s = randomized_lasso(X, y, 1.0)
    with pytest.raises(pf.InvalidArgument, match=r"draws have shape \(4, 99\)"):
        s.intervals(np.ones((4, 99)))
    with pytest.raises(pf.InvalidArgument, match=r"draws must be positive magnitudes, got -1"):
        s.intervals(-np.ones((4, s.active.size)))


def test_an_interval_whose_end_is_out_of_sight_says_so():
    X, y = data(0)
    s = randomized_lasso(X, y, 1.0)
    # Draws that are far from the density move the crossing out of reach.
    far = 1e3 * np.ones((2, s.active.size))
    assert not all(i.found for i in s.intervals(far, 0.9))
