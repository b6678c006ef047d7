"""Comparison of models against the closed forms of a linear regression with known noise."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal, norm

import pushforward as pf

NOISE, PRIOR = 0.5, 2.0
RNG = np.random.default_rng(3)
X = np.append(RNG.normal(size=11), 10.0)  # the last one decides the slope
Y = 0.4 + 0.1 * X + NOISE * RNG.normal(size=12)
Y[-1] += 2.0


def line(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, PRIOR).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(b[0] + b[1] * x, NOISE), obs=y)


COVARIATE = {"line": X, "level": np.zeros(12)}  # without a covariate: a model of the same shape, so one program


def design(name):
    return np.stack([np.ones(12), COVARIATE[name]], 1)


def predictive(name, out):
    """Log densities of the observations ``out`` given all others, each by itself."""
    A, kept = design(name), ~out
    precision = np.eye(A.shape[1]) / PRIOR**2 + A[kept].T @ A[kept] / NOISE**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ A[kept].T @ Y[kept] / NOISE**2
    sd = np.sqrt(NOISE**2 + np.einsum("ij,jk,ik->i", A[out], covariance, A[out]))
    return norm.logpdf(Y[out], A[out] @ mean, sd)


def exact_loo(name):
    return np.concatenate([predictive(name, np.arange(12) == i) for i in range(12)])


def exact_evidence(name):
    A = design(name)
    return multivariate_normal.logpdf(Y, np.zeros(12), PRIOR**2 * A @ A.T + NOISE**2 * np.eye(12))


@pytest.fixture(scope="module")
def posteriors():
    made = {}
    for name, x in COVARIATE.items():
        target = pf.Target.from_numpyro(line, x, Y)
        made[name] = pf.fit(target, pf.NUTS(), num_samples=1000, num_warmup=300, num_chains=2, progress=False)
    return made


@pytest.fixture(scope="module")
def compared(posteriors):
    return pf.compare_models(posteriors, progress=False)


def test_refits_correct_leave_one_out(posteriors, compared):
    exact = exact_loo("line")
    found = compared.pointwise["line"]
    assert 11 in found.refitted
    assert found.elpd == pytest.approx(exact, abs=0.2)
    assert found.bad.size == 0
    rough = pf.compare_models(posteriors, refit=False, evidence=False, progress=False)
    assert abs(rough.pointwise["line"].elpd[11] - exact[11]) > 0.35  # which the bound above would have seen
    assert 11 in rough.pointwise["line"].bad
    assert "k-hat above" in repr(rough)


def test_the_table_has_the_closed_forms(compared):
    exact = {name: exact_loo(name) for name in ("line", "level")}
    table = compared.table
    assert list(table.index) == ["line", "level"]
    difference = exact["line"] - exact["level"]
    assert table.loc["level", "elpd_diff"] == pytest.approx(-difference.sum(), abs=0.5)
    assert table.loc["level", "dse"] == pytest.approx(np.sqrt(12 * difference.var()), rel=0.05)
    assert compared.elpd_difference("line", "level")[0] == pytest.approx(difference.sum(), abs=0.5)
    for name in exact:
        assert table.loc[name, "log_evidence"] == pytest.approx(exact_evidence(name), abs=0.05)
    odds = np.exp(exact_evidence("level") - exact_evidence("line"))
    assert table.loc["line", "prob"] == pytest.approx(1 / (1 + odds), rel=1e-3)


def test_stacking_maximises_the_score_of_the_mixture(compared):
    a, b = (compared.pointwise[name].elpd for name in ("line", "level"))
    best = minimize_scalar(lambda w: -np.sum(np.log(w * np.exp(a) + (1 - w) * np.exp(b))), (0, 1), bounds=(0, 1))
    assert compared.weights["line"] == pytest.approx(best.x, abs=0.01)
    assert sum(compared.weights.values()) == pytest.approx(1.0)


def test_k_fold_is_that_of_the_closed_form(posteriors):
    found = pf.compare_models(posteriors, folds=3, evidence=False, progress=False)
    fold = np.random.default_rng(np.array([0, 0], np.uint32)).permutation(np.arange(12) % 3)
    for name in ("line", "level"):
        exact = np.empty(12)
        for k in range(3):
            exact[fold == k] = predictive(name, fold == k)
        assert found.pointwise[name].elpd[:-1] == pytest.approx(exact[:-1], abs=0.12, rel=0.02)
        assert found.pointwise[name].elpd[-1] == pytest.approx(exact[-1], abs=0.5)  # far in the tail of its draws
        assert np.abs(exact - exact_loo(name))[:-1].max() > 0.15
    assert "3-fold" in repr(found)


@pytest.mark.slow
def test_approximations_are_compared_by_their_weights(posteriors):
    target = posteriors["line"].target
    laplace = pf.fit(target, pf.Laplace(), num_samples=2000, progress=False)
    found = pf.compare_models({"line": laplace, "level": posteriors["level"]}, evidence=False, progress=False)
    assert found.pointwise["line"].elpd == pytest.approx(exact_loo("line"), abs=0.12)


def test_a_refit_that_fails_is_named(posteriors, monkeypatch):
    from pushforward.infer.study import compare

    def broken(*args, **kwargs):
        raise RuntimeError("no luck")

    monkeypatch.setattr(compare, "fit", broken)
    found = pf.compare_models(posteriors, evidence=False, progress=False)
    assert "RuntimeError: no luck" in found.failed["line without y[11]"]
    assert 11 in found.pointwise["line"].bad
    with pytest.raises(pf.NotAvailable, match="K-fold of 'line' needs all 2 refits, and 2 failed; line without fold 0"):
        pf.compare_models(posteriors, folds=2, evidence=False, progress=False)


def test_bad_input_is_told(posteriors):
    one = posteriors["line"]
    other = pf.Posterior.from_draws({"b": np.zeros((2, 10, 2))}, target=pf.Target.from_numpyro(line, X, Y + 1))
    several = pf.Posterior.from_draws({"b": np.zeros((2, 10))}, target=pf.Target.from_numpyro(two, X, Y))
    bare = pf.Posterior.from_draws({"b": np.zeros((2, 10))})
    for given, options, error, message in (
        ({"a": one}, {}, pf.InvalidArgument, "at least two"),
        ({"a": one, "b": 3}, {}, pf.InvalidArgument, r"posteriors\['b'\] must be a Posterior, got int"),
        ({"a": one, "b": other}, {}, pf.InvalidArgument, "other observations of 'y'"),
        ({"a": one, "b": several}, {}, pf.InvalidArgument, "'b' observes y, z; say with var_name"),
        ({"a": one, "b": several}, {"var_name": "z"}, pf.InvalidArgument, "'z' is not observed by 'a'"),
        ({"a": one, "b": bare}, {}, pf.NotAvailable, "needs the target"),
        (posteriors, {"weights": "stack"}, pf.InvalidArgument, "got 'stack'"),
        (posteriors, {"folds": 13}, pf.InvalidArgument, "folds=13 are more than the 12"),
    ):
        with pytest.raises(error, match=message):
            pf.compare_models(given, progress=False, **options)


def two(x, y):
    b = numpyro.sample("b", dist.Normal())
    numpyro.sample("y", dist.Normal(b * x, 1.0), obs=y)
    numpyro.sample("z", dist.Normal(b, 1.0), obs=np.zeros(3))
