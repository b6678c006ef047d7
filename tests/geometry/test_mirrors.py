"""Laws of all mirror maps, each against automatic differentiation of φ; and their parameters."""

import functools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer import geometry as geo
from pushforward.infer.errors import InvalidArgument, NotAvailable

RNG = np.random.default_rng(7)
SPD = np.array([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 0.5]])
TRIANGLE = (np.array([[-1.0, 0.0], [0.0, -1.0], [1.0, 2.0]]), np.array([0.0, 0.5, 1.0]))

# name → (mirror, interior points, points near the boundary)
CASES: dict[str, tuple[Any, list, list]] = {
    "Euclidean": (geo.Euclidean(), [[0.0, -3.0, 2.0]], [[1e6, -1e6, 1e-9]]),
    "HyperbolicEntropy": (geo.HyperbolicEntropy([0.7, 0.3, 2.0]), [[0.0, -3.0, 2.0]], [[1e6, -1e-9, 0.0]]),
    "BoltzmannShannon": (geo.BoltzmannShannon(), [[0.5, 3.0]], [[1e-9, 1e6]]),
    "FermiDirac": (geo.FermiDirac(), [[0.5, 0.9]], [[1e-9, 1 - 1e-6]]),
    "Hellinger": (geo.Hellinger(), [[0.0, -0.9]], [[1 - 1e-6, -1 + 1e-5]]),
    "Burg": (geo.Burg(), [[0.5, 3.0]], [[1e-9, 1e6]]),
    "HalfLineBarrier": (geo.HalfLineBarrier(), [[0.5, 3.0]], [[1e-9, 1e6]]),
    "PowerMirror 1.5": (geo.PowerMirror(1.5), [[0.5, -3.0]], [[1e-6, 1e6]]),
    "PowerMirror 2": (geo.PowerMirror(2.0), [[0.5, -3.0]], [[1e-6, 1e6]]),
    "PowerMirror 3": (geo.PowerMirror(3.0), [[0.5, -3.0]], [[1e-3, 1e6]]),
    "BoxBarrier": (geo.BoxBarrier([1.0, 3.0]), [[0.0, -2.0]], [[1 - 1e-6, -3 + 1e-6]]),
    "SimplexEntropy": (geo.SimplexEntropy(), [[0.2, 0.3, 0.1]], [[1e-9, 0.5, 1e-3], [1 - 3e-6, 1e-6, 1e-6]]),
    "SimplexBarrier": (geo.SimplexBarrier(), [[0.2, 0.3, 0.1]], [[1e-9, 0.5, 1e-3], [1 - 3e-3, 1e-3, 1e-3]]),
    "EllipsoidBarrier": (geo.EllipsoidBarrier(SPD), [[0.2, -0.3, 0.4], [0.0] * 3], [[np.sqrt(0.5) - 1e-6, 0.0, 0.0]]),
    "EllipsoidBarrier ball": (geo.EllipsoidBarrier(0.25), [[0.2, -0.3, 0.4]], [[2 - 1e-6, 1e-4, 0.0]]),
    "EllipsoidBarrier axes": (geo.EllipsoidBarrier([0.25, 4.0]), [[0.2, -0.3]], [[0.0, 0.5 - 1e-6]]),
    "PolytopeBarrier": (geo.PolytopeBarrier(*TRIANGLE), [[0.2, 0.1]], [[1e-6, -0.5 + 1e-6]]),
    "Affine": (geo.Affine(geo.FermiDirac(), [2.0, 0.0], [-3.0, 0.5]), [[0.5, 0.3]], [[2 - 3e-6, 0.5 - 1e-6]]),
    "Affine simplex": (geo.Affine(geo.SimplexEntropy(), 1.0, 2.0), [[1.4, 1.2]], [[1 + 1e-6, 2.5]]),
    "Product": (
        geo.Product((geo.Euclidean(), geo.SimplexBarrier(), geo.HyperbolicEntropy(0.5)), (1, 2, 1)),
        [[-2.0, 0.3, 0.5, 4.0]],
        [[-2.0, 1e-6, 0.5, 1e6]],
    ),
    "Batch": (geo.Batch(geo.SimplexBarrier(), 2), [[0.3, 0.5, 0.1, 0.2]], [[1e-6, 0.5, 0.2, 1e-3]]),
}
INVERTIBLE = [name for name in CASES if name != "PolytopeBarrier"]
SLOW = ("PowerMirror 2", "EllipsoidBarrier axes", "Affine simplex")
"""Other parameters of what the other cases hold to the laws."""


def some(names: Any) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


each = pytest.mark.parametrize("name", some(CASES))
each_invertible = pytest.mark.parametrize("name", some(INVERTIBLE))


@pytest.fixture(autouse=True)
def bits() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def size_of(name: str) -> int:
    return len(CASES[name][1][0])


def matrix(product: Callable, size: int) -> jax.Array:
    """The matrix of a linear map."""
    return jax.vmap(product, out_axes=1)(jnp.eye(size))


def root(draw: Callable) -> jax.Array:
    """The matrix by which a draw is made of Gaussians, which are replaced by unit vectors one at a time."""

    def drawn(z: Any) -> Any:
        sizes: list[int] = []

        def given(key, shape, dtype):
            del key, dtype
            sizes.append(shape[0])
            return jnp.zeros(shape) if z is None else z[sum(sizes[:-1]) : sum(sizes)]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "normal", given)
            out = draw(jax.random.key(0))
        return out, sum(sizes)

    return jax.vmap(lambda z: drawn(z)[0], out_axes=1)(jnp.eye(drawn(None)[1]))


@functools.cache
def facts(name: str) -> dict[str, np.ndarray]:
    """What a mirror says at its points and what automatic differentiation says, in one compiled program."""
    mirror, inside, near = CASES[name]

    @jax.jit
    @jax.vmap
    def compute(x: jax.Array) -> dict[str, jax.Array]:
        p, d = mirror.at(x), x.size
        inverse_at = lambda x: matrix(lambda v: mirror.inv_hess_mv(mirror.at(x), v), d)  # noqa: E731
        out = {
            "y": p.y,
            "contains": mirror.contains(x),
            "gradient": jax.grad(mirror.value)(x),
            "hessian": jax.jacfwd(lambda x: mirror.at(x).y)(x),
            "hess": matrix(lambda v: mirror.hess_mv(p, v), d),
            "inv_hess": matrix(lambda v: mirror.inv_hess_mv(p, v), d),
            "inv_hess_quadratic": mirror.inv_hess_quadratic(p, jnp.linspace(-1.0, 2.0, d)),
            "log_det": mirror.log_det_hess(p),
            "div": mirror.div_inv_hess(p),
            "divergence": jnp.einsum("abb->a", jax.jacfwd(inverse_at)(x)),
            "noise": root(lambda key: mirror.noise(key, p)),
            "inv_noise": root(lambda key: mirror.inv_noise(key, p)),
        }
        if mirror.invertible:
            q = mirror.from_dual(p.y)
            out |= {
                "back": q.x,
                "conjugate_hessian": jax.jacfwd(lambda y: mirror.from_dual(y).x)(p.y),
                "log_det_back": mirror.log_det_hess(q),
                "div_back": mirror.div_inv_hess(q),
                "hess_back": matrix(lambda v: mirror.hess_mv(q, v), d),
                "divergence_in_the_dual": jax.grad(lambda y: -mirror.log_det_hess(mirror.from_dual(y)))(p.y),
            }
        return out

    x = np.array([*inside, *near])
    return {"x": x, **jax.tree.map(np.asarray, compute(x))}


def inside(name: str) -> dict[str, np.ndarray]:
    """`facts` at the points that are not near the boundary."""
    return {key: value[: len(CASES[name][1])] for key, value in facts(name).items()}


def test_every_class_has_a_case():
    def concrete(cls: type) -> Iterator[str]:
        for sub in cls.__subclasses__():
            if sub.__module__.startswith("pushforward.") and not sub.__name__.startswith("Abstract"):
                yield sub.__name__
            yield from concrete(sub)

    wrapped = {"NewtonInverse"}  # has the laws of the mirror inside, and tests of its own
    assert {name.split()[0] for name in CASES} == set(concrete(geo.AbstractMirror)) - wrapped
    assert all(type(mirror).__name__ == name.split()[0] for name, (mirror, *_) in CASES.items())


@each
def test_dual_is_the_gradient(name):
    f = facts(name)
    assert f["contains"].all()
    CASES[name][0].check(size_of(name))
    np.testing.assert_allclose(f["y"], f["gradient"], rtol=1e-10, atol=1e-12)


@each_invertible
def test_inverse(name):
    """x → y → x, relative to each coordinate, near the boundary too."""
    f = facts(name)
    np.testing.assert_allclose(f["back"], f["x"], rtol=1e-12, atol=1e-300)


@each_invertible
def test_points_from_both_sides_agree(name):
    """What follows from the dual is what follows from the primal."""
    f = inside(name)
    for what in ("log_det", "div", "hess"):
        np.testing.assert_allclose(f[what], f[f"{what}_back"], rtol=1e-11, atol=1e-12)


@each
def test_hessian(name):
    """The product, its inverse and the determinant, in coordinates in which H has a unit diagonal."""
    f = facts(name)
    for hessian, hess, inv_hess, log_det in zip(
        *(f[k] for k in ("hessian", "hess", "inv_hess", "log_det")), strict=True
    ):
        scale = np.sqrt(np.diag(hessian))
        unit = hessian / np.outer(scale, scale)
        np.testing.assert_allclose(hess / np.outer(scale, scale), unit, atol=1e-9)
        found = inv_hess * np.outer(scale, scale)
        if np.linalg.cond(unit) < 1e6:
            np.testing.assert_allclose(found, np.linalg.inv(unit), rtol=1e-8, atol=1e-8)
            expected = np.linalg.slogdet(unit)[1] + 2 * np.log(scale).sum()
            np.testing.assert_allclose(log_det, expected, rtol=1e-8, atol=1e-8)


@each_invertible
def test_inverse_hessian_is_that_of_the_conjugate(name):
    """P = ∂x/∂y: unlike P H = 1 a test that the condition number of H cannot blur."""
    f = facts(name)
    for expected, found, log_det in zip(f["conjugate_hessian"], f["inv_hess"], f["log_det"], strict=True):
        scale = np.sqrt(np.diag(expected))
        unit = expected / np.outer(scale, scale)
        np.testing.assert_allclose(found / np.outer(scale, scale), unit, atol=1e-8)
        np.testing.assert_allclose(-log_det, np.linalg.slogdet(unit)[1] + 2 * np.log(scale).sum(), rtol=1e-8, atol=1e-6)


@each
def test_quadratic_form_of_the_inverse(name):
    f, v = inside(name), np.linspace(-1.0, 2.0, size_of(name))
    np.testing.assert_allclose(f["inv_hess_quadratic"], [v @ p @ v for p in f["inv_hess"]], rtol=1e-10)


def test_quadratic_form_of_the_inverse_does_not_cancel():
    """In a corner of the simplex, where vᵀPv as Σ v Pv is 1e18 times rounding errors of either sign; exact fractions.

    A negative value there makes a Metropolis test accept any step into the corner.
    """
    p = geo.SimplexEntropy().from_dual(jnp.array([60.0, 59.0, -20.0]))
    v = np.array([1e9, 1e9 + 1, 3.0])
    q, values = [Fraction(float(e)) for e in np.exp(p.extra)], [Fraction(float(e)) for e in (*v, 0)]
    mean = sum(a * b for a, b in zip(q, values, strict=True)) / sum(q)
    exact = float(sum(a * (b - mean) ** 2 for a, b in zip(q, values, strict=True)))
    assert float(geo.SimplexEntropy().inv_hess_quadratic(p, jnp.asarray(v))) == pytest.approx(exact, rel=1e-6)
    assert exact == pytest.approx(0.1966, rel=1e-3)

    ball = geo.EllipsoidBarrier(1.0)
    p = ball.from_dual(jnp.array([1e12]))
    w, gap = p.extra
    assert float(ball.inv_hess_quadratic(p, jnp.ones(1))) == pytest.approx(
        float(gap**2 / (2 * gap + 4 * w[0] ** 2)), rel=1e-9
    )


@each
def test_divergence_of_the_inverse_hessian(name):
    """Row-wise, Σ_b ∂P_ab/∂x_b; and ∇_y log det P as a function of the dual."""
    f = inside(name)
    np.testing.assert_allclose(f["div"], f["divergence"], rtol=1e-9, atol=1e-9)
    if name in INVERTIBLE:
        np.testing.assert_allclose(f["div"], f["divergence_in_the_dual"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", some(name for name in CASES if name != "Batch")
)  # whose Gaussians are drawn under vmap
def test_covariance_of_the_noise(name):
    """Exactly: a draw is linear in Gaussians, and the square of its matrix is H, or P."""
    f = facts(name)
    for draws, products in (("noise", "hess"), ("inv_noise", "inv_hess")):
        for factor, expected in zip(f[draws], f[products], strict=True):
            scale = np.sqrt(np.diag(expected))
            found = factor @ factor.T / np.outer(scale, scale)
            np.testing.assert_allclose(found, expected / np.outer(scale, scale), atol=1e-8)


def test_noise_of_a_batch_is_that_of_a_product_of_equals():
    """Independent in each set."""
    x, key = jnp.array([0.3, 0.4, 0.1, 0.2]), jax.random.key(3)
    batch, product = geo.Batch(geo.SimplexEntropy(), 2), geo.Product([geo.SimplexEntropy()] * 2, [2, 2])
    for name in ("noise", "inv_noise"):
        one, other = (jax.jit(getattr(mirror, name))(key, mirror.at(x)) for mirror in (batch, product))
        np.testing.assert_allclose(one, other, rtol=1e-13)


@each
def test_joint_convexity(name):
    """The Hessian of D_φ in both arguments is positive semi-definite exactly where the flag says so."""
    mirror, middle, _ = CASES[name]

    def divergence(both):
        u, v = jnp.split(both, 2)
        return mirror.divergence(mirror.at(u), mirror.at(v))

    @jax.jit
    @jax.vmap
    def look(both):
        u, v = jnp.split(both, 2)
        return mirror.contains(u) & mirror.contains(v), divergence(both), jax.hessian(divergence)(both)

    wide = {"Euclidean": 1.0, "HyperbolicEntropy": 2.0, "PowerMirror": 2.0, "Batch": 0.1}.get(name.split()[0], 0.25)
    spread = wide * RNG.normal(size=(300, 2 * size_of(name)))
    fine, values, hessians = (np.asarray(a) for a in look(jnp.tile(jnp.asarray(middle[0]), 2) + spread))
    assert fine.sum() > 20
    assert values[fine].min() > -1e-12
    least = min(np.linalg.eigvalsh(h)[0] / np.abs(h).max() for h in hessians[fine] if np.all(np.isfinite(h)))
    assert mirror.jointly_convex == (least > -1e-9), least


@functools.cache
def from_dual(name: str, dtype: str) -> dict[float, dict[str, np.ndarray]]:
    """What follows from duals of growing size, by their largest entry."""
    scales = [-80.0, -15.0, -1.0] + ([1.0, 15.0, 80.0] if name != "Burg" else [])
    mirror = CASES[name][0]

    @jax.jit
    def compute(mirror, y):  # the mirror is an argument, as in a compiled sampler
        p, ones, key = mirror.from_dual(y), jnp.ones_like(y), jax.random.key(0)
        return {
            "p": p,
            "hess": mirror.hess_mv(p, ones),
            "inv_hess": mirror.inv_hess_mv(p, ones),
            "log_det": mirror.log_det_hess(p),
            "div": mirror.div_inv_hess(p),
            "noise": mirror.noise(key, p),
            "inv_noise": mirror.inv_noise(key, p),
            "again": mirror.at(p.x).y,
        }

    units = np.abs(mirror.scale) if isinstance(mirror, geo.Affine) else 1.0  # the inner duals are of these sizes
    y = np.array([scale * np.linspace(1.0, 0.75, size_of(name)) / units for scale in scales])
    y = y.astype(np.float32).astype(dtype)
    out = jax.vmap(compute, in_axes=(None, 0))(mirror, jnp.asarray(y))
    return {scale: jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), out) for i, scale in enumerate(scales)}


@each_invertible
def test_single_precision_far_out(name):
    """Duals of size 80, where sinh and cosh are near the largest float32, give finite numbers, of the same dtype."""
    for scale, found in from_dual(name, "float32").items():
        found = {key: value for key, value in found.items() if key != "again"}  # x itself may be rounded to the edge
        for leaf in jax.tree.leaves(found):
            assert leaf.dtype == np.float32
            assert np.all(np.isfinite(leaf)), scale


@each_invertible
def test_single_precision_agrees_with_double(name):
    """Of what follows from the dual, near the boundary too: no digits are lost on the way."""
    single, double = from_dual(name, "float32"), from_dual(name, "float64")
    for scale in single:
        for what in ("log_det", "hess", "inv_hess"):
            np.testing.assert_allclose(
                single[scale][what], double[scale][what], rtol=3e-5, atol=1e-5 * (what != "hess")
            )
        np.testing.assert_allclose(single[scale]["p"].x, double[scale]["p"].x, rtol=1e-5, atol=1e-36)


@each_invertible
@pytest.mark.parametrize(("dtype", "tol"), [("float64", 1e-12), ("float32", 1e-5)])
def test_dual_comes_back(name, dtype, tol):
    """y → x → y where y is not large."""
    found = from_dual(name, dtype)[-1.0]
    np.testing.assert_allclose(found["again"], found["p"].y, rtol=tol)


@pytest.mark.parametrize("size", [1, 12, 3000])
def test_simplex_barrier_is_solved_everywhere(size):
    """Σ x + s = 1 and the dual, for spreads of gaps over many orders of magnitude."""
    y = -(10 ** RNG.uniform(-2, 8, size=(30, size))) * RNG.choice([-1, 1], size=(30, size))
    y[:10] = np.sort(np.abs(y[:10])) * 10.0 ** np.arange(-8, 2)[:, None]
    probs = np.exp(np.asarray(jax.jit(jax.vmap(geo.SimplexBarrier().from_dual))(jnp.asarray(y)).extra))
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-12)
    assert np.all(probs > 0)
    first, last = 1 / probs[:, :-1], 1 / probs[:, -1:]
    np.testing.assert_allclose((last - first) / np.maximum(first, last), y / np.maximum(first, last), atol=1e-11)


def test_known_values():
    """Rows of the tables in the literature, at points where they can be computed by hand."""
    hyperbolic = geo.HyperbolicEntropy(0.7)
    p = hyperbolic.at(jnp.array([0.7 * 0.75]))  # asinh(3/4) = log 2
    np.testing.assert_allclose(p.y, [np.log(2)], rtol=1e-15)
    np.testing.assert_allclose(hyperbolic.hess_mv(p, jnp.ones(1)), [1 / (0.7 * 1.25)], rtol=1e-15)
    np.testing.assert_allclose(geo.BoxBarrier(2.0).at(jnp.array([1.0])).y, [2 / 3], rtol=1e-15)
    simplex = geo.SimplexEntropy()
    p = simplex.at(jnp.array([0.25, 0.25]))
    np.testing.assert_allclose(p.y, [-np.log(2)] * 2, rtol=1e-15)
    np.testing.assert_allclose(simplex.div_inv_hess(p), [0.25, 0.25], rtol=1e-15)  # 1 − 3/4
    np.testing.assert_allclose(simplex.log_det_hess(p), np.log(32), rtol=1e-15)
    ball = geo.EllipsoidBarrier(1.0)
    np.testing.assert_allclose(ball.at(jnp.array([0.6, 0.0])).y, [1.2 / 0.64, 0.0], rtol=1e-15)
    np.testing.assert_allclose(ball.hess_mv(ball.at(jnp.zeros(2)), jnp.ones(2)), [2.0, 2.0], rtol=1e-15)


@pytest.mark.parametrize("name", ["HyperbolicEntropy", "Hellinger", "BoxBarrier", "EllipsoidBarrier", "PowerMirror 2"])
def test_differentiable_at_zero(name):
    """No NaN where a norm or a power has no derivative of its own."""
    mirror = CASES[name][0]
    zero = jnp.zeros(size_of(name))
    f = jax.jit(jax.grad(lambda y: mirror.log_det_hess(mirror.from_dual(y)) + mirror.value(mirror.from_dual(y).x)))
    np.testing.assert_allclose(f(zero), 0, atol=1e-12)
    np.testing.assert_allclose(mirror.div_inv_hess(mirror.at(zero)), 0, atol=1e-12)


def test_flags():
    """What callers decide by."""
    assert [name for name, (mirror, *_) in CASES.items() if not mirror.full_dual] == ["Burg"]
    convex = {"Euclidean", "BoltzmannShannon", "FermiDirac", "PowerMirror 2", "SimplexEntropy", "Affine"}
    assert {name for name, (mirror, *_) in CASES.items() if mirror.jointly_convex} == convex | {"Affine simplex"}
    structure = {name: mirror.structure for name, (mirror, *_) in CASES.items()}
    assert structure["EllipsoidBarrier"] == structure["PolytopeBarrier"] == structure["Product"] == "dense"
    assert structure["Batch"] == "dense"
    assert geo.Batch(geo.SimplexEntropy(), 1).structure == "rank_one"
    assert geo.Batch(geo.Burg(), 3).structure == "diagonal"
    ranked = {name for name, kind in structure.items() if kind == "rank_one"}
    axes = {"EllipsoidBarrier ball", "EllipsoidBarrier axes"}
    assert ranked == {"SimplexEntropy", "SimplexBarrier", "Affine simplex"} | axes
    assert {name for name, kind in structure.items() if kind == "identity"} == {"Euclidean"}
    assert geo.Product((geo.Euclidean(), geo.Burg()), (1, 1)).structure == "diagonal"
    assert geo.Product((geo.SimplexEntropy(),), (3,)).structure == "rank_one"
    assert geo.Affine(geo.Euclidean(), 0.0, 2.0).structure == "diagonal"


def test_outside_is_not_contained():
    for mirror, x in [
        (geo.BoltzmannShannon(), [0.0, 1.0]),
        (geo.FermiDirac(), [0.5, 1.0]),
        (geo.BoxBarrier([1.0, 3.0]), [1.5, 0.0]),
        (geo.Euclidean(), [0.0, np.inf]),
        (geo.SimplexEntropy(), [0.5, 0.5]),
        (geo.SimplexBarrier(), [0.5, -0.1]),
        (geo.EllipsoidBarrier(1.0), [0.6, 0.8]),
        (geo.EllipsoidBarrier(SPD), [0.0, np.nan, 0.0]),
        (geo.PolytopeBarrier(*TRIANGLE), [-0.1, 0.0]),
        (geo.Affine(geo.BoltzmannShannon(), 5.0, -1.0), [5.1, 0.0]),
        (geo.Product((geo.Euclidean(), geo.FermiDirac()), (1, 1)), [0.0, 1.5]),
    ]:
        assert not bool(mirror.contains(jnp.asarray(x))), mirror


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: geo.HyperbolicEntropy(0.0), "beta must be finite and > 0, got 0"),
        (lambda: geo.HyperbolicEntropy([1.0, -2.0]), "beta must be finite and > 0, got -2"),
        (lambda: geo.HyperbolicEntropy(np.ones((2, 2))), r"beta must be a number or a vector, got .*\(2, 2\)"),
        (lambda: geo.HyperbolicEntropy("wide"), "must be a number or an array of numbers, got 'wide'"),
        (lambda: geo.HyperbolicEntropy([1.0, 2.0]).check(3), r"beta has shape \(2,\), but there are 3 coordinates"),
        (lambda: geo.PowerMirror(1.0), "p must be finite and > 1, got 1"),
        (lambda: geo.PowerMirror("2"), "p must be a number"),
        (lambda: geo.BoxBarrier(np.nan), "half_width must be finite and > 0, got nan"),
        (lambda: geo.EllipsoidBarrier(-1.0), "matrix must be finite and > 0, got -1"),
        (lambda: geo.EllipsoidBarrier([[1.0, 2.0], [2.0, 1.0]]), "positive definite, but has the eigenvalue -1"),
        (
            lambda: geo.EllipsoidBarrier([[1.0, 2.0], [0.0, 9.0]]),
            "must be symmetric, but differs .* by up to 2",
        ),
        (lambda: geo.EllipsoidBarrier(np.ones((2, 3))), r"square matrix, got shape \(2, 3\)"),
        (lambda: geo.EllipsoidBarrier(np.full((2, 2), np.nan)), "matrix must be finite"),
        (lambda: geo.EllipsoidBarrier(np.eye(2)).check(3), r"has shape \(2,\), but there are 3"),
        (lambda: geo.PolytopeBarrier(np.eye(2), np.ones(3)), r"b \(m,\), one row per inequality; got \(2, 2\) and"),
        (lambda: geo.PolytopeBarrier([[1.0, 0.0]], [1.0]), "A has rank 1 in 2 dimensions"),
        (lambda: geo.PolytopeBarrier(np.eye(2), [np.inf, 1.0]), "b must be finite, got inf"),
        (lambda: geo.PolytopeBarrier(np.eye(2), np.ones(2)).check(3), r"row of A has shape \(2,\)"),
        (lambda: geo.Affine(geo.Euclidean(), 0.0, [1.0, 0.0]), "scale must not be 0"),
        (lambda: geo.Affine(geo.Euclidean(), np.inf), "loc must be finite"),
        (lambda: geo.Affine(geo.Burg(), [0.0, 1.0]).check(3), r"loc has shape \(2,\)"),
        (lambda: geo.Affine(None), "mirror must be a mirror, got None"),
        (lambda: geo.Product((geo.Burg(),), (1, 2)), "one size per part, got 1 parts"),
        (lambda: geo.Product((geo.Burg(),), (1.5,)), "sizes must be a whole number"),
        (lambda: geo.Product(("Burg",), (1,)), "parts must be mirrors, got 'Burg'"),
        (lambda: geo.Product((geo.Burg(),), (2,)).check(3), "add up to 2, but there are 3"),
        (lambda: geo.Batch(geo.SimplexEntropy(), 0), "count must be"),
        (lambda: geo.Batch("Burg", 2), "mirror must be a mirror, got 'Burg'"),
        (lambda: geo.Batch(geo.SimplexEntropy(), 2).check(5), "count=2 does not divide the 5 coordinates"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()


def test_polytope_has_no_inverse():
    with pytest.raises(NotAvailable, match=r"no inverse mirror map.*MAPLA"):
        geo.PolytopeBarrier(*TRIANGLE).from_dual(jnp.zeros(2))


def test_mirrors_are_final():
    with pytest.raises(TypeError, match="extends the concrete mirror Burg"):
        type("Sub", (geo.Burg,), {})
