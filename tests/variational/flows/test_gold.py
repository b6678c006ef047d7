"""Known answers: the planar constraint, splines at their knots and against flowjax's, radial rays, block weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.variational.flows.bnaf import BlockAutoregressive
from pushforward.infer.variational.flows.continuous import Continuous
from pushforward.infer.variational.flows.planar import Planar, Radial
from pushforward.infer.variational.flows.transformers import Additive, Affine, RationalQuadratic

from .cases import perturbed, points


def test_the_planar_constraint_projects_along_the_norm_squared() -> None:
    with jax.enable_x64(True):
        planar = Planar(jnp.array([2.0, 0.0]), jnp.array([-5.0, 0.0]), jnp.zeros(()), 2)
        exact = -1 + np.log1p(np.exp(-10))
        assert float(planar.w @ planar.direction()) == pytest.approx(exact, abs=1e-12)
        assert exact == pytest.approx(-0.9999546, abs=1e-7)
        # Divided by the norm instead, the map would fold: wᵀû = −10 + 2 (−0.99995 + 10) = 8.
        wrong = planar.u + (exact + 10) * planar.w / jnp.linalg.norm(planar.w)
        assert float(planar.w @ wrong) > 7


def test_random_planar_maps_are_one_to_one() -> None:
    with jax.enable_x64(True):

        @jax.jit
        def one(key, x):
            planar = Planar.make(key, 5)
            planar = eqx.tree_at(lambda p: (p.w, p.u), planar, (3 * planar.u, planar.w - 5 * planar.u))
            return planar.transform_and_log_det(x)[1], jnp.linalg.slogdet(jax.jacfwd(planar.transform)(x))

        keys = jax.random.split(jax.random.key(0), 50)
        log_det, (sign, exact) = jax.vmap(one)(keys, 3 * jax.random.normal(jax.random.key(1), (50, 5)))
    np.testing.assert_array_equal(sign, 1.0)
    np.testing.assert_allclose(log_det, exact, atol=1e-9)
    assert np.std(np.asarray(exact)) > 0.1


def test_planar_and_radial_maps_begin_at_the_identity() -> None:
    with jax.enable_x64(True):
        x = points(4, 4)
        for make in (Planar.make, Radial.make):
            y = jax.jit(lambda x, make=make: jax.vmap(make(jax.random.key(0), 4).transform)(x))(x)
            assert float(jnp.abs(y - x).max()) < 0.1
        # u = 0 is not the identity: m(0) = log 2 − 1.
        zero = Planar(jnp.array([0.5, 0.0]), jnp.zeros(2), jnp.zeros(()), 2)
        np.testing.assert_allclose(zero.direction(), [(np.log(2) - 1) / 0.5, 0], atol=1e-12)


def test_radial_at_its_centre_and_far_away() -> None:
    with jax.enable_x64(True):
        radial = Radial(jnp.array([1.0, -1.0]), jnp.asarray(0.3), jnp.asarray(-2.0), 2)
        gradient = jax.jit(jax.jacfwd(radial.transform))(radial.center)
        assert bool(jnp.all(jnp.isfinite(gradient)))
        far = jnp.array([1e4, 3.0])
        y, log_det = jax.jit(lambda x: radial.transform_and_log_det(x))(far)
        back, back_log_det = jax.jit(lambda x: radial.inverse_and_log_det(x))(y)
        np.testing.assert_allclose(back, far, rtol=1e-12)
        np.testing.assert_allclose(back_log_det, -log_det, atol=1e-12)


def spline_case(num_bins: int = 8, bound: float = 4.0) -> tuple[RationalQuadratic, jax.Array]:
    spline = RationalQuadratic(num_bins, bound)
    return spline, jax.random.normal(jax.random.key(0), (1, spline.num_params))


def test_transformers_are_the_identity_at_zero() -> None:
    with jax.enable_x64(True):
        x = jnp.linspace(-6, 6, 25)
        for transformer in (Additive(), Affine(), RationalQuadratic(5, 4.0)):
            y, log_slope = jax.jit(lambda *a, t=transformer: t.forward(*a))(jnp.zeros((25, transformer.num_params)), x)
            np.testing.assert_allclose(y, x, atol=1e-13)
            np.testing.assert_allclose(log_slope, 0, atol=1e-12)


def test_splines_are_monotone_smooth_at_knots_and_end_in_straight_lines() -> None:
    with jax.enable_x64(True):
        spline, params = spline_case()
        knots, heights, slopes = (x[0] for x in spline.knots(params))
        np.testing.assert_array_equal(knots[jnp.array([0, -1])], [-4.0, 4.0])
        np.testing.assert_array_equal(heights[jnp.array([0, -1])], [-4.0, 4.0])
        x = jnp.linspace(-5, 5, 2001)
        forward = jax.jit(jax.vmap(lambda x: spline.forward(params, x[None])))
        y, log_slope = map(np.asarray, forward(x))
        assert np.all(np.diff(y[:, 0]) > 0)
        outside = np.abs(x) > 4
        np.testing.assert_array_equal(y[outside, 0], x[outside])
        # Value and derivative at the knots, from both sides.
        for side in (-1e-9, 1e-9):
            y, log_slope = forward(knots + side)
            np.testing.assert_allclose(y[:, 0], heights, atol=1e-7)
            np.testing.assert_allclose(np.exp(log_slope[:, 0]), slopes, rtol=1e-5)


def test_splines_are_those_of_flowjax_with_ends_of_slope_one() -> None:
    from flowjax.bijections import RationalQuadraticSpline
    from paramax import unwrap

    with jax.enable_x64(True):
        spline, params = spline_case()
        knots, heights, slopes = spline.knots(params)
        theirs = unwrap(RationalQuadraticSpline(knots=7, interval=4.0))
        parts = (knots[0], heights[0], slopes[0])
        theirs = eqx.tree_at(lambda s: (s.x_pos, s.y_pos, s.derivatives), theirs, parts)
        x = jnp.linspace(-4.5, 4.5, 40)
        y, log_slope = jax.jit(jax.vmap(lambda x: spline.forward(params, x[None])))(x)
        expected, expected_slope = jax.jit(jax.vmap(theirs.transform_and_log_det))(x)
        np.testing.assert_allclose(y[:, 0], expected, atol=1e-10)
        np.testing.assert_allclose(log_slope[:, 0], expected_slope, atol=1e-9)


@pytest.mark.parametrize("bits", [32, 64])
def test_gradients_of_splines_are_finite_at_and_beyond_the_ends(bits: int) -> None:
    with jax.enable_x64(bits == 64):
        spline, params = spline_case()
        x = jnp.array([4.0, -4.0, 4.0 + 1e-6, -4.0 - 1e-6, 1e3, -1e3, 0.0])

        def total(params, x, map_of):
            y, log_slope = jax.vmap(lambda x: map_of(params, x[None]))(x)
            return jnp.sum(y) + jnp.sum(log_slope)

        for map_of in (spline.forward, spline.backward):
            grads = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)(params, x, map_of)
            assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)


def test_log_scales_are_bounded() -> None:
    log_slope = Affine(limit=2.0).forward(jnp.array([[1e3, 0.0], [-1e3, 0.0]]), jnp.ones(2))[1]
    np.testing.assert_allclose(log_slope, [2.0, -2.0], rtol=1e-6)


def test_block_autoregressive_maps_reach_all_of_the_line() -> None:
    # A network that ends in bounded units alone would stop at a few units.
    with jax.enable_x64(True):
        layer = perturbed(BlockAutoregressive.make(jax.random.key(0), 2, (6, 6)))
        y = jax.jit(jax.vmap(layer.transform_and_log_det))(jnp.array([[1e4, 1e4], [-1e4, -1e4]]))[0]
    assert np.all(np.abs(y) > 1e3)
    assert np.all(np.asarray(y[0]) > np.asarray(y[1]))


def test_a_linear_field_is_solved_by_the_matrix_exponential() -> None:
    from scipy.linalg import expm

    with jax.enable_x64(True):
        flow = Continuous.make(jax.random.key(0), 2, (), "tanh", 1e-9)
        matrix = np.array([[0.3, -0.8], [0.5, 0.1]])
        weight = jnp.concatenate([jnp.asarray(matrix), jnp.zeros((2, 1))], axis=1)
        flow = eqx.tree_at(lambda f: f.network.weights, flow, (weight,))
        x = jnp.array([1.0, -2.0])
        y, log_det = jax.jit(lambda x: flow.transform_and_log_det(x))(x)
        np.testing.assert_allclose(y, expm(matrix) @ np.asarray(x), atol=1e-7)
        assert float(log_det) == pytest.approx(np.trace(matrix), abs=1e-8)
        assert 1 < int(flow.num_steps(x)) < 512
