"""Bregman–Moreau envelopes: gradients, bounds, limits, tails; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.errors import InvalidArgument, NotAvailable
from pushforward.infer.geometry import (
    Affine,
    BoltzmannShannon,
    BoxBarrier,
    Burg,
    Euclidean,
    FermiDirac,
    Hellinger,
    HyperbolicEntropy,
    PowerMirror,
    Product,
    SimplexBarrier,
)
from pushforward.infer.geometry.compose import Sum
from pushforward.infer.geometry.envelope import Envelope, divergences, tail_slope
from pushforward.infer.geometry.indicators import BoxIndicator, NonNegative, SimplexIndicator
from pushforward.infer.geometry.prox import L1, ElasticNet, GroupL2, NuclearNorm
from pushforward.infer.target import Target

REAL, HALF = np.array([-3.0, -0.31, 0.05, 1.1]), np.array([0.01, 0.4, 1.7, 9.0])
UNIT, SYMMETRIC = np.array([0.02, 0.3, 0.72, 0.97]), np.array([-0.8, -0.2, 0.45, 0.9])
WEIGHTS = np.array([0.5, 2.0, 1.0, 0.7])
L, NET = L1(WEIGHTS), ElasticNet(WEIGHTS, 0.6, 0.1)
BOX = BoxIndicator(0.1, 0.8)

CASES = {
    "Euclidean": (L, Euclidean(), REAL),
    "Euclidean net": (NET, Euclidean(), REAL),
    "Euclidean group": (GroupL2(1.0, [0, 0, 1, 1]), Euclidean(), REAL),
    "Euclidean nuclear": (NuclearNorm(0.6, (2, 2)), Euclidean(), REAL),
    "Euclidean simplex": (SimplexIndicator(), Euclidean(), REAL),
    "HyperbolicEntropy": (L, HyperbolicEntropy(0.7), REAL),
    "HyperbolicEntropy loc": (L1(WEIGHTS, 0.2), HyperbolicEntropy(0.7), REAL),
    "HyperbolicEntropy net": (NET, HyperbolicEntropy(WEIGHTS), REAL),
    "HyperbolicEntropy box": (BOX, HyperbolicEntropy(0.7), REAL),
    "BoltzmannShannon": (L, BoltzmannShannon(), HALF),
    "BoltzmannShannon loc": (L1(WEIGHTS, 0.8), BoltzmannShannon(), HALF),
    "BoltzmannShannon sum": (Sum(L1(WEIGHTS), BOX), BoltzmannShannon(), HALF),
    "BoltzmannShannon simplex": (SimplexIndicator(), BoltzmannShannon(), HALF),
    "FermiDirac": (L, FermiDirac(), UNIT),
    "Burg": (L, Burg(), HALF),
    "Hellinger": (L, Hellinger(), SYMMETRIC),
    "BoxBarrier": (L, BoxBarrier(1.0), SYMMETRIC),
    "PowerMirror": (L, PowerMirror(1.5), REAL),
    "Affine": (L, Affine(BoltzmannShannon(), -4.0, 2.0), REAL),
    "Affine hyperbolic": (L, Affine(HyperbolicEntropy(0.7), -0.4, -2.0), REAL),
    "Product": (L, Product([HyperbolicEntropy(0.7), BoltzmannShannon()], [2, 2]), REAL),
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CASES)
def test_envelopes(name, side):
    """The gradient is that of the value; the value is at most g and grows to it as λ falls."""
    term, mirror, x = CASES[name]

    @jax.jit
    def values_and_grads(x, smoothing):
        env = Envelope(term, smoothing, mirror, side)
        return jax.vmap(lambda x: (env.value(env.at(x)), env.grad(env.at(x))))(x)

    h = 1e-5
    shifted = np.concatenate([x + h * np.eye(4), x - h * np.eye(4), x[None]])
    found = {smoothing: values_and_grads(shifted, smoothing) for smoothing in (1.5, 0.3, 0.05, 1e-3)}
    for smoothing in (0.3, 1.5):
        at, grads = found[smoothing]
        np.testing.assert_allclose(grads[-1], (at[:4] - at[4:8]) / (2 * h), rtol=2e-5, atol=2e-6)
    falling = [at[-1] for at, _ in found.values()]
    assert np.all(np.diff(falling) >= -1e-12)
    whole = term.value(jnp.asarray(x))
    assert np.all(np.array(falling) <= whole * (1 + 1e-12))
    assert whole == np.inf or abs(falling[-1] - whole) < 0.01 * whole


def test_moreau_envelope_of_l1_is_huber():
    """With the bound 0 ≤ g − env ≤ λ w²/2 attained outside of |x| ≤ λ w."""
    x, env = jnp.asarray(REAL), Envelope(L, 0.4)
    huber = np.where(np.abs(x) > 0.4 * WEIGHTS, WEIGHTS * np.abs(x) - 0.2 * WEIGHTS**2, x**2 / 0.8)
    np.testing.assert_allclose(env.value(env.at(x)), np.sum(huber))
    np.testing.assert_allclose(env.grad(env.at(x)), np.clip(x / 0.4, -WEIGHTS, WEIGHTS))


@pytest.mark.parametrize(
    ("quadratic", "smoothing", "expected"),
    [
        (1.0, 0.25, (0.48169, 0.50585, 0.50300)),
        (1.0, 0.05, (0.47516, 0.48082, 0.48069)),
        (0.0, 0.25, (2.0190, 2.5000, 2.4562)),
    ],
)
def test_second_moments_of_smoothed_targets(quadratic, smoothing, expected):
    """Of exp(−f − env), g = |x|, by quadrature: Moreau's, and both of the hyperbolic entropy with β = 0.7."""
    x = np.linspace(-60, 60, 24_001) if quadratic == 0 else np.linspace(-9, 9, 6001)
    entropy = HyperbolicEntropy(0.7)
    envelopes = [Envelope(L1(1.0), smoothing, *rest) for rest in ((Euclidean(),), (entropy,), (entropy, "right"))]
    for envelope, truth in zip(envelopes, expected, strict=True):
        value = jax.jit(jax.vmap(lambda x, envelope=envelope: envelope.value(envelope.at(x[None]))))(jnp.asarray(x))
        density = np.exp(-0.5 * quadratic * x**2 - np.asarray(value))
        assert np.sum(x**2 * density) / np.sum(density) == pytest.approx(truth, abs=5e-4 if quadratic == 0 else 2e-4)


def test_normaliser_and_variance_of_a_smoothed_laplace():
    """Of (α/2) exp(−env) with α = ½, by quadrature; a mixture of smoothed components is weighted by the former."""
    x = np.linspace(-120, 120, 48_001)
    expected = {0.1: (1.012474, 8.000825), 0.5: (1.061857, 8.019855), 1.0: (1.122460, 8.075954)}

    @jax.jit
    def density(smoothing):
        env = Envelope(L1(0.5), smoothing)
        return jax.vmap(lambda x: 0.25 * jnp.exp(-env.value(env.at(x[None]))))(x)

    for smoothing, (total, variance) in expected.items():
        p = np.asarray(density(smoothing)) * (x[1] - x[0])
        assert p.sum() == pytest.approx(total, abs=1e-6)
        assert p @ x**2 / p.sum() == pytest.approx(variance, abs=1e-5)


def test_gradients_of_the_hyperbolic_entropy():
    """Left: tanh|y|/λ up to κ, then falling (the envelope of a convex term that is not convex) to (1 − e⁻ᵏ)/λ."""
    kappa, smoothing = 0.8, 0.5
    env = Envelope(L1(kappa / smoothing), smoothing, HyperbolicEntropy(0.7))
    y = jnp.array([0.1, 0.4, 0.8, 0.81, 1.5, 5.0, 40.0, -0.1, -40.0])
    slope = env.grad(env.mirror.from_dual(y)) * smoothing
    a = np.abs(y)
    beyond = (np.sinh(a) - np.sinh(a - kappa)) / np.cosh(a)
    np.testing.assert_allclose(slope, np.sign(y) * np.where(a <= kappa, np.tanh(a), beyond), rtol=1e-12)
    assert slope[2] == pytest.approx(np.tanh(kappa), rel=1e-12)
    assert slope[2] > slope[4] > slope[5] > -np.expm1(-kappa) - 1e-12


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_far_out(side, dtype):
    """In single precision, where the primal is near overflow and its differences have no digits."""
    env = Envelope(L1(np.array([1.0, 1.0, 1e-3])), 0.1, HyperbolicEntropy(0.7), side)
    slope = env.grad(env.mirror.from_dual(jnp.array([80.0, -80.0, 30.0], dtype)))
    limit = (lambda k: -np.expm1(-k)) if side == "left" else np.log1p
    assert slope.dtype == dtype
    digits = 80 * np.finfo(dtype).eps  # κ is known as a difference of duals
    np.testing.assert_allclose(slope[:2] * 0.1, [limit(0.1), -limit(0.1)], rtol=1e-12 + digits / 0.1)
    np.testing.assert_allclose(slope[2] * 0.1, limit(1e-4), rtol=1e-9 + digits / 1e-4)


def test_tail_slopes():
    kappa = np.array([0.1, 0.5, 1.0])
    mirror = HyperbolicEntropy(0.7)
    np.testing.assert_allclose(tail_slope(mirror, "left", kappa), [0.95163, 0.78694, 0.63212], atol=5e-6)
    np.testing.assert_allclose(tail_slope(mirror, "right", kappa), [0.95310, 0.81093, 0.69315], atol=5e-6)
    assert tail_slope(mirror, "left", 0.0) == tail_slope(Burg(), "right", 0.0) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_tail_slopes_are_those_of_the_gradient(side):
    weights, x = np.array([0.2, 1.0, 2.0]), np.full(3, 1e7)
    for mirror in (
        Euclidean(), HyperbolicEntropy(0.7), BoltzmannShannon(), Burg(), PowerMirror(1.5),
        Affine(HyperbolicEntropy(0.7), 1.0, -3.0),
    ):  # fmt: skip
        env = Envelope(L1(weights), 0.5, mirror, side)
        ratio = env.grad(env.at(jnp.asarray(x))) / weights
        np.testing.assert_allclose(ratio, env.tail_slope(), atol=1e-3)


def test_one_scale_per_coordinate():
    scales = np.array([0.1, 1.0, 3.0, 0.5])
    for side in ("left", "right"):
        env = Envelope(L, scales, HyperbolicEntropy(0.7), side)
        p = env.at(jnp.asarray(REAL))
        alone = [Envelope(L1(WEIGHTS[i : i + 1]), s, HyperbolicEntropy(0.7), side) for i, s in enumerate(scales)]
        points = [e.at(jnp.asarray(REAL[i : i + 1])) for i, e in enumerate(alone)]
        np.testing.assert_allclose(env.value(p), sum(e.value(q) for e, q in zip(alone, points, strict=True)))
        np.testing.assert_allclose(env.grad(p), [e.grad(q)[0] for e, q in zip(alone, points, strict=True)])


def test_divergences_add_up():
    for mirror, x, z in [
        (HyperbolicEntropy(0.7), REAL, REAL + 0.3),
        (Affine(FermiDirac(), -4.0, 8.0), REAL, REAL + 0.3),
        (Product([BoltzmannShannon(), SimplexBarrier()], [2, 2]), UNIT / 4, UNIT / 5),
    ]:
        p, q = mirror.at(jnp.asarray(x)), mirror.at(jnp.asarray(z))
        np.testing.assert_allclose(jnp.sum(divergences(mirror, p, q)), mirror.divergence(p, q), rtol=1e-9)


def test_it_is_bound_like_its_term():
    target = Target.from_log_density(lambda x: -jnp.sum(x**2), np.zeros(3))
    env = Envelope(L1(1.0), np.ones(3), HyperbolicEntropy(np.ones(3))).bind(target)
    assert env.term.weights.shape == (3,)
    with pytest.raises(InvalidArgument, match=r"smoothing has shape \(2,\); give a number or shape \(3,\)"):
        Envelope(L1(1.0), np.ones(2)).bind(target)
    with pytest.raises(InvalidArgument, match=r"beta has shape \(2,\)"):
        Envelope(L1(1.0), 1.0, HyperbolicEntropy(np.ones(2))).bind(target)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Envelope(L, 0.0), InvalidArgument, "smoothing must be finite and > 0, got 0"),
        (lambda: Envelope(L, np.array([1.0, -2.0])), InvalidArgument, "smoothing must be finite and > 0, got -2"),
        (lambda: Envelope(L, 1.0, side="up"), InvalidArgument, "side must be one of 'left', 'right', got 'up'"),
        (
            lambda: Envelope(GroupL2(1.0, [0, 0]), np.ones(2)),
            InvalidArgument,
            "GroupL2 with Euclidean is not separable",
        ),
        (lambda: Envelope(GroupL2(1.0, [0, 0]), 1.0, Burg()), NotAvailable, "GroupL2 has no left envelope .* Burg"),
        (
            lambda: Envelope(Sum(L1(1.0), NonNegative()), 1.0, Burg(), "right"),
            NotAvailable,
            "Sum has no right envelope .* Burg",
        ),
        (lambda: tail_slope(FermiDirac(), "left", 1.0), NotAvailable, "FermiDirac has no tail slope"),
        (lambda: Envelope(BOX, 1.0).tail_slope(), NotAvailable, "BoxIndicator has no weights"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
