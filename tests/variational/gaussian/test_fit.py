"""Whole fits: what a result carries, whitening, restarts; and what is refused, each with its sentence."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.variational.whitening import whitened

from .helpers import POISSON, gaussian, normal_kl, poisson


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def quick(target, method, **options):
    return pf.fit(target, method, **{"progress": False, "num_samples": 2000} | options)


def test_a_result_carries_its_record_and_judges_itself() -> None:
    posterior = quick(poisson(), pf.FBGVI(expectation="gauss_hermite", num_steps=400), num_chains=2)
    prior = -0.5 * np.log(2 * np.pi)
    elbo, error = posterior.elbo()
    assert elbo == pytest.approx(prior - POISSON["f"], abs=4 * error)
    found = posterior.evidence()
    assert found.log_evidence == pytest.approx(prior + POISSON["log_z"], abs=5 * found.se + 0.003)
    trace = posterior.iterations
    assert {name: value.shape for name, value in trace.items()} == dict.fromkeys(trace, (2, 400))
    assert {"elbo", "elbo_se", "variance_mean", "variance_scale", "step_times_curvature", "num_hvps"} <= trace.keys()
    np.testing.assert_allclose(trace["elbo"][:, -1], prior - POISSON["f"], atol=1e-9)
    diagnosis = posterior.diagnose()
    assert {f.name for f in diagnosis.findings} >= {"step size", "convergence", "restarts", "k-hat", "ELBO"}
    assert [diagnosis[name].level for name in ("step size", "convergence", "restarts")] == ["ok"] * 3


@pytest.mark.parametrize("whiten", ["laplace", pytest.param("pathfinder", marks=pytest.mark.slow)])
def test_whitening_makes_an_ill_conditioned_target_easy(whiten: str) -> None:
    target, mean, sigma = gaussian(5, 1e-3, 10.0)
    kl = {}
    for how in (None, whiten):
        method = pf.FBGVI(whiten=how, num_steps=300, expectation="stein")
        approximation = quick(target, method, num_samples=100).approximation
        kl[how] = normal_kl(approximation.mean(), approximation.covariance(), mean, sigma)
    assert kl[None] > 0.1
    assert kl[whiten] < (1e-8 if whiten == "laplace" else 0.1 * kl[None])


def test_the_default_whitens_unless_told_otherwise() -> None:
    target, mean, sigma = gaussian(5, 1e-3, 10.0)
    approximation = quick(target, pf.FBGVI(num_steps=60, expectation="stein"), num_samples=100).approximation
    assert normal_kl(approximation.mean(), approximation.covariance(), mean, sigma) < 1e-8
    assert pf.FBGVI()._whiten == "laplace"
    given = ({"covariance": "diagonal"}, {"initial_covariance": 2.0}, {"step_size": 0.1}, {"whiten": None})
    assert [pf.FBGVI(**options)._whiten for options in given] == [None] * 4


def test_a_mode_far_from_the_mass_is_not_whitened_by() -> None:
    # Neal's funnel in three dimensions, centred: its mode, log scale to minus infinity, has no mass around it.
    def log_density(u):
        scale = jnp.exp(u[0])
        return -0.5 * (u[0] / 1.5) ** 2 - 0.5 * jnp.sum((u[1:] / scale) ** 2) - 2 * u[0]

    target = pf.Target.from_log_density(log_density, np.zeros(3))
    frame = whitened(jax.random.key(0), target, jnp.zeros(3), "laplace")
    assert not frame.fits
    np.testing.assert_array_equal(frame.scale, np.eye(3))
    assert float(frame.log_det) == 0.0


def test_draws_far_out_do_not_throw_the_covariance_out() -> None:
    """Curvature grows as τ² in a hierarchy: one draw far out is a thousand times more curved than their mean."""
    target = pf.models.get("eight_schools").target()
    posterior = pf.fit(target, pf.FBGVI(num_steps=600), num_chains=4, key=6, progress=False)
    elbo = np.median(np.asarray(posterior.iterations["elbo"])[:, -50:], axis=1)
    assert np.all(elbo > -31.8), elbo  # the optimum is at -31.5


def test_restarts_in_different_modes_are_told() -> None:
    def two_modes(x):
        return jnp.logaddexp(-0.5 * jnp.sum((x - 4) ** 2), -0.5 * jnp.sum((x + 4) ** 2) - 1.0)

    target = pf.Target.from_log_density(two_modes, np.zeros(2))
    starts = np.array([[3.0, 3.0], [-3.0, -3.0]])
    posterior = quick(target, pf.FBGVI(num_steps=150, expectation="stein"), num_chains=2, start=starts)
    found = posterior.diagnose()["restarts"]
    assert found.level == "warning"
    assert "several modes" in found.message
    np.testing.assert_allclose(posterior.approximation.mean(), [4, 4], atol=0.1)  # the one of larger ELBO


def test_separable_data_under_a_flat_prior() -> None:
    design = np.array([[-2.0, 1.0], [-1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    target = pf.glm_target(design, [0.0, 0.0, 1.0, 1.0], prior_precision=0.0)
    posterior = quick(target, pf.FBGVI(expectation="gauss_hermite", num_steps=400), num_samples=200)
    found = posterior.diagnose()["convergence"]
    assert found.level == "warning"
    assert "the posterior is improper" in found.message
    assert "proper prior" in found.message
    proper = pf.glm_target(design, [0.0, 0.0, 1.0, 1.0], prior_precision=1.0)
    posterior = quick(proper, pf.FBGVI(expectation="gauss_hermite", num_steps=400), num_samples=200)
    assert posterior.diagnose()["convergence"].level == "ok"


def test_heavy_tails_are_told() -> None:
    # Cauchy: not concave beyond one scale, and with tails that no Gaussian covers.
    cauchy = pf.Target.from_log_density(lambda x: -jnp.sum(jnp.log1p(x**2)), np.zeros(2))
    diagnosis = quick(cauchy, pf.FBGVI(num_steps=200, expectation="stein"), start=np.zeros(2)).diagnose()
    assert diagnosis["concavity"].level == "note"
    assert "is not concave: the Gaussian is a local optimum" in diagnosis["concavity"].message
    assert diagnosis["k-hat"].level == "warning"
    assert diagnosis["k-hat"].value > 0.7
    assert diagnosis.flagged


def test_a_flipped_sign_is_told_from_a_target() -> None:
    flipped = pf.Target.from_log_density(lambda x: 0.5 * jnp.sum(x**2), np.zeros(2))
    with pytest.raises(pf.InvalidArgument, match=r"positive curvature everywhere .* -1 to -1 .* is its sign flipped\?"):
        quick(flipped, pf.FBGVI())
    flat = pf.Target.from_log_density(lambda x: jnp.sum(0.0 * x), np.zeros(2))
    with pytest.raises(pf.InvalidArgument, match=r"without curvature around the start, at \[.*\] \(log density 0\)"):
        quick(flat, pf.FBGVI())


def test_targets_that_do_not_suit() -> None:
    wide = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(2001))
    with pytest.raises(pf.InvalidArgument, match=r"dimension 2,001 needs about 0\.1 GB .* covariance='diagonal'"):
        quick(wide, pf.FBGVI())
    target, _, _ = gaussian(3)
    with pytest.raises(pf.InvalidArgument, match=r"needs a target made with glm_target.* got a LogDensityTarget"):
        quick(target, pf.FBGVI(expectation="gauss_hermite"))
    with pytest.raises(pf.InvalidArgument, match=r"initial_covariance has shape \(2,\); the target has dimension 3"):
        quick(target, pf.FBGVI(initial_covariance=np.ones(2)))
    with pytest.raises(pf.InvalidArgument, match="rank must be below the dimension 3, got 10"):
        quick(target, pf.FBGVI(covariance="low_rank"))
    with pytest.raises(pf.InvalidArgument, match=r"blocks must hold each of the coordinates 0 to 2 once, got \(\(0, 1"):
        quick(target, pf.FBGVI(covariance="block", blocks=((0, 1), (1, 2))))
    with pytest.warns(RuntimeWarning, match="2 gradients a step without the control variate of the matrix part"):
        pf.FBGVI(expectation="stein", num_draws=2, control="mean").prepare(
            jax.random.key(0), gaussian(12)[0], [np.zeros(12)]
        )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: pf.FBGVI(step_size=0.0), "step_size must be a finite number > 0, got 0.0"),
        (lambda: pf.FBGVI(step_size=-1), "step_size must be a finite number > 0, got -1"),
        (lambda: pf.FBGVI(num_steps=0), "num_steps must be a whole number >= 1, got 0"),
        (lambda: pf.FBGVI(expectation="hessian"), "expectation must be one of 'price', 'stein', .* got 'hessian'"),
        (lambda: pf.FBGVI(covariance="dense"), "covariance must be one of 'full', .* got 'dense'"),
        (lambda: pf.FBGVI(geometry="flat"), "geometry must be one of"),
        (lambda: pf.FBGVI(control="stl"), "control must be one of"),
        (lambda: pf.FBGVI(initial_covariance=np.eye(2, dtype=int)), "floating-point numbers, got dtype int64"),
        (lambda: pf.FBGVI(initial_covariance=np.ones((2, 3))), r"initial_covariance has shape \(2, 3\)"),
        (lambda: pf.FBGVI(initial_covariance=-1.0), "must hold variances > 0, got -1"),
        (lambda: pf.FBGVI(initial_covariance=np.array([[1.0, 2.0], [2.0, 1.0]])), "positive definite.* from -1 to 3"),
        (lambda: pf.FBGVI(initial_covariance=np.array([np.nan])), "must be finite, got nan"),
        (lambda: pf.FBGVI(geometry="cholesky", covariance="low_rank"), "needs a triangular factor"),
        (lambda: pf.FBGVI(blocks=((0,),)), "blocks needs covariance='block', got covariance='full'"),
        (lambda: pf.FBGVI(whiten="laplace", covariance="diagonal"), "whiten='laplace' mixes the coordinates"),
        (lambda: pf.FBGVI(whiten="laplace", initial_covariance=1.0), "whiten='laplace' brings its own covariance"),
        (lambda: pf.FBGVI(whiten="pca"), "whiten must be one of 'pathfinder', 'laplace', 'auto', got 'pca'"),
        (lambda: pf.NGVI(step_size=1.5), r"step_size of a natural gradient must be in \(0, 1\], got 1.5"),
        (lambda: pf.SVRGVI(control="adaptive", expectation="stein"), "adaptive.* needs .*'price', got 'stein'"),
        (lambda: pf.BWSGD(max_variance=0.0), "max_variance must be a finite number > 0"),
        (lambda: pf.BWSGD(covariance="block"), "covariance must be one of 'full', 'diagonal', got 'block'"),
        (lambda: pf.ADVI(optimizer="adam"), "optimizer must be an optax GradientTransformation, got 'adam'"),
        (lambda: pf.Laplace(covariance="low_rank"), "covariance must be one of 'full', 'diagonal'"),
        (lambda: pf.glm_target(np.ones(3), [1.0]), r"design has shape \(3,\)"),
        (lambda: pf.glm_target(np.ones((3, 1)), [1.0]), r"response has shape \(1,\)"),
        (lambda: pf.glm_target(np.ones((1, 1)), [2.0]), "response must be 0 or 1, got 2"),
        (lambda: pf.glm_target(np.ones((1, 1)), [0.5], "poisson"), "response must be counts >= 0, got 0.5"),
        (lambda: pf.glm_target(np.ones((1, 1)), [1.0], "probit"), "likelihood must be one of 'bernoulli'"),
        (lambda: pf.glm_target(np.ones((1, 1)), [1.0], prior_precision=-1.0), "prior_precision must be >= 0, got -1"),
        (lambda: pf.glm_target([[np.inf]], [1.0]), "design must be finite, got inf"),
        (
            lambda: pf.glm_target(np.ones((1, 2)), [1.0], prior_precision=np.array([[1.0, 2.0], [2.0, 1.0]])),
            "prior_precision must be symmetric positive semidefinite",
        ),
    ],
)
def test_refusals(make, said: str) -> None:
    with pytest.raises(pf.InvalidArgument, match=said):
        make()


def test_a_saddle_has_no_laplace_approximation() -> None:
    saddle = pf.Target.from_log_density(lambda x: jnp.sin(x[0]) - 0.0 * x[1], np.zeros(2))
    with pytest.raises(pf.NonFinite, match="Laplace: at none of the 2 points found is -log density convex"):
        quick(saddle, pf.Laplace(max_iterations=20), num_chains=2)


@pytest.mark.slow
def test_start_from_another_result() -> None:
    target, mean, sigma = gaussian(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = quick(target, pf.Laplace(), num_chains=1)
        second = quick(target, pf.FBGVI(num_steps=5, step_size=0.3), start=first)
    # Its variances are the first ones of the run: five steps from 1 could not reach them.
    variances = np.diag(np.asarray(second.approximation.covariance()))
    np.testing.assert_allclose(variances, np.diag(sigma), rtol=0.5)
    assert variances.max() > 4.0
    assert mean.shape == (3,)
