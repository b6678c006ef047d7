"""Targets made from NumPyro models: agreement with NumPyro, structure, data as leaves, and bad input."""

import contextlib
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pytest
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer.util import potential_energy
from scipy import stats

from pushforward.infer.errors import InvalidArgument, NonFinite, NotAvailable, UnsupportedTarget
from pushforward.infer.target import Target

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", sigma.shape[0]):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def mixture(y=None, n=6):
    w = numpyro.sample("w", dist.Beta(2, 2))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))
    with numpyro.plate("n", n):
        z = numpyro.sample("z", dist.Bernoulli(w))
        mean = numpyro.deterministic("mean", mu[z])
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_log_density_is_numpyros():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    u = jnp.linspace(-1, 1, 10)
    params = {"mu": u[0], "tau": u[1], "z": u[2:]}
    assert float(target.log_density(u)) == float(-potential_energy(schools, (SIGMA,), {"y": Y}, params))


def test_sites_dims_and_observed():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    assert [(s.name, s.shape, s.support, s.kind, s.size) for s in target.sites] == [
        ("mu", (), "real", "latent", 1),
        ("tau", (), "positive", "latent", 1),
        ("z", (8,), "real", "latent", 8),
        ("theta", (8,), "", "deterministic", 0),
    ]
    assert target.dims == {"z": ("school",), "theta": ("school",), "y": ("school",)}
    np.testing.assert_array_equal(target.observed["y"], Y)


def test_dims_of_a_vector_in_two_plates():
    def model():
        with numpyro.plate("row", 2, dim=-2), numpyro.plate("column", 3, dim=-1):
            numpyro.sample("x", dist.Normal(0, 1).expand([4]).to_event(1))
            numpyro.sample("w", dist.Dirichlet(jnp.ones(5)))

    target = Target.from_numpyro(model)
    assert target.dims == {"x": ("row", "column", "x_dim_2"), "w": ("row", "column", "w_dim_2")}
    assert target.dim == 2 * 3 * 4 + 2 * 3 * 4


def test_supports_in_words():
    def model(low):
        numpyro.sample("a", dist.Uniform(2.0, 5.0))
        numpyro.sample("b", dist.Uniform(low, 5.0))
        numpyro.sample("c", dist.ImproperUniform(constraints.positive_ordered_vector, (), (3,)))
        numpyro.sample("d", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
        numpyro.sample("e", dist.LogNormal(0, 1).expand([3]).to_event(1))

    found = {site.name: site.support for site in Target.from_numpyro(model, np.array(1.0)).sites}
    assert found == {
        "a": "interval(2, 5)",
        "b": "interval(…, 5)",
        "c": "positive_ordered_vector",
        "d": "real",
        "e": "positive",
    }


def test_log_likelihood_and_log_prior_of_schools_by_hand():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    u = jnp.linspace(-1, 1, 10)
    values = target.constrain(u)
    by_hand = stats.norm.logpdf(Y, values["theta"], SIGMA)
    np.testing.assert_allclose(target.log_likelihood(values)["y"], by_hand, rtol=1e-12)
    tau = float(np.exp(u[1]))
    prior = stats.norm.logpdf(u[0], 0, 5) + stats.halfcauchy.logpdf(tau, 0, 5) + u[1] + stats.norm.logpdf(u[2:]).sum()
    np.testing.assert_allclose(target.log_prior(u), prior, rtol=1e-12)


def test_sample_prior_and_predictive_have_the_right_moments():
    def model(x, y=None):
        b = numpyro.sample("b", dist.Normal(2.0, 0.5))
        numpyro.sample("y", dist.Normal(b * x, 0.1), obs=y)

    target = Target.from_numpyro(model, np.array([1.0, 2.0]), y=np.array([50.0, 50.0]))
    keys = jax.random.split(jax.random.key(0), 4000)
    prior = jax.vmap(target.sample_prior)(keys)
    np.testing.assert_allclose(prior["b"].mean(), 2.0, atol=0.04)
    np.testing.assert_allclose(prior["y"].std(0), np.sqrt([0.26, 1.01]), rtol=0.05)
    values = {"b": jnp.array(3.0)}
    own = jax.vmap(lambda key: target.predictive(key, values))(keys)
    np.testing.assert_allclose(own["y"].mean(0), [3.0, 6.0], atol=0.01)  # not the observed 50
    new = jax.vmap(lambda key: target.predictive(key, values, np.array([1.0, 0.0, -1.0])))(keys)
    np.testing.assert_allclose(new["y"].mean(0), [3.0, 0.0, -3.0], atol=0.01)
    np.testing.assert_allclose(new["y"].std(0), 0.1, rtol=0.05)


def test_predictive_draws_local_latents_of_new_data_anew():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    values = target.constrain(jnp.zeros(10))
    found = target.predictive(jax.random.key(0), values, np.ones(3))
    assert {name: value.shape for name, value in found.items()} == {"theta": (3,), "y": (3,)}
    with pytest.raises(InvalidArgument, match=r"does not run on the new arguments \(nonsense=1\)"):
        target.predictive(jax.random.key(0), values, nonsense=1)


def test_discrete_latents_are_summed_out_and_drawn_back():
    y = np.array([-2.0, -1.5, 0.3, 1.0, 1.8, 2.5])
    target = Target.from_numpyro(mixture, y)
    u = jnp.array([0.4, -1.0, 1.5])
    w = 1 / (1 + np.exp(-0.4))
    joint = np.stack([(1 - w) * stats.norm.pdf(y, -1.0, 1), w * stats.norm.pdf(y, 1.5, 1)])
    prior = stats.beta.logpdf(w, 2, 2) + np.log(w * (1 - w)) + stats.norm.logpdf([-1.0, 1.5], 0, 3).sum()
    np.testing.assert_allclose(target.log_density(u), prior + np.log(joint.sum(0)).sum(), rtol=1e-12)
    np.testing.assert_allclose(target.log_prior(u), prior, rtol=1e-12)
    drawn = jax.jit(jax.vmap(target.draw, (0, None)))(jax.random.split(jax.random.key(0), 4000), u)
    assert [site.kind for site in target.sites] == ["latent", "latent", "deterministic", "discrete"]
    np.testing.assert_allclose(drawn["z"].mean(0), joint[1] / joint.sum(0), atol=0.03)
    np.testing.assert_array_equal(drawn["mean"], np.where(drawn["z"] == 1, 1.5, -1.0))
    assert target.predictive(jax.random.key(0), {k: v[0] for k, v in drawn.items()}, n=3)["y"].shape == (3,)


def hidden_markov(y, reverse=False):
    """Chains of two states, one per column of y."""
    a = numpyro.sample("a", dist.Dirichlet(jnp.ones((2, 2))).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))

    def step(x, y):
        with numpyro.plate("chain", 2):
            x = numpyro.sample("x", dist.Categorical(a[x]))
            mean = numpyro.deterministic("mean", mu[x])
            numpyro.sample("y", dist.Normal(mean, 1), obs=y)
        return x, None

    scan(step, jnp.zeros(2, int), y, reverse=reverse)


def test_a_scanned_hidden_markov_model_is_summed_out_and_drawn_back():
    y = np.array([[-2.0, 1.0], [-0.5, 0.9], [0.3, -1.0], [1.0, 0.2]])
    target = Target.from_numpyro(hidden_markov, y)
    u = jnp.array([0.4, -0.5, -1.0, 1.5])
    a = np.asarray(target.constrain(u)["a"])
    likelihood, expected = 0.0, np.zeros((2, 16))
    paths = np.array(list(np.ndindex(2, 2, 2, 2)))
    for chain in range(2):
        for i, path in enumerate(paths):
            moves = a[np.r_[0, path[:-1]], path].prod()
            expected[chain, i] = moves * stats.norm.pdf(y[:, chain], np.array([-1.0, 1.5])[path], 1).prod()
        likelihood += np.log(expected[chain].sum())
    np.testing.assert_allclose(target.log_density(u) - target.log_prior(u), likelihood, rtol=1e-12)
    drawn = jax.jit(jax.vmap(target.draw, (0, None)))(jax.random.split(jax.random.key(1), 5000), u)
    assert drawn["x"].shape == (5000, 4, 2)
    np.testing.assert_array_equal(drawn["mean"], np.array([-1.0, 1.5])[drawn["x"]])
    for chain in range(2):  # the joint distribution of whole paths, not only their margins
        found = np.bincount(np.asarray(drawn["x"][..., chain]) @ [8, 4, 2, 1], minlength=16) / 5000
        np.testing.assert_allclose(found, expected[chain] / expected[chain].sum(), atol=0.03)


def test_what_cannot_be_drawn_back_is_summed_out_only():
    target = Target.from_numpyro(hidden_markov, np.zeros((4, 2)), reverse=True)
    assert [site.name for site in target.sites] == ["a", "mu"] == list(target.constrain(jnp.zeros(4)))
    assert np.isfinite(target.log_density(jnp.zeros(4)))
    assert "likelihood" not in target.structure()


def test_predictive_of_a_state_space_model_keeps_the_states_and_goes_on_from_them():
    def model(length, y=None):
        drift = numpyro.sample("drift", dist.Normal(0, 1))

        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x + drift, 0.01))
            numpyro.sample("y", dist.Normal(x, 0.01), obs=y)
            return x, None

        scan(step, 0.0, y, length=length)

    target = Target.from_numpyro(model, 4, y=np.full(4, 50.0))
    assert [(s.name, s.shape, s.size) for s in target.sites] == [("drift", (), 1), ("x", (4,), 4)]
    u = jnp.array([2.0, 1.0, 4.0, 7.0, 8.0])
    by_hand = stats.norm.logpdf(2.0) + stats.norm.logpdf([1, 4, 7, 8], [2, 3, 6, 9], 0.01).sum()
    np.testing.assert_allclose(target.log_prior(u), by_hand, rtol=1e-12)
    values = target.constrain(u)
    found = target.predictive(jax.random.key(0), values)["y"]
    np.testing.assert_allclose(found, u[1:], atol=0.1)
    found = target.predictive(jax.random.key(0), values, 6)["y"]
    np.testing.assert_allclose(found, [1.0, 4.0, 7.0, 8.0, 10.0, 12.0], atol=0.1)


def test_reparameterisation_keeps_the_posterior_of_the_site():
    from numpyro.infer.reparam import LocScaleReparam

    def model(y):
        tau = numpyro.sample("tau", dist.HalfNormal(1))
        theta = numpyro.sample("theta", dist.Normal(1.0, tau))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    centred = Target.from_numpyro(model, 0.3)
    target = centred.replace(reparam={"theta": LocScaleReparam(0)})
    assert [site.name for site in target.sites] == ["tau", "theta_decentered", "theta"]
    u = jnp.array([-0.5, 0.7])
    values = target.constrain(u)
    np.testing.assert_allclose(values["theta"], 1.0 + np.exp(-0.5) * 0.7, rtol=1e-12)
    # p(z) = p(theta) dtheta/dz = p(theta) tau
    np.testing.assert_allclose(
        target.log_density(u), centred.log_density(centred.unconstrain(values)) - 0.5, rtol=1e-12
    )


def test_new_data_do_not_trace_the_model_again():
    traces = []

    def model(x, y):
        traces.append(None)
        b = numpyro.sample("b", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(b * x["a"], 1), obs=y)

    @jax.jit
    def program(target, u):
        return target.log_density(u)

    def build(shift):
        return Target.from_numpyro(functools.partial(model, {"a": np.arange(3.0) + shift}), y=pd.Series(np.ones(3)))

    first, second = build(0.0), build(1.0)
    assert len(traces) == 2  # one abstract trace each
    values = [float(program(target, jnp.ones(1))) for target in (first, second)]
    assert len(traces) == 3
    assert values[0] != values[1]


def test_one_log_density_traces_the_model_once():
    traces = []

    def model(y):
        traces.append(None)
        numpyro.sample("y", dist.Normal(numpyro.sample("b", dist.HalfNormal(1)), 1), obs=y)

    target = Target.from_numpyro(model, np.ones(2))
    traces.clear()
    target.log_density(jnp.zeros(1))
    assert len(traces) == 1


@pytest.mark.parametrize("how", ["python", "numpy", "plate size", "number"])
def test_models_that_look_at_their_data_work(how):
    def model(x, group, y, size):
        if how == "python":
            count = int(group.max()) + 1
        elif how == "numpy":
            count = len(np.unique(group))
        elif how == "plate size":
            count = size
        else:
            count = 3
            if x.mean() > 0:
                count = 2
        with numpyro.plate("group", count):
            b = numpyro.sample("b", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(b[group] * x, 1), obs=y)

    def build(shift):
        x, group = np.arange(1.0, 4.0) + shift, np.array([0, 1, 1])
        return Target.from_numpyro(model, x, group, np.ones(3), size=np.int64(2))

    u = jnp.array([0.5, -1.0])
    by_hand = stats.norm.logpdf(u).sum() + stats.norm.logpdf(1.0, np.array([0.5, -2.0, -3.0])).sum()
    np.testing.assert_allclose(build(0.0).log_density(u), by_hand, rtol=1e-12)
    same = jax.tree.structure(build(0.0)) == jax.tree.structure(build(1.0))
    assert same is (how != "number")  # only what decides control flow is compiled in
    assert jax.tree.structure(build(0.0)) == jax.tree.structure(build(0.0))


def test_scalars_of_another_type_are_another_program():
    def model(n):
        numpyro.sample("x", dist.Normal(n, 1))

    trees = [jax.tree.structure(Target.from_numpyro(model, n)) for n in (1, 1.0, True)]
    assert trees[0] != trees[1] != trees[2] != trees[0]


def test_observed_data_computed_in_the_model():
    def model(y):
        numpyro.sample("log_y", dist.Normal(numpyro.sample("m", dist.Normal(0, 1)), 1), obs=jnp.log(y))

    y = np.array([1.0, 2.0])
    np.testing.assert_allclose(Target.from_numpyro(model, y).observed["log_y"], np.log(y), rtol=1e-15)


def test_masked_and_imputed_nan_are_accepted():
    y = np.array([1.0, np.nan, 3.0])

    def masked(y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.handlers.mask(mask=~jnp.isnan(y)):
            numpyro.sample("y", dist.Normal(m, 1), obs=y)

    def imputed(y, missing):
        m = numpyro.sample("m", dist.Normal(0, 1))
        filled = numpyro.sample("filled", dist.Normal(0, 1).expand([1]).mask(False))
        y = jnp.asarray(y).at[missing].set(filled)
        numpyro.sample("y", dist.Normal(m, 1), obs=y)

    target = Target.from_numpyro(masked, y)
    by_hand = stats.norm.logpdf(0.5) + stats.norm.logpdf([1.0, 3.0], 0.5).sum()
    np.testing.assert_allclose(target.log_density(jnp.array([0.5])), by_hand, rtol=1e-12)
    assert np.isfinite(jax.grad(target.log_density)(jnp.array([0.5])))
    target = Target.from_numpyro(imputed, y, np.array([1]))
    by_hand = stats.norm.logpdf(0.5) + stats.norm.logpdf([1.0, 2.0, 3.0], 0.5).sum()
    np.testing.assert_allclose(target.log_density(jnp.array([0.5, 2.0])), by_hand, rtol=1e-12)


@pytest.mark.parametrize("closed_over", [False, True])
def test_nan_in_observed_data_is_refused(closed_over):
    y = np.array([1.0, np.nan, 3.0, np.nan])

    def model(given):
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0, 1)), 1), obs=y if closed_over else given)

    with pytest.raises(NonFinite, match=r"observed site 'y' has 2 NaN among its 4 values"):
        Target.from_numpyro(model, y)


def test_nan_beside_a_mask_is_refused():
    def model(y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.handlers.mask(mask=jnp.array([True, True, False])):
            numpyro.sample("y", dist.Normal(m, 1), obs=y)

    with pytest.raises(NonFinite, match=r"observed site 'y' has 1 NaN among its 3 values"):
        Target.from_numpyro(model, np.array([1.0, np.nan, np.nan]))


def test_shapes_that_do_not_match_are_refused():
    def scaled(sigma, y):
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(0, 1)) + sigma * y, 1), obs=y)

    with pytest.raises(InvalidArgument, match=r"scaled does not run .*float64\[8\], y=float64\[7\].* \(8,\)"):
        Target.from_numpyro(scaled, SIGMA, y=Y[:7])

    def outer(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal(jnp.zeros(3), 1)), 1), obs=y)

    with pytest.raises(InvalidArgument, match=r"observed site 'y' got data of shape \(3, 1\), .* has shape \(3,\)"):
        Target.from_numpyro(outer, np.ones((3, 1)))
    with pytest.raises(InvalidArgument, match=r"observed site 'y' got data of shape \(7,\), .* plate school of size 8"):
        Target.from_numpyro(schools, SIGMA, y=Y[:7])


def test_a_model_without_latents_is_refused():
    with pytest.raises(InvalidArgument, match="no continuous latent site"):
        Target.from_numpyro(lambda: numpyro.sample("y", dist.Normal(0, 1), obs=1.0))


def test_a_delta_latent_is_refused():
    with pytest.raises(InvalidArgument, match=r"'x' has a Delta .*numpyro.deterministic\('x', value\)"):
        Target.from_numpyro(lambda: numpyro.sample("x", dist.Delta(1.0)))


def test_discrete_latents_without_funsor_are_refused(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "funsor" else find_spec(name))
    with pytest.raises(UnsupportedTarget, match=r"'z' is discrete .*pip install \"pushforward\[discrete\]\""):
        Target.from_numpyro(mixture, np.zeros(6))


def test_an_unbounded_discrete_latent_is_refused():
    def model():
        numpyro.sample("n", dist.Poisson(numpyro.sample("rate", dist.HalfNormal(1))))

    with pytest.raises(UnsupportedTarget, match="'n' has the distribution Poisson, which cannot be enumerated"):
        Target.from_numpyro(model)


def test_a_random_subsample_is_refused():
    def model(y):
        m = numpyro.sample("m", dist.Normal(0, 1))
        with numpyro.plate("n", 10, subsample_size=2) as i:
            numpyro.sample("y", dist.Normal(m, 1), obs=y[i])

    with pytest.raises(UnsupportedTarget, match=r"plate 'n' draws a random subsample \(2 of 10\)"):
        Target.from_numpyro(model, np.ones(10))


def test_a_support_without_bijection_is_refused():
    with pytest.raises(UnsupportedTarget, match="'x' has the support sphere"):
        Target.from_numpyro(lambda: numpyro.sample("x", dist.ProjectedNormal(jnp.ones(3))))


def test_each_step_of_a_scan_broadcasts_by_itself():
    def model(y):
        drift = numpyro.sample("drift", dist.Normal(0, 1))
        scan(lambda x, y: (x + drift, numpyro.sample("y", dist.Normal(x + drift, 1), obs=y)), jnp.zeros(1), y)

    y = np.array([0.5, 1.0, 2.0])
    by_hand = stats.norm.logpdf(0.7) + stats.norm.logpdf(y, [0.7, 1.4, 2.1]).sum()
    np.testing.assert_allclose(Target.from_numpyro(model, y).log_density(jnp.array([0.7])), by_hand, rtol=1e-12)


def test_an_improper_prior_cannot_be_sampled():
    target = Target.from_numpyro(lambda: numpyro.sample("x", dist.ImproperUniform(constraints.positive, (), ())))
    assert "proper_prior" not in target.structure()
    with pytest.raises(NotAvailable, match="'x' has an improper one"):
        target.sample_prior(jax.random.key(0))
    with pytest.raises(NotAvailable, match="predictive needs a target with predictive"):
        target.predictive(jax.random.key(0), {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": {}}, "unknown option 'dim'; it takes coords, dims, reparam"),
        ({"dims": {"nu": ["a"]}}, "dims names the site 'nu'"),
        ({"dims": {"z": ["a", "b"]}}, r"dims\['z'\] has the 2 names .* shape \(8,\)"),
        ({"dims": ["a"]}, r"dims must be a dict, got \['a'\]"),
        ({"coords": {"school": list("ABC")}}, r"coords\['school'\] has 3 labels, but the dimension has length 8"),
        (
            {"coords": {"scool": list("ABC")}},
            r"the dimension 'scool', which no site has; those that have names are 'school'",
        ),
        ({"coords": {"school": "A"}}, r"coords\['school'\] has 0 axes"),
        ({"reparam": {"theta": None}}, "reparam names the site 'theta'; the latent sites are mu, tau, z"),
        ({"reparam": "theta"}, "reparam must be a dict"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InvalidArgument, match=message):
        Target.from_numpyro(schools, SIGMA, y=Y).replace(**options)


def test_bad_values_are_refused():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    good = {"mu": 0.0, "tau": 1.0, "z": np.zeros(8), "other": 3.0}
    np.testing.assert_array_equal(target.unconstrain(good), np.zeros(10))
    with pytest.raises(InvalidArgument, match="no value for the site 'tau'"):
        target.unconstrain({"mu": 0.0, "z": np.zeros(8)})
    with pytest.raises(InvalidArgument, match=r"shape \(7,\) for the site 'z', which has \(8,\)"):
        target.unconstrain(good | {"z": np.zeros(7)})
    with pytest.raises(InvalidArgument, match="'tau' outside its support or on its edge; the support is positive"):
        target.unconstrain(good | {"tau": -1.0})


def test_an_invalid_argument_of_a_distribution_is_refused():
    with pytest.raises(
        InvalidArgument, match=r"site 'x' has scale=-1.0 in its Normal distribution; it must be positive"
    ):
        Target.from_numpyro(lambda: numpyro.sample("x", dist.Normal(0.0, -1.0).expand([3])))


def test_numpyros_validation_stays_as_it_was():
    before = dist.Distribution._validate_args
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    target.log_density(jnp.zeros(10))
    assert dist.Distribution._validate_args == before


def test_no_model():
    with pytest.raises(InvalidArgument, match="model must be a function with NumPyro sites, got 3"):
        Target.from_numpyro(3)


def test_32_bits_outside_of_the_scope():
    target = Target.from_numpyro(schools, SIGMA, y=Y)
    u = np.linspace(-1, 1, 10)
    double = float(target.log_density(jnp.asarray(u)))
    with jax.enable_x64(False):
        single = target.log_density(jnp.asarray(u))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, double, rtol=1e-5)
        assert {v.dtype.name for v in target.constrain(jnp.asarray(u)).values()} == {"float32"}


@pytest.mark.parametrize(
    ("x", "y"), [((4, 1), (4,)), ((4, 1), (4, 1)), ((4,), (1,))], ids=["column, row", "columns", "one datum"]
)
@pytest.mark.parametrize("plate", [True, False])
def test_data_that_would_count_more_than_once(x, y, plate):
    def model(x, y):
        b = numpyro.sample("b", dist.Normal(0, 1))
        with numpyro.plate("row", 4) if plate else contextlib.nullcontext():
            numpyro.sample("y", dist.Normal(b * x, 1), obs=y)

    if not plate and x == y:
        assert Target.from_numpyro(model, np.ones(x), np.ones(y)).dim == 1  # columns alike
        return
    with pytest.raises(InvalidArgument, match=r"'y' got data of shape .* has shape \(4, ?[14]?\).* the same shape"):
        Target.from_numpyro(model, np.ones(x), np.ones(y))


def test_data_repeated_over_plates_and_single_numbers():
    def model(y):
        with numpyro.plate("model", 3, dim=-2):
            b = numpyro.sample("b", dist.Normal(0, 1))
            with numpyro.plate("row", 4, dim=-1):
                numpyro.sample("y", dist.Normal(b, 1), obs=y)

    y, b = np.array([0.1, -1.0, 2.0, 0.5]), np.array([0.3, -0.2, 1.0])
    expected = stats.norm.logpdf(b).sum() + stats.norm.logpdf(y[None], b[:, None]).sum()
    assert float(Target.from_numpyro(model, y).log_density(b)) == pytest.approx(expected)
    expected = stats.norm.logpdf(b).sum() + 4 * stats.norm.logpdf(0.7, b).sum()
    assert float(Target.from_numpyro(model, 0.7).log_density(b)) == pytest.approx(expected)


def scoped(y):
    def inner(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        with numpyro.plate("row", 3):
            z = numpyro.sample("z", dist.Normal(a, 1))
            numpyro.sample("y", dist.Normal(z, 1), obs=y)

    return numpyro.handlers.scope(inner, prefix="net")(y)


def test_slashes_in_names_are_dots():
    y = np.array([0.5, 1.0, -1.0])
    target = Target.from_numpyro(scoped, y)
    assert [site.name for site in target.sites] == ["net.a", "net.z"]
    assert target.dims == {"net.z": ("net.row",), "net.y": ("net.row",)}
    u = np.array([0.2, 0.1, 0.3, -0.4])
    theirs = potential_energy(scoped, (y,), {}, {"net/a": u[0], "net/z": u[1:]})
    assert float(target.log_density(u)) == pytest.approx(-float(theirs), rel=1e-12)
    np.testing.assert_array_equal(target.observed["net.y"], y)
    noncentred = target.replace(reparam={"net.z": numpyro.infer.reparam.LocScaleReparam(0)})
    assert "net.z" in noncentred.constrain(u)


def test_a_sum_over_discrete_sites_that_cannot_be_made():
    def inner(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        with numpyro.plate("row", 3):
            k = numpyro.sample("k", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(a + k, 1), obs=y)

    def model(y):
        numpyro.handlers.scope(inner, prefix="net")(y)  # whose plates NumPyro's enumeration does not know again

    with pytest.raises(InvalidArgument, match=r"does not run on the arguments given .*joint log density is a scalar"):
        Target.from_numpyro(model, np.ones(3))


def test_masked_arrays_are_refused():
    y = np.ma.masked_array(Y, [False, True] + [False] * 6)
    with pytest.raises(InvalidArgument, match=r"masked array of shape \(8,\) with 1 masked values.*handlers\.mask"):
        Target.from_numpyro(schools, SIGMA, y)
