"""Targets made from a plain log density: names, supports, data as leaves, and bad input."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from scipy import stats

from pushforward.infer.errors import InvalidArgument, NotAvailable, UnsupportedTarget
from pushforward.infer.target import Target


class Pair(NamedTuple):
    low: float
    rows: np.ndarray


class Model(eqx.Module):
    weight: jax.Array
    name: str
    activation: object = jax.nn.relu


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_a_bare_array_is_called_x():
    target = Target.from_log_density(lambda x: -jnp.sum(x**2), np.zeros((2, 3)))
    assert [(s.name, s.shape, s.size) for s in target.sites] == [("x", (2, 3), 6)]
    u = jnp.arange(6.0)
    assert target.log_density(u) == -55.0
    np.testing.assert_array_equal(target.constrain(u)["x"], np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("example", "names"),
    [
        ({"b": 1.0, "a": {"c": np.zeros(2)}}, ["a.c", "b"]),
        ([np.zeros(2), (1.0, 2.0)], ["0", "1.0", "1.1"]),
        (Pair(1.0, np.zeros((2, 2))), ["low", "rows"]),
        (Model(jnp.ones(3), "kept"), ["weight"]),
        (jnp.float32(2.0), ["x"]),
        (3, ["x"]),
    ],
)
def test_names_follow_the_paths_and_fn_gets_the_same_structure(example, names):
    seen = []

    def fn(params):
        seen.append(params)
        leaves = [leaf for leaf in jax.tree.leaves(params) if hasattr(leaf, "shape")]
        return -sum(jnp.sum(leaf**2) for leaf in leaves)

    target = Target.from_log_density(fn, example)
    assert [site.name for site in target.sites] == names
    assert jax.tree.structure(seen[0]) == jax.tree.structure(example)
    assert target.log_density(jnp.ones(target.dim)) == -target.dim


def test_density_of_a_gamma_in_log_coordinates():
    target = Target.from_log_density(lambda x: 2 * jnp.log(x) - 3 * x, 1.0, constraints.positive)
    u = 0.7
    expected = stats.gamma.logpdf(np.exp(u), 3, scale=1 / 3) + u
    shift = stats.gamma.logpdf(1.0, 3, scale=1 / 3) + 3
    np.testing.assert_allclose(target.log_density(jnp.array([u])) + shift, expected, rtol=1e-12)


def test_bounds_may_be_arrays():
    low = np.array([1.0, -2.0])
    fn = lambda x: jnp.sum(x)  # noqa: E731
    target = Target.from_log_density(fn, np.zeros(2), constraints.interval(low, 5.0))
    assert target.sites[0].support == "interval(…, 5)"
    np.testing.assert_allclose(target.constrain(jnp.zeros(2))["x"], (low + 5) / 2, rtol=1e-12)
    again = Target.from_log_density(fn, np.zeros(2), constraints.interval(low.copy(), 5.0))
    other = Target.from_log_density(fn, np.zeros(2), constraints.interval(low + 1, 5.0))
    assert jax.tree.structure(target) == jax.tree.structure(again) != jax.tree.structure(other)


def test_a_dict_of_supports_may_leave_out_real_sites():
    example = {"a": {"s": 1.0, "m": 0.0}, "w": np.ones(3)}
    fn = lambda p: jnp.sum(p["w"]) + p["a"]["s"]  # noqa: E731
    nested = Target.from_log_density(fn, example, {"a": {"s": constraints.positive}})
    flat = Target.from_log_density(fn, example, {"a.s": constraints.positive})
    assert (
        [site.support for site in nested.sites] == [site.support for site in flat.sites] == ["real", "positive", "real"]
    )


def test_data_are_leaves():
    def fn(x, data):
        return -jnp.sum((x - data["mean"]) ** 2) if data["on"] else 0.0 * x.sum()

    target = Target.from_log_density(fn, np.zeros(2), data={"mean": np.ones(2), "on": True})
    other = target.replace(data={"mean": np.zeros(2), "on": True})
    assert jax.tree.structure(target) == jax.tree.structure(other)
    assert (target.log_density(jnp.ones(2)), other.log_density(jnp.ones(2))) == (0.0, -2.0)
    assert other.fingerprint() != target.fingerprint()
    off = target.replace(data={"mean": np.zeros(2), "on": False})
    assert off.log_density(jnp.ones(2)) == 0.0
    assert jax.tree.structure(off) != jax.tree.structure(other)


def test_arrays_of_a_callable_module_are_leaves():
    class Density(eqx.Module):
        mean: jax.Array

        def __call__(self, x):
            return -jnp.sum((x - self.mean) ** 2)

    first, second = (Target.from_log_density(Density(jnp.full(2, m)), np.zeros(2)) for m in (0.0, 1.0))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert second.log_density(jnp.zeros(2)) == -2.0


def test_jit_takes_the_bound_method():
    target = Target.from_log_density(lambda x, data: jnp.sum(x * data), np.zeros(2), data=np.ones(2))
    assert jax.jit(target.log_density)(jnp.ones(2)) == 2.0


def test_optional_structure_is_refused_in_a_sentence():
    target = Target.from_log_density(lambda x: -jnp.sum(x**2), np.zeros(2))
    assert target.structure() == {"support"}
    with pytest.raises(NotAvailable, match="log_prior needs a target with prior, and LogDensityTarget has none"):
        target.log_prior(jnp.zeros(2))
    with pytest.raises(UnsupportedTarget, match=r"split\('x'\) needs a target made with Target.from_numpyro"):
        target.split("x")


def _sum(params):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Target.from_log_density(3, 1.0), InvalidArgument, "fn must be a function .* got 3"),
        (
            lambda: Target.from_log_density(lambda x: x, np.zeros(3)),
            InvalidArgument,
            r"one real number, got float64\[3\]",
        ),
        (lambda: Target.from_log_density(lambda x: None, 1.0), InvalidArgument, "one real number, got nothing"),
        (lambda: Target.from_log_density(lambda x: x > 0, 1.0), InvalidArgument, r"one real number, got bool\[\]"),
        (
            lambda: Target.from_log_density(lambda x: jnp.sum(x @ np.ones(4)), np.zeros(3)),
            InvalidArgument,
            r"does not run on parameters of the example's shapes \(x\[3\]\): TypeError",
        ),
        (lambda: Target.from_log_density(np.vectorize(float), 1.0), InvalidArgument, "write it with jax.numpy"),
        (lambda: Target.from_log_density(_sum, {}), InvalidArgument, "example must be a pytree with real arrays"),
        (lambda: Target.from_log_density(_sum, "a"), InvalidArgument, "example must be a pytree .* got 'a'"),
        (
            lambda: Target.from_log_density(_sum, {"a": 1.0}, {"b": constraints.positive}),
            InvalidArgument,
            r"support names 'b', which example lacks \(it has 'a'\)",
        ),
        (
            lambda: Target.from_log_density(_sum, [1.0, 2.0], [constraints.positive]),
            InvalidArgument,
            "support has no entry for '1'",
        ),
        (lambda: Target.from_log_density(_sum, {"a": 1.0}, {"a": 3}), InvalidArgument, "must be a NumPyro constraint"),
        (
            lambda: Target.from_log_density(_sum, 1.0, constraints.simplex),
            InvalidArgument,
            r"with at least 1 axes, .* \(\)",
        ),
        (
            lambda: Target.from_log_density(_sum, 1.0, constraints.boolean),
            UnsupportedTarget,
            "'x' is boolean, .* discrete",
        ),
        (lambda: Target.from_log_density(_sum, np.ones(3), constraints.sphere), UnsupportedTarget, "no bijection"),
        (
            lambda: Target.from_log_density(_sum, 1.0).replace(support=1),
            InvalidArgument,
            "unknown option 'support'; it takes coords, data, dims",
        ),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
