"""Terms and their proximal operators: laws over every class, closed forms against brute force, bad input."""

import functools
import importlib
import inspect
import pkgutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from scipy import optimize

import pushforward.infer.geometry as geometry
from pushforward.infer.errors import InvalidArgument
from pushforward.infer.geometry.compose import Blocks, Sum
from pushforward.infer.geometry.indicators import BoxIndicator, NonNegative, SimplexIndicator
from pushforward.infer.geometry.metric import metric_prox
from pushforward.infer.geometry.prox import L1, ElasticNet, GroupL2, NuclearNorm, UserTerm, prox_conjugate
from pushforward.infer.geometry.term import AbstractTerm
from pushforward.infer.geometry.tv import TotalVariation
from pushforward.infer.target import Target
from tests.geometry.terms import GROUPS, LOC, TERMS, D, W

RNG = np.random.default_rng(0)
POINTS = np.concatenate([RNG.normal(size=(6, D)), 4 * RNG.normal(size=(3, D)), np.zeros((1, D)), LOC[None]])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def prox_of(name):
    """The operator over a batch of points; one program for all the laws."""
    with jax.enable_x64(True):
        return jax.jit(jax.vmap(TERMS[name].prox, (0, None)))


@functools.cache
def value_of(name):
    with jax.enable_x64(True):
        return jax.jit(jax.vmap(TERMS[name].value))


@pytest.fixture(params=TERMS)
def name(request):
    return request.param


def test_every_class_has_an_entry():
    found = set()
    for module in pkgutil.iter_modules(geometry.__path__):
        members = vars(importlib.import_module(f"{geometry.__name__}.{module.name}")).values()
        found |= {
            m for m in members if inspect.isclass(m) and issubclass(m, AbstractTerm) and not inspect.isabstract(m)
        }
    assert found == {type(term) for term in TERMS.values()}


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [pytest.param(0.3, marks=pytest.mark.slow), 2.0])
def test_prox_minimises(name, step):
    """That is so if and only if g(z) ≥ g(p) + ⟨(x − p)/s, z − p⟩ for all z."""
    p = prox_of(name)(POINTS, step)
    rng = np.random.default_rng(0)
    away = rng.normal(size=(300, 1, D)) * (rng.random((300, 1, D)) < rng.random((300, 1, 1)))
    z = p + 10.0 ** rng.integers(-3, 2, size=(300, 1, 1)) * away
    domain = prox_of(name)(rng.permutation(POINTS), 1.0)  # its segments to p are in the domain, which is convex
    segments = [p + share * (np.roll(domain, k, axis=0) - p) for share in (1e-3, 0.3, 1) for k in range(len(p))]
    z = np.concatenate([z, segments])
    value = value_of(name)
    gain = value(z.reshape(-1, D)).reshape(z.shape[:2]) - value(np.tile(p, (len(z), 1))).reshape(z.shape[:2])
    gain -= np.sum((POINTS - p) / step * (z - p), axis=-1)
    assert not np.any(np.isnan(gain))
    assert np.mean(np.isfinite(gain)) > 0.09
    assert np.min(gain) > (-1e-4 if "Variation" in name or name == "Blocks" else -1e-9)


@pytest.mark.parametrize("step", [0.3, pytest.param(2.0, marks=pytest.mark.slow)])
def test_prox_is_firmly_nonexpansive(name, step):
    p = prox_of(name)(POINTS, step)
    dp, dx = p[:, None] - p, POINTS[:, None] - POINTS
    assert np.all(np.sum(dp * dx, -1) >= np.sum(dp**2, -1) - 1e-4)


def test_minimisers_are_fixed(name):
    x = POINTS
    for _ in range(100):
        x = prox_of(name)(x, 20.0)
    np.testing.assert_allclose(prox_of(name)(x, 0.7), x, atol=1e-5)


def test_moreau_identity(name):
    """X = prox_{s g}(x) + s prox_{g*/s}(x/s)."""
    batch = types.SimpleNamespace(prox=prox_of(name))
    q = prox_conjugate(batch, POINTS / 0.7, 1 / 0.7)
    np.testing.assert_allclose(prox_of(name)(POINTS, 0.7) + 0.7 * q, POINTS, atol=1e-12)


def test_dtype_follows_the_input(name):
    single = prox_of(name)(POINTS.astype(np.float32), 0.5)
    assert single.dtype == jnp.float32
    assert jax.eval_shape(TERMS[name].prox, POINTS[0].astype(np.float32), jnp.asarray(0.5)).dtype == jnp.float32
    assert jax.eval_shape(TERMS[name].value, POINTS[0].astype(np.float32)).dtype == jnp.float32
    assert jax.eval_shape(TERMS[name].value, POINTS[0]).dtype == jnp.float64
    np.testing.assert_allclose(single, prox_of(name)(POINTS, 0.5), atol=2e-3)


def test_numbers_of_numpy_are_taken_in_32_bits(name):
    with jax.enable_x64(False):
        x = POINTS[0].astype(float)
        assert jax.eval_shape(lambda: (TERMS[name].prox(x, 0.5), TERMS[name].value(x)))[0].dtype == jnp.float32


def test_a_composite_target_takes_it(name):
    target = Target.composite(lambda x: -0.5 * jnp.sum(x**2), TERMS[name], example=np.zeros(D))
    u = prox_of(name)(POINTS, 0.5)
    expected = -0.5 * np.sum(u**2, axis=1) - value_of(name)(u)
    np.testing.assert_allclose(jax.jit(jax.vmap(target.log_density))(u), expected, rtol=1e-12)


def test_fingerprints_tell_static_parts_apart():
    terms = [TotalVariation(1.0, (2, 3)), TotalVariation(1.0, (3, 2)), TotalVariation(1.0, (2, 3), isotropic=False)]
    terms += [
        SimplexIndicator(),
        SimplexIndicator(full=False),
        Blocks([L1(1.0), None], [2, 4]),
        Blocks([L1(1.0), None], [4, 2]),
    ]
    terms += [UserTerm(jnp.sum, jnp.clip), UserTerm(jnp.sum, jnp.where), L1(1.0), L1(2.0)]
    found = {Target.composite(jnp.sum, term, example=np.zeros(D)).fingerprint() for term in terms}
    assert len(found) == len(terms)
    assert Target.composite(jnp.sum, L1(1.0), example=np.zeros(D)).fingerprint() in found


# -- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["L1", "ElasticNet", "Sum", "Sum net"])
def test_separable_terms_against_brute_force(name):
    term, steps = TERMS[name], np.array([0.3, 1.0, 0.5, 2.0, 0.1, 1.0])
    x = jnp.asarray(POINTS[7])
    found = term.prox(x, steps)
    grid = np.linspace(-8, 8, 160_001)
    for i in range(D):
        # value() sums over coordinates: vary one, the others are at the found point
        at = jax.vmap(lambda z, i=i: term.value(found.at[i].set(z)))(grid)
        np.testing.assert_allclose(found[i], grid[np.argmin(at + (grid - x[i]) ** 2 / (2 * steps[i]))], atol=1e-4)


def test_values():
    x = jnp.asarray([3.0, 1.0, -4.0, 2.0, 0.5, -2.0])
    np.testing.assert_allclose(TERMS["L1"].value(x), np.sum(W * np.abs(x - LOC)))
    np.testing.assert_allclose(TERMS["GroupL2"].value(x), 0.5 * 5 + 1.5 * np.hypot(1, 0.5) + 2)
    np.testing.assert_allclose(TERMS["NuclearNorm"].value(x), 0.8 * np.linalg.norm(x.reshape(2, 3), "nuc"))
    np.testing.assert_allclose(ElasticNet(2.0, 3.0, 1.0).value(x[:1]), 2 * 2 + 1.5 * 4)
    assert NonNegative().value(x) == np.inf
    assert NonNegative().value(jnp.abs(x)) == 0
    assert BoxIndicator(-4.0, 3.0).value(x) == 0
    assert BoxIndicator(-4.0, np.nextafter(3.0, 0)).value(x) == np.inf
    assert BoxIndicator(-4.0, 3.0).value(x.at[0].set(np.nan)) == np.inf
    tenths = jnp.full(10, 0.1, jnp.float32)
    assert SimplexIndicator().value(tenths) == 0
    assert SimplexIndicator().value(tenths * 1.001) == np.inf
    assert SimplexIndicator().value(tenths * 0.999) == np.inf
    assert SimplexIndicator(full=False).value(tenths * 0.5) == 0


def test_group_shrinkage():
    x = jnp.asarray([3.0, 1.0, -4.0, 2.0, 1.0, -2.0])
    p = GroupL2(np.array([1.0, 9.0, 0.5]), GROUPS).prox(x, 2.0)
    np.testing.assert_allclose(p, [3 * 0.6, 0, -4 * 0.6, 2, 0, -1], atol=1e-15)
    assert np.all(np.isfinite(jax.jacobian(lambda x: GroupL2(1.0, GROUPS).prox(x, 1.0))(jnp.zeros(6) + 0.1)))


def test_singular_values_are_shrunk():
    u, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    v, _ = np.linalg.qr(RNG.normal(size=(4, 4)))
    x = u @ np.diag([3.0, 1.0, 0.2]) @ v[:3]
    p = NuclearNorm(0.5, (3, 4)).prox(jnp.asarray(x.reshape(-1)), 1.0)
    np.testing.assert_allclose(p.reshape(3, 4), u @ np.diag([2.5, 0.5, 0]) @ v[:3], atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_projection_on_the_simplex(shift):
    for x in POINTS:
        found = SimplexIndicator().prox(jnp.asarray(x + shift), 1.0)
        level = optimize.brentq(lambda t, x=x: np.sum(np.maximum(x - t, 0)) - 1, -20, 20, xtol=1e-14)
        np.testing.assert_allclose(found, np.maximum(x - level, 0), atol=1e-9)
        np.testing.assert_allclose(np.sum(found), 1, rtol=1e-12 + 1e-15 * shift)


def test_conjugate_of_l1_is_a_projection():
    x = jnp.asarray(POINTS[6])
    np.testing.assert_allclose(prox_conjugate(L1(W), x, 0.3), np.clip(x, -W, W), atol=1e-14)
    lower, upper = np.full(D, -0.5), np.full(D, 1.5)  # the conjugate of a box is its support function, max(l v, u v)
    by_hand = np.where(x > 0.3 * upper, x - 0.3 * upper, np.where(x < 0.3 * lower, x - 0.3 * lower, 0))
    np.testing.assert_allclose(prox_conjugate(BoxIndicator(lower, upper), x, 0.3), by_hand, atol=1e-14)


# -- another metric ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"), [((1.0, -2.0), (0.46, -1.76)), ((0.3, 0.2), (0.0, 0.0)), ((0.2, 3.0), (0.0, 2.686))]
)
def test_metric_prox(x, expected):
    matrix = np.array([[1.0, 0.1], [0.1, 0.5]])
    found = jax.jit(lambda x: metric_prox(L1(0.6), matrix, x, 1.0, num_steps=400))(jnp.array(x))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    split = metric_prox(L1(1.2), matrix, jnp.array(x), 0.5, num_steps=400)  # g and the step enter as a product
    np.testing.assert_allclose(split, found, atol=1e-8)


def test_metric_prox_is_optimal():
    """M⁻¹(x − z)/s is a subgradient of g at z; for a diagonal metric the answer is known."""
    root = RNG.normal(size=(D, D))
    matrix, x = root @ root.T + np.eye(D), jnp.asarray(POINTS[6])
    for term in (TERMS["GroupL2"], TERMS["SimplexIndicator"]):
        z = metric_prox(term, matrix, x, 0.7, num_steps=3000)
        np.testing.assert_allclose(term.prox(z + np.linalg.solve(matrix, x - z) / 0.7, 1.0), z, atol=1e-8)
    scales = np.array([0.5, 1.0, 2.0, 0.1, 3.0, 1.0])
    np.testing.assert_allclose(metric_prox(L1(W, LOC), scales, x, 0.7), L1(W, LOC).prox(x, 0.7 * scales), atol=1e-14)
    dense = metric_prox(L1(W, LOC), np.diag(scales), x, 0.7, num_steps=3000)
    np.testing.assert_allclose(dense, L1(W, LOC).prox(x, 0.7 * scales), atol=1e-8)


# -- sites ------------------------------------------------------------------------------------------------------------


def make():
    def model():
        numpyro.sample("sigma", dist.HalfNormal(1))
        numpyro.sample("beta", dist.Normal(0, 1).expand([2, 3]).to_event(2))
        numpyro.sample("gamma", dist.Normal(0, 1).expand([2]).to_event(1))

    return Target.from_numpyro(model)


def bound(term):
    """The term over (sigma, beta, gamma), or in the order that the target has."""
    target = Target.composite(make(), term)
    start, slices = 0, {}
    for site in target.sites:
        slices[site.name] = slice(start, start + site.size)
        start += site.size
    return target.nonsmooth, slices


def test_parameters_by_site():
    x = jnp.asarray(np.arange(9.0) - 4)
    box, at = bound(BoxIndicator({"beta": 0.0}, {"beta": np.full((2, 3), 1.0)}))
    expected = x.at[at["beta"]].set(jnp.clip(x[at["beta"]], 0, 1))
    np.testing.assert_array_equal(box.prox(x, 1.0), expected)
    groups, at = bound(GroupL2(1.0, {"beta": np.array([[0, 0, 0], [1, 1, 1]]), "gamma": 1}))
    b = x[at["beta"]]
    np.testing.assert_allclose(
        groups.value(x),
        np.linalg.norm(b[:3]) + np.linalg.norm(np.append(b[3:], x[at["gamma"]])),
    )
    net, at = bound(Sum(ElasticNet({"gamma": 1.0}, {"gamma": 2.0}), BoxIndicator({"gamma": -1.0}, np.inf)))
    np.testing.assert_array_equal(net.prox(x, 1.0)[at["beta"]], x[at["beta"]])
    blocks, at = bound(Blocks({"beta": TotalVariation(0.4, (2, 3)), "gamma": L1([1.0, 2.0])}))
    whole = blocks.prox(x, 0.5)
    np.testing.assert_allclose(whole[at["beta"]], TotalVariation(0.4, (2, 3)).prox(x[at["beta"]], 0.5))
    np.testing.assert_allclose(whole[at["gamma"]], L1(np.array([1.0, 2.0])).prox(x[at["gamma"]], 0.5))
    np.testing.assert_array_equal(whole[at["sigma"]], x[at["sigma"]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ElasticNet(-1.0, 1.0), "weights must be >= 0, got -1"),
        (lambda: ElasticNet(1.0, np.array([1.0, np.nan])), "ridge must be >= 0, got nan"),
        (lambda: L1("heavy"), "weights must be a number or an array of numbers, got 'heavy'"),
        (lambda: GroupL2(-1.0, [0, 1]), "weights must be >= 0, got -1"),
        (lambda: GroupL2(1.0, [0.5, 1]), r"groups must be integers >= -1 .* got \[0.5, 1.0\]"),
        (lambda: GroupL2(1.0, [0, -2]), r"groups must be integers >= -1 .* got \[0, -2\]"),
        (lambda: GroupL2(np.ones(3), [0, 1]), r"weights has shape \(3,\), but there are 2 groups"),
        (lambda: Target.composite(make(), GroupL2(1.0, [0, 1])), r"groups has shape \(2,\); give .* shape \(9,\)"),
        (lambda: NuclearNorm(1.0, (6,)), r"shape must be \(rows, columns\), got \(6,\)"),
        (lambda: NuclearNorm(-1.0, (2, 3)), "weight must be >= 0, got -1"),
        (lambda: BoxIndicator(1.0, 0.0), "lower must be at most upper, got lower=1.0 and upper=0.0"),
        (lambda: BoxIndicator(np.nan, 0.0), "lower must be numbers or infinite, got nan"),
        (lambda: Target.composite(make(), BoxIndicator({"beta": 1.0}, 0.0)), "lower must be at most upper"),
        (lambda: Target.composite(make(), BoxIndicator({"sigma": 1.0}, 2.0)), "'sigma' of support positive"),
        (lambda: UserTerm(jnp.sum, 3.0), "prox must be a function, got 3.0"),
        (lambda: Sum(GroupL2(1.0, [0, 1]), NonNegative()), "term must be separable .* got GroupL2"),
        (lambda: Sum(L1(1.0), L1(1.0)), "box must be BoxIndicator or NonNegative, got L1"),
        (lambda: Blocks([L1(1.0)], [1, 2]), "same length, got 1 and 2"),
        (lambda: Blocks([TotalVariation(1.0, (3,))], [4]), "sizes has 4 for TotalVariation, .* made for 3"),
        (lambda: Target.composite(make(), Blocks({"delta": L1(1.0)})), "parts names the site 'delta'"),
        (lambda: Target.composite(make(), Blocks({"beta": TotalVariation(1.0, (5,))})), "made for 5 .* target has 6"),
        (lambda: TotalVariation(-1.0, (3,)), "weight must be >= 0, got -1"),
        (lambda: TotalVariation(1.0, ()), r"shape must have at least one axis, got \(\)"),
        (lambda: TotalVariation(1.0, (3, 0)), "shape must be a whole number >= 1, got 0"),
        (lambda: TotalVariation(1.0, (3,), tolerance=0.0), "tolerance .* got 0.0"),
        (lambda: TotalVariation(1.0, (3,), max_steps=0), "max_steps must be a whole number >= 1, got 0"),
        (lambda: Target.composite(make(), TotalVariation(1.0, (3, 4))), "made for 12 .* the target has 9"),
        (lambda: metric_prox(L1(1.0), np.eye(3), jnp.ones(2), 1.0), r"matrix has shape \(3, 3\); give \(2, 2\)"),
        (lambda: metric_prox(L1(1.0), np.array([[1.0, 2], [2, 1]]), jnp.ones(2), 1.0), "least eigenvalue -1"),
        (lambda: metric_prox(L1(1.0), np.array([[1.0, 2], [0, 9]]), jnp.ones(2), 1.0), "symmetric, got .* of 2"),
        (lambda: metric_prox(L1(1.0), np.array([1.0, 0.0]), jnp.ones(2), 1.0), "least eigenvalue 0"),
        (lambda: metric_prox(L1(1.0), np.eye(2), jnp.ones(2), 0.0), "step must be a finite number > 0, got 0.0"),
        (lambda: metric_prox(L1(1.0), np.eye(2), jnp.ones(2), 1.0, 0), "num_steps must be a whole number >= 1, got 0"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InvalidArgument, match=message):
        make()
