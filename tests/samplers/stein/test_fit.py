"""Whole runs: constrained models, mini-batches, several clouds; what diagnosis says; refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.geometry import polytope

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 2))
Y = (RNG.uniform(size=200) < 1 / (1 + np.exp(-X @ [1.0, -1.0]))).astype(float)


def constrained():
    numpyro.sample("gamma", dist.Gamma(3.0, 1.0))
    numpyro.sample("beta", dist.Beta(4.0, 4.0))
    numpyro.sample("dirichlet", dist.Dirichlet(jnp.array([2.0, 3.0, 5.0])))


def logistic(scale: float = 1.0) -> pf.Target:
    def log_likelihood(w, row):
        x, y = row
        return y * (x @ w) - jnp.logaddexp(0.0, x @ w)

    return pf.Target.from_factors(lambda w: -0.5 * jnp.sum(w**2) / scale**2, log_likelihood, (X, Y), np.zeros(2))


@pytest.mark.parametrize("method", [pf.SVGD, pytest.param(pf.MirroredSVGD, marks=pytest.mark.slow)])
def test_constrained_sites_have_their_jacobian(method):
    """Without it: Gamma mean 2.0 and sd 1.37, Beta sd 0.184, and an error for the Dirichlet."""
    posterior = pf.fit(pf.Target.from_numpyro(constrained), method(num_particles=100), progress=False)
    draws = posterior.draws()
    alpha = np.array([2.0, 3.0, 5.0])
    np.testing.assert_allclose(draws["gamma"].mean(), 3.0, atol=0.1)
    np.testing.assert_allclose(draws["gamma"].std(), np.sqrt(3), rtol=0.1)
    np.testing.assert_allclose(draws["beta"].mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(draws["beta"].std(), 1 / 6, rtol=0.06)
    np.testing.assert_allclose(draws["dirichlet"].mean(0), alpha / 10, atol=0.01)
    np.testing.assert_allclose(draws["dirichlet"].std(0), np.sqrt(alpha / 10 * (1 - alpha / 10) / 11), rtol=0.1)
    assert posterior.sample_dims == ("particle",)
    assert posterior.diagnose().ok


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return pf.fit(logistic(), pf.NUTS(), num_samples=1000, num_chains=2, progress=False).draws()["x"].reshape(-1, 2)


@pytest.mark.parametrize(
    "method", [pf.SVGD, pf.SVNG, partial(pf.SVNG, metric="fisher")], ids=["SVGD", "SVNG", "SVNG, Fisher"]
)
def test_mini_batches_lead_where_all_data_do(method, exact):
    # The noise of a batch, 1.4 standard deviations, moves all particles together; many steps average it out.
    run = method(num_particles=50, num_steps=1500, batch_size=100)
    found = pf.fit(logistic(), run, progress=False).draws()["x"]
    sd = exact.std(0)
    assert np.all(np.abs(found.mean(0) - exact.mean(0)) < 0.25 * sd)
    np.testing.assert_allclose(found.std(0), sd, rtol=0.2)


def test_mirrored_scores_of_mini_batches():
    """Those of SVGD on a real site, whose mirror is Euclidean."""
    with jax.enable_x64(True):
        u, batch = jnp.asarray(RNG.normal(size=(4, 2))), jnp.array([3, 50, 199])
        mirrored, plain = (m(num_particles=4).locate(logistic(), u, batch).drift for m in (pf.MirroredSVGD, pf.SVGD))
        np.testing.assert_allclose(mirrored, plain, rtol=1e-12)


def test_several_clouds_and_32_bits():
    target = pf.Target.from_numpyro(constrained)
    method = pf.MirroredSVGD(num_particles=20, num_steps=50)
    posterior = pf.fit(target, method, num_chains=2, progress=False, precision=32)
    draws = posterior.draws()["gamma"]
    assert draws.shape == (40,)
    assert not np.array_equal(draws[:20], draws[20:])
    assert {"velocity", "bandwidth", "rate"} <= set(posterior.iterations)


def test_findings():
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(8))
    diagnosis = pf.fit(target, pf.SVGD(num_particles=10, num_steps=3), progress=False).diagnose()
    names = {finding.name for finding in diagnosis.warnings}
    assert {"stationarity", "variance collapse"} <= names
    one = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(1))
    # Two particles of an RBF that start nearly merged, pulled together by a wide kernel, stay so.
    start = np.array([[-1.0], [1.0], [1.0 + 1e-9]])
    merged = pf.SVGD(num_particles=3, kernel="rbf", bandwidth=100.0, initial=start, num_steps=5)
    text = str(pf.fit(one, merged, progress=False).diagnose())
    assert "merged particles" in text


def test_a_start_from_an_approximation():
    target = logistic()
    laplace = pf.fit(target, pf.Laplace(), progress=False)
    posterior = pf.fit(target, pf.SVGD(num_particles=40, initial=laplace, num_steps=100), progress=False)
    assert posterior.draws()["x"].shape == (40, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles must be a whole number >= 1, got 0"),
        ({"kernel": "laplace"}, "kernel must be one of 'imq', 'rbf', got 'laplace'"),
        ({"bandwidth": 0.0}, "bandwidth must be a finite number > 0, got 0.0"),
        ({"rule": "mode"}, "rule must be one of 'median', 'mean', 'exact_median', got 'mode'"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number > 0"),
        ({"optimizer": "adam"}, "optimizer must be an optax GradientTransformation, got 'adam'"),
    ],
)
def test_hyperparameters_are_checked(options, message):
    with pytest.raises(pf.InvalidArgument, match=message):
        pf.SVGD(**options)


@pytest.mark.parametrize("method", [pf.SVMD, partial(pf.SVNG, metric="fisher")])
def test_the_gram_matrix_has_its_limits(method):
    with pytest.raises(pf.InvalidArgument, match=r"at most 4000 for SV.., .* got 5000; use MirroredSVGD"):
        method(num_particles=5000)
    with pytest.raises(pf.InvalidArgument, match=r"spectrum must be a finite number strictly between 0 and 1, got 1.5"):
        method(spectrum=1.5)


@pytest.mark.parametrize(
    ("initial", "message"),
    [
        (np.zeros((2, 3)), r"initial has shape \(2, 3\); MirroredSVGD\(num_particles=3\) on a target of dimension 4"),
        ({"gamma": np.ones(3)}, "initial must have the latent sites gamma, beta, dirichlet, got gamma; 'beta' is in"),
        ("negative", r"initial\['gamma'\] of particle 1 is -1.*, outside of the support.*, e.g. np.maximum\(initial"),
        (
            "no sum",
            r"initial\['dirichlet'\] of particle 0 is .*, outside of the support.*p / p.sum\(-1",
        ),
        (np.array([[0.0, 1, 2, 3], [1, 2, np.inf, 3], [2, 3, 4, 5]]), "initial has inf at particle 1, .* coordinate 2"),
        ("short", r"initial\['dirichlet'\] has shape \(3, 2\); .* of a simplex give all probabilities"),
        ("equal", "initial has 2 particles equal to particle"),
    ],
)
def test_particles_given_are_checked(initial, message):
    values = {"gamma": np.array([1.0, 2.0, 3.0]), "beta": np.full(3, 0.4), "dirichlet": np.full((3, 3), 1 / 3)}
    match initial if isinstance(initial, str) else "":
        case "negative":
            initial = values | {"gamma": np.array([1.0, -1.0, 3.0])}
        case "no sum":
            initial = values | {"dirichlet": np.full((3, 3), 0.5)}
        case "short":
            initial = values | {"dirichlet": np.full((3, 2), 1 / 3)}
        case "equal":
            initial = values | {"gamma": np.array([1.0, 2.0, 2.0])}
    with pytest.raises(pf.InvalidArgument, match=message):
        pf.fit(pf.Target.from_numpyro(constrained), pf.MirroredSVGD(num_particles=3, initial=initial), progress=False)


def scaled(scales):
    return pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(((x - 1) / scales) ** 2), np.zeros(len(scales)))


def test_unlike_scales_are_told_and_mended():
    """A cloud that is too wide in one direction has a velocity that looks small; Stein's identity tells."""
    scales = np.array([0.01, 0.1, 1.0, 3.0, 10.0])
    plain = pf.fit(scaled(scales), pf.SVGD(), progress=False)
    assert plain.draws()["x"][:, 0].std() > 3 * scales[0]
    (finding,) = (f for f in plain.diagnose().warnings if f.name == "width")
    np.testing.assert_allclose(finding.value, (plain.draws()["x"][:, 0].std() / scales[0]) ** 2, rtol=0.1)
    laplace = pf.fit(scaled(scales), pf.Laplace(), progress=False)
    whitened = pf.fit(scaled(scales), pf.SVGD(precondition=laplace), progress=False)
    np.testing.assert_allclose(whitened.draws()["x"].std(0), scales, rtol=0.05)
    np.testing.assert_allclose(whitened.draws()["x"].mean(0), 1.0, atol=0.02 * scales.max())
    assert whitened.diagnose().ok


def test_a_pilot_run_chooses_the_rate():
    """Far from a target as narrow as this the least rate gets nowhere, and the largest overshoots."""
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(((x - 7) / 0.02) ** 2), np.zeros(2))
    posterior = pf.fit(target, pf.SVGD(num_particles=30, learning_rate="pilot"), progress=False)
    rate = np.unique(posterior.iterations["rate"]).max()
    assert rate in (0.1, 0.3)
    with pytest.raises(pf.InvalidArgument, match="learning_rate='pilot' chooses the rate of the built-in optimiser"):
        pf.SVGD(learning_rate="pilot", optimizer=optax.adam(0.1))
    with pytest.raises(pf.InvalidArgument, match="learning_rate must be a number or 'pilot', got 'fast'"):
        pf.SVGD(learning_rate="fast")


def test_the_run_ends_where_the_ksd_no_longer_falls():
    run = pf.SVGD(num_particles=50, num_steps=2000, tolerance=0.0, patience=3, learning_rate=0.05)
    posterior = pf.fit(scaled(np.ones(2)), run, progress=False)
    looks = posterior.iterations["ksd"].ravel()
    assert looks.size < 1500
    found = pf.discrepancies.ksd(posterior.draws()["x"], scaled(np.ones(2))).squared
    assert 0.3 * found < looks[-1] < 3 * found  # with the bandwidth of the first look
    np.testing.assert_allclose(posterior.draws()["x"].std(0), 1.0, rtol=0.1)


def test_a_polytope():
    """Its barrier is inverted by Newton's method; a Dirichlet on the triangle."""
    triangle = polytope(np.array([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]]), np.array([0.0, 0.0, 1.0]))
    alpha = np.array([3.0, 2.0, 4.0])

    def log_density(x):
        return 2 * jnp.log(x[0]) + jnp.log(x[1]) + 3 * jnp.log(1 - x.sum())

    target = pf.Target.from_log_density(log_density, np.full(2, 0.3), triangle)
    posterior = pf.fit(target, pf.MirroredSVGD(num_particles=60, num_steps=3000), progress=False)
    mean = alpha[:2] / 9
    sd = np.sqrt(mean * (1 - mean) / 10)
    np.testing.assert_allclose(posterior.draws()["x"].mean(0), mean, atol=0.1 * sd.min())
    np.testing.assert_allclose(posterior.draws()["x"].std(0), sd, rtol=0.06)
    assert "Newton's inverse of the mirror map leaves" in str(posterior.diagnose())


def test_a_selective_density():
    """−‖Aθ + c‖²/(2σ²) on the positive quadrant, moments by quadrature; ten clouds of 50."""
    a = jnp.array([[2.398594640215344, -1.9081586746841988], [0.0, 1.1809919098644999]])
    c = jnp.array([2.397510925712619, -1.4610393671912956])
    target = pf.Target.from_log_density(
        lambda x: -0.5 * jnp.sum((a @ x + c) ** 2) / 0.2488836156425015**2, np.ones(2), constraints.positive
    )
    method = pf.MirroredSVGD(num_particles=50, learning_rate=0.01)
    draws = pf.fit(target, method, num_chains=10, progress=False).draws()["x"]
    np.testing.assert_allclose(draws.mean(0), [0.1518567, 1.3891187], atol=0.01)
    np.testing.assert_allclose(draws.var(0), [0.0134787, 0.0234345], atol=0.003)


def test_targets_that_do_not_suit():
    with pytest.raises(pf.UnsupportedTarget, match=r"batch_size=5.* needs a target with factors"):
        pf.fit(pf.Target.from_numpyro(constrained), pf.SVGD(batch_size=5), progress=False)


def test_a_score_that_is_not_finite_is_located():
    """√x has an infinite slope at 0, where the second particle begins."""
    target = pf.Target.from_log_density(lambda x: -jnp.sum(x**2) - jnp.sum(jnp.sqrt(jnp.abs(x))), np.zeros(1))
    method = pf.SVGD(num_particles=3, initial=np.array([[1.0], [0.0], [-1.0]]))
    with pytest.raises(pf.NonFinite, match=r"The score of 1 of 3 particles is not finite, first that of particle 1"):
        pf.fit(target, method, progress=False)
    box = pf.Target.from_log_density(lambda x: -jnp.exp(200.0 * x), 0.1, constraints.real)
    wild = pf.SVGD(num_particles=3, optimizer=optax.sgd(1e300), initial=np.array([[0.1], [0.2], [0.3]]))
    with pytest.raises(pf.NonFinite, match=r"left the finite numbers|is not finite"):
        pf.fit(box, wild, progress=False)


def test_a_run_ends_once_the_velocity_is_small():
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(1))
    posterior = pf.fit(
        target, pf.SVGD(num_particles=5, optimizer=optax.sgd(0.5), num_steps=100_000, tolerance=1e-2), progress=False
    )
    assert posterior.record["evaluations"] < 5 * 1000
    assert jax.numpy.isfinite(posterior.draws()["x"]).all()


def test_an_entry_outside_of_a_support_is_named():
    target = pf.Target.from_log_density(lambda x: -jnp.sum(x), np.ones(3), constraints.positive)
    start = np.array([[1.0, 2.0, 3.0], [1.0, -0.5, 2.0]])
    with pytest.raises(pf.InvalidArgument, match=r"of particle 1, entry \[1\], is -0.5, outside of the support"):
        pf.fit(target, pf.SVGD(num_particles=2, initial={"x": start}), progress=False)


def test_a_jacobian_that_is_in_the_density_is_not_added_again():
    """A Gamma(3, 1) as a density of log x; one particle goes to its mode there, the mean. Twice, it would go to 4."""
    with_jacobian = pf.Target.from_log_density(lambda x: 3 * jnp.log(x) - x, 1.0, constraints.positive)
    target = with_jacobian.replace(includes_jacobian=True)
    given = pf.Target.from_log_density(lambda x: 2 * jnp.log(x) - x, 1.0, constraints.positive)
    with jax.enable_x64(True):
        u, method = jnp.array([[0.3], [1.2]]), pf.MirroredSVGD(num_particles=2)
        np.testing.assert_allclose(method.locate(target, u, None).drift, 3 - np.exp(u), rtol=1e-12)
        np.testing.assert_allclose(method.locate(with_jacobian, u, None).drift, 4 - np.exp(u), rtol=1e-12)
        for point in u:
            np.testing.assert_allclose(target.log_density(point), given.log_density(point), rtol=1e-12)
            values = {"x": jnp.exp(point[0])}
            np.testing.assert_allclose(target.log_density_at(values), given.log_density_at(values), rtol=1e-12)
    assert target.replace(data=None).includes_jacobian
    with pytest.raises(pf.InvalidArgument, match="includes_jacobian must be True or False, got 'yes'"):
        target.replace(includes_jacobian="yes")
