"""Velocities of the samplers against their definitions: autodiff in the dual, eigenfunctions, explicit metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.linalg import sqrtm

import pushforward as pf
from pushforward.infer.geometry import (
    Affine,
    BoltzmannShannon,
    EllipsoidBarrier,
    Euclidean,
    FermiDirac,
    Product,
    SimplexBarrier,
    SimplexEntropy,
)
from pushforward.infer.kernels.metric import apply
from pushforward.infer.kernels.velocity import velocity
from pushforward.samplers.stein.spaces import inverse_hessians

H = 0.7

MIRRORS = {
    "simplex": (SimplexEntropy(), 3),
    "barrier": (SimplexBarrier(), 3),
    "positive": (BoltzmannShannon(), 2),
    "box": (Affine(FermiDirac(), -1.0, np.array([2.0, 3.0])), 2),
    "scaled simplex": (Affine(SimplexEntropy(), 0.5, np.array([1.0, 2.0, 3.0])), 3),
    "ball": (EllipsoidBarrier(1.0), 3),
    "product": (Product((SimplexEntropy(), Euclidean(), Affine(Euclidean(), 0.0, 2.0)), (2, 1, 2)), 5),
}


def imq(x, y):
    return (1 + jnp.sum((x - y) ** 2) / H) ** -0.5


@pytest.mark.parametrize("name", MIRRORS)
def test_mirrored_velocity_is_svgd_in_the_dual(name):
    """With log density 0 in x: b = ∇ log det ∇²φ*, and the kernel of the primal points, by autodiff in y."""
    mirror, d = MIRRORS[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        y = jnp.asarray(0.7 * rng.normal(size=(12, d)))

        def dual_log_density(y):
            point = mirror.from_dual(y)
            return jnp.sum(jnp.sin(point.x)) - mirror.log_det_hess(point)

        pulled = lambda a, b: imq(mirror.from_dual(a).x, mirror.from_dual(b).x)  # noqa: E731

        def one(yi):
            value = jax.vmap(lambda a: pulled(a, yi))(y)
            gradient = jax.vmap(lambda a: jax.grad(pulled)(a, yi))(y)
            return jnp.mean(value[:, None] * jax.vmap(jax.grad(dual_log_density))(y) + gradient, axis=0)

        points = jax.vmap(mirror.from_dual)(y)
        metric = inverse_hessians(mirror, points)
        v = jnp.asarray(rng.normal(size=y.shape))
        np.testing.assert_allclose(apply(metric, v), jax.vmap(mirror.inv_hess_mv)(points, v), atol=1e-12)
        drift = jax.vmap(mirror.inv_hess_mv)(points, jnp.cos(points.x)) + jax.vmap(mirror.div_inv_hess)(points)
        phi = velocity("imq", points.x, drift, jnp.asarray(H), metric, tile=5)
        np.testing.assert_allclose(phi, jax.vmap(one)(y), atol=1e-11)


def gram_of(x):
    return jax.vmap(lambda a: jax.vmap(lambda b: imq(a, b))(x))(x)


def four_shares():
    numpyro.sample("p", dist.Dirichlet(jnp.array([2.0, 0.5, 3.0, 1.5])))


@pytest.mark.parametrize(("spectrum", "correction"), [(1.0, False), (0.99, False), (1.0, True)])
def test_svmd_is_its_sum_over_eigenfunctions(spectrum, correction):
    """φ_k = (1/n) Σ_l K_ψ(x_k, x_l) b_l + P_l ∇_l K_ψ, K_ψ = Σ_ij √(λ_i λ_j) u_i u_j Γ_ij, u_i extended by Nyström.

    Γ_ij is the mean of u_i u_j H; the correction is its derivative with respect to x_l, where ∇H P = −H ∇·P.
    """
    target, n = pf.Target.from_numpyro(four_shares), 8
    method = pf.SVMD(num_particles=n, spectrum=spectrum, correction=correction, jitter=1e-10)
    with jax.enable_x64(True):
        cloud = method.locate(target, jnp.asarray(3 * np.random.default_rng(1).normal(size=(n, 3))), None)
        mirror, points, x, drift = SimplexEntropy(), jax.vmap(SimplexEntropy().at)(cloud.x), cloud.x, cloud.drift
        values, vectors = jnp.linalg.eigh(gram_of(x) + 1e-10 * jnp.eye(n))
        values, vectors = values[::-1], vectors[:, ::-1]
        shares = np.cumsum(np.asarray(values)) / float(values.sum())
        r = min(n, int(np.sum(shares < spectrum)) + 1) if spectrum < 1 else n
        assert spectrum == 1 or 1 < r < n
        lam, u = values[:r] / n, np.sqrt(n) * vectors[:, :r]
        gradient = jax.vmap(lambda a: jax.vmap(lambda b: jax.grad(imq)(a, b))(x))(x)  # [l, m] = ∇₁k(x_l, x_m)
        du = np.sqrt(n) * jnp.einsum("lma,mi->lia", gradient, vectors[:, :r]) / values[:r, None]
        basis = jnp.eye(3)
        hessians = jax.vmap(lambda p: jax.vmap(lambda v: mirror.hess_mv(p, v))(basis))(points)
        inverses = jax.vmap(lambda p: jax.vmap(lambda v: mirror.inv_hess_mv(p, v))(basis))(points)
        gamma = jnp.einsum("mi,mj,mab->ijab", u, u, hessians) / n
        root = jnp.sqrt(lam[:, None] * lam)
        expected = jnp.einsum("ij,ki,lj,ijab,lb->ka", root, u, u, gamma, drift)
        expected += jnp.einsum("ij,ki,ljc,ijab,lbc->ka", root, u, du, gamma, inverses)
        if correction:
            turned = jax.vmap(lambda p: mirror.hess_mv(p, mirror.div_inv_hess(p)))(points)
            change = jnp.einsum("lia,lj->lija", du, u) + jnp.einsum("li,lja->lija", u, du)
            change -= jnp.einsum("li,lj,la->lija", u, u, turned)
            expected += jnp.einsum("ij,ki,lj,lija->ka", root, u, u, change) / n

        phi = velocity("imq", x, drift, jnp.asarray(H), cloud.metric)
        found = method.turn(target, cloud, jnp.asarray(H), phi)
        np.testing.assert_allclose(found, expected / n, rtol=1e-7, atol=1e-8 * np.abs(expected).max())


def test_svng_turns_by_the_metric_of_each_particle():
    """G_i⁻¹ Σ_m (K½)_im G_m Σ_j (K₋½)_mj φ⁰_j, with roots of the Gram matrix by SciPy."""

    def metric(u):
        return jnp.diag(1 + u**2) + 0.3

    target = pf.Target.from_log_density(lambda x: -0.25 * jnp.sum(x**4), np.zeros(2))
    with jax.enable_x64(True):
        y, h = jnp.asarray(2 * np.random.default_rng(4).normal(size=(6, 2))), jnp.asarray(H)
        method = pf.SVNG(num_particles=6, metric=metric, damping=0.0, jitter=0.0)
        cloud = method.locate(target, y, None)
        phi = np.random.default_rng(5).normal(size=(6, 2))
        half = np.real(sqrtm(np.asarray(gram_of(y))))
        matrices = np.asarray(jax.vmap(metric)(y))
        inner = np.einsum("nab,nb->na", matrices, np.linalg.inv(half) @ phi)
        expected = np.linalg.solve(matrices, (half @ inner)[..., None])[..., 0]
        np.testing.assert_allclose(method.turn(target, cloud, h, jnp.asarray(phi)), expected, rtol=1e-9)


def test_svng_drift_holds_the_divergence_of_the_inverse_metric():
    """G⁻¹s + ∇·G⁻¹ by explicit derivatives of the inverse."""

    def metric(u):
        a = jnp.stack([jnp.sin(u), jnp.cos(u[::-1]), u])
        return a.T @ a + jnp.eye(3)

    target = pf.Target.from_log_density(lambda x: -0.25 * jnp.sum(x**4), np.zeros(3))
    with jax.enable_x64(True):
        y = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)))
        cloud = pf.SVNG(num_particles=4, metric=metric, damping=0.0).locate(target, y, None)
        inverse = lambda u: jnp.linalg.inv(metric(u))  # noqa: E731
        divergence = jax.vmap(lambda u: jnp.einsum("abb->a", jax.jacfwd(inverse)(u)))(y)
        expected = jnp.einsum("nab,nb->na", jax.vmap(inverse)(y), -(y**3)) + divergence
        np.testing.assert_allclose(cloud.drift, expected, atol=1e-12)
        assert np.abs(divergence).max() > 0.1


@pytest.mark.parametrize("given", ["hessian", "function"])
def test_a_constant_metric_makes_svng_svgd_of_whitened_particles(given):
    """With one G for all, Φ = G⁻¹ times the velocity of SVGD, whatever the Gram matrix; one metric or n equal ones."""
    numbers = np.array([[2.0, 0.3], [0.3, 0.5]])
    target = pf.Target.from_log_density(lambda x: -0.5 * x @ jnp.asarray(numbers) @ x, np.zeros(2))
    with jax.enable_x64(True):
        g = jnp.asarray(numbers)
        metric = given if given == "hessian" else lambda u: g
        method = pf.SVNG(num_particles=10, metric=metric, damping=0.0, jitter=0.0)
        y, h = jnp.asarray(np.random.default_rng(3).normal(size=(10, 2))), jnp.asarray(H)
        cloud = method.locate(target, y, None)
        phi = velocity("imq", y, cloud.drift, h, cloud.metric)
        expected = jnp.linalg.solve(g, velocity("imq", y, -(y @ g), h).T).T
        np.testing.assert_allclose(method.turn(target, cloud, h, phi), expected, atol=1e-9)


def test_simplex_values_come_from_log_probabilities():
    """Where x sums to 1 in floating point the last probability is still right, and its score finite."""
    target = pf.Target.from_numpyro(lambda: numpyro.sample("p", dist.Dirichlet(jnp.full(3, 0.1)).expand([2])))
    with jax.enable_x64(True):
        y = jnp.array([[50.0, 0.0, 3.0, -80.0]])
        drift = pf.MirroredSVGD(num_particles=1).locate(target, y, None).drift
        theta = np.exp(np.asarray(jax.nn.log_softmax(jnp.array([[50.0, 0.0, 0.0], [3.0, -80.0, 0.0]]))))
        np.testing.assert_allclose(drift[0], (0.1 - 0.3 * theta[:, :2]).ravel(), atol=1e-12)
