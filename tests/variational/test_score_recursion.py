"""The score carried along a flow is the one of its density, and the fast gradient is that of sticking the landing."""

import functools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flowjax import bijections, flows
from flowjax.distributions import StandardNormal
from paramax import unwrap

from pushforward.infer.variational import score_recursion
from pushforward.infer.variational.estimators import FastPath, StickingTheLanding, split
from pushforward.infer.variational.objectives import ELBO, ForwardKL

from .small_families import FlowjaxFlow

D = 4
SPLINE = partial(bijections.RationalQuadraticSpline, knots=5, interval=3)


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def moved(q, key=9, by=0.3):
    """A family away from its start, which is often the identity."""
    params, static = split(q)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    leaves = [x + by * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return eqx.combine(jax.tree.unflatten(tree, leaves), static)


@functools.cache
def flow(name):
    key, base = jax.random.key(0), StandardNormal((D,))
    small = {"base_dist": base, "flow_layers": 2, "nn_width": 7, "nn_depth": 1}
    make = {
        "coupling": lambda: flows.coupling_flow(key, invert=False, **small),
        "spline coupling": lambda: flows.coupling_flow(key, invert=False, transformer=SPLINE(), **small),
        "inverse autoregressive": lambda: flows.masked_autoregressive_flow(key, invert=False, **small),
        "masked autoregressive": lambda: flows.masked_autoregressive_flow(key, invert=True, **small),
        "triangular spline": lambda: flows.triangular_spline_flow(key, base_dist=base, flow_layers=2, invert=False),
        "leaky planar": lambda: flows.planar_flow(key, base_dist=base, flow_layers=2, invert=False, negative_slope=0.2),
    }
    if name == "elementwise and linear":
        layers = [
            bijections.TriangularAffine(jnp.arange(1.0 * D), jnp.eye(D) + 0.3),
            bijections.Vmap(SPLINE(), axis_size=D),
            bijections.Affine(jnp.ones(D), jnp.arange(1.0, 1.0 + D)),
            bijections.Householder(jnp.arange(1.0, 1.0 + D)),
            bijections.Flip((D,)),
            bijections.Permute(jnp.array([2, 0, 3, 1])),
        ]
        return moved(FlowjaxFlow(base, bijections.Chain(layers)))
    made = moved(make[name]())
    return FlowjaxFlow(made.base_dist, made.bijection)


NAMES = ["coupling", "inverse autoregressive"]
SLOW = ["elementwise and linear", "spline coupling", "masked autoregressive", "triangular spline", "leaky planar"]


def target(u):
    return -0.5 * jnp.sum((u - 1) ** 2) + jnp.sin(u[0] * u[1])


@pytest.mark.parametrize("name", NAMES + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW])
def test_fast_gradient_is_that_of_sticking_the_landing(name: str) -> None:
    q, key, objective = flow(name), jax.random.key(2), ELBO(5)
    both = jax.jit(
        lambda key: [e.value_and_grad(objective, q, target, key) for e in (FastPath(), StickingTheLanding())]
    )
    fast, slow = both(key)
    # A spline's inverse, which only the slow one uses, loses digits near knots.
    rtol = 1e-6 if "spline" in name else 1e-10
    np.testing.assert_allclose(fast.value, slow.value, rtol=rtol)
    for a, b in zip(jax.tree.leaves(fast.grads), jax.tree.leaves(slow.grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("wrong", [pytest.param("without its gradient", marks=pytest.mark.slow), "one Jacobi step"])
def test_wrong_recursions_are_seen(wrong: str, monkeypatch) -> None:
    # Affine layers have a constant slope; in the other flow the splines' log determinants have gradients.
    q = flow("inverse autoregressive" if wrong == "one Jacobi step" else "elementwise and linear")
    z = jax.random.normal(jax.random.key(1), (3, D))
    u, _, score = jax.jit(lambda z: score_recursion.push_base(q, z))(z)
    exact = jax.jit(jax.vmap(jax.grad(q.log_prob)))(u)
    np.testing.assert_allclose(score, exact, rtol=1e-8)
    true = score_recursion.elementwise

    def changed(transform, x, g):
        log_det, slope, pushed = true(transform, x, g)
        gradient = jax.grad(lambda x: transform(x)[1])(x)
        return log_det, slope, pushed + gradient / slope

    if wrong == "one Jacobi step":
        monkeypatch.setattr(jax.lax, "while_loop", lambda going, body, carry: carry)
    else:
        monkeypatch.setattr(score_recursion, "elementwise", changed)
    score = jax.jit(lambda z: score_recursion.push_base(q, z)[2])(z)
    assert np.abs(score - exact).max() > 1e-4 * np.abs(exact).max()


def test_planar_by_sherman_and_morrison() -> None:
    layer = moved(bijections.Planar(jax.random.key(0), dim=D), by=1.0)
    x, g = jax.random.normal(jax.random.key(1), (2, D))
    pairs = jax.jit(lambda x, g: (score_recursion.push(layer, x, g), score_recursion.dense(layer, x, g)))(x, g)
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.slow
def test_any_layer_by_its_jacobian() -> None:
    network = moved(bijections.BlockAutoregressiveNetwork(jax.random.key(0), dim=D, depth=1, block_dim=3), by=0.3)
    x, g = jax.random.normal(jax.random.key(1), (2, D))

    @jax.jit
    def both(x, g):
        log_det = lambda x: jnp.linalg.slogdet(jax.jacobian(network.transform)(x))[1]  # noqa: E731
        exact = network.transform(x), log_det(x), g - jax.grad(log_det)(x), jax.jacobian(network.transform)(x)
        return score_recursion.push(network, x, g), exact

    (y, log_det, pushed), (exact_y, exact_log_det, r, jacobian) = both(x, g)
    np.testing.assert_allclose(y, exact_y)
    assert float(log_det) == pytest.approx(float(exact_log_det), rel=1e-8)
    np.testing.assert_allclose(pushed @ jacobian, r, rtol=1e-7)


def test_radial_layers_are_a_multiple_of_the_identity_plus_rank_one() -> None:
    r, a, b = jax.random.normal(jax.random.key(0), (3, D))
    found = score_recursion.rank_one(r, a, b, 1.7)
    np.testing.assert_allclose(found @ (1.7 * np.eye(D) + np.outer(a, b)), r, rtol=1e-10)


def test_along_a_differential_equation() -> None:
    # dx/dt = A x from N(0, I): x(1) = e^A z, log|det| = tr A, score −Σ⁻¹ x with Σ = e^A e^Aᵀ.
    a = 0.5 * jax.random.normal(jax.random.key(0), (D, D))
    field = score_recursion.score_field(lambda t, x: a @ x, lambda t, x: jnp.trace(a) + 0 * x.sum())
    z = jax.random.normal(jax.random.key(1), (D,))
    h = 1 / 200
    add = lambda s, k, c: jax.tree.map(lambda s, k: s + c * h * k, s, k)  # noqa: E731

    def step(_, state):  # Runge and Kutta's
        k1 = field(0.0, state)
        k2 = field(0.0, add(state, k1, 0.5))
        k3 = field(0.0, add(state, k2, 0.5))
        k4 = field(0.0, add(state, k3, 1.0))
        return jax.tree.map(lambda s, *k: s + h / 6 * (k[0] + 2 * k[1] + 2 * k[2] + k[3]), state, k1, k2, k3, k4)

    state = jax.lax.fori_loop(0, 200, step, (z, jnp.zeros(()), -z))
    root = jax.scipy.linalg.expm(a)
    np.testing.assert_allclose(state[0], root @ z, rtol=1e-8)
    assert float(state[1]) == pytest.approx(float(jnp.trace(a)))
    np.testing.assert_allclose(state[2], -jnp.linalg.solve(root @ root.T, root @ z), rtol=1e-7)


def test_forward_kl_path_gradient_is_its_drop_in() -> None:
    q, key = flow("coupling"), jax.random.key(4)
    objective = ForwardKL(1 + jax.random.normal(jax.random.key(3), (6, D)), num_draws=6)
    params, static = split(q)

    @jax.jit
    def three(params):
        q = eqx.combine(params, static)
        found = [e.value_and_grad(objective, q, target, key).grads for e in (FastPath(), StickingTheLanding())]
        # Written out: with z = T⁻¹(u) held fixed the gradient is −Σ gᵀ ∂T(z)/∂φ / M, g = ∇[log q − log π].
        taken = objective.take(key, (6, 1))[:, 0]
        g = jax.vmap(jax.grad(lambda u: q.log_prob(u) - target(u)))(taken)
        z = jax.vmap(unwrap(q.bijection).inverse)(taken)

        def surrogate(params):
            moved = jax.vmap(unwrap(eqx.combine(params, static).bijection).transform)(z)
            return -jnp.mean(jnp.sum(g * moved, 1))

        return *found, jax.grad(surrogate)(params)

    exact = three(params)
    for a, b, c in zip(*(jax.tree.leaves(grads) for grads in exact), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(b, c, rtol=1e-9, atol=1e-12)
