"""Left and right Bregman proximal operators against brute force, optimality conditions and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.errors import NotAvailable
from pushforward.infer.geometry import (
    Affine,
    BoltzmannShannon,
    BoxBarrier,
    Burg,
    Euclidean,
    FermiDirac,
    Hellinger,
    HyperbolicEntropy,
    PowerMirror,
    Product,
    SimplexEntropy,
)
from pushforward.infer.geometry.bregman import left_prox, right_prox, supports_left, supports_right
from pushforward.infer.geometry.compose import Blocks, Sum
from pushforward.infer.geometry.indicators import BoxIndicator, NonNegative, SimplexIndicator
from pushforward.infer.geometry.prox import L1, ElasticNet, GroupL2
from pushforward.infer.geometry.tv import TotalVariation

PROX = {"left": left_prox, "right": right_prox}
REAL = np.array([-6.0, -1.3, -0.2, 0.0, 0.4, 2.0, 30.0])
HALF = np.array([1e-4, 0.2, 1.0, 3.0, 40.0])
SYMMETRIC = np.array([-0.99, -0.6, 0.0, 0.3, 0.8, 0.995])
REAL_LOC = np.array([0.0, -1.5, 0.5])
OUTER_LOC = np.array([0.0, -2.0, 0.5, -0.5, 1.0])

# mirror; φ, φ' and φ'' by NumPy; points; where the term is 0, in and outside of the domain; a grid of the domain
CASES = {
    "Euclidean": (Euclidean(), lambda u: u**2 / 2, lambda u: u, np.ones_like, REAL, REAL_LOC),
    "HyperbolicEntropy": (
        HyperbolicEntropy(0.7),
        lambda u: u * np.arcsinh(u / 0.7) - np.sqrt(u**2 + 0.49),
        lambda u: np.arcsinh(u / 0.7),
        lambda u: (u**2 + 0.49) ** -0.5,
        REAL,
        REAL_LOC,
    ),
    "BoltzmannShannon": (
        BoltzmannShannon(),
        lambda u: u * np.log(u) - u,
        np.log,
        lambda u: 1 / u,
        HALF,
        np.array([0.0, -1.0, 0.8]),
    ),
    "FermiDirac": (
        FermiDirac(),
        lambda u: u * np.log(u) + (1 - u) * np.log(1 - u),
        lambda u: np.log(u / (1 - u)),
        lambda u: 1 / (u * (1 - u)),
        np.array([1e-5, 0.1, 0.5, 0.8, 0.9999]),
        np.array([0.0, -1.0, 0.3, 1.0, 2.0]),
    ),
    "Burg": (
        Burg(),
        lambda u: -np.log(u),
        lambda u: -1 / u,
        lambda u: u**-2,
        np.array([0.05, 0.2, 1.0, 3.0, 40.0]),
        np.array([0.0, -1.0, 0.8]),
    ),
    "Hellinger": (
        Hellinger(),
        lambda u: -np.sqrt(1 - u**2),
        lambda u: u / np.sqrt(1 - u**2),
        lambda u: (1 - u**2) ** -1.5,
        SYMMETRIC,
        OUTER_LOC,
    ),
    "BoxBarrier": (
        BoxBarrier(1.0),
        lambda u: -np.log(1 - u**2),
        lambda u: 2 * u / (1 - u**2),
        lambda u: 2 / (1 - u**2) + 4 * u**2 / (1 - u**2) ** 2,
        SYMMETRIC,
        OUTER_LOC,
    ),
    "PowerMirror 3": (
        PowerMirror(3.0),
        lambda u: np.abs(u) ** 3 / 3,
        lambda u: np.sign(u) * u**2,
        lambda u: 2 * np.abs(u),
        REAL,
        REAL_LOC,
    ),
    "PowerMirror 1.5": (
        PowerMirror(1.5),
        lambda u: np.abs(u) ** 1.5 / 1.5,
        lambda u: np.sign(u) * np.abs(u) ** 0.5,
        lambda u: 0.5 * np.abs(u) ** -0.5,
        REAL,
        REAL_LOC,
    ),
}
STEP = 0.5


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def coordinates(name):
    """All combinations of point, κ and location as one vector of coordinates."""
    *_, points, locs = CASES[name]
    x, kappa, loc = map(np.array, zip(*itertools.product(points, [0.3, 1.0, 2.5], locs), strict=True))
    return x, kappa, loc


def solve(side, term, mirror, x, step=STEP):
    return jax.jit(lambda x: PROX[side](term, mirror, mirror.at(x), step))(jnp.asarray(x))


RIDGED = ("HyperbolicEntropy", "BoltzmannShannon", "BoxBarrier", "PowerMirror 3")


@pytest.mark.parametrize(
    ("name", "ridge"),
    [(name, 0.0) for name in CASES]
    + [pytest.param(name, 0.8, marks=() if name in RIDGED else pytest.mark.slow) for name in CASES],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_coordinate_is_minimised(name, side, ridge):
    mirror, phi, dphi, d2phi, points, _ = CASES[name]
    x, kappa, loc = coordinates(name)
    weights = kappa / STEP
    term = ElasticNet(weights, ridge, loc) if ridge else L1(weights, loc)
    q = solve(side, term, mirror, x)
    u, y = np.asarray(q.x), np.asarray(q.y)
    assert np.all(np.isfinite(u)) & np.all(np.isfinite(y))
    np.testing.assert_allclose(mirror.dphi_star(q.y), u, rtol=1e-9, atol=1e-12)

    def objective(u, of):
        apart = (u, x[of]) if side == "left" else (x[of], u)
        divergence = phi(apart[0]) - phi(apart[1]) - dphi(apart[1]) * (apart[0] - apart[1])
        away = np.abs(u - loc[of])
        return STEP * (weights[of] * away + ridge / 2 * away**2) + divergence

    with np.errstate(all="ignore"):
        lower, upper = mirror.bounds
        line = np.concatenate([np.linspace(max(lower, -8), min(upper, 45), 4001), np.geomspace(1e-7, 45, 2000), points])
        line = np.concatenate([line, mirror.dphi_star(jnp.linspace(-12, 12, 2001)), np.arange(-20, 20) / 10])
        line = line[(line > lower) & (line < upper)]
        every = np.arange(x.size)
        grid = objective(line[:, None], every)
        excess = objective(u, every) - np.nanmin(grid, axis=0)
        assert np.max(excess) < 1e-9 * (1 + np.max(np.abs(x)))

        # and the condition of optimality, to rounding
        dead = u == loc
        rest = (dphi(u) - dphi(x)) if side == "left" else d2phi(u) * (u - x)
        rest = np.where(u == x, 0, rest) + STEP * ridge * (u - loc)
        assert np.all(np.abs(rest[dead]) <= kappa[dead] * (1 + 1e-12))
        scale = kappa + np.abs(dphi(x)) + (d2phi(u) * np.abs(x) if side == "right" else np.abs(d2phi(u) * u))
        assert np.max(np.abs(rest + kappa * np.sign(u - loc))[~dead] / scale[~dead]) < 1e-9
    assert np.any(dead) or name == "PowerMirror 1.5"


@pytest.mark.parametrize("kappa", [0.3, 1.0, 2.5])
def test_closed_forms(kappa):
    """The table of ℓ₁ operators, in the forms of the literature."""
    real, half, unit = REAL, HALF, np.array([1e-5, 0.1, 0.5, 0.8, 0.9999])
    soft = lambda v: np.sign(v) * np.maximum(np.abs(v) - kappa, 0)  # noqa: E731
    far = np.abs(real) > kappa * 0.7
    root = np.sqrt(np.where(far, real**2 + (1 - kappa**2) * 0.49, 1))
    hyperbolic = np.where(far, np.sign(real) * (real**2 - kappa**2 * 0.49) / (np.abs(real) + kappa * root), 0)
    dual = soft(SYMMETRIC / np.sqrt(1 - SYMMETRIC**2))
    barrier = soft(2 * SYMMETRIC / (1 - SYMMETRIC**2))
    table = [
        ("left", HyperbolicEntropy(0.7), real, 0.7 * np.sinh(soft(np.arcsinh(real / 0.7)))),
        ("right", HyperbolicEntropy(0.7), real, hyperbolic),
        ("left", BoltzmannShannon(), half, half * np.exp(-kappa)),
        ("right", BoltzmannShannon(), half, half / (1 + kappa)),
        ("left", FermiDirac(), unit, 1 / (1 + np.exp(kappa) * (1 - unit) / unit)),
        ("right", FermiDirac(), unit, 2 * unit / (1 + kappa + np.sqrt((1 + kappa) ** 2 - 4 * kappa * unit))),
        ("left", Burg(), half, half / (1 + kappa * half)),
        ("right", Burg(), half, 2 * half / (1 + np.sqrt(1 + 4 * kappa * half))),
        ("left", Hellinger(), SYMMETRIC, dual / np.sqrt(1 + dual**2)),
        ("left", BoxBarrier(1.0), SYMMETRIC, barrier / (1 + np.sqrt(1 + barrier**2))),
        ("left", PowerMirror(3.0), real, np.sign(real) * np.sqrt(np.maximum(real**2 - kappa, 0))),
    ]
    for side, mirror, x, expected in table:
        q = solve(side, L1(kappa / STEP), mirror, x)
        np.testing.assert_allclose(q.x, expected, rtol=1e-9, atol=1e-15, err_msg=f"{side} {mirror}")


def test_the_dead_zone_is_zero():
    """Not √(x² + β²) − β, which a published implementation returns there."""
    mirror = HyperbolicEntropy(0.7)
    for side in PROX:
        for x in (0.3, -0.3):
            q = PROX[side](L1(1.0), mirror, mirror.at(jnp.array([x])), 1.0)
            assert q.x[0] == q.y[0] == 0
    assert abs(np.sqrt(0.3**2 + 0.7**2) - 0.7) > 0.06


def test_single_precision_far_out():
    mirror = HyperbolicEntropy(np.array([0.7, 0.7, 1e-3, 1e-3]))
    y = np.array([80.0, -80.0, 40.0, -40.0])
    for side in PROX:
        single, double = (
            jax.jit(lambda y, side=side: PROX[side](L1(1.0), mirror, mirror.from_dual(y), 0.1))(jnp.asarray(y, dtype))
            for dtype in (jnp.float32, jnp.float64)
        )
        assert single.x.dtype == single.y.dtype == jnp.float32
        np.testing.assert_allclose(single.y, double.y, rtol=1e-6)
        np.testing.assert_allclose(single.x, double.x, rtol=1e-4)
    unit, y = FermiDirac(), jnp.array([60.0, -60.0], jnp.float32)
    found = right_prox(L1(1.0), unit, unit.from_dual(y), 0.5).y
    np.testing.assert_allclose(found, [60 - np.log(2), -60 - np.log(1.5)], rtol=1e-6)


# -- composed mirrors and terms ---------------------------------------------------------------------------------------

POSITIVE = Affine(BoltzmannShannon(), -1.0, np.array([2.0, 0.5, 1.0]))
REFLECTED = Affine(FermiDirac(), 2.0, -3.0)
PAIRS = {
    "affine": (L1(np.array([1.0, 2.0, 0.5]), np.array([0.0, -2.0, 0.5])), POSITIVE, np.array([0.5, 1.0, 3.0])),
    "reflected": (ElasticNet(1.0, 0.5, 0.3), REFLECTED, np.array([-0.9, 0.4, 1.99])),
    "reflected box": (BoxIndicator(-0.5, 1.0), REFLECTED, np.array([-0.9, 0.4, 1.99])),
    "box": (BoxIndicator(-0.2, np.array([1.0, 2.0, 0.1])), HyperbolicEntropy(0.7), np.array([-3.0, 1.0, 4.0])),
    "half": (NonNegative(), HyperbolicEntropy(0.7), np.array([-3.0, 1.0, 4.0])),
    "net": (Sum(ElasticNet(1.0, 0.7, 0.3), BoxIndicator(0.2, 0.6)), FermiDirac(), np.array([0.05, 0.5, 0.95])),
    "sum": (Sum(L1(0.6, 0.5), BoxIndicator(0.4, 2.0)), BoltzmannShannon(), np.array([0.1, 1.0, 9.0])),
    "simplex": (SimplexIndicator(), BoltzmannShannon(), np.array([0.1, 1.0, 9.0])),
    "product": (
        L1(np.array([1.0, 2.0, 0.5])),
        Product([HyperbolicEntropy(0.5), Affine(BoltzmannShannon(), 0.0, 2.0)], [1, 2]),
        np.array([-2.0, 1.0, 0.3]),
    ),
    "blocks": (
        Blocks([L1(0.7), GroupL2(1.0, [0, 0])], [1, 2]),
        Product([HyperbolicEntropy(0.5), Euclidean()], [1, 2]),
        np.array([-2.0, 1.0, 0.3]),
    ),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PAIRS)
def test_composed_pairs(name, side):
    term, mirror, x = PAIRS[name]
    q = solve(side, term, mirror, x, 0.8)

    @jax.jit
    def look(u):
        """The mirror's point at u[0], the objective at each u, and which of them are in the domain."""
        p = mirror.at(jnp.asarray(x))

        def objective(u):
            point = mirror.at(u)
            apart = mirror.divergence(point, p) if side == "left" else mirror.divergence(p, point)
            return 0.8 * term.value(u) + apart

        return mirror.at(u[0]), jax.vmap(objective)(u), jax.vmap(mirror.contains)(u)

    rng = np.random.default_rng(0)
    near = q.x + rng.normal(size=(4000, 3)) * 10.0 ** rng.integers(-4, 1, size=(4000, 1)) * (
        rng.random((4000, 3)) < 0.6
    )
    if isinstance(term, SimplexIndicator):
        near = np.abs(near) / np.abs(near).sum(1, keepdims=True)
    if isinstance(term, BoxIndicator | NonNegative | Sum):
        near = np.concatenate([near, jax.jit(jax.vmap(lambda u: term.prox(u, 1e-9)))(near)])
    again, values, inside = look(np.concatenate([q.x[None], near]))
    np.testing.assert_allclose(q.y, again.y, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jnp.concatenate(jax.tree.leaves(q)), jnp.concatenate(jax.tree.leaves(again)), rtol=1e-9)
    gain = (values[1:] - values[0])[np.asarray(inside[1:])]
    assert np.sum(np.isfinite(gain)) > 500
    assert np.min(gain) > -1e-10


def test_one_step_per_coordinate():
    mirror, steps = HyperbolicEntropy(0.7), np.array([0.1, 1.0, 3.0])
    p = mirror.at(jnp.array([2.0, -1.0, 0.4]))
    for prox in PROX.values():
        together = prox(L1(2.0), mirror, p, steps)
        alone = [prox(L1(2.0), mirror, p, step).x[i] for i, step in enumerate(steps)]
        np.testing.assert_allclose(together.x, alone, rtol=1e-14)


@pytest.mark.parametrize(
    ("term", "mirror", "left", "right"),
    [
        (GroupL2(1.0, [0, 0]), Euclidean(), True, True),
        (GroupL2(1.0, [0, 0]), HyperbolicEntropy(1.0), False, False),
        (TotalVariation(1.0, (2,)), BoltzmannShannon(), False, False),
        (L1(1.0), SimplexEntropy(), False, False),
        (SimplexIndicator(full=False), BoltzmannShannon(), False, False),
        (Sum(L1(1.0), NonNegative()), HyperbolicEntropy(1.0), True, False),
        (Sum(L1(1.0), BoxIndicator(0.1, 0.5)), FermiDirac(), True, True),
        (Blocks([L1(1.0), GroupL2(1.0, [0])], [1, 1]), Product([Burg(), Burg()], [1, 1]), False, False),
        (Blocks([L1(1.0), None], [1, 1]), Product([Burg(), Burg()], [1, 1]), True, True),
        (Blocks([L1(1.0), None], [1, 2]), Product([Burg(), Burg()], [2, 1]), False, False),
        (GroupL2(1.0, [0, 0]), Affine(Euclidean(), 0.0, 2.0), False, False),
    ],
)
def test_which_pairs_exist(term, mirror, left, right):
    assert supports_left(term, mirror) is left
    assert supports_right(term, mirror) is right
    for side, exists in (("left", left), ("right", right)):
        if not exists:
            message = f"{type(term).__name__} has no {side} proximal operator .* {type(mirror).__name__}"
            with pytest.raises(NotAvailable, match=message):
                PROX[side](term, mirror, None, 1.0)
