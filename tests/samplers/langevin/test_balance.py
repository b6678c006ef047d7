"""Detailed balance of every adjusted kernel on every mirror that it takes, with the proposal's density written out.

π(x) q(z | x) min(1, r(x, z)) must be symmetric in x and z. The density q is computed here from the definition alone: a
normal in the dual (or in the primal) with dense Hessians from automatic differentiation of φ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer import geometry as geo
from pushforward.infer.geometry.prox import L1
from pushforward.samplers.langevin.mapla import log_ratio
from pushforward.samplers.langevin.mirrored import mirror_log_ratio

from .kernels import make

STEP = 0.07
INSIDE = {
    "Euclidean": (geo.Euclidean(), [[0.3, -1.2, 0.1], [-0.4, 0.2, 1.1]]),
    "HyperbolicEntropy": (geo.HyperbolicEntropy([0.7, 0.3, 2.0]), [[0.3, -1.2, 0.1], [-0.4, 0.2, 1.1]]),
    "BoltzmannShannon": (geo.BoltzmannShannon(), [[0.3, 1.2, 0.1], [0.4, 0.2, 1.1]]),
    "FermiDirac": (geo.FermiDirac(), [[0.3, 0.9, 0.1], [0.4, 0.2, 0.7]]),
    "Hellinger": (geo.Hellinger(), [[0.3, -0.9, 0.1], [-0.4, 0.2, 0.7]]),
    "Burg": (geo.Burg(), [[0.3, 1.2, 0.1], [0.4, 0.2, 1.1]]),
    "BoxBarrier": (geo.BoxBarrier([1.0, 2.0, 1.5]), [[0.3, -0.9, 0.1], [-0.4, 0.2, 0.7]]),
    "SimplexEntropy": (geo.SimplexEntropy(), [[0.3, 0.4, 0.1], [0.2, 0.2, 0.25]]),
    "SimplexBarrier": (geo.SimplexBarrier(), [[0.3, 0.4, 0.1], [0.2, 0.2, 0.25]]),
    "EllipsoidBarrier": (geo.EllipsoidBarrier(np.diag([1.0, 2.0, 0.5])), [[0.3, -0.4, 0.1], [-0.2, 0.2, 0.25]]),
    "Affine": (geo.Affine(geo.HyperbolicEntropy(1.0), 0.0, [0.5, 2.0, 1.0]), [[0.3, -1.2, 0.1], [-0.4, 0.2, 1.1]]),
    "HalfLineBarrier": (geo.HalfLineBarrier(), [[0.3, 1.2, 0.1], [0.4, 0.2, 1.1]]),
    "PowerMirror": (geo.PowerMirror(3.0), [[0.3, -1.2, 0.1], [-0.4, 0.2, 1.1]]),
    "Product": (
        geo.Product([geo.HyperbolicEntropy(0.7), geo.SimplexEntropy()], [1, 2]),
        [[-0.3, 0.4, 0.1], [0.5, 0.2, 0.25]],
    ),
    "Batch": (geo.Batch(geo.SimplexBarrier(), 3), [[0.3, 0.4, 0.1], [0.2, 0.2, 0.25]]),
    "PolytopeBarrier": (
        geo.PolytopeBarrier(np.vstack([-np.eye(3), np.ones((1, 3))]), np.array([0.0, 0.0, 0.0, 1.0])),
        [[0.3, 0.4, 0.1], [0.2, 0.2, 0.25]],
    ),
}
"""Every class of mirror map, see the test below."""
INVERTIBLE = [name for name, (mirror, _) in INSIDE.items() if mirror.invertible]


@pytest.fixture(autouse=True)
def sixty_four_bits():
    with jax.enable_x64(True):
        yield


def smooth(x):
    return -0.5 * jnp.sum((x - jnp.array([0.2, 0.3, 0.25])) ** 2 * jnp.array([1.0, 3.0, 0.5])) + jnp.sum(jnp.sin(x))


def normal(value, mean, covariance):
    residual = value - mean
    return -0.5 * residual @ jnp.linalg.solve(covariance, residual) - 0.5 * jnp.linalg.slogdet(covariance)[1]


def dual_density(mirror, old, new):
    """log q(z | x) of a normal step in the dual."""
    to_dual, hessian = jax.grad(mirror.value), jax.hessian(mirror.value)
    x, z = old.point.x, new.point.x
    in_dual = normal(to_dual(z), to_dual(x) - STEP * old.drift, 2 * STEP * hessian(x))
    return in_dual + jnp.linalg.slogdet(hessian(z))[1]


def primal_density(mirror, old, new):
    """log q(z | x) of a preconditioned normal step in the primal."""
    inverse = jnp.linalg.inv(jax.hessian(mirror.value)(old.point.x))
    return normal(new.point.x, old.point.x - STEP * inverse @ old.drift, 2 * STEP * inverse)


def assert_balanced(kernel, density, ratio, points):
    @jax.jit
    def look(points):
        old, new = (kernel.method.locate(kernel.target, kernel.mirror, kernel.mirror.at(x)) for x in points)
        forth = old.log_density + density(kernel.mirror, old, new)
        back = new.log_density + density(kernel.mirror, new, old)
        return back - forth, *(ratio(kernel.mirror, *pair, kernel.step) for pair in ((old, new), (new, old)))

    expected, there, back = look(jnp.asarray(points))
    np.testing.assert_allclose(there, expected, atol=1e-10)
    np.testing.assert_allclose(back, -expected, atol=1e-10)


def test_every_mirror_is_here() -> None:
    classes = {
        value for value in vars(geo).values() if isinstance(value, type) and issubclass(value, geo.AbstractMirror)
    }
    assert {c for c in classes if not c.__name__.startswith("Abstract")} == {
        type(mirror) for mirror, _ in INSIDE.values()
    }


@pytest.mark.parametrize("name", INVERTIBLE)
def test_mirror_langevin(name: str) -> None:
    mirror, points = INSIDE[name]
    target = pf.Target.from_log_density(smooth, np.zeros(3))
    assert_balanced(make(pf.MirrorLangevin(mirror=mirror), target, STEP), dual_density, mirror_log_ratio, points)


# The ratio is that of mirror Langevin, which has all mirrors; the drift is another.
DRIFTS = ("Euclidean", "HyperbolicEntropy", "SimplexBarrier", "Product")


@pytest.mark.parametrize(
    ("name", "side"),
    [(name, "left") for name in DRIFTS]
    + [pytest.param(name, "left", marks=pytest.mark.slow) for name in INVERTIBLE if name not in DRIFTS]
    + [("Euclidean", "right"), ("HyperbolicEntropy", "right")],
)
def test_bregman_proximal_langevin(name: str, side: str) -> None:
    mirror, points = INSIDE[name]
    target = pf.Target.composite(smooth, L1(np.array([1.0, 0.3, 2.0])), np.zeros(3))
    method = pf.BregmanProximalLangevin(mirror=mirror, envelope=geo.HyperbolicEntropy(0.5), smoothing=0.1, side=side)
    assert_balanced(make(method, target, STEP), dual_density, mirror_log_ratio, points)


@pytest.mark.parametrize("name", INSIDE)
def test_mapla(name: str) -> None:
    mirror, points = INSIDE[name]
    target = pf.Target.from_log_density(smooth, np.zeros(3))
    assert_balanced(make(pf.MAPLA(mirror=mirror), target, STEP), primal_density, log_ratio, points)
