"""The Hamiltonian family: schedules, metrics, whitened coordinates, and where chains may not stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.adaptation.window_adaptation import build_schedule
from blackjax.mcmc.hmc import HMCState as Point
from blackjax.mcmc.metrics import LowRankInverseMassMatrix

import pushforward as pf
from pushforward.samplers import fisher
from pushforward.samplers.adaptation import hopeless
from pushforward.samplers.hmc import finite_density
from pushforward.samplers.metric import Factor, as_matrix, as_metric, log_volume, variances, whiten
from pushforward.samplers.schedule import frozen, growing_schedule, split_schedule, window_schedule
from tests.run.models import COVARIANCE, MEAN, gaussian


def unrolled(schedule, num_warmup):
    """Rows (slow?, end of a window?), as BlackJAX writes them."""
    t = np.arange(num_warmup)
    slow = (t >= schedule.start) & (t < schedule.stop)
    return np.stack([slow, np.isin(t, schedule.ends)], axis=1)


@pytest.mark.parametrize("num_warmup", [5, 19, 20, 75, 149, 150, 151, 500, 1000, 3000])
def test_window_schedule_is_stans(num_warmup):
    np.testing.assert_array_equal(unrolled(window_schedule(num_warmup), num_warmup), build_schedule(num_warmup))


@pytest.mark.parametrize("num_warmup", [20, 60, 300, 1000, 5000, 100_000])
def test_growing_schedule_covers_what_it_should(num_warmup):
    schedule = growing_schedule(num_warmup)
    ends = schedule.ends[schedule.ends >= 0]
    widths = np.diff(np.concatenate([[-1], ends]))
    assert schedule.start == 0
    assert ends[-1] == schedule.stop - 1 == num_warmup - max(round(0.15 * num_warmup), 1) - 1
    assert widths.min() >= min(10, num_warmup // 2)
    long = ends >= schedule.long_from
    assert widths[long].min() >= min(30, schedule.stop - schedule.long_from)
    ages = [int(schedule.age(end)) for end in ends]
    assert ages == sorted(ages)
    np.testing.assert_array_equal(np.array(ages) == 2, long)
    assert long[0] or ages[0] == 0


def test_split_schedule_goes_on_where_it_was():
    whole = growing_schedule(1000)
    first, rest = split_schedule(whole, 200)
    np.testing.assert_array_equal(unrolled(whole, 1000)[:200], unrolled(first, 200))
    np.testing.assert_array_equal(unrolled(whole, 1000)[200:], unrolled(rest, 800))
    assert rest.long_from <= 0
    assert int(rest.age(0)) == 2


@pytest.fixture
def low_rank():
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.1, 3, 6)
    directions = np.linalg.qr(rng.normal(size=(6, 3)))[0]
    return LowRankInverseMassMatrix(sigma, directions, np.array([9.0, 0.04, 1.0]))


def matrix(metric):
    inner = np.eye(6) + (metric.U * (metric.lam - 1)) @ metric.U.T
    return metric.sigma[:, None] * inner * metric.sigma


def factor():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(6, 6))
    return Factor(root, np.linalg.inv(root))


@pytest.mark.parametrize("form", ["low rank", "factor"])
def test_whitened_coordinates(low_rank, form):
    """In w the metric is the identity: F Fᵀ is the metric, and gradients come and go by the chain rule."""
    metric = low_rank if form == "low rank" else factor()
    expected = matrix(low_rank) if form == "low rank" else metric.root @ metric.root.T
    rng = np.random.default_rng(1)
    precision = np.cov(rng.normal(size=(6, 50)))
    with jax.enable_x64(True):

        def log_density(u):
            return -0.5 * u @ precision @ u + jnp.sum(jnp.sin(u))

        u = jnp.asarray(rng.normal(size=6))
        value, gradient = jax.value_and_grad(log_density)(u)
        start, white, ones, back = whiten(jax.tree.map(jnp.asarray, metric), Point(u, value, gradient), log_density)
        np.testing.assert_array_equal(ones, np.ones(6))
        np.testing.assert_array_equal(start.position, np.zeros(6))
        at = jnp.asarray(rng.normal(size=6))
        root = jax.jacobian(lambda w: back(Point(w, 0.0, gradient)).position)(at)
        np.testing.assert_allclose(root @ root.T, expected, rtol=1e-11)
        np.testing.assert_allclose(start.logdensity_grad, jax.grad(white)(start.position), rtol=1e-11)
        there = back(Point(at, *jax.value_and_grad(white)(at)))
        np.testing.assert_allclose(there.logdensity, log_density(there.position), rtol=1e-13)
        np.testing.assert_allclose(there.logdensity_grad, jax.grad(log_density)(there.position), rtol=1e-10)


def test_a_factor_and_the_other_forms(low_rank):
    whole = factor()
    with jax.enable_x64(True):
        np.testing.assert_allclose(variances(whole), np.diag(whole.matrix()), rtol=1e-12)
        np.testing.assert_allclose(as_metric(whole, np.eye(6)), whole.matrix())
        np.testing.assert_allclose(as_metric(whole, np.ones(6)), np.diag(whole.matrix()), rtol=1e-12)
        np.testing.assert_allclose(as_metric(whole, low_rank).sigma ** 2, np.diag(whole.matrix()), rtol=1e-12)
        for other in (np.arange(1.0, 7.0), whole.matrix(), jax.tree.map(jnp.asarray, low_rank)):
            found = as_metric(other, whole)
            np.testing.assert_allclose(found.matrix(), as_matrix(other), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.root @ found.inverse, np.eye(6), atol=1e-12)
    stacked = jax.tree.map(lambda x: np.stack([x, 2.0 * x]), whole)
    expected = 0.5 * np.linalg.slogdet(whole.matrix())[1]
    np.testing.assert_allclose(log_volume(stacked), [expected, expected + 6 * np.log(2.0)])


def fisher_window(draws, scores, metric, age):
    state = fisher.init(draws.shape[1])._replace(inverse_mass_matrix=metric)
    for draw, score in zip(draws, scores, strict=True):
        state = fisher.update(state, draw, score, jnp.asarray(True))
        state = fisher.update(state, draw * jnp.nan, score, jnp.asarray(False))  # a bad draw leaves no trace
    return fisher.final(state, jnp.asarray(age))


def test_fisher_metric_is_the_geometric_mean():
    """C # S⁻¹ by its definition, C^{1/2} (C^{-1/2} S⁻¹ C^{-1/2})^{1/2} C^{1/2}, up to the weight of the prior."""
    from scipy.linalg import inv, sqrtm

    rng = np.random.default_rng(3)
    draws = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4))
    scores = -draws @ np.diag([1.0, 2.0, 3.0, 4.0]) + rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4))
    covariance, of_scores = np.cov(draws.T), np.cov(scores.T)
    root = sqrtm(covariance)
    expected = root @ sqrtm(inv(root) @ inv(of_scores) @ inv(root)) @ root
    with jax.enable_x64(True):
        metric = Factor(jnp.eye(4), jnp.eye(4))
        for _ in range(4):  # the prior is the metric in force, so that it loses its say from window to window
            metric = fisher_window(draws, scores, metric, 2).inverse_mass_matrix
        np.testing.assert_allclose(metric.matrix(), expected, atol=1e-3 * np.abs(expected).max())
        np.testing.assert_allclose(metric.root @ metric.inverse, np.eye(4), atol=1e-9)
        state = fisher_window(draws, scores, metric, 0)
        np.testing.assert_allclose(
            state.inverse_mass_matrix.matrix(), np.diag(np.std(draws, 0) / np.std(scores, 0)), rtol=1e-10
        )
        # The next window starts from nothing.
        again = fisher.update(state, draws[0], scores[0], jnp.asarray(True))
        np.testing.assert_array_equal(again.moment, np.zeros((2, 4, 4)))
        np.testing.assert_allclose(again.mean, np.stack([draws[0], scores[0]]))


@pytest.mark.parametrize("count", [15, 60])
def test_fisher_metric_of_a_gaussian_has_no_sampling_error(count):
    """Scores -Σ⁻¹ x: from any more draws than dimensions the metric is Σ, and it is approached from below."""
    rng = np.random.default_rng(4)
    half = rng.normal(size=(8, 8)) * np.logspace(-2, 2, 8)[:, None]
    draws = rng.normal(size=(count, 8)) @ half.T
    sigma = half @ half.T
    scores = -np.linalg.solve(sigma, draws.T).T
    with jax.enable_x64(True):
        metric = Factor(jnp.eye(8), jnp.eye(8))
        for age in (0, 1, 1, *[2] * 7):
            metric = fisher_window(draws, scores, metric, age).inverse_mass_matrix
        ratio = np.linalg.eigvalsh(metric.inverse @ sigma @ metric.inverse.T)
    np.testing.assert_allclose(ratio, 1.0, atol=0.02)


def test_fewer_draws_than_dimensions_leave_what_is_known():
    rng = np.random.default_rng(5)
    draws = rng.normal(size=(10, 30))
    with jax.enable_x64(True):
        metric = fisher_window(draws, -draws, Factor(jnp.eye(30), jnp.eye(30)), 1).inverse_mass_matrix
        np.testing.assert_allclose(metric.matrix(), np.eye(30), atol=1e-10)


def test_log_volume(low_rank):
    covariances = np.stack([np.diag([1.0, 4.0]), np.array([[2.0, 1.0], [1.0, 2.0]])])
    half = 0.5 * np.linalg.slogdet(covariances)[1]
    np.testing.assert_allclose(log_volume(covariances), half)
    np.testing.assert_allclose(log_volume(np.array([[1.0, 4.0]])), half[:1])
    stacked = jax.tree.map(lambda x: np.asarray(x)[None], low_rank)
    np.testing.assert_allclose(log_volume(stacked), 0.5 * np.linalg.slogdet(matrix(low_rank))[1])


def test_hopeless_chains_are_told_from_wide_plateaus():
    same = np.zeros(3)
    assert hopeless(np.array([-10.0, -25.0, -12.0]), same, 8, 20.0) is None  # within the margin
    np.testing.assert_array_equal(hopeless(np.array([-10.0, -50.0, -12.0]), same, 8, 20.0), [0, 0, 2])
    # A plateau 40 nats lower and 30 nats larger holds mass of the same order: it stays.
    assert hopeless(np.array([-10.0, -50.0, -12.0]), np.array([0.0, 30.0, 0.0]), 8, 20.0) is None
    # The volume that a stuck chain has learned is no excuse without bound, nor are numbers that are none.
    np.testing.assert_array_equal(
        hopeless(np.array([-10.0, -1e9, np.nan, -11.0]), np.array([0.0, 1e9, 0.0, 0.0]), 8, 20.0), [0, 0, 3, 3]
    )
    # Of a density without bound, next to which the margin is lost in rounding, the best chain stays, if it is finite.
    np.testing.assert_array_equal(hopeless(np.array([1e18, 1e18, 1e20]), same, 8, 20.0), [2, 2, 2])
    assert hopeless(np.array([np.inf, np.nan, np.inf]), same, 8, 20.0) is None


@pytest.mark.parametrize("bits", [32, 64])
def test_densities_too_low_to_square_momenta_are_minus_infinity(bits):
    target = pf.Target.from_log_density(lambda x: jnp.sum(x), np.zeros(1))
    with jax.enable_x64(bits == 64):
        density = finite_density(target.log_density)
        lowest = float(jnp.finfo(density(jnp.ones(1)).dtype).max) ** 0.5
        assert density(jnp.array([-1.0])) == -1.0
        assert density(jnp.array([-lowest])) == -jnp.inf
        assert density(jnp.array([jnp.nan])) == -jnp.inf
        assert density(jnp.array([jnp.inf])) == -jnp.inf


def two_modes(x):
    """Mass of about exp(-60) at 0, the rest at 30, and nothing in between."""
    wrong = -0.5 * jnp.sum((x / 0.5) ** 2) - 60.0
    right = -0.5 * jnp.sum((x - 30.0) ** 2)
    return jnp.logaddexp(wrong, right)


def test_chains_in_a_hopeless_mode_go_on_from_another():
    target = pf.Target.from_log_density(two_modes, np.zeros(2))
    start = np.array([[0.0, 0.1], [30.0, 30.0], [0.1, 0.1], [30.0, 29.0]])
    posterior = pf.fit(target, key=0, num_samples=500, num_warmup=300, start=start, progress=False)
    assert posterior.record["moved"] == {"0": 1, "2": 3}
    assert abs(posterior.draws()["x"].mean() - 30.0) < 0.2
    assert "chains 0, 2 had settled" in str(posterior.diagnose()["chains moved"].message)


def test_modes_of_like_mass_are_left_alone_and_told():
    def log_density(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x / 0.5) ** 2), -0.5 * jnp.sum((x - 30.0) ** 2))

    target = pf.Target.from_log_density(log_density, np.zeros(2))
    start = np.array([[0.0, 0.1], [30.0, 30.0], [0.1, 0.1], [30.0, 29.0]])
    posterior = pf.fit(target, key=0, num_samples=500, num_warmup=300, start=start, progress=False)
    assert posterior.record["moved"] == {}
    assert posterior.diagnose().flagged


@pytest.mark.parametrize("metric", ["fisher", "low_rank", "diagonal", "diagonal_welford", "dense"])
def test_metrics_learn_the_scales(metric):
    """On a Gaussian whose metric is of full rank the learned one is its covariance, or its diagonal part."""
    posterior = pf.fit(gaussian(), pf.NUTS(metric=metric), key=1, num_samples=200, progress=False)
    learned = posterior._learned()["inverse_mass_matrix"]
    for chain in range(4):
        one = jax.tree.map(lambda x, c=chain: np.asarray(x)[c], learned)
        if metric == "low_rank":
            inner = np.eye(3) + (one.U * (one.lam - 1)) @ one.U.T
            found = one.sigma[:, None] * inner * one.sigma
            # Directions within a factor of two of the diagonal are left out: as matrices they agree to that factor.
            ratio = np.linalg.eigvals(np.linalg.solve(COVARIANCE, found)).real
            assert ratio.min() > 0.45
            assert ratio.max() < 2.2
        elif metric == "fisher":
            np.testing.assert_allclose(one, COVARIANCE, atol=1e-6)  # no sampling error
        elif metric == "dense":
            scale = np.sqrt(np.diag(COVARIANCE))
            np.testing.assert_allclose(one / np.outer(scale, scale), COVARIANCE / np.outer(scale, scale), atol=0.35)
        else:
            precision = np.diag(np.linalg.inv(COVARIANCE))
            fisher = np.sqrt(np.diag(COVARIANCE) / precision)
            expected = fisher if metric == "diagonal" else np.diag(COVARIANCE)
            np.testing.assert_allclose(one, expected, rtol=0.4)
    draws = posterior.draws()["x"].reshape(-1, 3)
    np.testing.assert_allclose((draws.mean(0) - MEAN) / np.sqrt(np.diag(COVARIANCE)), 0.0, atol=0.25)


def test_acceptance_is_driven_to_its_target():
    for method, rate in ((pf.NUTS(), 0.8), (pf.NUTS(target_acceptance=0.95), 0.95), (pf.MALA(), 0.574)):
        stats = pf.fit(gaussian(), method, key=2, progress=False).data["sample_stats"]
        assert abs(float(stats["acceptance_rate"].mean()) - rate) < 0.1
        assert len(np.unique(stats["step_size"].values[0])) == 1


def test_step_size_and_metric_of_the_user_without_warmup():
    method = pf.NUTS(step_size=0.3, inverse_mass_matrix=np.diag(COVARIANCE), metric="diagonal")
    posterior = pf.fit(gaussian(), method, key=0, num_warmup=0, num_samples=50, progress=False)
    np.testing.assert_allclose(posterior.data["sample_stats"]["step_size"], 0.3)
    np.testing.assert_allclose(posterior._learned()["inverse_mass_matrix"], np.tile(np.diag(COVARIANCE), (4, 1)))
    assert list(posterior.record["totals"]) == ["sample"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": -0.1}, "step_size must be a finite number > 0, got -0.1"),
        ({"target_acceptance": 1.0}, "target_acceptance must be a finite number strictly between 0 and 1, got 1.0"),
        ({"metric": "full"}, "metric must be one of .*, got 'full'"),
        ({"max_tree_depth": 0}, "max_tree_depth must be a whole number >= 1, got 0"),
        ({"divergence_threshold": float("nan")}, "divergence_threshold must be a finite number > 0, got nan"),
    ],
)
def test_ranges_of_hyperparameters(options, message):
    with pytest.raises(pf.InvalidArgument, match=message):
        pf.NUTS(**options)


def test_an_inverse_mass_matrix_that_does_not_fit():
    with pytest.raises(pf.InvalidArgument, match=r"inverse_mass_matrix has shape \(2,\)"):
        pf.fit(gaussian(), pf.NUTS(inverse_mass_matrix=np.ones(2), metric="dense"), progress=False)
    with pytest.raises(pf.InvalidArgument, match="use metric='dense'"):
        pf.fit(gaussian(), pf.NUTS(inverse_mass_matrix=np.eye(3), metric="diagonal"), progress=False)


def test_frozen_schedule_teaches_nothing():
    assert not frozen().adapting
    assert unrolled(frozen(), 50).sum() == 0
