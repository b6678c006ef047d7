"""The two halves of a step, and their fixed points, against closed forms; wrong versions of each formula fail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm

import pushforward as pf
from pushforward.infer.linalg import Spectral, entropy_prox

from .helpers import POISSON, covariance, gaussian, iterate, normal_kl, poisson, poisson_rate, regression


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def spd(rng, d, low=0.2, high=3.0):
    q, _ = np.linalg.qr(rng.normal(size=(d, d)))
    return q @ np.diag(rng.uniform(low, high, d)) @ q.T


def jko(sigma, step, two=2.0, four=4.0, half=0.5, product=True):
    """The proximal step in matrix form; the options make wrong ones."""
    root = np.real(sqrtm(sigma @ (sigma + four * step * np.eye(len(sigma))) if product else sigma))
    return half * (sigma + two * step * np.eye(len(sigma)) + root)


def objective(new, old, step):
    """−½ log det T + W₂²(Σ, T) / (2 step)."""
    root = np.real(sqrtm(old))
    w2 = np.trace(new + old - 2 * np.real(sqrtm(root @ new @ root)))
    return -0.5 * np.linalg.slogdet(new)[1] + w2 / (2 * step)


def beaten(candidate, old, step, rng, tries=200):
    """Number of random symmetric perturbations that are better than the candidate."""
    best, count = objective(candidate, old, step), 0
    for scale in (1e-2, 1e-1):
        for _ in range(tries // 2):
            e = rng.normal(size=old.shape) * scale
            new = candidate + 0.5 * (e + e.T)
            if np.linalg.eigvalsh(new)[0] > 0:
                count += objective(new, old, step) < best - 1e-12
    return count


def test_proximal_step_minimises_its_objective() -> None:
    rng = np.random.default_rng(0)
    sigma, step = spd(rng, 3), 0.4
    values, vectors = np.linalg.eigh(sigma)
    factor = Spectral(jnp.asarray(vectors), jnp.sqrt(jnp.asarray(values)))
    new = factor.step(jnp.zeros((3, 3)), jnp.asarray(step), entropy_prox(step)).covariance()
    np.testing.assert_allclose(new, jko(sigma, step), rtol=0, atol=1e-12)
    np.testing.assert_allclose(new @ sigma, sigma @ new, atol=1e-12)
    assert beaten(np.asarray(new), sigma, step, rng) == 0
    for wrong in ({"two": 0.0}, {"four": 2.0}, {"half": 1.0}, {"product": False}):
        assert beaten(jko(sigma, step, **wrong), sigma, step, rng) > 0, wrong


def test_proximal_step_of_a_number() -> None:
    assert float(entropy_prox(0.3)(1.7)) == pytest.approx(1.861187, abs=5e-7)
    assert float(entropy_prox(0.3)(0.0)) == pytest.approx(np.sqrt(0.3))


def test_a_step_on_the_factor_is_the_step_on_the_covariance() -> None:
    target, mean, sigma = gaussian()
    precision, step = np.linalg.inv(sigma), 0.5
    start, first = np.array([1.0, -1.0, 0.5, 2.0]), spd(np.random.default_rng(1), 4)
    method = pf.FBGVI(step_size=step, initial_covariance=first, schedule="constant")
    state, _ = iterate(method, target, start, steps=1)
    m = np.eye(4) - step * precision
    np.testing.assert_allclose(state.mean, start - step * precision @ (start - mean), atol=1e-12)
    np.testing.assert_allclose(covariance(state), jko(m @ first @ m, step), atol=1e-12)
    assert not np.allclose(covariance(state), jko(m @ first, step), atol=1e-3)  # M not squared


def test_a_gaussian_target_is_a_fixed_point() -> None:
    target, mean, sigma = gaussian()
    method = pf.FBGVI(step_size=0.5, initial_covariance=sigma, schedule="constant")
    state, infos = iterate(method, target, mean, steps=5)
    np.testing.assert_allclose(covariance(state), sigma, atol=1e-12)
    np.testing.assert_allclose(state.mean, mean, atol=1e-12)
    assert np.all(np.asarray(infos.gradient_norm) < 1e-20)


def test_monotone_contraction_and_the_spectrum_stays_inside() -> None:
    # Properties 1 and 2 of the method for a step of 1/β: F decreases, W₂ contracts by 1 − αη, α ≤ Λ ≤ β is kept.
    target, mean, sigma = gaussian(4, 0.2, 1.0)
    rng = np.random.default_rng(2)
    for _ in range(3):
        old_mean, old = rng.normal(size=4), spd(rng, 4, 1.0, 5.0)
        for _ in range(4):
            method = pf.FBGVI(step_size=1.0, initial_covariance=old, schedule="constant")
            state, _ = iterate(method, target, old_mean, steps=1)
            new_mean, new = np.asarray(state.mean), covariance(state)
            assert normal_kl(new_mean, new, mean, sigma) <= normal_kl(old_mean, old, mean, sigma) + 1e-12
            assert w2(new_mean, new, mean, sigma) <= (1 - 0.2) * w2(old_mean, old, mean, sigma) + 1e-12
            values = np.linalg.eigvalsh(new)
            assert values[0] >= 1.0 - 1e-9
            assert values[-1] <= 5.0 + 1e-9
            old_mean, old = new_mean, new


def w2(m0, s0, m1, s1):
    root = np.real(sqrtm(s0))
    return np.sum((m0 - m1) ** 2) + np.trace(s0 + s1 - 2 * np.real(sqrtm(root @ s1 @ root)))


def test_optimum_of_a_poisson_posterior() -> None:
    # Not the mode with its curvature (0.792060, 0.311727), not the posterior's moments (0.687266, 0.322806).
    method = pf.FBGVI(expectation="gauss_hermite", step_size=0.15, schedule="constant")
    state, infos = iterate(method, poisson(), steps=400)
    assert float(state.mean[0]) == pytest.approx(POISSON["mean"], abs=1e-11)
    assert float(covariance(state)[0, 0]) == pytest.approx(POISSON["variance"], abs=1e-11)
    prior = -0.5 * np.log(2 * np.pi)
    assert float(infos.elbo[-1]) == pytest.approx(prior - POISSON["f"], abs=1e-11)
    assert float(infos.gradient_norm[-1]) < 1e-22


def test_optimum_of_a_quartic() -> None:
    target = pf.glm_target(np.ones((1, 1)), [0.0], lambda z, y: -(z**4) / 4, prior_precision=0.0)
    method = pf.FBGVI(expectation="gauss_hermite", step_size=0.05, schedule="constant")
    state, _ = iterate(method, target, steps=600)
    assert float(covariance(state)[0, 0]) == pytest.approx(3**-0.5, abs=1e-10)
    assert abs(float(state.mean[0])) < 1e-12


METHODS = {
    "bures": pf.FBGVI(expectation="gauss_hermite", num_steps=2000, schedule="constant"),
    "cholesky": pf.FBGVI(expectation="gauss_hermite", num_steps=2000, geometry="cholesky", schedule="constant"),
    "BWSGD": pf.BWSGD(expectation="gauss_hermite", num_steps=2000),
    "NGVI": pf.NGVI(expectation="gauss_hermite", schedule="constant", step_size=0.2),
    "SqrtNGVI": pf.SqrtNGVI(expectation="gauss_hermite", schedule="constant", step_size=0.2),
    "ADVI": pf.ADVI(expectation="gauss_hermite", num_steps=3000, step_size=0.01),
}


SLOW = ("cholesky", "BWSGD", "ADVI")  # to compile; the laws see them too


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in METHODS])
def test_all_methods_have_the_same_optimum(name: str) -> None:
    # E∇V = 0 and E∇²V = Σ⁻¹, here by quadrature that does not use the package.
    target, method = regression(), METHODS[name]
    state, _ = iterate(method, target, steps=method.num_steps)
    m, s = np.asarray(state.mean), covariance(state)
    x, w = np.polynomial.hermite_e.hermegauss(40)
    z = (target.design @ m)[:, None] + np.sqrt(np.einsum("ni,ij,nj->n", target.design, s, target.design))[:, None] * x
    rate = np.exp(z) @ (w / w.sum())
    tolerance = 2e-3 if name == "ADVI" else 2e-8  # Adam oscillates
    np.testing.assert_allclose(0.5 * m + target.design.T @ (rate - target.response), 0, atol=tolerance)
    precision = 0.5 * np.eye(3) + target.design.T @ (rate[:, None] * target.design)
    np.testing.assert_allclose(s @ precision, np.eye(3), atol=tolerance)


@pytest.mark.parametrize(
    "cls", [pf.FBGVI, *(pytest.param(cls, marks=pytest.mark.slow) for cls in (pf.NGVI, pf.SqrtNGVI))]
)
def test_diagonal_family(cls) -> None:
    target, mean, sigma = gaussian()
    precision = np.linalg.inv(sigma)
    state, _ = iterate(cls(covariance="diagonal", num_steps=1500), target, steps=1500)
    np.testing.assert_allclose(state.factor.scale**2, 1 / np.diag(precision), rtol=1e-6)
    np.testing.assert_allclose(state.mean, mean, atol=1e-2)
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert normal_kl(mean, covariance(state), mean, sigma) == pytest.approx(gap, abs=1e-6)


@pytest.mark.parametrize("geometry", ["bures", pytest.param("cholesky", marks=pytest.mark.slow)])
def test_blocks(geometry: str) -> None:
    # Σ_b = (P_bb)⁻¹; blocks of unequal size, out of order.
    target, _, sigma = gaussian(5, 0.2, 1.0)
    precision = np.linalg.inv(sigma)
    blocks = ((3, 0), (1, 4), (2,))
    method = pf.FBGVI(covariance="block", blocks=blocks, geometry=geometry, num_steps=400)
    state, _ = iterate(method, target, steps=400)
    expected = np.zeros((5, 5))
    for block in blocks:
        expected[np.ix_(block, block)] = np.linalg.inv(precision[np.ix_(block, block)])
    np.testing.assert_allclose(covariance(state), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("expectation", "tolerance"), [pytest.param("price", 0.1, marks=pytest.mark.slow), ("stein", 0.2)]
)
def test_low_rank_plus_isotropic(expectation: str, tolerance: float) -> None:
    # The two widest directions of the target exactly; the rest has the inverse of their mean precision.
    rng = np.random.default_rng(5)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    values = np.array([0.02, 0.1, 0.6, 0.8, 0.9, 1.0])
    target = pf.Target.from_log_density(quadratic_at, np.zeros(6), data=basis @ np.diag(values) @ basis.T)
    expected = basis @ np.diag([50.0, 10.0, *[4 / 3.3] * 4]) @ basis.T
    method = pf.FBGVI(covariance="low_rank", rank=2, expectation=expectation, num_steps=2000)
    state, _ = iterate(method, target, steps=2000)
    assert np.linalg.norm(np.linalg.solve(expected, covariance(state)) - np.eye(6), 2) < tolerance


def quadratic_at(x, precision):
    return -0.5 * x @ precision @ x


def test_a_step_above_one_over_the_curvature_converges_to_a_wrong_variance() -> None:
    target = pf.Target.from_log_density(quadratic_at, np.zeros(1), data=np.eye(1))
    with pytest.warns(RuntimeWarning, match=r"step_size × curvature was above 1 in 100% of the steps \(up to 1.5\)"):
        posterior = pf.fit(target, pf.FBGVI(step_size=1.5, schedule="constant", num_steps=200), progress=False)
    assert float(posterior.approximation.covariance()[0, 0]) == pytest.approx(3.0, abs=1e-9)
    assert posterior.iterations["step_times_curvature"][0, -1] == pytest.approx(1.5)
    found = posterior.diagnose()["step size"]
    assert (found.level, found.value) == ("warning", pytest.approx(1.5))
    assert "step_size=0.5" in found.message
    with pytest.raises(pf.NonFinite, match=r"FBGVI diverges: step_size × curvature was 2\.5 .* at most 0\.5"):
        pf.fit(target, pf.FBGVI(step_size=2.5, schedule="constant", num_steps=200), progress=False)


def test_laplace_is_the_mode_with_its_curvature() -> None:
    posterior = pf.fit(poisson(), pf.Laplace(), progress=False)
    approximation = posterior.approximation
    assert float(approximation.mean()[0]) == pytest.approx(0.792060, abs=5e-7)
    assert float(approximation.covariance()[0, 0]) == pytest.approx(0.311727, abs=5e-7)
    assert posterior.diagnose()["mode"].value < 1e-10


def test_user_likelihood_is_the_named_one() -> None:
    named = pf.glm_target(np.eye(1), [3.0], "poisson")
    own = pf.glm_target(np.eye(1), [3.0], poisson_rate)
    u = jnp.array([0.3])
    assert float(named.log_density(u) - own.log_density(u)) == pytest.approx(-np.log(6.0))
