"""`Posterior`: everything that it gives, on small fits; and ArviZ's own functions on its `data`."""

import jax
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import pushforward as pf
from tests.run.models import SIGMA, Y, eight_schools, schools

SITES = {"mu": (), "tau": (), "z": (8,), "theta": (8,)}
DRAWS = 300


@pytest.fixture(scope="module")
def chains():
    """Eight schools by NUTS; 4 chains of 300 draws."""
    target = schools().replace(coords={"school": list("ABCDEFGH")})
    return pf.fit(target, key=0, num_samples=DRAWS, num_warmup=300, progress=False)


@pytest.fixture(scope="module")
def density():
    """The same by Pathfinder."""
    return pf.fit(schools(), pf.Pathfinder(), key=0, num_samples=200, progress=False)


@pytest.fixture(scope="module")
def guide():
    """The same by an autoguide."""
    method = pf.AutoGuide("AutoNormal", num_steps=500)
    return pf.fit(schools(), method, key=0, num_samples=200, num_chains=1, progress=False)


PRIOR_SD, NOISE = 2.0, 0.7
X = np.array([0.5, -1.0, 2.0, 0.3])
YX = np.array([1.0, -0.4, 1.9, 0.2])


def line(x, y=None):
    """y = b x + noise of known scale: everything about it has a closed form."""
    b = numpyro.sample("b", dist.Normal(0, PRIOR_SD))
    numpyro.sample("y", dist.Normal(b * x, NOISE), obs=y)


def moments_of_line():
    precision = 1 / PRIOR_SD**2 + X @ X / NOISE**2
    return X @ YX / NOISE**2 / precision, precision**-0.5


@pytest.fixture(scope="module")
def conjugate():
    return pf.fit(pf.Target.from_numpyro(line, X, y=YX), key=0, num_samples=1000, num_warmup=300, progress=False)


# -- draws, dims and words --------------------------------------------------------------------------------------------


def test_data_has_dims_coords_and_record(chains):
    tree = chains.data
    assert set(tree.children) >= {"posterior", "sample_stats", "observed_data"}
    posterior = tree["posterior"]
    assert {name: posterior[name].shape for name in SITES} == {k: (4, DRAWS, *v) for k, v in SITES.items()}
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert list(posterior["school"].values) == list("ABCDEFGH")
    assert list(posterior["chain"].values) == [0, 1, 2, 3]
    np.testing.assert_array_equal(tree["observed_data"]["y"], Y)
    assert tree["observed_data"]["y"].dims == ("school",)
    theta = posterior["mu"] + posterior["tau"] * posterior["z"]
    np.testing.assert_allclose(posterior["theta"], theta.transpose("chain", "draw", "school"))
    np.testing.assert_array_equal(chains.draws()["mu"], posterior["mu"])
    assert chains.record["plan"]["key"] == [0, 0]
    assert chains.record["method"]["name"] == "NUTS"
    assert {"pushforward", "jax"} <= chains.record["versions"].keys()


def test_summary_and_diagnosis(chains):
    table = chains.summary()
    assert len(table) == 18
    np.testing.assert_allclose(table.loc["mu", "mean"], chains.draws()["mu"].mean())
    assert {"ess_bulk", "r_hat"} <= set(table.columns)
    assert len(chains.summary(["theta"])) == 8
    assert "4 chains × 300 draws" in str(chains.diagnose())


def test_html_and_text(chains, density):
    page = chains._repr_html_()
    assert "Posterior by NUTS: 4 chains, 300 draws" in page
    assert page.count("<table") == 2
    assert "theta[A]" in page
    assert repr(density) == "Posterior by Pathfinder: 1 chain, 200 draws"


def test_sample_of_chains(chains):
    kept = chains.draws()
    some = chains.sample(7, key=3)
    assert {name: value.shape for name, value in some.items()} == {k: (7, *v) for k, v in SITES.items()}
    # Rows of one draw stay together, and none is taken twice.
    rows = [np.flatnonzero(kept["mu"].ravel() == mu)[0] for mu in some["mu"]]
    np.testing.assert_array_equal(some["theta"], kept["theta"].reshape(-1, 8)[rows])
    everything = chains.sample()
    np.testing.assert_array_equal(np.sort(everything["mu"]), np.sort(kept["mu"].ravel()))
    assert chains.sample(5000)["mu"].shape == (5000,)
    np.testing.assert_array_equal(chains.sample(7, key=jax.random.key(3))["z"], some["z"])
    assert not np.array_equal(chains.sample(7, key=4)["z"], some["z"])
    with pytest.raises(pf.InvalidArgument, match="num_samples must be a whole number >= 1, got 0"):
        chains.sample(0)


def test_sample_follows_the_weights():
    cloud = pf.fit(schools(), pf.SMC(num_particles=200), num_chains=2, key=0, progress=False)
    assert cloud.data["posterior"]["theta"].dims == ("particle", "school")
    weights = cloud._weights()
    expected = np.average(cloud.draws()["mu"], weights=weights)
    again = cloud.sample(20_000)["mu"]
    assert abs(again.mean() - expected) < 5 * again.std() / 20_000**0.5


def test_sample_of_a_density_is_fresh(density, guide):
    for posterior in (density, guide):
        fresh = posterior.sample(50)
        assert {name: value.shape for name, value in fresh.items()} == {k: (50, *v) for k, v in SITES.items()}
        assert not np.isin(fresh["mu"], posterior.draws()["mu"]).any()
        np.testing.assert_allclose(fresh["theta"], fresh["mu"][:, None] + fresh["tau"][:, None] * fresh["z"])


def test_log_prob(chains, density, guide):
    with pytest.raises(pf.NotAvailable, match=r"NUTS gives chains; use target.log_density"):
        chains.log_prob(chains.sample(1))
    for posterior in (density, guide):
        log_q = posterior.data["sample_stats"]["log_q"].values[0]
        u = posterior.unconstrained()[0]
        np.testing.assert_allclose(posterior.log_prob(u), log_q, rtol=1e-9)
        np.testing.assert_allclose(posterior.log_prob(u[3]), log_q[3], rtol=1e-9)
        draws = {name: value[0] for name, value in posterior.draws().items()}
        np.testing.assert_allclose(posterior.log_prob(draws), log_q, rtol=1e-6)
        one = {name: value[5] for name, value in draws.items()}
        np.testing.assert_allclose(posterior.log_prob(one), log_q[5], rtol=1e-6)
        with pytest.raises(pf.InvalidArgument, match=r"u of shape \(3,\); it must be \(10,\) or \(n, 10\)"):
            posterior.log_prob(np.zeros(3))
        lower, error = posterior.elbo()
        assert error > 0
        assert lower < -31.2  # the log evidence, see below


# -- prediction, prior, densities -------------------------------------------------------------------------------------


def test_predictions_have_the_moments_of_the_closed_form(conjugate):
    mean, sd = moments_of_line()
    own = conjugate.predict(key=5)["y"]
    assert own.shape == (4, 1000, 4)
    assert conjugate.data["posterior_predictive"]["y"].shape == (4, 1000, 4)
    new = np.array([3.0, -2.0, 0.0, 1.0, 10.0, 0.1])
    other = conjugate.predict(new, key=5)
    for x, found in ((X, own), (new, other["y"])):
        spread = np.sqrt((x * sd) ** 2 + NOISE**2)
        flat = found.values.reshape(-1, len(x))
        assert np.all(np.abs(flat.mean(0) - mean * x) < 0.1 * spread)
        np.testing.assert_allclose(flat.std(0), spread, rtol=0.08)
    assert "predictions" in conjugate.data.children
    # The draws that were predicted with are the kept ones, in their places.
    near = conjugate.predict(np.array([1e6]))["y"].values[..., 0] / 1e6
    np.testing.assert_allclose(near, conjugate.draws()["b"], atol=1e-5)


def test_predictions_do_not_depend_on_batches_but_on_the_key(chains):
    whole = chains.predict(key=1)["y"].values
    for batch in (1200, 500, 7):
        np.testing.assert_allclose(chains.predict(key=1, batch=batch)["y"].values, whole, rtol=1e-12)
    np.testing.assert_array_equal(chains.predict(key=jax.random.key(1))["y"].values, whole)
    assert not np.array_equal(chains.predict(key=2)["y"].values, whole)
    with pytest.raises(pf.InvalidArgument, match="batch must be a whole number >= 1, got 0"):
        chains.predict(batch=0)
    with pytest.raises(pf.InvalidArgument, match="does not run on the new arguments"):
        chains.predict(nonsense=1)


def test_fewer_schools_and_more(chains):
    for size in (1, 3, 20):
        found = chains.predict(np.full(size, 5.0))["y"]
        assert found.shape == (4, DRAWS, size)


def test_sites_left_out_are_not_drawn_from_the_prior():
    posterior = pf.fit(schools(), sites=["theta"], num_samples=10, num_warmup=10, num_chains=2, progress=False)
    for call in (posterior.predict, posterior.log_likelihood, posterior.log_prior, posterior.evidence):
        with pytest.raises(pf.NotAvailable, match="lack the latent sites mu, tau, z"):
            call()


def test_prior(conjugate):
    prior = conjugate.prior(4000, key=1)
    assert set(prior.data_vars) == {"b"}
    assert abs(float(prior["b"].mean())) < 5 * PRIOR_SD / 4000**0.5
    np.testing.assert_allclose(float(prior["b"].std()), PRIOR_SD, rtol=0.06)
    predicted = conjugate.data["prior_predictive"]["y"].values[0]
    np.testing.assert_allclose(predicted.std(0), np.sqrt((X * PRIOR_SD) ** 2 + NOISE**2), rtol=0.06)
    # One joint draw: the noise that is left over has the noise's scale.
    left = predicted - conjugate.data["prior"]["b"].values[0][:, None] * X
    np.testing.assert_allclose(left.std(), NOISE, rtol=0.05)


def test_densities_of_the_draws(conjugate):
    from scipy.stats import norm

    b = conjugate.draws()["b"]
    likelihood = conjugate.log_likelihood()["y"]
    np.testing.assert_allclose(likelihood, norm(b[..., None] * X, NOISE).logpdf(YX), rtol=1e-9)
    np.testing.assert_allclose(conjugate.log_prior()["b"], norm(0, PRIOR_SD).logpdf(b), rtol=1e-9)
    assert {"log_likelihood", "log_prior"} <= set(conjugate.data.children)
    assert likelihood.dims[:2] == ("chain", "draw")


def test_evidence_is_that_of_the_closed_form(conjugate):
    from scipy.stats import multivariate_normal

    covariance = NOISE**2 * np.eye(4) + PRIOR_SD**2 * np.outer(X, X)
    exact = multivariate_normal(np.zeros(4), covariance).logpdf(YX)
    found = conjugate.evidence()
    assert found.se < 0.05
    assert abs(found.log_evidence - exact) < 4 * found.se + 1e-3
    near = pf.fit(conjugate.target, pf.Pathfinder(), num_samples=500, progress=False).evidence()
    assert abs(near.log_evidence - exact) < 4 * near.se + 1e-3


# -- precision --------------------------------------------------------------------------------------------------------


def test_64_bits_outside_of_the_scope(chains, density):
    assert not jax.config.jax_enable_x64
    for posterior in (chains, density):
        for value in (*posterior.sample(3).values(), *posterior.draws().values()):
            assert value.dtype == np.float64
        assert posterior.predict()["y"].dtype == np.float64
        assert posterior.unconstrained().dtype == np.float64
    assert density.log_prob(density.sample(4)).dtype == np.float64


def test_32_bits_stay_32_bits_and_do_not_disturb_64():
    target = schools()
    single = pf.fit(target, num_samples=50, num_warmup=50, precision=32, progress=False)
    assert single.predict()["y"].dtype == np.float32
    assert {value.dtype for value in single.sample(3).values()} == {np.dtype(np.float32)}
    assert single.unconstrained().dtype == np.float32
    single.evidence()
    # The same programs, on draws in 32 bits, now in 64.
    foreign = pf.Posterior.from_draws(single.draws(), target=target)
    assert np.isfinite(foreign.evidence().log_evidence)
    assert foreign.predict()["y"].dtype == np.float64
    assert single.log_likelihood()["y"].dtype == np.float32


# -- going on, saving, draws made elsewhere ---------------------------------------------------------------------------


def test_extend(chains, density):
    short = pf.fit(chains.target, key=0, num_samples=100, num_warmup=300, progress=False)
    longer = short.extend(DRAWS - 100, progress=False)
    for name, value in chains.draws().items():
        np.testing.assert_array_equal(longer.draws()[name], value)
    with pytest.raises(pf.NotAvailable, match=r"Pathfinder gives approximation; use sample"):
        density.extend(5)
    with pytest.raises(pf.InvalidArgument, match="num_samples must be a whole number >= 1, got -5"):
        short.extend(-5)


def test_saved_and_loaded_without_target(chains, density, tmp_path):
    for posterior in (chains, density):
        path = posterior.save(tmp_path / posterior.kind)
        loaded = pf.load(path)
        assert repr(loaded) == repr(posterior)
        for name, value in posterior.draws().items():
            np.testing.assert_array_equal(loaded.draws()[name], value)
        assert loaded.data["posterior"]["theta"].dims == ("chain", "draw", "school")
        np.testing.assert_array_equal(loaded.summary(), posterior.summary())
        assert str(loaded.diagnose()).splitlines()[0] == str(posterior.diagnose()).splitlines()[0]
        assert loaded.sample(5)["theta"].shape == (5, 8)
        for call in (loaded.predict, loaded.log_likelihood, loaded.prior, loaded.unconstrained):
            with pytest.raises(pf.NotAvailable, match=r"needs the target; give it to load\(path, target\)"):
                call()
    assert list(pf.load(tmp_path / "chains").data["posterior"]["school"].values) == list("ABCDEFGH")
    again = pf.load(tmp_path / "approximation", schools())
    np.testing.assert_allclose(again.sample(3)["mu"], density.sample(3)["mu"])


def test_from_a_dict(chains):
    target, draws = chains.target, chains.draws()
    posterior = pf.Posterior.from_draws(draws, target=target)
    np.testing.assert_allclose(posterior.summary()["r_hat"], chains.summary()["r_hat"])
    assert abs(posterior.evidence().log_evidence - chains.evidence().log_evidence) < 1e-6
    np.testing.assert_array_equal(posterior.predict(key=1)["y"], chains.predict(key=1)["y"])
    assert "made elsewhere" in repr(posterior)
    named = pf.Posterior.from_draws(
        {"w": np.random.default_rng(0).normal(size=(2, 5, 3))}, dims={"w": ["where"]}, coords={"where": list("abc")},
        sample_stats={"diverging": np.ones((2, 5), bool)},
    )  # fmt: skip
    assert named.data["posterior"]["w"].dims == ("chain", "draw", "where")
    assert "diverge" in str(named.diagnose()).lower()


def test_stan_s_columns_are_statistics():
    rng = np.random.default_rng(0)
    columns = {"lp__": rng.normal(size=(2, 50)), "divergent__": np.eye(2, 50), "treedepth__": np.full((2, 50), 10)}
    posterior = pf.Posterior.from_draws({"a": rng.normal(size=(2, 50)), **columns})
    assert set(posterior.draws()) == {"a"}
    assert set(posterior.data["sample_stats"].data_vars) == {"lp", "diverging", "tree_depth"}
    assert any((found.name, found.value) == ("divergences", 2) for found in posterior.diagnose().findings)


def test_from_numpyro_and_a_tree(chains):
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(eight_schools), num_warmup=100, num_samples=100, num_chains=2, progress_bar=False,
        chain_method="sequential",
    )  # fmt: skip
    mcmc.run(jax.random.key(0), SIGMA, y=Y)  # in 32 bits, on the very arrays that later targets get
    theirs = pf.Posterior.from_draws(mcmc, target=schools())
    assert theirs.draws()["theta"].shape == (2, 100, 8)
    assert "2 chains × 100 draws" in str(theirs.diagnose())
    assert np.isfinite(theirs.evidence().log_evidence)
    assert theirs.predict()["y"].shape == (2, 100, 8)
    tree = pf.Posterior.from_draws(chains.data, target=chains.target)
    np.testing.assert_array_equal(tree.draws()["mu"], chains.draws()["mu"])
    np.testing.assert_allclose(tree.summary()["mean"], chains.summary()["mean"])


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, r"agree on both, got .*'a': \(2, 3\), 'b': \(2, 4\)"),
        ({"a": np.zeros(3)}, "add an axis of length 1 to the draws of a single chain"),
        ({}, "empty dict"),
        ([1, 2], "must be a dict of arrays .* got list"),
        ({1: np.zeros((2, 5))}, "has the key 1; .* names of the sites"),
        ({"a": [[1.0, 2.0], [3.0]]}, r"draws\['a'\] is no array: .*sequence; give an array"),
    ],
)
def test_draws_that_are_refused(draws, message):
    with pytest.raises(pf.InvalidArgument, match=message):
        pf.Posterior.from_draws(draws)


def test_stats_of_another_shape_are_refused():
    with pytest.raises(pf.InvalidArgument, match=r"'diverging': \(3, 2\)"):
        pf.Posterior.from_draws({"a": np.zeros((2, 3))}, sample_stats={"diverging": np.zeros((3, 2))})


# -- ArviZ ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")  # of one school, with some draws
def test_arviz_takes_the_data_as_it_is(chains):
    matplotlib.use("Agg")
    import arviz
    from matplotlib import pyplot

    other = pf.fit(schools(), key=1, num_samples=DRAWS, num_warmup=300, progress=False)
    for compute in (chains.log_likelihood, chains.log_prior, other.log_likelihood):
        compute()
    table = arviz.summary(chains.data, round_to="none")
    np.testing.assert_allclose(table["mean"].astype(float), chains.summary()["mean"])
    np.testing.assert_allclose(table["ess_bulk"].astype(float), chains.summary()["ess_bulk"], rtol=1e-6)
    loo = arviz.loo(chains.data)
    assert loo.n_data_points == 8
    assert abs(loo.elpd + 30.7) < 0.5  # Vehtari, Gelman & Gabry (2017): -30.8 for the centred parameterisation
    compared = arviz.compare({"a": chains.data, "b": other.data})
    assert set(compared.index) == {"a", "b"}
    assert float(abs(compared["elpd_diff"]).max()) < 0.5
    assert len(arviz.psense_summary(chains.data)) == 18
    shown = arviz.plot_trace_dist(chains.data, var_names=["mu", "tau"], backend="matplotlib")
    assert shown is not None
    pyplot.close("all")
