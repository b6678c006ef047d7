"""Laws of every family: determinant and inverse, scores, path gradients; and of how maps are combined."""

from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pushforward as pf
from pushforward.infer.variational.estimators import FastPath, Reparameterised, StickingTheLanding
from pushforward.infer.variational.flows.bijection import Stack
from pushforward.infer.variational.flows.coupled import Autoregressive, Coupling
from pushforward.infer.variational.flows.families import FAMILIES, NO_INVERSE, Shape, build
from pushforward.infer.variational.flows.flow import Flow, flow_transform
from pushforward.infer.variational.flows.linear import AffineMap, Whitening
from pushforward.infer.variational.flows.transformers import Affine
from pushforward.infer.variational.objectives import ELBO

from .cases import SHAPES, WITH_INVERSE, flow_of, perturbed, points

# Autoregressive splines are made of parts that the other families hold to the laws; their programs compile for long.
SLOW = ("spline-iaf", "spline-maf")


def some(names: Any, slow: tuple[str, ...] = SLOW) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


families = pytest.mark.parametrize("name", some(FAMILIES))
scored = some(FAMILIES, (*SLOW, "continuous"))
invertible = pytest.mark.parametrize("name", some(WITH_INVERSE))


class Facts(NamedTuple):
    """Everything that the laws of one family look at, from one compiled program."""

    y: Any
    log_det: Any
    jacobian: Any
    back: Any
    back_log_det: Any
    alone: Any
    score: Any
    exact_score: Any


@cache
def facts(name: str, *, with_score: bool = True) -> Facts:
    bijection, x = flow_of(name), points(4)

    @jax.jit
    def all_of(bijection: Any, x: Any) -> Facts:
        def pulled(z: Any) -> Any:
            return -0.5 * jnp.sum(z**2) - bijection.transform_and_log_det(z)[1]

        y, log_det = jax.vmap(bijection.transform_and_log_det)(x)
        jacobian = jax.vmap(jax.jacrev(bijection.transform))(x)
        back = (y, log_det) if name in NO_INVERSE else jax.vmap(bijection.inverse_and_log_det)(y)
        pushed = jax.vmap(bijection.push_score)(x, -x) if with_score else (y, log_det, x)
        exact = x
        if with_score:
            exact = jnp.linalg.solve(jnp.swapaxes(jacobian, 1, 2), jax.vmap(jax.grad(pulled))(x)[..., None])[..., 0]
        return Facts(y, log_det, jacobian, *back, bijection.transform_and_log_det(x[0])[0], pushed, exact)

    with jax.enable_x64(True):
        return jax.device_get(all_of(bijection, x))


@families
def test_the_log_determinant_is_that_of_the_jacobian(name: str) -> None:
    found = facts(name, with_score=name != "continuous")
    sign, log_det = np.linalg.slogdet(found.jacobian)
    np.testing.assert_array_equal(np.abs(sign), 1.0)
    # The solver's error is that of its tolerance.
    np.testing.assert_allclose(found.log_det, log_det, atol=1e-6 if name == "continuous" else 1e-9)
    assert np.ptp(found.log_det) > 1e-3 or name == "nice", "the law needs maps that are not linear"
    np.testing.assert_allclose(found.alone, found.y[0], atol=1e-12)


@invertible
def test_the_inverse_undoes_it(name: str) -> None:
    found, loose = facts(name, with_score=name != "continuous"), 1e-6 if name == "continuous" else 1e-8
    np.testing.assert_allclose(found.back, points(4), atol=loose)
    np.testing.assert_allclose(found.back_log_det, -found.log_det, atol=loose)


@pytest.mark.parametrize("name", scored)
def test_scores_carried_along_are_those_of_the_density(name: str) -> None:
    found, loose = facts(name, with_score=True), 1e-6 if name == "continuous" else 1e-10
    y, log_det, score = found.score
    np.testing.assert_allclose(y, found.y, atol=loose)
    np.testing.assert_allclose(log_det, found.log_det, atol=loose)
    np.testing.assert_allclose(score, found.exact_score, rtol=loose, atol=loose)


@pytest.mark.parametrize("name", NO_INVERSE)
def test_a_density_asked_of_a_flow_without_inverse(name: str) -> None:
    with (
        jax.enable_x64(True),
        pytest.raises(pf.NotAvailable, match=r"has no inverse.*use the densities that sample_and_log_prob"),
    ):
        Flow(flow_of(name)).log_prob(jnp.zeros(3))


@families
def test_a_flow_begins_near_a_standard_normal(name: str) -> None:
    with jax.enable_x64(True):
        flow = Flow(build(jax.random.key(3), name, 3, SHAPES[name]))
        u, log_q = jax.jit(lambda q: q.sample_and_log_prob(jax.random.key(0), 200))(flow)
        reference = -0.5 * np.sum(np.square(u), axis=1) - 1.5 * np.log(2 * np.pi)
        # A shut gate and noise on planar and radial maps are what is left.
        loose = {"bnaf": 2.0, "planar": 0.3, "radial": 0.3}.get(name, 1e-9)
        np.testing.assert_allclose(log_q, reference, atol=loose)


def target_log_density(u: Any) -> Any:
    return -0.5 * jnp.sum((u - 0.3) ** 2) - 0.1 * jnp.sum(u**4)


@pytest.mark.parametrize("name", ["realnvp", "radial", pytest.param("spline-iaf", marks=pytest.mark.slow)])
def test_fast_path_gradients_are_those_of_sticking_the_landing(name: str) -> None:
    with jax.enable_x64(True):
        flow, key = Flow(flow_of(name)), jax.random.key(7)

        @jax.jit
        def both(flow: Any) -> Any:
            return tuple(
                estimator.value_and_grad(ELBO(num_draws=5), flow, target_log_density, key)
                for estimator in (FastPath(), StickingTheLanding())
            )

        fast, slow = both(flow)
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_the_path_gradient_of_a_perfect_fit_is_zero_draw_by_draw() -> None:
    with jax.enable_x64(True):
        flow = Flow(perturbed(AffineMap.make(3, full=True)))

        def log_density(u: Any) -> Any:
            return jax.lax.stop_gradient(flow).log_prob(u) + 1.7

        args = (ELBO(num_draws=3), flow, log_density, jax.random.key(0))
        value, _, grads = jax.jit(lambda: FastPath().value_and_grad(*args))()
        assert float(value) == pytest.approx(1.7, abs=1e-10)
        assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads)) < 1e-10
        _, _, plain = jax.jit(lambda: Reparameterised().value_and_grad(*args))()
        assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(plain)) > 0.1


@pytest.mark.parametrize("name", ["spline-coupling", "iaf", "radial"])
def test_densities_integrate_to_one(name: str) -> None:
    # +log|det| in place of −log|det| is the commonest error, and gives something else than 1.
    with jax.enable_x64(True):
        flow = Flow(perturbed(build(jax.random.key(0), name, 2, SHAPES[name]), size=0.1))
        axis = jnp.linspace(-14, 14, 561)
        grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
        log_q, wrong = map(np.asarray, jax.jit(jax.vmap(lambda u: _both_signs(flow, u)))(grid))
        cell = float(axis[1] - axis[0]) ** 2
    assert np.exp(log_q).sum() * cell == pytest.approx(1.0, abs=1e-3)
    assert abs(np.exp(wrong).sum() * cell - 1) > 0.003


def _both_signs(flow: Flow, u: Any) -> Any:
    z, log_det = flow.bijection.inverse_and_log_det(u)
    log_base = -0.5 * jnp.sum(z**2) - jnp.log(2 * jnp.pi)
    return flow.log_prob(u), log_base - log_det


def test_the_autoregressive_jacobian_is_triangular_and_sees_everything_before() -> None:
    with jax.enable_x64(True):
        layer = perturbed(Autoregressive.make(jax.random.key(0), Affine(), 5, (8, 8), "tanh"))
        jacobian = np.asarray(jax.jit(jax.jacfwd(lambda x: layer.transform_and_log_det(x)[0]))(points(1, 5)[0]))
    assert np.all(np.triu(jacobian, 1) == 0)
    assert np.all(jacobian[np.tril_indices(5)] != 0)


def test_a_coupling_layer_keeps_its_first_half() -> None:
    with jax.enable_x64(True):
        layer = perturbed(Coupling.make(jax.random.key(0), Affine(), 5, (8,), "relu"))
        x = points(1, 5)[0]
        y = jax.jit(lambda x: layer.transform(x))(x)
    np.testing.assert_array_equal(y[:2], x[:2])
    assert np.all(np.asarray(y[2:] != x[2:]))


def test_stacked_layers_are_the_layers_one_after_the_other() -> None:
    with jax.enable_x64(True):
        stack, x = flow_of("realnvp").bijections[0], points(1)[0]
        assert isinstance(stack, Stack)
        assert stack.num_layers == 2
        y, total = x, 0.0
        one = jax.jit(lambda bijection, x: bijection.transform_and_log_det(x))
        for i in range(2):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], stack.layer)
            y, log_det = one(layer, y)
            total += log_det
        found, log_det = one(stack, x)
    np.testing.assert_allclose(found, y, atol=1e-13)
    np.testing.assert_allclose(log_det, total, atol=1e-13)


def test_depth_does_not_make_the_program_longer() -> None:
    def size(num_layers: int) -> int:
        flow = Flow(build(jax.random.key(0), "spline-coupling", 4, Shape(num_layers=num_layers, hidden=(8,))))
        arrays, rest = eqx.partition(flow, eqx.is_inexact_array)

        def value(arrays: Any) -> Any:
            return jnp.sum(eqx.combine(arrays, rest).sample_and_log_prob(jax.random.key(0), 2)[1])

        return len(str(jax.make_jaxpr(jax.grad(value))(arrays)).splitlines())

    assert abs(size(64) - size(17)) < 20


@pytest.mark.slow
def test_64_layers_compile_in_less_than_ten_seconds() -> None:
    import time

    with jax.enable_x64(True):
        flow = Flow(build(jax.random.key(0), "spline-coupling", 10, Shape(num_layers=64)))
        step = jax.jit(lambda q, key: FastPath().value_and_grad(ELBO(num_draws=64), q, target_log_density, key))
        began = time.process_time()  # of this process, whatever else the machine does
        step.lower(flow, jax.random.key(1)).compile()
    assert time.process_time() - began < 10


def test_32_and_64_bits_agree() -> None:
    with jax.enable_x64(True):
        exact = flow_of("spline-coupling")
        y, log_det = jax.jit(lambda x: exact.transform_and_log_det(x))(points(1)[0])
    rough = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), exact)
    y32, log_det32 = jax.jit(lambda x: rough.transform_and_log_det(x))(jnp.asarray(np.asarray(points(1)[0])))
    assert y32.dtype == np.float32
    np.testing.assert_allclose(y32, y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(log_det32, log_det, atol=1e-3)


def test_the_transform_of_a_flow_makes_its_density_standard_normal() -> None:
    # log π(T(z)) + log|det| is log N(z) where q = π; with a minus it is not.
    with jax.enable_x64(True):
        flow = Flow(flow_of("realnvp"))
        transform, z = flow_transform(flow), points(5)
        u, log_det = jax.jit(jax.vmap(transform))(z)
        pulled = jax.jit(jax.vmap(flow.log_prob))(u) + log_det
        np.testing.assert_allclose(pulled, -0.5 * jnp.sum(z**2, 1) - 1.5 * np.log(2 * np.pi), atol=1e-9)
        assert float(jnp.std(log_det)) > 0.1
    with pytest.raises(pf.NotAvailable, match="needs the result of a normalizing flow, got int"):
        flow_transform(3)


def test_whitening_is_not_trained() -> None:
    from pushforward.infer.variational.estimators import split

    params, rest = split(Whitening.make(jnp.ones(2), jnp.eye(2)))
    assert not jax.tree.leaves(params)
    assert len(jax.tree.leaves(rest)) == 2
