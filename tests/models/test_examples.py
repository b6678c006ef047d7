"""Shipped data and models, against published results of the same data."""

import numpy as np
import pytest
from scipy import optimize, special

from pushforward import models
from pushforward.infer.errors import InvalidArgument


def log_joint(name, values):
    import jax
    from numpyro.infer.util import log_density

    example = models.get(name)
    with jax.enable_x64(True):
        return float(log_density(example.model, (), example.kwargs, values)[0])


def logistic_fit(design, successes, trials):
    """Maximum likelihood by Newton's method."""
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        p = special.expit(design @ beta)
        hessian = (design.T * (trials * p * (1 - p))) @ design
        beta = beta + np.linalg.solve(hessian, design.T @ (successes - trials * p))
    return beta


def test_names_and_what_they_hold():
    assert models.names() == ["eight_schools", "eight_schools_centered", "seeds", "challenger", "dugongs"]
    for name in models.names():
        example = models.get(name)
        assert example.model.__name__ == name
        assert len({len(value) for value in example.data.values()}) == 1
        assert example.about.endswith(".")
        assert any(year in example.source for year in ("1978", "1981", "1983", "1989"))
        assert name in repr(example)
    with pytest.raises(InvalidArgument, match=r"one of eight_schools, .*, dugongs; got 'nine_schools'"):
        models.get("nine_schools")
    with pytest.raises(AttributeError, match="nothing"):
        _ = models.nothing


def test_eight_schools_pooled_estimate_is_the_published_one():
    """Gelman et al., Bayesian Data Analysis, section 5.5: pooled estimate 7.7 with standard error 4.1."""
    data = models.get("eight_schools").data
    precision = 1.0 / data["sigma"] ** 2
    assert np.sum(precision * data["y"]) / precision.sum() == pytest.approx(7.7, abs=0.05)
    assert precision.sum() ** -0.5 == pytest.approx(4.1, abs=0.05)
    assert models.get("eight_schools").coords == {"school": list("ABCDEFGH")}


def test_challenger_fit_is_the_published_one():
    """The logistic regression of these 23 flights has intercept 15.043 and slope -0.2322."""
    data = models.get("challenger").data
    design = np.stack([np.ones(23), data["temperature"]], axis=1)
    np.testing.assert_allclose(logistic_fit(design, data["distress"], np.ones(23)), [15.043, -0.2322], rtol=1e-3)


def test_seeds_fit_is_the_published_one():
    """Breslow and Clayton (1993), Table 3: -0.558 (bean, 75), 0.146, 1.318 and -0.778 without random effects."""
    data = models.get("seeds").data
    variety, cucumber = data["variety"], data["cucumber"]
    design = np.stack([np.ones(21), variety, cucumber, variety * cucumber], axis=1)
    fit = logistic_fit(design, data["germinated"], data["total"])
    np.testing.assert_allclose(fit, [-0.558, 0.146, 1.318, -0.778], atol=1e-3)


def test_dugongs_fit_is_near_the_published_posterior():
    """BUGS, volume 2: posterior means alpha 2.65, beta 0.97, gamma 0.86, sigma 0.10."""
    data = models.get("dugongs").data
    fit, _ = optimize.curve_fit(lambda x, a, b, c: a - b * c**x, data["age"], data["length"], p0=[2.6, 1.0, 0.9])
    np.testing.assert_allclose(fit, [2.65, 0.97, 0.865], atol=0.015)
    residuals = data["length"] - (fit[0] - fit[1] * fit[2] ** data["age"])
    assert np.sqrt(np.sum(residuals**2) / 24) == pytest.approx(0.095, abs=0.005)


def test_log_joints_are_the_stated_ones():
    from scipy import stats

    norm, half = stats.norm.logpdf, stats.halfnorm.logpdf
    schools = models.get("eight_schools").data
    z, mu, tau = np.linspace(-1, 1, 8), 3.0, 2.0
    prior = norm(mu, 0, 5) + stats.halfcauchy.logpdf(tau, scale=5)
    likelihood = norm(schools["y"], mu + tau * z, schools["sigma"]).sum()
    assert log_joint("eight_schools", {"mu": mu, "tau": tau, "z": z}) == pytest.approx(
        prior + norm(z).sum() + likelihood
    )
    centred = prior + norm(mu + tau * z, mu, tau).sum() + likelihood
    values = {"mu": mu, "tau": tau, "theta": mu + tau * z}
    assert log_joint("eight_schools_centered", values) == pytest.approx(centred)

    seeds = models.get("seeds").data
    a, tau, z = np.array([-0.5, 0.1, 1.3, -0.8]), 0.3, np.linspace(-2, 2, 21)
    logits = a[0] + a[1] * seeds["variety"] + a[2] * seeds["cucumber"] + tau * z
    logits = logits + a[3] * seeds["variety"] * seeds["cucumber"]
    expected = norm(a, 0, 2).sum() + half(tau) + norm(z).sum()
    expected += stats.binom.logpmf(seeds["germinated"], seeds["total"], special.expit(logits)).sum()
    values = dict(zip(("alpha0", "alpha1", "alpha2", "alpha12"), a, strict=True)) | {"tau": tau, "z": z}
    assert log_joint("seeds", values) == pytest.approx(expected)

    flights = models.get("challenger").data
    p = special.expit(0.4 - 1.1 * (flights["temperature"] - 70) / 10)
    expected = norm(0.4, 0, 5) + norm(-1.1, 0, 5) + stats.bernoulli.logpmf(flights["distress"], p).sum()
    assert log_joint("challenger", {"alpha": 0.4, "beta": -1.1}) == pytest.approx(expected)

    dugongs = models.get("dugongs").data
    mean = 2.6 - 0.9 * 0.85 ** dugongs["age"]
    expected = half(2.6, 0, 5) + half(0.9, 0, 5) + np.log(2) + half(0.1) + norm(dugongs["length"], mean, 0.1).sum()
    values = {"alpha": 2.6, "beta": 0.9, "gamma": 0.85, "sigma": 0.1}
    assert log_joint("dugongs", values) == pytest.approx(expected)


@pytest.mark.parametrize("name", models.names())
def test_prior_predictive_draws_look_like_the_data(name):
    import jax
    from numpyro.handlers import seed, trace

    example = models.get(name)
    observed = {"eight_schools": "y", "eight_schools_centered": "y", "seeds": "germinated"}
    observed |= {"challenger": "distress", "dugongs": "length"}
    kwargs = {field: value for field, value in example.kwargs.items() if field != observed[name]}
    drawn = trace(seed(example.model, jax.random.key(0))).get_trace(**kwargs)[observed[name]]["value"]
    assert drawn.shape == example.data[observed[name]].shape
