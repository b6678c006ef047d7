"""The Langevin samplers through `fit`: constrained models, kinks, reductions, warnings, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer import geometry as geo
from pushforward.infer.geometry.prox import L1
from pushforward.infer.geometry.supports import ball, polytope
from pushforward.infer.geometry.tv import TotalVariation
from pushforward.infer.target.primal import primal
from pushforward.samplers.langevin import checks, slope


def fit(target, method, **options):
    return pf.fit(target, method, **{"num_samples": 2000, "num_warmup": 500, "progress": False} | options)


def assert_moments(posterior, mean, variance, sites=None):
    """Means and variances within 4.5 Monte-Carlo errors of the truth."""
    from pushforward.infer.diagnostics.chains import effective_sample_size

    x = posterior.draws()[sites or "x"]
    ess = effective_sample_size(np.moveaxis(x, -1, 0))
    ess2 = effective_sample_size(np.moveaxis((x - mean) ** 2, -1, 0))
    assert ess.min() > 200
    assert np.all(np.abs(x.mean((0, 1)) - mean) < 4.5 * np.sqrt(variance / ess))
    squares = (x - mean) ** 2
    assert np.all(np.abs(squares.mean((0, 1)) - variance) < 4.5 * squares.std((0, 1)) / np.sqrt(ess2))


def test_dirichlet() -> None:
    target = pf.Target.from_log_density(lambda p: jnp.sum(3 * jnp.log(p)), np.full(3, 1 / 3), constraints.simplex)
    posterior = fit(target, pf.MirrorLangevin())
    assert_moments(posterior, np.full(3, 1 / 3), np.full(3, 2 / 117))
    np.testing.assert_allclose(posterior.draws()["x"].sum(-1), 1.0, atol=1e-12)


def test_a_numpyro_model_with_constrained_sites() -> None:
    """Its posterior is known: two independent conjugate pairs."""

    def model(counts, events):
        p = numpyro.sample("p", dist.Dirichlet(np.array([1.0, 2.0, 1.5])))
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("counts", dist.Multinomial(20, p), obs=counts)
        numpyro.sample("events", dist.Poisson(rate), obs=events)

    target = pf.Target.from_numpyro(model, np.array([4, 9, 7]), np.array([3, 1, 4, 2]))
    posterior = fit(target, pf.MirrorLangevin(), num_samples=4000)
    a = np.array([5.0, 11.0, 8.5])
    mean = a / a.sum()
    assert_moments(posterior, mean, mean * (1 - mean) / (a.sum() + 1), "p")
    rate = posterior.draws()["rate"][..., None]
    assert rate.mean() == pytest.approx(12 / 5, abs=0.05)
    assert rate.var() == pytest.approx(12 / 25, rel=0.12)


def test_uniform_on_a_triangle_by_mapla() -> None:
    A, b = np.vstack([-np.eye(2), np.ones((1, 2))]), np.array([0.0, 0.0, 1.0])
    target = pf.Target.from_log_density(lambda x: 0.0 * jnp.sum(x), np.full(2, 0.2), polytope(A, b))
    posterior = fit(target, pf.MAPLA(), num_samples=5000)
    assert_moments(posterior, np.full(2, 1 / 3), np.full(2, 1 / 18))
    assert (posterior.draws()["x"].sum(-1) < 1).all()


def test_uniform_on_a_ball_by_mamla() -> None:
    """E xᵢ² = 1/(d + 2) on the unit ball."""
    target = pf.Target.from_log_density(lambda x: 0.0 * jnp.sum(x), np.zeros(3), ball(1.0))
    assert_moments(fit(target, pf.MirrorLangevin(), num_samples=5000), np.zeros(3), np.full(3, 0.2))


LAPLACE = {
    "euclidean": {},
    "both": {"mirror": "hyperbolic", "envelope": "hyperbolic"},
    "right": {"mirror": "hyperbolic", "envelope": "hyperbolic", "side": "right"},
}


@pytest.mark.parametrize(
    "options",
    [pytest.param(v, id=k, marks=pytest.mark.slow if k == "both" else ()) for k, v in LAPLACE.items()],
)
def test_laplace_of_three_scales(options) -> None:
    """π ∝ exp(−Σ wᵢ|xᵢ|): variance 2/wᵢ²."""
    weights = np.array([0.1, 1.0, 10.0])
    target = pf.Target.composite(lambda x: 0.0 * jnp.sum(x), L1(weights), np.zeros(3))
    posterior = fit(target, pf.BregmanProximalLangevin(**options), num_warmup=1000, num_samples=4000)
    assert_moments(posterior, np.zeros(3), 2 / weights**2)


def test_real_and_constrained_sites_together() -> None:
    """Scales are learned for the real site, far from 0 and narrow, beside one that has none."""

    def model(y):
        m = numpyro.sample("m", dist.Normal(100.0, 0.01))
        s = numpyro.sample("s", dist.Gamma(3.0, 2.0))
        numpyro.sample("y", dist.Normal(m, 1e4), obs=y)
        numpyro.factor("c", 0.0 * s)

    target = pf.Target.from_numpyro(model, np.array([0.0]))
    posterior = fit(target, pf.MirrorLangevin(), start={"m": 100.0, "s": 1.0}, num_warmup=1000, num_samples=4000)
    draws = posterior.draws()
    assert draws["m"].std() == pytest.approx(0.01, rel=0.15)
    assert draws["m"].mean() == pytest.approx(100.0, abs=0.003)
    assert draws["s"].mean() == pytest.approx(1.5, rel=0.1)


def test_a_user_s_scale_stays() -> None:
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum((x - 50) ** 2), np.zeros(1))
    posterior = fit(target, pf.MirrorLangevin(scale=3.0), start=np.full(1, 50.0))
    np.testing.assert_allclose(posterior._learned()["scale"], 3.0)
    assert posterior.draws()["x"].std() == pytest.approx(1.0, abs=0.1)


def test_a_batch_of_simplices() -> None:
    """Of 40, also where the rows are one event; one mirror is traced for all."""

    def model():
        numpyro.sample("p", dist.Dirichlet(np.full(3, 4.0)).expand([40]).to_event(1))

    posterior = fit(pf.Target.from_numpyro(model), pf.MirrorLangevin(), num_samples=1000, num_warmup=300)
    draws = posterior.draws()["p"]
    np.testing.assert_allclose(draws.mean((0, 1, 2)), 1 / 3, atol=0.008)
    np.testing.assert_allclose(draws.var((0, 1, 2)), 2 / 117, rtol=0.08)


@pytest.mark.parametrize(
    ("d", "expected", "variance"),
    [pytest.param(2, 0.72, 0.017094, marks=pytest.mark.slow), (5, 0.71, 0.005556)],
)
def test_acceptance_on_a_dirichlet(d: int, expected: float, variance: float) -> None:
    """Dirichlet(4, …, 4) in d dimensions under the barrier at γ = ¼ d^(−3/2), from draws of the law itself."""
    target = pf.Target.from_log_density(
        lambda p: jnp.sum(3 * jnp.log(p)), np.full(d + 1, 1 / (d + 1)), constraints.simplex
    )
    with jax.enable_x64(True):
        exact = jnp.asarray(np.random.default_rng(0).dirichlet(np.full(d + 1, 4.0), 256))
        start = np.asarray(jax.vmap(lambda p: target.unconstrain({"x": p}))(exact))
    method = pf.MirrorLangevin(step_size=0.25 * d**-1.5, mirror={"x": geo.SimplexBarrier()})
    posterior = fit(target, method, start=start, num_chains=256, num_samples=50, num_warmup=0)
    stats = posterior.data["sample_stats"]["acceptance_rate"].values
    assert stats.mean() == pytest.approx(expected, abs=4 * stats.mean(1).std() / np.sqrt(256))
    assert stats.mean(1).std() / np.sqrt(256) < 0.0035
    x = posterior.draws()["x"]
    for seen, exact in ((x, 1 / (d + 1)), ((x - 1 / (d + 1)) ** 2, variance)):
        by_chain = seen.mean(1)  # independent of each other
        assert np.all(np.abs(by_chain.mean(0) - exact) < 4.5 * by_chain.std(0) / np.sqrt(256))


def test_without_a_test_edges_have_barriers() -> None:
    """On an entropy chains of this law end in a corner, or at 1e50; here the bias is a few percent."""
    a = np.array([1.0, 2.0, 3.0])

    def log_density(v):
        return (a - 1) @ jnp.log(v["p"]) + jnp.sum(2 * jnp.log(v["g"]) - v["g"]) + jnp.sum(jnp.log(v["b"]))

    example = {"p": np.full(3, 1 / 3), "g": np.ones(1), "b": np.full(1, 0.5)}
    supports = {"p": constraints.simplex, "g": constraints.positive, "b": constraints.unit_interval}
    target = pf.Target.from_log_density(log_density, example, supports)
    method = pf.MirrorLangevin(adjusted=False, bias_check=False)
    posterior = fit(target, method, num_chains=16, num_samples=4000)
    assert (posterior.data["sample_stats"]["step_size"].values <= 0.02).all()
    draws = posterior.draws()
    mean = a / a.sum()
    np.testing.assert_allclose(draws["p"].mean((0, 1)), mean, atol=0.25 * np.sqrt(mean * (1 - mean) / 7).min())
    assert draws["g"].mean() == pytest.approx(3.0, abs=0.25 * np.sqrt(3))
    assert draws["g"].max() < 30
    assert draws["b"].std() == pytest.approx(np.sqrt(1 / 18), rel=0.1)


def test_bounds_of_fewer_axes_than_the_site() -> None:
    def model():
        with numpyro.plate("rows", 4):
            numpyro.sample("x", dist.Uniform(0.0, np.array([1.0, 2.0, 3.0])).to_event(1))

    draws = fit(pf.Target.from_numpyro(model), pf.MirrorLangevin(), num_samples=4000).draws()["x"]
    np.testing.assert_allclose(draws.mean((0, 1)), np.broadcast_to([0.5, 1.0, 1.5], (4, 3)), rtol=0.15)


def test_a_step_of_another_kind_is_not_inherited() -> None:
    target = pf.Target.composite(lambda x: -50.0 * jnp.sum(x**2), L1(1.0), np.zeros(2))
    start = fit(target, pf.NUTS(), num_samples=50, num_warmup=100)
    posterior = fit(target, pf.ProximalLangevin(), start=start, num_samples=200)
    assert np.asarray(posterior._learned()["step_size"]).max() < 0.02
    assert posterior.draws()["x"].std() < 1.0


def test_a_flat_smooth_part_does_not_make_the_step_infinite() -> None:
    target = pf.Target.composite(lambda x: 0.0 * jnp.sum(x), L1(1.0), np.zeros(2))
    posterior = fit(target, pf.ProximalLangevin(), num_samples=8000)
    assert posterior.draws()["x"].std() == pytest.approx(np.sqrt(2), rel=0.25)


def test_groups_beside_an_unknown_noise_scale() -> None:
    def model(x, y):
        b = numpyro.sample("b", dist.Normal(0, 10).expand([4]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(x @ b, sigma), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4))
    y = x[:, :2].sum(1) + 0.5 * rng.normal(size=40)
    groups = geo.prox.GroupL2(3.0, {"b": np.array([0, 0, 1, 1])})
    posterior = fit(pf.Target.composite(pf.Target.from_numpyro(model, x, y), groups), pf.BregmanProximalLangevin())
    draws = posterior.draws()
    np.testing.assert_allclose(draws["b"].mean((0, 1)), [1, 1, 0, 0], atol=0.3)
    assert draws["sigma"].mean() == pytest.approx(0.5, abs=0.15)
    spread = geo.prox.ElasticNet({"b": 1.0}, 1.0)
    with pytest.raises(pf.UnsupportedTarget, match="acts on the site 'sigma'"):
        fit(pf.Target.composite(pf.Target.from_numpyro(model, x, y), spread), pf.BregmanProximalLangevin())


def test_a_ratio_that_is_no_number_is_a_rejection_and_counted() -> None:
    target = pf.Target.from_log_density(lambda x: jnp.sum(jnp.where(x > 0.5, jnp.nan, -0.5 * x**2)), np.zeros(1))
    posterior = fit(target, pf.MirrorLangevin(), start=np.zeros(1), num_samples=500)
    assert posterior.draws()["x"].max() <= 0.5
    assert posterior.data["sample_stats"]["diverging"].values.sum() > 0


@pytest.mark.parametrize("cls", [pf.MirrorLangevin, pf.MAPLA])
def test_steps_out_of_the_constraint_are_no_divergences_and_nan_within_it_is(cls) -> None:
    """The dual of Burg's entropy is y < 0 only; a step beyond it is an expected rejection, NaN of the model is none."""

    def run(log_density):
        target = pf.Target.from_log_density(log_density, {"x": np.ones(2)}, {"x": constraints.positive})
        method = cls(mirror={"x": geo.Burg()}, step_size=1.0)
        posterior = fit(target, method, start=np.zeros(2), num_warmup=0, num_samples=600)
        return posterior, posterior.data["sample_stats"]

    posterior, stats = run(lambda v: jnp.sum(2 * jnp.log(v["x"]) - 3 * v["x"]))
    assert stats["diverging"].values.sum() == 0
    assert (stats["acceptance_rate"].values == 0).any()
    assert posterior.draws()["x"].mean() == pytest.approx(1.0, abs=0.2)
    posterior, stats = run(lambda v: jnp.sum(jnp.where(v["x"] > 1.5, jnp.nan, 2 * jnp.log(v["x"]) - 3 * v["x"])))
    assert stats["diverging"].values.sum() > 0
    assert posterior.draws()["x"].max() <= 1.5


def test_a_ratio_that_is_no_number_at_a_finite_point_is_a_rejection_and_counted() -> None:
    """Log π is −∞ at both ends, and their difference NaN, while point, drift and density are no reason to reject."""
    target = pf.Target.composite(REAL, geo.BoxIndicator(-1.0, 1.0))
    method = pf.MirrorLangevin(step_size=1e-3)
    algorithm = pf.as_sampling_algorithm(method, target)
    state = algorithm.init(jnp.full(2, 5.0))
    for seed in range(3):
        state, info = algorithm.step(jax.random.key(seed), state)
        assert info.diverging
        assert info.acceptance_rate == 0
    np.testing.assert_array_equal(method.draw(state), 5.0)


def test_the_mirror_must_have_the_domain_of_the_support() -> None:
    half = pf.Target.from_log_density(lambda v: -jnp.sum(v["s"] ** 2), {"s": np.ones(1)}, {"s": constraints.positive})
    with pytest.raises(pf.InvalidArgument, match="leads out of its support, positive"):
        fit(half, pf.MirrorLangevin(mirror={"s": geo.Euclidean()}), num_samples=10)
    with pytest.raises(pf.InvalidArgument, match="covers a part of the supports only"):
        fit(REAL, pf.MirrorLangevin(mirror=geo.BoltzmannShannon()), start=np.ones(2), num_samples=10)


def test_scales_are_learned() -> None:
    scales = np.array([1.0, 10.0, 0.01])
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum((x / scales) ** 2), np.zeros(3))
    posterior = fit(target, pf.MirrorLangevin(), num_samples=200, num_warmup=1000)
    learned = np.asarray(posterior._learned()["scale"])
    np.testing.assert_allclose(learned, np.broadcast_to(scales, learned.shape), rtol=0.5)


def test_euclidean_choices_are_myula() -> None:
    """φ and ψ Euclidean, left and right: one recursion, written out here."""
    target = pf.Target.composite(lambda x: -0.5 * jnp.sum((x - 1) ** 2), L1(1.0), np.zeros(2))
    options = {"smoothing": 0.3, "adjusted": False, "step_size": 0.05}
    runs = [
        fit(target, pf.BregmanProximalLangevin(side=side, **options), num_samples=50, num_warmup=0, num_chains=1)
        for side in ("left", "right")
    ]
    x = runs[0].draws()["x"]
    np.testing.assert_array_equal(x, runs[1].draws()["x"])
    prox = np.sign(x) * np.maximum(np.abs(x) - 0.3, 0)
    drift = (x - 1) + (x - prox) / 0.3
    xi = (x[:, 1:] - x[:, :-1] + 0.05 * drift[:, :-1]) / np.sqrt(0.1)
    assert abs(xi.mean()) < 4 / np.sqrt(xi.size)
    assert xi.std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * xi.size))


def test_unadjusted_draws_outside_of_an_indicator_are_no_divergences() -> None:
    """The envelope of a box lets draws out of it, where log π is −∞ and no ratio is a number; none is tested."""
    method = pf.BregmanProximalLangevin(adjusted=False, smoothing=0.1, step_size=0.02, bias_check=False)
    posterior = fit(FLAT_BOX, method, num_samples=500, num_warmup=0)
    assert (np.abs(posterior.draws()["x"]) > 1).mean() > 0.05
    assert posterior.data["sample_stats"]["diverging"].values.sum() == 0


def test_scales_of_terms_made_of_terms() -> None:
    """The slope of a `Sum` is that of its term, that of `Blocks` the largest; a metric has its share of the step."""
    total = geo.Sum(L1([1.0, 2.0]), geo.NonNegative())
    np.testing.assert_allclose(slope.default_smoothing(total, False), [0.1, 0.025], rtol=1e-6)
    blocks = geo.Blocks([L1(1.0), None, TotalVariation(2.0, (3,))], [1, 2, 3])
    assert slope.default_smoothing(blocks, True) == pytest.approx(0.05)
    assert slope.term_step(blocks) == pytest.approx(0.025)
    assert slope.term_step(total, jnp.diag(jnp.array([1.0, 100.0]))) == pytest.approx(0.025 / 100)
    assert slope.term_step(geo.Blocks([L1(1.0), geo.NonNegative()], [1, 2])) == np.inf


def test_draws_of_psgla_lie_on_the_kink() -> None:
    target = pf.Target.composite(lambda x: -0.5 * jnp.sum(x**2), L1(3.0), np.zeros(4))
    posterior = fit(target, pf.ProximalLangevin(step_size=0.05), num_samples=500)
    assert (posterior.draws()["x"] == 0).mean() > 0.1


def test_total_variation_denoising_by_primal_dual_and_proximal_langevin() -> None:
    """The posterior mean of both, of a signal of two levels, against long MYMALA."""
    rng = np.random.default_rng(0)
    signal = np.repeat([0.0, 2.0], 8) + 0.5 * rng.normal(size=16)
    target = pf.Target.composite(
        lambda x: -0.5 * jnp.sum((x - signal) ** 2) / 0.25, TotalVariation(2.0, (16,)), np.zeros(16)
    )
    exact = fit(target, pf.BregmanProximalLangevin(smoothing=0.02), num_samples=4000).draws()["x"]
    mean, sd = exact.mean((0, 1)), exact.std((0, 1))
    near = fit(target, pf.ProximalLangevin(step_size=0.01), num_samples=3000).draws()["x"].mean((0, 1))
    assert np.abs((near - mean) / sd).max() < 0.25
    dual = fit(target, pf.PrimalDualLangevin(step_size=0.01), num_samples=3000).draws()["x"].mean((0, 1))
    assert np.abs((dual - mean) / sd).max() < 0.25


def test_unadjusted_samplers_tell_their_bias() -> None:
    """ULA on N(0, 1): variance 1/(1 − γ/2), so at γ = 0.4 the standard deviation is 11.8 % too large."""
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(2))
    posterior = fit(target, pf.MirrorLangevin(adjusted=False, step_size=0.4), num_warmup=4000)
    finding = next(f for f in posterior.diagnose().findings if f.name == "bias")
    assert finding.level == "warning"
    assert finding.value == pytest.approx(0.118, abs=0.03)
    small = fit(target, pf.MirrorLangevin(adjusted=False, step_size=0.02), num_warmup=2000)
    assert next(f for f in small.diagnose().findings if f.name == "bias").level == "note"


def test_a_user_s_step_is_used_as_it_is() -> None:
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum((x / 5) ** 2), np.zeros(1))
    posterior = fit(target, pf.MirrorLangevin(adjusted=False, step_size=0.03, bias_check=False), num_samples=10)
    assert (posterior.data["sample_stats"]["step_size"].values == 0.03).all()


REAL = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(2))
KINK = pf.Target.composite(REAL, L1(1.0))
FLAT_BOX = pf.Target.composite(lambda x: 0.0 * jnp.sum(x), geo.BoxIndicator(-1.0, 1.0), np.zeros(2))
SIMPLEX = pf.Target.from_log_density(lambda p: jnp.sum(jnp.log(p)), np.full(3, 1 / 3), constraints.simplex)


@pytest.mark.parametrize(
    ("target", "make", "message"),
    [
        (REAL, lambda: pf.BregmanProximalLangevin(), "needs a target with composite"),
        (
            KINK,
            lambda: pf.MirrorLangevin(mirror=geo.Burg(), adjusted=False),
            "Burg has points of R\\^d that are no duals",
        ),
        (KINK, lambda: pf.MirrorLangevin(mirror={"z": geo.Euclidean()}), "mirror names the site 'z'"),
        (KINK, lambda: pf.MirrorLangevin(mirror="log"), "mirror must be None, 'hyperbolic'"),
        (KINK, lambda: pf.MirrorLangevin(scale=np.ones(3)), "scale has shape"),
        (KINK, lambda: pf.MirrorLangevin(scale=-1.0), "scale must be positive"),
        (KINK, lambda: pf.MirrorLangevin(scale=1.0, mirror=geo.Euclidean()), "has no use with a mirror of one's own"),
        (KINK, lambda: pf.BregmanProximalLangevin(smoothing=np.ones(3)), "smoothing has shape"),
        (KINK, lambda: pf.ProximalLangevin(scheme="pp_ula", metric=np.eye(3)), "metric has shape"),
        (KINK, lambda: pf.MirrorLangevin(mirror=geo.HyperbolicEntropy([0.1, 0.2, 0.3])), "beta has shape"),
        (KINK, lambda: pf.BregmanProximalLangevin(side="up"), "side must be one of"),
        (KINK, lambda: pf.BregmanProximalLangevin(envelope="log"), "envelope must be None"),
        (KINK, lambda: pf.BregmanProximalLangevin(smoothing=-1.0), "smoothing"),
        (KINK, lambda: pf.MAPLA(adjusted=False), "adjusted must be True"),
        (KINK, lambda: pf.ProximalLangevin(adjusted=True), "adjusted must be False"),
        (KINK, lambda: pf.ProximalLangevin(scheme="fbula"), "needs smoothing"),
        (KINK, lambda: pf.ProximalLangevin(scheme="fbula", smoothing=1.5), "must be below 1/L = 1"),
        (KINK, lambda: pf.ProximalLangevin(scheme="pgld", smoothing=0.1), "is a setting of scheme='fbula'"),
        (
            KINK,
            lambda: pf.ProximalLangevin(scheme="pp_ula", metric=-np.eye(2)),
            "metric must be symmetric and positive",
        ),
        (KINK, lambda: pf.PrimalDualLangevin(step_size=1.0, ratio=2.0), "τσ"),
        (SIMPLEX, lambda: pf.PrimalDualLangevin(), "needs a target with composite"),
        (KINK, lambda: pf.MirrorLangevin(step_size=0.0), "step_size must be"),
        (KINK, lambda: pf.MirrorLangevin(adjusted=False, step_size=2.5), "must be below 2/L = 2"),
        (
            KINK,
            lambda: pf.BregmanProximalLangevin(adjusted=False, step_size=0.5, smoothing=0.2),
            "must be below 2/\\(L \\+ 1/λ\\) = 0.333",
        ),
        (
            KINK,
            lambda: pf.BregmanProximalLangevin(adjusted=False, step_size=0.5, smoothing=0.8, scale=2.0),
            "must be below 2/\\(L \\+ 1/λ\\) = 0.222",  # 2 / (4 + 4/0.8)
        ),
        (KINK, lambda: pf.ProximalLangevin(step_size=2.5), "must be below 2/L = 2"),
        (KINK, lambda: pf.ProximalLangevin(scheme="pgld", step_size=2.5), "must be below 2/L = 2"),
        (
            KINK,
            lambda: pf.ProximalLangevin(scheme="pp_ula", metric=np.diag([100.0, 1.0]), step_size=0.1),
            "must be below 2/L = 0.02",
        ),
        (
            KINK,
            lambda: pf.ProximalLangevin(scheme="fbula", smoothing=0.1, step_size=0.5),
            "must be below 2/\\(L \\+ 1/λ\\) = 0.182",
        ),
        (KINK, lambda: pf.BregmanProximalLangevin(envelope=geo.Burg()), "envelope=Burg covers a part of the supports"),
        (KINK, lambda: pf.ProximalLangevin(scale=2.0), "scale=2.0 has no use"),
        (KINK, lambda: pf.PrimalDualLangevin(target_acceptance=0.6), "target_acceptance=0.6 has no use"),
        (FLAT_BOX, lambda: pf.ProximalLangevin(), "step_size=None needs a smooth part with a curvature"),
        (FLAT_BOX, lambda: pf.PrimalDualLangevin(), "step_size=None needs a smooth part with a curvature"),
        (KINK, lambda: pf.MirrorLangevin(mirror=geo.PowerMirror(3.0), adjusted=False), "second derivative of 0 or inf"),
        (KINK, lambda: pf.MirrorLangevin(target_acceptance=1.0), "target_acceptance must be"),
    ],
)
def test_bad_input(target, make, message) -> None:
    with pytest.raises(pf.PushforwardError, match=message):
        fit(target, make(), num_samples=10, num_warmup=10)


def test_a_blackjax_loop_takes_them() -> None:
    """MALA-like steps of N(0, 1) in a loop of the user's own."""

    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum(x**2), np.zeros(2))
    method = pf.MirrorLangevin(step_size=0.8)
    algorithm = pf.as_sampling_algorithm(method, target)

    def one(state, key):
        state, info = algorithm.step(key, state)
        return state, (method.draw(state), info.acceptance_rate)

    keys = jax.random.split(jax.random.key(0), 4000)
    _, (x, acceptance) = jax.jit(lambda: jax.lax.scan(one, algorithm.init(jnp.zeros(2)), keys))()
    assert 0.5 < acceptance.mean() < 0.9
    assert abs(float(x.var()) - 1) < 0.1


def test_a_start_outside_of_the_mirror_is_named() -> None:
    with pytest.raises(
        pf.InvalidArgument, match=r"outside of the domain of BoltzmannShannon: coordinate 1 \(site 'x'\)"
    ):
        fit(KINK, pf.MirrorLangevin(mirror=geo.BoltzmannShannon()), start=np.array([1.0, -1.0]), num_samples=10)


def test_a_start_outside_of_a_support_names_its_coordinate() -> None:
    target = pf.Target.from_log_density(lambda x: -jnp.sum(x), np.ones(3), constraints.positive)
    with pytest.raises(pf.InvalidArgument, match=r"support is positive, first at its unconstrained coordinate \(1,\)"):
        fit(target, pf.MirrorLangevin(), start={"x": np.array([1.0, -2.0, 1.0])}, num_samples=10)


def findings(posterior):
    return {finding.name: finding for finding in posterior.diagnose().findings}


def test_flat_tails_of_an_envelope_are_told() -> None:
    method = pf.BregmanProximalLangevin(envelope="hyperbolic", smoothing=0.5, adjusted=False, step_size=0.05)
    finding = findings(fit(KINK, method, num_samples=50))["envelope"]
    assert finding.level == "warning"
    assert "79 %" in finding.message
    assert "envelope" not in findings(fit(KINK, pf.BregmanProximalLangevin(envelope="hyperbolic"), num_samples=50))


def test_a_term_that_is_not_convex_is_told() -> None:
    hard = geo.prox.UserTerm(lambda x: jnp.sum(1.0 * (x != 0)), lambda x, s: jnp.where(x**2 > 2 * s, x, 0.0))
    target = pf.Target.composite(REAL, hard)
    posterior = fit(target, pf.BregmanProximalLangevin(smoothing=0.1), num_samples=50)
    assert findings(posterior)["convexity"].level == "warning"
    assert "convexity" not in findings(fit(KINK, pf.BregmanProximalLangevin(), num_samples=50))


def test_a_density_without_bound_at_an_edge_is_told() -> None:
    corner = pf.Target.from_log_density(lambda p: jnp.sum(-0.5 * jnp.log(p)), np.full(3, 1 / 3), constraints.simplex)
    posterior = fit(corner, pf.MirrorLangevin(), num_samples=50, num_warmup=50)
    found = findings(posterior)["edge"]
    assert found.level == "note"
    assert found.value == pytest.approx(-0.5, abs=1e-3)
    other = fit(SIMPLEX, pf.MirrorLangevin(), num_samples=50, num_warmup=50)
    assert "edge" not in findings(other)
    assert posterior._run.methods[0].target_acceptance == 0.4
    assert other._run.methods[0].target_acceptance is None


def test_exponents_at_both_edges() -> None:
    """x^1 (1 − x)^−½ on (0, 1), (3 − y)^2 below 3, a Dirichlet(½, 3, 2) whose last probability follows."""

    def log_density(v):
        x, y, p = v["x"], v["y"], v["p"]
        return jnp.log(x) - 0.5 * jnp.log1p(-x) + 2 * jnp.log(3.0 - y) + y + jnp.array([-0.5, 2.0, 1.0]) @ jnp.log(p)

    support = {"x": constraints.unit_interval, "y": constraints.less_than(3.0), "p": constraints.simplex}
    target = pf.Target.from_log_density(log_density, {"x": 0.5, "y": 0.0, "p": np.full(3, 1 / 3)}, support)
    with jax.enable_x64(True):
        found = primal(target)
        names, near = checks.edge_exponents(found, found.coordinates.to_x(jnp.full(4, 0.3)))
        assert checks.steepest_edge(found, found.coordinates.to_x(jnp.full(4, 0.3)))[1] == pytest.approx(-0.5, abs=1e-4)
    by_site = {site: sorted(v for n, v in zip(names, near[:, 1], strict=True) if n == site) for site in names}
    np.testing.assert_allclose(by_site["x"], [-0.5, 1.0], atol=1e-4)
    np.testing.assert_allclose(by_site["y"], [2.0], atol=1e-4)
    np.testing.assert_allclose(by_site["p"], [-0.5, 1.0, 2.0], atol=1e-4)


def test_the_term_s_own_ess_is_told() -> None:
    posterior = fit(KINK, pf.BregmanProximalLangevin(), num_samples=200)
    np.testing.assert_allclose(
        posterior.data["sample_stats"]["nonsmooth"].values, np.abs(posterior.draws()["x"]).sum(-1), rtol=1e-12
    )
    assert findings(posterior)["nonsmooth term"].value > 0
    random = np.random.default_rng(0)
    walk = np.cumsum(random.normal(size=(4, 500)), axis=1)
    made = pf.Posterior.from_draws({"x": random.normal(size=(4, 500))}, sample_stats={"nonsmooth": walk})
    assert findings(made)["nonsmooth term"].level == "warning"


def test_long_steps_in_the_dual_are_told() -> None:
    """γ = 1 on N(0, 1) from x = 300: the recursion explodes; what it says of divergences is its own."""
    method = pf.MirrorLangevin(mirror=geo.HyperbolicEntropy(0.7), adjusted=False, step_size=1.0)
    start = np.full(2, 300.0)
    found = findings(fit(REAL, method, start=start, num_samples=50, num_warmup=0))
    assert found["long steps"].level == "warning"
    assert "NUTS" not in found["divergences"].message
    assert "the chain stayed where it was" in found["divergences"].message
    assert "non-centred" not in found["divergences"].message


def test_primal_dual_shows_its_ratio() -> None:
    found = findings(fit(KINK, pf.PrimalDualLangevin(step_size=0.1, ratio=4.0), num_samples=50))
    assert found["σ/τ"].value == pytest.approx(4.0)


def test_a_polytope_has_no_mirror_langevin() -> None:
    A, b = np.vstack([-np.eye(2), np.ones((1, 2))]), np.array([0.0, 0.0, 1.0])
    target = pf.Target.from_log_density(lambda x: 0.0 * jnp.sum(x), np.full(2, 0.2), polytope(A, b))
    with pytest.raises(pf.UnsupportedTarget, match="use MAPLA"):
        fit(target, pf.MirrorLangevin(), num_samples=10, num_warmup=10)


def test_real_sites_only() -> None:
    target = pf.Target.composite(SIMPLEX, L1(0.0))
    with pytest.raises(pf.UnsupportedTarget, match="needs real sites, and 'x' has the support simplex"):
        fit(target, pf.ProximalLangevin(), num_samples=10, num_warmup=10)


def test_scales_far_below_one_are_learned() -> None:
    scales = np.array([1e-3, 1e-4])
    target = pf.Target.from_log_density(lambda x: -0.5 * jnp.sum((x / scales) ** 2), np.zeros(2))
    posterior = fit(target, pf.MirrorLangevin(), num_samples=200, num_warmup=1000, start=np.zeros(2))
    learned = np.asarray(posterior._learned()["scale"])
    np.testing.assert_allclose(learned, np.broadcast_to(scales, learned.shape), rtol=0.5)
