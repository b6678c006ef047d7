"""NumPyro models with other observed values, or without some: against the same model given them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf
from pushforward.infer.target.altered import with_changes, with_kept, with_observed

X = np.array([0.5, -1.0, 2.0, 0.1])


def regression(x, y, counts):
    b = numpyro.sample("b", dist.Normal(0, 2))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(b * x, tau), obs=jnp.log(y))
        numpyro.sample("n", dist.Poisson(jnp.exp(0.3 * b)), obs=counts)


def make(y, counts):
    return pf.Target.from_numpyro(regression, X, y, counts)


@pytest.fixture(scope="module")
def target():
    return make(np.array([1.0, 2.0, 0.5, 4.0]), np.array([0, 2, 1, 5]))


U = np.array([0.3, -0.2])


def test_observed_values_are_replaced_where_the_model_transforms_its_data(target):
    with jax.enable_x64(True):
        for y, counts in (
            (np.array([3.0, 0.2, 1.0, 2.0]), [1, 0, 0, 3]),
            (np.array([0.3, 2.0, 5.0, 1.0]), [4, 1, 2, 2]),
        ):
            other = make(y, np.array(counts))
            changed = with_observed(target, {"y": np.log(y), "n": np.array(counts), "b": 3.0})
            assert changed.log_density(U) == pytest.approx(float(other.log_density(U)), rel=1e-13)
            assert changed.log_density(U) != pytest.approx(float(target.log_density(U)), rel=1e-3)
            again = with_changes(
                with_observed(target, {"y": X, "n": np.array([9, 9, 9, 9])}), {"y": np.log(y), "n": counts}
            )
            assert again.log_density(U) == pytest.approx(float(other.log_density(U)), rel=1e-13)
            np.testing.assert_array_equal(changed.observed["n"], counts)


def test_values_are_left_out(target):
    with jax.enable_x64(True):
        parts = target.log_likelihood(target.constrain(U))
        for i in range(4):
            kept = with_kept(target, {"y": np.arange(4) != i})
            left_out = float(target.log_density(U) - kept.log_density(U))
            assert left_out == pytest.approx(float(parts["y"][i]), rel=1e-12)


def test_new_values_compile_nothing(target):
    first = with_observed(target, {"y": X, "n": np.array([1, 1, 1, 1])})
    count = []

    @jax.jit
    def density(t, u):
        count.append(1)
        return t.log_density(u)

    for scale in (1.0, 2.0, 3.0):
        density(with_changes(first, {"y": scale * X, "n": np.array([1, 2, 3, 4])}), U)
    assert len(count) == 1


def test_reparameterised_models_stay_so():
    from numpyro.infer.reparam import LocScaleReparam

    target = pf.models.get("eight_schools_centered").target().replace(reparam={"theta": LocScaleReparam(0)})
    y = np.linspace(-3, 3, 8)
    changed = with_observed(target, {"y": y})
    assert [site.name for site in changed.sites] == [site.name for site in target.sites]
    u = np.linspace(-1, 1, target.dim)
    with jax.enable_x64(True):
        expected = target.log_density(u) + sum(
            dist.Normal(target.constrain(u)["theta"], target.model_args[1]["sigma"]).log_prob(y)
            - target.log_likelihood(target.constrain(u))["y"]
        )
        assert changed.log_density(u) == pytest.approx(float(expected), rel=1e-12)


def test_bad_input_is_told(target):
    with pytest.raises(pf.InvalidArgument, match=r"'y' with shape \(4,\), got shape \(3,\)"):
        with_observed(target, {"y": np.zeros(3), "n": np.zeros(4, int)})
    with pytest.raises(pf.InvalidArgument, match=r"'n' with shape .* got only y"):
        with_observed(target, {"y": np.zeros(4)})
    with pytest.raises(pf.InvalidArgument, match="'z'; the observed sites are y, n"):
        with_kept(target, {"z": np.ones(4, bool)})
    with pytest.raises(pf.UnsupportedTarget, match="LogDensityTarget"):
        with_observed(pf.Target.from_log_density(lambda x: -(x**2), np.zeros(())), {})
    with pytest.raises(pf.InvalidArgument, match="must be alike"):
        with_changes(with_kept(target, {"y": np.ones(4, bool)}), {"y": np.ones(3, bool)})


def test_observed_inside_a_scan_is_refused():
    def walk(y):
        s = numpyro.sample("s", dist.HalfNormal(1.0))

        def step(carry, value):
            z = numpyro.sample("y", dist.Normal(carry, s), obs=value)
            return z, None

        numpyro.contrib.control_flow.scan(step, 0.0, y)

    import numpyro.contrib.control_flow

    target = pf.Target.from_numpyro(walk, np.array([0.1, 0.4, 0.2]))
    with pytest.raises(pf.UnsupportedTarget, match=r"'y' cannot be given other values .* simulate="):
        with_observed(target, {"y": np.zeros(3)})
