"""Networks with a posterior of their own, and bodies that keep distances."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import paramax
import pytest
import scipy.stats as st

import pushforward as pf
from pushforward.models import LastLayer
from pushforward.models.last_layer import (
    HeteroscedasticHead,
    NormalHead,
    RandomFeatures,
    SoftmaxHead,
    SpectralMLP,
    StudentTHead,
    VariationalFeatures,
)
from pushforward.models.last_layer.bodies import spectral_norm
from pushforward.models.last_layer.online import conjugate

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (40, 1))
Y = 10 + 3 * np.sin(2 * X[:, 0]) + 0.3 * RNG.normal(size=40)


@pytest.fixture(autouse=True)
def in_64_bits():
    with jax.enable_x64(True):
        yield


class Net(eqx.Module):
    """Two features, of frequencies that are fixed."""

    frequencies: Any
    slope: Any

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.slope * jnp.cos(self.frequencies * x))


def variational() -> VariationalFeatures:
    net = Net(paramax.non_trainable(jnp.array([1.0, 2.0])), jnp.array([0.5, -1.5]))
    features = VariationalFeatures(net, prior_scale=2.0, num_draws=3)
    return eqx.tree_at(lambda f: f.log_sd.slope, features, jnp.log(jnp.array([0.3, 0.6])))


def test_the_divergence_of_a_network_is_that_of_its_normals() -> None:
    expected = sum(
        np.log(2.0 / s) + (s**2 + m**2) / (2 * 4.0) - 0.5 for m, s in zip((0.5, -1.5), (0.3, 0.6), strict=True)
    )
    features = variational()
    assert float(features.divergence()) == pytest.approx(expected, rel=1e-12)
    drawn = jax.vmap(lambda key: features.draw(key).slope)(jax.random.split(jax.random.key(0), 20_000))
    assert st.kstest(np.asarray(drawn[:, 1]), st.norm(-1.5, 0.6).cdf).pvalue > 1e-3
    one = features.draw(jax.random.key(0))
    np.testing.assert_array_equal(paramax.unwrap(one).frequencies, [1.0, 2.0])


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(NormalHead(), marks=pytest.mark.slow),
        pytest.param(StudentTHead(shape=2.0), marks=pytest.mark.slow),
        HeteroscedasticHead(),
        pytest.param(SoftmaxHead(num_classes=2), marks=pytest.mark.slow),
    ],
    ids=lambda head: type(head).__name__,
)
def test_predictions_are_means_over_networks(head: Any) -> None:
    """Against one prediction after another, in NumPy; epistemic variance has that of the networks."""
    y = (Y > 10).astype(int) if head.task == "classification" else Y
    target = LastLayer(variational(), head, X, y)
    at, values = X[:4], y[:4]
    networks = [target.features.draw(key) for key in jax.random.split(jax.random.key(0), 3)]
    plain = [LastLayer(net, target.head, X, y) for net in networks]

    @jax.jit
    def of(target: LastLayer) -> Any:
        return target.predict(at).log_prob(values), target.moments(at), target.ood_score(at)

    alone = [jax.tree.map(np.asarray, of(one)) for one in plain]
    logs, (mean, epistemic, aleatoric), score = of(target)
    np.testing.assert_allclose(logs, np.logaddexp.reduce([one[0] for one in alone], 0) - np.log(3), rtol=1e-9)
    means = np.stack([one[1][0] for one in alone])
    np.testing.assert_allclose(mean, means.mean(0), rtol=1e-9)
    np.testing.assert_allclose(aleatoric, np.mean([one[1][2] for one in alone], 0), rtol=1e-9)
    np.testing.assert_allclose(score, np.mean([one[2] for one in alone], 0), rtol=1e-9)
    if head.task == "regression":
        within = np.mean([one[1][1] for one in alone], 0)
        np.testing.assert_allclose(epistemic, within + means.var(0), rtol=1e-9)
        assert np.all(np.asarray(epistemic) > within)
    else:
        total = st.entropy(means.mean(0), axis=1)
        np.testing.assert_allclose(np.asarray(epistemic) + np.asarray(aleatoric), total, rtol=1e-9)


def test_a_step_draws_one_network_and_pays_its_divergence_once_per_row() -> None:
    target = LastLayer(variational(), NormalHead(noise=0.3), X, Y, validation=None)
    method = pf.VBLL(batch_size=40, weight_decay=0.9, kl_weight=2.0, learning_rate=0.1)
    key = jax.random.key(3)

    @jax.jit
    def run(target: LastLayer, method: Any) -> Any:
        state = method.init(key, target, None)
        return state, *method.step(key, state, target, jnp.asarray(0))

    start, end, info = run(target, method)
    head = eqx.combine(start.params[1], start.rest[1], target.head)
    drawn = target.features.draw(jax.random.fold_in(jax.random.split(key)[1], 1))
    expected = head.loss(target.phi(X, drawn), target.targets(Y), 40, kl_weight=2.0)
    assert float(info.loss) == pytest.approx(float(expected + 2 * target.features.divergence() / 40), rel=1e-10)
    moved = np.abs(np.asarray(end.params[0].net.slope) - np.asarray(start.params[0].net.slope))
    np.testing.assert_allclose(moved, 0.1, rtol=1e-4)  # Adam's first step, without the decay
    assert np.all(end.params[0].log_sd.slope != start.params[0].log_sd.slope)
    first = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(end.optimiser.mu)))  # a tenth of the gradient
    assert float(info.grad_norm) > 1.5
    assert float(first) == pytest.approx(0.1, rel=1e-9), "clipped at 1"
    with pytest.raises(pf.InvalidArgument, match="joint=True has no closed form with variational features"):
        target.predict(X[:2], joint=True)


def test_random_features_have_their_kernel() -> None:
    features = paramax.unwrap(RandomFeatures(jax.random.key(0), 2, 20_000, frequency=1.5, amplitude=0.7))
    h, other = jnp.array([0.3, -0.2]), jnp.array([0.8, 0.4])
    expected = 0.49 * np.exp(-0.5 * 1.5**2 * np.sum((h - other) ** 2))
    assert float(features(h) @ features(other)) == pytest.approx(expected, abs=5 * 0.49 / np.sqrt(2e4))
    assert float(features(h) @ features(h)) == pytest.approx(0.49, abs=5 * 0.49 / np.sqrt(2e4))


def test_layers_of_bounded_norm_keep_distances() -> None:
    matrix = jax.random.normal(jax.random.key(0), (30, 20))
    norm, gradient = jax.value_and_grad(spectral_norm)(matrix)
    u, s, vt = np.linalg.svd(matrix)
    assert float(norm) == pytest.approx(s[0], rel=0.02)
    assert float(norm) <= s[0] + 1e-12
    assert np.sum(np.asarray(gradient) * np.outer(u[:, 0], vt[0])) > 0.95
    body = SpectralMLP(jax.random.key(1), 3, 16, 2, bound=0.6)
    body = eqx.tree_at(lambda b: b.weights, body, replace_fn=lambda w: 20 * w)
    points = RNG.normal(size=(50, 3))
    h = np.asarray(jax.vmap(body)(points))
    ratio = np.linalg.norm(h[:-1] - h[1:], axis=1) / np.linalg.norm(points[:-1] - points[1:], axis=1)
    assert np.all(ratio < 1.65**2)
    assert np.all(ratio > 0.35**2)


def test_far_away_such_features_have_the_variance_of_the_prior() -> None:
    """Where a saturated network is as sure as at the edge of the data."""
    keys = jax.random.split(jax.random.key(0))
    sizes = {"frequency": 1.0, "amplitude": 1.0}
    body = eqx.nn.Sequential([SpectralMLP(keys[0], 1, 8, 1), RandomFeatures(keys[1], 8, 256, **sizes)])
    target = LastLayer(body, NormalHead(noise=0.3), X, Y)
    head = jax.jit(lambda t: conjugate(t.head, t.phi(t.rows.x), t.targets(t.rows.y)))(target)
    near, far = np.asarray(head.weights.quadratic(target.phi(np.array([[0.0], [40.0]])))[:, 0])
    assert near < 0.05
    assert far > 0.6
    with pytest.raises(pf.InvalidArgument, match="frequency must be a finite number > 0, got 0"):
        RandomFeatures(keys[0], 1, 4, frequency=0)
    with pytest.raises(pf.InvalidArgument, match="prior_scale must be a finite number > 0, got -1"):
        VariationalFeatures(body, prior_scale=-1)
