"""Regression heads: bounds against the evidence, predictives, and the known faults of the released code."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import pushforward as pf
from pushforward.models.last_layer.covariance import (
    FORMS,
    Dense,
    DensePrecision,
    Diagonal,
    first_weights,
    from_precision,
)
from pushforward.models.last_layer.heteroscedastic import HeteroscedasticHead
from pushforward.models.last_layer.regression import NormalHead, StudentTHead

PHI = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
Y = np.array([1.0, 2.0, 2.5])
AT = np.array([[1.0, 3.0]])


@pytest.fixture(autouse=True)
def in_64_bits():
    with jax.enable_x64(True):
        yield


def built(head: Any, num_features: int = 2, y: Any = Y) -> Any:
    return head.build(jax.random.key(0), num_features, y)


def exact(form: str, phi: np.ndarray, y: np.ndarray, s: float, variance: float) -> Any:
    """The best q of a form for a linear regression."""
    precision = np.eye(phi.shape[1]) / s + phi.T @ phi / variance
    mean = np.linalg.solve(precision, phi.T @ y / variance)
    return from_precision(form, jnp.asarray(mean[None]), jnp.asarray(precision[None]))


loss = jax.jit(lambda head, phi, y: head.loss(phi, y, len(phi)))


def bound(head: Any, phi: Any = PHI, y: Any = Y) -> float:
    """N times the bound."""
    return -float(loss(head, phi, y)) * len(phi)


def with_rank(form: str) -> dict[str, Any]:
    return {"covariance": form, "rank": 2 if form == "low_rank" else None}


SHARED = [pytest.param(form, True, marks=pytest.mark.slow) for form in ("dense", "low_rank")]


@pytest.mark.parametrize(("form", "shared"), [*((form, False) for form in FORMS), *SHARED])
def test_all_that_a_form_gives_agrees_with_its_matrices(form: str, shared: bool) -> None:
    rng = np.random.default_rng(0)
    q = first_weights(jax.random.key(1), form, 3, 4, rank=with_rank(form)["rank"], shared=shared)
    q = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), q)
    phi, other, x = rng.normal(size=(5, 4)), rng.normal(size=(6, 4)), rng.normal(size=(3, 4))
    prior = np.array([0.5, 1.0, 2.0, 3.0])

    @jax.jit
    def of(q: Any) -> Any:
        sizes = q.log_dets(), q.variances(), q.mahalanobis(x), q.divergences(prior)
        return q.covariances(), q.quadratic(phi), q.cross(phi, other), *sizes

    s, quadratic, cross, log_dets, variances, squares, divergences = (np.asarray(part) for part in of(q))
    assert s.shape == (3, 4, 4)
    assert np.allclose(s[0], s[1]) == shared
    np.testing.assert_allclose(quadratic, np.einsum("ni,kij,nj->nk", phi, s, phi), rtol=1e-12)
    np.testing.assert_allclose(cross, np.einsum("ni,kij,mj->knm", phi, s, other), rtol=1e-12)
    np.testing.assert_allclose(log_dets, np.linalg.slogdet(s)[1], rtol=1e-12)
    np.testing.assert_allclose(variances, np.diagonal(s, axis1=1, axis2=2), rtol=1e-12)
    np.testing.assert_allclose(squares, [a @ np.linalg.solve(b, a) for a, b in zip(x, s, strict=True)])
    mean = np.asarray(q.mean)
    kl = [
        0.5 * (m @ (m / prior) + np.trace(c / prior) - 4 + np.log(prior).sum() - np.linalg.slogdet(c)[1])
        for m, c in zip(mean, s, strict=True)
    ]
    np.testing.assert_allclose(divergences, kl, rtol=1e-12)
    draws = np.asarray(jax.jit(jax.vmap(q.offsets))(jax.random.split(jax.random.key(2), 40_000)))
    np.testing.assert_allclose(np.einsum("nki,nkj->kij", draws, draws) / 40_000, s, atol=0.04 * s.max())


@pytest.mark.parametrize("form", ["dense", pytest.param("dense_precision", marks=pytest.mark.slow)])
def test_the_bound_is_the_evidence_at_the_conjugate_posterior(form: str) -> None:
    head = built(NormalHead(covariance=form, prior_scale=2.0, noise=0.5))
    head = dataclasses.replace(head, weights=exact(form, PHI, Y, 2.0, 0.25))
    np.testing.assert_allclose(head.weights.mean[0], [1.02449889, 0.76614699], atol=1e-8)
    np.testing.assert_allclose(
        head.weights.covariances()[0], [[0.18262806, -0.10690423], [-0.10690423, 0.11135857]], atol=1e-8
    )
    assert bound(head) == pytest.approx(-4.2353398448, abs=1e-9)
    evidence = st.multivariate_normal(np.zeros(3), 2 * PHI @ PHI.T + 0.25 * np.eye(3)).logpdf(Y)
    assert bound(head) == pytest.approx(evidence, abs=1e-12)
    assert float(head.expected_log_likelihood(PHI, Y[:, None]).sum()) == pytest.approx(-1.6991869458, abs=1e-9)
    assert float(head.divergence()) == pytest.approx(2.5361528990, abs=1e-9)
    predictive = head.predict(AT)
    assert float(predictive.mean[0, 0]) == pytest.approx(3.3229398664, abs=1e-9)
    assert float(predictive.variance[0, 0]) == pytest.approx(0.7934298441, abs=1e-9)
    gradient = jax.jit(jax.grad(lambda q: dataclasses.replace(head, weights=q).loss(PHI, Y, 3)))(head.weights)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradient)) < 1e-10


def test_the_best_diagonal_has_the_means_and_the_inverse_precisions() -> None:
    head = built(NormalHead(covariance="diagonal", prior_scale=2.0, noise=0.5))
    head = dataclasses.replace(head, weights=exact("diagonal", PHI, Y, 2.0, 0.25))
    np.testing.assert_allclose(head.weights.variances()[0], [0.08, 0.04878049], atol=1e-8)
    assert bound(head) == pytest.approx(-4.6480523467, abs=1e-9)
    gradient = jax.jit(jax.grad(lambda q: dataclasses.replace(head, weights=q).loss(PHI, Y, 3)))(head.weights)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradient)) < 1e-10


@pytest.mark.parametrize("form", ["dense", pytest.param("dense_precision", marks=pytest.mark.slow)])
def test_inferred_noise_has_the_evidence_of_the_normal_gamma_model(form: str) -> None:
    head = built(StudentTHead(covariance=form, prior_scale=2.0, shape=2.0, rate=1.5))
    precision = np.eye(2) / 2 + PHI.T @ PHI
    mean = np.linalg.solve(precision, PHI.T @ Y)
    a, b = 2.0 + 1.5, 1.5 + 0.5 * (Y @ Y - mean @ precision @ mean)
    q = from_precision(form, jnp.asarray(mean[None]), jnp.asarray(precision[None]))
    head = dataclasses.replace(head, weights=q, log_shape=jnp.log(jnp.array([a])), log_rate=jnp.log(jnp.array([b])))
    np.testing.assert_allclose(mean, [0.90243902, 0.78048780], atol=1e-8)
    assert b == pytest.approx(1.9115853659, abs=1e-9)
    assert bound(head) == pytest.approx(-4.8694630773, abs=1e-9)
    predictive = head.predict(AT)
    assert float(predictive.df[0, 0]) == pytest.approx(7.0)
    assert float(predictive.loc[0, 0]) == pytest.approx(3.2439024390, abs=1e-9)
    assert float(predictive.scale[0, 0]) == pytest.approx(1.2484289439, abs=1e-9)
    mean, epistemic, aleatoric = head.moments(AT)
    assert float(epistemic[0, 0] + aleatoric[0, 0]) == pytest.approx(float(predictive.variance[0, 0]), rel=1e-12)
    names = ("weights", "log_shape", "log_rate")
    gradient = jax.grad(lambda p: dataclasses.replace(head, **p).loss(PHI, Y, 3))({n: getattr(head, n) for n in names})
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(gradient)) < 1e-10


def test_the_heteroscedastic_term() -> None:
    """m'φ = −1, φ'Vφ = 0.4, squared error 0.3, φ'Sφ = 0.2."""
    head = built(HeteroscedasticHead(covariance="diagonal"), 1, np.zeros(1))
    log = lambda v: jnp.full((1, 1), 0.5 * np.log(v))  # noqa: E731
    head = dataclasses.replace(
        head,
        weights=Diagonal(jnp.full((1, 1), np.sqrt(0.3)), log(0.2)),
        noise_weights=Diagonal(jnp.full((1, 1), -1.0), log(0.4)),
    )
    value = head.expected_log_likelihood(jnp.ones((1, 1)), jnp.zeros((1, 1)))
    assert float(value[0]) == pytest.approx(-1.2489677639, abs=1e-9)


@pytest.mark.slow
def test_the_heteroscedastic_predictive_is_the_mixture_over_noise() -> None:
    head = built(HeteroscedasticHead(), 3, np.zeros(3))
    rng = np.random.default_rng(3)
    head = jax.tree.map(lambda x: x + 0.4 * rng.normal(size=x.shape), head)
    phi = rng.normal(size=(2, 3))
    predictive = head.predict(phi, loc=1.0, scale=2.0)
    keys = jax.random.split(jax.random.key(0), 100_000)

    def one(key: Any) -> Any:
        values = head.sample(key)
        mean, sd = phi @ values["w"].T, jnp.exp(0.5 * phi @ values["m"].T)
        return mean, sd

    mean, sd = jax.jit(jax.vmap(one))(keys)
    for y in (-3.0, 0.5, 4.0):
        density = st.norm(1 + 2 * np.asarray(mean), 2 * np.asarray(sd)).pdf(y)
        error = density.std(0) / np.sqrt(len(keys))
        found = np.exp(np.asarray(predictive.log_prob(y)))
        assert np.all(np.abs(found - density.mean(0)) < 5 * error + 1e-12), (y, found, density.mean(0), error)
    np.testing.assert_allclose(predictive.mean, 1 + 2 * head.moments(phi)[0], rtol=1e-9)
    total = 4 * (head.moments(phi)[1] + head.moments(phi)[2])
    np.testing.assert_allclose(predictive.variance, total, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "form"),
    [
        (NormalHead, "dense"),
        pytest.param(NormalHead, "dense_precision", marks=pytest.mark.slow),
        pytest.param(StudentTHead, "diagonal", marks=pytest.mark.slow),
        (HeteroscedasticHead, "diagonal"),
    ],
)
def test_several_outputs_are_the_sum_of_single_ones(make: Any, form: str) -> None:
    """With unequal noise: a trace over all outputs' noise, or a mean over outputs, is another number."""
    rng = np.random.default_rng(5)
    phi, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    head = built(make(**with_rank(form)), 4, y)
    head = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), head)
    if make is NormalHead:
        head = dataclasses.replace(head, log_noise=jnp.log(jnp.array([0.3, 0.7, 1.5])))
    of = jax.jit(lambda h, y: (h.expected_log_likelihood(phi, y), h.divergence(), h.predict(phi).log_prob(y)))
    single = [of(jax.tree.map(lambda x, k=k: x[k : k + 1], head), y[:, [k]]) for k in range(3)]
    fit, divergence, predictive = of(head, y)
    np.testing.assert_allclose(fit, sum(one[0] for one in single), rtol=1e-12)
    np.testing.assert_allclose(divergence, sum(one[1] for one in single), rtol=1e-12)
    assert predictive.shape == (6, 3)
    np.testing.assert_allclose(predictive, np.concatenate([one[2] for one in single], 1), rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "form"),
    [
        pytest.param(NormalHead, "dense", marks=pytest.mark.slow),
        (NormalHead, "low_rank"),
        (StudentTHead, "dense_precision"),
        pytest.param(HeteroscedasticHead, "diagonal", marks=pytest.mark.slow),
    ],
)
def test_expectation_divergence_and_density_agree_with_draws(make: Any, form: str) -> None:
    """E_q log p(y, w) − log q(w) = N × the bound, with log p, log q and draws from code of their own."""
    rng = np.random.default_rng(6)
    phi, y = 0.5 * rng.normal(size=(5, 3)), 0.5 * rng.normal(size=(5, 2))
    head = built(make(**with_rank(form), prior_scale=(0.5, 1.0, 2.0)), 3, y)
    head = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), head)
    narrow = 1.0 if form == "dense_precision" else -1.0
    head = eqx.tree_at(lambda h: h.weights.log_scale, head, replace_fn=lambda x: x + narrow)
    if form == "low_rank":
        head = eqx.tree_at(lambda h: h.weights.factors, head, replace_fn=lambda x: 0.3 * x)
    if make is StudentTHead:
        head = dataclasses.replace(head, log_shape=head.log_shape + 2, log_rate=head.log_rate + 2)
    hyper = float(head.log_hyperprior())

    def one(key: Any) -> Any:
        values = head.sample(key)
        return head.log_likelihood(phi, y, values).sum() + head.log_prior(values) - head.log_q(values)

    drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), 40_000)))
    error = drawn.std() / np.sqrt(len(drawn))
    assert abs(drawn.mean() + hyper - bound(head, phi, y)) < 5 * error
    assert error < 0.1


def test_a_joint_predictive_has_the_covariance_between_points() -> None:
    rng = np.random.default_rng(8)
    phi, y = rng.normal(size=(3, 4)), rng.normal(size=(3, 2))
    head = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), built(NormalHead(), 4, y))
    loc, scale = np.array([1.0, 2.0]), np.array([2.0, 3.0])
    both = jax.jit(lambda h: [h.predict(phi, loc=loc, scale=scale, joint=joint) for joint in (True, False)])
    joint, marginal = both(head)
    s = np.asarray(head.weights.covariances())
    expected = scale[:, None, None] ** 2 * (
        np.einsum("ni,kij,mj->knm", phi, s, phi) + np.exp(2 * head.log_noise)[:, None, None] * np.eye(3)
    )
    np.testing.assert_allclose(joint.covariance_matrix, expected, rtol=1e-10)
    np.testing.assert_allclose(np.diagonal(expected, axis1=1, axis2=2).T, np.asarray(marginal.scale) ** 2, rtol=1e-10)
    student = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), built(StudentTHead(), 4, y))
    a, b = (np.asarray(part) for part in student.gamma)
    s = np.asarray(student.weights.covariances())
    found = jax.jit(lambda h: [p.log_prob(v) for p, v in zip(both(h), (y.T, y), strict=True)])(student)
    for k in range(2):
        mean = loc[k] + scale[k] * phi @ np.asarray(student.weights.mean[k])
        spread = scale[k] ** 2 * b[k] / a[k] * (phi @ s[k] @ phi.T + np.eye(3))
        assert float(found[0][k]) == pytest.approx(st.multivariate_t(mean, spread, 2 * a[k]).logpdf(y[:, k]), rel=1e-10)
        single = st.t(2 * a[k], mean, np.sqrt(np.diag(spread))).logpdf(y[:, k])
        np.testing.assert_allclose(found[1][:, k], single, rtol=1e-10)


def test_noise_at_its_mode_is_the_formula() -> None:
    import scipy.optimize

    rng = np.random.default_rng(9)
    phi = rng.normal(size=(20, 3))
    y = phi @ np.array([1.0, -1.0, 0.5]) + 0.3 * rng.normal(size=20)
    head = built(NormalHead(dof=3.0, scale=0.7), 3, y)
    params, rest = head.partition()
    flat, join = jax.flatten_util.ravel_pytree(params)
    loss = jax.jit(jax.value_and_grad(lambda p: eqx.combine(join(p), rest).loss(phi, y, 20)))
    found = scipy.optimize.minimize(lambda p: [np.asarray(v, float) for v in loss(p)], flat, jac=True, tol=1e-14)
    head = eqx.combine(join(jnp.asarray(found.x)), rest)
    mean, epistemic, aleatoric = head.moments(phi)
    expected = (np.sum((y[:, None] - mean) ** 2 + epistemic) + 0.7) / (20 + 3.0 + 2)
    assert float(aleatoric[0, 0]) == pytest.approx(float(expected), rel=1e-4)


def test_batches_are_unbiased_and_doubled_data_weigh_the_prior_by_half() -> None:
    rng = np.random.default_rng(10)
    phi, y = rng.normal(size=(6, 3)), rng.normal(size=6)
    head = built(NormalHead(), 3, y)
    of = jax.jit(lambda phi, y, n: head.loss(phi, y, n))
    whole = float(of(phi, y, 6))
    parts = [float(of(phi[i : i + 2], y[i : i + 2], 6)) for i in (0, 2, 4)]
    assert np.mean(parts) == pytest.approx(whole, rel=1e-12)
    twice = float(of(np.tile(phi, (2, 1)), np.tile(y, 2), 12))
    penalty = float(head.divergence() - head.log_hyperprior())
    assert whole - twice == pytest.approx(penalty / 12, rel=1e-12)


def test_bad_input_is_told() -> None:
    with pytest.raises(pf.InvalidArgument, match=r"low_rank.*needs a rank"):
        NormalHead(covariance="low_rank")
    with pytest.raises(pf.InvalidArgument, match=r"covariance must be one of.*'full'"):
        NormalHead(covariance="full")
    with pytest.raises(pf.InvalidArgument, match="prior_scale must be a finite number > 0, got 0"):
        NormalHead(prior_scale=0)
    with pytest.raises(pf.InvalidArgument, match=r"rank=3 is for covariance='low_rank'"):
        NormalHead(rank=3)
    with pytest.raises(pf.InvalidArgument, match=r"4,194,304,000 numbers.*use covariance='diagonal'"):
        first_weights(jax.random.key(0), "dense", 1000, 2048)
    head = built(NormalHead(), 2, np.zeros((3, 2)))
    with pytest.raises(pf.InvalidArgument, match=r"y has shape \(3,\) .* must have shape \(3, 2\)"):
        head.loss(PHI, Y, 3)
    with pytest.raises(pf.InvalidArgument, match="at least the 3 of this batch, got 1"):
        built(NormalHead()).loss(PHI, Y, 1)
    with pytest.raises(pf.InvalidArgument, match="has no arrays yet"):
        NormalHead().loss(PHI, Y, 3)
    with pytest.raises(pf.InvalidArgument, match="one for each of 2 features, got 3"):
        built(NormalHead(prior_scale=(1.0, 1.0, 1.0))).divergence()
    with pytest.raises(pf.InvalidArgument, match="joint=True has no closed form"):
        built(HeteroscedasticHead()).predict(PHI, joint=True)


def test_single_forms_are_named_by_their_class() -> None:
    kinds = [type(first_weights(jax.random.key(0), form, 1, 2)) for form in FORMS[:3]]
    assert kinds == [Dense, DensePrecision, Diagonal]


@pytest.mark.filterwarnings("error")
def test_settings_may_be_scalars_of_arrays() -> None:
    head = NormalHead(prior_scale=np.float64(2.0), noise=jnp.asarray(0.3))
    assert (head.prior_scale, head.noise) == (2.0, pytest.approx(0.3))
    assert hash((head.prior_scale, NormalHead(noise=np.array([0.1, 0.2])).noise))
