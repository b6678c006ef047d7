"""Events, the reflected diffusion of the cube, and the one-step student."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from scipy import stats

import pushforward as pf
from pushforward.infer.errors import InvalidArgument, UnsupportedTarget
from pushforward.samplers.diffusion.density import DiscreteFlow
from pushforward.samplers.diffusion.events import EventScore, event_probability
from pushforward.samplers.diffusion.rectified import distil, draw_times
from pushforward.samplers.diffusion.reflected import (
    CubeScore,
    ReflectedFlow,
    fold,
    heat_score,
    log_heat_kernel,
    reflected_loss,
)
from pushforward.samplers.diffusion.schedules import edm_grid, log_grid
from pushforward.samplers.diffusion.scores import AbstractScore, GaussianScore
from pushforward.samplers.diffusion.solvers import RK4, solve
from pushforward.samplers.diffusion.training import Levels

BASE = np.sqrt(1601)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def beyond(x):
    return x[0] - 2.0


def test_linear_events_of_a_gaussian_are_exact():
    score = EventScore(GaussianScore.from_moments([0.0], [1.0]), beyond, 0.0)
    run = jax.jit(lambda y, rho: score.score(y, rho)[0])
    for y, rho in [(0.3, 0.5), (-2.0, 1.0), (30.0, 20.0)]:
        mean = lambda y, rho=rho: y / (1 + rho**2)  # noqa: E731
        sd = rho / np.sqrt(1 + rho**2)
        step = 1e-6
        log_p = lambda y, m=mean, s=sd: stats.norm.logcdf((m(y) - 2) / s)  # noqa: E731
        wanted = -mean(y) + (log_p(y + step) - log_p(y - step)) / (2 * step)
        np.testing.assert_allclose(run(jnp.array([y]), rho), wanted, rtol=1e-6)


def test_probability_of_an_event():
    """P(x > 2) of N(0, 1) in two dimensions, by the flow given the event: draws inside, exact weights."""
    free = GaussianScore.from_moments([0.0, 0.0], [1.0, 1.0])
    q = DiscreteFlow.make(EventScore(free, beyond, 0.0), edm_grid(40.0, 0.02, 24), RK4())
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 2)))
    y, log_q, folds = jax.jit(jax.vmap(q.transform))(z)
    assert not folds.any()
    inside = y[:, 0] > 2
    log_p = jax.vmap(lambda y: free.log_density(y, 0.0))(y)
    found = event_probability(log_p, log_q, inside)
    truth = stats.norm.logsf(2)
    assert found.inside > 0.97
    assert found.log_probability == pytest.approx(truth, abs=4 * float(found.standard_error))
    assert found.standard_error < 0.02
    assert found.mean_log_ratio == pytest.approx(truth, abs=0.05)


class Cosine(AbstractScore):
    """Of p₀ = Π (1 + .8 cos πx) on the cube, in closed form; ``sign`` −1 is a wrong one."""

    def denoise(self, y, rho):
        """The drift's point, x + σ² ∇ log p_σ."""
        return y + rho**2 * jax.vmap(jax.grad(lambda x: jnp.log(density(x, rho))))(y)


def density(x, sigma):
    return 1 + 0.8 * jnp.exp(-(jnp.pi**2) * sigma**2 / 2) * jnp.cos(jnp.pi * x)


def test_the_flow_of_the_cube_conserves_probability():
    """F_τ(x) = x + (.8/π) e^(−π²τ) sin πx is the same along a path, and densities follow."""
    starts = jnp.linspace(0.01, 0.99, 9)[:, None]
    q = ReflectedFlow(Cosine(), jnp.asarray(log_grid(2.0, 1e-3, 160)), RK4(), 1)
    mass = lambda x, s: x + 0.8 / np.pi * np.exp(-(np.pi**2) * s**2 / 2) * np.sin(np.pi * x)  # noqa: E731
    x, log_q, folds = jax.jit(jax.vmap(q.transform))(starts)
    np.testing.assert_allclose(mass(x, 1e-3), mass(starts, 2.0), atol=1e-7)
    assert not folds.any()
    np.testing.assert_allclose(log_q, np.log(density(x[:, 0], 1e-3)), atol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(q.log_prob))(x), log_q, atol=1e-8)
    assert q.log_prob(jnp.array([1.5])) == -jnp.inf


def test_heat_kernels():
    """Both forms agree and integrate to one; the kernel smooths a density as the heat equation does."""
    x = (np.arange(4000) + 0.5) / 4000
    run = jax.jit(lambda t: jnp.exp(jax.vmap(lambda x: log_heat_kernel(x, jnp.asarray(0.3), t))(x)))
    for tau in (1e-4, 0.009999, 0.010001, 0.3):
        kernel = run(tau)
        assert kernel.mean() == pytest.approx(1, abs=1e-6)
        smoothed = np.mean(kernel * (1 + 0.8 * np.cos(np.pi * x)))
        assert smoothed == pytest.approx(1 + 0.8 * np.exp(-(np.pi**2) * tau) * np.cos(0.3 * np.pi), abs=1e-6)
    score = jax.jit(lambda t: heat_score(jnp.array([0.05, 0.7]), jnp.array([0.1, 0.4]), jnp.sqrt(2 * t)))
    np.testing.assert_allclose(score(0.0099999999), score(0.0100000001), rtol=1e-6)
    # Noise folded at the faces has this density: E cos πx = e^(−π²τ) cos πx₀.
    noise = np.random.default_rng(0).normal(size=200_000)
    folded = fold(jnp.asarray(0.2 + 0.9 * noise))
    assert folded.min() >= 0
    assert folded.max() <= 1
    assert np.mean(np.cos(np.pi * folded)) == pytest.approx(np.exp(-(np.pi**2) * 0.405) * np.cos(0.2 * np.pi), abs=6e-3)


def beta_like(x):
    """Between 1 and 3: (1 + .8 cos π(x₀ − 1)/2), flat in x₁; its integral is 4."""
    return jnp.log1p(0.8 * jnp.cos(0.5 * jnp.pi * (x[0] - 1)))


@pytest.mark.slow
def test_a_score_of_the_cube_is_learned():
    rng = np.random.default_rng(0)
    draws = rng.uniform(size=(20_000, 2))
    draws = draws[rng.uniform(size=len(draws)) * 1.8 < 1 + 0.8 * np.cos(np.pi * draws[:, 0])][:4000]
    target = pf.Target.from_log_density(beta_like, np.zeros(2), support=constraints.interval(1.0, 3.0))
    method = pf.ProbabilityFlow(
        np.log(draws / (1 - draws)), score="reflected", hidden=(32, 32), num_steps=600, rho_min=0.03
    )
    posterior = pf.fit(target, method, num_samples=2000, progress=False)
    q = posterior.approximation
    with jax.enable_x64(True):
        u, log_q = jax.jit(lambda key: q.sample_and_log_prob(key, 2000))(jax.random.key(1))
        np.testing.assert_allclose(jax.jit(jax.vmap(q.log_prob))(u[:20]), log_q[:20], atol=1e-6)
        w = np.exp(jax.jit(jax.vmap(target.log_density))(u) - log_q)
    assert w.mean() == pytest.approx(4, abs=4 * w.std() / np.sqrt(len(w)))
    assert w.mean() ** 2 / np.mean(w**2) > 0.9  # 0.76 for uniform draws
    evidence = posterior.evidence()
    assert evidence.log_evidence == pytest.approx(np.log(4), abs=4 * evidence.se + 1e-3)
    assert {"training", "solver"} <= {finding.name for finding in posterior.diagnose().findings}


def test_what_the_cube_has_not_is_refused():
    with pytest.raises(UnsupportedTarget, match="'x' is real; use score='amortised'"):
        pf.fit(
            pf.Target.from_log_density(beta_like, np.zeros(2)),
            pf.ProbabilityFlow(np.random.default_rng(0).normal(size=(50, 2)), score="reflected"),
            progress=False,
        )
    with pytest.raises(InvalidArgument, match="dynamics='sde' has no paths on the cube"):
        pf.ProbabilityFlow(score="reflected", dynamics="sde")


def test_the_loss_of_the_cube_is_least_at_the_score():
    """Of one point the kernel's score is the answer: its regression has no error there."""
    score = CubeScore.make(jax.random.key(0), 1)
    points = jnp.full((512, 1), 0.3)
    levels = Levels(jnp.asarray(0.05), jnp.asarray(2.0))

    class Exact(CubeScore):
        def over_level(self, x, sigma):
            return sigma * heat_score(x, jnp.array([0.3]), sigma)

    loss = jax.jit(lambda score: reflected_loss(score, points, jax.random.key(1), levels))
    assert loss(Exact(score.net)) < 1e-20
    assert loss(score) > 0.1


@pytest.mark.slow
def test_a_student_takes_one_step():
    score = GaussianScore.from_moments([0.5, -1.0], [[0.5, 0.3], [0.3, 0.6]])
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4000, 2)))
    grid = jnp.asarray(edm_grid(40.0, 0.02, 24))
    x = jax.jit(jax.vmap(lambda z: solve(score, RK4(), grid, BASE * z)))(z)
    student, losses = distil(jax.random.key(0), z, x, hidden=(32, 32), training_steps=800, batch_size=256)
    assert losses[-1] < 0.2 * losses[0]
    fresh = jnp.asarray(np.random.default_rng(1).normal(size=(2000, 2)))
    y, log_q, folds = jax.jit(jax.vmap(student.transform))(fresh)
    assert not folds.any()
    truth = jax.jit(jax.vmap(lambda z: solve(score, RK4(), grid, BASE * z)))(fresh)
    assert np.sqrt(np.mean((y - truth) ** 2)) < 0.08
    w = np.exp(jax.vmap(lambda y: score.log_density(y, 0.0))(y) - log_q)  # its own density: no bias
    assert w.mean() == pytest.approx(1, abs=4 * w.std() / np.sqrt(len(w)))
    with pytest.raises(
        InvalidArgument, match=r"pairs of points of the same shape \(n, d\), got \(4000, 2\) and \(5, 2\)"
    ):
        distil(jax.random.key(0), z, x[:5])


def test_times_are_dense_at_both_ends():
    t = np.asarray(draw_times(jax.random.key(0), 20_000, jnp.float64))
    assert t.min() >= 0
    assert t.max() <= 1
    middle = np.mean(np.abs(t - 0.5) < 0.25)
    assert middle == pytest.approx(np.sinh(1) / np.sinh(2), abs=1e-3)
