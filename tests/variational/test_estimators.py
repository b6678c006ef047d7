"""Gradient estimators: unbiased where they claim it, zero where they must be, refused where they are wrong."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.variational.amortised import amortised, gradient_noise
from pushforward.infer.variational.estimators import (
    DReG,
    FastPath,
    FixedDraws,
    Reparameterised,
    ScoreFunction,
    StickingTheLanding,
    check,
)
from pushforward.infer.variational.objectives import (
    ELBO,
    IWAE,
    PIWAE,
    ForwardKL,
    LogVariance,
    Objective,
    Renyi,
    WakeKL,
    as_objective,
)
from pushforward.infer.variational.rejection_families import GammaFamily

from .small_families import LocationScale, Normal

MEAN, SD = np.array([1.0, -0.5]), np.array([0.8, 1.5])


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def target(u):
    return jnp.sum(-0.5 * ((u - MEAN) / SD) ** 2)


def family():
    return Normal(jnp.array([0.4, 0.2]), jnp.array([0.1, -0.3]))


def exact_gradient(q):
    """Of −KL(q‖π) for normals, in location and log scale."""
    return (MEAN - q.loc) / SD**2, 1 - np.exp(2 * q.log_scale) / SD**2


@partial(jax.jit, static_argnames=("n",))
def many(objective, estimator, q, n):
    def one(key):
        found = estimator.value_and_grad(objective, q, target, key)
        return found.value, found.grads.loc, found.grads.log_scale

    return jax.lax.map(one, jax.random.split(jax.random.key(0), n), batch_size=min(n, 500))


def mean_and_error(x):
    return np.mean(x, 0), np.std(x, 0) / np.sqrt(len(x))


@pytest.mark.parametrize(
    ("objective", "estimator"),
    [
        (ELBO(8), Reparameterised()),
        (ELBO(8), StickingTheLanding()),
        (ELBO(8), ScoreFunction()),
        (LogVariance(8), FixedDraws()),
        (as_objective(jnp.mean, num_samples=8), DReG()),
    ],
    ids=lambda x: type(x).__name__,
)
def test_estimators_of_the_elbo_agree_with_its_gradient(objective, estimator) -> None:
    _, *found = many(objective, estimator, family(), 4000)
    for x, exact in zip(found, exact_gradient(family()), strict=True):
        mean, error = mean_and_error(x)
        assert np.all(np.abs(mean - exact) < 4 * error)
        assert np.all(error < 0.03)


def test_leave_one_out_is_the_gradient_of_the_log_variance() -> None:
    score, variance = (many(o, e, family(), 5) for o, e in ((ELBO(8), ScoreFunction()), (LogVariance(8), FixedDraws())))
    np.testing.assert_allclose(score[1], variance[1], rtol=1e-9)
    np.testing.assert_allclose(score[2], variance[2], rtol=1e-9)


@pytest.mark.parametrize("objective", [IWAE(3, 2), pytest.param(Renyi(0.5, 3), marks=pytest.mark.slow)])
def test_estimators_of_bounds_agree_with_one_another(objective: Objective) -> None:
    found = {e: many(objective, e, family(), 8000) for e in (Reparameterised(), DReG(), ScoreFunction())}
    plain = found.pop(Reparameterised())
    for other in found.values():
        for a, b in zip(plain[1:], other[1:], strict=True):
            (mean_a, error_a), (mean_b, error_b) = mean_and_error(a), mean_and_error(b)
            assert np.all(np.abs(mean_a - mean_b) < 4 * np.hypot(error_a, error_b))
            assert np.all(error_b < 0.03)

    # Stopping the score term alone, "STL inside IWAE", is what check refuses: it is biased.
    class Stopped(Objective):
        num_samples: int = eqx.field(static=True, default=3)
        num_draws: int = eqx.field(static=True, default=2)

        def terms(self, log_w):
            return objective.terms(log_w)

        def coefficients(self, log_w):
            g, _ = objective.coefficients(log_w)
            return g, g

    wrong = many(Stopped(), DReG(), family(), 8000)
    (mean_a, error_a), (mean_b, error_b) = mean_and_error(plain[2]), mean_and_error(wrong[2])
    assert np.any(np.abs(mean_a - mean_b) > 6 * np.hypot(error_a, error_b))


def test_path_gradients_vanish_where_the_family_is_the_posterior_and_the_others_do_not() -> None:
    q = Normal(jnp.asarray(MEAN), jnp.log(SD))
    for objective in (ELBO(1), IWAE(5)):
        path = many(objective, DReG(), q, 50)
        np.testing.assert_allclose(path[1], 0, atol=1e-12)
        np.testing.assert_allclose(path[2], 0, atol=1e-12)
    # The others keep the score of q: its variance is the Fisher information, 1/σ² and 2 (Roeder et al. 2017).
    plain = many(ELBO(1), Reparameterised(), q, 20_000)
    np.testing.assert_allclose(np.var(plain[1], 0), 1 / SD**2, rtol=0.05)
    np.testing.assert_allclose(np.var(plain[2], 0), 2.0, rtol=0.1)


def test_score_function_needs_no_gradient_of_the_density() -> None:
    q = Normal(jnp.array([0.3]), jnp.array([0.0]))
    steps = lambda u: jnp.floor(u[0])  # noqa: E731
    grads = lambda estimator: jax.lax.map(  # noqa: E731
        lambda key: estimator.value_and_grad(ELBO(8), q, steps, key).grads.loc[0],
        jax.random.split(jax.random.key(0), 4000),
        batch_size=500,
    )
    # ∂/∂m E floor(m + z) = Σ_k φ(k − m).
    exact = np.exp(-0.5 * (np.arange(-9, 10) - 0.3) ** 2).sum() / np.sqrt(2 * np.pi)
    mean, error = mean_and_error(jax.jit(grads, static_argnums=0)(ScoreFunction()))
    assert abs(mean - exact) < 4 * error
    assert error < 0.02
    assert np.allclose(jax.jit(grads, static_argnums=0)(StickingTheLanding()).mean(), 0, atol=0.05), "blind to steps"


def test_forward_objectives() -> None:
    rng = np.random.default_rng(0)
    data = MEAN + SD * rng.normal(size=(5000, 2))
    q = family()
    # −∂KL(π‖q): (mean of the data − m) / s², and E (u − m)²/s² − 1.
    s = np.exp(q.log_scale)
    exact = (data.mean(0) - q.loc) / s**2, ((data - q.loc) ** 2).mean(0) / s**2 - 1
    _, *found = many(ForwardKL(data, 64), FixedDraws(), q, 2000)
    for x, truth in zip(found, exact, strict=True):
        mean, error = mean_and_error(x)
        assert np.all(np.abs(mean - truth) < 4 * error)
    # Self-normalised weights of draws of q, in the limit of many.
    wide = Normal(q.loc, jnp.log(jnp.array([1.5, 2.5])))
    s = np.exp(wide.log_scale)
    true = (MEAN - q.loc) / s**2, ((MEAN - q.loc) ** 2 + SD**2) / s**2 - 1
    _, *found = many(WakeKL(4000), FixedDraws(), wide, 20)
    for x, truth in zip(found, true, strict=True):
        np.testing.assert_allclose(np.mean(x, 0), truth, atol=0.02)


def test_model_and_guide_of_piwae_are_those_of_its_parts() -> None:
    # log π_θ(u) with a parameter: the guide must move as MIWAE, the model as IWAE of all draws.
    def gradient(objective, theta, q):
        def loss(theta, q):
            log_density = lambda u: jnp.sum(-0.5 * (u - theta) ** 2 - 0.5 * (1.3 - u) ** 2)  # noqa: E731
            return Reparameterised().surrogate(objective, q, log_density, jax.random.key(1))[0]

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(theta, q)

    theta, q = jnp.array([0.5, 0.1]), family()
    partial_, rows, whole = (gradient(o, theta, q) for o in (PIWAE(4, 3), IWAE(4, 3), IWAE(12, 1)))
    np.testing.assert_allclose(partial_[0], whole[0], rtol=1e-12)
    np.testing.assert_allclose(partial_[1].loc, rows[1].loc, rtol=1e-12)
    assert not np.allclose(whole[1].loc, rows[1].loc, rtol=1e-3)
    assert not np.allclose(whole[0], rows[0], rtol=1e-3)


@pytest.mark.parametrize("full", [True, False])
def test_norm_of_location_scale_gradients(full: bool) -> None:
    # V = ½ L ‖u − z‖², one draw: E‖g‖² = L² [(d + 1) ‖δ‖² + (d + κ) ‖C‖²]; C diagonal: L² [2 ‖δ‖² + (1 + κ) ‖c‖²].
    d, smooth, kurtosis = 3, 1.7, 3.0
    rng = np.random.default_rng(0)
    delta, c = rng.normal(size=d), rng.normal(size=(d, d) if full else d)
    q = LocationScale(jnp.asarray(delta), jnp.asarray(c))
    energy = lambda u: -0.5 * smooth * jnp.sum(u**2)  # noqa: E731

    @jax.jit
    def norms(keys):
        def one(key):
            g = Reparameterised().value_and_grad(ELBO(1), q, energy, key).grads
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(g))

        return jax.lax.map(one, keys, batch_size=5000)

    mean, error = mean_and_error(norms(jax.random.split(jax.random.key(0), 50_000)))
    factors = (d + 1, d + kurtosis) if full else (2, 1 + kurtosis)
    exact = smooth**2 * (factors[0] * np.sum(delta**2) + factors[1] * np.sum(c**2))
    assert abs(mean - exact) < 4 * error
    assert error < 0.02 * exact


def gaussian_snr(estimator, num_samples, reps=600, d=20):
    """Squared signal-to-noise ratios of (guide, model): the linear-Gaussian model of Rainforth et al. 2018."""
    rng = np.random.default_rng(1)
    mu = rng.normal(size=d)
    x = mu + rng.normal(size=d) + rng.normal(size=d)
    small = lambda *shape: 0.01 * rng.normal(size=shape)  # noqa: E731
    trained = {"a": 0.5 * np.eye(d) + small(d, d), "b": mu / 2 + small(d), "mu": mu + small(d)}

    def build(trained, x):
        guide = Normal(trained["a"] @ x + trained["b"], jnp.full(d, 0.5 * np.log(2 / 3)))
        return guide, lambda u: -0.5 * jnp.sum((u - trained["mu"]) ** 2 + (x - u) ** 2)

    @jax.jit
    def grads(keys):
        one = lambda key: amortised(estimator, IWAE(num_samples), trained, build, x[None], key).grads  # noqa: E731
        return jax.lax.map(one, keys, batch_size=200)

    found = grads(jax.random.split(jax.random.key(0), reps))
    # Noise alone gives 1 / reps.
    ratio = lambda g: np.mean(np.mean(g, 0) ** 2 / np.var(g, 0)) - 1 / reps  # noqa: E731
    return ratio(np.asarray(found["b"])), ratio(np.asarray(found["mu"]))


def test_tighter_bounds_hurt_the_guide_unless_doubly_reparameterised() -> None:
    ks = (1, 100)
    plain = np.array([gaussian_snr(Reparameterised(), k) for k in ks])
    doubly = np.array([gaussian_snr(DReG(), k)[0] for k in ks])
    slope = np.log(plain[-1, 1] / plain[0, 1]) / np.log(ks[-1])
    assert slope == pytest.approx(1.0, abs=0.2), "the square of the model's ratio grows as K"
    assert plain[1, 0] < 0.3 * plain[0, 0]
    assert doubly[-1] > 4 * doubly[0]
    assert doubly[-1] > 100 * plain[-1, 0]


def test_noise_by_block() -> None:
    q = Normal(jnp.asarray(MEAN), jnp.log(SD))
    found = jax.jit(lambda key: gradient_noise(Reparameterised(), ELBO(64), q, target, key, 2000))(jax.random.key(0))
    assert set(found) == {"loc", "log_scale"}
    assert float(found["loc"][1]) == pytest.approx(np.sum(1 / SD**2), rel=0.1)  # Fisher information
    assert float(found["log_scale"][1]) == pytest.approx(4.0, rel=0.15)
    assert abs(float(found["loc"][0])) < 0.01
    quiet = jax.jit(lambda key: gradient_noise(StickingTheLanding(), ELBO(), q, target, key))(jax.random.key(0))
    assert float(quiet["loc"][1]) < 1e-20


class NoDensity(LocationScale):
    """A family without a density at given points."""


@pytest.mark.parametrize(
    ("objective", "estimator", "q", "message"),
    [
        (IWAE(5), StickingTheLanding(), None, r"StickingTheLanding with IWAE of K = 5 is biased.*use DReG"),
        (Renyi(0.5, 4), FastPath(), None, "is biased"),
        (LogVariance(4), Reparameterised(), None, "held fixed, Reparameterised moves them; use FixedDraws"),
        (ELBO(), FixedDraws(), None, "leaves out how the draws move"),
        (ForwardKL(np.zeros((3, 2))), DReG(), None, "its draws are given and not drawn from q"),
        (ELBO(1), ScoreFunction(), None, r"has \(1, 1\) draws; its leave-one-out baseline needs at least 2"),
        (ELBO(), FastPath(), "normal", "Normal is no flow with base and bijection"),
        (ELBO(), StickingTheLanding(), "none", "needs log_prob, which NoDensity lacks.*use FastPath"),
        (ELBO(), StickingTheLanding(), "gamma", "GammaFamily is drawn by acceptance-rejection"),
    ],
)
def test_wrong_pairs_are_refused(objective, estimator, q, message) -> None:
    makers = {"normal": family, "none": lambda: NoDensity(jnp.zeros(2), jnp.ones(2)), None: lambda: None}
    makers["gamma"] = lambda: GammaFamily(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(pf.InvalidArgument, match=message):
        check(objective, estimator, makers[q]())


def test_right_pairs_pass() -> None:
    with pytest.raises(pf.InvalidArgument, match="needs the gradient of log_density, got None"):
        check(ForwardKL(np.zeros((3, 2))), FastPath(), log_density=None)
    for objective, estimator in (
        (ELBO(), StickingTheLanding()),
        (IWAE(1), StickingTheLanding()),
        (IWAE(8), DReG()),
        (WakeKL(), FixedDraws()),
        (IWAE(8), ScoreFunction()),
    ):
        check(objective, estimator, family())
    check(ELBO(), Reparameterised(), GammaFamily(jnp.zeros(2), jnp.zeros(2)))
