"""Where the particles end, against solutions of the stationary equations; every usual slip ends elsewhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.geometry import Burg
from pushforward.infer.kernels.velocity import velocity

PLAIN = {"optimizer": optax.sgd(0.2), "tolerance": 1e-12, "num_steps": 20_000}


def normal():
    return pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(1))


def gamma():
    numpyro.sample("g", dist.Gamma(3.0, 1.0))


def dirichlet():
    numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 3.0, 5.0])))


def final(target, method, site):
    posterior = pf.fit(target, method, progress=False)
    assert posterior.kind == "particles"
    return posterior.draws()[site]


def to_zero(method, target, y, h):
    """Newton's step of the velocity at y: how far its zero is, to first order."""
    method = dataclasses.replace(method, num_particles=len(y), bandwidth=h)

    def phi(flat):
        cloud = method.locate(target, flat.reshape(y.shape), None)
        h = jnp.asarray(method.bandwidth, float)
        field = velocity(method.kernel, cloud.x, cloud.drift, h, cloud.metric)
        return method.turn(target, cloud, h, field).ravel()

    flat = jnp.asarray(y, float).ravel()
    value, slope = jax.jit(lambda f: (phi(f), jax.jacfwd(phi)(f)))(flat)
    return np.linalg.solve(slope, -np.asarray(value)).reshape(y.shape)


NORMAL = [
    ("rbf", 1.0, [0.634318]),
    ("rbf", 2.0, [0.741152]),
    ("rbf", 10.0, [0.917159]),
    ("imq", 0.5, [np.sqrt(3 / 8)]),
    ("imq", 1.0, [0.684677]),
    ("imq", 2.0, [0.757595]),
    ("rbf", 1.0, [0.0, 0.929780]),
    ("imq", 1.0, [0.0, 0.98478]),
    ("rbf", 1.0, [0.0, 0.463458, 1.286424]),
    ("imq", 1.0, [0.0, 0.50270, 1.31335]),
]


def test_svgd_of_a_normal():
    """Values with five decimals are known to 1e-5, the others to 1e-6."""
    with jax.enable_x64(True):
        for kernel, h, points in NORMAL:
            expected = np.unique([*points, *(-np.asarray(points))])
            step = to_zero(pf.SVGD(kernel=kernel), normal(), expected[:, None], h)
            rounded = kernel == "imq" and expected.size > 2
            assert np.abs(step).max() < (6e-6 if rounded else 1e-6), (kernel, h, points)


@pytest.mark.parametrize(("kernel", "points"), [("rbf", [0.0, 0.463458, 1.286424]), ("imq", [0.684677])])
def test_svgd_gets_there(kernel, points):
    expected = np.unique([*points, *(-np.asarray(points))])
    # From an ordered start, as an RBF has stable points with merged particles, too.
    start = np.linspace(-1.5, 1.4, expected.size)[:, None]
    method = pf.SVGD(num_particles=expected.size, kernel=kernel, bandwidth=1.0, initial=start, **PLAIN)
    np.testing.assert_allclose(np.sort(final(normal(), method, "x").ravel()), expected, atol=1e-6)


GAMMA = {
    ("imq", 2): [1.899304, 3.852658],
    ("imq", 3): [1.466560, 2.711283, 4.395450],
    ("imq", 5): [1.120746, 1.931014, 2.667835, 3.593691, 5.091294],
    ("rbf", 5): [1.102912, 1.901209, 2.589518, 3.428087, 4.718800],
}
SLIPS = {
    "no ∇·P": [0.524, 1.111, 1.670, 2.424, 3.775],
    "no P in the repulsion": [1.687, 2.497, 3.000, 3.503, 4.313],
    "P at the receiver": [1.426, 2.255, 3.083, 4.118, 5.703],
}


@pytest.mark.parametrize("method", [pf.MirroredSVGD, pf.SVMD])
def test_mirrored_particles_of_a_gamma(method):
    """Of both, as SVMD has the zeros of MirroredSVGD; the points to which the usual slips lead are no zeros."""
    target = pf.Target.from_numpyro(gamma)
    with jax.enable_x64(True):
        for (kernel, _), points in GAMMA.items():
            y = np.log(points)[:, None]
            step = to_zero(method(kernel=kernel), target, y, 1.0)[:, 0] * points
            assert np.abs(step).max() < 1e-6, (kernel, points)
        for name, points in SLIPS.items():
            step = to_zero(method(), target, np.log(points)[:, None], 1.0)[:, 0]
            assert np.abs(step).max() > 0.1, name


@pytest.mark.parametrize("method", [pf.MirroredSVGD, pf.SVMD])
def test_mirrored_particles_get_there(method):
    start = {"g": np.linspace(1.2, 4.6, 5)}
    run = method(num_particles=5, bandwidth=1.0, initial=start, **PLAIN)
    found = final(pf.Target.from_numpyro(gamma), run, "g")
    np.testing.assert_allclose(np.sort(found), GAMMA["imq", 5], atol=1e-6)


@pytest.mark.parametrize(
    ("method", "point"),
    [
        (pf.MirroredSVGD(num_particles=1, **PLAIN), np.array([0.2, 0.3, 0.5])),
        (pf.SVMD(num_particles=1, **PLAIN | {"optimizer": optax.sgd(0.05)}), np.array([0.2, 0.3, 0.5])),
        (
            pf.SVMD(num_particles=1, correction=True, **PLAIN | {"optimizer": optax.sgd(0.05)}),
            np.array([1.0, 2.0, 4.0]) / 7,
        ),
    ],
    ids=["MSVGD", "SVMD", "SVMD corrected"],
)
def test_one_particle_of_a_dirichlet(method, point):
    """The mean α/α₀, the mode of the dual density; with the correction the mode (α − 1)/(α₀ − 3)."""
    posterior = pf.fit(pf.Target.from_numpyro(dirichlet), method, progress=False)
    np.testing.assert_allclose(posterior.draws()["p"][0], point, atol=2e-6)
    assert "not a sample" in str(posterior.diagnose())


def test_one_particle_of_a_box_and_of_a_half_line():
    box = pf.Target.from_log_density(lambda x: jnp.zeros(()), 0.5, constraints.interval(-1.0, 1.0))
    assert final(box, pf.MirroredSVGD(num_particles=1, **PLAIN), "x")[0] == pytest.approx(0, abs=1e-6)
    target = pf.Target.from_numpyro(gamma)
    assert final(target, pf.MirroredSVGD(num_particles=1, **PLAIN), "g")[0] == pytest.approx(3, abs=1e-6)
    corrected = pf.SVMD(num_particles=1, correction=True, **PLAIN)
    assert final(target, corrected, "g")[0] == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("method", [pf.MirroredSVGD, pf.SVMD])
def test_on_the_real_line_the_mirror_is_none(method):
    target = pf.Target.from_log_density(lambda x: -0.25 * jnp.sum(x**4) - 0.1 * x[0] * x[1], np.zeros(2))
    rng = np.random.default_rng(0)
    short = {"num_particles": 20, "num_steps": 30, "initial": rng.normal(size=(20, 2)), "bandwidth": 1.0}
    options = {"jitter": 1e-12} if method is pf.SVMD else {}
    np.testing.assert_allclose(
        final(target, method(**short, **options), "x"), final(target, pf.SVGD(**short), "x"), atol=1e-7
    )


def test_the_dual_kernel_is_svgd_through_the_bijector():
    """y = log x is NumPyro's bijector of a positive site, too."""
    target = pf.Target.from_numpyro(gamma)
    short = {"num_particles": 10, "num_steps": 30, "initial": {"g": np.linspace(1.0, 5.0, 10)}}
    dual = final(target, pf.MirroredSVGD(space="dual", **short), "g")
    np.testing.assert_allclose(dual, final(target, pf.SVGD(**short), "g"), rtol=1e-10)


def test_a_larger_optimiser_step_in_a_half_dual_is_halved():
    """The dual of the logarithmic barrier is y < 0 only: −0.1 + 1 and its halves are outside down to −0.1 + 1/16."""
    target = pf.Target.from_numpyro(gamma)
    method = pf.MirroredSVGD(num_particles=20, mirror={"g": Burg()}, learning_rate=0.01)
    with jax.enable_x64(True):
        y = jnp.array([[-0.1], [-2.0]])
        np.testing.assert_allclose(method.moved(target, y, jnp.ones((2, 1))), [[-0.0375], [-1.0]], atol=1e-15)
    found = final(target, method, "g")
    assert np.all(found > 0)
    assert found.mean() == pytest.approx(3.0, abs=0.3)


def test_the_dual_score_of_exact_draws_has_mean_zero():
    """E[α − α₀ θ] = 0 for any α > 0, a Dirichlet unbounded at its boundary included."""
    from pushforward.samplers.stein.svgd import MirroredSVGD

    alpha = np.array([0.1, 0.2, 0.7, 3.0])
    target = pf.Target.from_numpyro(lambda: numpyro.sample("p", dist.Dirichlet(jnp.asarray(alpha))))
    with jax.enable_x64(True):
        theta = np.random.default_rng(0).dirichlet(alpha, 500)
        logs = np.log(np.maximum(theta, 1e-280))
        y = jnp.asarray(logs[:, :-1] - logs[:, -1:])
        drift = MirroredSVGD().locate(target, y, None).drift
        np.testing.assert_allclose(drift, alpha[:-1] - alpha.sum() * theta[:, :-1], atol=1e-9)
