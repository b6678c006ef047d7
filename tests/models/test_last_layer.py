"""`LastLayer` as a target, `VBLL` through `fit`: the gold answer, seeds, validation, stores, predictions, bad input."""

import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

import pushforward as pf
from pushforward.models import LastLayer
from pushforward.models.last_layer import NormalHead, SoftmaxHead, StudentTHead

RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (90, 1))
Y = 10 + 3 * np.sin(2 * X[:, 0]) + 0.3 * RNG.normal(size=90)
AT = np.linspace(-2, 2, 5)[:, None]


def network(key: Any) -> Any:
    return eqx.nn.MLP(1, 6, 16, 1, activation=jax.nn.tanh, final_activation=jax.nn.tanh, key=key)


def plain(x: Any) -> Any:
    return jnp.stack([jnp.ones(()), x[0], jnp.sin(2 * x[0])])


NETWORK = network(jax.random.key(0))
METHOD = pf.VBLL(num_steps=1200, learning_rate=5e-3, patience=10_000)


@pytest.fixture(scope="module")
def target() -> LastLayer:
    return LastLayer(NETWORK, NormalHead(), X, Y, init=network)


@pytest.fixture(scope="module")
def fitted(target: LastLayer) -> pf.Posterior:
    return pf.fit(target, METHOD, num_chains=2, chains_per_program=2, num_samples=2000, progress=False)


def test_the_density_is_the_models_in_units_of_y() -> None:
    """Against a direct evaluation on raw data: standardised w, and the Jacobian of y's unit."""
    target = LastLayer(plain, NormalHead(noise=0.3, prior_scale=2.0), X, Y, validation=None)
    w = np.array([0.3, -0.2, 1.1])
    x = (X - X.mean(0)) / X.std(0)
    phi = np.stack([np.ones(90), x[:, 0], np.sin(2 * x[:, 0])], 1)
    expected = st.norm(Y.mean() + Y.std() * phi @ w, 0.3).logpdf(Y).sum() + st.norm(0, np.sqrt(2)).logpdf(w).sum()
    with jax.enable_x64(True):
        assert float(target.log_density(jnp.asarray(w))) == pytest.approx(expected, rel=1e-10)
        pointwise = target.log_likelihood({"w": jnp.asarray(w)})["y"]
    np.testing.assert_allclose(
        np.asarray(pointwise).sum(), expected - st.norm(0, np.sqrt(2)).logpdf(w).sum(), rtol=1e-10
    )
    assert target.sites[0].shape == (3,)
    np.testing.assert_array_equal(target.observed["y"], Y)


def test_the_posterior_brings_the_trained_target_and_agrees_with_nuts(fitted: pf.Posterior) -> None:
    """Given features and noise the exact posterior is a closed form, NUTS finds it, and q is close to it."""
    trained = fitted.target
    assert trained is fitted.approximation.target
    frozen = trained.freeze()
    gold = pf.fit(frozen, pf.NUTS(), num_samples=500, num_warmup=300, num_chains=2, progress=False)
    best = fitted.approximation.refit()
    with jax.enable_x64(True):
        mean, variance = np.asarray(best.mean()), np.diag(best.covariance())
    draws = gold.draws()["w"].reshape(-1, 6)
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.25 * np.sqrt(variance).max())
    np.testing.assert_allclose(draws.std(0), np.sqrt(variance), rtol=0.2)
    q = fitted.draws()["w"].reshape(-1, 6)
    assert np.all(np.abs(q.mean(0) - mean) < 3 * np.sqrt(variance) + 0.3)
    np.testing.assert_allclose(frozen.num_data, trained.num_data)
    elbo, error = fitted.elbo()
    with jax.enable_x64(True):
        phi, y = trained.phi(trained.rows.x), trained.targets(trained.rows.y)
        fit = trained.head.expected_log_likelihood(phi, y).sum() - trained.head.divergence()
        bound = float(fit) - trained.num_data * np.log(float(trained.units.y_scale[0]))
        cov = 1.0 * phi @ phi.T + float(jnp.exp(2 * trained.head.log_sd[0])) * np.eye(len(y))
        sign, log_det = np.linalg.slogdet(np.asarray(cov))
        white = np.linalg.solve(np.asarray(cov), np.asarray(y[:, 0]))
        evidence = -0.5 * (float(y[:, 0] @ white) + log_det + len(y) * np.log(2 * np.pi))
        evidence -= trained.num_data * np.log(float(trained.units.y_scale[0]))
    assert sign > 0
    assert abs(elbo - bound) < 5 * error
    assert bound < evidence
    assert evidence - bound < 30


def test_new_rows_are_those_of_a_refit(fitted: pf.Posterior) -> None:
    q = fitted.approximation.refit("dense_precision")
    x, y = RNG.uniform(-2, 2, (4, 1)), RNG.normal(10, 2, 4)
    grown = q.condition(x, y)
    again = grown.refit()
    assert grown.target.num_data == q.target.num_data + 4
    with jax.enable_x64(True):
        np.testing.assert_allclose(grown.mean(), again.mean(), atol=1e-9)
        np.testing.assert_allclose(grown.covariance(), again.covariance(), atol=1e-11)
    assert np.all(grown.uncertainty(AT).epistemic < q.uncertainty(AT).epistemic)
    with pytest.raises(pf.InvalidArgument, match="use covariance='dense_precision'"):
        fitted.approximation.condition(x, y)
    with pytest.raises(pf.InvalidArgument, match=r"finite numbers of shape \(4,\)"):
        q.condition(x, y[:, None])


@pytest.mark.slow
def test_paths_are_functions_with_the_moments_of_the_posterior(fitted: pf.Posterior) -> None:
    q = fitted.approximation
    path = q.paths(4000)
    parts = q.uncertainty(AT)
    with jax.enable_x64(True):
        values = np.asarray(path(AT))
        np.testing.assert_allclose(path(AT[2:3])[:, 0], values[:, 2], atol=1e-9)
        slope = jax.grad(lambda x: path(x[None])[0, 0])(jnp.zeros(1))
        step = np.asarray(path(np.array([[1e-5], [-1e-5]]))[0])
    np.testing.assert_allclose(slope[0], (step[0] - step[1]) / 2e-5, rtol=1e-5)
    error = np.sqrt(parts.epistemic / 4000)
    assert np.all(np.abs(values.mean(0) - parts.mean) < 5 * error)
    np.testing.assert_allclose(values.var(0), parts.epistemic, rtol=0.15)


def test_predictions_are_in_units_of_y_and_their_parts_add_up(fitted: pf.Posterior) -> None:
    q = fitted.approximation
    parts = q.uncertainty(AT)
    truth = 10 + 3 * np.sin(2 * AT[:, 0])
    assert np.all(np.abs(parts.mean - truth) < 0.8), parts.mean - truth
    predictive = q.predict(AT)
    assert predictive.batch_shape == (5,)
    np.testing.assert_allclose(predictive.variance, parts.epistemic + parts.aleatoric, rtol=1e-6)
    joint = q.predict(AT, joint=True)
    assert joint.event_shape == (5,)
    np.testing.assert_allclose(
        np.diagonal(np.asarray(joint.covariance_matrix)), parts.epistemic + parts.aleatoric, rtol=1e-5
    )
    scores = q.log_score(AT, truth)
    assert scores.shape == (5,)
    drawn = fitted.predict(AT)["y"].values.reshape(-1, 5)
    np.testing.assert_allclose(drawn.mean(0), parts.mean, atol=0.1)
    np.testing.assert_allclose(drawn.std(0), np.sqrt(parts.epistemic + parts.aleatoric), rtol=0.15)
    lengths, leverages = q.leverage(AT)
    assert lengths.shape == leverages.shape == (5,)
    assert fitted.log_likelihood()["y"].shape[-1] == fitted.target.num_data


def test_the_state_with_the_best_validation_is_kept_as_a_copy(fitted: pf.Posterior) -> None:
    nll = fitted.iterations["validation_nll"]
    assert nll.shape == (2, 1200)
    assert not np.array_equal(nll[0], nll[1], equal_nan=True), "restarts begin at networks of their own"
    held = fitted.target.held
    score = -fitted.approximation.log_score(held.x, held.y).mean()
    assert score == pytest.approx(np.nanmin(nll), rel=1e-9)
    assert score < nll[:, -1].max()


def test_seeds_in_one_program_are_those_of_single_runs(target: LastLayer, fitted: pf.Posterior) -> None:
    """For as long as rounding, which training amplifies, stays small."""
    apart = pf.fit(target, METHOD, num_chains=2, chains_per_program=1, num_samples=50, progress=False)
    for name in ("loss", "validation_nll"):
        np.testing.assert_allclose(apart.iterations[name][:, :200], fitted.iterations[name][:, :200], rtol=1e-7)


def test_patience_ends_training(target: LastLayer) -> None:
    short = pf.fit(target, pf.VBLL(num_steps=3000, learning_rate=0.02, patience=3), num_samples=10, progress=False)
    nll = short.iterations["validation_nll"][0]
    assert len(nll) < 3000
    looks = nll[1::2][1:]  # 72 rows in batches of 32: two steps an epoch
    assert np.argmin(looks) == len(looks) - 4


@jax.jit
def steps_of(method: pf.VBLL, target: LastLayer, key: Any, steps: int) -> Any:
    one = lambda t, state: method.step(jax.random.fold_in(key, t), state, target, t)[0]  # noqa: E731
    return jax.lax.fori_loop(0, steps, one, method.init(key, target, None))


def after(target: LastLayer, method: pf.VBLL, steps: int = 1) -> LastLayer:
    """What some steps make of a target, without a fit around them."""
    with jax.enable_x64(True):
        states = jax.tree.map(lambda x: np.asarray(x)[None], steps_of(method, target, jax.random.key(0), steps))
        return method.result(states, target).target


def test_weight_decay_is_of_the_features_only() -> None:
    """With a decay of 1 per unit of rate the features shrink, and the head moves as without."""
    flat = LastLayer(NETWORK, NormalHead(noise=0.3), X, Y, validation=None)
    free, decayed = (after(flat, pf.VBLL(learning_rate=0.1, weight_decay=decay, batch_size=90)) for decay in (0.0, 1.0))
    for one, other in zip(jax.tree.leaves(free.head.weights), jax.tree.leaves(decayed.head.weights), strict=True):
        np.testing.assert_array_equal(one, other)
    for start, one, other in zip(flat.params, free.params, decayed.params, strict=True):
        np.testing.assert_allclose(other, one - 0.1 * np.asarray(start, float), atol=1e-12)


def test_features_that_are_frozen_stay() -> None:
    target = LastLayer(NETWORK, NormalHead(), X, Y)
    end = after(target, pf.VBLL(train_features=False, warm=True), 3)
    for one, other in zip(target.params, end.params, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(target.head.weights.mean, end.head.weights.mean)
    assert np.max(np.abs(target.head.weights.mean - end.head.weights.mean)) < 0.01, "begins at the present head"


def test_a_run_that_is_interrupted_goes_on_as_if_it_had_not(
    target: LastLayer, fitted: pf.Posterior, tmp_path: Path
) -> None:
    method = pf.VBLL(num_steps=400, learning_rate=5e-3)
    whole = pf.fit(target, method, num_samples=50, progress=False)
    options: dict[str, Any] = {"num_samples": 50, "progress": False, "chunk_length": 20, "checkpoint_every": 0.0}
    part = pf.fit(target, method, store=tmp_path / "run", max_evaluations=100, **options)
    assert part.record["stopped"]
    np.testing.assert_array_equal(fitted.draws()["w"].shape, (1, 2000, 6))
    resumed = pf.resume(tmp_path / "run", target, num_samples=51, progress=False)
    np.testing.assert_array_equal(
        resumed.iterations["loss"], whole.iterations["loss"][:, : resumed.iterations["loss"].shape[1]]
    )
    loaded = pf.load(tmp_path / "run", target)
    np.testing.assert_array_equal(loaded.approximation.uncertainty(AT).mean, resumed.approximation.uncertainty(AT).mean)


@pytest.fixture(scope="module")
def blobs() -> tuple[pf.Posterior, np.ndarray, np.ndarray]:
    """A fit to three blobs, and their rows."""
    rng = np.random.default_rng(1)
    centres = np.array([[0.0, 2.0], [2.0, -1.0], [-2.0, -1.0]])
    y = rng.integers(0, 3, 120)
    x = centres[y] + 0.4 * rng.normal(size=(120, 2))
    net = eqx.nn.MLP(2, 16, 16, 1, activation=jax.nn.elu, final_activation=jax.nn.elu, key=jax.random.key(1))
    method = pf.VBLL(num_steps=600, learning_rate=5e-3)
    return pf.fit(LastLayer(net, SoftmaxHead(), x, y), method, num_samples=100, progress=False), x, y


def test_classes_out_of_distribution(blobs: tuple[pf.Posterior, np.ndarray, np.ndarray]) -> None:
    """Three blobs: nearly all right, and less sure far away; epistemic, aleatoric and total entropy agree."""
    posterior, x, y = blobs
    q = posterior.approximation
    probabilities = q.predict(x).probs
    assert np.mean(np.argmax(probabilities, 1) == y) > 0.97
    np.testing.assert_allclose(q.log_score(x, y), np.log(probabilities[np.arange(120), y]), rtol=1e-9)
    parts = q.uncertainty(x)
    total = -np.sum(probabilities * np.log(probabilities), 1)
    np.testing.assert_allclose(parts.epistemic + parts.aleatoric, total, atol=1e-9)
    assert parts.epistemic.min() > -1e-9
    scores = q.ood_score(np.concatenate([x, np.zeros((1, 2))]))
    assert scores[:-1].mean() > scores[-1]


@pytest.mark.slow
def test_labels_are_drawn_and_the_bound_is_better_than_chance(blobs: tuple[pf.Posterior, np.ndarray, Any]) -> None:
    posterior, x, _ = blobs
    assert set(np.unique(posterior.predict(x[:4])["y"].values)) <= {0, 1, 2}
    elbo, _ = posterior.elbo()
    assert elbo > -96 * np.log(3)


def test_a_pair_of_parameters_and_function_and_several_outputs() -> None:
    """As flax and others have them; y of shape (n, 1) keeps its axis."""
    params = {"a": np.ones((3, 1)), "b": np.zeros(3)}
    target = LastLayer((params, lambda p, x: jnp.tanh(p["a"] @ x + p["b"])), StudentTHead("diagonal"), X, Y[:, None])
    assert {site.name: site.shape for site in target.sites} == {"w": (1, 3), "tau": (1,)}
    end = after(target, pf.VBLL(), 5)
    assert not np.array_equal(end.features.params["a"], params["a"])
    with jax.enable_x64(True):
        assert end.predict(AT).batch_shape == (5, 1)
        u = jnp.zeros(4)
        values = end.constrain(u)
        assert float(values["tau"][0]) == 1.0
        np.testing.assert_allclose(end.unconstrain(values), u, atol=1e-12)


def test_a_module_of_nnx_is_a_network() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.layer = nnx.Linear(1, 8, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return jnp.tanh(self.layer(x))

    net = Net(nnx.Rngs(0))
    end = after(LastLayer(net, NormalHead(), X, Y), pf.VBLL(), 5)
    assert isinstance(end.features, Net)
    assert not np.array_equal(end.features.layer.kernel[...], net.layer.kernel[...])
    with jax.enable_x64(True):
        assert end.predict(AT).batch_shape == (5,)


@pytest.mark.slow
def test_arrays_marked_as_fixed_are_not_learned() -> None:
    import paramax

    class Fourier(eqx.Module):
        frequencies: Any
        scale: Any

        def __call__(self, x: Any) -> Any:
            return self.scale * jnp.cos(self.frequencies * x)

    net = Fourier(paramax.non_trainable(jnp.arange(1.0, 6.0)), jnp.ones(5))
    end = after(LastLayer(net, NormalHead(), X, Y), pf.VBLL(), 5).features
    np.testing.assert_array_equal(paramax.unwrap(end).frequencies, np.arange(1.0, 6.0))
    assert not np.array_equal(end.scale, net.scale)


def test_calibration_is_of_the_rows_held_out_and_comes_first_in_a_report(fitted: pf.Posterior) -> None:
    from pushforward.infer.report.figures import figures

    q, held = fitted.approximation, fitted.target.held
    found = q.calibration()
    parts = q.uncertainty(held.x)
    z = np.abs(held.y - parts.mean) / np.sqrt(parts.epistemic + parts.aleatoric)
    np.testing.assert_allclose(found.observed, [np.mean(2 * st.norm.cdf(z) - 1 <= p) for p in found.expected])
    first = next(figures(fitted.data, "approximation", fitted.summary(), None, q.pictures()))
    assert first.title == "Calibration"
    assert first.png is not None, first.caption
    with pytest.raises(pf.InvalidArgument, match=r"needs rows, each kind under a name, got \{\}"):
        q.plot_ood()


@pytest.mark.slow
def test_what_a_run_says_of_itself(target: LastLayer, fitted: pf.Posterior) -> None:
    assert "restarts" in str(fitted.diagnose())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = pf.fit(
            LastLayer(NETWORK, NormalHead(), X, Y, validation=None),
            pf.VBLL(num_steps=5),
            num_samples=10,
            progress=False,
        )
    assert "No rows were held out" in str(alone.diagnose())
    short = pf.fit(target, pf.VBLL(num_steps=20), num_samples=10, progress=False)
    assert "raise num_steps" in str(short.diagnose())


def test_bad_input_is_told() -> None:
    with pytest.raises(pf.InvalidArgument, match=r"same number of rows, at least 2, got shapes \(90, 1\) and \(89,\)"):
        LastLayer(plain, NormalHead(), X, Y[1:])
    with pytest.raises(pf.NonFinite, match="x has 1 values that are not finite"):
        LastLayer(plain, NormalHead(), np.where(np.arange(90)[:, None] == 3, np.nan, X), Y)
    with pytest.raises(pf.NonFinite, match="features are not finite in"):
        LastLayer(lambda x: jnp.log(x), NormalHead(), X, Y)
    with pytest.raises(pf.InvalidArgument, match=r"features must return a vector for one x, got shape \(\)"):
        LastLayer(lambda x: x[0], NormalHead(), X, Y)
    with pytest.raises(pf.InvalidArgument, match=r"does not run on one x of shape \(1,\)"):
        LastLayer(lambda x: x @ jnp.ones((3, 2)), NormalHead(), X, Y)
    with pytest.raises(pf.InvalidArgument, match="class labels, whole numbers"):
        LastLayer(plain, SoftmaxHead(), X, Y)
    with pytest.raises(pf.InvalidArgument, match=r"head must be a head of models\.last_layer"):
        LastLayer(plain, "normal", X, Y)
    with pytest.raises(pf.InvalidArgument, match="validation must be a finite number strictly between 0 and 1, got 2"):
        LastLayer(plain, NormalHead(), X, Y, validation=2)
    with pytest.raises(pf.UnsupportedTarget, match="VBLL needs a target with last_layer"):
        pf.fit(pf.Target.from_log_density(lambda x: -(x**2), 0.0), pf.VBLL())
    with pytest.raises(pf.InvalidArgument, match="learning_rate must be a finite number > 0"):
        pf.VBLL(learning_rate=0)
    steep = LastLayer(lambda x: 1e200 * x, NormalHead(), X, Y)
    with pytest.raises(pf.PushforwardError, match=r"loss of VBLL became|no valid start"):
        pf.fit(steep, pf.VBLL(num_steps=100), progress=False)


def test_queries_that_do_not_fit_are_told(fitted: pf.Posterior) -> None:
    q = fitted.approximation
    with pytest.raises(pf.InvalidArgument, match=r"rows of shape \(1,\), as the data have, got shape \(5, 2\)"):
        q.predict(np.zeros((5, 2)))
    with pytest.raises(pf.NonFinite, match="x has 1 values"):
        q.uncertainty(np.array([[np.inf]]))
    with pytest.raises(pf.InvalidArgument, match=r"y must have shape \(5,\).*got \(5, 1\)"):
        q.log_score(AT, np.zeros((5, 1)))
