"""Stationary moments of every Langevin kernel in one dimension, by quadrature, against an independent computation.

f = x²/2 or 0, g = |x|, hyperbolic entropy β = 0.7 for mirrors and envelopes. A halved noise, a lost log-determinant, a
stale gradient or a wrong envelope moves them in the second digit.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.geometry import FermiDirac, HyperbolicEntropy
from pushforward.infer.geometry.prox import L1, UserTerm
from pushforward.infer.geometry.term import AbstractTerm
from pushforward.infer.target.primal import primal
from pushforward.samplers.langevin import mapla
from pushforward.samplers.langevin.mirrored import mirror_log_ratio

from .kernels import Kernel, acceptance, covariance, laplace, make, proposals, second_moments

ENTROPY = HyperbolicEntropy(0.7)
DUAL, PRIMAL = np.linspace(-4.2, 4.2, 1001), np.linspace(-9.0, 9.0, 1501)
WIDE_DUAL, WIDE = np.linspace(-5.2, 5.2, 1201), np.linspace(-20.0, 20.0, 2001)


def myula(**options):
    return pf.BregmanProximalLangevin(adjusted=False, **options)


def bregman(side: str, **options):
    return pf.BregmanProximalLangevin(mirror=ENTROPY, envelope=ENTROPY, side=side, adjusted=False, **options)


METHODS = {
    "MYULA": (lambda s: myula(smoothing=s), PRIMAL),
    "ULA": (lambda s: pf.MirrorLangevin(adjusted=False), PRIMAL),
    "PGLD": (lambda s: pf.ProximalLangevin(scheme="pgld"), PRIMAL),
    "FBULA": (lambda s: pf.ProximalLangevin(scheme="fbula", smoothing=s), PRIMAL),
    "LBMUMLA": (lambda s: bregman("left", smoothing=s), DUAL),
    "RBMUMLA": (lambda s: bregman("right", smoothing=s), DUAL),
    "MLA + Moreau": (lambda s: pf.BregmanProximalLangevin(mirror=ENTROPY, adjusted=False, smoothing=s), DUAL),
}
SETTINGS = [(1.0, 0.05, 0.25), (1.0, 0.1, 0.25), (1.0, 0.01, 0.05), (0.0, 0.05, 0.25)]
GOLD = {
    "MYULA": [(0.51635, 0.55621), (0.55550, 0.58152), (0.48208, 0.53097), (2.0678, 1.0300)],
    "ULA": [(0.51228, 0.55304), (0.55462, 0.58092), (0.48189, 0.53079), (2.0555, 1.0249)],
    "PGLD": [(0.52812, 0.56197), (0.58479, 0.59682), (0.48515, 0.53275), (2.0549, 1.0246)],
    "FBULA": [(0.73849, 0.66601), (0.77414, 0.68547), (0.51583, 0.54960), (2.0678, 1.0300)],
    "LBMUMLA": [(0.54524, 0.56249), (0.59235, 0.58213), (0.48824, 0.53263), (2.6236, 1.1395)],
    "RBMUMLA": [(0.54240, 0.56088), (0.58953, 0.58065), (0.48810, 0.53255), (2.5786, 1.1297)],
    "MLA + Moreau": [(0.52055, 0.55025), (0.56707, 0.56984), (0.48254, 0.52950), (2.1271, 1.0331)],
}
PSGLA = [(0.47437, 0.51351), (0.47505, 0.50244), (0.47459, 0.52282), (1.9549, 0.9757)]


@pytest.fixture(autouse=True)
def sixty_four_bits():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("setting", range(4))
@pytest.mark.parametrize("name", METHODS)
def test_unadjusted(name: str, setting: int) -> None:
    quadratic, step, smoothing = SETTINGS[setting]
    build, grid = METHODS[name]
    if quadratic == 0:
        grid = WIDE if grid is PRIMAL else WIDE_DUAL
    kernel = make(build(smoothing), laplace(quadratic), step)
    np.testing.assert_allclose(second_moments(kernel, grid), GOLD[name][setting], atol=5e-4 if quadratic == 0 else 2e-4)


@pytest.mark.parametrize("setting", range(4))
def test_psgla(setting: int) -> None:
    """Its draws are proximal points of normal ones: the law of the latter is on the grid."""
    quadratic, step, _ = SETTINGS[setting]
    method = pf.ProximalLangevin(scheme="psgla")
    kernel = make(method, laplace(quadratic), step)
    term = kernel.target.nonsmooth
    bare = dataclasses.replace(kernel.target.target, nonsmooth=UserTerm(lambda x: jnp.sum(jnp.abs(x)), lambda v, s: v))
    bare = dataclasses.replace(kernel.target, target=bare)
    grid = PRIMAL if quadratic else WIDE
    shrunk = jax.vmap(lambda v: term.prox(v[None], step)[0])(jnp.asarray(grid))
    mean, sd, _ = proposals(Kernel(method, bare, kernel.mirror, kernel.step), np.asarray(shrunk))
    from pushforward.infer.diagnostics.stationary import stationary_moments

    seen = stationary_moments(mean, sd, grid, np.asarray(shrunk), lambda x: np.stack([x**2, np.abs(x)]))
    np.testing.assert_allclose(seen, PSGLA[setting], atol=5e-4 if quadratic == 0 else 2e-4)


@pytest.mark.parametrize(("step", "expected"), [(0.2, 1.2208), (0.1, 1.0876), (0.05, 1.0403), (0.025, 1.0194)])
def test_mirror_langevin_on_a_normal(step: float, expected: float) -> None:
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(1))
    kernel = make(pf.MirrorLangevin(mirror=ENTROPY, adjusted=False), target, step)
    assert second_moments(kernel, DUAL)[0] == pytest.approx(expected, abs=5e-4)


ADJUSTED = {
    "MYMALA": (pf.BregmanProximalLangevin, {"smoothing": 0.25}, np.linspace(-5.0, 5.0, 1001)),
    "MAMLA": (pf.MirrorLangevin, {"mirror": ENTROPY}, DUAL),
    "left": (pf.BregmanProximalLangevin, {"mirror": ENTROPY, "envelope": ENTROPY, "smoothing": 0.25}, DUAL),
    "right": (
        pf.BregmanProximalLangevin,
        {"mirror": ENTROPY, "envelope": ENTROPY, "smoothing": 0.25, "side": "right"},
        DUAL,
    ),
}


@pytest.mark.parametrize("name", ADJUSTED)
def test_adjusted_is_exact(name: str) -> None:
    cls, options, grid = ADJUSTED[name]
    kernel = make(cls(**options), laplace(1.0), 0.1)

    def ratio(old, new):
        return mirror_log_ratio(kernel.mirror, old, new, kernel.step)

    np.testing.assert_allclose(second_moments(kernel, grid, ratio), (0.47486, 0.52514), atol=5e-5)


@pytest.mark.parametrize(
    ("name", "step", "expected"), [("left", 0.1, 0.924), ("MYMALA", 0.1, 0.949), ("MYMALA", 0.5, 0.711)]
)
def test_acceptance(name: str, step: float, expected: float) -> None:
    cls, options, grid = ADJUSTED[name]
    kernel = make(cls(**options), laplace(1.0), step)
    found = acceptance(kernel, grid, lambda old, new: mirror_log_ratio(kernel.mirror, old, new, kernel.step))
    assert found == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("power", "expected"), [(0.5, 0.32027), (0.0, 0.26746), (-0.5, 0.22608)])
def test_a_wrong_log_determinant_is_seen(power: float, expected: float) -> None:
    """What MAMLA would sample with another multiple of log det H than 3/2."""
    kernel = make(pf.BregmanProximalLangevin(mirror=ENTROPY, smoothing=0.25), laplace(1.0), 0.1)

    def ratio(old, new):
        log_det = kernel.mirror.log_det_hess(old.point) - kernel.mirror.log_det_hess(new.point)
        return mirror_log_ratio(kernel.mirror, old, new, kernel.step) + (power - 1.5) * log_det

    assert second_moments(kernel, np.linspace(-4, 4, 1001), ratio)[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("sign", "mean"), [(1, 0.6), (-1, 0.549), (0, 0.566)])
def test_mapla_on_a_beta(sign: int, mean: float) -> None:
    """Beta(3, 2) under a barrier of both ends, and what two wrong log-determinants would give."""
    from pushforward.infer.diagnostics.stationary import stationary_law
    from pushforward.infer.geometry import SimplexBarrier

    def log_beta(x):
        return jnp.sum(2 * jnp.log(x) + jnp.log1p(-x))

    target = pf.Target.from_log_density(log_beta, np.full(1, 0.5))
    kernel = make(pf.MAPLA(mirror=SimplexBarrier()), target, 0.05)
    grid = np.linspace(0, 1, 1202)[1:-1]
    places = jax.vmap(lambda x: kernel.method.locate(kernel.target, kernel.mirror, kernel.mirror.at(x[None])))(
        jnp.asarray(grid)
    )
    curvature = 1 / grid**2 + 1 / (1 - grid) ** 2
    drift = -(2 / grid - 1 / (1 - grid))

    def ratio(old, new):
        log_det = kernel.mirror.log_det_hess(new.point) - kernel.mirror.log_det_hess(old.point)
        return mapla.log_ratio(kernel.mirror, old, new, kernel.step) + 0.5 * (sign - 1) * log_det

    ratios = jax.jit(jax.vmap(jax.vmap(ratio, (None, 0)), (0, None)))(places, places)
    law = stationary_law(grid - 0.05 * drift / curvature, np.sqrt(0.1 / curvature), grid, np.asarray(ratios))
    assert law @ grid == pytest.approx(mean, abs=1e-3)
    if sign == 1:
        assert law @ (grid - 0.6) ** 2 == pytest.approx(0.04, abs=2e-4)


def test_fermi_dirac_is_adjusted_exactly_on_the_unit_interval() -> None:
    from numpyro.distributions import constraints

    target = pf.Target.from_log_density(
        lambda x: jnp.sum(2 * jnp.log(x) + jnp.log1p(-x)), np.full(1, 0.5), constraints.unit_interval
    )
    kernel = make(pf.MirrorLangevin(mirror=FermiDirac()), target, 0.05)

    def ratio(old, new):
        return mirror_log_ratio(kernel.mirror, old, new, kernel.step)

    grid = np.linspace(-5, 7, 1201)
    assert second_moments(kernel, grid, ratio)[0] == pytest.approx(0.04 + 0.36, abs=1e-4)


# -- Gaussian targets, where every scheme is affine: exact covariances in two dimensions -------------------------------

PRECISION = np.array([[2.0, 0.3], [0.3, 1.0]])
RIDGE = np.array([[0.8, -0.2], [-0.2, 0.5]])
METRIC = np.array([[1.0, 0.1], [0.1, 0.5]])


class Quadratic(AbstractTerm):
    """g(x) = ½ ‖K x‖²; with K = I given away, its prox; else a term h(K x) for the primal–dual algorithm."""

    matrix: jax.Array
    split: bool = eqx.field(static=True, default=False)

    def value(self, x):
        return 0.5 * jnp.sum((self.matrix @ x) ** 2)

    def prox(self, x, step):
        return jnp.linalg.solve(jnp.eye(x.size) + step * self.matrix.T @ self.matrix, x)

    def forward(self, x):
        return self.matrix @ x if self.split else x

    def adjoint(self, u):
        return self.matrix.T @ u if self.split else u

    @property
    def squared_norm(self):
        return 2.0 if self.split else 1.0

    def dual_prox(self, v, step):
        return v / (1 + step) if self.split else super().dual_prox(v, step)


def gaussian(term=None, precision=PRECISION):
    root = np.linalg.cholesky(RIDGE).T
    term = Quadratic(root) if term is None else term
    return pf.Target.composite(lambda x: -0.5 * x @ (precision @ x), term, np.zeros(len(precision)))


def lyapunov(transition, noise):
    """Σ = A Σ Aᵀ + N, by vectorisation."""
    n = len(transition)
    return np.linalg.solve(np.eye(n * n) - np.kron(transition, transition), noise.ravel()).reshape(n, n)


STEP = 0.1
FORWARD, BACKWARD = np.eye(2) - STEP * PRECISION, np.linalg.inv(np.eye(2) + STEP * RIDGE)
SCHEMES = {
    "pgld": ({}, lyapunov(FORWARD @ BACKWARD, 2 * STEP * np.eye(2))),
    "psgla": ({}, lyapunov(BACKWARD @ FORWARD, 2 * STEP * BACKWARD @ BACKWARD)),
    "pp_ula": (
        {"metric": METRIC, "num_prox": 2000},
        # argmin γ g(u) + ½‖u − v‖²_{M⁻¹} = (I + γ M R)⁻¹ v at v = (I − γ M Q) x, and the noise is N(0, 2γ M)
        lyapunov(
            np.linalg.solve(np.eye(2) + STEP * METRIC @ RIDGE, np.eye(2) - STEP * METRIC @ PRECISION),
            2 * STEP * METRIC,
        ),
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_proximal_schemes_on_a_gaussian(scheme: str) -> None:
    options, expected = SCHEMES[scheme]
    found = covariance(pf.ProximalLangevin(scheme=scheme, **options), gaussian(), STEP)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert np.abs(found - np.linalg.inv(PRECISION + RIDGE)).max() > 0.01  # a bias that the test can see


def test_forward_backward_envelope() -> None:
    """Its gradient where the ℓ₁ term cuts both coordinates."""
    b, x, step = np.array([0.5, -1.0]), np.array([0.4, -0.9]), 0.05
    smooth = lambda x: -0.5 * x @ (PRECISION @ x) + b @ x  # noqa: E731
    target = primal(pf.Target.composite(smooth, L1(0.7), np.zeros(2)))
    method = pf.ProximalLangevin(scheme="fbula", smoothing=0.3)
    mirror = method.mirror_for(target, jnp.ones(2))
    local = method.locate(target, mirror, mirror.at(jnp.asarray(x)))
    moved = method.propose(target, mirror, lambda p: jnp.zeros(2), local, jnp.asarray(step)).local.point.x
    np.testing.assert_allclose((x - moved) / step, [0.3352, -0.4017], atol=5e-5)


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, 0.7508), (4.0, 0.6005), (20.0, 0.5243), (100.0, 0.5055)])
def test_primal_dual_has_the_variance_that_theory_says(ratio: float, expected: float) -> None:
    """f = x²/2, g = z²/2, K = 1: (2 + s)/(2 + 2s) as τ → 0, not ½ (Burger et al. 2024)."""
    target = gaussian(Quadratic(np.eye(1)), np.eye(1))
    found = covariance(pf.PrimalDualLangevin(ratio=ratio), target, 1e-3)[0, 0]
    assert found == pytest.approx(expected, abs=3e-4)
    assert found == pytest.approx((2 + ratio) / (2 + 2 * ratio), abs=1e-3)


def test_primal_dual_takes_a_linear_map() -> None:
    """G(x) = ½‖K x‖² by K and its adjoint: near the target for a large ratio."""
    matrix = np.array([[1.0, -1.0], [0.3, 0.6], [0.0, 0.5]])
    target = gaussian(Quadratic(matrix, True))
    found = covariance(pf.PrimalDualLangevin(ratio=1e4), target, 1e-4)
    np.testing.assert_allclose(found, np.linalg.inv(PRECISION + matrix.T @ matrix), atol=2e-3)
    with pytest.raises(pf.InvalidArgument, match="τσ"):
        covariance(pf.PrimalDualLangevin(step_size=0.5, ratio=3.0), target, 0.5)
