"""The inverse of a mirror map by Newton's method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.geometry import Burg, PolytopeBarrier, Product
from pushforward.infer.geometry.newton import NewtonInverse, largest_residual, with_inverse

TRIANGLE = PolytopeBarrier(np.array([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]]), np.array([0.0, 0.0, 1.0]))


def test_it_is_the_inverse_also_next_to_a_corner() -> None:
    with jax.enable_x64(True):
        mirror = NewtonInverse(TRIANGLE, np.full(2, 0.3))
        x = np.random.default_rng(0).dirichlet(np.full(3, 0.3), 200)[:, :2]
        x = x[(x > 1e-9).all(1) & (x.sum(1) < 1 - 1e-9)]
        y = jax.vmap(lambda x: mirror.at(x).y)(x)
        found = jax.vmap(mirror.from_dual)(y)
        np.testing.assert_allclose(found.x, x, rtol=1e-7)
        assert largest_residual(mirror, found) < 1e-9


def test_its_derivative_is_the_inverse_hessian() -> None:
    with jax.enable_x64(True):
        mirror = NewtonInverse(TRIANGLE, np.full(2, 0.3))
        p = mirror.at(jnp.array([0.1, 0.7]))
        slope = jax.jacobian(lambda y: mirror.from_dual(y).x)(p.y)
        expected = jnp.stack([mirror.inv_hess_mv(p, e) for e in jnp.eye(2)])
        np.testing.assert_allclose(slope, expected, rtol=1e-9)


def test_products_keep_their_other_parts() -> None:
    mirror = with_inverse(Product((Burg(), TRIANGLE), (1, 2)), jnp.array([1.0, 0.3, 0.3]))
    x = jnp.array([2.0, 0.2, 0.5])
    np.testing.assert_allclose(mirror.from_dual(mirror.at(x).y).x, x, rtol=1e-4)
    assert isinstance(mirror.parts[0], Burg)


def test_a_center_outside() -> None:
    with pytest.raises(pf.InvalidArgument, match="center must lie inside of the domain of PolytopeBarrier"):
        NewtonInverse(TRIANGLE, np.ones(2))
