"""Calibration: methods that are right pass, those that are wrong in known ways fail."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import multivariate_normal

import pushforward as pf
from pushforward.infer.method import AbstractMethod

X = np.array([[1.0, 0.3], [1.0, -1.2], [1.0, 0.8], [1.0, 2.0], [1.0, -0.4]])
NOISE = 0.7


def regression(x, y=None):
    """Conjugate: a normal posterior in closed form."""
    b = numpyro.sample("b", dist.Normal(0.0, 1.5).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(x @ b, NOISE), obs=y)


@pytest.fixture(scope="module")
def conjugate():
    return pf.Target.from_numpyro(regression, X, np.zeros(5))


class Normal(pf.Approximation):
    """A normal density."""

    center: Any
    scale: Any

    def sample_and_log_prob(self, key, n):
        u = self.center + jax.random.normal(key, (n, len(self.center))) @ self.scale.T
        return u, multivariate_normal.logpdf(u, self.center, self.scale @ self.scale.T)


class Info(NamedTuple):
    """What a step tells."""

    num_evaluations: Any


class Conjugate(AbstractMethod):
    """The posterior of `regression`, its sds times ``width``, its mean moved by ``shift`` sds; or the prior."""

    kind: ClassVar[Any] = "approximation"
    public: ClassVar[bool] = False
    width: float = 1.0
    shift: float = 0.0
    blind: bool = eqx.field(static=True, default=False)

    default_chains: ClassVar[int] = 1

    def stages(self, budget):
        return super().stages(budget._replace(num_samples=1))

    def init(self, key, target, start):
        return start

    def step(self, key, state, target, t):
        return state, Info(jnp.asarray(1))

    def result(self, state, target):
        y = target.observed["y"]
        precision = np.eye(2) / 1.5**2 + (0.0 if self.blind else 1.0) * X.T @ X / NOISE**2
        covariance = np.linalg.inv(precision)
        mean = covariance @ (X.T @ y) / NOISE**2 * (not self.blind)
        scale = np.linalg.cholesky(covariance)
        return Normal(jnp.asarray(mean + self.shift * np.sqrt(np.diag(covariance))), jnp.asarray(self.width * scale))


def calibrate(target, method, n=20, **options):
    return pf.calibrate(target, method, n, progress=False, **options)


@pytest.fixture(scope="module")
def exact(conjugate):
    return calibrate(conjugate, Conjugate(), 100)


@pytest.fixture(scope="module")
def narrow(conjugate):
    return calibrate(conjugate, Conjugate(width=0.8), 150)


def test_the_exact_posterior_passes(exact):
    assert exact.passed, exact
    assert exact.p_value > 0.05
    assert sorted(exact.ranks) == ["b[0]", "b[1]", "log likelihood"]
    assert all(len(ranks) == 100 for ranks in exact.ranks.values())
    assert "is calibrated" in exact.verdict


def test_sds_that_are_a_fifth_too_small_fail(narrow):
    assert not narrow.passed, narrow
    assert narrow.p_value < 0.01
    assert "is not calibrated: draws are too" in narrow.verdict
    assert "draws are too narrow" in set(narrow.table.loc[["b[0]", "b[1]"], "reads"])
    assert narrow.table.loc["b[0]", "cover95"] < 0.95


@pytest.mark.parametrize(
    ("method", "words"),
    [
        pytest.param(Conjugate(width=1.6), "wide", marks=pytest.mark.slow),
        pytest.param(Conjugate(shift=0.6), "high", marks=pytest.mark.slow),
        pytest.param(Conjugate(blind=True), "", marks=pytest.mark.slow),
    ],
    ids=["wide", "shifted", "prior"],
)
def test_what_is_wrong_fails(conjugate, method, words):
    found = calibrate(conjugate, method, 60)
    assert not found.passed, found
    assert found.p_value < 0.01
    assert words in set(found.table.loc[["b[0]", "b[1]"], "reads"].str.removeprefix("draws are too "))
    if method.blind:  # the prior is calibrated in all that does not look at the data
        assert found.table.index[0] == "log likelihood"
        assert min(found.tests[name].p_value for name in ("b[0]", "b[1]")) > 0.01


def test_coverage_is_that_of_the_normal(exact, narrow):
    """Of central intervals of a normal whose sd is `width` times the true one."""
    from scipy.stats import norm

    for prob in (0.5, 0.8):
        for found, width in ((exact, 1.0), (narrow, 0.8)):
            expected = 2 * norm.cdf(width * norm.ppf((1 + prob) / 2)) - 1
            both = np.mean([found.coverage(prob)[name][0] for name in ("b[0]", "b[1]")])
            assert both == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / (2 * found.num_fits)))
        assert exact.coverage(prob)["b[0]"][1] == pytest.approx(np.sqrt(prob * (1 - prob) / 100), rel=0.05)
    spread = np.mean([narrow.coverage(0.8)[name][0] for name in ("b[0]", "b[1]")])
    assert spread < 0.76  # so that the bound above tells 0.8 from 0.7 (with sds that are right)


def skewed(y=None):
    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0))
    with numpyro.plate("rows", 2):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


@pytest.mark.slow
def test_laplace_fails_where_the_posterior_is_skewed():
    found = calibrate(pf.Target.from_numpyro(skewed, np.array([0, 1])), pf.Laplace(), 150)
    assert not found.passed, found


@pytest.mark.slow
def test_nuts_passes_there():
    found = calibrate(pf.Target.from_numpyro(skewed, np.array([0, 1])), pf.NUTS(), 150)
    assert found.passed, found
    assert (found.ess > 0.8 * found.num_draws).all()


def test_nuts_passes_on_a_hierarchical_model():
    target = pf.models.get("eight_schools").target()
    found = calibrate(target, pf.NUTS(), 30, num_warmup=300)
    assert found.passed, found
    assert len(found.ranks) == 19  # mu, tau, z, theta, and the log likelihood
    assert (found.ess > 0).all()


def test_failed_fits_are_named(conjugate):
    calls = []

    def simulate(key):
        b = 1.5 * jax.random.normal(key, (2,))
        y = np.asarray(X @ b) + NOISE * np.random.default_rng(len(calls)).normal(size=5)
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no such data")
        return {"b": b}, pf.Target.from_numpyro(regression, X, y)

    found = calibrate(conjugate, Conjugate(), 12, simulate=simulate)
    assert found.num_fits == 11
    assert list(found.failed) == ["data set 2"]
    assert "RuntimeError: no such data" in found.failed["data set 2"]
    assert "1 fits failed, data set 2 with RuntimeError" in repr(found)
    assert found.too_many_failed
    assert not found.passed
    assert "too many to tell" in found.verdict or "not calibrated" in found.verdict


def test_all_fits_failing_is_an_error(conjugate):
    def simulate(key):
        raise RuntimeError("never")

    with pytest.raises(pf.NonFinite, match="All 10 fits failed; data set 0: RuntimeError: never"):
        calibrate(conjugate, Conjugate(), 10, simulate=simulate)


def test_a_calibration_goes_on_from_its_store(conjugate, exact, tmp_path):
    """After a stop the ranks are those of one that was never stopped; and they do not depend on n."""
    calibrate(conjugate, Conjugate(), 10, store=tmp_path / "c")
    lines = (tmp_path / "c" / "jobs.jsonl").read_text().splitlines()
    (tmp_path / "c" / "jobs.jsonl").write_text("\n".join([*lines[:5], lines[5][:40]]))  # killed in the middle of a line
    again = calibrate(conjugate, Conjugate(), 12, store=tmp_path / "c")
    for name, ranks in again.ranks.items():
        np.testing.assert_array_equal(ranks, exact.ranks[name][:12])
    with pytest.raises(pf.StoreError, match=r'method = {"name": "Conjugate", "settings": {"width": 1.0'):
        calibrate(conjugate, Conjugate(width=0.5), 12, store=tmp_path / "c")


def test_more_quantities_and_fewer_sites(conjugate):
    found = calibrate(conjugate, Conjugate(), 10, sites=["b"], quantities=total)
    assert sorted(found.ranks) == ["b[0]", "b[1]", "log likelihood", "total"]


def total(values):
    return {"total": values["b"].sum()}


def test_pictures_and_page(exact, tmp_path):
    figure = exact.plot()
    assert next(axis.get_title() for axis in figure.axes if axis.get_title()).startswith(exact.table.index[0])
    page = exact.report(tmp_path / "c.html").read_text()
    assert exact.verdict in page
    assert page.count("<img") == 1
    assert "http" not in page.split("</style>")[1]
    with pytest.raises(pf.InvalidArgument, match="names has 'zz'; the quantities are b"):
        exact.plot(["zz"])


def flat(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def factored(y):
    mu = numpyro.sample("mu", dist.Normal())
    numpyro.factor("more", -(mu**2))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: calibrate(t, pf.NUTS(), 5), pf.InvalidArgument, "n must be a whole number >= 10, got 5"),
        (lambda t: calibrate(t, pf.NUTS(), level=1.5), pf.InvalidArgument, "level .* got 1.5"),
        (lambda t: calibrate(t, pf.NUTS(), 20, sites=["c"]), pf.InvalidArgument, "'c'; the target's sites are b"),
        (lambda t: calibrate(t, pf.NUTS(), 20, num_samples=10), pf.InvalidArgument, "less than num_draws=100"),
        (lambda t: calibrate(t, pf.NUTS(), 20, num_warmup=-3), pf.InvalidArgument, "num_warmup"),
        (lambda t: calibrate(t, pf.NUTS(), 20, simulate=lambda key: 3), pf.InvalidArgument, "pair .* got int"),
        (
            lambda t: calibrate(pf.Target.from_numpyro(flat, 1.0), pf.NUTS(), 20),
            pf.UnsupportedTarget,
            "calibrate needs a target with proper_prior",
        ),
        (lambda t: calibrate(pf.Target.from_numpyro(factored, 1.0), pf.NUTS(), 20), pf.UnsupportedTarget, "'more'"),
        (
            lambda t: calibrate(pf.Target.from_log_density(lambda x: -(x**2), np.zeros(())), pf.NUTS(), 20),
            pf.UnsupportedTarget,
            "proper_prior",
        ),
    ],
)
def test_bad_input_is_told(conjugate, call, error, message):
    with pytest.raises(error, match=message):
        call(conjugate)
