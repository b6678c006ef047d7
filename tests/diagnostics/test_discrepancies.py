"""Discrepancies of two samples against closed forms, by quadrature rather than by chance; weights, errors, refusals."""

import math

import numpy as np
import pytest
from scipy.stats import norm

import pushforward as pf
from pushforward.infer.diagnostics.discrepancies import (
    energy_distance,
    flatten,
    gaussian_wasserstein,
    median_bandwidth,
    mmd,
    sliced_wasserstein,
    wasserstein_1d,
)
from tests.diagnostics.quadrature import hermite

RNG = np.random.default_rng(1)


def normal_quantiles(n):
    return norm.ppf((np.arange(n) + 0.5) / n)


def dense(distance, x, y):
    return distance(np.linalg.norm(x[:, None] - y, axis=-1))


def statistics(g, x, y):
    """V- and U-statistic of 2 E g(X, Y) − E g(X, X') − E g(Y, Y') by their definition."""
    xx, yy, xy = dense(g, x, x), dense(g, y, y), dense(g, x, y)
    off = [np.sum(m - np.diag(np.diag(m))) / (len(m) * (len(m) - 1)) for m in (xx, yy)]
    return 2 * xy.mean() - xx.mean() - yy.mean(), 2 * xy.mean() - sum(off)


# -- energy distance --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "scale", "truth"), [(1, 1, 0.541807), (0, 2, 0.183111)])
def test_energy_distance_of_normals(shift, scale, truth):
    q = normal_quantiles(20_000)
    assert energy_distance(q, shift + scale * q).squared == pytest.approx(truth, abs=3e-6)


@pytest.mark.parametrize(("n", "m", "dim"), [(700, 530, 1), (700, 530, 3), (90, 611, 20)])
def test_energy_distance_is_its_definition(n, m, dim):
    x, y = RNG.normal(size=(n, dim)), 0.3 + RNG.normal(size=(m, dim))
    v, u = statistics(lambda r: r, x, y)
    found = energy_distance(x, y)
    assert found.squared == pytest.approx(v, rel=1e-10)
    assert found.unbiased == pytest.approx(u, rel=1e-9)
    assert found.squared - found.floor == pytest.approx(found.unbiased, rel=1e-9)
    assert found.distance == math.sqrt(found.squared)


def test_weights_are_copies():
    x, y = RNG.normal(size=(40, 2)), RNG.normal(size=(30, 2))
    counts = RNG.integers(1, 4, size=40)
    for f in (energy_distance, lambda a, b, **w: mmd(a, b, bandwidth=1.0, **w)):
        assert f(x, y, x_weights=counts).squared == pytest.approx(f(np.repeat(x, counts, 0), y).squared, rel=1e-10)


def test_a_posterior_of_particles_brings_its_weights():
    x, log_weights = RNG.normal(size=(40, 2)), RNG.normal(size=40)

    class Particles:
        kind, sample_dims = "particles", ("particle",)

        def draws(self):
            return {"x": x}

        def log_weights(self):
            return log_weights

    y = RNG.normal(size=(30, 2))
    for f in (energy_distance, sliced_wasserstein, lambda a, b, **w: mmd(a, b, bandwidth=1.0, **w)):
        assert f(Particles(), y)[:3] == pytest.approx(f(x, y, x_weights=np.exp(log_weights))[:3])


def test_one_coordinate_by_sorting_is_the_same_as_by_tiles():
    x, y = RNG.normal(size=600), RNG.normal(size=40) + 1
    wide = energy_distance(np.c_[x, 0 * x], np.c_[y, 0 * y])
    np.testing.assert_allclose(energy_distance(x, y)[:4], wide[:4], rtol=1e-10)


def test_32_bits_far_from_the_origin():
    """Differences of means of order one: both the offset and the sum would eat the digits."""
    x, y = RNG.normal(size=(900, 20)), 0.1 + RNG.normal(size=(800, 20))
    truth = energy_distance(x, y), mmd(x, y, bandwidth=20.0)
    x32, y32 = (1000 + x).astype(np.float32), (1000 + y).astype(np.float32)
    exact = (
        energy_distance(x32.astype(float), y32.astype(float)),
        mmd(x32.astype(float), y32.astype(float), bandwidth=20.0),
    )
    found = energy_distance(x32, y32), mmd(x32, y32, bandwidth=20.0)
    for f, e, t in zip(found, exact, truth, strict=True):
        assert f.squared == pytest.approx(e.squared, abs=2e-6)
        assert e.squared == pytest.approx(t.squared, rel=1e-2)  # what the points themselves have lost


def test_standard_error_is_the_spread_of_replicates():
    rng = np.random.default_rng(5)
    for f in (energy_distance, lambda a, b: mmd(a, b, bandwidth=2.0)):
        found = [f(rng.normal(size=(80, 2)), 1 + rng.normal(size=(120, 2))) for _ in range(250)]
        spread = np.std([one.unbiased for one in found], ddof=1)
        assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.15)


def test_equal_laws_have_the_floor():
    rng = np.random.default_rng(6)
    found = [energy_distance(rng.normal(size=(60, 2)), rng.normal(size=(90, 2))) for _ in range(250)]
    unbiased = np.array([one.unbiased for one in found])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / math.sqrt(250)
    iid = math.sqrt(math.pi) * (1 / 60 + 1 / 90)  # E‖X − X'‖ = √π in two dimensions
    assert np.mean([one.floor for one in found]) == pytest.approx(iid, rel=0.02)
    assert 1 < np.mean([one.standard_error for one in found]) / unbiased.std() < 1.5


# -- MMD --------------------------------------------------------------------------------------------------------------


def expected_rbf(s, t, distance, h, dim):
    spread = h + 2 * (s**2 + t**2)
    return (h / spread) ** (dim / 2) * math.exp(-distance / spread)


def test_mmd_of_normals():
    x, w = hermite(0.0, 1.0, 2, 40)
    y, v = hermite([0.5, 1.0], 1.5, 2, 40)
    truth = [
        expected_rbf(1, 1, 0, h, 2) + expected_rbf(1.5, 1.5, 0, h, 2) - 2 * expected_rbf(1, 1.5, 1.25, h, 2)
        for h in (3, 6)
    ]
    assert mmd(x, y, bandwidth=3.0, x_weights=w, y_weights=v).squared == pytest.approx(truth[0], rel=1e-6)
    both = mmd(x, y, bandwidth=[3.0, 6.0], x_weights=w, y_weights=v)
    assert both.squared == pytest.approx(np.mean(truth), rel=1e-6)
    assert both.bandwidth == (3.0, 6.0)


@pytest.mark.parametrize(
    ("kernel", "g"), [("rbf", lambda r: -np.exp(-(r**2) / 2)), ("imq", lambda r: -((1 + r**2 / 2) ** -0.5))]
)
def test_mmd_is_its_definition(kernel, g):
    x, y = RNG.normal(size=(333, 4)), 0.3 + RNG.normal(size=(87, 4))
    found = mmd(x, y, kernel=kernel, bandwidth=2.0)
    assert (found.squared, found.unbiased) == pytest.approx(statistics(g, x, y), rel=1e-9)
    assert found.squared - found.floor == pytest.approx(found.unbiased, rel=1e-9)


def test_median_bandwidth():
    x = RNG.normal(size=(50, 3))
    squared = np.sum((x[:, None] - x) ** 2, axis=-1)[np.triu_indices(50, 1)]
    assert median_bandwidth(x) == pytest.approx(np.median(squared), rel=1e-12)
    bandwidths = mmd(x[:20], x[20:]).bandwidth
    np.testing.assert_allclose(bandwidths, np.median(squared) * 2.0 ** np.arange(-2, 3))


# -- Wasserstein ------------------------------------------------------------------------------------------------------


def test_wasserstein_1d_of_weighted_atoms():
    """{0: 1/4, 1: 3/4} to {0: 1/2, 3: 1/2}: a quarter of the mass stays, a quarter moves 1, a half moves 2."""
    for p in (1, 2, 3):
        found = wasserstein_1d([1.0, 0.0], [0.0, 3.0], p=p, x_weights=[3, 1])
        assert found**p == pytest.approx(1 / 4 + 2**p / 2, rel=1e-12)


def test_wasserstein_1d_of_unequal_sizes_and_normals():
    q = normal_quantiles(1000)
    assert wasserstein_1d(np.repeat(q, 3), q) == pytest.approx(0, abs=1e-7)
    assert wasserstein_1d(q, 2 + q, p=1) == pytest.approx(2)
    q = normal_quantiles(20_000)
    assert wasserstein_1d(q, 1 + 2 * q) == pytest.approx(gaussian_wasserstein(0, 1, 1, 4), rel=1e-4)


def test_gaussian_wasserstein():
    a, b = (m @ m.T for m in RNG.normal(size=(2, 4, 4)))
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inner = np.linalg.eigvalsh(root @ b @ root)
    truth = 5 + np.trace(a) + np.trace(b) - 2 * np.sqrt(inner).sum()
    assert gaussian_wasserstein(np.zeros(4), a, [1, 2, 0, 0], b) ** 2 == pytest.approx(truth, rel=1e-10)
    assert gaussian_wasserstein(np.zeros(4), a, np.zeros(4), a) < 1e-13 * math.sqrt(np.trace(a)) * 100
    near = gaussian_wasserstein(np.zeros(4), np.eye(4), np.zeros(4), (1 + 1e-10) * np.eye(4))
    assert near == pytest.approx(1e-10, rel=1e-4)  # the formula with traces has no digit of it
    assert gaussian_wasserstein([0, 0], np.zeros((2, 2)), [3, 4], np.zeros((2, 2))) == 5.0


def test_sliced_wasserstein_of_shift_and_scale():
    """‖Δ‖²/d of a shift, and tr(S)/d of a scale by 2, within the error from the directions."""
    x = RNG.normal(size=(500, 3))
    moved = sliced_wasserstein(x, x + np.array([1, 2, 0]), num_projections=500)
    assert abs(moved.power - 5 / 3) < 4 * moved.standard_error < 0.4
    second = np.trace(x.T @ x) / 500 / 3
    wider = sliced_wasserstein(x, 2 * x, num_projections=500)
    assert abs(wider.power - second) < 4 * wider.standard_error + 1e-3
    assert wider.distance == pytest.approx(math.sqrt(wider.power))
    assert sliced_wasserstein(x, 2 * x, num_projections=7, key=1) == sliced_wasserstein(
        x, 2 * x, num_projections=7, key=1
    )


def test_sliced_wasserstein_in_one_dimension_is_exact():
    x, y = RNG.normal(size=30), RNG.normal(size=50)
    assert sliced_wasserstein(x, y, p=1, num_projections=3).distance == pytest.approx(wasserstein_1d(x, y, p=1))


# -- draws and refusals -----------------------------------------------------------------------------------------------


def test_flatten():
    a, b = RNG.normal(size=(2, 5)), RNG.normal(size=(2, 5, 3, 2))
    points = flatten({"b": b, "a": a})
    np.testing.assert_array_equal(points, np.c_[a.ravel(), b.reshape(10, 6)])
    np.testing.assert_array_equal(flatten({"b": b, "a": a}, ["b"]), b.reshape(10, 6))
    posterior = pf.Posterior.from_draws({"a": a, "b": b})
    np.testing.assert_array_equal(flatten(posterior), points)
    assert energy_distance(posterior, points).squared == pytest.approx(0, abs=1e-12)
    with pytest.raises(pf.InvalidArgument, match=r"names must be some of a, b; got \['c'\]"):
        flatten({"b": b, "a": a}, ["c"])
    with pytest.raises(pf.InvalidArgument, match="same 2 leading axes"):
        flatten({"a": a, "c": np.zeros((2, 6))})


X = np.zeros((3, 2)) + np.arange(3)[:, None]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: energy_distance(X, X[:, :1]), pf.InvalidArgument, "as many coordinates, got 2 and 1"),
        (lambda: energy_distance(X, np.full((2, 2), np.nan)), pf.NonFinite, "y must be finite; 2 of 2 rows"),
        (lambda: energy_distance(X, "abc"), pf.InvalidArgument, "y must be an array of numbers"),
        (lambda: energy_distance(X, np.zeros((2, 2, 2))), pf.InvalidArgument, r"got shape \(2, 2, 2\)"),
        (lambda: energy_distance(X, X, x_weights=[1, 2]), pf.InvalidArgument, "each of the 3 points"),
        (lambda: energy_distance(X, X, y_weights=[1, 2, -1]), pf.InvalidArgument, "not all 0, got -1"),
        (lambda: energy_distance(X, X, y_weights=[0, 0, 0]), pf.InvalidArgument, "not all 0, got 0"),
        (lambda: mmd(X, X, kernel="box"), pf.InvalidArgument, "kernel must be one of"),
        (lambda: mmd(X, X, bandwidth=-1), pf.InvalidArgument, "bandwidth must be a finite number > 0, got -1"),
        (lambda: mmd(X, X, bandwidth=[]), pf.InvalidArgument, "got \\[\\]"),
        (lambda: mmd(0 * X, 0 * X), pf.InvalidArgument, "median distance of 6 points is 0"),
        (lambda: wasserstein_1d(X, X), pf.InvalidArgument, "one coordinate, got 2"),
        (lambda: wasserstein_1d([1], [2], p=0.5), pf.InvalidArgument, "p must be a finite number >= 1, got 0.5"),
        (lambda: sliced_wasserstein(X, X, num_projections=0), pf.InvalidArgument, "num_projections"),
        (lambda: gaussian_wasserstein([0, 0], np.eye(3), [0, 0], np.eye(2)), pf.InvalidArgument, "must fit"),
        (lambda: gaussian_wasserstein([0], [[1]], [0, 0], np.eye(2)), pf.InvalidArgument, "got 1 and 2"),
        (lambda: gaussian_wasserstein([0], [[-1]], [0], [[1]]), pf.InvalidArgument, "has the eigenvalue -1"),
        (
            lambda: gaussian_wasserstein([0, 0], [[1, 1], [0, 1]], [0, 0], np.eye(2)),
            pf.InvalidArgument,
            "differs from its transpose by 1",
        ),
    ],
)
def test_refusals(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_a_single_point_has_no_unbiased_estimate():
    found = energy_distance([[0.0, 0.0]], X)
    truth = 2 * np.linalg.norm(X, axis=1).mean() - dense(lambda r: r, X, X).mean()
    assert found.squared == pytest.approx(truth)
    assert math.isnan(found.unbiased)
