"""Formulas that are easily got wrong: each wrong version turns a check red."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pushforward.infer.variational.mixflow import families, orbit
from pushforward.infer.variational.mixflow.families import Flow
from pushforward.infer.variational.mixflow.hamiltonian import HamiltonianMap
from pushforward.infer.variational.mixflow.involutive import InvolutiveMap
from pushforward.infer.variational.mixflow.maps import clip_unit, normal_quantile

from .cases import REFERENCE, cross, maps


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def starts(flow_map):
    one = lambda key: orbit.start(key, flow_map, REFERENCE, cross)  # noqa: E731
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 20))


def undone(name):
    """T⁻¹ T = id."""
    flow_map = maps()[name]
    begin = starts(flow_map)
    both = lambda s: flow_map.inverse(flow_map.forward(s, cross).state, cross).state  # noqa: E731
    back = jax.jit(jax.vmap(both))(begin)
    for x, y in zip(jax.tree.leaves(begin), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-9)


def unmoved(name):
    """A map that only refreshes leaves log q_N = log q₀."""
    flow_map = maps(step=0.0)[name]
    begin = starts(flow_map)
    q = Flow(flow_map, REFERENCE, None)
    found = jax.jit(jax.vmap(lambda s: families.log_density_at(s, q, cross, jnp.asarray(9))))(begin)
    np.testing.assert_allclose(found, jax.vmap(REFERENCE.log_prob)(begin.at.x), atol=1e-9)


def wrong_sign(monkeypatch):
    """log|det| = Σ log m(after) − log m(before)."""
    for way in ("forward", "inverse"):
        right = getattr(HamiltonianMap, way)

        def wrong(self, *args, right=right):
            moved = right(self, *args)
            return moved._replace(log_det=-moved.log_det)

        monkeypatch.setattr(HamiltonianMap, way, wrong)


def missing_root(monkeypatch):
    """The normal quantile without its √2 where p < ½, as in the authors' package until 2022."""

    def quantile(self, p):
        z = normal_quantile(clip_unit(p))
        return jnp.where(p < 0.5, z / jnp.sqrt(2.0), z)

    monkeypatch.setattr(HamiltonianMap, "quantile", quantile)


def ratio_twice(monkeypatch):
    """a' = a / r² for an accepted move."""
    right = InvolutiveMap.forward

    def forward(self, state, *args):
        moved = right(self, state, *args)
        accepted = jnp.any(moved.state.at.x != state.at.x)
        a = jnp.where(accepted, moved.state.a * jnp.exp(moved.energy_error), moved.state.a)
        return moved._replace(state=moved.state._replace(a=a))

    monkeypatch.setattr(InvolutiveMap, "forward", forward)


def times_ratio(monkeypatch):
    """a' = a r for an accepted move."""
    right = InvolutiveMap.forward

    def forward(self, state, *args):
        moved = right(self, state, *args)
        accepted = jnp.any(moved.state.at.x != state.at.x)
        a = jnp.where(accepted, moved.state.a * jnp.exp(-2.0 * moved.energy_error), moved.state.a)
        return moved._replace(state=moved.state._replace(a=a))

    monkeypatch.setattr(InvolutiveMap, "forward", forward)


def not_swapped(monkeypatch):
    """w that goes on shifting by itself, where v should come to be it."""
    right = InvolutiveMap.forward

    def forward(self, state, *args):
        moved = right(self, state, *args)
        return moved._replace(state=moved.state._replace(w=(state.w + self.shift_w) % 1.0))

    monkeypatch.setattr(InvolutiveMap, "forward", forward)


def not_flipped(monkeypatch):
    """A momentum that is not negated, so that the proposal is no involution."""
    right = InvolutiveMap.involution

    def involution(self, *args):
        there, momentum = right(self, *args)
        return there, -momentum

    monkeypatch.setattr(InvolutiveMap, "involution", involution)


WRONG = [
    (wrong_sign, unmoved, "gaussian"),
    (wrong_sign, unmoved, "laplace"),
    (missing_root, undone, "gaussian"),
    (ratio_twice, undone, "hmc"),
    (ratio_twice, undone, "mala"),
    (not_flipped, undone, "hmc"),
    (times_ratio, undone, "hmc"),
    (not_swapped, undone, "hmc"),
]


@functools.cache
def passes(check, name):
    """The formula as it is."""
    check(name)


@pytest.mark.parametrize(("mistake", "check", "name"), WRONG)
def test_a_wrong_formula_is_seen(monkeypatch, mistake, check, name):
    passes(check, name)
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        check(name)
