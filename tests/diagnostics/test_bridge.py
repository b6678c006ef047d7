"""Bridge sampling against closed forms, a conjugate regression and quadrature; its error against repetition."""

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from pushforward.infer.diagnostics.bridge import Evidence, bridge_sampling, evidence_from_runs, evidence_from_weights
from pushforward.infer.errors import InvalidArgument, NonFinite


def repeat(sample, log_density, exact, times=60):
    """z-scores of independent repetitions."""
    found = [bridge_sampling(i, sample(np.random.default_rng(1000 + i)), log_density) for i in range(times)]
    assert all(e.converged for e in found)
    return np.array([(e.log_evidence - exact) / e.se for e in found]), found


def calibrated(z):
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert 0.7 < z.std() < 1.35


def correlated_normal(d):
    a = np.random.default_rng(0).normal(size=(d, d))
    factor = np.linalg.cholesky(a @ a.T + np.eye(d))
    exact = 7 + d / 2 * math.log(2 * math.pi) + np.log(np.diag(factor)).sum()
    return factor, exact, lambda u: 7 - 0.5 * np.square(np.linalg.solve(factor, u.T - 3)).sum(axis=0)


@pytest.mark.parametrize("d", [1, 5, 20])
def test_normal(d):
    factor, exact, log_density = correlated_normal(d)
    z, found = repeat(lambda rng: 3 + rng.normal(size=(4, 500, d)) @ factor.T, log_density, exact)
    calibrated(z)
    assert np.mean([e.se for e in found]) < 0.02


def test_error_knows_of_autocorrelation():
    factor, exact, log_density = correlated_normal(4)

    def sample(rng, rho=0.9):
        e = rng.normal(size=(4, 1000, 4))
        for t in range(1, 1000):
            e[:, t] = rho * e[:, t - 1] + math.sqrt(1 - rho**2) * e[:, t]
        return 3 + e @ factor.T

    z, found = repeat(sample, log_density, exact)
    calibrated(z)
    assert np.mean([e.ess for e in found]) < 600


def test_conjugate_regression():
    """y ~ N(Xβ, 1), β ~ N(0, 4 I): y is normal with covariance I + 4 X Xᵀ."""
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(30), rng.normal(size=(30, 2))])
    y = x @ [0.5, 1.0, -1.0] + rng.normal(size=30)
    exact = stats.multivariate_normal(np.zeros(30), np.eye(30) + 4 * x @ x.T).logpdf(y)
    precision = x.T @ x + np.eye(3) / 4
    mean, factor = np.linalg.solve(precision, x.T @ y), np.linalg.cholesky(np.linalg.inv(precision))

    def log_density(u):
        return stats.norm.logpdf(y, u @ x.T).sum(axis=-1) + stats.norm.logpdf(u, 0, 2).sum(axis=-1)

    z, _ = repeat(lambda rng: mean + rng.normal(size=(4, 500, 3)) @ factor.T, log_density, exact)
    calibrated(z)


def test_skewed_targets():
    """A log-gamma in closed form, and a banana, whose constant comes from quadrature."""
    shape = 1.5
    z, _ = repeat(
        lambda rng: np.log(rng.gamma(shape, size=(4, 500, 1))),
        lambda u: (shape * u - np.exp(u))[:, 0],
        special.gammaln(shape),
    )
    calibrated(z)

    def banana(u):
        return -0.5 * u[:, 0] ** 2 / 2 - 0.5 * np.square((u[:, 1] - 0.5 * u[:, 0] ** 2) / 0.7)

    def sample(rng):
        first = math.sqrt(2) * rng.normal(size=(4, 1000))
        return np.stack([first, 0.5 * first**2 + 0.7 * rng.normal(size=(4, 1000))], axis=-1)

    def density(b, a):
        return math.exp(banana(np.array([[a, b]]))[0])

    area = integrate.dblquad(density, -12, 12, lambda a: a * a / 2 - 6, lambda a: a * a / 2 + 6)[0]
    assert area == pytest.approx(2 * math.pi * math.sqrt(2) * 0.7, rel=1e-6)
    z, _ = repeat(sample, banana, math.log(area))
    calibrated(z)


def test_keys_and_reproducibility():
    import jax

    factor, _, log_density = correlated_normal(2)
    u = 3 + np.random.default_rng(2).normal(size=(4, 400, 2)) @ factor.T
    assert bridge_sampling(3, u, log_density) == bridge_sampling(3, u, log_density)
    assert bridge_sampling(3, u, log_density) != bridge_sampling(4, u, log_density)
    data = np.asarray(jax.random.key_data(jax.random.key(3)))
    assert bridge_sampling(jax.random.key(3), u, log_density) == bridge_sampling(data, u, log_density)


def test_proposals_outside_the_support_weigh_nothing():
    """A half normal: half of the proposals fall where the density is zero, or NaN."""
    u = np.abs(np.random.default_rng(3).normal(size=(4, 1000, 1)))
    for outside in (-np.inf, np.nan):
        out = bridge_sampling(0, u, lambda v, o=outside: np.where(v[:, 0] > 0, -0.5 * v[:, 0] ** 2, o))
        assert out.log_evidence == pytest.approx(0.5 * math.log(math.pi / 2), abs=5 * out.se)


def test_thinning_bounds_the_work():
    factor, exact, log_density = correlated_normal(2)
    u = 3 + np.random.default_rng(4).normal(size=(4, 5000, 2)) @ factor.T
    sizes = []
    out = bridge_sampling(0, u, lambda v: sizes.append(len(v)) or log_density(v), max_draws=2000)
    assert sizes == [1000, 1000]
    assert out.num_evaluations == 2000
    assert out.log_evidence == pytest.approx(exact, abs=5 * out.se)


def test_evidence_of_weights_and_runs():
    e = np.random.default_rng(5).normal(size=4000)
    out = evidence_from_weights(-0.5 * (1.3 * e) ** 2 + 0.5 * e**2 + math.log(1.3) + 2)
    assert out.log_evidence == pytest.approx(2.0, abs=4 * out.se)
    assert 0 < out.se < 0.02
    runs = evidence_from_runs(np.log([1.0, 2.0, 3.0]))
    assert runs.log_evidence == pytest.approx(math.log(2))
    assert runs.se == pytest.approx(1 / math.sqrt(3) / 2)
    assert "its error is not known" in str(evidence_from_runs([1.5]))


def test_text():
    assert str(Evidence(-12.3456, 0.012, 9, True, 900, 4000)) == "log evidence -12.346 ± 0.012"
    assert "did not converge" in str(Evidence(-12.3456, 0.012, 9, False, 900, 4000))
    assert "hardly overlaps" in str(Evidence(-12.3456, 0.8, 9, True, 900, 4000))


def test_bad_input():
    u = np.random.default_rng(6).normal(size=(4, 100, 2))

    def log_density(v):
        return -0.5 * np.square(v).sum(axis=-1)

    with pytest.raises(InvalidArgument, match=r"u has the shape \(4, 100\); bridge sampling needs"):
        bridge_sampling(0, u[..., 0], log_density)
    with pytest.raises(InvalidArgument, match="twice as many as dimensions"):
        bridge_sampling(0, np.random.default_rng(0).normal(size=(1, 40, 30)), log_density)
    with pytest.raises(NonFinite, match="u has 1 values that are not finite"):
        bridge_sampling(0, np.where(np.arange(800).reshape(u.shape) == 7, np.nan, u), log_density)
    with pytest.raises(NonFinite, match="is not finite at 200 of 200 draws of u"):
        bridge_sampling(0, u, lambda v: np.full(len(v), np.nan))
    with pytest.raises(InvalidArgument, match="u does not vary in dimension 1"):
        bridge_sampling(0, u * [1.0, 0.0], log_density)
    with pytest.raises(InvalidArgument, match="u varies in fewer than 2 directions"):
        bridge_sampling(0, np.stack([u[..., 0], 2 * u[..., 0]], axis=-1), log_density)
    with pytest.raises(InvalidArgument, match=r"returned the shape \(200, 1\) for \(200, 2\)"):
        bridge_sampling(0, u, lambda v: log_density(v)[:, None])
    with pytest.raises(InvalidArgument, match="key is -1"):
        bridge_sampling(-1, u, log_density)
    with pytest.raises(NonFinite, match="log_evidence has 1 finite of 2 values"):
        evidence_from_runs([0.0, np.nan])
    with pytest.raises(NonFinite, match="log_weights has 0 finite of 3 values"):
        evidence_from_weights(np.full(3, -np.inf))
