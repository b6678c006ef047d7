"""Bounds of the softmax against known numbers and each other, and the head's parts against draws."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.models.last_layer.classification import (
    best_tilt,
    check_labels,
    jensen,
    knowles_minka,
    mean_probabilities,
    monte_carlo,
    tilted,
)
from pushforward.models.last_layer.covariance import Diagonal
from pushforward.models.last_layer.discriminative import SoftmaxHead
from pushforward.models.last_layer.generative import GenerativeHead
from pushforward.models.last_layer.heteroscedastic import HeteroscedasticSoftmaxHead
from pushforward.models.last_layer.student import StudentTSoftmaxHead

M, V = np.array([1.0, 0.0, -1.0]), np.array([1.0, 2.0, 0.5])


@pytest.fixture(autouse=True)
def in_64_bits():
    with jax.enable_x64(True):
        yield


def test_bounds_of_the_softmax() -> None:
    m, v, y = jnp.asarray(M), jnp.asarray(V), jnp.asarray(0)
    assert float(jensen(m, v, y)) == pytest.approx(-1.0376213214, abs=1e-9)
    assert float(knowles_minka(m, v, y)) == pytest.approx(-0.7528232456, abs=1e-9)
    np.testing.assert_allclose(best_tilt(m, v), [0.57419487, 0.32368949, 0.10211564], atol=1e-7)
    assert float(tilted(m, v, y, jnp.full(3, 0.35262))) == pytest.approx(-0.8045322648, abs=1e-8)
    drawn = float(monte_carlo(m, v, y, jax.random.key(0), 400_000))
    assert drawn == pytest.approx(-0.6916039530, abs=0.006)
    probability, mean_entropy = mean_probabilities(m[None], v[None], num_points=2**14)
    assert float(jnp.log(probability[0, 0])) == pytest.approx(-0.5309413710, abs=1e-4)
    z = M + np.sqrt(V) * np.random.default_rng(0).normal(size=(200_000, 3))
    logs = z - np.logaddexp.reduce(z, 1, keepdims=True)
    assert float(mean_entropy[0]) == pytest.approx(float(-(np.exp(logs) * logs).sum(1).mean()), abs=0.003)
    few, _ = mean_probabilities(m[None], v[None])
    assert float(jnp.log(few[0, 0])) == pytest.approx(-0.5309413710, abs=3e-3)


def test_the_order_of_the_bounds_and_a_stationary_tilt() -> None:
    """Jensen ≤ Knowles–Minka ≤ E log p ≤ log E p, and no a on the simplex is better than the tilt found."""
    rng = np.random.default_rng(1)
    m, v = 2 * rng.normal(size=(1000, 4)), np.exp(rng.normal(size=(1000, 4)) * 1.5)
    y = rng.integers(0, 4, 1000)
    low, high = (np.asarray(jax.vmap(f)(m, v, y)) for f in (jensen, knowles_minka))
    assert np.all(low <= high)
    z = m[:, None] + np.sqrt(v)[:, None] * rng.normal(size=(1000, 4000, 4))
    logs = z - np.logaddexp.reduce(z, 2, keepdims=True)
    picked = np.take_along_axis(logs, y[:, None, None], 2)[..., 0]
    error = picked.std(1) / np.sqrt(4000)
    assert np.all(high <= picked.mean(1) + 4.5 * error)
    a = np.asarray(jax.vmap(best_tilt)(m, v))
    np.testing.assert_allclose(a.sum(1), 1.0, atol=1e-9)
    z = m + 0.5 * (1 - 2 * a) * v
    np.testing.assert_allclose(a, np.exp(z - np.logaddexp.reduce(z, 1, keepdims=True)), atol=1e-7)
    at_best = np.asarray(jax.vmap(tilted)(m, v, y, a))
    for _ in range(5):
        other = np.asarray(jax.vmap(tilted)(m, v, y, rng.dirichlet(np.ones(4), 1000)))
        assert np.all(other <= at_best + 1e-9)


def test_the_gradient_of_the_bound_needs_none_of_the_tilt() -> None:
    m, v, y = jnp.asarray(M), jnp.asarray(V), jnp.asarray(1)
    found = jax.jit(jax.grad(knowles_minka, argnums=(0, 1)))(m, v, y)
    value = jax.jit(knowles_minka)
    step = 1e-5
    for i, argument in enumerate((m, v)):
        for k in range(3):
            ends = []
            for sign in (1, -1):
                moved = [m, v]
                moved[i] = argument.at[k].add(sign * step)
                ends.append(float(value(*moved, y)))
            assert float(found[i][k]) == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


@pytest.mark.slow
def test_without_variance_the_loss_is_cross_entropy() -> None:
    rng = np.random.default_rng(2)
    phi, y = rng.normal(size=(7, 3)), rng.integers(0, 4, 7)
    for bound in ("jensen", "knowles-minka"):
        head = SoftmaxHead(bound=bound, noise=1e-9, num_classes=4).build(jax.random.key(0), 3, y)
        head = eqx.tree_at(lambda h: h.weights.log_scale, head, replace_fn=lambda x: x - 19.0)
        z = phi @ np.asarray(head.weights.mean).T
        expected = (z - np.logaddexp.reduce(z, 1, keepdims=True))[np.arange(7), y]
        np.testing.assert_allclose(head.expected_log_likelihood(phi, y), expected, atol=1e-7)


@pytest.mark.parametrize("noise", [pytest.param(0, marks=pytest.mark.slow), None])
def test_the_bound_is_below_what_draws_of_the_weights_give(noise: Any) -> None:
    """E_q [log p(y, w) − log q(w)] by draws: above N × the bound, and close to it where q is narrow."""
    rng = np.random.default_rng(3)
    phi, y = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    head = SoftmaxHead(covariance="dense", noise=noise, num_classes=3).build(jax.random.key(1), 3, y)
    head = eqx.tree_at(lambda h: h.weights.log_scale, head, replace_fn=lambda x: x - 0.5)

    def one(key: Any) -> Any:
        values = head.sample(key)
        return head.log_likelihood(phi, y, values).sum() + head.log_prior(values) - head.log_q(values)

    drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), 20_000)))
    error = drawn.std() / np.sqrt(len(drawn))
    loss = jax.jit(lambda head, key: head.loss(phi, y, 6, key=key))
    hyper = 0.0 if noise == 0 else -0.5 * (1 + 3 + 1) * 3 * (-2.0) - 0.5 * 3 * np.exp(2.0)
    bound = -6 * float(loss(head, None)) - hyper
    gap = drawn.mean() - bound
    assert -4 * error < gap < 0.5, (gap, error)
    assert error < 0.1
    looser = -6 * float(loss(dataclasses.replace(head, bound="jensen"), None)) - hyper
    assert looser < bound
    one_tilt = -6 * float(loss(dataclasses.replace(head, bound="reduced", tilt=jnp.asarray(0.35)), None)) - hyper
    assert one_tilt < bound
    unbiased = dataclasses.replace(head, bound="monte-carlo")
    values = jax.vmap(lambda key: loss(unbiased, key))(jax.random.split(jax.random.key(0), 40))
    assert np.mean(values) < float(loss(head, None)) + 0.02


def test_the_noise_of_logits_is_averaged_over() -> None:
    rng = np.random.default_rng(4)
    phi, y = rng.normal(size=(4, 2)), rng.integers(0, 3, 4)
    head = SoftmaxHead(num_classes=3).build(jax.random.key(1), 2, y)
    head = dataclasses.replace(head, log_noise=jnp.log(jnp.array([0.5, 1.0, 2.0])))
    m, v = head.logits(phi)
    np.testing.assert_allclose(m, phi @ np.asarray(head.weights.mean).T, rtol=1e-12)
    np.testing.assert_allclose(v, phi**2 @ np.asarray(head.weights.variances()).T + [0.25, 1.0, 4.0], rtol=1e-12)
    values = {"w": rng.normal(size=(3, 2))}
    z = phi @ values["w"].T + np.array([0.5, 1.0, 2.0]) * rng.normal(size=(100_000, 4, 3))
    shares = np.exp(z - np.logaddexp.reduce(z, 2, keepdims=True))[:, np.arange(4), y].mean(0)
    np.testing.assert_allclose(np.exp(head.log_likelihood(phi, y, values)), shares, atol=0.01)
    labels = np.asarray(jax.vmap(lambda k: head.simulate(k, phi, values))(jax.random.split(jax.random.key(0), 20_000)))
    np.testing.assert_allclose((labels == y).mean(0), shares, atol=0.015)


@pytest.mark.slow
def test_a_thousand_classes() -> None:
    """Diagonal and low rank are as good as ten classes; a dense S that would not fit is refused."""
    y = np.arange(1000)
    for form, rank in (("diagonal", None), ("low_rank", 2)):
        head = SoftmaxHead(covariance=form, rank=rank, num_classes=1000).build(jax.random.key(0), 16, y)
        loss, grad = jax.value_and_grad(lambda w, head=head: dataclasses.replace(head, weights=w).loss(
            jnp.ones((4, 16)), y[:4], 1000
        ))(head.weights)  # fmt: skip
        assert np.isfinite(float(loss))
        assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grad))
        assert head.predict(jnp.ones((2, 16))).probs.shape == (2, 1000)
    with pytest.raises(pf.InvalidArgument, match="use covariance='diagonal'"):
        SoftmaxHead(covariance="dense", num_classes=1000).build(jax.random.key(0), 2048, y)


def generative() -> GenerativeHead:
    """Two classes in two dimensions."""
    head = GenerativeHead(num_classes=2).build(jax.random.key(0), 2, np.array([0, 1]))
    return dataclasses.replace(
        head,
        weights=Diagonal(jnp.array([[0.0, 0.0], [1.0, 1.0]]), 0.5 * jnp.log(jnp.array([[0.1, 0.2], [0.3, 0.1]]))),
        log_noise=0.5 * jnp.log(jnp.array([0.5, 1.0])),
    )


def test_the_generative_bound_and_predictive() -> None:
    """With class probabilities that are known to be equal, the numbers of the paper's bound."""
    head, phi, y = generative(), jnp.array([[0.2, 0.7]]), jnp.array([0])
    certain = dataclasses.replace(head, counts=jnp.full(2, 1e9))
    assert float(certain.expected_log_likelihood(phi, y)[0]) == pytest.approx(-0.6179419272, abs=1e-8)
    assert float(certain.predict(phi).probs[0, 0]) == pytest.approx(0.5753576198, abs=1e-8)
    keys = jax.random.split(jax.random.key(0), 200_000)
    drawn = jax.jit(jax.vmap(lambda k: certain.log_likelihood(phi, y, certain.sample(k))[0]))(keys)
    assert float(jnp.mean(drawn)) == pytest.approx(-0.5610, abs=0.002)
    other = dataclasses.replace(head, dof=3.0, scale=0.7)
    by_hand = -0.5 * (3 + 2 + 1) * np.log(0.5) - 0.5 * 0.7 * (1 / 0.5 + 1)
    assert float(other.log_hyperprior()) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.slow
def test_the_generative_bound_with_inferred_class_probabilities_is_below_draws() -> None:
    rng = np.random.default_rng(5)
    phi, y = rng.normal(size=(6, 2)), np.array([0, 0, 0, 0, 1, 0])
    head = dataclasses.replace(generative(), counts=jnp.array([6.0, 2.0]))

    def one(key: Any) -> Any:
        values = head.sample(key)
        return head.log_likelihood(phi, y, values).sum() + head.log_prior(values) - head.log_q(values)

    drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), 40_000)))
    error = drawn.std() / np.sqrt(len(drawn))
    bound = -6 * float(head.loss(phi, y, 6)) - float(head.log_hyperprior())
    assert -4 * error < drawn.mean() - bound < 1.5, (drawn.mean(), bound, error)
    parts = -float(head.divergence())

    def prior(key: Any) -> Any:
        values = head.sample(key)
        return head.log_prior(values) - head.log_q(values)

    drawn = np.asarray(jax.jit(jax.vmap(prior))(jax.random.split(jax.random.key(8), 40_000)))
    assert drawn.mean() == pytest.approx(parts, abs=5 * drawn.std() / 200)
    built = GenerativeHead(num_classes=3).build(jax.random.key(0), 2, np.array([0, 1, 1]))
    np.testing.assert_array_equal(built.counts, [2.0, 3.0, 1.0])
    assert "counts" not in GenerativeHead.trained


def student(phi: Any, y: Any, bound: str = "knowles-minka") -> StudentTSoftmaxHead:
    """Three classes, unequal noise, means that are not at their start."""
    head = StudentTSoftmaxHead("dense", bound=bound, num_classes=3).build(jax.random.key(1), 3, y)
    raw = np.log(np.expm1(np.array([0.3, 1.0, 4.0])))
    return dataclasses.replace(head, raw_shape=jnp.asarray(raw), log_rate=jnp.log(jnp.array([0.4, 1.0, 2.0])))


def test_the_t_bound_is_the_mean_of_the_tilted_bound_over_noise() -> None:
    """Given Σ the bound at a_k = ½ − h_k/v_k; its mean over Σ by draws, with E[Σ] = b/(a − 1) and not e b/a."""
    rng = np.random.default_rng(6)
    phi, y = rng.normal(size=(4, 3)), np.array([0, 1, 2, 2])
    head = student(phi, y, "reduced")
    head = dataclasses.replace(head, raw_shape=jnp.log(jnp.expm1(jnp.array([2.0, 3.0, 4.0]))), tilt=jnp.asarray(0.3))
    a, b = (np.asarray(v) for v in head.gamma)
    np.testing.assert_allclose(a, [3.0, 4.0, 5.0])
    v = (np.asarray(head.weights.quadratic(phi)) + 1) * (b / rng.gamma(a, size=(100_000, 3)))[:, None]
    m, shift = np.asarray(head.weights.means(phi)), 0.2 * (np.asarray(head.weights.quadratic(phi)) + 1) * b / a
    values = tilted_by_hand(m, v, y, 0.5 - shift / v)
    error = values.std(0) / np.sqrt(1e5)
    found = np.asarray(head.expected_log_likelihood(phi, y))
    assert np.all(np.abs(values.mean(0) - found) < 5 * error), (values.mean(0), found, error)
    assert np.all(error < 0.01)
    best = dataclasses.replace(head, bound="knowles-minka")
    assert np.all(np.asarray(best.expected_log_likelihood(phi, y)) >= found)


def tilted_by_hand(m: Any, v: Any, y: Any, a: Any) -> np.ndarray:
    """The bound given variances v, in NumPy."""
    z = m + 0.5 * (1 - 2 * a) * v
    return m[np.arange(len(y)), y] - 0.5 * np.sum(a**2 * v, -1) - np.logaddexp.reduce(z, -1)


def heteroscedastic(y: Any, bound: str = "knowles-minka") -> HeteroscedasticSoftmaxHead:
    """Three classes, noise that varies."""
    head = HeteroscedasticSoftmaxHead("dense", bound=bound, num_classes=3).build(jax.random.key(1), 3, y)
    rng = np.random.default_rng(10)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), head)


def test_the_bound_with_noise_that_varies_is_below_that_of_draws_of_the_noise() -> None:
    """For constants h the mean over Σ of the bound at a = ½ − h/v is above the head's, and near it; KL by draws."""
    rng = np.random.default_rng(11)
    phi, y = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    head = heteroscedastic(y, "reduced")
    m, low, mean = (np.asarray(part) for part in head.spread(phi))
    log_variance, spread = (np.asarray(f(phi)) for f in (head.noise_weights.means, head.noise_weights.quadratic))
    drawn = np.exp(log_variance + np.sqrt(spread) * rng.normal(size=(200_000, 6, 3)))
    v = np.asarray(head.weights.quadratic(phi)) + drawn
    np.testing.assert_allclose(v.mean(0), mean, atol=5 * np.max(v.std(0)) / np.sqrt(2e5))
    harmonic = 1 / (1 / v).mean(0)
    assert np.all(low < 1.001 * harmonic)
    assert np.all(low > 0.7 * harmonic)
    values = tilted_by_hand(m, v, y, 0.5 - (0.5 - float(head.tilt)) * low / v)
    found = np.asarray(head.expected_log_likelihood(phi, y))
    gap = values.mean(0) - found
    assert np.all(gap > -5 * values.std(0) / np.sqrt(2e5))
    assert np.all(gap < 0.05), gap
    best = np.asarray(dataclasses.replace(head, bound="knowles-minka").expected_log_likelihood(phi, y))
    assert np.all(best >= found)

    @jax.jit
    @jax.vmap
    def one(key: Any) -> Any:
        values = head.sample(key)
        return head.log_prior(values) - head.log_q(values), head.log_likelihood(phi, y, values)

    prior, fit = (np.asarray(part) for part in one(jax.random.split(jax.random.key(7), 20_000)))
    assert prior.mean() == pytest.approx(-float(head.divergence()), abs=5 * prior.std() / np.sqrt(2e4))
    shares = np.exp(fit)
    assert np.all(best <= fit.mean(0) + 5 * fit.std(0) / np.sqrt(2e4))
    predicted = np.asarray(head.predict(phi).probs)[np.arange(6), y]
    np.testing.assert_allclose(predicted, shares.mean(0), atol=0.02)
    labels = jax.vmap(lambda key: head.simulate(key, phi, head.sample(key)))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    np.testing.assert_allclose((np.asarray(labels) == y).mean(0), predicted, atol=0.025)
    wide = eqx.tree_at(lambda h: h.noise_weights.log_scale, head, replace_fn=lambda x: x + 1.7)
    m, log_variance = (np.asarray(q.means(phi))[:, None] for q in (wide.weights, wide.noise_weights))
    epistemic, spread = (np.asarray(q.quadratic(phi))[:, None] for q in (wide.weights, wide.noise_weights))
    draws = rng.normal(size=(2, 6, 20_000, 3))
    z = m + np.sqrt(epistemic + np.exp(log_variance + np.sqrt(spread) * draws[0])) * draws[1]
    shares = np.exp(z - np.logaddexp.reduce(z, -1, keepdims=True)).mean(1)
    np.testing.assert_allclose(wide.predict(phi).probs, shares, atol=0.015)
    assert spread.max() > 4


@pytest.mark.slow
def test_the_t_bound_is_below_what_draws_give() -> None:
    rng = np.random.default_rng(7)
    phi, y = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    head = student(phi, y)

    def one(key: Any) -> Any:
        values = head.sample(key)
        penalty = head.log_prior(values) - head.log_q(values)
        return head.log_likelihood(phi, y, values).sum() + penalty, penalty

    drawn, penalty = (np.asarray(x) for x in jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), 40_000)))
    assert penalty.mean() == pytest.approx(-float(head.divergence()), abs=5 * penalty.std() / 200)
    bound = -6 * float(head.loss(phi, y, 6))
    assert bound < drawn.mean() + 4 * drawn.std() / 200
    keys = jax.random.split(jax.random.key(9), 20_000)
    shares = jax.jit(jax.vmap(lambda k: jnp.exp(head.log_likelihood(phi, y, head.sample(k)))))(keys)
    predicted = head.predict(phi).probs[jnp.arange(6), y]
    np.testing.assert_allclose(predicted, np.asarray(shares).mean(0), atol=0.02)
    with pytest.raises(pf.InvalidArgument, match=r"shape must be > 1, .* got 1"):
        StudentTSoftmaxHead(shape=1.0)


def test_all_classes_begin_with_the_same_noise() -> None:
    head = SoftmaxHead(num_classes=5).build(jax.random.key(3), 4, np.arange(5))
    np.testing.assert_array_equal(head.log_noise, np.full(5, -1.0))


def test_bad_labels_are_told() -> None:
    with pytest.raises(pf.InvalidArgument, match=r"whole numbers of shape \(n,\), got float64"):
        check_labels(np.array([0.0, 1.0]), None)
    with pytest.raises(pf.InvalidArgument, match=r"labels must be in 0 … 2, got 0 to 3"):
        check_labels(np.array([0, 3]), 3)
    with pytest.raises(pf.InvalidArgument, match=r"got -1 to 1"):
        check_labels(np.array([-1, 1]), None)
    with pytest.raises(pf.InvalidArgument, match=r"bound must be one of.*'probit'"):
        SoftmaxHead(bound="probit")
    head = SoftmaxHead(bound="monte-carlo", num_classes=2).build(jax.random.key(0), 1, np.array([0, 1]))
    with pytest.raises(pf.InvalidArgument, match="draws, got key=None"):
        head.loss(jnp.ones((2, 1)), jnp.array([0, 1]), 2)
    with pytest.raises(pf.InvalidArgument, match=r"y has shape \(2, 1\)"):
        head.loss(jnp.ones((2, 1)), jnp.array([[0], [1]]), 2)
