"""Total variation: the operator and its adjoint, exact solutions, an independent solver, the stopping rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from pushforward.infer.geometry.prox import prox_conjugate
from pushforward.infer.geometry.tv import TotalVariation, differences, differences_transpose

RNG = np.random.default_rng(1)
TIGHT = {"tolerance": 1e-12, "max_steps": 20_000}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def matrix(shape):
    """D as a matrix, column by column."""
    return np.asarray(jax.vmap(lambda e: differences(e.reshape(shape)).reshape(-1))(jnp.eye(int(np.prod(shape))))).T


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4), (1, 4), (2, 3, 2)])
def test_differences(shape):
    image, field = jnp.asarray(RNG.normal(size=shape)), jnp.asarray(RNG.normal(size=(len(shape), *shape)))
    d = differences(image)
    for axis in range(len(shape)):
        np.testing.assert_array_equal(np.delete(d[axis], -1, axis=axis), np.diff(image, axis=axis))
        assert not np.take(np.asarray(d[axis]), -1, axis=axis).any()
    np.testing.assert_allclose(jnp.vdot(d, field), jnp.vdot(image, differences_transpose(field)), rtol=1e-12)
    assert np.linalg.norm(matrix(shape), 2) ** 2 <= 4 * len(shape)


def test_the_bound_of_the_norm_is_nearly_attained():
    assert np.linalg.norm(matrix((60,)), 2) ** 2 > 3.99
    assert np.linalg.norm(matrix((16, 16)), 2) ** 2 > 7.9


def test_values():
    image = jnp.array([[0.0, 3.0], [4.0, 4.0]])
    assert TotalVariation(2.0, (2, 2)).value(image.reshape(-1)) == 2 * (5 + 1 + 0)
    assert TotalVariation(2.0, (2, 2), isotropic=False).value(image.reshape(-1)) == 2 * (7 + 1)
    assert TotalVariation(1.0, (4,)).value(image.reshape(-1)) == 3 + 1


def test_exact_solutions():
    """A step keeps its place and loses height τ/n on each side; a peak is cut; a large weight leaves the mean."""
    step = jnp.array([0.0, 0, 0, 0, 10, 10])
    found = TotalVariation(1.0, (6,), **TIGHT).prox(step, 2.0)
    np.testing.assert_allclose(found, [0.5] * 4 + [9.0] * 2, atol=1e-6)
    peak = jnp.array([0.0, 0, 3, 0, 0])
    np.testing.assert_allclose(
        TotalVariation(1.0, (5,), **TIGHT).prox(peak, 0.5), [0.25, 0.25, 2, 0.25, 0.25], atol=1e-6
    )
    noise = jnp.asarray(RNG.normal(size=12))
    for shape in ((12,), (3, 4)):
        np.testing.assert_allclose(
            TotalVariation(100.0, shape, **TIGHT).prox(noise, 1.0), np.full(12, noise.mean()), atol=1e-6
        )
        np.testing.assert_array_equal(TotalVariation(0.0, shape).prox(noise, 1.0), noise)
    # one bright corner, isotropic: the corner's pixel has both of its differences, so that it loses √2 τ
    corner = jnp.zeros((3, 3)).at[0, 0].set(9.0)
    found = TotalVariation(1.0, (3, 3), **TIGHT).prox(corner.reshape(-1), 1.0)
    np.testing.assert_allclose(found[0], 9 - np.sqrt(2), atol=1e-6)
    found = TotalVariation(1.0, (3, 3), isotropic=False, **TIGHT).prox(corner.reshape(-1), 1.0)
    np.testing.assert_allclose(found[0], 9 - 2, atol=1e-6)


@pytest.mark.parametrize(("shape", "isotropic"), [((20,), True), ((5, 4), False)])
def test_against_a_quadratic_program(shape, isotropic):
    """The dual over a box, min ½‖x − τ Dᵀq‖² with |q| ≤ 1, by bounded least squares."""
    x, tau = RNG.normal(size=int(np.prod(shape))), 0.7
    d = matrix(shape)
    dual = optimize.lsq_linear(tau * d.T, x, (-1, 1), tol=1e-14, method="bvls").x
    found = jax.jit(lambda x: TotalVariation(0.35, shape, isotropic, **TIGHT).prox(x, 2.0))(x)
    np.testing.assert_allclose(found, x - tau * d.T @ dual, atol=2e-6)


def test_isotropic_against_a_general_solver():
    shape, tau = (4, 4), 0.5
    x, d = RNG.normal(size=16), matrix(shape)

    def objective(q):
        """The dual, min ½‖x − τ Dᵀq‖² with |q_p|² ≤ 1 at each of the 16 pixels."""
        rest = x - tau * d.T @ q
        return 0.5 * rest @ rest, -tau * d @ rest

    balls = {
        "type": "ineq",
        "fun": lambda q: 1 - np.sum(q.reshape(2, 16) ** 2, axis=0),
        "jac": lambda q: -2 * np.hstack([np.diag(part) for part in q.reshape(2, 16)]),
    }
    options = {"maxiter": 2000, "ftol": 1e-15}
    best = optimize.minimize(objective, np.zeros(32), jac=True, method="SLSQP", constraints=balls, options=options)
    expected = x - tau * d.T @ best.x
    found = TotalVariation(tau, shape, **TIGHT).prox(jnp.asarray(x), 1.0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(40,), (8, 8)])
def test_the_gap_bounds_the_error(shape):
    x = jnp.asarray(RNG.normal(size=int(np.prod(shape))))
    exact = TotalVariation(0.8, shape, **TIGHT).solve(x, 1.0)
    assert exact.converged
    for tolerance in (1e-2, 1e-4, 1e-6):
        term = TotalVariation(0.8, shape, tolerance=tolerance)
        loose = term.solve(x, 1.0)
        objective = term.value(loose.x) + 0.5 * jnp.sum((loose.x - x) ** 2)
        assert loose.converged
        assert loose.gap <= tolerance * objective
        assert 0.5 * jnp.sum((loose.x - exact.x) ** 2) <= loose.gap + 1e-9
        assert np.all(term.norms(loose.dual) <= 1 + 1e-12)
    stopped = TotalVariation(0.8, shape, tolerance=1e-9, max_steps=3).solve(x, 1.0)
    assert stopped.num_steps == 3
    assert not stopped.converged


def test_a_warm_start_saves_steps():
    term = TotalVariation(0.8, (16, 16))
    solve = jax.jit(lambda x, dual: term.solve(x, 1.0, dual))
    x = jnp.asarray(RNG.normal(size=256))
    cold = solve(x, jnp.zeros((2, 16, 16)))
    assert solve(x, cold.dual).num_steps == 0
    near = solve(x + 1e-3 * RNG.normal(size=256), cold.dual)
    assert near.converged
    assert near.num_steps < 0.5 * cold.num_steps


def test_batches_and_single_precision():
    term = TotalVariation(0.8, (8, 8))
    x = jnp.asarray(RNG.normal(size=(3, 64)), jnp.float32)
    together = jax.jit(jax.vmap(lambda x: term.solve(x, 1.0)))(x)
    assert together.x.dtype == jnp.float32
    assert np.all(together.converged)
    exact = jax.vmap(lambda x: TotalVariation(0.8, (8, 8), **TIGHT).prox(x, 1.0))(x.astype(float))
    np.testing.assert_allclose(together.x, exact, atol=0.02)


def test_projection_is_the_prox_of_the_conjugate_norm():
    """Of w‖·‖ over fields, whose conjugate is the indicator of the ball that the primal–dual sampler projects on."""
    field = jnp.asarray(RNG.normal(size=(2, 3, 3)))
    for isotropic in (True, False):
        term = TotalVariation(0.6, (3, 3), isotropic)

        class Norm:
            def prox(self, flat, step, term=term):
                norms = term.norms(flat.reshape(2, 3, 3))
                return (flat.reshape(2, 3, 3) * np.maximum(1 - 0.6 * step / norms, 0)).reshape(-1)

        expected = prox_conjugate(Norm(), field.reshape(-1), 0.8).reshape(2, 3, 3)
        np.testing.assert_allclose(term.project(field, 0.6), expected, atol=1e-14)
