"""A target in constrained coordinates: the same density as in u, without the log-Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.errors import UnsupportedTarget
from pushforward.infer.geometry import L1
from pushforward.infer.target.primal import primal

X = np.random.default_rng(0).normal(size=(12, 2))
Y = np.random.default_rng(1).normal(size=12)


def model(x, y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    p = numpyro.sample("p", dist.Dirichlet(np.array([2.0, 0.5, 1.0])))
    b = numpyro.sample("b", dist.Laplace(0.0, 0.7).expand([2]).to_event(1))
    rho = numpyro.sample("rho", dist.Uniform(-1.0, 2.0))
    numpyro.sample("y", dist.Normal(x @ b + p[0] + rho, sigma), obs=y)


def mixture(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1).expand([2]).to_event(1))
    w = numpyro.sample("w", dist.Beta(2.0, 3.0))
    with numpyro.plate("n", y.shape[0]):
        k = numpyro.sample("k", dist.Bernoulli(w))
        numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)


def of_log_density():
    support = {"s": constraints.positive, "q": constraints.simplex, "m": None}
    example = {"s": np.ones(2), "q": np.full((2, 3), 1 / 3), "m": np.zeros(1)}

    def fn(v):
        return jnp.sum(jnp.log(v["s"]) - v["s"]) + jnp.sum(2 * jnp.log(v["q"])) - jnp.sum(v["m"] ** 2)

    return pf.Target.from_log_density(fn, example, support)


TARGETS = {
    "numpyro": lambda: pf.Target.from_numpyro(model, X, Y),
    "enumerated": lambda: pf.Target.from_numpyro(mixture, Y),
    "log density": of_log_density,
    "split": lambda: pf.Target.from_numpyro(model, X, Y).split("b"),
    "composite": lambda: pf.Target.composite(pf.Target.from_numpyro(model, X, Y), L1({"b": 2.0})),
    "factors": lambda: pf.Target.from_factors(
        lambda v: -v["s"], lambda v, y: -0.5 * (y / v["s"]) ** 2 - jnp.log(v["s"]), Y, {"s": 1.0},
        {"s": constraints.positive},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_density_without_jacobian(name: str) -> None:
    if name == "enumerated":
        pytest.importorskip("funsor")
    target = TARGETS[name]()
    found = primal(target)

    @jax.jit
    @jax.vmap
    def look(u):
        x = found.coordinates.to_x(u)
        log_det = jnp.linalg.slogdet(jax.jacfwd(found.coordinates.to_x)(u))[1]
        values, both = target.constrain(u), (found.log_density(x) + log_det, target.log_density(u))
        return found.coordinates.to_u(x), both, found.coordinates.values(x), values

    with jax.enable_x64(True):
        u = jnp.stack([target.initial(jax.random.key(seed)) for seed in range(3)])
        again, (one, other), ours, values = look(u)
        np.testing.assert_allclose(again, u, atol=1e-10)
        np.testing.assert_allclose(one, other, rtol=1e-10)
        for site, value in ours.items():
            np.testing.assert_allclose(value, values[site], atol=1e-12)


def test_smooth_part_of_a_split_prior_has_no_kink() -> None:
    found = primal(pf.Target.from_numpyro(model, X, Y).split("b"))
    plain = primal(pf.Target.from_numpyro(model, X, Y))
    with jax.enable_x64(True):
        x = found.coordinates.to_x(found.target.initial(jax.random.key(3)))
        g = jnp.sum(jnp.abs(found.coordinates.values(x)["b"])) / 0.7
        np.testing.assert_allclose(found.smooth_log_density(x), plain.log_density(x) + g, rtol=1e-12)
        np.testing.assert_allclose(found.log_density(x), plain.log_density(x), rtol=1e-12)


def test_supports_that_depend_on_other_sites_are_refused() -> None:
    def dynamic():
        a = numpyro.sample("a", dist.HalfNormal(1.0))
        numpyro.sample("b", dist.Uniform(0.0, a))

    with pytest.raises(UnsupportedTarget, match=r"'b'.*depends on data or on other sites"):
        primal(pf.Target.from_numpyro(dynamic))


def test_supports_without_coordinates_of_their_own_are_refused() -> None:
    target = pf.Target.from_log_density(lambda v: -jnp.sum(v**2), np.eye(2), constraints.corr_cholesky)
    with pytest.raises(UnsupportedTarget, match="degrees of freedom"):
        primal(target)


def test_nonsmooth_terms_of_unconstrained_coordinates_are_refused() -> None:
    target = pf.Target.composite(pf.Target.from_numpyro(model, X, Y), L1(1.0))
    with pytest.raises(UnsupportedTarget, match="'sigma'"):
        primal(target)


def test_the_mirror_of_a_batch_is_one_for_all_its_sets() -> None:
    from pushforward.infer.geometry import Batch, SimplexEntropy
    from pushforward.infer.target.mirrors import product_mirror

    def batch():
        numpyro.sample("p", dist.Dirichlet(np.full(3, 4.0)).expand([2]).to_event(1))
        numpyro.sample("q", dist.Dirichlet(np.full(4, 4.0)))

    mirror = product_mirror(primal(pf.Target.from_numpyro(batch)).coordinates)
    first, second = mirror.parts
    assert isinstance(first, Batch)
    assert isinstance(first.mirror, SimplexEntropy)
    assert isinstance(second, SimplexEntropy)
    assert first.count == 2
    assert mirror.sizes == (4, 3)


def test_probabilities_keep_their_digits_next_to_a_corner() -> None:
    """The density of s = e⁻⁹⁰ from the mirror's point, in a batch, alone, and in a product of one's own."""
    from pushforward.infer.geometry import Product, SimplexEntropy
    from pushforward.infer.target.mirrors import log_probabilities, product_mirror

    found = primal(of_log_density())
    order = [block.name for block in found.coordinates.blocks]
    assert order == ["m", "q", "s"]
    whole = product_mirror(found.coordinates)
    with jax.enable_x64(True):
        for mirror in (
            whole,
            Product((whole.parts[0], SimplexEntropy(), SimplexEntropy(), whole.parts[2]), (1, 2, 2, 2)),
        ):
            point = mirror.from_dual(jnp.asarray(np.array([0.3, -0.2, 90.0, 1.0, 0.2, 0.3, 0.5])))
            logs = log_probabilities(found.coordinates, mirror, point)["q"]
            np.testing.assert_allclose(logs[0], [-90.2, 0.0, -90.0], atol=1e-12)
            np.testing.assert_allclose(jnp.exp(logs).sum(-1), 1.0, rtol=1e-12)
            density, slope = jax.value_and_grad(found.log_density)(point.x, {"q": logs})
            s = jnp.exp(point.y[5:])
            q = jnp.exp(logs[1])
            np.testing.assert_allclose(
                density, jnp.sum(jnp.log(s) - s) - 0.09 + 2 * (jnp.sum(jnp.log(q)) - 180.2), rtol=1e-12
            )
            np.testing.assert_allclose(slope[2], 2 * (1 - np.exp(90.0)), rtol=1e-12)


def test_bounds_of_a_mirror_are_spread_over_the_site() -> None:
    from pushforward.infer.target.mirrors import product_mirror

    def rows():
        with numpyro.plate("rows", 2):
            numpyro.sample("x", dist.Uniform(0.0, np.array([1.0, 2.0, 3.0])).to_event(1))

    mirror = product_mirror(primal(pf.Target.from_numpyro(rows)).coordinates)
    np.testing.assert_allclose(mirror.scale, [1, 2, 3, 1, 2, 3])
